"""The doctor in real fits: it disturbs nothing, sees what it should, and never ends a run."""

import json
import logging
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torchmetrics import MeanMetric

from callbacks import OverfitSanity, RunDoctor, RunLog
from callbacks.doctoring.undisturbed import undisturbed
from musicnet.diagnosis.findings import Judgement
from musicnet.diagnosis.saved import AS_LOGGED, FILE_NAME, Diagnosis, read_diagnosis
from musicnet.gate.gated_module import GatedModule
from musicnet.gate.schedules import Schedule
from musicnet.records.provenance import collect_provenance


class Stateful(LightningModule):
    """Counts, collects, draws and normalises in every call."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.dropout = nn.Dropout(0.5)
        self.metric = MeanMetric()
        self.calls = 0
        self.seen: list[float] = []
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.late = "made inside"
        draw = torch.rand((), generator=self.generator)
        y = self.dropout(self.norm(x)) * draw + random.random() + np.random.rand()  # noqa: NPY002
        self.metric.update(y.mean())
        self.seen.append(float(y.mean()))
        self.log("seen", y.mean())
        return y


def everything(module: Stateful) -> list[Any]:
    return [
        *(tensor.clone() for tensor in module.state_dict().values()),
        module.metric.compute() if module.metric.update_called else None,
        module.calls,
        list(module.seen),
        hasattr(module, "late"),
        [part.training for part in module.modules()],
        module.generator.get_state(),
        torch.get_rng_state(),
        str(np.random.get_state()),  # noqa: NPY002
    ]


@pytest.mark.parametrize("training", [True, False])
def test_a_look_inside_leaves_no_trace(training: bool) -> None:
    module = Stateful()
    module.norm.eval()
    module.metric.update(torch.tensor(2.0))
    before = everything(module)
    with undisturbed(module, training=training) as logged:
        for _ in range(3):
            module(torch.randn(8, 3))
        assert set(logged) == {"seen"}
        assert module.calls == 3
    for was, now in zip(before, everything(module), strict=True):
        same = torch.equal(was, now) if isinstance(was, torch.Tensor) else was == now
        assert same


@pytest.mark.bad_shape  # the shape checker itself draws from this generator
def test_a_look_inside_draws_no_random_number_of_python() -> None:
    module = Stateful()
    before = random.getstate()
    with undisturbed(module):
        module(torch.randn(8, 3))
    assert random.getstate() == before


def test_a_look_that_fails_leaves_no_trace_either() -> None:
    module = Stateful()

    def look() -> None:
        with undisturbed(module):
            module(torch.randn(8, 3))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        look()
    assert (module.calls, module.seen) == (0, [])
    assert not hasattr(module, "late")


@pytest.mark.parametrize("kind", ["gated", "plain", "own_loop"])
def test_a_run_that_learns_is_said_to_learn(kind: str, request, fit, tmp_path: Path) -> None:
    made = request.getfixturevalue(kind)
    doctor, judge = RunDoctor(), OverfitSanity(min_loss_drop=0.9, max_skipped_fraction=0.5)
    fit(made if kind == "own_loop" else made(), judge, doctor, max_epochs=10)
    assert doctor.judgement.outcome == "learns", (doctor.judgement, doctor.evidence.losses)
    vetoes = ["MANY_VETOES"] if kind == "own_loop" else []  # every second batch is nan there
    assert [finding.code for finding in doctor.findings] == vetoes
    assert read_diagnosis(tmp_path) == doctor.diagnosis
    names = {curve.name.partition(":")[0] for curve in doctor.diagnosis.curves}
    assert {"training loss", "validation loss", "learning rate", "update ratio"} <= names


def test_it_counts_the_steps_that_were_real(gated, fit) -> None:
    doctor = RunDoctor()
    fit(gated(poisoned={0, 3}), doctor, max_epochs=2)
    length, gating = doctor.evidence.length, doctor.evidence.gating
    assert (length.batches, length.attempts, length.steps) == (16, 16, 14)
    assert {veto.name: veto.count for veto in gating.vetoes} == {"nonfinite": 2}
    assert [veto.attempt for veto in doctor.diagnosis.vetoes] == [1.0, 4.0]


def test_a_finding_is_told_once_and_at_once(gated, fit, caplog) -> None:
    caplog.set_level(logging.INFO, logger="callbacks")
    module = gated()
    module.backbone.register_forward_hook(lambda *seen: seen[-1].detach())
    doctor = RunDoctor()
    fit(module, OverfitSanity(min_loss_drop=0.0), doctor, max_epochs=4)
    told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert sum(text.startswith("GRAPH_DETACHED in backbone: no gradient") for text in told) == 1
    assert doctor.findings[0].step == 8  # the first look


def test_a_model_that_cannot_be_probed_trains_all_the_same(plain, fit) -> None:
    module = plain()
    real = module.training_step

    def stubborn(batch: Any, batch_idx: int) -> Any:
        if not module.training:
            raise RuntimeError("only in training mode")
        return real(batch, batch_idx)

    module.training_step = stubborn
    doctor = RunDoctor()
    trainer = fit(module, doctor, max_epochs=4)
    assert trainer.global_step == 32
    assert any("only in training mode" in line for line in doctor.evidence.unseen)


def test_hooks_are_gone_after_the_fit(plain, fit) -> None:
    module = plain()
    trainer = fit(module, RunDoctor(), max_epochs=2)
    (optimizer,) = trainer.optimizers
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert not any(part._forward_hooks for part in module.modules())


def test_a_run_that_missed_its_bars_is_not_said_to_learn(gated, fit, tmp_path: Path) -> None:
    doctor, judge = RunDoctor(), OverfitSanity(min_loss_drop=0.99999)
    fit(gated(), doctor, judge, max_epochs=10)
    assert judge.verdict.verdict == "fail"
    assert doctor.judgement.outcome == "does not learn"
    assert "its verdict is fail: the loss fell by" in read_diagnosis(tmp_path).judgement.because
    assert "This run does not learn." in (tmp_path / "report.html").read_text(encoding="utf-8")


class Phased(GatedModule):
    """The objective of its second phase is ten times that of the first; its log has one loss."""

    def __init__(self, *, tells: bool) -> None:
        super().__init__(
            optimizer=partial(torch.optim.SGD, lr=0.002),
            schedule=Schedule(warmup_steps=0, shape="constant"),
        )
        self.backbone, self.head = nn.Linear(4, 8), nn.Linear(8, 1)
        self.tells = tells

    @property
    def phase_index(self) -> int | None:
        return int(self.current_epoch >= 3) if self.tells else None

    def compute_loss(self, batch: Any, batch_idx: int) -> dict[str, torch.Tensor]:
        error = self.head(torch.tanh(self.backbone(batch[0]))) - batch[1]
        loss = error.square().mean()
        factor = 1.0 if self.current_epoch < 3 else 10.0
        return {"loss": loss * factor, "total": loss}

    def log_losses(self, losses: dict[str, torch.Tensor]) -> None:
        super().log_losses({"loss": losses["total"]})

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.compute_loss(batch, batch_idx)["total"])


@pytest.mark.parametrize("tells", [True, False])
def test_a_loss_is_followed_under_one_name_through_all_phases(tells, fit, tmp_path: Path) -> None:
    torch.manual_seed(7)
    doctor = RunDoctor()
    logged: list[float] = []
    fit(Phased(tells=tells), KeepsLoss(logged), doctor, max_epochs=6)
    losses = doctor.evidence.losses
    assert losses.key == "train/loss"
    assert losses.last == pytest.approx(logged[-1])
    assert losses.last < losses.first <= logged[0]
    assert losses.highest == pytest.approx(max(logged))
    curve = next(c for c in doctor.diagnosis.curves if c.name == AS_LOGGED)
    assert curve.y == pytest.approx(logged)
    assert curve.x == (8, 16, 24, 32, 40, 48)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "train/loss, by epoch" in page
    assert "objective of the phase, by batch" in page


def test_one_and_the_same_objective_is_followed_batch_by_batch(gated, fit) -> None:
    doctor = RunDoctor()
    fit(gated(poisoned={3}), doctor, max_epochs=4)
    assert doctor.evidence.losses.key == ""
    assert doctor.evidence.losses.val_key == "val/loss"


class KeepsLoss(Callback):
    """Notes the logged loss of every epoch."""

    def __init__(self, kept: list[float]) -> None:
        self.kept = kept

    def on_train_epoch_end(self, trainer, pl_module):
        self.kept.append(float(trainer.callback_metrics["train/loss"]))


def test_a_run_that_is_killed_at_once_had_a_doctor(gated, fit, tmp_path: Path) -> None:
    seen: list[Diagnosis] = []

    class Looks(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx in (0, 7):
                seen.append(read_diagnosis(tmp_path))

    fit(gated(), RunDoctor(), RunLog(), Looks(), max_epochs=2)
    first, _, second, _ = seen
    assert first.judgement == Judgement("could not tell", "0 optimiser steps: too few.")
    assert (first.log.rows, first.log.length) == (0, 0)
    # the first look is left as well, and what it was drawn from
    assert (second.evidence.length.steps, second.log.rows) == (8, 1)


def test_a_sharded_run_is_said_not_to_be_watched(
    gated, fit, tmp_path: Path, monkeypatch, caplog
) -> None:
    monkeypatch.setattr("callbacks.run_doctor.is_sharded", lambda trainer: True)
    doctor = RunDoctor()
    fit(gated(), doctor)
    told = [r.getMessage() for r in caplog.records if "sharded" in r.getMessage()]
    assert len([text for text in told if text.startswith("Doctor: could not tell: sharded")]) == 1
    saved = read_diagnosis(tmp_path)
    assert saved.judgement.outcome == "could not tell"
    assert saved.judgement.because.startswith("sharded: ")
    assert saved.evidence.length.steps == 8
    assert any("sharded" in line for line in saved.evidence.unseen)
    assert (tmp_path / "report.html").exists()


def test_an_exception_is_an_end_like_another(gated, fit, tmp_path: Path) -> None:
    class Breaks(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 5:
                raise ValueError("broken on purpose")

    doctor = RunDoctor()
    with pytest.raises(ValueError, match="broken on purpose"):
        fit(gated(), doctor, Breaks())
    saved = read_diagnosis(tmp_path)
    assert saved.judgement.outcome == "could not tell"
    assert any("broken on purpose" in line for line in saved.evidence.unseen)


def test_the_files_carry_the_run_id_and_can_be_left_out(gated, fit, tmp_path: Path) -> None:
    collect_provenance(run_id="c0ffee00").write(tmp_path)
    fit(gated(), RunDoctor())
    assert json.loads((tmp_path / FILE_NAME).read_text())["run_id"] == "c0ffee00"
    (tmp_path / FILE_NAME).unlink()
    fit(gated(), RunDoctor(files=False))
    assert not (tmp_path / FILE_NAME).exists()


@pytest.mark.filterwarnings("ignore:.*was saved with total_steps.*")
def test_what_was_seen_before_a_resume_is_part_of_the_run(gated, fit, tmp_path: Path) -> None:
    first = RunDoctor()
    module = gated()
    module.backbone.requires_grad_(requires_grad=False)
    trainer = fit(module, first, max_epochs=2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    second = RunDoctor()
    module = gated()
    fit(module, second, max_epochs=4, ckpt_path=tmp_path / "half.ckpt")
    assert second.evidence.length.steps == 32
    assert "GROUP_FROZEN" in [finding.code for finding in second.findings]
    rates = next(c for c in second.diagnosis.curves if c.name.startswith("learning rate"))
    assert rates.x[0] < 8 < rates.x[-1]
    # a run is judged as a whole, not from where it was taken up
    assert second.evidence.losses.n == 32
    assert second.evidence.losses.first == first.evidence.losses.first
    assert second.evidence.losses.val_first == first.evidence.losses.val_first
    assert second.evidence.losses.val_key == "val/loss"
    losses = next(c for c in second.diagnosis.curves if c.name == "training loss")
    assert (losses.x[0], losses.x[-1]) == (1, 32)
    assert list(rates.x) == sorted(rates.x)


def test_a_rate_that_is_no_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="got nan"):
        RunDoctor(rate=float("nan"))


def test_a_rate_that_was_asked_for_is_held_against_the_groups(gated, fit) -> None:
    asked = RunDoctor(rate=0.5)
    fit(gated(), asked)
    assert asked.findings[0].code == "RATE_NOT_AS_ASKED"
    assert asked.findings[0].where == "RunDoctor.rate"
