"""One fit of what was built, and the exit codes of its ends.

An end that was to be expected comes back; what the user can mend is a refusal in one line.
"""

import errno
import logging
import os
import shutil
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException

from musicnet.cli.music_cli import MusicCLI
from musicnet.cli.refusals import ConfigurationError, one_line
from musicnet.gate.leaving import LeftOnSignalError
from musicnet.gate.step_gate import GateStuckError

BAD_INPUT = 1
GATE_STUCK = 5
ENDED_BY_SIGNAL = 128
"""Exit codes beside 0 and those of a verdict (3 and 4); to the last, a signal adds its number."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

logger = logging.getLogger(__name__)


def fit(cli: MusicCLI, folder: Path) -> BaseException | None:
    """Train.

    Args:
        cli: what was built.
        folder: of the run; it is gone again where a run is refused before it has trained.

    Returns:
        What ended it before its time, if that was to be expected: a stuck gate, or a signal.

    Raises:
        ConfigurationError: the configuration is at fault, or the disk is full.
    """
    if cli.taken_up is not None and cli.taken_up.checkpoint is None:
        # what it did before its first checkpoint is done again
        for name in ("metrics.jsonl", "train.log"):
            (folder / name).unlink(missing_ok=True)
    try:
        cli.trainer.fit(
            cli.model, datamodule=cli.datamodule, ckpt_path=cli.checkpoint, weights_only=True
        )
    except (ValueError, TypeError, MisconfigurationException) as error:
        # Before anything was trained, only the configuration can be the cause.
        has_trained = cli.watch is None or cli.watch.has_trained
        if has_trained and not isinstance(error, ConfigurationError | MisconfigurationException):
            raise
        if cli.trainer.is_global_zero and not has_trained and cli.taken_up is None:
            shutil.rmtree(folder)
        logger.debug("refused", exc_info=error)
        raise ConfigurationError(one_line(error)) from error
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise ConfigurationError(
            f"the run needs room for its files: got {os.strerror(error.errno)} in {folder}. What "
            "was saved before is whole: make room, and go on with resume=auto."
        ) from error
    except (GateStuckError, LeftOnSignalError) as error:
        return error
    return None
