"""Runs what was built: folder, provenance, trainer, verdict, exit code.

A MusicCLI comes in; an Outcome goes out. Other ranks of a distributed fit get tree and folder
through the environment, since Lightning starts them with the command line of the first.
"""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed

from musicnet.cli.fitting import BAD_INPUT, ENDED_BY_SIGNAL, GATE_STUCK, fit
from musicnet.cli.music_cli import MusicCLI
from musicnet.cli.objective import find
from musicnet.cli.preflight import Trial, tried
from musicnet.cli.refusals import ConfigurationError
from musicnet.diagnosis.verdict import EXIT_CODES, Verdict
from musicnet.gate.leaving import LeftOnSignalError, leave_requests
from musicnet.gate.step_gate import GateStuckError
from musicnet.learning.data import RecordedData
from musicnet.processors import THREADS_VARIABLE
from musicnet.records.atomic_files import open_atomically
from musicnet.records.provenance import collect_provenance
from musicnet.records.run_outcome import write_outcome
from musicnet.scene.sources import Sources

_TREE, FOLDER, _CHECKPOINT = "MUSICNET_TREE", "MUSICNET_RUN_FOLDER", "MUSICNET_CHECKPOINT"
_LAUNCH_VARIABLES = (
    *("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("PL_GLOBAL_SEED", "PL_SEED_WORKERS", THREADS_VARIABLE, _TREE, FOLDER, _CHECKPOINT),
)


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Args:
        exit_code: 0 done, 3 verdict fail, 4 verdict unknown, or none where one was asked for,
            5 gate stuck, 128 + n signal n.
        objective: last value of the objective's metric; None unless a fit came to its end.
    """

    exit_code: int
    objective: float | None = None


def run_verb(cli: MusicCLI) -> Outcome:
    """Fit, validate, test or predict.

    Args:
        cli: what was built.

    Returns:
        How it ended; an expected end is no exception.
    """
    with _closing(cli):
        if cli.verb == "fit":
            return _fit(cli)
        # The checkpoint was read and compared with the model when the model was built.
        answer = getattr(cli.trainer, cli.verb)(
            cli.model, datamodule=cli.datamodule, ckpt_path=cli.checkpoint, weights_only=True
        )
        if cli.verb == "predict":
            _keep_predictions(cli, answer)
        return Outcome(exit_code=0)


def inherited_cli() -> MusicCLI | None:
    """What this process shall fit if it is a further rank of another's run, else None."""
    if os.environ.get("LOCAL_RANK", "0") == "0" or _TREE not in os.environ:
        return None
    checkpoint = os.environ.get(_CHECKPOINT)
    return MusicCLI(
        json.loads(os.environ[_TREE]),
        run_folder=Path(os.environ[FOLDER]),
        checkpoint=Path(checkpoint) if checkpoint else None,
    )


@contextmanager
def launch_environment() -> Iterator[None]:
    """Leave the process as it was found, so that a sweep's next job can launch ranks of its own."""
    before = {name: os.environ.get(name) for name in _LAUNCH_VARIABLES}
    n_threads = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        torch.set_num_threads(n_threads)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _fit(cli: MusicCLI) -> Outcome:
    folder = Path(cli.trainer.default_root_dir)
    is_first_rank = cli.trainer.is_global_zero
    os.environ[_TREE], os.environ[FOLDER] = json.dumps(cli.config_dump), str(folder)
    os.environ[_CHECKPOINT] = str(cli.checkpoint or "")
    os.environ[THREADS_VARIABLE] = str(torch.get_num_threads())  # or Lightning would change it
    with leave_requests() as requests:
        if is_first_rank and cli.taken_up is None:
            _write_provenance(cli)
        trial = tried(cli, requests) if is_first_rank else None
        if trial is not None and trial.exit_code != 0:
            return _unfit(cli, trial)
        if cli.savepoints is not None:
            cli.savepoints.requests = requests
        ended_by = fit(cli, folder)
        with _last_lines(cli):
            try:
                outcome = _outcome(cli, ended_by)
            except ConfigurationError:
                _note_end(cli, BAD_INPUT)
                raise
            if not isinstance(ended_by, LeftOnSignalError):
                _note_end(cli, outcome.exit_code)
            if is_first_rank and (verdict := _verdict(cli)) is not None:
                logger.info(_summary(verdict))
            if is_first_rank:
                logger.info("run: %s", os.path.relpath(folder))
    # Anything but 0 makes Lightning kill the first rank before it has spoken.
    return outcome if is_first_rank else Outcome(exit_code=0)


def _unfit(cli: MusicCLI, trial: Trial) -> Outcome:
    """The end of a run that its preflight has kept from training."""
    if isinstance(trial.ended_by, LeftOnSignalError):
        logger.error("%s in the preflight: go on with resume=auto", trial.ended_by)
        return Outcome(exit_code=trial.exit_code)
    cli.keep_config()
    _note_end(cli, trial.exit_code)
    logger.info("run: %s", os.path.relpath(cli.trainer.default_root_dir))
    return Outcome(exit_code=trial.exit_code)


@contextmanager
def _closing(cli: MusicCLI) -> Iterator[None]:
    """Let others have the folder when the run has done with it."""
    try:
        yield
    finally:
        cli.release()


def _note_end(cli: MusicCLI, exit_code: int) -> None:
    """There is nothing left to take up."""
    if cli.trainer.is_global_zero:
        write_outcome(cli.trainer.default_root_dir, run_id=cli.run_id, exit_code=exit_code)


@contextmanager
def _last_lines(cli: MusicCLI) -> Iterator[None]:
    """Copy what is logged into the run's log as well, which ends with the trainer's work."""
    path = Path(cli.trainer.default_root_dir) / "train.log"
    if not (cli.trainer.is_global_zero and path.exists()):
        yield
        return
    handler = logging.FileHandler(path, encoding="utf-8")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def _outcome(cli: MusicCLI, ended_by: BaseException | None) -> Outcome:
    if isinstance(ended_by, GateStuckError):
        logger.error("stuck: %s", ended_by)
        return Outcome(exit_code=GATE_STUCK)
    if isinstance(ended_by, LeftOnSignalError):
        logger.error("%s; all is in checkpoints/last.ckpt: go on with resume=auto", ended_by)
        return Outcome(exit_code=ENDED_BY_SIGNAL + ended_by.signum)
    return _ended(cli)


def _write_provenance(cli: MusicCLI) -> None:
    data = cli.datamodule
    collect_provenance(
        cli.config_dump,
        run_id=cli.run_id,
        data_hash=data.recording.sha256 if isinstance(data, RecordedData) else None,
        device=str(cli.trainer.strategy.root_device),
        threads=torch.get_num_threads(),
        ckpt_path=cli.start,
        code_folder=Path(__file__).parent,
    ).write(cli.trainer.default_root_dir)


def _keep_predictions(cli: MusicCLI, batches: list[Sources]) -> None:
    """Leave `predictions.npz` in a folder of its own: where the sources of each scene are."""
    _write_provenance(cli)
    path = Path(cli.trainer.default_root_dir) / "predictions.npz"
    with open_atomically(path) as file:
        np.savez(
            file,
            xyz_m=torch.cat([batch.xyz for batch in batches]).cpu().numpy(),
            resolved=torch.cat([batch.resolved for batch in batches]).cpu().numpy(),
        )
    logger.info("predictions: %s", os.path.relpath(path))


def _ended(cli: MusicCLI) -> Outcome:
    verdict, objective = _verdict(cli), cli.config_init["objective"]
    exit_code = 0 if verdict is None else verdict.exit_code
    if verdict is None and _is_verdict_asked(cli):
        logger.error("verdict: none; the run has ended without one, so nothing is known")
        exit_code = EXIT_CODES["unknown"]
    value = None
    try:
        if objective is not None:
            value = find(cli.trainer, "objective.metric", objective.metric)
    except ConfigurationError as error:
        if verdict is None:
            raise
        logger.error("error: %s", error)  # a verdict stands, whatever else was asked for
    return Outcome(exit_code, value)


def _is_verdict_asked(cli: MusicCLI) -> bool:
    """Whether a callback should have judged this run."""
    overfits = cli.trainer.overfit_batches > 0  # type: ignore[attr-defined]
    judges = (entry for entry in cli.trainer.callbacks if hasattr(entry, "verdict"))  # type: ignore[attr-defined]
    return any(overfits or getattr(judge, "when", "always") == "always" for judge in judges)


def _verdict(cli: MusicCLI) -> Verdict | None:
    """What a callback has judged, if one has."""
    found = (getattr(callback, "verdict", None) for callback in cli.trainer.callbacks)  # type: ignore[attr-defined]
    return next((entry for entry in found if isinstance(entry, Verdict)), None)


def _summary(verdict: Verdict) -> str:
    """One line; all reasons stand above, where the verdict was given."""
    numbers = {
        "recall {:.3f}": verdict.recall,
        "median error {:.4f} m": verdict.median_error_m,
        "loss {:.4g} at first": verdict.loss_first,
        "{:.4g} at last": verdict.loss_last,
        "{:.1f} s": verdict.seconds,
    }
    told = ", ".join(form.format(value) for form, value in numbers.items() if value is not None)
    because = f": {verdict.reasons[0]}" if verdict.reasons else ""
    return f"verdict: {verdict.verdict} ({told}){because}"
