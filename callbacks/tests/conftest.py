"""A small regression that is trained for real, through the gate and without it."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from musicnet.gate.gated_module import GatedModule
from musicnet.gate.schedules import Schedule
from musicnet.gate.step_gate import StepGate

Fit = Callable[..., Trainer]
BATCHES = 8


def tiny_network() -> tuple[nn.Module, nn.Module]:
    return nn.Linear(4, 8), nn.Linear(8, 1)


def mean_square(module: Any, batch: list[Tensor]) -> Tensor:
    inputs, targets = batch
    return (module.head(torch.tanh(module.backbone(inputs))) - targets).square().mean()


class GatedRegression(GatedModule):
    """Its loss is NaN in the batches that `poisoned` counts, from 0, over all epochs."""

    def __init__(
        self, *, poisoned: set[int] = frozenset(), lr: float = 0.05, **options: Any
    ) -> None:
        options.setdefault("schedule", Schedule(warmup_steps=0, shape="constant"))
        super().__init__(optimizer=lambda groups: torch.optim.SGD(groups, lr=lr), **options)
        self.backbone, self.head = tiny_network()
        self.poisoned = set(poisoned)
        self.batches = 0

    def compute_loss(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = mean_square(self, batch)
        self.batches += 1
        return loss * float("nan") if self.batches - 1 in self.poisoned else loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val/loss", mean_square(self, batch))


class PlainRegression(LightningModule):
    """The same under automatic optimisation, as anybody would write it."""

    def __init__(self, lr: float = 0.05) -> None:
        super().__init__()
        self.backbone, self.head = tiny_network()
        self.lr = lr

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = mean_square(self, batch)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val/loss", mean_square(self, batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class OwnLoop(LightningModule):
    """A manual loop as anybody would write it, around a gate; every second batch is NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.backbone, self.head = tiny_network()
        self.my_gate = StepGate()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        loss = mean_square(self, batch) * (float("nan") if batch_idx % 2 else 1.0)
        self.manual_backward(loss)
        self.my_gate.attempt(self, self.optimizers())
        self.optimizers().zero_grad()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val/loss", mean_square(self, batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


@pytest.fixture
def own_loop() -> OwnLoop:
    torch.manual_seed(7)
    return OwnLoop()


@pytest.fixture
def gated() -> Callable[..., GatedRegression]:
    def build(**options: Any) -> GatedRegression:
        torch.manual_seed(7)
        return GatedRegression(**options)

    return build


@pytest.fixture
def plain() -> Callable[..., PlainRegression]:
    def build(**options: Any) -> PlainRegression:
        torch.manual_seed(7)
        return PlainRegression(**options)

    return build


@pytest.fixture
def loader() -> DataLoader:
    """32 samples in 8 batches; the targets can be fitted."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(4 * BATCHES, 4, generator=generator)
    return DataLoader(TensorDataset(inputs, inputs.sum(-1, keepdim=True)), batch_size=4)


@pytest.fixture
def fit(tmp_path: Path, loader: DataLoader) -> Fit:
    """Train a module with these callbacks; it validates on the samples that it trains on."""

    def run(module: LightningModule, *callbacks: Any, ckpt_path: Any = None, **options: Any):
        settings: dict[str, Any] = {
            "accelerator": "cpu",
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": -1,
            "default_root_dir": tmp_path,
        }
        seed_everything(11, verbose=False)
        trainer = Trainer(callbacks=list(callbacks), **settings | options)
        trainer.fit(module, loader, loader, ckpt_path=ckpt_path)
        return trainer

    return run


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[str], list[str]]:
    """The lines that the callbacks logged and that begin so."""
    caplog.set_level(logging.INFO, logger="callbacks")

    def starting_with(prefix: str) -> list[str]:
        return [text for text in caplog.messages if text.startswith(prefix)]

    return starting_with
