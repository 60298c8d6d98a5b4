"""From a pseudo-spectrum to its peaks: three-dimensional non-maximum suppression."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from musicnet.shapes import GridIndex, Map


@dataclass(frozen=True)
class Peaks:
    """The highest local maxima of a map, best first.

    Args:
        cells: (v, u, rho) index of each; (0, 0, 0) in slots that are not resolved.
        scores: value of the map there; -inf where not resolved.
        resolved: False where the map has fewer maxima than slots.
    """

    cells: GridIndex
    scores: Float[Tensor, "*batch peak"]
    resolved: Bool[Tensor, "*batch peak"]


def find_peaks(spectrum: Map, n_peaks: int) -> Peaks:
    """Finds cells above all their 26 neighbours.

    Of equal neighbours the first in the order of the map wins, so that a plateau is one peak. A
    map that holds a NaN has no peaks at all: nothing is guessed from it.

    Args:
        spectrum: any monotone score; -inf marks cells that must not be chosen.
        n_peaks: slots of the answer.

    Returns:
        Peaks in descending order; no gradient.

    Raises:
        ValueError: no slots, or more slots than cells.

    Example:
        >>> find_peaks(torch.tensor([0.0, 2.0, 1.0, 1.0, 3.0]).reshape(1, 5, 1), 3).scores.tolist()
        [3.0, 2.0, -inf]
    """
    *batch, n_v, n_u, n_rho = spectrum.shape
    n_cells = n_v * n_u * n_rho
    if not 1 <= n_peaks <= n_cells:
        raise ValueError(
            f"n_peaks must be from 1 to the number of cells: got n_peaks={n_peaks} for a map of "
            f"{n_v} x {n_u} x {n_rho} = {n_cells} cells."
        )
    scores = spectrum.detach().reshape(-1, 1, n_v, n_u, n_rho)
    # of equal values the pool reports the first, and a NaN above everything
    _, winners = functional.max_pool3d_with_indices(scores, (3, 3, 3), (1, 1, 1), (1, 1, 1))
    flat = scores.flatten(1)  # (batch, cell)
    order = torch.arange(n_cells, device=spectrum.device)
    spoilt = flat.isnan().any(-1, keepdim=True)
    hidden = (winners.flatten(1) != order) | spoilt
    best, chosen = flat.masked_fill(hidden, -torch.inf).topk(n_peaks, dim=-1)
    resolved = best > -torch.inf
    chosen = chosen.where(resolved, torch.zeros_like(chosen))
    columns = (chosen // (n_u * n_rho), chosen // n_rho % n_u, chosen % n_rho)
    return Peaks(
        torch.stack(columns, dim=-1).reshape(*batch, n_peaks, 3),
        best.reshape(*batch, n_peaks),
        resolved.reshape(*batch, n_peaks),
    )
