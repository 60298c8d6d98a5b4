"""Methods that start from a trained network."""

from dataclasses import replace
from functools import cached_property

import torch
from jaxtyping import Bool
from torch import Tensor

from musicnet.estimation.dictionary import Dictionary
from musicnet.estimation.found import Found, finish, is_settled, nothing
from musicnet.estimation.posterior import Loudness, log_posterior
from musicnet.estimation.problem import Problem, pack_scenes, take_scenes
from musicnet.estimation.redetection import redetect
from musicnet.estimation.refinement import refine
from musicnet.localization.likelihood_methods import Counts, count_by_pursuit
from musicnet.localization.line_search import weigh
from musicnet.localization.second_look import first_answer, look_again
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
        self.judge = pretrained.network.head.judge
        self._counted: tuple[Counts, Found] | None = None

    @cached_property
    def dictionary(self) -> Dictionary:
        """Cells to try."""
        return Dictionary.over(self.problem, None)

    def count(self) -> Counts:
        """The most probable number of sources; by pursuit where the network has no trust head."""
        if self.trust is None:
            return count_by_pursuit(self.task)
        loudness = Loudness.of(self.law)
        best = nothing(self.problem)
        highest = log_posterior(self.problem, best, loudness)
        counts = torch.zeros_like(highest, dtype=torch.long)
        for k in range(1, min(self.task.most_sources, self.law.n_max) + 1):
            found = self._found(torch.full_like(counts, k))
            probable = log_posterior(self.problem, found, loudness)
            better = probable > highest
            highest = torch.where(better, probable, highest)
            best = _widened(best, k).chosen(better, found)
            counts = counts.masked_fill(better, k)
        self._counted = self.problem.unflatten(counts).reshape(self.task.spoilt.shape), best
        return self._counted[0]

    def find(self, counts: Counts) -> Sources:
        """As many sources of each scene."""
        self._check(counts)
        if self._counted is not None and torch.equal(counts, self._counted[0]):
            return self._counted[1].sources(self.problem)
        return self._found(self.problem.flatten(counts)).sources(self.problem)

    def _found(self, counts: Counts) -> Found:
        if int(counts.max()) == 0:
            return nothing(self.problem)
        # a single snapshot has no symbols to weigh answers by
        if self.judge is not None and self.problem.n_snapshots > 1:
            return weigh(self.judge, self.problem, counts)
        if self.trust is None:
            everywhere = torch.ones_like(counts, dtype=torch.bool)
            found = self._from_peaks(everywhere, counts)
            doubtful = ~is_settled(self.problem, found)
            found = redetect(self.problem, self.dictionary, found, doubtful, _STARTS)
            return finish(self.problem, found)
        found = first_answer(self.problem, self.dictionary, counts)

        def propose(some: Bool[Tensor, "channel scene"]) -> Found:
            return self._from_peaks(some, counts)

        loudness = Loudness.of(self.law)
        return look_again(self.trust, loudness, self.problem, self.dictionary, found, propose)

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

    def _check(self, counts: Counts) -> None:
        most = int(counts.max())
        if most > self.law.n_max:
            raise ValueError(
                f"this network was trained for up to {self.law.n_max} sources: got {most}. "
                "Use nomp."
            )


def _widened(found: Found, n_slots: int) -> Found:
    """The same with empty slots behind."""
    missing = n_slots - found.present.shape[-1]
    pad = torch.nn.functional.pad
    return Found(
        pad(found.parameters, (0, 0, 0, missing)), pad(found.present, (0, missing)), found.cost
    )
