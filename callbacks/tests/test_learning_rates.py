import pytest
import torch
from lightning.pytorch import Callback

from callbacks import LearningRates
from musicnet.gate.schedules import Schedule


class Rates(Callback):
    """The slow twin: the rates that the optimiser holds while it steps."""

    def __init__(self) -> None:
        self.used = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.used.append([group["lr"] for group in optimizer.param_groups])


def test_each_epoch_shows_the_groups_and_their_rates(gated, fit, lines) -> None:
    fit(gated(lr=3e-4), LearningRates(), max_epochs=2)
    assert lines("[LR]") == [
        "[LR] epoch=1 groups=['backbone', 'head'] lr=[0.0003, 0.0012]",
        "[LR] epoch=2 groups=['backbone', 'head'] lr=[0.0003, 0.0012]",
    ]


def test_the_rate_is_the_one_that_the_step_used(gated, fit, lines) -> None:
    rates = Rates()
    warming = Schedule(warmup_steps=10, shape="constant")
    fit(gated(lr=0.01, schedule=warming), LearningRates(), rates, max_epochs=2)
    first_steps = [rates.used[0], rates.used[8]]
    shown = [
        [float(rate) for rate in line.split("lr=[")[1][:-1].split(",")] for line in lines("[LR]")
    ]
    assert shown == [pytest.approx(used) for used in first_steps]
    assert first_steps[0] == pytest.approx([0.001, 0.004])


def test_under_automatic_optimisation_it_shows_the_step_s_own_rate(plain, fit, lines) -> None:
    module = plain()

    def halving() -> dict:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.08)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    module.configure_optimizers = halving
    fit(module, LearningRates(), max_epochs=3)
    assert lines("[LR]") == [
        f"[LR] epoch={epoch} groups=['group0'] lr=[{rate}]"
        for epoch, rate in ((1, 0.08), (2, 0.04), (3, 0.02))
    ]


def test_an_epoch_without_a_step_has_no_line(gated, fit, lines) -> None:
    fit(gated(poisoned=set(range(8))), LearningRates(), max_epochs=2)
    assert [line[:12] for line in lines("[LR]")] == ["[LR] epoch=2"]
