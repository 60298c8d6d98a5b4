r"""How well anyone can do: the Cramér-Rao bound with unknown deterministic amplitudes.

With B_q = G_q A the signatures of the sources and P_q the projector onto what they leave over,

.. math:: E_q = P_q G_q \frac{\partial a_k}{\partial p_i} s_{qk}, \quad
   J = \frac{2}{\sigma^2} \sum_q \Re(E_q^H E_q), \quad C = J^{-1}

E is also the Gauss-Newton Jacobian of maximum likelihood (Kaufman's variable projection), see
`musicnet.estimation.linearization`. An unknown noise power does not change this bound: it tells
nothing about positions. `musicnet.estimation.stochastic_bounds` has the bound for Gaussian
amplitudes, where it does. Everything is done in double precision.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from musicnet.coordinates import depth_cosine, xyz_jacobian
from musicnet.scene.steering import steering_derivatives
from musicnet.shapes import Operator, Parameters, Positions

# of the scaled information: rounding leaves no more digits
_SMALLEST_EIGENVALUE = 1e-12


@dataclass(frozen=True)
class ElementErrors:
    """What is not known about the elements: a gain and a phase error of each, Gaussian.

    Args:
        gain: standard deviation of the relative gain; 0 if gains are known.
        phase: standard deviation of the phase, radians; 0 if phases are known.
    """

    gain: float = 0.0
    phase: float = 0.0


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
        parameters: (u, v, rho); NaN in slots that hold no source.
        amplitudes: s.

    Returns:
        E; 0 for slots that hold no source.
    """
    present = parameters.isfinite().all(-1)
    filled = parameters.masked_fill(~present[..., None], 0.0)
    response, slopes = steering_derivatives(positions, filled, wavelength)
    operator = operator.to(response.dtype)
    basis = _basis(operator @ response.mT[..., None, :, :], present)
    columns = slopes.movedim(-2, -3).flatten(-2)  # (..., element, source 3)
    moved: Tensor = operator @ columns[..., None, :, :]  # (..., blocks, row, source 3)
    moved = moved - basis @ (basis.mH @ moved)
    moved = moved.reshape(*moved.shape[:-1], -1, 3)
    loudness = amplitudes.to(moved.dtype).masked_fill(~present[..., None, :], 0.0)
    return moved * loudness[..., None, :, None]


def deterministic_bound(
    operator: Operator,
    positions: Positions,
    wavelength: float,
    parameters: Parameters,
    amplitudes: Complex[Tensor, "*batch block source"],
    noise_power: Float[Tensor, "*batch"],
    active: tuple[bool, bool, bool] = (True, True, True),
    element_errors: ElementErrors | None = None,
) -> Float[Tensor, "*batch source 3 3"]:
    """Smallest covariance of an unbiased estimate of each source.

    Args:
        operator: G, leading axes broadcast against the batch.
        positions: metres.
        wavelength: metres.
        parameters: (u, v, rho); NaN in slots that hold no source.
        amplitudes: s, as they are.
        noise_power: E|n|^2 of a row.
        active: which of (u, v, rho) are estimated; the others are known, with variance 0.
        element_errors: what is not known about the elements, to be estimated as well; with it the
            bound is the hybrid one, averaged over these errors. None if all is known.

    Returns:
        Covariance of (u, v, rho) of each source, with all others unknown; huge where two sources
        nearly coincide, NaN in slots that hold no source. float64.

    Source: Stoica & Nehorai (1989), IEEE Transactions on ASSP 37(5), for the form with amplitudes
    projected out; Rockah & Schultheiss (1987), IEEE Transactions on ASSP 35(3), for element errors
    as random unknowns.
    """
    operator, positions = operator.to(torch.complex128), positions.double()
    parameters, amplitudes = parameters.double(), amplitudes.to(torch.complex128)
    jacobian = projected_jacobian(operator, positions, wavelength, parameters, amplitudes)
    columns = jacobian[..., _searched(active)].flatten(-2)  # (..., block, row, unknown)
    weight = (2.0 / noise_power.double())[..., None, None]
    information = (columns.mH @ columns).real.sum(-3) * weight
    if element_errors is not None:
        nuisance, prior = _element_columns(
            operator, positions, wavelength, parameters, amplitudes, element_errors
        )
        crossed = (columns.mH @ nuisance).real.sum(-3) * weight
        known = (nuisance.mH @ nuisance).real.sum(-3) * weight + torch.diag_embed(prior)
        information = information - crossed @ torch.linalg.solve(known, crossed.mT)
    return own_blocks(information, parameters.isfinite().all(-1), active)


