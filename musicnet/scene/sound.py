"""Sound as microphones hear it, and the circle of directions in which its sources are sought."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from musicnet.shapes import Positions

SPEED_OF_SOUND = 343.0
"""Metres per second, in air at 20 degrees Celsius."""

SLOWEST, FASTEST = 1.0, 1e5
"""Speeds of sound that are believed, metres per second: wider than any medium has them."""

SMALLEST_APERTURE = 0.01
"""Of an array, in the shortest wavelengths that it listens to: all it hears below is noise."""

LARGEST_APERTURE_S = 0.016
"""Time in which sound has to cross an array: beyond, one frame hears another sound at its end."""

_STRAIGHT = 1e-6  # of an array's length: how far off a line its microphones may be


@dataclass(frozen=True, eq=False)
class Sound:
    """What several microphones heard at the same time.

    Args:
        samples: pressure, in any unit that all share.
        rate: samples per second.
        positions: of the microphones; metres.

    Raises:
        ValueError: fewer than two microphones or samples, another number of positions, or a rate
            that is none.
    """

    samples: Float[Tensor, "element sample"]
    rate: float
    positions: Positions

    def __post_init__(self) -> None:
        if self.samples.ndim != 2 or min(self.samples.shape) < 2:
            raise ValueError(
                "sound must have axes (microphone, sample), two of each at least: got shape "
                f"{tuple(self.samples.shape)}."
            )
        if self.positions.shape != (len(self.samples), 3):
            raise ValueError(
                f"every microphone needs x, y, z: got positions of shape "
                f"{tuple(self.positions.shape)} for {len(self.samples)} microphones."
            )
        if not 0.0 < self.rate < math.inf:
            raise ValueError(f"rate must be finite and > 0 samples per second: got {self.rate}.")

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.samples.shape[-1] / self.rate


@dataclass(frozen=True, eq=False)
class SearchCircle:
    """Directions on one circle around an array, in even steps of one angle.

    Args:
        angles: radians, ascending.
        directions: unit vectors towards them.
        is_closed: whether the last one is beside the first.
        name: "bearing", counter-clockwise from +x, or "lateral", from broadside towards the end of
            a line.
    """

    angles: Float[Tensor, " cell"]
    directions: Float[Tensor, "cell 3"]
    is_closed: bool
    name: str

    @property
    def step(self) -> float:
        """Radians from one cell to the next."""
        return float(self.angles[-1] - self.angles[0]) / (len(self.angles) - 1)

    @classmethod
    def around(
        cls, positions: Positions, elevation: float = 0.0, step: float = math.radians(1.0)
    ) -> "SearchCircle":
        """All that an array can tell apart by one angle.

        A line of microphones cannot tell directions of one lateral angle from each other. Any
        other array is asked for bearings in the x-y plane.

        Args:
            positions: of the microphones; metres.
            elevation: of the sources above the x-y plane, radians; no matter for a line.
            step: between directions, radians; rounded to divide the circle.

        Returns:
            Lateral angles from -pi/2 to pi/2 for a line, else bearings from 0 to 2 pi.

        Raises:
            ValueError: all microphones are at one place, or none of them sees a bearing.

        Example:
            >>> pair = torch.tensor([[-0.1, 0.0, 0.0], [0.1, 0.0, 0.0]])
            >>> circle = SearchCircle.around(pair)
            >>> circle.name, circle.directions[-1].tolist()
            ('lateral', [1.0, 0.0, 0.0])
        """
        _, sizes, axes = torch.linalg.svd((positions - positions.mean(0)).double())
        if float(sizes[0]) == 0.0:
            raise ValueError("directions need microphones at several places: got all at one.")
        if len(sizes) < 2 or float(sizes[1]) <= _STRAIGHT * float(sizes[0]):
            n_cells = 1 + 2 * max(1, round(0.5 * math.pi / step))
            angles = torch.linspace(-0.5 * math.pi, 0.5 * math.pi, n_cells, dtype=torch.float64)
            axis = axes[0] * axes[0][axes[0].abs().argmax()].sign()  # towards + of x, y or z
            directions = angles.sin()[:, None] * axis
            return cls(
                angles.to(positions), directions.to(positions), is_closed=False, name="lateral"
            )
        level = positions[:, :2] - positions[:, :2].mean(0)
        _, spans, _ = torch.linalg.svd(level.double())
        if float(spans[-1]) <= _STRAIGHT * float(sizes[0]) or math.cos(elevation) < _STRAIGHT:
            raise ValueError(
                "bearings need microphones that span the x-y plane and sources off its normal: "
                f"got spans of {spans.tolist()} m and an elevation of {elevation} rad."
            )
        n_cells = max(8, round(2.0 * math.pi / step))
        angles = torch.arange(n_cells, dtype=torch.float64) * (2.0 * math.pi / n_cells)
        across, up = math.cos(elevation), math.sin(elevation)
        directions = torch.stack(
            (angles.cos() * across, angles.sin() * across, torch.full_like(angles, up)), dim=-1
        )
        return cls(angles.to(positions), directions.to(positions), is_closed=True, name="bearing")


def check_speed(speed: float, speed_std: float = 0.0) -> None:
    """Refuses what is no speed of sound.

    Args:
        speed: metres per second.
        speed_std: its standard deviation.

    Raises:
        ValueError: it is out of range.
    """
    if not SLOWEST <= speed <= FASTEST or not 0.0 <= speed_std < speed:
        raise ValueError(
            f"the speed of sound must lie between {SLOWEST:g} and {FASTEST:g} m/s, and its "
            f"standard deviation below it: got {speed:g} and {speed_std:g} m/s."
        )


def check_aperture(
    positions: Positions, band: tuple[float, float], speed: float, elevation: float = 0.0
) -> None:
    """Refuses an array whose size does not fit the waves that it listens to.

    Args:
        positions: of the microphones; metres.
        band: lowest and highest frequency, Hz.
        speed: of sound, metres per second.
        elevation: of the sources above the x-y plane, radians: they see the array foreshortened.

    Raises:
        ValueError: it is far smaller than any wavelength, or so large that frames do not hold the
            time that sound takes to cross it.
    """
    apart = float(torch.pdist(positions.double() - positions.double().mean(0)).max())
    seen = apart * math.cos(elevation)
    smallest = SMALLEST_APERTURE * speed / band[1]
    largest = LARGEST_APERTURE_S * speed
    if not smallest <= seen or not apart <= largest:
        raised = f" ({seen:.4g} m as seen from {math.degrees(elevation):g} degrees above its plane)"
        raise ValueError(
            f"the aperture of the array is {apart:.4g} m{raised if elevation else ''}, want "
            f"{smallest:.4g} to {largest:.4g} m for {band[0]:g} to {band[1]:g} Hz at {speed:g} "
            "m/s: smaller ones hear the same everywhere, larger ones hear different sounds at "
            "once. Check the unit of the array, or use another band."
        )


def aliasing_limit(positions: Positions, speed: float) -> float:
    """Frequency above which neighbours are further apart than half a wavelength.

    Above it a plane wave at one frequency looks like others from elsewhere.

    Args:
        positions: of the microphones; metres.
        speed: of sound, metres per second.

    Returns:
        c / (2 d), d the longest distance from any microphone to its nearest neighbour; Hz.

    Example:
        >>> pair = torch.tensor([[0.0, 0.0, 0.0], [0.05, 0.0, 0.0]])
        >>> round(aliasing_limit(pair, 340.0))
        3400
    """
    apart = torch.cdist(positions.double(), positions.double())
    nearest = apart.fill_diagonal_(math.inf).amin(-1)
    return speed / (2.0 * float(nearest.max()))
