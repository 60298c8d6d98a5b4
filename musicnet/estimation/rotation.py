r"""ESPRIT: directions from how the signal subspace turns between two shifted subarrays.

Subarrays that are one step apart hear the same field up to a phase per source. With U_1, U_2 the
signal subspace on the two, U_2 = U_1 \Psi, and the eigenvalues of \Psi are those phases: on a line
exp(j k0 d u), on a rectangle one for each axis.
"""

import math
from typing import Literal

import torch
from jaxtyping import Complex, Int, Shaped
from torch import Tensor

from musicnet.estimation.hermitian import (
    check_covariance,
    check_n_sources,
    general_eigen,
    hermitian_eigen,
    isolate_gradients,
    source_slots,
)
from musicnet.scene.sources import SearchRegion, Sources
from musicnet.shapes import Covariance

Fit = Literal["total", "least"]

_PAIRING_WEIGHT = 0.9 * complex(math.cos(1.0), math.sin(1.0))
_SLACK = 1e-3  # of half a wavelength, measured from positions in single precision
_STAND_IN = 4.0  # of absent sources; beyond every eigenvalue of two orthonormal halves


def esprit(
    covariance: Covariance,
    n_sources: int | Int[Tensor, "*batch"],
    spacing_wavelengths: float = 0.5,
    region: SearchRegion | None = None,
    fit: Fit = "total",
) -> Sources:
    """Directions of far sources from a uniform line of sensors along x.

    Args:
        covariance: R, sensors in order of x; linear power.
        n_sources: K, one number for all scenes or one for each.
        spacing_wavelengths: distance of neighbours.
        region: answers are clamped into it; None is everywhere.
        fit: "total" least squares takes both subarrays for noisy, "least" squares the second only.

    Returns:
        (u, 0, 0) per source, in the order of u; as many slots as the scene with most sources.

    Raises:
        ValueError: as many sources as sensors, no covariance, or a region so wide that the phase
            of a step does not say where in it.

    Source: Roy & Kailath (1989), IEEE Transactions on ASSP 37(7).

    Example:
        >>> line = torch.exp(1j * math.pi * 0.25 * torch.arange(4))
        >>> round(esprit(torch.outer(line, line.conj()), n_sources=1).u.item(), 4)
        0.25
    """
    check_covariance(covariance)
    _check_fit(fit)
    n_sensors = covariance.shape[-1]
    check_n_sources(n_sources, n_sensors, n_sensors - 1, "ESPRIT")
    check_spacing(spacing_wavelengths, region)
    signal, present = _signal_subspace(covariance, n_sources)
    turn = _rotation(signal[..., :-1, :], signal[..., 1:, :], present, fit)
    safe, finite = _without_nan(turn)
    phasors = general_eigen(safe)[0]
    phasors = _largest_first(phasors, phasors.abs(), finite)
    found = line_sources(phasors, present, spacing_wavelengths, region, covariance.real.dtype)
    return _in_order(found)


