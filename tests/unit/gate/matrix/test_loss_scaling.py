"""Rows 16 to 23: fp16 with a real loss scaler, whatever the gate decides."""

import logging
import re
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import SGD, AdamW

from callbacks import GradientNorm
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


class Rig:
    """A fit whose head overflows at every scale above a limit."""

    def __init__(self, regressor: Any, loader: Any, trainer: Any, reports: Any) -> None:
        self.regressor, self.loader, self.trainer = regressor, loader, trainer
        self.reports = reports

    def check(self, optimizer: Any) -> None:
        """Six halvings away from a scale that fits, six attempts overflow."""
        scaler = CountedScaler(init_scale=2.0**16)
        module = self.regressor(optimizer=partial(optimizer, lr=1e-3))
        limit = 1536.0

        def overflow_above(gradient: torch.Tensor) -> torch.Tensor:
            return gradient * (torch.inf if scaler.get_scale() > limit else 1.0)

        module.head.weight.register_hook(overflow_above)
        run = self.trainer(callbacks=[self.reports], plugins=[mixed(scaler)])
        run.fit(module, self.loader(24))

        reports = self.reports.reports
        assert scaler.is_enabled()
        assert module.gate.by_reason == {"nonfinite": 6}
        assert [r.stepped for r in reports] == [False] * 6 + [True] * 18
        moved = run.lr_scheduler_configs[0].scheduler.last_epoch
        assert module.gate.steps == run.global_step == moved == 18
        assert scaler.updates == 24
        assert scaler.get_scale() == 1024
        scales = [(r.scale_before, r.scale_after) for r in reports]
        assert scales[:6] == [(2.0**k, 2.0 ** (k - 1)) for k in range(16, 10, -1)]
        assert scales[6:] == [(1024, 1024)] * 18


@pytest.fixture
def rig(regressor: Any, loader: Any, trainer: Any, reports: Any) -> Rig:
    return Rig(regressor, loader, trainer, reports)


@pytest.mark.parametrize("optimizer", [SGD, AdamW])
def test_row_16_overflow_is_skipped_until_the_scale_fits_and_then_all_counters_agree(
    rig: Rig, optimizer: Any
) -> None:
    rig.check(optimizer)


def scaled_backward(layer: nn.Linear, scaler: GradScaler) -> None:
    layer.zero_grad()
    scaler.scale(layer(torch.ones(1, 1)).sum() * 1e35).backward()


def test_row_17_a_loop_that_never_updates_its_scale_is_dead_and_told_to_be_stuck() -> None:
    layer, scaler = nn.Linear(1, 1, bias=False), GradScaler("cpu", init_scale=2.0**16)
    optimizer, steps = SGD(layer.parameters(), lr=0.1), 0
    for _ in range(20):
        scaled_backward(layer, scaler)
        assert layer.weight.grad is not None
        if torch.isfinite(layer.weight.grad.norm()):
            steps += 1
            scaler.step(optimizer)
            scaler.update()
    assert (steps, scaler.get_scale()) == (0, 2.0**16)

    blind = StepGate(max_consecutive_skips=19)

    def train_blindly() -> None:
        for _ in range(21):
            scaled_backward(layer, scaler)
            blind.attempt(layer, optimizer)

    with pytest.raises(GateStuckError, match=r"got 20 vetoes.*reason=nonfinite.*gradients weight"):
        train_blindly()

    gate = StepGate()
    for _ in range(20):
        scaled_backward(layer, scaler)
        gate.attempt(layer, optimizer, scaler=scaler)
    assert gate.steps > 0
    assert gate.steps + gate.by_reason["nonfinite"] == 20


def test_row_18_underflow_lets_the_scale_grow_until_gradients_show() -> None:
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


def test_row_19_a_fused_optimizer_is_scaled_alike(rig: Rig) -> None:
    rig.check(partial(AdamW, fused=True))


