"""Recordings: how honest answers are, what a large file costs, and what a map of it saves.

    python benchmarks/recordings.py accuracy FILE.npz... --json accuracy.json
    python benchmarks/recordings.py size --n 100000 --json size.json
    python benchmarks/recordings.py reading --json reading.json

`accuracy` takes the labels out of files, has `python -m musicnet localize` answer, and holds the
answers against the labels. `size` has one file of many scenes localised in processes of their own,
once in peace and once interrupted and taken up again. `reading` compares, in turns, the CPU time of
a training batch's scenes from a map of a file with that of seeking each of them.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import recordings_size
import torch
from torch import Tensor

from musicnet.commands import localize
from musicnet.commands.positions_files import FORMAT
from musicnet.coordinates import angles, from_xyz, wrap_angle
from musicnet.estimation.bounds import position_bound
from musicnet.estimation.problem import compress
from musicnet.localization.confidence import assess
from musicnet.metrics.bound_ratios import OUTLIER_FACTOR
from musicnet.metrics.matching import match_by
from musicnet.recordings.observation_files import (
    ObservationFile,
    read_observations,
    write_observations,
)
from musicnet.recordings.stores import open_store
from musicnet.scene.snapshots import Observation
from musicnet.scene.sources import Sources

HONEST = (0.8, 1.25)
"""Between which the mean squared normalised error must lie, as far as its interval tells."""

_CAP_SHARE, _FAR_CAP = 0.6, 3.0  # of the farthest range, and of unit vectors: as elsewhere

Row = dict[str, Any]


def accuracy(path: Path, method: str) -> Row:
    """What the command answers to a file whose labels were taken out, beside the labels."""
    recording = read_observations(path)
    if recording.truth is None:
        raise ValueError(f"{path} has no labels to hold answers against.")
    with tempfile.TemporaryDirectory() as folder:
        hidden, answers = Path(folder) / path.name, Path(folder) / "answers.json"
        write_observations(hidden, replace(recording, truth=None))
        words = [str(hidden), "--method", method, "--output", str(answers)]
        started = time.process_time()
        if localize.run(words) != 0:
            raise ValueError(f"{path} could not be localised.")
        spent = time.process_time() - started
        tree = json.loads(answers.read_text(encoding="utf-8"))
    if tree["format"] != FORMAT:
        raise ValueError(f"the answers must be {FORMAT}: got {tree['format']}.")
    return {
        "file": path.name,
        "method": tree["scenes"][0]["sources"][0]["method"],
        **judged(tree["scenes"], recording),
        "cpu_ms_per_scene": 1e3 * spent / recording.n_scenes,
    }


def judged(scenes: Sequence[Row], recording: ObservationFile) -> Row:
    """Figures of answers, in the order of the scenes; the labels are those of the recording."""
    truth = recording.truth
    assert truth is not None
    xyz, std = (_numbers(scenes, prefix) for prefix in ("", "std_"))
    theirs = truth.xyz.double()
    distance = torch.linalg.vector_norm(theirs[:, :, None] - xyz[:, None], dim=-1)
    is_far = recording.field == "far"
    cap = _FAR_CAP if is_far else _CAP_SHARE * recording.range_m[1]
    found = match_by(distance, xyz.isfinite().all(-1), truth.resolved, cap)
    index = found.estimate_index.clamp_min(0)[..., None].expand(*theirs.shape)
    offset, spread = xyz.gather(1, index) - theirs, std.gather(1, index)
    error = torch.linalg.vector_norm(offset, dim=-1)
    near = found.matched & (error <= OUTLIER_FACTOR * _deviations(recording, truth))
    surprise = (offset / spread).square().masked_fill(~near[..., None], math.nan)
    surprise[spread == 0] = math.nan  # along what the region fixes
    if is_far:
        turned = wrap_angle(angles(from_xyz(xyz.gather(1, index)))[0] - angles(from_xyz(theirs))[0])
        error = turned.abs().rad2deg()
    n_right = sum(
        len([one for one in scene["sources"] if one["resolved"]]) == count
        for scene, count in zip(scenes, truth.n_sources.tolist(), strict=True)
    )
    return {
        "scenes": len(scenes),
        "count_right": n_right / len(scenes),
        "outliers": 1.0 - float(near.sum() / truth.resolved.sum()),
        "error": "azimuth_deg" if is_far else "position_m",
        "rmse": float(error[near].square().mean().sqrt()),
        "median": float(error[near].median()),
        "nees": float(surprise.nanmean()),
        "nees_interval": _interval(surprise),
        "nees_of_position": float((offset.square().sum(-1) / spread.square().sum(-1))[near].mean()),
    }


def _interval(surprise: Tensor, n_draws: int = 1000) -> list[float]:
    """Nineteen in twenty draws of as many scenes have a mean between these."""
    total, count = surprise.nansum((1, 2)), surprise.isfinite().sum((1, 2))
    shape, lot = (n_draws, len(surprise)), torch.Generator().manual_seed(0)
    drawn = torch.randint(len(surprise), shape, generator=lot)
    means = total[drawn].sum(-1) / count[drawn].sum(-1)
    return means.quantile(torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()


def _numbers(scenes: Sequence[Row], prefix: str) -> Tensor:
    most = max(len(scene["sources"]) for scene in scenes)
    numbers = torch.full((len(scenes), max(most, 1), 3), math.nan, dtype=torch.float64)
    for line, scene in zip(numbers, scenes, strict=True):
        for slot, source in zip(line, scene["sources"], strict=False):
            values = [source[f"{prefix}{axis}"] for axis in "xyz"]
            slot[:] = torch.tensor([math.nan if one is None else one for one in values])
    return numbers


def _deviations(recording: ObservationFile, truth: Sources) -> Tensor:
    """How far off noise alone puts an estimate: the likelihood's curvature at the truth."""
    found = torch.full(truth.resolved.shape, math.nan, dtype=torch.float64)
    for operator in set(recording.operator_index.tolist()):
        some = recording.operator_index == operator
        heard = Observation(
            recording.y[some],
            recording.operator[operator],
            recording.noise_power[some],
            recording.positions,
            recording.wavelength,
        )
        true = Sources(truth.parameters[some], truth.resolved[some])
        covariance = assess(compress(heard, recording.region), true).covariance
        bound = position_bound(true.parameters.double(), covariance.double())
        found[some] = bound.diagonal(dim1=-2, dim2=-1).sum(-1).sqrt()
    return found


