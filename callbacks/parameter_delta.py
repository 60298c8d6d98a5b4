"""ParameterDelta: how far did the weights move in a step?"""

import logging
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from callbacks.observing import (
    Cadence,
    StepObserver,
    parameters_by_group,
    rates_by_group,
    total_norm,
    write_series,
)
from musicnet.gate.step_gate import StepReport, group_norms

log = logging.getLogger(__name__)


class ParameterDelta(StepObserver):
    """Logs how far all parameters moved across one real step, at the first and at every n-th.

    Only then are the parameters copied. An attempt that is due and is vetoed is shown as the zero
    that it is, and the next one is measured in its place.
    Series, over batches: `optim/delta` and, for each group, `optim/delta/<group>` and
    `optim/delta_ratio/<group>`, the way over the norm of the weights.

    What bad looks like: a zero (it warns: the optimiser stepped and nothing moved); a ratio far
    above 1e-2 or below 1e-5 while the loss stands still. It also warns if parameters moved though
    the gate vetoed the step: something else writes them.

    Args:
        every_n: attempts (without a gate: steps) from one measurement to the next.

    Example:
        >>> delta_line(0.001234)
        '[STEP] Δparam ||·||₂ = 1.234e-03'
    """

    def __init__(self, every_n: int = 50) -> None:
        self._cadence = Cadence(every_n)
        self._attempts = 0
        self._is_owed = False
        self._before: dict[str, list[Tensor]] | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":  # before a checkpoint is read, which may bring these back
            self._attempts = 0
            self._is_owed = False
            self._before = None

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"attempts": self._attempts, "is_owed": self._is_owed}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._attempts = int(state_dict["attempts"])
        self._is_owed = bool(state_dict["is_owed"])

    @override
    def on_before_step_gate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_before_step_gate(trainer, pl_module)
        self._is_owed |= self._cadence.is_due(self._attempts + 1)
        if self._is_owed:
            self._remember(trainer)

    @override
    def on_step_gate(
        self, trainer: Trainer, pl_module: LightningModule, report: StepReport
    ) -> None:
        self._attempts = report.attempt
        if self._before is not None:
            self._is_owed = not report.stepped
            self._show(trainer, step=report.step, stepped=report.stepped)

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        due = self._cadence.is_due(trainer.global_step + 1)
        if due and self._before is None and not self.hears_gate:
            self._remember(trainer)

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self._before is not None:
            self._show(trainer, step=trainer.global_step, stepped=True)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before = None

    def _remember(self, trainer: Trainer) -> None:
        self._before = {
            name: [parameter.detach().clone() for parameter in group]
            for name, group in parameters_by_group(trainer.optimizers).items()
        }

    def _show(self, trainer: Trainer, *, step: int, stepped: bool) -> None:
        copies, self._before = self._before or {}, None
        sizes = group_norms(copies)
        _subtract_(copies, parameters_by_group(trainer.optimizers))
        deltas = group_norms(copies)
        total = total_norm(deltas)
        if trainer.is_global_zero:
            log.info("%s", delta_line(total))
            if stepped and total == 0.0:
                _warn_still(trainer, copies, step)
            if not stepped and total != 0.0:
                log.warning(
                    "parameters moved by %.3e after step %d though the gate vetoed the next one: "
                    "something else writes them",
                    total,
                    step,
                )
        series = {"optim/delta": total}
        for name, delta in deltas.items():
            series[f"optim/delta/{name}"] = delta
            if sizes[name] > 0.0:
                series[f"optim/delta_ratio/{name}"] = delta / sizes[name]
        write_series(trainer, series)


def delta_line(total: float) -> str:
    """The console line of one measured step."""
    return f"[STEP] Δparam ||·||₂ = {total:.3e}"


@torch.no_grad()
def _subtract_(before: dict[str, list[Tensor]], now: dict[str, list[Tensor]]) -> None:
    """Turn the copies into differences where they lie: a third set of weights might not fit."""
    for name, copies in before.items():
        for copy, tensor in zip(copies, now[name], strict=True):
            copy.sub_(tensor)


def _warn_still(trainer: Trainer, weights: dict[str, list[Tensor]], step: int) -> None:
    dtypes = {str(tensor.dtype) for group in weights.values() for tensor in group}
    log.warning(
        "the optimiser made step %d and no parameter moved: the rates are %s, the weights %s. "
        "A rate is zero, an update is below the resolution of the weights, or a loss scaler "
        "skipped the step",
        step,
        rates_by_group(trainer.optimizers),
        ", ".join(sorted(dtypes)),
    )
