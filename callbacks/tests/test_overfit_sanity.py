import json
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from callbacks import OverfitSanity, RunDoctor
from musicnet.diagnosis.verdict import Verdict
from musicnet.gate.schedules import Schedule
from musicnet.records.provenance import collect_provenance


def learned(fit, module, **bars) -> Verdict | None:
    judge = OverfitSanity(**bars)
    fit(module, judge, max_epochs=20)
    return judge.verdict


def loss_of(module, loader) -> float:
    """The mean loss over all samples, as a user would compute it by hand."""
    inputs, targets = loader.dataset.tensors
    with torch.no_grad():
        outputs = module.head(torch.tanh(module.backbone(inputs)))
    return (outputs - targets).square().mean().item()


@pytest.mark.parametrize("kind", ["gated", "plain"])
def test_a_model_that_memorises_passes(kind, request, fit, loader, tmp_path: Path) -> None:
    module = request.getfixturevalue(kind)()
    weights = torch.cat([p.detach().flatten() for p in module.parameters()])
    first = loss_of(module, loader)
    verdict = learned(fit, module, min_loss_drop=0.9)
    moved = torch.cat([p.detach().flatten() for p in module.parameters()]) - weights
    assert verdict.verdict == "pass"
    assert verdict.reasons == ()
    assert verdict.loss_first == verdict.val_first == pytest.approx(first, rel=1e-5)
    assert verdict.loss_last == pytest.approx(loss_of(module, loader), rel=1e-5)
    assert verdict.delta_total == pytest.approx(moved.norm().item(), rel=1e-4)
    assert (verdict.steps, verdict.skipped) == (160, 0)


def test_the_file_has_exactly_the_promised_keys(gated, fit, tmp_path: Path) -> None:
    collect_provenance(run_id="c0ffee00").write(tmp_path)
    learned(fit, gated(), min_loss_drop=0.9)
    tree = json.loads((tmp_path / "verdict.json").read_text(encoding="utf-8"))
    assert list(tree) == [
        "verdict",
        "reasons",
        "loss_first",
        "loss_last",
        "val_first",
        "val_last",
        "recall",
        "median_error_m",
        "delta_total",
        "steps",
        "skipped",
        "seconds",
        "run_id",
    ]
    assert tree["run_id"] == "c0ffee00"
    assert tree["recall"] is None


def test_among_the_defaults_it_is_silent_until_batches_are_to_be_overfitted(
    gated, fit, tmp_path: Path
) -> None:
    ordinary = learned(fit, gated(), when="overfit_batches")
    assert ordinary is None
    assert not (tmp_path / "verdict.json").exists()
    judge = OverfitSanity(when="overfit_batches", min_loss_drop=0.5)
    fit(gated(), judge, max_epochs=20, overfit_batches=4)
    assert judge.verdict is not None
    assert (tmp_path / "verdict.json").exists()


def test_a_model_that_cannot_move_fails(gated, fit) -> None:
    verdict = learned(fit, gated(lr=0.0))
    assert verdict.verdict == "fail"
    assert "no parameter moved in 160 steps" in verdict.reasons


def test_a_group_that_never_moves_is_named(gated, fit) -> None:
    module = gated()
    module.backbone.register_forward_hook(lambda *arguments: arguments[-1].detach())
    verdict = learned(fit, module, min_loss_drop=0.0)
    assert verdict.verdict == "fail"
    assert verdict.reasons == ("parameter groups that never moved: backbone",)


def test_a_gate_that_vetoes_everything_fails(gated, fit) -> None:
    judge = OverfitSanity()
    fit(gated(poisoned=set(range(16))), judge, max_epochs=2)
    assert judge.verdict.verdict == "fail"
    assert judge.verdict.reasons[0] == "none of 16 attempts was a real step"
    assert (judge.verdict.steps, judge.verdict.skipped) == (0, 16)


def test_vetoes_are_counted_and_bounded(gated, fit) -> None:
    verdict = learned(fit, gated(poisoned=set(range(40))), min_loss_drop=0.1)
    assert verdict.verdict == "fail"
    assert verdict.reasons == ("40 of 160 attempts were vetoed, at most 10 % may be",)
    assert verdict.steps == 120


