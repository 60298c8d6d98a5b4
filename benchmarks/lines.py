"""Lines of sensors, cell by cell: is a trained network better than the best classical method?

    python benchmarks/lines.py --weights ula --json lines.json
    python benchmarks/lines.py --weights near_ula --snapshots 50 100 --json near_lines.json

One row per number of sources, symbols, number of snapshots and signal-to-noise ratio, all sources
equally loud. Scenes are those of `trials.py`, not of the simulator that trains; all methods hear
the same ones, batch by batch in turn, and are told the number of sources. Root mean square error,
median and outliers of `neural` are held against those of `nomp` (greedy pursuit and maximum
likelihood) and of `multistart`, with 95 % intervals over scenes; ``cpu`` is the ratio of CPU times.
In the near field errors are distances in space, and count for 30 m at most. Limits are those of
`line_limits.py`.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from line_limits import limits_of
from localizer_limits import verdict
from torch import Tensor
from trials import Drawn, Symbols, Trial, draw

from musicnet.learning.checkpoint_weights import find_network
from musicnet.localization.contestants import Reply
from musicnet.localization.estimator import localize
from musicnet.localization.scores import Truth, score
from musicnet.metrics.intervals import channel_interval
from musicnet.networks.pretrained import Pretrained
from musicnet.scene.sources import Sources

METHODS = ("neural", "nomp", "multistart")
JUDGED = METHODS[0]
SEED = 9_401
_SCENES_AT_ONCE = 500
_MOST_ERROR_M = 30.0


@dataclass(frozen=True)
class Given:
    """What a method said about all scenes of a cell.

    Args:
        error: of each source; metres or degrees.
        is_outlier: beyond four times the root of the bound's trace.
        cpu_ms: of all scenes.
    """

    error: Tensor
    is_outlier: Tensor
    cpu_ms: float

    def rmse(self, scenes: Tensor) -> float:
        """Root mean square error of some scenes."""
        return float(self.error[scenes].square().mean().sqrt())

    def median(self, scenes: Tensor) -> float:
        """Median error of some scenes."""
        return float(self.error[scenes].median())

    def outliers(self, scenes: Tensor) -> float:
        """Share of outliers of some scenes."""
        return float(self.is_outlier[scenes].double().mean())


def trial_of(
    pretrained: Pretrained,
    n_sources: int,
    symbols: Symbols,
    n_snapshots: int,
    snr_db: float,
    sector_deg: float | None = None,
) -> Trial:
    """Scenes like those that the network was trained on, but all of one kind."""
    scene, law = pretrained.scene, pretrained.scene.sources
    return Trial(
        name="line",
        array=scene.array,
        n_sources=n_sources,
        snr_db=(snr_db, snr_db),
        symbols=symbols,
        n_snapshots=n_snapshots,
        wavelength=scene.wavelength_m,
        azimuth_deg=law.azimuth_deg if sector_deg is None else (-sector_deg, sector_deg),
        elevation_deg=law.elevation_deg,
        range_m=law.range_m,
        separation_deg=law.min_separation_deg,
    )


def ask(pretrained: Pretrained, trial: Trial, drawn: Drawn) -> dict[str, Given]:
    """Has all methods answer, batch by batch in turn."""
    parts: dict[str, list[Given]] = {method: [] for method in METHODS}
    for batch in drawn.batches(_SCENES_AT_ONCE):
        truth = Truth(batch.truth, batch.bound, pretrained.scene.sources)
        for method in METHODS:
            start = time.process_time()
            found = localize(
                batch.observation,
                method,
                trial.n_sources,
                region=trial.region,
                pretrained=pretrained,
            )
            cpu_ms = 1e3 * (time.process_time() - start)
            reply = Reply(Sources(found.sources.parameters, found.sources.resolved))
            said = score(reply, truth, cpu_ms)
            shape = (-1, trial.n_sources)
            error = said.error.reshape(shape).nan_to_num(_MOST_ERROR_M)
            outlier = said.is_outlier.reshape(shape)
            parts[method].append(Given(error.clamp_max(_most(trial)), outlier, cpu_ms))
    return {
        method: Given(
            torch.cat([one.error for one in some]),
            torch.cat([one.is_outlier for one in some]),
            sum(one.cpu_ms for one in some),
        )
        for method, some in parts.items()
    }


def rows_of(trial: Trial, given: dict[str, Given]) -> list[dict[str, Any]]:
    """Figures of one cell, one row per method; those of the network say whether limits hold."""
    n_scenes = len(given[JUDGED].error)
    everything = torch.arange(n_scenes)
    rows = {
        method: {
            "n_sources": trial.n_sources,
            "symbols": trial.symbols,
            "n_snapshots": trial.n_snapshots,
            "snr_db": trial.snr_db[0],
            "n_scenes": n_scenes,
            "method": method,
            "rmse": one.rmse(everything),
            "median": one.median(everything),
            "outliers": one.outliers(everything),
            "cpu_ms_per_scene": one.cpu_ms / n_scenes,
        }
        for method, one in given.items()
    }
    for rival in METHODS[1:]:
        rows[JUDGED] |= compared(given[JUDGED], given[rival], rival)
    rows[JUDGED] |= verdict(rows, limits_of(trial))
    return list(rows.values())


def compared(judged: Given, other: Given, name: str) -> dict[str, Any]:
    """One method beside another that heard the same scenes, with paired intervals."""
    n_scenes = len(judged.error)
    statistics = {
        f"rmse_over_{name}": lambda some: judged.rmse(some) / other.rmse(some),
        f"median_over_{name}": lambda some: judged.median(some) / other.median(some),
        f"outliers_less_{name}": lambda some: judged.outliers(some) - other.outliers(some),
    }
    figures: dict[str, Any] = {f"cpu_over_{name}": judged.cpu_ms / other.cpu_ms}
    for column, statistic in statistics.items():
        figures[column] = statistic(torch.arange(n_scenes))
        figures[f"{column}_interval"] = list(channel_interval(statistic, n_scenes))
    return figures


def print_rows(rows: list[dict[str, Any]]) -> None:
    """One line of the table for each whom the network is held against."""
    judged = rows[0]
    cell = f"{judged['n_sources']} {judged['symbols']:<10} {judged['n_snapshots']:>4}"
    cell += f" {judged['snr_db']:>4g}"
    for row in rows[1:]:
        name = row["method"]
        line = f"{cell} {name:<10}"
        for column in (f"rmse_over_{name}", f"median_over_{name}", f"outliers_less_{name}"):
            low, high = judged[f"{column}_interval"]
            line += f"  {judged[column]:7.4f} [{low:7.4f}, {high:7.4f}]"
        line += f" {judged[f'cpu_over_{name}']:5.2f} | {row['rmse']:8.4f} {row['median']:8.4f}"
        print(f"{line} {row['outliers']:6.4f} {row['cpu_ms_per_scene']:6.3f}")
    for limit in judged["limits"] or ():
        if not limit["holds"]:
            print(f"{cell} MISSED: {limit['limit']}")
    sys.stdout.flush()


def main() -> int:
    """Measures and prints all cells."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="ula", metavar="NAME|FILE", help="default: ula")
    parser.add_argument("--sources", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--snapshots", type=int, nargs="+", default=[10, 50, 200])
    parser.add_argument("--snr-db", type=float, nargs="+", default=[-5.0, 0.0, 5.0, 10.0, 20.0])
    parser.add_argument(
        "--sector-deg", type=float, help="largest azimuth; default: the trained one"
    )
    parser.add_argument("--n-scenes", type=int, default=2000, help="of each cell")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--json", type=Path, help="where the figures go")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        pretrained = find_network(arguments.weights)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    heads = "".join(f"  {name:>7} [95 %]          " for name in ("rmse /", "median /", "out -"))
    print(f"K symbols       T  SNR rival     {heads}  cpu |  rival's rmse median outliers ms")
    rows = []
    kinds: tuple[Symbols, ...] = ("incoherent", "coherent")
    cells = product(arguments.sources, kinds, arguments.snapshots, arguments.snr_db)
    for n_sources, symbols, n_snapshots, snr_db in cells:
        if n_sources == 1 and symbols == "coherent":  # one source has nothing to agree with
            continue
        trial = trial_of(pretrained, n_sources, symbols, n_snapshots, snr_db, arguments.sector_deg)
        drawn = draw(trial, arguments.n_scenes, arguments.seed)
        rows += (of_cell := rows_of(trial, ask(pretrained, trial, drawn)))
        print_rows(of_cell)
    judged = [row for row in rows if row.get("limits")]
    print(f"limits hold in {sum(row['holds'] for row in judged)} of {len(judged)} cells")
    if arguments.json is not None:
        figures = {"weights": pretrained.name, "seed": arguments.seed, "rows": rows}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


def _most(trial: Trial) -> float:
    """Beyond it an error is no worse: metres in the near field, degrees in the far field."""
    return 180.0 if trial.range_m is None else _MOST_ERROR_M


if __name__ == "__main__":
    sys.exit(main())
