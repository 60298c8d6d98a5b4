"""`preflight=true`: does this model memorise a few batches? Before anything is trained.

A built run comes in; a Trial goes out, and leaves its record in `preflight/` of the run's folder.
What is tried is built a second time, from the same configuration and with the same weights, so that
nothing of the run itself is touched; random numbers are put back.
"""

import gc
import logging
import math
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from typing_extensions import override

from musicnet.cli.console import quiet
from musicnet.cli.fitting import ENDED_BY_SIGNAL, GATE_STUCK, fit
from musicnet.cli.music_cli import MusicCLI
from musicnet.cli.preflight_bounds import PreflightBounds
from musicnet.cli.refusals import ConfigurationError
from musicnet.diagnosis.findings import Finding, alarms
from musicnet.diagnosis.run_files import PREFLIGHT_NAME
from musicnet.diagnosis.verdict import Verdict
from musicnet.gate.gated_module import GatedModule
from musicnet.gate.leaving import LeaveRequests, LeftOnSignalError
from musicnet.gate.step_gate import GateStuckError
from musicnet.learning.batches import PlannedData
from musicnet.records.provenance import collect_provenance

_LOOKS = 10
"""Validations on the way, at most: each may find that the loss has fallen far enough."""
_PROMISING = 0.1
"""Share of the first loss that must be gone when its seconds are over, for training to begin."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """How a preflight ended.

    Args:
        verdict: on what was tried.
        findings: what a doctor has found, causes first.
        ended_by: what ended it before its time.
        ran_out: whether its seconds were over.
        seconds: that it took.
    """

    verdict: Verdict
    findings: tuple[Finding, ...] = ()
    ended_by: BaseException | None = None
    ran_out: bool = False
    seconds: float = 0.0

    @property
    def was_falling(self) -> bool:
        """Whether only its seconds kept it from a verdict, and nothing speaks against the model."""
        first, last = self.verdict.loss_first, self.verdict.loss_last
        if not self.ran_out or self.ended_by is not None or first is None or last is None:
            return False
        fell = _has_fallen(first, last, _PROMISING)
        return fell and not any(finding.severity == "error" for finding in self.findings)

    @property
    def exit_code(self) -> int:
        """0 where training may begin; else what a run would have ended with."""
        if self.was_falling:
            return 0
        if isinstance(self.ended_by, LeftOnSignalError):
            return ENDED_BY_SIGNAL + self.ended_by.signum
        return GATE_STUCK if isinstance(self.ended_by, GateStuckError) else self.verdict.exit_code


def _has_fallen(first: float, last: float, share: float) -> bool:
    """Whether so much of the first loss is gone; of one that is not above zero nobody can tell."""
    return first > 0.0 and last <= (1.0 - share) * first


def tried(cli: MusicCLI, requests: LeaveRequests) -> Trial | None:
    """Try it, if that was asked for, and say how it went.

    Args:
        cli: what was built and shall be trained.
        requests: signals that ask the run to leave.

    Returns:
        None where it was not asked for, or where the run goes on from a checkpoint.

    Raises:
        ConfigurationError: the run would be refused as well.
    """
    bounds = cli.preflight
    if bounds is None:
        return None
    if cli.checkpoint is not None:
        logger.info("preflight: left out, since the run goes on from %s", cli.checkpoint)
        return None
    folder = Path(cli.trainer.default_root_dir) / PREFLIGHT_NAME
    logger.info(
        "preflight: can it memorise %s in %d steps and %g s?",
        "a batch" if bounds.n_batches == 1 else f"{bounds.n_batches} batches",
        *(bounds.max_steps, bounds.max_seconds),
    )
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed in it
    folder.mkdir()
    try:
        # building and training draw numbers; those of all devices are put back
        with quiet(), isolate_rng():
            trial = _try(cli, bounds, folder, requests)
    except ConfigurationError:
        if cli.taken_up is None:
            shutil.rmtree(folder.parent)
        raise
    finally:
        gc.collect()  # trainer and model hold each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    _tell(trial, bounds, folder)
    return trial


def _try(cli: MusicCLI, bounds: PreflightBounds, folder: Path, requests: LeaveRequests) -> Trial:
    began = time.monotonic()
    tree = _tree(cli, bounds)
    twin = MusicCLI(tree, run_folder=folder)
    twin.model.load_state_dict(cli.model.state_dict())
    _fit_schedule(twin.model, bounds)
    _look_at_what_it_trains_on(twin.datamodule)
    if twin.savepoints is not None:
        twin.savepoints.requests = requests
    callbacks: list[Any] = twin.trainer.callbacks  # type: ignore[attr-defined]
    judge = next(one for one in callbacks if hasattr(one, "verdict"))
    limits = _Limits(judge.loss, bounds, began)
    callbacks.append(limits)
    origin = collect_provenance(
        twin.config_dump,
        run_id=twin.run_id,
        device=str(twin.trainer.strategy.root_device),
        code_folder=Path(__file__).parent,
    )
    origin.write(folder)
    ended_by = fit(twin, folder)
    found = (getattr(one, "findings", None) for one in callbacks)
    findings = next((alarms(one) for one in found if isinstance(one, list)), [])
    return Trial(judge.verdict, tuple(findings), ended_by, limits.ran_out, time.monotonic() - began)


def _tree(cli: MusicCLI, bounds: PreflightBounds) -> dict[str, Any]:
    """The run's configuration, but for how long it trains, on what, and who watches."""
    tree: dict[str, Any] = deepcopy(cli.config_dump)
    n_attempts = math.ceil(bounds.n_batches / cli.model.accumulate)
    every = max(1, bounds.max_steps // n_attempts // _LOOKS)
    tree["trainer"] |= {
        "overfit_batches": bounds.n_batches,
        # the last of them ends with a validation
        "max_epochs": every * max(1, bounds.max_steps // n_attempts // every),
        "check_val_every_n_epoch": every,
        "num_sanity_val_steps": -1,
        "max_steps": -1,
        **dict.fromkeys(_UNLIMITED),
        **dict.fromkeys(_SILENT, False),
    }
    if cli.trainer.world_size > 1:
        device = cli.trainer.strategy.root_device
        tree["trainer"] |= {
            "strategy": "auto",
            "devices": 1 if device.index is None else [device.index],
            "num_nodes": 1,
            "sync_batchnorm": False,
        }
    tree["callbacks"] = _watching(tree["callbacks"] or {}, bounds)
    return tree


_UNLIMITED = (
    *("min_epochs", "min_steps", "max_time", "limit_train_batches"),
    *("limit_val_batches", "val_check_interval", "profiler", "enable_checkpointing"),
)
_SILENT = ("logger", "fast_dev_run", "barebones", "enable_progress_bar", "enable_model_summary")


def _watching(callbacks: Mapping[str, Any], bounds: PreflightBounds) -> dict[str, Any]:
    """Those that log, judge and name reasons, with their settings in the run; no others."""
    given = {
        entry["class_path"].rpartition(".")[2]: entry.get("init_args") or {}
        for entry in callbacks.values()
        if entry is not None and entry["class_path"].startswith("callbacks.")
    }
    asked = {
        "when": "always",
        "min_loss_drop": bounds.min_loss_drop,
        "loss": bounds.loss,
        "val_loss": bounds.loss,
        "min_recall": None,
        "max_median_m": None,
    }
    # the doctor goes first, so that the judge has its findings
    return {
        name: {"class_path": f"callbacks.{name}", "init_args": given.get(name, {}) | own}
        for name, own in (
            ("RunLog", {"folder": None}),
            ("RunDoctor", {"folder": None, "files": True}),
            ("OverfitSanity", {"folder": None, **asked}),
        )
    }


def _fit_schedule(model: GatedModule, bounds: PreflightBounds) -> None:
    """Let the rate come to its value; how long the run's own warm-up takes is not the question."""
    schedule, most = model.schedule, bounds.max_steps // 10
    warmup = schedule.warmup_steps
    model.schedule = replace(
        schedule, total_steps=None, warmup_steps=None if warmup is None else min(warmup, most)
    )


def _look_at_what_it_trains_on(data: LightningDataModule) -> None:
    """Validate on the batches that are memorised; the project's own data do so by themselves."""
    if isinstance(data, PlannedData):
        data.n_workers = 0  # each epoch of a batch or two would start them anew
    else:
        data.val_dataloader = data.train_dataloader  # type: ignore[method-assign]


class _Limits(Callback):
    """Ends it when the loss has fallen far enough, or when its seconds are over."""

    def __init__(self, loss: str, bounds: PreflightBounds, began: float) -> None:
        self.ran_out = False
        self._loss = loss
        self._bounds = bounds
        self._began = began
        self._first = math.nan

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loss, asked = trainer.callback_metrics.get(self._loss), self._bounds.min_loss_drop
        if loss is None:
            raise ConfigurationError(
                f"preflight follows {self._loss}, which {type(pl_module).__name__} does not log in "
                "validation. Set preflight_bounds.loss to a key that it logs."
            )
        if trainer.sanity_checking:
            self._first = float(loss)
        elif asked is not None and _has_fallen(self._first, float(loss), asked):
            # not `should_stop`: it ends in time, and misses what else is asked if it does
            trainer.fit_loop.max_epochs = trainer.current_epoch + 1

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.num_training_batches < self._bounds.n_batches:
            raise ConfigurationError(
                "preflight_bounds.n_batches must be at most the number of training batches, "
                f"{trainer.num_training_batches}: got {self._bounds.n_batches}."
            )

    @override
    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        if time.monotonic() - self._began > self._bounds.max_seconds and not self.ran_out:
            self.ran_out = True
            trainer.check_val_every_n_epoch = 1  # a last look, at once
            trainer.should_stop = True


def _tell(trial: Trial, bounds: PreflightBounds, folder: Path) -> None:
    """A line or two."""
    verdict = trial.verdict
    if isinstance(trial.ended_by, LeftOnSignalError):
        return
    if verdict.verdict == "pass":
        logger.info(
            "preflight: pass (loss %.4g to %.4g in %d steps, %.1f s)",
            *(verdict.loss_first, verdict.loss_last, verdict.steps, trial.seconds),
        )
        _warn_of(trial.findings)
        return
    if trial.was_falling:
        logger.info(
            "preflight: %g s were over, too few for a verdict, but the loss fell (%.4g to %.4g in "
            "%d steps) and nothing speaks against the model: training begins",
            *(bounds.max_seconds, verdict.loss_first, verdict.loss_last, verdict.steps),
        )
        _warn_of(trial.findings)
        return
    reasons = [reason.rstrip(".") for reason in verdict.reasons]
    if trial.ran_out:
        reasons.append(f"{bounds.max_seconds:g} s were over: raise preflight_bounds.max_seconds")
    logger.error("preflight: %s, nothing is trained. %s", verdict.verdict, "; ".join(reasons))
    logger.info("preflight: what it saw is in %s/report.html", os.path.relpath(folder))


def _warn_of(findings: Iterable[Finding]) -> None:
    for finding in findings:
        logger.warning("preflight: %s", finding.line())
