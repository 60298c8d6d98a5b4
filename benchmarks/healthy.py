"""Healthy runs: other tasks, sizes, precisions, optimisers, schedules, loops and seeds."""

# ruff: noqa: D102

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from planted import EPOCHS, Planted, _mixed
from silent_subjects import (
    BATCHES,
    Gated,
    OwnLoop,
    Plain,
    digit_loader,
    fresh_scenes,
    small_musicnet,
)
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from torch.utils.data import DataLoader, TensorDataset

from callbacks import OverfitSanity
from musicnet.gate.averaging import Averaging
from musicnet.gate.schedules import Schedule
from musicnet.gate.step_gate import StepGate
from musicnet.learning.phases import Phase

STEPS = EPOCHS * BATCHES


class Scheduled(Plain):
    """With a schedule."""

    def __init__(self, schedule: Callable[[Optimizer], Any], interval: str) -> None:
        super().__init__()
        self.schedule, self.interval = schedule, interval

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        config = {"scheduler": self.schedule(optimizer), "interval": self.interval}
        if isinstance(config["scheduler"], ReduceLROnPlateau):
            config["monitor"] = "val/loss"
        return [optimizer], [config]


class Shaped(Plain):
    """With another body."""

    def __init__(self, backbone: nn.Module, head: nn.Module, **settings: Any) -> None:
        super().__init__(**settings)
        self.backbone, self.head = backbone, head


class Images(nn.Module):
    """Digits as 8 x 8 images."""

    def forward(self, rows: Tensor) -> Tensor:
        return rows.unflatten(1, (1, 8, 8))


class Regression(LightningModule):
    """A smooth function of four numbers; batches are mappings."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 1))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:  # noqa: ARG002
        loss = nn.functional.mse_loss(self.net(batch["x"]), batch["y"])
        return {"loss": loss}

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:  # noqa: ARG002
        self.log("val_mse", nn.functional.mse_loss(self.net(batch["x"]), batch["y"]))

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=3e-3)


class Reconstruction(LightningModule):
    """Images through a narrow place; a batch is one tensor, and nothing is validated."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
        self.decoder = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 64))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:  # noqa: ARG002
        return nn.functional.mse_loss(self.decoder(self.encoder(batch)), batch)

    def configure_optimizers(self) -> Any:
        return AdamW(self.parameters(), lr=3e-3)


class TwoPlayers(LightningModule):
    """A generator and a discriminator, two optimisers in a loop of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.Sigmoid())
        self.critic = nn.Sequential(nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # noqa: ARG002
        for_generator, for_critic = self.optimizers()  # type: ignore[misc]
        made = self.generator(torch.randn(len(batch[0]), 8))
        loss = nn.functional.softplus(-self.critic(made)).mean()
        for_generator.zero_grad()
        self.manual_backward(loss)
        for_generator.step()
        judged = nn.functional.softplus(self.critic(made.detach())).mean()
        loss = judged + nn.functional.softplus(-self.critic(batch[0])).mean()
        for_critic.zero_grad()
        self.manual_backward(loss)
        for_critic.step()

    def configure_optimizers(self) -> Any:
        return [Adam(part.parameters(), lr=1e-3) for part in (self.generator, self.critic)]


class Next(LightningModule):
    """A small transformer that says which of eight tokens comes next."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 32)
        self.layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.1, batch_first=True)
        self.output = nn.Linear(32, 8)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        tokens = batch[0]
        logits = self.output(self.layer(self.embedding(tokens[:, :-1])))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return AdamW(self.parameters(), lr=3e-3)


def _tokens() -> DataLoader[Any]:
    start = torch.randint(8, (640, 1), generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset((start + torch.arange(9)) % 8), batch_size=32, shuffle=True)


class _Rows(torch.utils.data.Dataset[Any]):
    def __init__(self, seed: int, n: int) -> None:
        x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
        self.x, self.y = x, torch.sin(x.sum(1, keepdim=True)) + x[:, :1]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "y": self.y[index]}


def _digits_alone() -> DataLoader[Any]:
    images = digit_loader("train").dataset.tensors[0]  # type: ignore[attr-defined]
    return DataLoader(images, batch_size=64, shuffle=True)


def _wide(width: int, **settings: Any) -> Plain:
    return Shaped(nn.Sequential(nn.Linear(64, width), nn.ReLU()), nn.Linear(width, 10), **settings)


def _zero_head(module: Any) -> Any:
    nn.init.zeros_(module.head[1].weight)
    nn.init.zeros_(module.head[1].bias)
    return module


