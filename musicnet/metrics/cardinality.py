r"""Distances between sets of sources whose number is unknown too: GOSPA and OSPA.

.. math:: GOSPA^p = \sum_{pairs} d^p + \frac{c^p}{2} (missed + false)

over the assignment that makes it least; pairs farther apart than c are no pairs.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics import Metric

from musicnet.metrics.matching import match_by
from musicnet.scene.sources import Sources


@dataclass(frozen=True)
class Gospa:
    """GOSPA (alpha = 2) of each scene, and its three parts to the power p.

    Args:
        distance: metres; 0 only for the same set.
        localization: sum of d^p over the pairs.
        missed: c^p / 2 for each true source without an estimate.
        surplus: c^p / 2 for each estimate without a true source.
    """

    distance: Float[Tensor, "*batch"]
    localization: Float[Tensor, "*batch"]
    missed: Float[Tensor, "*batch"]
    surplus: Float[Tensor, "*batch"]


def gospa(estimate: Sources, truth: Sources, cutoff: float = 1.0, order: float = 2.0) -> Gospa:
    """Generalised optimal sub-pattern assignment.

    Args:
        estimate: any number of slots.
        truth: any number of slots, the same batch.
        cutoff: c in metres, beyond which an estimate has found nothing.
        order: p.

    Returns:
        The distance of each scene and its parts.

    Source: Rahmathullah, Garcia-Fernandez & Svensson (2017), FUSION.

    Example:
        >>> truth = Sources(torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.5]]), torch.ones(2) > 0)
        >>> one = Sources(truth.parameters, torch.tensor([True, False]))
        >>> round(gospa(one, truth).distance.item(), 4)
        0.7071
    """
    _check(cutoff, order)
    powers, near = _pairs(estimate, truth, cutoff, order)
    share = 0.5 * cutoff**order
    localization = powers.where(near, 0.0).sum(-1)
    missed = share * (truth.resolved.sum(-1) - near.sum(-1))
    surplus = share * (estimate.resolved.sum(-1) - near.sum(-1))
    distance = (localization + missed + surplus) ** (1.0 / order)
    return Gospa(distance, localization, missed, surplus)


def ospa(
    estimate: Sources, truth: Sources, cutoff: float = 1.0, order: float = 2.0
) -> Float[Tensor, "*batch"]:
    r"""Optimal sub-pattern assignment: an average over sources, not a sum.

    .. math:: OSPA^p = \frac{1}{\max(m, n)} (\sum_{pairs} \min(d, c)^p + c^p |m - n|)

    Args:
        estimate: any number of slots.
        truth: any number of slots, the same batch.
        cutoff: c in metres.
        order: p.

    Returns:
        Metres, from 0 to c; 0 for two empty sets.

    Source: Schuhmacher, Vo & Vo (2008), IEEE Transactions on Signal Processing 56(8).
    """
    _check(cutoff, order)
    powers, near = _pairs(estimate, truth, cutoff, order)
    n_estimate, n_truth = estimate.resolved.sum(-1), truth.resolved.sum(-1)
    largest = torch.maximum(n_estimate, n_truth)
    # what is not near costs c, whether it is a pair or one too many
    total = powers.where(near, 0.0).sum(-1) + cutoff**order * (largest - near.sum(-1))
    averaged: Tensor = total / largest.clamp_min(1)
    return averaged ** (1.0 / order)


def _check(cutoff: float, order: float) -> None:
    if not (cutoff > 0 and order >= 1):
        raise ValueError(
            f"cutoff must be positive and order at least 1: got cutoff={cutoff}, order={order}."
        )


def _pairs(
    estimate: Sources, truth: Sources, cutoff: float, order: float
) -> tuple[Float[Tensor, "*batch source"], Bool[Tensor, "*batch source"]]:
    """Distance to the power p of each true source to its estimate, and whether it is near."""
    offsets = truth.xyz[..., :, None, :] - estimate.xyz[..., None, :, :]
    powers = torch.linalg.vector_norm(offsets, dim=-1) ** order
    found = match_by(powers, estimate.resolved, truth.resolved, cap=cutoff**order)
    return found.distance, found.matched & (found.distance < cutoff**order)


class GospaDistance(Metric):
    """Mean GOSPA over scenes.

    Args:
        cutoff: c in metres.
        order: p.
        **metric_options: of torchmetrics.

    Raises:
        ValueError: a cutoff that is not positive, or an order below one.
    """

    full_state_update = False
    higher_is_better = False
    total: Tensor
    n_scenes: Tensor

    def __init__(self, cutoff: float = 1.0, order: float = 2.0, **metric_options: Any) -> None:
        super().__init__(**metric_options)
        _check(cutoff, order)
        self.cutoff = cutoff
        self.order = order
        self.add_state("total", default=torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("n_scenes", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, estimate: Sources, truth: Sources) -> None:
        """Counts a batch in.

        Args:
            estimate: what was found.
            truth: what is there.
        """
        distance = self._distance(estimate, truth)
        self.total = self.total + distance.sum()
        self.n_scenes = self.n_scenes + distance.numel()

    def _distance(self, estimate: Sources, truth: Sources) -> Tensor:
        return gospa(estimate, truth, self.cutoff, self.order).distance

    def compute(self) -> Tensor:
        """Metres; NaN before any scene was seen."""
        return self.total / self.n_scenes


class OspaDistance(GospaDistance):
    """Mean OSPA over scenes.

    Args:
        cutoff: c in metres.
        order: p.
        **metric_options: of torchmetrics.

    Raises:
        ValueError: a cutoff that is not positive, or an order below one.
    """

    def _distance(self, estimate: Sources, truth: Sources) -> Tensor:
        return ospa(estimate, truth, self.cutoff, self.order)
