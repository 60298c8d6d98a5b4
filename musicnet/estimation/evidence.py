r"""How many sources, by the evidence for them: a BIC whose penalty is derived, not chosen.

Positions have a flat prior over the region, amplitudes a complex Gaussian one whose power, per
source, is unknown over a wide range. Laplace's method then gives for K sources

.. math:: L_K = -\frac{c_K}{\sigma^2} - T \sum_q \log\det\frac{B_q^H B_q}{\sigma^2}
   - \sum_k \Big(n \log (e \gamma_k) + \frac12 \log\frac{n}{2\pi} + \log\Lambda\Big)
   - \frac12 \log\det\Big(I + \frac{V J V}{2\pi}\Big) + \log K!

with c_K the cost, n = Q T amplitudes per source, :math:`\gamma_k` their mean power, J the
information on the positions, V the widths of the region, :math:`\Lambda` the width of the prior of
log power; K! counts the orders of the same sources. A source that explains the power x, in units
of noise, gains :math:`x - n (1 + \log(x / n))` by its amplitudes: what noise would explain is taken
off. Below x = n, where the stated noise power must be too high, that would rise again; so gamma_k
is at least what noise alone lends an amplitude, and such a source loses. No covariance of full rank
is needed, so that coherent sources count like any others.

An unknown noise power is integrated out under Jeffreys' prior: with n_f = all numbers less K n,
:math:`-c_K / \sigma^2` becomes :math:`\log\Gamma(n_f) - n_f \log c_K`.
"""

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from musicnet.estimation.dictionary import Dictionary
from musicnet.estimation.found import Found, finish, is_settled, nothing
from musicnet.estimation.linearization import explain, linearize
from musicnet.estimation.problem import Problem
from musicnet.estimation.pursuit import append
from musicnet.estimation.redetection import redetect
from musicnet.estimation.spectrum import SearchGrid

# nepers of power over which a source is equally likely: 170 dB, as good as anything
_POWER_SPREAD = 40.0
# growing goes on so far beyond the best number: coherent sources may show in pairs only
_LOOKAHEAD = 2
_STARTS = 2
_TINY = 1e-30


def pursue(
    problem: Problem,
    grid: SearchGrid | None,
    most_sources: int,
    *,
    is_noise_known: bool = True,
) -> Found:
    """Pursuit of an unknown number of sources: as many as have the most evidence.

    Args:
        problem: what has to be explained.
        grid: cells to try; None lays one that suits the aperture.
        most_sources: slots of the answer.
        is_noise_known: whether the problem's noise power can be relied on; else the evidence is
            that of any noise power.

    Returns:
        Sources of each scene; none where noise explains everything, or in scenes that are not
        finite.
    """
    dictionary = Dictionary.over(problem, grid)
    found = nothing(problem)
    highest = log_evidence(problem, found, is_noise_known=is_noise_known)
    best, wanted = found, highest.isfinite()
    for _ in range(most_sources):
        found = append(problem, dictionary, found, wanted)
        doubtful = wanted & ~is_settled(problem, found) if is_noise_known else wanted
        found = redetect(problem, dictionary, found, doubtful, _STARTS)
        evidence = log_evidence(problem, found, is_noise_known=is_noise_known)
        better = wanted & (evidence > highest)
        highest = torch.where(better, evidence, highest)
        best = _choose(better, found, best)
        wanted = wanted & (found.present.sum(-1) - best.present.sum(-1) < _LOOKAHEAD)
    return finish(problem, best)


