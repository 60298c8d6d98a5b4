r"""Ranges of the least relative error, of all sources of a scene at once.

Errors are about normal in the inverse range. With ranges uniform between two bounds the estimate
of the least mean of :math:`(\hat r - r)^2 / r^2` is

.. math:: \hat r = \frac{\mathrm{E}[1/r]}{\mathrm{E}[1/r^2]}

under the posterior :math:`\exp(-(1/r - \rho)^2 / 2 \sigma_\rho^2)`, each source's own. The middle
:math:`\rho` is where the parabola of the likelihood has its peak, which may lie beyond the region.
All other coordinates, those of the other sources included, follow the ranges as far as their errors
are correlated. Sources that nearly cancel have no such parabola: what makes the likelihood fall is
taken back.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from musicnet.estimation.linearization import Linearization, explain, linearize
from musicnet.estimation.problem import Problem, pack_scenes, put_scenes, take_scenes
from musicnet.estimation.products import product
from musicnet.estimation.range_posterior import covariance_about
from musicnet.scene.sources import Bounds
from musicnet.shapes import Parameters

_N_PLACES = 65
_REACH = 4.0  # standard deviations
# nepers of likelihood per source that a move may cost
_MOST_LOSS = 0.25
_HALVINGS = 3
_RIDGE = 1e-9
_TINY = 1e-20


def settle_ranges(
    problem: Problem,
    parameters: Float[Tensor, "channel scene source 3"],
    present: Bool[Tensor, "channel scene source"],
    covariance: Float[Tensor, "channel scene source 3 3"],
    range_m: Bounds,
) -> tuple[Parameters, Float[Tensor, "channel scene source 3 3"]]:
    """Moves estimates to where their relative error is expected to be least.

    Args:
        problem: what was heard; ranges are searched.
        parameters: (u, v, rho) at a maximum of the likelihood; finite.
        present: slots that hold a source; the others stay.
        covariance: of their errors.
        range_m: between which bounds ranges are uniform.

    Returns:
        The moved estimates inside the region, and the covariance about them.
    """
    now = linearize(problem, parameters, present)
    peak, spread = _parabola(problem, parameters, present, now)
    column = problem.active.index(2)
    middle = peak[..., column, :]
    variance = spread[..., column, :, column, :].diagonal(dim1=-2, dim2=-1).clamp_min(_TINY)
    distance, weight = _posterior(middle, variance.sqrt(), range_m)
    settled = _least_error(distance, weight)
    step = _followed(spread, column, settled - middle) + peak
    moved = parameters.double()
    columns = list(problem.active)
    moved[..., columns] = torch.where(present[..., None], step.mT, moved[..., columns])
    moved = problem.region.clamp(moved).to(parameters)
    moved = _taken_back(problem, parameters, moved, present, now.cost)
    left = (distance.reciprocal() - moved[..., 2, None]).square()
    error = (weight * left).sum(-1)
    known = covariance.isfinite().all(-1).all(-1) & error.isfinite() & present
    wider = covariance_about(covariance, error.to(covariance))
    return moved, torch.where(known[..., None, None], wider, covariance)


def _parabola(
    problem: Problem,
    parameters: Float[Tensor, "channel scene source 3"],
    present: Bool[Tensor, "channel scene source"],
    now: Linearization,
) -> tuple[
    Float[Tensor, "channel scene searched source"],
    Float[Tensor, "channel scene searched source searched source"],
]:
    """Where the likelihood's parabola has its peak, and its inverse curvature; float64."""
    n_searched, n_sources = len(problem.active), present.shape[-1]
    by_coordinate = (*now.cost.shape, n_searched, n_sources)
    noise_power = problem.noise_power.double()[..., None]
    curvature = now.curvature.double() / noise_power[..., None]
    diagonal = curvature.diagonal(dim1=-2, dim2=-1)
    blind = diagonal <= _TINY
    scale = torch.where(blind, 1.0, diagonal).rsqrt()
    scaled = (curvature * scale[..., None, :] * scale[..., None]).nan_to_num()
    inverse = torch.linalg.inv_ex(scaled + torch.diag_embed(blind + _RIDGE)).inverse
    spread = inverse * scale[..., None, :] * scale[..., None]
    here = parameters[..., list(problem.active)].double().mT  # (..., searched, source)
    low, high = problem.box[:, list(problem.active)].double()[..., None].unbind(0)
    slope = now.gradient.double().reshape(by_coordinate) / noise_power[..., None]
    # inside the region it has been climbed already; at its edge the peak may lie outside
    is_held = ((here <= low) & (slope > 0)) | ((here >= high) & (slope < 0))
    slope = torch.where(is_held, slope, 0.0).flatten(-2)
    step = -product(spread, slope[..., None])[..., 0].reshape(by_coordinate)
    return here + step, spread.reshape(*by_coordinate, n_searched, n_sources)


