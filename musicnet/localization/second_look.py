"""A first answer, whom to trust in it, and a second look at what is in doubt.

Greedy pursuit finds the right sources in nineteen scenes of twenty. Which those are, a trained
trust head tells from clues; only the others are looked at again: with the least trusted sources
taken out and started anew, and from the peaks of the learned pseudo-spectrum. What is kept is what
is more probable, given how loud sources can be: likelihood alone would rather explain two
close sources by one, and noise by the other.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from musicnet.estimation import posterior
from musicnet.estimation.clues import gather_clues
from musicnet.estimation.dictionary import Dictionary
from musicnet.estimation.found import Found
from musicnet.estimation.posterior import Loudness
from musicnet.estimation.problem import Problem
from musicnet.estimation.pursuit import grow
from musicnet.estimation.redetection import Misfit, out_sets, redetect
from musicnet.estimation.refinement import refine
from musicnet.networks.trust import TrustHead

Trust = Float[Tensor, "channel scene source"]

Proposals = Callable[[Bool[Tensor, "channel scene"]], Found]
"""Which scenes -> refined sources of these, in the layout of `Problem.single_out`."""


@dataclass(frozen=True)
class _Round:
    """One more look at the scenes that are still in doubt.

    Args:
        level: log-odds of the least trusted source below which a scene is in doubt.
        n_out: sources taken out at a time; 0 starts all anew, from the pseudo-spectrum's peaks.
        n_suspects: least trusted sources that are taken out; the others stay.
        n_starts: places, or pairs of them, that are tried for what is taken out.
    """

    level: float
    n_out: int
    n_suspects: int = 0
    n_starts: int = 0


# each costs more than the one before, and looks at fewer scenes
_ROUNDS = (
    _Round(1.5, 1, 2, 3),
    _Round(0.5, 2, 2, 8),
    _Round(-1.0, 0),
    _Round(-1.0, 2, 4, 6),
)
FIRST_GROWTH_STEPS = 2
"""Steps of refinement after each new source of a first answer."""

_STEPS = 5  # after the last, and after a second look
# scenes at a time: a dictionary for each is a third of a megabyte on the default task
_AT_ONCE = 256


def first_answer(
    problem: Problem, dictionary: Dictionary, n_sources: Int[Tensor, "channel scene"]
) -> Found:
    """Greedy pursuit, refined; in haste, since what goes wrong is looked at again.

    Args:
        problem: what was heard.
        dictionary: cells to try.
        n_sources: of each scene.

    Returns:
        As many sources as asked.
    """
    return refined_quickly(problem, grow(problem, dictionary, n_sources, FIRST_GROWTH_STEPS))


def refined_quickly(problem: Problem, grown: Found) -> Found:
    """A few steps of refinement: the last of a first answer, and of a second look.

    Args:
        problem: what was heard.
        grown: near a minimum.

    Returns:
        The same sources.
    """
    refined = refine(problem, grown.parameters, grown.present, _STEPS)
    return Found(refined.parameters, grown.present, refined.cost)


def finished(problem: Problem, found: Found, misfit: Misfit) -> Found:
    """Refined once more, where that makes an answer more probable.

    Likelihood alone sends close sources off to where they all but cancel.

    Args:
        problem: what was heard.
        found: sources of each scene.
        misfit: what must not rise.

    Returns:
        The same sources.
    """
    better = refined_quickly(problem, found)
    return found.chosen(misfit(problem, better) < misfit(problem, found), better)


@dataclass(frozen=True)
class Judged:
    """An answer and what the trust head says of it.

    Args:
        found: the sources.
        trust: log-odds that each stands where it belongs; infinite in empty slots.
        log_widening: logarithm of the squared error to be expected over the stated variance.
    """

    found: Found
    trust: Trust
    log_widening: Float[Tensor, "channel scene source"]

    def single_out(self, wanted: Bool[Tensor, "channel scene"]) -> "Judged":
        """The wanted scenes, each a channel."""
        return Judged(
            self.found.single_out(wanted),
            self.trust[wanted][:, None],
            self.log_widening[wanted][:, None],
        )

    def put_back(self, wanted: Bool[Tensor, "channel scene"], singled_out: "Judged") -> "Judged":
        """The same, with the wanted scenes taken from what was singled out."""
        trust, log_widening = self.trust.clone(), self.log_widening.clone()
        trust[wanted] = singled_out.trust[:, 0]
        log_widening[wanted] = singled_out.log_widening[:, 0]
        return Judged(self.found.put_back(wanted, singled_out.found), trust, log_widening)

    def widened(self, n_slots: int) -> "Judged":
        """The same with empty slots behind."""
        missing = n_slots - self.trust.shape[-1]
        pad = torch.nn.functional.pad
        return Judged(
            self.found.widened(n_slots),
            pad(self.trust, (0, missing), value=torch.inf),
            pad(self.log_widening, (0, missing)),
        )


def judge(head: TrustHead, problem: Problem, dictionary: Dictionary, found: Found) -> Judged:
    """Asks the trust head.

    Args:
        head: trained.
        problem: what was heard.
        dictionary: cells to compare with.
        found: sources of each scene.

    Returns:
        The sources and its opinion of them.
    """
    logits, log_widening = head.weigh(gather_clues(problem, dictionary, found))
    return Judged(found, logits.masked_fill(~found.present, torch.inf), log_widening)


def look_again(
    head: TrustHead,
    loudness: Loudness,
    problem: Problem,
    dictionary: Dictionary,
    found: Found,
    proposals: Proposals,
    wanted: Bool[Tensor, "channel scene"] | None = None,
) -> Judged:
    """Looks again at what is in doubt, as long as it is.

    Args:
        head: trained.
        loudness: what is known about amplitudes.
        problem: what was heard.
        dictionary: cells to try.
        found: a first answer, at least one slot.
        proposals: another first answer, of some scenes.
        wanted: scenes to look at; None looks at all.

    Returns:
        As many sources, more probable ones.
    """
    answer = judge(head, problem, dictionary, found)
    in_doubt = answer.trust.amin(-1) < _ROUNDS[0].level
    if wanted is not None:
        in_doubt = in_doubt & wanted
    misfit = partial(posterior.misfit, loudness=loudness)
    for some in _portions(in_doubt):
        part, cells = _single_out(problem, dictionary, some)
        looked = answer.single_out(some)
        for turn in _ROUNDS:
            still = looked.trust.amin(-1) < turn.level
            n_still = int(still.sum())
            if n_still == 0:
                break
            all_still = n_still == still.numel()
            # a copy of every scene's dictionary takes time, and often all are still in doubt
            few, few_cells = (part, cells) if all_still else _single_out(part, cells, still)
            suspects = looked if all_still else looked.single_out(still)
            if turn.n_out == 0:
                proposed = proposals(_within(some, still))
                is_better = misfit(few, proposed) < misfit(few, suspects.found)
                other = suspects.found.chosen(is_better, proposed)
            else:
                other = _without_suspects(turn, few, few_cells, suspects, misfit)
            looked = looked.put_back(still, judge(head, few, few_cells, other))
        looked = replace(looked, found=finished(part, looked.found, misfit))
        answer = answer.put_back(some, looked)
    return answer


def _without_suspects(
    turn: _Round, problem: Problem, dictionary: Dictionary, suspects: Judged, misfit: Misfit
) -> Found:
    """Takes out the least trusted sources, and starts them anew."""
    found = suspects.found.in_order(suspects.trust.argsort(-1))
    n_slots = found.present.shape[-1]
    sets = out_sets(min(turn.n_suspects, n_slots), turn.n_out, found.cost.device)
    if len(sets) == 0:
        return found
    sets = torch.nn.functional.pad(sets, (0, n_slots - sets.shape[-1]))
    everywhere = torch.ones_like(found.cost, dtype=torch.bool)
    return redetect(problem, dictionary, found, everywhere, turn.n_starts, sets=sets, misfit=misfit)


def _within(
    some: Bool[Tensor, "channel scene"], still: Bool[Tensor, "wanted 1"]
) -> Bool[Tensor, "channel scene"]:
    """Those of some scenes that are still wanted."""
    within = some.clone()
    within[some] = still[:, 0]
    return within


def _single_out(
    problem: Problem, dictionary: Dictionary, wanted: Bool[Tensor, "channel scene"]
) -> tuple[Problem, Dictionary]:
    return problem.single_out(wanted), dictionary.of_channels(wanted.nonzero()[:, 0])


def _portions(wanted: Bool[Tensor, "channel scene"]) -> list[Bool[Tensor, "channel scene"]]:
    """The wanted scenes, so many at a time."""
    portions = []
    for index in torch.split(wanted.flatten().nonzero()[:, 0], _AT_ONCE):
        portion = torch.zeros_like(wanted)
        portion.view(-1)[index] = True
        portions.append(portion)
    return portions if bool(wanted.any()) else []
