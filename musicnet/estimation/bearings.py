r"""Bearings of far sources at one elevation above the plane of an array: rings hear all around.

A source at bearing b and elevation e above the x-y plane has u = cos(e) cos(b), v = cos(e) sin(b).
In the plane, e = 0, azimuth and elevation of the program are singular, and u and v are not free of
each other: the bearing is the one parameter. Its derivative is that along the circle,

.. math:: \frac{\partial}{\partial b} = \cos e \left(-\sin b \frac{\partial}{\partial u}
   + \cos b \frac{\partial}{\partial v}\right)

in which the terms of elements off the plane cancel. Maximum likelihood: greedy first places on a
circle of cells, then Gauss-Newton steps over all bearings together, then other places for each.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from musicnet.estimation.linearization import explain, linearize
from musicnet.estimation.problem import Problem, pack_scenes, put_scenes, take_scenes
from musicnet.estimation.products import product_of_rows
from musicnet.estimation.signatures import signatures

_CELLS_PER_RADIAN = 3.0  # of phase between opposite elements
_FEWEST_CELLS = 72
_STEPS, _LAST_STEPS = 4, 12
_SWEEPS, _STARTS = 2, 3
_NORM_FLOOR = 1e-3  # of a cell's power beside the sources found so far
_FALSE_ALARM = 1e-3  # of a scene without a source more

Bearings = Float[Tensor, "channel scene source"]
Present = Bool[Tensor, "channel scene source"]


@dataclass(frozen=True)
class Circle:
    """Directions at one elevation.

    Args:
        elevation: above the plane of the array; radians.
        low: of the bearings to search; radians.
        high: of them; a whole turn above ``low`` closes the circle.
    """

    elevation: float = 0.0
    low: float = -math.pi
    high: float = math.pi

    @property
    def is_closed(self) -> bool:
        """Whether all bearings are searched."""
        return self.high - self.low >= 2.0 * math.pi - 1e-9

    def parameters(self, bearings: Bearings) -> Float[Tensor, "channel scene source 3"]:
        """(u, v, 0) of each bearing."""
        u, v = bearings.cos(), bearings.sin()
        return torch.stack((u, v, torch.zeros_like(u)), dim=-1) * math.cos(self.elevation)

    def inside(self, bearings: Bearings) -> Bearings:
        """The same directions within [low, high]; on a closed circle nothing is cut off."""
        if self.is_closed:
            return self.low + torch.remainder(bearings - self.low, 2.0 * math.pi)
        return bearings.clamp(self.low, self.high)

    def cells(self, problem: Problem) -> Float[Tensor, " cell"]:
        """Bearings close enough to each other that refinement does the rest."""
        places = problem.positions[:, :2].double()
        size = float((places[:, None] - places[None]).norm(dim=-1).max())
        per_turn = _CELLS_PER_RADIAN * problem.wavenumber * size * math.cos(self.elevation)
        share = (self.high - self.low) / (2.0 * math.pi)
        count = max(2, math.ceil(share * max(_FEWEST_CELLS, per_turn)))
        ends = count + 1 if self.is_closed else count
        cells = torch.linspace(self.low, self.high, ends, dtype=torch.float64)[:count]
        return cells.to(problem.positions)


@dataclass(frozen=True)
class FoundBearings:
    """Sources on a circle.

    Args:
        bearings: radians; anything in empty slots.
        present: slots that hold a source.
        cost: power that they do not explain.
    """

    bearings: Bearings
    present: Present
    cost: Float[Tensor, "channel scene"]

    def put(
        self, better: "FoundBearings", some: Int[Tensor, "channel some"], chosen: Tensor
    ) -> "FoundBearings":
        """The same, with the chosen ones of some scenes taken from another search."""
        return FoundBearings(
            put_scenes(self.bearings, better.bearings, some, chosen),
            put_scenes(self.present, better.present, some, chosen),
            put_scenes(self.cost, better.cost, some, chosen),
        )

    def take(self, some: Int[Tensor, "channel some"]) -> "FoundBearings":
        """Sources of some scenes; index of each, may repeat."""
        return FoundBearings(
            take_scenes(self.bearings, some),
            take_scenes(self.present, some),
            take_scenes(self.cost, some),
        )


def find_bearings(
    problem: Problem, circle: Circle, n_sources: Int[Tensor, "channel scene"]
) -> FoundBearings:
    """Maximum likelihood on a circle.

    Args:
        problem: what has to be explained; both u and v are searched in its region.
        circle: where sources may be.
        n_sources: of each scene.

    Returns:
        As many sources as asked.
    """
    search = _Search(problem, circle)
    found = search.nothing()
    for k in range(int(n_sources.max())):
        found = search.one_more(found, n_sources > k)
    for _ in range(_SWEEPS):
        for slot in range(found.present.shape[-1]):
            found = search.other_place(found, slot)
    return search.refined(found, _LAST_STEPS)


def count_bearings(problem: Problem, circle: Circle, most: int) -> Int[Tensor, "channel scene"]:
    """How many sources stand out of the noise.

    One more counts where it explains more than noise would in any cell: the power of noise along
    one direction, over T snapshots, is a gamma variable of shape T, which exceeds
    T + sqrt(2 T a) + a with a probability below exp(-a).

    Args:
        problem: with a noise power that can be relied on.
        circle: where sources may be.
        most: that are looked for.

    Returns:
        From 0 to ``most``.

    Source: Laurent & Massart (2000), Annals of Statistics 28(5), lemma 1, for the bound.
    """
    search = _Search(problem, circle)
    n_snapshots = problem.n_snapshots * problem.y.shape[2]
    excess = math.log(len(search.cells) / _FALSE_ALARM)
    threshold = n_snapshots + math.sqrt(2.0 * n_snapshots * excess) + excess
    found = search.nothing()
    counts = torch.zeros_like(found.cost, dtype=torch.long)
    going = torch.ones_like(counts, dtype=torch.bool)
    for _ in range(most):
        wider = search.one_more(found, torch.ones_like(going))
        going = going & ((found.cost - wider.cost) > threshold * problem.noise_power)
        counts = counts + going
        found = wider
    return counts


def bearing_information(
    problem: Problem, circle: Circle, found: FoundBearings
) -> Float[Tensor, "channel scene source source"]:
    """Curvature of the cost along the bearings; the information is that over the noise power.

    Args:
        problem: what was heard.
        circle: that the bearings are on.
        found: sources.

    Returns:
        0 for empty slots.
    """
    return _along_circle(problem, circle, found.bearings, found.present)[2]


class _Search:
    """A problem, its circle and the cells to try."""

    def __init__(self, problem: Problem, circle: Circle) -> None:
        self.problem, self.circle = problem, circle
        self.cells = circle.cells(problem)
        everywhere = circle.parameters(self.cells[None, None])
        everywhere = everywhere.expand(problem.y.shape[0], -1, -1, -1)
        there = torch.ones(everywhere.shape[:-1], dtype=torch.bool, device=everywhere.device)
        self.lines = signatures(problem, everywhere, there)[:, 0]  # (channel, blocks, cell, row)

    def nothing(self) -> FoundBearings:
        power = torch.view_as_real(self.problem.y).flatten(2).square().sum(-1)
        empty = power.new_zeros((*power.shape, 0))
        return FoundBearings(empty, empty.bool(), power)

    def one_more(
        self, found: FoundBearings, wanted: Bool[Tensor, "channel scene"]
    ) -> FoundBearings:
        """A slot more, and in the wanted scenes the cell that explains most, refined."""
        n_slots = found.present.shape[-1] + 1
        pad = torch.nn.functional.pad
        wider = FoundBearings(pad(found.bearings, (0, 1)), pad(found.present, (0, 1)), found.cost)
        some = pack_scenes(wanted)
        if some.shape[1] == 0:
            return wider
        part = wider.take(some)
        best = self._gains(some, part)[..., :].argmax(-1)
        slot = torch.arange(n_slots, device=best.device) == n_slots - 1
        start = FoundBearings(
            torch.where(slot, self.cells[best][..., None], part.bearings),
            part.present | slot,
            part.cost,
        )
        better = self._refined_part(some, start, _STEPS)
        return wider.put(better, some, take_scenes(wanted, some))

    def other_place(self, found: FoundBearings, slot: int) -> FoundBearings:
        """The best of several other places for one source, where that is better."""
        wanted = found.present[..., slot]
        some = pack_scenes(wanted)
        if some.shape[1] == 0:
            return found
        mask = torch.arange(found.present.shape[-1], device=some.device) == slot
        before = found.take(some)
        without = FoundBearings(before.bearings, before.present & ~mask, before.cost)
        starts = self._peaks(self._gains(some, without))
        for start in starts.unbind(-1):
            trial = FoundBearings(
                torch.where(mask, start[..., None], before.bearings), before.present, before.cost
            )
            trial = self._refined_part(some, trial, _STEPS)
            better = (trial.cost < take_scenes(found.cost, some)) & take_scenes(wanted, some)
            found = found.put(trial, some, better)
        return found

    def refined(self, found: FoundBearings, steps: int) -> FoundBearings:
        everything = torch.arange(found.cost.shape[1], device=found.cost.device)
        return self._refined_part(everything.expand(len(found.cost), -1), found, steps)

    def _refined_part(
        self, some: Int[Tensor, "channel some"], start: FoundBearings, steps: int
    ) -> FoundBearings:
        """Damped Gauss-Newton steps; none that does not pay is kept."""
        problem = self.problem.take(some)
        bearings, present = start.bearings, start.present
        if bearings.shape[-1] == 0:
            return start
        damping = torch.full_like(start.cost, 1e-3)
        cost, slope, curvature = _along_circle(problem, self.circle, bearings, present)
        spacing = float(self.cells[1] - self.cells[0])
        for _ in range(steps):
            scale = curvature.diagonal(dim1=-2, dim2=-1)
            ridge = damping[..., None] * scale + torch.where(present, 1e-12 * scale + 1e-30, 1.0)
            factor, info = torch.linalg.cholesky_ex(curvature + torch.diag_embed(ridge))
            step = -torch.cholesky_solve(slope[..., None], factor).squeeze(-1)
            usable = (info == 0)[..., None] & step.isfinite() & present
            step = torch.where(usable, step, 0.0).clamp(-spacing, spacing)
            trial = self.circle.inside(bearings + step)
            new_cost, new_slope, new_curvature = _along_circle(problem, self.circle, trial, present)
            better = new_cost < cost
            damping = torch.where(better, 0.2 * damping, 8.0 * damping)
            bearings = torch.where(better[..., None], trial, bearings)
            slope = torch.where(better[..., None], new_slope, slope)
            curvature = torch.where(better[..., None, None], new_curvature, curvature)
            cost = torch.where(better, new_cost, cost)
        return FoundBearings(bearings, present, cost)

    def _gains(
        self, some: Int[Tensor, "channel some"], found: FoundBearings
    ) -> Float[Tensor, "channel some cell"]:
        """Power that a source more would explain, cell by cell."""
        problem = self.problem.take(some)
        parameters = self.circle.parameters(found.bearings)
        if found.bearings.shape[-1] == 0:
            residual, basis = problem.y, problem.y[..., :0, :]
        else:
            explained = explain(problem, parameters, found.present)
            residual, basis = explained.residual, explained.basis
        heard = self._powers(residual)
        power = torch.view_as_real(self.lines).square().sum((-2, -1))[:, None]
        beside = power - self._powers(basis)
        return (heard / torch.maximum(beside, _NORM_FLOOR * power)).sum(2)

    def _powers(
        self, lines: Complex[Tensor, "channel some blocks line row"]
    ) -> Float[Tensor, "channel some blocks cell"]:
        """|d^H x|^2 of every cell, over all lines x."""
        n_lines = lines.shape[3]
        across = lines.transpose(1, 2).flatten(2, 3)  # (channel, blocks, some line, row)
        heard = product_of_rows(across, self.lines.mH)
        power = heard.real.square() + heard.imag.square()
        shape = (*power.shape[:2], lines.shape[1], n_lines, power.shape[-1])
        return power.reshape(shape).sum(3).transpose(1, 2)

    def _peaks(self, gains: Float[Tensor, "channel some cell"]) -> Tensor:
        """Bearings of the highest maxima; fewer maxima repeat the best."""
        closed = self.circle.is_closed
        after, before = gains.roll(-1, -1), gains.roll(1, -1)
        if not closed:
            after, before = after.clone(), before.clone()
            after[..., -1], before[..., 0] = -torch.inf, -torch.inf
        is_peak = (gains >= after) & (gains >= before)
        heights = gains.masked_fill(~is_peak, -torch.inf)
        best = heights.topk(min(_STARTS, gains.shape[-1]), dim=-1)
        first = best.indices[..., :1].expand_as(best.indices)
        return self.cells[torch.where(best.values.isfinite(), best.indices, first)]


def _along_circle(
    problem: Problem, circle: Circle, bearings: Bearings, present: Present
) -> tuple[Float[Tensor, "channel scene"], Tensor, Tensor]:
    """Cost, its slope and its Gauss-Newton matrix along the bearings."""
    around = linearize(problem, circle.parameters(bearings), present)
    n = bearings.shape[-1]
    tangent = circle.parameters(bearings + 0.5 * math.pi)[..., :2]  # d(u, v)/db
    batch = present.shape[:-1]
    gradient = around.gradient.reshape(*batch, 2, n)  # coordinate by coordinate
    curvature = around.curvature.reshape(*batch, 2, n, 2, n)
    along_u, along_v = tangent.unbind(-1)
    slope = gradient[..., 0, :] * along_u + gradient[..., 1, :] * along_v
    rows = curvature[..., 0, :, :, :] * along_u[..., :, None, None]
    rows = rows + curvature[..., 1, :, :, :] * along_v[..., :, None, None]
    matrix = rows[..., 0, :] * along_u[..., None, :] + rows[..., 1, :] * along_v[..., None, :]
    return around.cost, slope, matrix
