"""The training loops that `gate.py` compares: one small transformer, trained in many ways.

Sizes and names of variants come in; each variant is a function that trains on the batches that it
is handed, one step per batch.
"""

import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import grad_norm
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, IterableDataset

from callbacks import (
    GradientNorm,
    LearningRates,
    OverfitSanity,
    ParameterDelta,
    RunDoctor,
    RunLog,
)
from musicnet.gate.automatic import AutomaticGate
from musicnet.gate.gated_module import GatedModule
from musicnet.gate.parameter_groups import backbone_and_head, named_groups
from musicnet.gate.schedules import Schedule
from musicnet.gate.step_gate import SpikeRule, StepGate

VOCABULARY, LAYERS, RATE, MAX_NORM = 64, 8, 3e-4, 1.0


@dataclass(frozen=True)
class Size:
    """How large the transformer and its batches are; always 99 tensors.

    Args:
        width: Of the layers.
        sequences: Of a batch.
        length: Of a sequence, in tokens.
    """

    width: int
    sequences: int
    length: int


SIZES = {"1M": Size(104, 8, 32), "16M": Size(416, 2, 32)}


@dataclass(frozen=True)
class Setting:
    """What the loops of one comparison share.

    Args:
        size: Of the transformer.
        n_steps: Of the run.
        device: "cpu" or "cuda".
        fused: Whether AdamW is the fused one.
    """

    size: Size
    n_steps: int
    device: str
    fused: bool

    def optimizer(self, groups: Any) -> AdamW:
        """Build the optimiser that all variants have."""
        return AdamW(groups, lr=RATE, fused=self.fused or None)

    def scheduler(self, optimizer: AdamW) -> LambdaLR:
        """Build the schedule that all variants have."""
        return LambdaLR(optimizer, partial(Schedule().factor, total=self.n_steps))


class Network(LightningModule):
    """The transformer and its loss, as backbone and head."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.setting = setting
        self.backbone, self.head = transformer(setting.size)

    def next_token_loss(self, tokens: Tensor) -> Tensor:
        """Give the cross-entropy of every next token."""
        logits = self.head(self.backbone(tokens[:, :-1]))
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    def configure_optimizers(self) -> Any:
        """Build the groups and rates of the gated module."""
        optimizer = self.setting.optimizer(named_groups(self, backbone_and_head(), RATE))
        scheduler = {"scheduler": self.setting.scheduler(optimizer), "interval": "step"}
        return [optimizer], [scheduler]


def transformer(size: Size) -> tuple[nn.Module, nn.Module]:
    """Build 99 tensors with the same weights every time."""
    torch.manual_seed(0)
    layers = [
        nn.TransformerEncoderLayer(size.width, 4, 4 * size.width, dropout=0.0, batch_first=True)
        for _ in range(LAYERS)
    ]
    backbone = nn.Sequential(nn.Embedding(VOCABULARY, size.width), *layers)
    return backbone, nn.Linear(size.width, VOCABULARY)


class Automatic(Network):
    """What a module under automatic optimisation looks like."""

    def training_step(self, batch: Tensor) -> Tensor:
        """Give the loss to Lightning."""
        loss = self.next_token_loss(batch)
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=1)
        return loss


class AutomaticWithNorms(Automatic):
    """The same with Lightning's `grad_norm` at every step, as its documentation shows it."""

    def on_before_optimizer_step(self, optimizer: Any) -> None:  # noqa: ARG002
        """Log the norm of every parameter, and of all together."""
        self.log_dict(grad_norm(self, norm_type=2))


class Manual(Automatic):
    """Manual optimisation without a gate, clipped the way that Lightning offers."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.automatic_optimization = False

    def training_step(self, batch: Tensor) -> Tensor:
        """Step whatever comes."""
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        loss = super().training_step(batch)
        self.manual_backward(loss)
        self.clip_gradients(optimizer, MAX_NORM, "norm")
        optimizer.step()
        self.lr_schedulers().step()  # type: ignore[union-attr, call-arg]
        return loss


class Gated(GatedModule):
    """The same under the gate."""

    def __init__(self, setting: Setting, **gate: Any) -> None:
        # named as the others' network, so that the groups are the same
        super().__init__(optimizer=setting.optimizer, gate=StepGate(max_norm=MAX_NORM, **gate))
        self.backbone, self.head = transformer(setting.size)

    next_token_loss = Network.next_token_loss

    def compute_loss(self, batch: Tensor, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Give the loss to the gate."""
        return self.next_token_loss(batch)


