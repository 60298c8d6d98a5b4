"""Methods that look at the covariance: spectra on a grid, and the ones that need none.

Coherent sources leave a covariance with too few dimensions. Averaging with the mirror image and
over shifted parts of a line or rectangle restores them and costs aperture: there both covariances
are tried, and each scene keeps the answer that explains more of what was heard.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Int
from torch import Tensor

from musicnet.estimation.covariance import (
    element_covariance,
    forward_backward,
    sample_covariance,
    smoothed_rectangle,
)
from musicnet.estimation.hermitian import hermitian_eigen
from musicnet.estimation.linearization import explain
from musicnet.estimation.order import minimum_description_length
from musicnet.estimation.polynomial import root_music
from musicnet.estimation.rotation import esprit, esprit_rectangle
from musicnet.estimation.search import Beams, bartlett_beams, capon_beams, music_beams, search
from musicnet.localization.confidence import filled
from musicnet.localization.grids import spectrum_grid
from musicnet.localization.likelihood_methods import count_by_pursuit
from musicnet.localization.task import Task, with_slots
from musicnet.scene.array import is_mirrored, line_spacing, rectangle_shape
from musicnet.scene.sources import Sources
from musicnet.shapes import Covariance, Positions

Counts = Int[Tensor, "channel scene"]

# fewest for which eigenvalues are counted
_SNAPSHOTS_PER_ROW = 2
# numbers of the largest map of beams: 128 MB in single precision
_CHUNK = 2**24
# of a line that its parts keep: short parts tell more coherent sources apart, long ones are sharper
_PART = 0.7


@dataclass(frozen=True)
class Moments:
    """A covariance, and the elements that it belongs to.

    Args:
        covariance: R.
        positions: of its rows; metres.
        is_mirrored: averaged with its mirror image.
        sides: elements along x and y of a part of a rectangle; None for a whole array.
    """

    covariance: Complex[Tensor, "channel scene row row"]
    positions: Positions
    is_mirrored: bool
    sides: tuple[int, int] | None = None

    @property
    def n_rows(self) -> int:
        """Elements that are left."""
        return self.covariance.shape[-1]

    @property
    def most_sources(self) -> int:
        """As many as any method can tell apart with these elements."""
        n_horizontal, n_vertical = self.sides or (self.n_rows, 1)
        if n_vertical == 1:
            return self.n_rows - 1
        return min((n_horizontal - 1) * n_vertical, n_horizontal * (n_vertical - 1))


def count_by_eigenvalues(task: Task) -> Int[Tensor, "channel scene"]:
    """How many sources the covariance shows (MDL); few snapshots ask the pursuit instead.

    Args:
        task: with ``n_sources`` unknown.

    Returns:
        From 0 to ``most_sources``: the most that any of its covariances shows, since coherent
        sources hide in the longer ones.
    """
    # MDL's penalty is one of many snapshots: with few, noise counts as sources
    if task.n_snapshots < _SNAPSHOTS_PER_ROW * len(task.observation.positions):
        return count_by_pursuit(task)
    counts = [
        minimum_description_length(
            hermitian_eigen(moments.covariance)[0],
            task.n_snapshots,
            is_forward_backward=moments.is_mirrored,
        )
        for moments in moments_of(task)
    ]
    return torch.stack(counts).amax(0).clamp_max(task.most_sources)


def moments_of(task: Task) -> list[Moments]:
    """The covariances that a scene may be judged by, the longest first.

    Args:
        task: what was heard.

    Returns:
        One, or two for uniform lines and rectangles in the far field.
    """
    observation = task.observation
    positions = observation.positions
    if task.is_plain:
        # gains of different size leave noise that is not white; their phases are harmless
        covariance = sample_covariance(observation.y / task.gains[:, None])
    else:
        covariance = element_covariance(observation.y, observation.operator)
    if not (task.is_far and is_mirrored(positions)):
        return [Moments(covariance, positions, is_mirrored=False)]
    moments = [Moments(forward_backward(covariance), positions, is_mirrored=True)]
    shape = rectangle_shape(positions, observation.wavelength)
    if shape is not None:
        moments += _moments_of_parts(moments[0], shape[:2])
    return moments


def _moments_of_parts(whole: Moments, sides: tuple[int, int]) -> list[Moments]:
    """The average over shifted parts of a line or rectangle, if it has any."""
    n_sub = (math.ceil(_PART * sides[0]), math.ceil(_PART * sides[1]))
    if n_sub == sides or math.prod(n_sub) < 3:
        return []
    covariance = smoothed_rectangle(whole.covariance, *sides, n_sub=n_sub)
    corner = whole.positions.reshape(sides[1], sides[0], 3)[: n_sub[1], : n_sub[0]]
    return [Moments(covariance, corner.flatten(0, 1), whole.is_mirrored, n_sub)]


def music(task: Task, counts: Counts) -> Sources:
    """MUSIC, on a grid and then off it."""
    return _best(task, counts, lambda m, k: _searched(task, k, m, music_beams))


def mvdr(task: Task, counts: Counts) -> Sources:
    """Capon's minimum variance spectrum, on a grid and then off it."""
    return _best(task, counts, lambda m, k: _searched(task, k, m, lambda r, _: capon_beams(r)))


