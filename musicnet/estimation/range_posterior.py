r"""The range that is probably about right, given an estimate, its error bars and a law of ranges.

Errors are about normal in the inverse range, so that far away their distribution over range is
skewed and wide: the most likely range is hardly more probable than others, and its error large.
With ranges uniform between two bounds the posterior density over r is proportional to
:math:`\exp(-(1/r - \hat\rho)^2 / 2 \sigma_\rho^2)`; the estimate is the middle of the interval of a
given width that holds most of it (the Bayes estimate of uniform cost). Directions move along with
the range as far as their errors are correlated. Where the range is known well nothing changes.

Source: Van Trees (1968), Detection, Estimation, and Modulation Theory, part I, section 2.4, for the
uniform cost function.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from musicnet.scene.sources import Bounds
from musicnet.shapes import Parameters

_N_CELLS = 64
_REACH = 4.0  # standard deviations
# half the width of the interval, in standard deviations of the posterior: three tenths of a normal
_TOLERANCE = 0.385
_TINY = 1e-20


def settle_range(
    parameters: Parameters,
    covariance: Float[Tensor, "*batch source 3 3"],
    range_m: Bounds,
    widening: Float[Tensor, "*batch source"] | None = None,
) -> tuple[Parameters, Float[Tensor, "*batch source 3 3"]]:
    """Moves estimates to where the posterior is densest, coarsely seen.

    Errors that a few sources in a wrong place make wider than the covariance says are no reason to
    move all others: they count in the error bars alone.

    Args:
        parameters: (u, v, rho), rho > 0; NaN stays NaN.
        covariance: of their errors; where it is not finite, nothing is known to move by.
        range_m: between which bounds ranges are uniform.
        widening: factor of the covariance for the error bars; None leaves it.

    Returns:
        The moved estimates and the covariance about them.
    """
    rho, variance = parameters[..., 2], covariance[..., 2, 2]
    distance, density, cell = _posterior(rho, variance, range_m)
    steps = 0.5 * (density[..., 1:] + density[..., :-1])
    below = torch.nn.functional.pad(steps.cumsum(-1), (1, 0))
    below = below / below[..., -1:].clamp_min(_TINY)
    weight = _weight(density)
    mean = (weight * distance).sum(-1, keepdim=True)
    deviation_m = (weight * (distance - mean).square()).sum(-1, keepdim=True).sqrt()
    held = _held(below, _TOLERANCE * deviation_m / cell)
    settled = _highest(held, distance[..., 0], cell[..., 0])
    wider = covariance
    if widening is not None:
        wider = covariance * widening[..., None, None]
        distance, density, _ = _posterior(rho, wider[..., 2, 2], range_m)
        weight = _weight(density)
    error = (weight * (distance - settled[..., None]).square()).sum(-1)
    return _moved(parameters, wider, settled, error)


def _posterior(
    rho: Float[Tensor, "*batch source"], variance: Float[Tensor, "*batch source"], range_m: Bounds
) -> tuple[
    Float[Tensor, "*batch source place"],
    Float[Tensor, "*batch source place"],
    Float[Tensor, "*batch source 1"],
]:
    """Distances as far as it reaches, how dense it is there, and how far they are apart."""
    nearest, farthest = range_m
    spread = variance.clamp_min(_TINY).sqrt()
    low = (rho + _REACH * spread).reciprocal().clamp(nearest, farthest)
    high = (rho - _REACH * spread).clamp_min(1.0 / farthest).reciprocal().clamp(nearest, farthest)
    share = torch.linspace(0.0, 1.0, _N_CELLS + 1, dtype=low.dtype, device=low.device)
    cell = ((high - low) / _N_CELLS)[..., None].clamp_min(_TINY)
    distance = low[..., None] + cell * _N_CELLS * share  # (..., source, place)
    deviation = (distance.reciprocal() - rho[..., None]) / spread[..., None]
    return distance, torch.exp(-0.5 * deviation.square()), cell


def _weight(density: Float[Tensor, "*batch place"]) -> Float[Tensor, "*batch place"]:
    return density / density.sum(-1, keepdim=True).clamp_min(_TINY)


def _held(
    below: Float[Tensor, "*batch place"], half_width: Float[Tensor, "*batch 1"]
) -> Float[Tensor, "*batch place"]:
    """Probability within so many cells of each place."""
    place = torch.arange(below.shape[-1], dtype=below.dtype, device=below.device)

    def at(where: Tensor) -> Tensor:
        where = where.clamp(0.0, _N_CELLS).nan_to_num()
        first = where.floor().clamp_max(_N_CELLS - 1).long()
        lower, upper = below.gather(-1, first), below.gather(-1, first + 1)
        return lower + (where - first) * (upper - lower)

    return at(place + half_width) - at(place - half_width)


def _highest(
    values: Float[Tensor, "*batch place"],
    low: Float[Tensor, "*batch"],
    cell: Float[Tensor, "*batch"],
) -> Float[Tensor, "*batch"]:
    """Where a curve is highest, between its places by a parabola."""
    best = values.argmax(-1, keepdim=True)
    inner = best.clamp(1, values.shape[-1] - 2)
    before, here, after = (values.gather(-1, inner + step)[..., 0] for step in (-1, 0, 1))
    bend = (2.0 * here - before - after).clamp_min(_TINY)
    offset = (0.5 * (after - before) / bend).clamp(-1.0, 1.0)
    return low + cell * (inner[..., 0] + offset)


def _moved(
    parameters: Parameters,
    covariance: Float[Tensor, "*batch source 3 3"],
    distance: Float[Tensor, "*batch source"],
    squared_error: Float[Tensor, "*batch source"],
) -> tuple[Parameters, Float[Tensor, "*batch source 3 3"]]:
    """Range set, directions along with it, and the covariance about the new place."""
    rho = distance.reciprocal()
    variance = covariance[..., 2, 2].clamp_min(_TINY)
    along = covariance[..., 2] / variance[..., None]  # 1 along rho itself
    moved = parameters + along * (rho - parameters[..., 2])[..., None]
    # other powers than squares are rounded otherwise at the end of a vector than within it
    widened = covariance_about(covariance, squared_error * rho.square().square())
    # an infinite variance over itself is no number
    known = covariance.isfinite().all(-1).all(-1)[..., None]
    return (
        torch.where(known, moved, parameters),
        torch.where(known[..., None], widened, covariance),
    )


def covariance_about(
    covariance: Float[Tensor, "*batch source 3 3"], squared_error: Float[Tensor, "*batch source"]
) -> Float[Tensor, "*batch source 3 3"]:
    """The covariance once the error of the inverse range is another.

    Args:
        covariance: of (u, v, rho).
        squared_error: mean square of rho's error; 1/m^2.

    Returns:
        Directions follow as far as they are correlated.
    """
    variance = covariance[..., 2, 2].clamp_min(_TINY)
    along = covariance[..., 2] / variance[..., None]
    surplus = squared_error - variance
    return covariance + surplus[..., None, None] * along[..., None] * along[..., None, :]
