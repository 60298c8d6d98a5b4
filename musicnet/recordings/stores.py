"""Opens a file by what it holds, whatever its name says, and brings its arrays into one form."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from musicnet.recordings.archives import MAX_BYTES, RecordingError, check_regular_file
from musicnet.recordings.checks import RANKS
from musicnet.recordings.hdf5_files import SIGNATURE, USER_BLOCK, open_hdf5
from musicnet.recordings.lazy_arrays import LazyArray, Store, in_memory
from musicnet.recordings.mat_files import HEADER, is_mat5, open_mat5
from musicnet.recordings.numpy_files import open_npy, open_npz

_BEGINNING = USER_BLOCK + len(SIGNATURE)
_LARGEST_SMALL = 64 * 1024**2  # bytes of what is brought into another form as a whole
_TELLING_SUFFIXES = {
    ".npz": "an npz",
    ".npy": "an npy",
    ".h5": "an HDF5 file",
    ".hdf5": "an HDF5 file",
    ".mat": "a MAT file",
    ".wav": "a WAV file",
    ".flac": "a FLAC file",
}


def open_store(path: Path, max_bytes: int = MAX_BYTES) -> Store:
    """Opens a file of arrays: numpy's, HDF5 or MATLAB's.

    Args:
        path: a local file.
        max_bytes: limit of what is read whole.

    Returns:
        Its arrays; a context that closes the file.

    Raises:
        OSError: the file cannot be read.
        RecordingError: it is damaged, too large, or of another kind.
        ModuleNotFoundError: its kind needs a package that is not installed.
    """
    beginning = read_beginning(path)
    opener = _opener(beginning)
    if opener is not None:
        return opener(path, max_bytes)
    kind = _TELLING_SUFFIXES.get(path.suffix.lower(), "a file of arrays")
    raise RecordingError(
        f"{path} is truncated or not {kind}: it begins with {beginning[:8]!r}. Known are npz, npy, "
        "HDF5 and MATLAB's files; docs/observations.md has others."
    )


def read_beginning(path: Path) -> bytes:
    """The first bytes of a file, by which its kind is told.

    Args:
        path: a local file.

    Returns:
        As many as there are, up to what any kind needs.

    Raises:
        OSError: the file cannot be read.
        RecordingError: it is empty.
    """
    check_regular_file(path)
    try:
        with path.open("rb") as file:
            return file.read(_BEGINNING)
    except PermissionError as error:
        raise PermissionError(f"permission denied: {path}") from error


def _opener(beginning: bytes) -> Callable[[Path, int], Store] | None:
    if beginning.startswith(b"PK"):
        return open_npz
    if beginning.startswith(b"\x93NUMPY"):
        return lambda path, _: open_npy(path)
    if beginning.startswith(SIGNATURE) or beginning[USER_BLOCK:].startswith(SIGNATURE):
        return open_hdf5
    return open_mat5 if is_mat5(beginning[:HEADER]) else None


def observation_arrays(store: Store) -> dict[str, LazyArray]:
    """Brings MATLAB's arrays into the form of the others.

    MATLAB knows no vectors, no whole numbers by default, no trailing axes of length one, and
    stores a complex array without imaginary parts as a real one.

    Args:
        store: an open file.

    Returns:
        Its arrays by key.
    """
    arrays = dict(store.arrays)
    if not store.kind.startswith("mat"):
        return arrays
    for key, axes in RANKS.items():
        if key not in arrays:
            continue
        array = _with_rank(arrays[key], len(axes))
        if key == "operator_index" and array.dtype.kind == "f":
            numbers = array.whole(_LARGEST_SMALL)
            if np.array_equal(numbers, np.round(numbers)):
                array = in_memory(array.name, numbers.astype(np.int64))
        if key == "operator" and array.dtype.kind == "f":
            array = in_memory(array.name, array.whole().astype(np.complex64))
        arrays[key] = array
    return arrays


def _with_rank(array: LazyArray, rank: int) -> LazyArray:
    """The same with axes of length one added at the end, or taken away."""
    if rank >= 2:
        missing = max(rank - len(array.shape), 0)
        shape = (*array.shape, *[1] * missing)
        if not missing:
            return array
        pick = array.pick
        return replace(
            array,
            shape=shape,
            read=lambda first, last: array.read(first, last).reshape(-1, *shape[1:]),
            mapped=array.mapped and replace(array.mapped, shape=shape),
            pick=pick and (lambda numbers: pick(numbers).reshape(-1, *shape[1:])),
        )
    long = [length for length in array.shape if length != 1]
    if array.dtype.kind == "U" or len(long) > rank:
        return array
    return in_memory(array.name, array.whole(_LARGEST_SMALL).reshape(long or [1] * rank))
