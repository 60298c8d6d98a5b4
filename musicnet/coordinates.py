r"""Azimuth, elevation and range; (u, v, inverse range); x, y, z: one in, another out.

The aperture lies in the x-y plane and looks along +z. A source at azimuth a, elevation e and range
r stands at x = r sin(a) cos(e), y = r sin(e), z = r cos(a) cos(e). Inside the project a source is
its *parameters* (u, v, rho): the direction cosines u = x/r and v = y/r, and rho = 1/r. The far
field is rho = 0, where x, y, z is the unit vector towards the source.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from musicnet.shapes import Parameters, Points


def direction_cosines(
    azimuth: Float[Tensor, "*batch"], elevation: Float[Tensor, "*batch"]
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Turns angles into the direction cosines along the two axes of the aperture.

    Args:
        azimuth: radians from boresight, towards +x.
        elevation: radians from the x-z plane, towards +y.

    Returns:
        u and v; no unit.

    Example:
        >>> u, v = direction_cosines(torch.tensor(math.pi / 6), torch.tensor(0.0))
        >>> round(u.item(), 6), v.item()
        (0.5, 0.0)
    """
    return azimuth.sin() * elevation.cos(), elevation.sin()


def angles(
    parameters: Parameters,
) -> tuple[Float[Tensor, "*batch source"], Float[Tensor, "*batch source"]]:
    """Turns parameters into angles.

    Args:
        parameters: (u, v, rho); rho is not looked at.

    Returns:
        Azimuth and elevation; radians, each in [-pi/2, pi/2].

    Example:
        >>> azimuth, elevation = angles(torch.tensor([[0.5, 0.0, 1.0]]))
        >>> round(azimuth.rad2deg().item(), 4), elevation.item()
        (30.0, 0.0)
    """
    u, v = parameters[..., 0], parameters[..., 1]
    return torch.atan2(u, depth_cosine(u, v)), v.clamp(-1.0, 1.0).asin()


def depth_cosine(u: Float[Tensor, "*shape"], v: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The third direction cosine, along boresight; 0 where u and v leave the unit disc.

    Args:
        u: x/r.
        v: y/r.

    Returns:
        z/r = sqrt(1 - u^2 - v^2), in [0, 1].

    Example:
        >>> round(depth_cosine(torch.tensor(0.6), torch.tensor(0.0)).item(), 6)
        0.8
    """
    return u.square().addcmul_(v, v).neg_().add_(1.0).clamp_min_(0.0).sqrt_()


def to_xyz(parameters: Parameters) -> Points:
    """Places sources in space.

    Args:
        parameters: (u, v, rho), rho in 1/m.

    Returns:
        x, y, z in metres; the unit vector towards the source where rho is 0.

    Example:
        >>> to_xyz(torch.tensor([[0.0, 0.0, 0.5]])).tolist()
        [[0.0, 0.0, 2.0]]
    """
    u, v, inverse_range = parameters.unbind(-1)
    distance = torch.where(inverse_range == 0, 1.0, 1.0 / inverse_range)
    return distance[..., None] * torch.stack((u, v, depth_cosine(u, v)), dim=-1)


def from_xyz(points: Points) -> Parameters:
    """Reads the parameters of sources at finite range.

    Args:
        points: x, y, z in metres, z >= 0, not the origin.

    Returns:
        (u, v, rho); set rho to 0 where the points are unit vectors towards far sources.

    Example:
        >>> from_xyz(torch.tensor([[0.0, 0.0, 2.0]])).tolist()
        [[0.0, 0.0, 0.5]]
    """
    distance = torch.linalg.vector_norm(points, dim=-1, keepdim=True)
    return torch.cat((points[..., :2] / distance, 1.0 / distance), dim=-1)


def xyz_jacobian(parameters: Parameters) -> Float[Tensor, "*batch source 3 3"]:
    r"""How x, y, z move with u, v, rho: columns (r, 0, -r u/w), (0, r, -r v/w), -r^2 (u, v, w).

    Args:
        parameters: (u, v, rho), inside the unit disc.

    Returns:
        d xyz / d (u, v, rho), [..., xyz, parameter]. In the far field that of the unit vector,
        which does not move with rho; infinite at grazing incidence.

    Example:
        >>> xyz_jacobian(torch.tensor([[0.0, 0.0, 0.5]]))[0].tolist()
        [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, -4.0]]
    """
    u, v, inverse_range = parameters.unbind(-1)
    w = depth_cosine(u, v)
    zero, far = torch.zeros_like(u), inverse_range == 0
    distance = torch.where(far, 1.0, 1.0 / inverse_range)
    squared = torch.where(far, zero, distance * distance)
    x_row = torch.stack((distance, zero, -squared * u), dim=-1)
    y_row = torch.stack((zero, distance, -squared * v), dim=-1)
    z_row = torch.stack((-distance * u / w, -distance * v / w, -squared * w), dim=-1)
    return torch.stack((x_row, y_row, z_row), dim=-2) + 0.0  # no negative zeros


def wrap_angle(angle: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Brings an angle difference into (-pi, pi].

    Args:
        angle: radians.

    Returns:
        The same direction; radians.

    Example:
        >>> round(wrap_angle(torch.tensor(1.5 * math.pi)).item() / math.pi, 5)
        -0.5
    """
    return math.pi - torch.remainder(math.pi - angle, 2.0 * math.pi)
