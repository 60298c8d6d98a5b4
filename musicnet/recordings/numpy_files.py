"""Numpy's own files, read in parts or mapped: ``.npz`` archives and single ``.npy`` arrays."""

import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from musicnet.recordings.archives import (
    HEADER_BYTES,
    MAX_BYTES,
    Header,
    RecordingError,
    read_header,
)
from musicnet.recordings.lazy_arrays import LazyArray, Store, in_memory, native, sha256_of
from musicnet.recordings.mapped_arrays import FileState, MappedArray

_BLOCK = 1 << 20
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip member: mark, then lengths of name and extra


def open_npz(path: Path, max_bytes: int = MAX_BYTES) -> Store:
    """Opens an archive, its checksums checked.

    Members that are stored as they are can be read in parts and mapped, whatever their size;
    compressed ones are read whole.

    Args:
        path: a local file.
        max_bytes: limit of what its compressed members expand to together.

    Returns:
        Its arrays.

    Raises:
        OSError: the file cannot be read.
        RecordingError: it is damaged, too large, or holds pickled objects.
    """
    state = FileState.of(path)
    state = state.holding(sha256 := sha256_of(path))
    with path.open("rb") as file:
        try:
            archive = zipfile.ZipFile(file)
            members = archive.infolist()
            packed = [one for one in members if one.compress_type != zipfile.ZIP_STORED]
            expanded = sum(member.file_size for member in packed)
            if expanded > max_bytes:
                raise RecordingError(
                    f"{path} expands to {expanded} bytes, the limit is {max_bytes}."
                )
            arrays = {}
            for member in members:
                key = member.filename.removesuffix(".npy")
                _check_member(archive, member)
                arrays[key] = _member(archive, state, file, member, f"{path}:{key}")
        except (
            *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError),
            *(UnicodeDecodeError, OverflowError),
        ) as error:
            reason = "fails its checksum" if "CRC" in str(error) else "is truncated or not an npz"
            raise RecordingError(f"{path} {reason} ({error}).") from error
        except RuntimeError as error:  # an encrypted member
            raise RecordingError(f"{path} cannot be opened ({error}).") from error
        return Store(path, "npz", arrays, sha256)


def open_npy(path: Path) -> Store:
    """Opens a single array, under the key ``y``.

    Args:
        path: a local file.

    Returns:
        The array; it has no checksum.

    Raises:
        OSError: the file cannot be read.
        RecordingError: it is damaged, or holds pickled objects.
    """
    state = FileState.of(path)
    state = state.holding(sha256 := sha256_of(path))
    with path.open("rb") as file:
        header = read_header(file.read(HEADER_BYTES), str(path), state.n_bytes)
    return Store(path, "npy", {"y": _in_parts(state, header, 0, str(path))}, sha256)


def _check_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Reads a member through, which checks its checksum."""
    with archive.open(member) as content:
        left = member.file_size
        while block := content.read(_BLOCK):
            left -= len(block)
        if left:
            raise zipfile.BadZipFile(f"{member.filename} has another size than it says")


def _member(
    archive: zipfile.ZipFile, state: FileState, file: BinaryIO, member: zipfile.ZipInfo, name: str
) -> LazyArray:
    with archive.open(member) as content:
        header = read_header(content.read(HEADER_BYTES), name, member.file_size)
    if member.compress_type == zipfile.ZIP_STORED:
        file.seek(member.header_offset)
        mark, n_name, n_extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        if mark != b"PK\3\4":
            raise zipfile.BadZipFile(f"{member.filename} is not where it should be")
        start = member.header_offset + _LOCAL_HEADER.size + n_name + n_extra
        return _in_parts(state, header, start, name)
    packed = archive.read(member)[header.offset :]
    array = np.frombuffer(packed, header.dtype, _count(header.shape))
    order: Literal["F", "C"] = "F" if header.is_fortran else "C"
    return in_memory(name, array.reshape(header.shape, order=order))


def _in_parts(state: FileState, header: Header, start: int, name: str) -> LazyArray:
    """Lines of an array at some place of a file, which is opened for each of them.

    A folder may have more files than a process may hold open.
    """
    begin, native_dtype = start + header.offset, header.dtype.newbyteorder("=")
    is_turned = header.is_fortran and len(header.shape) > 1
    mapped = MappedArray(name, state, begin, header.shape, header.dtype, "F" if is_turned else "C")
    if is_turned:  # no line lies in one piece
        return LazyArray(
            name,
            header.shape,
            native_dtype,
            lambda first, last: mapped.lines(range(first, last)),
            mapped,
        )

    def read(first: int, last: int) -> np.ndarray:
        shape = (last - first, *header.shape[1:]) if header.shape else ()
        line = _count(header.shape[1:]) * header.dtype.itemsize
        n_bytes = _count(shape) * header.dtype.itemsize
        with state.path.open("rb") as file:
            file.seek(begin + first * line)
            content = file.read(n_bytes)
        if len(content) != n_bytes:
            raise RecordingError(f"{name} has become shorter while it was read.")
        return native(np.frombuffer(content, header.dtype).reshape(shape))

    return LazyArray(name, header.shape, native_dtype, read, mapped)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count
