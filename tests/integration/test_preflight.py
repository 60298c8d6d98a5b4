"""A stranger's model is tried on a few batches before it is trained, which leaves no trace."""

import json
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from musicnet.cli import ConfigurationError, MusicCLI, Verb, console, launch_environment, run_verb
from musicnet.cli.preflight_bounds import check_preflight
from musicnet.diagnosis.reading import read_run
from musicnet.diagnosis.run_files import Asked, UnreadableRun
from musicnet.gate.averaging import Averaging
from musicnet.gate.gated_module import GatedModule
from musicnet.gate.schedules import Schedule
from musicnet.gate.step_gate import StepGate
from musicnet.records.append_log import read_rows
from musicnet.records.provenance import read_provenance
from musicnet.records.run_outcome import unfinished_runs

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:.*loader.*does not say where it was left.*"),
    pytest.mark.filterwarnings("ignore:.*LightningDataModule.*"),
]


class Regression(GatedModule):
    """Two layers with dropout between them; what is wrong with it can be chosen."""

    def __init__(
        self,
        optimizer: OptimizerCallable,
        schedule: Schedule | None = None,
        averaging: Averaging | None = None,
        gate: StepGate | None = None,
        accumulate: int = 1,
        fault: str = "",
    ) -> None:
        super().__init__(
            optimizer=optimizer,
            schedule=schedule,
            averaging=averaging,
            gate=gate,
            accumulate=accumulate,
        )
        self.save_hyperparameters()
        self.backbone = nn.Linear(4, 32)
        self.head = nn.Linear(32, 1)
        self.fault = fault
        if fault == "frozen":
            self.head.requires_grad_(False)

    def compute_loss(self, batch: Any, batch_idx: int) -> Tensor:
        random.random(), np.random.rand()  # noqa: NPY002
        inputs, targets = batch
        features = nn.functional.dropout(torch.tanh(self.backbone(inputs)), 0.1, self.training)
        if self.fault == "detached":
            features = features.detach()
        loss = nn.functional.mse_loss(self.head(features), targets)
        return loss * float("nan") if self.fault == "nan" and self.training else loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.compute_loss(batch, batch_idx))


class Samples(LightningDataModule):
    """Some samples to train on, in random order; those of validation have nothing to do with it."""

    def train_dataloader(self) -> DataLoader[Any]:
        inputs, targets = torch.randn(2, 32, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(inputs, targets[:, :1]), batch_size=8, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        inputs = torch.zeros(8, 4)
        return DataLoader(TensorDataset(inputs, torch.full((8, 1), 100.0)), batch_size=8)


@pytest.fixture
def train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., SimpleNamespace]:
    """A run of `Regression`: settings of the model, and keys of the tree."""
    stranger = ModuleType("musicnet.stranger")
    for part in (Regression, Samples):
        monkeypatch.setattr(part, "__module__", stranger.__name__)
        setattr(stranger, part.__name__, part)
    monkeypatch.setitem(sys.modules, stranger.__name__, stranger)

    def run(
        *,
        root: str = "runs",
        verb: Verb = "fit",
        model: dict[str, Any] | None = None,
        **keys: Any,
    ) -> Any:
        optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-2}}
        tree = {
            "experiment": "line",
            "objective": {"metric": "train/loss"},
            "seed_everything": 3,
            "trainer": {
                "accelerator": "cpu",
                "devices": 1,
                "max_epochs": 2,
                "default_root_dir": str(tmp_path / root),
                **dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False),
            },
            "model": {
                "class_path": "musicnet.stranger.Regression",
                "init_args": {"optimizer": optimizer} | (model or {}),
            },
            "data": {"class_path": "musicnet.stranger.Samples"},
            "callbacks": {
                "run_log": {"class_path": "callbacks.RunLog"},
                "savepoints": {"class_path": "musicnet.gate.savepoints.Savepoints"},
            },
        } | keys
        capfd.readouterr()
        with console(), launch_environment():
            outcome = run_verb(MusicCLI(tree, verb=verb))
        said = capfd.readouterr().out
        (folder,) = (tmp_path / root / "line").iterdir()
        return SimpleNamespace(exit_code=outcome.exit_code, said=said, folder=folder)

    return run


def verdict(run: SimpleNamespace) -> dict[str, Any]:
    path = run.folder / "preflight" / "verdict.json"
    tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return tree


def rows(run: SimpleNamespace) -> list[dict[str, Any]]:
    own = read_rows(run.folder / "metrics.jsonl", run_id=read_provenance(run.folder).run_id)
    return [row | {"run_id": ""} for row in own]


def saved(run: SimpleNamespace) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(
        run.folder / "checkpoints" / "last.ckpt", weights_only=True
    )
    checkpoint["callbacks"]["RunLog"] |= {"run_id": ""}
    return checkpoint


