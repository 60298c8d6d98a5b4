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
    hermitian_eigen,
    source_slots,
)
from musicnet.scene.sources import SearchRegion, Sources
from musicnet.shapes import Covariance

Fit = Literal["total", "least"]

_PAIRING_WEIGHT = 0.9 * complex(math.cos(1.0), math.sin(1.0))
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
        (u, 0, 0) per source; as many slots as the scene with most sources.

    Raises:
        ValueError: as many sources as sensors, or no covariance.

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
    signal, present = _signal_subspace(covariance, n_sources)
    turn = _rotation(signal[..., :-1, :], signal[..., 1:, :], present, fit)
    safe, finite = _without_nan(turn)
    phasors: Tensor = torch.linalg.eigvals(safe)
    phasors = _largest_first(phasors, phasors.abs(), finite)
    return line_sources(phasors, present, spacing_wavelengths, region, covariance.real.dtype)


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
        (u, v, 0) per source; as many slots as the scene with most sources.

    Raises:
        ValueError: too many sources, no covariance, or one of another array.

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
    signal, present = _signal_subspace(covariance, n_sources)
    size = (n_vertical, n_horizontal, signal.shape[-1])
    grid = signal.reshape(*signal.shape[:-2], *size)  # (..., y, x, source)
    along_x = (grid[..., :, :-1, :].flatten(-3, -2), grid[..., :, 1:, :].flatten(-3, -2))
    along_y = (grid[..., :-1, :, :].flatten(-3, -2), grid[..., 1:, :, :].flatten(-3, -2))
    turn_x, turn_y = (_rotation(*halves, present, fit) for halves in (along_x, along_y))
    turn_x, finite_x = _without_nan(turn_x)
    turn_y, finite_y = _without_nan(turn_y)
    _, shared = torch.linalg.eig(turn_x + _PAIRING_WEIGHT * turn_y)
    inverse, _ = torch.linalg.inv_ex(shared)
    across, up = ((inverse @ turn @ shared).diagonal(dim1=-2, dim2=-1) for turn in (turn_x, turn_y))
    size = across.abs() + up.abs()
    phasors = [_largest_first(p, size, finite_x & finite_y) for p in (across, up)]
    u, v = (p.angle() / (2.0 * math.pi * spacing_wavelengths) for p in phasors)
    return _sources(torch.stack((u, v, torch.zeros_like(u)), dim=-1), present, region)


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
    u = (phasors.angle() / (2.0 * math.pi * spacing_wavelengths)).to(dtype)
    zero = torch.zeros_like(u)
    return _sources(torch.stack((u, zero, zero), dim=-1), present, region)


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
    values, vectors = hermitian_eigen(covariance)
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
