"""A LightningModule whose every optimiser step goes through the gate.

A subclass writes `compute_loss`; backward, accumulation, the gate, schedules, averages, the loss
log and the checkpoint are here.
"""

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau
from typing_extensions import override

from musicnet.gate import checkpoints
from musicnet.gate.averaging import Averaging, WeightAverage, rate_factor
from musicnet.gate.gradients import Gradients
from musicnet.gate.parameter_groups import ParameterGroup, backbone_and_head, named_groups
from musicnet.gate.running_statistics import StatisticsSnapshot, normalisation_layers
from musicnet.gate.schedules import Schedule
from musicnet.gate.settings import check_count
from musicnet.gate.step_gate import GateStuckError, StepGate, StepReport

_PER_EPOCH: dict[str, Any] = {
    "on_step": False,
    "on_epoch": True,
    "batch_size": 1,
    "sync_dist": True,
}


class GatedModule(LightningModule):
    """Trains by manual optimisation under a `StepGate`.

    The gate tells the callbacks of every attempt; a method ``on_step_gate(report)`` of the module
    hears of it after them. A subclass that overrides `on_save_checkpoint`, `on_load_checkpoint` or
    `configure_callbacks` calls these through ``super()``.

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
        check_count("accumulate", accumulate, least=1, advice="Use 1 to step each batch.")
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
        self._layers: list[nn.Module] | None = None
        self._epoch_is_open = False
        self._has_told_of_loss = False
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

        A vetoed loss is never logged: one nan would make the mean of the whole epoch nan. Means
        called ``train/...`` that are not finite at the end of an epoch are warned of.

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
        """Run one batch backward; at the end of its window ask the gate.

        Raises:
            TypeError: `compute_loss` gave no loss.
        """
        if getattr(self.trainer.fit_loop, "_skip_backward", False):
            # Lightning's SWA callback passes over the data once more for batch statistics alone
            self.compute_loss(batch, batch_idx)
            return
        if self._open_batches == 0 or batch_idx == 0:
            self._open_window(is_first=batch_idx == 0)
        losses = _named(self.compute_loss(batch, batch_idx))
        self._epoch_is_open = True
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
            # now, since a validation may save a checkpoint before the hooks of the epoch's end
            self._step_epoch_schedulers()

    @property
    def is_accumulating(self) -> bool:
        """Whether an accumulation window is open, whose gradients no checkpoint holds."""
        return self._open_batches > 0

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
        checkpoints.save_epoch(
            checkpoint,
            checkpoints.EpochCounts(
                is_open=self._epoch_is_open,
                steps_before=self._steps_before_epoch,
                attempts_before=self._attempts_before_epoch,
                has_told_of_loss=self._has_told_of_loss,
            ),
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the state of the gate and of the average."""
        self._saved_shape = checkpoints.load_harness(checkpoint, self, self.gate, self.average)
        counts = checkpoints.load_epoch(checkpoint, self.gate)
        self._epoch_is_open = counts.is_open
        self._steps_before_epoch = counts.steps_before
        self._attempts_before_epoch = counts.attempts_before
        self._has_told_of_loss = counts.has_told_of_loss

    @override
    def configure_callbacks(self) -> list[Callback]:
        """Put the hooks of this module before those of all callbacks."""
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(callback, _FirstHooks) for callback in callbacks):
            callbacks.insert(0, _FirstHooks())
        return []

    def _open_window(self, *, is_first: bool) -> None:
        if is_first or self._layers is None:
            # the walk over all modules is too dear for every window
            self._layers = list(normalisation_layers(self).values())
        for optimizer in self.trainer.optimizers:
            optimizer.zero_grad(set_to_none=True)
        self._open_batches = 0
        self._open_losses = {}
        self._snapshot = StatisticsSnapshot(self._layers)

    def _gradient_sync(self, *, closes: bool) -> AbstractContextManager[None]:
        """Let ranks exchange gradients in the last backward pass of a window only."""
        strategy = self.trainer.strategy
        if closes or not isinstance(strategy, ParallelStrategy):
            return nullcontext()
        return strategy.block_backward_sync()

    def _close_window(self) -> None:
        """Ask the gate."""
        n_batches, self._open_batches = self._open_batches, 0
        if n_batches < self.accumulate:
            # every loss was divided by a full window before anybody knew that this one is short
            Gradients.of(self.trainer.optimizers).scale(self.accumulate / n_batches)
        optimizers = self.optimizers()
        try:
            report = self.gate.attempt(
                self,
                optimizers if isinstance(optimizers, list) else [optimizers],
                schedulers=self._schedulers("step"),
                settle=partial(self._settle, n_batches),
            )
        except GateStuckError:
            self._restore_statistics()
            raise
        listener = getattr(self, "on_step_gate", None)
        if listener is not None:
            listener(report)

    def _settle(self, n_batches: int, report: StepReport) -> None:
        """Move or restore what hangs on the answer of the gate."""
        self.last_report = report
        if report.stepped:
            if self.average is not None:
                self.average.follow(self, report.step, self.total_steps)
            self.log_losses({n: v / n_batches for n, v in self._open_losses.items()})
        else:
            self._restore_statistics()

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

    def _settle_length(self) -> None:
        """Count the real steps of the run, unless the schedule has done so already."""
        if not self.total_steps:
            n_optimizers = len(self.trainer.optimizers)
            self.total_steps = self.schedule.total(self.trainer, self.accumulate, n_optimizers)

    def _step_epoch_schedulers(self) -> None:
        """Step the schedulers that count epochs, once in an epoch."""
        # an epoch of vetoes has moved nothing, so that no rate may move either
        has_moved = self._epoch_is_open and self.gate.steps > self._steps_before_epoch
        self._epoch_is_open = False
        for scheduler in self._schedulers("epoch") if has_moved else ():
            scheduler.step()

    def _end_epoch(self) -> None:
        """Log what the gate did in this epoch, whatever ended it, and warn of what got lost."""
        self._step_epoch_schedulers()
        steps = self.gate.steps - self._steps_before_epoch
        attempts = self.gate.attempts - self._attempts_before_epoch
        self._steps_before_epoch = self.gate.steps
        self._attempts_before_epoch = self.gate.attempts
        self.log("gate/step_real", float(self.gate.steps), **_PER_EPOCH)
        self.log("gate/vetoed_fraction", (attempts - steps) / max(attempts, 1), **_PER_EPOCH)
        if self._open_batches:
            warnings.warn(
                f"the epoch was stopped inside an accumulation window: the gradients of "
                f"{self._open_batches} batches are lost",
                stacklevel=2,
            )
            self._open_batches = 0
        if steps and not self._has_told_of_loss:
            self._look_at_losses()

    def _look_at_losses(self) -> None:
        """Warn once of losses that are not finite though the gradients were.

        At the end of an epoch their means are computed anyway; to look at every loss would wait
        for the device in every step.
        """
        means = {n: m for n, m in self.trainer.callback_metrics.items() if n.startswith("train/")}
        broken = [name for name, mean in means.items() if not math.isfinite(mean)]
        if broken:
            self._has_told_of_loss = True
            warnings.warn(
                f"{', '.join(broken)} of epoch {self.current_epoch + 1} must be finite as the "
                "gradients were, which alone decide on a step: got a mean of "
                f"{', '.join(str(float(means[name])) for name in broken)}. Look for what hides "
                "the loss from the gradients, as torch.nan_to_num or a branch without weights does",
                stacklevel=2,
            )


