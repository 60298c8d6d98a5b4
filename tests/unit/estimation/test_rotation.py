import math

import pytest
import torch

from musicnet.estimation.polynomial import root_music
from musicnet.estimation.rotation import esprit, esprit_rectangle
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.sources import SearchRegion
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


def line(*cosines, spacing=0.5):
    """Exact covariance of eight sensors."""
    steps = torch.arange(8, dtype=torch.float64)
    a = torch.exp(2j * math.pi * spacing * steps[:, None] * torch.tensor(cosines).double())
    return a @ a.mH + 0.1 * torch.eye(8)


@pytest.mark.parametrize("method", [esprit, root_music])
def test_wide_spacings_are_unwrapped_around_the_region(method):
    region = SearchRegion((0.45, 0.9), (0.0, 0.0), (0.0, 0.0))
    found = method(line(0.5, 0.7, spacing=1.0), 2, spacing_wavelengths=1.0, region=region)
    assert found.u.sort().values.tolist() == pytest.approx([0.5, 0.7], abs=1e-6)


def test_rectangles_with_wide_spacings_are_unwrapped_along_both_axes():
    truth = parameters((0.7, -0.6), (0.5, -0.75))
    a = steering(2.0 * POSITIONS, truth, 1.0)
    region = SearchRegion((0.45, 0.9), (-0.9, -0.3), (0.0, 0.0))
    covariance = a.mT @ a.conj() + 0.1 * torch.eye(12)
    found = esprit_rectangle(covariance, 2, 4, 3, spacing_wavelengths=1.0, region=region)
    assert farthest(found.parameters, truth) < 1e-6


@pytest.mark.parametrize("region", [None, SearchRegion((-0.6, 0.6), (0.0, 0.0), (0.0, 0.0))])
@pytest.mark.parametrize("method", [esprit, root_music])
def test_regions_in_which_phases_repeat_are_refused(method, region):
    with pytest.raises(ValueError, match="1 wavelengths apart tell u apart over 1 only"):
        method(line(0.5, spacing=1.0), 1, spacing_wavelengths=1.0, region=region)


def test_sources_come_in_the_order_of_u_whatever_else_is_in_the_batch():
    truths = [(0.6, -0.4, 0.1), (0.1, 0.3)]
    found = esprit(torch.stack([line(*t) for t in truths]), torch.tensor([3, 2]))
    assert found.u[0].tolist() == pytest.approx([-0.4, 0.1, 0.6], abs=1e-6)
    assert found.u[1, :2].tolist() == pytest.approx([0.1, 0.3], abs=1e-6)
    assert found.resolved.tolist() == [[True] * 3, [True, True, False]]
    planar = parameters((0.3, 0.4), (-0.2, 0.4), (0.1, -0.1))
    pairs = esprit_rectangle(exact(planar), 3, 4, 3)
    assert pairs.u.tolist() == pytest.approx([-0.2, 0.1, 0.3], abs=1e-6)
    assert pairs.v.tolist() == pytest.approx([0.4, -0.1, 0.4], abs=1e-6)


@pytest.mark.parametrize("method", [esprit, root_music])
@pytest.mark.parametrize("bad", [torch.eye(8), torch.zeros(8, 8), torch.ones(8, 8)])
def test_gradients_of_a_degenerate_scene_harm_no_other(method, bad):
    good = line(-0.4, 0.3).to(torch.complex64)
    covariances = torch.stack((good, bad.to(good))).requires_grad_()
    method(covariances, 2).u.nan_to_num(0.0).sum().backward()
    alone = good[None].clone().requires_grad_()
    method(alone, 2).u.sum().backward()
    assert covariances.grad.isfinite().all()
    torch.testing.assert_close(covariances.grad[0], alone.grad[0], atol=1e-4, rtol=1e-3)


def test_the_gradient_of_planar_esprit_is_that_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn((12, 20), generator=generator, dtype=torch.complex128)
    covariance = exact(parameters((0.3, -0.2), (-0.5, 0.4))) + noise @ noise.mH

    def directions(matrix):
        return esprit_rectangle(0.5 * (matrix + matrix.mH), 2, 4, 3).parameters[..., :2]

    assert torch.autograd.gradcheck(directions, (covariance.requires_grad_(),), atol=1e-5)
