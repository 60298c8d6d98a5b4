"""All watchers of one fit together, and the evidence that they have."""

import logging
import math
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.optim import Optimizer

from callbacks.doctoring import probing, schedule_audit
from callbacks.doctoring.fingerprints import Fingerprint, is_finite
from callbacks.doctoring.logged_loss import LoggedLoss
from callbacks.doctoring.motion import EARLY, MotionWatch
from callbacks.doctoring.parts import Anatomy, heard
from callbacks.doctoring.series import Series
from callbacks.doctoring.stepping import GateWatch, LossWatch, PaceWatch
from callbacks.doctoring.terms import TermWatch
from callbacks.doctoring.validating import ValidationWatch
from callbacks.observing import rates_by_group
from musicnet.diagnosis.evidence import Deal, Length, Processes, Rates, RunEvidence
from musicnet.diagnosis.saved import AS_LOGGED, Curve, Veto
from musicnet.gate.step_gate import StepReport, group_norms

log = logging.getLogger(__name__)

HASHED_BATCHES = 64
HEARD_BATCHES = 3
NORM_EVERY = 10
TRACED_AT_FIRST = 24
CURVE_EVERY, CURVE_DENSE, CURVE_LATER = 5, 60, 25
GRAPHS_AT_FIRST, GRAPHS_EVERY = 64, 8
SCALE_EVERY = 16
PROBE_GROWTH = 1.5
EARLIEST_PROBE = 10
MOST_DEALS = 8


