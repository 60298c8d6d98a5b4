"""Where the elements of an array stand, from a word or a file.

=================  ===============================================================================
``ula:8:0.5w``     8 sensors on a line along x, neighbours half a wavelength apart, centred
``ura:8x4:0.5w``   8 along x by 4 along y, x running fastest, centred
``uca:8:0.10m``    8 on a circle of 10 cm radius around the origin, counter-clockwise from +x
a file             ``.json`` or ``.yaml``: ``positions_m`` or ``positions_wavelengths``, a list of
                   [x, y] or [x, y, z]; ``.csv``: columns x_m, y_m and, if need be, z_m
=================  ===============================================================================

``w`` stands for wavelengths, ``m`` for metres. Channels of a recording come in the same order.
"""

import csv
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml  # type: ignore[import-untyped]

from musicnet.recordings.archives import RecordingError, read_regular_file

Unit = Literal["m", "w"]

MAX_ELEMENTS = 65536
_LARGEST_FILE = 4 * 1024**2
_WORD = re.compile(r"(ula|ura|uca):(\d{1,6})(?:x(\d{1,6}))?:([0-9.eE+-]+)([a-z]*)")
_SUFFIXES = (".json", ".yaml", ".yml", ".csv")
_KEYS: dict[str, Unit] = {"positions_m": "m", "positions_wavelengths": "w"}


@dataclass(frozen=True)
class ArrayDescription:
    """Places of elements.

    Args:
        places: x, y, z of each, in the unit.
        unit: "m" for metres, "w" for wavelengths.
        word: what was asked for.
    """

    places: tuple[tuple[float, float, float], ...]
    unit: Unit
    word: str

    def positions(self, wavelength: float) -> np.ndarray:
        """Metres, [element, 3].

        Args:
            wavelength: metres.
        """
        scale = wavelength if self.unit == "w" else 1.0
        return np.array(self.places, dtype=np.float64) * scale


def read_array(word: str) -> ArrayDescription:
    """Understands a word, or reads a file.

    Args:
        word: see the module.

    Returns:
        The description.

    Raises:
        OSError: the file cannot be read.
        RecordingError: neither a word that is known nor a file with places.

    Example:
        >>> read_array("ula:3:0.5w").positions(wavelength=2.0)[:, 0].tolist()
        [-1.0, 0.0, 1.0]
    """
    if word.lower().endswith(_SUFFIXES):
        return _from_file(Path(word), word)
    match = _WORD.fullmatch(word)
    if match is None:
        raise RecordingError(
            "--array must be ula:N:SPACING, ura:NxM:SPACING, uca:N:RADIUS (0.5w or 0.10m), or a "
            f"file ({', '.join(_SUFFIXES)}): got {word!r:.80}."
        )
    kind, first, second, size, unit = match.groups()
    try:
        length = float(size)
    except ValueError:
        length = math.nan
    if unit not in ("m", "w") or not (math.isfinite(length) and length > 0):
        raise RecordingError(
            f"--array must end in a length in wavelengths or metres, 0.5w or 0.10m: got {word!r}."
        )
    if (second is not None) != (kind == "ura"):
        raise RecordingError(f"--array must count {_COUNTS[kind]}: got {word!r}.")
    n, m = int(first), int(second or 1)
    if not 2 <= n * m <= MAX_ELEMENTS:
        raise RecordingError(f"--array must have 2 to {MAX_ELEMENTS} elements: got {word!r}.")
    places = _ring(n, length) if kind == "uca" else _grid(n, m, length)
    return ArrayDescription(places, "w" if unit == "w" else "m", word)


_COUNTS = {"ula": "its sensors, ula:8:0.5w", "ura": "both sides, ura:8x8:0.5w", "uca": "uca:8:0.1m"}


def _grid(
    n_horizontal: int, n_vertical: int, step: float
) -> tuple[tuple[float, float, float], ...]:
    return tuple(
        (step * (i - (n_horizontal - 1) / 2), step * (j - (n_vertical - 1) / 2), 0.0)
        for j in range(n_vertical)
        for i in range(n_horizontal)
    )


def _ring(n: int, radius: float) -> tuple[tuple[float, float, float], ...]:
    turns = (2.0 * math.pi * i / n for i in range(n))
    return tuple((radius * math.cos(turn), radius * math.sin(turn), 0.0) for turn in turns)


def _from_file(path: Path, word: str) -> ArrayDescription:
    try:
        text = read_regular_file(path, _LARGEST_FILE).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordingError(f"{path} is no text ({error.reason}).") from error
    if path.suffix.lower() == ".csv":
        return ArrayDescription(_places(path, "x_m", _rows(path, text)), "m", word)
    try:
        tree = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        kind = path.suffix.lower().lstrip(".")
        raise RecordingError(
            f"{path} is no {kind} ({' '.join(str(error).split()):.120})."
        ) from error
    if isinstance(tree, list):
        tree = {"positions_m": tree}
    keys = [key for key in _KEYS if isinstance(tree, dict) and key in tree]
    if len(keys) != 1:
        found = sorted(map(str, tree))[:8] if isinstance(tree, dict) else type(tree).__name__
        raise RecordingError(f"{path} must hold one of {', '.join(_KEYS)}: got {found}.")
    return ArrayDescription(_places(path, keys[0], tree[keys[0]]), _KEYS[keys[0]], word)


def _rows(path: Path, text: str) -> list[list[float]]:
    lines = csv.DictReader(text.splitlines())
    columns = [column for column in ("x_m", "y_m", "z_m") if column in (lines.fieldnames or ())]
    if columns[:2] != ["x_m", "y_m"]:
        raise RecordingError(
            f"{path} must begin with a line that names the columns x_m, y_m and, if need be, z_m: "
            f"got {lines.fieldnames!r:.80}."
        )
    rows = []
    for number, line in enumerate(lines, start=2):
        try:
            rows.append([float(line[column]) for column in columns])
        except (TypeError, ValueError) as error:
            raise RecordingError(f"{path}:{number} must hold numbers: got {line!r:.80}.") from error
    return rows


def _places(path: Path, key: str, rows: Any) -> tuple[tuple[float, float, float], ...]:
    if not isinstance(rows, Sequence) or isinstance(rows, str) or len(rows) < 2:
        raise RecordingError(f"{path}:{key} must list at least two elements: got {rows!r:.60}.")
    if len(rows) > MAX_ELEMENTS:
        raise RecordingError(f"{path}:{key} has {len(rows)} elements, the limit is {MAX_ELEMENTS}.")
    places = []
    for index, row in enumerate(rows):
        is_place = isinstance(row, list) and len(row) in (2, 3)
        if not is_place or not all(map(_is_number, row)):
            raise RecordingError(
                f"{path}:{key}[{index}] must be [x, y] or [x, y, z], finite: got {row!r:.60}."
            )
        x, y, *z = map(float, row)
        places.append((x, y, *z) if z else (x, y, 0.0))
    if len(set(places)) != len(places):
        raise RecordingError(f"{path}:{key} has two elements at one place.")
    return tuple(places)  # type: ignore[arg-type]


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        return is_number and math.isfinite(float(value))
    except OverflowError:
        return False
