"""Bearings of sources around an array, with error bars: the door to `musicnet.estimation.bearings`.

A ring hears all around. Bearings are counter-clockwise from +x, in the plane of the array or at one
elevation above it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from musicnet.estimation.bearings import (
    Circle,
    FoundBearings,
    bearing_information,
    count_bearings,
    find_bearings,
)
from musicnet.localization.estimates import Estimates
from musicnet.localization.task import Count, Task, make_task
from musicnet.recordings.setup import is_line
from musicnet.scene.snapshots import Observation
from musicnet.scene.sources import SearchRegion, Sources

METHOD = "bearing"
_SURPRISE = 3.0  # deviations of the left-over power that are noise


@dataclass(frozen=True)
class Around:
    """Where bearings are looked for.

    Args:
        elevation_deg: of all sources above the x-y plane, in which the elements stand.
        bearing_deg: lowest and highest, counter-clockwise from +x.

    Raises:
        ValueError: no elevation, or no part of a turn.
    """

    elevation_deg: float = 0.0
    bearing_deg: tuple[float, float] = (-180.0, 180.0)

    def __post_init__(self) -> None:
        if not abs(self.elevation_deg) < 90.0:
            raise ValueError(
                "the elevation of bearings must lie between -90 and 90 degrees: got "
                f"{self.elevation_deg}."
            )
        low, high = self.bearing_deg
        if not (-360.0 <= low < high <= 360.0 and high - low <= 360.0):
            raise ValueError(
                "bearings must be two ascending numbers of degrees, at most a turn apart: got "
                f"({low}, {high})."
            )

    @property
    def circle(self) -> Circle:
        """The same in radians."""
        return Circle(*map(math.radians, (self.elevation_deg, *self.bearing_deg)))


def localize_bearings(
    observation: Observation,
    n_sources: Count = None,
    *,
    around: Around | None = None,
    most_sources: int | None = None,
) -> Estimates:
    """Finds the bearings of far sources at one elevation above the plane of the array.

    Args:
        observation: of an array that is no line; one operator.
        n_sources: K of all scenes, or of each; None has them counted.
        around: where to look; None is all around, in the plane of the array.
        most_sources: most that are looked for where they are counted.

    Returns:
        Estimates: `Estimates.bearing` and `Estimates.std_bearing` are what was searched; (u, v, 0)
        lies on the circle, and its covariance along it.

    Raises:
        ValueError: an observation that cannot be, or a line, which does not tell left from right.
    """
    if is_line(observation.positions.detach().cpu().numpy()):
        raise ValueError(
            "elements on a line cannot see how a source turns around it, and hear no bearings: got "
            f"{len(observation.positions)} elements on one line. Ask for azimuths there, without "
            "bearings or their elevation, or use another array."
        )
    circle = (around or Around()).circle
    reach = math.cos(circle.elevation)
    region = SearchRegion((-reach, reach), (-reach, reach), (0.0, 0.0))
    with torch.no_grad():
        task = make_task(observation, region, n_sources, most_sources)
        counts = task.n_sources
        if counts is None:
            counts = count_bearings(task.problem, circle, task.most_sources)
        return _found(task, circle, counts.masked_fill(task.spoilt, 0))


def _found(task: Task, circle: Circle, counts: Tensor) -> Estimates:
    """Scenes of one number of sources at a time: slots of others would round them otherwise."""
    problem = task.problem
    shape = (*counts.shape, task.most_sources)
    bearings = problem.noise_power.new_full(shape, math.nan)
    variance = torch.full_like(bearings, math.nan)
    cost = torch.view_as_real(problem.y).flatten(2).square().sum(-1)
    resolved = torch.arange(task.most_sources, device=counts.device) < counts[..., None]
    for k in sorted({k for k in counts.flatten().tolist() if k > 0}):
        some = counts == k
        found = find_bearings(problem, circle, counts.where(some, 0))
        spread = _variance(task, circle, found)
        bearings[..., :k] = torch.where(some[..., None], found.bearings, bearings[..., :k])
        variance[..., :k] = torch.where(some[..., None], spread, variance[..., :k])
        cost = torch.where(some, found.cost, cost)
    parameters = circle.parameters(bearings)
    tangent = circle.parameters(bearings + 0.5 * math.pi)
    covariance = tangent[..., :, None] * tangent[..., None, :] * variance[..., None, None]
    n_heard = problem.n_explicable + problem.n_unexplained
    total = (cost + problem.unexplained) / problem.noise_power
    likelihood = -total - n_heard * (math.pi * problem.noise_power).log()

    def shaped(values: Tensor) -> Tensor:
        return values.reshape((*task.batch_shape, *values.shape[2:]))

    return Estimates(
        sources=Sources(shaped(parameters), shaped(resolved)),
        covariance=shaped(covariance),
        log_likelihood=shaped(likelihood.masked_fill(task.spoilt, math.nan)),
        n_sources=shaped(counts),
        method=METHOD,
    )


def _variance(task: Task, circle: Circle, found: FoundBearings) -> Tensor:
    """Of each bearing with all others unknown; wider where more is left than noise leaves."""
    problem = task.problem
    curvature = bearing_information(problem, circle, found).double()
    empty = torch.diag_embed((~found.present).double())
    inverse = torch.linalg.inv_ex(curvature + empty).inverse
    n_amplitudes = problem.y.shape[2] * problem.n_snapshots
    n_free = problem.n_explicable - found.present.sum(-1) * (n_amplitudes + 0.5)
    n_free = n_free.clamp_min(1.0).double()
    noise_power = problem.noise_power.double()
    surplus = found.cost.double() / (noise_power * n_free)
    widened = torch.where(surplus > 1.0 + _SURPRISE * n_free.rsqrt(), surplus, 1.0)
    variance: Tensor = inverse.diagonal(dim1=-2, dim2=-1) * (noise_power * widened)[..., None]
    return variance.to(found.cost.dtype)
