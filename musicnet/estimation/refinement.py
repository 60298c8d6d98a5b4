"""From sources that are nearly right to the nearest best ones: batched Levenberg-Marquardt.

Where symbols are Gaussian, their powers move along with the sources, and the likelihood is theirs.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from musicnet.estimation.linearization import Linearization, explain, linearize
from musicnet.estimation.problem import Problem
from musicnet.estimation.symbol_likelihood import SymbolLinearization, linearize_symbols
from musicnet.estimation.symbol_powers import log_power_bounds

_FIRST_DAMPING, _LESS_DAMPING, _MORE_DAMPING = 1e-2, 0.3, 5.0
# longest step, in radians of the aperture's ends against each other: about half a beamwidth
_STEP_LIMIT = 1.75
# nepers of power
_POWER_STEP_LIMIT = 2.0
_TINY = 1e-30

Around = TypeVar("Around", Linearization, SymbolLinearization)


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
        cost: power that is left; of Gaussian symbols sigma^2 times minus the log-likelihood.
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
    here = problem.region.onto_disc(parameters.clamp(low, high))
    if problem.log_powers is not None and present.shape[-1] > 0:
        return _refine_symbols(problem, here, present, n_iterations)
    limit = _STEP_LIMIT * problem.resolution[list(problem.active)]
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
        damping = torch.where(better, damping * _LESS_DAMPING, damping * _MORE_DAMPING)
    return Refined(here, now.cost, now.amplitudes)


def _refine_symbols(
    problem: Problem,
    here: Float[Tensor, "channel scene source 3"],
    present: Bool[Tensor, "channel scene source"],
    n_iterations: int,
) -> Refined:
    """The same where symbols are Gaussian; powers take their own steps, between their bounds."""
    quietest, loudest = log_power_bounds(problem)
    low, high = problem.box.unbind(0)
    limit = _STEP_LIMIT * problem.resolution[list(problem.active)]
    load = explain(problem, here, present).load
    log_power = torch.where(present, -load.log(), 0.5 * (quietest + loudest))
    now = linearize_symbols(problem, here, present, log_power)
    damping = torch.full_like(now.cost, _FIRST_DAMPING)
    for _ in range(n_iterations):
        step = _step(problem, here, now, present, damping).clamp(-limit, limit)
        there = here.clone()
        there[..., list(problem.active)] += step
        there = problem.region.onto_disc(there.clamp(low, high))
        is_leaving = ((log_power <= quietest) & (now.power_gradient > 0)) | (
            (log_power >= loudest) & (now.power_gradient < 0)
        )
        is_free = (present & ~is_leaving)[..., None]
        louder = _damped(now.power_gradient, now.power_information, is_free, damping)[..., 0]
        louder = louder.clamp(-_POWER_STEP_LIMIT, _POWER_STEP_LIMIT)
        power_there = (log_power + louder).clamp(quietest, loudest)
        then = linearize_symbols(problem, there, present, power_there)
        better = then.cost < now.cost
        here = torch.where(better[..., None, None], there, here)
        log_power = torch.where(better[..., None], power_there, log_power)
        now = _choose(better, then, now)
        damping = damping * torch.where(better, _LESS_DAMPING, _MORE_DAMPING)
    return Refined(here, now.cost, now.amplitudes)


def _step(
    problem: Problem,
    parameters: Float[Tensor, "channel scene source 3"],
    now: Linearization | SymbolLinearization,
    present: Bool[Tensor, "channel scene source"],
    damping: Float[Tensor, "channel scene"],
) -> Float[Tensor, "channel scene source searched"]:
    """The step over the unknowns that are free to move."""
    columns = list(problem.active)
    low, high = problem.box[:, columns].unbind(0)
    gradient = now.gradient.reshape(*now.cost.shape, len(columns), -1).mT  # (..., source, searched)
    searched = parameters[..., columns]
    leaving = ((searched <= low) & (gradient > 0)) | ((searched >= high) & (gradient < 0))
    return _damped(now.gradient, now.curvature, present[..., None] & ~leaving, damping)


def _damped(
    gradient: Float[Tensor, "channel scene unknown"],
    curvature: Float[Tensor, "channel scene unknown unknown"],
    is_free: Bool[Tensor, "channel scene source searched"],
    damping: Float[Tensor, "channel scene"],
) -> Float[Tensor, "channel scene source searched"]:
    """Solves (H + damping diag H) step = -gradient over the unknowns that are free to move."""
    free = is_free.mT.flatten(-2).to(gradient.dtype)
    diagonal = curvature.diagonal(dim1=-2, dim2=-1)
    # unknowns have different units: a unit diagonal keeps the system well conditioned
    scale = free * diagonal.clamp_min(_TINY).rsqrt()
    scaled = curvature * scale[..., :, None] * scale[..., None, :]
    loading = damping[..., None] + (1.0 - free)  # a one for what is held
    factor = torch.linalg.cholesky_ex(scaled + torch.diag_embed(loading)).L
    step = torch.cholesky_solve((-gradient * scale)[..., None], factor)[..., 0] * scale
    return step.reshape(*is_free.shape[:2], is_free.shape[-1], -1).mT


def _choose(better: Bool[Tensor, "channel scene"], then: Around, now: Around) -> Around:
    def chosen(name: str) -> Tensor:
        new, old = getattr(then, name), getattr(now, name)
        return torch.where(better.reshape(*better.shape, *[1] * (new.ndim - 2)), new, old)

    return type(now)(*(chosen(one.name) for one in fields(now)))
