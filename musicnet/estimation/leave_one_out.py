r"""What each source could be replaced by: the map of one source's gains, all others left as found.

Taking source k out of a fit releases one direction of the signatures' span: its dual vector
:math:`b_k`, normed, which is orthogonal to all the others' signatures. Hence

.. math:: r_{-k} = r + b_k b_k^H y, \qquad P_{-k} = P + b_k b_k^H

and the maps of all K sources follow from the products of one residual and 2 K directions with the
dictionary, instead of K fits. The source itself explains :math:`o_k = \|b_k^H y\|^2`: where a cell
far from it explains nearly as much, the source may stand in the wrong place.

All this holds for Gaussian symbols with A in place of the Gram matrix and :math:`\sigma^2 R^{-1}`
in that of P, but that :math:`o_k` is then to be divided by the share of the source that was heard.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from musicnet.estimation.dictionary import NORM_FLOOR, Dictionary
from musicnet.estimation.linearization import Explanation

# numbers in the largest intermediate map: within a processor's cache
_CHUNK = 2**19
_TINY = 1e-30
_LEAST_SHARE = 1e-3


@dataclass(frozen=True)
class LeftOut:
    """Gains where one source is taken out.

    Args:
        own: power that the source explains beyond all others; 0 for empty slots.
        gains: power that one source at a cell would explain in its stead; 0 for empty slots.
        remaining: power that one more source would explain beside all that were found.
    """

    own: Float[Tensor, "channel scene source"]
    gains: Float[Tensor, "channel scene source cell"]
    remaining: Float[Tensor, "channel scene cell"]


def leave_one_out(
    dictionary: Dictionary, explanation: Explanation, present: Bool[Tensor, "channel scene source"]
) -> LeftOut:
    """Draws the map of every source with that source taken out.

    Args:
        dictionary: cells to try.
        explanation: what the sources explain.
        present: slots that hold a source.

    Returns:
        Linear power >= 0.
    """
    duals, heard, share = _duals(explanation, present)
    own = (torch.view_as_real(heard).square().sum((4, 5)) / share).sum(2)
    n_channels, n_scenes, n_sources = present.shape
    n_lines = (1 + n_sources) * heard.shape[-1] + 2 * n_sources
    one_scene = 2 * n_lines * dictionary.power[0].numel()
    n_together = max(1, _CHUNK // (one_scene * n_scenes))
    size = max(1, _CHUNK // one_scene)
    gains = explanation.residual.real.new_empty(*present.shape, dictionary.cells.shape[0])
    remaining = torch.empty_like(gains[:, :, 0])
    for first in range(0, n_channels, n_together):
        channels = slice(first, first + n_together)
        cells = dictionary.between(channels)
        for start in range(0, n_scenes, size):
            some = (channels, slice(start, start + size))
            gains[some], remaining[some] = _maps(
                cells, explanation.residual[some], explanation.basis[some], duals[some], heard[some]
            )
    return LeftOut(own, gains.masked_fill_(~present[..., None], 0.0), remaining)


def _duals(
    explanation: Explanation, present: Bool[Tensor, "channel scene source"]
) -> tuple[
    Complex[Tensor, "channel scene blocks source row"],
    Complex[Tensor, "channel scene blocks source snapshot"],
    Float[Tensor, "channel scene blocks source"],
]:
    """b_k, and b_k^H y of every snapshot; 0 for empty slots; and the share of it that was heard."""
    factor = explanation.factor
    identity = torch.eye(factor.shape[-1]).to(factor).expand_as(factor)
    inverse = torch.linalg.solve_triangular(factor, identity, upper=False)  # L^-1
    # signatures are basis^T L^T, so that the duals are the basis mixed by L^-H
    duals = inverse.mT @ explanation.basis
    squared = torch.view_as_real(inverse).square().sum((-3, -1)).clamp_min(_TINY)
    there = present[:, :, None, :, None].to(squared.dtype) * squared.rsqrt()[..., None]
    share = (1.0 - explanation.load[:, :, None] * squared).clamp_min(_LEAST_SHARE)
    return duals * there, explanation.amplitudes * there, share


def _maps(
    dictionary: Dictionary,
    residual: Complex[Tensor, "channel scene blocks snapshot row"],
    basis: Complex[Tensor, "channel scene blocks source row"],
    duals: Complex[Tensor, "channel scene blocks source row"],
    heard: Complex[Tensor, "channel scene blocks source snapshot"],
) -> tuple[Float[Tensor, "channel scene source cell"], Float[Tensor, "channel scene cell"]]:
    n_snapshots, n_sources = residual.shape[3], basis.shape[3]
    # r_-k of every source and snapshot: (channel, scene, blocks, source, snapshot, row)
    without = residual[:, :, :, None] + heard[..., None] * duals[:, :, :, :, None]
    lines = torch.cat((residual, without.flatten(3, 4), basis, duals), dim=3).transpose(1, 2)
    power = dictionary.products(lines).square_().sum(4)  # (channel, blocks, scene, line, cell)
    left, found, spanned, released = power.split_with_sizes(
        (n_snapshots, n_sources * n_snapshots, n_sources, n_sources), dim=3
    )
    whole = dictionary.power[:, :, None]
    norm = whole - spanned.sum(3)
    floor = NORM_FLOOR * whole
    remaining = left.sum(3) / torch.maximum(norm, floor)
    norms = torch.maximum(norm[:, :, :, None] + released, floor[:, :, :, None])
    by_source = found.reshape(*norms.shape[:3], n_sources, n_snapshots, -1)
    gains = by_source.sum(4) / norms
    return gains.sum(1), remaining.sum(1)
