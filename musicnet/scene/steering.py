r"""What the elements hear of a unit source: exact spherical waves and their derivatives.

The field at element n is exp(+j k0 (r - d_n)), with d_n the distance of the source to the element:
phases are referred to the centre of the array. Written in (u, v, rho), with l = p_n . (u, v, w) and
q = |p_n|^2,

.. math:: w_n = \rho q - 2 l, \quad S = \sqrt{1 + \rho w_n}, \quad \psi = -k_0 w_n / (1 + S)

where d_n = r S. No difference of large numbers appears, and rho = 0 is the plane wave exp(+j k0 l).
Everything is elementwise on purpose: a matrix product would round the phases to ten bits under TF32
or autocast.
"""

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from musicnet.coordinates import depth_cosine
from musicnet.shapes import Parameters, Positions, Steering

GRAZING_COSINE = 1e-3
"""Least w of derivatives: at w = 0 those of elements off the plane grow beyond all bounds."""

Places = Float[Tensor, "*places element 3"]
"""Positions that may differ from scene to scene: leading axes broadcast against the batch."""


def steering_phase(
    positions: Places, parameters: Parameters, wavelength: float
) -> Float[Tensor, "*batch source element"]:
    """Phase that each element hears of each source, ahead of the array's centre.

    Args:
        positions: metres.
        parameters: (u, v, rho); NaN gives NaN.
        wavelength: metres.

    Returns:
        k0 (r - d_n); radians, not wrapped.

    Example:
        >>> positions = torch.tensor([[0.25, 0.0, 0.0]])
        >>> far_endfire = torch.tensor([[1.0, 0.0, 0.0]])
        >>> round(steering_phase(positions, far_endfire, wavelength=1.0).item() / math.pi, 5)
        0.5
    """
    excess, stretch = _excess_and_stretch(positions, parameters, -2.0 * math.pi / wavelength)
    return excess / (stretch + 1.0)


def steering(positions: Places, parameters: Parameters, wavelength: float) -> Steering:
    """Response of the elements to unit sources.

    Args:
        positions: metres.
        parameters: (u, v, rho); NaN gives NaN.
        wavelength: metres.

    Returns:
        exp(+j k0 (r - d_n)), unit modulus.

    Example:
        >>> positions = torch.tensor([[0.25, 0.0, 0.0]])
        >>> steering(positions, torch.tensor([[1.0, 0.0, 0.0]]), 1.0).imag.item()
        1.0
    """
    phase = steering_phase(positions, parameters, wavelength)
    return torch.complex(phase.cos(), phase.sin())  # six times faster than torch.polar


def superposed_field(
    positions: Places,
    parameters: Parameters,
    amplitude: Float[Tensor, "*batch source"],
    phase: Float[Tensor, "*batch source"],
    wavelength: float,
) -> Complex[Tensor, "*batch element"]:
    """Field that several sources make together, without a single complex product.

    Args:
        positions: metres.
        parameters: (u, v, rho), no NaN: a source that is not there has amplitude 0.
        amplitude: of each source, linear.
        phase: of each source at the array's centre; radians.
        wavelength: metres.

    Returns:
        sum_k amplitude_k exp(j phase_k) a_k; no gradient, memory is reused on the way.

    Example:
        >>> centre, ahead = torch.zeros(1, 3), torch.eye(3)
        >>> amplitude, phase = torch.tensor([2.0, 1.0, 0.0]), torch.tensor([0.0, math.pi / 2, 0.0])
        >>> superposed_field(centre, ahead, amplitude, phase, wavelength=1.0).tolist()
        [(2+1j)]
    """
    with torch.no_grad():
        excess, stretch = _excess_and_stretch(positions, parameters, -2.0 * math.pi / wavelength)
        turned = excess.div_(stretch.add_(1.0)).add_(phase[..., None])
        weights = amplitude[..., None, :]
        real = weights @ torch.cos(turned, out=stretch)
        imaginary = weights @ turned.sin_()
        return torch.complex(real, imaginary).squeeze(-2)


def steering_derivatives(
    positions: Positions, parameters: Parameters, wavelength: float
) -> tuple[Steering, Complex[Tensor, "*batch source element 3"]]:
    r"""Response of the elements and how it turns with the parameters.

    d psi/d rho = k0 (w^2 / (2 S (1+S)^2) - q / (2 S)), d psi/du = k0 (x - z u/w) / S, and v alike.

    Args:
        positions: metres.
        parameters: (u, v, rho), inside the unit disc where elements leave the plane.
        wavelength: metres.

    Returns:
        The steering, and its derivatives along (u, v, rho); with w held at `GRAZING_COSINE` at
        grazing incidence, where elements off the plane have no derivative.
    """
    wavenumber = 2.0 * math.pi / wavelength
    x, y, z = positions.unbind(-1)
    u, v, _ = parameters[..., None].unbind(-2)  # (..., source, 1)
    tilt = z / depth_cosine(u, v).clamp_min(GRAZING_COSINE)  # (..., source, element)
    excess, stretch = _excess_and_stretch(positions, parameters)
    fraction = excess / (1.0 + stretch)
    along_rho = 0.5 * (fraction.square() - positions.square().sum(-1))
    slopes = torch.stack((x - tilt * u, y - tilt * v, along_rho), dim=-1)
    slopes = wavenumber * slopes / stretch[..., None]  # (..., source, element, 3)
    phase = -wavenumber * fraction
    response = torch.complex(phase.cos(), phase.sin())
    return response, 1j * slopes * response[..., None]


def _excess_and_stretch(
    positions: Places, parameters: Parameters, scale: float = 1.0
) -> tuple[Float[Tensor, "*batch source element"], Float[Tensor, "*batch source element"]]:
    """The module's w_n times ``scale``, and S; in few passes, and differentiable."""
    u, v, rho = parameters[..., None].unbind(-2)  # (..., source, 1)
    # broadcasting is vectorised along contiguous elements only
    across = positions.mT.contiguous()
    if across.ndim > 2:
        across = across.movedim(-2, 0)[..., None, :]  # scenes with places of their own
    x, y, z = (across * (-2.0 * scale)).unbind(0)
    excess = rho * across.square().sum(0).mul_(scale)
    excess.addcmul_(u, x).addcmul_(v, y).addcmul_(depth_cosine(u, v), z)
    stretch = (excess * (rho / scale)).add_(1.0).sqrt_()
    return excess, stretch
