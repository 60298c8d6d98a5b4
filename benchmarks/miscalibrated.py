"""What calibration errors cost, and what a learned calibration wins back.

    python benchmarks/miscalibrated.py --json miscalibrated.json

A surface with a persistent unknown phase error of 10 degrees and elements off by 0.02 wavelengths
(`experiment=miscalibrated`). Calibrations are trained by the door, on simulated scenes and on
recordings of several lengths, then everybody localises fresh scenes of the same hardware: classical
methods with the steering of the drawing and with the true one, and the neural method with the
learned one; on other devices as well. `benchmarks/README.md` explains the columns. Exits with 1 if
a limit is missed.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from calibration_recordings import Campaign, record
from localizer_limits import Limit, verdict

from musicnet.commands.evaluate import finite
from musicnet.learning.checkpoint_weights import read_checkpoint
from musicnet.localization.contestants import (
    FROM_TRUTH,
    Contestant,
    Question,
    Reply,
    ask,
    from_truth,
    named,
    network_alone,
)
from musicnet.localization.evaluation import Cell, Plan, draw_cell, truth_of
from musicnet.localization.scores import Score, figures_of, joined, score
from musicnet.networks.calibration import Calibration
from musicnet.networks.pretrained import Pretrained
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import Observation

ROOT = Path(__file__).parents[1]
SEEDS = (9_601, 9_602)
CELLS = tuple(Cell(k, snr) for k in (1, 2, 3, 4) for snr in (0.0, 10.0, 20.0))
LENGTH_CELLS = (Cell(2, 20.0), Cell(2, 0.0))
"""Where it is measured how long a recording must be."""

CAMPAIGNS = (
    *(Campaign(n) for n in (8, 32, 128, 512)),
    *(Campaign(n, has_one_source=True) for n in (8, 32, 128)),
    *(
        Campaign(128, has_one_source=True, survey_m=error, is_told=is_told)
        for error in (0.01, 0.03, 0.05, 0.1)
        for is_told in (False, True)
    ),
)

PARTS = ("cells", "lengths", "devices")
DEVICES = (1, 2, 3)
"""Seeds of other hardware than the experiment's."""

_ALL = (1, 2, 3, 4)
_NOTED = Campaign(128, has_one_source=True, survey_m=0.05, is_told=True)
LIMITS = (
    # where the uncalibrated likelihood is several times off
    Limit(1, (2,), (20.0,), "efficiency", 2.0),
    Limit(1, (2,), (20.0,), "efficiency", 0.4, of=FROM_TRUTH),
    Limit(1, (2,), (20.0,), "efficiency", 2.0, judged=Campaign(32).name),
    Limit(1, (2,), (20.0,), "efficiency", 2.0, judged=Campaign(32, has_one_source=True).name),
    Limit(1, (2,), (20.0,), "efficiency", 1.2, judged=_NOTED.name),
    Limit(3, (2,), (20.0,), "nees_xyz", 1.4, low=0.8, judged=_NOTED.name),
    Limit(2, _ALL, (0.0, 10.0, 20.0), "efficiency", 1.2),
    Limit(2, _ALL, (10.0, 20.0), "efficiency", 1.0, of="nomp"),
    Limit(2, _ALL, (0.0, 10.0, 20.0), "outliers", 0.01),
    Limit(3, _ALL, (10.0, 20.0), "nees_xyz", 1.3, low=0.8),
)

_COLUMNS = ("median", "efficiency", "outliers", "nees_xyz")


def train(words: list[str], runs: Path) -> tuple[Pretrained, float]:
    """Trains by the door; the weights, and the seconds that it took."""
    before = set(runs.glob("*/*"))
    quiet = ("trainer.enable_progress_bar=false", "trainer.enable_model_summary=false")
    command = [
        sys.executable,
        "train.py",
        "experiment=miscalibrated",
        "trainer=cpu",
        *quiet,
        *words,
    ]
    started = time.monotonic()
    ended = subprocess.run(
        [*command, f"trainer.default_root_dir={runs}"],
        cwd=ROOT,
        check=False,
        stdout=subprocess.DEVNULL,
    )
    if ended.returncode:
        raise SystemExit(ended.returncode)
    (run,) = set(runs.glob("*/*")) - before
    return read_checkpoint(run / "checkpoints" / "last.ckpt"), time.monotonic() - started


def true_calibration(scene: Scene) -> Calibration:
    """The calibration that nobody knows."""
    if scene.imperfections is None:
        raise ValueError("the scene must have imperfections: got none.")
    positions = scene.positions()
    errors = scene.imperfections.draw(positions, scene.wavelength_m, scene.n_receivers, 1, [])
    known = Calibration(scene.n_elements).requires_grad_(requires_grad=False)
    known.phase.copy_(errors.response[0, 0].angle())
    known.log_gain.copy_(errors.response[0, 0].abs().log())
    known.displacement.copy_(errors.displacement[0, 0] * (2.0 * math.pi / scene.wavelength_m))
    return known


def with_steering(
    calibrated: Callable[[Observation], Observation], answer: Callable[[Question], Reply]
) -> Contestant:
    """A classical method that is told another steering."""
    return Contestant(
        lambda question: answer(replace(question, observation=calibrated(question.observation)))
    )


def with_weights(pretrained: Pretrained) -> Contestant:
    """The neural method with other weights."""
    return Contestant(lambda question: named("neural")(replace(question, pretrained=pretrained)))