def log_evidence(
    problem: Problem, found: Found, *, is_noise_known: bool = True
) -> Float[Tensor, "channel scene"]:
    """How well sources explain what was heard, less what so many would explain by chance.

    Args:
        problem: what was heard.
        found: sources of each scene, near a minimum of the cost.
        is_noise_known: whether the problem's noise power can be relied on.

    Returns:
        Natural logarithm, up to a number that is the same whatever the sources; float64.
    """
    present, n_slots = found.present, found.present.shape[-1]
    n_sources = present.sum(-1).double()
    n_amplitudes = problem.y.shape[2] * problem.n_snapshots
    n_free = (problem.n_explicable + problem.n_unexplained - n_amplitudes * n_sources).clamp_min(1)
    if n_slots == 0:
        return _misfit(problem, found.cost.double(), n_free, is_noise_known=is_noise_known)
    around = linearize(problem, found.parameters, present)
    cost = around.cost.double()
    noise_power = problem.noise_power.double()
    if not is_noise_known:
        noise_power = (cost + problem.unexplained) / n_free
    explained = explain(problem, found.parameters, present)
    least = explained.amplitude_spread * noise_power[..., None]
    amplitudes = problem.n_snapshots * explained.log_volume.double()
    amplitudes = amplitudes + _log_power(around.amplitudes, present, n_amplitudes, least)
    if is_noise_known:  # otherwise n_free has it
        amplitudes = amplitudes - n_amplitudes * n_sources * noise_power.log()
    powers = n_sources * (0.5 * math.log(n_amplitudes / (2.0 * math.pi)) + math.log(_POWER_SPREAD))
    information = around.curvature.double() / noise_power[..., None, None]
    positions = log_cells(problem, information)
    misfit = _misfit(problem, cost, n_free, is_noise_known=is_noise_known)
    return misfit - amplitudes - powers - positions + torch.lgamma(n_sources + 1.0)


def _misfit(
    problem: Problem,
    cost: Float[Tensor, "channel scene"],
    n_free: Float[Tensor, "channel scene"],
    *,
    is_noise_known: bool,
) -> Float[Tensor, "channel scene"]:
    if is_noise_known:
        return -cost / problem.noise_power
    return torch.lgamma(n_free) - n_free * (cost + problem.unexplained).clamp_min(_TINY).log()


def _log_power(
    amplitudes: Complex[Tensor, "channel scene blocks source snapshot"],
    present: Tensor,
    n_amplitudes: int,
    least: Float[Tensor, "channel scene source"],
) -> Float[Tensor, "channel scene"]:
    """Sum of n log (e gamma) over the sources that are there, gamma at least what noise lends."""
    power = torch.view_as_real(amplitudes).square().sum((2, 4, 5)).double() / n_amplitudes
    per_source = n_amplitudes * (torch.maximum(power, least).clamp_min(_TINY).log() + 1.0)
    return per_source.masked_fill(~present, 0.0).sum(-1)


def log_cells(
    problem: Problem, information: Float[Tensor, "channel scene unknown unknown"]
) -> Float[Tensor, "channel scene"]:
    """How many distinguishable places the region has for all sources of a scene together.

    Args:
        problem: knows the region.
        information: on all unknowns; 0 for empty slots.

    Returns:
        Natural logarithm, >= 0.
    """
    low, high = problem.box[:, list(problem.active)].double().unbind(0)
    n_slots = information.shape[-1] // len(low)
    width = (high - low).repeat_interleave(n_slots) / math.sqrt(2.0 * math.pi)
    scaled = information * width[:, None] * width
    ones = torch.ones_like(scaled[..., 0])
    factor = torch.linalg.cholesky_ex(scaled + torch.diag_embed(ones)).L
    cells: Tensor = factor.diagonal(dim1=-2, dim2=-1).clamp_min(1.0).log().sum(-1)
    return cells


def _choose(better: Tensor, new: Found, old: Found) -> Found:
    """The new sources where they are better, else the old ones in as many slots."""
    missing = new.present.shape[-1] - old.present.shape[-1]
    parameters = torch.cat((old.parameters, new.parameters[:, :, :missing]), dim=2)
    none = torch.zeros_like(new.present[:, :, :missing])
    present = torch.cat((old.present, none), dim=2)
    return Found(
        torch.where(better[..., None, None], new.parameters, parameters),
        torch.where(better[..., None], new.present, present),
        torch.where(better, new.cost, old.cost),
    )
