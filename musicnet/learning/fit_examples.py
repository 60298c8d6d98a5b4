"""What each fit costs, made from a training batch by the search that will be chosen for."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from musicnet.estimation.linearization import linearize
from musicnet.estimation.problem import Problem, compress
from musicnet.localization.subspace_pursuit import Spectrum, pursue_ranked
from musicnet.networks.fit_choice import FitChoice
from musicnet.scene.snapshots import Observation
from musicnet.scene.sources import SearchRegion, Sources

# of the error that the noise makes; in radians of the aperture's ends against each other
_MOST_SPREAD = 4.0
_RIDGE = 1e-6


@dataclass(frozen=True)
class FitExample:
    """Scenes of at least two sources, and what each fit costs there.

    Args:
        values: eigenvalues of the covariance, in units of noise, falling.
        n_snapshots: T that went into it.
        counts: sources of each scene.
        costs: of all snapshots, then of subspaces of 1, 2 ... dimensions.
        is_option: fits that the scene has.
    """

    values: Float[Tensor, "channel scene row"]
    n_snapshots: int
    counts: Int[Tensor, "channel scene"]
    costs: Float[Tensor, "channel scene option"]
    is_option: Bool[Tensor, "channel scene option"]


@torch.no_grad()
def fit_examples(observation: Observation, truth: Sources, region: SearchRegion) -> FitExample:
    """Tries all fits on one observation.

    Args:
        observation: of a plain array, batch (channel, scene).
        truth: its sources.
        region: where they may be.

    Returns:
        An example for every scene.
    """
    problem = compress(observation, region)
    resolved = problem.flatten(truth.resolved)
    counts, n_slots = resolved.sum(-1), resolved.shape[-1]
    places = problem.flatten(truth.parameters).nan_to_num().to(problem.y.real.dtype)
    places = _in_order(places, resolved)
    present = resolved.sort(-1, descending=True).values
    spread = _spread(problem, places, present)
    spectrum = Spectrum.of(problem)
    most = min(n_slots, problem.n_snapshots - 1, problem.y.shape[-1])
    costs, is_option = [], []
    for rank in range(n_slots + 1):
        is_option.append((rank <= counts.clamp_max(most)) & (counts > 1))
        ranks = torch.full_like(counts, min(rank, most))
        found = pursue_ranked(problem, spectrum, counts, ranks)
        error = _in_order(found.parameters, found.present) - places[:, :, : found.present.shape[-1]]
        costs.append(_cost(problem, error, spread, present))
    return FitExample(
        spectrum.values,
        problem.n_snapshots,
        counts,
        torch.stack(costs, dim=-1),
        torch.stack(is_option, dim=-1),
    )


def fit_loss(choice: FitChoice, examples: list[FitExample]) -> Float[Tensor, ""]:
    """Mean square error of the costs that were foretold, beyond those of all snapshots.

    Args:
        choice: to train.
        examples: of one batch.

    Returns:
        Squared nepers of squared error.
    """
    total, n_options = torch.zeros(()), torch.zeros(())
    for one in examples:
        foretold = choice(one.values, one.n_snapshots, one.counts)
        is_option = one.is_option & foretold.isfinite()
        is_option[..., 0] = False
        error = foretold - (one.costs - one.costs[..., :1])
        total = total.to(error) + torch.where(is_option, error, 0.0).square().sum()
        n_options = n_options.to(error) + is_option.sum()
    return total / n_options.clamp_min(1)


def _cost(
    problem: Problem,
    error: Float[Tensor, "channel scene source 3"],
    spread: Float[Tensor, "channel scene source 3"],
    present: Bool[Tensor, "channel scene source"],
) -> Float[Tensor, "channel scene"]:
    """Mean over sources of log(1 + squared error over what noise alone makes of it)."""
    columns = list(problem.active)
    n_found = error.shape[2]
    relative = (error / spread[:, :, :n_found])[..., columns].square()
    cost = torch.log1p(relative).mean(-1).masked_fill(~present[:, :, :n_found], 0.0)
    return cost.sum(-1) / present.sum(-1).clamp_min(1)


def _in_order(
    parameters: Float[Tensor, "channel scene source 3"],
    present: Bool[Tensor, "channel scene source"],
) -> Float[Tensor, "channel scene source 3"]:
    """By rising u; empty slots behind."""
    order = parameters[..., 0].masked_fill(~present, torch.inf).argsort(-1)
    return parameters.take_along_dim(order[..., None], dim=2)


def _spread(
    problem: Problem,
    places: Float[Tensor, "channel scene source 3"],
    present: Bool[Tensor, "channel scene source"],
) -> Float[Tensor, "channel scene source 3"]:
    """Standard deviations that the likelihood states at the truth, none beyond what can be seen."""
    curvature = linearize(problem, places, present).curvature.double()
    diagonal = curvature.diagonal(dim1=-2, dim2=-1)
    scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
    scaled = curvature * scale[..., None, :] * scale[..., None]
    ridge = torch.diag_embed((diagonal <= 0) + _RIDGE)
    inverse = torch.linalg.inv_ex(scaled.nan_to_num() + ridge).inverse
    variance = inverse.diagonal(dim1=-2, dim2=-1) * scale.square() * problem.noise_power[..., None]
    spread = variance.clamp_min(0.0).sqrt().unflatten(-1, (len(problem.active), -1)).mT
    whole = torch.ones_like(places)
    most = _MOST_SPREAD * problem.resolution
    columns = list(problem.active)
    whole[..., columns] = torch.minimum(spread.to(whole), most[columns].to(whole)).clamp_min(1e-9)
    return whole
