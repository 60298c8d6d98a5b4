"""What the callbacks share: when to look, what groups are called, what a norm is, where it goes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from musicnet.gate.step_gate import StepGate, StepReport

_HALF = (torch.float16, torch.bfloat16)


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
        if self.every_n < 1:
            raise ValueError(
                f"every_n must be >= 1: got {self.every_n}. "
                "Use 1 to look at every step, or leave the callback out."
            )

    def is_due(self, attempt: int) -> bool:
        """Whether to look at this attempt; the first is number 1."""
        return (attempt - 1) % self.every_n == 0

    def is_worth_a_line(self, report: StepReport) -> bool:
        """Whether to tell of this attempt: a veto, the first real step, or one that is due."""
        return not report.stepped or report.step == 1 or self.is_due(report.attempt)


class StepObserver(Callback):
    """A callback that hears of every attempt of the gate; the module that owns the gate calls."""

    def on_before_step_gate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The gradients are there, the gate has not looked at them yet."""

    def on_step_gate(
        self, trainer: Trainer, pl_module: LightningModule, report: StepReport
    ) -> None:
        """The gate has decided, and the optimisers have stepped or not."""


def is_gated(module: LightningModule) -> bool:
    """Whether the module's steps go through a gate that reports every attempt."""
    return isinstance(getattr(module, "gate", None), StepGate)


def parameters_by_group(optimizers: Iterable[Optimizer]) -> dict[str, list[Tensor]]:
    """The parameters of each optimiser group by its name.

    Args:
        optimizers: the raw optimisers.

    Returns:
        Groups in order, named as in the gate's reports: by their `name`, else by their number; a
        name that several optimisers use gets the optimiser's number in front.

    Example:
        >>> weight, bias = torch.nn.Linear(3, 1).parameters()
        >>> groups = [{"params": [weight], "name": "head"}, {"params": [bias]}]
        >>> list(parameters_by_group([torch.optim.SGD(groups, lr=0.1)]))
        ['head', 'group1']
    """
    return {name: list(group["params"]) for name, group in _named_groups(optimizers).items()}


def rates_by_group(optimizers: Iterable[Optimizer]) -> dict[str, float]:
    """The learning rate of each optimiser group by its name, as `parameters_by_group` names it."""
    return {name: float(group["lr"]) for name, group in _named_groups(optimizers).items()}


def _named_groups(optimizers: Iterable[Optimizer]) -> dict[str, dict[str, Any]]:
    named: dict[str, dict[str, Any]] = {}
    for number, optimizer in enumerate(optimizers):
        for index, group in enumerate(optimizer.param_groups):
            name = str(group.get("name", f"group{index}"))
            named[f"{number}.{name}" if name in named else name] = group
    return named


@torch.no_grad()
def group_norms(groups: Mapping[str, Sequence[Tensor]]) -> dict[str, float]:
    """The Euclidean norm of each group, as of one long vector; waits for the device once.

    Args:
        groups: tensors of any shape, dtype and device by group; half precision adds up in float32.

    Example:
        >>> group_norms({"head": [torch.tensor([3.0]), torch.tensor([[4.0]])], "tail": []})
        {'head': 5.0, 'tail': 0.0}
    """
    device = next((tensor.device for tensors in groups.values() for tensor in tensors), None)
    norms = []
    for tensors in groups.values():
        parts = [_norm(tensor).to(device, torch.float32) for tensor in tensors]
        stacked = torch.stack(parts) if parts else torch.zeros(1, device=device)
        norms.append(torch.linalg.vector_norm(stacked))
    return dict(zip(groups, torch.stack(norms).tolist() if norms else [], strict=True))


def total_norm(norms: Mapping[str, float]) -> float:
    """The norm of all groups together.

    Example:
        >>> total_norm({"backbone": 3.0, "head": 4.0})
        5.0
    """
    return float(sum(norm**2 for norm in norms.values()) ** 0.5)


def _norm(tensor: Tensor) -> Tensor:
    values = tensor.coalesce().values() if tensor.is_sparse else tensor
    norm = torch.linalg.vector_norm(values, dtype=torch.float32 if values.dtype in _HALF else None)
    # The norm of a sharded tensor (FSDP2) is in pieces until it is gathered.
    whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return whole


def write_series(trainer: Trainer, values: Mapping[str, float]) -> None:
    """Give the values to the trainer's loggers, if any; the x-axis counts batches, as Lightning's.

    This goes past `LightningModule.log`, which would work on them at every step.
    """
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step=trainer.fit_loop.epoch_loop.total_batch_idx)
