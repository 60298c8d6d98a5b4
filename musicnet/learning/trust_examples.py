"""Answers to learn trust from, and which of their sources stand where they belong.

Made from a training batch by the very steps that will be judged: the greedy first answer, and a
second one of some scenes, mostly of those where the first was wrong, as a second look gives.
"""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from musicnet.estimation import posterior
from musicnet.estimation.clues import Clues, gather_clues
from musicnet.estimation.dictionary import Dictionary
from musicnet.estimation.found import Found, finish
from musicnet.estimation.linearization import explain
from musicnet.estimation.posterior import Loudness
from musicnet.estimation.problem import Problem, compress
from musicnet.estimation.redetection import Misfit, redetect
from musicnet.estimation.refinement import refine
from musicnet.localization.second_look import first_answer
from musicnet.networks.trust import TrustHead
from musicnet.scene.snapshots import Observation
from musicnet.scene.sources import SearchRegion, SourceLaw, Sources

# nepers by which the truth must be more probable than an answer that is called wrong
_MARGIN = 0.5
# radians that the aperture's ends turn against each other: a source this near to a true one is it
_NEAR = 0.35
# one right answer in so many is looked at again: second looks must not all be of wrong ones
_RIGHT_AGAIN = 16
_STARTS = 2
_STEPS = 10


@dataclass(frozen=True)
class TrustExample:
    """Clues to answers, and the truth about them.

    Args:
        clues: to every source.
        right: whether a source stands where it belongs; nothing in empty slots.
    """

    clues: Clues
    right: Bool[Tensor, "channel scene source"]


def trust_loss(head: TrustHead, examples: list[TrustExample]) -> Float[Tensor, ""]:
    """Cross-entropy of the trust in each source.

    Args:
        head: to train.
        examples: of one batch.

    Returns:
        Nats per source; 0 where there is none.
    """
    logits = torch.cat([head(one.clues)[one.clues.present] for one in examples])
    right = torch.cat([one.right[one.clues.present] for one in examples])
    total = functional.binary_cross_entropy_with_logits(
        logits, right.to(logits.dtype), reduction="sum"
    )
    return total / max(1, len(right))


@torch.no_grad()
def trust_examples(
    observation: Observation, truth: Sources, law: SourceLaw, region: SearchRegion
) -> list[TrustExample]:
    """Answers to one observation.

    Args:
        observation: batch (channel, scene).
        truth: its sources.
        law: how they were drawn.
        region: where they may be.

    Returns:
        First answers, then second ones; no gradient.
    """
    problem = compress(observation, region)
    dictionary = Dictionary.over(problem, None)
    misfit = partial(posterior.misfit, loudness=Loudness.of(law))
    best = _most_probable(problem, truth, misfit)
    least = misfit(problem, best)
    counts = best.present.sum(-1)
    # a recording may have no source in any of these scenes: empty slots are an answer, too
    found = first_answer(problem, dictionary, counts) if bool(counts.any()) else best
    wrong = misfit(problem, found) > least + _MARGIN
    first = TrustExample(
        gather_clues(problem, dictionary, found), _is_right(problem, found, best, wrong)
    )
    scene = torch.arange(wrong.numel(), device=wrong.device).reshape(wrong.shape)
    again = wrong | (scene % _RIGHT_AGAIN == 0)
    part, cells = problem.single_out(again), dictionary.of_channels(again.nonzero()[:, 0])
    everywhere = torch.ones_like(part.noise_power, dtype=torch.bool)
    found = redetect(part, cells, found.single_out(again), everywhere, _STARTS, misfit=misfit)
    found = finish(part, found)
    wrong = misfit(part, found) > least[again][:, None] + _MARGIN
    second = TrustExample(
        gather_clues(part, cells, found), _is_right(part, found, best.single_out(again), wrong)
    )
    return [first, second]


def _most_probable(problem: Problem, truth: Sources, misfit: Misfit) -> Found:
    """The truth, or its refinement where that is more probable."""
    present = problem.flatten(truth.resolved)
    middle = problem.box.mean(0)
    places = torch.where(present[..., None], problem.flatten(truth.parameters).to(middle), middle)
    true = Found(places, present, explain(problem, places, present).cost)
    refined = refine(problem, places, present, _STEPS)
    better = Found(refined.parameters, present, refined.cost)
    # close sources can run off to where they all but cancel: likelier, but far too loud
    return true.chosen(misfit(problem, better) < misfit(problem, true), better)


def _is_right(
    problem: Problem, found: Found, best: Found, wrong: Bool[Tensor, "channel scene"]
) -> Bool[Tensor, "channel scene source"]:
    """All sources of an answer as probable as the truth; of the others those near a true one."""
    here, there = (one.parameters / problem.resolution for one in (found, best))
    distance = torch.cdist(here, there).masked_fill(~best.present[..., None, :], torch.inf)
    return ~wrong[..., None] | (distance.amin(-1) < _NEAR)
