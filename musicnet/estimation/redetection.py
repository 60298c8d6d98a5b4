"""Sources that were found are taken out again, and started anew from better places.

Pursuit leaves sources merged that stand close together, or one of them where nothing is. Taking out
one source at a time repairs most of that; two at a time the rest.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from musicnet.estimation.dictionary import Dictionary
from musicnet.estimation.found import Found
from musicnet.estimation.linearization import Explanation, explain
from musicnet.estimation.pairs import best_pairs
from musicnet.estimation.peaks import find_peaks
from musicnet.estimation.problem import Problem, pack_scenes, take_scenes
from musicnet.estimation.refinement import refine

_STEPS = 4
# a trial has to win by more than what further steps would bring anyway
_LEAST_WIN = 1e-3
_LEAST_WIN_NEPERS = 0.05
# trials that are refined at a time, to bound the memory
_TRIALS = 8192

Misfit = Callable[[Problem, Found], Float[Tensor, "channel scene"]]
"""How badly sources fit; nepers."""


def redetect(
    problem: Problem,
    dictionary: Dictionary,
    found: Found,
    wanted: Bool[Tensor, "channel scene"],
    n_starts: int,
    n_out: int = 1,
    *,
    sets: Bool[Tensor, "set out source"] | None = None,
    misfit: Misfit | None = None,
) -> Found:
    """Takes out every source once, or every pair, and keeps the best of all new starts.

    Every trial begins with the same sources, and slots keep their order: what is tried does not
    depend on what has just been found.

    Args:
        problem: what has to be explained.
        dictionary: cells to try.
        found: sources so far.
        wanted: scenes to work on; the others stay as they are.
        n_starts: peaks, or pairs of cells, that are tried for what is taken out.
        n_out: sources that are taken out at a time, 1 or 2.
        sets: slots to take out, a one for each; None tries all sets of ``n_out``.
        misfit: what has to fall; None is the cost.

    Returns:
        The same sources, or better ones.
    """
    n_channels, n_slots = found.present.shape[0], found.present.shape[2]
    n_starts = min(n_starts, dictionary.cells.shape[0])
    n_out = n_out if sets is None else sets.shape[1]
    packed = pack_scenes(wanted & (found.present.sum(-1) >= n_out))
    if packed.shape[1] == 0:
        return found
    if sets is None:
        sets = out_sets(n_slots, n_out, found.cost.device)
    size = max(1, _TRIALS // (n_channels * len(sets) * n_starts))
    for some in torch.split(packed, size, dim=1):
        better, badness = _best_trial(problem, dictionary, found, some, n_starts, sets, misfit)
        if misfit is None:
            highest = (1.0 - _LEAST_WIN) * take_scenes(found.cost, some)
        else:
            highest = misfit(problem.take(some), found.take(some)) - _LEAST_WIN_NEPERS
        found = found.replaced(better, some, (badness < highest) & take_scenes(wanted, some))
    return found


def _best_trial(
    problem: Problem,
    dictionary: Dictionary,
    found: Found,
    some: Int[Tensor, "channel some"],
    n_starts: int,
    sets: Bool[Tensor, "set out source"],
    misfit: Misfit | None,
) -> tuple[Found, Float[Tensor, "channel some"]]:
    """The best trial of each scene: every set of sources out once, anew from each start.

    Beside it how badly it fits; infinite where there was nothing to try.
    """
    n_some, n_out = some.shape[1], sets.shape[1]
    # one line per scene and set taken out, the sets of a scene in a row
    lines = some.repeat_interleave(len(sets), dim=1)
    slots = sets.repeat(n_some, 1, 1)  # (line, out, source)
    before = found.take(lines)
    left = explain(problem.take(lines), before.parameters, before.present & ~slots.any(1))
    starts = _single_starts if n_out == 1 else _pair_starts
    places, is_place = starts(dictionary, left, n_starts)
    # one trial per line and start
    trials = lines.repeat_interleave(places.shape[2], dim=1)
    slots = slots.repeat_interleave(places.shape[2], dim=0)
    before, places = found.take(trials), places.flatten(1, 2)  # (channel, trial, out, 3)
    parameters = before.parameters
    for i in range(n_out):
        parameters = torch.where(slots[:, i, :, None], places[:, :, i, None], parameters)
    tried = problem.take(trials)
    refined = refine(tried, parameters, before.present, _STEPS)
    was_there = (before.present | ~slots.any(1)).all(-1)
    is_trial = was_there & is_place.flatten(1)
    all_trials = Found(refined.parameters, before.present, refined.cost)
    badness = refined.cost if misfit is None else misfit(tried, all_trials)
    # what is no number must not win: argmin would have it first
    badness = badness.masked_fill(~is_trial | badness.isnan(), torch.inf)
    least, best = badness.reshape(len(some), n_some, -1).min(-1)
    n_trials = badness.shape[1] // n_some
    best = best + torch.arange(n_some, device=some.device) * n_trials
    return all_trials.take(best), least


def out_sets(n_slots: int, n_out: int, device: torch.device) -> Bool[Tensor, "set out source"]:
    """All sets of slots to take out.

    Args:
        n_slots: to choose from.
        n_out: in a set.
        device: where the answer lives.

    Returns:
        A one for each slot of a set.
    """
    sets = torch.combinations(torch.arange(n_slots, device=device), n_out)
    return torch.nn.functional.one_hot(sets, n_slots).bool()


def _single_starts(
    dictionary: Dictionary, left: Explanation, n_starts: int
) -> tuple[Float[Tensor, "channel line start 1 3"], Bool[Tensor, "channel line start"]]:
    """The highest peaks of the map."""
    peaks = find_peaks(dictionary.gains(left), n_starts)
    return dictionary.parameters_at(peaks.cells)[..., None, :], peaks.resolved


def _pair_starts(
    dictionary: Dictionary, left: Explanation, n_starts: int
) -> tuple[Float[Tensor, "channel line start 2 3"], Bool[Tensor, "channel line start"]]:
    """The best pairs of cells."""
    pairs = best_pairs(dictionary, left, n_starts)
    cells = torch.stack((pairs.first, pairs.second), dim=-1)
    return dictionary.cells[cells], pairs.gains.isfinite()
