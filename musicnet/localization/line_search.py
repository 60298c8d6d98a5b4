"""Answers to what an array heard, weighed by a trained judge, and their mean.

Greedy pursuit, once over all snapshots and once over the signal subspace of each smaller rank,
mostly finds the right sources in a fraction of the time of `multistart`. What no answer explains,
or what the judge doubts, is searched with all starts. Below the threshold several answers stay
likely: their mean under the judge's weights has the least square error.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from musicnet.estimation.answers import Answer, Answers, compare
from musicnet.estimation.dictionary import Dictionary
from musicnet.estimation.found import Found, surplus
from musicnet.estimation.linearization import explain
from musicnet.estimation.problem import Problem, pack_scenes, put_scenes, take_scenes
from musicnet.estimation.pursuit import grow, nomp
from musicnet.estimation.redetection import alternatives
from musicnet.estimation.refinement import refine
from musicnet.estimation.subspace_fitting import (
    fit_subspace,
    is_hopeful,
    most_dimensions,
    symbol_misfit,
    with_cost,
)
from musicnet.networks.judge import Judge

_GROWTH_STEPS, _STEPS = 2, 5
# close coherent sources take longer
_FITTED_STEPS = 12
# standard deviations of what noise leaves: few scenes are searched in vain
_MOST_SURPLUS = 3.5
# other places of each source
_ELSEWHERE = 2
# radians of the aperture's ends: answers that near to the mean agree with it
_AGREED = 0.6
# weight of the answers that do not agree from which a scene is in doubt
_DOUBT = 0.05


def first_answers(
    problem: Problem, dictionary: Dictionary, counts: Int[Tensor, "channel scene"]
) -> list[Answer]:
    """Greedy answers: of all snapshots, and of each smaller rank that could be better.

    Args:
        problem: snapshots of a plain array.
        dictionary: cells to try.
        counts: sources of each scene, at least one somewhere.

    Returns:
        The first answers every scene.
    """
    found = _grown(problem, dictionary, counts, _STEPS)
    answers = [Answer(found, 0, torch.ones_like(counts, dtype=torch.bool))]
    n_slots = found.present.shape[-1]
    if n_slots < 2:
        return answers
    misfit = symbol_misfit(problem, found)
    for rank in range(1, most_dimensions(problem, n_slots) + 1):
        hopeful = is_hopeful(problem, counts, rank, misfit)
        some = pack_scenes(hopeful)
        if some.shape[1]:
            part = problem.take(some)
            fitted = _grown(
                fit_subspace(part, rank), dictionary, take_scenes(counts, some), _FITTED_STEPS
            )
            answers.append(_of_some(problem, answers[0], fitted, rank, some, hopeful))
    return answers


def more_answers(
    problem: Problem,
    dictionary: Dictionary,
    answers: list[Answer],
    wanted: Bool[Tensor, "channel scene"],
    unexplained: Bool[Tensor, "channel scene"],
) -> list[Answer]:
    """Other places for each source of the first answer, and answers of a search with all starts.

    Args:
        problem: snapshots of a plain array.
        dictionary: cells to try.
        answers: `first_answers`.
        wanted: scenes that get other places.
        unexplained: scenes that are searched.

    Returns:
        Theirs behind the others.
    """
    counts, n_slots = answers[0].found.present.sum(-1), answers[0].found.present.shape[-1]
    answers = list(answers)
    # one fit mostly explains the scene, and the strongest dimension is the soonest searched
    for rank in (*range(1, most_dimensions(problem, n_slots) + 1), 0):
        searched = unexplained & (counts > max(rank, 1))
        some = pack_scenes(searched)
        if some.shape[1]:
            part = problem.take(some)
            fitted = fit_subspace(part, rank) if rank else part
            better = nomp(fitted, dictionary.grid, take_scenes(counts, some))
            answers.append(_of_some(problem, answers[0], better, rank, some, searched))
            better = with_cost(part, better, n_slots)
            explained = searched & put_scenes(searched, is_explained(part, better), some)
            unexplained = unexplained & ~explained
    moved = wanted & (counts > 1)
    for other, is_there in alternatives(problem, dictionary, answers[0].found, _ELSEWHERE):
        finite = torch.where(is_there, other.cost, 0.0)
        found = Found(other.parameters, other.present, finite)
        answers.append(Answer(found, 0, is_there & moved))
    return answers


def is_explained(problem: Problem, found: Found) -> Bool[Tensor, "channel scene"]:
    """Whether what is left of the snapshots, and of their strongest dimension, could be noise.

    Args:
        problem: snapshots of a plain array.
        found: sources of each scene.

    Returns:
        False where these cannot be the sources.
    """
    strongest = fit_subspace(problem, 1)
    left = with_cost(strongest, found, found.present.shape[-1])
    most = torch.maximum(surplus(problem, found), surplus(strongest, left))
    return most <= _MOST_SURPLUS


def weigh(
    judge: Judge,
    problem: Problem,
    counts: Int[Tensor, "channel scene"],
) -> Found:
    """Finds sources, and takes the mean of what may be right.

    Args:
        judge: trained.
        problem: snapshots of a plain array.
        counts: sources of each scene, at least one somewhere.

    Returns:
        As many sources as asked, by rising u.
    """
    if int(counts.max()) < 2:  # one answer, and nothing to weigh
        return nomp(problem, None, problem.unflatten(counts))
    dictionary = Dictionary.over(problem, None)
    answers = first_answers(problem, dictionary, counts)
    mean = mean_of(judge, problem, compare(problem, answers))
    doubtful = mean.is_doubtful & (counts > 1)
    some = pack_scenes(doubtful)
    if some.shape[1] == 0:
        return mean.found
    part = problem.take(some)
    fewer = [Answer(a.found.take(some), a.rank, take_scenes(a.is_there, some)) for a in answers]
    unexplained = take_scenes(doubtful & ~mean.is_explained, some)
    again = more_answers(part, dictionary, fewer, take_scenes(doubtful, some), unexplained)
    better = mean_of(judge, part, compare(part, again)).found
    return mean.found.replaced(better, some, take_scenes(doubtful, some))


@dataclass(frozen=True)
class Mean:
    """The mean of weighed answers.

    Args:
        found: the mean where answers do not agree, else the one that fits best.
        is_doubtful: where answers do not agree, or the likeliest explains too little.
        is_explained: where it explains enough.
    """

    found: Found
    is_doubtful: Bool[Tensor, "channel scene"]
    is_explained: Bool[Tensor, "channel scene"]


def mean_of(judge: Judge, problem: Problem, answers: Answers) -> Mean:
    """Weighs answers, and takes their mean.

    Args:
        judge: trained.
        problem: snapshots of a plain array.
        answers: to it.

    Returns:
        The mean, and what to look at again.
    """
    log_weights = judge(answers).log_weights
    # what none of the answers is has no place of its own
    weights = log_weights[..., :-1].softmax(-1)[..., None, None]
    parameters = (weights * answers.parameters).sum(2).to(answers.parameters)
    moved = (answers.parameters - parameters[:, :, None]) / problem.resolution
    agrees = ((moved.abs().amax(-1) < _AGREED) | ~answers.present[:, :, None]).all(-1)
    is_agreed = (log_weights[..., :-1].exp() * agrees).sum(-1) >= 1.0 - _DOUBT
    explained = is_explained(problem, _one_of(problem, answers, log_weights[..., :-1].argmax(-1)))
    # of answers that agree the one that fits is efficient, and a mean is not
    candidates = answers.misfit.masked_fill(~(agrees & answers.is_there), torch.inf)
    fittest = _one_of(problem, answers, candidates.argmin(-1))
    mean = Found(parameters, answers.present, explain(problem, parameters, answers.present).cost)
    return Mean(mean.chosen(is_agreed, fittest), ~(is_agreed & explained), explained)


def _one_of(problem: Problem, answers: Answers, index: Int[Tensor, "channel scene"]) -> Found:
    """One answer to each scene."""
    chosen = index[..., None, None, None]
    parameters = answers.parameters.take_along_dim(chosen, dim=2)[:, :, 0]
    cost = explain(problem, parameters, answers.present).cost
    return Found(parameters, answers.present, cost)


def _grown(
    problem: Problem, dictionary: Dictionary, counts: Int[Tensor, "channel scene"], steps: int
) -> Found:
    grown = grow(problem, dictionary, counts, _GROWTH_STEPS)
    refined = refine(problem, grown.parameters, grown.present, steps)
    return Found(refined.parameters, grown.present, refined.cost)


def _of_some(
    problem: Problem,
    first: Answer,
    fitted: Found,
    rank: int,
    some: Int[Tensor, "channel some"],
    wanted: Bool[Tensor, "channel scene"],
) -> Answer:
    """An answer to some scenes, in the layout of all."""
    chosen = take_scenes(wanted, some)
    fitted = with_cost(problem.take(some), fitted, first.found.present.shape[-1])
    is_there = put_scenes(torch.zeros_like(wanted), chosen, some)
    return Answer(first.found.replaced(fitted, some, chosen), rank, is_there)
