"""The gate for modules that leave their steps to Lightning: a veto moves nothing there either."""

from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import SGD, AdamW

from musicnet.gate.automatic import AutomaticGate
from musicnet.gate.step_gate import GateStuckError, StepGate

ADAMW = partial(AdamW, lr=1e-2)


class Plain(LightningModule):
    """A module as users have it; a row that starts with 99 makes its loss nan."""

    def __init__(self, optimizer: Any = ADAMW) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
        self.optimizer = optimizer

    def training_step(self, batch: Any) -> Tensor:
        x, y = batch
        poison = torch.where(x[:, :1] == 99, torch.nan, 0.0)
        return (self.net(x + poison) - y).square().mean()

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())


def final(module: Plain) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize(
    "optimizer", [partial(AdamW, lr=1e-2, weight_decay=0.5), partial(SGD, lr=0.1, momentum=0.9)]
)
def test_a_vetoed_batch_leaves_no_trace(
    loader: Any, trainer: Any, reports: Any, optimizer: Any
) -> None:
    ends = []
    for poisoned in ((), (2,)):
        module, batches = Plain(optimizer), loader(6, poisoned=poisoned)
        if not poisoned:
            kept = [batch for i, batch in enumerate(batches) if i != 2]
            batches = torch.utils.data.DataLoader(kept, batch_size=None)
        trainer(callbacks=[AutomaticGate(), reports]).fit(module, batches)
        ends.append(final(module))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)
    assert [report.reason for report in reports.reports[5:]] == ["ok"] * 2 + ["nonfinite"] + [
        "ok"
    ] * 3
    assert reports.heard == ["before", "after"] * 11


def test_it_clips_as_the_trainer_would(loader: Any, trainer: Any) -> None:
    gated, plain = Plain(partial(SGD, lr=0.5)), Plain(partial(SGD, lr=0.5))
    gate = AutomaticGate(StepGate(max_norm=0.1))
    trainer(callbacks=[gate]).fit(gated, loader(5))
    trainer(gradient_clip_val=0.1).fit(plain, loader(5))
    assert gate.last_report is not None
    assert gate.last_report.clip_coef < 1
    torch.testing.assert_close(final(gated), final(plain), rtol=1e-4, atol=1e-6)


def test_a_window_of_batches_is_one_attempt(loader: Any, trainer: Any) -> None:
    gate = AutomaticGate()
    trainer(callbacks=[gate], accumulate_grad_batches=4).fit(Plain(), loader(8, poisoned=(1,)))
    assert (gate.gate.attempts, gate.gate.steps, dict(gate.gate.by_reason)) == (
        2,
        1,
        {"nonfinite": 1},
    )


def test_an_overflow_under_loss_scaling_is_a_veto_that_lowers_the_scale(
    loader: Any, trainer: Any
) -> None:
    scaler = GradScaler("cpu", init_scale=8.0)
    module, gate = Plain(), AutomaticGate()
    start = final(module)
    precision = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    batches = loader(2, poisoned=(0, 1))
    trainer(callbacks=[gate], plugins=[precision]).fit(module, batches)
    torch.testing.assert_close(final(module), start, rtol=0, atol=0)
    assert gate.last_report is not None
    assert (gate.last_report.scale_before, gate.last_report.scale_after) == (4.0, 2.0)


def test_a_run_that_only_vetoes_ends(loader: Any, trainer: Any) -> None:
    gate = AutomaticGate(StepGate(max_consecutive_skips=3))
    with pytest.raises(GateStuckError, match="got 4 vetoes in a row"):
        trainer(callbacks=[gate]).fit(Plain(), loader(6, poisoned=tuple(range(6))))


def test_counters_go_into_the_checkpoint_and_come_back(
    loader: Any, trainer: Any, tmp_path: Any
) -> None:
    run = trainer(callbacks=[AutomaticGate()])
    run.fit(Plain(), loader(4, poisoned=(1,)))
    run.save_checkpoint(tmp_path / "a.ckpt")
    gate = AutomaticGate()
    trainer(callbacks=[gate], max_epochs=2).fit(Plain(), loader(4), ckpt_path=tmp_path / "a.ckpt")
    assert (gate.gate.attempts, gate.gate.skips) == (8, 1)


def test_an_observer_touches_nothing(loader: Any, trainer: Any) -> None:
    watched, plain = Plain(), Plain()
    gate = AutomaticGate(StepGate(mode="observe"))
    trainer(callbacks=[gate]).fit(watched, loader(4))
    trainer().fit(plain, loader(4))
    torch.testing.assert_close(final(watched), final(plain), rtol=0, atol=0)
    assert gate.gate.steps == 4


@pytest.mark.bad_shape
@pytest.mark.parametrize(
    ("optimizer", "settings", "gate", "got"),
    [
        (torch.optim.LBFGS, {}, StepGate(), "got LBFGS"),
        (SGD, {"gradient_clip_val": 1.0}, StepGate(max_norm=2.0), "got gate.max_norm=2.0 and"),
    ],
)
def test_what_cannot_be_gated_is_refused(
    loader: Any, trainer: Any, optimizer: Any, settings: Any, gate: StepGate, got: str
) -> None:
    with pytest.raises(ValueError, match=got):
        trainer(callbacks=[AutomaticGate(gate)], **settings).fit(Plain(optimizer), loader(2))


def test_manual_optimisation_is_refused(regressor: Any, loader: Any, trainer: Any) -> None:
    with pytest.raises(ValueError, match=r"got Regressor.automatic_optimization=False"):
        trainer(callbacks=[AutomaticGate()]).fit(regressor(), loader(2))
