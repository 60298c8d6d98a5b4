r"""How sure an estimate is: the likelihood at it, and error bars from the likelihood's curvature.

The covariance is the Cramér-Rao bound at the estimate, with the estimated amplitudes. That is what
an estimator at the bound does if its model holds; where more power is left over than noise can
explain (a source was missed, the array is not as stated), error bars grow with it. Where symbols
are Gaussian, likelihood and bound are theirs, powers unknown.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from musicnet.estimation.linearization import explain, linearize
from musicnet.estimation.problem import Problem, pack_scenes, put_scenes, take_scenes
from musicnet.estimation.products import product
from musicnet.estimation.refinement import Model
from musicnet.estimation.symbol_likelihood import symbol_cost, symbol_information
from musicnet.scene.sources import Sources

# of the scaled information: below it two sources are one to all intents and purposes
_SMALLEST_EIGENVALUE = 1e-10
# deviations of the left-over power that are noise
_SURPRISE = 3.0


@dataclass(frozen=True)
class Confidence:
    """How well sources explain what was heard.

    Args:
        covariance: of (u, v, rho) of each source; 0 along what is fixed, NaN in empty slots.
        log_likelihood: natural logarithm, of everything that was heard.
    """

    covariance: Float[Tensor, "*batch source 3 3"]
    log_likelihood: Float[Tensor, "*batch"]


def assess(problem: Problem, sources: Sources) -> Confidence:
    """Evaluates the likelihood and its curvature.

    Args:
        problem: what was heard.
        sources: batch of the observation that the problem came from.

    Returns:
        Computed in double precision, given in that of the sources.
    """
    exact = _in_double(problem)
    parameters, present = filled(exact, sources)
    covariance = parameters.new_full((*present.shape, 3, 3), math.nan)
    log_likelihood = torch.full_like(exact.noise_power, math.nan)
    for width in by_width(present):
        some, chosen = width.some, width.chosen
        part = exact.take(some)
        around = _around(part, width.slots_of(parameters), width.slots_of(present))
        noise_power, n_free = part.noise_power, around.n_free.clamp_min(1.0)
        surplus = around.left / (noise_power * n_free)
        widened = torch.where(surplus > 1.0 + _SURPRISE * n_free.rsqrt(), surplus, 1.0)
        own = _covariance(part, around.curvature, width.n_slots)
        own = own * (noise_power * widened)[..., None, None, None]
        covariance = width.written(covariance, own)
        n_heard = exact.n_explicable + exact.n_unexplained
        total = (around.cost + part.unexplained) / noise_power
        likely = -total - n_heard * (math.pi * noise_power).log()
        log_likelihood = put_scenes(log_likelihood, likely, some, chosen)
    covariance = covariance.masked_fill(~present[..., None, None], math.nan)
    dtype = sources.parameters.dtype
    return Confidence(
        problem.unflatten(covariance.to(dtype)), problem.unflatten(log_likelihood.to(dtype))
    )


@dataclass(frozen=True)
class Width:
    """Scenes that need as many slots.

    Args:
        n_slots: up to the last that holds a source, at least one.
        some: index of each, filled up with others to one number per channel.
        chosen: those that are no filling.
    """

    n_slots: int
    some: Int[Tensor, "channel some"]
    chosen: Bool[Tensor, "channel some"]

    def slots_of(self, values: Tensor) -> Tensor:
        """What (channel, scene, source, ...) has of these scenes, in their slots."""
        return take_scenes(values, self.some)[:, :, : self.n_slots]

    def written(self, values: Tensor, new: Tensor) -> Tensor:
        """(channel, scene, source, ...) with new values of these scenes, in their slots."""
        wide = take_scenes(values, self.some)
        wide[:, :, : self.n_slots] = new
        return put_scenes(values, wide, self.some, self.chosen)


def by_width(present: Bool[Tensor, "channel scene source"]) -> Iterator[Width]:
    """Takes scenes of one number of slots at a time.

    In the slots of the fullest scene others would be rounded otherwise, and depend on it.

    Args:
        present: slots that hold a source, at least one slot.

    Yields:
        All scenes, each once.
    """
    numbers = torch.arange(1, present.shape[-1] + 1, device=present.device)
    widths = (present * numbers).amax(-1).clamp_min(1)
    for n_slots in sorted(set(widths.flatten().tolist())):
        is_such = widths == n_slots
        some = pack_scenes(is_such)
        yield Width(n_slots, some, take_scenes(is_such, some))


@dataclass(frozen=True)
class _Around:
    """The likelihood around sources.

    Args:
        cost: sigma^2 times minus the log-likelihood.
        left: power that is left over, and of Gaussian symbols what it was whitened to.
        n_free: numbers that it is the noise in.
        curvature: sigma^2 times the information on the positions.
    """

    cost: Float[Tensor, "channel scene"]
    left: Float[Tensor, "channel scene"]
    n_free: Float[Tensor, "channel scene"]
    curvature: Float[Tensor, "channel scene unknown unknown"]


def _around(
    problem: Problem,
    parameters: Float[Tensor, "channel scene source 3"],
    present: Bool[Tensor, "channel scene source"],
) -> _Around:
    if problem.log_powers is None:
        around = linearize(problem, parameters, present)
        n_amplitudes = around.amplitudes.shape[2] * problem.n_snapshots
        n_taken = present.sum(-1) * (n_amplitudes + 0.5 * len(problem.active))
        n_free = problem.n_explicable - n_taken
        return _Around(around.cost, around.cost, n_free, around.curvature)
    explained = explain(problem, parameters, present)
    log_power = -torch.where(present, explained.load, 1.0).log()
    information = symbol_information(problem, parameters, present, log_power)
    n_free = torch.full_like(problem.noise_power, problem.n_explicable)
    curvature = information.of_positions * problem.noise_power[..., None, None]
    cost = symbol_cost(problem, explained, present)
    return _Around(cost, explained.cost, n_free, curvature)


def covariance_by(
    model: Model, problem: Problem, sources: Sources
) -> Float[Tensor, "*batch source 3 3"]:
    """Error bars of a model of the amplitudes that is not the usual one.

    Args:
        model: the cost around sources.
        problem: what was heard, of known noise power.
        sources: batch of the observation that the problem came from.

    Returns:
        Covariance of (u, v, rho) of each source; 0 along what is fixed, NaN in empty slots.
    """
    exact = _in_double(problem)
    parameters, present = filled(exact, sources)
    covariance = parameters.new_full((*present.shape, 3, 3), math.nan)
    for width in by_width(present):
        part = exact.take(width.some)
        around = model(part, width.slots_of(parameters), width.slots_of(present))
        own = _covariance(part, around.curvature, width.n_slots)
        covariance = width.written(covariance, own * part.noise_power[..., None, None, None])
    covariance = covariance.masked_fill(~present[..., None, None], math.nan)
    return problem.unflatten(covariance.to(sources.parameters.dtype))


def filled(
    problem: Problem, sources: Sources
) -> tuple[Float[Tensor, "channel scene source 3"], Bool[Tensor, "channel scene source"]]:
    """Sources in the layout of a problem, finite in every slot.

    Args:
        problem: whose layout.
        sources: batch of the observation that the problem came from.

    Returns:
        (u, v, rho), the region's middle in empty slots; and which slots hold a source.
    """
    middle = problem.box.mean(0)
    parameters = sources.parameters.to(middle)
    parameters = torch.where(sources.resolved[..., None], parameters, middle)
    return problem.flatten(parameters), problem.flatten(sources.resolved)


def _covariance(
    problem: Problem, curvature: Float[Tensor, "channel scene unknown unknown"], n_slots: int
) -> Float[Tensor, "channel scene source 3 3"]:
    """Inverse of the information for unit noise power, each source with all others unknown."""
    searched = list(problem.active)
    # rounding leaves ten digits: a zero diagonal is an empty slot, or a coordinate without effect
    diagonal = curvature.diagonal(dim1=-2, dim2=-1)
    blind = diagonal <= 0
    scale = torch.where(blind, 1.0, diagonal).rsqrt()
    scaled = curvature * scale[..., :, None] * scale[..., None, :]
    spoilt = ~scaled.isfinite().all(-1).all(-1)
    scaled = scaled.masked_fill(spoilt[..., None, None], 0.0)
    values, vectors = torch.linalg.eigh(scaled + torch.diag_embed(blind.to(scaled.dtype)))
    root = vectors * values.clamp_min(_SMALLEST_EIGENVALUE).rsqrt()[..., None, :]
    scale = torch.where(blind, math.inf, scale).masked_fill(spoilt[..., None], math.nan)
    own = _own_blocks(root, len(searched), n_slots)
    sizes = scale.reshape(*scale.shape[:-1], len(searched), n_slots).mT  # (..., source, searched)
    # an infinite variance times an exact zero correlation is still no number
    own = torch.where(own == 0, 0.0, own * sizes[..., :, None] * sizes[..., None, :])
    covariance = own.new_zeros((*own.shape[:-2], 3, 3))
    rows = torch.tensor(searched, device=own.device)
    covariance[..., rows[:, None], rows] = own
    return covariance


def _own_blocks(
    root: Float[Tensor, "channel scene unknown direction"], n_searched: int, n_slots: int
) -> Float[Tensor, "channel scene source searched searched"]:
    """Each source's own block of root root^T; unknowns are ordered coordinate by coordinate."""
    shape = (*root.shape[:-2], n_searched, n_slots, root.shape[-1])
    lines = root.reshape(shape).transpose(-3, -2)
    return product(lines, lines.mT)


def _in_double(problem: Problem) -> Problem:
    return replace(
        problem,
        y=problem.y.to(torch.complex128),
        operator=None if problem.operator is None else problem.operator.to(torch.complex128),
        positions=problem.positions.double(),
        noise_power=problem.noise_power.double(),
        unexplained=problem.unexplained.double(),
    )
