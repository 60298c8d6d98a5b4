"""The doctor in a project that knows nothing of arrays: handwritten digits, automatic optimisation.

`python examples/mnist_like.py` trains a small classifier on scikit-learn's digits, and
`python examples/mnist_like.py --fault` the same with a mistake that raises no error: it looks at
the backbone's features with `detach()`. Five lines, marked below, are all that the doctor takes.

The digits come with scikit-learn, which the extra `[dev]` brings: `pip install -e '.[dev]'`, as
every target of `make` sees to; `pip install scikit-learn` beside musicnet will do as well.
"""

import argparse
import logging
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from callbacks import RunDoctor  # 1


class Digits(LightningModule):
    """A classifier of 8 x 8 images.

    Args:
        lr: learning rate.
        fault: detach what the head sees.
    """

    def __init__(self, lr: float = 2e-3, *, fault: bool = False) -> None:  # noqa: ARG002
        super().__init__()
        self.save_hyperparameters()
        self.backbone = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.head = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the ten digits."""
        features = self.backbone(images)
        logits: Tensor = self.head(features.detach() if self.hparams["fault"] else features)
        return logits

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        """Cross-entropy."""
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:  # noqa: ARG002
        """Loss and accuracy."""
        logits = self(batch[0])
        self.log("val/loss", nn.functional.cross_entropy(logits, batch[1]))
        self.log("val/accuracy", (logits.argmax(-1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=self.hparams["lr"])


def main(arguments: list[str] | None = None) -> RunDoctor:
    """Train, and say what the doctor says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--fault", action="store_true", help="make a mistake")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--folder", type=Path, default=Path("runs/mnist_like"))
    options = parser.parse_args(arguments)

    seed_everything(0)
    table = load_digits()
    images = torch.tensor(table.data / 16, dtype=torch.float32)
    train, val = random_split(TensorDataset(images, torch.tensor(table.target)), [0.8, 0.2])

    logging.basicConfig(format="%(message)s")  # 2: findings are told as they are seen
    doctor = RunDoctor()  # 3
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=options.epochs,
        callbacks=[doctor],  # 4
        default_root_dir=options.folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(
        Digits(fault=options.fault),
        DataLoader(train, batch_size=64, shuffle=True),
        DataLoader(val, batch_size=64),
    )
    print(doctor.judgement)  # 5; report.html in the folder shows the rest
    return doctor


if __name__ == "__main__":
    main()
