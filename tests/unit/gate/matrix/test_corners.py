"""Rows 57 to 70: optimisers, callbacks and settings that meet the gate in a corner."""

import json
import logging
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.profilers import SimpleProfiler
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import LBFGS, SGD, AdamW
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import train
from callbacks import GradientNorm, LearningRates, OverfitSanity, ParameterDelta, RunLog
from musicnet import __main__ as lightning_door
from musicnet.gate.automatic import AutomaticGate
from musicnet.gate.parameter_groups import ParameterGroup
from musicnet.gate.schedules import Schedule
from musicnet.gate.step_gate import GateStuckError, StepGate

CONSTANT = Schedule(shape="constant", warmup_steps=0)
ALL_TOGETHER = [ParameterGroup("all", ["backbone", "head"])]


def weights(module: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same(left: Any, right: Any) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=0)


def lbfgs_on_a_bowl() -> tuple[nn.ParameterList, LBFGS]:
    module = nn.ParameterList([nn.Parameter(torch.tensor([3.0, -2.0]))])
    return module, LBFGS(module.parameters(), lr=0.5, max_iter=4)


def three_lbfgs_steps(gate: StepGate | None) -> tuple[Tensor, int]:
    module, optimizer = lbfgs_on_a_bowl()
    evaluations = 0

    def closure() -> Tensor:
        nonlocal evaluations
        evaluations += 1
        optimizer.zero_grad()
        loss = (module[0] * torch.tensor([1.0, 3.0])).square().sum()
        loss.backward()
        return loss

    for _ in range(3):
        if gate is None:
            optimizer.step(closure)
        else:
            gate.attempt(module, optimizer, closure=closure)
    return module[0].detach(), evaluations


def test_row_57_lbfgs_takes_the_steps_and_evaluations_that_it_takes_without_the_gate() -> None:
    gate = StepGate()
    gated, plain = three_lbfgs_steps(gate), three_lbfgs_steps(None)
    assert gate.steps == 3
    assert_same(gated[0], plain[0])
    assert gated[1] == plain[1]


def test_row_57_a_line_search_that_ends_in_nan_is_undone() -> None:
    module, optimizer = lbfgs_on_a_bowl()
    start = module[0].detach().clone()
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = module[0].square().sum() * (1.0 if calls == 1 else math.nan)
        loss.backward()
        return loss

    report = StepGate().attempt(module, optimizer, closure=closure)
    assert (report.ok, report.stepped, report.reason) == (True, False, "nonfinite")
    assert_same(module[0].detach(), start)
    assert not optimizer.state_dict()["state"]


def test_row_57_a_closure_cannot_be_clipped() -> None:
    module, optimizer = lbfgs_on_a_bowl()
    with pytest.raises(ValueError, match=r"got max_norm=1.0"):
        StepGate(max_norm=1.0).attempt(module, optimizer, closure=lambda: None)


def test_row_57_lbfgs_in_a_fit_has_one_report_per_window(
    regressor: Any, loader: Any, trainer: Any, reports: Any
) -> None:
    settings: dict[str, Any] = {
        "optimizer": partial(LBFGS, lr=0.1, max_iter=4),
        "groups": ALL_TOGETHER,
        "schedule": CONSTANT,
        "accumulate": 2,
    }
    module, data = regressor(**settings), loader(5, poisoned=(0,))
    run = trainer(callbacks=[reports])
    run.fit(module, data)
    assert [report.reason for report in reports.reports] == ["nonfinite", "ok", "ok"]

    twin = regressor(**settings)
    optimizer = LBFGS(twin.parameters(), lr=0.1, max_iter=4)
    x, y = data.dataset.tensors
    losses = []
    for batches in (((8, 12), (12, 16)), ((16, 20),)):

        def closure(batches: Any = batches) -> Tensor:
            optimizer.zero_grad()
            parts = [twin.compute_loss((x[i:j], y[i:j]), 0) / len(batches) for i, j in batches]
            for part in parts:
                part.backward()
            return torch.stack(parts).sum().detach()

        losses.append(optimizer.step(closure).item())
    torch.testing.assert_close(module.state_dict(), twin.state_dict())
    assert run.callback_metrics["train/loss"].item() == pytest.approx(sum(losses) / 2)


def test_row_58_early_stopping_survives_a_vetoed_batch(
    regressor: Any, loader: Any, trainer: Any
) -> None:
    stopping = EarlyStopping("train/loss", check_on_train_epoch_end=True, check_finite=True)
    module = regressor()
    run = trainer(max_epochs=3, callbacks=[stopping])
    run.fit(module, loader(4, poisoned=(1,)))
    assert stopping.stopped_epoch == 0
    assert module.gate.steps == 9
    assert math.isfinite(run.callback_metrics["train/loss"])
    assert run.callback_metrics["gate/vetoed_fraction"] == 0.25
    assert run.callback_metrics["gate/step_real"] == 9


