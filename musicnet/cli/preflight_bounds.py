"""How far a preflight goes, and what it must reach."""

import math
from dataclasses import dataclass

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden

from musicnet.cli.refusals import ConfigurationError


@dataclass(frozen=True)
class PreflightBounds:
    """What `preflight=true` does before a run.

    Args:
        n_batches: of training; the same ones again and again.
        max_steps: most optimiser steps, at least one for each of the batches; it ends as soon as
            the loss has fallen far enough.
        max_seconds: most seconds, what is built for it included; then training begins only if the
            loss has fallen by a tenth and nothing speaks against the model.
        min_loss_drop: share of the first loss that must be gone, in (0, 1); None asks only that
            weights move and the doctor finds no error, for losses that start below zero.
        loss: key of the loss that is followed, as the model logs it in validation.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> PreflightBounds(min_loss_drop=50.0)
        Traceback (most recent call last):
        ValueError: min_loss_drop must be a share between 0 and 1: got 50.0.
    """

    n_batches: int = 1
    max_steps: int = 200
    max_seconds: float = 60.0
    min_loss_drop: float | None = 0.5
    loss: str = "val/loss"

    def __post_init__(self) -> None:
        for name in ("n_batches", "max_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: got {getattr(self, name)}.")
        if not 0.0 < self.max_seconds < math.inf:
            raise ValueError(f"max_seconds must be finite and > 0: got {self.max_seconds}.")
        if self.max_steps < self.n_batches:
            raise ValueError(
                f"max_steps must be at least n_batches, {self.n_batches}: got {self.max_steps}."
            )
        if self.min_loss_drop is not None and not 0.0 < self.min_loss_drop < 1.0:
            raise ValueError(
                f"min_loss_drop must be a share between 0 and 1: got {self.min_loss_drop}."
            )


def check_preflight(trainer: Trainer, model: LightningModule) -> None:
    """Refuse a preflight that could not tell, or that one process could not do for all.

    Args:
        trainer: of the run that comes after it.
        model: that it trains.

    Raises:
        ConfigurationError: the model does not validate, no process holds the whole of it, or other
            processes would run beside.
    """
    strategy = trainer.strategy
    if not is_overridden("validation_step", model):
        raise ConfigurationError(
            "preflight judges by a validation on what it trains on: got "
            f"{type(model).__name__}, which has no validation_step. Write one that logs val/loss."
        )
    if trainer.world_size == 1:
        return
    kind = type(strategy).__name__
    if not isinstance(strategy, DDPStrategy):
        raise ConfigurationError(
            f"preflight trains the whole model in one process: got trainer.strategy {kind}, which "
            "need not fit there. Leave preflight out, or use trainer=ddp."
        )
    environment = strategy.cluster_environment
    if environment is not None and environment.creates_processes_externally:
        raise ConfigurationError(
            "preflight comes before the other processes are started: got "
            f"{type(environment).__name__}, which starts all at once. Leave preflight out."
        )
