"""What a simulated scene costs, over what it must cost at least.

The setting is the paper's: 12 x 12 cells, 16 antennas, 16 codes, 5 sources, pilots, one core. The
floor is the CPU time, in the same run and in the same batches, of three things that no simulator
can do without: drawing the noise, the batched complex product y = G x, and the complex exponentials
of the steering vectors. ``over_floor`` is the time of whole scenes over the sum of the three, and
must not exceed 2. A plain numpy simulator that makes one scene at a time is timed beside it.

    python benchmarks/scenes.py --json scenes.json

Batches hold whole blocks of 32 scenes, each with a channel and a codebook of its own; the headline
is that of the largest batch, 512 scenes, where the cost of calling torch is spread thin. The parts
are timed in turns and compared by their medians, so that a busy machine disturbs all alike.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import block_generator, draw_blocks
from musicnet.scene.sources import SourceLaw
from musicnet.scene.surface import Surface

SCENE = Scene(
    array=ArrayGeometry(n_horizontal=12, n_vertical=12),
    sources=SourceLaw(n_min=5, n_max=5),
    surface=Surface(n_antennas=16, n_codes=16),
)
SCENES_PER_BLOCK = 32
BATCH_BLOCKS = (2, 8, 16)
LIMIT = 2.0
N_WARM = 10


def floor_parts(n_blocks: int) -> dict[str, Callable[[], object]]:
    """The three unavoidable parts of a batch, on operands that are there already."""
    n_sources, n_elements, n_rows = SCENE.sources.n_max, SCENE.n_elements, SCENE.n_rows
    batch = (n_blocks, SCENES_PER_BLOCK)
    generators = [block_generator(0, "floor", 0, block) for block in range(n_blocks)]
    field = torch.randn((*batch, n_elements), dtype=torch.complex64)
    operator = torch.randn((n_blocks, n_rows, n_elements), dtype=torch.complex64)
    phase = torch.randn((*batch, n_sources, n_elements)) * 10.0

    def noise() -> object:
        shape = (SCENES_PER_BLOCK, n_rows)
        return [torch.randn(shape, generator=g, dtype=torch.complex64) for g in generators]

    return {
        "noise": noise,
        "product": lambda: field @ operator.mT,
        # the fastest way that torch has: torch.polar and torch.exp take six and more times as long
        "exponentials": lambda: torch.complex(phase.cos(), phase.sin()),
    }


def numpy_scene(random: np.random.Generator) -> np.ndarray:
    """One scene as one would first write it; its channel and codes are drawn for it alone."""
    side, n_sources, n_antennas, n_codes, wavelength = 12, 5, 16, 16, 0.3
    n_elements = side * side
    index = (np.arange(side) - (side - 1) / 2) * wavelength / 2
    positions = np.array([[x, y, 0.0] for y in index for x in index])
    channel = random.normal(size=(n_antennas, n_elements, 2)) @ [1, 1j] / np.sqrt(2 * n_elements)
    field = np.zeros(n_elements, dtype=complex)
    for _ in range(n_sources):
        azimuth, elevation = np.radians(random.uniform((-60, -30), (60, 30)))
        distance, snr_db = random.uniform((0.5, -5), (5, 20))
        direction = np.array(
            [
                np.sin(azimuth) * np.cos(elevation),
                np.sin(elevation),
                np.cos(azimuth) * np.cos(elevation),
            ]
        )
        paths = np.linalg.norm(distance * direction - positions, axis=1)
        gain = 10 ** (snr_db / 20) * np.exp(2j * np.pi * random.uniform())
        field += gain * np.exp(2j * np.pi / wavelength * (distance - paths))
    heard = []
    for _ in range(n_codes):
        code = np.exp(2j * np.pi * random.integers(8, size=n_elements) / 8)
        noise = random.normal(size=(n_antennas, 2)) @ [1, 1j] / np.sqrt(2)
        heard.append(channel @ (code * field) + noise)
    return np.concatenate(heard)


def cpu_seconds(part: Callable[[], object]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    part()
    return time.process_time() - start


def measure(n_blocks: int, rounds: int) -> dict[str, float]:
    """Median CPU microseconds per scene of whole scenes and of each part of the floor."""
    keys = range(n_blocks)
    parts = {
        "scene": lambda: draw_blocks(SCENE, keys, SCENES_PER_BLOCK, "cpu", 0, "train", 0),
        **floor_parts(n_blocks),
    }
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds + N_WARM):
        for name, part in parts.items():
            seconds[name].append(cpu_seconds(part))
    n_scenes = n_blocks * SCENES_PER_BLOCK
    medians = {name: 1e6 * statistics.median(s[N_WARM:]) / n_scenes for name, s in seconds.items()}
    floor = sum(medians.values()) - medians["scene"]
    return {**medians, "floor": floor, "over_floor": medians["scene"] / floor}


def main() -> None:
    """Measures, prints a table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--rounds", type=int, default=300, help="turns, of which the median counts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    by_blocks = {n: measure(n, arguments.rounds) for n in BATCH_BLOCKS}
    random = np.random.default_rng(0)
    twin = 1e6 * statistics.median(cpu_seconds(lambda: numpy_scene(random)) for _ in range(100))
    headline = by_blocks[BATCH_BLOCKS[-1]]
    figures = {
        "over_floor": headline["over_floor"],
        "limit": LIMIT,
        "scenes_per_second": 1e6 / headline["scene"],
        "times_numpy_twin": twin / headline["scene"],
        "numpy_twin_us": twin,
        "us_per_scene_by_blocks": by_blocks,
        "scenes_per_block": SCENES_PER_BLOCK,
        "rounds": arguments.rounds,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    print("CPU microseconds per scene")
    print(f"{'blocks':>8}" + "".join(f"{name:>14}" for name in headline))
    for n_blocks, row in by_blocks.items():
        print(f"{n_blocks:>8}" + "".join(f"{value:14.3f}" for value in row.values()))
    print(
        f"over_floor {figures['over_floor']:.3f} (at most {LIMIT}), "
        f"{figures['scenes_per_second']:.0f} scenes per second, "
        f"{figures['times_numpy_twin']:.0f} times the numpy twin ({1e6 / twin:.0f} per second)"
    )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