def esprit_rectangle(
    covariance: Covariance,
    n_sources: int | Int[Tensor, "*batch"],
    n_horizontal: int,
    n_vertical: int,
    spacing_wavelengths: float = 0.5,
    region: SearchRegion | None = None,
    fit: Fit = "total",
) -> Sources:
    r"""Directions of far sources from a rectangular grid of sensors, u and v paired by themselves.

    Both rotations have the same eigenvectors T. Those of one mixture of the two diagonalise each,
    so that the i-th u and the i-th v belong to one source, also where two sources share a u or v.

    Args:
        covariance: R, sensors with x running fastest; linear power.
        n_sources: K, one number for all scenes or one for each.
        n_horizontal: sensors along x.
        n_vertical: sensors along y.
        spacing_wavelengths: distance of neighbours.
        region: answers are clamped into it; None is everywhere.
        fit: see `esprit`.

    Returns:
        (u, v, 0) per source, in the order of u; as many slots as the scene with most sources.

    Raises:
        ValueError: too many sources, no covariance, one of another array, or a region so wide
            that the phase of a step does not say where in it.

    Source: Rouquette & Najim (2001), IEEE Transactions on Signal Processing 49(1), for pairing by
    a mixture.
    """
    check_covariance(covariance)
    _check_fit(fit)
    if n_horizontal * n_vertical != covariance.shape[-1] or min(n_horizontal, n_vertical) < 2:
        raise ValueError(
            "a rectangle needs two sensors or more along both axes, and a covariance of them all: "
            f"got n_horizontal={n_horizontal}, n_vertical={n_vertical} for "
            f"{covariance.shape[-1]} rows. Use esprit for a line."
        )
    highest = min((n_horizontal - 1) * n_vertical, n_horizontal * (n_vertical - 1))
    check_n_sources(n_sources, covariance.shape[-1], highest, "ESPRIT")
    check_spacing(spacing_wavelengths, region, axes="uv")
    signal, present = _signal_subspace(covariance, n_sources)
    size = (n_vertical, n_horizontal, signal.shape[-1])
    grid = signal.reshape(*signal.shape[:-2], *size)  # (..., y, x, source)
    along_x = (grid[..., :, :-1, :].flatten(-3, -2), grid[..., :, 1:, :].flatten(-3, -2))
    along_y = (grid[..., :-1, :, :].flatten(-3, -2), grid[..., 1:, :, :].flatten(-3, -2))
    turn_x, turn_y = (_rotation(*halves, present, fit) for halves in (along_x, along_y))
    turn_x, finite_x = _without_nan(turn_x)
    turn_y, finite_y = _without_nan(turn_y)
    _, shared = general_eigen(turn_x + _PAIRING_WEIGHT * turn_y)
    inverse, _ = torch.linalg.inv_ex(shared)
    across, up = ((inverse @ turn @ shared).diagonal(dim1=-2, dim2=-1) for turn in (turn_x, turn_y))
    size = across.abs() + up.abs()
    phasors = [_largest_first(p, size, finite_x & finite_y) for p in (across, up)]
    u, v = (
        _cosine(p, spacing_wavelengths, bounds)
        for p, bounds in zip(phasors, _cosine_bounds(region), strict=True)
    )
    found = _sources(torch.stack((u, v, torch.zeros_like(u)), dim=-1), present, region)
    return _in_order(found)


def check_spacing(spacing_wavelengths: float, region: SearchRegion | None, axes: str = "u") -> None:
    """Refuses a region in which several directions turn the field by the same phase per step.

    Args:
        spacing_wavelengths: distance of neighbours.
        region: where sources may be; None is everywhere.
        axes: along which the sensors stand: "u" or "uv".

    Raises:
        ValueError: the region is wider than the reciprocal of the spacing.
    """
    for axis, (low, high) in zip(axes, _cosine_bounds(region), strict=False):
        if (high - low) * spacing_wavelengths > 1.0 + _SLACK:
            raise ValueError(
                f"sensors {spacing_wavelengths:.3g} wavelengths apart tell {axis} apart over "
                f"{1.0 / spacing_wavelengths:.3g} only: got a region from {low:.3g} to {high:.3g}. "
                "Narrow it, or use nomp."
            )


def line_sources(
    phasors: Complex[Tensor, "*batch slot"],
    present: Shaped[Tensor, "*batch slot"],
    spacing_wavelengths: float,
    region: SearchRegion | None,
    dtype: torch.dtype,
) -> Sources:
    """Turns phases per sensor step of a line along x into sources.

    Args:
        phasors: exp(j k0 d u), of any size but zero; NaN is not resolved.
        present: which slots are asked for.
        spacing_wavelengths: d.
        region: answers are clamped into it; its v, where fixed, is theirs.
        dtype: of the answer.

    Returns:
        (u, v, 0) per source. Phases that no direction has are not resolved.
    """
    u = _cosine(phasors, spacing_wavelengths, _cosine_bounds(region)[0]).to(dtype)
    zero = torch.zeros_like(u)
    return _sources(torch.stack((u, zero, zero), dim=-1), present, region)