class Stream(IterableDataset[Tensor]):
    """Batches from wherever they come."""

    def __init__(self, batches: Iterator[Tensor]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Tensor]:
        return self.batches


Loop = Callable[[Setting, Iterator[Tensor]], None]


def lightning_loop(build: Callable[[Setting], LightningModule], **settings: Any) -> Loop:
    """Make a loop of a module and what its trainer is asked for; callbacks come as classes."""

    def run(setting: Setting, batches: Iterator[Tensor]) -> None:
        observers: list[Callback] = [make() for make in settings.get("callbacks", ())]
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                accelerator="gpu" if setting.device == "cuda" else "cpu",
                devices=1,
                max_epochs=-1,
                max_steps=setting.n_steps,
                default_root_dir=folder,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                **settings | {"callbacks": observers},
            )
            trainer.fit(build(setting), DataLoader(Stream(batches), batch_size=None))

    return run


def plain_loop(setting: Setting, batches: Iterator[Tensor], *, clips: bool = True) -> None:
    """What one writes without any trainer; no schedule is left out, and the loss is summed."""
    module = Network(setting).to(setting.device)
    (optimizer,), ((scheduler),) = module.configure_optimizers()
    total = torch.zeros((), device=setting.device)
    for batch in batches:
        optimizer.zero_grad()
        loss = module.next_token_loss(batch.to(setting.device))
        loss.backward()
        if clips:
            nn.utils.clip_grad_norm_(module.parameters(), MAX_NORM)
        optimizer.step()
        scheduler["scheduler"].step()
        total += loss.detach()


def accelerate_loop(setting: Setting, batches: Iterator[Tensor]) -> None:
    """The plain loop as Accelerate would have it."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=setting.device == "cpu")
    network = Network(setting)
    (bare,), ((entry),) = network.configure_optimizers()
    module, optimizer, scheduler = accelerator.prepare(network, bare, entry["scheduler"])
    total = torch.zeros((), device=accelerator.device)
    for batch in batches:
        optimizer.zero_grad()
        loss = network.next_token_loss(batch.to(accelerator.device))
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(module.parameters(), MAX_NORM)
        optimizer.step()
        scheduler.step()
        total += loss.detach()


OBSERVERS: dict[str, type[Callback]] = {
    "gradient_norm": GradientNorm,
    "parameter_delta": ParameterDelta,
    "learning_rates": LearningRates,
    "overfit_sanity": OverfitSanity,
    "run_log": RunLog,
    "run_doctor": RunDoctor,
}

VARIANTS: dict[str, Loop] = {
    "auto": lightning_loop(Automatic),
    "auto_clip": lightning_loop(Automatic, gradient_clip_val=MAX_NORM),
    "manual_clip": lightning_loop(Manual),
    "gate": lightning_loop(Gated),
    "callbacks": lightning_loop(Gated, callbacks=tuple(OBSERVERS.values())),
    **{
        f"gate+{name}": lightning_loop(Gated, callbacks=(kind,)) for name, kind in OBSERVERS.items()
    },
    "gate+norms_always": lightning_loop(partial(Gated, group_norms_every=1)),
    "gate+spike": lightning_loop(partial(Gated, spike=SpikeRule())),
    "automatic_gate": lightning_loop(
        Automatic, callbacks=(lambda: AutomaticGate(StepGate(max_norm=MAX_NORM)),)
    ),
    "auto_clip+grad_norm": lightning_loop(AutomaticWithNorms, gradient_clip_val=MAX_NORM),
    "loop": partial(plain_loop, clips=False),
    "loop_clip": plain_loop,
}
if importlib.util.find_spec("accelerate"):
    VARIANTS["accelerate"] = accelerate_loop
