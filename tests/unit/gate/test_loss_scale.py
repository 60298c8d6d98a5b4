"""fp16 loss scaling: unscaled norms, one update per attempt, whatever the gate decides."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import SGD, AdamW

from musicnet.gate.step_gate import GateStuckError, StepGate


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


@pytest.mark.parametrize("optimizer", [SGD, AdamW, partial(AdamW, fused=True)])
def test_overflow_is_skipped_until_the_scale_fits_and_then_all_counters_agree(
    regressor: Any, loader: Any, trainer: Any, reports: Any, optimizer: Any
) -> None:
    """Six halvings away from a scale that fits, six attempts overflow."""
    scaler = CountedScaler(init_scale=2.0**16)
    module = regressor(optimizer=partial(optimizer, lr=1e-3))
    limit = 1536.0

    def overflow_above(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * (torch.inf if scaler.get_scale() > limit else 1.0)

    module.head.weight.register_hook(overflow_above)
    run = trainer(callbacks=[reports], plugins=[mixed(scaler)])
    run.fit(module, loader(24))

    assert scaler.is_enabled()
    assert module.gate.by_reason == {"nonfinite": 6}
    assert [r.stepped for r in reports.reports] == [False] * 6 + [True] * 18
    assert module.gate.steps == run.global_step == run.lr_scheduler_configs[0].scheduler.last_epoch
    assert module.gate.steps == 18
    assert scaler.updates == 24
    assert scaler.get_scale() == 1024
    scales = [(r.scale_before, r.scale_after) for r in reports.reports]
    assert scales[:6] == [(2.0**k, 2.0 ** (k - 1)) for k in range(16, 10, -1)]
    assert scales[6:] == [(1024, 1024)] * 18


def test_a_rule_on_the_scaled_norm_without_update_is_a_dead_loop() -> None:
    """The fixture of the fault: without an update the scale never falls."""
    layer, scaler = nn.Linear(1, 1, bias=False), GradScaler("cpu", init_scale=2.0**16)
    optimizer, steps = SGD(layer.parameters(), lr=0.1), 0
    for _ in range(20):
        optimizer.zero_grad()
        scaler.scale(layer(torch.ones(1, 1)).sum() * 1e35).backward()
        assert layer.weight.grad is not None
        if torch.isfinite(layer.weight.grad.norm()):
            steps += 1
            scaler.step(optimizer)
            scaler.update()
    assert (steps, scaler.get_scale()) == (0, 2.0**16)


def test_underflow_lets_the_scale_grow_until_gradients_show() -> None:
    layer = nn.Linear(1, 1, bias=False)
    scaler = GradScaler("cpu", init_scale=2.0**-6, growth_interval=2)
    gate, optimizer = StepGate(), SGD(layer.parameters(), lr=0.0)
    for _ in range(40):
        optimizer.zero_grad()
        loss = layer(torch.ones(1, 1)).sum()
        # the scaled gradient passes a half: it is zero below 2^-24 after the weight of 2^-22
        scaler.scale(loss)
        scaled = torch.tensor(2.0**-22 * scaler.get_scale(), dtype=torch.float16)
        layer.weight.grad = scaled.float().view(1, 1)
        report = gate.attempt(layer, optimizer, scaler=scaler)
    assert report.stepped
    assert report.norm == 2.0**-22
    assert set(gate.by_reason) == {"zero"}
    assert scaler.get_scale() > 2.0**10


def test_norm_and_clipped_step_are_those_of_float32(
    regressor: Any, loader: Any, trainer: Any
) -> None:
    norms, moves = [], []
    for plugins in ([], [mixed(GradScaler("cpu", init_scale=2.0**10))]):
        module = regressor(optimizer=partial(SGD, lr=0.5), gate=StepGate(max_norm=0.1))
        start = module.head.weight.detach().clone()
        trainer(plugins=plugins, max_steps=1).fit(module, loader(1))
        norms.append(module.last_report.norm)
        moves.append(module.head.weight.detach() - start)
    assert norms[1] == pytest.approx(norms[0], rel=1e-2)
    torch.testing.assert_close(moves[1], moves[0], rtol=1e-2, atol=1e-6)


def test_an_overflow_in_one_optimizer_leaves_the_norm_of_the_other_exact() -> None:
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    scaler = CountedScaler(init_scale=8.0)
    scaler.scale(torch.ones(()))
    optimizers = [SGD([{"params": [p], "name": n}], lr=0.1) for n, p in (("a", a), ("b", b))]
    a.grad, b.grad = torch.tensor([torch.inf]), torch.tensor([32.0])
    report = StepGate().attempt(nn.ParameterList([a, b]), optimizers, scaler=scaler)
    assert report.group_norms == {"a": torch.inf, "b": 4.0}
    assert (report.stepped, b.item()) == (False, 1.0)
    assert (scaler.updates, scaler.get_scale()) == (1, 4.0)


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


def test_a_scale_that_falls_below_one_ends_the_run() -> None:
    layer, scaler = nn.Linear(1, 1, bias=False), GradScaler("cpu", init_scale=4.0)
    gate, optimizer = StepGate(), SGD(layer.parameters(), lr=0.1)

    def overflow() -> None:
        scaler.scale(layer(torch.ones(1, 1)).sum() * torch.inf).backward()
        gate.attempt(layer, optimizer, scaler=scaler)

    overflow()
    overflow()
    with pytest.raises(GateStuckError, match=r"below 1: got 3 vetoes.*loss scales 2, 1, 0.5"):
        overflow()


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