def one_step(
    regressor: Any, loader: Any, trainer: Any, scale: float | None, **settings: Any
) -> Any:
    plugins = [] if scale is None else [mixed(GradScaler("cpu", init_scale=scale))]
    module = regressor(optimizer=partial(SGD, lr=0.5), **settings)
    start = module.head.weight.detach().clone()
    trainer(plugins=plugins, max_steps=1, callbacks=[GradientNorm()]).fit(module, loader(1))
    return module.head.weight.detach() - start


def test_row_20_the_norm_that_is_logged_is_that_of_float32(
    regressor: Any, loader: Any, trainer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="callbacks")
    for scale in (None, 2.0**10):
        one_step(regressor, loader, trainer, scale)
    line = re.compile(r"\[GRAD\] \|\|g\|\|_2=(\S+) ok=True")
    plain, scaled = [float(found[1]) for text in caplog.messages if (found := line.match(text))]
    assert scaled == pytest.approx(plain, rel=1e-2)


def test_row_21_a_clipped_step_is_as_long_as_that_of_float32(
    regressor: Any, loader: Any, trainer: Any
) -> None:
    moves = [
        one_step(regressor, loader, trainer, scale, gate=StepGate(max_norm=0.1))
        for scale in (None, 2.0**10)
    ]
    torch.testing.assert_close(moves[1], moves[0], rtol=1e-2, atol=1e-6)
    assert moves[1].norm().item() == pytest.approx(moves[0].norm().item(), rel=1e-2)


def test_row_22_an_overflow_in_one_optimizer_leaves_the_norm_of_the_other_at_4() -> None:
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    scaler, gate = CountedScaler(init_scale=8.0), StepGate()
    scaler.scale(torch.ones(()))
    optimizers = [SGD([{"params": [p], "name": n}], lr=0.1) for n, p in (("a", a), ("b", b))]
    a.grad, b.grad = torch.tensor([torch.inf]), torch.tensor([32.0])
    report = gate.attempt(nn.ParameterList([a, b]), optimizers, scaler=scaler)
    assert report.group_norms == {"a": torch.inf, "b": 4.0}
    assert (report.stepped, b.item()) == (False, 1.0)
    assert (scaler.updates, scaler.get_scale()) == (1, 4.0)

    a.grad, b.grad = torch.tensor([12.0]), torch.tensor([16.0])
    report = gate.attempt(nn.ParameterList([a, b]), optimizers, scaler=scaler)
    assert (report.stepped, report.norm, scaler.updates) == (True, 5.0, 2)
    assert [a.item(), b.item()] == pytest.approx([0.7, 0.6])


def test_row_23_a_scale_that_falls_below_one_ends_the_run() -> None:
    layer, scaler = nn.Linear(1, 1, bias=False), GradScaler("cpu", init_scale=4.0)
    gate, optimizer = StepGate(), SGD(layer.parameters(), lr=0.1)

    def overflow() -> None:
        scaler.scale(layer(torch.ones(1, 1)).sum() * torch.inf).backward()
        gate.attempt(layer, optimizer, scaler=scaler)

    overflow()
    overflow()
    with pytest.raises(GateStuckError, match=r"below 1: got 3 vetoes.*loss scales 2, 1, 0.5"):
        overflow()


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", [AdamW, partial(AdamW, fused=True)])
def test_row_16_and_19_on_a_gpu(regressor: Any, loader: Any, trainer: Any, optimizer: Any) -> None:
    """Overflow for real: activations beyond what a half can hold, until the scale has fallen."""
    module = regressor(optimizer=partial(optimizer, lr=1e-3))
    run = trainer(accelerator="gpu", devices=1, precision="16-mixed", max_epochs=2)
    run.fit(module, loader(24, poisoned=(3,)))
    assert module.gate.skips >= 2
    assert module.gate.steps == run.global_step == 48 - module.gate.skips
    assert all(parameter.isfinite().all() for parameter in module.parameters())
