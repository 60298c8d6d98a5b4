import math

import pytest
import torch

from musicnet.estimation.rotation import esprit_rectangle
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.steering import steering

POSITIONS = ArrayGeometry(4, 3).positions(1.0).double()


def parameters(*directions):
    return torch.tensor([[u, v, 0.0] for u, v in directions], dtype=torch.float64)


def exact(truth):
    a = steering(POSITIONS, truth, 1.0)
    return a.mT @ a.conj() + 0.1 * torch.eye(12)


def farthest(found, truth):
    """The largest distance of an estimate from its nearest truth, and the other way round."""
    apart = (found[:, None] - truth).norm(dim=-1)
    return max(apart.amin(0).max().item(), apart.amin(1).max().item())


@pytest.mark.parametrize("fit", ["total", "least"])
@pytest.mark.parametrize(
    "truth",
    [
        parameters((0.3, -0.2)),
        parameters((0.3, -0.2), (-0.5, 0.4), (0.1, 0.7)),
        parameters((0.3, -0.2), (0.3, 0.4)),  # the same u
        parameters((0.3, 0.4), (-0.2, 0.4), (0.3, -0.1)),  # the same v, and the same u
        parameters((0.3, 0.4), (0.4, 0.3)),  # crossed
    ],
)
def test_exact_covariances_give_exact_pairs(truth, fit):
    found = esprit_rectangle(exact(truth), len(truth), 4, 3, fit=fit)
    assert found.resolved.all()
    assert farthest(found.parameters, truth) < 1e-6


def test_each_scene_may_have_a_number_of_sources_of_its_own():
    truths = [parameters((0.3, -0.2)), parameters((0.3, -0.2), (0.3, 0.4))]
    found = esprit_rectangle(torch.stack([exact(t) for t in truths]), torch.tensor([1, 2]), 4, 3)
    assert found.resolved.tolist() == [[True, False], [True, True]]
    for scene, truth in enumerate(truths):
        assert farthest(found.parameters[scene, : len(truth)], truth) < 1e-6


def test_a_bad_scene_harms_only_itself():
    truth = parameters((0.3, -0.2), (-0.5, 0.4))
    covariances = torch.stack((exact(truth), math.nan * exact(truth), exact(truth)))
    found = esprit_rectangle(covariances, 2, 4, 3)
    assert found.resolved.all(-1).tolist() == [True, False, True]
    assert farthest(found.parameters[2], truth) < 1e-6


@pytest.mark.parametrize(
    ("n_sources", "sides", "got"),
    [
        (9, (4, 3), "got n_sources=9.*n_sources <= 8"),
        (1, (4, 4), "got n_horizontal=4, n_vertical=4 for 12 rows"),
        (1, (12, 1), "got n_horizontal=12, n_vertical=1"),
    ],
)
def test_requests_that_do_not_fit_are_refused(n_sources, sides, got):
    with pytest.raises(ValueError, match=got):
        esprit_rectangle(exact(parameters((0.1, 0.1))), n_sources, *sides)
