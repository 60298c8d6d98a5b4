"""Maxima of a map of directions on a circle, or on a part of one."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class CirclePeaks:
    """The highest maxima, best first.

    Args:
        cells: their cells; the lowest numbers that are none in empty slots.
        offsets: of the maximum of a parabola through three cells, in cells from -0.5 to 0.5.
        present: slots that hold a maximum.
    """

    cells: Int[Tensor, "*batch peak"]
    offsets: Float[Tensor, "*batch peak"]
    present: Bool[Tensor, "*batch peak"]


def circle_peaks(
    score: Float[Tensor, "*batch cell"], n_peaks: int, *, is_closed: bool
) -> CirclePeaks:
    """Finds the highest cells that exceed both neighbours.

    Args:
        score: of each direction; a map with a NaN has no peak.
        n_peaks: how many slots.
        is_closed: whether the last cell is beside the first; else the ends may be maxima too.

    Returns:
        Peaks, best first.

    Example:
        >>> peaks = circle_peaks(torch.tensor([3.0, 1.0, 0.0, 2.0, 1.0, 2.5]), 2, is_closed=True)
        >>> peaks.cells.tolist(), peaks.present.tolist()
        ([0, 3], [True, True])
    """
    before, after = score.roll(1, -1), score.roll(-1, -1)
    if not is_closed:
        before[..., 0] = after[..., -1] = -torch.inf
    # of two equal neighbours the first counts
    is_peak = (score > before) & (score >= after) & score.isfinite().all(-1, keepdim=True)
    _, cells = torch.where(is_peak, score, -torch.inf).topk(n_peaks, dim=-1)
    present = is_peak.gather(-1, cells)
    left, here, right = (one.gather(-1, cells) for one in (before, score, after))
    return CirclePeaks(cells, parabola_offset(left, here, right), present)


def parabola_offset(
    left: Float[Tensor, "*batch"], here: Float[Tensor, "*batch"], right: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Where the parabola through three neighbours has its maximum.

    Args:
        left: score one cell below.
        here: score of the middle cell, no less than the others.
        right: score one cell above.

    Returns:
        Cells from the middle, from -0.5 to 0.5; 0 where a neighbour is not finite or all are equal.
    """
    bend = left - 2.0 * here + right
    offset = 0.5 * (left - right) / bend
    return torch.where(offset.isfinite(), offset, 0.0).clamp(-0.5, 0.5)