def test_a_missed_metric_fails_and_an_absent_one_is_unknown(gated, fit) -> None:
    module = gated()
    module.on_validation_epoch_end = lambda: module.log("val/recall", 0.5)
    missed = learned(fit, module, min_loss_drop=0.9, min_recall=0.94)
    assert (missed.verdict, missed.recall) == ("fail", 0.5)
    absent = learned(fit, gated(), min_loss_drop=0.9, min_recall=0.94)
    assert (absent.verdict, absent.reasons) == ("unknown", ("recall is None",))


def test_nothing_validated_before_the_first_step_is_unknown(gated, fit) -> None:
    judge = OverfitSanity(min_loss_drop=0.5)
    fit(gated(), judge, num_sanity_val_steps=0)
    assert judge.verdict.verdict == "unknown"
    assert "set trainer.num_sanity_val_steps=-1" in judge.verdict.reasons[0]


def test_a_first_loss_of_some_batches_is_unknown(gated, fit) -> None:
    judge = OverfitSanity(min_loss_drop=0.5)
    fit(gated(), judge, num_sanity_val_steps=2)
    assert judge.verdict.verdict == "unknown"
    assert "2 of 8 validation batches" in judge.verdict.reasons[0]


def test_steps_after_the_last_validation_are_unknown(gated, fit) -> None:
    judge = OverfitSanity(min_loss_drop=0.1)
    fit(gated(), judge, max_epochs=3, check_val_every_n_epoch=2)
    assert judge.verdict.verdict == "unknown"
    assert judge.verdict.reasons == ("the last validation was after step 16, the last step was 24",)


def test_an_exception_is_unknown_and_leaves_a_verdict(gated, fit, tmp_path: Path) -> None:
    class Failing(Callback):
        def on_train_epoch_end(self, trainer, pl_module) -> None:
            raise RuntimeError("the disk is on fire")

    judge = OverfitSanity()
    with pytest.raises(RuntimeError):
        fit(gated(), judge, Failing())
    tree = json.loads((tmp_path / "verdict.json").read_text(encoding="utf-8"))
    assert tree["verdict"] == "unknown"
    assert tree["reasons"][0] == "training ended by RuntimeError: the disk is on fire"
    assert judge.verdict.exit_code == 4


def test_a_missed_bar_of_a_run_that_was_stopped_is_unknown(gated, fit) -> None:
    class Stopping(Callback):
        def on_train_epoch_end(self, trainer, pl_module) -> None:
            trainer.should_stop = True

    judge = OverfitSanity(min_loss_drop=0.9999)
    fit(gated(), judge, Stopping(), max_epochs=5)
    assert judge.verdict.verdict == "unknown"
    assert judge.verdict.reasons[0] == "training was stopped early, after 1 epochs and 8 steps"
    enough = OverfitSanity(min_loss_drop=0.1)
    fit(gated(), enough, Stopping(), max_epochs=5)
    assert enough.verdict.verdict == "pass"


def test_a_loss_that_is_not_finite_is_unknown(gated, fit) -> None:
    module = gated()
    module.validation_step = lambda batch, batch_idx: module.log("val/loss", float("nan"))
    verdict = learned(fit, module)
    assert verdict.verdict == "unknown"
    assert "loss_first is nan" in verdict.reasons


def test_a_bar_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="got 94"):
        OverfitSanity(min_recall=94.0)


def test_one_object_can_judge_one_run_after_another(gated, fit) -> None:
    judge = OverfitSanity(min_loss_drop=0.5)
    fit(gated(poisoned=set(range(8))), judge, max_epochs=1)
    assert judge.verdict.verdict == "fail"
    fit(gated(), judge, max_epochs=20)
    assert (judge.verdict.verdict, judge.verdict.skipped) == ("pass", 0)


