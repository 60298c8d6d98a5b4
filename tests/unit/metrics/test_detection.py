"""Told apart, and counted right."""

import math

import pytest
import torch

from musicnet.metrics.detection import CountAccuracy, ResolutionProbability, is_pair_resolved
from musicnet.metrics.errors import AzimuthError, azimuth_errors
from musicnet.scene.sources import Sources


def at_azimuths(*degrees):
    azimuth = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    parameters = torch.stack((azimuth.sin(), 0 * azimuth, 0 * azimuth), -1)
    return Sources(parameters, ~azimuth.isnan())


TRUTH = at_azimuths([0.0, 10.0], [0.0, 10.0], [0.0, 10.0], [5.0, math.nan])


def test_a_pair_is_resolved_if_both_errors_are_below_half_its_distance():
    estimate = at_azimuths([4.0, 14.0], [4.0, 16.0], [0.1, math.nan], [9.0, math.nan])
    resolved = is_pair_resolved(estimate, TRUTH)
    assert resolved[:3].tolist() == [1.0, 0.0, 0.0]
    assert resolved[3].isnan()


def test_two_estimates_of_one_source_do_not_resolve_a_pair():
    estimate = at_azimuths([4.9, 5.1], [0.0, 0.1], [0.0, 10.0], [5.0, math.nan])
    assert is_pair_resolved(estimate, TRUTH)[:3].tolist() == [1.0, 0.0, 1.0]


def test_the_resolution_probability_is_over_scenes_with_pairs():
    metric = ResolutionProbability()
    metric.update(at_azimuths([4.0, 14.0], [4.0, 16.0], [0.1, 9.0], [9.0, 0.0]), TRUTH)
    assert metric.compute().item() == pytest.approx(2 / 3)


def test_counts_are_right_or_wrong():
    metric = CountAccuracy()
    metric.update(at_azimuths([4.0, 14.0], [4.0, math.nan], [0.1, 9.0], [9.0, 0.0]), TRUTH)
    assert metric.compute().item() == pytest.approx(2 / 4)


def test_azimuth_errors_have_a_sign_and_their_pool_a_root_mean_square():
    estimate = at_azimuths([11.0, -2.0], [0.0, 10.0], [math.nan, 10.0], [8.0, math.nan])
    errors = azimuth_errors(estimate, TRUTH).rad2deg()
    expected = torch.tensor([[-2.0, 1.0], [0, 0], [math.nan, 0], [3.0, math.nan]])
    torch.testing.assert_close(errors, expected.double(), equal_nan=True, atol=1e-9, rtol=0)
    for statistic, value in (("rmse", math.sqrt((4 + 1 + 9) / 6)), ("median", 0.5)):
        metric = AzimuthError(statistic)
        metric.update(estimate, TRUTH)
        assert metric.compute().item() == pytest.approx(value)
