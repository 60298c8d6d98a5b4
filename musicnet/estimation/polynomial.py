r"""Root-MUSIC: directions from the roots of a polynomial, without any grid.

On a uniform line with step d the null spectrum is a trigonometric polynomial,

.. math:: f(z) = \sum_k c_k z^k, \quad c_k = \sum_{n - m = k} (U_n U_n^H)_{mn},
   \quad z = e^{j k_0 d u}

with c_{-k} = c_k^*: its roots come in pairs (z, 1/z*), and those nearest the unit circle are
sources. All roots of all scenes are found at once by the Ehrlich-Aberth iteration, which needs no
eigenvalues of companion matrices and costs O(N^2) a step.
"""

import math

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from musicnet.estimation.hermitian import (
    check_covariance,
    check_n_sources,
    hermitian_eigen,
    isolate_gradients,
    source_slots,
)
from musicnet.estimation.rotation import check_spacing, line_sources
from musicnet.scene.sources import SearchRegion, Sources
from musicnet.shapes import Covariance

_MOST_ITERATIONS = 80  # twelve are usual; double roots of exact covariances never rest
_CHECKED_EVERY = 4


def root_music(
    covariance: Covariance,
    n_sources: int | Int[Tensor, "*batch"],
    spacing_wavelengths: float = 0.5,
    region: SearchRegion | None = None,
) -> Sources:
    """Directions of far sources from a uniform line of sensors along x.

    Differentiable: the last Newton step carries the derivative of a root.

    Args:
        covariance: R, sensors in order of x; linear power.
        n_sources: K, one number for all scenes or one for each.
        spacing_wavelengths: distance of neighbours.
        region: where sources may be; None is everywhere. The roots nearest to its arc of the unit
            circle win, and what they say is clamped into it.

    Returns:
        (u, 0, 0) per source, nearest root first; as many slots as the scene with most sources.

    Raises:
        ValueError: as many sources as sensors, no covariance, or a region so wide that the phase
            of a step does not say where in it.

    Source: Barabell (1983), ICASSP, on Schmidt's noise subspace.

    Example:
        >>> line = torch.exp(1j * math.pi * 0.25 * torch.arange(4))
        >>> round(root_music(torch.outer(line, line.conj()), n_sources=1).u.item(), 3)
        0.25
    """
    check_covariance(covariance)
    n_sensors = covariance.shape[-1]
    check_n_sources(n_sources, n_sensors, n_sensors - 1, "Root-MUSIC")
    check_spacing(spacing_wavelengths, region)
    values, vectors = hermitian_eigen(isolate_gradients(covariance))
    n_slots, present = source_slots(n_sources, values[..., 0])
    signal = vectors[..., n_sensors - n_slots :].flip(-1) * present[..., None, :]
    identity = torch.eye(n_sensors, dtype=covariance.dtype, device=covariance.device)
    coefficients = diagonal_sums(identity - signal @ signal.mH)
    # sources are double roots of an exact covariance, which keep half of the digits only
    roots = inner_roots(coefficients.to(torch.complex128))
    chosen = _nearest(roots, n_slots, spacing_wavelengths, region)
    return line_sources(chosen, present, spacing_wavelengths, region, covariance.real.dtype)


def diagonal_sums(matrix: Covariance) -> Complex[Tensor, "*batch lag"]:
    """Sums along the diagonals: the coefficients of a^H M a as a polynomial.

    Args:
        matrix: M, N by N.

    Returns:
        2 N - 1 sums, from the lowest diagonal (m - n = N - 1) to the highest (n - m = N - 1).

    Example:
        >>> diagonal_sums(torch.tensor([[1.0 + 0j, 2.0], [3.0, 4.0]])).real.tolist()
        [3.0, 5.0, 2.0]
    """
    n = matrix.shape[-1]
    # rows of 2 N entries read as rows of 2 N - 1 slip by one each: diagonals become columns
    slipped = torch.nn.functional.pad(matrix.flip(-2), (0, n)).flatten(-2)[..., : n * (2 * n - 1)]
    return slipped.reshape(*slipped.shape[:-1], n, 2 * n - 1).sum(-2)


