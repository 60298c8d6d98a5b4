"""Rows 44 to 50: what comes back from a checkpoint, in one process.

Killed processes and whole runs behind the doors are tested with the doors.
"""

import copy
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import AdamW
from torch.utils.data import DataLoader

from musicnet.gate.averaging import Averaging
from musicnet.gate.checkpoints import KEY
from musicnet.gate.step_gate import StepGate

pytestmark = pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*")

SETTINGS: dict[str, Any] = {"norm": True, "averaging": Averaging("ema")}


def weights(module: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same_end(resumed: Any, whole: Any) -> None:
    """Weights, optimiser, gate, rates and average agree to the last bit."""
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)
    left, right = (one.trainer.optimizers[0].state_dict()["state"] for one in (resumed, whole))
    torch.testing.assert_close(left, right, rtol=0, atol=0)
    assert resumed.gate.state_dict() == whole.gate.state_dict()
    assert resumed.last_report == whole.last_report
    if whole.average is not None:
        assert resumed.average.n_averaged == whole.average.n_averaged
        with resumed.averaged_weights(), whole.averaged_weights():
            torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)


def test_row_44_a_run_resumed_at_an_epoch_goes_on_to_the_last_bit(
    regressor: Any, loader: Any, trainer: Any, tmp_path: Path
) -> None:
    whole = regressor(**SETTINGS)
    data = loader(5, poisoned=(3,))
    saver = ModelCheckpoint(tmp_path / "saved", filename="{epoch}", save_top_k=-1)
    trainer(max_epochs=4, enable_checkpointing=True, callbacks=[saver]).fit(whole, data)

    resumed = regressor(**SETTINGS)
    second = tmp_path / "saved" / "epoch=1.ckpt"
    trainer(max_epochs=4).fit(resumed, data, ckpt_path=second, weights_only=True)
    assert whole.average.n_averaged == 16
    assert_same_end(resumed, whole)


def test_row_45_the_loss_scale_and_its_growth_come_back(
    regressor: Any, loader: Any, trainer: Any, tmp_path: Path
) -> None:
    """Four good steps in a row double the scale, and three of them are before the checkpoint."""

    def fit(epochs: int, ckpt_path: Path | None = None) -> tuple[Any, Any, Any]:
        scaler = GradScaler("cpu", init_scale=2.0**7, growth_interval=4)
        precision = MixedPrecision("16-mixed", "cpu", scaler=scaler)
        module = regressor(optimizer=partial(AdamW, lr=1e-3))
        run = trainer(max_epochs=4, plugins=[precision], callbacks=[StopAfter(epochs)])
        run.fit(module, loader(5, poisoned=(1,)), ckpt_path=ckpt_path, weights_only=True)
        return module, scaler, run

    whole, scaler, _ = fit(4)
    _, _, run = fit(2)
    run.save_checkpoint(tmp_path / "a.ckpt")
    resumed, other, _ = fit(4, tmp_path / "a.ckpt")
    assert other.state_dict() == scaler.state_dict()
    assert scaler.get_scale() == 2.0**6
    assert_same_end(resumed, whole)


