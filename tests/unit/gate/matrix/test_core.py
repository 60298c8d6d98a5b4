"""Rows 1 to 15: the rule itself, and every kind of gradient that it must measure."""

import copy
import logging
import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from callbacks import ParameterDelta
from musicnet.gate.averaging import Averaging
from musicnet.gate.schedules import Schedule
from musicnet.gate.step_gate import GateStuckError, StepGate, StepReport

ADAMW = partial(AdamW, lr=1e-2, weight_decay=0.5)
MOMENTUM = partial(SGD, lr=0.1, momentum=0.9)


def with_gradients(*gradients: Tensor | None) -> nn.ParameterList:
    """Parameters of one that hold these gradients."""
    shapes = [torch.ones(2) if g is None else torch.ones(g.shape, dtype=g.dtype) for g in gradients]
    module = nn.ParameterList([nn.Parameter(shape) for shape in shapes])
    for parameter, gradient in zip(module, gradients, strict=True):
        parameter.grad = gradient
    return module


def assert_same(left: Any, right: Any) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)


def zero_headed() -> tuple[nn.Module, list[dict[str, Any]]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    nn.init.zeros_(net[2].weight)
    nn.init.zeros_(net[2].bias)
    groups = [
        {"params": list(net[0].parameters()), "name": "backbone"},
        {"params": list(net[2].parameters()), "name": "head"},
    ]
    return net, groups


def backward(net: nn.Module) -> Tensor:
    x = torch.linspace(-1, 1, 32).view(8, 4)
    loss = (net(x) - x.sum(1, keepdim=True)).square().mean()
    loss.backward()
    return loss.detach()


def test_row_01_a_head_that_starts_at_zero_steps_at_the_first_batch() -> None:
    net, groups = zero_headed()
    optimizer, gate = SGD(groups, lr=0.1), StepGate(group_norms_every=1)
    first = backward(net)
    reports = [gate.attempt(net, optimizer)]
    for _ in range(19):
        optimizer.zero_grad()
        last = backward(net)
        reports.append(gate.attempt(net, optimizer))
    assert [report.stepped for report in reports] == [True] * 20
    assert reports[0].group_norms is not None
    assert reports[0].group_norms["backbone"] == 0
    assert reports[0].group_norms["head"] > 0
    assert last < 0.7 * first


def test_row_01_every_counter_agrees_in_a_fit(
    regressor: Any, loader: Any, trainer: Any, reports: Any
) -> None:
    module = regressor(zero_head=True)
    run = trainer(callbacks=[reports])
    run.fit(module, loader(20))
    assert [report.stepped for report in reports.reports] == [True] * 20
    assert module.gate.steps == run.global_step == 20
    assert run.lr_scheduler_configs[0].scheduler.last_epoch == 20


class BothGroups(StepGate):
    """The fixture of the fault: `backbone > 0 and head > 0` is False for ever."""

    def look(self, *arguments: Any) -> Any:
        look = super().look(*arguments)
        some_group_is_zero = min((look.group_norms or {"": 1.0}).values()) == 0
        return replace(look, reason="zero") if some_group_is_zero else look


def test_row_02_a_rule_that_asks_for_every_group_is_told_to_be_stuck_within_20() -> None:
    net, groups = zero_headed()
    gate = BothGroups(group_norms_every=1, max_consecutive_skips=19)
    optimizer = SGD(groups, lr=0.1)

    def train() -> None:
        for _ in range(21):
            optimizer.zero_grad()
            backward(net)
            gate.attempt(net, optimizer)

    with pytest.raises(GateStuckError, match=r"got 20 vetoes.*reason=zero, after 0 real steps"):
        train()
    assert gate.attempts == 20


class Surroundings(Callback):
    """All that a batch could change, before and after it."""

    def __init__(self, batch: int) -> None:
        self.batch, self.seen = batch, []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self._note(trainer, module, batch_idx)

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._note(trainer, module, batch_idx)

    def _note(self, trainer: Any, module: Any, batch_idx: int) -> None:
        if batch_idx == self.batch:
            everything = {
                "weights": module.state_dict(),
                "optimizer": trainer.optimizers[0].state_dict()["state"],
                "rates": [group["lr"] for group in trainer.optimizers[0].param_groups],
                "schedule": trainer.lr_scheduler_configs[0].scheduler.last_epoch,
                "average": module.average.state_dict(),
            }
            self.seen.append(copy.deepcopy(everything))


@pytest.mark.parametrize("optimizer", [ADAMW, MOMENTUM])
def test_row_03_a_nan_batch_leaves_weights_optimizer_rates_and_average_as_they_were(
    regressor: Any, loader: Any, trainer: Any, reports: Any, optimizer: Any
) -> None:
    around = Surroundings(batch=2)
    module = regressor(
        optimizer=optimizer,
        averaging=Averaging("ema"),
        schedule=Schedule(warmup_steps=3),
        norm=True,
    )
    trainer(callbacks=[around, reports]).fit(module, loader(5, poisoned=(2,)))
    assert [report.reason for report in reports.reports] == ["ok"] * 2 + ["nonfinite"] + ["ok"] * 2
    before, after = around.seen
    assert before["optimizer"]
    assert before["average"]["n_averaged"] == 2
    assert_same(before, after)
    assert_same(reports.reports[2].lr, reports.reports[3].lr)


def attempt_after_a_step(build: Any, value: float | None) -> StepReport:
    """Step once, then attempt with this value as every gradient, or with none; all must stay."""
    net = nn.Linear(3, 2)
    optimizer, gate = build(net.parameters()), StepGate()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    net(torch.ones(1, 3)).sum().backward()
    gate.attempt(net, optimizer, schedulers=[scheduler])
    before = copy.deepcopy([net.state_dict(), optimizer.state_dict(), scheduler.state_dict()])

    for parameter in net.parameters():
        parameter.grad = None if value is None else torch.full_like(parameter, value)
    report = gate.attempt(net, optimizer, schedulers=[scheduler])
    assert_same([net.state_dict(), optimizer.state_dict()], before[:2])
    assert scheduler.state_dict() == before[2]
    assert all(parameter.grad is None for parameter in net.parameters())

    net(torch.ones(1, 3)).sum().backward()
    assert gate.attempt(net, optimizer, schedulers=[scheduler]).stepped
    assert (gate.attempts, gate.steps, gate.skips) == (3, 2, 1)
    assert dict(gate.by_reason) == {report.reason: 1}
    assert not torch.equal(net.weight, before[0]["weight"])
    return report


@pytest.mark.parametrize("optimizer", [ADAMW, MOMENTUM])
@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_row_04_an_infinite_gradient_leaves_every_bit(optimizer: Any, value: float) -> None:
    report = attempt_after_a_step(optimizer, value)
    assert (report.ok, report.stepped, report.reason) == (False, False, "nonfinite")


@pytest.mark.parametrize("optimizer", [ADAMW, MOMENTUM])
def test_row_05_zero_gradients_move_nothing_not_even_by_weight_decay(optimizer: Any) -> None:
    report = attempt_after_a_step(optimizer, 0.0)
    assert (report.ok, report.stepped, report.reason, report.norm) == (False, False, "zero", 0)


@pytest.mark.parametrize("optimizer", [ADAMW, MOMENTUM])
def test_row_06_no_gradient_at_all_is_a_reason_of_its_own(optimizer: Any) -> None:
    report = attempt_after_a_step(optimizer, None)
    assert (report.ok, report.stepped, report.reason) == (False, False, "no_grad")
    assert math.isnan(report.norm)


def test_row_07_a_frozen_group_steps_with_its_norm_absent_and_not_zero() -> None:
    module = with_gradients(torch.tensor([3.0, 4.0]), None)
    groups = [{"params": [p], "name": n} for p, n in zip(module, ("free", "frozen"), strict=True)]
    report = StepGate().attempt(module, SGD(groups, lr=0.1))
    assert report.stepped
    assert report.group_norms == {"free": 5.0}
    assert report.lr == {"free": 0.1, "frozen": 0.1}
    assert_same(module[1].detach(), torch.ones(2))


def test_row_08_one_parameter_without_a_gradient_does_not_hold_back_the_rest() -> None:
    module = with_gradients(torch.tensor([3.0]), None, torch.tensor([4.0]))
    report = StepGate().attempt(module, ADAMW(module.parameters()))
    assert (report.stepped, report.norm) == (True, 5)
    assert_same(module[1].detach(), torch.ones(2))
    assert module[0].item() != 1
    assert module[2].item() != 1


def test_row_09_duplicate_entries_of_a_sparse_gradient_add_up_to_7() -> None:
    table = nn.Embedding(5, 1, sparse=True)
    (table(torch.tensor([2, 2])).squeeze() * torch.tensor([3.0, 4.0])).sum().backward()
    start = table.weight.detach().clone()
    report = StepGate(max_norm=3.5).attempt(table, SGD(table.parameters(), lr=1.0))
    assert report.norm == 7
    assert report.clip_coef == 0.5
    assert (start - table.weight)[2].item() == pytest.approx(3.5)


@pytest.mark.parametrize("value", [math.nan, 0.0])
def test_row_09_a_sparse_gradient_can_veto(value: float) -> None:
    table = nn.Embedding(5, 1, sparse=True)
    (table(torch.tensor([2, 2])) * value).sum().backward()
    report = StepGate().attempt(table, SGD(table.parameters(), lr=1.0))
    assert report.reason == ("zero" if value == 0 else "nonfinite")


def test_row_10_complex_gradients_are_measured_by_magnitude() -> None:
    module = with_gradients(torch.tensor([3 + 4j]), torch.tensor([12.0]))
    report = StepGate(max_norm=6.5).attempt(module, SGD(module.parameters(), lr=1.0))
    assert (report.norm, report.clip_coef) == (13, 0.5)
    assert module[0].item() == pytest.approx(1 - (1.5 + 2j))
    broken = with_gradients(torch.tensor([complex(0, math.nan)]))
    assert StepGate().attempt(broken, SGD(broken.parameters(), lr=1.0)).reason == "nonfinite"


def test_row_11_bfloat16_mixed_trains_without_a_scale(
    regressor: Any, loader: Any, trainer: Any
) -> None:
    module = regressor()
    start = module.head.weight.detach().clone()
    trainer(precision="bf16-mixed").fit(module, loader(5, poisoned=(1,)))
    assert (module.gate.steps, dict(module.gate.by_reason)) == (4, {"nonfinite": 1})
    assert module.last_report.scale_before is None
    assert not torch.equal(module.head.weight, start)


def test_row_12_a_step_below_the_resolution_of_bfloat16_is_warned_of(
    regressor: Any, loader: Any, trainer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="callbacks")
    module = regressor(optimizer=partial(SGD, lr=1e-6), schedule=Schedule(warmup_steps=0))
    trainer(precision="bf16-true", callbacks=[ParameterDelta()]).fit(module, loader(1))
    assert module.last_report.stepped
    assert "[STEP] Δparam ||·||₂ = 0.000e+00" in caplog.messages
    (warning,) = [text for text in caplog.messages if "no parameter moved" in text]
    assert "torch.bfloat16" in warning


def test_row_13_a_norm_of_halves_beyond_the_largest_half_steps() -> None:
    module = with_gradients(torch.full((4,), 49984.0, dtype=torch.float16))
    report = StepGate(max_norm=1.0).attempt(module, SGD(module.parameters(), lr=0.5))
    assert report.norm == 99968
    assert report.stepped
    assert module[0].tolist() == pytest.approx([0.75] * 4, rel=1e-3)


def test_row_13_weights_of_halves_train_in_a_fit(regressor: Any, loader: Any, trainer: Any) -> None:
    module = regressor(optimizer=partial(SGD, lr=0.01), accumulate=2, gate=StepGate(max_norm=1.0))
    start = module.head.weight.detach().clone()
    trainer(precision="16-true").fit(module, loader(10, poisoned=(3,)))
    assert module.head.weight.dtype == torch.float16
    assert (module.gate.steps, dict(module.gate.by_reason)) == (4, {"nonfinite": 1})
    assert module.last_report.clip_coef < 1
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    assert not torch.equal(module.head.weight.float(), start)


def size_5(size: float) -> tuple[StepReport, nn.ParameterList]:
    module = with_gradients(torch.tensor([3 * size, 0.0]), torch.tensor([4 * size]))
    report = StepGate(max_norm=1.0).attempt(module, SGD(module.parameters(), lr=0.5))
    assert report.stepped
    assert report.norm == pytest.approx(5 * size, rel=1e-6)
    return report, module


def test_row_14_a_norm_of_1e_minus_25_steps() -> None:
    report, module = size_5(1e-25)
    assert report.clip_coef == 1
    assert module[0].grad.tolist() == pytest.approx([3e-25, 0.0], rel=1e-6, abs=0)
    adam = with_gradients(torch.tensor([1e-25]))
    # Adam divides the gradient by its own size, so that even such a small one moves weights
    StepGate().attempt(adam, AdamW(adam.parameters(), lr=0.1, eps=1e-30, weight_decay=0.0))
    assert adam[0].item() < 1


def test_row_15_a_norm_of_1e25_steps_and_is_clipped() -> None:
    report, module = size_5(1e25)
    assert report.clip_coef == pytest.approx(0.2e-25)
    assert 1 - module[0][0].item() == pytest.approx(0.3, rel=1e-5)
