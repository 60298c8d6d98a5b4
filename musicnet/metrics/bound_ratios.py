"""Errors beside the Cramér-Rao bound: outliers, ratios to the bound, honesty of error bars.

The functions take errors and bounds of any kind, one per true source, NaN where there is none. The
metrics take sources and the bound's covariance of (u, v, rho), and look at distances in space.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from musicnet.coordinates import xyz_jacobian
from musicnet.metrics.matching import match
from musicnet.scene.sources import Sources

OUTLIER_FACTOR = 4.0
"""An error above this many standard deviations of the bound is a failed search, not noise."""


def outlier_rate(
    errors: Float[Tensor, "*batch"],
    deviations: Float[Tensor, "*batch"],
    factor: float = OUTLIER_FACTOR,
) -> Float[Tensor, ""]:
    """Share of sources that are far beyond what noise can do.

    Args:
        errors: of each true source, >= 0; NaN where it has no estimate, which counts as an
            outlier.
        deviations: sqrt(tr CRB) of each; NaN or infinite where there is no source or no bound,
            which leaves it out.
        factor: how many deviations are still noise.

    Returns:
        A share from 0 to 1; NaN without any source.

    Example:
        >>> outlier_rate(torch.tensor([1.0, 9.0, torch.nan]), torch.tensor([1.0, 2.0, 1.0])).item()
        0.6667
    """
    bounded = deviations.isfinite()
    near = errors <= factor * deviations
    return (bounded & ~near).sum() / bounded.sum()


def bound_ratio(
    errors: Float[Tensor, "*batch"], deviations: Float[Tensor, "*batch"]
) -> Float[Tensor, ""]:
    """Root mean squared error over that of the bound: 1 is as good as can be.

    Args:
        errors: of each true source; NaN leaves it out.
        deviations: sqrt(tr CRB) of each; what is not finite leaves it out.

    Returns:
        A ratio; a single outlier can rule it, so read `outlier_rate` beside it.

    Example:
        >>> bound_ratio(torch.tensor([3.0, 4.0]), torch.tensor([5.0, 5.0])).item()
        0.70711
    """
    used = deviations.isfinite() & errors.isfinite()
    square, bound = (x.where(used, 0.0).square().sum() for x in (errors, deviations))
    return (square / bound).sqrt()


def efficiency(
    errors: Float[Tensor, "*batch"],
    covariance: Float[Tensor, "*batch axis axis"],
    n_draws: int = 64,
) -> Float[Tensor, ""]:
    """Median error over the median error of an estimator that reaches the bound.

    The second median is over draws from N(0, CRB), ``n_draws`` for each source, always the same.

    Args:
        errors: length of the error of each true source; NaN leaves it out.
        covariance: the bound, of the coordinates whose error is measured; what is not finite
            leaves its source out.
        n_draws: more make the answer less random: 64 for each of 500 sources know it to 1 %.

    Returns:
        A ratio; outliers hardly move it, so read `outlier_rate` beside it. NaN without a source.
    """
    used = errors.isfinite() & covariance.isfinite().all(-1).all(-1)
    if not bool(used.any()):
        return torch.full_like(errors.sum(), math.nan)
    kept = covariance[used].double()
    values, vectors = torch.linalg.eigh(kept)
    root = vectors * values.clamp_min(0.0).sqrt()[..., None, :]
    generator = torch.Generator().manual_seed(0)
    shape = (*kept.shape[:-1], n_draws)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64).to(kept.device)
    drawn = torch.linalg.vector_norm(root @ noise, dim=-2)
    # torch.quantile takes at most 16 million numbers
    ratio: Tensor = errors[used].double().median() / drawn.flatten().median()
    return ratio.to(errors.dtype)


def normalized_squared_errors(
    offsets: Float[Tensor, "*batch axis"], covariance: Float[Tensor, "*batch axis axis"]
) -> Float[Tensor, "*batch"]:
    r"""How large errors are for their error bars: e^T C^-1 e over the number of unknowns (NEES).

    Args:
        offsets: e, estimate minus truth; NaN gives NaN.
        covariance: C that the estimator states; coordinates that are not searched have variance 0
            and do not count.

    Returns:
        1 on average for honest error bars; larger where they are too short.

    Source: Bar-Shalom, Li & Kirubarajan (2001), Estimation with Applications to Tracking and
    Navigation, normalised estimation error squared.

    Example:
        >>> covariance = torch.diag(torch.tensor([4.0, 1.0, 0.0]))
        >>> normalized_squared_errors(torch.tensor([2.0, 1.0, 0.0]), covariance).item()
        1.0
    """
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    searched = variance > 0
    # unknowns have different units: a unit diagonal keeps the inverse well conditioned
    scale = torch.where(searched, variance, 1.0).rsqrt().double()
    correlation = covariance.double() * scale[..., :, None] * scale[..., None, :]
    correlation = correlation + torch.diag_embed((~searched).double())
    whitened = (offsets * searched).double() * scale
    factor, info = torch.linalg.cholesky_ex(correlation.nan_to_num(0.0))
    solved = torch.linalg.solve_triangular(factor, whitened[..., None], upper=False)
    squared: Tensor = solved.square().sum((-2, -1)) / searched.sum(-1)
    spoilt = (info != 0) | ~covariance.isfinite().all(-1).all(-1)
    return squared.masked_fill(spoilt, math.nan).to(offsets.dtype)


def position_deviations(
    parameters: Float[Tensor, "*batch source 3"],
    covariance: Float[Tensor, "*batch source 3 3"],
) -> Float[Tensor, "*batch source"]:
    """Length of the error bar in space, sqrt(tr C_xyz).

    Args:
        parameters: (u, v, rho) at which the covariance holds.
        covariance: of (u, v, rho).

    Returns:
        Metres; of the unit vector in the far field.
    """
    jacobian = xyz_jacobian(parameters.to(covariance.dtype))
    moved = jacobian @ covariance @ jacobian.mT
    return moved.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(0.0).sqrt()


class OutlierRate(Metric):
    """Share of true sources with no estimate within some deviations of the bound.

    Args:
        factor: how many deviations, sqrt(tr CRB) in space, are still noise.
        cap: metres; see `musicnet.metrics.matching.match`.
        **metric_options: of torchmetrics.

    Raises:
        ValueError: a factor that is not positive.
    """

    full_state_update = False
    higher_is_better = False
    errors: list[Tensor]
    deviations: list[Tensor]

    def __init__(
        self, factor: float = OUTLIER_FACTOR, cap: float = 3.0, **metric_options: Any
    ) -> None:
        super().__init__(**metric_options)
        if not factor > 0:
            raise ValueError(f"factor must be positive: got {factor}.")
        self.factor = factor
        self.cap = cap
        self.add_state("errors", default=[], dist_reduce_fx="cat")
        self.add_state("deviations", default=[], dist_reduce_fx="cat")

    def update(self, estimate: Sources, truth: Sources, bound: Tensor) -> None:
        """Counts a batch in.

        Args:
            estimate: what was found.
            truth: what is there.
            bound: covariance of (u, v, rho) of each true source, [*batch source 3 3].
        """
        error = match(estimate, truth, self.cap).distance
        deviation = position_deviations(truth.parameters, bound)
        self.errors.append(error[truth.resolved])
        self.deviations.append(deviation[truth.resolved].to(error.dtype))

    def compute(self) -> Tensor:
        """A share from 0 to 1; NaN before any source was seen."""
        if len(self.errors) == 0:
            return torch.tensor(torch.nan, device=self.device)
        return outlier_rate(dim_zero_cat(self.errors), dim_zero_cat(self.deviations), self.factor)


class BoundRatio(OutlierRate):
    """Root mean squared distance of the matched, over that of the bound.

    Args:
        **metric_options: of torchmetrics.
    """

    def compute(self) -> Tensor:
        """A ratio, 1 at the bound; NaN before any source was matched."""
        if len(self.errors) == 0:
            return torch.tensor(torch.nan, device=self.device)
        return bound_ratio(dim_zero_cat(self.errors), dim_zero_cat(self.deviations))


class Efficiency(Metric):
    """Median distance of the matched, over the median of an estimator at the bound.

    Args:
        cap: metres; see `musicnet.metrics.matching.match`.
        **metric_options: of torchmetrics.
    """

    full_state_update = False
    higher_is_better = False
    errors: list[Tensor]
    covariances: list[Tensor]

    def __init__(self, cap: float = 3.0, **metric_options: Any) -> None:
        super().__init__(**metric_options)
        self.cap = cap
        self.add_state("errors", default=[], dist_reduce_fx="cat")
        self.add_state("covariances", default=[], dist_reduce_fx="cat")

    def update(self, estimate: Sources, truth: Sources, bound: Tensor) -> None:
        """Counts a batch in.

        Args:
            estimate: what was found.
            truth: what is there.
            bound: covariance of (u, v, rho) of each true source, [*batch source 3 3].
        """
        found = match(estimate, truth, self.cap)
        jacobian = xyz_jacobian(truth.parameters[found.matched].to(bound.dtype))
        self.errors.append(found.distance[found.matched])
        self.covariances.append(jacobian @ bound[found.matched] @ jacobian.mT)

    def compute(self) -> Tensor:
        """A ratio, 1 at the bound; NaN before any source was matched."""
        if len(self.errors) == 0:
            return torch.tensor(torch.nan, device=self.device)
        return efficiency(dim_zero_cat(self.errors), dim_zero_cat(self.covariances))


class NormalizedSquaredError(Metric):
    """Mean squared error of the matched in units of their own error bars, 1 if those are honest.

    Args:
        cap: metres; see `musicnet.metrics.matching.match`.
        **metric_options: of torchmetrics.
    """

    full_state_update = False
    total: Tensor
    n_sources: Tensor

    def __init__(self, cap: float = 3.0, **metric_options: Any) -> None:
        super().__init__(**metric_options)
        self.cap = cap
        self.add_state("total", default=torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("n_sources", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, estimate: Sources, truth: Sources, covariance: Tensor) -> None:
        """Counts a batch in.

        Args:
            estimate: what was found.
            truth: what is there.
            covariance: of (u, v, rho) of each estimate, [*batch source 3 3], as it states it.
        """
        found = match(estimate, truth, self.cap)
        index = found.estimate_index.clamp_min(0)
        parameters = estimate.parameters.take_along_dim(index[..., None], dim=-2)
        stated = covariance.take_along_dim(index[..., None, None], dim=-3)
        squared = normalized_squared_errors(parameters - truth.parameters, stated)
        used = found.matched & squared.isfinite()
        self.total = self.total + squared[used].sum()
        self.n_sources = self.n_sources + used.sum()

    def compute(self) -> Tensor:
        """A ratio; NaN before any source was matched."""
        return self.total / self.n_sources
