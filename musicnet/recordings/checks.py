"""What an observation file must hold: its keys, types, shapes and values.

Every check raises a `RecordingError` of one line that names file, key and, where there is one, the
index of the first offender.
"""

import difflib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from musicnet.recordings.archives import RecordingError
from musicnet.recordings.lazy_arrays import LazyArray
from musicnet.scene.sources import SearchRegion

FORMAT = "musicnet.observations/1"
OPTIONAL_KEYS = ("noise_power", "truth_xyz", "snr_db", "coherent")
FORMAT_KEYS = (
    "format",
    "y",
    "operator",
    "operator_index",
    "element_positions",
    "wavelength",
    "field",
    "azimuth_deg",
    "elevation_deg",
    "range_m",
    *OPTIONAL_KEYS,
)

WEAKEST_POWER, LOUDEST_POWER = 1e-30, 1e30
"""What single precision can square once more without loss: scale what lies outside."""

SHORTEST_M, LONGEST_M = 1e-9, 1e9
"""Wavelengths and ranges that a recording may have; metres."""

_MOST_CYCLES = 1e4  # eight times those that a front bends at the nearest; cells to search grow so

_LONGEST_WORD = 4096  # bytes

_REGION_TOLERANCE = 1e-3  # of labels, in u and v, and relative in 1/r: they may be rounded

Arrays = Mapping[str, np.ndarray]

Test = tuple[str, np.ndarray, str]
"""Key, where it is wrong, and what is wrong."""

_BEYOND = f"outside [{WEAKEST_POWER:g}, {LOUDEST_POWER:g}] in power, scale it,"

# dtype kinds of numpy: what a key may be, and how to say it
_KINDS = {
    "y": ("c", "complex"),
    "operator": ("c", "complex"),
    "operator_index": ("iu", "integer"),
    "element_positions": ("f", "floating point"),
    "wavelength": ("fiu", "a number"),
    "noise_power": ("f", "floating point"),
    "azimuth_deg": ("fiu", "numbers"),
    "elevation_deg": ("fiu", "numbers"),
    "range_m": ("fiu", "numbers"),
    "truth_xyz": ("f", "floating point"),
    "format": ("U", "text"),
    "field": ("U", "text"),
}
RANKS = {
    "y": ("scene", "block", "row"),
    "operator": ("operator", "block or 1", "row", "element"),
    "operator_index": ("scene",),
    "element_positions": ("element", "3"),
    "wavelength": (),
    "noise_power": ("scene",),
    "azimuth_deg": ("2",),
    "elevation_deg": ("2",),
    "range_m": ("2",),
    "truth_xyz": ("scene", "source", "3"),
    "format": (),
    "field": (),
}
"""Names of the axes of each key."""


