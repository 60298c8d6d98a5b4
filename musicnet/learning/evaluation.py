"""The numbers that a network is judged by, under the names that they are logged by."""

from torchmetrics import Metric, MetricCollection

from musicnet.metrics.detection import RecallWithin, ResolvedFraction
from musicnet.metrics.errors import AzimuthRMSPE, PositionError

RECALL_DISTANCE_M = 0.5


def evaluation_metrics(*, far_field: bool) -> MetricCollection:
    """What is collected over a split.

    Args:
        far_field: sources have directions only, so that errors are angles.

    Returns:
        Metrics of (estimate, truth).

    Example:
        >>> sorted(evaluation_metrics(far_field=True).keys())
        ['azimuth_rmspe_deg', 'resolved_fraction']
    """
    metrics: dict[str, Metric | MetricCollection] = {"resolved_fraction": ResolvedFraction()}
    if far_field:
        metrics["azimuth_rmspe_deg"] = AzimuthRMSPE()
    else:
        metrics["recall"] = RecallWithin(RECALL_DISTANCE_M)
        metrics["position_median_m"] = PositionError("median")
        metrics["position_rmse_m"] = PositionError("rmse")
    return MetricCollection(metrics)