class RunWatch:
    """What is watched from the start of training to its end.

    Args:
        trainer: runs the fit.
        module: is trained.
        asked: learning rates that were asked for, with the keys that say so.
    """

    def __init__(
        self, trainer: Trainer, module: LightningModule, asked: list[tuple[str, float]]
    ) -> None:
        optimizers: list[Optimizer] = trainer.optimizers
        self.trainer, self.module = trainer, module
        self._unseen: dict[str, str] = {}
        self.has_gate = False
        self.batches = 0
        self.epochs = 0
        self.steps_before = trainer.global_step
        self.losses, self.gate, self.pace, self.terms = (
            LossWatch(),
            GateWatch(),
            PaceWatch(),
            TermWatch(),
        )
        self.logged = LoggedLoss()
        self._steps_at_epoch = 0
        self.ratios: dict[str, Series] = {}
        self.rates: dict[str, Series] = {}
        self.motion = MotionWatch(optimizers, self._take_ratios, self.tried)
        self.anatomy = Anatomy(module, optimizers)
        self.validating = ValidationWatch(module, self.anatomy, self.motion)
        self.processes = Processes(n=trainer.world_size)
        self.deals: deque[Deal] = deque(maxlen=MOST_DEALS)
        self._marks = {n: Fingerprint(p.parameters()) for n, p in self.anatomy.parts.items()}
        self._asked = asked
        self._planned, self._n_epochs = _planned_steps(trainer, module)
        self._schedulers = [
            (config.scheduler, _interval(module, config.interval))
            for config in trainer.lr_scheduler_configs
        ]
        self._moves_before = [_moves(scheduler) for scheduler, _ in self._schedulers]
        self._audit = self.tried(
            "schedule",
            lambda: schedule_audit.audit(
                optimizers, self._schedulers, self._planned, self._n_epochs, asked
            ),
        )
        self._listening = ExitStack()
        self._is_automatic = module.automatic_optimization
        own = getattr(module, "accumulate", 1)
        self._accumulated = own if isinstance(own, int) else 1
        every = trainer.val_check_batch
        self._validates_every = int(every) if every and math.isfinite(every) else None
        self._plugin_scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._steps_seen = 0
        self._norm_was_finite = False
        self._kept: dict[str, Any] = {}
        self._next_probe = EARLIEST_PROBE
        self._clips_at = trainer.gradient_clip_val if module.automatic_optimization else None
        if trainer.gradient_clip_algorithm not in (None, "norm"):
            self._clips_at = None

    def tried(self, what: str, look: Callable[[], Any]) -> Any:
        """Look, and if that fails note why: to observe must never end a run."""
        try:
            return look()
        except Exception as error:  # anything can be in a stranger's module
            self._unseen.setdefault(what, f"{type(error).__name__}: {error}".partition("\n")[0])
            log.debug("the doctor could not look at %s", what, exc_info=error)
            return None

    def begun(self) -> dict[str, Any]:
        """How the run began: what a resumed one has to know, to be judged as a whole."""
        return {
            "batches": self.losses.n,
            "losses": list(self.losses.first),
            "val_loss": self.validating.val_first,
            "val_key": self.validating.key,
            "largest_step": self.motion.largest,
            "logged": self.logged.begun(),
        }

    def takes_up(self, begun: dict[str, Any]) -> None:
        """Begin where another watch of the same run has ended."""
        self.losses.n = self.pace.n = int(begun["batches"])
        self.losses.first = list(begun["losses"])
        self.validating.val_first = begun["val_loss"]
        self.validating.key = begun.get("val_key", "")
        self.motion.largest = begun["largest_step"]
        if "logged" in begun:
            self.logged.takes_up(begun["logged"])

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.steps_before + (self.gate.steps if self.has_gate else self.motion.steps)

    def close(self) -> None:
        """Take every hook off again."""
        self._listening.close()
        self.motion.close()
        self._kept = {}

    # -- a training batch, in the order of what happens

    def batch_starts(self, batch: Any) -> None:
        """A batch is there."""
        self.pace.starts()
        if self.batches < HASHED_BATCHES:
            self.tried("items", lambda: self.validating.see_training(batch))
        if self.batches < HEARD_BATCHES:
            self.anatomy.new_batch()
            self._listening.enter_context(heard(self.anatomy.layers, self.anatomy.hear))
        if self.batches % 50 == 0 or "train" not in self._kept:
            self._kept["train"] = batch

    def backward_starts(self, loss: Tensor) -> None:
        """A loss is about to go backward, perhaps scaled."""
        self.losses.see(loss, self._factor())
        if self.batches < GRAPHS_AT_FIRST or self.batches % GRAPHS_EVERY == 0:
            self.tried("graphs", lambda: self.losses.graphs.mark(loss))
        is_worth_a_look = self.batches < TRACED_AT_FIRST or self.batches % NORM_EVERY == 0
        if is_worth_a_look and loss.grad_fn is not None:
            self.tried("graph", lambda: self.anatomy.trace(loss))

    def backward_ends(self) -> None:
        """Gradients are there; perhaps nobody will ever step on them."""
        if self.has_gate or self._is_automatic or self.batches % NORM_EVERY > 1:
            return
        if self.motion.steps == 0:
            self.gate.see_unused(self._norm() / self._scale())

    def gradients_are_ready(self, *, unscaled: bool) -> None:
        """The optimiser or a gate is about to look at the gradients."""
        scale = 1.0 if unscaled or self.has_gate else self._scale()
        if self.anatomy.is_first_look:
            scale_then = 1.0 if unscaled else self._scale()
            self.tried("gradients", lambda: self.anatomy.look_at_gradients(scale_then))
        count = self.motion.steps + 1
        if not self.has_gate and (count in EARLY or count % NORM_EVERY == 0):
            self.gate.see_norm(self._norm() / scale, count, self._clips_at)

    def gate_answers(self, report: StepReport) -> None:
        """A gate has decided."""
        if self.gate.max_norm is None:
            own = getattr(getattr(self.module, "gate", None), "max_norm", None)
            self.gate.max_norm = own if isinstance(own, int | float) else None
        self._norm_was_finite = math.isfinite(report.norm)
        self.gate.hear(report)
        if not report.stepped:
            self.motion.look_for_writers()

    def batch_ends(self, batch_idx: int) -> None:
        """All callbacks' work on a batch is done, as far as this one knows."""
        self._listening.close()
        self.batches += 1
        steps = self.motion.steps
        stepped, self._steps_seen = steps > self._steps_seen, steps
        finite = None
        if self.losses.looks_broken():
            finite = is_finite(self.motion.read())
        passed = self._norm_was_finite if self.has_gate else stepped
        self.losses.settle(was_hidden=passed, weights_are_finite=finite)
        scaler = self._scaler()
        if scaler is not None and not self.has_gate:
            is_cheap = self.module.device.type == "cpu" or self.batches % SCALE_EVERY == 0
            if is_cheap:
                self.gate.see_scale(float(scaler.get_scale()), stepped=stepped)
            if self.trainer.accumulate_grad_batches == 1:
                self.gate.count_scaled(stepped=stepped)
        if self.batches % (CURVE_EVERY if self.batches < CURVE_DENSE else CURVE_LATER) == 1:
            for name, rate in rates_by_group(self.trainer.optimizers).items():
                self.rates.setdefault(name, Series()).add(self.steps, rate)
            self.terms.see_logged(self.trainer.callback_metrics, self.batches)
        every = self._validates_every
        if self.trainer.is_last_batch or (
            every and 0 in ((batch_idx + 1) % every, self.batches % every)
        ):
            self.motion.refresh()
        self.pace.ends()

    def epoch_ends(self) -> None:
        """All batches of an epoch are done, and what was logged by epoch is there."""
        self.epochs += 1
        self.pace.is_interrupted()
        mean = self.losses.epoch_ends(weights_are_finite=is_finite(self.motion.read()))
        steps = self.steps - self.steps_before
        # without a step it is still the figure of an older epoch
        if steps > self._steps_at_epoch:
            metrics = self.trainer.callback_metrics
            self.tried("logged loss", lambda: self.logged.epoch_ends(metrics, mean, self.losses.n))
        self._steps_at_epoch = steps

    # -- validation

    def validation_batch_starts(self, batch: Any, batch_idx: int) -> None:
        """A batch is about to be validated on."""
        if batch_idx < HASHED_BATCHES:
            self.tried("items", lambda: self.validating.see_validation(batch))
        if batch_idx == 0 and not self.trainer.sanity_checking:
            self._kept["val"] = batch
            self.tried("evaluated weights", self.validating.listen)

    def validation_batch_ends(self, batch_idx: int) -> None:
        """A batch was validated on."""
        if batch_idx == 0 and not self.trainer.sanity_checking:
            self.tried("evaluated weights", self.validating.hear_out)

    def validation_ends(self) -> None:
        """All metrics are there."""
        self.validating.look_at_buffers(self.steps)
        self.validating.ends(self.trainer.callback_metrics, self.steps)

    def note_end(self, exception: BaseException) -> None:
        """The run ends by an exception."""
        if self._scaler() is not None:
            # a gate that gives up says so before it reports
            self.gate.see_scale(self._scale(), stepped=False)
        self._unseen["the end"] = f"{type(exception).__name__}: {exception}".partition("\n")[0]

    # -- what is looked at now and then

    def probe(self, *, last: bool = False) -> None:
        """Deal the labels of a batch anew, unless that was done not long ago."""
        new_steps = self.steps - self.steps_before
        if new_steps < (EARLIEST_PROBE if last else self._next_probe):
            return
        if last and self.deals and self.deals[-1].step == self.steps:
            return
        self._next_probe = math.ceil(new_steps * PROBE_GROWTH)
        split = "val" if "val" in self._kept else "train"
        self.tried("labels", lambda: self._deal(split))

    def compare_ranks(self) -> None:
        """Hold the weights of all ranks side by side."""
        if self.processes.n < 2 or not isinstance(self.trainer.strategy, DDPStrategy):
            return
        own = self.motion.read().to(self.module.device)
        every = torch.stack([torch.empty_like(own) for _ in range(self.processes.n)])
        torch.distributed.all_gather(list(every.unbind()), own.contiguous())
        spread = float((every - every[:1]).abs().nan_to_num(nan=0.0).max())
        compared = self.processes.n_compared + 1
        self.processes = Processes(self.processes.n, compared, max(spread, self.processes.spread))

    def evidence(self, *, shares_by_intent: bool) -> RunEvidence:
        """All that is known now."""
        self.motion.settle()
        self.terms.see_logged(self.trainer.callback_metrics, self.batches)
        nonfinite = tuple(n for n, mark in self._marks.items() if not is_finite(mark.read()))
        val = (self.validating.val_first, self.validating.val_last)
        self.logged.see_phase(getattr(self.module, "phase_index", None))
        losses = self.losses.losses(self.terms.zero_terms(), val)
        return RunEvidence(
            length=Length(
                batches=self.batches,
                steps=self.steps,
                attempts=self.gate.attempts,
                epochs=self.epochs,
                planned_steps=self._planned,
            ),
            gating=self.gate.gating(self.losses.hidden),
            wiring=self.anatomy.wiring(),
            motion=self.motion.motion(nonfinite),
            rates=self._rates_now(),
            losses=self.logged.instead_of(replace(losses, val_key=self.validating.key)),
            inputs=self.anatomy.inputs,
            deals=tuple(self.deals),
            validation=self.validating.validation(shares_by_intent=shares_by_intent),
            pace=self.pace.pace(self.losses.graphs.count()),
            processes=self.processes,
            unseen=tuple(f"{what}: {why}" for what, why in self._unseen.items()),
        )

    def curves(self) -> tuple[Curve, ...]:
        """Everything that was watched over time."""
        named = {
            "training loss": self.losses.curve,
            AS_LOGGED: self.logged.curve,
            "validation loss": self.validating.curve,
            "gradient norm": self.gate.norms,
            "step time [ms]": self.pace.step_times,
            "memory [MB]": self.pace.memory,
            **{f"learning rate: {name}": one for name, one in self.rates.items()},
            **{f"update ratio: {name}": one for name, one in self.ratios.items()},
        }
        return tuple(
            Curve(name, tuple(x for x, _ in one.points), tuple(y for _, y in one.points))
            for name, one in named.items()
            if one.points
        )

    def vetoes(self) -> tuple[Veto, ...]:
        """The first attempts that did not step."""
        return tuple(Veto(attempt, reason) for attempt, reason in self.gate.vetoes)

    def _deal(self, split: str) -> None:
        seen, terms = probing.deal(
            self.trainer,
            self.module,
            self.anatomy.layers,
            self._kept[split],
            step=self.steps,
            split=split,
        )
        self.deals.append(seen)
        self.terms.see_returned(terms, self.batches)
        self._unseen.pop("labels", None)

    def _rates_now(self) -> Rates:
        """The audit of the start, with what has been observed of schedulers since."""
        rates = self._audit or Rates()
        new_steps = self.steps - self.steps_before
        pairs = zip(self._schedulers, self._moves_before, strict=True)
        moved = [_moves(scheduler) - before for (scheduler, _), before in pairs]
        if not moved or self._planned is None or new_steps < schedule_audit.FEWEST_STEPS:
            return schedule_audit.with_moves(rates, max(moved, default=0))
        for index, (scheduler, interval) in enumerate(self._schedulers):
            if interval is None and self.epochs > 0:
                is_per_epoch = moved[index] <= self.epochs + 1 and new_steps > 4 * self.epochs
                self._schedulers[index] = (scheduler, "epoch" if is_per_epoch else "step")
                self._audit = schedule_audit.audit(
                    self.trainer.optimizers,
                    self._schedulers,
                    self._planned,
                    self._n_epochs,
                    self._asked,
                )
                rates = self._audit
        return schedule_audit.with_moves(rates, max(moved))

    def _take_ratios(self, step: int, ratios: dict[str, float]) -> None:
        for name, ratio in ratios.items():
            self.ratios.setdefault(name, Series()).add(self.steps_before + step, ratio)

    def _norm(self) -> float:
        weights = [
            p for one in self.trainer.optimizers for g in one.param_groups for p in g["params"]
        ]
        gradients = [p.grad for p in weights if p.grad is not None and not p.grad.is_sparse]
        return group_norms({"": gradients})[""] if gradients else 0.0

    def _scaler(self) -> Any:
        scaler = self._plugin_scaler
        return scaler if scaler is not None and scaler.is_enabled() else None

    def _scale(self) -> float:
        scaler = self._scaler()
        return 1.0 if scaler is None else float(scaler.get_scale())

    def _factor(self) -> float:
        """What the loss of a backward pass was multiplied by."""
        accumulated = self.trainer.accumulate_grad_batches
        if not self._is_automatic:
            accumulated = self._accumulated
        return self._scale() / accumulated


def _planned_steps(trainer: Trainer, module: LightningModule) -> tuple[int | None, int | None]:
    """Steps and epochs of the whole run, as far as they are limited."""
    epochs = trainer.max_epochs if trainer.max_epochs not in (None, -1) else None
    n_batches = trainer.num_training_batches
    accumulated = getattr(module, "accumulate", trainer.accumulate_grad_batches)
    steps: float = math.inf
    if epochs is not None and math.isfinite(n_batches) and isinstance(accumulated, int):
        steps = epochs * math.ceil(n_batches / accumulated)
    if trainer.max_steps not in (None, -1):
        steps = min(steps, trainer.max_steps // max(len(trainer.optimizers), 1))
    return (int(steps) if math.isfinite(steps) else None), epochs


def _interval(module: LightningModule, interval: str) -> str | None:
    """How often a scheduler moves; None where its user steps it by hand."""
    is_known = module.automatic_optimization or hasattr(module, "gate")
    return interval if is_known else None


def _moves(scheduler: Any) -> int:
    return int(getattr(scheduler, "last_epoch", 0))
