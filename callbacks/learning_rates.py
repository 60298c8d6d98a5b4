"""LearningRates: which rate did the step use, group by group?"""

import logging
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch.optim import Optimizer
from typing_extensions import override

from callbacks.observing import Cadence, StepObserver, rates_by_group, write_series
from musicnet.gate.step_gate import StepReport

log = logging.getLogger(__name__)


class LearningRates(StepObserver):
    """Logs the rate of every named group that the first real step of an epoch used.

    It is the rate of the step itself, not the one that a scheduler set after it. An epoch in which
    no step was made used no rate and has no line.
    Series, over batches, at every n-th attempt too: `optim/lr/<group>`.

    What bad looks like: a rate that does not move in a warm-up, or is still tiny after it; groups
    whose rates are not in the ratio that was asked for.

    Args:
        every_n: attempts (without a gate: steps) from one point of the series to the next.

    Example:
        >>> rates_line(1, {"backbone": 0.0003, "head": 0.0012})
        "[LR] epoch=1 groups=['backbone', 'head'] lr=[0.0003, 0.0012]"
    """

    def __init__(self, every_n: int = 50) -> None:
        self._cadence = Cadence(every_n)
        self._shown_epoch: int | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._shown_epoch = None  # before a checkpoint is read, which may bring it back

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"shown_epoch": self._shown_epoch}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._shown_epoch = state_dict["shown_epoch"]

    @override
    def on_step_gate(
        self, trainer: Trainer, pl_module: LightningModule, report: StepReport
    ) -> None:
        if report.stepped and self._is_due(trainer, report.attempt):
            self._show(trainer, report.lr)

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        # Fired by a gate's step too, whose report has the rates.
        if self._is_due(trainer, trainer.global_step + 1) and not self.hears_gate:
            self._show(trainer, rates_by_group(trainer.optimizers))

    def _is_due(self, trainer: Trainer, attempt: int) -> bool:
        return self._shown_epoch != trainer.current_epoch or self._cadence.is_due(attempt)

    def _show(self, trainer: Trainer, rates: Mapping[str, float]) -> None:
        if self._shown_epoch != trainer.current_epoch:
            self._shown_epoch = trainer.current_epoch
            if trainer.is_global_zero:
                log.info("%s", rates_line(trainer.current_epoch + 1, rates))
        write_series(trainer, {f"optim/lr/{name}": rate for name, rate in rates.items()})


def rates_line(epoch: int, rates: Mapping[str, float]) -> str:
    """The console line of one epoch; epochs count from 1, rates have six digits."""
    rounded = [float(f"{rate:.6g}") for rate in rates.values()]
    return f"[LR] epoch={epoch} groups={list(rates)} lr={rounded}"