class _FirstHooks(Callback):
    """Calls the module before any callback runs, so that each reads this epoch's numbers.

    Lightning calls the hooks of a module itself after those of the callbacks.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and isinstance(pl_module, GatedModule):
            pl_module.total_steps = 0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(pl_module, GatedModule):
            pl_module._settle_length()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(pl_module, GatedModule):
            pl_module._end_epoch()


def _named(losses: object) -> dict[str, Tensor]:
    """Give what `compute_loss` gave by name."""
    named: dict[str, Any] = dict(losses) if isinstance(losses, Mapping) else {"loss": losses}
    if "loss" not in named or not all(isinstance(loss, Tensor) for loss in named.values()):
        raise TypeError(
            "compute_loss must return a scalar tensor, or a mapping of them with one at 'loss': "
            f"got {', '.join(f'{name!r}: {type(loss).__name__}' for name, loss in named.items())}."
        )
    return named


def _base_rate(optimizer: OptimizerCallable) -> float:
    """Read the learning rate off an optimiser built for nothing, so that bad numbers show early."""
    probe = optimizer([nn.Parameter(torch.zeros(1, 1))])
    for name, value in probe.defaults.items():
        numbers = value if isinstance(value, tuple | list) else (value,)
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise ValueError(f"optimizer.{name} must be finite: got {value}.")
    return float(probe.param_groups[0]["lr"])