def check_keys(path: str | Path, arrays: Mapping[str, LazyArray]) -> None:
    """Checks that the file is of this format and has its keys, each of its type.

    Args:
        path: names the file in errors.
        arrays: as opened; the two words among them are read.

    Raises:
        RecordingError: a missing key or a wrong type.
    """
    for key in FORMAT_KEYS:
        if key not in arrays and key not in OPTIONAL_KEYS:
            raise RecordingError(f"{path} lacks {key!r}; has {sorted(arrays)}.")
    for key in sorted(set(arrays) - set(FORMAT_KEYS)):
        near = difflib.get_close_matches(key, FORMAT_KEYS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        warnings.warn(f"{path}:{key} is no key of {FORMAT}; ignored.{hint}", stacklevel=3)
    for key, (kinds, wanted) in _KINDS.items():
        if key in arrays and arrays[key].dtype.kind not in kinds:
            raise RecordingError(f"{path}:{key} has dtype {arrays[key].dtype}, want {wanted}.")
    said = {key: str(arrays[key].whole(_LONGEST_WORD)) for key in ("format", "field")}
    if said["format"] != FORMAT:
        raise RecordingError(f"{path}:format is {said['format']!r:.80}, want {FORMAT!r}.")
    if said["field"] not in ("near", "far"):
        raise RecordingError(f"{path}:field is {said['field']!r:.80}, want 'near' or 'far'.")


def check_shapes(path: str | Path, arrays: Arrays) -> None:
    """Checks ranks, and that the axes of all arrays agree.

    Args:
        path: names the file in errors.
        arrays: as read, keys checked.

    Raises:
        RecordingError: a shape that does not fit.
    """
    for key, axes in RANKS.items():
        if key in arrays and arrays[key].ndim != len(axes):
            raise RecordingError(
                f"{path}:{key} has shape {arrays[key].shape}, want ({', '.join(axes)})."
            )
    n_scenes, n_blocks, n_rows = arrays["y"].shape
    _, operator_blocks, operator_rows, n_elements = arrays["operator"].shape
    for count, name in ((n_scenes, "scenes"), (n_blocks, "blocks"), (n_rows, "rows")):
        if count == 0:
            raise RecordingError(f"{path}:y has 0 {name}, shape {arrays['y'].shape}.")
    if operator_rows != n_rows:
        swapped = " The last two axes of y look swapped." if n_blocks == operator_rows else ""
        raise RecordingError(
            f"{path}:y has {n_rows} rows, operator has {operator_rows}: got y "
            f"{arrays['y'].shape}, operator {arrays['operator'].shape}.{swapped}"
        )
    if operator_blocks not in (1, n_blocks):
        raise RecordingError(
            f"{path}:operator has {operator_blocks} blocks, want 1 or the {n_blocks} of y."
        )
    wanted = {
        "element_positions": (n_elements, 3),
        "operator_index": (n_scenes,),
        "noise_power": (n_scenes,),
        "azimuth_deg": (2,),
        "elevation_deg": (2,),
        "range_m": (2,),
    }
    for key, shape in wanted.items():
        if key in arrays and arrays[key].shape != shape:
            raise RecordingError(f"{path}:{key} has shape {arrays[key].shape}, want {shape}.")
    if "truth_xyz" in arrays and arrays["truth_xyz"].shape[::2] != (n_scenes, 3):
        raise RecordingError(
            f"{path}:truth_xyz has shape {arrays['truth_xyz'].shape}, want ({n_scenes}, source, 3)."
        )


def check_values(path: str | Path, arrays: Arrays) -> None:
    """Checks that numbers are finite and possible.

    Args:
        path: names the file in errors.
        arrays: as read, shapes checked.

    Raises:
        RecordingError: the first index at which something is wrong.
    """
    for key, bad, what in [*index_tests(arrays), *scene_tests(arrays), *operator_tests(arrays)]:
        _refuse(path, key, bad, what)
    check_shared(path, arrays)
    for key, bad, what in truth_tests(arrays) if "truth_xyz" in arrays else ():
        _refuse(path, key, bad, what)


def check_shared(path: str | Path, arrays: Arrays) -> None:
    """Checks what all scenes share, but for the operators.

    Args:
        path: names the file in errors.
        arrays: as read, shapes checked.

    Raises:
        RecordingError: the first index at which something is wrong.
    """
    _refuse(path, "element_positions", ~_is_finite(arrays["element_positions"]), "not finite")
    wavelength = float(arrays["wavelength"])
    if not SHORTEST_M <= wavelength <= LONGEST_M:
        raise RecordingError(
            f"{path}:wavelength is {wavelength}, want metres from {SHORTEST_M:g} to {LONGEST_M:g}."
        )
    _check_region(path, arrays)


def scene_tests(arrays: Arrays) -> list[Test]:
    """What can be wrong with single scenes.

    Args:
        arrays: ``y`` of some scenes, and ``noise_power`` if it is known.

    Returns:
        Key, where it is wrong (the first axis is the scene), and what is wrong; worst first.
    """
    y = arrays["y"]
    finite = _is_finite(y)
    quiet = np.where(finite, y, 0)
    is_lone = y.shape[1] == 1
    tests: list[Test] = [("y", ~finite, "not finite")]
    if "noise_power" in arrays:
        tests.append(("noise_power", ~_is_finite(arrays["noise_power"]), "not finite"))
    tests.append(("y", np.all(y == 0, axis=(1, 2)), "silent: every row is zero"))
    power = _peak_power(quiet, (1, 2))
    tests.append(("y", _is_beyond(power), _BEYOND))
    tests.append(("y", np.all(y == 0, axis=1), "dead: a row that is always zero"))
    if not is_lone:
        same = np.all(y == y[:, :1], axis=(1, 2))
        tests.append(("y", same, "the same in every block, a covariance of rank 1,"))
    if "noise_power" in arrays:
        noise = arrays["noise_power"]
        tests.append(("noise_power", noise <= 0, "not positive"))
        tests.append(("noise_power", _is_beyond(noise), _BEYOND))
    return tests


def operator_tests(arrays: Arrays) -> list[Test]:
    """What can be wrong with single operators.

    Args:
        arrays: with ``operator``.

    Returns:
        As `scene_tests`; the first axis is the operator.
    """
    operator = arrays["operator"]
    finite = _is_finite(operator)
    power = _peak_power(np.where(finite, operator, 0), (2, 3))
    return [
        ("operator", ~finite, "not finite"),
        ("operator", np.all(operator == 0, axis=(2, 3)), "zero as a whole"),
        ("operator", _is_beyond(power), _BEYOND),
    ]


def faults(tests: Sequence[Test], first: int = 0) -> dict[int, str]:
    """What is wrong with each scene, or operator, that is not as it should be.

    Args:
        tests: `scene_tests` or `operator_tests`.
        first: number of the first one.

    Returns:
        Number -> one line.
    """
    found: dict[int, str] = {}
    for key, bad, what in tests:
        for line in np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1)):
            rest = np.argwhere(bad[line])[0].tolist() if bad.ndim > 1 else []
            index = (first + int(line), *rest)
            where = index if rest else index[0]
            found.setdefault(first + int(line), f"{key} is {what} at index {where}")
    return found


