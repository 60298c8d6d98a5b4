"""Kills real runs by SIGKILL at drawn moments, takes them up, and compares the ends."""

import argparse
import shutil
import signal
import tempfile
from pathlib import Path

from fault_runs import KINDS, TINY, Process, Reference, Tally, drawn, reference, run_folders

from musicnet.records.run_outcome import has_ended

_FRESH_EVERY = 10
"""One kill in so many is of an interpreter of its own."""
_TRIES = 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this campaign alone."""
    parser.set_defaults(n=100)
    parser.add_argument("--chains", type=int, default=5, help="runs that are killed five times")
    parser.add_argument("--kinds", type=int, default=len(KINDS), help="kinds of data and loaders")
    parser.add_argument("--keep", type=Path, help="folder for all runs (default: a temporary one)")


def run(options: argparse.Namespace) -> Tally:
    """Kill `n` runs once and `chains` runs five times; each shall end as if nothing had been."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as temporary:
        home = options.keep or Path(temporary)
        home.mkdir(parents=True, exist_ok=True)
        kinds = list(KINDS)[: options.kinds]
        whole = {
            kind: reference((*TINY, *KINDS[kind]), home / f"whole {number}")
            for number, kind in enumerate(kinds)
        }
        for number in range(options.n):
            kind = kinds[number % len(kinds)]
            faults = _killed(whole[kind], home / f"run {number}", options.seed, number, kills=1)
            tally.count("resume", faults, f"{kind}, run {number}")
        for number in range(options.chains):
            kind = kinds[number % len(kinds)]
            faults = _killed(whole[kind], home / f"chain {number}", options.seed, number, kills=5)
            tally.count("chains of five kills", faults, f"{kind}, chain {number}")
    return tally


def _killed(whole: Reference, root: Path, seed: int, number: int, kills: int) -> list[str]:
    """Kill a run so often, take it up, and tell how its end differs."""
    lots = drawn(seed, root.name)
    said = root.with_suffix(".txt")
    words = [*whole.words, f"trainer.default_root_dir={root}", "resume=auto"]
    fresh = number % _FRESH_EVERY == 0 and kills == 1
    done = tries = 0
    while done < kills:
        tries += 1
        if tries > kills + _TRIES:
            return [f"only {done} of {kills} kills were made: no fault, no proof"]
        process = Process(words, said, fresh=fresh)
        if done == 0:
            process.wait_for_folder()
            start = process.cpu_seconds()
        else:
            start = whole.began  # the folder is there already; getting to it costs the same again
        # a chain's kills share the way, or the first one would leave nothing to kill
        moment = start + lots.uniform(0, (whole.ended - whole.began) / kills)
        if process.wait_for_cpu(moment):
            process.send(signal.SIGKILL)
        ended = any(map(has_ended, run_folders(root)))
        if process.wait() == -signal.SIGKILL and not ended:
            done += 1
        elif ended:  # it came to its end before the kill: all over again
            shutil.rmtree(root)
            done = 0
    process = Process(words, said, fresh=fresh)
    exit_code = process.wait()
    return [f"{fault} (said in {said})" for fault in whole.faults(root, exit_code)]
