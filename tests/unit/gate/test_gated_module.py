"""The module under a real Trainer: windows, vetoes, hooks, rates, resuming."""

import copy
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    EarlyStopping,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.profilers import SimpleProfiler
from torch import Tensor
from torch.optim import SGD, AdamW

from musicnet.gate import gated_module
from musicnet.gate.averaging import Averaging
from musicnet.gate.gated_module import GatedModule
from musicnet.gate.schedules import Schedule
from musicnet.gate.step_gate import GateStuckError, StepGate

CONSTANT = Schedule(shape="constant", warmup_steps=0)


def weights(module: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same(left: Any, right: Any) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=0)


def test_a_zero_head_trains_and_every_counter_agrees(
    regressor: Any, loader: Any, trainer: Any, reports: Any
) -> None:
    module = regressor(zero_head=True)
    run = trainer(callbacks=[reports])
    run.fit(module, loader(20))
    assert [report.stepped for report in reports.reports] == [True] * 20
    assert module.gate.steps == run.global_step == 20
    assert run.lr_scheduler_configs[0].scheduler.last_epoch == 20


def test_a_vetoed_batch_leaves_no_trace_in_the_whole_state(
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
        final[poisoned] = weights(module), copy.deepcopy(run.optimizers[0].state_dict()["state"])
    assert_same(final[()][0], final[(2,)][0])
    assert_same(final[()][1], final[(2,)][1])
    assert all(tensor.isfinite().all() for tensor in final[(2,)][0].values())


def test_a_vetoed_batch_does_not_reach_the_logged_loss(
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


def test_an_accumulated_window_is_one_large_batch(
    regressor: Any, loader: Any, trainer: Any
) -> None:
    final = []
    for accumulate, batch_size in ((4, 4), (1, 16)):
        module = regressor(accumulate=accumulate, optimizer=partial(SGD, lr=0.1), schedule=CONSTANT)
        data = torch.utils.data.DataLoader(loader(8).dataset, batch_size=batch_size)
        trainer().fit(module, data)
        assert module.gate.steps == 2
        final.append(weights(module))
    torch.testing.assert_close(final[0], final[1])


def test_the_last_window_of_an_epoch_is_weighted_by_what_it_holds(
    regressor: Any, loader: Any, trainer: Any, reports: Any
) -> None:
    module = regressor(accumulate=4, optimizer=partial(SGD, lr=0.1), schedule=CONSTANT)
    data = loader(10)
    trainer(callbacks=[reports]).fit(module, data)
    assert module.gate.steps == 3
    assert module.total_steps == 3

    twin = regressor(optimizer=partial(SGD, lr=0.1))
    x, y = data.dataset.tensors
    for start, end, report in zip((0, 16, 32), (16, 32, 40), reports.reports, strict=True):
        twin.zero_grad()
        twin.compute_loss((x[start:end], y[start:end]), 0).backward()
        norm = torch.cat([p.grad.flatten() for p in twin.parameters()]).norm()
        assert report.norm == pytest.approx(norm.item(), rel=1e-5)
        with torch.no_grad():
            for name, parameter in twin.named_parameters():
                rate = 0.4 if name.startswith("head") else 0.1
                parameter -= rate * parameter.grad
    torch.testing.assert_close(module.state_dict(), twin.state_dict())


def test_windows_end_with_the_epoch_under_a_batch_limit(
    regressor: Any, loader: Any, trainer: Any
) -> None:
    module = regressor(accumulate=2)
    trainer(limit_train_batches=5, max_epochs=2).fit(module, loader(8))
    assert (module.gate.attempts, module.total_steps) == (6, 6)


def test_one_bad_batch_vetoes_its_window_and_the_next_starts_clean(
    regressor: Any, loader: Any, trainer: Any, reports: Any
) -> None:
    module = regressor(norm=True, accumulate=4, schedule=CONSTANT)
    trainer(callbacks=[reports]).fit(module, loader(8, poisoned=(1,)))
    assert [report.reason for report in reports.reports] == ["nonfinite", "ok"]

    clean = regressor(norm=True, accumulate=4, schedule=CONSTANT)
    second_half = torch.utils.data.Subset(loader(8).dataset, range(16, 32))
    trainer().fit(clean, torch.utils.data.DataLoader(second_half, batch_size=4))
    assert_same(weights(module), weights(clean))


def test_a_run_that_only_vetoes_ends_with_the_reason(
    regressor: Any, loader: Any, trainer: Any
) -> None:
    module = regressor(norm=True, gate=StepGate(max_consecutive_skips=5))
    start = weights(module)
    with pytest.raises(GateStuckError, match="got 6 vetoes in a row"):
        trainer(max_epochs=-1, max_steps=10).fit(module, loader(4, poisoned=(0, 1, 2, 3)))
    assert_same(weights(module), start)


def test_callbacks_hear_of_every_attempt_before_and_after_it(
    regressor: Any, loader: Any, trainer: Any, reports: Any
) -> None:
    seen = []
    module = regressor(accumulate=2)
    module.on_step_gate = seen.append
    trainer(callbacks=[reports]).fit(module, loader(4, poisoned=(0,)))
    assert reports.heard == ["before", "after"] * 2
    assert seen == reports.reports
    assert module.last_report is seen[-1]


def test_the_head_keeps_four_times_the_rate_at_every_step(
    regressor: Any, loader: Any, trainer: Any, reports: Any
) -> None:
    module = regressor(schedule=Schedule(warmup_steps=3), averaging=Averaging("swa"))
    trainer(callbacks=[reports]).fit(module, loader(20))
    rates = [report.lr for report in reports.reports]
    assert all(rate["head"] == pytest.approx(4 * rate["backbone"]) for rate in rates)
    assert rates[0]["backbone"] == pytest.approx(1e-3)
    assert rates[3]["backbone"] == pytest.approx(1e-2)
    annealed = 0.6 * module.schedule.factor(15, 20) + 0.4 * 0.5
    assert rates[19]["backbone"] == pytest.approx(1e-2 * annealed)


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*")
def test_a_run_resumed_at_an_epoch_goes_on_to_the_last_bit(
    regressor: Any, loader: Any, trainer: Any, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"norm": True, "averaging": Averaging("ema")}
    whole = regressor(**settings)
    data = loader(5, poisoned=(3,))
    saver = ModelCheckpoint(tmp_path / "saved", filename="{epoch}", save_top_k=-1)
    trainer(max_epochs=4, enable_checkpointing=True, callbacks=[saver]).fit(whole, data)

    resumed = regressor(**settings)
    run = trainer(max_epochs=4)
    second = tmp_path / "saved" / "epoch=1.ckpt"
    run.fit(resumed, data, ckpt_path=second, weights_only=True)
    assert_same(weights(resumed), weights(whole))
    assert resumed.gate.state_dict() == whole.gate.state_dict()
    assert resumed.last_report.lr == whole.last_report.lr
    assert resumed.average.n_averaged == whole.average.n_averaged == 16
    with resumed.averaged_weights(), whole.averaged_weights():
        assert_same(weights(resumed), weights(whole))


def test_resuming_into_a_longer_run_is_told(
    regressor: Any, loader: Any, trainer: Any, tmp_path: Path
) -> None:
    run = trainer()
    run.fit(regressor(), loader(4))
    run.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.warns(UserWarning, match="total_steps=4 and goes on with 8"):
        trainer(max_epochs=2).fit(regressor(), loader(4), ckpt_path=tmp_path / "a.ckpt")


def test_schedulers_that_count_epochs_wait_for_an_epoch_with_a_step(
    regressor: Any, loader: Any, trainer: Any
) -> None:
    class ByEpoch(type(regressor())):  # type: ignore[misc]
        def configure_optimizers(self) -> Any:
            optimizer = SGD(self.parameters(), lr=0.1)
            scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
            return [optimizer], [{"scheduler": scheduler, "interval": "epoch"}]

    run = trainer(max_epochs=3)
    run.fit(ByEpoch(), loader(4))
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 / 8)

    vetoed = trainer(max_epochs=3)
    vetoed.fit(ByEpoch(), loader(4, poisoned=(0, 1, 2, 3)))
    assert vetoed.optimizers[0].param_groups[0]["lr"] == 0.1


def test_a_plateau_scheduler_is_refused_since_its_metric_never_arrives(
    regressor: Any, loader: Any, trainer: Any
) -> None:
    class Plateau(type(regressor())):  # type: ignore[misc]
        def configure_optimizers(self) -> Any:
            optimizer = SGD(self.parameters(), lr=0.1)
            return [optimizer], [torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)]

    with pytest.raises(TypeError, match="got ReduceLROnPlateau"):
        trainer().fit(Plateau(), loader(4))


