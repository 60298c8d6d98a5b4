"""What is minimised: a focal loss on the pseudo-spectrum and the offsets of its source cells.

There is no matching of slots to sources: every true source marks the cells around it.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from musicnet.estimation.spectrum import SearchGrid
from musicnet.networks.head import PseudoSpectrum
from musicnet.scene.sources import Sources
from musicnet.shapes import Map

LossTerm = Literal["spectrum", "offsets", "trust", "coherence", "calibration"]
LOSS_TERMS: tuple[LossTerm, ...] = get_args(LossTerm)
SPECTRUM_TERMS: tuple[LossTerm, ...] = ("spectrum", "offsets")
"""Those of the pseudo-spectrum; ``trust`` is in `musicnet.learning.trust_examples`,
``coherence`` in `musicnet.learning.coherence_examples`, ``calibration`` in
`musicnet.learning.calibration_loss`."""

_SPREAD = (0.6, 0.6, 0.7)  # of a target along (v, u, rho), in cells
_FOCUS = 2  # power that quiets the cells that are right already
_PENALTY_REDUCTION = 4  # power that quiets the cells beside a source


@dataclass(frozen=True)
class Targets:
    """Where the true sources lie on the grid.

    Args:
        cells: (v, u, rho) index of the cell of each source; (0, 0, 0) where not resolved.
        offsets: (v, u, rho) from that cell's centre, in cells; 0 where not resolved.
        resolved: which slots hold a source.
    """

    cells: Int[Tensor, "*batch source 3"]
    offsets: Float[Tensor, "*batch source 3"]
    resolved: Bool[Tensor, "*batch source"]

    @classmethod
    def on_grid(cls, truth: Sources, grid: SearchGrid) -> "Targets":
        """Finds the nearest cell of each source.

        Args:
            truth: the sources; those outside the grid belong to a cell at its edge.
            grid: the cells.

        Returns:
            The targets.
        """
        coordinates = grid.coordinates(truth.parameters)
        coordinates = coordinates.masked_fill(~truth.resolved[..., None], 0.0)
        columns = zip(coordinates.unbind(-1), grid.shape, strict=True)
        nearest = torch.stack([c.round().clamp(0, n - 1) for c, n in columns], dim=-1)
        return cls(nearest.long(), coordinates - nearest, truth.resolved)

    @property
    def n_sources(self) -> Float[Tensor, ""]:
        """All sources, at least one: what losses are divided by."""
        return self.resolved.sum().clamp_min(1).float()


def spectrum_target(targets: Targets, shape: tuple[int, int, int]) -> Map:
    """What the pseudo-spectrum should look like: a bump at every source cell.

    Args:
        targets: the source cells.
        shape: cells along (v, u, rho).

    Returns:
        1 at source cells, falling off as a Gaussian of about half a cell around them; the largest
        where bumps meet.
    """
    bumps = targets.resolved.float()[..., None, None, None]
    for axis, (n_cells, spread) in enumerate(zip(shape, _SPREAD, strict=True)):
        index = torch.arange(n_cells, device=targets.cells.device)
        distance = index - targets.cells[..., axis, None]  # (..., source, cell)
        bump = torch.exp(-0.5 * (distance / spread).square())
        others = [1 if other != axis else n_cells for other in range(3)]
        bumps = bumps * bump.reshape(*bump.shape[:-1], *others)
    return bumps.amax(-4)  # over sources


def spectrum_loss(logits: Map, targets: Targets) -> Float[Tensor, ""]:
    r"""Penalty-reduced focal loss per source.

    .. math:: -\frac1K \sum_g \begin{cases} (1-p)^2 \log p & t = 1 \\
              (1-t)^4 p^2 \log(1-p) & t < 1 \end{cases}

    Args:
        logits: of p.
        targets: where t is 1.

    Returns:
        Nats per source.

    Source: Zhou et al. (2019), arXiv 1904.07850 (CenterNet), after CornerNet.
    """
    target = spectrum_target(targets, (logits.shape[-3], logits.shape[-2], logits.shape[-1]))
    log_p = functional.logsigmoid(logits)
    log_not_p = log_p - logits  # log(1 - p), exact where p is close to 1
    p = log_p.exp()
    at_source = (1.0 - p).pow(_FOCUS) * log_p
    elsewhere = (1.0 - target).pow(_PENALTY_REDUCTION) * p.pow(_FOCUS) * log_not_p
    return -torch.where(target == 1.0, at_source, elsewhere).sum() / targets.n_sources


def offset_loss(offsets: Float[Tensor, "*batch v u rho 3"], targets: Targets) -> Float[Tensor, ""]:
    """Distance of the offsets at source cells from the true ones, coordinates added up.

    Args:
        offsets: of every cell.
        targets: the source cells and their offsets.

    Returns:
        Cells per source. Coordinates with one cell are not searched and do not count.
    """
    n_v, n_u, n_rho = offsets.shape[-4:-1]
    v, u, rho = targets.cells.unbind(-1)
    flat = (v * n_u + u) * n_rho + rho
    at_source = offsets.flatten(-4, -2).take_along_dim(flat[..., None], dim=-2)
    counts = _searched((n_v, n_u, n_rho), offsets.device) & targets.resolved[..., None]
    error = (at_source - targets.offsets).abs()
    return torch.where(counts, error, 0.0).sum() / targets.n_sources


@lru_cache(maxsize=32)
def _searched(shape: tuple[int, int, int], device: torch.device) -> Bool[Tensor, " 3"]:
    """Which coordinates have cells to choose from; kept, since the copy makes a device wait."""
    # the first caller may be a validation loop, and its inference tensors would outlive it
    with torch.inference_mode(mode=False):
        return torch.tensor([n > 1 for n in shape], device=device)


def loss_terms(
    spectrum: PseudoSpectrum, truth: Sources, grid: SearchGrid
) -> dict[str, Float[Tensor, ""]]:
    """The terms of the pseudo-spectrum, unweighted, under the names that phases weigh them by.

    Args:
        spectrum: of the network.
        truth: the true sources.
        grid: of the spectrum.

    Returns:
        One scalar per name in ``SPECTRUM_TERMS``.
    """
    targets = Targets.on_grid(truth, grid)
    return {
        "spectrum": spectrum_loss(spectrum.logits, targets),
        "offsets": offset_loss(spectrum.offsets, targets),
    }
