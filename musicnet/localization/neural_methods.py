"""Methods that start from a trained network."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from musicnet.estimation.dictionary import Dictionary
from musicnet.estimation.evidence import pursue
from musicnet.estimation.found import Found, at_places, finish, is_settled, nothing
from musicnet.estimation.one_waveform import linearize_together
from musicnet.estimation.posterior import Loudness, log_posterior
from musicnet.estimation.problem import Problem, pack_scenes, put_scenes, take_scenes
from musicnet.estimation.pursuit import append, nomp
from musicnet.estimation.range_mean import settle_ranges
from musicnet.estimation.range_posterior import settle_range
from musicnet.estimation.redetection import redetect
from musicnet.estimation.refinement import refine
from musicnet.localization.coherent_pursuit import pursue_by_coherence
from musicnet.localization.confidence import assess, by_width, covariance_by, filled
from musicnet.localization.likelihood_methods import Counts, count_by_pursuit
from musicnet.localization.near_search import pursue_near
from musicnet.localization.second_look import (
    FIRST_GROWTH_STEPS,
    Judged,
    first_answer,
    look_again,
    refined_quickly,
)
from musicnet.localization.task import Task
from musicnet.networks.neural_music import NeuralMusic
from musicnet.networks.pretrained import Pretrained
from musicnet.scene.snapshots import Observation
from musicnet.scene.sources import Sources

# steps of refinement from a peak of the pseudo-spectrum
_STEPS = 8
_STARTS = 3
# nepers by which one source more may be less probable at first, and still be looked at
_CLOSE = 5.0


class NeuralSearch:
    """What a trained network makes of one task; answers are found once, however often asked for.

    Args:
        task: what has to be localised.
        pretrained: the network.
    """

    def __init__(self, task: Task, pretrained: Pretrained) -> None:
        self.task = task
        self.problem: Problem = symbols_of(pretrained, task.problem)
        self.network: NeuralMusic = pretrained.network
        self.law = pretrained.scene.sources
        self.trust = pretrained.exact_trust
        self.coherence = pretrained.network.head.coherence
        self.are_alike = pretrained.scene.is_alike
        self._counted: tuple[Counts, Judged] | None = None
        self._final: Judged | None = None
        self._is_coherent: Bool[Tensor, "channel scene"] | None = None
        self._is_pursued = torch.zeros_like(self.problem.noise_power, dtype=torch.bool)

    @cached_property
    def dictionary(self) -> Dictionary:
        """Cells to try."""
        return Dictionary.over(self.problem, None)

    @property
    def left_to_nomp(self) -> Bool[Tensor, "channel scene"]:
        """Scenes whose answer is pursuit's own, since the network knows nothing of them."""
        return self._is_pursued.reshape(self.task.spoilt.shape)

    def count(self) -> Counts:
        """The most probable number of sources; what is beyond training is left to pursuit.

        By pursuit where the network has no trust head, or where noise could be of any power.
        """
        if self.trust is None or not self.task.is_noise_known:
            return count_by_pursuit(self.task)
        most = min(self.task.most_sources, self.law.n_max)
        answers = self._greedy_answers(most)
        loudness = Loudness.of(self.law)
        probable = torch.stack([log_posterior(self.problem, one, loudness) for one in answers])
        highest, first = probable.max(0)
        best = self._look(_picked(answers, first))
        highest = log_posterior(self.problem, best.found, loudness)
        # one more source may turn out better than greed could tell
        second = (first + 1).clamp_max(most)
        gap = probable.gather(0, first[None])[0] - probable.gather(0, second[None])[0]
        close = (second > first) & (gap < _CLOSE)
        if bool(close.any()):
            other = self._look(_picked(answers, second), close)
            better = close & (log_posterior(self.problem, other.found, loudness) > highest)
            best = best.put_back(better, other.single_out(better))
        best = self._pursued_beyond(best)
        counts = best.found.present.sum(-1)
        self._counted = self.problem.unflatten(counts).reshape(self.task.spoilt.shape), best
        return self._counted[0]

    def find(self, counts: Counts) -> Sources:
        """As many sources of each scene."""
        if self._counted is not None and torch.equal(counts, self._counted[0]):
            self._final = self._counted[1]
        elif self.task.n_sources is None:
            self._final = self._answer_counted(self.problem.flatten(counts))
        else:
            self._final = self._answer_asked(self.problem.flatten(counts))
        return self._final.found.sources(self.problem)

    def polish(
        self, sources: Sources, covariance: Float[Tensor, "channel scene source 3 3"]
    ) -> tuple[Sources, Float[Tensor, "channel scene source 3 3"]]:
        """What training knows beyond the likelihood: how wide errors are, and how ranges are drawn.

        Args:
            sources: as found, in as many slots as the task has.
            covariance: from the likelihood's curvature.

        Returns:
            Sources with settled ranges inside the region, and the covariance of their errors;
            pursuit's own are left as they are.
        """
        polished, wider = self._polished(sources, covariance)
        if not bool(self._is_pursued.any()):
            return polished, wider
        stays = self.problem.unflatten(self._is_pursued)[..., None, None]
        parameters = torch.where(stays, sources.parameters, polished.parameters)
        covariance = torch.where(stays[..., None], covariance, wider)
        return Sources(parameters, sources.resolved), covariance

    def _polished(
        self, sources: Sources, covariance: Float[Tensor, "channel scene source 3 3"]
    ) -> tuple[Sources, Float[Tensor, "channel scene source 3 3"]]:
        """The same as if the network had found them all."""
        if self.are_alike and self._is_coherent is not None:
            together = covariance_by(linearize_together, self.problem, sources)
            is_coherent = self.problem.unflatten(self._is_coherent)[..., None, None, None]
            return sources, torch.where(is_coherent, together.to(covariance), covariance)
        if self.coherence is not None and self.law.range_m is not None:
            parameters, present = filled(self.problem, sources)
            known = self.problem.flatten(covariance)
            moved, wider = parameters, known
            for width in by_width(present):
                settled, spread = settle_ranges(
                    self.problem.take(width.some),
                    width.slots_of(parameters),
                    width.slots_of(present),
                    width.slots_of(known),
                    self.law.range_m,
                )
                moved, wider = width.written(moved, settled), width.written(wider, spread)
            moved, wider = map(self.problem.unflatten, (moved, wider))
            moved = moved.masked_fill(~sources.resolved[..., None], torch.nan)
            return Sources(moved, sources.resolved), wider
        if self.trust is None or self._final is None:
            return sources, covariance
        if self.problem.log_powers is not None:  # the law of symbols makes them surer
            covariance = assess(self.problem, sources).covariance
        widening = self._final.log_widening.exp()
        missing = sources.resolved.shape[-1] - widening.shape[-1]
        widening = torch.nn.functional.pad(widening, (0, missing), value=1.0)
        widening = self.problem.unflatten(widening).to(covariance)
        if self.law.range_m is None:
            return sources, covariance * widening[..., None, None]
        parameters, wider = settle_range(sources.parameters, covariance, self.law.range_m, widening)
        # the region may be narrower than the law, and directions move along
        return Sources(self.task.region.clamp(parameters), sources.resolved), wider

    def _answer_counted(self, counts: Int[Tensor, "channel scene"]) -> Judged:
        """As many sources as pursuit has counted; its own where they are more than were learned."""
        return self._answer_within(counts, lambda: self.task.pursued)

    def _answer_asked(self, counts: Int[Tensor, "channel scene"]) -> Judged:
        """As many sources as are asked for; pursuit's where they are more than were learned."""
        return self._answer_within(counts, lambda: self._pursued_asked(counts))

    def _answer_within(
        self, counts: Int[Tensor, "channel scene"], pursued: Callable[[], Found]
    ) -> Judged:
        self._is_pursued = counts > self.law.n_max
        answer = self._answer(counts.masked_fill(self._is_pursued, 0))
        if not bool(self._is_pursued.any()):
            return answer
        other = pursued()
        answer = answer.widened(other.present.shape[-1])
        return replace(answer, found=answer.found.chosen(self._is_pursued, other))

    def _pursued_asked(self, counts: Int[Tensor, "channel scene"]) -> Found:
        """Pursuit where more sources are asked for than were learned, one number at a time."""
        problem = self.task.problem
        beyond = sorted({k for k in counts.flatten().tolist() if k > self.law.n_max})
        answer = nothing(problem).widened(max(beyond))
        for k in beyond:
            some = pack_scenes(counts == k)
            asked = take_scenes(counts.where(counts == k, 0), some)
            found = nomp(problem.take(some), grid=None, n_sources=asked)
            answer = answer.replaced(found.widened(max(beyond)), some, asked == k)
        return answer

    def _pursued_beyond(self, best: Judged) -> Judged:
        """The same, but for scenes in which pursuit counts more sources than were learned.

        It is asked where all that were learned do not explain what was heard.
        """
        most, problem = self.law.n_max, self.task.problem
        if self.task.most_sources <= most:
            return best
        found = best.found
        is_full = found.present.sum(-1) == most
        if self.problem is not problem:  # what symbols cost is no power that is left
            found = at_places(problem, found.parameters, found.present)
        some = pack_scenes(is_full & ~is_settled(problem, found))
        if some.shape[1] == 0:
            return best
        pursued = pursue(problem.take(some), None, self.task.most_sources)
        is_more = take_scenes(is_full, some) & (pursued.present.sum(-1) > most)
        self._is_pursued = put_scenes(self._is_pursued, is_more, some)
        best = best.widened(self.task.most_sources)
        return replace(best, found=best.found.replaced(pursued, some, is_more))

    def _answer(self, counts: Counts) -> Judged:
        """Answers to the scenes of one number of sources at a time.

        In the slots of the fullest scene others would be rounded otherwise, and depend on it.
        """
        different = sorted({k for k in counts.flatten().tolist() if k > 0})
        if len(different) < 2:
            return self._answer_alike(counts)
        most = max(different)
        answer = _unjudged(nothing(self.problem).widened(most))
        is_coherent = torch.zeros_like(counts, dtype=torch.bool)
        for k in different:
            some = counts == k
            part = self._answer_alike(counts.where(some, 0)).single_out(some)
            answer = answer.put_back(some, part.widened(most))
            if self._is_coherent is not None:
                is_coherent |= self._is_coherent & some
        self._is_coherent = is_coherent
        return answer

    def _answer_alike(self, counts: Counts) -> Judged:
        if int(counts.max()) == 0:
            return _unjudged(nothing(self.problem))
        if self.coherence is not None:
            if len(self.problem.active) > 1 and not self.are_alike:
                found, self._is_coherent = pursue_near(self.coherence, self.problem, counts)
                return _unjudged(found)
            found, self._is_coherent = pursue_by_coherence(
                self.coherence, self.problem, counts, are_alike=self.are_alike
            )
            return _unjudged(found)
        if self.trust is None:
            return _unjudged(self._settled_peaks(counts))
        return self._look(first_answer(self.problem, self.dictionary, counts))

    def _greedy_answers(self, most: int) -> list[Found]:
        """First answers of 0 to so many sources, in as many slots."""
        grown = nothing(self.problem)
        answers = [grown.widened(most)]
        everywhere = torch.ones_like(grown.cost, dtype=torch.bool)
        for _ in range(most):
            grown = append(self.problem, self.dictionary, grown, everywhere, FIRST_GROWTH_STEPS)
            answers.append(refined_quickly(self.problem, grown).widened(most))
        return answers

    def _look(self, found: Found, wanted: Bool[Tensor, "channel scene"] | None = None) -> Judged:
        if self.trust is None:
            return _unjudged(found)
        counts, n_slots = found.present.sum(-1), found.present.shape[-1]
        return look_again(
            self.trust,
            Loudness.of(self.law),
            self.problem,
            self.dictionary,
            found,
            lambda some: self._from_peaks(some, counts).widened(n_slots),
            wanted,
        )

    def _settled_peaks(self, counts: Counts) -> Found:
        """Peaks of the pseudo-spectrum, re-detected where the residual is not noise."""
        found = self._from_peaks(torch.ones_like(counts, dtype=torch.bool), counts)
        doubtful = ~is_settled(self.problem, found)
        found = redetect(self.problem, self.dictionary, found, doubtful, _STARTS)
        return finish(self.problem, found)

    def _from_peaks(self, some: Bool[Tensor, "channel scene"], counts: Counts) -> Found:
        """Sources refined from the peaks of the pseudo-spectrum, each scene a channel."""
        whole = self.trust is None  # else every scene is asked for as a channel
        problem = self.problem if whole else self.problem.single_out(some)
        wanted = counts if whole else counts[some][:, None]
        image = self.network.image(self._heard(some))
        most = int(some.sum(1).max())
        is_wanted = torch.arange(most, device=some.device) < some.sum(1, keepdim=True)
        found = self.network.decode(self.network.spectrum(image[is_wanted]), wanted.flatten())
        n_slots = int(counts.max())
        shape = (*wanted.shape, n_slots)
        present = found.resolved[:, :n_slots].reshape(shape)
        low, high = problem.box.unbind(0)
        parameters = found.parameters[:, :n_slots].to(low).reshape(*shape, 3)
        share = (torch.arange(n_slots, device=some.device) + 1.0) / (n_slots + 1.0)
        spare = low + (high - low) * share.to(low)[:, None]
        parameters = torch.where(present[..., None], parameters, spare)
        # a map with fewer peaks than sources: the missing start along the region's diagonal
        present = torch.arange(n_slots, device=some.device) < wanted[..., None]
        refined = refine(problem, parameters, present, _STEPS)
        return Found(refined.parameters, present, refined.cost)

    def _heard(self, some: Bool[Tensor, "channel scene"]) -> Observation:
        """The observation of some scenes, filled up with others to one number per channel."""
        heard, packed = self.task.observation, pack_scenes(some)
        y = heard.y.reshape(*some.shape, *heard.y.shape[2:])  # a plain array's channels are one
        return replace(
            heard,
            y=take_scenes(y, packed).to(torch.complex64),
            operator=heard.operator[: len(some)].to(torch.complex64),
            noise_power=take_scenes(heard.noise_power.reshape(some.shape), packed).float(),
        )


def symbols_of(pretrained: Pretrained, problem: Problem) -> Problem:
    """What the scenes that a network was trained on tell about amplitudes.

    Args:
        pretrained: a network; without a trust head it knows nothing of them.
        problem: what was heard.

    Returns:
        The problem with bounds of the symbols' power, where they change from code to code.
    """
    scene = pretrained.scene
    is_data = scene.surface is not None and scene.symbols == "data"
    if not is_data or pretrained.network.head.trust is None:
        return problem
    return replace(problem, log_powers=Loudness.of(scene.sources).log_powers)


def _unjudged(found: Found) -> Judged:
    """An answer that nobody was asked about."""
    nothing_said = torch.zeros_like(found.parameters[..., 0], dtype=torch.float32)
    return Judged(found, nothing_said, nothing_said)


def _picked(answers: list[Found], which: Int[Tensor, "channel scene"]) -> Found:
    """One of several answers of as many slots, scene by scene."""
    picked = answers[0]
    for number, answer in enumerate(answers):
        picked = picked.chosen(which == number, answer)
    return picked
