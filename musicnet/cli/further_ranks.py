"""Fits as a further rank of a run that another process has begun.

The environment that the first rank has left comes in; an exit code goes out. What all ranks refuse
the first one says for all of them.
"""

import os
import sys
import time
from pathlib import Path

from musicnet.cli.fitting import BAD_INPUT
from musicnet.cli.refusals import ConfigurationError
from musicnet.cli.runs import FOLDER, inherited_cli, run_verb

_PATIENCE_S = 3.0  # ranks refuse a run at about the same time; Lightning kills them all after 5


def fit_as_further_rank() -> int | None:
    """Fit with the process that has started this one.

    Returns:
        The exit code; None where this process is nobody's further rank.
    """
    first_rank = os.getppid()
    try:
        cli = inherited_cli()
        return None if cli is None else run_verb(cli).exit_code
    except ConfigurationError as error:
        if not _speaks_for_all(first_rank, Path(os.environ[FOLDER])):
            sys.stderr.write(f"error: rank {os.environ['LOCAL_RANK']}: {error}\n")
        return BAD_INPUT


def _speaks_for_all(first_rank: int, folder: Path) -> bool:
    """Whether the first rank has refused the run as well, and so has said why."""
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        if os.getppid() != first_rank or not folder.exists():
            return True
        time.sleep(0.05)
    return False
