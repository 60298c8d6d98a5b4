"""SigMF recordings: a JSON description beside a file of interleaved complex samples.

Source: SigMF specification 1.2, for names and the order of samples.
"""

import hashlib
import json
import math
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from musicnet.recordings.archives import RecordingError, check_regular_file, read_regular_file
from musicnet.recordings.lazy_arrays import LazyArray, Store, sha256_of

META, DATA = ".sigmf-meta", ".sigmf-data"
_LARGEST_DESCRIPTION = 16 * 1024**2
_MOST_CHANNELS = 4096
_TYPE = re.compile(r"c(f32|f64|i32|i16|i8|u32|u16|u8)(?:_(le|be))?")
_BLOCK = 1 << 20


def open_sigmf(path: Path) -> Store:
    """Opens a recording by the name of either of its files.

    Args:
        path: the description or the samples.

    Returns:
        ``y``, complex64 [sample, channel], with ``sample_rate`` and ``frequency`` where they are
        described.

    Raises:
        OSError: one of the files cannot be read.
        RecordingError: the description is damaged, or does not fit the samples.
    """
    meta, data = path.with_suffix(META), path.with_suffix(DATA)
    tree = _described(meta)
    about = _mapping(tree, "global", meta)
    if "core:dataset" in about or "core:metadata_only" in about:
        raise RecordingError(f"{meta} speaks of samples in another file; want {data.name}.")
    word = about.get("core:datatype")
    match = _TYPE.fullmatch(word) if isinstance(word, str) else None
    if match is None or (match[2] is None and not match[1].endswith("8")):
        raise RecordingError(
            f"{meta}:core:datatype is {word!r:.40}, want complex samples, cf32_le or the like."
        )
    n_channels = about.get("core:num_channels", 1)
    if type(n_channels) is not int or not 1 <= n_channels <= _MOST_CHANNELS:
        raise RecordingError(
            f"{meta}:core:num_channels is {n_channels!r:.40}, want 1 to {_MOST_CHANNELS}."
        )
    part = np.dtype(f"{'>' if match[2] == 'be' else '<'}{match[1][0]}{int(match[1][1:]) // 8}")
    size = check_regular_file(data)
    line = 2 * part.itemsize * n_channels
    if size % line:
        raise RecordingError(
            f"{data} has {size} bytes, want a multiple of {line} for {n_channels} channels of "
            f"{word}: it is truncated."
        )
    sha256 = _checked_hash(data, about.get("core:sha512"))
    rate = _number(about.get("core:sample_rate"), meta, "core:sample_rate")
    with ExitStack() as stack:
        file = stack.enter_context(data.open("rb"))

        def read(first: int, last: int) -> np.ndarray:
            file.seek(first * line)
            content = file.read((last - first) * line)
            return _complex(np.frombuffer(content, part)).reshape(-1, n_channels)

        shape = (size // line, n_channels)
        y = LazyArray(str(data), shape, np.dtype(np.complex64), read)
        return Store(path, "sigmf", {"y": y}, sha256, stack.pop_all(), rate, _frequency(tree, meta))


def _described(meta: Path) -> dict[str, Any]:
    content = read_regular_file(meta, _LARGEST_DESCRIPTION)
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RecordingError(f"{meta} is no JSON ({' '.join(str(error).split()):.120}).") from error
    if not isinstance(tree, dict):
        raise RecordingError(f"{meta} must be a mapping: got {type(tree).__name__}.")
    return tree


def _mapping(tree: dict[str, Any], key: str, meta: Path) -> dict[str, Any]:
    if not isinstance(tree.get(key), dict):
        raise RecordingError(f"{meta} lacks {key!r}; has {sorted(map(str, tree))[:8]}.")
    return dict(tree[key])


def _frequency(tree: dict[str, Any], meta: Path) -> float | None:
    captures = tree.get("captures", [])
    if not isinstance(captures, list) or not all(isinstance(one, dict) for one in captures):
        raise RecordingError(f"{meta}:captures must be a list of mappings: got {captures!r:.60}.")
    if any(one.get("core:header_bytes") for one in captures):
        raise RecordingError(f"{meta}:core:header_bytes is not 0, want samples alone.")
    said = {one.get("core:frequency") for one in captures if one.get("core:frequency") is not None}
    if len(said) > 1:
        raise RecordingError(f"{meta}:captures have several frequencies {sorted(said)}; cut it up.")
    return _number(next(iter(said), None), meta, "core:frequency")


def _number(value: Any, meta: Path, key: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_positive(value):
        raise RecordingError(f"{meta}:{key} is {value!r:.40}, want a positive number.")
    return float(value)


def _is_positive(value: int | float) -> bool:
    try:
        return 0 < float(value) < math.inf
    except OverflowError:
        return False


def _checked_hash(data: Path, wanted: Any) -> str:
    if wanted is not None:
        digest = hashlib.sha512()
        with data.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        if digest.hexdigest() != wanted:
            raise RecordingError(f"{data} fails its checksum: sha512 is not that of {META}.")
    return sha256_of(data)


def _complex(parts: np.ndarray) -> np.ndarray:
    """Full scale of whole numbers is 1."""
    numbers = parts.astype(np.float32)
    if parts.dtype.kind != "f":
        bits = 8 * parts.dtype.itemsize
        if parts.dtype.kind == "u":
            numbers = numbers - np.float32(2.0 ** (bits - 1))
        numbers = numbers * np.float32(2.0 ** (1 - bits))
    return numbers[0::2] + np.complex64(1j) * numbers[1::2]
