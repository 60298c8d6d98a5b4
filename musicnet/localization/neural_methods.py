"""Methods that start from a trained network."""

from dataclasses import replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from musicnet.estimation.dictionary import Dictionary
from musicnet.estimation.found import Found, finish, is_settled, nothing
from musicnet.estimation.posterior import Loudness, log_posterior
from musicnet.estimation.problem import Problem, pack_scenes, take_scenes
from musicnet.estimation.range_posterior import settle_range
from musicnet.estimation.redetection import redetect
from musicnet.estimation.refinement import refine
from musicnet.localization.likelihood_methods import Counts, count_by_pursuit
from musicnet.localization.second_look import Judged, first_answer, look_again
from musicnet.localization.task import Task
from musicnet.networks.neural_music import NeuralMusic
from musicnet.networks.pretrained import Pretrained
from musicnet.scene.snapshots import Observation
from musicnet.scene.sources import Sources

# steps of refinement from a peak of the pseudo-spectrum
_STEPS = 8
_STARTS = 3


class NeuralSearch:
    """What a trained network makes of one task; answers are found once, however often asked for.

    Args:
        task: what has to be localised.
        pretrained: the network.
    """

    def __init__(self, task: Task, pretrained: Pretrained) -> None:
        self.task = task
        self.problem: Problem = task.problem
        self.network: NeuralMusic = pretrained.network
        self.law = pretrained.scene.sources
        self.trust = pretrained.network.head.trust
        self._counted: tuple[Counts, Judged] | None = None
        self._final: Judged | None = None

    @cached_property
    def dictionary(self) -> Dictionary:
        """Cells to try."""
        return Dictionary.over(self.problem, None)

    def count(self) -> Counts:
        """The most probable number of sources; by pursuit where the network has no trust head."""
        if self.trust is None:
            return count_by_pursuit(self.task)
        loudness = Loudness.of(self.law)
        best = _unjudged(nothing(self.problem))
        highest = log_posterior(self.problem, best.found, loudness)
        counts = torch.zeros_like(highest, dtype=torch.long)
        for k in range(1, min(self.task.most_sources, self.law.n_max) + 1):
            answer = self._answer(torch.full_like(counts, k))
            probable = log_posterior(self.problem, answer.found, loudness)
            better = probable > highest
            highest = torch.where(better, probable, highest)
            best = _widened(best, k).put_back(better, answer.single_out(better))
            counts = counts.masked_fill(better, k)
        self._counted = self.problem.unflatten(counts).reshape(self.task.spoilt.shape), best
        return self._counted[0]

    def find(self, counts: Counts) -> Sources:
        """As many sources of each scene."""
        most = int(counts.max())
        if most > self.law.n_max:
            raise ValueError(
                f"this network was trained for up to {self.law.n_max} sources: got {most}. "
                "Use nomp."
            )
        if self._counted is not None and torch.equal(counts, self._counted[0]):
            self._final = self._counted[1]
        else:
            self._final = self._answer(self.problem.flatten(counts))
        return self._final.found.sources(self.problem)

    def polish(
        self, sources: Sources, covariance: Float[Tensor, "channel scene source 3 3"]
    ) -> tuple[Sources, Float[Tensor, "channel scene source 3 3"]]:
        """What training knows beyond the likelihood: how wide errors are, and how ranges are drawn.

        Args:
            sources: as found, in as many slots as the task has.
            covariance: from the likelihood's curvature.

        Returns:
            Sources with settled ranges, and the covariance of their errors.
        """
        if self.trust is None or self._final is None:
            return sources, covariance
        widening = self._final.log_widening.exp()
        missing = sources.resolved.shape[-1] - widening.shape[-1]
        widening = torch.nn.functional.pad(widening, (0, missing), value=1.0)
        covariance = covariance * self.problem.unflatten(widening).to(covariance)[..., None, None]
        if self.law.range_m is None:
            return sources, covariance
        parameters, covariance = settle_range(sources.parameters, covariance, self.law.range_m)
        return Sources(parameters, sources.resolved), covariance

    def _answer(self, counts: Counts) -> Judged:
        if int(counts.max()) == 0:
            return _unjudged(nothing(self.problem))
        if self.trust is None:
            return _unjudged(self._settled_peaks(counts))
        found = first_answer(self.problem, self.dictionary, counts)
        return look_again(
            self.trust,
            Loudness.of(self.law),
            self.problem,
            self.dictionary,
            found,
            lambda some: self._from_peaks(some, counts),
        )

    def _settled_peaks(self, counts: Counts) -> Found:
        """Peaks of the pseudo-spectrum, re-detected where the residual is not noise."""
        found = self._from_peaks(torch.ones_like(counts, dtype=torch.bool), counts)
        doubtful = ~is_settled(self.problem, found)
        found = redetect(self.problem, self.dictionary, found, doubtful, _STARTS)
        return finish(self.problem, found)

    def _from_peaks(self, some: Bool[Tensor, "channel scene"], counts: Counts) -> Found:
        """Sources refined from the peaks of the pseudo-spectrum, each scene a channel."""
        whole = bool(some.all())
        problem = self.problem if whole else self.problem.single_out(some)
        wanted = counts if whole else counts[some][:, None]
        image = self.network.image(self._heard(some))
        most = int(some.sum(1).max())
        is_wanted = torch.arange(most, device=some.device) < some.sum(1, keepdim=True)
        found = self.network.decode(self.network.spectrum(image[is_wanted]), wanted.flatten())
        n_slots = int(counts.max())
        shape = (*wanted.shape, n_slots)
        present = found.resolved[:, :n_slots].reshape(shape)
        middle = problem.box.mean(0)
        parameters = found.parameters[:, :n_slots].to(middle).reshape(*shape, 3)
        parameters = torch.where(present[..., None], parameters, middle)
        # a map with fewer peaks than sources: the missing start in the middle
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


def _unjudged(found: Found) -> Judged:
    """An answer that nobody was asked about."""
    nothing_said = torch.zeros_like(found.parameters[..., 0])
    return Judged(found, nothing_said, nothing_said)


def _widened(answer: Judged, n_slots: int) -> Judged:
    """The same with empty slots behind."""
    missing = n_slots - answer.trust.shape[-1]
    pad = torch.nn.functional.pad
    found = answer.found
    found = Found(
        pad(found.parameters, (0, 0, 0, missing)), pad(found.present, (0, missing)), found.cost
    )
    return Judged(
        found,
        pad(answer.trust, (0, missing), value=torch.inf),
        pad(answer.log_widening, (0, missing)),
    )
