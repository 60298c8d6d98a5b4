"""The faults of the catalogue, each planted in a real training run of two real modules."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.plugins import MixedPrecision
from silent_subjects import (
    BATCH,
    BATCHES,
    Gated,
    OwnLoop,
    Plain,
    digit_loader,
    fresh_scenes,
    is_every,
    small_musicnet,
)
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR
from torch.utils.data import Dataset

from musicnet.gate.judgement import Look
from musicnet.gate.schedules import Schedule
from musicnet.gate.step_gate import StepGate
from musicnet.gate.windows import Window
from musicnet.learning.batches import SceneBatch
from musicnet.learning.data import SceneData
from musicnet.learning.module import MusicNet
from musicnet.networks.head import PseudoSpectrum

EPOCHS = 6
"""Of a healthy run."""
LONG = 30
"""Epochs that a run with a fault is laid out for; it is broken off after the first tenth."""


@dataclass
class Planted:
    """A run that is ready to start, with a fault in it."""

    module: LightningModule
    train: Any = None
    val: Any = None
    data: Any = None
    callbacks: list[Callback] = field(default_factory=list)
    trainer: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.data is None and isinstance(self.module, MusicNet):
            self.data = fresh_scenes()
        elif self.data is None:
            self.train = digit_loader("train") if self.train is None else self.train
            self.val = digit_loader("val") if self.val is None else self.val


FAULTS: dict[tuple[str, str], Callable[[], Planted]] = {}
"""(code, subject) -> how to plant it."""


def fault(code: str, subject: str) -> Callable[[Callable[[], Planted]], Callable[[], Planted]]:
    """Put a plant into the table."""

    def enter(plant: Callable[[], Planted]) -> Callable[[], Planted]:
        FAULTS[code, subject] = plant
        return plant

    return enter


class AllGroups(StepGate):
    """Wants every single gradient to be greater than zero."""

    def look(self, *given: Any, **named: Any) -> Look:
        """Turn any empty gradient into a veto."""
        look = super().look(*given, **named)
        is_empty = any(float(g.norm()) == 0.0 for g in look.gradients.tensors)
        return replace(look, reason="zero") if is_empty and look.reason == "ok" else look


_TWO_RANKS = {"strategy": "ddp_fork", "devices": 2}


@fault("RANKS_DIVERGED", "classifier")
def _unsynchronised_plain() -> Planted:
    class Unsynchronised(OwnLoop):
        def manual_backward(self, loss: Tensor, *given: Any, **named: Any) -> None:
            with self.trainer.strategy.block_backward_sync():  # type: ignore[attr-defined]
                super().manual_backward(loss, *given, **named)

    return Planted(Unsynchronised(), trainer=_TWO_RANKS)


@fault("RANKS_DIVERGED", "musicnet")
def _unsynchronised_net() -> Planted:
    class Unsynchronised(MusicNet):
        def manual_backward(self, loss: Tensor, *given: Any, **named: Any) -> None:
            with self.trainer.strategy.block_backward_sync():  # type: ignore[attr-defined]
                super().manual_backward(loss, *given, **named)

    return Planted(
        small_musicnet(Unsynchronised), trainer={**_TWO_RANKS, "use_distributed_sampler": False}
    )


@fault("GATE_TOO_STRICT", "classifier")
def _strict_loop() -> Planted:
    class Strict(OwnLoop):
        def may_step(self, loss: Tensor) -> bool:  # noqa: ARG002
            norms = [
                sum(float(p.grad.norm()) for p in part.parameters())
                for part in (self.backbone, self.head)
            ]
            return all(norm > 0.0 for norm in norms)

    module = Strict()
    nn.init.zeros_(module.head[1].weight)
    return Planted(module)


@fault("GATE_TOO_STRICT", "musicnet")
def _strict_gate() -> Planted:
    module = small_musicnet(gate=AllGroups())
    nn.init.zeros_(module.network.head.outputs.weight)
    return Planted(module)


@fault("NONFINITE_HIDDEN", "classifier")
def _hidden_plain() -> Planted:
    class Hidden(Plain):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss * torch.inf if is_every(5, batch_idx) else loss

        def on_after_backward(self) -> None:
            _rewrite(self)

    return Planted(Hidden())


@fault("NONFINITE_HIDDEN", "musicnet")
def _hidden_net() -> Planted:
    class Hidden(MusicNet):
        def compute_loss(self, batch: SceneBatch, batch_idx: int) -> dict[str, Tensor]:
            losses = super().compute_loss(batch, batch_idx)
            factor = torch.inf if is_every(5, batch_idx) else 1.0
            return losses | {"loss": losses["loss"] * factor}

        def on_after_backward(self) -> None:
            super().on_after_backward()
            _rewrite(self)

    return Planted(small_musicnet(Hidden))


def _rewrite(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.grad is not None:
            parameter.grad.nan_to_num_(0.0, 0.0, 0.0)


def _mixed() -> dict[str, Any]:
    scaler = GradScaler("cpu", init_scale=2.0**16)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=scaler)]}


@fault("SCALER_STUCK", "classifier")
def _stuck_plain() -> Planted:
    class Overflows(Plain):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * 3e38 * 10

    return Planted(Overflows(), trainer=_mixed())


@fault("SCALER_STUCK", "musicnet")
def _stuck_net() -> Planted:
    class Overflows(MusicNet):
        def compute_loss(self, batch: SceneBatch, batch_idx: int) -> dict[str, Tensor]:
            losses = super().compute_loss(batch, batch_idx)
            return losses | {"loss": losses["loss"] * 3e38 * 10}

    return Planted(small_musicnet(Overflows), trainer=_mixed())


@fault("EVAL_WEIGHTS_DIFFER", "classifier")
def _stale_copy() -> Planted:
    class Averaged(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.average = copy.deepcopy(nn.Sequential(self.backbone, self.head))
            self.average.requires_grad_(requires_grad=False)

        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:  # noqa: ARG002
            logits = self.average(batch[0])
            self.log("val/loss", nn.functional.cross_entropy(logits, batch[1]))

    return Planted(Averaged())


@fault("EVAL_WEIGHTS_DIFFER", "musicnet")
def _stale_swap() -> Planted:
    class Swapped(MusicNet):
        def validation_step(self, batch: SceneBatch, batch_idx: int) -> None:
            weights = [p.detach().clone() for p in self.network.parameters()]
            if not hasattr(self, "first_weights"):
                self.first_weights = weights
            for parameter, first in zip(self.network.parameters(), self.first_weights, strict=True):
                parameter.data.copy_(first)
            super().validation_step(batch, batch_idx)
            for parameter, own in zip(self.network.parameters(), weights, strict=True):
                parameter.data.copy_(own)

    return Planted(small_musicnet(Swapped))


@fault("SCHEDULE_PER_EPOCH", "classifier")
def _cosine_per_epoch() -> Planted:
    class PerEpoch(Plain):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [CosineAnnealingLR(optimizer, T_max=LONG * BATCHES)]

    return Planted(PerEpoch())


@fault("SCHEDULE_PER_EPOCH", "musicnet")
def _schedule_per_epoch() -> Planted:
    class PerEpoch(MusicNet):
        def configure_optimizers(self) -> Any:
            built = super().configure_optimizers()
            built["lr_scheduler"]["interval"] = "epoch"
            return built

    return Planted(small_musicnet(PerEpoch))


@fault("WARMUP_TOO_LONG", "classifier")
def _long_warmup_plain() -> Planted:
    class Slow(Plain):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            schedule = LambdaLR(optimizer, lambda k: min(1.0, (k + 1) / 5000))
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    return Planted(Slow())


@fault("WARMUP_TOO_LONG", "musicnet")
def _long_warmup_net() -> Planted:
    return Planted(small_musicnet(schedule=Schedule(warmup_steps=5000)))


@fault("RATE_NOT_AS_ASKED", "classifier")
def _unread_key() -> Planted:
    module = Plain()
    module.save_hyperparameters({"learning_rate": 1e-2})
    return Planted(module)


@fault("RATE_NOT_AS_ASKED", "musicnet")
def _unread_key_net() -> Planted:
    module = small_musicnet()
    module.save_hyperparameters({"optimizer": {"init_args": {"lr": 1e-2}}}, logger=False)
    return Planted(module)


@fault("GROUP_FROZEN", "classifier")
def _frozen_plain() -> Planted:
    module = Plain()
    module.backbone.requires_grad_(requires_grad=False)
    return Planted(module)


@fault("GROUP_FROZEN", "musicnet")
def _frozen_net() -> Planted:
    module = small_musicnet()
    module.network.backbone.requires_grad_(requires_grad=False)
    return Planted(module)


@fault("GRAPH_DETACHED", "classifier")
def _detached_plain() -> Planted:
    module = Plain()
    module.backbone.register_forward_hook(lambda *seen: seen[-1].detach())
    return Planted(module)


@fault("GRAPH_DETACHED", "musicnet")
def _detached_net() -> Planted:
    module = small_musicnet()
    module.network.backbone.register_forward_hook(lambda *seen: seen[-1].detach())
    return Planted(module)


@fault("NOT_IN_OPTIMIZER", "classifier")
def _late_plain() -> Planted:
    class Late(Plain):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            self.late = nn.Linear(64, 64)
            return optimizer

        def forward(self, images: Tensor) -> Tensor:
            return super().forward(self.late(images) if hasattr(self, "late") else images)

    return Planted(Late())


@fault("NOT_IN_OPTIMIZER", "musicnet")
def _late_net() -> Planted:
    class Late(MusicNet):
        def configure_optimizers(self) -> Any:
            built = super().configure_optimizers()
            self.late = nn.Linear(self.network.grid.n_rho, self.network.grid.n_rho)
            return built

        def forward(self, batch: SceneBatch) -> PseudoSpectrum:
            drawn = super().forward(batch)
            if not hasattr(self, "late"):
                return drawn
            return PseudoSpectrum(drawn.logits + self.late(drawn.logits), drawn.offsets)

    return Planted(small_musicnet(Late))


@fault("STEPPED_NOT_MOVED", "classifier")
def _half_plain() -> Planted:
    module = Plain(partial(AdamW, lr=1e-5, weight_decay=0.0))
    return Planted(module, trainer={"precision": "bf16-true"})


@fault("STEPPED_NOT_MOVED", "musicnet")
def _half_net() -> Planted:
    class Half(MusicNet):
        def _image(self, batch: SceneBatch) -> Tensor:
            return super()._image(batch).bfloat16()

    module = small_musicnet(Half, rate=1e-5)
    module.network.backbone.bfloat16()
    module.network.head.bfloat16()
    return Planted(module)


class _Writer(Callback):
    """Writes weights now and then, as a copy of an average does that is never swapped back."""

    def on_train_batch_start(self, *arguments: Any) -> None:
        _, pl_module, _, batch_idx = arguments
        if is_every(5, batch_idx):
            for parameter in pl_module.parameters():
                parameter.data.mul_(0.999)


@fault("MOVED_WITHOUT_STEP", "classifier")
def _writer_plain() -> Planted:
    return Planted(Plain(), callbacks=[_Writer()])


@fault("MOVED_WITHOUT_STEP", "musicnet")
def _writer_net() -> Planted:
    return Planted(small_musicnet(), callbacks=[_Writer()])


@fault("MEMORY_GROWS", "classifier")
def _kept_plain() -> Planted:
    class Keeps(Plain):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            self.__dict__.setdefault("all_losses", []).append(loss)
            return loss

    return Planted(Keeps())


@fault("MEMORY_GROWS", "musicnet")
def _kept_net() -> Planted:
    class Keeps(MusicNet):
        def compute_loss(self, batch: SceneBatch, batch_idx: int) -> dict[str, Tensor]:
            losses = super().compute_loss(batch, batch_idx)
            self.__dict__.setdefault("all_losses", []).append(losses["total"])
            return losses

    return Planted(small_musicnet(Keeps))


@fault("CLIP_ALWAYS", "classifier")
def _clip_plain() -> Planted:
    return Planted(Plain(), trainer={"gradient_clip_val": 0.01})


@fault("CLIP_ALWAYS", "musicnet")
def _clip_net() -> Planted:
    return Planted(small_musicnet(gate=StepGate(max_norm=0.01)))


@fault("BUFFER_NONFINITE", "classifier")
def _buffers_plain() -> Planted:
    class Poisoned(OwnLoop):
        def loss_of(self, batch: list[Tensor]) -> Tensor:
            is_bad = self.training and self.global_step == 30
            images = batch[0] * torch.nan if is_bad else batch[0]
            return nn.functional.cross_entropy(self(images), batch[1])

        def may_step(self, loss: Tensor) -> bool:
            # what a NaN batch did to the statistics stays; the weights are kept whole
            self.poison_seen = not loss.isfinite() or getattr(self, "poison_seen", False)
            return super().may_step(loss)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            if self.global_step == 30 and not getattr(self, "poison_seen", False):
                super().training_step([batch[0] * torch.nan, batch[1]], batch_idx)
            super().training_step(batch, batch_idx)

    return Planted(Poisoned(norm=True))


@fault("BUFFER_NONFINITE", "musicnet")
def _buffers_net() -> Planted:
    class Poisoned(MusicNet):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            n_maps = self.network.backbone[0].in_channels
            self.network.backbone.insert(0, nn.BatchNorm2d(n_maps))

        def _image(self, batch: SceneBatch) -> Tensor:
            image = super()._image(batch)
            is_bad = self.training and self.gate.attempts == 30
            return image * torch.nan if is_bad else image

        def _open_window(self, *, is_first: bool) -> Window:
            super()._open_window(is_first=is_first)
            return Window([])  # takes no statistics back

    return Planted(small_musicnet(Poisoned))


@fault("LOSS_TERM_ZERO", "classifier")
def _dead_term_plain() -> Planted:
    class Dead(Plain):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            penalty = torch.zeros(())
            if batch[1].max() > 9:  # never: there are ten digits
                penalty = self.head[1].weight.abs().mean()
            self.log("train/penalty", penalty)
            return loss + penalty

    return Planted(Dead())


@fault("LOSS_TERM_ZERO", "musicnet")
def _dead_term_net() -> Planted:
    class Dead(MusicNet):
        def compute_loss(self, batch: SceneBatch, batch_idx: int) -> dict[str, Tensor]:
            losses = super().compute_loss(batch, batch_idx)
            penalty = torch.zeros(())
            if batch.n_scenes < 0:
                penalty = self.network.head.outputs.weight.abs().mean()
            return losses | {"smoothness": penalty, "loss": losses["loss"] + penalty}

    return Planted(small_musicnet(Dead))


@fault("VALIDATION_CONSTANT", "classifier")
def _cached_plain() -> Planted:
    class Cached(Plain):
        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            kept = self.__dict__.setdefault("kept", {})
            if batch_idx not in kept:
                kept[batch_idx] = self(batch[0])
            self.log("val/loss", nn.functional.cross_entropy(kept[batch_idx], batch[1]))

    return Planted(Cached())


@fault("VALIDATION_CONSTANT", "musicnet")
def _cached_net() -> Planted:
    class Cached(MusicNet):
        def forward(self, batch: SceneBatch) -> PseudoSpectrum:
            if self.training:
                return super().forward(batch)
            kept = self.__dict__.setdefault("kept", {})
            key = float(batch.observations[0].y.real.sum())
            if key not in kept:
                kept[key] = super().forward(batch)
            return kept[key]

    return Planted(small_musicnet(Cached))


@fault("INPUT_IGNORED", "classifier")
def _ignored_plain() -> Planted:
    class Ignores(Plain):
        def forward(self, images: Tensor) -> Tensor:
            return self.head(0.0 * self.backbone(images))

    return Planted(Ignores())


@fault("INPUT_IGNORED", "musicnet")
def _ignored_net() -> Planted:
    class Ignores(MusicNet):
        def forward(self, batch: SceneBatch) -> PseudoSpectrum:
            drawn = super().forward(batch)
            return PseudoSpectrum(
                drawn.logits.mean(0, keepdim=True).expand_as(drawn.logits),
                drawn.offsets.mean(0, keepdim=True).expand_as(drawn.offsets),
            )

    module = small_musicnet(Ignores)

    def blind(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:  # noqa: ARG001
        return output.mean(0, keepdim=True).expand_as(output)

    module.network.head.outputs.register_forward_hook(blind)
    return Planted(module)


@fault("LABELS_SHUFFLED", "classifier")
def _shuffled_plain() -> Planted:
    def permute(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(5))
        return images, labels[order]

    return Planted(Plain(), train=digit_loader("train", permute), val=digit_loader("val", permute))


@fault("LABELS_SHUFFLED", "musicnet")
def _shuffled_net() -> Planted:
    class Shuffled(SceneData):
        def load(self, entry: Any, epoch: int, device: torch.device) -> SceneBatch:
            batch = super().load(entry, epoch, device)
            order = torch.randperm(
                batch.n_scenes, generator=torch.Generator().manual_seed(epoch * 1000 + 7)
            )
            truth = type(batch.truth)(batch.truth.parameters[order], batch.truth.resolved[order])
            return SceneBatch(batch.observations, truth)

    plain = fresh_scenes()
    data = Shuffled(plain.scene, batches_per_epoch=BATCHES, batch_size=32, n_val=64, seed=0)
    return Planted(small_musicnet(), data=data)


@fault("RATE_TOO_HIGH", "classifier")
def _high_plain() -> Planted:
    return Planted(Plain(partial(SGD, lr=100 * 0.2, momentum=0.9)))


@fault("RATE_TOO_HIGH", "musicnet")
def _high_net() -> Planted:
    # of SGD: this small network bears a hundredfold rate of AdamW and learns all the same
    optimizer = partial(SGD, lr=100 * 1e-2, momentum=0.9)
    return Planted(small_musicnet(optimizer=optimizer, schedule=Schedule(shape="constant")))


@fault("RATE_TOO_LOW", "classifier")
def _low_plain() -> Planted:
    return Planted(Plain(partial(AdamW, lr=2e-3 / 1000)))


@fault("RATE_TOO_LOW", "musicnet")
def _low_net() -> Planted:
    return Planted(small_musicnet(rate=2e-3 / 1000))


@fault("INPUT_UNSCALED", "classifier")
def _unscaled_plain() -> Planted:
    def scale(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return 1e4 * images, labels

    return Planted(Plain(), train=digit_loader("train", scale), val=digit_loader("val", scale))


@fault("INPUT_UNSCALED", "musicnet")
def _unscaled_net() -> Planted:
    class Loud(MusicNet):
        def _image(self, batch: SceneBatch) -> Tensor:
            return 1e4 * super()._image(batch)

    return Planted(small_musicnet(Loud))


class _Dawdling:
    """Keeps whoever asks for a batch waiting, the longer the longer he has worked on the last one.

    A delay of so many milliseconds would be slower than a step on one machine and not on another.
    """

    times_the_work = 3.0
    shortest_s, longest_s = 0.03, 1.0

    def __init__(self) -> None:
        self._handed_over: float | None = None

    def wait(self) -> None:
        """Before a batch is made."""
        begun = time.perf_counter()
        worked = 0.0 if self._handed_over is None else begun - self._handed_over
        time.sleep(min(max(self.shortest_s, self.times_the_work * worked), self.longest_s))

    def hand_over(self) -> None:
        """When it is made."""
        self._handed_over = time.perf_counter()


class _Slow(Dataset[Any]):
    """Takes its time over the first item of every batch."""

    def __init__(self, data: Dataset[Any]) -> None:
        self.data = data
        self._dawdling = _Dawdling()
        self._n_given = 0

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        if self._n_given % BATCH == 0:
            self._dawdling.wait()
        self._n_given += 1
        item = self.data[index]
        self._dawdling.hand_over()
        return item


@fault("DATA_STARVED", "classifier")
def _starved_plain() -> Planted:
    loader = digit_loader("train", wrap=_Slow)
    return Planted(Plain(), train=loader)


@fault("DATA_STARVED", "musicnet")
def _starved_net() -> Planted:
    dawdling = _Dawdling()

    class Slow(SceneData):
        def load(self, entry: Any, epoch: int, device: torch.device) -> SceneBatch:
            dawdling.wait()
            batch = super().load(entry, epoch, device)
            dawdling.hand_over()
            return batch

    data = Slow(fresh_scenes().scene, batches_per_epoch=BATCHES, batch_size=32, n_val=64, seed=0)
    return Planted(small_musicnet(), data=data)


@fault("MANY_VETOES", "classifier")
def _vetoed_plain() -> Planted:
    class Poisoned(Gated):
        def compute_loss(self, batch: list[Tensor], batch_idx: int) -> Any:
            loss = super().compute_loss(batch, batch_idx)
            return loss * torch.nan if self.training and batch_idx % 8 == 3 else loss

    return Planted(Poisoned())


@fault("MANY_VETOES", "musicnet")
def _vetoed_net() -> Planted:
    class Poisoned(MusicNet):
        def compute_loss(self, batch: SceneBatch, batch_idx: int) -> dict[str, Tensor]:
            losses = super().compute_loss(batch, batch_idx)
            factor = torch.nan if self.training and batch_idx % 8 == 3 else 1.0
            return losses | {"loss": losses["loss"] * factor}

    return Planted(small_musicnet(Poisoned))


@fault("TRAIN_VAL_LEAK", "classifier")
def _leak_plain() -> Planted:
    return Planted(Plain(), val=digit_loader("both"))


@fault("TRAIN_VAL_LEAK", "musicnet")
def _leak_net() -> Planted:
    data = fresh_scenes(n_scenes=BATCHES * 32, batches_per_epoch=BATCHES)
    return Planted(small_musicnet(), data=data)
