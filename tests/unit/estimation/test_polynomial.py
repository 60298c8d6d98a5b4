import math

import numpy as np
import pytest
import torch

from musicnet.estimation.polynomial import diagonal_sums, inner_roots, root_music
from musicnet.estimation.rotation import esprit
from musicnet.scene.sources import SearchRegion

METHODS = {
    "root": root_music,
    "total": esprit,
    "least": lambda *args, **kwargs: esprit(*args, fit="least", **kwargs),
}
every_method = pytest.mark.parametrize("method", list(METHODS.values()), ids=list(METHODS))


def responses(u, n=8, spacing=0.5):
    steps = torch.arange(n) - (n - 1) / 2
    return torch.exp(2j * math.pi * spacing * torch.as_tensor(u)[..., None] * steps)


def exact(u, n=8, spacing=0.5, noise=0.1):
    a = responses(torch.as_tensor(u, dtype=torch.float64), n, spacing)
    return a.mT @ a.conj() + noise * torch.eye(n)


def sample(u, n_scenes, n_snapshots=100, snr_db=10.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a = responses(torch.as_tensor(u, dtype=torch.float64))
    shape = (n_scenes, n_snapshots)
    symbols = torch.randn((*shape, len(u)), generator=generator, dtype=torch.complex128)
    noise = torch.randn((*shape, 8), generator=generator, dtype=torch.complex128)
    y = 10 ** (snr_db / 20) * symbols @ a + noise
    return y.mT @ y.conj() / n_snapshots


def slow_root_music(covariance, n_sources):
    """One scene: all roots by numpy, the nearest inside the circle, one by one."""
    _, vectors = np.linalg.eigh(covariance)
    noise = vectors[:, : len(covariance) - n_sources]
    projector = noise @ noise.conj().T
    lags = range(len(covariance) - 1, -len(covariance), -1)
    roots = np.roots([np.trace(projector, offset=k) for k in lags])
    inside = sorted((z for z in roots if abs(z) < 1), key=lambda z: 1 - abs(z))
    return np.sort([np.angle(z) / np.pi for z in inside[:n_sources]])


def slow_esprit(covariance, n_sources):
    _, vectors = np.linalg.eigh(covariance)
    signal = vectors[:, -n_sources:]
    turn = np.linalg.lstsq(signal[:-1], signal[1:], rcond=None)[0]
    return np.sort(np.angle(np.linalg.eigvals(turn)) / np.pi)


@every_method
@pytest.mark.parametrize("u", [[0.1], [-0.5, 0.3], [-0.8, 0.0, 0.15], [-0.9, -0.7, -0.1, 0.2, 0.8]])
def test_exact_covariances_give_the_exact_angles(method, u):
    found = method(exact(u), len(u))
    assert found.resolved.all()
    truth = torch.tensor(u, dtype=torch.float64).asin()
    torch.testing.assert_close(found.u.sort().values.asin(), truth, atol=1e-6, rtol=0)
    assert (found.parameters[..., 1:] == 0).all()


@every_method
@pytest.mark.parametrize("spacing", [0.25, 0.4])
def test_spacing_sets_the_scale(method, spacing):
    found = method(exact([-0.4, 0.6], spacing=spacing), 2, spacing_wavelengths=spacing)
    torch.testing.assert_close(
        found.u.sort().values, torch.tensor([-0.4, 0.6], dtype=torch.float64), atol=1e-6, rtol=0
    )


def test_root_music_agrees_with_its_slow_twin():
    covariances = sample([-0.4, 0.05, 0.5], 40)
    found = root_music(covariances, 3).u.sort(-1).values
    expected = np.stack([slow_root_music(r, 3) for r in covariances.numpy()])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


def test_esprit_agrees_with_its_slow_twin():
    covariances = sample([-0.4, 0.05, 0.5], 40)
    found = esprit(covariances, 3, fit="least").u.sort(-1).values
    expected = np.stack([slow_esprit(r, 3) for r in covariances.numpy()])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


def test_total_least_squares_agrees_with_a_singular_value_decomposition():
    for covariance in sample([-0.4, 0.05, 0.5], 5):
        signal = torch.linalg.eigh(covariance)[1][:, -3:]
        right = torch.linalg.svd(torch.cat((signal[:-1], signal[1:]), dim=1))[2].mH
        turn = -right[:3, 3:] @ torch.linalg.inv(right[3:, 3:])
        expected = (torch.linalg.eigvals(turn).angle() / math.pi).sort().values
        found = esprit(covariance, 3).u.sort().values
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


@every_method
def test_errors_reach_the_bound(method):
    u = torch.tensor([-0.5, 0.1, 0.45], dtype=torch.float64)
    found = method(sample(u, 1500), 3).u.sort(-1).values
    a = responses(u).mT
    projector = torch.eye(8) - a @ torch.linalg.pinv(a)
    slopes = 1j * math.pi * (torch.arange(8)[:, None] - 3.5) * a
    curvature = (slopes.mH @ projector @ slopes).diagonal().real
    bound = (1 / (2 * 100 * 10.0 * curvature)).sqrt()
    ratio = (found - u).square().mean(0).sqrt() / bound
    limit = 1.06 if method is root_music else 1.5  # one subarray step loses part of the aperture
    assert ((ratio > 0.94) & (ratio < limit)).all()


@every_method
def test_each_scene_may_have_a_number_of_sources_of_its_own(method):
    truths = [[0.3], [-0.5, 0.2], [], [-0.6, 0.1, 0.7]]
    covariances = torch.stack(
        [exact(u) if u else torch.eye(8, dtype=torch.complex128) for u in truths]
    )
    found = method(covariances, torch.tensor([len(u) for u in truths]))
    assert found.parameters.shape == (4, 3, 3)
    for scene, u in enumerate(truths):
        estimate = found.u[scene][found.resolved[scene]].sort().values
        torch.testing.assert_close(
            estimate, torch.tensor(u, dtype=torch.float64), atol=1e-6, rtol=0
        )
        assert found.u[scene][~found.resolved[scene]].isnan().all()


@every_method
def test_a_bad_scene_harms_only_itself(method):
    good = sample([-0.4, 0.5], 6)
    mixed = good.clone()
    mixed[4] = math.nan
    expected, found = method(good, 2), method(mixed, 2)
    others = torch.arange(6) != 4
    torch.testing.assert_close(found.u[others], expected.u[others])
    assert not found.resolved[4].any()
    assert found.parameters[4].isnan().all()


@every_method
def test_a_batch_gives_what_each_scene_gives_alone(method):
    covariances = sample([-0.4, 0.5], 6).to(torch.complex64)
    batched = method(covariances.reshape(2, 3, 8, 8), 2)
    alone = [method(r, 2).u for r in covariances]
    assert batched.u.dtype == torch.float32
    torch.testing.assert_close(batched.u.reshape(6, 2), torch.stack(alone), atol=1e-5, rtol=0)


@every_method
def test_scale_and_a_common_turn_do_what_they_must(method):
    covariance = sample([-0.4, 0.3], 1)[0]
    plain = method(covariance, 2).u.sort().values
    torch.testing.assert_close(method(1e6 * covariance, 2).u.sort().values, plain)
    turn = torch.exp(1j * math.pi * 0.2 * torch.arange(8))
    turned = turn[:, None] * covariance * turn.conj()
    torch.testing.assert_close(method(turned, 2).u.sort().values, plain + 0.2)


def test_root_music_looks_where_sources_may_be():
    region = SearchRegion((0.0, 0.6), (0.1, 0.1), (0.0, 0.0))
    found = root_music(exact([-0.5, 0.4]), 2, region=region)
    assert found.parameters[0].tolist() == pytest.approx([0.4, 0.1, 0.0], abs=1e-6)
    assert 0.0 <= found.u[1] <= 0.6  # not the root at -0.5
    beyond = root_music(exact([-0.5, 0.7]), 2, region=region)
    assert ((beyond.u >= 0) & (beyond.u <= 0.6)).all()


@every_method
def test_phases_that_no_direction_has_are_not_resolved(method):
    # a quarter wavelength apart, u = 1.6 would be needed to turn that fast
    impossible = exact([0.8], spacing=0.5)
    found = method(impossible, 1, spacing_wavelengths=0.25)
    assert not found.resolved.any()


def test_roots_agree_with_numpy_for_many_sensors():
    generator = torch.Generator().manual_seed(0)
    half = torch.randn((3, 24, 20), generator=generator, dtype=torch.complex128)
    coefficients = diagonal_sums(half @ half.mH)
    found = inner_roots(coefficients)
    for scene in range(3):
        expected = np.roots(coefficients[scene].numpy()[::-1])
        expected = expected[abs(expected) < 1]
        apart = abs(found[scene].numpy()[:, None] - expected)
        assert apart.shape == (23, 23)
        assert apart.min(0).max() < 1e-8
        assert apart.min(1).max() < 1e-8


def test_roots_of_degenerate_polynomials_are_numbers():
    constant = torch.tensor([0, 0, 0, 1, 0, 0, 0], dtype=torch.complex128)
    assert inner_roots(constant).abs().max() < 1e-3
    assert inner_roots(0 * constant).isfinite().all()


def test_gradients_of_root_music_are_those_of_finite_differences():
    covariance = sample([-0.4, 0.3], 1)[0]
    covariance.requires_grad_()

    def angles(matrix):
        return root_music(0.5 * (matrix + matrix.mH), 2).u

    assert torch.autograd.gradcheck(angles, (covariance,), atol=1e-5, rtol=1e-3)


@every_method
def test_gradients_reach_the_covariance(method):
    covariance = sample([-0.4, 0.3], 2).requires_grad_()
    method(covariance, 2).u.sum().backward()
    assert covariance.grad.isfinite().all()
    assert (covariance.grad != 0).any()


@every_method
def test_as_many_sources_as_sensors_are_refused(method):
    with pytest.raises(ValueError, match=r"got n_sources=8, n_sensors=8.*n_sources <= 7"):
        method(exact([0.1]), 8)


@every_method
def test_what_is_not_hermitian_is_refused(method):
    with pytest.raises(ValueError, match="must be Hermitian"):
        method(torch.triu(exact([0.1])), 1)


@pytest.mark.bad_shape
def test_unknown_fits_are_refused():
    with pytest.raises(ValueError, match="got 'weighted'"):
        esprit(exact([0.1]), 1, fit="weighted")
