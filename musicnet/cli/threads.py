"""How many threads of the processor share the work of a run.

The last bits of a sum depend on how it was shared out, so that a run keeps its number: it is in its
checkpoints, and whoever goes on from one computes with as many.
"""

import os
from collections.abc import Mapping
from typing import Any

import torch

from musicnet.cli.refusals import ConfigurationError
from musicnet.gate.run_state import threads_of
from musicnet.processors import THREADS_VARIABLE, usable_processors

AUTO = "auto"
_UNREASONABLE = 1024  # some thousands more, and the process cannot be made
_MOST = 8  # a step is made of products so small that more threads would only wake each other up


def settle_threads(
    wanted: int | str, devices: Any, checkpoint: Mapping[str, Any] | None = None
) -> None:
    """Let torch compute with as many threads as a run shall have.

    Args:
        wanted: "auto", or a number. Automatic is what the environment variable OMP_NUM_THREADS
            says, if that is a number, else the number that the checkpoint was saved with, else all
            processors that this process may use, shared among the processes of the run.
        devices: as the trainer is given them.
        checkpoint: that the run goes on from; None begins anew.

    Raises:
        ConfigurationError: no number of threads.
    """
    if isinstance(wanted, int) and not 1 <= wanted <= _UNREASONABLE:
        raise ConfigurationError(
            f"threads must be 'auto' or from 1 to {_UNREASONABLE}: got {wanted}."
        )
    told = os.environ.get(THREADS_VARIABLE, "").partition(",")[0].strip()
    if isinstance(wanted, int):
        n_threads = wanted
    elif told.isdecimal() and 1 <= int(told) <= _UNREASONABLE:
        n_threads = int(told)
    else:
        saved = None if checkpoint is None else threads_of(checkpoint)
        n_threads = saved or max(1, min(usable_processors(), _MOST) // _n_processes(devices))
    torch.set_num_threads(n_threads)


def _n_processes(devices: Any) -> int:
    """Processes that the trainer makes of a number, a list, or the number as text."""
    if isinstance(devices, list):
        return len(devices)
    number = int(devices) if str(devices).isdigit() else torch.cuda.device_count()
    return max(1, number)
