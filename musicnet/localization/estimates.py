"""What a method says about a batch of scenes: where, how surely, how many."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from musicnet.coordinates import angles, depth_cosine, xyz_jacobian
from musicnet.scene.sources import Sources
from musicnet.shapes import Parameters, Points

PURSUIT = "nomp"
"""The method that scenes are left to of which a network knows nothing."""

_ANYWHERE = 1.0 / math.sqrt(12.0)
"""Deviation of what lies anywhere in an interval of length one: no error bar of an angle, or of a
part of a unit vector, is wider than that of one of which nothing is known."""


@dataclass(frozen=True)
class Estimates:
    """Estimated sources with their error bars; NaN wherever there is no estimate.

    Args:
        sources: where; best first where the method has an order. A slot is resolved if, and only
            if, the method has an estimate: low confidence shows in the error bar.
        covariance: of (u, v, rho) of each source; 0 along what the region fixes.
        log_likelihood: of everything that was heard, given the sources and their best amplitudes.
        n_sources: how many the method declares, given or counted; more than are resolved where it
            found fewer.
        method: which one it was; never "auto".
        left_to_nomp: scenes that the method left to nomp, whose answers they have; None if to
            nobody.
    """

    sources: Sources
    covariance: Float[Tensor, "*batch source 3 3"]
    log_likelihood: Float[Tensor, "*batch"]
    n_sources: Int[Tensor, "*batch"]
    method: str
    left_to_nomp: Bool[Tensor, "*batch"] | None = None

    @property
    def methods(self) -> list[str]:
        """Who answered, scene by scene, in the order of the flattened batch."""
        if self.left_to_nomp is None:
            return [self.method] * self.n_sources.numel()
        return [PURSUIT if left else self.method for left in self.left_to_nomp.flatten().tolist()]

    @property
    def std_parameters(self) -> Parameters:
        """Standard deviations of u, v and rho; the last in 1/m."""
        return _deviations(self.covariance)

    @cached_property
    def std_angles(self) -> tuple[Float[Tensor, "*batch source"], Float[Tensor, "*batch source"]]:
        """Standard deviations of azimuth and elevation; radians.

        An angle that is not determined, as the azimuth of a source straight above, has that of an
        angle anywhere in half a turn, 52 degrees.
        """
        here = self.sources.parameters.double()
        azimuth = _deviation(lambda parameters: angles(parameters)[0], here, self._steps)
        elevation = _deviation(lambda parameters: angles(parameters)[1], here, self._steps)
        return self._at_most(azimuth, math.pi), self._at_most(elevation, math.pi)

    @property
    def bearing(self) -> Float[Tensor, "*batch source"]:
        """Direction in the plane of the array, counter-clockwise from +x; radians."""
        return torch.atan2(self.sources.v, self.sources.u)

    @property
    def std_bearing(self) -> Float[Tensor, "*batch source"]:
        """Standard deviation of the bearing, radians; at boresight, which has none, 104 degrees."""
        u, v = self.sources.u.double(), self.sources.v.double()
        across = torch.stack((-v, u), dim=-1) / (u * u + v * v)[..., None]
        plane = self.covariance[..., :2, :2].double()
        variance = (across[..., None, :] @ plane @ across[..., None]).squeeze(-1).squeeze(-1)
        return self._at_most(variance.clamp_min(0.0).sqrt(), 2.0 * math.pi)

    @property
    def std_range(self) -> Float[Tensor, "*batch source"]:
        """Standard deviation of the range, metres; NaN in the far field, which has none."""
        rho = self.sources.inverse_range
        squared = torch.where(rho == 0, math.nan, rho.reciprocal().square())
        return self.std_parameters[..., 2] * squared

    @cached_property
    def std_xyz(self) -> Points:
        """Standard deviations of x, y, z; metres, of the unit vector in the far field."""
        here = self.sources.parameters.double()
        flat = _deviations(_moved(self.covariance, xyz_jacobian(here)))[..., :2]
        rho, is_far = here[..., 2], here[..., 2] == 0
        distance = torch.where(is_far, 1.0, rho.reciprocal())
        shrinking = torch.where(is_far, 0.0, distance.square()) * _depth(here)

        def height(parameters: Parameters) -> Tensor:  # a range may be infinite a deviation away
            return distance * _depth(parameters) - shrinking * (parameters[..., 2] - rho)

        spread = torch.cat((flat, _deviation(height, here, self._steps)[..., None]), dim=-1)
        unit = self._at_most(spread, 2.0)
        return torch.where(is_far[..., None], unit, spread.to(self.covariance.dtype))

    @cached_property
    def _steps(self) -> list[Tensor]:
        return _root_columns(self.covariance.double())

    def _at_most(self, deviations: Tensor, interval: float) -> Tensor:
        """Of estimates, never more than that of anything in the interval; else as they are."""
        widest = interval * _ANYWHERE
        resolved = self.sources.resolved
        if deviations.ndim > resolved.ndim:
            resolved = resolved[..., None]
        capped = deviations.nan_to_num(widest).clamp_max(widest)
        return torch.where(resolved, capped, deviations).to(self.covariance.dtype)


def _deviation(
    value: Callable[[Parameters], Tensor], here: Parameters, steps: Sequence[Tensor]
) -> Tensor:
    """How far a quantity is from its value here, a deviation away to both sides; root mean square.

    Where it moves evenly that is what its derivative says. At the rim of the unit disc, where the
    depth cosine has no derivative, it still is what can be.
    """
    centre = value(here)
    squares = [
        0.5 * (value(here + sign * step) - centre).square() for step in steps for sign in (1, -1)
    ]
    return torch.stack(squares).sum(0).sqrt()


def _root_columns(covariance: Tensor) -> list[Tensor]:
    """Columns of a square root of it, the lower triangular one; none along what is fixed."""
    left, columns = covariance, []
    for axis in range(3):
        root = left[..., axis, axis].clamp_min(0.0).sqrt()[..., None]
        column = torch.where(root > 0.0, left[..., axis] / root, 0.0 * root)
        column[..., :axis] = 0.0
        columns.append(column)
        left = left - column[..., :, None] * column[..., None, :]
    return columns


def _depth(parameters: Parameters) -> Tensor:
    return depth_cosine(parameters[..., 0], parameters[..., 1])


def _moved(covariance: Tensor, jacobian: Tensor) -> Tensor:
    """Covariance of what moves with the parameters; at grazing incidence 0 times infinity is 0."""
    covariance = covariance.to(jacobian.dtype)
    still = (covariance == 0).all(-1)[..., None, :]
    jacobian = torch.where(still, 0.0, jacobian)
    return jacobian @ covariance @ jacobian.mT


def _deviations(covariance: Tensor) -> Tensor:
    return covariance.diagonal(dim1=-2, dim2=-1).clamp_min(0.0).sqrt()
