"""How many: what share of sources was found, found well enough, told apart, counted right."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from musicnet.metrics.matching import match
from musicnet.scene.sources import Sources


class RecallWithin(Metric):
    """Share of all true sources that have their estimate within a distance.

    Sources without an estimate count as not recalled.

    Args:
        distance_m: metres; infinity asks only whether there is an estimate.
        cap: metres; see `musicnet.metrics.matching.match`.
        **metric_options: of torchmetrics.

    Raises:
        ValueError: a distance that is not positive.

    Example:
        >>> truth = Sources(torch.tensor([[[0.0, 0.0, 1.0]]]), torch.tensor([[True]]))
        >>> metric = RecallWithin(0.5)
        >>> metric.update(truth, truth)
        >>> metric.compute().item()
        1.0
    """

    full_state_update = False
    higher_is_better = True
    n_recalled: Tensor
    n_sources: Tensor

    def __init__(self, distance_m: float = 0.5, cap: float = 3.0, **metric_options: Any) -> None:
        super().__init__(**metric_options)
        if not distance_m > 0:
            raise ValueError(f"distance_m must be positive: got {distance_m}.")
        self.distance_m = distance_m
        self.cap = cap
        self.add_state("n_recalled", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("n_sources", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, estimate: Sources, truth: Sources) -> None:
        """Counts a batch in.

        Args:
            estimate: what was found.
            truth: what is there.
        """
        distance = match(estimate, truth, self.cap).distance
        self.n_recalled = self.n_recalled + (distance <= self.distance_m).sum()
        self.n_sources = self.n_sources + truth.resolved.sum()

    def compute(self) -> Tensor:
        """A share from 0 to 1; NaN before any source was seen."""
        return self.n_recalled / self.n_sources


class ResolvedFraction(RecallWithin):
    """Share of all true sources that have any estimate, however far.

    Args:
        **metric_options: of torchmetrics.
    """

    def __init__(self, **metric_options: Any) -> None:
        super().__init__(distance_m=math.inf, **metric_options)


def is_pair_resolved(
    estimate: Sources, truth: Sources, cap: float = 3.0
) -> Float[Tensor, "*batch"]:
    """Whether every source of a scene was told from its nearest neighbour.

    Args:
        estimate: any number of slots.
        truth: any number of slots, the same batch.
        cap: metres; see `musicnet.metrics.matching.match`.

    Returns:
        1 where each true source has an estimate within half the distance to its nearest
        neighbour, else 0; NaN for scenes of fewer than two sources.

    Example:
        >>> truth = Sources(torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.5]]), torch.ones(2) > 0)
        >>> one = Sources(truth.parameters, torch.tensor([True, False]))
        >>> is_pair_resolved(truth, truth).item(), is_pair_resolved(one, truth).item()
        (1.0, 0.0)
    """
    points = truth.xyz
    apart = torch.linalg.vector_norm(points[..., :, None, :] - points[..., None, :, :], dim=-1)
    itself = torch.eye(apart.shape[-1], dtype=torch.bool, device=apart.device)
    nearest = apart.masked_fill(itself | apart.isnan(), math.inf).amin(-1)
    distance = match(estimate, truth, cap).distance
    told_apart = (distance < 0.5 * nearest) | ~truth.resolved
    resolved: Tensor = told_apart.all(-1).to(points.dtype)
    return resolved.masked_fill(truth.resolved.sum(-1) < 2, math.nan)


class ResolutionProbability(Metric):
    """Share of the scenes with two sources or more in which all were told apart.

    Args:
        cap: metres; see `musicnet.metrics.matching.match`.
        **metric_options: of torchmetrics.
    """

    full_state_update = False
    higher_is_better = True
    n_resolved: Tensor
    n_scenes: Tensor

    def __init__(self, cap: float = 3.0, **metric_options: Any) -> None:
        super().__init__(**metric_options)
        self.cap = cap
        self.add_state("n_resolved", default=torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("n_scenes", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, estimate: Sources, truth: Sources) -> None:
        """Counts a batch in.

        Args:
            estimate: what was found.
            truth: what is there.
        """
        resolved = is_pair_resolved(estimate, truth, self.cap)
        self.n_resolved = self.n_resolved + resolved.nansum()
        self.n_scenes = self.n_scenes + (~resolved.isnan()).sum()

    def compute(self) -> Tensor:
        """A share from 0 to 1; NaN before any such scene was seen."""
        return self.n_resolved / self.n_scenes


class CountAccuracy(Metric):
    """Share of scenes in which as many sources were found as there are.

    Args:
        **metric_options: of torchmetrics.
    """

    full_state_update = False
    higher_is_better = True
    n_right: Tensor
    n_scenes: Tensor

    def __init__(self, **metric_options: Any) -> None:
        super().__init__(**metric_options)
        self.add_state("n_right", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("n_scenes", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, estimate: Sources, truth: Sources) -> None:
        """Counts a batch in.

        Args:
            estimate: what was found.
            truth: what is there.
        """
        right = estimate.n_sources == truth.n_sources
        self.n_right = self.n_right + right.sum()
        self.n_scenes = self.n_scenes + right.numel()

    def compute(self) -> Tensor:
        """A share from 0 to 1; NaN before any scene was seen."""
        return self.n_right / self.n_scenes
