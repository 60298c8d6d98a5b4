"""RunDoctor: why does this model not learn?"""

import logging
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from callbacks.doctoring import schedule_audit
from callbacks.doctoring.pictures import picture_of
from callbacks.doctoring.surroundings import (
    config_text,
    is_sharded,
    quarrel_of,
    run_id_of,
    unwatched,
)
from callbacks.doctoring.watch import RunWatch
from callbacks.observing import StepObserver
from callbacks.overfit_sanity import OverfitSanity
from musicnet.diagnosis.evidence import Processes, RunEvidence
from musicnet.diagnosis.findings import Finding, Judgement, in_order
from musicnet.diagnosis.judging import diagnose, held_against, judge_run
from musicnet.diagnosis.report.page import Picture, write_report
from musicnet.diagnosis.run_files import LOG_NAME
from musicnet.diagnosis.saved import Curve, Diagnosis, joined
from musicnet.diagnosis.verdict import Verdict
from musicnet.gate.step_gate import StepReport
from musicnet.records import provenance
from musicnet.records.log_mark import mark_of
from musicnet.records.plain_data import from_plain, to_plain
from musicnet.records.provenance import read_provenance

log = logging.getLogger(__name__)

FIRST_LOOK = 8
RANKS_EVERY = 500
RANKS_FIRST = 20
SAVED_EVERY_S = 30.0
STEPS_FOR_PICTURE = 50


