"""Any recording, brought into the keys of the observation format.

An observation file says everything itself. Snapshots alone (numpy, MATLAB, HDF5, SigMF, sound) are
cut into scenes of as many snapshots as their owner wants, and their owner says where the elements
stand.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from musicnet.recordings.archives import RecordingError
from musicnet.recordings.audio_files import is_sound, open_sound
from musicnet.recordings.checks import FORMAT, LONGEST_M, SHORTEST_M
from musicnet.recordings.lazy_arrays import LazyArray, Store, in_memory
from musicnet.recordings.setup import SPEED_OF_LIGHT, Setup, check_size
from musicnet.recordings.sigmf_files import DATA, META, open_sigmf
from musicnet.recordings.sound_checks import check_sound
from musicnet.recordings.stores import observation_arrays, open_store, read_beginning
from musicnet.scene.sound import SPEED_OF_SOUND

_SNAPSHOTS = 100  # of a scene


def open_recording(path: str | Path, setup: Setup | None = None) -> Store:
    """Opens a recording of any kind.

    Args:
        path: a local file.
        setup: what the file does not say.

    Returns:
        An open store of the observation format's keys, not checked yet.

    Raises:
        OSError: the file cannot be read.
        RecordingError: it is damaged, of no known kind, or says too little.
        ModuleNotFoundError: its kind needs a package that is not installed.
    """
    path, setup = Path(path), setup or Setup()
    store = _opened(path, setup)
    try:
        if store.kind == "sound":
            check_sound(path)  # what all channels tell is not seen in one band of them
        arrays = observation_arrays(store)
        if store.kind in ("npy", "sigmf", "sound") or _is_bare(arrays, setup):
            return _as_scenes(store, arrays, setup)
        _check_array(path, arrays, setup)
        return replace(store, arrays=arrays)
    except BaseException:
        store.resources.close()
        raise


def _opened(path: Path, setup: Setup) -> Store:
    if path.suffix in (META, DATA):
        return open_sigmf(path)
    if is_sound(read_beginning(path)):
        return open_sound(path, setup.frequency_hz)
    return open_store(path)


def _is_bare(arrays: dict[str, LazyArray], setup: Setup) -> bool:
    """Whether a file holds one array of snapshots and nothing of the format."""
    return setup.array is not None and "format" not in arrays and len(_candidates(arrays)) == 1


def _candidates(arrays: dict[str, LazyArray]) -> list[LazyArray]:
    return [one for one in arrays.values() if one.dtype.kind == "c" and len(one.shape) in (2, 3)]


def _check_array(path: Path, arrays: dict[str, LazyArray], setup: Setup) -> None:
    """An array that was described beside a file that has one must be the same."""
    keys = ("element_positions", "wavelength")
    if setup.array is None or not set(keys) <= set(arrays):
        return
    places, wavelength = (arrays[key] for key in keys)
    are_numbers = all(one.dtype.kind in "fiu" for one in (places, wavelength))
    # what is otherwise is said where keys and shapes are checked
    if are_numbers and len(places.shape) == 2 and places.shape[1] == 3 and wavelength.shape == ():
        found = places.whole().astype(np.float64), float(wavelength.whole())
        setup.check_against(str(path), *found)


def _as_scenes(store: Store, arrays: dict[str, LazyArray], setup: Setup) -> Store:
    """Snapshots of an array as scenes of the format."""
    path = store.path
    if setup.array is None:
        raise RecordingError(
            f"{path} does not say where its sensors stand: got no array. Give --array, for example "
            "ula:8:0.5w."
        )
    snapshots = arrays["y"] if store.kind in ("npy", "sigmf", "sound") else _candidates(arrays)[0]
    if snapshots.dtype.kind != "c":
        raise RecordingError(f"{snapshots.name} has dtype {snapshots.dtype}, want complex.")
    if len(snapshots.shape) not in (2, 3):
        raise RecordingError(
            f"{snapshots.name} has shape {snapshots.shape}, want (snapshot, sensor) or (scene, "
            "snapshot, sensor)."
        )
    speed = SPEED_OF_SOUND if store.kind == "sound" else SPEED_OF_LIGHT
    wavelength = _wavelength(store, setup, speed)
    positions = setup.array.positions(wavelength)
    if SHORTEST_M <= wavelength <= LONGEST_M:  # said of the wavelength elsewhere
        check_size(f"--array {setup.array.word}", positions, wavelength)
    _check_channels(snapshots, len(positions), setup)
    y, per_scene = _cut(snapshots, setup.n_snapshots)
    n_elements = len(positions)
    known = {
        "format": np.array(FORMAT),
        "operator": np.eye(n_elements, dtype=np.complex64)[None, None],
        "operator_index": np.zeros(y.shape[0], dtype=np.int32),
        "element_positions": positions,
        "wavelength": np.array(wavelength),
        **setup.sector(positions),
    }
    said = {key: in_memory(f"{path}:{key}", value) for key, value in known.items()}
    rate = None if store.rate_hz is None or per_scene is None else store.rate_hz / per_scene
    return replace(store, arrays={**said, "y": y}, rate_hz=rate)


def _wavelength(store: Store, setup: Setup, speed: float) -> float:
    """Where lengths are in wavelengths alone, and far sources have no range, any would do."""
    is_said = setup.wavelength_m or setup.frequency_hz or store.frequency_hz
    is_relative = setup.array is not None and setup.array.unit == "w" and setup.range_m is None
    if not is_said and is_relative:
        if setup.speed_m_s is not None:
            raise RecordingError(
                f"the speed of a wave says nothing of {store.path} without its frequency: got "
                f"speed_m_s={setup.speed_m_s:g} alone. Give --frequency, or leave --speed out."
            )
        return 1.0
    return setup.wavelength(store.frequency_hz, speed)


def _check_channels(snapshots: LazyArray, n_elements: int, setup: Setup) -> None:
    n_channels = snapshots.shape[-1]
    if 0 in snapshots.shape:
        raise RecordingError(f"{snapshots.name} has 0 snapshots, shape {snapshots.shape}.")
    if n_channels == n_elements:
        return
    word = setup.array.word if setup.array is not None else ""
    swapped = " The last two axes look swapped." if snapshots.shape[-2] == n_elements else ""
    raise RecordingError(
        f"{snapshots.name} has {n_channels} sensors, geometry {word} has {n_elements}: got shape "
        f"{snapshots.shape}, want (..., snapshot, sensor).{swapped}"
    )


def _cut(snapshots: LazyArray, n_snapshots: int | None) -> tuple[LazyArray, int | None]:
    """Scenes of so many snapshots; a rest that is shorter is left out."""
    if len(snapshots.shape) == 3:
        if n_snapshots is not None:
            raise RecordingError(
                f"{snapshots.name} is cut into scenes of {snapshots.shape[1]} snapshots already: "
                f"got {n_snapshots} for a scene. Leave --snapshots out."
            )
        return replace(snapshots, name=f"{snapshots.name}:y"), None
    n_lines, n_channels = snapshots.shape
    each = min(n_snapshots or _SNAPSHOTS, n_lines)

    def read(first: int, last: int) -> np.ndarray:
        # scene by scene, so that no number depends on how many are read at once
        scenes = [snapshots.read(i * each, (i + 1) * each) for i in range(first, last)]
        return np.stack(scenes) if scenes else np.empty((0, each, n_channels), snapshots.dtype)

    shape = (n_lines // each, each, n_channels)
    return LazyArray(f"{snapshots.name}:y", shape, snapshots.dtype, read), each
