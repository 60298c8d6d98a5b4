"""Who hears of an attempt: the callbacks of the trainer that runs it, whoever calls the gate."""

from collections.abc import Iterable
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import nn


def trainer_of(module: nn.Module, optimizers: Iterable[object]) -> Trainer | None:
    """Find the trainer of a module, or of the optimisers if the module is a part of another."""
    trainer: Trainer | None = getattr(module, "_trainer", None)
    for optimizer in optimizers:
        if trainer is None and isinstance(optimizer, LightningOptimizer) and optimizer._strategy:
            trainer = getattr(optimizer._strategy.lightning_module, "_trainer", None)
    return trainer


def tell_callbacks(trainer: Trainer | None, hook: str, *arguments: Any) -> None:
    """Call a hook of every callback that has it, while the trainer trains.

    Args:
        trainer: None has no callbacks.
        hook: Name of a method ``(trainer, module, *arguments)``.
        arguments: What the hook is told.
    """
    if trainer is None or not trainer.training:
        return
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        listener = getattr(callback, hook, None)
        if listener is not None:
            listener(trainer, trainer.lightning_module, *arguments)
