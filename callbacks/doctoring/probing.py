"""Probes: the same batch evaluated as it is and with its labels dealt to other items."""

import inspect
import math
import statistics
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from callbacks.doctoring import batches
from callbacks.doctoring.parts import heard
from callbacks.doctoring.undisturbed import undisturbed
from musicnet.diagnosis.evidence import Deal

MOST_DEALS = 5


class ProbeError(Exception):
    """A probe could not be made; the message says why."""


def deal(
    trainer: Trainer,
    module: LightningModule,
    layers: Mapping[str, nn.Module],
    batch: Any,
    *,
    step: int,
    split: str,
) -> tuple[Deal, dict[str, float]]:
    """Evaluate a batch with its labels where they are and elsewhere, in eval mode.

    Args:
        trainer: runs the fit.
        module: that is trained.
        layers: of the module, whose outputs are looked at.
        batch: to evaluate.
        step: optimiser steps so far.
        split: where the batch is from.

    Returns:
        The losses, and the terms that came with the first of them.

    Raises:
        ProbeError: the module or the batch does not lend itself to it.
    """
    outputs: list[Tensor] = []

    def tell(name: str, layer: nn.Module, given: Any, output: Any) -> None:  # noqa: ARG001
        if isinstance(output, Tensor) and output.is_floating_point() and output.dim() > 1:
            outputs.append(output.detach())

    with undisturbed(module) as logged, trainer.precision_plugin.forward_context():
        n_items = _n_items(module, batch)
        with heard(layers, tell):
            loss, terms = _loss_of(module, batch, logged)
        last = next((o for o in reversed(outputs) if o.shape[0] == n_items), None)
        others: list[float] = []
        for shift in _shifts(n_items):
            moved = batches.dealt(module, batch, shift)
            if moved is None:
                raise ProbeError("the labels of a batch are not known, or all alike")
            others.append(_loss_of(module, moved, logged)[0])
    if not all(map(math.isfinite, [loss, *others])):
        raise ProbeError("the loss of a probe was not finite")
    seen = Deal(
        step=step,
        split=split,
        loss=loss,
        dealt=statistics.fmean(others),
        spread=statistics.pstdev(others),
        output_spread=None if last is None else _spread(last),
        n_items=n_items,
    )
    return seen, terms


def _shifts(n_items: int) -> list[int]:
    """Different ways to deal the labels, none of them the identity."""
    if n_items < 2:
        raise ProbeError("a batch of one item has no labels to deal")
    return sorted({1 + (i * (n_items - 1)) // MOST_DEALS for i in range(MOST_DEALS)})


def _n_items(module: LightningModule, batch: Any) -> int:
    inputs = batches.inputs_of(module, batch)
    if inputs is None:
        raise ProbeError("the inputs of a batch are not known")
    return int(inputs.shape[0])


def _loss_of(
    module: LightningModule, batch: Any, logged: dict[str, Tensor]
) -> tuple[float, dict[str, float]]:
    """The loss that training minimises, by the method that gives it."""
    logged.clear()
    if hasattr(module, "compute_loss"):
        given = _called(module.compute_loss, batch)
    elif module.automatic_optimization:
        given = _called(module.training_step, batch)
    else:
        given = _called(module.validation_step, batch)
        if given is None:
            given = next((value for key, value in logged.items() if "loss" in key), None)
    named = dict(given) if isinstance(given, Mapping) else {"loss": given}
    loss = named.get("loss")
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ProbeError("no method of the module gives a loss without stepping")
    terms = {
        str(name): float(value)
        for name, value in {**logged, **named}.items()
        if isinstance(value, Tensor) and value.numel() == 1 and name != "loss"
    }
    return float(loss), terms


def _called(method: Any, batch: Any) -> Any:
    """Call a step of the module with as many arguments as it takes."""
    n_taken = len(inspect.signature(method).parameters)
    return method(*[batch, 0, 0][: max(1, min(n_taken, 2))])


def _spread(outputs: Tensor) -> float | None:
    """How far the outputs of the items are from their mean, over their own size."""
    values = outputs.float().flatten(1)
    size = float(values.abs().max())
    spread = float((values - values.mean(0)).abs().max())
    if not math.isfinite(size) or not math.isfinite(spread):
        return None
    return spread / size if size > 0.0 else 0.0
