"""What the callbacks share: when to look, what groups are called, what a norm is, where it goes."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from musicnet.gate.step_gate import StepReport, groups_by_name


@dataclass(frozen=True)
class Cadence:
    """When to look: at the first time, and at every n-th after it.

    The gate gives norms per group at the same attempts if its `group_norms_every` is n too.

    Args:
        every_n: n, in attempts of the gate, or in optimiser steps where there is no gate.

    Example:
        >>> [attempt for attempt in range(1, 150) if Cadence(50).is_due(attempt)]
        [1, 51, 101]
    """

    every_n: int

    def __post_init__(self) -> None:
        if not isinstance(self.every_n, int) or self.every_n < 1:
            raise ValueError(
                f"every_n must be a whole number >= 1: got {self.every_n}. "
                "Use 1 to look at every step, or leave the callback out."
            )

    def is_due(self, attempt: int) -> bool:
        """Whether to look at this attempt; the first is number 1."""
        return (attempt - 1) % self.every_n == 0

    def is_worth_a_line(self, report: StepReport) -> bool:
        """Whether to tell of this attempt: it was not ok, was the first real step, or is due."""
        return report.reason != "ok" or report.step == 1 or self.is_due(report.attempt)


class StepObserver(Callback):
    """A callback that hears of every attempt of a gate; the gate itself calls.

    Attributes:
        hears_gate: whether a gate has spoken in this fit: then Lightning's hooks of a step, which
            a gate's step fires too, tell nothing new.
    """

    hears_gate = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.hears_gate = False

    def on_before_step_gate(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """The gradients are there, the gate has not looked at them yet."""
        self.hears_gate = True

    def on_step_gate(
        self, trainer: Trainer, pl_module: LightningModule, report: StepReport
    ) -> None:
        """The gate has decided, and the optimisers have stepped or not."""


def parameters_by_group(optimizers: Iterable[Optimizer]) -> dict[str, list[Tensor]]:
    """The parameters of each optimiser group by its name.

    Args:
        optimizers: the raw optimisers.

    Returns:
        Groups in order, named as in the gate's reports.
    """
    return {name: list(group["params"]) for name, group in groups_by_name(optimizers).items()}


def rates_by_group(optimizers: Iterable[Optimizer]) -> dict[str, float]:
    """The learning rate of each optimiser group by its name, as `parameters_by_group` names it."""
    return {name: float(group["lr"]) for name, group in groups_by_name(optimizers).items()}


def total_norm(norms: Mapping[str, float]) -> float:
    """The norm of all groups together.

    Example:
        >>> total_norm({"backbone": 3.0, "head": 4.0})
        5.0
    """
    return math.hypot(*norms.values())


def write_series(trainer: Trainer, values: Mapping[str, float]) -> None:
    """Give the values to the trainer's loggers, if any; the x-axis counts batches, as Lightning's.

    This goes past `LightningModule.log`, which would work on them at every step.
    """
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step=trainer.fit_loop.epoch_loop.total_batch_idx)
