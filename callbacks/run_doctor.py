"""RunDoctor: why does this model not learn?"""

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from callbacks.doctoring import schedule_audit
from callbacks.doctoring.watch import RunWatch
from callbacks.observing import StepObserver
from callbacks.overfit_sanity import OverfitSanity
from musicnet.diagnosis.evidence import Processes, RunEvidence
from musicnet.diagnosis.findings import Finding, Judgement, in_order
from musicnet.diagnosis.judging import diagnose, judge_run
from musicnet.gate.step_gate import StepReport

log = logging.getLogger(__name__)

FIRST_LOOK = 8
RANKS_EVERY = 500
RANKS_FIRST = 20


class RunDoctor(StepObserver):
    """Watches a run and says what keeps it from learning, in one line as soon as it is seen.

    In any project, under manual or automatic optimisation; with a `StepGate` it knows more. What
    goes by in every step is nearly free; at validations and at the end it evaluates one batch a
    few times. The weights are the same to the last bit with and without it. docs/diagnosis.md has
    all that it can find.

    What bad looks like: a warning that begins with a code, such as `GRAPH_DETACHED in backbone`.

    Args:
        rate: learning rate that was asked for (default: those among the module's
            hyper-parameters, under `lr` or `learning_rate`).
        folder: where `diagnosis.json` and `report.html` go (default: the trainer's
            `default_root_dir`).
        files: whether to leave these files.

    Attributes:
        findings: all that was found so far, causes first.
        judgement: the verdict on the run; None before the first look.
        evidence: what it rests on.

    Raises:
        ValueError: the rate is not finite and > 0.

    Example:
        >>> RunDoctor().findings
        []
    """

    def __init__(
        self,
        rate: float | None = None,
        folder: str | None = None,
        *,
        files: bool = True,
    ) -> None:
        if rate is not None and not 0.0 < rate < math.inf:
            raise ValueError(
                f"rate must be finite and > 0: got {rate}. Leave it out to take the module's own."
            )
        self.rate = rate
        self.folder = folder
        self.files = files
        self.findings: list[Finding] = []
        self.judgement: Judgement | None = None
        self.evidence = RunEvidence()
        self._watch: RunWatch | None = None
        self._next_look = FIRST_LOOK

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.findings = []
            self.judgement = None
            self._next_look = FIRST_LOOK

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        asked = schedule_audit.asked_rates(pl_module.hparams)
        if self.rate is not None:
            asked = [("RunDoctor.rate", self.rate)]
        self._watch = RunWatch(trainer, pl_module, asked)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._watch is not None:
            self._watch.batch_starts(batch)

    @override
    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        if self._watch is not None:
            self._watch.backward_starts(loss)

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._watch is not None:
            self._watch.backward_ends()

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if self._watch is not None and not self.hears_gate:
            self._watch.gradients_are_ready(unscaled=True)

    @override
    def on_before_step_gate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_before_step_gate(trainer, pl_module)
        if self._watch is not None:
            self._watch.has_gate = True
            self._watch.gradients_are_ready(unscaled=False)

    @override
    def on_step_gate(
        self, trainer: Trainer, pl_module: LightningModule, report: StepReport
    ) -> None:
        if self._watch is not None:
            self._watch.gate_answers(report)

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        watch = self._watch
        if watch is None:
            return
        watch.batch_ends()
        if watch.batches == RANKS_FIRST or watch.batches % RANKS_EVERY == 0:
            watch.compare_ranks()
        if watch.batches >= self._next_look:
            self._next_look = 2 * watch.batches
            self._look(trainer)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._watch is not None:
            self._watch.pace.is_interrupted()
            self._watch.validating.look_at_buffers(self._watch.steps)

    @override
    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._watch is not None and dataloader_idx == 0:
            self._watch.validation_batch_starts(batch, batch_idx)

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._watch is not None and dataloader_idx == 0:
            self._watch.validation_batch_ends(batch_idx)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        watch = self._watch
        if watch is None or trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        watch.validation_ends()
        watch.compare_ranks()
        watch.probe()
        self._look(trainer)
        watch.pace.is_interrupted()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._watch is not None:
            self._watch.epochs += 1
            self._watch.pace.is_interrupted()
            self._look(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._watch is not None:
            self._watch.compare_ranks()
            self._watch.probe(last=True)
            self._finish(trainer)

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        watch = self._watch
        if watch is None or trainer.state.fn != TrainerFn.FITTING:
            return
        if type(exception).__name__ == "RankMismatchError":
            quarrel = f"{exception}".partition("\n")[0]
            watch.processes = Processes(watch.processes.n, watch.processes.n_compared, 0.0, quarrel)
        watch.note_end(exception)
        self._finish(trainer)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _finish(self, trainer: Trainer) -> None:
        self._look(trainer)
        if self.judgement is not None and trainer.is_global_zero:
            log.info("Doctor: %s; %s", self.judgement.outcome, self.judgement.because)
        if self._watch is not None:
            self._watch.close()

    def _look(self, trainer: Trainer) -> None:
        """Judge what is known now, and say what is new."""
        if self._watch is None:
            return
        intends = trainer.overfit_batches > 0 or any(  # type: ignore[attr-defined]
            isinstance(one, OverfitSanity) and one.when == "always"
            for one in trainer.callbacks  # type: ignore[attr-defined]
        )
        self.evidence = self._watch.evidence(shares_by_intent=intends)
        known = {(one.code, one.where): one for one in self.findings}
        for finding in diagnose(self.evidence):
            key = finding.code, finding.where
            if key not in known and trainer.is_global_zero:
                level = logging.INFO if finding.severity == "info" else logging.WARNING
                log.log(level, "%s", finding.line())
            # the newest figures, and the step at which it was first seen
            known[key] = replace(finding, step=known.get(key, finding).step)
        self.findings = in_order(known.values())
        self.judgement = judge_run(self.evidence, self.findings)

    def _folder(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir if self.folder is None else self.folder)
