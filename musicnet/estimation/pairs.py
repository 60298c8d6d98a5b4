r"""The two cells of a grid that explain most of a residual together.

Two sources close to each other and out of phase hide each other: neither of their cells stands out
alone. For a first cell g the map of the second is that of `musicnet.estimation.dictionary` with g
projected out as well,

.. math:: \Delta(g, h) = \sum_q \Big( \frac{X_{gg}}{C_{gg}}
   + \frac{X_{hh} - 2 \Re(C_{gh} X_{hg}) / C_{gg} + |C_{gh}|^2 X_{gg} / C_{gg}^2}
   {C_{hh} - |C_{gh}|^2 / C_{gg}} \Big)

with :math:`C_{gh} = d_g^H P d_h` and :math:`X_{gh} = \sum_t d_g^H r_t r_t^H d_h`, block by block.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from musicnet.estimation.dictionary import NORM_FLOOR, Dictionary
from musicnet.estimation.linearization import Explanation
from musicnet.estimation.products import product

# pairs of cells that are looked at in one scene and block; the first cell is one of the best
_LOOKS = 2**14
_FEWEST_FIRSTS = 8
# numbers in the largest intermediate map: 32 MB in single precision
_CHUNK = 2**22


@dataclass(frozen=True)
class CellPairs:
    """Pairs of cells, best first.

    Args:
        first: number of a cell in the dictionary.
        second: number of the cell that goes best with it.
        gains: power that the two explain.
    """

    first: Int[Tensor, "channel scene pair"]
    second: Int[Tensor, "channel scene pair"]
    gains: Float[Tensor, "channel scene pair"]


def best_pairs(dictionary: Dictionary, explanation: Explanation, n_pairs: int) -> CellPairs:
    """Searches pairs whose first cell is among those with the highest gain alone.

    Args:
        dictionary: cells to try.
        explanation: what the sources found so far explain.
        n_pairs: slots of the answer, fewer if the grid has fewer cells. First cells differ.

    Returns:
        Pairs in descending order.
    """
    n_blocks, n_cells = dictionary.power.shape[1:]
    n_first = min(n_cells, max(_FEWEST_FIRSTS, _LOOKS // (n_blocks * n_cells), n_pairs))
    firsts = dictionary.gains(explanation).flatten(2).topk(n_first, dim=-1).indices
    residual, basis = explanation.residual.transpose(1, 2), explanation.basis.transpose(1, 2)
    size = max(1, _CHUNK // (dictionary.power.numel() * n_first))
    parts = [
        _pair_gains(dictionary, *pieces).max(-1)
        for pieces in zip(
            torch.split(residual, size, dim=2),
            torch.split(basis, size, dim=2),
            torch.split(firsts, size, dim=1),
            strict=True,
        )
    ]
    gains = torch.cat([part.values for part in parts], dim=1)
    seconds = torch.cat([part.indices for part in parts], dim=1)
    best = gains.topk(min(n_pairs, n_first), dim=-1)
    return CellPairs(firsts.gather(-1, best.indices), seconds.gather(-1, best.indices), best.values)


def _pair_gains(
    dictionary: Dictionary,
    residual: Complex[Tensor, "channel blocks scene snapshot row"],
    basis: Complex[Tensor, "channel blocks scene source row"],
    firsts: Int[Tensor, "channel scene first"],
) -> Float[Tensor, "channel scene first cell"]:
    lines = torch.complex(*dictionary.parts.mT.chunk(2, dim=-1))  # (channel, blocks, cell, row)
    heard = _products(lines, residual)  # d^H r: (channel, blocks, scene, snapshot, cell)
    spanned = _products(lines, basis)
    power = dictionary.power[:, :, None]
    norm = torch.maximum(power - _power(spanned).sum(-2), NORM_FLOOR * power)
    own = _power(heard).sum(-2)  # X_hh, as C_hh is the norm: (channel, blocks, scene, cell)

    def at_first(values: Tensor) -> Tensor:
        index = firsts[:, None].reshape(len(firsts), 1, -1, *[1] * (values.ndim - 4), n_first)
        return values.gather(-1, index.expand(*values.shape[:-1], n_first))

    n_first = firsts.shape[-1]
    first_norm, first_own = at_first(norm)[..., None], at_first(own)[..., None]
    first_lines = _first_lines(lines, firsts)
    overlap = (first_lines.conj() @ lines.mT).reshape(*norm.shape[:3], n_first, -1)
    overlap = overlap - product(at_first(spanned).mT, spanned.conj())  # C_gh
    shared = product(at_first(heard).mT, heard.conj())  # X_gh
    squared = _power(overlap)
    turned = overlap.real * shared.real + overlap.imag * shared.imag  # Re(C_gh X_hg)
    second_own = own[..., None, :] - (2.0 * turned - squared * first_own / first_norm) / first_norm
    second_norm = norm[..., None, :] - squared / first_norm
    second_norm = torch.maximum(second_norm, NORM_FLOOR * power[..., None, :])
    gains: Tensor = first_own / first_norm + second_own.clamp_min(0.0) / second_norm
    return gains.sum(1)


def _first_lines(
    lines: Complex[Tensor, "#channel blocks cell row"], firsts: Int[Tensor, "channel scene first"]
) -> Complex[Tensor, "channel blocks chosen row"]:
    """Signatures of the first cells of all scenes, in a row."""
    index = firsts.flatten(1)[:, None, :, None]
    # channels may share one dictionary
    lines = lines.expand(len(firsts), -1, -1, -1)
    return lines.gather(2, index.expand(-1, lines.shape[1], -1, lines.shape[-1]))


def _products(
    lines: Complex[Tensor, "#channel blocks cell row"],
    values: Complex[Tensor, "channel blocks scene line row"],
) -> Complex[Tensor, "channel blocks scene line cell"]:
    """d^H x for every cell."""
    products = values.flatten(2, 3) @ lines.mH
    return products.reshape(*values.shape[:4], lines.shape[2])


def _power(values: Complex[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return values.real.square() + values.imag.square()
