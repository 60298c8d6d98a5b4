import numpy as np
import pytest
import torch

from musicnet.scene.array import ArrayGeometry
from musicnet.scene.steering import steering, steering_derivatives
from tests.reference.slow_twins import slow_plane_wave, slow_point, slow_steering

WAVELENGTH = 0.3


def random_parameters(n, seed=0):
    random = np.random.default_rng(seed)
    return np.stack(
        [random.uniform(-0.86, 0.86, n), random.uniform(-0.5, 0.5, n), random.uniform(0.1, 2, n)],
        axis=-1,
    )


def off_plane_positions():
    return torch.from_numpy(np.random.default_rng(3).uniform(-0.4, 0.4, (9, 3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("where", ["grid", "off the plane"])
def test_steering_agrees_with_subtracted_distances(dtype, where):
    grid = ArrayGeometry(12, 12).positions(WAVELENGTH).double()
    positions = grid if where == "grid" else off_plane_positions()
    parameters = random_parameters(20)
    points = [slow_point(*p) for p in parameters]
    expected = slow_steering(positions.numpy(), points, WAVELENGTH)
    fast = steering(positions.to(dtype), torch.from_numpy(parameters).to(dtype), WAVELENGTH)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-11
    np.testing.assert_allclose(fast.numpy(), expected, atol=tolerance)


def test_zero_inverse_range_is_the_plane_wave():
    positions = off_plane_positions()
    direction = np.array([0.4, -0.2, np.sqrt(1 - 0.2)])
    expected = slow_plane_wave(positions.numpy(), direction, WAVELENGTH)
    fast = steering(positions, torch.tensor([[0.4, -0.2, 0.0]], dtype=torch.float64), WAVELENGTH)
    np.testing.assert_allclose(fast[0].numpy(), expected, atol=1e-12)


def test_far_field_is_the_limit_of_near_field():
    positions = ArrayGeometry(8, 8).positions(WAVELENGTH).double()
    far = torch.tensor([[0.4, -0.2, 0.0]], dtype=torch.float64)
    near = far + torch.tensor([0.0, 0.0, 1e-9], dtype=torch.float64)
    difference = steering(positions, near, WAVELENGTH) - steering(positions, far, WAVELENGTH)
    assert 0 < difference.abs().max() < 1e-7


def test_single_precision_stays_exact_far_away():
    # subtracting distances in float32 would lose the phase entirely at a hundred kilometres
    positions = ArrayGeometry(8, 8).positions(WAVELENGTH)
    parameters = torch.tensor([[0.5, 0.3, 1e-5]])
    precise = steering(positions.double(), parameters.double(), WAVELENGTH)
    torch.testing.assert_close(
        steering(positions, parameters, WAVELENGTH).to(torch.complex128), precise, atol=1e-5, rtol=0
    )


def test_steering_has_unit_modulus():
    positions = ArrayGeometry(8, 8).positions(WAVELENGTH)
    modulus = steering(positions, torch.from_numpy(random_parameters(9)).float(), WAVELENGTH).abs()
    torch.testing.assert_close(modulus, torch.ones_like(modulus))


@pytest.mark.parametrize("rho", [0.0, 0.7])
def test_derivatives_agree_with_autograd(rho):
    positions = off_plane_positions()
    parameters = torch.tensor([[0.3, -0.2, rho], [-0.7, 0.4, rho]], dtype=torch.float64)

    def parts(p):
        return torch.view_as_real(steering(positions, p, WAVELENGTH))

    expected = torch.autograd.functional.jacobian(parts, parameters)
    expected = torch.stack([expected[k, ..., k, :] for k in range(2)])  # (source, element, 2, 3)
    response, slopes = steering_derivatives(positions, parameters, WAVELENGTH)
    torch.testing.assert_close(response, steering(positions, parameters, WAVELENGTH))
    torch.testing.assert_close(torch.view_as_real(slopes).mT.contiguous(), expected)


def test_derivatives_agree_with_finite_differences_of_the_twin():
    positions = ArrayGeometry(4, 3).positions(WAVELENGTH).double()
    parameters = random_parameters(5)
    _, slopes = steering_derivatives(positions, torch.from_numpy(parameters), WAVELENGTH)
    for i in range(3):
        shift = np.eye(3)[i] * 1e-6
        up, down = (
            slow_steering(positions.numpy(), [slow_point(*p) for p in moved], WAVELENGTH)
            for moved in (parameters + shift, parameters - shift)
        )
        np.testing.assert_allclose(slopes[..., i].numpy(), (up - down) / 2e-6, atol=1e-5)


def test_derivatives_of_a_planar_array_are_finite_at_grazing_incidence():
    positions = ArrayGeometry(4, 4).positions(WAVELENGTH)
    _, slopes = steering_derivatives(positions, torch.tensor([[1.0, 0.0, 0.5]]), WAVELENGTH)
    assert slopes.isfinite().all()


def test_steering_takes_any_batch():
    positions = ArrayGeometry(4).positions(WAVELENGTH)
    parameters = torch.from_numpy(random_parameters(12)).float()
    flat = steering(positions, parameters, WAVELENGTH)
    batched = steering(positions, parameters.reshape(2, 3, 2, 3), WAVELENGTH)
    torch.testing.assert_close(batched.reshape(12, -1), flat)
