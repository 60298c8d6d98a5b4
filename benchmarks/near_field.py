"""The near field of the neural peers, by their own measures: angle, range and place, cell by cell.

    python benchmarks/near_field.py --weights near_ula --json near_field.json

The setting of NF-SubspaceNet and DCD-MUSIC (arXiv 2504.00599): 15 sensors half a wavelength apart,
sources from 8 to 48 m, off any grid; "in phase" is what they call coherent, one waveform copied
without a phase of its own. Waves are exact here, theirs follow Fresnel's approximation. SNR is per
source and sensor. ``angle`` is the root mean square over all sources, modulo 180 degrees;
``range`` is the mean over scenes of the root mean square within the scene, ``place`` the mean
distance; sources are told apart by the assignment of least distance. A missing source counts as 90
degrees, and in metres as the width of the law: nothing is filled in.

``settled`` is `multistart` with its ranges settled as the network's are, which is no learning:
what is left between it and `neural` is what the network and its search do.
"""

import argparse
import json
import sys
import time
from itertools import permutations, product
from pathlib import Path
from typing import Any

import torch
from lines import trial_of
from torch import Tensor
from trials import Drawn, Symbols, Trial, draw

from musicnet.commands.evaluate import find_network
from musicnet.coordinates import angles
from musicnet.estimation.problem import compress
from musicnet.estimation.range_mean import settle_ranges
from musicnet.localization.confidence import filled
from musicnet.localization.contestants import Reply
from musicnet.localization.estimates import Estimates
from musicnet.localization.estimator import localize
from musicnet.localization.scores import Truth, score
from musicnet.networks.pretrained import Pretrained
from musicnet.scene.sources import Sources

METHODS = ("neural", "settled", "multistart", "nomp", "music")
SEED = 9_403
_AT_ONCE = 500
_MISSING_DEG = 90.0


def answers_of(method: str, pretrained: Pretrained, trial: Trial, heard: Drawn) -> Sources:
    """What one method says."""

    def asked(name: str) -> Estimates:
        return localize(
            heard.observation, name, trial.n_sources, region=trial.region, pretrained=pretrained
        )

    if method != "settled":
        return asked(method).sources
    given = asked("multistart")
    problem = compress(heard.observation, trial.region)
    range_m = pretrained.scene.sources.range_m
    if range_m is None:
        return given.sources
    parameters, present = filled(problem, given.sources)
    known = problem.flatten(given.covariance)
    moved = settle_ranges(problem, parameters, present, known, range_m)[0]
    moved = problem.unflatten(moved).masked_fill(~given.sources.resolved[..., None], torch.nan)
    return Sources(moved, given.sources.resolved)


def errors(found: Sources, truth: Sources, most_m: float) -> dict[str, Tensor]:
    """Squared errors of every source, (scene, source), by the assignment of least distance."""
    kinds: dict[str, list[Tensor]] = {name: [] for name in ("angle", "range", "place")}
    there, here = truth.parameters[0].double(), found.parameters[0].double()
    xyz, found_xyz = truth.xyz[0].double(), found.xyz[0].double()
    for order in permutations(range(there.shape[1])):
        turned = (angles(here[:, order])[0] - angles(there)[0]).rad2deg()
        wrapped = torch.remainder(turned + 90.0, 180.0) - 90.0
        beside = here[:, order, 2].reciprocal() - there[..., 2].reciprocal()
        place = (found_xyz[:, order] - xyz).norm(dim=-1)
        for name, error, worst in (
            ("angle", wrapped, _MISSING_DEG),
            ("range", beside, most_m),
            ("place", place, most_m),
        ):
            kinds[name].append(error.square().nan_to_num(worst**2))
    stacked = {name: torch.stack(of_kind) for name, of_kind in kinds.items()}
    best = stacked["place"].sum(-1).argmin(0)[None, :, None]
    return {name: of_kind.take_along_dim(best, dim=0)[0] for name, of_kind in stacked.items()}


def row_of(method: str, pretrained: Pretrained, trial: Trial, drawn: Drawn) -> dict[str, Any]:
    """Figures of one method in one cell."""
    parts: dict[str, list[Tensor]] = {name: [] for name in ("angle", "range", "place", "outlier")}
    nearest, farthest = trial.range_m or (0.0, 0.0)
    cpu_ms, n_resolved = 0.0, 0
    for heard in drawn.batches(_AT_ONCE):
        start = time.process_time()
        found = answers_of(method, pretrained, trial, heard)
        cpu_ms += 1e3 * (time.process_time() - start)
        n_resolved += int(found.resolved.sum())
        for name, squared in errors(found, heard.truth, farthest - nearest).items():
            parts[name].append(squared)
        truth = Truth(heard.truth, heard.bound, pretrained.scene.sources)
        parts["outlier"].append(score(Reply(found), truth, 0.0).is_outlier.flatten().double())
    whole = {name: torch.cat(some) for name, some in parts.items()}
    return {
        "method": method,
        "angle_rmse_deg": float(whole["angle"].mean().sqrt()),
        "range_m": _within_scenes(whole["range"]),
        "place_m": float(whole["place"].sqrt().mean()),
        "outliers": float(whole["outlier"].mean()),
        "resolved": n_resolved / drawn.truth.resolved.numel(),
        "cpu_ms_per_scene": cpu_ms / drawn.n_scenes,
    }


def _within_scenes(squared: Tensor) -> float:
    """Mean over scenes of the root mean square within each."""
    return float(squared.mean(-1).sqrt().mean())


def main() -> int:
    """Measures and prints all cells."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="near_ula", metavar="NAME|FILE")
    parser.add_argument("--sources", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--snapshots", type=int, nargs="+", default=[100, 10])
    parser.add_argument("--snr-db", type=float, nargs="+", default=[20.0, 10.0, 0.0])
    parser.add_argument("--n-scenes", type=int, default=1000, help="of each cell")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--json", type=Path, help="where the figures go")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        pretrained = find_network(arguments.weights)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        "K symbols       T  SNR method      angle deg  range m  place m  outliers  resolved    ms"
    )
    kinds: tuple[Symbols, ...] = ("incoherent", "in phase")
    rows = []
    cells = product(arguments.sources, kinds, arguments.snapshots, arguments.snr_db)
    for n_sources, symbols, n_snapshots, snr_db in cells:
        trial = trial_of(pretrained, n_sources, symbols, n_snapshots, snr_db)
        drawn = draw(trial, arguments.n_scenes, arguments.seed)
        for method in METHODS:
            row = row_of(method, pretrained, trial, drawn)
            cell = f"{n_sources} {symbols:<10} {n_snapshots:>4} {snr_db:>4g} {method:<10}"
            line = f"{cell}  {row['angle_rmse_deg']:9.4f} {row['range_m']:8.4f}"
            line += f" {row['place_m']:8.4f} {row['outliers']:9.4f} {row['resolved']:9.4f}"
            print(f"{line} {row['cpu_ms_per_scene']:7.3f}", flush=True)
            known = {"n_sources": n_sources, "symbols": symbols, "n_snapshots": n_snapshots}
            rows.append({**known, "snr_db": snr_db, "n_scenes": drawn.n_scenes, **row})
    if arguments.json is not None:
        figures = {"weights": pretrained.name, "seed": arguments.seed, "rows": rows}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
