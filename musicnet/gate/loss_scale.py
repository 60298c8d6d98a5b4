"""fp16 loss scaling under the gate: unscale once, update once, whatever is decided in between.

`lightning` unscales and updates inside every optimiser step. The gate must see unscaled gradients
before it decides, and several optimisers must share one scale, so both are done here, outside.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from lightning.pytorch import Trainer
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer


def scaler_of(trainer: Trainer | None) -> GradScaler | None:
    """Give the enabled loss scaler of a trainer, if there is one."""
    scaler = getattr(getattr(trainer, "precision_plugin", None), "scaler", None)
    return scaler if isinstance(scaler, GradScaler) and scaler.is_enabled() else None


@contextmanager
def already_unscaled(scaler: GradScaler | None) -> Iterator[None]:
    """Keep optimiser steps from unscaling again and from updating the scale one by one.

    `GradScaler` refuses a second `unscale_`, and an `update` between two optimisers would unscale
    the second with the wrong scale.
    """
    if scaler is None:
        yield
        return
    shadows = {"unscale_": _do_nothing, "update": _do_nothing}
    scaler.__dict__.update(shadows)
    try:
        yield
    finally:
        for name in shadows:
            del scaler.__dict__[name]


def unscale(scaler: GradScaler, optimizers: Sequence[Optimizer]) -> None:
    """Unscale the gradients of every optimiser that has any, fused ones included."""
    for optimizer in optimizers:
        if has_gradients(optimizer):
            scaler.unscale_(optimizer)


def has_gradients(optimizer: Optimizer) -> bool:
    """Tell whether any parameter of the optimiser has a gradient."""
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])


def record(scaler: GradScaler, optimizer: Optimizer, *, overflow: bool) -> None:
    """Let the next update follow what all ranks found, not this one alone.

    A rank that saw no overflow, or no gradient at all, must change its scale as the others do.
    """
    device = optimizer.param_groups[0]["params"][0].device
    found = torch.full((), float(overflow), dtype=torch.float32, device=device)
    scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"] = {device: found}


def update(scaler: GradScaler, optimizers: Sequence[Optimizer]) -> float:
    """Update the scale once for all optimisers, vetoed or not, and give the new one.

    Without any gradient there is nothing to learn about the scale, and `GradScaler` would raise.
    """
    states = scaler._per_optimizer_states
    if any(states[id(o)]["found_inf_per_device"] for o in optimizers if id(o) in states):
        scaler.update()
    return float(scaler.get_scale())


def _do_nothing(*_: object) -> None:
    """Stand in for a scaler method that has run already or runs later."""
