"""Whether a recording was made in the scene that a network was built for, and what is amiss."""

import logging
import math
import warnings
from collections.abc import Iterator, Sequence

from lightning.fabric.utilities.rank_zero import rank_zero_only

from musicnet.recordings.observation_files import ObservationFile
from musicnet.scene.agreement import Difference, aperture_differences, wavelength_differences
from musicnet.scene.scene import Scene
from musicnet.scene.sources import Bounds

_ROUNDING = 1e-5  # of bounds, that a file may hold in single precision
_MOST_NAMED = 20

_logger = logging.getLogger(__name__)


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


@rank_zero_only
def tell_left_out(bad: Sequence[str], n_kept: int) -> None:
    """Names the scenes that are left out, and counts them; one process speaks for all.

    Args:
        bad: file, index and fault of each.
        n_kept: scenes that are good.
    """
    for line in bad[:_MOST_NAMED]:
        _logger.warning("%s; the scene is left out", line)
    if bad:
        more = f", {_MOST_NAMED} of which are named" if len(bad) > _MOST_NAMED else ""
        _logger.warning("left out %d of %d scenes%s", len(bad), len(bad) + n_kept, more)


def _refusal(path: str, differences: list[Difference]) -> str:
    """All that differs at once, so that one correction is enough."""
    settings = [one.setting for one in differences if one.setting is not None]
    advice = f" Set {' '.join(settings)}." if settings else ""
    if len(settings) < len(differences):
        advice += " Choose the scene that it was recorded in."
    return f"{path} must fit the scene: {'; '.join(map(str, differences))}.{advice}"


def _physics(recording: ObservationFile, scene: Scene) -> Iterator[Difference]:
    """What the network's shapes and its dictionary follow from."""
    field = "far" if scene.far_field else "near"
    if recording.field != field:
        range_m = "null" if recording.field == "far" else _text(recording.range_m)
        yield Difference("field", recording.field, field, f"scene.sources.range_m={range_m}")
    n_blocks, n_rows = recording.y.shape[1:]
    yield from aperture_differences(scene, recording.positions, recording.wavelength, n_rows)
    if n_blocks != scene.n_blocks:
        setting = f"scene.n_snapshots={n_blocks}" if scene.surface is None else None
        yield Difference("blocks", str(n_blocks), str(scene.n_blocks), setting)
    yield from wavelength_differences(scene, recording.wavelength)
    n_slots = 0 if recording.truth is None else recording.truth.resolved.shape[1]
    if n_slots > scene.sources.n_max:
        setting = f"scene.sources.n_max={n_slots}"
        yield Difference("n_max", str(n_slots), str(scene.sources.n_max), setting)


def _sector(recording: ObservationFile, scene: Scene) -> Iterator[Difference]:
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
            yield Difference(name, _text(recorded), _text(wanted), setting)


def _is_same(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_ROUNDING, abs_tol=_ROUNDING)


def _text(bounds: Bounds) -> str:
    return f"[{bounds[0]:.10g},{bounds[1]:.10g}]"