def _posterior(
    middle: Float[Tensor, "channel scene source"],
    deviation: Float[Tensor, "channel scene source"],
    range_m: Bounds,
) -> tuple[
    Float[Tensor, "channel scene source place"], Float[Tensor, "channel scene source place"]
]:
    """Ranges to try, and their probabilities."""
    nearest, farthest = range_m
    # a peak beyond the bounds: what is probable lies within as many deviations of the bound
    inside = middle.clamp(1.0 / farthest, 1.0 / nearest)
    low = (inside + _REACH * deviation).reciprocal().clamp_min(nearest)
    high = (inside - _REACH * deviation).clamp_min(1.0 / farthest).reciprocal()
    share = torch.linspace(0.0, 1.0, _N_PLACES, dtype=middle.dtype, device=middle.device)
    distance = low[..., None] + (high - low)[..., None] * share
    away = (distance.reciprocal() - middle[..., None]) / deviation[..., None]
    density = -0.5 * away.square()
    density[..., [0, -1]] -= math.log(2.0)  # half a cell each
    return distance, density.softmax(-1)


def _least_error(
    distance: Float[Tensor, "channel scene source place"],
    weight: Float[Tensor, "channel scene source place"],
) -> Float[Tensor, "channel scene source"]:
    """The inverse range of the least mean square of relative errors."""
    inverse = distance.reciprocal()
    settled: Tensor = (weight * inverse.square()).sum(-1) / (weight * inverse).sum(-1)
    return settled


def _followed(
    spread: Float[Tensor, "channel scene searched source searched source"],
    column: int,
    by: Float[Tensor, "channel scene source"],
) -> Float[Tensor, "channel scene searched source"]:
    """How far all coordinates go when the inverse ranges go so far."""
    own = spread[..., column, :, column, :]
    ridge = _RIDGE * own.diagonal(dim1=-2, dim2=-1)
    pull = torch.linalg.solve_ex(own + torch.diag_embed(ridge), by[..., None]).result
    along = spread[..., column, :]  # (..., searched, source, source)
    pulled = pull[..., None, :, :].expand(*along.shape[:-1], 1)
    return product(along, pulled)[..., 0]


def _taken_back(
    problem: Problem,
    before: Float[Tensor, "channel scene source 3"],
    after: Float[Tensor, "channel scene source 3"],
    present: Bool[Tensor, "channel scene source"],
    cost: Float[Tensor, "channel scene"],
) -> Float[Tensor, "channel scene source 3"]:
    """Moves halved, or in the end not made, while they cost too much likelihood."""
    share = torch.ones_like(cost)
    # what is no number is not moved
    after = torch.where(after.isfinite(), after, before)
    in_doubt = torch.ones_like(present[..., 0])
    for trial in range(_HALVINGS + 1):
        some = pack_scenes(in_doubt)
        if some.shape[1] == 0:
            break
        part, there = problem.take(some), take_scenes(present, some)
        start, end = take_scenes(before, some), take_scenes(after, some)
        tried = start + take_scenes(share, some)[..., None, None] * (end - start)
        loss = (explain(part, tried, there).cost - take_scenes(cost, some)) / part.noise_power
        too_much = ~(loss <= _MOST_LOSS * there.sum(-1))
        in_doubt = put_scenes(torch.zeros_like(in_doubt), too_much, some) & in_doubt
        share = torch.where(in_doubt, 0.5 * share if trial < _HALVINGS else 0.0 * share, share)
    return before + share[..., None, None] * (after - before)
