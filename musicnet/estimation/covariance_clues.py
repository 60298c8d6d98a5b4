"""What the covariance of an array's snapshots says before anything is searched.

Eigenvalues tell how many dimensions rise above the noise; the unevenness, whether waves interfere.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from musicnet.estimation.problem import Problem, take_scenes

N_DISTANCES = 4
"""Bands of distances between sensors."""

# weight that a direction at the noise keeps: of a signal too weak to be seen, in units of noise
_LEAST_WEIGHT = 1e-3
_SAME = 1e-3  # of the aperture: pairs of sensors stand alike
_TINY = 1e-30


@dataclass(frozen=True)
class CovarianceClues:
    """The covariance of what an array heard.

    Args:
        values: its eigenvalues in units of noise, falling; those of absent snapshots are 0.
        strongest: direction of the first, as a line.
        unevenness: see `unevenness_of`.
    """

    values: Float[Tensor, "channel scene row"]
    strongest: Complex[Tensor, "channel scene row"]
    unevenness: Float[Tensor, "channel scene distance"]

    @classmethod
    def of(cls, problem: Problem) -> "CovarianceClues":
        """Looks at the snapshots of a plain array.

        Args:
            problem: snapshots of one operator, of known noise power.

        Returns:
            No gradient.
        """
        heard = problem.y[:, :, 0].detach().to(torch.complex128).nan_to_num()
        power = (problem.n_snapshots * problem.noise_power.double())[..., None, None]
        covariance = heard.mH @ heard / power
        values, vectors = torch.linalg.eigh(covariance)
        return cls(
            values.flip(-1).clamp_min(0.0).float(),
            vectors[..., -1].conj(),
            unevenness_of(problem, covariance),
        )

    def take(self, some: Int[Tensor, "channel some"]) -> "CovarianceClues":
        """Those of some scenes; index of each."""
        return CovarianceClues(
            take_scenes(self.values, some),
            take_scenes(self.strongest, some),
            take_scenes(self.unevenness, some),
        )

    def strongest_alone(self, problem: Problem) -> Problem:
        """The problem of the signal subspace of one dimension, see `subspace_fitting`.

        Args:
            problem: that was looked at.

        Returns:
            A problem with one weighted direction for snapshots.
        """
        power = self.values[..., 0].double()
        signal = (power - 1.0).clamp_min(_LEAST_WEIGHT)
        unit = problem.n_snapshots * problem.noise_power.double()
        weight = (unit / power.clamp_min(_LEAST_WEIGHT)).sqrt() * signal
        y = (weight[..., None] * self.strongest).to(problem.y.dtype)
        return replace(
            problem,
            y=y[:, :, None, None],
            unexplained=torch.zeros_like(problem.unexplained),
            n_snapshots=1,
            n_unexplained=0,
        )


def unevenness_of(
    problem: Problem, covariance: Complex[Tensor, "channel scene row row"]
) -> Float[Tensor, "channel scene distance"]:
    """How far products of sensors differ that stand equally far apart, to what chance makes of it.

    Waves from afar that know nothing of each other make them alike; coherent ones interfere.

    Args:
        problem: knows where the sensors stand.
        covariance: of its rows.

    Returns:
        For distances up to a quarter of the aperture, up to half of it, and so on; about 1 where
        only chance makes them differ, 0 where no two pairs stand alike.
    """
    averaging, shares = _pairs(problem)
    flat = covariance.flatten(-2).to(torch.complex64)
    uneven = torch.view_as_real(flat - flat @ averaging.to(flat)).square().sum(-1)
    power = covariance.diagonal(dim1=-2, dim2=-1).real.mean(-1, keepdim=True).float()
    return problem.n_snapshots * (uneven @ shares) / power.square().clamp_min(_TINY)


def _pairs(
    problem: Problem,
) -> tuple[Float[Tensor, "pair pair"], Float[Tensor, "pair distance"]]:
    """What replaces products by the mean over pairs that stand alike; and means by distance."""
    places = problem.positions.float()
    apart = (places[:, None] - places).flatten(0, 1)
    distance = apart.norm(dim=-1) / apart.norm(dim=-1).amax()
    alike = (torch.cdist(apart, apart) < _SAME * apart.norm(dim=-1).amax()).float()
    averaging = alike / alike.sum(-1, keepdim=True)
    band = (distance * N_DISTANCES).ceil().clamp(1, N_DISTANCES).long() - 1
    shares = torch.nn.functional.one_hot(band, N_DISTANCES).float()
    # as many as are free to differ from their mean
    freedom = 1.0 - averaging.diagonal()
    return averaging, shares / (freedom @ shares).clamp_min(1.0)
