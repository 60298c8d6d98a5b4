"""A run that is broken off anywhere and resumed ends as if it had never been broken off."""

import hashlib
import io
import os
import random
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from musicnet.gate.averaging import Averaging
from musicnet.gate.checkpoint_files import WholeCheckpoints
from musicnet.gate.gated_module import GatedModule
from musicnet.gate.leaving import LeaveRequests, LeftOnSignalError, leave_requests
from musicnet.gate.resumable_loader import ResumableBatches, ResumableLoader
from musicnet.gate.savepoints import Savepoints

N_BATCHES, N_EPOCHS = 6, 3

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*exists and is not empty.*", "ignore:.*dirpath has changed.*"
)


class Broken(BaseException):
    """What breaks a run off."""


class Shuffled(Sampler[int]):
    def __init__(self, length: int) -> None:
        self.length, self.epoch = length, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.epoch)
        return iter(torch.randperm(self.length, generator=generator).tolist())


class Items(Dataset):
    """Item 5 makes a batch that the gate vetoes."""

    def __len__(self) -> int:
        return 4 * N_BATCHES

    def __getitem__(self, index: int) -> Tensor:
        values = torch.randn(4, generator=torch.Generator().manual_seed(index))
        return values * (float("nan") if index == 5 else 1.0)


def make_loader(n_workers: int = 0, *, plain: bool = False) -> DataLoader:
    kinds = (DataLoader, BatchSampler) if plain else (ResumableLoader, ResumableBatches)
    return kinds[0](
        Items(),
        batch_sampler=kinds[1](Shuffled(4 * N_BATCHES), batch_size=4, drop_last=False),
        num_workers=n_workers,
        generator=torch.Generator(),
    )


class Forgetful(GatedModule):
    """Draws from every global source, keeps an average, logs means of its own."""

    def __init__(self, accumulate: int = 1, *, draws: bool = True) -> None:
        torch.manual_seed(0)
        super().__init__(
            optimizer=partial(torch.optim.AdamW, lr=1e-2),
            averaging=Averaging(decay=0.9),
            accumulate=accumulate,
        )
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3))
        self.head = nn.Linear(8, 1)
        self.draws = draws

    def compute_loss(self, batch: Tensor, batch_idx: int) -> Tensor:
        noise = (random.random() if self.draws else 0.0) + np.random.rand()  # noqa: NPY002
        loss = (self.head(self.backbone(batch)) - noise).square().mean()
        self.log("train/noise_max", noise, on_step=False, on_epoch=True, reduce_fx="max")
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/loss", self.head(self.backbone(batch.nan_to_num())).square().mean())
        torch.rand(())  # a validation may draw as well


