r"""Other places of coherent sources in the near field, and which of them are more probable.

A signal subspace of fewer dimensions than sources is explained by many sets of sources, the more of
them the more coordinates are searched. The likelihood likes those best that are close, loud, and
cancel. With amplitudes as probable on any scale,

.. math:: -\log p = \frac{c}{\sigma^2} + K \log \sum_k |s_k|^2

up to what is the same for all sets of K sources; see `musicnet.estimation.subspace_fitting`.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from musicnet.estimation.dictionary import Dictionary
from musicnet.estimation.found import Found
from musicnet.estimation.linearization import Explanation, explain
from musicnet.estimation.problem import Problem
from musicnet.estimation.redetection import redetect
from musicnet.estimation.refinement import refine

_STARTS, _PAIRS = 3, 16
_STEPS = 8
# of an amplitude's variance, in that of a lone source: sources that are hard to tell apart
_ENTANGLED = 1.5
_TINY = 1e-30


def look_elsewhere(
    problem: Problem,
    dictionary: Dictionary,
    found: Found,
    wanted: Bool[Tensor, "channel scene"],
) -> Found:
    """Starts every source anew, and pairs where sources are entangled; the most probable stay.

    Args:
        problem: a signal subspace of each scene.
        dictionary: cells to try.
        found: sources so far.
        wanted: scenes with fewer dimensions than sources; the others stay as they are.

    Returns:
        As many sources.
    """
    found = redetect(problem, dictionary, found, wanted, _STARTS, misfit=improbability)
    tight = wanted & _is_entangled(problem, found)
    found = redetect(problem, dictionary, found, tight, _PAIRS, 2, misfit=improbability)
    refined = refine(problem, found.parameters, found.present, _STEPS)
    better = Found(refined.parameters, found.present, refined.cost)
    gain = improbability(problem, found) - improbability(problem, better)
    return found.chosen(wanted & (gain > 0), better)


def improbability(problem: Problem, found: Found) -> Float[Tensor, "channel scene"]:
    """Minus the logarithm of how probable these sources are.

    Args:
        problem: a signal subspace of each scene.
        found: sources of each.

    Returns:
        Nepers; comparable between answers of as many sources to one scene.
    """
    explained = explain(problem, found.parameters, found.present)
    power = torch.view_as_real(explained.amplitudes).square().flatten(2).sum(-1)
    scale = found.present.sum(-1) * (power / problem.noise_power).clamp_min(_TINY).log()
    return explained.cost / problem.noise_power + scale


def _is_entangled(problem: Problem, found: Found) -> Bool[Tensor, "channel scene"]:
    explained: Explanation = explain(problem, found.parameters, found.present)
    alone = 1.0 / problem.y.shape[-1]
    spread = explained.amplitude_spread.masked_fill(~found.present, 0.0).amax(-1)
    return spread > _ENTANGLED * alone
