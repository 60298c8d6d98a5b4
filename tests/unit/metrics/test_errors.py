import itertools
import math

import numpy as np
import pytest
import torch

from musicnet.coordinates import direction_cosines
from musicnet.metrics.detection import RecallWithin, ResolvedFraction
from musicnet.metrics.errors import AzimuthRMSPE, PositionError, azimuth_rmspe, position_errors
from musicnet.scene.sources import Sources


def at_depths(*depths):
    """Scenes of sources straight ahead; NaN is an empty slot."""
    rho = 1 / torch.tensor(depths)
    parameters = torch.stack((0 * rho, 0 * rho, rho), dim=-1)
    return Sources(parameters, ~rho.isnan())


def at_azimuths(*degrees):
    azimuth = torch.from_numpy(np.array(degrees, dtype=np.float64)).deg2rad()
    u, v = direction_cosines(azimuth, torch.zeros_like(azimuth))
    return Sources(torch.stack((u, v, 0 * u), dim=-1), ~azimuth.isnan())


def value(metric, *batches):
    for estimate, truth in batches:
        metric.update(estimate, truth)
    return metric.compute().item()


BATCHES = [
    (at_depths([1.1, 2.0], [3.0, math.nan]), at_depths([2.4, 1.0], [3.2, 4.0])),
    (at_depths([math.nan, 5.0]), at_depths([6.0, math.nan])),
]
DISTANCES = [0.1, 0.4, 0.2, 1.0]


def test_errors_are_distances_of_the_matched():
    errors = position_errors(*BATCHES[0])
    assert errors[0].tolist() == pytest.approx([0.4, 0.1], rel=1e-5)
    assert errors[1, 0].item() == pytest.approx(0.2, rel=1e-5)
    assert errors[1, 1].isnan()


def test_position_error_is_the_statistic_over_all_batches():
    assert value(PositionError(), *BATCHES) == pytest.approx(np.median(DISTANCES), rel=1e-5)
    rmse = math.sqrt(np.mean(np.square(DISTANCES)))
    assert value(PositionError("rmse"), *BATCHES) == pytest.approx(rmse, rel=1e-5)


def test_recall_counts_missing_and_far_sources_against():
    assert value(RecallWithin(0.5), *BATCHES) == pytest.approx(3 / 5)
    assert value(RecallWithin(0.15), *BATCHES) == pytest.approx(1 / 5)


def test_resolved_fraction_counts_every_estimate_however_far():
    assert value(ResolvedFraction(), *BATCHES) == pytest.approx(4 / 5)


@pytest.mark.parametrize("metric", [PositionError(), RecallWithin(), AzimuthRMSPE()], ids=str)
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_metrics_of_nothing_are_nan(metric):
    assert math.isnan(metric.compute().item())


def test_position_error_of_scenes_without_a_match_is_nan():
    nothing = at_depths([math.nan, math.nan])
    assert math.isnan(value(PositionError(), (nothing, at_depths([1.0, 2.0]))))
    assert value(ResolvedFraction(), (nothing, at_depths([1.0, 2.0]))) == 0.0


def test_metrics_start_anew_after_a_reset():
    metric = PositionError()
    first = value(metric, *BATCHES)
    metric.reset()
    assert value(metric, *BATCHES) == first


def test_metrics_add_up_over_batches():
    together = RecallWithin()
    assert value(together, *BATCHES) == pytest.approx(
        sum(value(RecallWithin(), b) * n for b, n in zip(BATCHES, (4, 1), strict=True)) / 5
    )


def test_rmspe_is_that_of_the_best_order():
    random = np.random.default_rng(0)
    truth, estimate = random.uniform(-60, 60, (2, 20, 3))
    expected = [
        min(math.sqrt(np.mean((np.array(order) - t) ** 2)) for order in itertools.permutations(e))
        for t, e in zip(truth, estimate, strict=True)
    ]
    got = azimuth_rmspe(at_azimuths(*estimate), at_azimuths(*truth)).rad2deg()
    assert got.tolist() == pytest.approx(expected)
    mean = value(AzimuthRMSPE(), (at_azimuths(*estimate), at_azimuths(*truth)))
    assert mean == pytest.approx(np.mean(expected), rel=1e-5)


def test_wrapping_takes_differences_modulo_half_a_circle():
    pair = (at_azimuths([-89.0, 10.0], [-80.0, 20.0]), at_azimuths([89.0, 12.0], [50.0, 20.0]))
    plain, wrapped = (azimuth_rmspe(*pair, wrap=w).rad2deg().tolist() for w in (False, True))
    # -89 for 89 is off by 2 degrees; in the best order of the plain errors 10 stands for 89
    assert wrapped == pytest.approx([2.0, math.sqrt(50.0**2 / 2)])
    assert plain == pytest.approx(
        [math.sqrt((79.0**2 + 101.0**2) / 2), math.sqrt((30.0**2 + 100.0**2) / 2)]
    )
    for wrap, expected in ((False, plain), (True, wrapped)):
        assert value(AzimuthRMSPE(wrap=wrap), pair) == pytest.approx(np.mean(expected), rel=1e-5)


def test_scenes_without_a_match_do_not_count_in_rmspe():
    truth = at_azimuths([10.0, 20.0], [0.0, 5.0])
    estimate = at_azimuths([11.0, 21.0], [math.nan, math.nan])
    assert value(AzimuthRMSPE(), (estimate, truth)) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("distance_m", [0.0, -1.0, math.nan])
def test_recall_needs_a_positive_distance(distance_m):
    with pytest.raises(ValueError, match=f"got {distance_m}"):
        RecallWithin(distance_m)


@pytest.mark.bad_shape
def test_unknown_statistics_are_refused():
    with pytest.raises(ValueError, match="got 'mean'"):
        PositionError("mean")
