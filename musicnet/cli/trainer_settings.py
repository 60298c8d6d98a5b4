"""What the trainer's settings must be, beyond their types: Lightning takes these without a word."""

from collections.abc import Callable, Mapping
from typing import Any

_INSTEAD: dict[str, tuple[tuple[Any, ...], str]] = {
    "gradient_clip_val": ((None, 0), "gate.max_norm"),
    "accumulate_grad_batches": ((None, 1), "model.init_args.accumulate"),
    "callbacks": ((None, []), "callbacks.<name>"),
}
"""Setting -> values that leave it unset, and the key that does its work here."""

_BOUNDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "limit_train_batches": (lambda n: n > 0, "> 0"),
    "overfit_batches": (
        lambda n: isinstance(n, int) or n <= 1,
        "a number of batches, or a share of them up to 1.0",
    ),
    "num_sanity_val_steps": (lambda n: n >= -1, ">= -1, where -1 takes all batches"),
    "precision": (
        lambda kind: kind not in ("16-true", "bf16-true"),
        "mixed or 32-true, since scenes are of complex float32",
    ),
}
"""Setting -> whether a value holds, and what it must be."""


def trainer_fault(settings: Mapping[str, Any]) -> str | None:
    """What is wrong with settings of the right types, in one line.

    Example:
        >>> trainer_fault({"accumulate_grad_batches": 2})
        'trainer.accumulate_grad_batches must not be set: got 2. Set model.init_args.accumulate.'
        >>> trainer_fault({"max_epochs": 3}) is None
        True
    """
    for name, (unset, instead) in _INSTEAD.items():
        if (value := settings.get(name)) not in unset:
            return f"trainer.{name} must not be set: got {value}. Set {instead}."
    for name, (holds, wanted) in _BOUNDS.items():
        value = settings.get(name)
        if value is not None and not holds(value):
            return f"trainer.{name} must be {wanted}: got {value}."
    return None
