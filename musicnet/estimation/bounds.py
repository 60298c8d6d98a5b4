r"""How well anyone can do: the Cramér-Rao bound with unknown deterministic amplitudes.

With B_q = G_q A the signatures of the sources and P_q the projector onto what they leave over,

.. math:: E_q = P_q G_q \frac{\partial a_k}{\partial p_i} s_{qk}, \quad
   J = \frac{2}{\sigma^2} \sum_q \Re(E_q^H E_q), \quad C = J^{-1}

E is also the Gauss-Newton Jacobian of maximum likelihood (Kaufman's variable projection).
Everything is done in double precision.
"""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from musicnet.coordinates import xyz_jacobian
from musicnet.scene.steering import steering_derivatives
from musicnet.shapes import Operator, Parameters, Positions


def projected_jacobian(
    operator: Operator,
    positions: Positions,
    wavelength: float,
    parameters: Parameters,
    amplitudes: Complex[Tensor, "*batch block source"],
) -> Complex[Tensor, "*batch block row source 3"]:
    """How what is heard moves with each parameter, less what other amplitudes could explain.

    Args:
        operator: G, leading axes broadcast against the batch.
        positions: metres.
        wavelength: metres.
        parameters: (u, v, rho), all slots resolved.
        amplitudes: s.

    Returns:
        E.
    """
    response, slopes = steering_derivatives(positions, parameters, wavelength)
    operator = operator.to(response.dtype)
    signatures = operator @ response.mT[..., None, :, :]  # (..., blocks, row, source)
    basis: Tensor = torch.linalg.qr(signatures).Q
    columns = slopes.movedim(-2, -3).flatten(-2)  # (..., element, source 3)
    moved: Tensor = operator @ columns[..., None, :, :]  # (..., blocks, row, source 3)
    moved = moved - basis @ (basis.mH @ moved)
    moved = moved.reshape(*moved.shape[:-1], -1, 3)
    return moved * amplitudes.to(moved.dtype)[..., None, :, None]


def deterministic_bound(
    operator: Operator,
    positions: Positions,
    wavelength: float,
    parameters: Parameters,
    amplitudes: Complex[Tensor, "*batch block source"],
    noise_power: Float[Tensor, "*batch"],
    active: tuple[bool, bool, bool] = (True, True, True),
) -> Float[Tensor, "*batch source 3 3"]:
    """Smallest covariance of an unbiased estimate of each source.

    Args:
        operator: G, leading axes broadcast against the batch.
        positions: metres.
        wavelength: metres.
        parameters: (u, v, rho), all slots resolved.
        amplitudes: s, as they are.
        noise_power: E|n|^2 of a row.
        active: which of (u, v, rho) are estimated; the others are known, with variance 0.

    Returns:
        Covariance of (u, v, rho) of each source, with all others unknown; huge where two sources
        nearly coincide. float64.

    Source: Stoica & Nehorai (1989), IEEE Transactions on ASSP 37(5), for the form with amplitudes
    projected out.
    """
    jacobian = projected_jacobian(
        operator.to(torch.complex128),
        positions.double(),
        wavelength,
        parameters.double(),
        amplitudes.to(torch.complex128),
    )
    searched = [i for i, is_active in enumerate(active) if is_active]
    n_sources, n_searched = jacobian.shape[-2], len(searched)
    columns = jacobian[..., searched].flatten(-2)  # (..., block, row, unknown)
    precision = (2.0 / noise_power.double())[..., None, None]
    information = precision * (columns.mH @ columns).real.sum(-3)
    # unknowns have different units: a unit diagonal keeps the inverse well conditioned
    scale = information.diagonal(dim1=-2, dim2=-1).rsqrt()
    scale = scale[..., :, None] * scale[..., None, :]
    covariance: Tensor = torch.linalg.pinv(information * scale, hermitian=True) * scale
    unknowns = (n_sources, n_searched)
    blocks = covariance.reshape(*covariance.shape[:-2], *unknowns, *unknowns)
    own = blocks.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)  # (..., source, searched, searched)
    bound: Tensor = own.new_zeros((*own.shape[:-2], 3, 3))
    rows = torch.tensor(searched, device=own.device)
    bound[..., rows[:, None], rows] = own
    return bound


def position_bound(
    parameters: Parameters, bound: Float[Tensor, "*batch source 3 3"]
) -> Float[Tensor, "*batch source 3 3"]:
    """Turns a bound on the parameters into one on x, y, z.

    Args:
        parameters: (u, v, rho).
        bound: covariance of (u, v, rho).

    Returns:
        Covariance of x, y, z; square metres.
    """
    jacobian = xyz_jacobian(parameters.to(bound.dtype))
    return jacobian @ bound @ jacobian.mT
