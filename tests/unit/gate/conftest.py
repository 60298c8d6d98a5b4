"""A module small enough to reason about, and a trainer that runs it without leaving anything."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from musicnet.gate.gated_module import GatedModule
from musicnet.gate.step_gate import StepReport


class Regressor(GatedModule):
    """Backbone and head on four numbers; a row that starts with 99 makes the loss nan."""

    def __init__(self, *, norm: bool = False, zero_head: bool = False, **settings: Any) -> None:
        settings.setdefault("optimizer", partial(torch.optim.AdamW, lr=1e-2))
        super().__init__(**settings)
        layers = [nn.Linear(4, 8), nn.BatchNorm1d(8)] if norm else [nn.Linear(4, 8)]
        self.backbone = nn.Sequential(*layers, nn.Tanh())
        self.head = nn.Linear(8, 1)
        if zero_head:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def compute_loss(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        poison = torch.where(x[:, :1] == 99, torch.nan, 0.0)
        return (self.head(self.backbone(x + poison)) - y).square().mean()


class Reports(Callback):
    """Keeps every report, and what the parameters were right before and after the attempt."""

    def __init__(self) -> None:
        self.reports: list[StepReport] = []
        self.heard: list[str] = []

    def on_before_step_gate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.heard.append("before")

    def on_step_gate(
        self, trainer: Trainer, pl_module: LightningModule, report: StepReport
    ) -> None:
        self.heard.append("after")
        self.reports.append(report)


@pytest.fixture(scope="session")
def regressor() -> Callable[..., Regressor]:
    """Build the module with the same weights every time."""

    def build(**settings: Any) -> Regressor:
        torch.manual_seed(0)
        return Regressor(**settings)

    return build


@pytest.fixture(scope="session")
def loader() -> Callable[..., DataLoader[Any]]:
    """Build a loader of so many batches of four; the batches named in `poisoned` give nan."""

    def build(n_batches: int, poisoned: tuple[int, ...] = (), batch_size: int = 4) -> Any:
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(n_batches, batch_size, 4, generator=generator)
        y = x.sum(-1, keepdim=True)
        for batch in poisoned:
            x[batch, :, 0] = 99
        dataset = TensorDataset(x.flatten(0, 1), y.flatten(0, 1))
        return DataLoader(dataset, batch_size=batch_size)

    return build


@pytest.fixture
def reports() -> Reports:
    return Reports()


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """Build a silent CPU trainer."""

    def build(**settings: Any) -> Trainer:
        quiet: dict[str, Any] = {
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "max_epochs": 1,
            "default_root_dir": tmp_path,
        }
        return Trainer(**quiet | settings)

    return build
