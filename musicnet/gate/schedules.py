"""Learning rates over real optimiser steps: warm-up, then the main schedule.

A rate is a pure function of the number of real steps, so that a vetoed step moves nothing and a
resumed run needs nothing but that number.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal

from lightning.pytorch import Trainer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau
from typing_extensions import override

from musicnet.gate.settings import check_count


@dataclass(frozen=True)
class Schedule:
    """Factor of the learning rate at every real step.

    Args:
        warmup_steps: Steps until the factor is 1; None takes
            ``min(warmup_cap, total // warmup_divisor)``.
        warmup_floor: Smallest factor during the warm-up.
        shape: What follows the warm-up.
        final_factor: Where the cosine ends, at the last step.
        total_steps: Real steps of the whole run; None computes them from the trainer.
        warmup_cap: Most steps that a computed warm-up takes.
        warmup_divisor: Share of the run that a computed warm-up takes, as its inverse.

    Raises:
        ValueError: a number is not finite, not whole where it counts, or out of range.

    Example:
        >>> schedule = Schedule(shape="constant")
        >>> [schedule.factor(step, total=200) for step in range(5)]
        [0.1, 0.25, 0.5, 0.75, 1.0]
    """

    warmup_steps: int | None = None
    warmup_floor: float = 0.1
    shape: Literal["cosine", "constant"] = "cosine"
    final_factor: float = 0.01
    total_steps: int | None = None
    warmup_cap: int = 10
    warmup_divisor: int = 50

    def __post_init__(self) -> None:
        at_least = {"warmup_steps": 0, "total_steps": 1, "warmup_cap": 0, "warmup_divisor": 1}
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None:
                check_count(name, value, least)
        for name in ("warmup_floor", "final_factor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in 0 to 1: got {getattr(self, name)}.")
        if self.shape not in ("cosine", "constant"):
            raise ValueError(f"shape must be 'cosine' or 'constant': got {self.shape!r}.")

    def warmup(self, total: int) -> int:
        """Give the number of warm-up steps in a run of so many real steps."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return min(self.warmup_cap, total // self.warmup_divisor)

    def factor(self, step: int, total: int) -> float:
        """Give what the learning rate is multiplied by.

        Args:
            step: Real steps taken before this one.
            total: Real steps of the whole run.

        Returns:
            ``max(floor, step / warmup)`` during the warm-up, 1 at its end, then the main schedule.
        """
        warmup = self.warmup(total)
        if step < warmup:
            return max(self.warmup_floor, step / warmup)
        if self.shape == "constant":
            return 1.0
        progress = min((step - warmup) / max(total - warmup, 1), 1.0)
        return self.final_factor + (1 - self.final_factor) * (1 + math.cos(math.pi * progress)) / 2

    def total(self, trainer: Trainer, accumulate: int, n_optimizers: int = 1) -> int:
        """Settle the real steps of a run, computed from the trainer unless they were given.

        Args:
            trainer: Attached to the module that asks.
            accumulate: Batches per attempt.
            n_optimizers: Optimisers that step per attempt; each counts towards ``max_steps``.

        Raises:
            ValueError: the run has no end and ``total_steps`` was not given.
        """
        planned = planned_steps(trainer, accumulate, n_optimizers)
        if self.total_steps is None and not math.isfinite(planned):
            raise ValueError(
                "a schedule needs to know the length of the run: got an endless one "
                f"(max_epochs={trainer.max_epochs}, max_steps={trainer.max_steps}). "
                "Set schedule.total_steps, or a limit of the trainer."
            )
        total = int(planned) if self.total_steps is None else self.total_steps
        if 0 < planned < math.inf and total != planned:
            warnings.warn(
                f"the schedule is laid out for total_steps={total} and the run makes "
                f"{int(planned)}: its last step has {self.factor(int(planned) - 1, total):.0%} of "
                "the learning rate. Set schedule.total_steps to null to follow the run",
                stacklevel=2,
            )
        if 0 < total <= self.warmup(total):
            warnings.warn(
                f"warm-up of {self.warmup(total)} steps is not shorter than the run of {total}: "
                f"the learning rate never passes {self.factor(total - 1, total):.0%} of its value",
                stacklevel=2,
            )
        return total


class RealStepRates(LambdaLR):
    """Rates by one factor for all groups, those included that come into the optimiser mid-run.

    A group that comes later has the rate that it came with until the next real step.

    Example:
        >>> import torch
        >>> weight, bias = torch.nn.Linear(1, 1).parameters()
        >>> optimizer = torch.optim.SGD([weight], lr=1.0)
        >>> rates = RealStepRates(optimizer, lambda step: 0.5**step)
        >>> optimizer.add_param_group({"params": [bias], "lr": 4.0})
        >>> optimizer.step(); rates.step()
        >>> [group["lr"] for group in optimizer.param_groups]
        [0.5, 2.0]
    """

    @override
    def get_lr(self) -> list[Any]:
        for group in self.optimizer.param_groups[len(self.base_lrs) :]:
            self.base_lrs.append(group.setdefault("initial_lr", group["lr"]))
            self.lr_lambdas.append(self.lr_lambdas[0])
        return super().get_lr()


def schedulers_of(trainer: Trainer, interval: str) -> list[LRScheduler]:
    """Find the schedulers of a run that count steps or epochs, those of callbacks included.

    Args:
        trainer: Of the run.
        interval: "step" or "epoch".

    Raises:
        TypeError: one of them waits for a metric that never comes.
    """
    found = []
    for config in trainer.lr_scheduler_configs:
        if isinstance(config.scheduler, ReduceLROnPlateau):
            raise TypeError(
                "schedulers of a gated module must count real steps or epochs: got "
                "ReduceLROnPlateau, whose metric Lightning drops under manual optimisation. "
                "Use musicnet.gate.schedules, or step it yourself in on_validation_end."
            )
        if config.interval == interval:
            found.append(config.scheduler)
    return found


def planned_steps(trainer: Trainer, accumulate: int, n_optimizers: int = 1) -> float:
    """Count the attempts that a run will make if nothing is vetoed.

    Args:
        trainer: Its training loader is set up if it is not yet.
        accumulate: Batches per attempt; the last window of an epoch may be shorter.
        n_optimizers: Optimisers that step per attempt.

    Returns:
        Steps from the first epoch on; infinite if nothing limits them.
    """
    _count_batches(trainer)
    epochs = math.inf if trainer.max_epochs in (None, -1) else float(trainer.max_epochs or 0)
    # a limit of 0 leaves the number at infinity, since Lightning does not look at the loader then
    is_empty = getattr(trainer, "limit_train_batches", None) == 0
    batches = 0.0 if is_empty else float(trainer.num_training_batches)
    windows = math.ceil(batches / accumulate) if math.isfinite(batches) else math.inf
    # zero epochs of an endless loader are zero steps, not nan
    steps = windows * epochs if epochs and windows else 0.0
    if trainer.max_steps != -1:
        steps = min(steps, float(trainer.max_steps // n_optimizers))
    return steps


def _count_batches(trainer: Trainer) -> None:
    """Let the trainer set up its training loader, so that it knows how many batches there are."""
    loop = trainer.fit_loop
    is_first_time = getattr(loop, "_combined_loader", None) is None
    loop.setup_data()
    if is_first_time and getattr(trainer, "ckpt_path", None) is not None:
        # the state of a loader is taken from a checkpoint only where a loop sets the loader up,
        # and the checkpoint's loops come later than this
        loop._combined_loader = None
