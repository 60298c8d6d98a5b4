"""An accumulation window: what gathers between two attempts, and goes back if they are vetoed."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from musicnet.gate.running_statistics import StatisticsSnapshot

_HALF = (torch.float16, torch.bfloat16)


class Window:
    """The batches since the last attempt: their number, their losses, what the statistics were.

    Args:
        layers: Normalisation layers, whose running statistics the forward passes will change.

    Attributes:
        n_batches: Batches so far.
        kept: Batches with their numbers, for optimisers that evaluate them several times.

    Example:
        >>> window = Window([])
        >>> for loss in (1.0, 3.0):
        ...     window.n_batches += 1
        ...     window.add({"loss": torch.tensor(loss)})
        >>> window.mean_losses()
        {'loss': tensor(2.)}
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        self.n_batches = 0
        self.kept: list[tuple[Any, int]] = []
        self._losses: dict[str, Tensor] = {}
        self._snapshot = StatisticsSnapshot(layers)

    @property
    def has_losses(self) -> bool:
        """Whether the losses of any batch were noted."""
        return bool(self._losses)

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Note the losses of one batch."""
        for name, value in losses.items():
            held = value.detach()
            # sums of halves overflow long before the losses do
            held = held.float() if held.dtype in _HALF else held
            self._losses[name] = self._losses[name] + held if name in self._losses else held

    def mean_losses(self) -> dict[str, Tensor]:
        """Average the losses over the batches."""
        return {name: value / self.n_batches for name, value in self._losses.items()}

    def restore_statistics(self) -> None:
        """Put the running statistics back to what they were before the first forward pass."""
        self._snapshot.restore()


def named_losses(losses: object) -> dict[str, Tensor]:
    """Give what a `compute_loss` gave by name.

    Raises:
        TypeError: it gave no loss.
    """
    named: dict[str, Any] = dict(losses) if isinstance(losses, Mapping) else {"loss": losses}
    if "loss" not in named or not all(isinstance(loss, Tensor) for loss in named.values()):
        raise TypeError(
            "compute_loss must return a scalar tensor, or a mapping of them with one at 'loss': "
            f"got {', '.join(f'{name!r}: {type(loss).__name__}' for name, loss in named.items())}."
        )
    return named
