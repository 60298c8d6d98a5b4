import math

import torch

from musicnet.coordinates import (
    angles,
    direction_cosines,
    from_xyz,
    to_xyz,
    wrap_angle,
    xyz_jacobian,
)


def some_parameters(n=50, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    unit = torch.rand(n, 3, generator=generator, dtype=dtype)
    return (unit - torch.tensor([0.5, 0.5, -0.1])) * torch.tensor([1.2, 0.8, 1.5])


def test_angles_and_range_give_the_point_of_the_definition():
    azimuth, elevation, distance = torch.tensor(0.4), torch.tensor(-0.3), 2.5
    u, v = direction_cosines(azimuth, elevation)
    point = to_xyz(torch.stack((u, v, torch.tensor(1 / distance)))[None])[0]
    expected = torch.tensor(
        [
            distance * math.sin(0.4) * math.cos(-0.3),
            distance * math.sin(-0.3),
            distance * math.cos(0.4) * math.cos(-0.3),
        ]
    )
    torch.testing.assert_close(point, expected)


def test_angles_invert_direction_cosines():
    azimuth = torch.linspace(-1.5, 1.5, 31, dtype=torch.float64)
    elevation = torch.linspace(-1.2, 1.2, 31, dtype=torch.float64).flip(0)
    u, v = direction_cosines(azimuth, elevation)
    back = angles(torch.stack((u, v, torch.zeros_like(u)), dim=-1))
    torch.testing.assert_close(back, (azimuth, elevation))


def test_from_xyz_inverts_to_xyz():
    parameters = some_parameters()
    torch.testing.assert_close(from_xyz(to_xyz(parameters)), parameters)


def test_the_far_field_is_a_unit_vector():
    far = some_parameters() * torch.tensor([1.0, 1.0, 0.0])
    length = torch.linalg.vector_norm(to_xyz(far), dim=-1)
    torch.testing.assert_close(length, torch.ones_like(length))


def test_nan_slots_stay_nan():
    assert to_xyz(torch.full((2, 3), math.nan)).isnan().all()


def test_jacobian_agrees_with_autograd():
    parameters = some_parameters(10)
    expected = torch.stack(
        [torch.autograd.functional.jacobian(to_xyz, one[None]).squeeze() for one in parameters]
    )
    torch.testing.assert_close(xyz_jacobian(parameters), expected)


def test_far_field_jacobian_does_not_move_with_inverse_range():
    jacobian = xyz_jacobian(torch.tensor([[0.3, 0.2, 0.0]]))
    assert jacobian.isfinite().all()
    assert (jacobian[..., 2] == 0).all()


def test_wrapped_angles_lie_in_the_half_open_interval():
    angle = torch.tensor([math.pi, -math.pi, 3 * math.pi, 0.1 - 2 * math.pi], dtype=torch.float64)
    expected = torch.tensor([math.pi, math.pi, math.pi, 0.1], dtype=torch.float64)
    torch.testing.assert_close(wrap_angle(angle), expected)
