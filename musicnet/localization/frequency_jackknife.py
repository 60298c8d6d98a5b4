"""How sure a direction is that was found from many frequencies: by leaving some of them out."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from musicnet.estimation.circle_peaks import CirclePeaks
from musicnet.scene.sound import SearchCircle

FEWEST_FREQUENCIES = 8
"""Of which error bars can be made: of fewer they are a matter of luck."""

_N_GROUPS = 16  # of neighbouring frequencies that are left out together
_ALIKE = (1.0, 4.0 / 9.0, 1.0 / 36.0)  # squared coherence of neighbours, two apart: Hann windows
_NEAR_END = 10  # cells from the end of a line within which angles are squeezed against it


def leaving_out(n: int, like: Tensor) -> Float[Tensor, "draw frequency"]:
    """All frequencies, then all but one group of neighbours each.

    Args:
        n: frequencies.
        like: says where, and in what precision.

    Returns:
        Weights, 1 or 0.
    """
    n_groups = min(_N_GROUPS, n)
    group = torch.arange(n, device=like.device) * n_groups // n
    kept = group != torch.arange(n_groups, device=like.device)[:, None]
    everything = torch.ones_like(kept[:1])
    return torch.cat((everything, kept)).to(like)


def jackknife_variance(
    drawn: Float[Tensor, "window draw source"], n_frequencies: int
) -> Float[Tensor, "window source"]:
    """Variance of what was found from all frequencies, by what is found without some.

    Args:
        drawn: found with each group left out.
        n_frequencies: of which there were groups.

    Returns:
        In the squared unit of what was found.
    """
    n_groups = drawn.shape[1]
    scatter = (drawn - drawn.mean(1, keepdim=True)).square().sum(1)
    return scatter * ((n_groups - 1) / n_groups * _widening(n_frequencies))


def variance_near_an_end(
    score: Float[Tensor, "window draw cell"],
    peaks: CirclePeaks,
    circle: SearchCircle,
    angles: Float[Tensor, "window source"],
    n_frequencies: int,
) -> Float[Tensor, "window source"]:
    """Variance of lateral angles near the ends of a line, against which all draws are pressed.

    Their sines scatter there as everywhere.

    Args:
        score: of each direction with each group left out.
        peaks: that were found from all frequencies.
        circle: lateral angles.
        angles: of the peaks, radians.
        n_frequencies: of which there were groups.

    Returns:
        Squared radians; 0 for peaks that are not near an end.
    """
    deviations = jackknife_variance(_sines(score, peaks, circle), n_frequencies).sqrt()
    last = score.shape[-1] - 1
    is_end = (peaks.cells == 0) | (peaks.cells == last)
    blind = torch.where(is_end, _NEAR_END * circle.step, 0.0)  # two sources make no parabola
    return torch.where(deviations.isnan(), blind, _reach(angles, deviations)).square()


def _widening(n: int) -> float:
    """Variance of a mean over frequencies, by what a jackknife takes it for.

    The jackknife believes that groups are independent. Windows of frames make neighbouring
    frequencies alike: a mean varies more than it believes, and groups differ less.
    """
    apart = (torch.arange(n)[:, None] - torch.arange(n)).abs()
    alike = torch.tensor([*_ALIKE, 0.0], dtype=torch.float64)[apart.clamp_max(len(_ALIKE))]
    group = (leaving_out(n, torch.ones((), dtype=torch.float64)) == 0.0)[1:].double()
    means = group / group.sum(-1, keepdim=True)
    between = means @ alike @ means.mT
    n_groups = len(means)
    believed = (between.trace() - between.mean() * n_groups) / (n_groups * (n_groups - 1))
    return float(alike.mean() / believed)


def _sines(
    score: Float[Tensor, "window draw cell"], peaks: CirclePeaks, circle: SearchCircle
) -> Float[Tensor, "window draw source"]:
    """Sine of each lateral angle near an end, by a parabola in it that may lie beyond the end.

    Angles do not scatter at an end: all draws are pressed against it. Their sines do. NaN for peaks
    that are not near one.
    """
    last = score.shape[-1] - 1
    is_high = peaks.cells > last // 2
    inwards = torch.arange(3, device=score.device) * _NEAR_END
    cells = torch.where(is_high[..., None], last - inwards, inwards)  # (window, source, three)
    heights = score.gather(-1, cells.flatten(1)[:, None].expand(-1, score.shape[1], -1))
    heights = heights.reshape(*score.shape[:2], *cells.shape[1:]).double()
    sines = circle.angles.double().sin()[cells][:, None]
    first = (heights[..., 1:] - heights[..., :-1]) / (sines[..., 1:] - sines[..., :-1])
    bend = (first[..., 1] - first[..., 0]) / (sines[..., 2] - sines[..., 0])
    middle = 0.5 * (sines[..., 0] + sines[..., 1])
    is_near = torch.where(is_high, last - peaks.cells, peaks.cells) <= _NEAR_END
    top = middle - first[..., 0] / (2.0 * bend)
    sine: Tensor = top.where(is_near[:, None] & (bend < 0.0), math.nan)
    return sine.to(score)


def _reach(
    angles: Float[Tensor, "window source"], sines: Float[Tensor, "window source"]
) -> Float[Tensor, "window source"]:
    """How far a deviation of the sine moves an angle, to the side where it is more."""
    at = angles.sin()
    sides = torch.stack([(at + sign * sines).clamp(-1.0, 1.0).asin() for sign in (-1.0, 1.0)])
    return (sides - angles).abs().amax(0)
