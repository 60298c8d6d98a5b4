"""Blank figures, and how they get into a file."""

from pathlib import Path
from typing import TYPE_CHECKING

from musicnet.records.atomic_files import open_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRUTH, ESTIMATE, BOUND = "#d1495b", "#1b4965", "#555555"
"""Colours of what is true, of what was found, and of what is possible."""


def new_figure(width: float = 7.0, height: float = 4.2) -> "tuple[Figure, Axes]":
    """Makes a figure that no window and no global state knows of.

    Args:
        width: inches.
        height: inches.

    Returns:
        The figure and its axes.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    figure, (axes,) = new_row(1, width, height)
    return figure, axes


def new_row(
    n_axes: int, width: float = 7.0, height: float = 4.2
) -> "tuple[Figure, tuple[Axes, ...]]":
    """Makes a figure with several pairs of axes side by side.

    Args:
        n_axes: how many.
        width: of the figure; inches.
        height: inches.

    Returns:
        The figure and its axes, from left to right.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "pictures need matplotlib, which is not installed. Run pip install 'musicnet[plots]'."
        ) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, tuple(figure.subplots(1, n_axes, squeeze=False)[0])


def save(figure: "Figure", path: str | Path) -> None:
    """Writes a picture, whole or not at all.

    Args:
        figure: what to write.
        path: its suffix says how: .png, .svg or .pdf.

    Raises:
        OSError: the file cannot be written.
    """
    with open_atomically(path) as file:
        figure.savefig(file, format=Path(path).suffix.lstrip(".") or "png", dpi=150)
