"""Does the doctor name the reason? Every silent failure, planted in real training runs.

`python benchmarks/silent_faults.py --json FILE` plants each fault of the catalogue in a plain
classifier and in a small MusicNet, breaks the run off after its first tenth and asks for the first
finding; then it trains healthy runs of many kinds and counts false alarms. Exit code 1 where a bar
is missed.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from healthy import healthy_runs
from lightning.pytorch import Callback, Trainer, seed_everything
from planted import EPOCHS, FAULTS, LONG, Planted
from torch.multiprocessing import ProcessRaisedException

from callbacks import RunDoctor
from musicnet.diagnosis.findings import alarms
from musicnet.diagnosis.saved import read_diagnosis


def quiet() -> dict[str, Any]:
    """A trainer that says and leaves nothing."""
    return {
        "accelerator": "cpu",
        "max_epochs": EPOCHS,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": -1,
    }


class FirstTenth(Callback):
    """Breaks a run off after the first tenth of its epochs."""

    def on_train_epoch_end(self, trainer: Trainer, *_: object) -> None:
        """Ask the trainer to stop."""
        if 10 * (trainer.current_epoch + 1) >= (trainer.max_epochs or 0):
            trainer.should_stop = True


def run(planted: Planted, folder: str | Path) -> RunDoctor:
    """Train under the doctor's eyes, to whatever end.

    Args:
        planted: what to train.
        folder: for files.

    Returns:
        The doctor, who has seen it all.
    """
    doctor = RunDoctor()
    settings = {**quiet(), "default_root_dir": folder, **planted.trainer}
    trainer = Trainer(callbacks=[doctor, *planted.callbacks], **settings)
    try:
        trainer.fit(planted.module, planted.train, planted.val, datamodule=planted.data)
    except (RuntimeError, ValueError, ProcessRaisedException) as error:
        logging.getLogger(__name__).info("ended by %s", error)
    if "strategy" in planted.trainer:
        # the ranks were processes of their own; the first has left what it found
        left = read_diagnosis(folder)
        doctor.findings, doctor.evidence = list(left.findings), left.evidence
        doctor.judgement = left.judgement
    return doctor


def plant_and_run(code: str, subject: str, folder: str | Path, seed: int = 0) -> dict[str, Any]:
    """One row of the campaign."""
    seed_everything(seed, verbose=False)
    started = time.perf_counter()
    planted = FAULTS[code, subject]()
    planted.trainer = {"max_epochs": LONG, **planted.trainer}
    planted.callbacks.append(FirstTenth())
    doctor = run(planted, folder)
    found = alarms(doctor.findings)
    planned = doctor.evidence.length.planned_steps
    right = next((one for one in found if one.code == code), None)
    return {
        "code": code,
        "subject": subject,
        "first": found[0].code if found else None,
        "all": [one.code for one in found],
        "is_first": bool(found) and found[0].code == code,
        "batches": doctor.evidence.length.batches,
        "step": None if right is None else right.step,
        "planned": planned,
        "evidence": "" if right is None else right.evidence,
        "verdict": None if doctor.judgement is None else doctor.judgement.outcome,
        "unseen": list(doctor.evidence.unseen),
        "seconds": round(time.perf_counter() - started, 2),
    }


def healthy_rows() -> Iterator[dict[str, Any]]:
    """One row for each healthy run, printed as it comes."""
    for seed, (name, build) in enumerate(healthy_runs()):
        seed_everything(seed, verbose=False)
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            doctor = run(build(), folder)
        found = [one.line() for one in alarms(doctor.findings)]
        losses = doctor.evidence.losses
        row = {
            "run": name,
            "seed": seed,
            "alarms": found,
            "verdict": None if doctor.judgement is None else doctor.judgement.outcome,
            "loss_first": losses.first,
            "loss_last": losses.last,
            "deals": [asdict(one) for one in doctor.evidence.deals],
            "motion": asdict(doctor.evidence.motion),
            "unseen": list(doctor.evidence.unseen),
            "seconds": round(time.perf_counter() - started, 2),
        }
        mark = "ALARM" if found else "quiet"
        print(
            f"{mark} {name:<28} {row['seconds']:.1f} s  {row['verdict']}  {found} {row['unseen']}"
        )
        yield row


def main() -> int:
    """Print the tables, write the JSON file, and say whether the bars are met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    parser.add_argument("--only", nargs="*", help="codes, or healthy; default: all")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("callbacks").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)

    rows = []
    for code, subject in FAULTS:
        if arguments.only and code not in arguments.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            row = plant_and_run(code, subject, folder)
        rows.append(row)
        mark = "ok  " if row["is_first"] else "MISS"
        print(
            f"{mark} {code:<20} {subject:<10} step {row['step']} of {row['planned']}  "
            f"{row['seconds']:.1f} s  {row['all']} {'' if row['is_first'] else row['unseen']}"
        )
    healthy = [] if arguments.only and "healthy" not in arguments.only else list(healthy_rows())
    right = sum(row["is_first"] for row in rows)
    quiet_runs = sum(not row["alarms"] for row in healthy)
    print(f"{right} of {len(rows)} named first; {quiet_runs} of {len(healthy)} healthy runs quiet")
    if arguments.json:
        tree = {"faults": rows, "healthy": healthy}
        arguments.json.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
    return 0 if right == len(rows) and quiet_runs == len(healthy) else 1


if __name__ == "__main__":
    sys.exit(main())
