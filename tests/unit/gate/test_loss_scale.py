"""fp16 loss scaling: unscaled norms, one update per attempt, whatever the gate decides."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import SGD

from musicnet.gate.step_gate import StepGate


class CountedScaler(GradScaler):
    """A CPU scaler that counts its updates."""

    def __init__(self, **settings: Any) -> None:
        super().__init__("cpu", **settings)
        self.updates = 0

    def update(self, new_scale: Any = None) -> None:
        self.updates += 1
        super().update(new_scale)


def mixed(scaler: GradScaler) -> MixedPrecision:
    # without a scaler of its own Lightning turns 16-mixed into bfloat16 on the CPU
    return MixedPrecision("16-mixed", "cpu", scaler=scaler)


def test_an_optimizer_without_gradients_does_not_stop_the_others() -> None:
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    scaler = CountedScaler(init_scale=8.0)
    scaler.scale(torch.ones(()))
    a.grad = torch.tensor([8.0])
    report = StepGate().attempt(
        nn.ParameterList([a, b]), [SGD([a], lr=0.5), SGD([b], lr=0.5)], scaler=scaler
    )
    assert (report.stepped, a.item(), b.item(), scaler.updates) == (True, 0.5, 1.0, 1)


def test_missing_gradients_leave_the_scaler_ready_for_the_next_attempt() -> None:
    layer, scaler = nn.Linear(1, 1, bias=False), CountedScaler(init_scale=8.0)
    gate, optimizer = StepGate(), SGD(layer.parameters(), lr=0.1)
    scaler.scale(torch.ones(()))
    assert gate.attempt(layer, optimizer, scaler=scaler).reason == "no_grad"
    assert scaler.updates == 0
    scaler.scale(layer(torch.ones(1, 1)).sum()).backward()
    assert gate.attempt(layer, optimizer, scaler=scaler).norm == 1


def test_a_step_that_the_scaler_refuses_counts_as_a_veto(
    regressor: Any, loader: Any, trainer: Callable[..., Trainer], reports: Any
) -> None:
    scaler = GradScaler("cpu", init_scale=8.0)

    class Saboteur(Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            for found in scaler._found_inf_per_device(optimizer).values():
                found.fill_(1.0)

    module = regressor()
    start = [p.detach().clone() for p in module.parameters()]
    trainer(callbacks=[reports, Saboteur()], plugins=[mixed(scaler)]).fit(module, loader(2))
    assert [(r.ok, r.stepped, r.reason) for r in reports.reports] == [(True, False, "scaler")] * 2
    torch.testing.assert_close(list(module.parameters()), start, rtol=0, atol=0)
    assert module.gate.steps == 0


def test_the_scaler_of_the_trainer_is_itself_again_after_an_attempt() -> None:
    layer, scaler = nn.Linear(1, 1), GradScaler("cpu")
    scaler.scale(layer(torch.ones(1, 1)).sum()).backward()
    StepGate().attempt(layer, SGD(layer.parameters(), lr=0.1), scaler=scaler)
    assert "update" not in vars(scaler)
    assert "unscale_" not in vars(scaler)


def test_an_overflow_that_no_optimizer_holds_lowers_the_scale() -> None:
    layer, outside = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    scaler = GradScaler("cpu", init_scale=4.0)
    scaler.scale(layer(torch.ones(1, 1)).sum()).backward()
    outside.weight.grad = torch.full((1, 1), torch.inf)
    module = nn.ModuleList([layer, outside])
    report = StepGate().attempt(module, SGD(layer.parameters(), lr=0.1), scaler=scaler)
    assert (report.reason, report.scale_after) == ("nonfinite", 2.0)
