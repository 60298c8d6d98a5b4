"""Pursuit in all snapshots, or in what the sources have in common where they send one waveform.

Least squares over all snapshots gives every source an amplitude of its own in each of them.
Coherent sources have one waveform: the strongest dimension of the snapshots holds all of it, and
what lies beside is noise that the freedom would explain. Where sources are known to arrive in phase
and equally loud, even that one amplitude is shared. Which scenes are coherent, a trained network
says; where it is not sure, all snapshots are searched, since a wrong subspace costs more than the
right one wins.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from musicnet.estimation.covariance_clues import CovarianceClues
from musicnet.estimation.dictionary import Dictionary
from musicnet.estimation.found import Found, surplus
from musicnet.estimation.one_waveform import find_together
from musicnet.estimation.problem import Problem, pack_scenes, take_scenes
from musicnet.estimation.pursuit import grow
from musicnet.estimation.redetection import redetect
from musicnet.estimation.refinement import refine
from musicnet.estimation.subspace_fitting import with_cost
from musicnet.localization.near_search import look_elsewhere
from musicnet.networks.coherence import CoherenceHead

# log-odds from which a scene passes for coherent
_SURE = 2.0
_GROWTH_STEPS, _STEPS = 2, 5
# sources so close, in radians of the aperture's ends, that they take so many more
_CLOSE, _MORE_STEPS = 3.0, 8
# standard deviations of what noise leaves, from which a residual is not noise
_DOUBT = 3.0
_STARTS, _PAIRS = 3, 4
# with a range to search as well, more pairs of cells look alike
_NEAR_PAIRS = 16


@torch.no_grad()
def pursue_by_coherence(
    head: CoherenceHead,
    problem: Problem,
    counts: Int[Tensor, "channel scene"],
    *,
    are_alike: bool = False,
) -> tuple[Found, Bool[Tensor, "channel scene"]]:
    """Finds sources in what the network says is best.

    Args:
        head: trained.
        problem: snapshots of a plain array.
        counts: sources of each scene, at least one somewhere.
        are_alike: coherent sources arrive in phase and equally loud, see `Scene.is_alike`.

    Returns:
        As many sources as asked, their cost that of all snapshots; and which scenes were searched
        as coherent ones.
    """
    clues = CovarianceClues.of(problem)
    is_coherent = (counts > 1) & (problem.n_snapshots > 1)
    is_coherent &= head(clues, problem.n_snapshots, counts) > _SURE
    dictionary = Dictionary.over(problem, None)
    n_slots = int(counts.max())
    middle = problem.box.mean(0).expand(*counts.shape, n_slots, 3)
    found = Found(middle, torch.zeros_like(middle[..., 0], dtype=torch.bool), middle[..., 0, 0])
    for wanted in (~is_coherent, is_coherent):
        some = pack_scenes(wanted)
        if some.shape[1] == 0:
            continue
        part, n_some = problem.take(some), take_scenes(counts, some)
        if wanted is is_coherent:
            strongest = clues.take(some).strongest_alone(part)
            search = find_together if are_alike else find_apart
            better = search(strongest, dictionary, n_some)
        else:
            better = find_apart(part, dictionary, n_some)
        better = with_cost(part, better, n_slots)
        found = found.replaced(better, some, take_scenes(wanted, some))
    return found, is_coherent


def find_apart(
    problem: Problem,
    dictionary: Dictionary,
    counts: Int[Tensor, "channel scene"],
) -> Found:
    """Greedy pursuit, each source with amplitudes of its own, anew where the residual is no noise.

    Args:
        problem: all snapshots, or their strongest dimension.
        dictionary: cells to try.
        counts: sources of each scene.

    Returns:
        As many sources as asked.
    """
    grown = grow(problem, dictionary, counts, _GROWTH_STEPS)
    found = _refined(problem, grown, _STEPS)
    some = pack_scenes(_is_close(problem, found))
    if some.shape[1]:
        better = _refined(problem.take(some), found.take(some), _MORE_STEPS)
        found = found.replaced(better, some, torch.ones_like(some, dtype=torch.bool))
    is_near = len(problem.active) > 1
    n_pairs = _NEAR_PAIRS if is_near else _PAIRS
    for n_starts, n_out in ((_STARTS, 1), (n_pairs, 2)):
        found = redetect(problem, dictionary, found, _is_doubtful(problem, found), n_starts, n_out)
    if is_near:
        found = look_elsewhere(problem, dictionary, found, problem.n_snapshots < counts)
    return found


def _is_doubtful(problem: Problem, found: Found) -> Bool[Tensor, "channel scene"]:
    return surplus(problem, found) > _DOUBT


def _refined(problem: Problem, found: Found, n_steps: int) -> Found:
    refined = refine(problem, found.parameters, found.present, n_steps)
    return Found(refined.parameters, found.present, refined.cost)


def _is_close(problem: Problem, found: Found) -> Bool[Tensor, "channel scene"]:
    """Whether any two sources are hard to tell apart, so that their refinement is slow."""
    places = found.parameters / problem.resolution
    apart = (places[:, :, :, None] - places[:, :, None]).abs().amax(-1)
    pairs = found.present[..., None] & found.present[..., None, :]
    pairs = pairs.tril(-1)
    return ((apart < _CLOSE) & pairs).flatten(2).any(-1)
