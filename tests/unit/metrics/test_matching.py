import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from musicnet.metrics.matching import match, match_by
from musicnet.scene.sources import SourceLaw, Sources


def some_sources(n_max, n_scenes=40, seed=0, **law):
    law = SourceLaw(n_max=n_max, **law)
    sources = law.draw(n_scenes, [torch.Generator().manual_seed(seed)]).sources
    return Sources(sources.parameters[0], sources.resolved[0])


def sources_at(*points):
    points = torch.tensor(points)
    distance = torch.linalg.vector_norm(points, dim=-1, keepdim=True)
    parameters = torch.cat((points[..., :2] / distance, 1 / distance), -1)
    return Sources(parameters, ~parameters.isnan().any(-1))


@pytest.mark.parametrize(("n_estimates", "n_true"), [(4, 4), (3, 5), (5, 2), (1, 1)])
def test_matching_agrees_with_the_hungarian_method(n_estimates, n_true):
    estimate, truth = some_sources(n_estimates, seed=1), some_sources(n_true, seed=2)
    got = match(estimate, truth, cap=3.0)
    for i in range(40):
        found = estimate.xyz[i][estimate.resolved[i]].numpy()
        there = truth.xyz[i][truth.resolved[i]].numpy()
        distance = np.linalg.norm(there[:, None] - found[None], axis=-1)
        rows, columns = linear_sum_assignment(np.minimum(distance, 3.0))
        assert got.matched[i].sum() == len(rows)
        total = np.minimum(got.distance[i][got.matched[i]].numpy(), 3.0).sum()
        assert total == pytest.approx(np.minimum(distance[rows, columns], 3.0).sum(), abs=1e-3)


def test_each_estimate_is_used_once():
    got = match(some_sources(5, seed=1), some_sources(5, seed=2))
    for index, matched in zip(got.estimate_index, got.matched, strict=True):
        used = index[matched].tolist()
        assert len(set(used)) == len(used)
        assert (index[~matched] == -1).all()


def test_the_order_of_sources_does_not_matter():
    estimate, truth = some_sources(4, seed=1), some_sources(4, seed=2)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = Sources(estimate.parameters[:, order], estimate.resolved[:, order])
    first, second = match(estimate, truth), match(shuffled, truth)
    torch.testing.assert_close(first.distance, second.distance, equal_nan=True)


def test_unresolved_slots_stay_unmatched_and_nan():
    truth = sources_at([0.0, 0.0, 1.0], [0.5, 0.0, 2.0])
    estimate = sources_at([0.5, 0.0, 2.0], [math.nan] * 3)
    got = match(estimate, truth)
    assert got.matched.tolist() == [False, True]
    assert got.estimate_index.tolist() == [-1, 0]
    assert got.distance[0].isnan()
    assert got.distance[1] == pytest.approx(0.0, abs=1e-6)


def test_one_stray_estimate_does_not_turn_the_others():
    truth = sources_at([0.0, 0.0, 1.0], [0.0, 0.0, 2.0])
    # without a cap the sum would be least with both estimates swapped
    estimate = sources_at([0.0, 0.0, 2.1], [40.0, 0.0, 1.0])
    got = match(estimate, truth, cap=3.0)
    assert got.estimate_index.tolist() == [1, 0]
    assert got.matched.all()
    assert got.distance[0] == pytest.approx(40.0)


def test_far_field_sources_are_compared_as_directions():
    truth = Sources(torch.tensor([[0.6, 0.0, 0.0]]), torch.tensor([True]))
    estimate = Sources(torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([True]))
    assert match(estimate, truth).distance.item() == pytest.approx(math.hypot(0.6, 0.2))


def test_matching_takes_any_batch():
    estimate, truth = some_sources(3, seed=1), some_sources(3, seed=2)
    split = [
        Sources(s.parameters.reshape(4, 10, 3, 3), s.resolved.reshape(4, 10, 3))
        for s in (estimate, truth)
    ]
    flat = match(estimate, truth)
    assert torch.equal(match(*split).estimate_index.reshape(40, 3), flat.estimate_index)
    one = match(
        Sources(estimate.parameters[7], estimate.resolved[7]),
        Sources(truth.parameters[7], truth.resolved[7]),
    )
    assert torch.equal(one.estimate_index, flat.estimate_index[7])


def test_too_many_slots_are_refused():
    resolved = torch.ones(7) > 0
    with pytest.raises(ValueError, match="got 7 true and 7 estimated"):
        match_by(torch.zeros(7, 7), resolved, resolved, cap=1.0)
