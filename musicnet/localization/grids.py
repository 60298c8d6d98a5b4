"""How fine a search has to be, from what the aperture can tell apart."""

import math

from musicnet.estimation.problem import Problem
from musicnet.estimation.spectrum import SearchGrid

# radians that the aperture's ends turn against each other from one cell to the next, by the number
# of coordinates searched: a spectrum must show the valley between two peaks, and in one coordinate
# cells cost nothing
_STEPS = {1: 0.5, 2: 0.8, 3: 1.5}
_FEWEST_CELLS = 4


def spectrum_grid(problem: Problem) -> SearchGrid:
    """Cells that show a pseudo-spectrum's peaks.

    Args:
        problem: knows the aperture and the region.

    Returns:
        Finer the fewer coordinates are searched.
    """
    step = _STEPS[len(problem.active)]
    cells = []
    bounds = problem.region.bounds.values()
    for (low, high), resolution in zip(bounds, problem.resolution.tolist(), strict=True):
        needed = math.ceil((high - low) / (step * resolution)) + 1
        cells.append(max(needed, _FEWEST_CELLS))
    n_u, n_v, n_rho = cells
    return SearchGrid.over(problem.region, n_v=n_v, n_u=n_u, n_rho=n_rho)
