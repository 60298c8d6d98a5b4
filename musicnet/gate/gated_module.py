"""A LightningModule whose every optimiser step goes through the gate.

A subclass writes `compute_loss`; backward, accumulation, the gate, schedules, averages, the loss
log and the checkpoint are here.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import LBFGS
from typing_extensions import override

from musicnet.gate import checkpoints
from musicnet.gate.averaging import Averaging, WeightAverage, rate_factor
from musicnet.gate.foreign_parts import (
    check_callbacks,
    make_hyperparameters_plain,
    warn_of_broken_means,
    warn_of_lost_order,
)
from musicnet.gate.gradients import Gradients
from musicnet.gate.parameter_groups import (
    ParameterGroup,
    backbone_and_head,
    base_rate_of,
    named_groups,
)
from musicnet.gate.ranks import gradient_sync
from musicnet.gate.running_statistics import normalisation_layers
from musicnet.gate.schedules import RealStepRates, Schedule, schedulers_of
from musicnet.gate.settings import check_count
from musicnet.gate.sharding import settle_foreach, shard
from musicnet.gate.step_gate import GateStuckError, StepGate, StepReport
from musicnet.gate.windows import Window, named_losses

_PER_EPOCH: dict[str, Any] = {
    "on_step": False,
    "on_epoch": True,
    "batch_size": 1,
    "sync_dist": True,
}


class GatedModule(LightningModule):
    """Trains by manual optimisation under a `StepGate`.

    The gate tells the callbacks of every attempt; a method ``on_step_gate(report)`` of the module
    hears of it after them. A subclass that overrides `on_save_checkpoint`, `on_load_checkpoint`,
    `configure_callbacks` or `configure_model` calls these through ``super()``.

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
        self.base_rate = base_rate_of(optimizer)
        self.total_steps = 0
        self.last_report: StepReport | None = None
        self._build_optimizer = optimizer
        self._window: Window | None = None
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
        settle_foreach(optimizer)
        self.total_steps = self.schedule.total(self.trainer, self.accumulate)
        if self._saved_shape is not None:
            checkpoints.compare_shapes(self._saved_shape, self._run_shape())
        averaging = self.average.settings if self.average is not None else None
        scheduler = RealStepRates(
            optimizer, rate_factor(self.schedule, averaging, self.total_steps)
        )
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
        if self._window is None or batch_idx == 0:
            self._window = self._open_window(is_first=batch_idx == 0)
        window = self._window
        window.n_batches += 1
        self._epoch_is_open = True
        is_last = bool(self.trainer.is_last_batch)
        closes = is_last or window.n_batches == self.accumulate
        if self._evaluates_itself():
            window.kept.append((batch, batch_idx))
        else:
            self._run_backward(window, batch, batch_idx, share=1 / self.accumulate, syncs=closes)
        if closes:
            self._close_window(window)
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
        make_hyperparameters_plain(checkpoint)
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
    def configure_model(self) -> None:
        """Spread the parameter groups over the ranks of a sharded run.

        Raises:
            ValueError: an average is kept, which needs the whole weights on every rank.
        """
        shard(self, self.parameter_groups, keeps_average=self.average is not None)

    @override
    def configure_callbacks(self) -> list[Callback]:
        """Put the hooks of this module before those of all callbacks."""
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(callback, _FirstHooks) for callback in callbacks):
            callbacks.insert(0, _FirstHooks())
        return []

    @property
    def _open_batches(self) -> int:
        return self._window.n_batches if self._window is not None else 0

    def _open_window(self, *, is_first: bool) -> Window:
        if is_first or self._layers is None:
            # the walk over all modules is too dear for every window
            self._layers = list(normalisation_layers(self).values())
        for optimizer in self.trainer.optimizers:
            optimizer.zero_grad(set_to_none=True)
        return Window(self._layers)

    def _evaluates_itself(self) -> bool:
        """Whether an optimiser asks for losses as often as it needs them."""
        return any(isinstance(optimizer, LBFGS) for optimizer in self.trainer.optimizers)

    def _run_backward(
        self, window: Window, batch: Any, batch_idx: int, *, share: float, syncs: bool
    ) -> Tensor:
        """Add the gradients of a share of one batch's loss; note the losses, and give the share."""
        losses = named_losses(self.compute_loss(batch, batch_idx))
        loss = losses["loss"] * share
        # a loss without a graph is the gate's to tell; ranks would wait for each other for ever
        if loss.requires_grad or self.trainer.world_size > 1:
            with gradient_sync(self.trainer.strategy, syncs=syncs):
                self.manual_backward(loss)
        window.add(losses)
        return loss.detach()

    def _closure(self, window: Window) -> Callable[[], Tensor] | None:
        """Give what evaluates a whole window from the start, if an optimiser needs that."""
        if not window.kept:
            return None

        def evaluate() -> Tensor:
            for optimizer in self.trainer.optimizers:
                optimizer.zero_grad(set_to_none=True)
            # losses are those of the weights that the window has found
            seen = Window([]) if window.has_losses else window
            *earlier, last = window.kept
            share = 1 / window.n_batches
            parts = [self._run_backward(seen, *b, share=share, syncs=False) for b in earlier]
            parts.append(self._run_backward(seen, *last, share=share, syncs=True))
            return torch.stack(parts).sum()

        return evaluate

    def _close_window(self, window: Window) -> None:
        """Ask the gate."""
        self._window = None
        if window.n_batches < self.accumulate and not window.kept:
            # every loss was divided by a full window before anybody knew that this one is short
            Gradients.of(self.trainer.optimizers).scale(self.accumulate / window.n_batches)
        optimizers = self.optimizers()
        try:
            report = self.gate.attempt(
                self,
                optimizers if isinstance(optimizers, list) else [optimizers],
                closure=self._closure(window),
                schedulers=schedulers_of(self.trainer, "step"),
                settle=partial(self._settle, window),
            )
        except GateStuckError:
            window.restore_statistics()
            raise
        listener = getattr(self, "on_step_gate", None)
        if listener is not None:
            listener(report)

    def _settle(self, window: Window, report: StepReport) -> None:
        """Move or restore what hangs on the answer of the gate."""
        self.last_report = report
        if report.stepped:
            if self.average is not None:
                self.average.follow(self, report.step, self.total_steps)
            self.log_losses(window.mean_losses())
        else:
            window.restore_statistics()

    def _run_shape(self) -> checkpoints.RunShape:
        return checkpoints.RunShape(
            groups=checkpoints.fingerprints(self, self.parameter_groups),
            total_steps=self.total_steps,
            accumulate=self.accumulate,
            world_size=self.trainer.world_size,
        )

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
        for scheduler in schedulers_of(self.trainer, "epoch") if has_moved else ():
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
        if self._window is not None:
            warnings.warn(
                f"the epoch was stopped inside an accumulation window: the gradients of "
                f"{self._window.n_batches} batches are lost",
                stacklevel=2,
            )
            self._window = None
        if steps and not self._has_told_of_loss:
            self._has_told_of_loss = warn_of_broken_means(self.trainer)


class _FirstHooks(Callback):
    """Calls the module before any callback runs, so that each reads this epoch's numbers.

    Lightning calls the hooks of a module itself after those of the callbacks.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and isinstance(pl_module, GatedModule):
            check_callbacks(trainer)
            pl_module.total_steps = 0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(pl_module, GatedModule):
            warn_of_lost_order(trainer)
            pl_module._settle_length()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(pl_module, GatedModule):
            pl_module._end_epoch()
