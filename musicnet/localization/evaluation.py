"""How good trained weights are, cell by cell, beside every method that they have to beat.

Weights come in with the scene that they were trained for; rows of figures go out, one for each
number of sources, signal-to-noise ratio and method. The scenes are those of splits that training
never draws from. All methods hear the same scenes, batch by batch in turn, and are given the same
prior.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from musicnet.estimation.bounds import deterministic_bound
from musicnet.localization.contestants import CONTESTANTS, Contestant, Question, ask
from musicnet.localization.scores import Score, Truth, compared, figures_of, joined, score
from musicnet.networks.pretrained import Pretrained
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import KnownBlocks, draw_known_blocks

EVALUATION_SEEDS = (20_260_101, 20_260_102)
"""Of the fixed evaluation set."""

BASELINE = "nomp"
"""Whom all others are compared with."""

SNR_DB = (-5.0, 0.0, 5.0, 10.0, 20.0)

Row = dict[str, Any]
"""Figures of one method in one cell; see `musicnet.localization.scores`."""

_SCENES_AT_ONCE = 256


@dataclass(frozen=True)
class Cell:
    """One number of sources at one signal-to-noise ratio.

    Args:
        n_sources: K.
        snr_db: of every source, as the scene's law means it.
    """

    n_sources: int
    snr_db: float

    @property
    def split(self) -> str:
        """Name of its scenes; training draws from "train" and "val" alone."""
        return f"test, {self.n_sources} sources, {self.snr_db:g} dB"

    def scene(self, scene: Scene) -> Scene:
        """The same physics with nothing but such scenes."""
        law = replace(
            scene.sources,
            n_min=self.n_sources,
            n_max=self.n_sources,
            snr_db=(self.snr_db, self.snr_db),
            count_weights=None,
        )
        return replace(scene, sources=law)


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Args:
        seeds: of the scenes; their scenes are pooled.
        n_scenes: of each cell, rounded up to whole channels of every seed.
        scenes_per_channel: they are one draw of the bootstrap.
        n_draws: of the bootstrap.
        contestants: who takes part; `BASELINE` must.

    Raises:
        ValueError: no seeds, the same seed twice, a size out of range, or no baseline.
    """

    seeds: tuple[int, ...] = EVALUATION_SEEDS
    n_scenes: int = 1024
    scenes_per_channel: int = 32
    n_draws: int = 400
    contestants: dict[str, Contestant] = field(default_factory=lambda: dict(CONTESTANTS))

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be different, at least one: got {self.seeds}.")
        sizes = ("n_scenes", "scenes_per_channel", "n_draws")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: got {getattr(self, name)}.")
        if BASELINE not in self.contestants:
            raise ValueError(
                f"an evaluation needs {BASELINE}, whom all are compared with: got "
                f"{', '.join(self.contestants)}."
            )

    @property
    def channels_per_seed(self) -> int:
        """Channels of each seed in a cell."""
        return math.ceil(self.n_scenes / (self.scenes_per_channel * len(self.seeds)))


def cells_of(scene: Scene, snr_db: tuple[float, ...] = SNR_DB) -> list[Cell]:
    """All cells of a scene: each number of sources it knows, at each ratio."""
    return [Cell(k, snr) for k in range(1, scene.sources.n_max + 1) for snr in snr_db]


def evaluate_cell(pretrained: Pretrained, cell: Cell, plan: Plan) -> list[Row]:
    """Has everybody answer the scenes of one cell.

    Args:
        pretrained: the network that is judged.
        cell: which scenes.
        plan: how many, and who answers.

    Returns:
        One row per contestant, JSON types but for numbers that are not finite.

    Raises:
        ValueError: more sources than the weights' scene knows.
    """
    most = pretrained.scene.sources.n_max
    if not 1 <= cell.n_sources <= most:
        raise ValueError(
            f"the weights know scenes of 1 to {most} sources: got n_sources={cell.n_sources}."
        )
    parts: dict[str, list[Score]] = {name: [] for name in plan.contestants}
    is_warm = False
    for blocks in draw_cell(pretrained.scene, cell, plan):
        truth = truth_of(blocks, pretrained.scene)
        question = Question(
            blocks.observation, cell.n_sources, pretrained.scene, pretrained, blocks.truth
        )
        if not is_warm:
            _warm_up(plan, question)
            is_warm = True
        for name, contestant in plan.contestants.items():
            parts[name].append(_judge(contestant, question, truth))
    scores = {name: joined(some) for name, some in parts.items()}
    n_scenes = plan.channels_per_seed * len(plan.seeds) * plan.scenes_per_channel
    return [
        {
            "n_sources": cell.n_sources,
            "snr_db": cell.snr_db,
            "method": name,
            **figures_of(given, truth.error, n_scenes, plan.n_draws),
            **compared(given, scores[BASELINE], BASELINE, plan.n_draws),
        }
        for name, given in scores.items()
    ]


def draw_cell(scene: Scene, cell: Cell, plan: Plan) -> Iterator[KnownBlocks]:
    """Draws the scenes of a cell, some whole channels at a time.

    Args:
        scene: what the weights were trained for.
        cell: which scenes of it.
        plan: how many.

    Yields:
        Batches (channel, scene) on the CPU.
    """
    size = max(1, _SCENES_AT_ONCE // plan.scenes_per_channel)
    for seed in plan.seeds:
        for first in range(0, plan.channels_per_seed, size):
            keys = range(first, min(first + size, plan.channels_per_seed))
            yield draw_known_blocks(
                cell.scene(scene), keys, plan.scenes_per_channel, "cpu", seed, cell.split, epoch=0
            )


def truth_of(blocks: KnownBlocks, scene: Scene) -> Truth:
    """What is true of drawn scenes, bound included.

    Args:
        blocks: the scenes.
        scene: what the weights were trained for.

    Returns:
        The truth.
    """
    heard = blocks.observation
    bound = deterministic_bound(
        heard.operator[:, None],
        heard.positions,
        heard.wavelength,
        blocks.truth.parameters,
        blocks.amplitudes,
        heard.noise_power,
        scene.active,
    )
    return Truth(blocks.truth, bound, scene.sources)


def _judge(contestant: Contestant, question: Question, truth: Truth) -> Score:
    reply, cpu_ms = _timed(contestant, question)
    if not contestant.counts:
        return score(reply, truth, cpu_ms)
    return score(reply, truth, cpu_ms, _timed(contestant, replace(question, n_sources=None)))


def _timed(contestant: Contestant, question: Question) -> tuple[Any, float]:
    start = time.process_time()
    reply = ask(contestant, question)
    return reply, 1e3 * (time.process_time() - start)


def _warm_up(plan: Plan, question: Question) -> None:
    """A question that does not count: what is made once is made, code and memory are there."""
    heard = question.observation
    one = replace(
        heard, y=heard.y[:1], operator=heard.operator[:1], noise_power=heard.noise_power[:1]
    )
    truth = replace(
        question.truth,
        parameters=question.truth.parameters[:1],
        resolved=question.truth.resolved[:1],
    )
    small = replace(question, observation=one, truth=truth)
    for contestant in plan.contestants.values():
        ask(contestant, small)
        if contestant.counts:
            ask(contestant, replace(small, n_sources=None))
