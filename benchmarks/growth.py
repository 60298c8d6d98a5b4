"""How the cost of the neural method grows with the surface and with the batch, stage by stage."""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from musicnet.estimation.dictionary import adapted_grid
from musicnet.estimation.problem import compress
from musicnet.localization import localize
from musicnet.networks.neural_music import NetworkSettings, NeuralMusic
from musicnet.networks.pretrained import Pretrained
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import Observation, draw_blocks
from musicnet.scene.sources import SourceLaw
from musicnet.scene.surface import Surface

SIDES = (8, 12, 16, 32)
BATCHES = (1, 32, 256, 1024, 4096)
N_SOURCES = 4
SNR_DB = 10.0
SCENES_PER_CHANNEL = 32

MOST_BYTES = 4e9
MOST_SECONDS = 30.0
"""Of one call; what is estimated to need more is skipped, and says so."""

_CELLS = NetworkSettings()
_ROUNDS = 3
_LONG = 1.0  # second


def growth_rows(*, is_quick: bool) -> Iterator[dict[str, Any]]:
    """Rows of the table; networks are untrained: their work is that of trained ones.

    Args:
        is_quick: few sizes.

    Yields:
        One row per side and batch.
    """
    for side in SIDES[:1] if is_quick else SIDES:
        pretrained = untrained(side)
        before: dict[str, Any] | None = None
        for batch in BATCHES[:2] if is_quick else BATCHES:
            row = _size_row(pretrained, side, batch, before)
            if row["skipped"] is None:
                before = row
            yield row


def untrained(side: int) -> Pretrained:
    """A network for a square surface, as fine as the aperture can see.

    Rows are twice the elements, as in the default task, and ranges grow with the square of the
    side, so that they stay as deep in the near field.
    """
    scale = side / 8
    law = SourceLaw(
        n_min=N_SOURCES,
        n_max=N_SOURCES,
        snr_db=(SNR_DB, SNR_DB),
        range_m=(0.5 * scale**2, 5.0 * scale**2),
    )
    surface = Surface(n_antennas=side, n_codes=2 * side)
    scene = Scene(ArrayGeometry(side, side), law, surface=surface)
    torch.manual_seed(0)
    cells = {name: round(scale * getattr(_CELLS, name)) for name in ("n_v", "n_u")}
    network = NeuralMusic(scene, replace(_CELLS, **cells)).eval()
    return Pretrained(f"untrained {side}x{side}", network, scene, {})


def _size_row(
    pretrained: Pretrained, side: int, batch: int, before: dict[str, Any] | None
) -> dict[str, Any]:
    scene = pretrained.scene
    n_channels = math.ceil(batch / SCENES_PER_CHANNEL)
    row: dict[str, Any] = {
        "side": side,
        "n_elements": scene.n_elements,
        "n_rows": scene.n_rows,
        "n_cells": pretrained.network.grid.n_cells,
        "batch": batch,
        "n_channels": n_channels,
        "skipped": _too_much(pretrained, batch, n_channels, before),
    }
    if row["skipped"] is not None:
        return row
    heard, _ = draw_blocks(
        scene, range(n_channels), math.ceil(batch / n_channels), "cpu", 0, "test, growth", 0
    )
    stages = _stage_times(pretrained, heard)
    per_scene = {f"{name}_ms": 1e3 * seconds / batch for name, seconds in stages.items()}
    named = {name: per_scene[f"{name}_ms"] for name in stages if name != "whole"}
    row |= {"cpu_ms_per_scene": per_scene.pop("whole_ms"), **per_scene}
    return row | {"dominates": max(named, key=named.__getitem__)}


def _stage_times(pretrained: Pretrained, heard: Observation) -> dict[str, float]:
    """CPU seconds of image, network, peaks and all; what is left over is the refinement."""
    network = pretrained.network
    with torch.no_grad():
        image = network.image(heard)
        spectrum = network.spectrum(image)
        seconds = {
            "image": _cpu_seconds(lambda: network.image(heard)),
            "network": _cpu_seconds(lambda: network.spectrum(image)),
            "peaks": _cpu_seconds(lambda: network.decode(spectrum)),
            "whole": _cpu_seconds(lambda: _localize(pretrained, heard)),
        }
    parts = sum(seconds[name] for name in ("image", "network", "peaks"))
    return seconds | {"refinement": max(0.0, seconds["whole"] - parts)}


def _localize(pretrained: Pretrained, heard: Observation) -> object:
    region = pretrained.scene.region
    return localize(heard, "neural", N_SOURCES, region=region, pretrained=pretrained)


def _cpu_seconds(part: Callable[[], object]) -> float:
    """Median CPU time of a few calls, the first left out; of the first alone where it is long."""
    times: list[float] = []
    while len(times) <= _ROUNDS and (not times or times[0] < _LONG):
        start = time.process_time()
        part()
        times.append(time.process_time() - start)
    return statistics.median(times[1:] or times)


def _too_much(
    pretrained: Pretrained, batch: int, n_channels: int, before: dict[str, Any] | None
) -> str | None:
    """Why a size is skipped; None if it is not."""
    needed = _bytes_needed(pretrained, batch, n_channels)
    if needed > MOST_BYTES:
        return f"needs about {needed / 1e9:.0f} GB at once"
    if before is not None:
        # scenes of the first channel cost little beside its dictionary
        seconds = 1e-3 * before["cpu_ms_per_scene"] * before["batch"]
        seconds *= n_channels / before["n_channels"]
        if seconds > MOST_SECONDS:
            return f"would take about {seconds:.0f} s"
    return None


def _bytes_needed(pretrained: Pretrained, batch: int, n_channels: int) -> float:
    """Operator and dictionary of every channel, maps and features of every scene."""
    scene, network = pretrained.scene, pretrained.network
    one, _ = draw_blocks(scene, [0], 1, "cpu", 0, "test, growth", 0)
    n_kept = min(scene.n_rows, scene.n_elements)
    dictionary = adapted_grid(compress(one, scene.region)).n_cells * n_kept * 2
    operator = 2 * scene.n_rows * scene.n_elements + 4 * scene.n_elements**2
    # once in the making, once for good
    per_channel = 2 * (dictionary + operator)
    grid = network.grid
    n_features = grid.n_v * grid.n_u * 4 * _CELLS.n_channels
    # planes of the image, complex fields and offsets of every cell
    per_scene = 12 * grid.n_cells + n_features
    return 4.0 * (n_channels * per_channel + batch * per_scene)
