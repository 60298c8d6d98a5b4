"""What an observation file must hold: its keys, types, shapes and values.

Every check raises a `RecordingError` of one line that names file, key and, where there is one, the
index of the first offender.
"""

import difflib
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from musicnet.recordings.archives import RecordingError
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
"""Wavelengths that a recording may have; metres."""

_REGION_TOLERANCE = 1e-3  # of labels, in u and v, and relative in 1/r: they may be rounded

Arrays = Mapping[str, np.ndarray]

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
_RANKS = {
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


def check_keys(path: str | Path, arrays: Arrays) -> None:
    """Checks that the file is of this format and has its keys, each of its type.

    Args:
        path: names the file in errors.
        arrays: as read.

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
    if str(arrays["format"]) != FORMAT:
        raise RecordingError(f"{path}:format is {str(arrays['format'])!r}, want {FORMAT!r}.")
    if str(arrays["field"]) not in ("near", "far"):
        raise RecordingError(f"{path}:field is {str(arrays['field'])!r}, want 'near' or 'far'.")


def check_shapes(path: str | Path, arrays: Arrays) -> None:
    """Checks ranks, and that the axes of all arrays agree.

    Args:
        path: names the file in errors.
        arrays: as read, keys checked.

    Raises:
        RecordingError: a shape that does not fit.
    """
    for key, axes in _RANKS.items():
        if key in arrays and arrays[key].ndim != len(axes):
            raise RecordingError(
                f"{path}:{key} has shape {arrays[key].shape}, want ({', '.join(axes)})."
            )
    n_scenes, n_blocks, n_rows = arrays["y"].shape
    n_operators, operator_blocks, operator_rows, n_elements = arrays["operator"].shape
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
    outside = (arrays["operator_index"] < 0) | (arrays["operator_index"] >= n_operators)
    _refuse(path, "operator_index", outside, f"not one of the {n_operators} operators")


def check_values(path: str | Path, arrays: Arrays) -> None:
    """Checks that numbers are finite and possible.

    Args:
        path: names the file in errors.
        arrays: as read, shapes checked.

    Raises:
        RecordingError: the first index at which something is wrong.
    """
    for key in ("y", "operator", "element_positions", "noise_power"):
        if key in arrays:
            # numbers that complex64 cannot hold overflow there, not later
            with np.errstate(over="ignore"):
                narrow = arrays[key].astype(np.complex64)
            _refuse(path, key, ~np.isfinite(narrow), "not finite")
    _refuse(path, "y", np.all(arrays["y"] == 0, axis=(1, 2)), "silent: every row is zero")
    _check_power(path, "y", _peak_power(arrays["y"], (1, 2)))
    _refuse(path, "operator", np.all(arrays["operator"] == 0, axis=(2, 3)), "zero as a whole")
    _check_power(path, "operator", _peak_power(arrays["operator"], (2, 3)))
    if "noise_power" in arrays:
        _refuse(path, "noise_power", arrays["noise_power"] <= 0, "not positive")
        _check_power(path, "noise_power", arrays["noise_power"])
    wavelength = float(arrays["wavelength"])
    if not SHORTEST_M <= wavelength <= LONGEST_M:
        raise RecordingError(
            f"{path}:wavelength is {wavelength}, want metres from {SHORTEST_M:g} to {LONGEST_M:g}."
        )
    _check_region(path, arrays)
    if "truth_xyz" in arrays:
        far = str(arrays["field"]) == "far"
        _check_truth(path, arrays["truth_xyz"], far=far)
        _check_truth_in_region(path, arrays, far=far)


def _peak_power(numbers: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    peak: np.ndarray = np.abs(numbers).max(axis=axes).astype(np.float64) ** 2
    return peak


def _check_power(path: str | Path, key: str, power: np.ndarray) -> None:
    """Refuses what single precision would square to zero or to infinity."""
    what = f"outside [{WEAKEST_POWER:g}, {LOUDEST_POWER:g}] in power, scale it,"
    _refuse(path, key, (power < WEAKEST_POWER) | (power > LOUDEST_POWER), what)


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
    if not far and not 0 < near <= distant < np.inf:
        raise RecordingError(
            f"{path}:range_m is ({near}, {distant}), want positive finite metres in a near field."
        )


def _check_truth(path: str | Path, points: np.ndarray, *, far: bool) -> None:
    """Labels are NaN as a whole or not at all, in front of the array, and unit vectors if far."""
    absent = np.isnan(points)
    _refuse(path, "truth_xyz", absent.any(-1) & ~absent.all(-1), "NaN in part")
    present = ~absent.any(-1)
    length = np.linalg.norm(np.where(absent, 1.0, points), axis=-1)
    _refuse(path, "truth_xyz", present & ~np.isfinite(length), "not finite")
    _refuse(path, "truth_xyz", present & (length == 0), "at the array's centre")
    behind = np.where(absent[..., 2], 0.0, points[..., 2]) < -1e-9
    _refuse(path, "truth_xyz", behind, "behind the array (z < 0)")
    if far:
        off = present & (np.abs(length - 1.0) > 1e-3)
        _refuse(path, "truth_xyz", off, "not a unit vector, as the far field wants")


def _check_truth_in_region(path: str | Path, arrays: Arrays, *, far: bool) -> None:
    """Labels lie in the box that the file says is to be searched."""
    azimuth, elevation, distance = (
        (float(arrays[key][0]), float(arrays[key][1]))
        for key in ("azimuth_deg", "elevation_deg", "range_m")
    )
    region = SearchRegion.from_angles(azimuth, elevation, None if far else distance)
    points = arrays["truth_xyz"].astype(np.float64)
    length = np.linalg.norm(points, axis=-1)  # NaN where there is no source
    u, v = points[..., 0] / length, points[..., 1] / length
    said = {
        "u": f"azimuth_deg ({azimuth[0]:g}, {azimuth[1]:g})",
        "v": f"elevation_deg ({elevation[0]:g}, {elevation[1]:g})",
        "inverse_range": f"range_m ({distance[0]:g}, {distance[1]:g})",
    }
    found = {"u": u, "v": v} if far else {"u": u, "v": v, "inverse_range": 1.0 / length}
    for name, values in found.items():
        low, high = region.bounds[name]
        margin = _REGION_TOLERANCE * (high if name == "inverse_range" else 1.0)
        outside = (values < low - margin) | (values > high + margin)
        _refuse(path, "truth_xyz", outside, f"outside the file's {said[name]}")


def _refuse(path: str | Path, key: str, bad: np.ndarray, what: str) -> None:
    """Raises for the first index where ``bad`` is set."""
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        where = index[0] if len(index) == 1 else index
        raise RecordingError(
            f"{path}:{key} is {what} at index {where} ({int(bad.sum())} of {bad.size})."
        )
