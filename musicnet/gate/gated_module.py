"""A LightningModule whose every optimiser step goes through the gate.

A subclass writes `compute_loss`; backward, accumulation, the gate, schedules, averages, the loss
log and the checkpoint are here.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from musicnet.gate import checkpoints
from musicnet.gate.averaging import Averaging, WeightAverage, rate_factor
from musicnet.gate.gradients import Gradients
from musicnet.gate.parameter_groups import ParameterGroup, backbone_and_head, named_groups
from musicnet.gate.running_statistics import StatisticsSnapshot
from musicnet.gate.schedules import Schedule
from musicnet.gate.step_gate import GateStuckError, StepGate, StepReport

_PER_EPOCH: dict[str, Any] = {
    "on_step": False,
    "on_epoch": True,
    "batch_size": 1,
    "sync_dist": True,
}


class GatedModule(LightningModule):
    """Trains by manual optimisation under a `StepGate`.

    After every attempt the callbacks that have it hear ``on_step_gate(trainer, module, report)``,
    and right before it ``on_before_step_gate(trainer, module)``; a method
    ``on_step_gate(report)`` of the module hears it too. A subclass that overrides
    `on_save_checkpoint` or `on_load_checkpoint` calls these through ``super()``.

    Args:
        optimizer: Builds the optimiser from named parameter groups; its own ``lr`` is the base
            rate that the groups scale.
        gate: Decides the steps; None takes its defaults.
        groups: Who trains at which rate; None takes `backbone` at 1x and `head` at 4x.
        schedule: Rates over real steps; None takes its defaults.
        accumulate: Batches per attempt. The last window of an epoch may be shorter and is
            weighted by what it holds.
        averaging: Average of the weights to keep; None keeps none.

    Raises:
        ValueError: a number of the optimiser is out of range, or accumulate < 1.
    """

    def __init__(
        self,
        *,
        optimizer: OptimizerCallable,
        gate: StepGate | None = None,
        groups: list[ParameterGroup] | None = None,
        schedule: Schedule | None = None,
        accumulate: int = 1,
        averaging: Averaging | None = None,
    ) -> None:
        super().__init__()
        if accumulate < 1:
            raise ValueError(
                f"accumulate must be >= 1: got {accumulate}. Use 1 to step each batch."
            )
        self.automatic_optimization = False
        self.gate = gate if gate is not None else StepGate()
        self.parameter_groups = groups if groups is not None else backbone_and_head()
        self.schedule = schedule if schedule is not None else Schedule()
        self.accumulate = accumulate
        self.average = WeightAverage(averaging) if averaging is not None else None
        self.base_rate = _base_rate(optimizer)
        self.total_steps = 0
        self.last_report: StepReport | None = None
        self._build_optimizer = optimizer
        self._open_batches = 0
        self._open_losses: dict[str, Tensor] = {}
        self._snapshot: StatisticsSnapshot | None = None
        self._steps_before_epoch = 0
        self._attempts_before_epoch = 0
        self._saved_shape: checkpoints.RunShape | None = None

    def compute_loss(self, batch: Any, batch_idx: int) -> Tensor | dict[str, Tensor]:
        """Give the loss of a batch: the one method that a subclass has to write.

        Args:
            batch: From the training loader.
            batch_idx: Its number in the epoch.

        Returns:
            The scalar to minimise, or a mapping with it at ``"loss"`` and further scalars to log.
        """
        raise NotImplementedError(f"{type(self).__name__} must define compute_loss.")

    def log_losses(self, losses: dict[str, Tensor]) -> None:
        """Log the losses of a window that has stepped, as ``train/<name>``; override to rename.

        A vetoed loss is never logged: one nan would make the mean of the whole epoch nan.

        Args:
            losses: What `compute_loss` gave, detached, averaged over the window.
        """
        for name, value in losses.items():
            self.log(f"train/{name}", value, **_PER_EPOCH)

    def configure_optimizers(self) -> Any:
        """Build the optimiser over named groups and its schedule in real steps."""
        optimizer = self._build_optimizer(named_groups(self, self.parameter_groups, self.base_rate))
        self.total_steps = self.schedule.total(self.trainer, self.accumulate)
        if self._saved_shape is not None:
            checkpoints.compare_shapes(self._saved_shape, self._run_shape())
        averaging = self.average.settings if self.average is not None else None
        scheduler = LambdaLR(optimizer, rate_factor(self.schedule, averaging, self.total_steps))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Run one batch backward; at the end of its window ask the gate."""
        if getattr(self.trainer.fit_loop, "_skip_backward", False):
            # Lightning's SWA callback passes over the data once more for batch statistics alone
            self.compute_loss(batch, batch_idx)
            return
        if self._open_batches == 0 or batch_idx == 0:
            self._open_window()
        losses = self.compute_loss(batch, batch_idx)
        losses = losses if isinstance(losses, dict) else {"loss": losses}
        self._open_batches += 1
        is_last = bool(self.trainer.is_last_batch)
        closes = is_last or self._open_batches == self.accumulate
        with self._gradient_sync(closes=closes):
            self.manual_backward(losses["loss"] / self.accumulate)
        for name, value in losses.items():
            earlier = self._open_losses.get(name)
            self._open_losses[name] = (
                value.detach() if earlier is None else earlier + value.detach()
            )
        if closes:
            self._close_window()
        if is_last or 0 < self.trainer.max_steps <= self.trainer.global_step:
            self._end_epoch()

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Evaluate inside with the average of the weights; the trained ones come back after.

        Raises:
            RuntimeError: no average is kept, or it has not started.
        """
        if self.average is None:
            raise RuntimeError("no average of the weights is kept: got averaging=None.")
        with self.average.applied(self):
            yield

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state of the gate and of the average."""
        checkpoints.save_harness(
            checkpoint, self.gate, self.average, self._run_shape(), self._open_batches
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the state of the gate and of the average."""
        self._saved_shape = checkpoints.load_harness(checkpoint, self, self.gate, self.average)
        self._steps_before_epoch = self.gate.steps
        self._attempts_before_epoch = self.gate.attempts

    def _open_window(self) -> None:
        for optimizer in self.trainer.optimizers:
            optimizer.zero_grad(set_to_none=True)
        self._open_batches = 0
        self._open_losses = {}
        self._snapshot = StatisticsSnapshot(self)

    def _gradient_sync(self, *, closes: bool) -> AbstractContextManager[None]:
        """Let ranks exchange gradients in the last backward pass of a window only."""
        strategy = self.trainer.strategy
        if closes or not isinstance(strategy, ParallelStrategy):
            return nullcontext()
        return strategy.block_backward_sync()

    def _close_window(self) -> None:
        """Ask the gate, move or restore what hangs on its answer, then tell everybody."""
        n_batches, self._open_batches = self._open_batches, 0
        if n_batches < self.accumulate:
            # every loss was divided by a full window before anybody knew that this one is short
            Gradients.of(self.trainer.optimizers).scale(self.accumulate / n_batches)
        optimizers = self.optimizers()
        self._tell_callbacks("on_before_step_gate")
        try:
            report = self.gate.attempt(
                self,
                optimizers if isinstance(optimizers, list) else [optimizers],
                schedulers=self._schedulers("step"),
            )
        except GateStuckError:
            self._restore_statistics()
            raise
        self.last_report = report
        if report.stepped:
            if self.average is not None:
                self.average.follow(self, report.step, self.total_steps)
            self.log_losses({n: v / n_batches for n, v in self._open_losses.items()})
        else:
            self._restore_statistics()
        self._tell_callbacks("on_step_gate", report)
        listener = getattr(self, "on_step_gate", None)
        if listener is not None:
            listener(report)

    def _schedulers(self, interval: str) -> list[LRScheduler]:
        """Find the schedulers that count steps or epochs, those that callbacks put in included."""
        found = []
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, ReduceLROnPlateau):
                raise TypeError(
                    "schedulers of a gated module must count real steps or epochs: got "
                    "ReduceLROnPlateau, whose metric Lightning drops under manual optimisation. "
                    "Use musicnet.gate.schedules, or step it yourself in on_validation_end."
                )
            if config.interval == interval:
                found.append(config.scheduler)
        return found

    def _run_shape(self) -> checkpoints.RunShape:
        return checkpoints.RunShape(
            groups=checkpoints.fingerprints(self, self.parameter_groups),
            total_steps=self.total_steps,
            accumulate=self.accumulate,
            world_size=self.trainer.world_size,
        )

    def _restore_statistics(self) -> None:
        if self._snapshot is not None:
            self._snapshot.restore()

    def _tell_callbacks(self, hook: str, *arguments: Any) -> None:
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            listener = getattr(callback, hook, None)
            if listener is not None:
                listener(self.trainer, self, *arguments)

    def _end_epoch(self) -> None:
        """Log what the gate did in this epoch; step the schedulers that count epochs."""
        steps = self.gate.steps - self._steps_before_epoch
        attempts = self.gate.attempts - self._attempts_before_epoch
        self._steps_before_epoch = self.gate.steps
        self._attempts_before_epoch = self.gate.attempts
        self.log("gate/step_real", float(self.gate.steps), **_PER_EPOCH)
        self.log("gate/vetoed_fraction", 1 - steps / max(attempts, 1), **_PER_EPOCH)
        # an epoch of vetoes has moved nothing, so that no rate may move either
        for scheduler in self._schedulers("epoch") if steps else ():
            scheduler.step()


def _base_rate(optimizer: OptimizerCallable) -> float:
    """Read the learning rate off an optimiser built for nothing, so that bad numbers show early."""
    probe = optimizer([nn.Parameter(torch.zeros(1, 1))])
    for name, value in probe.defaults.items():
        numbers = value if isinstance(value, tuple | list) else (value,)
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise ValueError(f"optimizer.{name} must be finite: got {value}.")
    return float(probe.param_groups[0]["lr"])
