"""Answers to learn trust from, and which of their sources stand where they belong.

Made from a training batch by the very steps that will be judged: the greedy first answer, and a
second one of some scenes, mostly of those where the first was wrong, as a second look gives.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from musicnet.estimation import posterior
from musicnet.estimation.clues import Clues, gather_clues
from musicnet.estimation.dictionary import Dictionary
from musicnet.estimation.found import Found, at_places
from musicnet.estimation.posterior import Loudness
from musicnet.estimation.problem import Problem, compress
from musicnet.estimation.redetection import Misfit, redetect
from musicnet.estimation.refinement import refine
from musicnet.localization.confidence import assess
from musicnet.localization.estimates import Estimates
from musicnet.localization.second_look import finished, first_answer
from musicnet.metrics.bound_ratios import OUTLIER_FACTOR
from musicnet.metrics.matching import match
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
# of the widening's loss; and a square beyond which one source shall not rule a step
_WIDTH_WEIGHT = 0.1
_LARGEST_SQUARE = 1e3


@dataclass(frozen=True)
class TrustExample:
    """Clues to answers, and the truth about them.

    Args:
        clues: to every source.
        right: whether a source stands where it belongs; nothing in empty slots.
        squared_errors: mean over x, y, z of the squared error over the variance that the
            likelihood's curvature states; NaN where the error is beyond what the bound allows, and
            in empty slots.
    """

    clues: Clues
    right: Bool[Tensor, "channel scene source"]
    squared_errors: Float[Tensor, "channel scene source"]


def trust_loss(head: TrustHead, examples: list[TrustExample]) -> Float[Tensor, ""]:
    """Cross-entropy of the trust in each source, and how well the widening of error bars fits.

    With n the squared error over the stated variance and w the widening, log w + n / w is least
    where w is the mean of n.

    Args:
        head: to train.
        examples: of one batch.

    Returns:
        Nats per source; 0 where there is none.
    """
    weighed = [head.weigh(one.clues) for one in examples]
    present = [one.clues.present for one in examples]

    def joined(values: Iterable[Tensor]) -> Tensor:
        return torch.cat([value[there] for value, there in zip(values, present, strict=True)])

    logits, log_widening = (joined(values) for values in zip(*weighed, strict=True))
    right = joined(one.right for one in examples).to(logits.dtype)
    trust = functional.binary_cross_entropy_with_logits(logits, right, reduction="sum")
    trust = trust / max(1, len(right))
    squared = joined(one.squared_errors for one in examples)
    counted = squared.isfinite()
    squared = squared.where(counted, 0.0).clamp_max(_LARGEST_SQUARE)
    width = (log_widening + squared * (-log_widening).exp()) * counted
    return trust + _WIDTH_WEIGHT * width.sum() / counted.sum().clamp_min(1)


@torch.no_grad()
def trust_examples(
    observation: Observation,
    truth: Sources,
    law: SourceLaw,
    region: SearchRegion,
    *,
    is_data: bool = False,
) -> list[TrustExample]:
    """Answers to one observation.

    Args:
        observation: batch (channel, scene).
        truth: its sources.
        law: how they were drawn.
        region: where they may be.
        is_data: whether symbols change from block to block; else they are pilots.

    Returns:
        First answers, then second ones; no gradient.
    """
    loudness = Loudness.of(law)
    problem = compress(observation, region)
    problem = replace(problem, log_powers=loudness.log_powers) if is_data else problem
    dictionary = Dictionary.over(problem, None)
    misfit = partial(posterior.misfit, loudness=loudness)
    best = _most_probable(problem, truth, misfit)
    least = misfit(problem, best)
    counts = best.present.sum(-1)
    # a recording may have no source in any of these scenes: empty slots are an answer, too
    found = first_answer(problem, dictionary, counts) if bool(counts.any()) else best
    wrong = misfit(problem, found) > least + _MARGIN
    sources = Sources(problem.flatten(truth.parameters), problem.flatten(truth.resolved))
    deviation = _stated(problem, sources).square().sum(-1).sqrt()
    first = TrustExample(
        gather_clues(problem, dictionary, found),
        _is_right(problem, found, best, wrong),
        _squared_errors(problem, found, sources, deviation),
    )
    scene = torch.arange(wrong.numel(), device=wrong.device).reshape(wrong.shape)
    again = wrong | (scene % _RIGHT_AGAIN == 0)
    part, cells = problem.single_out(again), dictionary.of_channels(again.nonzero()[:, 0])
    everywhere = torch.ones_like(part.noise_power, dtype=torch.bool)
    found = redetect(part, cells, found.single_out(again), everywhere, _STARTS, misfit=misfit)
    found = finished(part, found, misfit)
    wrong = misfit(part, found) > least[again][:, None] + _MARGIN
    part_sources = Sources(sources.parameters[again][:, None], sources.resolved[again][:, None])
    second = TrustExample(
        gather_clues(part, cells, found),
        _is_right(part, found, best.single_out(again), wrong),
        _squared_errors(part, found, part_sources, deviation[again][:, None]),
    )
    return [first, second]


def _most_probable(problem: Problem, truth: Sources, misfit: Misfit) -> Found:
    """The truth, or its refinement where that is more probable."""
    present = problem.flatten(truth.resolved)
    middle = problem.box.mean(0)
    places = torch.where(present[..., None], problem.flatten(truth.parameters).to(middle), middle)
    true = at_places(problem, places, present)
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


def _squared_errors(
    problem: Problem,
    found: Found,
    truth: Sources,
    deviation: Float[Tensor, "channel scene source"],
) -> Float[Tensor, "channel scene source"]:
    """Squared errors over stated variances, slot by slot of what was found."""
    answer = Sources(found.parameters, found.present)
    matching = match(answer, truth)
    index = matching.estimate_index.clamp_min(0)
    offset = answer.xyz.take_along_dim(index[..., None], dim=-2) - truth.xyz
    stated = _stated(problem, answer).take_along_dim(index[..., None], dim=-2)
    squared = (offset / stated).square().mean(-1)
    counted = matching.matched & (matching.distance < OUTLIER_FACTOR * deviation)
    slots = torch.arange(found.present.shape[-1], device=index.device)
    is_mine = (index[..., None] == slots) & counted[..., None]  # (..., true source, slot)
    by_slot = torch.where(is_mine, squared[..., None], 0.0).sum(-2)
    return by_slot.masked_fill(~is_mine.any(-2), math.nan)


def _stated(problem: Problem, sources: Sources) -> Float[Tensor, "channel scene source 3"]:
    """Standard deviations of x, y, z from the likelihood's curvature."""
    flat = replace(problem, batch_shape=tuple(problem.y.shape[:2]))
    said = assess(flat, sources)
    counts = sources.n_sources
    return Estimates(sources, said.covariance, said.log_likelihood, counts, method="").std_xyz
