"""The doors' common part: one tree of configuration in, a trained run and an exit code out.

`train.py` composes the tree with Hydra, `python -m musicnet` reads it from a file and the command
line; both build and run it here, so that a run replays through either.
"""

from musicnet.cli.console import console
from musicnet.cli.fitting import BAD_INPUT, ENDED_BY_SIGNAL
from musicnet.cli.further_ranks import fit_as_further_rank
from musicnet.cli.music_cli import MusicCLI, Verb
from musicnet.cli.objective import Objective
from musicnet.cli.refusals import ConfigurationError, nearest
from musicnet.cli.runs import (
    Outcome,
    launch_environment,
    run_verb,
)
from musicnet.cli.schema import check_switched_off, fault_in_tree

__all__ = [
    "BAD_INPUT",
    "ENDED_BY_SIGNAL",
    "ConfigurationError",
    "MusicCLI",
    "Objective",
    "Outcome",
    "Verb",
    "check_switched_off",
    "console",
    "fault_in_tree",
    "fit_as_further_rank",
    "launch_environment",
    "nearest",
    "run_verb",
]
