"""Whether a recording was made in the scene that a network was built for."""

import math
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from musicnet.recordings.observation_files import ObservationFile
from musicnet.scene.scene import Scene
from musicnet.scene.sources import Bounds

_ROUNDING = 1e-5  # of bounds, that a file may hold in single precision
_TOLERANCE = 1e-3  # of the wavelength, and of positions in wavelengths


class _Difference(NamedTuple):
    """One thing on which a recording and a scene do not agree.

    Args:
        name: of it.
        recorded: in the file.
        wanted: by the scene.
        setting: what would make the scene agree; None where several keys could.
    """

    name: str
    recorded: str
    wanted: str
    setting: str | None

    def __str__(self) -> str:
        return f"got {self.name}={self.recorded}, the scene has {self.wanted}"


def check_recording(
    recording: ObservationFile, scene: Scene, path: str, n_scenes: int | None
) -> None:
    """Refuses a recording that was not made in a scene.

    Where the true sources are not known, the sector may be another one: a warning says that
    estimates stay in the scene's.

    Args:
        recording: as read.
        scene: what the network was built for.
        path: names the file.
        n_scenes: how many scenes are wanted.

    Raises:
        ValueError: what differs, by name, and which keys of the scene to set.
    """
    if n_scenes is not None and recording.n_scenes < n_scenes:
        raise ValueError(f"{path} must hold n_scenes={n_scenes} scenes: got {recording.n_scenes}.")
    if recording.truth is not None and not bool(recording.truth.resolved.any()):
        raise ValueError(
            f"{path}:truth_xyz must name a source in at least one scene: got none in "
            f"{recording.n_scenes} scenes. Leave the key out where sources are not known."
        )
    physics = list(_physics(recording, scene))
    sector = list(_sector(recording, scene))
    if physics or (sector and recording.truth is not None):
        raise ValueError(_refusal(path, physics + sector))
    if sector:
        warnings.warn(
            f"{path} is to be searched in another region than the scene's: "
            f"{'; '.join(map(str, sector))}. Estimates stay in the scene's.",
            stacklevel=2,
        )


def _refusal(path: str, differences: list[_Difference]) -> str:
    """All that differs at once, so that one correction is enough."""
    settings = [one.setting for one in differences if one.setting is not None]
    advice = f" Set {' '.join(settings)}." if settings else ""
    if len(settings) < len(differences):
        advice += " Choose the scene that it was recorded in."
    return f"{path} must fit the scene: {'; '.join(map(str, differences))}.{advice}"


def _physics(recording: ObservationFile, scene: Scene) -> Iterator[_Difference]:
    """What the network's shapes and its dictionary follow from."""
    field = "far" if scene.far_field else "near"
    if recording.field != field:
        range_m = "null" if recording.field == "far" else _text(recording.range_m)
        yield _Difference("field", recording.field, field, f"scene.sources.range_m={range_m}")
    n_blocks, n_rows = recording.y.shape[1:]
    n_elements = recording.positions.shape[0]
    if n_elements != scene.n_elements:
        yield _Difference("elements", str(n_elements), str(scene.n_elements), None)
    if n_rows != scene.n_rows:
        yield _Difference("rows", str(n_rows), str(scene.n_rows), None)
    if n_blocks != scene.n_blocks:
        setting = f"scene.n_snapshots={n_blocks}" if scene.surface is None else None
        yield _Difference("blocks", str(n_blocks), str(scene.n_blocks), setting)
    wavelength, wanted = f"{recording.wavelength:.10g}", f"{scene.wavelength_m:.10g}"
    if not math.isclose(recording.wavelength, scene.wavelength_m, rel_tol=_TOLERANCE):
        setting = f"scene.wavelength_m={wavelength}"
        yield _Difference("wavelength_m", wavelength, wanted, setting)
    if n_elements == scene.n_elements:
        # each in wavelengths of its own, or another wavelength would look like another array
        recorded = recording.positions / recording.wavelength
        apart = float((recorded - scene.array.positions(1.0)).abs().max())
        if apart > _TOLERANCE:
            found = f"up to {apart:.3g} wavelengths off"
            yield _Difference("element_positions", found, "those of its array", None)
    n_slots = 0 if recording.truth is None else recording.truth.resolved.shape[1]
    if n_slots > scene.sources.n_max:
        setting = f"scene.sources.n_max={n_slots}"
        yield _Difference("n_max", str(n_slots), str(scene.sources.n_max), setting)


def _sector(recording: ObservationFile, scene: Scene) -> Iterator[_Difference]:
    """Where sources are searched."""
    law = scene.sources
    pairs = {
        "azimuth_deg": (recording.azimuth_deg, law.azimuth_deg),
        "elevation_deg": (recording.elevation_deg, law.elevation_deg),
    }
    if law.range_m is not None and recording.field == "near":
        pairs["range_m"] = (recording.range_m, law.range_m)
    for name, (recorded, wanted) in pairs.items():
        if not all(map(_is_same, recorded, wanted)):
            setting = f"scene.sources.{name}={_text(recorded)}"
            yield _Difference(name, _text(recorded), _text(wanted), setting)


def _is_same(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_ROUNDING, abs_tol=_ROUNDING)


def _text(bounds: Bounds) -> str:
    return f"[{bounds[0]:.10g},{bounds[1]:.10g}]"
