"""Who takes part in an evaluation: the network alone, the whole method, and whom they must beat.

A contestant is a function from a `Question` to a `Reply`; `CONTESTANTS` is the list, and one more
variant is one more entry. All are given the same prior: the region, and the most sources.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from musicnet.estimation import pursuit
from musicnet.estimation.problem import Problem, compress
from musicnet.estimation.refinement import refine
from musicnet.estimation.subspace_fitting import refit
from musicnet.localization.confidence import assess
from musicnet.localization.estimates import Estimates
from musicnet.localization.estimator import localize
from musicnet.localization.neural_methods import symbols_of
from musicnet.networks.neural_music import NeuralMusic
from musicnet.networks.pretrained import Pretrained
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import Observation
from musicnet.scene.sources import Sources
from musicnet.shapes import Points

FROM_TRUTH = "ml-from-truth"
"""Maximum likelihood started at the truth: no estimator, but it splits search from noise."""

_REFINEMENT_STEPS = 20


@dataclass(frozen=True)
class Question:
    """What a contestant is asked.

    Args:
        observation: batch (channel, scene).
        n_sources: K of every scene; None where it is not told.
        scene: the physics; its region and ``n_max`` are the prior.
        pretrained: the network that is judged.
        truth: for `FROM_TRUTH` alone.
    """

    observation: Observation
    n_sources: int | None
    scene: Scene
    pretrained: Pretrained
    truth: Sources

    @property
    def most_sources(self) -> int:
        """Most sources that a scene may hold, as far as anybody is told."""
        return min(self.scene.sources.n_max, self.scene.n_rows - 1)


@dataclass(frozen=True)
class Reply:
    """What it says.

    Args:
        sources: at most six slots.
        std_xyz: standard deviations that it states; None if it states none.
    """

    sources: Sources
    std_xyz: Points | None = None


@dataclass(frozen=True)
class Contestant:
    """A way to find sources.

    Args:
        answer: finds them.
        counts: whether it can do so without being told how many there are.
    """

    answer: Callable[[Question], Reply]
    counts: bool = False


def ask(contestant: Contestant, question: Question) -> Reply:
    """Has a question answered, without gradients."""
    with torch.no_grad():
        return contestant.answer(question)


def network_alone(question: Question) -> Reply:
    """Decoded peaks of the network, without refinement."""
    network, heard = question.pretrained.network, question.observation
    spectrum = network(heard)
    if question.n_sources is None:
        return Reply(network.decode(spectrum))
    counts = torch.full(heard.y.shape[:-2], question.n_sources, device=heard.y.device)
    return Reply(network.decode(spectrum, counts))


def named(method: str) -> Callable[[Question], Reply]:
    """A method of `musicnet.localization.localize`."""

    def answer(question: Question) -> Reply:
        found = localize(
            question.observation,
            method,
            question.n_sources,
            region=question.scene.region,
            most_sources=question.most_sources,
            pretrained=question.pretrained,
        )
        return Reply(found.sources, found.std_xyz)

    return answer


def two_starts(question: Question) -> Reply:
    """`multistart` with two starts instead of four."""
    problem = compress(question.observation, question.scene.region)
    counts = question.n_sources or question.most_sources
    found = pursuit.multistart(problem, grid=None, n_sources=counts, n_starts=2)
    if problem.operator is None and problem.n_snapshots > 1:
        found = refit(problem, grid=None, found=found)
    return _assessed(problem, found.sources(problem))


def from_truth(question: Question) -> Reply:
    """Refinement from where the sources are, with all that the network's scenes tell of symbols."""
    problem = compress(question.observation, question.scene.region)
    problem = symbols_of(question.pretrained, problem)
    truth = question.truth
    start, present = problem.flatten(truth.parameters), problem.flatten(truth.resolved)
    refined = refine(problem, start, present, _REFINEMENT_STEPS)
    return _assessed(problem, Sources(problem.unflatten(refined.parameters), truth.resolved))


def matched_filter(question: Question) -> Reply:
    """The whole method with the peaks of the classical score in place of the learned ones."""
    blind = without_learning(question.pretrained.network)
    pretrained = replace(question.pretrained, network=blind)
    return named("neural")(replace(question, pretrained=pretrained))


@lru_cache(maxsize=1)
def without_learning(network: NeuralMusic) -> NeuralMusic:
    """A network whose pseudo-spectrum is the classical score itself, without offsets.

    Args:
        network: left as it is.

    Returns:
        A copy in eval mode.
    """
    blind = copy.deepcopy(network).eval()
    with torch.no_grad():
        for parameter in blind.head.outputs.parameters():
            parameter.zero_()
        blind.head.score_weight.fill_(1.0)
    return blind


def _assessed(problem: Problem, sources: Sources) -> Reply:
    said = assess(problem, sources)
    found = Estimates(
        sources, said.covariance, said.log_likelihood, sources.n_sources, method="likelihood"
    )
    return Reply(found.sources, found.std_xyz)


CONTESTANTS: dict[str, Contestant] = {
    "net": Contestant(network_alone, counts=True),
    "neural": Contestant(named("neural"), counts=True),
    "nomp": Contestant(named("nomp"), counts=True),
    "multistart": Contestant(named("multistart"), counts=True),
    "multistart-2": Contestant(two_starts),
    FROM_TRUTH: Contestant(from_truth),
    "matched-filter": Contestant(matched_filter),
}
"""Name -> who takes part, in the order of the table."""
