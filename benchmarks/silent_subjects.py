"""Real modules that learn in a second, for faults to be planted in.

A plain classifier of handwritten digits (scikit-learn's, which come with the package) under
automatic optimisation, the same under a step gate and under a loop of its own, and a small
MusicNet that draws fresh scenes of a line of sensors.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader, Dataset, TensorDataset

from musicnet.gate.gated_module import GatedModule
from musicnet.gate.schedules import Schedule
from musicnet.gate.step_gate import StepGate
from musicnet.learning.data import SceneData
from musicnet.learning.module import MusicNet
from musicnet.networks.neural_music import NetworkSettings
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.sources import SourceLaw

N_TRAIN = 1280
BATCH = 64
BATCHES = N_TRAIN // BATCH
WIDTH = 64
USUAL = partial(AdamW, lr=2e-3)


@lru_cache
def digits() -> tuple[Tensor, Tensor]:
    """Images of 64 values in [0, 1] and what they show, in an order without order."""
    table = load_digits()
    order = torch.randperm(len(table.target), generator=torch.Generator().manual_seed(0))
    return torch.tensor(table.data / 16, dtype=torch.float32)[order], torch.tensor(table.target)[
        order
    ]


def digit_loader(
    split: str,
    change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    wrap: Callable[[Dataset[Any]], Dataset[Any]] | None = None,
) -> DataLoader[Any]:
    """Batches of digits.

    Args:
        split: "train" or "val"; "both" takes half of its items from either.
        change: of images and labels.
        wrap: of the data set.
    """
    images, labels = digits()
    places = {
        "train": slice(0, N_TRAIN),
        "val": slice(N_TRAIN, None),
        "both": slice(N_TRAIN - 250, N_TRAIN + 250),
    }[split]
    images, labels = images[places], labels[places]
    if change is not None:
        images, labels = change(images, labels)
    data: Dataset[Any] = TensorDataset(images, labels)
    if wrap is not None:
        data = wrap(data)
    return DataLoader(data, batch_size=BATCH, shuffle=split == "train", drop_last=split == "train")


def two_parts(*, norm: bool = False) -> tuple[nn.Module, nn.Module]:
    """A backbone and a head."""
    middle: list[nn.Module] = [nn.BatchNorm1d(WIDTH)] if norm else []
    backbone = nn.Sequential(nn.Linear(64, WIDTH), *middle, nn.ReLU(), nn.Linear(WIDTH, WIDTH))
    return backbone, nn.Sequential(nn.ReLU(), nn.Linear(WIDTH, 10))


class Plain(LightningModule):
    """A classifier as anybody would write it.

    Args:
        optimizer: builds it from parameters.
        norm: with batch statistics.
    """

    def __init__(self, optimizer: Callable[..., Any] = USUAL, *, norm: bool = False) -> None:
        super().__init__()
        self.backbone, self.head = two_parts(norm=norm)
        self.build = optimizer

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.backbone(images))
        return logits

    def loss_of(self, batch: list[Tensor]) -> Tensor:
        """Cross-entropy."""
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        """Give the loss to Lightning."""
        loss = self.loss_of(batch)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:  # noqa: ARG002
        """Log loss and accuracy."""
        logits = self(batch[0])
        self.log("val/loss", nn.functional.cross_entropy(logits, batch[1]))
        self.log("val/accuracy", (logits.argmax(-1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        """One group, no schedule."""
        return self.build(self.parameters())


class OwnLoop(Plain):
    """The same in a loop of its own, with whatever rule `may_step` is."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.automatic_optimization = False

    def may_step(self, loss: Tensor) -> bool:
        """Step on what is finite."""
        return bool(loss.isfinite())

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]  # noqa: ARG002
        """Backward, rule, step."""
        optimizer = self.optimizers()
        optimizer.zero_grad()  # type: ignore[union-attr]
        loss = self.loss_of(batch)
        self.manual_backward(loss)
        if self.may_step(loss):
            optimizer.step()  # type: ignore[union-attr]


class Gated(GatedModule):
    """The same under a step gate."""

    def __init__(
        self,
        optimizer: Callable[..., Any] = USUAL,
        *,
        norm: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(optimizer=optimizer, **settings)
        self.backbone, self.head = two_parts(norm=norm)

    def compute_loss(self, batch: list[Tensor], batch_idx: int) -> Tensor | dict[str, Tensor]:  # noqa: ARG002
        """Cross-entropy."""
        return nn.functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the loss."""
        losses = self.compute_loss(batch, batch_idx)
        loss = losses["loss"] if isinstance(losses, dict) else losses
        self.log("val/loss", loss)


def line_scene() -> Scene:
    """Two sources far from eight sensors."""
    law = SourceLaw(n_max=2, elevation_deg=(0.0, 0.0), range_m=None)
    return Scene(ArrayGeometry(8), law, n_snapshots=20, symbols="data")


def fresh_scenes(seed: int = 0, **settings: Any) -> SceneData:
    """Scenes that never come again, twenty batches of them an epoch."""
    options: dict[str, Any] = {"batches_per_epoch": BATCHES, "batch_size": 32, "n_val": 64}
    return SceneData(line_scene(), seed=seed, **(options | settings))


def small_musicnet(
    kind: type[MusicNet] = MusicNet,
    rate: float = 2e-3,
    schedule: Schedule | None = None,
    gate: StepGate | None = None,
    optimizer: Callable[..., Any] | None = None,
    **settings: Any,
) -> MusicNet:
    """A MusicNet of a few thousand weights, for `line_scene`."""
    sizes = NetworkSettings(n_channels=8, dilations=(1,), n_v=5, n_u=11, n_rho=3)
    return kind(
        line_scene(),
        optimizer or partial(AdamW, lr=rate),
        sizes,
        gate=gate,
        schedule=schedule,
        **settings,
    )


def is_every(n: int, count: int) -> bool:
    """Whether this is the n-th, the 2n-th, ... of what is counted from 0."""
    return count % n == n - 1