def own_blocks(
    information: Float[Tensor, "*batch unknown unknown"],
    present: Bool[Tensor, "*batch source"],
    active: tuple[bool, bool, bool],
) -> Float[Tensor, "*batch source 3 3"]:
    """Inverts an information matrix, and cuts out what concerns each source.

    Args:
        information: J, unknowns ordered source by source, 0 for slots that hold no source.
        present: slots that hold a source.
        active: which of (u, v, rho) are unknowns.

    Returns:
        Covariance of (u, v, rho) of each source: 0 where known, infinite where without effect, NaN
        where there is no source.
    """
    searched = _searched(active)
    unknowns = (present.shape[-1], len(searched))
    there = present.repeat_interleave(len(searched), dim=-1)
    # unknowns have different units: a unit diagonal keeps the inverse well conditioned
    diagonal = information.diagonal(dim1=-2, dim2=-1)
    blind = there & (diagonal <= 0)  # a coordinate without effect
    empty = ~there | blind
    scale = torch.where(empty, 1.0, diagonal).rsqrt()
    scale = scale[..., :, None] * scale[..., None, :]
    scaled = (information * scale).masked_fill(empty[..., :, None] | empty[..., None, :], 0.0)
    bad = ~scaled.isfinite().all(-1).all(-1)
    scaled = scaled.masked_fill(bad[..., None, None], 0.0)
    values, vectors = torch.linalg.eigh(scaled + torch.diag_embed(empty.to(scaled.dtype)))
    # what cannot be told at all has a huge variance, not none
    covariance = (vectors / values.clamp_min(_SMALLEST_EIGENVALUE)[..., None, :]) @ vectors.mT
    covariance = covariance * scale + torch.diag_embed(torch.where(blind, torch.inf, 0.0))
    blocks = covariance.reshape(*covariance.shape[:-2], *unknowns, *unknowns)
    own = blocks.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)  # (..., source, searched, searched)
    bound: Tensor = own.new_zeros((*own.shape[:-2], 3, 3))
    rows = torch.tensor(searched, device=own.device)
    bound[..., rows[:, None], rows] = own
    return bound.masked_fill(~(present & ~bad[..., None])[..., None, None], torch.nan)


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


def angle_bound(
    parameters: Parameters, bound: Float[Tensor, "*batch source 3 3"]
) -> Float[Tensor, "*batch source 3 3"]:
    """Turns a bound on the parameters into one on azimuth, elevation and range.

    Args:
        parameters: (u, v, rho).
        bound: covariance of (u, v, rho).

    Returns:
        Covariance of azimuth, elevation (radians) and range (metres; 0 in the far field, which has
        none).
    """
    jacobian = angle_jacobian(parameters.to(bound.dtype))
    return jacobian @ bound @ jacobian.mT


def angle_jacobian(parameters: Parameters) -> Float[Tensor, "*batch source 3 3"]:
    """How azimuth, elevation and range move with u, v and rho.

    Args:
        parameters: (u, v, rho), inside the unit disc.

    Returns:
        d (azimuth, elevation, range) / d (u, v, rho); range does not move in the far field.
        Infinite at grazing incidence.

    Example:
        >>> angle_jacobian(torch.tensor([[0.0, 0.0, 0.5]]))[0].tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, -4.0]]
    """
    u, v, rho = parameters.unbind(-1)
    w, zero = depth_cosine(u, v), torch.zeros_like(u)
    level = (1.0 - v * v).clamp_min(0.0)  # squared cosine of the elevation
    squared_range = torch.where(rho == 0, zero, 1.0 / (rho * rho))
    azimuth = torch.stack((1.0 / w, u * v / (w * level), zero), dim=-1)
    elevation = torch.stack((zero, level.rsqrt(), zero), dim=-1)
    distance = torch.stack((zero, zero, -squared_range), dim=-1)
    return torch.stack((azimuth, elevation, distance), dim=-2) + 0.0  # no negative zeros


def _searched(active: tuple[bool, bool, bool]) -> list[int]:
    return [i for i, is_active in enumerate(active) if is_active]


def _basis(
    signatures: Complex[Tensor, "*batch blocks row source"], present: Bool[Tensor, "*batch source"]
) -> Complex[Tensor, "*batch blocks row source"]:
    """Orthonormal columns that span the signatures of the sources that are there."""
    # sources first: what QR makes of the columns after them can then be cleared
    order = present.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
    first = signatures.gather(-1, order[..., None, None, :].expand_as(signatures))
    basis: Tensor = torch.linalg.qr(first).Q
    there = present.gather(-1, order)
    return basis.masked_fill(~there[..., None, None, :], 0.0)


def _element_columns(
    operator: Complex[Tensor, "*channel blocks row element"],
    positions: Positions,
    wavelength: float,
    parameters: Parameters,
    amplitudes: Complex[Tensor, "*batch block source"],
    errors: ElementErrors,
) -> tuple[Complex[Tensor, "*batch block row nuisance"], Float[Tensor, " nuisance"]]:
    """How what is heard moves with each element's errors, and what is known of these before."""
    present = parameters.isfinite().all(-1)
    filled = parameters.masked_fill(~present[..., None], 0.0)
    response, _ = steering_derivatives(positions, filled, wavelength)
    amplitudes = amplitudes.masked_fill(~present[..., None, :], 0.0)
    field = amplitudes @ response  # (..., block, element)
    moved = operator * field[..., None, :]  # (..., block, row, element)
    basis = _basis(operator @ response.mT[..., None, :, :], present)
    moved = moved - basis @ (basis.mH @ moved)
    kinds = ((1.0, errors.gain), (1j, errors.phase))
    columns = [factor * moved for factor, deviation in kinds if deviation > 0]
    precisions = [
        torch.full((moved.shape[-1],), deviation**-2, dtype=torch.float64, device=moved.device)
        for _, deviation in kinds
        if deviation > 0
    ]
    return torch.cat(columns, dim=-1), torch.cat(precisions)
