"""Peaks between the cells of any map: the top of the parabola through the neighbours."""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor

from musicnet.estimation.peaks import Peaks
from musicnet.shapes import Map

_STENCIL = tuple(itertools.product((-1, 0, 1), repeat=3))


def interpolate_peaks(score: Map, peaks: Peaks) -> Float[Tensor, "*batch peak 3"]:
    """Places peaks between cells.

    A quadratic function, mixed terms included, goes through the 27 cells around a peak; at an edge
    of the map the same cells moved inwards, so that a peak within the last cell is found, too.
    Where that function has no top within a cell of the peak, each axis is fitted alone.

    Args:
        score: what comes nearest to a parabola at its maxima: the power for Bartlett, minus the
            reciprocal for Capon and MUSIC.
        peaks: of that map, or of a monotone function of it.

    Returns:
        Fractional (v, u, rho) index of each peak, within one cell of it and within the map; see
        `SearchGrid.parameters_at`. Axes of fewer than three cells keep the peak's.

    Example:
        >>> from musicnet.estimation.peaks import find_peaks
        >>> score = -(torch.arange(5.0) - 1.3).square().reshape(1, 5, 1)
        >>> round(interpolate_peaks(score, find_peaks(score, 1))[0, 1].item(), 4)
        1.3
    """
    sizes = score.shape[-3:]
    fitted = torch.tensor([size >= 3 for size in sizes], device=score.device)
    last = torch.tensor(sizes, device=score.device) - 1
    centres = peaks.cells.clamp(min=fitted.long()).minimum(last - fitted.long())
    values = _neighbourhoods(score, centres, fitted)
    slope, curvature = _derivatives(values, fitted)
    shift = (peaks.cells - centres).to(score.dtype)
    scales = curvature.diagonal(dim1=-2, dim2=-1)
    alone = torch.where(scales < 0, -slope / scales.where(scales < 0, -1.0), shift)
    alone = alone.clamp(shift - 1.0, shift + 1.0)
    bowl = -curvature + torch.diag_embed((~fitted).to(score.dtype))
    factor, info = torch.linalg.cholesky_ex(bowl)
    top = torch.cholesky_solve(slope[..., None], factor).squeeze(-1)
    near = ((top - shift).abs() <= 1.0).all(-1) & (info == 0)
    offset = torch.where(near[..., None], top, alone)
    # cells marked with -inf have no slope
    offset = torch.where(offset.isfinite() & fitted, offset, shift)
    return (centres + offset).clamp(min=0.0).minimum(last.to(score.dtype))


def _neighbourhoods(score: Tensor, centres: Tensor, fitted: Tensor) -> Tensor:
    """Values of the 3 x 3 x 3 cells around each centre; those of single cells repeated."""
    stencil = torch.tensor(_STENCIL, device=score.device) * fitted
    cells = centres[..., None, :] + stencil  # (..., peak, 27, 3)
    _, n_u, n_rho = score.shape[-3:]
    flat = (cells[..., 0] * n_u + cells[..., 1]) * n_rho + cells[..., 2]
    values = score.flatten(-3).gather(-1, flat.flatten(-2))
    return values.reshape(*flat.shape[:-1], 3, 3, 3)


def _derivatives(values: Tensor, fitted: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient and Hessian at the middle cell by central differences."""
    slopes = [_at(values, i, 1) - _at(values, i, -1) for i in range(3)]
    middle = values[..., 1, 1, 1]
    curvature = torch.zeros((*middle.shape, 3, 3), dtype=values.dtype, device=values.device)
    for i, j in itertools.product(range(3), repeat=2):
        if i == j:
            mixed = _at(values, i, 1) + _at(values, i, -1) - 2.0 * middle
        else:
            signs = itertools.product((-1, 1), repeat=2)
            mixed = 0.25 * sum(
                (a * b * _at(values, i, a, j, b) for a, b in signs), torch.zeros_like(middle)
            )
        curvature[..., i, j] = mixed
    both = fitted[:, None] & fitted
    slope = 0.5 * torch.stack(slopes, dim=-1)
    return slope.where(fitted, 0.0), curvature.where(both, 0.0)


def _at(values: Tensor, axis: int, step: int, other: int = 0, other_step: int = 0) -> Tensor:
    index = [1, 1, 1]
    index[other] += other_step
    index[axis] += step
    return values[..., index[0], index[1], index[2]]
