"""What the answers to one cell's scenes are worth: one `Score` per method, then the figures of it.

Everything is kept channel by channel, since scenes that share a channel are one draw.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from musicnet.coordinates import angles, wrap_angle, xyz_jacobian
from musicnet.estimation.bounds import angle_jacobian
from musicnet.localization.contestants import Reply
from musicnet.metrics.bound_ratios import (
    OUTLIER_FACTOR,
    bound_ratio,
    efficiency,
    outlier_rate,
)
from musicnet.metrics.cardinality import gospa
from musicnet.metrics.intervals import Statistic, channel_interval
from musicnet.metrics.matching import Matching, match
from musicnet.scene.sources import SourceLaw, Sources

RECALL_DISTANCE_M = 0.5
GOSPA_CUTOFF_M = 1.0
GOSPA_ORDER = 2.0

_CAP_SHARE = 0.6  # of the farthest range: 3 m in a room of 5 m
_FAR_CAP = 3.0

Figures = dict[str, Any]
"""Name -> number, None where there is none, or [lowest, highest] of an interval."""


@dataclass(frozen=True)
class Truth:
    """What is true of a batch of scenes.

    Args:
        sources: batch (channel, scene), every slot resolved.
        bound: Cramér-Rao bound with the true amplitudes, covariance of (u, v, rho).
        law: what the sources were drawn from.
    """

    sources: Sources
    bound: Float[Tensor, "channel scene source 3 3"]
    law: SourceLaw

    @property
    def error(self) -> str:
        """Kind of error that is measured, with its unit."""
        return "azimuth_deg" if self.law.range_m is None else "position_m"

    @property
    def cap(self) -> float:
        """Metres; see `musicnet.metrics.matching.match`."""
        return _FAR_CAP if self.law.range_m is None else _CAP_SHARE * self.law.range_m[1]


@dataclass(frozen=True)
class Score:
    """Answers of one method beside the truth; of what is ``None`` it was not asked.

    Args:
        error: of each true source, metres or degrees; NaN where it has no estimate.
        covariance: the bound of that error.
        distance: in space, metres; NaN where there is no estimate.
        surprise: squared errors in x, y, z over their stated variances; NaN for outliers, and where
            nothing is stated.
        cpu_ms: of all scenes of a channel.
        count_right: number of sources unknown: as many found as there are.
        gospa: number of sources unknown; metres.
        cpu_ms_counting: number of sources unknown; of all scenes of a channel.
    """

    error: Float[Tensor, "channel item"]
    covariance: Float[Tensor, "channel item axis axis"]
    distance: Float[Tensor, "channel item"]
    surprise: Float[Tensor, "channel item 3"]
    cpu_ms: Float[Tensor, " channel"]
    count_right: Bool[Tensor, "channel scene"] | None = None
    gospa: Float[Tensor, "channel scene"] | None = None
    cpu_ms_counting: Float[Tensor, " channel"] | None = None

    @property
    def deviation(self) -> Float[Tensor, "channel item"]:
        """Square root of the trace of the bound."""
        return self.covariance.diagonal(dim1=-2, dim2=-1).sum(-1).sqrt()

    @property
    def is_outlier(self) -> Bool[Tensor, "channel item"]:
        """Sources of known bound without an estimate near them."""
        deviation = self.deviation
        return deviation.isfinite() & ~(self.error <= OUTLIER_FACTOR * deviation)


def score(
    reply: Reply, truth: Truth, cpu_ms: float, counted: tuple[Reply, float] | None = None
) -> Score:
    """Holds answers against the truth.

    Args:
        reply: with the number of sources known.
        truth: of the same scenes.
        cpu_ms: that the reply took; shared evenly by its channels.
        counted: the reply without the number of sources and its time, if there is one.

    Returns:
        One line per channel.
    """
    matching = match(reply.sources, truth.sources, cap=truth.cap)
    error, covariance = _errors(reply.sources, truth, matching)
    deviation = covariance.diagonal(dim1=-2, dim2=-1).sum(-1).sqrt()
    near = matching.matched & (error <= OUTLIER_FACTOR * deviation)
    n_channels = len(error)
    known = Score(
        error=error.flatten(1),
        covariance=covariance.flatten(1, 2),
        distance=matching.distance.double().flatten(1),
        surprise=_surprise(reply, truth, matching, near).flatten(1, 2),
        cpu_ms=torch.full((n_channels,), cpu_ms / n_channels, dtype=torch.float64),
    )
    if counted is None:
        return known
    found, counting_ms = counted
    return Score(
        known.error,
        known.covariance,
        known.distance,
        known.surprise,
        known.cpu_ms,
        count_right=found.sources.n_sources == truth.sources.n_sources,
        gospa=gospa(found.sources, truth.sources, GOSPA_CUTOFF_M, GOSPA_ORDER).distance.double(),
        cpu_ms_counting=torch.full((n_channels,), counting_ms / n_channels, dtype=torch.float64),
    )


def joined(scores: Sequence[Score]) -> Score:
    """Scores of several batches of one method as one."""
    columns: dict[str, Any] = {}
    for field in fields(Score):
        parts = [getattr(one, field.name) for one in scores]
        columns[field.name] = None if parts[0] is None else torch.cat(parts)
    return Score(**columns)


def figures_of(given: Score, truth_kind: str, n_scenes: int, n_draws: int) -> Figures:
    """The figures of one method in one cell.

    Args:
        given: answers beside the truth.
        truth_kind: kind of error, see `Truth.error`.
        n_scenes: in all channels together.
        n_draws: of the bootstrap.

    Returns:
        By name.
    """
    error, deviation = given.error, given.deviation
    n_channels = len(error)

    def interval(statistic: Statistic) -> list[float]:
        return list(channel_interval(statistic, n_channels, n_draws))

    recall = (given.distance <= RECALL_DISTANCE_M).double().mean()
    return {
        "error": truth_kind,
        "n_scenes": n_scenes,
        "n_channels": n_channels,
        "median": _median(error),
        "median_interval": interval(lambda c: _median(error[c])),
        "rmse": float(error.square().nanmean().sqrt()),
        "bound": float(deviation[deviation.isfinite()].square().mean().sqrt()),
        "rmse_over_bound": float(bound_ratio(error, deviation)),
        "resolved": float(error.isfinite().double().mean()),
        "recall": float(recall) if truth_kind == "position_m" else None,
        "outliers": float(outlier_rate(error, deviation)),
        "outliers_interval": interval(lambda c: _outliers(given, c)),
        "efficiency": float(efficiency(error, given.covariance)),
        **_honesty(given, interval),
        "count_right": _mean(given.count_right),
        "gospa": _mean(given.gospa),
        "cpu_ms_per_scene": float(given.cpu_ms.sum()) / n_scenes,
        "cpu_ms_per_scene_counting": _mean(given.cpu_ms_counting, n_channels / n_scenes),
    }


def _honesty(given: Score, interval: Callable[[Statistic], list[float]]) -> Figures:
    """The mean surprise; a few sources can rule it, which the interval shows."""
    if not bool(given.surprise.isfinite().any()):
        return {"nees_xyz": None, "nees_xyz_interval": None}
    return {
        "nees_xyz": float(given.surprise.nanmean()),
        "nees_xyz_interval": interval(lambda c: float(given.surprise[c].nanmean())),
    }


def _mean(values: Tensor | None, unit: float = 1.0) -> float | None:
    return None if values is None else float(values.double().mean()) * unit


def compared(given: Score, other: Score, name: str, n_draws: int) -> Figures:
    """One method beside another that heard the same scenes, with paired intervals.

    Args:
        given: the one.
        other: the other.
        name: of the other, for the names of the figures.
        n_draws: of the bootstrap.

    Returns:
        ``outliers_over_<name>`` and its like; infinite or NaN where the other has none.
    """

    def more_outliers(channels: Int[Tensor, " channel"]) -> float:
        return _outliers(given, channels) - _outliers(other, channels)

    def outliers(channels: Int[Tensor, " channel"]) -> float:
        return _over(_outliers(given, channels), _outliers(other, channels))

    def median(channels: Int[Tensor, " channel"]) -> float:
        return _over(_median(given.error[channels]), _median(other.error[channels]))

    def cpu(channels: Int[Tensor, " channel"]) -> float:
        return _over(float(given.cpu_ms[channels].sum()), float(other.cpu_ms[channels].sum()))

    statistics = {
        f"outliers_less_{name}": more_outliers,
        f"outliers_over_{name}": outliers,
        f"median_over_{name}": median,
        f"cpu_over_{name}": cpu,
    }
    n_channels = len(given.error)
    everything = torch.arange(n_channels)
    figures: Figures = {}
    for column, statistic in statistics.items():
        figures[column] = statistic(everything)
        figures[f"{column}_interval"] = list(channel_interval(statistic, n_channels, n_draws))
    return figures


def _outliers(given: Score, channels: Int[Tensor, " channel"]) -> float:
    bounded = given.deviation[channels].isfinite().sum()
    return float(given.is_outlier[channels].sum() / bounded)


def _median(error: Float[Tensor, "channel item"]) -> float:
    there = error[error.isfinite()]
    return float(there.median()) if len(there) else math.nan


def _over(value: float, reference: float) -> float:
    if reference == 0.0:
        return math.nan if value == 0.0 else math.inf
    return value / reference


def _errors(
    found: Sources, truth: Truth, matching: Matching
) -> tuple[Float[Tensor, "channel scene source"], Float[Tensor, "channel scene source axis axis"]]:
    """Error of each true source, NaN where missing, and the bound's covariance of that error."""
    parameters, bound = truth.sources.parameters.double(), truth.bound
    if truth.error == "position_m":
        jacobian = xyz_jacobian(parameters)
        return matching.distance.double(), jacobian @ bound @ jacobian.mT
    estimate = _matched(found.parameters.double(), matching)
    error = wrap_angle(angles(estimate)[0] - angles(parameters)[0]).abs().rad2deg()
    jacobian = angle_jacobian(parameters)[..., :1, :].rad2deg()
    return error, jacobian @ bound @ jacobian.mT


def _surprise(
    reply: Reply, truth: Truth, matching: Matching, near: Bool[Tensor, "channel scene source"]
) -> Float[Tensor, "channel scene source 3"]:
    offset = _matched(reply.sources.xyz.double(), matching) - truth.sources.xyz.double()
    if reply.std_xyz is None:
        return torch.full_like(offset, math.nan)
    stated = _matched(reply.std_xyz.double(), matching)
    # along what the region fixes nothing is estimated
    used = near[..., None] & (stated > 0)
    return (offset / stated).square().masked_fill(~used, math.nan)


def _matched(
    values: Float[Tensor, "channel scene slot 3"], matching: Matching
) -> Float[Tensor, "channel scene source 3"]:
    """Values of the estimate that stands for each true source, NaN where there is none."""
    index = matching.estimate_index.clamp_min(0)[..., None]
    chosen = values.take_along_dim(index, dim=-2)
    return chosen.masked_fill(~matching.matched[..., None], math.nan)
