"""Files from strangers: regular, local, of a bounded size, and never able to run code."""

import hashlib
import io
import re
import stat
import tokenize
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

MAX_BYTES = 2 * 1024**3
"""Largest file, and largest content of an archive, that is read."""


# a header is a literal of Python's, which numpy hands to Python's own reader
_HEADER_ERRORS = (
    *(ValueError, TypeError, SyntaxError, EOFError, RecursionError, MemoryError),
    tokenize.TokenError,
)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # a path folds the second slash


HEADER_BYTES = 1 << 17
"""More than a header of numbers takes up."""

_BLOCK = 1 << 20


class RecordingError(ValueError):
    """A file that is not what it should be: names the file, the key and what was found."""


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
    size = check_regular_file(path)
    if size > max_bytes:
        raise RecordingError(f"{path} has {size} bytes, the limit is {max_bytes}.")
    try:
        return path.read_bytes()
    except PermissionError as error:
        raise PermissionError(f"permission denied: {path}") from error


def check_regular_file(path: Path) -> int:
    """Looks at a file without opening it.

    Args:
        path: a local file.

    Returns:
        Its size in bytes.

    Raises:
        OSError: there is no such file, or it is no regular file.
        RecordingError: it is an address, or empty.
    """
    if _ADDRESS.match(str(path)):
        raise RecordingError(f"recordings are local files only: got {path}. Download it first.")
    try:
        facts = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"no such file: {path}") from error
    except PermissionError as error:
        raise PermissionError(f"permission denied: {path}") from error
    if not stat.S_ISREG(facts.st_mode):
        raise OSError(f"{path} is not a regular file.")
    if facts.st_size == 0:
        raise RecordingError(f"{path} is empty (0 bytes).")
    return facts.st_size


def sha256_of(path: Path) -> str:
    """The hash of a file's bytes, read in parts.

    Raises:
        OSError: it is not there, no regular file, or may not be read.
        RecordingError: it is empty.
    """
    check_regular_file(path)
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except PermissionError as error:
        raise PermissionError(f"permission denied: {path}") from error
    return digest.hexdigest()


@dataclass(frozen=True)
class Header:
    """What an ``.npy`` file says of itself.

    Args:
        shape: of the array.
        dtype: in the file's byte order.
        is_fortran: whether the first axis runs fastest.
        offset: where the numbers begin; bytes.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    is_fortran: bool
    offset: int


def read_header(beginning: bytes, name: str, n_bytes: int) -> Header:
    """Reads what stands before the numbers of an ``.npy`` file.

    Args:
        beginning: its first `HEADER_BYTES`, or all there are.
        name: file and key.
        n_bytes: of the whole.

    Returns:
        The header, believed: there are as many numbers.

    Raises:
        RecordingError: it is damaged, promises more than there is, or announces pickled objects.
    """
    stream = io.BytesIO(beginning)
    try:
        version = npy.read_magic(stream)
        reader = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, is_fortran, dtype = reader(stream)
    except _HEADER_ERRORS as error:
        reason = " ".join(str(error).split())[:100]
        raise RecordingError(f"{name} is not a numpy array ({reason}).") from error
    if dtype.hasobject:
        raise RecordingError(f"{name} holds pickled objects; refused, they could run code.")
    if any(length < 0 for length in shape) or dtype.itemsize == 0:
        raise RecordingError(f"{name} is not a numpy array (shape {shape}, {dtype}).")
    declared = dtype.itemsize
    for length in shape:  # Python's integers do not overflow, numpy's would
        declared *= length
    if declared > n_bytes - stream.tell():
        raise RecordingError(f"{name} declares {declared} bytes but has {n_bytes}.")
    return Header(shape, dtype, is_fortran, stream.tell())
