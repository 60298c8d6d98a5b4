import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger

from callbacks import GradientNorm
from musicnet.gate.step_gate import StepGate

LINE = re.compile(r"\[GRAD\] \|\|g\|\|_2=(\d\.\d{3}e[+-]\d\d) ok=True")


class Reports(Callback):
    def __init__(self) -> None:
        self.seen = []

    def on_step_gate(self, trainer, pl_module, report) -> None:
        self.seen.append(report)


class Gradients(Callback):
    """The slow twin: the norm of everything, as Lightning shows it before a step."""

    def __init__(self) -> None:
        self.norms = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        flat = torch.cat([p.grad.flatten() for p in pl_module.parameters()])
        self.norms.append(flat.double().norm().item())


def test_lines_come_at_the_first_step_and_at_every_nth(gated, fit, lines) -> None:
    reports = Reports()
    fit(gated(), GradientNorm(every_n=3), reports)
    shown = [LINE.fullmatch(line)[1] for line in lines("[GRAD]")]
    assert shown == [f"{r.norm:.3e}" for r in reports.seen if r.step in (1, 4, 7)]


def test_every_veto_has_a_line_with_its_reason(gated, fit, lines) -> None:
    fit(gated(poisoned={1, 4}), GradientNorm(every_n=50))
    assert lines("[GRAD]")[1:] == ["[GRAD] ||g||_2=nan ok=False reason=nonfinite"] * 2
    assert len(lines("[GRAD]")) == 3


def test_under_automatic_optimisation_it_agrees_with_a_slow_twin(plain, fit, lines) -> None:
    twin = Gradients()
    fit(plain(), twin, GradientNorm(every_n=1))
    shown = [float(LINE.fullmatch(line)[1]) for line in lines("[GRAD]")]
    assert shown == pytest.approx(twin.norms, rel=1e-3)


def test_under_automatic_optimisation_a_zero_gradient_is_not_ok(plain, fit, lines) -> None:
    module = plain()
    module.head.register_forward_hook(lambda *arguments: arguments[-1] * 0.0)
    fit(module, GradientNorm(), limit_train_batches=1)
    assert lines("[GRAD]") == ["[GRAD] ||g||_2=0.000e+00 ok=False reason=zero"]


def test_series_carry_the_groups_and_count_batches(gated, fit, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    gate = StepGate(group_norms_every=4)
    fit(gated(gate=gate), GradientNorm(every_n=4), logger=logger, max_epochs=2)
    header, *table = (tmp_path / "metrics.csv").read_text().splitlines()
    columns = header.split(",")
    at = [dict(zip(columns, line.split(","), strict=True)) for line in table]
    steps = [int(row["step"]) for row in at if row["optim/grad_norm"]]
    assert steps == [0, 4, 8, 12]
    for row in at:
        if row["optim/grad_norm"]:
            parts = [float(row[f"optim/grad_norm/{name}"]) for name in ("backbone", "head")]
            assert float(row["optim/grad_norm"]) == pytest.approx(sum(p**2 for p in parts) ** 0.5)


def test_the_first_real_step_has_a_line_after_vetoes(gated, fit, lines) -> None:
    fit(gated(poisoned={0, 1}), GradientNorm(every_n=50))
    assert ["ok=True" in line for line in lines("[GRAD]")] == [False, False, True]
