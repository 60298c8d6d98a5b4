"""The module under a real Trainer: windows, vetoes, hooks, rates, resuming."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.optim import SGD, AdamW

from musicnet.gate import gated_module
from musicnet.gate.averaging import Averaging
from musicnet.gate.gated_module import GatedModule
from musicnet.gate.schedules import Schedule

CONSTANT = Schedule(shape="constant", warmup_steps=0)


def weights(module: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same(left: Any, right: Any) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=0)


def test_windows_end_with_the_epoch_under_a_batch_limit(
    regressor: Any, loader: Any, trainer: Any
) -> None:
    module = regressor(accumulate=2)
    trainer(limit_train_batches=5, max_epochs=2).fit(module, loader(8))
    assert (module.gate.attempts, module.total_steps) == (6, 6)


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
