"""From a pseudo-spectrum to its peaks: three-dimensional non-maximum suppression, hard or soft."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from musicnet.shapes import GridIndex, Map


@dataclass(frozen=True)
class Peaks:
    """The highest local maxima of a map, best first.

    Args:
        cells: (v, u, rho) index of each; (0, 0, 0) in slots that are not resolved.
        scores: value of the map there, less any handicap; -inf where not resolved.
        resolved: False where the map has fewer maxima than slots.
    """

    cells: GridIndex
    scores: Float[Tensor, "*batch peak"]
    resolved: Bool[Tensor, "*batch peak"]


def find_peaks(spectrum: Map, n_peaks: int, handicap: float = math.inf) -> Peaks:
    """Finds cells above all their 26 neighbours, and, on request, sure ones beside a higher one.

    Hard suppression takes peaks alone, and so merges two sources in neighbouring cells however
    strong both are. With a finite handicap a cell that is no peak competes with its score less the
    handicap: it wins only against peaks that are that much weaker.

    Of equal neighbours the first in the order of the map wins, so that a plateau is one peak. A
    map that holds a NaN has no peaks at all: nothing is guessed from it.

    Args:
        spectrum: any monotone score; -inf marks cells that must not be chosen.
        n_peaks: slots of the answer.
        handicap: in the unit of the score; infinity is hard suppression.

    Returns:
        Peaks in descending order; no gradient.

    Raises:
        ValueError: no slots, or more slots than cells.

    Example:
        >>> find_peaks(torch.tensor([0.0, 2.0, 1.0, 1.0, 3.0]).reshape(1, 5, 1), 3).scores.tolist()
        [3.0, 2.0, -inf]
        >>> two_sure_neighbours = torch.tensor([9.0, 8.0, -3.0, -1.0]).reshape(1, 4, 1)
        >>> find_peaks(two_sure_neighbours, 2, handicap=2.0).cells[:, 1].tolist()
        [0, 1]
    """
    *batch, n_v, n_u, n_rho = spectrum.shape
    n_cells = n_v * n_u * n_rho
    if not 1 <= n_peaks <= n_cells:
        raise ValueError(
            f"n_peaks must be from 1 to the number of cells: got n_peaks={n_peaks} for a map of "
            f"{n_v} x {n_u} x {n_rho} = {n_cells} cells."
        )
    maps = spectrum.detach().reshape(-1, n_v, n_u, n_rho)
    beaten = ~_is_peak(maps)
    scores = maps.masked_fill(beaten, -torch.inf)
    if handicap < math.inf:
        scores = torch.where(beaten, maps - handicap, maps)
    spoilt = maps.isnan().flatten(1).any(-1, keepdim=True)
    best, chosen = scores.flatten(1).masked_fill(spoilt, -torch.inf).topk(n_peaks, dim=-1)
    resolved = best > -torch.inf
    chosen = chosen.where(resolved, torch.zeros_like(chosen))
    cells = torch.stack(torch.unravel_index(chosen, (n_v, n_u, n_rho)), dim=-1)
    return Peaks(
        cells.reshape(*batch, n_peaks, 3),
        best.reshape(*batch, n_peaks),
        resolved.reshape(*batch, n_peaks),
    )


def _is_peak(maps: Float[Tensor, "batch v u rho"]) -> Bool[Tensor, "batch v u rho"]:
    """Cells above their neighbours; of equal ones the first."""
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
