"""Errors beside the bound, on draws whose statistics are known."""

import math

import pytest
import torch

from musicnet.metrics.bound_ratios import (
    BoundRatio,
    Efficiency,
    NormalizedSquaredError,
    OutlierRate,
    bound_ratio,
    efficiency,
    normalized_squared_errors,
    outlier_rate,
    position_deviations,
)
from musicnet.scene.sources import Sources

NAN = math.nan


def gaussian_sources(n_scenes, scale=1.0, seed=0):
    """True sources, estimates drawn around them, and the covariance that they were drawn from."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.tensor([0.1, -0.2, 0.5]).expand(n_scenes, 1, 3)
    root = torch.tensor([[2e-3, 0.0, 0.0], [1e-3, 1e-3, 0.0], [0.0, 2e-3, 1e-2]])
    noise = torch.randn(n_scenes, 1, 3, generator=generator) @ root.mT
    resolved = torch.ones(n_scenes, 1, dtype=torch.bool)
    covariance = (root @ root.mT).expand(n_scenes, 1, 3, 3)
    return Sources(truth + scale * noise, resolved), Sources(truth, resolved), covariance


def value(metric, *batches):
    for batch in batches:
        metric.update(*batch)
    return metric.compute().item()


def halves(estimate, truth, covariance):
    half = len(covariance) // 2
    for some in (slice(half), slice(half, None)):
        yield (
            Sources(estimate.parameters[some], estimate.resolved[some]),
            Sources(truth.parameters[some], truth.resolved[some]),
            covariance[some],
        )


def test_outliers_are_what_is_far_or_missing_among_what_is_bounded():
    errors = torch.tensor([1.0, 3.9, 4.1, NAN, 1.0, NAN])
    deviations = torch.tensor([1.0, 1.0, 1.0, 1.0, NAN, math.inf])
    assert outlier_rate(errors, deviations).item() == pytest.approx(2 / 4)
    assert outlier_rate(errors, deviations, factor=0.5).item() == 1.0


def test_the_ratio_is_of_root_mean_squares():
    errors = torch.tensor([3.0, 4.0, NAN, 7.0])
    deviations = torch.tensor([1.0, 2.0, 9.0, NAN])
    assert bound_ratio(errors, deviations).item() == pytest.approx(math.sqrt(25 / 5))


def test_an_estimator_at_the_bound_has_efficiency_one():
    covariance = torch.diag(torch.tensor([4.0, 1.0, 0.25])).expand(4000, 3, 3)
    drawn = torch.randn(4000, 3, generator=torch.manual_seed(5)) @ covariance[0].sqrt()
    errors = drawn.norm(dim=-1)
    assert efficiency(errors, covariance).item() == pytest.approx(1.0, abs=0.05)
    assert efficiency(2 * errors, covariance).item() == pytest.approx(2.0, abs=0.1)


def test_in_one_dimension_efficiency_is_the_median_over_that_of_a_normal():
    errors = torch.tensor([0.3, 0.6745, 5.0])
    covariance = torch.ones(3, 1, 1)
    assert efficiency(errors, covariance, n_draws=200_000).item() == pytest.approx(1.0, abs=0.01)


def test_without_a_source_there_is_no_efficiency():
    assert efficiency(torch.tensor([NAN]), torch.ones(1, 1, 1)).isnan()


def test_honest_error_bars_have_a_normalized_error_of_one():
    estimate, truth, covariance = gaussian_sources(4000)
    offsets = estimate.parameters - truth.parameters
    squared = normalized_squared_errors(offsets, covariance)
    by_inverse = torch.einsum("...i,...ij,...j", offsets, covariance.inverse(), offsets) / 3
    torch.testing.assert_close(squared, by_inverse, rtol=1e-3, atol=1e-4)
    assert squared.mean().item() == pytest.approx(1.0, abs=0.05)


def test_coordinates_that_are_fixed_do_not_count():
    covariance = torch.zeros(3, 3)
    covariance[0, 0] = 4.0
    squared = normalized_squared_errors(torch.tensor([2.0, 0.0, 0.0]), covariance)
    assert squared.item() == pytest.approx(1.0)


def test_an_error_bar_that_is_missing_gives_no_number():
    assert normalized_squared_errors(torch.ones(3), torch.full((3, 3), NAN)).isnan()


def test_the_length_of_an_error_bar_is_that_in_space():
    parameters = torch.tensor([[0.0, 0.0, 0.5]])  # 2 m ahead
    covariance = torch.diag(torch.tensor([1e-4, 4e-4, 1e-4]))[None]
    expected = math.sqrt(4 * 1e-4 + 4 * 4e-4 + 16 * 1e-4)
    assert position_deviations(parameters, covariance).item() == pytest.approx(expected)


def test_metrics_agree_with_an_estimator_at_the_bound():
    batches = list(halves(*gaussian_sources(4000)))
    assert value(OutlierRate(), *batches) < 0.002
    assert value(OutlierRate(factor=1.0), *batches) > 0.1
    assert value(BoundRatio(), *batches) == pytest.approx(1.0, abs=0.05)
    assert value(Efficiency(), *batches) == pytest.approx(1.0, abs=0.05)
    assert value(NormalizedSquaredError(), *batches) == pytest.approx(1.0, abs=0.05)


def test_metrics_see_an_estimator_that_is_three_times_worse():
    batches = list(halves(*gaussian_sources(4000, scale=3.0)))
    assert value(BoundRatio(), *batches) == pytest.approx(3.0, rel=0.06)
    assert value(Efficiency(), *batches) == pytest.approx(3.0, rel=0.06)
    assert value(NormalizedSquaredError(), *batches) == pytest.approx(9.0, rel=0.06)


def test_missing_estimates_are_outliers_and_nothing_else():
    estimate, truth, covariance = gaussian_sources(400)
    resolved = estimate.resolved.clone()
    resolved[:100] = False
    hidden = Sources(estimate.parameters.masked_fill(~resolved[..., None], NAN), resolved)
    assert value(OutlierRate(), (hidden, truth, covariance)) == pytest.approx(0.25, abs=0.01)
    assert value(BoundRatio(), (hidden, truth, covariance)) == pytest.approx(1.0, abs=0.15)
    assert not math.isnan(value(NormalizedSquaredError(), (hidden, truth, covariance)))


def test_metrics_follow_the_assignment():
    """Estimates in another order, each with its own error bar."""
    truth = torch.tensor([[[0.0, 0.0, 1.0], [0.0, 0.0, 0.5]]])
    estimate = truth.flip(1) + torch.tensor([[[0.0, 0.0, 0.02], [0.0, 0.0, 0.01]]])
    there = torch.ones(1, 2, dtype=torch.bool)
    covariance = torch.diag_embed(torch.tensor([[[1e-6, 1e-6, 4e-4], [1e-6, 1e-6, 1e-4]]]))
    metric = NormalizedSquaredError()
    found = value(metric, (Sources(estimate, there), Sources(truth, there), covariance))
    assert found == pytest.approx(1 / 3, rel=1e-3)


@pytest.mark.parametrize("metric", [OutlierRate, BoundRatio, Efficiency, NormalizedSquaredError])
@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
def test_before_any_source_there_is_no_number(metric):
    assert math.isnan(metric().compute().item())


def test_a_factor_must_be_positive():
    with pytest.raises(ValueError, match="got -1"):
        OutlierRate(factor=-1.0)
