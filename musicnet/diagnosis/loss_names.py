"""Which of many figures is the loss that can be compared over a whole run?

What goes backward may be another figure in every phase of a training; what a module logs under one
name is meant to be one.
"""

from collections.abc import Iterable
from typing import Literal

_TRAIN = ("train/loss", "train_loss", "train/loss_epoch", "train_loss_epoch")
_VALIDATION = ("val/loss", "val_loss", "valid/loss", "valid_loss", "validation/loss")


def loss_name(names: Iterable[str], split: Literal["train", "val"]) -> str | None:
    """The name under which a loss was logged; None if there is none that is usual.

    Args:
        names: of everything that was logged.
        split: whose loss.

    Example:
        >>> loss_name(["val/averaged_loss", "train/objective", "val/loss"], "val")
        'val/loss'
    """
    there = set(names)
    usual = _TRAIN if split == "train" else _VALIDATION
    return next((name for name in usual if name in there), None)
