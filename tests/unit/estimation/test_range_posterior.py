"""The settled range against a slow scan, and where it must change nothing."""

import math

import pytest
import torch

from musicnet.estimation.range_posterior import settle_range

BOUNDS = (0.5, 5.0)


def estimate(distance, sigma, u_along=0.0):
    """One source at a range, with a standard deviation of the inverse range."""
    parameters = torch.tensor([[0.1, -0.2, 1.0 / distance]], dtype=torch.float64)
    covariance = torch.diag(torch.tensor([1e-4, 1e-4, sigma**2], dtype=torch.float64))[None]
    covariance[0, 0, 2] = covariance[0, 2, 0] = u_along * sigma**2
    return parameters, covariance


def slow_middle(distance, sigma):
    """The middle of the best interval, by trying many."""
    places = [BOUNDS[0] + i * (BOUNDS[1] - BOUNDS[0]) / 20000 for i in range(20001)]
    density = [math.exp(-0.5 * ((1.0 / r - 1.0 / distance) / sigma) ** 2) for r in places]
    total = sum(density)
    mean = sum(w * r for w, r in zip(density, places, strict=True)) / total
    spread = (sum(w * (r - mean) ** 2 for w, r in zip(density, places, strict=True)) / total) ** 0.5
    below = [0.0]
    for weight in density:
        below.append(below[-1] + weight / total)
    half = round(0.385 * spread / (places[1] - places[0]))
    best = max(
        range(20001), key=lambda i: below[min(i + half, 20000) + 1] - below[max(i - half, 0)]
    )
    return places[best], spread


@pytest.mark.parametrize(
    ("distance", "sigma"), [(3.0, 0.05), (4.5, 0.05), (2.0, 0.2), (5.0, 0.1), (0.6, 0.3)]
)
def test_it_is_the_middle_of_the_interval_that_holds_most(distance, sigma):
    settled, _ = settle_range(*estimate(distance, sigma), BOUNDS)
    expected, spread = slow_middle(distance, sigma)
    assert 1.0 / settled[0, 2].item() == pytest.approx(expected, abs=0.1 * spread)


def test_a_range_known_well_stays():
    parameters, covariance = estimate(2.0, 1e-4)
    settled, widened = settle_range(parameters, covariance, BOUNDS)
    torch.testing.assert_close(settled, parameters, atol=1e-5, rtol=0.0)
    torch.testing.assert_close(widened, covariance, rtol=0.02, atol=1e-12)


def test_directions_move_along_and_the_covariance_stays_one():
    parameters, covariance = estimate(4.5, 0.08, u_along=0.1)
    settled, widened = settle_range(parameters, covariance, BOUNDS)
    by = settled - parameters
    assert by[0, 2] != 0
    torch.testing.assert_close(by[0, 0], 0.1 * by[0, 2])
    assert by[0, 1] == 0
    assert (torch.linalg.eigvalsh(widened) > 0).all()


def test_draws_from_the_model_are_hit_more_often_and_error_bars_are_honest():
    generator = torch.Generator().manual_seed(0)
    true = BOUNDS[0] + (BOUNDS[1] - BOUNDS[0]) * torch.rand(20000, generator=generator)
    true, sigma = true.double(), 0.08
    rho = true.reciprocal() + sigma * torch.randn(20000, generator=generator).double()
    rho = rho.clamp(1.0 / BOUNDS[1], 1.0 / BOUNDS[0])
    parameters = torch.stack((torch.zeros_like(rho), torch.zeros_like(rho), rho), dim=-1)
    covariance = torch.diag(torch.tensor([1e-6, 1e-6, sigma**2], dtype=torch.float64))
    settled, widened = settle_range(parameters, covariance.expand(20000, 3, 3), BOUNDS)
    before, after = (1.0 / rho - true).abs(), (1.0 / settled[:, 2] - true).abs()
    assert after.median() < before.median()
    assert after.square().mean() < before.square().mean()
    honest = after.square() / (widened[:, 2, 2] / settled[:, 2] ** 4)
    assert 0.85 < honest.mean() < 1.2


def test_a_few_wild_errors_widen_bars_and_move_nobody():
    """One error in twenty is six times as wide: bars are honest, and nobody moves for it."""
    generator = torch.Generator().manual_seed(0)
    true = BOUNDS[0] + (BOUNDS[1] - BOUNDS[0]) * torch.rand(20000, generator=generator)
    wild = torch.where(torch.rand(20000, generator=generator) < 0.05, 6.0, 1.0)
    true, sigma = true.double(), 0.04
    rho = true.reciprocal() + sigma * wild * torch.randn(20000, generator=generator).double()
    rho = rho.clamp(1.0 / BOUNDS[1], 1.0 / BOUNDS[0])
    parameters = torch.stack((torch.zeros_like(rho), torch.zeros_like(rho), rho), dim=-1)
    covariance = torch.diag(torch.tensor([1e-6, 1e-6, sigma**2], dtype=torch.float64))
    covariance = covariance.expand(20000, 3, 3)
    widening = torch.full_like(rho, 0.95 + 0.05 * 36.0)
    settled, widened = settle_range(parameters, covariance, BOUNDS, widening)
    moved, _ = settle_range(parameters, covariance * widening[:, None, None], BOUNDS)
    way, farther = ((one - parameters)[:, 2].abs().mean() for one in (settled, moved))
    assert way < 0.7 * farther
    same, short = settle_range(parameters, covariance, BOUNDS)
    assert torch.equal(settled, same)
    squares = (1.0 / settled[:, 2] - true).square() * settled[:, 2] ** 4
    honest, before = ((squares / one[:, 2, 2]).mean() for one in (widened, short))
    # not quite 1: what the law of ranges cuts off a normal distribution is another share
    assert abs(honest - 1.0) < 0.5 < abs(before - 1.0)
    torch.testing.assert_close(widened[:, 0, 0], covariance[:, 0, 0] * widening)


def test_a_missing_source_stays_missing():
    parameters = torch.full((1, 3), math.nan)
    settled, widened = settle_range(parameters, torch.full((1, 3, 3), math.nan), BOUNDS)
    assert settled.isnan().all()
    assert widened.isnan().all()


def test_without_finite_error_bars_an_estimate_stays():
    """A source that nothing was heard of has an infinite covariance."""
    parameters, covariance = estimate(2.0, 0.1)
    unknown = torch.diag_embed(torch.full((1, 3), math.inf, dtype=torch.float64))
    both = torch.cat((parameters, parameters)), torch.cat((unknown, covariance))
    settled, widened = settle_range(*both, BOUNDS)
    assert torch.equal(settled[:1], parameters)
    assert torch.equal(widened[:1], unknown)
    for ours, alone in zip(
        (settled, widened), settle_range(parameters, covariance, BOUNDS), strict=True
    ):
        assert torch.equal(ours[1:], alone)


def test_a_source_is_settled_alike_in_any_company_to_the_last_bit():
    generator = torch.Generator().manual_seed(0)
    parameters = torch.rand(401, 3, generator=generator) + 0.3
    root = 0.1 * torch.randn(401, 3, 3, generator=generator)
    given = parameters, root @ root.mT
    together = settle_range(*given, BOUNDS)
    for n in (3, 100):
        parts = [
            settle_range(*some, BOUNDS) for some in zip(*(x.split(n) for x in given), strict=True)
        ]
        for ours, theirs in zip(together, zip(*parts, strict=True), strict=True):
            assert torch.equal(ours, torch.cat(theirs))
