"""Numpy archives from strangers: read whole, checked, and never able to run code.

A file is read once, into memory, and hashed; everything else looks at those bytes. What an archive
says about its sizes is believed only up to a limit.
"""

import hashlib
import io
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

MAX_BYTES = 2 * 1024**3
"""Largest file, and largest content of an archive, that is read."""


class RecordingError(ValueError):
    """A file that is not what it should be: names the file, the key and what was found."""


@dataclass(frozen=True)
class Archive:
    """The arrays of a file.

    Args:
        arrays: by key, in the byte order of this machine.
        sha256: of the whole file, in hexadecimal.
    """

    arrays: dict[str, np.ndarray]
    sha256: str


def read_archive(path: str | Path, max_bytes: int = MAX_BYTES) -> Archive:
    """Reads all arrays of an ``.npz`` file.

    Args:
        path: a local file.
        max_bytes: limit for the file, and for what it expands to.

    Returns:
        The arrays and the file's hash.

    Raises:
        OSError: there is no such file, it is no regular file, or it may not be read.
        RecordingError: it is empty, truncated, damaged, too large or holds pickled objects.
    """
    content = read_regular_file(Path(path), max_bytes)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            expanded = sum(member.file_size for member in members)
            if expanded > max_bytes:
                raise RecordingError(
                    f"{path} expands to {expanded} bytes, the limit is {max_bytes}."
                )
            arrays = {
                member.filename.removesuffix(".npy"): _read_array(
                    archive.read(member), f"{path}:{member.filename.removesuffix('.npy')}"
                )
                for member in members
            }
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError) as error:
        reason = "fails its checksum" if "CRC" in str(error) else "is truncated or not an npz"
        raise RecordingError(f"{path} {reason} ({error}).") from error
    except RuntimeError as error:  # an encrypted member
        raise RecordingError(f"{path} cannot be opened ({error}).") from error
    return Archive(arrays, hashlib.sha256(content).hexdigest())


def read_regular_file(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """All bytes of a file, without ever waiting for a pipe or a device.

    Args:
        path: a local file.
        max_bytes: limit for its size.

    Returns:
        The bytes.

    Raises:
        OSError: there is no such file, it is no regular file, or it may not be read.
        RecordingError: it is empty or too large.
    """
    try:
        facts = path.stat()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no such file: {path}") from error
    except PermissionError as error:
        raise PermissionError(f"permission denied: {path}") from error
    if not stat.S_ISREG(facts.st_mode):
        raise OSError(f"{path} is not a regular file.")
    if facts.st_size == 0:
        raise RecordingError(f"{path} is empty (0 bytes).")
    if facts.st_size > max_bytes:
        raise RecordingError(f"{path} has {facts.st_size} bytes, the limit is {max_bytes}.")
    try:
        return path.read_bytes()
    except PermissionError as error:
        raise PermissionError(f"permission denied: {path}") from error


def _read_array(content: bytes, name: str) -> np.ndarray:
    """One array from the bytes of an ``.npy`` file; ``name`` is file and key."""
    stream = io.BytesIO(content)
    try:
        version = npy.read_magic(stream)
        reader = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = reader(stream)
    except ValueError as error:
        raise RecordingError(f"{name} is not a numpy array ({error}).") from error
    if dtype.hasobject:
        raise RecordingError(f"{name} holds pickled objects; refused, they could run code.")
    declared = dtype.itemsize
    for length in shape:  # Python's integers do not overflow, numpy's would
        declared *= length
    if declared > len(content):
        raise RecordingError(f"{name} declares {declared} bytes but has {len(content)}.")
    stream.seek(0)
    array: np.ndarray = npy.read_array(stream, allow_pickle=False)
    return array.astype(array.dtype.newbyteorder("="), copy=False)
