"""On what an observation and a scene do not agree, thing by thing."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from musicnet.scene.scene import Scene
from musicnet.shapes import Positions

TOLERANCE = 1e-3
"""Of positions in wavelengths, and, relatively, of the wavelength."""


class Difference(NamedTuple):
    """One thing on which an observation and a scene do not agree.

    Args:
        name: of it.
        found: in the observation.
        wanted: by the scene.
        setting: what would make the scene agree; None where several keys could.
    """

    name: str
    found: str
    wanted: str
    setting: str | None = None

    def __str__(self) -> str:
        return f"got {self.name}={self.found}, the scene has {self.wanted}"


def aperture_differences(
    scene: Scene,
    positions: Positions,
    wavelength: float,
    n_rows: int,
    *,
    has_any_origin: bool = False,
) -> Iterator[Difference]:
    """Compares what hears: elements, rows, and where the elements stand.

    Args:
        scene: the physics.
        positions: of the elements that were heard with; metres.
        wavelength: metres.
        n_rows: received numbers per block.
        has_any_origin: whether positions may refer to any point, as directions do not depend on it.

    Yields:
        What differs.
    """
    n_elements = positions.shape[0]
    if n_elements != scene.n_elements:
        yield Difference("elements", str(n_elements), str(scene.n_elements))
    if n_rows != scene.n_rows:
        yield Difference("rows", str(n_rows), str(scene.n_rows))
    if n_elements == scene.n_elements:
        # each in wavelengths of its own, or another wavelength would look like another array
        own = scene.array.positions(1.0, positions.device)
        off = positions / wavelength - own
        apart, about_middle = (float(each.abs().max()) for each in (off, off - off.mean(0)))
        if about_middle <= TOLERANCE and (has_any_origin or apart <= TOLERANCE):
            return
        found = f"up to {about_middle if has_any_origin else apart:.3g} wavelengths off"
        if about_middle <= TOLERANCE:
            found += ", all alike: they refer to another origin"
        yield Difference("element_positions", found, "those of its array")


def wavelength_differences(scene: Scene, wavelength: float) -> Iterator[Difference]:
    """Compares wavelengths.

    Args:
        scene: the physics.
        wavelength: metres.

    Yields:
        What differs.
    """
    if not math.isclose(wavelength, scene.wavelength_m, rel_tol=TOLERANCE):
        found, wanted = f"{wavelength:.10g}", f"{scene.wavelength_m:.10g}"
        yield Difference("wavelength_m", found, wanted, f"scene.wavelength_m={found}")
