"""Where sources were found, scene after scene, with their error bars."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musicnet.plots.figures import ESTIMATE, new_row, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_SCENES = 2000
"""Of a picture: more would be a blot."""


def draw_positions(folder: Path, entries: Iterable[dict[str, Any]]) -> list[Path]:
    """Draws a picture for each file: directions over scenes and, of near sources, where they stand.

    Args:
        folder: where to; made if need be.
        entries: scenes of ``musicnet.positions/1``.

    Returns:
        The pictures.

    Raises:
        OSError: a file cannot be written.
        ModuleNotFoundError: matplotlib is not installed.
    """
    scenes: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        some = scenes.setdefault(entry["file"], [])
        if len(some) < MOST_SCENES:
            some.append(entry)
    pictures = []
    for number, (name, some) in enumerate(scenes.items()):
        stem = Path(name).stem
        taken = any(Path(other).stem == stem for other in list(scenes)[:number])
        pictures.append(folder / (f"{stem}_{number}.png" if taken else f"{stem}.png"))
        _draw(some, stem, pictures[-1])
    return pictures


def _draw(scenes: list[dict[str, Any]], title: str, target: Path) -> None:
    found = [
        {"at": scene.get("time_s", scene["scene"]), **source}
        for scene in scenes
        for source in scene["sources"]
        if source["resolved"]
    ]
    is_near = any(source.get("range_m") is not None for source in found)
    figure, axes = new_row(1 + is_near, width=7.0 * (1 + is_near))
    angles = ("bearing_deg", "lateral_deg", "azimuth_deg")
    angle = next((a for a in angles if any(a in source for source in found)), angles[-1])
    axes[0].errorbar(
        [source["at"] for source in found],
        [source[angle] for source in found],
        # an unknown spread has no bar
        yerr=[source[f"std_{angle}"] or 0.0 for source in found],
        fmt=".",
        color=ESTIMATE,
        elinewidth=0.8,
    )
    timed = any("time_s" in scene for scene in scenes)
    axes[0].set(
        xlabel="time (s)" if timed else "scene",
        ylabel=f"{angle.removesuffix('_deg')} (degrees)",
        title=title,
    )
    axes[0].grid(alpha=0.3)
    if is_near:
        _draw_places(axes[1], found)
    save(figure, target)


def _draw_places(axes: "Axes", found: list[dict[str, Any]]) -> None:
    near = [source for source in found if source["x"] is not None]
    axes.plot([one["x"] for one in near], [one["z"] for one in near], ".", color=ESTIMATE)
    reach = max((math.hypot(one["x"], one["z"]) for one in near), default=1.0)
    axes.set(xlabel="x (m)", ylabel="z (m)", xlim=(-reach, reach), ylim=(0.0, reach))
    axes.grid(alpha=0.3)