def index_tests(arrays: Arrays) -> list[Test]:
    """Whether every scene names an operator of the file.

    Args:
        arrays: with ``operator_index`` of some scenes, and ``operator`` or its stand-in.

    Returns:
        As `scene_tests`.
    """
    n_operators, index = arrays["operator"].shape[0], arrays["operator_index"]
    outside = (index < 0) | (index >= n_operators)
    return [("operator_index", outside, f"not one of the {n_operators} operators")]


def _is_finite(numbers: np.ndarray) -> np.ndarray:
    # numbers that single precision cannot hold overflow there, not later
    with np.errstate(over="ignore"):
        finite: np.ndarray = np.isfinite(numbers.astype(np.complex64))
    return finite


def _peak_power(numbers: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    peak: np.ndarray = np.abs(numbers).max(axis=axes).astype(np.float64) ** 2
    return peak


def _is_beyond(power: np.ndarray) -> np.ndarray:
    """What single precision would square to zero or to infinity; silence is said elsewhere."""
    beyond: np.ndarray = (power > 0) & (power < WEAKEST_POWER) | (power > LOUDEST_POWER)
    return beyond


def _check_region(path: str | Path, arrays: Arrays) -> None:
    bounds = {}
    for key in ("azimuth_deg", "elevation_deg", "range_m"):
        low, high = bounds[key] = (float(arrays[key][0]), float(arrays[key][1]))
        if not low <= high:
            raise RecordingError(f"{path}:{key} is ({low}, {high}), want two ascending numbers.")
        if key != "range_m" and not -90.0 <= low <= high <= 90.0:
            raise RecordingError(f"{path}:{key} is ({low}, {high}), want degrees in [-90, 90].")
    far = str(arrays["field"]) == "far"
    near, distant = bounds["range_m"]
    if far and not np.isinf(near):
        raise RecordingError(
            f"{path}:range_m is ({near}, {distant}), want (inf, inf) in a far field."
        )
    if not far and not SHORTEST_M <= near <= distant <= LONGEST_M:
        raise RecordingError(
            f"{path}:range_m is ({near}, {distant}), want metres from {SHORTEST_M:g} to "
            f"{LONGEST_M:g} in a near field."
        )
    positions = arrays["element_positions"].astype(np.float64)
    span = float((positions.max(0) - positions.min(0)).max())
    nearest = span**2 / (_MOST_CYCLES * float(arrays["wavelength"]))
    if near < nearest:
        raise RecordingError(
            f"{path}:range_m begins at {near}, want {nearest:.3g} m or more: nearer, wave fronts "
            f"bend more across {span:.3g} m than can be searched."
        )


def truth_tests(arrays: Arrays) -> list[Test]:
    """What can be wrong with labels: they are NaN as a whole or not at all, and can be found.

    Args:
        arrays: with ``truth_xyz`` of some scenes, the field and the sector.

    Returns:
        As `scene_tests`.
    """
    points, key = arrays["truth_xyz"].astype(np.float64), "truth_xyz"
    absent = np.isnan(points)
    present: np.ndarray = ~np.asarray(absent.any(-1))
    with np.errstate(invalid="ignore", over="ignore"):
        length = np.linalg.norm(np.where(absent, 1.0, points), axis=-1)
    behind = np.where(absent[..., 2], 0.0, points[..., 2]) < -1e-9
    tests: list[Test] = [
        (key, ~present & ~np.asarray(absent.all(-1)), "NaN in part"),
        (key, present & ~np.isfinite(length), "not finite"),
        (key, present & (length == 0), "at the array's centre"),
        (key, behind, "behind the array (z < 0)"),
    ]
    far = str(arrays["field"]) == "far"
    if far:
        off = present & (np.abs(length - 1.0) > 1e-3)
        tests.append((key, off, "not a unit vector, as the far field wants"))
    tests.append((key, _coincide(points, present), "where another source of the scene is"))
    return tests + _outside_tests(arrays, points, far=far)


def _coincide(points: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Sources that stand exactly where an earlier one of the same scene does."""
    same = np.all(points[:, :, None] == points[:, None], axis=-1)
    earlier = np.tril(np.ones(same.shape[1:], dtype=bool), -1)
    found: np.ndarray = (same & earlier & present[:, None]).any(-1) & present
    return found


def _outside_tests(arrays: Arrays, points: np.ndarray, *, far: bool) -> list[Test]:
    """Labels lie in the box that the file says is to be searched."""
    azimuth, elevation, distance = (
        (float(arrays[key][0]), float(arrays[key][1]))
        for key in ("azimuth_deg", "elevation_deg", "range_m")
    )
    region = SearchRegion.from_angles(azimuth, elevation, None if far else distance)
    with np.errstate(all="ignore"):
        length = np.linalg.norm(points, axis=-1)  # NaN where there is no source
        found = {"u": points[..., 0] / length, "v": points[..., 1] / length}
        if not far:
            found["inverse_range"] = 1.0 / length
    said = {
        "u": f"azimuth_deg ({azimuth[0]:g}, {azimuth[1]:g})",
        "v": f"elevation_deg ({elevation[0]:g}, {elevation[1]:g})",
        "inverse_range": f"range_m ({distance[0]:g}, {distance[1]:g})",
    }
    tests: list[Test] = []
    for name, values in found.items():
        low, high = region.bounds[name]
        margin = _REGION_TOLERANCE * (high if name == "inverse_range" else 1.0)
        outside = (values < low - margin) | (values > high + margin)
        tests.append(("truth_xyz", outside, f"outside the file's {said[name]}"))
    return tests


def _refuse(path: str | Path, key: str, bad: np.ndarray, what: str) -> None:
    """Raises for the first index where ``bad`` is set."""
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        where = index[0] if len(index) == 1 else index
        raise RecordingError(
            f"{path}:{key} is {what} at index {where} ({int(bad.sum())} of {bad.size})."
        )
