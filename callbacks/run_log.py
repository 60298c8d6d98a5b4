"""RunLog: the line of each epoch, and the files that tell later what happened."""

import contextlib
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from callbacks.observing import Cadence, StepObserver
from musicnet.gate.step_gate import StepReport
from musicnet.records import provenance
from musicnet.records.append_log import AppendLog
from musicnet.records.provenance import Provenance, collect_provenance, read_provenance

log = logging.getLogger(__name__)

_LOG_NAME = "metrics.jsonl"
# The loggers that write the harness's lines; silent by default, like all INFO.
_SPEAKERS = ("callbacks", "musicnet")


class RunLog(StepObserver):
    """Prints one line an epoch and keeps `metrics.jsonl`, `train.log` and `provenance.json`.

    Every row of `metrics.jsonl` has the run id and both axes: `batch`, the training batches so
    far, and `step`, the optimiser steps so far. A row's `event` is `epoch` (all metrics that were
    logged), `step` (what the gate reported at the first step and at every n-th attempt), `veto`
    (every one) or `exception`. `train.log` holds what is logged at INFO or above in the meantime.

    A training metric (all that share the prefix of `train`) of an epoch without a real step, or a
    validation metric (`val...`) of one without validation, would be an older epoch's: the first is
    shown as nan, the second is left out.

    What bad looks like: `train` falls and `val` does not; either is nan or stands still.

    Args:
        folder: where the files go (default: the trainer's `default_root_dir`).
        train: key of the training loss.
        val: key of the validation loss.
        every_n: attempts from one `step` row to the next.

    Raises:
        ValueError: at the start of a fit, if the folder has the log of another run.

    Example:
        >>> epoch_line(1, 30, phase=0, train=1.234567, val=1.123456)
        'Epoch 001/030 [phase=0] train 1.234567  val 1.123456'
        >>> epoch_line(7, None, phase=0, train=0.5, val=None)
        'Epoch 007 [phase=0] train 0.500000'
    """

    def __init__(
        self,
        folder: str | None = None,
        train: str = "train/loss",
        val: str = "val/loss",
        every_n: int = 50,
    ) -> None:
        self.folder = folder
        self.train = train
        self.val = val
        self.run_id: str | None = None
        self._cadence = Cadence(every_n)
        self._rows: AppendLog | None = None
        self._text: _TextLog | None = None
        self._forget()

    def _forget(self) -> None:
        self._validated = False
        self._attempts = self._stepped = 0
        self._loaded_id: str | None = None
        self._length: int | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._forget()  # before a checkpoint is read, which may bring it back

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir if self.folder is None else self.folder)
        origin = _origin_of_run(folder, self.run_id, trainer, pl_module)
        self.run_id = origin.run_id
        goes_on = self._loaded_id == origin.run_id
        keep = self._length if goes_on else None
        self._rows = AppendLog(folder / _LOG_NAME, run_id=origin.run_id, keep=keep)
        self._text = _TextLog(folder / "train.log")
        log.info("Run %s, started %s", origin.run_id, origin.started)

    @override
    def on_step_gate(
        self, trainer: Trainer, pl_module: LightningModule, report: StepReport
    ) -> None:
        self._attempts += 1
        self._stepped += report.stepped
        if self._rows is None or not self._cadence.is_worth_a_line(report):
            return
        row: dict[str, Any] = {
            "attempt": report.attempt,
            "grad_norm": report.norm,
            "ok": report.ok,
            "reason": report.reason,
            "clip_coef": report.clip_coef,
        }
        if report.scale_after is not None:
            row["loss_scale"] = report.scale_after
        row |= {f"optim/lr/{name}": rate for name, rate in report.lr.items()}
        row |= {f"optim/grad_norm/{name}": n for name, n in (report.group_norms or {}).items()}
        self._write(trainer, "step" if report.stepped else "veto", row, step=report.step)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated |= not trainer.sanity_checking

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = self._metrics_of_epoch(trainer)
        phase = int(getattr(pl_module, "phase_index", 0))
        if self._rows is not None:
            line = epoch_line(
                trainer.current_epoch + 1,
                trainer.max_epochs,
                phase=phase,
                train=metrics.get(self.train, math.nan),
                val=metrics.get(self.val, math.nan) if self._validated else None,
            )
            log.info("%s", line)
            self._write(trainer, "epoch", {"phase": phase} | metrics, step=trainer.global_step)
        self._validated = False
        self._attempts = self._stepped = 0

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if self._rows is not None:
            row = {"kind": type(exception).__name__, "message": str(exception)}
            with contextlib.suppress(OSError):  # of a full disk the exception itself will tell
                self._write(trainer, "exception", row, step=trainer.global_step)
        self._close()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close()

    @override
    def state_dict(self) -> dict[str, Any]:
        if self._rows is not None:
            self._length = self._rows.sync()  # a checkpoint never knows rows that the disk does not
        return {
            "run_id": self.run_id,
            "length": self._length,
            "validated": self._validated,
            "attempts": self._attempts,
            "stepped": self._stepped,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # A resumed run goes on in its own folder; in a new folder it is a new run.
        self.run_id = self._loaded_id = state_dict["run_id"]
        self._length = state_dict.get("length")
        self._validated = bool(state_dict.get("validated", False))
        self._attempts = int(state_dict.get("attempts", 0))
        self._stepped = int(state_dict.get("stepped", 0))

    def _metrics_of_epoch(self, trainer: Trainer) -> dict[str, float]:
        metrics = {
            key: float(value)
            for key, value in trainer.callback_metrics.items()
            if self._validated or not key.startswith("val")
        }
        if self._attempts and not self._stepped:
            older = self.train.partition("/")[0]
            metrics |= {key: math.nan for key in metrics if key.partition("/")[0] == older}
        return metrics

    def _write(self, trainer: Trainer, event: str, row: Mapping[str, Any], *, step: int) -> None:
        if self._rows is None:
            return
        axes: dict[str, Any] = {
            "event": event,
            "epoch": trainer.current_epoch + 1,
            "batch": trainer.fit_loop.epoch_loop.total_batch_idx + 1,
            "step": step,
        }
        # First for the reader's eye, last so that no metric can take an axis' name.
        self._rows.append(axes | dict(row) | axes)

    def _close(self) -> None:
        if self._rows is not None:
            with contextlib.suppress(OSError):
                self._length = self._rows.sync()
            self._rows.close()
        if self._text is not None:
            self._text.close()
        self._rows = self._text = None


class _TextLog:
    """Copies every line that is logged at INFO or above into a file, until it is closed."""

    def __init__(self, path: Path) -> None:
        self._handler = logging.FileHandler(path, encoding="utf-8")
        self._handler.setLevel(logging.INFO)
        self._handler.setFormatter(logging.Formatter("%(message)s"))
        logging.getLogger().addHandler(self._handler)
        self._levels: dict[str, int] = {}
        for name in _SPEAKERS:
            speaker = logging.getLogger(name)
            if not speaker.isEnabledFor(logging.INFO):
                self._levels[name] = speaker.level
                speaker.setLevel(logging.INFO)

    def close(self) -> None:
        for name, level in self._levels.items():
            logging.getLogger(name).setLevel(level)
        logging.getLogger().removeHandler(self._handler)
        self._handler.close()


def epoch_line(
    epoch: int, n_epochs: int | None, *, phase: int, train: float, val: float | None
) -> str:
    """The console line of one epoch; epochs count from 1, None leaves a part out."""
    total = f"/{n_epochs:03d}" if n_epochs is not None and n_epochs > 0 else ""
    ending = "" if val is None else f"  val {val:.6f}"
    return f"Epoch {epoch:03d}{total} [phase={phase}] train {train:.6f}{ending}"


def _origin_of_run(
    folder: Path, run_id: str | None, trainer: Trainer, module: LightningModule
) -> Provenance:
    """The provenance that whoever made the folder left there, else a new one, written now."""
    if not (folder / provenance.FILE_NAME).exists():
        origin = collect_provenance(
            _plain_hparams(module), device=_device_name(trainer.strategy.root_device)
        )
        origin.write(folder)
        return origin
    origin = read_provenance(folder)
    is_fresh = not (folder / _LOG_NAME).exists()
    if not is_fresh and origin.run_id != run_id:
        raise ValueError(
            f"each run needs a folder of its own: got {folder}, which has the log of run "
            f"{origin.run_id}. Give RunLog(folder=...) or Trainer(default_root_dir=...) a new "
            "folder, or resume that run from its checkpoint."
        )
    return origin


def _plain_hparams(module: LightningModule) -> dict[str, Any] | None:
    """The hyper-parameters if they are plain data: a hash of anything else would not repeat."""
    hparams = dict(module.hparams)
    try:
        json.dumps(hparams)
    except (TypeError, ValueError):
        return None
    return hparams or None


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device}, {torch.cuda.get_device_name(device)}"
    return str(device)
