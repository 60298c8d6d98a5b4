"""What every method is given: a checked observation in one layout, a region, a number of sources.

Scenes that are not finite are silenced here, so that they cannot harm the others, and marked, so
that they are never answered.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Complex, Int
from torch import Tensor

from musicnet.estimation.evidence import pursue
from musicnet.estimation.found import Found
from musicnet.estimation.problem import Problem, compress
from musicnet.scene.snapshots import Observation
from musicnet.scene.sources import SearchRegion, Sources
from musicnet.shapes import Positions

Count = int | Int[Tensor, "*batch"] | None
"""Sources of all scenes, of each scene, or unknown."""

MOST_COUNTED = 6
"""Sources that are looked for, at most, where their number is not given."""

_FLAT = 1e-4  # share of an aperture's length below which its width counts for nothing


@dataclass(frozen=True)
class Task:
    """What has to be localised.

    Args:
        observation: batch (channel, scene); finite.
        region: where sources may be.
        n_sources: of each scene; None where the method must count them.
        most_sources: slots of the answer.
        is_noise_known: whether the noise power can be relied on.
        spoilt: scenes that were not finite; what they hold now means nothing.
        batch_shape: leading axes of the observation as it came.
    """

    observation: Observation
    region: SearchRegion
    n_sources: Int[Tensor, "channel scene"] | None
    most_sources: int
    is_noise_known: bool
    spoilt: Bool[Tensor, "channel scene"]
    batch_shape: tuple[int, ...]

    @cached_property
    def problem(self) -> Problem:
        """The observation as a small least-squares problem."""
        return compress(self.observation, self.region)

    def of_scenes(self, some: Bool[Tensor, " scene"]) -> "Task":
        """The same for some scenes of the only channel.

        Args:
            some: which ones.

        Returns:
            A task of their number, in their order.
        """
        heard = self.observation
        return replace(
            self,
            observation=replace(heard, y=heard.y[:, some], noise_power=heard.noise_power[:, some]),
            n_sources=None if self.n_sources is None else self.n_sources[:, some],
            spoilt=self.spoilt[:, some],
            batch_shape=(1, int(some.sum())),
        )

    @cached_property
    def pursued(self) -> Found:
        """As many sources as have the most evidence; only asked for where they must be counted."""
        return pursue(
            self.problem,
            grid=None,
            most_sources=self.most_sources,
            is_noise_known=self.is_noise_known,
        )

    @cached_property
    def is_plain(self) -> bool:
        """Whether every row hears an element of its own: an array, no surface."""
        operator = self.observation.operator
        n_operators, n_rows, n_elements = operator.shape[-3:]
        if n_operators != 1 or n_rows != n_elements:
            return False
        gains = self.gains
        return bool((operator == torch.diag_embed(gains)).all() and (gains != 0).all())

    @property
    def gains(self) -> Complex[Tensor, "channel 1 row"]:
        """By how much each row of a plain array amplifies and turns what it hears."""
        return self.observation.operator.diagonal(dim1=-2, dim2=-1)

    @property
    def is_far(self) -> bool:
        """Whether sources have a direction only."""
        return self.region.inverse_range == (0.0, 0.0)

    @property
    def n_snapshots(self) -> int:
        """Blocks, each with symbols of its own."""
        return self.observation.y.shape[-2]


def with_slots(sources: Sources, n_slots: int) -> Sources:
    """The same sources with empty slots behind them.

    Args:
        sources: at most as many slots as wanted.
        n_slots: wanted.

    Returns:
        NaN, not resolved, in the new slots.
    """
    missing = n_slots - sources.resolved.shape[-1]
    return Sources(
        torch.nn.functional.pad(sources.parameters, (0, 0, 0, missing), value=math.nan),
        torch.nn.functional.pad(sources.resolved, (0, missing), value=False),
    )


def make_task(
    observation: Observation,
    region: SearchRegion,
    n_sources: Count,
    most_sources: int | None,
    *,
    is_noise_known: bool = True,
) -> Task:
    """Checks a request and lays it out.

    Args:
        observation: batch (*channel, *scene), operators (*channel); one scene may do without axes.
        region: where sources may be.
        n_sources: K of all scenes, of each, or None.
        most_sources: most that are looked for if None.
        is_noise_known: whether the noise power can be relied on.

    Returns:
        The task.

    Raises:
        ValueError: shapes that do not fit, numbers that are not finite throughout, more sources
            than the observation can tell apart, nothing to search, or what a line cannot see.
    """
    _check_shapes(observation)
    _check_values(observation)
    if not any(region.active):
        raise ValueError(
            f"the region must leave something to search: got {region}. "
            "Give at least one coordinate an interval."
        )
    _check_sight(observation.positions, region)
    n_channels = math.prod(observation.operator.shape[:-3])
    y = observation.y.reshape(n_channels, -1, *observation.y.shape[-2:])
    noise_power = observation.noise_power.expand(observation.y.shape[:-2]).reshape(y.shape[:2])
    spoilt = ~(torch.view_as_real(y).flatten(2).isfinite().all(-1) & noise_power.isfinite())
    if bool(spoilt.all()):
        raise ValueError(
            f"an observation must be finite: got NaN or infinity in all {spoilt.numel()} scenes. "
            "Look at y and noise_power."
        )
    laid_out = replace(
        observation,
        y=y.masked_fill(spoilt[..., None, None], 0.0),
        operator=observation.operator.reshape(n_channels, *observation.operator.shape[-3:]),
        noise_power=noise_power.masked_fill(spoilt, 1.0),
    )
    highest = min(observation.operator.shape[-2:]) - 1
    counts = _counts(n_sources, tuple(observation.y.shape[:-2]), highest, spoilt)
    if counts is not None:
        slots = max(1, int(counts.max()))
    else:
        slots = min(MOST_COUNTED, highest) if most_sources is None else most_sources
        if not 1 <= slots <= highest:
            raise ValueError(
                f"most_sources must be from 1 to {highest}, one fewer than there are sensors: got "
                f"{most_sources}."
            )
    return Task(
        observation=laid_out,
        region=region,
        n_sources=counts,
        most_sources=slots,
        is_noise_known=is_noise_known,
        spoilt=spoilt,
        batch_shape=tuple(observation.y.shape[:-2]),
    )


def _counts(
    n_sources: Count, batch: tuple[int, ...], highest: int, spoilt: Bool[Tensor, "channel scene"]
) -> Int[Tensor, "channel scene"] | None:
    if n_sources is None:
        return None
    if isinstance(n_sources, bool) or not isinstance(n_sources, (int, Tensor)):
        raise TypeError(f"n_sources must be a whole number, one for each scene: got {n_sources!r}.")
    if isinstance(n_sources, int):
        _check_count(n_sources, 1, highest)
        return torch.full_like(spoilt, n_sources, dtype=torch.long)
    is_whole = not (
        n_sources.is_floating_point() or n_sources.is_complex() or n_sources.dtype == torch.bool
    )
    if not is_whole or tuple(n_sources.shape) not in (batch, ()):
        raise ValueError(
            f"n_sources must hold one whole number for each of the scenes {batch}: got "
            f"{n_sources.dtype} of shape {tuple(n_sources.shape)}."
        )
    counts = n_sources.to(spoilt.device).long().expand(batch).reshape(spoilt.shape)
    for extreme in counts.aminmax():
        _check_count(int(extreme), 0, highest)  # single scenes may be empty
    return counts


def _check_count(n_sources: int, fewest: int, highest: int) -> None:
    if not fewest <= n_sources <= highest:
        raise ValueError(
            "the number of sources must be smaller than that of the sensors, and at least "
            f"{fewest}: got n_sources={n_sources}, n_sensors={highest + 1}. "
            f"Use a larger array, or n_sources <= {highest}."
        )


def _check_shapes(observation: Observation) -> None:
    y, operator = observation.y, observation.operator
    if y.ndim < 2 or not y.is_complex():
        raise ValueError(
            f"y must be complex and end in (block, row): got {y.dtype} of shape {tuple(y.shape)}."
        )
    channels = operator.shape[:-3]
    if operator.ndim < 3 or y.shape[:-2][: len(channels)] != channels:
        raise ValueError(
            "operator must be (*channel, blocks or 1, row, element) for y of (*channel, *scene, "
            f"block, row): got operator {tuple(operator.shape)}, y {tuple(y.shape)}."
        )
    n_operators, n_rows, n_elements = operator.shape[-3:]
    if y.shape[-1] != n_rows:
        swapped = (
            " The last two axes of y look swapped: pass y.mT." if y.shape[-2] == n_rows else ""
        )
        raise ValueError(
            f"y must end in (block, row) with {n_rows} rows: got shape {tuple(y.shape)}.{swapped}"
        )
    if n_operators not in (1, y.shape[-2]):
        raise ValueError(
            f"operator must have one block, or the {y.shape[-2]} of y: got {n_operators}."
        )
    if tuple(observation.positions.shape) != (n_elements, 3):
        raise ValueError(
            f"positions must be ({n_elements}, 3), one for each element: got "
            f"{tuple(observation.positions.shape)}."
        )
    if 0 in y.shape:
        raise ValueError(f"there must be something to localise: got y of {tuple(y.shape)}.")
    batch, noise_power = tuple(y.shape[:-2]), observation.noise_power
    extra = len(batch) - noise_power.ndim
    fits = extra >= 0 and all(
        n in (1, wanted) for n, wanted in zip(noise_power.shape, batch[extra:], strict=True)
    )
    if not fits or noise_power.is_complex():
        raise ValueError(
            f"noise_power must hold one real number for each of the scenes {batch}: got "
            f"{noise_power.dtype} of shape {tuple(noise_power.shape)}."
        )


def _check_values(observation: Observation) -> None:
    """What all scenes share must be finite; a single scene that is not harms only itself."""
    shared = {"operator": observation.operator, "positions": observation.positions}
    for name, values in shared.items():
        bad = ~(torch.view_as_real(values) if values.is_complex() else values).isfinite()
        if bool(bad.any()):
            raise ValueError(
                f"{name} must be finite: got NaN or infinity in {int(bad.sum())} of {bad.numel()} "
                "numbers."
            )
    if not (math.isfinite(observation.wavelength) and observation.wavelength > 0):
        raise ValueError(f"wavelength must be finite and positive: got {observation.wavelength}.")
    if bool((observation.noise_power <= 0).any()):
        raise ValueError(
            f"noise_power must be positive: got {float(observation.noise_power.min()):g}. "
            "Leave it out of the recording, and reading estimates it."
        )


def _check_sight(positions: Positions, region: SearchRegion) -> None:
    """Elements on a line see the angle to it only: what turns around it looks the same."""
    if len(positions) < 2:
        return
    size, axis = torch.linalg.svd((positions - positions.mean(0)).double())[1:]
    if float(size[1]) > _FLAT * float(size[0]):
        return
    along = axis[0].abs() > _FLAT
    searched = dict(zip("uv", region.active[:2], strict=True))
    sees_one = [bool(along[column] | along[2]) for column in range(2)]
    blind = [name for name, sees in zip("uv", sees_one, strict=True) if searched[name] and not sees]
    if all(searched.values()) or blind:
        name = blind[0] if blind else "v"
        raise ValueError(
            "elements on a line cannot see how a source turns around it: got a region with "
            f"{name} from {getattr(region, name)[0]:.3g} to {getattr(region, name)[1]:.3g}. Fix "
            f"{name} by equal bounds, in a file those of "
            f"{'elevation_deg' if name == 'v' else 'azimuth_deg'}."
        )