class StopAfter(Callback):
    """Ends a run after so many epochs, as a wish and not as a limit that schedules know."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.should_stop |= trainer.current_epoch + 1 >= self.epochs


class SaveAt(Callback):
    """Saves after one batch of one epoch."""

    def __init__(self, path: Path, epoch: int, batch: int) -> None:
        self.path, self.epoch, self.batch = path, epoch, batch

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.current_epoch, batch_idx) == (self.epoch, self.batch):
            trainer.save_checkpoint(self.path)


class StatefulLoader(DataLoader):  # type: ignore[type-arg]
    """Goes on behind the last batch that it gave; every epoch has an order of its own."""

    epoch = done = start = 0

    def __iter__(self) -> Any:
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(self.epoch))
        batches = list(super().__iter__())
        self.done, self.start = self.start, 0
        for number in order[self.done :].tolist():
            self.done += 1
            if self.done == len(self):
                # now, since nobody asks for more than there is
                self.epoch, self.done = self.epoch + 1, 0
            yield batches[number]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.start = state["epoch"], state["done"]


@pytest.mark.parametrize(("epoch", "batch"), [(0, 0), (1, 2), (2, 3)])
def test_row_46_a_run_resumed_inside_an_epoch_goes_on_to_the_last_bit(
    regressor: Any, loader: Any, trainer: Any, tmp_path: Path, epoch: int, batch: int
) -> None:
    dataset = loader(5, poisoned=(3,)).dataset
    whole = regressor(**SETTINGS)
    saver = SaveAt(tmp_path / "a.ckpt", epoch, batch)
    trainer(max_epochs=3, callbacks=[saver]).fit(whole, StatefulLoader(dataset, batch_size=4))

    resumed = regressor(**SETTINGS)
    run = trainer(max_epochs=3)
    loader_again = StatefulLoader(dataset, batch_size=4)
    run.fit(resumed, loader_again, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert whole.gate.attempts == 15
    assert_same_end(resumed, whole)


@pytest.mark.parametrize("poisoned", [(), (0, 3)])
def test_row_47_a_loader_that_cannot_go_on_inside_an_epoch_is_warned_of_once(
    regressor: Any, loader: Any, trainer: Any, tmp_path: Path, poisoned: tuple[int, ...]
) -> None:
    """With three vetoes the third batch of the second epoch is step 4: for Lightning, an epoch."""
    data = loader(4, poisoned=poisoned)
    saver = SaveAt(tmp_path / "a.ckpt", 1, 2)
    trainer(max_epochs=3, callbacks=[saver]).fit(regressor(), data)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer(max_epochs=3).fit(regressor(), data, ckpt_path=tmp_path / "a.ckpt")
    told = [str(one.message) for one in said if "goes on" in str(one.message)]
    told += [str(one.message) for one in said if "dataloader is not resumable" in str(one.message)]
    assert len(told) == 1


def test_row_47_nothing_is_said_at_the_edge_of_an_epoch(
    regressor: Any, loader: Any, trainer: Any, tmp_path: Path
) -> None:
    data = loader(4)
    run = trainer(max_epochs=3, callbacks=[StopAfter(2)])
    run.fit(regressor(), data)
    run.save_checkpoint(tmp_path / "a.ckpt")
    trainer(max_epochs=3).fit(regressor(), data, ckpt_path=tmp_path / "a.ckpt")


def saved(regressor: Any, loader: Any, trainer: Any, path: Path) -> dict[str, Any]:
    run = trainer()
    run.fit(regressor(), loader(4, poisoned=(1,)))
    run.save_checkpoint(path)
    return torch.load(path, weights_only=True)


def test_row_48_a_checkpoint_of_another_harness_loads_and_its_counters_start_anew(
    regressor: Any, loader: Any, trainer: Any, tmp_path: Path
) -> None:
    checkpoint = saved(regressor, loader, trainer, tmp_path / "a.ckpt")
    del checkpoint[KEY]
    torch.save(checkpoint, tmp_path / "b.ckpt")
    module = regressor()
    with pytest.warns(UserWarning, match="no state of a step gate"):
        trainer(max_epochs=2).fit(module, loader(4), ckpt_path=tmp_path / "b.ckpt")
    assert (module.gate.attempts, module.gate.steps) == (4, 4)


def test_row_49_resuming_into_a_longer_run_is_told(
    regressor: Any, loader: Any, trainer: Any, tmp_path: Path
) -> None:
    saved(regressor, loader, trainer, tmp_path / "a.ckpt")
    with pytest.warns(UserWarning, match="total_steps=4 and goes on with 8"):
        trainer(max_epochs=2).fit(regressor(), loader(4), ckpt_path=tmp_path / "a.ckpt")


def test_row_50_a_checkpoint_is_plain_data_and_tensors(
    regressor: Any, loader: Any, trainer: Any, tmp_path: Path
) -> None:
    checkpoint = saved(partial(regressor, **SETTINGS), loader, trainer, tmp_path / "a.ckpt")
    state = checkpoint[KEY]["gate"]
    gate = StepGate()
    gate.load_state_dict(copy.deepcopy(state))
    assert (gate.attempts, gate.steps, dict(gate.by_reason)) == (4, 3, {"nonfinite": 1})
    type(regressor()).load_from_checkpoint(
        tmp_path / "a.ckpt", weights_only=True, optimizer=partial(AdamW, lr=1e-2), norm=True
    )