@pytest.mark.filterwarnings("ignore:.*no pre-optimization state.*")
def test_row_59_checkpoints_by_step_are_not_repeated_while_steps_are_vetoed(
    regressor: Any, loader: Any, trainer: Any, tmp_path: Path
) -> None:
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1)
    run = trainer(enable_checkpointing=True, callbacks=[saver])
    run.fit(regressor(), loader(8, poisoned=(2, 3, 4, 5)))
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["step=2.ckpt", "step=4.ckpt"]


def test_row_60_an_error_inside_a_toggled_optimizer_gives_the_gradients_back(
    regressor: Any, loader: Any, trainer: Any
) -> None:
    class Toggling(type(regressor())):  # type: ignore[misc]
        def configure_optimizers(self) -> Any:
            return [SGD(self.backbone.parameters(), lr=0.1), SGD(self.head.parameters(), lr=0.1)]

        def training_step(self, batch: Any, batch_idx: int) -> None:
            with self.toggled_optimizer(self.optimizers()[0]):
                self.manual_backward(self.compute_loss(batch, batch_idx) * math.nan)
                self.gate.attempt(self, self.optimizers()[0])

    module = Toggling(gate=StepGate(nonfinite="raise"))
    with pytest.raises(GateStuckError):
        trainer().fit(module, loader(2))
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_row_61_a_profiled_run_bears_ten_vetoes(regressor: Any, loader: Any, trainer: Any) -> None:
    module = regressor()
    run = trainer(profiler=SimpleProfiler(filename="profile"))
    run.fit(module, loader(14, poisoned=tuple(range(2, 12))))
    assert (module.gate.steps, module.gate.skips) == (4, 10)


