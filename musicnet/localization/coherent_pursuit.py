"""Pursuit in all snapshots, or in what the sources have in common where they send one waveform.

Least squares over all snapshots gives every source an amplitude of its own in each of them.
Coherent sources have one waveform: the strongest dimension of the snapshots holds all of it, and
what lies beside is noise that the freedom would explain. Where sources are known to arrive in phase
and equally loud, even that one amplitude is shared. Which scenes are coherent, a trained network
says; where it is not sure, all snapshots are searched, since a wrong subspace costs more than the
right one wins.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from musicnet.estimation.covariance_clues import CovarianceClues
from musicnet.estimation.dictionary import Dictionary
from musicnet.estimation.found import Found, nothing
from musicnet.estimation.one_waveform import find_together
from musicnet.estimation.problem import Problem, pack_scenes, take_scenes
from musicnet.estimation.pursuit import grow
from musicnet.estimation.redetection import redetect
from musicnet.estimation.refinement import refine
from musicnet.estimation.subspace_fitting import with_cost
from musicnet.networks.coherence import CoherenceHead

# log-odds from which a scene passes for coherent
_SURE = 2.0
# sources so close, in radians of the aperture's ends, that they take so many more
_CLOSE, _MORE_STEPS = 3.0, 7
_STARTS = 3
# share of a source's power that the other end of a sector explains, from which it may pass for it
_ALIAS = 0.25
_END, _END_STEPS = 1.5, 4  # radians of the aperture's ends
# standard deviations of what noise leaves, from which a residual is not noise
_DOUBT = 3.0


@dataclass(frozen=True)
class Pace:
    """How thoroughly places are searched.

    Args:
        growth_steps: of refinement after each new source.
        steps: of refinement over all sources.
        pairs: of cells, that are tried for two sources taken out.
    """

    growth_steps: int
    steps: int
    pairs: int


_FAR = Pace(growth_steps=3, steps=4, pairs=4)


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
    is_coherent = is_one_waveform(head, problem, clues, counts)
    dictionary = Dictionary.over(problem, None)
    n_slots = int(counts.max())
    if not are_alike:
        found = find_apart(*_mixed(problem, clues, is_coherent), dictionary, counts)
        return with_cost(problem, found, n_slots), is_coherent
    n_snapshots = torch.full_like(counts, problem.n_snapshots)
    found = find_apart(problem, n_snapshots, dictionary, counts.masked_fill(is_coherent, 0))
    found = with_cost(problem, found, n_slots)
    some = pack_scenes(is_coherent)
    if some.shape[1]:
        part = problem.take(some)
        alone = clues.take(some).strongest_alone(part)
        better = find_together(alone, dictionary, take_scenes(counts, some))
        better = with_cost(part, better, n_slots)
        found = found.replaced(better, some, take_scenes(is_coherent, some))
    return found, is_coherent


def is_one_waveform(
    head: CoherenceHead,
    problem: Problem,
    clues: CovarianceClues,
    counts: Int[Tensor, "channel scene"],
) -> Bool[Tensor, "channel scene"]:
    """Which scenes the network is sure of.

    Args:
        head: trained.
        problem: snapshots of a plain array.
        clues: to the problem.
        counts: sources of each scene.

    Returns:
        False where a wrong subspace would cost more than the right one wins.
    """
    log_odds: Tensor = head(clues, problem.n_snapshots, counts)
    return (log_odds > _SURE) & (counts > 1) & (problem.n_snapshots > 1)


def find_apart(
    problem: Problem,
    n_snapshots: Int[Tensor, "channel scene"],
    dictionary: Dictionary,
    counts: Int[Tensor, "channel scene"],
    pace: Pace = _FAR,
) -> Found:
    """Greedy pursuit, each source with amplitudes of its own, anew where the residual is no noise.

    Args:
        problem: all snapshots, or their strongest dimension.
        n_snapshots: how many they stand for.
        dictionary: cells to try.
        counts: sources of each scene.
        pace: how thoroughly.

    Returns:
        As many sources as asked.
    """
    if int(counts.max()) == 0:
        return nothing(problem)
    found = _refined(problem, grow(problem, dictionary, counts, pace.growth_steps), pace.steps)
    some = pack_scenes(_is_close(problem, found))
    if some.shape[1]:
        better = _refined(problem.take(some), found.take(some), _MORE_STEPS)
        found = found.replaced(better, some, torch.ones_like(some, dtype=torch.bool))
    if _do_ends_alias(problem, dictionary):
        found = _from_other_end(problem, found)
    for n_starts, n_out in ((_STARTS, 1), (pace.pairs, 2)):
        doubtful = _is_doubtful(problem, found, n_snapshots)
        found = redetect(problem, dictionary, found, doubtful, n_starts, n_out)
    return found


def _mixed(
    problem: Problem, clues: CovarianceClues, is_coherent: Bool[Tensor, "channel scene"]
) -> tuple[Problem, Int[Tensor, "channel scene"]]:
    """Coherent scenes with their strongest dimension, the others with all of their snapshots.

    In one problem, since searching two costs more than a few empty snapshots; beside it how many
    snapshots each scene has.
    """
    n_snapshots = torch.where(is_coherent, 1, problem.n_snapshots)
    if not bool(is_coherent.any()):
        return problem, n_snapshots
    alone = clues.strongest_alone(problem)
    if bool(is_coherent.all()):
        return alone, n_snapshots
    strongest = torch.zeros_like(problem.y)
    strongest[:, :, :, :1] = alone.y
    y = torch.where(is_coherent[..., None, None, None], strongest, problem.y)
    return replace(problem, y=y), n_snapshots


def _is_doubtful(
    problem: Problem, found: Found, n_snapshots: Int[Tensor, "channel scene"]
) -> Bool[Tensor, "channel scene"]:
    """Whether more is left than noise leaves."""
    n_sources = found.present.sum(-1)
    freedom = n_snapshots * (problem.y.shape[-1] - n_sources)
    freedom = (freedom - 0.5 * len(problem.active) * n_sources).clamp_min(1).to(found.cost)
    return found.cost / problem.noise_power > freedom + _DOUBT * freedom.sqrt()


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


def _do_ends_alias(problem: Problem, dictionary: Dictionary) -> bool:
    """Whether a source at one end of the sector looks like one at the other, as at +-90 degrees."""
    if problem.active != (0,) or problem.operator is not None:
        return False
    ends = dictionary.parts[0, 0][:, [0, -1]]  # real above imaginary parts
    real, imaginary = ends.chunk(2)
    first, last = torch.complex(real, imaginary).unbind(-1)
    return float((first.conj() @ last).abs() / len(first)) ** 2 > _ALIAS


def _from_other_end(problem: Problem, found: Found) -> Found:
    """The source nearest to an end of the sector, also from the other end; the better fit stays."""
    (low, *_), (high, *_) = problem.box.tolist()
    u = found.parameters[..., 0]
    inside = torch.minimum(u - low, high - u).masked_fill(~found.present, torch.inf)
    nearest, slot = inside.min(-1, keepdim=True)
    some = pack_scenes(nearest[..., 0] < _END * problem.resolution[0])
    if some.shape[1] == 0:
        return found
    part, before, slot = problem.take(some), found.take(some), take_scenes(slot, some)
    other = torch.where(before.parameters[..., 0].gather(-1, slot) < 0.5 * (low + high), high, low)
    moved = before.parameters.clone()
    moved[..., 0] = moved[..., 0].scatter(-1, slot, other)
    tried = _refined(part, Found(moved, before.present, before.cost), _END_STEPS)
    return found.replaced(tried, some, tried.cost < before.cost)
