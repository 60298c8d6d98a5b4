"""What a recording does not say of itself, and its owner must: the array, the wave, the sector."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from musicnet.recordings.archives import RecordingError
from musicnet.recordings.array_descriptions import ArrayDescription
from musicnet.recordings.checks import LONGEST_M, SHORTEST_M

SPEED_OF_LIGHT = 299_792_458.0
"""Metres per second."""

SMALLEST, LARGEST = 1e-3, 1e5
"""Apertures that are believed, in wavelengths: what is smaller hears the same everywhere."""

_LINE = 1e-4  # share of an aperture's length below which its width counts for nothing
_SAME_PLACE = 1e-3  # wavelengths


@dataclass(frozen=True)
class Setup:
    """Answers of a recording's owner; None where the file says it.

    Args:
        array: where the elements stand.
        frequency_hz: of the carrier, or of the narrow band of sound to listen to.
        speed_m_s: of the wave; by default of light, for sound files of sound.
        wavelength_m: in place of the two.
        n_snapshots: of a scene, where a file is one long record; None is 100.
        azimuth_deg: lowest and highest to search.
        elevation_deg: lowest and highest to search.
        range_m: nearest and farthest to search; None is the far field.
    """

    array: ArrayDescription | None = None
    frequency_hz: float | None = None
    speed_m_s: float | None = None
    wavelength_m: float | None = None
    n_snapshots: int | None = None
    azimuth_deg: tuple[float, float] | None = None
    elevation_deg: tuple[float, float] | None = None
    range_m: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("frequency_hz", "speed_m_s", "wavelength_m"):
            value = getattr(self, name)
            if value is not None and not (_is_finite(value) and value > 0):
                raise RecordingError(f"{name} must be finite and positive: got {value!r:.60}.")
        n_snapshots = self.n_snapshots
        is_whole = isinstance(n_snapshots, int | np.integer) and not isinstance(n_snapshots, bool)
        if n_snapshots is not None and not (is_whole and n_snapshots >= 1):
            raise RecordingError(f"n_snapshots must be at least 1: got {n_snapshots!r:.60}.")
        for name in ("azimuth_deg", "elevation_deg", "range_m"):
            bounds = getattr(self, name)
            is_pair = isinstance(bounds, Sequence | np.ndarray) and len(bounds) == 2
            if bounds is not None and not (is_pair and all(map(_is_finite, bounds))):
                raise RecordingError(
                    f"{name} must be two finite numbers, low and high: got {bounds!r:.60}."
                )
        if self.wavelength_m is not None and (self.frequency_hz or self.speed_m_s) is not None:
            raise RecordingError(
                "give the wavelength, or frequency and speed: got "
                f"wavelength_m={self.wavelength_m}, frequency_hz={self.frequency_hz}, "
                f"speed_m_s={self.speed_m_s}."
            )

    def wavelength(self, frequency_hz: float | None, speed_m_s: float = SPEED_OF_LIGHT) -> float:
        """Metres.

        Args:
            frequency_hz: what the file says.
            speed_m_s: usual for such files.

        Raises:
            RecordingError: neither the file nor its owner says it.
        """
        if self.wavelength_m is not None:
            return self.wavelength_m
        frequency = self.frequency_hz if self.frequency_hz is not None else frequency_hz
        if not frequency:
            raise RecordingError(
                "the file does not say its wavelength: got neither --frequency nor --wavelength. "
                "Give one of them."
            )
        return (self.speed_m_s or speed_m_s) / abs(frequency)

    def sector(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Where to search, in the keys of the format.

        Args:
            positions: of the elements; metres.

        Returns:
            All that the array can see in front of it, where its owner does not say less.
        """
        elevation = self.elevation_deg
        if elevation is None:
            elevation = (0.0, 0.0) if is_line(positions) else (-90.0, 90.0)
        far = (math.inf, math.inf)
        return {
            "azimuth_deg": np.array(self.azimuth_deg or (-90.0, 90.0), dtype=np.float64),
            "elevation_deg": np.array(elevation, dtype=np.float64),
            "range_m": np.array(self.range_m or far, dtype=np.float64),
            "field": np.array("far" if self.range_m is None else "near"),
        }

    def check_against(self, path: str, positions: np.ndarray, wavelength: float) -> None:
        """Refuses an array that is not the one of a file that names its own.

        Args:
            path: names the file.
            positions: in it; metres.
            wavelength: in it; metres.

        Raises:
            RecordingError: what differs.
        """
        if self.array is None:
            return
        own = self.array.positions(wavelength)
        if len(own) != len(positions):
            raise RecordingError(
                f"{path} has {len(positions)} elements, --array {self.array.word} has {len(own)}."
            )
        apart = np.linalg.norm(own - own.mean(0) - (positions - positions.mean(0)), axis=1)
        if apart.max() > _SAME_PLACE * wavelength:
            worst = int(apart.argmax())
            raise RecordingError(
                f"{path}:element_positions is not --array {self.array.word}: element {worst} is "
                f"{apart[worst]:.3g} m off. Leave --array out, or correct it."
            )


def _is_finite(value: Any) -> bool:
    """Whether it is a number at all, and an ordinary one."""
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return is_number and not np.iscomplexobj(value) and math.isfinite(value)


def check_size(what: str, positions: np.ndarray, wavelength: float | None = None) -> None:
    """Refuses an array that is no array: far smaller than its waves, or larger than any.

    Args:
        what: it is, for messages.
        positions: metres.
        wavelength: metres; None if there are many.

    Raises:
        RecordingError: its aperture is out of range.
    """
    aperture = math.hypot(*np.ptp(positions, axis=0).tolist())  # squares nothing that overflows
    shortest, longest = SHORTEST_M, LONGEST_M
    if wavelength is not None:
        shortest, longest = SMALLEST * wavelength, LARGEST * wavelength
    if not shortest <= aperture <= longest:
        beside = "" if wavelength is None else f" at a wavelength of {wavelength:.4g} m"
        raise RecordingError(
            f"{what} has an aperture of {aperture:.4g} m, want {shortest:.4g} to {longest:.4g} "
            f"m{beside}. Check its unit."
        )


def is_line(positions: np.ndarray) -> bool:
    """Whether all elements stand on one straight line.

    Args:
        positions: metres.

    Example:
        >>> is_line(np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]])), is_line(np.eye(3))
        (True, False)
    """
    sizes = np.linalg.svd(positions - positions.mean(0), compute_uv=False)
    return bool(len(positions) < 3 or sizes[1] <= _LINE * sizes[0])
