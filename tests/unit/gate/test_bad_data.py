"""A run that can only veto ends within its limit, says why, and has touched no weight."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from musicnet.gate.step_gate import GateStuckError, StepGate

LIMIT = 4
Loss = Callable[[Any, Tensor, Tensor], Tensor]


def square(module: Any, x: Tensor, y: Tensor) -> Tensor:
    return (module.head(module.backbone(x)) - y).square().mean()


def spoilt_input(value: float) -> Loss:
    return lambda module, x, y: square(
        module, x.clone().index_fill_(0, torch.tensor([1]), value), y
    )


def spoilt_target(value: float) -> Loss:
    return lambda module, x, y: square(
        module, x, y.clone().index_fill_(0, torch.tensor([1]), value)
    )


def log_of_zero(module: Any, x: Tensor, y: Tensor) -> Tensor:
    return (0.0 * module.head(module.backbone(x))).log().mean()


def root_of_zero(module: Any, x: Tensor, y: Tensor) -> Tensor:
    out = module.head(module.backbone(x))
    return (out - out.detach()).square().sum().sqrt()


def norm_of_a_silent_row(module: Any, x: Tensor, y: Tensor) -> Tensor:
    silent = x * 0.0
    return square(module, silent / silent.norm(dim=-1, keepdim=True), y)


def mean_over_an_empty_mask(module: Any, x: Tensor, y: Tensor) -> Tensor:
    errors = (module.head(module.backbone(x)) - y).square()
    return errors[errors < 0].mean()


def weight_of_zero(module: Any, x: Tensor, y: Tensor) -> Tensor:
    return 0.0 * square(module, x, y)


def dead_units(module: Any, x: Tensor, y: Tensor) -> Tensor:
    return (module.head(module.backbone(x)) - 1e6).relu().sum()


def detached(module: Any, x: Tensor, y: Tensor) -> Tensor:
    return square(module, x, y).detach()


def graph_without_weights(module: Any, x: Tensor, y: Tensor) -> Tensor:
    return (x.clone().requires_grad_() - 1.0).square().mean()


KINDS: dict[str, tuple[Loss, str]] = {
    "nan input": (spoilt_input(math.nan), "nonfinite"),
    "infinite input": (spoilt_input(math.inf), "nonfinite"),
    "nan target": (spoilt_target(math.nan), "nonfinite"),
    "infinite target": (spoilt_target(-math.inf), "nonfinite"),
    "target whose square overflows": (spoilt_target(3e38), "nonfinite"),
    "log of zero": (log_of_zero, "nonfinite"),
    "root of zero": (root_of_zero, "nonfinite"),
    "silent row normalised": (norm_of_a_silent_row, "nonfinite"),
    "empty mask": (mean_over_an_empty_mask, "zero"),  # the loss is nan, its gradient is empty
    "weight of zero": (weight_of_zero, "zero"),
    "dead units": (dead_units, "zero"),
    "detached": (detached, "no_grad"),
    "graph without weights": (graph_without_weights, "no_grad"),
}


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_bad_data_of_every_kind_end_the_run(
    regressor: Any, loader: Any, trainer: Any, kind: str, accumulate: int
) -> None:
    loss, reason = KINDS[kind]

    class Spoilt(type(regressor())):  # type: ignore[misc]
        def compute_loss(self, batch: Any, batch_idx: int) -> Tensor:
            return loss(self, *batch)

    module = Spoilt(gate=StepGate(max_consecutive_skips=LIMIT), accumulate=accumulate, norm=True)
    start = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    run = trainer(max_epochs=-1, max_steps=10)
    with pytest.raises(GateStuckError, match=f"reason={reason}, after 0 real steps") as end:
        run.fit(module, loader(7))
    assert end.value.reasons == {reason: LIMIT + 1}
    assert module.gate.attempts == LIMIT + 1
    assert run.global_step == 0
    torch.testing.assert_close(module.state_dict(), start, rtol=0, atol=0)
