"""Moves the optimisers of an attempt, all that have gradients, each by the way that it needs."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch.core.optimizer import LightningOptimizer
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from musicnet.gate import line_search, loss_scale

AnyOptimizer = Optimizer | LightningOptimizer


@runtime_checkable
class Steppable(Protocol):
    """What the gate needs of a scheduler."""

    def step(self) -> None:
        """Move on by one real optimiser step."""


def listed(optimizers: AnyOptimizer | Iterable[AnyOptimizer]) -> list[AnyOptimizer]:
    """Give one or several optimisers as a list, whatever they came in.

    Raises:
        ValueError: there is none.
    """
    if isinstance(optimizers, Optimizer | LightningOptimizer):
        return [optimizers]
    found = list(optimizers)
    if not found:
        raise ValueError("an attempt needs an optimiser: got none. Give all that are to step.")
    return found


def bare(optimizers: Iterable[AnyOptimizer]) -> list[Optimizer]:
    """Take Lightning's wrapping off."""
    return [o.optimizer if isinstance(o, LightningOptimizer) else o for o in optimizers]


def step_all(
    optimizers: Sequence[AnyOptimizer],
    closure: Callable[[], Any] | None,
    scaler: GradScaler | None,
    *,
    can_undo: bool,
) -> bool:
    """Step every optimiser that has gradients.

    Args:
        optimizers: Raw or Lightning's.
        closure: For optimisers that evaluate the loss themselves.
        scaler: Has unscaled the gradients, and is not to be updated here.
        can_undo: Whether a step that ends in values that are not finite goes back. Where it does
            not, nobody decides here: an engine may keep its gradients where nobody sees them, so
            that it is stepped without any.

    Returns:
        Whether the step stands.
    """
    raw = bare(optimizers)
    rewind = line_search.Rewind(raw) if closure is not None and can_undo else None
    steps_blindly = not can_undo and scaler is None
    with loss_scale.already_unscaled(scaler):
        for optimizer, inner in zip(optimizers, raw, strict=True):
            if not (steps_blindly or loss_scale.has_gradients(inner)):
                continue
            if scaler is None or isinstance(optimizer, LightningOptimizer):
                optimizer.step(closure)
            else:
                scaler.step(optimizer)
    return rewind is None or rewind.undo_unless_finite()