def bartlett(task: Task, counts: Counts) -> Sources:
    """Delay-and-sum, on a grid and then off it."""
    return _searched(task, counts, moments_of(task)[0], lambda r, _: bartlett_beams(r))


def rooted(task: Task, counts: Counts) -> Sources:
    """Root-MUSIC."""
    spacing = _spacing_of_line(task, "root-music")
    return _best(task, counts, lambda m, k: root_music(m.covariance, k, spacing, task.region))


def rotated(task: Task, counts: Counts) -> Sources:
    """ESPRIT with total least squares; in two dimensions where the array is a rectangle."""
    observation = task.observation
    shape = rectangle_shape(observation.positions, observation.wavelength)
    if shape is None or shape[1] == 1 or not (task.is_plain and task.is_far):
        spacing = _spacing_of_line(task, "esprit")
        return _best(task, counts, lambda m, k: esprit(m.covariance, k, spacing, task.region))
    whole, spacing = shape[:2], shape[2]

    def find(moments: Moments, known: Counts) -> Sources:
        sides = moments.sides or whole
        return esprit_rectangle(moments.covariance, known, *sides, spacing, task.region)

    return _best(task, counts, find)


def _spacing_of_line(task: Task, method: str) -> float:
    spacing = line_spacing(task.observation.positions, task.observation.wavelength)
    if spacing is None or not (task.is_plain and task.is_far):
        heard = "sensors" if task.is_plain else "a surface"
        field = "far" if task.is_far else "near"
        line = "a uniform line along x" if spacing is not None else "no uniform line along x"
        raise ValueError(
            f"{method} needs a uniform line of sensors along x and sources in the far field: got "
            f"{heard}, {line}, the {field} field. Use nomp, which knows any array."
        )
    return spacing


def _searched(
    task: Task,
    counts: Counts,
    moments: Moments,
    look: Callable[[Covariance, Int[Tensor, "*batch"]], Beams],
) -> Sources:
    """Looks for peaks some scenes at a time, so that the map of all beams fits into memory."""
    grid = spectrum_grid(task.problem)
    wavelength = task.observation.wavelength
    size = max(1, _CHUNK // (grid.n_cells * moments.n_rows))
    n_slots = task.most_sources
    parts = []
    covariances, known = moments.covariance.flatten(0, 1), counts.flatten()
    for start in range(0, len(known), size):
        covariance, some = covariances[start : start + size], known[start : start + size]
        beams = look(covariance, some)
        found = search(beams, grid, n_slots, moments.positions, wavelength)
        asked = torch.arange(n_slots, device=some.device) < some[:, None]
        resolved = found.resolved & asked
        parts.append(
            Sources(found.parameters.masked_fill(~resolved[..., None], math.nan), resolved)
        )
    shape = (*counts.shape, n_slots)
    return Sources(
        torch.cat([part.parameters for part in parts]).reshape(*shape, 3),
        torch.cat([part.resolved for part in parts]).reshape(shape),
    )


def _best(task: Task, counts: Counts, find: Callable[[Moments, Counts], Sources]) -> Sources:
    """Tries every covariance; each scene keeps the answer that leaves least power over."""
    tried = moments_of(task)
    answers = [find(tried[0], counts)]
    # a part may be too small for some scenes: they are asked for less, and not heard
    answers += [find(part, counts.clamp_max(part.most_sources)) for part in tried[1:]]
    answers = [with_slots(answer, task.most_sources) for answer in answers]
    if len(answers) == 1:
        return answers[0]
    problem = task.problem
    costs = []
    for moments, answer in zip(tried, answers, strict=True):
        parameters, present = filled(problem, answer)
        cost = problem.unflatten(explain(problem, parameters, present).cost)
        too_small = (counts > moments.most_sources) & (moments.sides is not None)
        costs.append(cost.masked_fill(too_small, math.inf))
    chosen = torch.stack(costs).argmin(0)[None, :, :, None]  # (1, channel, scene, 1)
    parameters = torch.stack([answer.parameters for answer in answers])
    resolved = torch.stack([answer.resolved for answer in answers])
    return Sources(
        parameters.take_along_dim(chosen[..., None], 0)[0], resolved.take_along_dim(chosen, 0)[0]
    )