def healthy_runs() -> Iterator[tuple[str, Callable[[], Planted]]]:
    """Name and builder of each; the seed is the place in the order."""
    yield "adamw", lambda: Planted(Plain())
    yield "adamw again", lambda: Planted(Plain())
    yield "sgd", lambda: Planted(Plain(partial(SGD, lr=0.1, momentum=0.9)))
    yield "sgd without momentum", lambda: Planted(Plain(partial(SGD, lr=0.1)))
    yield "adam at 1e-2", lambda: Planted(Plain(partial(Adam, lr=1e-2)))
    yield "rmsprop", lambda: Planted(Plain(partial(RMSprop, lr=1e-3)))
    yield "adagrad", lambda: Planted(Plain(partial(Adagrad, lr=1e-2)))
    yield "nadam", lambda: Planted(Plain(partial(NAdam, lr=2e-3)))
    yield "low rate", lambda: Planted(Plain(partial(AdamW, lr=3e-4)))
    yield "narrow", lambda: Planted(_wide(12))
    yield "wide", lambda: Planted(_wide(512))
    yield "batch norm", lambda: Planted(Plain(norm=True))
    yield (
        "dropout",
        lambda: Planted(
            Shaped(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5)), nn.Linear(64, 10))
        ),
    )
    yield (
        "convolutions",
        lambda: Planted(
            Shaped(
                nn.Sequential(
                    Images(),
                    nn.Conv2d(1, 8, 3, padding=1),
                    nn.BatchNorm2d(8),
                    nn.ReLU(),
                    nn.MaxPool2d(2),
                    nn.Flatten(),
                ),
                nn.Linear(128, 10),
            )
        ),
    )
    yield "zero head", lambda: Planted(_zero_head(Plain()))
    yield "bfloat16 mixed", lambda: Planted(Plain(), trainer={"precision": "bf16-mixed"})
    yield "float16 mixed", lambda: Planted(Plain(), trainer=_mixed())
    yield "float64", lambda: Planted(Plain(), trainer={"precision": "64-true"})
    yield "accumulated", lambda: Planted(Plain(), trainer={"accumulate_grad_batches": 4})
    yield "clipped", lambda: Planted(Plain(), trainer={"gradient_clip_val": 1.0})
    yield (
        "clipped by value",
        lambda: Planted(
            Plain(), trainer={"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"}
        ),
    )
    yield "cosine", lambda: Planted(Scheduled(lambda o: CosineAnnealingLR(o, STEPS), "step"))
    yield (
        "cosine in epochs",
        lambda: Planted(Scheduled(lambda o: CosineAnnealingLR(o, EPOCHS), "epoch")),
    )
    yield (
        "one cycle",
        lambda: Planted(Scheduled(lambda o: OneCycleLR(o, 5e-3, total_steps=STEPS), "step")),
    )
    yield "exponential", lambda: Planted(Scheduled(lambda o: ExponentialLR(o, 0.9), "epoch"))
    yield "stairs", lambda: Planted(Scheduled(lambda o: StepLR(o, 30), "epoch"))
    yield (
        "warm restarts",
        lambda: Planted(Scheduled(lambda o: CosineAnnealingWarmRestarts(o, 40), "step")),
    )
    yield (
        "warm-up",
        lambda: Planted(Scheduled(lambda o: LambdaLR(o, lambda k: min(1.0, (k + 1) / 20)), "step")),
    )
    yield (
        "warm-up, cosine",
        lambda: Planted(
            Scheduled(
                lambda o: SequentialLR(
                    o, [LinearLR(o, 0.1, total_iters=20), CosineAnnealingLR(o, STEPS - 20)], [20]
                ),
                "step",
            )
        ),
    )
    yield "plateau", lambda: Planted(Scheduled(lambda o: ReduceLROnPlateau(o, patience=1), "epoch"))
    yield "own loop", lambda: Planted(OwnLoop())
    yield (
        "regression",
        lambda: Planted(
            Regression(),
            train=DataLoader(_Rows(1, 1280), batch_size=64, shuffle=True),
            val=DataLoader(_Rows(2, 256), batch_size=64),
        ),
    )
    yield "reconstruction", lambda: Planted(Reconstruction(), train=_digits_alone(), val=[])
    yield "two players", lambda: Planted(TwoPlayers(), val=[])
    yield "tokens", lambda: Planted(Next(), train=_tokens(), val=[])
    yield (
        "gate, accumulated, average",
        lambda: Planted(
            Gated(accumulate=2, averaging=Averaging("ema", decay=0.9), gate=StepGate(max_norm=1.0))
        ),
    )
    yield "gate, zero head", lambda: Planted(_zero_head(Gated(norm=True)))
    yield "musicnet", lambda: Planted(small_musicnet())
    yield (
        "musicnet, average, clipped",
        lambda: Planted(
            small_musicnet(averaging=Averaging("ema", decay=0.9), gate=StepGate(max_norm=1.0))
        ),
    )
    yield (
        "musicnet, phases",
        lambda: Planted(
            small_musicnet(
                phases=[
                    Phase({"spectrum": 1.0}, epochs=2, frozen=["backbone"]),
                    Phase({"spectrum": 1.0, "offsets": 0.5}),
                ]
            )
        ),
    )
    yield (
        "musicnet, sgd, constant",
        lambda: Planted(
            small_musicnet(
                optimizer=partial(SGD, lr=1e-2, momentum=0.9), schedule=Schedule(shape="constant")
            )
        ),
    )
    yield (
        "musicnet, bfloat16",
        lambda: Planted(small_musicnet(), trainer={"precision": "bf16-mixed"}),
    )
    yield (
        "musicnet memorises",
        lambda: Planted(
            small_musicnet(),
            data=fresh_scenes(n_scenes=32, passes_per_epoch=10),
            callbacks=[OverfitSanity(min_loss_drop=0.1)],
        ),
    )