def inner_roots(
    coefficients: Complex[Tensor, "*batch lag"], most_iterations: int = _MOST_ITERATIONS
) -> Complex[Tensor, "*batch root"]:
    """Roots within the unit circle of polynomials that are real on it.

    Ehrlich-Aberth iteration on one root of each pair (z, 1/z*), the other one mirrored.

    Args:
        coefficients: c, lowest power first, 2 N - 1 of them with c_{-k} = c_k^*.
        most_iterations: after which roots that still move are taken as they are.

    Returns:
        N - 1 roots, |z| <= 1, in no order; NaN for a polynomial that is not finite.

    Source: Aberth (1973), Mathematics of Computation 27(122).
    """
    n_roots = (coefficients.shape[-1] - 1) // 2
    with torch.no_grad():
        centre = coefficients.detach()[..., n_roots, None].abs()
        fixed = coefficients.detach() / centre.clamp_min(torch.finfo(centre.dtype).tiny)
        roots = _start(fixed, n_roots)
        resting = 8.0 * n_roots * torch.finfo(centre.dtype).eps
        for iteration in range(1, most_iterations + 1):
            roots, step = _aberth_step(fixed, roots)
            # asking costs a wait for the device, hence not every time
            if iteration % _CHECKED_EVERY == 0 and bool((step.abs() < resting).all()):
                break
    # implicit function: dz = -df(z) / f'(z), with everything else held
    value, slope = _value_and_slope(coefficients, roots)
    slope = slope.detach()
    moves = _is_finite(slope) & (value.detach().abs() < 1e-3 * slope.abs())
    # where a root does not move nothing is divided by: 0 * inf would spoil the gradient
    step = (value / slope.where(moves, torch.ones_like(slope))) * moves
    # what is not finite never moved, and its starting points must not pass for roots
    spoilt = ~_is_finite(coefficients).all(-1, keepdim=True)
    return (roots - step).masked_fill(spoilt, torch.nan)


def _start(fixed: Tensor, n_roots: int) -> Tensor:
    """Starting points on a circle, turned so that no symmetry of the roots is met."""
    index = torch.arange(n_roots, dtype=fixed.real.dtype, device=fixed.device)
    radius = torch.full_like(index, 1.0 - 1.0 / (n_roots + 1.0))
    circle = torch.polar(radius, 2.0 * math.pi * (index + 0.3) / n_roots + 0.1)
    return circle.expand(*fixed.shape[:-1], -1)


def _aberth_step(coefficients: Tensor, roots: Tensor) -> tuple[Tensor, Tensor]:
    """Newton's step with the pull of all other roots, and of all mirrored ones, taken off."""
    value, slope = _value_and_slope(coefficients, roots)
    conjugate = roots.conj()[..., None, :]
    apart = roots[..., :, None] - roots[..., None, :]
    apart.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
    # 1 / (z - 1/w*) in a form that is finite for w = 0
    pull = apart.reciprocal() + conjugate / (roots[..., :, None] * conjugate - 1.0)
    step = value / (slope - value * pull.sum(-1))
    # a root that has arrived divides zero by zero
    step = step.where(_is_finite(step), torch.zeros_like(step))
    moved = roots - step
    size = moved.abs()
    return torch.where(size > 1.0, moved / size.square(), moved), step


def _value_and_slope(coefficients: Tensor, roots: Tensor) -> tuple[Tensor, Tensor]:
    """z^(N-1) f(z) and its derivative by Horner's rule, which is stable within the circle."""
    columns = coefficients[..., None].unbind(-2)
    value = columns[-1].expand_as(roots)
    slope = torch.zeros_like(roots)
    for column in reversed(columns[:-1]):
        slope = torch.addcmul(value, slope, roots)
        value = torch.addcmul(column, value, roots)
    return value, slope


def _nearest(
    roots: Tensor, n_slots: int, spacing_wavelengths: float, region: SearchRegion | None
) -> Tensor:
    """The roots nearest to the part of the unit circle where sources may be."""
    with torch.no_grad():
        distance = 1.0 - roots.abs()
        if region is not None:
            low, high = (2.0 * math.pi * spacing_wavelengths * u for u in region.u)
            turned = roots * torch.polar(
                torch.ones_like(distance), torch.full_like(distance, -0.5 * (low + high))
            )
            phase = turned.angle()
            half = min(0.5 * (high - low), math.pi)
            on_arc = torch.polar(torch.ones_like(phase), phase.clamp(-half, half))
            distance = (turned - on_arc).abs()
        # a NaN must not be chosen before a number
        distance = distance.nan_to_num(torch.inf)
        chosen = distance.topk(n_slots, dim=-1, largest=False).indices
    return roots.gather(-1, chosen)


def _is_finite(values: Float[Tensor, "*shape"] | Complex[Tensor, "*shape"]) -> Tensor:
    return torch.isfinite(values.real) & torch.isfinite(values.imag)
