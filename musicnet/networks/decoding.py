"""Which cells of a pseudo-spectrum hold sources: soft non-maximum suppression."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from musicnet.shapes import Map

# in logits; on 1024 fresh scenes of briefly trained networks better than 4 or hard suppression
NEIGHBOUR_HANDICAP = 2.0


def strongest_cells(
    logits: Map, n_cells: int, handicap: float = NEIGHBOUR_HANDICAP
) -> tuple[Int[Tensor, "*batch slot"], Float[Tensor, "*batch slot"]]:
    """The cells with the highest logits, where a cell beside a higher one starts behind.

    A peak is a cell above its 26 neighbours. Hard suppression takes peaks alone, and so merges two
    sources in neighbouring cells however sure of both the network is. Here a cell that is no peak
    competes with its logit less a handicap: it wins only against peaks that are that much weaker.

    Args:
        logits: log-odds per cell.
        n_cells: slots of the answer.
        handicap: in logits; infinity is hard suppression.

    Returns:
        Flat index of each cell, best first, and its logit less any handicap: -infinity where
        fewer cells are left, or where a logit of the map is NaN. No gradient.

    Example:
        >>> two_sure_neighbours = torch.tensor([9.0, 8.0, -3.0, -1.0]).reshape(1, 4, 1)
        >>> strongest_cells(two_sure_neighbours, 2)[0].tolist()
        [0, 1]
        >>> strongest_cells(two_sure_neighbours, 2, handicap=float("inf"))[0].tolist()
        [0, 3]
    """
    batch, shape = logits.shape[:-3], logits.shape[-3:]
    maps = logits.detach().reshape(-1, *shape)
    scores = torch.where(_is_peak(maps), maps, maps - handicap).flatten(1)  # (batch, cell)
    scores = scores.masked_fill(scores.isnan().any(-1, keepdim=True), -torch.inf)
    best, cells = scores.topk(n_cells, dim=-1)
    return cells.reshape(*batch, n_cells), best.reshape(*batch, n_cells)


def _is_peak(maps: Float[Tensor, "batch v u rho"]) -> Bool[Tensor, "batch v u rho"]:
    """Cells above their neighbours; of equal ones the first, so that a plateau is one peak."""
    order = torch.arange(maps[0].numel(), device=maps.device, dtype=maps.dtype).neg()
    highest = maps == _neighbourhood_maximum(maps)
    earliness = torch.where(highest, order.reshape(maps.shape[1:]), -torch.inf)
    return highest & (earliness == _neighbourhood_maximum(earliness))


def _neighbourhood_maximum(maps: Float[Tensor, "batch v u rho"]) -> Float[Tensor, "batch v u rho"]:
    """Maximum over 3 x 3 x 3 cells, axis by axis: on a CPU much faster than a 3-D pool."""
    for axis in (1, 2, 3):
        n = maps.shape[axis]
        if n > 1:
            ahead, behind = maps.narrow(axis, 1, n - 1), maps.narrow(axis, 0, n - 1)
            pairs = torch.maximum(ahead, behind)  # (.., n - 1, ..): cells i and i + 1
            first, last = maps.narrow(axis, 0, 1), maps.narrow(axis, n - 1, 1)
            maps = torch.maximum(torch.cat((first, pairs), axis), torch.cat((pairs, last), axis))
    return maps
