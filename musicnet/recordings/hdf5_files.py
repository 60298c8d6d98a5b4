"""HDF5 files, read in parts or mapped; MATLAB's v7.3 files are HDF5 with conventions of their own.

Nothing outside the file is followed: no link to another file, no storage in another file, no
filter that would have to be loaded.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from musicnet.recordings.archives import MAX_BYTES, RecordingError
from musicnet.recordings.hdf5_words import read_word
from musicnet.recordings.lazy_arrays import LazyArray, Store, native, sha256_of
from musicnet.recordings.mapped_arrays import FileState, MappedArray

SIGNATURE = b"\x89HDF\r\n\x1a\n"
USER_BLOCK = 512
"""Bytes that MATLAB writes before the signature."""

_KNOWN_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 4: "szip", 32000: "lzf"}
_MOST_EXPANSION = 1100  # deflate cannot do more
_COMPLEX_PARTS = {("r", "i"), ("real", "imag")}


def open_hdf5(path: Path, max_bytes: int = MAX_BYTES) -> Store:
    """Opens the data sets at the top of a file.

    Args:
        path: a local file.
        max_bytes: limit of a single chunk.

    Returns:
        Its arrays, in the order of axes that the program uses.

    Raises:
        OSError: the file cannot be read.
        RecordingError: it is damaged, or refers to something outside itself.
        ModuleNotFoundError: h5py is not installed.
    """
    h5py = _library()
    state = FileState.of(path)
    state = state.holding(sha256 := sha256_of(path))
    try:
        with h5py.File(path, "r") as file:
            is_matlab = file.userblock_size >= USER_BLOCK
            arrays = {}
            for key in file:
                _check_link(h5py, file, key, path)
                item = file[key]
                if isinstance(item, h5py.Dataset) and not key.startswith("#"):
                    name = f"{path}:{key}"
                    _check_storage(item, name, max_bytes)
                    make = _matlab if is_matlab else _plain
                    arrays[key] = make(h5py, item, name, state)
    except (OSError, RuntimeError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        if isinstance(error, RecordingError):
            raise
        raise _unreadable(path, error) from error
    return Store(path, "mat v7.3" if is_matlab else "hdf5", arrays, sha256)


def _library() -> Any:
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "HDF5 needs h5py, which is not installed. Run pip install 'musicnet[formats]'."
        ) from error
    return h5py


def _unreadable(path: Path | str, error: Exception) -> RecordingError:
    reason = " ".join(str(error).split())
    kind = "truncated: " if "truncated" in reason else ""
    return RecordingError(f"{path} cannot be opened: {kind}not a whole HDF5 file ({reason:.160}).")


def _check_link(h5py: Any, file: Any, key: str, path: Path) -> None:
    link = file.get(key, getlink=True)
    if not isinstance(link, h5py.HardLink):
        kind = "external data" if isinstance(link, h5py.ExternalLink) else "a soft link"
        raise RecordingError(
            f"{path}:{key} is {kind}; refused, a recording holds its numbers itself."
        )


def _check_storage(item: Any, name: str, max_bytes: int) -> None:
    """Refuses numbers that lie elsewhere, need foreign code, or are far more than were written."""
    properties = item.id.get_create_plist()
    if item.external or item.is_virtual:
        raise RecordingError(
            f"{name} is external data; refused, a recording holds its numbers itself."
        )
    for index in range(properties.get_nfilters()):
        number = properties.get_filter(index)[0]
        if number not in _KNOWN_FILTERS:
            raise RecordingError(
                f"{name} is packed by filter {number}, want one of "
                f"{', '.join(_KNOWN_FILTERS.values())}."
            )
    declared, stored = _declared(item), item.id.get_storage_size()
    if declared > _MOST_EXPANSION * max(stored, 1):
        raise RecordingError(f"{name} declares {declared} bytes but stores {stored}.")
    if item.chunks is not None and _size(item.chunks) * item.dtype.itemsize > max_bytes:
        raise RecordingError(f"{name} declares chunks beyond the limit of {max_bytes} bytes.")


def _declared(item: Any) -> int:
    return _size(item.shape or ()) * int(item.dtype.itemsize)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= int(length)
    return size


def _reopened(
    item: Any, name: str, read: Callable[[Any, int, int], np.ndarray]
) -> tuple[Callable[[int, int], np.ndarray], Callable[[Sequence[int]], np.ndarray]]:
    """Lines from one number to another, and lines by number; the file is opened for each use.

    A folder may have more files than a process may hold open. Damage inside a data set is only
    seen when it is read.
    """
    path, key = item.file.filename, item.name
    h5py = _library()

    def reading(parts: Sequence[tuple[int, int]]) -> np.ndarray:
        try:
            with h5py.File(path, "r") as file:
                found = [read(file[key], first, last) for first, last in parts]
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise RecordingError(f"{name} cannot be read ({reason:.160}).") from error
        return found[0] if len(found) == 1 else np.concatenate(found)

    return (
        lambda first, last: reading([(first, last)]),
        lambda numbers: reading([(number, number + 1) for number in numbers]),
    )


def _mapped(
    h5py: Any, item: Any, name: str, state: FileState, *, is_turned: bool
) -> MappedArray | None:
    """The numbers where they lie, if they lie in one piece and just as numpy would lay them."""
    is_whole = item.id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS
    is_known = item.id.get_type() == h5py.h5t.py_create(item.dtype, logical=True)
    offset = item.id.get_offset()  # none where nothing was ever written
    dtype = item.dtype
    if dtype.names is not None:
        half = np.dtype(f"f{dtype.itemsize // 2}")
        is_known &= dtype == np.dtype([(part, half) for part in dtype.names])
        dtype = _complex_dtype(dtype)
    if not (is_whole and is_known) or offset is None or dtype.kind not in "fciu":
        return None
    shape = item.shape[::-1] if is_turned else item.shape
    return MappedArray(name, state, offset, shape, dtype, "F" if is_turned else "C")


def _plain(h5py: Any, item: Any, name: str, state: FileState) -> LazyArray:
    if item.shape is None:
        raise RecordingError(f"{name} holds nothing.")
    if (text := h5py.check_string_dtype(item.dtype)) is not None:
        if item.shape != ():
            raise RecordingError(f"{name} holds texts of shape {item.shape}, want a single one.")
        is_long = text.length is None
        word = read_word(item, state.path, name) if is_long else item[()]
        value = word.decode(text.encoding, "replace")
        return _of_value(name, np.array(value))
    if item.dtype.hasobject:
        raise RecordingError(f"{name} holds objects; refused, want numbers.")
    dtype = item.dtype.newbyteorder("=")
    if not item.shape:
        return _of_value(name, native(np.asarray(item[()])))
    read, pick = _reopened(item, name, lambda found, first, last: native(found[first:last]))
    mapped = _mapped(h5py, item, name, state, is_turned=False)
    return LazyArray(name, item.shape, dtype, read, mapped, pick)


def _matlab(h5py: Any, item: Any, name: str, state: FileState) -> LazyArray:
    """Axes in MATLAB's order, complex numbers of two parts, text of character codes."""
    if item.shape is None or _attribute(item, "MATLAB_empty", 0):
        raise RecordingError(f"{name} is empty.")
    kind = _text_of(_attribute(item, "MATLAB_class", b""))
    if kind == "char":
        if _size(item.shape) > USER_BLOCK:
            raise RecordingError(f"{name} has {_size(item.shape)} characters, want a word.")
        codes = np.asarray(item[()]).T.ravel(order="F")
        return _of_value(name, np.array("".join(map(chr, codes.astype(int).tolist()))))
    shape = item.shape[::-1]
    is_pair = item.dtype.names is not None and tuple(item.dtype.names) in _COMPLEX_PARTS
    if item.dtype.hasobject or (item.dtype.names is not None and not is_pair):
        raise RecordingError(f"{name} is of class {kind!r:.80}, want numbers.")
    dtype = _complex_dtype(item.dtype) if is_pair else item.dtype.newbyteorder("=")

    def read(found: Any, first: int, last: int) -> np.ndarray:
        # the scenes are the last axis of the file
        part = found[..., first:last] if shape else found[()]
        if is_pair:
            real, imaginary = (part[parts] for parts in found.dtype.names)
            part = np.empty(real.shape, dtype)
            part.real, part.imag = real, imaginary
        return native(np.ascontiguousarray(part.T))

    mapped = _mapped(h5py, item, name, state, is_turned=True) if shape else None
    reading, pick = _reopened(item, name, read)
    return LazyArray(name, shape, dtype, reading, mapped, pick)


def _attribute(item: Any, key: str, default: Any) -> Any:
    """What MATLAB notes beside a data set; never a text or list of variable length."""
    if key not in item.attrs:
        return default
    note = item.attrs.get_id(key)
    if note.dtype.hasobject or note.get_storage_size() > USER_BLOCK:
        raise RecordingError(f"{item.name} has a {key} that is neither a number nor a word.")
    return item.attrs[key]


def _complex_dtype(pair: np.dtype) -> np.dtype:
    kinds = {pair[name] for name in pair.names or ()}
    return np.dtype(np.complex64 if kinds == {np.dtype(np.float32)} else np.complex128)


def _text_of(value: Any) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)


def _of_value(name: str, value: np.ndarray) -> LazyArray:
    return LazyArray(name, value.shape, value.dtype, lambda *_: value)
