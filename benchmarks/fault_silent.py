"""Campaign `silent`: every silent fault of the doctor's catalogue, and healthy runs beside them.

The rows are those of `silent_faults.py`.
"""

import argparse
import logging
import tempfile
import warnings

import torch
from fault_runs import Tally
from planted import FAULTS
from silent_faults import healthy_rows, plant_and_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this campaign alone is told."""
    parser.add_argument("--only", nargs="*", help="codes, or healthy; default: all")


def run(options: argparse.Namespace) -> Tally:
    """Plant each fault once in each of its modules, then train healthy runs.

    Args:
        options: `--n` bounds the faults, and the healthy runs, by their order; `--seed` is theirs.

    Returns:
        Faults named first within the first tenth of the run, and healthy runs without an alarm.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("callbacks").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    tally, only = Tally(), options.only
    wanted = [key for key in FAULTS if not only or key[0] in only]
    for code, subject in wanted[: options.n]:
        with tempfile.TemporaryDirectory() as folder:
            row = plant_and_run(code, subject, folder, seed=options.seed)
        wrong = [] if row["is_first"] else [f"found {row['all']}, not seen {row['unseen']}"]
        tally.count("faults", wrong, f"{code} in {subject}")
    if not only or "healthy" in only:
        for number, row in enumerate(healthy_rows()):
            tally.count("healthy runs", row["alarms"], row["run"])
            if number + 1 == options.n:
                break
    return tally
