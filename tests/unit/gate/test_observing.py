"""A gate that only observes, and the strategies and callbacks that it does not go with."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import SGD

from musicnet.gate.sharding import check_strategy
from musicnet.gate.step_gate import SpikeRule, StepGate


@pytest.mark.parametrize(
    ("value", "reason"), [(2.0, "ok"), (0.0, "zero"), (math.inf, "nonfinite"), (90.0, "spike")]
)
def test_every_step_is_taken_and_the_report_says_what_the_rule_thinks(
    value: float, reason: str
) -> None:
    gate = StepGate(mode="observe", spike=SpikeRule(after=2))
    gated, plain = (nn.Linear(1, 1, bias=False) for _ in range(2))
    plain.load_state_dict(gated.state_dict())
    optimizers = [SGD(net.parameters(), lr=0.1, momentum=0.9) for net in (gated, plain)]
    for size in (1.0, 1.0, value):
        for net in (gated, plain):
            net.weight.grad = torch.full((1, 1), size)
        report = gate.attempt(gated, optimizers[0])
        optimizers[1].step()
    assert (report.ok, report.reason, report.stepped) == (reason == "ok", reason, True)
    torch.testing.assert_close(gated.weight, plain.weight, rtol=0, atol=0, equal_nan=True)
    assert (gate.attempts, gate.steps, gate.skips) == (3, 3, 0)
    assert dict(gate.by_reason) == ({} if reason == "ok" else {reason: 1})


def test_gradients_that_nobody_sees_are_stepped_on() -> None:
    """As with an engine that keeps them to itself."""
    steps = []

    class Engine(SGD):
        def step(self, closure: Any = None) -> None:
            steps.append(closure)

    layer = nn.Linear(1, 1)
    report = StepGate(mode="observe").attempt(layer, Engine(layer.parameters(), lr=0.1))
    assert (report.reason, report.stepped, steps) == ("no_grad", True, [None])


def test_an_observer_never_ends_a_run(regressor: Any, loader: Any, trainer: Any) -> None:
    module = regressor(gate=StepGate(mode="observe", max_consecutive_skips=1))
    with pytest.warns(UserWarning, match="train/loss of epoch 1 must be finite"):
        trainer().fit(module, loader(5, poisoned=(0, 1, 2, 3)))
    assert (module.gate.steps, module.gate.by_reason["nonfinite"]) == (5, 5)


def test_a_step_that_the_loss_scaler_refuses_is_none_for_an_observer_too(
    regressor: Any, loader: Any, trainer: Any, reports: Any
) -> None:
    precision = MixedPrecision("16-mixed", "cpu", scaler=GradScaler("cpu", init_scale=8.0))
    module = regressor(gate=StepGate(mode="observe"))
    run = trainer(plugins=[precision], callbacks=[reports])
    run.fit(module, loader(3, poisoned=(1,)))
    assert [report.stepped for report in reports.reports] == [True, False, True]
    assert module.gate.steps == run.lr_scheduler_configs[0].scheduler.last_epoch == 2


@pytest.mark.bad_shape
@pytest.mark.parametrize(
    ("settings", "got"),
    [
        ({"mode": "watch"}, "got 'watch'"),
        ({"mode": "observe", "max_norm": 1.0}, "got mode='observe' with max_norm=1.0"),
        ({"mode": "observe", "nonfinite": "raise"}, "nonfinite='raise'"),
    ],
)
def test_an_observer_that_shall_act_is_refused(settings: dict[str, Any], got: str) -> None:
    with pytest.raises(ValueError, match=got):
        StepGate(**settings)


@pytest.mark.bad_shape
@pytest.mark.parametrize(
    ("strategy", "decides", "got"),
    [
        (DeepSpeedStrategy, True, "Set gate.mode=observe"),
        (FSDPStrategy, True, "got an FSDPStrategy"),
        (FSDPStrategy, False, "got an FSDPStrategy"),
        (DeepSpeedStrategy, False, None),
    ],
)
def test_strategies_that_a_gate_cannot_work_with_are_refused(
    strategy: Any, decides: bool, got: str | None
) -> None:
    trainer: Any = SimpleNamespace(strategy=strategy.__new__(strategy))
    if got is None:
        check_strategy(trainer, decides=decides)
        return
    with pytest.raises(ValueError, match=got):
        check_strategy(trainer, decides=decides)


def test_lightnings_averages_that_would_replace_trained_weights_are_refused(
    regressor: Any, loader: Any, trainer: Any
) -> None:
    class Witness(Callback):
        started = False

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.started = True

    witness = Witness()
    with pytest.raises(ValueError, match="got the callback EMAWeightAveraging"):
        trainer(callbacks=[EMAWeightAveraging(), witness]).fit(regressor(), loader(2))
    assert not witness.started
