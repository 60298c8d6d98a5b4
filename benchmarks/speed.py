"""What methods cost by themselves: item 6, and how it grows with sensors, sources and grid."""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from scenarios import line
from trials import Trial, draw

from musicnet.estimation.covariance import sample_covariance
from musicnet.estimation.polynomial import root_music
from musicnet.estimation.rotation import esprit
from musicnet.estimation.search import music_beams, search
from musicnet.estimation.spectrum import SearchGrid
from musicnet.localization import localize

LIMITS_MS = {"esprit": 0.03, "root-music": 0.12, "music": 0.12}
"""Of the estimators alone: 8 sensors, 2 sources, 100 snapshots; from snapshots to directions."""

_N_SENSORS = (8, 16, 32, 64, 128, 256)
_N_SOURCES = (1, 2, 3, 4, 6)
_CELLS_PER_SENSOR = (6, 12, 24, 48)
_USUAL_CELLS = 12


def measure_eigh(rounds: int = 7) -> float:
    """CPU milliseconds of one complex64 64 x 64 eigendecomposition in a batch."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn((32, 64, 64), generator=generator, dtype=torch.complex64)
    matrices = root @ root.mH
    torch.linalg.eigh(matrices)
    return _cpu_ms(lambda: torch.linalg.eigh(matrices), rounds) / len(matrices)


def speed_rows(factor: float, *, is_quick: bool) -> Iterator[dict[str, Any]]:
    """Rows of the table of times.

    Args:
        factor: this machine's eigendecomposition over that where the limits were set.
        is_quick: few sizes.

    Yields:
        One row per size and method; the first ones are bound by limits.
    """
    rounds = 1 if is_quick else 5
    for n_sensors in _N_SENSORS[:2] if is_quick else _N_SENSORS:
        yield from _size_rows(n_sensors, 2, _USUAL_CELLS, tuple(LIMITS_MS), factor, rounds)
    for n_sources in () if is_quick else _N_SOURCES:
        yield from _size_rows(8, n_sources, _USUAL_CELLS, tuple(LIMITS_MS), None, rounds)
    for cells in () if is_quick else _CELLS_PER_SENSOR:
        yield from _size_rows(8, 2, cells, ("music",), None, rounds)


def _size_rows(
    n_sensors: int,
    n_sources: int,
    cells_per_sensor: int,
    methods: tuple[str, ...],
    factor: float | None,
    rounds: int,
) -> Iterator[dict[str, Any]]:
    trial = line(n_sensors, n_sources, 10.0, "incoherent", 100)
    if n_sources > 3:  # six sources 15 degrees apart would leave no choice
        trial = Trial(**{**vars(trial), "separation_deg": 8.0})
    n_scenes = max(8, 4096 // n_sensors)
    observation = draw(trial, n_scenes).observation
    grid = SearchGrid.over(trial.region, 1, cells_per_sensor * n_sensors, 1)

    def alone(method: str) -> Callable[[], object]:
        def run() -> object:
            covariance = sample_covariance(observation.y[0])
            if method == "esprit":
                return esprit(covariance, n_sources)
            if method == "root-music":
                return root_music(covariance, n_sources)
            beams = music_beams(covariance, n_sources)
            return search(beams, grid, n_sources, observation.positions, observation.wavelength)

        return run

    for method in methods:
        whole = lambda: localize(observation, method, n_sources, region=trial.region)  # noqa: B023, E731
        cpu_ms = _cpu_ms(alone(method), rounds) / n_scenes
        with_error_bars = _cpu_ms(whole, rounds) / n_scenes
        bound = factor is not None and n_sensors == 8
        limit = LIMITS_MS[method] * factor if bound and factor is not None else None
        searched = f", {grid.n_cells} cells" if method == "music" else ""
        yield {
            "item": 6,
            "scenario": f"ULA {n_sensors}, K={n_sources}, T=100{searched}",
            "method": method,
            "n_sensors": n_sensors,
            "n_sources": n_sources,
            "n_cells": grid.n_cells if method == "music" else None,
            "n_scenes": n_scenes,
            "cpu_ms_per_scene": cpu_ms,
            "localize_cpu_ms_per_scene": with_error_bars,
            "limits": None if limit is None else {"cpu_ms_per_scene": [None, limit]},
            "holds": None if limit is None else cpu_ms <= limit,
        }


def _cpu_ms(part: Callable[[], object], rounds: int) -> float:
    """Median CPU time of a call, after one that does not count."""
    part()
    times = []
    for _ in range(rounds):
        start = time.process_time()
        part()
        times.append(1e3 * (time.process_time() - start))
    return statistics.median(times)
