"""What the gate and the callbacks cost: CPU time of a training step, side by side.

Five trainers run the same small transformer in one process and take turns step by step, in a new
random order every round, so that whatever else the machine does falls on all of them alike:

* `auto`: Lightning's automatic optimisation, not clipped: the plain step;
* `auto_clip`: the same with `gradient_clip_val=1.0`: what the others are compared with;
* `gate`: a `GatedModule` with `StepGate(max_norm=1.0)`;
* `callbacks`: the same with all callbacks of this project at their own cadence, the doctor apart;
* `doctor`: the gate with `RunDoctor` alone, which is compared with `gate`.

All of them log one loss and step one scheduler. Run `python benchmarks/gate.py --json out.json`.
"""

import argparse
import json
import logging
import random
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
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
from musicnet.gate.gated_module import GatedModule
from musicnet.gate.parameter_groups import backbone_and_head, named_groups
from musicnet.gate.schedules import Schedule
from musicnet.gate.step_gate import StepGate

SEQUENCES, LENGTH, VOCABULARY, WIDTH, LAYERS = 8, 32, 64, 104, 8
BLOCK = 50
"""Rounds whose sum is one sample: the cadence of the callbacks, so that each holds one of them."""


def transformer() -> tuple[nn.Module, nn.Module]:
    """Build about a million parameters in 99 tensors, as backbone and head."""
    torch.manual_seed(0)
    layers = [
        nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True)
        for _ in range(LAYERS)
    ]
    backbone = nn.Sequential(nn.Embedding(VOCABULARY, WIDTH), *layers)
    return backbone, nn.Linear(WIDTH, VOCABULARY)


def next_token_loss(module: Any, tokens: Tensor) -> Tensor:
    """Give the cross-entropy of every next token."""
    logits = module.head(module.backbone(tokens[:, :-1]))
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


class Automatic(LightningModule):
    """What a module under automatic optimisation looks like."""

    def __init__(self, n_steps: int) -> None:
        super().__init__()
        self.backbone, self.head = transformer()
        self.n_steps = n_steps

    def training_step(self, batch: Tensor) -> Tensor:
        """Give the loss to Lightning."""
        loss = next_token_loss(self, batch)
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=1)
        return loss

    def configure_optimizers(self) -> Any:
        """Build the same groups and rates as the gated module."""
        optimizer = AdamW(named_groups(self, backbone_and_head(), 3e-4))
        scheduler = LambdaLR(optimizer, partial(Schedule().factor, total=self.n_steps))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class Gated(GatedModule):
    """The same under the gate."""

    def __init__(self) -> None:
        super().__init__(optimizer=partial(AdamW, lr=3e-4), gate=StepGate(max_norm=1.0))
        self.backbone, self.head = transformer()

    def compute_loss(self, batch: Tensor, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Give the loss to the gate."""
        return next_token_loss(self, batch)


class Turns(IterableDataset[Tensor]):
    """Batches that are handed out when it is this trainer's turn, and the time between them."""

    def __init__(self, n_steps: int) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (n_steps, SEQUENCES, LENGTH + 1)
        self.batches = torch.randint(VOCABULARY, shape, generator=generator)
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.seconds: list[float] = []

    def __iter__(self) -> Iterator[Tensor]:
        start = 0.0
        for batch in self.batches:
            self.seconds.append(time.thread_time() - start)
            self.done.release()
            self.go.acquire()
            start = time.thread_time()
            yield batch
        self.done.release()


def fit(module: LightningModule, turns: Turns, **settings: Any) -> None:
    """Train in a thread of its own, one step per turn."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=-1,
            max_steps=len(turns.batches),
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **settings,
        )
        trainer.fit(module, DataLoader(turns, batch_size=None))


def measure(n_rounds: int, names: Sequence[str] | None = None) -> dict[str, list[float]]:
    """Run all variants in turns.

    Args:
        n_rounds: Steps per variant that are timed.
        names: Of the variants that run; None runs all.

    Returns:
        CPU seconds of every step of every variant.
    """
    n_steps = n_rounds + 3  # the first steps allocate, the last may be fetched ahead
    observers: list[Callback] = [
        GradientNorm(),
        ParameterDelta(),
        LearningRates(),
        OverfitSanity(),
        RunLog(),
    ]
    variants: dict[str, tuple[LightningModule, dict[str, Any]]] = {
        "auto": (Automatic(n_steps), {}),
        "auto_clip": (Automatic(n_steps), {"gradient_clip_val": 1.0}),
        "gate": (Gated(), {}),
        "callbacks": (Gated(), {"callbacks": observers}),
        "doctor": (Gated(), {"callbacks": [RunDoctor()]}),
    }
    variants = {name: variants[name] for name in names or variants}
    turns = {name: Turns(n_steps) for name in variants}
    threads = []
    for name, (module, settings) in variants.items():
        thread = threading.Thread(target=fit, args=(module, turns[name]), kwargs=settings)
        thread.start()
        threads.append(thread)
        turns[name].done.acquire()
    order = list(variants)
    shuffler = random.Random(0)
    for _ in range(n_steps):
        shuffler.shuffle(order)
        for name in order:
            turns[name].go.release()
            turns[name].done.acquire()
    for thread in threads:
        thread.join()
    return {name: turn.seconds[2 : 2 + n_rounds] for name, turn in turns.items()}


def compare(seconds: dict[str, list[float]], name: str, to: str) -> tuple[float, float, float]:
    """Give the median and the quartiles of the ratio over blocks of rounds."""
    n_blocks = len(seconds[to]) // BLOCK
    blocks = [slice(i * BLOCK, (i + 1) * BLOCK) for i in range(n_blocks)]
    ratios = [sum(seconds[name][block]) / sum(seconds[to][block]) for block in blocks]
    low, median, high = statistics.quantiles(ratios, n=4)
    return median, low, high


def main() -> None:
    """Print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    parser.add_argument("--blocks", type=int, default=12, help="blocks of 50 rounds, at least 2")
    parser.add_argument("--doctor", action="store_true", help="only the doctor beside the gate")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")

    names = ("gate", "doctor") if arguments.doctor else None
    seconds = measure(arguments.blocks * BLOCK, names)
    tensors = [p for part in transformer() for p in part.parameters()]
    report: dict[str, float | int | list[float]] = {
        "parameters": sum(tensor.numel() for tensor in tensors),
        "tensors": len(tensors),
        "tokens": SEQUENCES * LENGTH,
        "steps": len(seconds["gate"]),
        **{f"{name}_step_ms": 1e3 * statistics.median(times) for name, times in seconds.items()},
    }
    pairs = {"auto": "auto_clip", "gate": "auto_clip", "callbacks": "auto_clip", "doctor": "gate"}
    for name, other in pairs.items():
        if name not in seconds or other not in seconds:
            continue
        median, low, high = compare(seconds, name, to=other)
        report[f"{name}_vs_{other}"] = median
        report[f"{name}_vs_{other}_quartiles"] = [low, high]
        print(f"{name:>9} / {other:<9}  {median:.3f}  [{low:.3f}, {high:.3f}]")
    total = sum(seconds["doctor"]) / sum(seconds["gate"])
    report["doctor_vs_gate_in_all"] = total
    print(f"   doctor / gate, all steps together  {total:.4f}")
    print(f"gated step {report['gate_step_ms']:.1f} ms, {report['parameters']} parameters")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