@pytest.mark.filterwarnings("ignore:the schedule is laid out for total_steps")
def test_a_resumed_run_remembers_its_first_loss(gated, fit, tmp_path: Path) -> None:
    schedule = Schedule(warmup_steps=0, shape="constant", total_steps=160)
    trainer = fit(gated(schedule=schedule), first := OverfitSanity(), max_epochs=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    second = OverfitSanity(min_loss_drop=0.9)
    checkpoint = tmp_path / "last.ckpt"
    fit(gated(schedule=schedule), second, max_epochs=20, ckpt_path=checkpoint)
    assert second.verdict.verdict == "pass"
    assert second.verdict.loss_first == first.verdict.loss_first
    assert second.verdict.steps == 160


@pytest.mark.parametrize("limits", [{"max_epochs": 0}, {"max_epochs": 1, "max_steps": 0}])
def test_a_run_that_trains_nothing_is_unknown(gated, fit, limits, tmp_path: Path) -> None:
    judge = OverfitSanity()
    fit(gated(), judge, **limits)
    assert judge.verdict.verdict == "unknown"
    assert "nothing was trained: the run ended before its first batch" in judge.verdict.reasons
    assert (tmp_path / "verdict.json").exists()


@pytest.mark.filterwarnings("ignore:.*resuming from a checkpoint.*")
def test_a_finished_run_that_is_resumed_is_unknown(gated, fit, tmp_path: Path) -> None:
    trainer = fit(gated(), OverfitSanity(min_loss_drop=0.1), max_epochs=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    judge = OverfitSanity(min_loss_drop=0.1)
    fit(gated(), judge, max_epochs=2, ckpt_path=tmp_path / "last.ckpt")
    assert judge.verdict.verdict == "unknown"


@pytest.mark.filterwarnings("ignore:the .*total_steps")
def test_a_group_that_moved_before_the_resume_is_not_still(gated, fit, tmp_path: Path) -> None:
    trainer = fit(gated(), OverfitSanity(), max_epochs=10)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    resumed, judge = gated(), OverfitSanity(min_loss_drop=0.1)
    resumed.backbone.register_forward_hook(lambda *arguments: arguments[-1].detach())
    fit(resumed, judge, max_epochs=20, ckpt_path=tmp_path / "last.ckpt")
    assert judge.verdict.reasons == ()


@pytest.mark.filterwarnings("ignore:the .*total_steps")
def test_a_still_model_after_a_resume_is_said_to_be_still_since_then(
    gated, fit, tmp_path: Path
) -> None:
    trainer = fit(gated(), OverfitSanity(), max_epochs=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")

    class Still(Callback):
        def on_train_start(self, trainer, pl_module) -> None:
            for scheduler in [config.scheduler for config in trainer.lr_scheduler_configs]:
                scheduler.base_lrs = [0.0 for _ in scheduler.base_lrs]
            for group in trainer.optimizers[0].param_groups:
                group["lr"] = 0.0

    judge = OverfitSanity(min_loss_drop=0.1)
    fit(gated(), Still(), judge, max_epochs=3, ckpt_path=tmp_path / "last.ckpt")
    assert "no parameter moved in 8 steps since the resume" in judge.verdict.reasons


@pytest.mark.parametrize(
    ("fault", "first"),
    [
        ("detached", "GRAPH_DETACHED in backbone: no gradient"),
        ("frozen", "GROUP_FROZEN in head: none of its"),
        ("slow", "RATE_TOO_LOW in learning rate: "),
    ],
)
def test_where_a_doctor_watches_its_first_finding_is_the_first_reason(
    gated, fit, fault: str, first: str
) -> None:
    module = gated(lr=1e-8) if fault == "slow" else gated()
    if fault == "detached":
        module.backbone.register_forward_hook(lambda *seen: seen[-1].detach())
    if fault == "frozen":
        module.head.requires_grad_(False)
    judge = OverfitSanity(min_loss_drop=0.999)
    fit(module, RunDoctor(), judge, max_epochs=4)
    assert judge.verdict.verdict == "fail"
    assert judge.verdict.reasons[0].startswith(first)
    assert len(judge.verdict.reasons) > 1


def test_a_run_that_passes_has_no_reason_whatever_a_doctor_says(gated, fit) -> None:
    judge = OverfitSanity(min_loss_drop=0.5)
    fit(gated(), RunDoctor(rate=0.123), judge, max_epochs=20)
    assert (judge.verdict.verdict, judge.verdict.reasons) == ("pass", ())


def test_of_a_validation_only_what_is_judged_by_is_kept() -> None:
    """Training's metrics beside it are of the epoch before, or after a resume of no epoch."""
    metrics = {"val/loss": torch.tensor(2.0), "train/loss": torch.tensor(1.0)}
    state = SimpleNamespace(fn=TrainerFn.FITTING)
    trainer = Mock(
        spec=Trainer, callback_metrics=metrics, sanity_checking=False, state=state, global_step=3
    )
    sanity, module = OverfitSanity(), LightningModule()
    sanity.on_validation_end(trainer, module)
    assert sanity.state_dict()["last"] == {"val/loss": 2.0}
