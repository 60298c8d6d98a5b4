"""What a search has found so far, and how good that is."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from musicnet.estimation.linearization import explain
from musicnet.estimation.problem import Problem, put_scenes, take_scenes
from musicnet.estimation.refinement import refine
from musicnet.estimation.symbol_likelihood import symbol_cost
from musicnet.scene.sources import Sources

_FINISHING_STEPS = 8
# a residual so many standard deviations above the noise's is not noise
_DOUBT = 2.0


@dataclass(frozen=True)
class Found:
    """Sources of every scene, in the layout of a problem.

    Args:
        parameters: (u, v, rho) inside the region; anything finite in empty slots.
        present: slots that hold a source.
        cost: power that they leave unexplained; where symbols are Gaussian, sigma^2 times minus
            the log-likelihood.
    """

    parameters: Float[Tensor, "channel scene source 3"]
    present: Bool[Tensor, "channel scene source"]
    cost: Float[Tensor, "channel scene"]

    def sources(self, problem: Problem) -> Sources:
        """The estimate: NaN in empty slots, and in scenes that were not finite.

        Args:
            problem: the one that was solved.

        Returns:
            Sources with the batch of the observation.
        """
        resolved = self.present & self.cost.isfinite()[..., None]
        parameters = self.parameters.masked_fill(~resolved[..., None], torch.nan)
        return Sources(problem.unflatten(parameters), problem.unflatten(resolved))

    def replaced(
        self,
        better: "Found",
        some: Int[Tensor, "channel some"],
        chosen: Bool[Tensor, "channel some"],
    ) -> "Found":
        """The same, with the chosen ones of some scenes taken from another search.

        Args:
            better: sources of these scenes, in as many slots.
            some: index of each.
            chosen: which of them to take.

        Returns:
            Sources of every scene.
        """
        return Found(
            put_scenes(self.parameters, better.parameters, some, chosen),
            put_scenes(self.present, better.present, some, chosen),
            put_scenes(self.cost, better.cost, some, chosen),
        )

    def take(self, some: Int[Tensor, "channel some"]) -> "Found":
        """Sources of some scenes; index of each, may repeat."""
        return Found(
            take_scenes(self.parameters, some),
            take_scenes(self.present, some),
            take_scenes(self.cost, some),
        )

    def single_out(self, wanted: Bool[Tensor, "channel scene"]) -> "Found":
        """Sources of the wanted scenes, in the layout of `Problem.single_out`."""
        return Found(
            self.parameters[wanted][:, None],
            self.present[wanted][:, None],
            self.cost[wanted][:, None],
        )

    def put_back(self, wanted: Bool[Tensor, "channel scene"], singled_out: "Found") -> "Found":
        """The same, with the wanted scenes taken from what was singled out."""
        parameters, present, cost = self.parameters.clone(), self.present.clone(), self.cost.clone()
        parameters[wanted] = singled_out.parameters[:, 0]
        present[wanted] = singled_out.present[:, 0]
        cost[wanted] = singled_out.cost[:, 0]
        return Found(parameters, present, cost)

    def widened(self, n_slots: int) -> "Found":
        """The same with empty slots behind."""
        missing = n_slots - self.present.shape[-1]
        pad = torch.nn.functional.pad
        return Found(
            pad(self.parameters, (0, 0, 0, missing)), pad(self.present, (0, missing)), self.cost
        )

    def in_order(self, order: Int[Tensor, "channel scene source"]) -> "Found":
        """The same sources in another order of slots."""
        return Found(
            self.parameters.take_along_dim(order[..., None], dim=2),
            self.present.take_along_dim(order, dim=2),
            self.cost,
        )

    def chosen(self, better: Bool[Tensor, "channel scene"], other: "Found") -> "Found":
        """The other's sources in the scenes where those are better; as many slots."""
        return Found(
            torch.where(better[..., None, None], other.parameters, self.parameters),
            torch.where(better[..., None], other.present, self.present),
            torch.where(better, other.cost, self.cost),
        )


def nothing(problem: Problem) -> Found:
    """No sources at all: where a search begins.

    Args:
        problem: what has to be explained.

    Returns:
        No slots, and all power unexplained.
    """
    n_channels, n_scenes = problem.y.shape[:2]
    power = torch.view_as_real(problem.y).flatten(2).square().sum(-1)
    parameters = power.new_zeros((n_channels, n_scenes, 0, 3))
    return Found(parameters, parameters[..., 0].bool(), power)


def at_places(
    problem: Problem,
    parameters: Float[Tensor, "channel scene source 3"],
    present: Bool[Tensor, "channel scene source"],
) -> Found:
    """Sources that stand where somebody says they stand.

    Args:
        problem: what has to be explained.
        parameters: (u, v, rho) inside the region, finite in every slot.
        present: slots that hold a source.

    Returns:
        The same, with their cost.
    """
    explained = explain(problem, parameters, present)
    is_symbols = problem.log_powers is not None and present.shape[-1] > 0
    cost = symbol_cost(problem, explained, present) if is_symbols else explained.cost
    return Found(parameters, present, cost)


def surplus(problem: Problem, found: Found) -> Float[Tensor, "channel scene"]:
    """How much more is left than noise leaves.

    Args:
        problem: knows the noise power.
        found: sources so far.

    Returns:
        Standard deviations of what noise leaves; about normal where the sources are right.
    """
    if problem.log_powers is not None:  # what is left is then as much as was heard, whitened
        left = explain(problem, found.parameters, found.present).cost
        beyond = left / problem.noise_power - problem.n_explicable
        return beyond / math.sqrt(problem.n_explicable)
    n_sources = found.present.sum(-1)
    n_amplitudes = problem.y.shape[2] * problem.n_snapshots
    freedom = problem.n_explicable - n_sources * (n_amplitudes + 0.5 * len(problem.active))
    freedom = freedom.clamp_min(1.0).to(found.cost.dtype)
    return (found.cost / problem.noise_power - freedom) / freedom.sqrt()


def is_settled(problem: Problem, found: Found) -> Bool[Tensor, "channel scene"]:
    """Whether what is left could be noise alone.

    Args:
        problem: knows the noise power.
        found: sources so far.

    Returns:
        True where the cost is not above what noise leaves, by two standard deviations.
    """
    return surplus(problem, found) <= _DOUBT


def finish(problem: Problem, found: Found) -> Found:
    """Refines until single precision has nothing more to say.

    Args:
        problem: what has to be explained.
        found: sources near their best places.

    Returns:
        The same sources at their minimum.
    """
    refined = refine(problem, found.parameters, found.present, _FINISHING_STEPS)
    return Found(refined.parameters, found.present, refined.cost)
