"""Errors beside the bound, and shares of failures, against signal-to-noise ratio."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from musicnet.plots.figures import BOUND, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = "osD^vP*X"


def draw_error_curves(
    snr_db: Sequence[float],
    errors: Mapping[str, Sequence[float]],
    bound: Sequence[float],
    unit: str,
    title: str = "",
) -> "Figure":
    """Draws one curve per method on a logarithmic scale, and the bound below them.

    Args:
        snr_db: where the errors were measured.
        errors: method -> error at each; NaN leaves a gap.
        bound: Cramér-Rao bound of the same error.
        unit: of error and bound, for the axis: "RMSE (degrees)".
        title: above the picture.

    Returns:
        A figure; see `musicnet.plots.figures.save`.

    Raises:
        ValueError: a curve with more or fewer points than there are ratios.
        ModuleNotFoundError: matplotlib is not installed.
    """
    _check_lengths(snr_db, {**errors, "the bound": bound})
    figure, axes = new_figure()
    _draw_methods(axes, snr_db, errors)
    axes.plot(snr_db, bound, color=BOUND, linestyle="--", linewidth=1.5, label="Cramér-Rao bound")
    axes.set_yscale("log")
    axes.set(xlabel="SNR (dB)", ylabel=unit, title=title)
    axes.grid(which="both", alpha=0.25)
    axes.legend(loc="lower left", fontsize="small")
    return figure


def draw_share_curves(
    snr_db: Sequence[float],
    shares: Mapping[str, Sequence[float]],
    label: str,
    least: float,
    title: str = "",
) -> "Figure":
    """Draws one curve of shares per method: logarithmic, but for a stretch down to zero.

    Args:
        snr_db: where they were measured.
        shares: method -> share at each, from 0 to 1; NaN leaves a gap.
        label: of the shares, for the axis.
        least: smallest share above zero that could be measured; below it the axis is linear.
        title: above the picture.

    Returns:
        A figure; see `musicnet.plots.figures.save`.

    Raises:
        ValueError: a curve with more or fewer points than there are ratios, or no least share.
        ModuleNotFoundError: matplotlib is not installed.
    """
    _check_lengths(snr_db, shares)
    if not 0.0 < least < 1.0:
        raise ValueError(f"least must be a share between 0 and 1: got {least}.")
    figure, axes = new_figure()
    _draw_methods(axes, snr_db, shares)
    axes.set_yscale("symlog", linthresh=least, linscale=0.5)
    axes.set_ylim(-0.1 * least, 1.1)
    axes.set(xlabel="SNR (dB)", ylabel=label, title=title)
    axes.grid(which="both", alpha=0.25)
    # curves may lie anywhere
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def _check_lengths(snr_db: Sequence[float], curves: Mapping[str, Sequence[float]]) -> None:
    for name, values in curves.items():
        if len(values) != len(snr_db):
            raise ValueError(
                f"{name} must have one value for each of the {len(snr_db)} ratios: got "
                f"{len(values)}."
            )


def _draw_methods(
    axes: "Axes", snr_db: Sequence[float], curves: Mapping[str, Sequence[float]]
) -> None:
    for index, (name, values) in enumerate(curves.items()):
        marker = _MARKERS[index % len(_MARKERS)]
        # open markers show the curve that lies below another
        axes.plot(snr_db, values, marker=marker, markerfacecolor="none", linewidth=1.3, label=name)