def test_row_62_gradient_checkpointing_changes_no_norm(
    regressor: Any, loader: Any, trainer: Any, reports: Any
) -> None:
    class Saving(type(regressor())):  # type: ignore[misc]
        def compute_loss(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            features = checkpoint(self.backbone, x, use_reentrant=False)
            poison = math.nan if batch_idx == 1 else 1.0
            return (self.head(features) - y).square().mean() * poison

    plain = regressor()
    torch.manual_seed(0)
    modules = [plain, Saving()]
    for module in modules:
        trainer(callbacks=[reports]).fit(module, loader(4, poisoned=(1,)))
    norms = [report.norm for report in reports.reports]
    assert norms[:4] == pytest.approx(norms[4:], rel=1e-6, nan_ok=True)
    assert_same(weights(modules[0]), weights(modules[1]))


def test_row_63_all_callbacks_run_without_a_logger(
    regressor: Any, loader: Any, trainer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="callbacks")
    observers = [GradientNorm(), ParameterDelta(), LearningRates(), OverfitSanity(), RunLog()]
    run = trainer(logger=False, callbacks=observers)
    run.fit(regressor(), loader(4, poisoned=(1,)))
    assert not run.loggers
    beginnings = {text.partition(" ")[0] for text in caplog.messages}
    assert {"[GRAD]", "[STEP]", "[LR]", "Epoch"} <= beginnings
    log = (Path(run.default_root_dir) / "metrics.jsonl").read_text().splitlines()
    assert {json.loads(row)["event"] for row in log} == {"step", "veto", "epoch"}


@pytest.mark.parametrize(
    ("door", "words", "nearest"),
    [
        (train.run, ["gate.max_nrm=1"], "gate.max_norm"),
        (train.run, ["+gate.max_nrm=1"], "gate.max_norm"),
        (train.run, ["++gate.max_nrm=1"], "gate.max_norm"),
        (
            lightning_door.run,
            ["fit", "--model", "MusicNet", "--model.init_args.accumulat=2"],
            "accumulate",
        ),
    ],
)
def test_row_64_a_misspelt_key_is_refused_behind_both_doors(
    door: Any, words: list[str], nearest: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = "--trainer.default_root_dir" if words[0] == "fit" else "trainer.default_root_dir"
    assert door([*words, f"{root}={tmp_path}"]) == 1
    said = capfd.readouterr().err
    assert "error: " in said
    assert nearest in said
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


def test_row_65_hyperparameters_from_omegaconf_leave_a_checkpoint_that_loads_safely(
    regressor: Any, loader: Any, trainer: Any, tmp_path: Path
) -> None:
    class Configured(type(regressor())):  # type: ignore[misc]
        def __init__(self, sizes: Any) -> None:
            super().__init__()
            self.save_hyperparameters()

    sizes = OmegaConf.create({"width": 3, "layers": [1, {"depth": 2}]})
    run = trainer()
    run.fit(Configured(sizes), loader(2))
    run.save_checkpoint(tmp_path / "a.ckpt")
    loaded = Configured.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert loaded.hparams.sizes == {"width": 3, "layers": [1, {"depth": 2}]}
    more = trainer(max_epochs=1)
    more.fit(Configured(sizes), loader(2), ckpt_path=tmp_path / "a.ckpt", weights_only=True)


def test_row_66_a_bare_optimizer_in_a_fit_is_warned_of_once(
    regressor: Any, loader: Any, trainer: Any
) -> None:
    class Bare(type(regressor())):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.manual_backward(self.compute_loss(batch, batch_idx))
            self.gate.attempt(self, self.optimizers().optimizer)

    module, run = Bare(), trainer()
    with pytest.warns(UserWarning, match="got a bare AdamW, whose steps do not count") as told:
        run.fit(module, loader(4))
    assert (module.gate.steps, run.global_step) == (4, 0)
    assert len([one for one in told if "bare AdamW" in str(one.message)]) == 1


def test_row_67_a_group_that_thaws_in_a_run_counts_from_the_next_attempt(
    regressor: Any, loader: Any, trainer: Any, reports: Any
) -> None:
    class Thawing(type(regressor())):  # type: ignore[misc]
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.backbone.requires_grad_(requires_grad=batch_idx >= 2)

    module = Thawing(gate=StepGate(group_norms_every=1))
    start = weights(module)
    trainer(callbacks=[reports]).fit(module, loader(4))
    shown = [sorted(report.group_norms) for report in reports.reports]
    assert shown == [["head"]] * 2 + [["backbone", "head"]] * 2
    last = reports.reports[-1]
    assert last.norm == pytest.approx(math.hypot(*last.group_norms.values()))
    assert not torch.equal(weights(module)["backbone.0.weight"], start["backbone.0.weight"])


def test_row_67_a_group_that_comes_into_the_optimizer_in_a_run_follows_the_schedule(
    regressor: Any, loader: Any, trainer: Any, reports: Any
) -> None:
    class Growing(type(regressor())):  # type: ignore[misc]
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if batch_idx == 2:
                self.backbone.requires_grad_(requires_grad=True)
                group = {"params": list(self.backbone.parameters()), "lr": 0.5, "name": "backbone"}
                self.trainer.optimizers[0].add_param_group(group)

    module = Growing(groups=[ParameterGroup("head", ["head"])], optimizer=partial(SGD, lr=0.1))
    module.backbone.requires_grad_(requires_grad=False)
    trainer(callbacks=[reports]).fit(module, loader(6))
    assert [len(report.lr) for report in reports.reports] == [1, 1, 2, 2, 2, 2]
    for report in reports.reports[3:]:
        assert report.lr["backbone"] == pytest.approx(5 * report.lr["head"])


def test_row_68_a_vetoed_batch_leaves_no_trace_in_the_whole_state(
    regressor: Any, loader: Any, trainer: Any
) -> None:
    """With BatchNorm: the forward pass of the bad batch has written nan before the veto."""
    final = {}
    for poisoned in ((), (2,)):
        module = regressor(norm=True, schedule=CONSTANT)
        batches = loader(6, poisoned=poisoned)
        if not poisoned:
            batches = [b for i, b in enumerate(batches) if i != 2]
            batches = torch.utils.data.DataLoader(batches, batch_size=None)
        run = trainer()
        run.fit(module, batches)
        assert module.gate.steps == 5
        final[poisoned] = weights(module), run.optimizers[0].state_dict()["state"]
    assert_same(final[()][0], final[(2,)][0])
    assert_same(final[()][1], final[(2,)][1])
    module.eval()
    assert module.head(module.backbone(torch.ones(1, 4))).isfinite().all()


def test_row_69_the_adapter_refuses_a_fused_optimizer_under_loss_scaling(
    regressor: Any, loader: Any, trainer: Any
) -> None:
    class Automatic(type(regressor())):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = True

        def configure_optimizers(self) -> Any:
            return AdamW(self.parameters(), lr=1e-3, fused=True)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.compute_loss(batch, batch_idx)

    precision = MixedPrecision("16-mixed", "cpu", scaler=GradScaler("cpu"))
    with pytest.raises(ValueError, match="got a fused AdamW with a loss scaler"):
        trainer(callbacks=[AutomaticGate()], plugins=[precision]).fit(Automatic(), loader(2))
    trainer(callbacks=[AutomaticGate()]).fit(Automatic(), loader(2))


def test_row_70_an_attempt_takes_one_norm_and_waits_for_the_device_once() -> None:
    counts: dict[str, int] = {}

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            name = func.overloadpacket.__name__
            counts[name] = counts.get(name, 0) + 1
            return func(*args, **kwargs or {})

    module = nn.ParameterList([nn.Parameter(torch.ones(1)) for _ in range(2)])
    for parameter, value in zip(module, (3.0, 4.0), strict=True):
        parameter.grad = torch.tensor([value])
    gate, optimizer = StepGate(max_norm=1.0, group_norms_every=0), SGD(module.parameters(), lr=1.0)
    with Counting():
        assert gate.attempt(module, optimizer).stepped
    assert counts["_foreach_norm"] == 1
    assert counts["_local_scalar_dense"] == 1
