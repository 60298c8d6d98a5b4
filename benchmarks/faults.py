"""Breaks runs and files on purpose, and counts what survives.

    python benchmarks/faults.py resume --n 100 --chains 5 --json resume.json
    python benchmarks/faults.py signals --n 40 --json signals.json
    python benchmarks/faults.py writing --json writing.json
    python benchmarks/faults.py silent --json silent.json

Every campaign proves that it did the damage, ends with its figure on the last line, and with exit
code 1 on any miss. One entry of `CAMPAIGNS` is one more subcommand.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

CAMPAIGNS = {
    "resume": ("fault_resume", "kill -9 of a real train.py, then resume=auto: is it the same run?"),
    "signals": ("fault_signals", "TERM, INT, HUP and USR1, two in a row: does it save and leave?"),
    "writing": ("fault_writing", "kills while saving, full disks, damaged files"),
    "silent": ("fault_silent", "silent faults in real runs: is the right code the first finding?"),
}
"""Subcommand -> module that has `add_arguments(parser)` and `run(options) -> Tally`, and a line."""


def main(argv: Sequence[str]) -> int:
    """Run one campaign.

    Args:
        argv: the subcommand and its arguments.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="campaign", required=True)
    runs: dict[str, Callable[[argparse.Namespace], Any]] = {}
    chosen = [word for word in argv if word in CAMPAIGNS]
    for name, (module, line) in CAMPAIGNS.items():
        command = commands.add_parser(name, help=line, description=line)
        command.add_argument("--n", type=int, help="how many faults (default: the full campaign)")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--json", type=Path, help="where the figures go")
        if name in chosen:
            campaign = import_module(module)
            campaign.add_arguments(command)
            runs[name] = campaign.run
    options = parser.parse_args(argv)
    began = time.monotonic()
    tally = runs[options.campaign](options)
    record = {
        "campaign": options.campaign,
        "command": " ".join(["python", "benchmarks/faults.py", *argv]),
        "seed": options.seed,
        "figures": tally.figures,
        "misses": tally.misses,
        "seconds": round(time.monotonic() - began, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if options.json is not None:
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for miss in tally.misses:
        print(f"miss: {miss}")
    print(f"{options.campaign}: {tally.line()}")
    return 1 if tally.misses or not tally.figures else 0


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)  # a process that is forked has no threads but its own, and would wait
    sys.exit(main(sys.argv[1:]))