def reading(folder: Path, n_scenes: int, n_batches: int) -> Iterator[Row]:
    """CPU time of 64 scenes of a file, mapped and sought, in turns."""
    import h5py

    y = np.random.default_rng(0).normal(size=(n_scenes, 50, 16)).astype(np.float32)
    y = y.view(np.complex64)
    np.savez(folder / "stored.npz", y=y)
    with h5py.File(folder / "contiguous.h5", "w") as file:
        file["y"] = y
    lot = np.random.default_rng(1)
    batches = [np.sort(lot.choice(n_scenes, 64, replace=False)).tolist() for _ in range(n_batches)]
    for path in sorted(folder.iterdir()):
        with open_store(path) as store:
            array = store.arrays["y"]
        ways: dict[str, Callable[[Sequence[int]], np.ndarray]] = {
            "mapped": array.lines,
            "sought": replace(array, mapped=None, pick=None).lines,
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for batch in batches:
            for name, take in ways.items():
                started = time.process_time()
                take(batch)
                times[name].append(time.process_time() - started)
        middle = {name: 1e6 * statistics.median(some) for name, some in times.items()}
        yield {
            "file": path.name,
            "megabytes": y.nbytes / 1e6,
            "mapped_us": middle["mapped"],
            "sought_us": middle["sought"],
            "sought_over_mapped": middle["sought"] / middle["mapped"],
        }


def main(words: Sequence[str] | None = None) -> int:
    """Measure one part; exit code 1 where a figure is out of its bounds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parts = parser.add_subparsers(dest="part", required=True)
    one = parts.add_parser("accuracy")
    one.add_argument("file", type=Path, nargs="+")
    one.add_argument("--method", default="auto")
    two = parts.add_parser("size")
    recordings_size.add_arguments(two)
    three = parts.add_parser("reading")
    three.add_argument("--n", type=int, default=20_000)
    three.add_argument("--batches", type=int, default=200)
    for part in (one, two, three):
        part.add_argument("--json", type=Path)
    given = parser.parse_args(words)
    is_good = True
    if given.part == "accuracy":
        rows = [accuracy(path, given.method) for path in given.file]
        intervals = [row["nees_interval"] for row in rows]
        is_good = all(HONEST[0] <= high and low <= HONEST[1] for low, high in intervals)
    elif given.part == "size":
        rows = [recordings_size.measure(given)]
        is_good = rows[0]["is_same_after_interruption"]
    else:
        with tempfile.TemporaryDirectory() as folder:
            rows = list(reading(Path(folder), given.n, given.batches))
    for row in rows:
        print(", ".join(f"{name} {_told(value)}" for name, value in row.items()))
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    return 0 if is_good else 1


def _told(value: object) -> str:
    if isinstance(value, list):
        return " to ".join(map(_told, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
