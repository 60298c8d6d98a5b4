"""How far off: distances in space and angles in the far field, as functions and as metrics.

The metrics look only at sources that found an estimate: read them beside the share of those that
did, in `musicnet.metrics.detection`.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from musicnet.coordinates import angles
from musicnet.metrics.matching import match, match_by
from musicnet.scene.sources import Sources

Statistic = Literal["median", "rmse"]


def position_errors(
    estimate: Sources, truth: Sources, cap: float = 3.0
) -> Float[Tensor, "*batch source"]:
    """Distance of each true source to the estimate that stands for it.

    Args:
        estimate: any number of slots.
        truth: any number of slots, the same batch.
        cap: metres; see `musicnet.metrics.matching.match`.

    Returns:
        Metres, between unit vectors in the far field; NaN where not matched.
    """
    return match(estimate, truth, cap).distance


def azimuth_rmspe(
    estimate: Sources,
    truth: Sources,
    *,
    wrap: bool = False,
) -> Float[Tensor, "*batch"]:
    """Root mean squared periodic error of each scene's azimuths, in the best order.

    The order minimises the sum of squared errors over the sources that have an estimate.

    Args:
        estimate: any number of slots.
        truth: any number of slots, the same batch.
        wrap: take differences modulo 180 degrees, as neural peers do: +90 and -90 are then one
            direction. False takes them as they are.

    Returns:
        Radians; NaN for scenes where nothing was matched.

    Source: Routtenberg & Tabrikian (2013), IEEE Transactions on Signal Processing 61(4), for the
    periodic error; the best order and the root per scene are those of the neural peers.
    """
    return azimuth_errors(estimate, truth, wrap=wrap).square().nanmean(-1).sqrt()


def azimuth_errors(
    estimate: Sources, truth: Sources, *, wrap: bool = False
) -> Float[Tensor, "*batch source"]:
    """Signed azimuth error of each true source, in the order of `azimuth_rmspe`.

    Args:
        estimate: any number of slots.
        truth: any number of slots, the same batch.
        wrap: take differences modulo 180 degrees, as neural peers do: +90 and -90 are then one
            direction. False takes them as they are.

    Returns:
        Estimate minus truth; radians, NaN where not matched.
    """
    difference = (
        angles(estimate.parameters)[0][..., None, :] - angles(truth.parameters)[0][..., :, None]
    )
    if wrap:
        difference = difference - torch.pi * (difference / torch.pi).round()
    largest = (2.0 * torch.pi) ** 2
    found = match_by(difference.square(), estimate.resolved, truth.resolved, cap=largest)
    chosen = difference.take_along_dim(found.estimate_index.clamp_min(0)[..., None], -1).squeeze(-1)
    return chosen.masked_fill(~found.matched, torch.nan)


class PositionError(Metric):
    """Error in space over all sources that were matched.

    Args:
        statistic: "median", or "rmse", which outliers rule.
        cap: metres; see `musicnet.metrics.matching.match`.
        **metric_options: of torchmetrics.

    Example:
        >>> truth = Sources(torch.tensor([[[0.0, 0.0, 1.0]]]), torch.tensor([[True]]))
        >>> estimate = Sources(torch.tensor([[[0.0, 0.0, 0.5]]]), torch.tensor([[True]]))
        >>> metric = PositionError()
        >>> metric.update(estimate, truth)
        >>> metric.compute().item()
        1.0
    """

    full_state_update = False
    higher_is_better = False
    distances: list[Tensor]

    def __init__(
        self, statistic: Statistic = "median", cap: float = 3.0, **metric_options: Any
    ) -> None:
        super().__init__(**metric_options)
        if statistic not in ("median", "rmse"):
            raise ValueError(f"statistic must be 'median' or 'rmse': got {statistic!r}.")
        self.statistic = statistic
        self.cap = cap
        self.add_state("distances", default=[], dist_reduce_fx="cat")

    def update(self, estimate: Sources, truth: Sources) -> None:
        """Counts a batch in.

        Args:
            estimate: what was found.
            truth: what is there.
        """
        found = match(estimate, truth, self.cap)
        self.distances.append(found.distance[found.matched])

    def compute(self) -> Tensor:
        """The statistic in metres; NaN before any source was matched."""
        if len(self.distances) == 0:
            return torch.tensor(torch.nan, device=self.device)
        distances = dim_zero_cat(self.distances)
        if self.statistic == "median":
            return distances.quantile(0.5) if distances.numel() else distances.mean()
        return distances.square().mean().sqrt()


class AzimuthError(PositionError):
    """Error in azimuth over all sources that were matched, pooled over scenes; degrees.

    Args:
        statistic: "median" of the absolute error, or "rmse", which outliers rule.
        wrap: take differences modulo 180 degrees; see `azimuth_errors`.
        **metric_options: of torchmetrics.
    """

    def __init__(
        self, statistic: Statistic = "median", *, wrap: bool = False, **metric_options: Any
    ) -> None:
        super().__init__(statistic, **metric_options)
        self.wrap = wrap

    def update(self, estimate: Sources, truth: Sources) -> None:
        """Counts a batch in.

        Args:
            estimate: what was found.
            truth: what is there.
        """
        errors = azimuth_errors(estimate, truth, wrap=self.wrap).abs().rad2deg()
        self.distances.append(errors[~errors.isnan()])


class AzimuthRMSPE(Metric):
    """Mean over scenes of the root mean squared periodic error of azimuth, in degrees.

    Scenes in which nothing was matched do not count.

    Args:
        wrap: take differences modulo 180 degrees; see `azimuth_errors`.
        **metric_options: of torchmetrics.
    """

    full_state_update = False
    higher_is_better = False
    total: Tensor
    n_scenes: Tensor

    def __init__(self, *, wrap: bool = False, **metric_options: Any) -> None:
        super().__init__(**metric_options)
        self.wrap = wrap
        self.add_state("total", default=torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("n_scenes", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, estimate: Sources, truth: Sources) -> None:
        """Counts a batch in.

        Args:
            estimate: what was found.
            truth: what is there.
        """
        errors = azimuth_rmspe(estimate, truth, wrap=self.wrap).rad2deg()
        self.total = self.total + errors.nansum()
        self.n_scenes = self.n_scenes + (~errors.isnan()).sum()

    def compute(self) -> Tensor:
        """Degrees; NaN before any scene counted."""
        return self.total / self.n_scenes
