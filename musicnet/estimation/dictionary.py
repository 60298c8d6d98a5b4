r"""How much of a residual one more source could explain, for every cell of a grid.

.. math:: \Delta(g) = \sum_q \frac{\sum_t |d_{qg}^H r_{qt}|^2}{d_{qg}^H P_q d_{qg}}

with d_qg = G_q a(p_g) the signature of the cell and P_q the projector onto what the sources found
so far leave over: exactly the power by which the cost falls if a source at the cell joins them (the
"projected norm"). Complex products are written as real ones over the two parts, so that the whole
map is one real matrix product per channel.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from musicnet.estimation.linearization import Explanation
from musicnet.estimation.problem import Problem
from musicnet.estimation.signatures import signatures
from musicnet.estimation.spectrum import SearchGrid

NORM_FLOOR = 0.05
"""Share of a cell's power that must be left: one that others all but span is no new source's."""

# phase by which neighbouring cells turn the aperture's ends against each other: under half the 2 pi
# to the first null, so that every source lies on the main lobe of some cell
_CELL_RADIANS = 2.75
# numbers in the largest intermediate map: 64 MB in single precision
_CHUNK = 2**24


@dataclass(frozen=True)
class Dictionary:
    """Signatures of the cells of a grid.

    Args:
        grid: where the cells are.
        cells: (u, v, rho) of each.
        parts: real and imaginary parts of d_qg over each other.
        power: ||d_qg||^2.
    """

    grid: SearchGrid
    cells: Float[Tensor, "cell 3"]
    parts: Float[Tensor, "channel blocks part cell"]
    power: Float[Tensor, "channel blocks cell"]

    @classmethod
    def over(cls, problem: Problem, grid: SearchGrid | None = None) -> "Dictionary":
        """Computes the signatures of a grid, once per channel.

        Args:
            problem: knows G and the elements.
            grid: cells to try; None lays `adapted_grid`.

        Returns:
            The dictionary.
        """
        grid = grid or adapted_grid(problem)
        cells = grid.visible_cells.to(problem.positions).reshape(-1, 3)
        everywhere = cells.expand(problem.y.shape[0], 1, -1, -1)
        there = torch.ones(everywhere.shape[:-1], dtype=torch.bool, device=cells.device)
        lines = signatures(problem, everywhere, there)[:, 0]  # (channel, blocks, cell, row)
        parts = torch.cat((lines.real, lines.imag), dim=-1).mT.contiguous()
        return cls(grid, cells, parts, (parts * parts).sum(-2))

    def gains(self, explanation: Explanation) -> Float[Tensor, "channel scene v u rho"]:
        """Power that one more source would explain, cell by cell.

        Args:
            explanation: what the sources found so far explain, of the problem that the dictionary
                was made for or of some of its scenes.

        Returns:
            Linear power >= 0.
        """
        residual, basis = explanation.residual, explanation.basis
        n_snapshots, n_lines = residual.shape[3], residual.shape[3] + basis.shape[3]
        lines = torch.cat((residual, basis), dim=3).transpose(1, 2)  # (..., blocks, scene, ...)
        size = max(1, _CHUNK // (2 * n_lines * self.power.numel()))
        gains = torch.cat(
            [self._gains(some, n_snapshots) for some in torch.split(lines, size, dim=2)], dim=1
        )
        return gains.reshape(*gains.shape[:2], *self.grid.shape)

    def of_channels(self, channels: Int[Tensor, " some"]) -> "Dictionary":
        """The same cells for some channels; index of each, may repeat."""
        if self.parts.shape[0] == 1:
            return self
        return replace(self, parts=self.parts[channels], power=self.power[channels])

    def between(self, channels: slice) -> "Dictionary":
        """The same cells for some channels in a row, without a copy."""
        if self.parts.shape[0] == 1:
            return self
        return replace(self, parts=self.parts[channels], power=self.power[channels])

    def parameters_at(self, index: Int[Tensor, "*shape 3"]) -> Float[Tensor, "*shape 3"]:
        """What lies at the centre of cells.

        Args:
            index: (v, u, rho).

        Returns:
            (u, v, rho).
        """
        _, n_u, n_rho = self.grid.shape
        v, u, rho = index.unbind(-1)
        return self.cells[(v * n_u + u) * n_rho + rho]

    def products(
        self, lines: Complex[Tensor, "channel blocks some line row"]
    ) -> Float[Tensor, "channel blocks some line 2 cell"]:
        """d^H x of every cell, as real and imaginary part.

        Args:
            lines: x, any number of them.

        Returns:
            Of the lines' unit.
        """
        real, imaginary = lines.real, lines.imag
        # d^H r = (Dr' rr + Di' ri) + j (Dr' ri - Di' rr)
        parts = torch.stack(
            (torch.cat((real, imaginary), -1), torch.cat((imaginary, -real), -1)), dim=-2
        )
        products = parts.flatten(2, 4) @ self.parts
        return products.reshape(*lines.shape[:4], 2, -1)

    def _gains(
        self, lines: Complex[Tensor, "channel blocks scene line row"], n_snapshots: int
    ) -> Float[Tensor, "channel scene cell"]:
        products = self.products(lines).square_()
        heard = products[:, :, :, :n_snapshots].sum((3, 4))
        spanned = products[:, :, :, n_snapshots:].sum((3, 4))
        power = self.power[:, :, None]
        gains: Tensor = heard / torch.maximum(power - spanned, NORM_FLOOR * power)
        return gains.sum(1)


def adapted_grid(problem: Problem) -> SearchGrid:
    """Cells just fine enough for the aperture: refinement does the rest.

    Args:
        problem: knows the elements and the region.

    Returns:
        A grid over the region.
    """
    steps = (_CELL_RADIANS * problem.resolution).tolist()
    n_u, n_v, n_rho = (
        max(2, math.ceil((high - low) / step) + 1)
        for (low, high), step in zip(problem.region.bounds.values(), steps, strict=True)
    )
    return SearchGrid.over(problem.region, n_v, n_u, n_rho)
