r"""Sources that send one waveform, in phase and equally loud: one signature for all of them.

Where it is known that all amplitudes of a snapshot are the same, K amplitudes are one:

.. math:: y_t = s_t \, b + n_t, \quad b = \sum_k G a(p_k), \quad
   c = \sum_t \|y_t\|^2 - \frac{|b^H y_t|^2}{\|b\|^2}

What least squares with amplitudes of their own would spend on K - 1 more of them in every snapshot
goes into directions. Phases refer to the origin of the elements' places.
"""

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from musicnet.estimation.dictionary import Dictionary
from musicnet.estimation.found import Found, nothing
from musicnet.estimation.linearization import Linearization
from musicnet.estimation.problem import Problem
from musicnet.estimation.refinement import refine
from musicnet.estimation.signatures import signatures, signatures_and_slopes

_GROWTH_STEPS, _STEPS, _LAST_STEPS = 3, 8, 12
_SWEEPS = 2
_TINY = 1e-30


def linearize_together(
    problem: Problem,
    parameters: Float[Tensor, "channel scene source 3"],
    present: Bool[Tensor, "channel scene source"],
) -> Linearization:
    """Fits the one amplitude of each snapshot, and finds how the cost changes as sources move.

    Args:
        problem: what has to be explained.
        parameters: (u, v, rho), finite in every slot.
        present: slots that hold a source.

    Returns:
        Cost, gradient and Gauss-Newton matrix along the searched coordinates; the amplitudes are
        those of the waveform, for every source.
    """
    n_sources = present.shape[-1]
    lines = signatures_and_slopes(problem, parameters, present)
    together, slopes = lines[..., :n_sources, :].sum(-2), lines[..., n_sources:, :]
    norm = _power(together).clamp_min(_TINY)
    waveform = (problem.y @ together.conj()[..., None])[..., 0] / norm[..., None]
    residual = problem.y - waveform[..., None] * together[..., None, :]
    along = (slopes @ together.conj()[..., None]) / norm[..., None, None]
    slopes = slopes - along * together[..., None, :]
    # (line, snapshot) products with the residual, and with each other
    pull = (slopes.conj() @ residual.mT) @ waveform.conj()[..., None]
    loudness = _power(waveform)[..., None, None]
    curvature = (slopes.conj() @ slopes.mT).real * loudness
    return Linearization(
        _power(residual.flatten(2)),
        -2.0 * pull[..., 0].real.sum(2),
        2.0 * curvature.sum(2),
        waveform[..., None, :].expand(*waveform.shape[:-1], n_sources, -1),
    )


def find_together(
    problem: Problem, dictionary: Dictionary, counts: Int[Tensor, "channel scene"]
) -> Found:
    """Greedy search with one waveform for all, and every source placed anew afterwards.

    Args:
        problem: what has to be explained.
        dictionary: cells to try.
        counts: sources of each scene.

    Returns:
        As many sources as asked; the cost is that of one waveform.
    """
    found = nothing(problem)
    middle = problem.box.mean(0)
    for slot in range(int(counts.max())):
        wider = Found(
            torch.cat((found.parameters, middle.expand(*counts.shape, 1, 3)), dim=2),
            torch.cat((found.present, (counts > slot)[..., None]), dim=2),
            found.cost,
        )
        found = _refined(problem, _placed(problem, dictionary, wider, slot), _GROWTH_STEPS)
    for _ in range(_SWEEPS):
        again = found
        for slot in range(found.present.shape[-1]):
            again = _placed(problem, dictionary, again, slot)
        again = _refined(problem, again, _STEPS)
        found = found.chosen(again.cost < found.cost, again)
    return _refined(problem, found, _LAST_STEPS)


def _refined(problem: Problem, found: Found, n_steps: int) -> Found:
    refined = refine(problem, found.parameters, found.present, n_steps, linearize_together)
    return Found(refined.parameters, found.present, refined.cost)


def _placed(problem: Problem, dictionary: Dictionary, found: Found, slot: int) -> Found:
    """One source of each scene moved to the best cell, if that is better than where it is."""
    lines = signatures(problem, found.parameters, found.present)
    others = lines.sum(-2) - lines[..., slot, :]
    cells = _cells(dictionary)
    heard = torch.cat((problem.y, others[..., None, :]), dim=-2)
    # all that depends on a cell, as one product: d^H y of each snapshot, and d^H b of the others
    products = heard @ cells.mH[:, None]
    power = _power(others)[..., None] + dictionary.power[:, None]
    power = power + 2.0 * products[..., -1, :].real
    own = (problem.y @ others.conj()[..., None]) + products[..., :-1, :]
    explained = (_squared(own).sum(-2) / power.clamp_min(_TINY)).sum(2)
    best = dictionary.cells[explained.argmax(-1)]
    parameters = found.parameters.clone()
    parameters[..., slot, :] = best
    moved = Found(parameters, found.present, found.cost)
    return found.chosen(_cost(problem, moved) < _cost(problem, found), moved)


def _cells(dictionary: Dictionary) -> Complex[Tensor, "channel blocks cell row"]:
    real, imaginary = dictionary.parts.mT.chunk(2, dim=-1)
    return torch.complex(real.contiguous(), imaginary.contiguous())


def _cost(problem: Problem, found: Found) -> Float[Tensor, "channel scene"]:
    together = signatures(problem, found.parameters, found.present).sum(-2)
    heard = _squared(problem.y @ together.conj()[..., None])[..., 0].sum(-1)
    explained = heard / _power(together).clamp_min(_TINY)
    return _power(problem.y.flatten(2)) - explained.sum(-1)


def _squared(values: Tensor) -> Tensor:
    return torch.view_as_real(values).square().sum(-1)


def _power(values: Tensor) -> Tensor:
    """Of the last axis."""
    return _squared(values).sum(-1)