class Witness(Callback):
    """Counts hooks, breaks the run off at one of them, and keeps what was shown each epoch."""

    def __init__(self, break_at: int | None = None) -> None:
        self.break_at = break_at
        self.heard = 0
        self.rows: list[dict[str, float]] = []
        self.steps: list[int] = []

    def _hear(self) -> None:
        self.heard += 1
        if self.heard == self.break_at:
            raise Broken

    def on_step_gate(self, trainer, pl_module, report) -> None:
        self.steps.append(report.step)

    def on_train_batch_start(self, *_: Any) -> None:
        self._hear()

    def on_train_batch_end(self, *_: Any) -> None:
        self._hear()

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            self._hear()

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            self._hear()

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        self.rows.append({n: float(v) for n, v in sorted(trainer.callback_metrics.items())})
        self._hear()

    def state_dict(self) -> dict[str, Any]:
        return {"rows": list(self.rows), "steps": list(self.steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows, self.steps = list(state["rows"]), list(state["steps"])


def fingerprint(trainer: Trainer) -> str:
    """Of everything that decides how a run goes on."""
    state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    for name in [n for n in state["callbacks"] if n.startswith("ModelCheckpoint")]:
        del state["callbacks"][name]
    for rank in state["run_state"]["ranks"]:
        del rank["random"]["python"]  # shows in the rows
    del state["loops"], state["run_state"]["in_validation"], state["run_state"]["validation_due"]
    buffer = io.BytesIO()
    torch.save(state["callbacks"], buffer)
    digest = hashlib.sha256(repr(state["callbacks"]).encode())
    _feed(digest, {name: part for name, part in state.items() if name != "callbacks"})
    return digest.hexdigest()


def _feed(digest: Any, tree: Any) -> None:
    if isinstance(tree, dict):
        for key in sorted(tree, key=str):
            digest.update(str(key).encode())
            _feed(digest, tree[key])
    elif isinstance(tree, list | tuple):
        for one in tree:
            _feed(digest, one)
    elif isinstance(tree, Tensor):
        digest.update(tree.detach().numpy().tobytes())
    else:
        digest.update(repr(tree).encode())


@pytest.fixture
def run(
    tmp_path: Path, request: pytest.FixtureRequest
) -> Callable[..., tuple[str | None, Witness, Trainer]]:
    """Fit, perhaps from a checkpoint; the first answer is None if the run was broken off."""
    # the shape checker draws from Python's random numbers itself, to look at one item of a list
    draws = not request.config.getoption("--jaxtyping-packages", default=None)

    def fit(
        name: str = "run",
        *,
        break_at: int | None = None,
        ckpt: str | Path | None = None,
        accumulate: int = 1,
        n_workers: int = 0,
        every_n_batches: int | None = 2,
        scaled: bool = False,
        asks: Callback | None = None,
        requests: LeaveRequests | None = None,
        **settings: Any,
    ) -> tuple[str | None, Witness, Trainer]:
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        witness, savepoints = Witness(break_at), Savepoints(every_n_batches=every_n_batches)
        savepoints.requests = requests
        folder = tmp_path / name
        trainer = Trainer(
            **{
                "accelerator": "cpu",
                "logger": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "max_epochs": N_EPOCHS,
                "default_root_dir": folder,
                "plugins": [WholeCheckpoints(), *([half_precision()] if scaled else [])],
                "callbacks": [
                    witness,
                    savepoints,
                    *([] if asks is None else [asks]),
                    ModelCheckpoint(folder / "checkpoints", "best-{epoch}", save_top_k=-1),
                ],
                **settings,
            }
        )
        loaders = make_loader(n_workers), make_loader()
        last = folder / "checkpoints" / "last.ckpt"
        path = last if ckpt == "last" and last.exists() else None if ckpt == "last" else ckpt
        try:
            module = Forgetful(accumulate, draws=draws)
            trainer.fit(module, *loaders, ckpt_path=path, weights_only=True)
        except Broken:
            return None, witness, trainer
        return fingerprint(trainer), witness, trainer

    return fit


def half_precision() -> MixedPrecision:
    """Its scale overflows at first, and grows every third good step."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=3)
    return MixedPrecision("16-mixed", "cpu", scaler=scaler)


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "windows": {"accumulate": 4},
    "validations inside": {"val_check_interval": 2},
    "no validation": {"limit_val_batches": 0},
    "a limit of steps": {"max_steps": 13, "max_epochs": -1},
    "saves after each batch": {"every_n_batches": 1},
    "loss scaling": {"scaled": True},
    "one worker": {"n_workers": 1},
    "two workers": {"n_workers": 2},
}


def check_ends_alike(run: Any, kind: str, places: Callable[[int], list[int]]) -> None:
    settings = SETTINGS[kind]
    whole, witness, _ = run("whole", **settings)
    assert whole is not None
    if settings.get("scaled"):  # the scale itself vetoes, beside one batch in each epoch
        assert len(witness.steps) - len(set(witness.steps)) > N_EPOCHS
    for break_at in places(witness.heard):
        name = f"broken at {break_at}"
        first, _, _ = run(name, break_at=break_at, **settings)
        assert first is None
        ended, again, _ = run(name, ckpt="last", **settings)
        assert (again.rows, again.steps) == (witness.rows, witness.steps), name
        assert ended == whole, name


@pytest.mark.parametrize(
    "kind",
    # a run with two workers starts ten processes
    [pytest.param(k, marks=[pytest.mark.slow] * (k == "two workers")) for k in SETTINGS],
)
def test_row_46_broken_off_and_resumed_it_ends_alike(run: Any, kind: str) -> None:
    """Inside an epoch, after batches that a worker has fetched ahead of a checkpoint."""
    few = 2 if kind in ("plain", "validations inside", "one worker", "two workers") else 1
    check_ends_alike(run, kind, lambda n: [n // 2 + 3, n - 3][:few])


@pytest.mark.slow
@pytest.mark.parametrize("kind", SETTINGS)
def test_broken_off_at_any_hook_and_resumed_it_ends_alike(run: Any, kind: str) -> None:
    check_ends_alike(run, kind, lambda n: list(range(1, n + 1)))


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_row_44_any_checkpoint_will_do_to_go_on_from(
    run: Any, tmp_path: Path, accumulate: int
) -> None:
    """Those of Lightning's own callback, saved inside hooks, as well."""
    whole, witness, _ = run("whole", accumulate=accumulate)
    for epoch in range(N_EPOCHS - 1):
        best = tmp_path / "whole" / "checkpoints" / f"best-epoch={epoch}.ckpt"
        ended, again, _ = run(f"from {epoch}", ckpt=best, accumulate=accumulate)
        assert (again.rows, again.steps) == (witness.rows, witness.steps)
        assert ended == whole


def test_other_threads_than_it_was_saved_with_are_told_of(run: Any) -> None:
    run("run", break_at=40)
    saved = torch.get_num_threads()
    torch.set_num_threads(saved + 1)
    try:
        with pytest.warns(UserWarning, match=f"with {saved} threads and goes on with {saved + 1}"):
            run("run", ckpt="last")
    finally:
        torch.set_num_threads(saved)


@pytest.mark.filterwarnings("ignore:the run was saved with total_steps")
def test_a_run_that_a_limit_of_steps_ended_inside_an_epoch_goes_on_inside_it(run: Any) -> None:
    _, whole, _ = run("whole", max_steps=14, max_epochs=-1)
    run("run", max_steps=8, max_epochs=-1)
    _, longer, _ = run("run", ckpt="last", max_steps=14, max_epochs=-1)
    assert longer.steps == whole.steps


class AsksToLeave(Callback):
    """Sends a signal in the n-th batch of all validations."""

    def __init__(self, n: int) -> None:
        self.left = n

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.left -= not trainer.sanity_checking
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGUSR1)


@pytest.mark.parametrize(
    "settings",
    [{}, {"val_check_interval": 3}, pytest.param({"n_workers": 2}, marks=pytest.mark.slow)],
)
def test_a_run_that_leaves_inside_a_validation_validates_anew(
    run: Any, settings: dict[str, Any]
) -> None:
    whole, witness, _ = run("whole", **settings)
    for n in (2, 8):
        name = f"left at {n}"
        with leave_requests() as requests, pytest.raises(LeftOnSignalError, match="SIGUSR1"):
            run(name, asks=AsksToLeave(n), requests=requests, **settings)
        ended, again, _ = run(name, ckpt="last", **settings)
        assert (again.rows, again.steps) == (witness.rows, witness.steps), name
        assert ended == whole, name


class AlwaysShut(Callback):
    def on_before_step_gate(self, trainer: Trainer, pl_module: Any) -> None:
        for parameter in pl_module.parameters():
            parameter.grad = torch.full_like(parameter, float("nan"))


@pytest.mark.parametrize(
    "savepoints",
    [Savepoints(every_n_batches=3, every_minutes=None), Savepoints(None, every_minutes=1e-9)],
)
def test_it_saves_by_batches_and_by_time_while_the_gate_is_shut(
    tmp_path: Path, savepoints: Savepoints
) -> None:
    saved: list[int] = []

    class Watch(WholeCheckpoints):
        def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
            saved.append(checkpoint["step_gate"]["gate"]["attempts"])
            super().save_checkpoint(checkpoint, path, storage_options)

    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        max_epochs=1,
        limit_val_batches=0,
        default_root_dir=tmp_path,
        plugins=[Watch()],
        callbacks=[AlwaysShut(), savepoints],
    )
    module = Forgetful()
    trainer.fit(module, make_loader(), make_loader())
    assert (module.gate.attempts, module.gate.steps) == (N_BATCHES, 0)
    assert saved == ([0, 3, 6] if savepoints.every_n_batches else [0, 1, 2, 3, 4, 5, 6])


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_an_interval_must_be_one(value: float) -> None:
    with pytest.raises(ValueError, match=f"every_minutes must be above 0: got {value}"):
        Savepoints(every_minutes=value)
