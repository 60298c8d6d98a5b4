"""Pseudo-spectra over what was searched, with true and estimated sources in them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from musicnet.coordinates import angles
from musicnet.estimation.spectrum import SearchGrid
from musicnet.plots.figures import ESTIMATE, TRUTH, new_figure, new_row
from musicnet.scene.sources import Sources

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_NAMES = ("direction cosine v", "direction cosine u", "inverse range (1/m)")
_COLUMN_OF_AXIS = (1, 0, 2)  # maps are (v, u, rho), parameters (u, v, rho)
_DEPTH_DB = 40.0


def draw_spectrum(
    spectrum: Float[Tensor, "v u rho"],
    grid: SearchGrid,
    truth: Sources | None = None,
    estimates: Sources | None = None,
    title: str = "",
) -> "Figure":
    """Draws a spectrum in decibels below its peak.

    One searched coordinate makes a curve, over azimuth if that is the one; two make a map; of
    three the inverse range is left out, the highest value along it is shown.

    Args:
        spectrum: linear power or any positive score; what is not positive lies at the bottom.
        grid: its cells.
        truth: the true sources of the scene, no batch.
        estimates: those that were found, no batch.
        title: above the picture.

    Returns:
        A figure; see `musicnet.plots.figures.save`.

    Raises:
        ValueError: the spectrum does not belong to the grid, or nothing was searched.
        ModuleNotFoundError: matplotlib is not installed.
    """
    figure, axes = new_figure()
    _draw_panel(figure, axes, Panel(spectrum, grid, estimates, title), truth)
    _explain_marks(figure, axes)
    return figure


@dataclass(frozen=True)
class Panel:
    """One spectrum of several.

    Args:
        spectrum: linear power or any positive score.
        grid: its cells.
        estimates: sources that were found by it, no batch.
        title: above it.
    """

    spectrum: Float[Tensor, "v u rho"]
    grid: SearchGrid
    estimates: Sources | None = None
    title: str = ""


def draw_spectra(panels: Sequence[Panel], truth: Sources | None = None) -> "Figure":
    """Draws spectra of the same scene side by side, each below its own peak.

    Args:
        panels: from left to right; their grids search the same coordinates.
        truth: the true sources of the scene, no batch.

    Returns:
        A figure; see `draw_spectrum` for what each panel shows.

    Raises:
        ValueError: no panels, a spectrum that does not belong to its grid, or nothing searched.
        ModuleNotFoundError: matplotlib is not installed.
    """
    if not panels:
        raise ValueError("a picture needs at least one spectrum: got none.")
    figure, every = new_row(len(panels), width=6.0 * len(panels))
    for axes, panel in zip(every, panels, strict=True):
        _draw_panel(figure, axes, panel, truth)
    _explain_marks(figure, *every)
    return figure


def _draw_panel(figure: "Figure", axes: "Axes", panel: Panel, truth: Sources | None) -> None:
    spectrum, grid = panel.spectrum, panel.grid
    if tuple(spectrum.shape) != grid.shape:
        raise ValueError(
            f"the spectrum must have the grid's shape (v, u, rho) = {grid.shape}: got "
            f"{tuple(spectrum.shape)}."
        )
    searched = [axis for axis, n_cells in enumerate(grid.shape) if n_cells > 1]
    if not searched:
        raise ValueError("a picture needs a coordinate that is searched: got a single cell.")
    power = spectrum.detach().double().cpu().clamp_min(1e-300)
    decibels = (10.0 * (power / power.amax()).log10()).clamp_min(-_DEPTH_DB)
    if len(searched) == 1:
        _draw_curve(axes, decibels.flatten(), grid, searched[0], truth, panel.estimates)
    else:
        shown = decibels.amax(2) if len(searched) == 3 else decibels.squeeze()
        picture = _draw_map(axes, shown, grid, searched[:2])
        figure.colorbar(picture, ax=axes, label="dB, the peak at 0")
        _mark_points(axes, searched[:2], truth, panel.estimates)
    axes.set_title(panel.title)


def _draw_curve(
    axes: "Axes",
    decibels: Tensor,
    grid: SearchGrid,
    axis: int,
    truth: Sources | None,
    estimates: Sources | None,
) -> None:
    cells = grid.cells.double().reshape(-1, 3)
    places, name = _places(cells, axis)
    axes.plot(places.tolist(), decibels.tolist(), color=ESTIMATE, linewidth=1.2)
    axes.set(xlabel=name, ylabel="dB, the peak at 0", ylim=(-_DEPTH_DB - 1.0, 3.0))
    axes.set_xlim(float(places.min()), float(places.max()))
    axes.grid(alpha=0.3)
    for place in _resolved_places(truth, axis):
        axes.axvline(place, color=TRUTH, linestyle="--", linewidth=1.2, label="truth")
    found = _resolved_places(estimates, axis)
    if found:
        heights = torch.zeros(len(found)).add(1.5).tolist()
        axes.plot(found, heights, "v", color=ESTIMATE, markersize=8, label="estimate")


def _draw_map(axes: "Axes", shown: Tensor, grid: SearchGrid, searched: list[int]) -> "AxesImage":
    down, across = searched
    bounds = [grid.region.v, grid.region.u, grid.region.inverse_range]
    # cells are centred on the region's edges
    half = [0.5 * step for step in grid.steps]
    left, right = bounds[across][0] - half[across], bounds[across][1] + half[across]
    bottom, top = bounds[down][0] - half[down], bounds[down][1] + half[down]
    axes.set(xlabel=_NAMES[across], ylabel=_NAMES[down])
    return axes.imshow(
        shown.numpy(),
        origin="lower",
        extent=(left, right, bottom, top),
        aspect="auto",
        cmap="viridis",
    )


def _mark_points(
    axes: "Axes", searched: list[int], truth: Sources | None, estimates: Sources | None
) -> None:
    down, across = (_COLUMN_OF_AXIS[axis] for axis in searched)
    if truth is not None:
        there = truth.parameters[truth.resolved].double().cpu()
        x, y = there[:, across].tolist(), there[:, down].tolist()
        axes.scatter(
            x, y, s=130, facecolors="none", edgecolors="white", linewidths=1.8, label="truth"
        )
    if estimates is not None:
        there = estimates.parameters[estimates.resolved].double().cpu()
        x, y = there[:, across].tolist(), there[:, down].tolist()
        axes.scatter(x, y, s=50, marker="x", color=TRUTH, linewidths=1.8, label="estimate")


def _places(parameters: Tensor, axis: int) -> tuple[Tensor, str]:
    if axis == 1:
        return angles(parameters)[0].rad2deg(), "azimuth (degrees)"
    return parameters[..., _COLUMN_OF_AXIS[axis]], _NAMES[axis]


def _resolved_places(sources: Sources | None, axis: int) -> list[float]:
    if sources is None:
        return []
    places, _ = _places(sources.parameters[sources.resolved].double().cpu(), axis)
    values: list[float] = places.tolist()
    return values


def _explain_marks(figure: "Figure", *every: "Axes") -> None:
    """One entry per kind of mark, below the picture, where it covers nothing."""
    kinds: dict[str, Any] = {}
    for axes in every:
        handles, labels = axes.get_legend_handles_labels()
        kinds.update(zip(labels, handles, strict=True))
    if kinds:
        # white rings need a ground that is not white
        figure.legend(
            list(kinds.values()),
            list(kinds),
            loc="outside lower center",
            ncols=2,
            facecolor="#b5b5b5" if every[0].images else "white",
        )
