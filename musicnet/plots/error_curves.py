"""Error against signal-to-noise ratio, beside the bound."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from musicnet.plots.figures import BOUND, new_figure

if TYPE_CHECKING:
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
    for name, values in {**errors, "the bound": bound}.items():
        if len(values) != len(snr_db):
            raise ValueError(
                f"{name} must have one value for each of the {len(snr_db)} ratios: got "
                f"{len(values)}."
            )
    figure, axes = new_figure()
    for index, (name, values) in enumerate(errors.items()):
        marker = _MARKERS[index % len(_MARKERS)]
        # open markers show the curve that lies below another
        axes.plot(snr_db, values, marker=marker, markerfacecolor="none", linewidth=1.3, label=name)
    axes.plot(snr_db, bound, color=BOUND, linestyle="--", linewidth=1.5, label="Cramér-Rao bound")
    axes.set_yscale("log")
    axes.set(xlabel="SNR (dB)", ylabel=unit, title=title)
    axes.grid(which="both", alpha=0.25)
    axes.legend(loc="lower left", fontsize="small")
    return figure
