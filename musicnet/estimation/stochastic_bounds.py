r"""How well anyone can do when amplitudes are Gaussian: the stochastic Cramér-Rao bound.

With y_q ~ CN(0, R_q), R_q = B_q P B_q^H + sigma^2 I, and the covariance P of the sources unknown,

.. math:: J_{ab} = \sum_q T \, \mathrm{tr}(R_q^{-1} \partial_a R_q R_q^{-1} \partial_b R_q)

over positions, the K^2 real numbers in P and the noise power (Slepian-Bangs); the last two are
nuisance, and leave by the Schur complement. Unlike the closed form for one G this holds for a G
that changes from block to block, too. For long observations the bound is never below the
deterministic one.
"""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from musicnet.estimation.bounds import own_blocks
from musicnet.scene.steering import steering_derivatives
from musicnet.shapes import Operator, Parameters, Positions


def stochastic_bound(
    operator: Operator,
    positions: Positions,
    wavelength: float,
    parameters: Parameters,
    source_covariance: Complex[Tensor, "*batch source source"],
    noise_power: Float[Tensor, "*batch"],
    n_snapshots: int,
    active: tuple[bool, bool, bool] = (True, True, True),
    *,
    is_noise_known: bool = False,
    is_uncorrelated: bool = False,
) -> Float[Tensor, "*batch source 3 3"]:
    """Smallest covariance of an unbiased estimate of each source.

    Args:
        operator: G, leading axes broadcast against the batch.
        positions: metres.
        wavelength: metres.
        parameters: (u, v, rho); NaN in slots that hold no source.
        source_covariance: P = E[s s^H], Hermitian; singular for coherent sources. What it says of
            slots that hold no source is not looked at.
        noise_power: E|n|^2 of a row.
        n_snapshots: T, of each block of the operator.
        active: which of (u, v, rho) are estimated; the others are known, with variance 0.
        is_noise_known: whether the noise power need not be estimated.
        is_uncorrelated: whether the estimator may rely on P being diagonal.

    Returns:
        Covariance of (u, v, rho) of each source, with all others unknown; NaN in slots that hold
        no source, and in scenes that are not finite. float64.

    Source: Stoica, Larsson & Gershman (2001), IEEE Signal Processing Letters 8(5), for the
    derivation from Slepian-Bangs.
    """
    present = parameters.isfinite().all(-1)
    there = present[..., None]
    filled = parameters.double().masked_fill(~there, 0.0)
    response, slopes = steering_derivatives(positions.double(), filled, wavelength)
    response, slopes = response * there, slopes * there[..., None]
    operator = operator.to(torch.complex128)
    signatures = operator @ response.mT[..., None, :, :]  # (..., blocks, row, source)
    searched = [i for i, is_active in enumerate(active) if is_active]
    columns = slopes[..., searched].movedim(-2, -3).flatten(-2)  # (..., element, source searched)
    moved = operator @ columns[..., None, :, :]
    power = source_covariance.to(torch.complex128)
    power = power.masked_fill(~(there & present[..., None, :]), 0.0)[..., None, :, :]
    noise = noise_power.double()[..., None, None, None]
    identity = torch.eye(operator.shape[-2], dtype=torch.complex128, device=operator.device)
    covariance = signatures @ power @ signatures.mH + noise * identity
    root, info = torch.linalg.cholesky_ex(covariance)
    root = root.masked_fill((info != 0)[..., None, None], torch.nan)
    # whitened by L^-1, the trace is a plain inner product of Hermitian matrices
    signatures = torch.linalg.solve_triangular(root, signatures, upper=False)
    moved = torch.linalg.solve_triangular(root, moved, upper=False)
    whitener = torch.linalg.solve_triangular(root, identity.expand_as(root), upper=False)
    wanted = _position_slopes(signatures, moved, power)
    nuisance = _power_slopes(signatures, is_uncorrelated=is_uncorrelated)
    if not is_noise_known:
        noise_slope = whitener @ whitener.mH
        nuisance = torch.cat((nuisance, noise_slope[..., None, :, :]), dim=-3)
    information = _products(wanted, wanted, n_snapshots)
    crossed = _products(wanted, nuisance, n_snapshots)
    known = _products(nuisance, nuisance, n_snapshots)
    # the diagonal of P and the noise power differ in scale by the array gain and the SNR
    diagonal = known.diagonal(dim1=-2, dim2=-1)
    scale = torch.where(diagonal == 0, 1.0, diagonal).rsqrt()  # empty slots
    known = known * scale[..., :, None] * scale[..., None, :]
    crossed = crossed * scale[..., None, :]
    spoilt = ~known.isfinite().all(-1).all(-1)[..., None, None]
    inverse = torch.linalg.pinv(known.masked_fill(spoilt, 0.0), hermitian=True)
    explained = crossed @ inverse @ crossed.mT
    return own_blocks(information - explained, present, active)


def _position_slopes(
    signatures: Complex[Tensor, "*batch blocks row source"],
    moved: Complex[Tensor, "*batch blocks row unknown"],
    power: Complex[Tensor, "*batch 1 source source"],
) -> Complex[Tensor, "*batch blocks unknown row row"]:
    """Slope of R along each source's coordinates: D P B^H and its mirror image."""
    n_searched = moved.shape[-1] // signatures.shape[-1]
    beams = (power @ signatures.mH).repeat_interleave(n_searched, dim=-2)  # (..., unknown, row)
    half = moved.mT[..., :, None] * beams[..., None, :]
    return half + half.mH


def _power_slopes(
    signatures: Complex[Tensor, "*batch blocks row source"], *, is_uncorrelated: bool
) -> Complex[Tensor, "*batch blocks unknown row row"]:
    """Slope of R along each real number in P."""
    lines = signatures.mT
    n_sources = lines.shape[-2]
    first, second = torch.triu_indices(n_sources, n_sources, device=lines.device)
    if is_uncorrelated:
        first = second = torch.arange(n_sources, device=lines.device)
    half = lines[..., first, :, None] * lines[..., second, None, :].conj()
    real = half + half.mH
    imaginary = 1j * (half - half.mH)[..., first != second, :, :]
    return torch.cat((real, imaginary), dim=-3)


def _products(
    first: Complex[Tensor, "*batch blocks unknown row row"],
    second: Complex[Tensor, "*batch blocks other row row"],
    n_snapshots: int,
) -> Float[Tensor, "*batch unknown other"]:
    """T sum_q tr(X_a X_b), of Hermitian matrices."""
    left = torch.view_as_real(first.contiguous()).flatten(-3)
    right = torch.view_as_real(second.contiguous()).flatten(-3)
    products: Tensor = n_snapshots * (left @ right.mT).sum(-3)
    return products
