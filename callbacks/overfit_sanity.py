"""OverfitSanity: did the model memorise the few samples that it was trained on?"""

import logging
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from typing_extensions import override

from callbacks.observing import StepObserver, parameters_by_group, total_norm
from musicnet.diagnosis.findings import Finding, alarms
from musicnet.diagnosis.verdict import Bars, Evidence, Verdict, because, judge
from musicnet.gate.step_gate import StepReport, group_norms
from musicnet.records import provenance
from musicnet.records.plain_data import to_plain
from musicnet.records.process_time import seconds_since_start
from musicnet.records.provenance import read_provenance

log = logging.getLogger(__name__)


class OverfitSanity(StepObserver):
    """Judges an overfit run and writes `verdict.json`: pass, fail or unknown.

    A model that cannot memorise a few samples will not learn from many. The run must validate on
    the samples that it trains on, in eval mode, before the first step
    (`Trainer(num_sanity_val_steps=-1)`) and after the last one; Lightning's `overfit_batches`
    alone does not do that: it validates on the first batches of the validation loader. Anything
    that was not seen, and any exception, makes the verdict unknown, and so does a missed bar when
    the run was stopped before its time.

    What bad looks like: each reason says which bar was missed, and by how much; where a
    `RunDoctor` stands before this callback, the first reason is its first finding.

    Args:
        loss: key of the loss on the trained samples in eval mode, over all terms of the end.
        val_loss: key of the validation loss; in an overfit run it is the same.
        train_loss: key of the loss of the training batches; it must fall too, if it is there.
        metric_recall: key of the share of sources found; another project's accuracy will do.
        metric_median: key of the median error in metres.
        min_loss_drop: share of the first loss that must be gone; None asks for nothing.
        min_recall: least recall; None asks for nothing.
        max_median_m: largest median error, metres; None asks for nothing.
        max_skipped_fraction: largest share of attempts that the gate may veto.
        when: "overfit_batches" judges only runs that set that flag of the trainer, so that the
            callback can stand among the defaults of every run.
        folder: where the verdict goes (default: the trainer's `default_root_dir`).

    Attributes:
        verdict: the verdict, from the end of a fit on; None before.

    Raises:
        ValueError: a bar is out of range.

    Example:
        >>> OverfitSanity(min_recall=0.94).verdict is None
        True
    """

    def __init__(
        self,
        loss: str = "val/loss",
        val_loss: str = "val/loss",
        train_loss: str = "train/loss",
        metric_recall: str = "val/recall",
        metric_median: str = "val/position_median_m",
        min_loss_drop: float | None = 0.97,
        min_recall: float | None = None,
        max_median_m: float | None = None,
        max_skipped_fraction: float = 0.1,
        when: Literal["always", "overfit_batches"] = "always",
        folder: str | None = None,
    ) -> None:
        self.loss = loss
        self.val_loss = val_loss
        self.train_loss = train_loss
        self.metric_recall = metric_recall
        self.metric_median = metric_median
        self.when = when
        self.folder = folder
        self.verdict: Verdict | None = None
        self._bars = Bars(min_loss_drop, min_recall, max_median_m, max_skipped_fraction)
        self._forget()

    def _forget(self) -> None:
        self.verdict = None
        self._earlier: Verdict | None = None
        self._first: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._train: dict[str, float] = {}
        self._faults: list[str] = []
        self._validated_step: int | None = None
        self._skipped = 0
        self._steps: int | None = None
        self._epoch_start_step = 0
        self._resumed_at = 0
        self._moved: set[str] = set()
        self._start: _Weights | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            # Before a checkpoint is read, which may bring back what was seen first.
            self._forget()

    @override
    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._first:
            return  # a resumed run began elsewhere
        self._first = self._validated(trainer)
        seen, there = sum(trainer.num_sanity_val_batches), sum(trainer.num_val_batches)
        if seen < there:
            self._faults.append(
                f"the first losses are of {seen} of {there} validation batches: "
                "set trainer.num_sanity_val_steps=-1"
            )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._first and not self._faults:
            self._faults.append(
                "nothing was validated before the first step: set trainer.num_sanity_val_steps=-1"
            )
        self._resumed_at = trainer.global_step
        if self._is_asked(trainer):
            self._start = _Weights(trainer)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_start_step = trainer.global_step

    @override
    def on_step_gate(
        self, trainer: Trainer, pl_module: LightningModule, report: StepReport
    ) -> None:
        self._steps = report.step
        self._skipped += not report.stepped

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        self._last = self._validated(trainer)
        self._validated_step = trainer.global_step

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Without a real step the metric is still the one of an older epoch.
        value = trainer.callback_metrics.get(self.train_loss)
        if value is None or trainer.global_step == self._epoch_start_step:
            return
        self._train["last" if "first" in self._train else "first"] = float(value)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._validated_step is None:
            self._faults.append("nothing was validated after the first step")
        elif self._validated_step != trainer.global_step:
            self._faults.append(
                f"the last validation was after step {self._validated_step}, "
                f"the last step was {trainer.global_step}"
            )
        self._judge(trainer)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.verdict is not None:
            return
        earlier, run_id = self._earlier, _run_id(self._folder(trainer))
        if earlier is not None and earlier.run_id is not None and earlier.run_id == run_id:
            self.verdict = earlier  # all was done and judged when this run was broken off
            return
        self._faults.append("nothing was trained: the run ended before its first batch")
        self._judge(trainer)

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        message = str(exception).partition("\n")[0]
        self._faults.append(f"training ended by {type(exception).__name__}: {message}")
        self._judge(trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        # What was seen before the first step cannot be seen again after a resume.
        self._deltas()
        return {
            "moved": sorted(self._moved),
            "first": self._first,
            "train": self._train,
            "skipped": self._skipped,
            "faults": self._faults,
            "last": self._last,
            "validated_step": self._validated_step,
            "epoch_start_step": self._epoch_start_step,
            "steps": self._steps,
            "verdict": None if self.verdict is None else to_plain(self.verdict),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._moved = set(state_dict["moved"])
        self._first = dict(state_dict["first"])
        self._train = dict(state_dict["train"])
        self._skipped = int(state_dict["skipped"])
        self._faults = list(state_dict["faults"])
        self._last = dict(state_dict.get("last", {}))
        self._validated_step = state_dict.get("validated_step")
        self._epoch_start_step = int(state_dict.get("epoch_start_step", 0))
        self._steps = state_dict.get("steps")
        verdict = state_dict.get("verdict")
        self._earlier = None if verdict is None else Verdict(**_with_tuples(verdict))

    def _is_asked(self, trainer: Trainer) -> bool:
        return self.when == "always" or trainer.overfit_batches > 0  # type: ignore[attr-defined]

    def _validated(self, trainer: Trainer) -> dict[str, float]:
        """What it judges by; the rest may be of another epoch, and another after a resume."""
        keys = {self.loss, self.val_loss, self.metric_recall, self.metric_median}
        metrics = trainer.callback_metrics
        return {key: float(metrics[key]) for key in sorted(keys) if key in metrics}

    def _judge(self, trainer: Trainer) -> None:
        if not self._is_asked(trainer):
            return
        evidence = self._evidence(trainer)
        self._start = None
        folder = self._folder(trainer)
        self.verdict = judge(
            evidence,
            self._bars,
            seconds=seconds_since_start(),
            run_id=_run_id(folder),
        )
        if self.verdict.verdict != "pass":
            self.verdict = because(self.verdict, _first_findings(trainer))
        if not trainer.is_global_zero:
            return
        self.verdict.write(folder)
        level = logging.INFO if self.verdict.verdict == "pass" else logging.WARNING
        reasons = [reason.rstrip(".") for reason in self.verdict.reasons]
        log.log(level, "%s", "; ".join([f"Verdict: {self.verdict.verdict}", *reasons]))

    def _folder(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir if self.folder is None else self.folder)

    def _deltas(self) -> dict[str, float] | None:
        """How far the groups have gone, and a note for good of those that have moved at all."""
        if self._start is None:
            return None
        deltas = self._start.deltas()
        self._moved |= {name for name, delta in deltas.items() if delta != 0.0}
        return deltas

    def _evidence(self, trainer: Trainer) -> Evidence:
        deltas = self._deltas()
        movable = set() if self._start is None else self._start.movable()
        return Evidence(
            loss_first=self._first.get(self.loss),
            loss_last=self._last.get(self.loss),
            val_first=self._first.get(self.val_loss),
            val_last=self._last.get(self.val_loss),
            train_first=self._train.get("first"),
            train_last=self._train.get("last"),
            recall=self._last.get(self.metric_recall),
            median_error_m=self._last.get(self.metric_median),
            delta_total=None if deltas is None else total_norm(deltas),
            still_groups=tuple(n for n in deltas or {} if n in movable - self._moved),
            steps=trainer.global_step if self._steps is None else self._steps,
            skipped=self._skipped,
            resumed_at=self._resumed_at,
            faults=tuple(self._faults),
            ended_early=_why_early(trainer),
        )


class _Weights:
    """The weights as they were, group by group, and how far they have gone since."""

    def __init__(self, trainer: Trainer) -> None:
        self._now = parameters_by_group(trainer.optimizers)
        self._then = {
            name: [parameter.detach().clone() for parameter in group]
            for name, group in self._now.items()
        }

    def deltas(self) -> dict[str, float]:
        return group_norms({name: self._way(name) for name in self._now})

    def movable(self) -> set[str]:
        return {name for name, group in self._now.items() if any(p.requires_grad for p in group)}

    def _way(self, name: str) -> list[Tensor]:
        pairs = zip(self._now[name], self._then[name], strict=True)
        return [now.detach() - then for now, then in pairs]


def _run_id(folder: Path) -> str | None:
    has_origin = (folder / provenance.FILE_NAME).exists()
    return read_provenance(folder).run_id if has_origin else None


def _with_tuples(verdict: dict[str, Any]) -> dict[str, Any]:
    return verdict | {"reasons": tuple(verdict["reasons"])}


def _first_findings(trainer: Trainer) -> list[Finding]:
    """What a doctor has found, if one watches this run."""
    watching = (getattr(one, "findings", None) for one in trainer.callbacks)  # type: ignore[attr-defined]
    return next((alarms(found) for found in watching if isinstance(found, list)), [])


def _why_early(trainer: Trainer) -> str | None:
    epochs, steps = trainer.max_epochs, trainer.max_steps
    has_done_epochs = epochs is not None and 0 <= epochs <= trainer.current_epoch
    has_done_steps = 0 <= steps <= trainer.global_step
    if has_done_epochs or has_done_steps:
        return None
    return (
        f"training was stopped early, after {trainer.current_epoch} epochs "
        f"and {trainer.global_step} steps"
    )