def differ(one: Any, other: Any, path: str = "") -> Iterator[str]:
    """Keys of two trees whose values are not the same to the last bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys():
            yield from differ(one.get(key), other.get(key), f"{path}/{key}")
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
        for number, pair in enumerate(zip_longest(one, other)):
            yield from differ(*pair, f"{path}/{number}")
    elif isinstance(one, Tensor | np.ndarray):
        if not np.array_equal(one, other, equal_nan=True):
            yield path
    elif repr(one) != repr(other):
        yield path


def test_a_run_that_was_tried_is_the_same_to_the_last_bit(train) -> None:
    """Dropout, order and averages included; it passes on what it trains on, not on validation."""
    model = {"averaging": {"kind": "ema", "decay": 0.9}}
    tried = train(root="tried", model=model, preflight=True)
    numbers = random.random(), np.random.rand(), torch.rand(())  # noqa: NPY002
    not_tried = train(root="not tried", model=model)
    assert numbers == (random.random(), np.random.rand(), torch.rand(()))  # noqa: NPY002
    assert tried.exit_code == not_tried.exit_code == 0
    assert verdict(tried)["verdict"] == "pass"
    assert "preflight: pass (loss " in tried.said
    assert list(differ(saved(tried), saved(not_tried))) == []
    assert rows(tried) == rows(not_tried)
    # it says no more than that
    lines = [line for line in tried.said.splitlines() if not line.startswith("preflight: ")]
    assert len(lines) == len(not_tried.said.splitlines())


@pytest.mark.parametrize(
    ("fault", "bounds", "exit_code", "told"),
    [
        ("detached", {}, 3, "fail, nothing is trained. GRAPH_DETACHED in backbone: no gradient"),
        ("", {"max_seconds": 1e-3}, 4, "0.001 s were over: raise preflight_bounds.max_seconds"),
        pytest.param(
            *("nan", {}, 5, "vetoes in a row, the last for reason=nonfinite"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_does_not_pass_is_not_trained(train, fault, bounds, exit_code, told) -> None:
    model = {"fault": fault, "gate": {"max_consecutive_skips": 3}}
    run = train(model=model, preflight=True, preflight_bounds={"min_loss_drop": 0.9} | bounds)
    assert run.exit_code == exit_code
    assert told in run.said
    left = {path.name for path in run.folder.iterdir()}
    assert left == {"config.yaml", "outcome.json", "preflight", "provenance.json"}
    assert (run.folder / "preflight" / "report.html").exists()
    assert verdict(run)["run_id"] == read_provenance(run.folder / "preflight").run_id
    assert not list(unfinished_runs(run.folder.parent))
    with pytest.raises(UnreadableRun, match=r"What its preflight saw is in .*preflight"):
        read_run(run.folder, Asked())


def test_a_run_that_goes_on_is_not_tried_again(train, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal that comes meanwhile is heard; `resume=auto` finds the run, tried or not."""
    whole, hits = Regression.compute_loss, iter([False, True])

    def compute_loss(self: Regression, batch: Any, batch_idx: int) -> Tensor:
        if next(hits, False):
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(self, batch, batch_idx)

    monkeypatch.setattr(Regression, "compute_loss", compute_loss)
    run = train(preflight=True)
    assert run.exit_code == 128 + signal.SIGTERM
    assert not (run.folder / "metrics.jsonl").exists()
    bounds = {"n_batches": 2}
    again = train(preflight=True, preflight_bounds=bounds, resume="auto")
    assert (again.exit_code, verdict(again)["verdict"]) == (0, "pass")
    (run.folder / "outcome.json").unlink()
    assert len(list(unfinished_runs(run.folder.parent))) == 1
    last = train(preflight=True, resume="auto")
    assert "preflight: left out, since the run goes on from " in last.said
    assert "preflight: can it" not in last.said


@pytest.mark.filterwarnings("ignore:the schedule is laid out", "ignore:warm-up of 5000")
def test_what_is_no_fault_of_the_model_stops_nobody(train) -> None:
    """A long warm-up, a window longer than the trial, and what a doctor only warns of."""
    schedule = {"warmup_steps": 5000, "total_steps": 100000}
    model = {"accumulate": 3, "schedule": schedule, "fault": "frozen"}
    run = train(model=model, preflight=True, preflight_bounds={"n_batches": 2})
    assert verdict(run)["verdict"] == "pass"
    assert "preflight: GROUP_FROZEN in head: " in run.said
    assert len(rows(run)) > 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"preflight": "often"}, "preflight must be bool: got 'often'"),
        ({"preflight_bounds": {"max_steps": 0}}, "preflight_bounds.max_steps must be at least 1"),
        ({"preflight": True, "verb": "test"}, "got preflight=true for test"),
    ],
)
def test_a_word_that_is_wrong_is_refused(train, tmp_path: Path, words, told) -> None:
    with pytest.raises(ConfigurationError, match=told):
        train(**words)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("bounds", "told"),
    [
        ({"n_batches": 5}, "must be at most the number of training batches, 4: got 5"),
        ({"loss": "val/other"}, "val/other, which Regression does not log in validation"),
    ],
)
def test_what_cannot_be_followed_is_refused_at_once(train, tmp_path: Path, bounds, told) -> None:
    with pytest.raises(ConfigurationError, match=told):
        train(preflight=True, preflight_bounds=bounds)
    assert not list((tmp_path / "runs").rglob("*.json*"))


def test_without_a_bar_it_asks_only_that_weights_move(train) -> None:
    bounds = {"min_loss_drop": None, "max_steps": 6}
    run = train(preflight=True, preflight_bounds=bounds)
    assert (run.exit_code, verdict(run)["verdict"], verdict(run)["steps"]) == (0, "pass", 6)


def test_a_preflight_that_could_not_tell_is_refused() -> None:
    def trainer(n: int, strategy: Any) -> Any:
        return Mock(spec=Trainer, world_size=n, strategy=strategy)

    model = Regression(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1))
    check_preflight(trainer(1, None), model)
    ddp = DDPStrategy()
    ddp.cluster_environment = SimpleNamespace(creates_processes_externally=False)
    check_preflight(trainer(2, ddp), model)
    ddp.cluster_environment.creates_processes_externally = True
    with pytest.raises(ConfigurationError, match="got SimpleNamespace, which starts all at once"):
        check_preflight(trainer(2, ddp), model)
    with pytest.raises(ConfigurationError, match=r"got trainer\.strategy object"):
        check_preflight(trainer(2, object()), model)
    with pytest.raises(ConfigurationError, match="got GatedModule, which has no validation_step"):
        check_preflight(trainer(1, None), GatedModule(optimizer=model._build_optimizer))
