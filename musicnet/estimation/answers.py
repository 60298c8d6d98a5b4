"""Several answers to the same scenes, side by side, with clues to which of them is right.

An answer is a set of as many sources as asked, found one way or another: by least squares over the
snapshots, or by a fit of signal subspaces of some rank. Sources of all answers are in the order of
u, so that the same slot of two answers is about the same source.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from musicnet.estimation.found import Found, surplus
from musicnet.estimation.linearization import Explanation, explain, linearize
from musicnet.estimation.problem import Problem
from musicnet.estimation.subspace_fitting import symbol_misfits

# leading dimensions of the signal subspace that are looked at
_TOP = 3
N_ANSWER_CLUES = 19 + 2 * _TOP
"""Clues to each answer."""

_FAR = 30.0  # radians of the aperture's ends: as good as alone
_SAME = 0.5  # of the same unit
_LARGEST = 8.0
_MOST_MISFIT = 50.0  # nepers
_TINY = 1e-30


@dataclass(frozen=True)
class Answer:
    """One answer to some of the scenes.

    Args:
        found: sources of each scene.
        rank: of the signal subspace that was fitted; 0 is all snapshots.
        is_there: scenes that it answers; in the others it holds anything finite.
    """

    found: Found
    rank: int
    is_there: Bool[Tensor, "channel scene"]


@dataclass(frozen=True)
class Answers:
    """All answers to each scene, and what is known about them.

    Args:
        parameters: (u, v, rho) by rising u; anything finite in empty slots.
        spread: standard deviations of (u, v, rho) that the likelihood states; 0 where not searched.
        present: slots that hold a source, the same in all answers.
        clues: numbers of order one.
        misfit: of the symbols, beyond that of the scene's best answer; nepers.
        is_there: answers that the scene has.
    """

    parameters: Float[Tensor, "channel scene answer source 3"]
    spread: Float[Tensor, "channel scene answer source 3"]
    present: Bool[Tensor, "channel scene source"]
    clues: Float[Tensor, "channel scene answer clue"]
    misfit: Float[Tensor, "channel scene answer"]
    is_there: Bool[Tensor, "channel scene answer"]


def compare(problem: Problem, answers: Sequence[Answer]) -> Answers:
    """Lays answers side by side.

    Args:
        problem: snapshots of one operator, of known noise power.
        answers: to it, the same number of sources in each; sources in the first slots.

    Returns:
        All of them, in single precision; no gradient.
    """
    looks = [_Look.at(problem, answer) for answer in answers]
    is_there = torch.stack([answer.is_there for answer in answers], dim=-1)
    clues = torch.stack([look.clues for look in looks], dim=-2)
    independent = torch.stack([look.independent for look in looks], dim=-1)
    of_any_rank = torch.stack([look.of_any_rank for look in looks], dim=-1)
    is_there = is_there & clues.isfinite().all(-1) & (independent + of_any_rank).isfinite()
    parameters = torch.stack([look.parameters for look in looks], dim=2)
    present = answers[0].found.present
    # a weak source that is not there would pass for an independent one
    fits_all = torch.tensor([answer.rank == 0 for answer in answers], device=is_there.device)
    own = torch.where(fits_all, torch.minimum(independent, of_any_rank), of_any_rank)
    apart = _apart(problem, parameters, present)
    same = (apart < _SAME) & is_there[..., None, :]
    beyond = [_beyond(values, is_there) for values in (independent, of_any_rank, own)]
    kinds = ((_least(independent, is_there) - _least(of_any_rank, is_there)) / 5.0).nan_to_num()
    relative = [
        *[torch.log1p(one / 2.0) for one in beyond[:2]],
        *[one.clamp_max(_FAR) / 10.0 for one in beyond[:2]],
        apart[..., 0].log1p() / 2.0,
        same.sum(-1) / _TOP,
        (kinds.sign() * kinds.abs().log1p()).expand_as(own),
    ]
    told = torch.cat((clues, torch.stack(relative, dim=-1).to(clues)), dim=-1)
    told = told.nan_to_num(0.0, 0.0, 0.0).clamp(-_LARGEST, _LARGEST)
    return Answers(
        parameters=parameters,
        spread=torch.stack([look.spread for look in looks], dim=2),
        present=present,
        clues=told,
        misfit=beyond[2].nan_to_num(_MOST_MISFIT).clamp_max(_MOST_MISFIT).float(),
        is_there=is_there,
    )


@dataclass(frozen=True)
class _Look:
    """What one answer says for itself."""

    parameters: Tensor
    spread: Tensor
    clues: Tensor
    independent: Tensor
    of_any_rank: Tensor

    @classmethod
    def at(cls, problem: Problem, answer: Answer) -> "_Look":
        found = answer.found
        explained = explain(problem, found.parameters, found.present)
        misfits = symbol_misfits(problem, explained, found.present)
        spread = _spread(problem, found)
        order = found.parameters[..., 0].masked_fill(~found.present, torch.inf).argsort(-1)
        return cls(
            found.parameters.take_along_dim(order[..., None], dim=2),
            spread.take_along_dim(order[..., None], dim=2),
            torch.cat(
                (
                    _own_clues(problem, answer, explained, misfits.powers, spread),
                    _outside(problem, explained, found.present),
                ),
                dim=-1,
            ),
            misfits.independent.float(),
            misfits.of_any_rank.float(),
        )


def _own_clues(
    problem: Problem,
    answer: Answer,
    explained: Explanation,
    powers: Float[Tensor, "channel scene source"],
    spread: Float[Tensor, "channel scene source 3"],
) -> Float[Tensor, "channel scene clue"]:
    found, present = answer.found, answer.found.present
    loudness = torch.view_as_real(explained.amplitudes[:, :, 0]).square().sum((-2, -1))
    loudness = (loudness / problem.n_snapshots / problem.noise_power[..., None]).clamp_min(1e-4)
    level = loudness.log()
    entangled = explained.amplitude_spread.masked_fill(~present, 0.0).amax(-1).clamp(1e-4, 1e3)
    places = found.parameters / problem.resolution
    gaps = torch.cdist(places, places)
    pairs = present[..., None] & present[..., None, :]
    pairs = pairs & ~torch.eye(present.shape[-1], dtype=torch.bool, device=present.device)
    nearest = gaps.masked_fill(~pairs, _FAR).flatten(2).amin(-1).clamp_max(_FAR)
    low, high = problem.box[:, list(problem.active)].unbind(0)
    searched = found.parameters[..., list(problem.active)]
    at_edge = ((searched <= low) | (searched >= high)).any(-1) & present
    widest = (spread / problem.resolution).masked_fill(~present[..., None], 0.0).flatten(2).amax(-1)
    everywhere = torch.ones_like(nearest)
    clues = [
        surplus(problem, found) / 3.0,
        level.masked_fill(~present, torch.inf).amin(-1) / 3.0,
        level.masked_fill(~present, -torch.inf).amax(-1) / 3.0,
        (nearest + 0.1).log(),
        entangled.log() / 2.0,
        widest.clamp(1e-4, 1e2).log() / 2.0,
        at_edge.any(-1).float(),
        (present.sum(-1) - 2.0) * everywhere,
        (math.log(problem.n_snapshots) - 4.0) / 1.5 * everywhere,
        (answer.rank == 0) * everywhere,
        (answer.rank == 1) * everywhere,
        (answer.rank > 1) * everywhere,
    ]
    seen = _padded(powers.clamp_min(1e-3).log().float() / 3.0)
    return torch.cat((torch.stack(clues, -1), seen), dim=-1)


def _outside(
    problem: Problem,
    explained: Explanation,
    present: Bool[Tensor, "channel scene source"],
) -> Float[Tensor, "channel scene top"]:
    """How much of the strongest dimensions is left, to what noise would leave."""
    values, directions = problem.dimensions
    values, directions = values.to(problem.noise_power), directions.to(explained.basis)
    top = min(_TOP, values.shape[-1])
    inside = directions[..., :top, :] @ explained.basis[:, :, 0].mH
    share = 1.0 - torch.view_as_real(inside).square().sum((-2, -1))
    freedom = problem.y.shape[-1] - present.sum(-1, keepdim=True)
    left = values[..., :top].square() * share.clamp_min(0.0) / problem.noise_power[..., None]
    return _padded((left / freedom + 0.1).log() / 1.5)


def _padded(values: Tensor) -> Tensor:
    """The first so many of the last axis, zeros behind."""
    return torch.nn.functional.pad(values[..., :_TOP], (0, max(0, _TOP - values.shape[-1])))


def _spread(problem: Problem, found: Found) -> Float[Tensor, "channel scene source 3"]:
    curvature = linearize(problem, found.parameters, found.present).curvature.double()
    diagonal = curvature.diagonal(dim1=-2, dim2=-1)
    scale = diagonal.clamp_min(_TINY).rsqrt()
    scaled = curvature * scale[..., None, :] * scale[..., None]
    # a scene that is not finite would stop the inversion of all
    ridge = torch.diag_embed((diagonal <= _TINY) + 1e-3)
    inverse = torch.linalg.inv_ex(scaled.nan_to_num() + ridge).inverse
    variance = inverse.diagonal(dim1=-2, dim2=-1) * scale.square() * problem.noise_power[..., None]
    n_searched = len(problem.active)
    spread = variance.clamp_min(0.0).sqrt().float().unflatten(-1, (n_searched, -1)).mT
    whole = torch.zeros_like(found.parameters)
    whole[..., list(problem.active)] = spread.to(whole)
    return whole


def _apart(
    problem: Problem,
    parameters: Float[Tensor, "channel scene answer source 3"],
    present: Bool[Tensor, "channel scene source"],
) -> Float[Tensor, "channel scene answer answer"]:
    """The farthest that any source moves from one answer to another."""
    places = parameters / problem.resolution
    moved = (places[:, :, :, None] - places[:, :, None]).abs().amax(-1)
    return moved.masked_fill(~present[:, :, None, None], 0.0).amax(-1).clamp_max(_FAR)


def _least(values: Tensor, is_there: Tensor) -> Tensor:
    return values.masked_fill(~is_there, torch.inf).amin(-1, keepdim=True)


def _beyond(values: Tensor, is_there: Tensor) -> Tensor:
    """Nepers more than the best."""
    return (values - _least(values, is_there)).clamp_min(0.0)