class RunDoctor(StepObserver):
    """Watches a run and says what keeps it from learning, in one line as soon as it is seen.

    In any project, under manual or automatic optimisation; with a `StepGate` it knows more. What
    goes by in every step is nearly free; at validations and at the end it evaluates one batch a
    few times. The weights are the same to the last bit with and without it. docs/diagnosis.md has
    all that it can find. Sharded weights (FSDP) are not watched, and that is said at the start.
    `diagnosis.json` is there from the start of training on, and names how far the log of the run
    went when it was drawn. A module may have a method `report_picture()` that gives the bytes of a
    PNG or SVG file, its kind (`image/png`), and what it shows in words, or None.

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
        diagnosis: what was written last; None before.

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
        self.diagnosis: Diagnosis | None = None
        self._earlier: tuple[Curve, ...] = ()
        self._begun: dict[str, Any] | None = None
        self._before_training: dict[str, Any] = {}
        self._next_look = FIRST_LOOK
        self._saved_at = -math.inf
        self._is_sharded = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.findings = []
            self.judgement = None
            self._earlier = ()
            self._begun = None
            self._before_training = {}
            self._next_look = FIRST_LOOK
            self._is_sharded = False

    @override
    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before_training = dict(trainer.callback_metrics)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        asked = schedule_audit.asked_rates(pl_module.hparams)
        if self.rate is not None:
            asked = [("RunDoctor.rate", self.rate)]
        self._is_sharded = is_sharded(trainer)
        if not self._is_sharded:
            self._watch = RunWatch(trainer, pl_module, asked)
            if self._begun is not None:
                self._watch.takes_up(self._begun)
            self._watch.validating.ends(self._before_training, trainer.global_step)
        self._begin(trainer)

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
        watch.batch_ends(batch_idx)
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
            self._watch.epoch_ends()
            self._look(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._watch is not None:
            self._watch.compare_ranks()
            self._watch.probe(last=True)
            self._look(trainer)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # by now a verdict by bars is there, from a callback that wanted the findings first
        self._finish(trainer, pl_module)

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        watch, quarrel = self._watch, quarrel_of(exception)
        if self._is_sharded:
            self._finish(trainer, pl_module)
        elif watch is not None:
            if quarrel:
                n_ranks, n_compared = watch.processes.n, watch.processes.n_compared
                watch.processes = Processes(n_ranks, n_compared, quarrel=quarrel)
            watch.note_end(exception)
            self._finish(trainer, pl_module)
        elif quarrel:
            # the ranks were processes of their own, and have only left their last words
            self._conclude(trainer, RunEvidence(processes=Processes(quarrel=quarrel)))
            self._save(trainer)
            self._report(trainer, pl_module)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._watch is not None:
            self._earlier = self._all_curves()  # a checkpoint may be saved yet
            self._begun = self._watch.begun()
            self._watch.close()
            self._watch = None

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "findings": to_plain(self.findings),
            "curves": to_plain(self._all_curves()),
            "begun": self._begun if self._watch is None else self._watch.begun(),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # what was seen before a resume is part of the run
        self.findings = [from_plain(Finding, one, "finding") for one in state_dict["findings"]]
        self._earlier = tuple(from_plain(Curve, one, "curve") for one in state_dict["curves"])
        self._begun = state_dict["begun"]

    def _all_curves(self) -> tuple[Curve, ...]:
        return joined(self._earlier, () if self._watch is None else self._watch.curves())

    def _begin(self, trainer: Trainer) -> None:
        """Leave a first word: a run that is killed at once had a doctor, too."""
        if self._is_sharded:
            self._conclude(trainer, unwatched(trainer))
        elif self._watch is not None:
            self.evidence = self._watch.evidence(shares_by_intent=False)
            self.judgement = judge_run(self.evidence, self.findings)
        if self._is_sharded and self.judgement is not None and trainer.is_global_zero:
            log.warning("Doctor: %s: %s", self.judgement.outcome, self.judgement.because)
        self._save(trainer)
        self._saved_at = -math.inf  # the first look is worth a file

    def _finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_sharded:
            self._conclude(trainer, unwatched(trainer))
        self._look(trainer)
        if self.judgement is None or (self._watch is None and not self._is_sharded):
            return
        if trainer.is_global_zero:
            log.info("Doctor: %s: %s", self.judgement.outcome, self.judgement.because)
        watch, picture = self._watch, None
        if watch is not None and watch.steps >= STEPS_FOR_PICTURE and trainer.is_global_zero:
            picture = watch.tried("picture", lambda: picture_of(pl_module))
        self._save(trainer)
        self._report(trainer, pl_module, picture)
        if watch is not None:
            watch.close()

    def _report(
        self, trainer: Trainer, pl_module: LightningModule, picture: Picture | None = None
    ) -> None:
        """Leave the page, if the rest was left."""
        if self.diagnosis is None:
            return
        folder = self._folder(trainer)
        has_origin = (folder / provenance.FILE_NAME).exists()
        write_report(
            folder,
            self.diagnosis,
            title=f"{type(pl_module).__name__}, run {self.diagnosis.run_id or folder.name}",
            origin=read_provenance(folder) if has_origin else None,
            config=config_text(folder, pl_module),
            picture=picture,
        )

    def _save(self, trainer: Trainer) -> None:
        """Leave `diagnosis.json`."""
        self._saved_at = time.monotonic()
        if self.judgement is None:
            return
        # where the ranks quarrel, the first may be killed before it has spoken
        speaks = trainer.is_global_zero or bool(self.evidence.processes.quarrel)
        if not (self.files and speaks):
            return
        folder = self._folder(trainer)
        self.diagnosis = Diagnosis(
            run_id=run_id_of(folder),
            evidence=self.evidence,
            findings=tuple(self.findings),
            judgement=self.judgement,
            curves=self._all_curves(),
            vetoes=() if self._watch is None else self._watch.vetoes(),
            log=mark_of(folder / LOG_NAME),
        )
        self.diagnosis.write(folder)

    def _look(self, trainer: Trainer) -> None:
        """Judge what is known now, and say what is new."""
        if self._watch is None:
            return
        intends = trainer.overfit_batches > 0 or any(  # type: ignore[attr-defined]
            isinstance(one, OverfitSanity) and one.when == "always"
            for one in trainer.callbacks  # type: ignore[attr-defined]
        )
        self._conclude(trainer, self._watch.evidence(shares_by_intent=intends))
        # for a run that will be killed; not so often that anybody waits for the disk
        if time.monotonic() - self._saved_at > SAVED_EVERY_S:
            self._save(trainer)

    def _conclude(self, trainer: Trainer, evidence: RunEvidence) -> None:
        self.evidence = evidence
        known = {(one.code, one.where): one for one in self.findings}
        for finding in diagnose(self.evidence):
            key = finding.code, finding.where
            if key not in known and trainer.is_global_zero:
                level = logging.INFO if finding.severity == "info" else logging.WARNING
                log.log(level, "%s", finding.line())
            # the newest figures, and the step at which it was first seen
            known[key] = replace(finding, step=known.get(key, finding).step)
        self.findings = in_order(known.values())
        judged = (getattr(one, "verdict", None) for one in trainer.callbacks)  # type: ignore[attr-defined]
        verdict = next((one for one in judged if isinstance(one, Verdict)), None)
        self.judgement = held_against(judge_run(self.evidence, self.findings), verdict)

    def _folder(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir if self.folder is None else self.folder)
