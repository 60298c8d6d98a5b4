"""Sends real runs two signals in a row at drawn moments: exit code, whole file, same end."""

import argparse
import signal
import tempfile
import time
from pathlib import Path

from fault_runs import KINDS, TINY, Process, Reference, Tally, drawn, reference, run_folders

from musicnet.gate.checkpoint_files import LAST, DamagedCheckpointError, read_checkpoint_file
from musicnet.gate.leaving import SIGNALS
from musicnet.records.run_outcome import has_ended

_TRIES = 5
_LONGEST_PAUSE = 0.05
"""Seconds from the first signal to the second, at most."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this campaign alone."""
    parser.set_defaults(n=40)
    parser.add_argument("--kinds", type=int, default=len(KINDS), help="kinds of data and loaders")
    parser.add_argument("--keep", type=Path, help="folder for all runs (default: a temporary one)")


def run(options: argparse.Namespace) -> Tally:
    """Signal `n` runs twice each, the four signals in turn, and take every one up again."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as temporary:
        home = options.keep or Path(temporary)
        home.mkdir(parents=True, exist_ok=True)
        kinds = list(KINDS)[: options.kinds]
        whole = [
            reference((*TINY, *KINDS[kind]), home / f"whole {number}")
            for number, kind in enumerate(kinds)
        ]
        for number in range(options.n):
            signum = SIGNALS[number % len(SIGNALS)]
            # each kind of loader meets each signal
            one = whole[(number // len(SIGNALS) + number) % len(whole)]
            faults = _signalled(one, home / f"run {number}", options.seed, signum)
            tally.count("signals", faults, f"{signum.name}, run {number}")
    return tally


def _signalled(whole: Reference, root: Path, seed: int, signum: signal.Signals) -> list[str]:
    """Send a run a signal twice, and tell what was not as it should be."""
    lots = drawn(seed, root.name)
    said = root.with_suffix(".txt")
    for turn in range(_TRIES):
        here = root / str(turn)
        words = [*whole.words, f"trainer.default_root_dir={here}", "resume=auto"]
        process = Process(words, said)
        process.wait_for_folder()
        moment = process.cpu_seconds() + lots.uniform(0, whole.ended - whole.began)
        if process.wait_for_cpu(moment):
            process.send(signum)
            time.sleep(lots.uniform(0, _LONGEST_PAUSE))
            process.send(signum)
        exit_code = process.wait()
        if any(map(has_ended, run_folders(here))):
            continue  # it came to its end before the signal: another run
        faults = [] if exit_code == 128 + signum else [f"exit code {exit_code}"]
        (folder,) = run_folders(here)
        try:
            read_checkpoint_file(folder / "checkpoints" / LAST)
        except (OSError, DamagedCheckpointError) as error:
            faults.append(str(error))
        exit_code = Process(words, said).wait()
        return [f"{fault} (said in {said})" for fault in (*faults, *whole.faults(here, exit_code))]
    return ["no signal came before the end of a run: no fault, no proof"]