@pytest.mark.filterwarnings("ignore:.*SWA.*")
def test_lightnings_own_swa_steps_by_epoch_and_its_statistics_pass_does_not_train(
    regressor: Any, loader: Any, trainer: Any
) -> None:
    swa = StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=2, annealing_epochs=2)
    module = regressor(norm=True)
    run = trainer(max_epochs=4, callbacks=[swa])
    rates = []

    class Rates(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    run.callbacks.append(Rates())
    run.fit(module, loader(5))
    assert module.gate.steps == 20
    assert run.global_step == 20
    start, middle, *rest = rates[1:]
    assert middle == pytest.approx((start + 1e-3) / 2)
    assert rest == pytest.approx([1e-3] * 2)


def test_an_error_inside_a_toggled_optimizer_gives_the_gradients_back(
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


def test_two_optimizers_count_twice_in_global_step_and_once_in_the_gate(
    regressor: Any, loader: Any, trainer: Any
) -> None:
    class Two(type(regressor())):  # type: ignore[misc]
        def configure_optimizers(self) -> Any:
            return [SGD(self.backbone.parameters(), lr=0.1), SGD(self.head.parameters(), lr=0.1)]

    module = Two()
    run = trainer(max_epochs=-1, max_steps=10)
    run.fit(module, loader(8))
    assert (run.global_step, module.gate.steps) == (10, 5)


@pytest.mark.parametrize("settings", [{"fast_dev_run": 1}, {"fast_dev_run": 3}])
def test_short_trial_runs_end(regressor: Any, loader: Any, trainer: Any, settings: Any) -> None:
    module = regressor()
    trainer(**settings).fit(module, loader(5))
    assert module.gate.steps == settings["fast_dev_run"]


def test_a_profiled_run_bears_vetoes(regressor: Any, loader: Any, trainer: Any) -> None:
    module = regressor()
    trainer(profiler=SimpleProfiler(filename="profile")).fit(module, loader(6, poisoned=(0, 1, 4)))
    assert (module.gate.steps, module.gate.skips) == (3, 3)


@pytest.mark.filterwarnings("ignore:.*no pre-optimization state.*")
def test_checkpoints_by_step_are_not_repeated_while_steps_are_vetoed(
    regressor: Any, loader: Any, trainer: Any, tmp_path: Path
) -> None:
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1)
    run = trainer(enable_checkpointing=True, callbacks=[saver])
    run.fit(regressor(), loader(8, poisoned=(2, 3, 4, 5)))
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["step=2.ckpt", "step=4.ckpt"]


def test_a_run_of_no_epochs_does_nothing(regressor: Any, loader: Any, trainer: Any) -> None:
    module = regressor()
    trainer(max_epochs=0).fit(module, loader(5))
    assert module.gate.attempts == 0


def test_bfloat16_trains(regressor: Any, loader: Any, trainer: Any) -> None:
    module = regressor()
    start = weights(module)
    trainer(precision="bf16-mixed").fit(module, loader(5))
    assert module.gate.steps == 5
    assert module.last_report.scale_before is None
    assert not torch.equal(module.head.weight, start["head.weight"])


def test_further_losses_are_logged_beside_the_one_that_is_minimised(
    regressor: Any, loader: Any, trainer: Any
) -> None:
    class Terms(type(regressor())):  # type: ignore[misc]
        def compute_loss(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
            return {"loss": super().compute_loss(batch, batch_idx), "half": torch.tensor(0.5)}

    run = trainer()
    run.fit(Terms(accumulate=2), loader(5))
    assert run.callback_metrics["train/half"] == 0.5
    assert "train/loss" in run.callback_metrics


def test_a_subclass_without_a_loss_is_told() -> None:
    module = GatedModule(optimizer=partial(SGD, lr=0.1))
    with pytest.raises(NotImplementedError, match="GatedModule must define compute_loss"):
        module.compute_loss(None, 0)


@pytest.mark.parametrize(
    ("optimizer", "got"),
    [
        (partial(AdamW, lr=-1.0), "-1.0"),
        (partial(AdamW, lr=math.inf), "got inf"),
        (partial(AdamW, lr=1e-3, weight_decay=math.inf), "got inf"),
    ],
)
def test_numbers_of_the_optimizer_are_checked_when_the_module_is_built(
    regressor: Any, optimizer: Any, got: str
) -> None:
    with pytest.raises(ValueError, match=got):
        regressor(optimizer=optimizer)


@pytest.mark.bad_shape
@pytest.mark.parametrize("accumulate", [0, 1.5])
def test_a_window_holds_whole_batches(regressor: Any, accumulate: Any) -> None:
    with pytest.raises(ValueError, match=f"got {accumulate}"):
        regressor(accumulate=accumulate)


class StopAt(Callback):
    """Stops after so many batches, or in the validation after them."""

    def __init__(self, batches: int, where: str) -> None:
        self.batches, self.where, self.seen = batches, where, {}

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if self.where == "batch" and trainer.global_step >= self.batches:
            trainer.should_stop = True

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if self.where == "validation" and trainer.global_step >= self.batches:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.seen = {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize("where", ["batch", "validation"])
def test_an_epoch_that_is_stopped_half_way_has_numbers_of_its_own(
    regressor: Any, loader: Any, trainer: Any, where: str
) -> None:
    class ByEpoch(type(regressor())):  # type: ignore[misc]
        def configure_optimizers(self) -> Any:
            optimizer = SGD(self.parameters(), lr=0.1)
            scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
            return [optimizer], [{"scheduler": scheduler, "interval": "epoch"}]

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val/loss", self.compute_loss(batch, batch_idx))

    stop = StopAt(11, where)
    run = trainer(max_epochs=4, callbacks=[stop], val_check_interval=1, num_sanity_val_steps=0)
    run.fit(ByEpoch(), loader(8), loader(1))
    assert run.global_step == 11
    assert stop.seen["gate/step_real"] == 11
    assert stop.seen["gate/vetoed_fraction"] == 0
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 / 4)


def test_a_window_that_a_stop_leaves_open_is_told(
    regressor: Any, loader: Any, trainer: Any
) -> None:
    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
            trainer.should_stop = arguments[-1] == 5

    module = regressor(accumulate=4)
    with pytest.warns(UserWarning, match="the gradients of 2 batches are lost"):
        trainer(callbacks=[Stop()]).fit(module, loader(8))
    assert module.gate.steps == 1


def test_an_average_starts_late_with_optimizers_of_one_s_own_too(
    regressor: Any, loader: Any, trainer: Any
) -> None:
    class Own(type(regressor())):  # type: ignore[misc]
        def configure_optimizers(self) -> Any:
            return [SGD(part.parameters(), lr=0.1) for part in (self.backbone, self.head)]

    module = Own(averaging=Averaging("swa"))
    trainer(max_epochs=-1, max_steps=32).fit(module, loader(8))
    assert (module.gate.steps, module.total_steps, module.average.n_averaged) == (16, 16, 4)


def test_a_second_fit_counts_its_steps_anew(regressor: Any, loader: Any, trainer: Any) -> None:
    module = regressor()
    trainer().fit(module, loader(4))
    assert module.total_steps == 4
    trainer(max_epochs=2).fit(module, loader(4))
    assert module.total_steps == 8


def test_a_broken_loss_with_fine_gradients_steps_and_is_told_once(
    regressor: Any, loader: Any, trainer: Any
) -> None:
    class Hiding(type(regressor())):  # type: ignore[misc]
        def compute_loss(self, batch: Any, batch_idx: int) -> Tensor:
            return super().compute_loss(batch, batch_idx) + (math.nan if batch_idx == 1 else 0.0)

    module = Hiding()
    with pytest.warns(UserWarning, match=r"train/loss of epoch 1 .* got a mean of nan") as told:
        trainer(max_epochs=2).fit(module, loader(4))
    assert module.gate.steps == 8
    assert len([one for one in told if "train/loss" in str(one.message)]) == 1


@pytest.mark.bad_shape
@pytest.mark.parametrize(
    ("losses", "got"), [(None, "'loss': NoneType"), ({"total": torch.ones(())}, "'total': Tensor")]
)
def test_a_loss_that_is_none_is_refused_in_a_sentence(
    regressor: Any, loader: Any, trainer: Any, losses: Any, got: str
) -> None:
    module = regressor()
    module.compute_loss = lambda *_: losses
    with pytest.raises(TypeError, match=f"compute_loss must return a scalar tensor.* got {got}"):
        trainer().fit(module, loader(1))


def test_modules_are_walked_once_an_epoch_and_not_once_a_window(
    regressor: Any, loader: Any, trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    walks = []
    find = gated_module.normalisation_layers
    monkeypatch.setattr(
        gated_module, "normalisation_layers", lambda module: walks.append(0) or find(module)
    )
    trainer(max_epochs=2).fit(regressor(norm=True), loader(6))
    assert len(walks) == 2


def test_callbacks_hear_when_all_that_hangs_on_the_answer_is_settled(
    regressor: Any, loader: Any, trainer: Any
) -> None:
    heard = []

    class Witness(Callback):
        def on_step_gate(self, trainer: Any, pl_module: Any, report: Any) -> None:
            finite = all(buffer.isfinite().all() for buffer in pl_module.buffers())
            heard.append((pl_module.last_report is report, finite))

    trainer(callbacks=[Witness()]).fit(regressor(norm=True), loader(3, poisoned=(1,)))
    assert heard == [(True, True)] * 3
