import math

import numpy as np
import pytest
import torch

from musicnet.estimation.covariance import sample_covariance
from musicnet.estimation.order import (
    akaike,
    minimum_description_length,
    second_order_statistic,
)

RULES = {"AIC": akaike, "MDL": minimum_description_length}


def spectra(n_sources, n_scenes, n_snapshots=100, snr_db=10.0, n=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    u = torch.tensor([-0.6, -0.1, 0.35, 0.8][:n_sources])
    a = torch.exp(1j * math.pi * u[:, None] * torch.arange(n))
    shape = (n_scenes, n_snapshots)
    symbols = torch.randn((*shape, n_sources), generator=generator, dtype=torch.complex64)
    noise = torch.randn((*shape, n), generator=generator, dtype=torch.complex64)
    return torch.linalg.eigvalsh(sample_covariance(10 ** (snr_db / 20) * symbols @ a + noise))


def slow_criterion(values, n_snapshots, penalty):
    """Wax and Kailath's sums, term by term."""
    values = np.sort(values)[::-1].astype(float)
    n = len(values)
    costs = []
    for k in range(n):
        rest = values[k:]
        ratio = np.prod(rest ** (1 / len(rest))) / np.mean(rest)
        costs.append(-n_snapshots * (n - k) * np.log(ratio) + penalty(k * (2 * n - k)))
    return int(np.argmin(costs))


def slow_sorte(values):
    gaps = -np.diff(np.sort(values)[::-1])
    n = len(values)
    variance = [np.var(gaps[k:]) for k in range(n - 1)]
    ratios = [variance[k] / variance[k - 1] for k in range(1, n - 2)]
    return int(np.argmin(ratios)) + 1


@pytest.mark.parametrize("n_sources", [1, 2, 3])
def test_rules_agree_with_their_slow_twins(n_sources):
    values = spectra(n_sources, 40, snr_db=-3.0, n_snapshots=30)
    for row in values:
        expected = slow_criterion(row.numpy(), 30, lambda free: free)
        assert akaike(row, 30).item() == expected
        expected = slow_criterion(row.numpy(), 30, lambda free: 0.5 * free * math.log(30))
        assert minimum_description_length(row, 30).item() == expected
        assert second_order_statistic(row).item() == slow_sorte(row.double().numpy())


@pytest.mark.parametrize("n_sources", [0, 1, 2, 3, 4])
def test_description_length_is_right_at_10_db_and_100_snapshots(n_sources):
    found = minimum_description_length(spectra(n_sources, 500), 100)
    assert (found == n_sources).float().mean() >= 0.98


@pytest.mark.parametrize("n_sources", [2, 3])
def test_gaps_are_right_at_10_db_and_100_snapshots(n_sources):
    found = second_order_statistic(spectra(n_sources, 500))
    assert (found == n_sources).float().mean() >= 0.97


def test_akaike_counts_too_many_more_often_than_too_few():
    found = akaike(spectra(2, 500), 100)
    assert (found > 2).sum() > (found < 2).sum()
    assert (found == 2).float().mean() > 0.85


def test_forward_backward_averages_have_half_the_numbers_free():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((500, 100, 8), generator=generator, dtype=torch.complex64)
    covariance = sample_covariance(noise)
    values = torch.linalg.eigvalsh(0.5 * (covariance + covariance.conj().flip(-2, -1)))
    found = minimum_description_length(values, 100, is_forward_backward=True)
    assert (found == 0).float().mean() > 0.98
    pair = spectra(2, 200)
    assert (minimum_description_length(pair, 100, is_forward_backward=True) >= 2).all()


@pytest.mark.parametrize("rule", list(RULES.values()), ids=list(RULES))
def test_fewer_snapshots_than_rows_count_by_what_they_span(rule):
    found = rule(spectra(2, 50, n_snapshots=5, snr_db=30.0), 5)
    assert ((found >= 0) & (found < 5)).all()


@pytest.mark.parametrize("rule", [lambda v: akaike(v, 50), second_order_statistic])
def test_scale_does_not_matter_and_a_bad_scene_counts_nothing(rule):
    values = spectra(2, 6)
    expected = rule(values)
    assert torch.equal(rule(1e4 * values), expected)
    values[3] = math.nan
    found = rule(values)
    assert found[3] == 0
    others = torch.arange(6) != 3
    assert torch.equal(found[others], expected[others])


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match="got n_snapshots=0"):
        akaike(torch.ones(4), 0)
    with pytest.raises(ValueError, match="got 3"):
        second_order_statistic(torch.ones(3))