def _cosine_bounds(region: SearchRegion | None) -> tuple[tuple[float, float], ...]:
    """Bounds of u and v, within what directions have."""
    bounds = ((-1.0, 1.0), (-1.0, 1.0)) if region is None else (region.u, region.v)
    return tuple((max(low, -1.0), min(high, 1.0)) for low, high in bounds)


def _cosine(phasors: Tensor, spacing_wavelengths: float, bounds: tuple[float, float]) -> Tensor:
    """The direction cosine that turns by such a phase per step, the one nearest the centre."""
    per_radian = 1.0 / (2.0 * math.pi * spacing_wavelengths)
    centre = 0.5 * (bounds[0] + bounds[1])
    turn = complex(math.cos(centre / per_radian), -math.sin(centre / per_radian))
    # in double, or the rounding of an angle would depend on where in its batch a scene stands
    turned = phasors.to(torch.complex128) * turn
    return turned.angle() * per_radian + centre


def _in_order(sources: Sources) -> Sources:
    """By u, then v; eigenvalues have no order of their own, and what is not resolved goes last."""
    parameters, resolved = sources.parameters, sources.resolved
    for column in (1, 0):
        order = parameters[..., column].argsort(dim=-1, stable=True)  # NaN last
        parameters = parameters.take_along_dim(order[..., None], -2)
        resolved = resolved.take_along_dim(order, -1)
    return Sources(parameters, resolved)


def _sources(parameters: Tensor, present: Tensor, region: SearchRegion | None) -> Sources:
    """Clamps, and takes out what is absent, NaN, or beyond the horizon."""
    if region is not None:
        fixed = SearchRegion(region.u, region.v, (0.0, 0.0))
        parameters = fixed.clamp(parameters)
    visible = parameters[..., :2].square().sum(-1) <= 1.0 + 1e-6  # NaN is not
    resolved = present & visible
    return Sources(parameters.masked_fill(~resolved[..., None], torch.nan), resolved)


def _signal_subspace(covariance: Tensor, n_sources: int | Tensor) -> tuple[Tensor, Tensor]:
    """Leading eigenvectors, strongest first and zero in absent slots; and which are present."""
    values, vectors = hermitian_eigen(isolate_gradients(covariance))
    n_slots, present = source_slots(n_sources, values[..., 0])
    leading = vectors[..., vectors.shape[-1] - n_slots :].flip(-1)
    return leading * present[..., None, :], present


def _rotation(first: Tensor, second: Tensor, present: Tensor, fit: Fit) -> Tensor:
    """The matrix that turns one subarray's subspace into the other's; absent slots get zeros."""
    absent = torch.diag_embed((~present).to(first.dtype))
    if fit == "least":
        gram = first.mH @ first + absent
        least: Tensor = torch.linalg.solve_ex(gram, first.mH @ second).result
        return least
    n_slots = present.shape[-1]
    both = torch.cat((first, second), dim=-1)
    moments = both.mH @ both
    # an absent source gets a leading direction of its own in the first half, none in the second
    padding = torch.nn.functional.pad(_STAND_IN * absent, (0, n_slots, 0, n_slots))
    trailing = hermitian_eigen(moments + padding)[1][..., :n_slots]
    upper, lower = trailing[..., :n_slots, :], trailing[..., n_slots:, :]
    total: Tensor = torch.linalg.solve_ex(lower, -upper, left=False).result
    return total


def _without_nan(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The general eigensolver refuses a whole batch for one NaN: zeros there, and where."""
    finite = torch.isfinite(matrix).all(-1).all(-1)
    return matrix.where(finite[..., None, None], torch.zeros_like(matrix)), finite


def _largest_first(phasors: Tensor, size: Tensor, finite: Tensor) -> Tensor:
    """Absent sources have phasors near zero, and go last."""
    order = size.argsort(dim=-1, descending=True)
    return phasors.gather(-1, order).masked_fill(~finite[..., None], torch.nan)


def _check_fit(fit: str) -> None:
    if fit not in ("total", "least"):
        raise ValueError(f"fit must be 'total' or 'least' squares: got {fit!r}.")
