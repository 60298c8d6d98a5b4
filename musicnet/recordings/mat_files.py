"""MATLAB's v5 files: numbers and words, nothing else.

A file is a header and elements; an element is a type, a length and that many bytes, perhaps
deflated. Only numeric and character arrays are read: functions and objects are passed over unread.

Source: MAT-File Format, The MathWorks, for tags, classes and the order of sub-elements.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from musicnet.recordings.archives import MAX_BYTES, RecordingError, read_regular_file
from musicnet.recordings.lazy_arrays import LazyArray, Store, in_memory, sha256_of

HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = {
    **{1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4"},
    **{7: "f4", 9: "f8", 12: "i8", 13: "u8", 16: "u1", 17: "u2", 18: "u4"},
}
_CLASSES = {
    **{6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2"},
    **{12: "i4", 13: "u4", 14: "i8", 15: "u8"},
}
_CHARACTERS = 4
_IS_COMPLEX = 0x0800
_MOST_AXES = 16


@dataclass(frozen=True)
class _Element:
    kind: int
    content: bytes


def is_mat5(beginning: bytes) -> bool:
    """Whether a file begins as MATLAB's v5 files do.

    Args:
        beginning: at least 128 bytes of it.

    Returns:
        False for v7.3 files too, which are HDF5.
    """
    return (
        len(beginning) >= HEADER
        and beginning[126:128] in (b"IM", b"MI")
        and beginning[124:126] in (b"\0\1", b"\1\0")
    )


def open_mat5(path: Path, max_bytes: int = MAX_BYTES) -> Store:
    """Reads the numbers and words of a file.

    Args:
        path: a local file.
        max_bytes: limit of the file, and of what it expands to.

    Returns:
        Its arrays.

    Raises:
        OSError: the file cannot be read.
        RecordingError: it is damaged or too large.
    """
    content = read_regular_file(path, max_bytes)
    order = "<" if content[126:128] == b"IM" else ">"
    arrays: dict[str, LazyArray] = {}
    budget = max_bytes
    try:
        for element in _elements(content[HEADER:], order):
            if element.kind == _COMPRESSED:
                inside = _inflated(element.content, budget, path)
                budget -= len(inside)
                found = list(_elements(inside, order))
            else:
                found = [element]
            for one in found:
                if one.kind == _MATRIX and (named := _matrix(one.content, order)) is not None:
                    key, array = named
                    arrays[key] = in_memory(f"{path}:{key}", array)
    except (struct.error, ValueError, IndexError, zlib.error, OverflowError) as error:
        if isinstance(error, RecordingError):
            raise
        raise RecordingError(f"{path} is truncated or not a MAT file ({error}).") from error
    return Store(path, "mat v5", arrays, sha256_of(path))


def _elements(content: bytes, order: str) -> Iterator[_Element]:
    place = 0
    while place + 8 <= len(content):
        kind, length = struct.unpack_from(f"{order}II", content, place)
        if kind >> 16:  # up to four bytes beside the type
            kind, length = kind & 0xFFFF, kind >> 16
            if length > 4:
                raise ValueError(f"a small element of {length} bytes at {place}")
            yield _Element(kind, content[place + 4 : place + 4 + length])
            place += 8
            continue
        if length > len(content) - place - 8:
            raise ValueError(f"an element declares {length} bytes, {len(content) - place - 8} left")
        yield _Element(kind, content[place + 8 : place + 8 + length])
        padding = 0 if kind == _COMPRESSED else -length % 8
        place += 8 + length + padding


def _inflated(content: bytes, budget: int, path: Path) -> bytes:
    stream = zlib.decompressobj()
    inside = stream.decompress(content, budget + 1)
    if len(inside) > budget:
        raise RecordingError(f"{path} expands to more than the limit of {budget} bytes.")
    if not stream.eof:
        raise ValueError("a compressed element ends early")
    return inside


def _matrix(content: bytes, order: str) -> tuple[str, np.ndarray] | None:
    """Name and numbers; None for what is neither numbers nor words."""
    flags, shape_element, name, *parts = _elements(content, order)
    word = struct.unpack_from(f"{order}I", flags.content)[0]
    kind = word & 0xFF
    if kind not in _CLASSES and kind != _CHARACTERS:
        return None
    shape = tuple(np.frombuffer(shape_element.content, f"{order}i4").tolist())
    if not 2 <= len(shape) <= _MOST_AXES or min(shape) < 0:
        raise ValueError(f"an array of shape {shape}")
    numbers = [_numbers(part, order, shape) for part in parts[: 2 if word & _IS_COMPLEX else 1]]
    key = name.content.decode("ascii", "replace")
    if kind == _CHARACTERS:
        codes = numbers[0].ravel(order="F").astype(int).tolist()
        return key, np.array("".join(map(chr, codes)))
    if len(numbers) == 1:
        return key, numbers[0].astype(_CLASSES[kind])
    dtype = np.complex64 if kind == 7 else np.complex128
    return key, (numbers[0] + 1j * numbers[1]).astype(dtype)


def _numbers(part: _Element, order: str, shape: tuple[int, ...]) -> np.ndarray:
    if part.kind not in _NUMBERS:
        raise ValueError(f"numbers of type {part.kind}")
    numbers = np.frombuffer(part.content, order + _NUMBERS[part.kind])
    count = 1
    for length in shape:
        count *= length
    if count != len(numbers):
        raise ValueError(f"shape {shape} for {len(numbers)} numbers")
    return numbers.reshape(shape, order="F")
