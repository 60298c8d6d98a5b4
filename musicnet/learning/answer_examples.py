"""Answers to learn weights from, made from a training batch by the steps that will be weighed."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from musicnet.estimation.answers import Answer, Answers, compare
from musicnet.estimation.dictionary import Dictionary
from musicnet.estimation.problem import Problem, compress, pack_scenes, take_scenes
from musicnet.localization.line_search import first_answers, mean_of, more_answers
from musicnet.networks.judge import Judge
from musicnet.scene.snapshots import Observation
from musicnet.scene.sources import SearchRegion, Sources

# one scene in so many is searched again: second looks must not all be of doubtful ones
_AGAIN = 32
# of Student's distribution: an answer slightly beside the truth must not rule the loss
_FREEDOM = 5.0
_LEAST_SPREAD, _MOST_SPREAD = 1e-4, 0.3  # of a coordinate, as a share of the region's width
# log density of the narrowest answer at its middle, per coordinate
_LOG_PEAK = (
    math.lgamma((_FREEDOM + 1.0) / 2.0)
    - math.lgamma(_FREEDOM / 2.0)
    - 0.5 * math.log(_FREEDOM * math.pi)
    - math.log(_LEAST_SPREAD)
)


@dataclass(frozen=True)
class AnswerExample:
    """Answers to scenes of at least two sources, and the truth.

    Args:
        answers: side by side.
        truth: (u, v, rho) by rising u; anything finite in empty slots.
        problem: whose answers they are.
    """

    answers: Answers
    truth: Float[Tensor, "channel scene source 3"]
    problem: Problem


@torch.no_grad()
def answer_examples(
    judge: Judge, observation: Observation, truth: Sources, region: SearchRegion
) -> Iterator[AnswerExample]:
    """Answers to one observation.

    Args:
        judge: says what is in doubt.
        observation: of a plain array, batch (channel, scene).
        truth: its sources.
        region: where they may be.

    Yields:
        First answers, then more of them to some of the scenes.
    """
    problem = compress(observation, region)
    resolved = problem.flatten(truth.resolved)
    counts = resolved.sum(-1)
    n_slots = int(counts.max())
    if n_slots < 2:
        return
    places = problem.flatten(truth.parameters).nan_to_num().to(problem.y.real.dtype)
    order = places[..., 0].masked_fill(~resolved, torch.inf).argsort(-1)[..., :n_slots]
    places = places.take_along_dim(order[..., None], dim=2)
    dictionary = Dictionary.over(problem, None)
    answers = first_answers(problem, dictionary, counts)
    side_by_side = compare(problem, answers)
    yield AnswerExample(side_by_side, places, problem)
    scene = torch.arange(counts.numel(), device=counts.device).reshape(counts.shape)
    mean = mean_of(judge, problem, side_by_side)
    again = (counts > 1) & (mean.is_doubtful | (scene % _AGAIN == 0))
    some = pack_scenes(again)
    if some.shape[1] == 0:
        return
    part = problem.take(some)
    fewer = [Answer(a.found.take(some), a.rank, take_scenes(a.is_there, some)) for a in answers]
    unexplained = take_scenes(~mean.is_explained, some)
    everywhere = torch.ones_like(unexplained)
    more = compare(part, more_answers(part, dictionary, fewer, everywhere, unexplained))
    yield AnswerExample(more, take_scenes(places, some), part)


def answer_loss(judge: Judge, examples: list[AnswerExample]) -> Float[Tensor, ""]:
    r"""How much less dense the mixture of answers is at the truth than it could be at most.

    An answer is Student's distribution around its sources, as wide as the likelihood states and
    the judge widens it; none of the answers is anywhere in the region.

    Args:
        judge: to train.
        examples: of one batch.

    Returns:
        Nats per source, >= 0: 0 would be to know it to a ten-thousandth of the region's width.
    """
    total, n_sources = torch.zeros(()), torch.zeros(())
    for one in examples:
        density = _log_density(judge, one)
        counts = one.answers.present.sum(-1)
        wanted = counts > 1
        total = total.to(density) - density[wanted].sum()
        n_sources = n_sources.to(density) + counts[wanted].sum()
    return total / n_sources.clamp_min(1)


def _log_density(judge: Judge, example: AnswerExample) -> Float[Tensor, "channel scene"]:
    """Of the truth, to that of the narrowest answer at its middle."""
    answers, problem = example.answers, example.problem
    verdict = judge(answers)
    columns = list(problem.active)
    width = (problem.box[1] - problem.box[0])[columns]
    spread = (answers.spread[..., columns] / width).clamp(_LEAST_SPREAD, _MOST_SPREAD)
    spread = spread * (1.0 + verdict.widening[..., None, None])
    error = (answers.parameters - example.truth[:, :, None])[..., columns] / width / spread
    tail = -(_FREEDOM + 1.0) / 2.0 * torch.log1p(error.square() / _FREEDOM)
    density = (tail - (spread / _LEAST_SPREAD).log()).sum(-1)
    density = density.masked_fill(~answers.present[:, :, None], 0.0).sum(-1)
    # sources in the order of u are as dense as orders are many
    counts = answers.present.sum(-1)
    anywhere = torch.lgamma(counts + 1.0) - counts * len(columns) * _LOG_PEAK
    anywhere = anywhere[..., None].to(density)
    return torch.logsumexp(verdict.log_weights + torch.cat((density, anywhere), -1), dim=-1)
