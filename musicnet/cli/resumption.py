"""Which run is taken up again, and from which checkpoint.

The word after `resume` and the configuration come in; a locked run folder goes out, or one line
why there is none.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musicnet.cli.refusals import ConfigurationError
from musicnet.cli.trained_weights import differences
from musicnet.gate.checkpoint_files import last_whole
from musicnet.records.atomic_files import sweep_leftovers
from musicnet.records.provenance import Provenance, collect_provenance, hash_config, read_provenance
from musicnet.records.run_lock import FolderTakenError, RunLock
from musicnet.records.run_outcome import has_ended, unfinished_runs

AUTO = "auto"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """What a run must be to be taken up.

    Args:
        experiment: its name.
        config: the resolved configuration.
        start: the checkpoint that it went on from when it began; None began anew.
    """

    experiment: str
    config: Mapping[str, Any]
    start: Path | None = None


@dataclass(frozen=True)
class TakenUp:
    """A run that goes on in its own folder.

    Args:
        folder: of the run.
        origin: its provenance.
        checkpoint: to go on from; None where it was broken off before its first one.
        lock: keeps every other process out of the folder.
    """

    folder: Path
    origin: Provenance
    checkpoint: Path | None
    lock: RunLock

    @property
    def start(self) -> Path | None:
        """The checkpoint that it went on from when it began; None began anew."""
        return None if self.origin.ckpt_path is None else Path(self.origin.ckpt_path)


def take_up(word: str, root: Path, wanted: Wanted) -> TakenUp | None:
    """Choose the run, and lock it.

    Args:
        word: "auto" for the newest run of the experiment that was broken off, was started with this
            configuration, from this checkpoint if any, and is nobody's now; else a run folder.
        root: of all runs.
        wanted: what it must be.

    Returns:
        None where "auto" finds no such run: then a new one begins.

    Raises:
        ConfigurationError: the folder that was named cannot be taken up.
    """
    if word != AUTO:
        return _named(Path(word), wanted)
    for folder, origin in _candidates(root, wanted):
        try:
            lock = RunLock(folder)
        except FolderTakenError:
            logger.info("resume=auto passes over %s, where another process is at work", folder)
            continue
        if has_ended(folder):  # in the meantime
            lock.release()
            continue
        return _taken(folder, origin, lock)
    logger.info(
        "resume=auto finds no unfinished run of %s as configured: a new one", wanted.experiment
    )
    return None


def _candidates(root: Path, wanted: Wanted) -> Iterator[tuple[Path, Provenance]]:
    config_hash, start = hash_config(wanted.config), _text(wanted.start)
    for run, origin in unfinished_runs(root / wanted.experiment):
        if origin.config_hash == config_hash and origin.ckpt_path == start:
            yield run, origin


def _named(folder: Path, wanted: Wanted) -> TakenUp:
    try:
        origin = read_provenance(folder)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"resume must be 'auto' or the folder of a run: got {folder}, which has no provenance."
        ) from error
    if has_ended(folder):
        raise ConfigurationError(
            f"resume takes up a run that was broken off: got {folder}, which came to its end. "
            "Go on from its checkpoints/last.ckpt with ckpt_path, in a new folder."
        )
    if wanted.start is not None and origin.ckpt_path != _text(wanted.start):
        raise ConfigurationError(
            f"resume takes a run up from where it was: got ckpt_path={wanted.start} beside "
            f"{folder}, which began {_told(origin.ckpt_path)}. Leave ckpt_path out."
        )
    if origin.config_hash != hash_config(wanted.config):
        raise ConfigurationError(
            f"resume takes a run up with the configuration that it was started with: got {folder}, "
            "which has another one. Give the words of its start, or use its config.yaml."
        )
    try:
        lock = RunLock(folder)
    except FolderTakenError as error:
        raise ConfigurationError(str(error)) from error
    return _taken(folder, origin, lock)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _told(ckpt_path: str | None) -> str:
    return "anew" if ckpt_path is None else f"with {ckpt_path}"


def _taken(folder: Path, origin: Provenance, lock: RunLock) -> TakenUp:
    try:
        return TakenUp(folder, origin, _last_checkpoint(folder, origin), lock)
    except BaseException:
        lock.release()
        raise


def _last_checkpoint(folder: Path, origin: Provenance) -> Path | None:
    """Where to go on from, after a look at what else the broken-off run has left."""
    for leftover in sweep_leftovers(folder):
        logger.info("removed %s, left by a writer that was killed", leftover.name)
    checkpoint = last_whole(folder / "checkpoints")
    logger.info("resume: run %s in %s, from %s", origin.run_id, folder, checkpoint or "its start")
    now = collect_provenance(code_folder=Path(__file__).parent)
    changed = differences(
        {"versions": origin.versions, "git_commit": origin.git_commit},
        {"versions": now.versions, "git_commit": now.git_commit},
    )
    if changed:
        logger.warning(
            "the run goes on with other %s than it was started with: its numbers need not be those "
            "of a run that was never broken off",
            ", ".join(changed),
        )
    return checkpoint
