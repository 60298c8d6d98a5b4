"""GOSPA and OSPA against assignments tried one by one, and by hand."""

import itertools
import math

import pytest
import torch

from musicnet.metrics.cardinality import GospaDistance, OspaDistance, gospa, ospa
from musicnet.scene.sources import Sources


def scattered(n_scenes, n_slots, seed):
    generator = torch.Generator().manual_seed(seed)
    rho = 0.3 + torch.rand(n_scenes, n_slots, generator=generator)
    u, v = 0.4 * torch.rand(2, n_scenes, n_slots, generator=generator)
    resolved = torch.rand(n_scenes, n_slots, generator=generator) < 0.7
    parameters = torch.stack((u, v, rho), -1).masked_fill(~resolved[..., None], math.nan)
    return Sources(parameters, resolved)


def slowly(estimate, truth, cutoff, order):
    """All partial assignments of one scene, from the definition."""
    one, other = estimate.xyz[estimate.resolved], truth.xyz[truth.resolved]
    n, m = len(one), len(other)
    best = math.inf
    for size in range(min(n, m) + 1):
        for rows in itertools.combinations(range(m), size):
            for columns in itertools.permutations(range(n), size):
                pairs = (
                    (other[r] - one[c]).norm().item() for r, c in zip(rows, columns, strict=True)
                )
                cost = sum(min(d, cutoff) ** order for d in pairs)
                best = min(best, cost + 0.5 * cutoff**order * (n + m - 2 * size))
    return best ** (1 / order)


@pytest.mark.parametrize(("cutoff", "order"), [(1.0, 2.0), (0.3, 1.0), (2.0, 2.0)])
def test_gospa_is_the_least_over_all_partial_assignments(cutoff, order):
    estimate, truth = scattered(40, 4, 0), scattered(40, 3, 1)
    found = gospa(estimate, truth, cutoff, order)
    for index in range(40):
        one = Sources(estimate.parameters[index], estimate.resolved[index])
        other = Sources(truth.parameters[index], truth.resolved[index])
        expected = slowly(one, other, cutoff, order)
        assert found.distance[index].item() == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_the_parts_of_gospa_make_the_whole():
    found = gospa(scattered(40, 4, 0), scattered(40, 3, 1))
    parts = found.localization + found.missed + found.surplus
    torch.testing.assert_close(found.distance.square(), parts)
    counted = (found.missed - found.surplus) * 2.0
    difference = scattered(40, 3, 1).n_sources - scattered(40, 4, 0).n_sources
    torch.testing.assert_close(counted, difference.float())


def ahead(*depths):
    rho = 1.0 / torch.tensor([depths])
    parameters = torch.stack((0 * rho, 0 * rho, rho), -1)
    return Sources(parameters, ~rho.isnan())


def test_ospa_by_hand():
    near, missing = ahead(1.1, math.nan), ahead(1.0, 3.0)
    assert ospa(near, missing).item() == pytest.approx(math.sqrt((0.01 + 1.0) / 2), rel=1e-4)
    assert ospa(ahead(9.0), ahead(1.0)).item() == pytest.approx(1.0)
    assert ospa(ahead(math.nan), ahead(math.nan)).item() == 0.0


def test_ospa_stays_below_its_cutoff():
    distance = ospa(scattered(40, 4, 0), scattered(40, 3, 1), cutoff=0.4)
    assert (distance <= 0.4 + 1e-6).all()


def test_both_are_the_same_from_either_side():
    one, other = scattered(40, 4, 0), scattered(40, 3, 1)
    torch.testing.assert_close(gospa(one, other).distance, gospa(other, one).distance)
    torch.testing.assert_close(ospa(one, other), ospa(other, one))


def test_metrics_are_means_over_scenes():
    one, other = scattered(40, 4, 0), scattered(40, 3, 1)
    for metric, function in (
        (GospaDistance(0.5, 1.0), lambda: gospa(one, other, 0.5, 1.0).distance),
        (OspaDistance(0.5, 1.0), lambda: ospa(one, other, 0.5, 1.0)),
    ):
        for some in (slice(10), slice(10, None)):
            metric.update(
                Sources(one.parameters[some], one.resolved[some]),
                Sources(other.parameters[some], other.resolved[some]),
            )
        torch.testing.assert_close(metric.compute(), function().mean())


@pytest.mark.parametrize("wrong", [{"cutoff": 0.0}, {"order": 0.5}])
def test_cutoff_and_order_are_checked(wrong):
    with pytest.raises(ValueError, match="cutoff must be positive and order at least 1"):
        OspaDistance(**wrong)