def contestants(pretrained: Pretrained) -> dict[str, Contestant]:
    """Who takes part in every cell."""
    oracle = true_calibration(pretrained.scene)
    learned = pretrained.network.calibrated
    return {
        "nomp": Contestant(named("nomp")),
        FROM_TRUTH: Contestant(from_truth),
        "net": Contestant(network_alone),
        "neural": Contestant(named("neural")),
        "nomp, learned": with_steering(learned, named("nomp")),
        "nomp, true": with_steering(oracle, named("nomp")),
        "from truth, true": with_steering(oracle, from_truth),
    }


def evaluate(pretrained: Pretrained, cell: Cell, plan: Plan) -> Iterator[dict[str, Any]]:
    """Has everybody answer the scenes of one cell; the bound is that of the true steering."""
    oracle = true_calibration(pretrained.scene)
    parts: dict[str, list[Score]] = {name: [] for name in plan.contestants}
    for blocks in draw_cell(pretrained.scene, cell, plan):
        heard = blocks.observation
        truth = truth_of(replace(blocks, observation=oracle(heard)), pretrained.scene)
        question = Question(heard, cell.n_sources, pretrained.scene, pretrained, blocks.truth)
        for name, contestant in plan.contestants.items():
            started = time.process_time()
            reply = ask(contestant, question)
            parts[name].append(score(reply, truth, 1e3 * (time.process_time() - started)))
    n_scenes = plan.channels_per_seed * len(plan.seeds) * plan.scenes_per_channel
    for name, some in parts.items():
        figures = figures_of(joined(some), truth.error, n_scenes, plan.n_draws)
        yield {"n_sources": cell.n_sources, "snr_db": cell.snr_db, "method": name, **figures}


def measure(pretrained: Pretrained, cells: tuple[Cell, ...], plan: Plan) -> list[dict[str, Any]]:
    """Rows of all cells, printed; those of the judged method with its limits."""
    rows = []
    print(f"{'K':>2}{'dB':>4}  {'method':<32}" + "".join(f"{name:>12}" for name in _COLUMNS))
    for cell in cells:
        new = {row["method"]: row for row in evaluate(pretrained, cell, plan)}
        for method, row in new.items():
            numbers = "".join(f"{row[name]:>12.4f}" for name in _COLUMNS if row[name] is not None)
            print(f"{cell.n_sources:>2}{cell.snr_db:>4g}  {method:<32}{numbers}", flush=True)
        known = tuple(limit for limit in LIMITS if limit.judged in new)
        asked = verdict(new, known)
        for limit in asked["limits"] or ():
            said = "holds" if limit["holds"] else "FAILS"
            print(f"      {said}  item {limit['item']}: {limit['limit']}", flush=True)
        new["neural"] |= asked
        rows += new.values()
    return rows


def main() -> int:
    """Trains, measures, prints tables and writes the figures."""
    arguments = _parser().parse_args()
    torch.set_num_threads(1)
    sizes: dict[str, Any] = {"n_scenes": arguments.n_scenes, "seeds": SEEDS}
    words, campaigns, cells = [], CAMPAIGNS, CELLS
    if arguments.quick:
        sizes |= {"n_scenes": 32, "scenes_per_channel": 8, "n_draws": 50}
        words, campaigns = ["trainer.max_epochs=1"], CAMPAIGNS[1:2]
        cells = LENGTH_CELLS[:1]
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        pretrained, seconds = train(words, runs)
        print(f"experiment=miscalibrated took {seconds:.0f} s")
        plan, rows, times = partial(Plan, **sizes), [], {"neural": seconds}
        everybody = contestants(pretrained)
        if "cells" in arguments.parts:
            rows += measure(pretrained, cells, plan(contestants=everybody))
        entrants = {name: everybody[name] for name in ("nomp", FROM_TRUTH, "neural")}
        for campaign in campaigns if "lengths" in arguments.parts else ():
            recording = runs / "calibration.npz"
            record(campaign, pretrained.scene, recording)
            told = campaign.survey_m if campaign.is_told else 0.0
            given = (f"data.init_args.path={recording}", f"model.init_args.place_error_m={told}")
            trained, times[campaign.name] = train([*words, "data=recorded", *given], runs)
            entrants[campaign.name] = with_weights(trained)
        if "lengths" in arguments.parts:
            print("by the length of the calibration recording")
            rows += measure(pretrained, LENGTH_CELLS, plan(contestants=entrants))
        for device in DEVICES if "devices" in arguments.parts and not arguments.quick else ():
            seed = f"scene.imperfections.seed={device}"
            other, times[seed] = train([*words, seed], runs)
            print(f"another device, {seed}")
            everybody = contestants(other)
            new = measure(other, LENGTH_CELLS[:1], plan(contestants=everybody))
            rows += [{**row, "device": device} for row in new]
    kept = [limit["holds"] for row in rows for limit in row.get("limits") or ()]
    print(f"{sum(kept)} of {len(kept)} limits hold")
    figures = {"seeds": SEEDS, "is_quick": arguments.quick, "train_s": times, "rows": rows}
    if arguments.json is not None:
        content = json.dumps(finite(figures), indent=2, allow_nan=False)
        arguments.json.write_text(content + "\n", encoding="utf-8")
    return 0 if all(kept) or arguments.quick else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--n-scenes", type=int, default=1024, help="of each cell, of all seeds")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="few scenes: does it run at all?")
    return parser


if __name__ == "__main__":
    sys.exit(main())
