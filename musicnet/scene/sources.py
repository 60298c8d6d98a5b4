"""Where sources are, how they are drawn, and the box in which they are searched."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from musicnet.coordinates import direction_cosines, to_xyz
from musicnet.scene.draws import child_generators, draw_uniform
from musicnet.shapes import Parameters, Points, Resolved

Bounds = tuple[float, float]
SnrOf = Literal["source", "total"]

_TINY = 1e-30
_MOST_ROUNDS = 200  # of redrawing sources that stand too close


@dataclass(frozen=True)
class Sources:
    """True or estimated sources: slots, of which those that are not resolved hold NaN.

    Args:
        parameters: (u, v, rho) per slot; rho in 1/m, 0 in the far field.
        resolved: which slots hold a source; the others are counted, never filled in.
    """

    parameters: Parameters
    resolved: Resolved

    @property
    def u(self) -> Float[Tensor, "*batch source"]:
        """Direction cosine x/r."""
        return self.parameters[..., 0]

    @property
    def v(self) -> Float[Tensor, "*batch source"]:
        """Direction cosine y/r."""
        return self.parameters[..., 1]

    @property
    def inverse_range(self) -> Float[Tensor, "*batch source"]:
        """1/r in 1/m; 0 in the far field."""
        return self.parameters[..., 2]

    @property
    def xyz(self) -> Points:
        """Metres; unit vectors in the far field, NaN where not resolved."""
        return to_xyz(self.parameters)

    @property
    def n_sources(self) -> Tensor:
        """Resolved sources per scene."""
        return self.resolved.sum(-1)

    def to(self, device: torch.device | str) -> "Sources":
        """The same sources on another device."""
        return Sources(self.parameters.to(device), self.resolved.to(device))


@dataclass(frozen=True)
class SearchRegion:
    """The box of parameters in which sources may be: the prior of every estimator.

    Args:
        u: lowest and highest x/r.
        v: lowest and highest y/r.
        inverse_range: lowest and highest 1/r in 1/m; (0, 0) is the far field.

    Equal bounds fix a coordinate.

    Example:
        >>> region = SearchRegion.from_angles((-30.0, 30.0), (0.0, 0.0), range_m=None)
        >>> region.active
        (True, False, False)
    """

    u: Bounds
    v: Bounds
    inverse_range: Bounds

    def __post_init__(self) -> None:
        for name, (low, high) in self.bounds.items():
            if not (math.isfinite(low) and math.isfinite(high) and low <= high):
                raise ValueError(
                    f"the bounds of {name} must be finite and ascending: got ({low}, {high})."
                )
        if self.inverse_range[0] < 0:
            raise ValueError(
                f"inverse_range must be >= 0: got {self.inverse_range}. The far field is (0, 0)."
            )

    @classmethod
    def from_angles(
        cls, azimuth_deg: Bounds, elevation_deg: Bounds, range_m: Bounds | None
    ) -> "SearchRegion":
        """The smallest box around a sector.

        Args:
            azimuth_deg: lowest and highest, within [-90, 90].
            elevation_deg: lowest and highest, within [-90, 90].
            range_m: nearest and farthest; None is the far field.

        Returns:
            The box in (u, v, rho).
        """
        sine_low, sine_high = (math.sin(math.radians(a)) for a in azimuth_deg)
        cosines = [math.cos(math.radians(e)) for e in elevation_deg]
        widest = 1.0 if elevation_deg[0] <= 0.0 <= elevation_deg[1] else max(cosines)
        corners = [sine * cosine for sine in (sine_low, sine_high) for cosine in (*cosines, widest)]
        return cls(
            u=(min(corners), max(corners)),
            v=(math.sin(math.radians(elevation_deg[0])), math.sin(math.radians(elevation_deg[1]))),
            inverse_range=(0.0, 0.0) if range_m is None else (1.0 / range_m[1], 1.0 / range_m[0]),
        )

    @property
    def bounds(self) -> dict[str, Bounds]:
        """Lowest and highest of each coordinate, in the order of the parameters."""
        return {"u": self.u, "v": self.v, "inverse_range": self.inverse_range}

    @property
    def active(self) -> tuple[bool, bool, bool]:
        """Which of (u, v, rho) are searched; the others are fixed."""
        active_u, active_v, active_rho = (low < high for low, high in self.bounds.values())
        return active_u, active_v, active_rho

    def clamp(self, parameters: Parameters) -> Parameters:
        """Brings parameters into the box, and into the unit disc of directions; NaN stays NaN.

        Args:
            parameters: (u, v, rho).

        Returns:
            (u, v, rho) within the bounds.
        """
        columns = zip(parameters.unbind(-1), self.bounds.values(), strict=True)
        inside = [column.clamp(low, high) for column, (low, high) in columns]
        return self.onto_disc(torch.stack(inside, dim=-1))

    def onto_disc(self, parameters: Parameters, rim: float = 1.0) -> Parameters:
        """Brings directions beyond the unit disc, where no source can be, straight onto its rim.

        Straight towards the point of the box that is nearest to boresight, so that they stay in the
        box.

        Args:
            parameters: (u, v, rho) within the bounds; NaN stays NaN.
            rim: radius of the disc, at most 1.

        Returns:
            (u, v, rho) within the bounds and u^2 + v^2 <= rim^2, if the box has such directions.

        Example:
            >>> region = SearchRegion((-1.0, 1.0), (0.6, 0.6), (0.0, 0.0))
            >>> corner = region.onto_disc(torch.tensor([[1.0, 0.6, 0.0]]))
            >>> [round(x, 4) for x in corner[0].tolist()]
            [0.8, 0.6, 0.0]
        """
        farthest = math.hypot(*(max(map(abs, bounds)) for bounds in (self.u, self.v)))
        if farthest <= rim + 1e-12:  # most sectors: nothing to do
            return parameters
        u, v, rho = parameters.unbind(-1)
        near_u, near_v = (min(max(0.0, low), high) for low, high in (self.u, self.v))
        # a breath inside, so that rounding leaves w real
        squared_rim = rim * rim - 8.0 * torch.finfo(parameters.dtype).eps
        room = max(squared_rim - near_u * near_u - near_v * near_v, 0.0)
        along_u, along_v = u - near_u, v - near_v
        length = along_u.square() + along_v.square()
        half = near_u * along_u + near_v * along_v
        # the root of |near + share * along| = rim, in a form that subtracts nothing
        share = room / (half + (half.square() + length * room).sqrt()).clamp_min(_TINY)
        beyond = u.square() + v.square() > rim * rim
        u = torch.where(beyond, near_u + share * along_u, u)
        v = torch.where(beyond, near_v + share * along_v, v)
        return torch.stack((u, v, rho), dim=-1)


@dataclass(frozen=True)
class SourceDraw:
    """Drawn sources and how loud they are, all slots filled; ``sources`` is what is true.

    Args:
        parameters: (u, v, rho) of every slot, also of the silent ones.
        resolved: which slots are there.
        amplitude: linear, |s| over the noise's standard deviation; 0 in slots that are not there.
        phase: radians, uniform.
    """

    parameters: Float[Tensor, "channel scene source 3"]
    resolved: Bool[Tensor, "channel scene source"]
    amplitude: Float[Tensor, "channel scene source"]
    phase: Float[Tensor, "channel scene source"]

    @property
    def sources(self) -> Sources:
        """The sources that are there, NaN in the other slots."""
        hidden = ~self.resolved[..., None]
        return Sources(self.parameters.masked_fill(hidden, math.nan), self.resolved)


@dataclass(frozen=True)
class SourceLaw:
    """How the sources of a scene are drawn: each coordinate uniform and independent.

    The number of sources is uniform from ``n_min`` to ``n_max``, or has weights of its own.

    Args:
        n_min: fewest sources of a scene.
        n_max: most sources; every scene has this many slots.
        azimuth_deg: lowest and highest azimuth, within [-90, 90].
        elevation_deg: lowest and highest elevation, within [-90, 90].
        range_m: nearest and farthest range; None puts the sources in the far field.
        snr_db: lowest and highest signal-to-noise ratio: E|(G a s)_row|^2 over the noise power of
            a row (for an array: per sensor and snapshot).
        snr_of: "source" draws the ratio of each source by itself; "total" draws that of all
            sources of a scene together, shared out by their path loss.
        path_loss_exponent: power falls as range to this exponent; for snr_of="total" alone. 2 is
            free space, 0 shares evenly.
        phase_deg: lowest and highest phase of a source's amplitude; equal ones make pilots, and
            coherent symbols, arrive in phase at the array's centre.
        min_separation_deg: least angle between the directions of two sources of a scene.
        count_weights: how often each number of sources is drawn, from ``n_min`` on; None draws all
            alike.

    Raises:
        ValueError: bounds that are not finite, descend or leave their interval; numbers that
            contradict each other.
    """

    n_min: int = 1
    n_max: int = 4
    azimuth_deg: tuple[float, float] = (-60.0, 60.0)
    elevation_deg: tuple[float, float] = (-30.0, 30.0)
    range_m: tuple[float, float] | None = (0.5, 5.0)
    snr_db: tuple[float, float] = (-5.0, 20.0)
    snr_of: SnrOf = "source"
    path_loss_exponent: float = 0.0
    phase_deg: tuple[float, float] = (0.0, 360.0)
    min_separation_deg: float = 0.0
    count_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.n_min <= self.n_max:
            raise ValueError(
                "the number of sources must satisfy 1 <= n_min <= n_max: got "
                f"n_min={self.n_min}, n_max={self.n_max}."
            )
        _check_bounds("azimuth_deg", self.azimuth_deg, -90.0, 90.0)
        _check_bounds("elevation_deg", self.elevation_deg, -90.0, 90.0)
        _check_bounds("snr_db", self.snr_db, -100.0, 100.0)
        if self.range_m is not None:
            _check_bounds("range_m", self.range_m, 1e-3, 1e9)
        _check_bounds("phase_deg", self.phase_deg, -360.0, 360.0)
        if self.snr_of not in get_args(SnrOf):
            raise ValueError(f"snr_of must be 'source' or 'total': got {self.snr_of!r}.")
        if not 0.0 <= self.path_loss_exponent <= 10.0:
            raise ValueError(
                f"path_loss_exponent must be from 0 to 10: got {self.path_loss_exponent}."
            )
        if self.path_loss_exponent > 0 and (self.snr_of == "source" or self.range_m is None):
            raise ValueError(
                "path loss shares out the total ratio of sources at known ranges: got "
                f"path_loss_exponent={self.path_loss_exponent} with snr_of={self.snr_of!r} and "
                f"range_m={self.range_m}. Set snr_of='total' and range_m, or the exponent to 0."
            )
        weights = self.count_weights
        if weights is not None and not (
            len(weights) == self.n_max - self.n_min + 1
            and all(0.0 <= weight < math.inf for weight in weights)
            and 0.0 < sum(weights) < math.inf
        ):
            raise ValueError(
                "count_weights must hold one finite weight >= 0 for each number of sources, "
                f"n_min={self.n_min} to n_max={self.n_max}, and not only zeros: got {weights}. "
                "Give as many, or null to draw all alike."
            )
        if not 0.0 <= self.min_separation_deg < 180.0:
            raise ValueError(
                "min_separation_deg must be from 0 to less than 180: got "
                f"{self.min_separation_deg}."
            )

    @property
    def region(self) -> SearchRegion:
        """The box around everything that can be drawn."""
        return SearchRegion.from_angles(self.azimuth_deg, self.elevation_deg, self.range_m)

    def draw(self, n_scenes: int, generators: Sequence[torch.Generator]) -> SourceDraw:
        """Draws the sources of several blocks of scenes.

        Args:
            n_scenes: S, scenes of a block.
            generators: one per block; they decide everything, and where the answer lives.

        Returns:
            S scenes of ``n_max`` slots per block, batch (channel, scene).
        """
        low, span, thresholds = _draw_constants(self, generators[0].device)
        uniform = draw_uniform((6, n_scenes, self.n_max), generators)
        if self.min_separation_deg > 0:
            self._separate(uniform, low, span, generators)
        values = torch.addcmul(low, uniform, span)
        azimuth, elevation, distance, nepers, phase, lot = values.unbind(1)
        u, v = direction_cosines(azimuth, elevation)
        rho = torch.zeros_like(u) if self.range_m is None else distance.reciprocal()
        # one number per scene decides how many slots are filled, from the first on
        resolved = lot[..., :1] >= thresholds
        if self.snr_of == "total":
            amplitude = nepers[..., :1].exp() * self._shares(rho, resolved).sqrt()
        else:
            amplitude = nepers.exp().mul_(resolved)
        return SourceDraw(torch.stack((u, v, rho), dim=-1), resolved, amplitude, phase)

    def _shares(
        self, rho: Float[Tensor, "*batch source"], resolved: Resolved
    ) -> Float[Tensor, "*batch source"]:
        """What part of the received power each source has."""
        power = (rho**self.path_loss_exponent) * resolved if self.path_loss_exponent else resolved
        return power / power.sum(-1, keepdim=True)

    def _separate(
        self,
        uniform: Float[Tensor, "channel 6 scene source"],
        low: Tensor,
        span: Tensor,
        generators: Sequence[torch.Generator],
    ) -> None:
        """Redraws, in place, the directions of scenes with two sources that stand too close."""
        # how often one block is redrawn must not shift the random numbers of what comes after
        children = child_generators(generators)
        n_scenes = uniform.shape[2]
        closest = math.cos(math.radians(self.min_separation_deg))
        for _ in range(_MOST_ROUNDS):
            azimuth, elevation = torch.addcmul(low, uniform, span)[:, :2].unbind(1)
            u, v = direction_cosines(azimuth, elevation)
            towards = torch.stack((u, v, azimuth.cos() * elevation.cos()), dim=-1)
            cosines = (towards[..., :, None, :] * towards[..., None, :, :]).sum(-1)
            cosines.diagonal(dim1=-2, dim2=-1).fill_(-1.0)
            close = (cosines > closest).any(-1).any(-1)  # (channel, scene)
            if not bool(close.any()):
                return
            fresh = draw_uniform((2, n_scenes, self.n_max), children)
            uniform[:, :2] = torch.where(close[:, None, :, None], fresh, uniform[:, :2])
        raise ValueError(
            f"{self.n_max} sources at least {self.min_separation_deg:g} degrees apart do not fit, "
            f"or hardly: got azimuth_deg={self.azimuth_deg}, elevation_deg={self.elevation_deg}, "
            f"and {_MOST_ROUNDS} draws in vain. Lower min_separation_deg or n_max."
        )


def _check_bounds(name: str, bounds: Bounds, lowest: float, highest: float) -> None:
    low, high = bounds
    if not lowest <= low <= high <= highest:  # NaN fails too
        raise ValueError(
            f"{name} must be two ascending numbers within [{lowest:g}, {highest:g}]: got "
            f"({low}, {high})."
        )


@lru_cache(maxsize=32)
def _draw_constants(law: SourceLaw, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Lowest value and span of each uniform draw, and from where on a slot is filled."""
    decibels_to_nepers = math.log(10.0) / 20.0
    bounds = (
        tuple(math.radians(a) for a in law.azimuth_deg),
        tuple(math.radians(e) for e in law.elevation_deg),
        law.range_m or (1.0, 1.0),
        tuple(decibels_to_nepers * s for s in law.snr_db),
        tuple(math.radians(p) for p in law.phase_deg),
        (0.0, float(law.n_max - law.n_min + 1)),
    )
    # the first caller may be a validation loop, and its inference tensors would outlive it
    with torch.inference_mode(mode=False):
        low, high = torch.tensor(bounds, dtype=torch.float64)[..., None, None].unbind(1)
        constants = low.to(device, torch.float32), (high - low).to(device, torch.float32)
        if law.count_weights is None:
            first = 1 - law.n_min
            return *constants, torch.arange(first, first + law.n_max, device=device)
        shares = torch.tensor(law.count_weights, dtype=torch.float64)
        steps = shares.cumsum(0)[:-1] * (len(shares) / shares.sum())
        always = torch.zeros(law.n_min, dtype=steps.dtype)
        return *constants, torch.cat((always, steps)).to(device, torch.float32)
