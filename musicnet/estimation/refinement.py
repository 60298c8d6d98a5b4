"""From sources that are nearly right to the nearest best ones: batched Levenberg-Marquardt."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from musicnet.estimation.linearization import Linearization, linearize
from musicnet.estimation.problem import Problem

_FIRST_DAMPING, _LESS_DAMPING, _MORE_DAMPING = 1e-2, 0.3, 5.0
# longest step, in radians of the aperture's ends against each other: about half a beamwidth
_STEP_LIMIT = 1.75
_TINY = 1e-30


Model = Callable[
    [Problem, Float[Tensor, "channel scene source 3"], Bool[Tensor, "channel scene source"]],
    Linearization,
]
"""The cost around given sources, and how it changes as they move."""


@dataclass(frozen=True)
class Refined:
    """Sources at a minimum of the cost, or near it.

    Args:
        parameters: (u, v, rho) inside the region; slots that hold no source are left as they came.
        cost: power that is left.
        amplitudes: s, of each (compressed) snapshot.
    """

    parameters: Float[Tensor, "channel scene source 3"]
    cost: Float[Tensor, "channel scene"]
    amplitudes: Complex[Tensor, "channel scene blocks source snapshot"]


def refine(
    problem: Problem,
    parameters: Float[Tensor, "channel scene source 3"],
    present: Bool[Tensor, "channel scene source"],
    n_iterations: int,
    model: Model = linearize,
) -> Refined:
    """Moves sources downhill, all scenes at once.

    A step is taken only where the cost falls, so that a scene that is not finite stays where it is
    and harms no other. Coordinates at the edge of the region that would leave it are held while
    the others move.

    Args:
        problem: what has to be explained.
        parameters: (u, v, rho) to start from; brought into the region first.
        present: slots that hold a source; the others may be anything finite.
        n_iterations: steps tried in every scene.
        model: whose cost has to fall; each source has amplitudes of its own unless said otherwise.

    Returns:
        The best sources seen.
    """
    low, high = problem.box.unbind(0)
    limit = _STEP_LIMIT * problem.resolution[list(problem.active)]
    here = problem.region.onto_disc(parameters.clamp(low, high))
    now = model(problem, here, present)
    damping = torch.full_like(now.cost, _FIRST_DAMPING)
    for _ in range(n_iterations):
        step = _step(problem, here, now, present, damping).clamp(-limit, limit)
        there = here.clone()
        there[..., list(problem.active)] += step
        there = problem.region.onto_disc(there.clamp(low, high))
        then = model(problem, there, present)
        better = then.cost < now.cost
        here = torch.where(better[..., None, None], there, here)
        now = _choose(better, then, now)
        damping = damping * torch.where(better, _LESS_DAMPING, _MORE_DAMPING)
    return Refined(here, now.cost, now.amplitudes)


def _step(
    problem: Problem,
    parameters: Float[Tensor, "channel scene source 3"],
    now: Linearization,
    present: Bool[Tensor, "channel scene source"],
    damping: Float[Tensor, "channel scene"],
) -> Float[Tensor, "channel scene source searched"]:
    """Solves (H + damping diag H) step = -gradient over the unknowns that are free to move."""
    columns = list(problem.active)
    n_searched = len(columns)
    low, high = problem.box[:, columns].unbind(0)
    by_coordinate = (*now.cost.shape, n_searched, -1)
    gradient = now.gradient.reshape(by_coordinate).mT  # (..., source, searched)
    searched = parameters[..., columns]
    leaving = ((searched <= low) & (gradient > 0)) | ((searched >= high) & (gradient < 0))
    free = (present[..., None] & ~leaving).mT.flatten(-2).to(gradient.dtype)
    diagonal = now.curvature.diagonal(dim1=-2, dim2=-1)
    # unknowns have different units: a unit diagonal keeps the system well conditioned
    scale = free * diagonal.clamp_min(_TINY).rsqrt()
    scaled = now.curvature * scale[..., :, None] * scale[..., None, :]
    loading = damping[..., None] + (1.0 - free)  # a one for what is held
    factor = torch.linalg.cholesky_ex(scaled + torch.diag_embed(loading)).L
    step = torch.cholesky_solve((-now.gradient * scale)[..., None], factor)[..., 0] * scale
    return step.reshape(by_coordinate).mT


def _choose(
    better: Bool[Tensor, "channel scene"], then: Linearization, now: Linearization
) -> Linearization:
    return Linearization(
        torch.where(better, then.cost, now.cost),
        torch.where(better[..., None], then.gradient, now.gradient),
        torch.where(better[..., None, None], then.curvature, now.curvature),
        torch.where(better[..., None, None, None], then.amplitudes, now.amplitudes),
    )
