"""Search for the sources that explain best what was heard.

*Pursuit* (NOMP) takes one source after the other: from the map of the power that one more source
would explain, then a few steps of refinement over all sources found so far. *Re-detection*
(`musicnet.estimation.redetection`) then takes sources out again and starts them anew; whatever has
the best likelihood stays. Nearly always the residual shows where that is needed, so that `nomp`
does it only where the residual is above the noise; `multistart` does it everywhere.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from musicnet.estimation.dictionary import Dictionary
from musicnet.estimation.found import Found, finish, is_settled, nothing
from musicnet.estimation.linearization import explain
from musicnet.estimation.problem import Problem, pack_scenes, take_scenes
from musicnet.estimation.redetection import redetect
from musicnet.estimation.refinement import refine
from musicnet.estimation.spectrum import SearchGrid

GROWTH_STEPS = 3
"""Steps of refinement after each new source."""

# pairs of cells that are tried for each pair of sources taken out
_PAIRS = 4


def omp(problem: Problem, grid: SearchGrid | None, n_sources: int | Int[Tensor, "*batch"]) -> Found:
    """Orthogonal (least-squares) matching pursuit: sources at the cells of the grid.

    Args:
        problem: what has to be explained.
        grid: cells to try; None lays one that suits the aperture.
        n_sources: of each scene.

    Returns:
        Sources on the grid, without any refinement.
    """
    dictionary = Dictionary.over(problem, grid)
    return grow(problem, dictionary, counts_of(problem, n_sources), steps=0)


def nomp(
    problem: Problem,
    grid: SearchGrid | None,
    n_sources: int | Int[Tensor, "*batch"],
    n_sweeps: int = 2,
    n_starts: int = 3,
) -> Found:
    """Newtonised orthogonal matching pursuit, with re-detection where the residual is not noise.

    Args:
        problem: what has to be explained; its noise power decides where to search on. One that is
            too low costs time, one that is too high costs outliers.
        grid: cells to try; None lays one that suits the aperture.
        n_sources: of each scene.
        n_sweeps: rounds of re-detection source by source; one by pairs follows.
        n_starts: peaks that are tried for each source taken out.

    Returns:
        As many sources as asked, of the best likelihood found.

    Raises:
        ValueError: as many sources as rows, or more.

    Source: Mamandipoor, Ramasamy & Madhow (2016), IEEE Transactions on Signal Processing 64(19),
    for pursuit with refinement over all sources at every step.
    """
    dictionary = Dictionary.over(problem, grid)
    found = grow(problem, dictionary, counts_of(problem, n_sources), GROWTH_STEPS)
    for _ in range(n_sweeps):
        found = redetect(problem, dictionary, found, ~is_settled(problem, found), n_starts)
    found = redetect(problem, dictionary, found, ~is_settled(problem, found), _PAIRS, n_out=2)
    return finish(problem, found)


def multistart(
    problem: Problem,
    grid: SearchGrid | None,
    n_sources: int | Int[Tensor, "*batch"],
    n_starts: int = 4,
    n_sweeps: int = 3,
) -> Found:
    """Pursuit, then several starts for every source of every scene, until nothing improves.

    Args:
        problem: what has to be explained; see `nomp` for its noise power, which decides here about
            pairs only.
        grid: cells to try; None lays one that suits the aperture.
        n_sources: of each scene.
        n_starts: peaks that are tried for each source taken out.
        n_sweeps: most rounds of re-detection; a scene that did not improve takes no further part.

    Returns:
        As many sources as asked, of the best likelihood found.

    Raises:
        ValueError: as many sources as rows, or more.
    """
    dictionary = Dictionary.over(problem, grid)
    found = grow(problem, dictionary, counts_of(problem, n_sources), GROWTH_STEPS)
    wanted = torch.ones_like(found.cost, dtype=torch.bool)
    for _ in range(n_sweeps):
        before = found.cost
        found = redetect(problem, dictionary, found, wanted, n_starts)
        wanted = found.cost < before
    found = redetect(problem, dictionary, found, ~is_settled(problem, found), _PAIRS, n_out=2)
    return finish(problem, found)


def append(
    problem: Problem,
    dictionary: Dictionary,
    found: Found,
    wanted: Bool[Tensor, "channel scene"],
    steps: int = GROWTH_STEPS,
) -> Found:
    """Adds a slot, and to the wanted scenes the source that explains most of what is left.

    Args:
        problem: what has to be explained.
        dictionary: cells to try.
        found: sources so far.
        wanted: scenes that get one more; the others stay as they are.
        steps: of refinement, over all sources of the scene.

    Returns:
        The same sources and one more slot.
    """
    centre = problem.box.mean(0).expand(*wanted.shape, 1, 3)
    room = torch.zeros_like(wanted)[..., None]
    wider = Found(
        torch.cat((found.parameters, centre), dim=2),
        torch.cat((found.present, room), dim=2),
        found.cost,
    )
    some = pack_scenes(wanted)
    if some.shape[1] == 0:
        return wider
    part, so_far = problem.take(some), found.take(some)
    gains = dictionary.gains(explain(part, so_far.parameters, so_far.present))
    best = dictionary.cells[gains.flatten(2).argmax(-1)][:, :, None]
    parameters = torch.cat((so_far.parameters, best), dim=2)
    present = torch.cat((so_far.present, torch.ones_like(best[..., 0], dtype=torch.bool)), dim=2)
    refined = refine(part, parameters, present, steps)
    more = Found(refined.parameters, present, refined.cost)
    return wider.replaced(more, some, take_scenes(wanted, some))


def grow(
    problem: Problem, dictionary: Dictionary, n_sources: Int[Tensor, "channel scene"], steps: int
) -> Found:
    """Greedy pursuit alone: one source after the other, nothing taken back.

    Args:
        problem: what has to be explained.
        dictionary: cells to try.
        n_sources: of each scene.
        steps: of refinement after each new source; 0 leaves sources on the grid.

    Returns:
        As many sources as asked.
    """
    found = nothing(problem)
    for k in range(int(n_sources.max())):
        found = append(problem, dictionary, found, n_sources > k, steps)
    return found


def counts_of(
    problem: Problem, n_sources: int | Int[Tensor, "*batch"]
) -> Int[Tensor, "channel scene"]:
    """Number of sources in the layout of a problem.

    Args:
        problem: what has to be explained.
        n_sources: of all scenes, or of each.

    Returns:
        Of each scene.

    Raises:
        ValueError: as many sources as rows, or more.
    """
    counts = torch.as_tensor(n_sources, device=problem.y.device)
    counts = problem.flatten(counts.expand(problem.batch_shape))
    n_rows = problem.y.shape[-1]
    fewest, most = int(counts.min()), int(counts.max())
    if not 0 <= fewest <= most < n_rows:
        raise ValueError(
            "a scene needs fewer sources than rows, so that something is left for the noise: got "
            f"n_sources from {fewest} to {most} with {n_rows} rows. Ask for at most {n_rows - 1}."
        )
    return counts
