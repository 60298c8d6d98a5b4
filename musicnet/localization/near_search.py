r"""Pursuit by coherence where ranges are searched, too, and more places look alike.

The one waveform of coherent sources is explained by many sets of them, the more the more
coordinates are searched. The likelihood likes those best that are close, loud, and cancel. With
amplitudes as probable on any scale,

.. math:: -\log p = \frac{c}{\sigma^2} + K \log \sum_k |s_k|^2

up to what is the same for all sets of K sources; see `musicnet.estimation.subspace_fitting`.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from musicnet.estimation.covariance_clues import CovarianceClues
from musicnet.estimation.dictionary import Dictionary
from musicnet.estimation.found import Found, nothing
from musicnet.estimation.linearization import Explanation, explain
from musicnet.estimation.problem import Problem, pack_scenes, take_scenes
from musicnet.estimation.redetection import redetect
from musicnet.estimation.refinement import refine
from musicnet.estimation.subspace_fitting import with_cost
from musicnet.localization.coherent_pursuit import Pace, find_apart, is_one_waveform
from musicnet.networks.coherence import CoherenceHead

_APART = Pace(growth_steps=1, steps=5, pairs=4)
_TOGETHER = Pace(growth_steps=1, steps=5, pairs=16)
_STARTS, _FEW_STARTS = 3, 2
_STEPS = 8
# of an amplitude's variance, in that of a lone source: sources that are hard to tell apart
_ENTANGLED = 1.5
_TINY = 1e-30


@torch.no_grad()
def pursue_near(
    head: CoherenceHead, problem: Problem, counts: Int[Tensor, "channel scene"]
) -> tuple[Found, Bool[Tensor, "channel scene"]]:
    """Finds sources in all snapshots, or in the one waveform where the network says so.

    Args:
        head: trained.
        problem: snapshots of a plain array.
        counts: sources of each scene, at least one somewhere.

    Returns:
        As many sources as asked, their cost that of all snapshots; and which scenes were searched
        as coherent ones.
    """
    dictionary = Dictionary.over(problem, None)
    n_slots, n_snapshots = int(counts.max()), torch.full_like(counts, problem.n_snapshots)
    if n_slots < 2 or problem.n_snapshots < 2:  # nothing to agree with
        found = find_apart(problem, n_snapshots, dictionary, counts, _APART)
        return found, torch.zeros_like(counts, dtype=torch.bool)
    clues = CovarianceClues.of(problem)
    is_coherent = is_one_waveform(head, problem, clues, counts)
    is_other = ~is_coherent & (counts > 0)
    others = pack_scenes(is_other)
    middle = problem.box.mean(0).expand(*counts.shape, n_slots, 3)
    absent = torch.zeros_like(middle[..., 0], dtype=torch.bool)
    found = Found(middle, absent, nothing(problem).cost)
    if others.shape[1]:
        part, n_some = problem.take(others), take_scenes(counts, others)
        better = find_apart(part, take_scenes(n_snapshots, others), dictionary, n_some, _APART)
        better = redetect(part, dictionary, better, _is_entangled(part, better), _FEW_STARTS)
        better = with_cost(part, better, n_slots)
        found = found.replaced(better, others, take_scenes(is_other, others))
    some = pack_scenes(is_coherent)
    if some.shape[1]:
        part, n_some = problem.take(some), take_scenes(counts, some)
        alone = clues.take(some).strongest_alone(part)
        better = find_apart(alone, torch.ones_like(n_some), dictionary, n_some, _TOGETHER)
        better = look_elsewhere(alone, dictionary, better, n_some > 1)
        better = with_cost(part, better, n_slots)
        found = found.replaced(better, some, take_scenes(is_coherent, some))
    return found, is_coherent


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
    found = redetect(problem, dictionary, found, tight, _TOGETHER.pairs, 2, misfit=improbability)
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
