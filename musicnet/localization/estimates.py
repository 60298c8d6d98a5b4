"""What a method says about a batch of scenes: where, how surely, how many."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from musicnet.coordinates import xyz_jacobian
from musicnet.estimation.bounds import angle_jacobian
from musicnet.scene.sources import Sources
from musicnet.shapes import Parameters, Points

PURSUIT = "nomp"
"""The method that scenes are left to of which a network knows nothing."""


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
        """Standard deviations of azimuth and elevation; radians."""
        jacobian = angle_jacobian(self.sources.parameters.double())
        azimuth, elevation, _ = _deviations(_moved(self.covariance, jacobian)).unbind(-1)
        return azimuth.to(self.covariance.dtype), elevation.to(self.covariance.dtype)

    @property
    def bearing(self) -> Float[Tensor, "*batch source"]:
        """Direction in the plane of the array, counter-clockwise from +x; radians."""
        return torch.atan2(self.sources.v, self.sources.u)

    @property
    def std_bearing(self) -> Float[Tensor, "*batch source"]:
        """Standard deviation of the bearing, radians; infinite at boresight, which has none."""
        u, v = self.sources.u.double(), self.sources.v.double()
        across = torch.stack((-v, u), dim=-1) / (u * u + v * v)[..., None]
        plane = self.covariance[..., :2, :2].double()
        variance = (across[..., None, :] @ plane @ across[..., None]).squeeze(-1).squeeze(-1)
        return variance.clamp_min(0.0).sqrt().to(self.covariance.dtype)

    @property
    def std_range(self) -> Float[Tensor, "*batch source"]:
        """Standard deviation of the range, metres; NaN in the far field, which has none."""
        rho = self.sources.inverse_range
        squared = torch.where(rho == 0, math.nan, rho.reciprocal().square())
        return self.std_parameters[..., 2] * squared

    @cached_property
    def std_xyz(self) -> Points:
        """Standard deviations of x, y, z; metres, of the unit vector in the far field."""
        moved = _moved(self.covariance, xyz_jacobian(self.sources.parameters.double()))
        return _deviations(moved).to(self.covariance.dtype)


def _moved(covariance: Tensor, jacobian: Tensor) -> Tensor:
    """Covariance of what moves with the parameters; at grazing incidence 0 times infinity is 0."""
    covariance = covariance.to(jacobian.dtype)
    still = (covariance == 0).all(-1)[..., None, :]
    jacobian = torch.where(still, 0.0, jacobian)
    return jacobian @ covariance @ jacobian.mT


def _deviations(covariance: Tensor) -> Tensor:
    return covariance.diagonal(dim1=-2, dim2=-1).clamp_min(0.0).sqrt()
