r"""Sources near where they are said to be: likelihood and the law of that error together.

.. math:: \min_p \; c(p) / \sigma^2 + \sum_k \|x(p_k) - x(p^0_k)\|^2 / \epsilon^2

with c the power that is left over, x the place in space, and the second term linearised around
the places p^0 that were noted.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from musicnet.coordinates import xyz_jacobian
from musicnet.estimation.linearization import linearize
from musicnet.estimation.problem import Problem

_DAMPING, _LESS_DAMPING, _MORE_DAMPING = 1e-3, 0.3, 10.0


def settle_near(
    problem: Problem,
    noted: Float[Tensor, "channel scene source 3"],
    present: Bool[Tensor, "channel scene source"],
    deviation: float,
    n_iterations: int,
) -> tuple[Float[Tensor, "channel scene source 3"], Float[Tensor, "channel scene"]]:
    """Moves sources from where they were noted to where they are more probable.

    Args:
        problem: what was heard.
        noted: (u, v, rho) of each source, inside the region; finite in every slot.
        present: slots that hold a source.
        deviation: rms error of the noted places along each axis; metres.
        n_iterations: steps of Levenberg-Marquardt.

    Returns:
        Where the sources are, inside the region; and what the second term says to it.
    """
    searched = list(problem.active)
    low, high = problem.box.unbind(0)
    jacobian = xyz_jacobian(noted)[..., searched] / deviation
    precision = (jacobian.mT @ jacobian) * present[..., None, None]
    prior = _spread_out(precision)

    def penalty(parameters: Tensor) -> tuple[Tensor, Tensor]:
        moved = (parameters - noted)[..., searched].mT.flatten(-2)  # coordinate by coordinate
        pull = (prior @ moved[..., None])[..., 0]
        return (moved * pull).sum(-1), pull

    here, power = noted, problem.noise_power
    now, (charge, pull) = linearize(problem, here, present), penalty(here)
    damping = torch.full_like(now.cost, _DAMPING)
    for _ in range(n_iterations):
        gradient = now.gradient / power[..., None] + 2.0 * pull
        curvature = now.curvature / power[..., None, None] + 2.0 * prior
        diagonal = curvature.diagonal(dim1=-2, dim2=-1)
        # empty slots have nothing to move by
        loading = damping[..., None] * diagonal + (diagonal == 0).to(diagonal.dtype)
        factor = torch.linalg.cholesky_ex(curvature + torch.diag_embed(loading)).L
        step = torch.cholesky_solve(-gradient[..., None], factor)[..., 0]
        there = here.clone()
        there[..., searched] += step.reshape(*step.shape[:-1], len(searched), -1).mT
        there = problem.region.onto_disc(there.clamp(low, high))
        then, (due, tug) = linearize(problem, there, present), penalty(there)
        better = then.cost / power + due < now.cost / power + charge
        here = torch.where(better[..., None, None], there, here)
        now, pull = now.chosen(better, then), torch.where(better[..., None], tug, pull)
        charge = torch.where(better, due, charge)
        damping = damping * torch.where(better, _LESS_DAMPING, _MORE_DAMPING)
    return here, charge


def _spread_out(
    blocks: Float[Tensor, "channel scene source searched searched"],
) -> Float[Tensor, "channel scene unknown unknown"]:
    """Each source's own block, over unknowns ordered coordinate by coordinate."""
    n_sources, n_searched = blocks.shape[-3:-1]
    apart = torch.diag_embed(blocks.movedim(-3, -1))  # (..., searched, searched, source, source)
    shape = (*blocks.shape[:-3], n_searched * n_sources, n_searched * n_sources)
    return apart.transpose(-3, -2).reshape(shape)
