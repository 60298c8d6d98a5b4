"""Batches and the order in which they come, for data that are made or read by the batch.

The loader carries keys only: small tuples that say what a batch holds. The batch itself is made on
the training device, where Lightning would otherwise move it. The order is a pure function of seed
and epoch, so that a resumed run sees what it would have seen.
"""

import math
from abc import abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from typing_extensions import override

from musicnet.gate.resumable_loader import ResumableBatches, ResumableLoader
from musicnet.scene.snapshots import Observation, block_generator
from musicnet.scene.sources import Sources

MAX_KEPT_BATCHES = 64

Split = Literal["train", "val", "test"]

EpochKey = tuple[int, int]
"""Epoch and number of the batch."""


@dataclass(frozen=True, eq=False)
class SceneBatch:
    """Scenes to train on; the same object where a batch comes again.

    Args:
        observations: each with operators of its own, batch (channel, scene).
        truth: the sources of all scenes, batch (scene,), observation after observation; None
            where they are not known.
        is_coherent: scenes whose sources send one waveform; None where that is not known.
    """

    observations: tuple[Observation, ...]
    truth: Sources | None
    is_coherent: Bool[Tensor, " scene"] | None = None

    @property
    def n_scenes(self) -> int:
        """Scenes of all observations."""
        return sum(one.noise_power.numel() for one in self.observations)


def with_truth(
    observations: Sequence[Observation], truth: Sources
) -> Iterator[tuple[Observation, Sources]]:
    """Each observation beside the sources of its own scenes.

    Args:
        observations: of a `SceneBatch`, batch (channel, scene).
        truth: of all scenes, batch (scene,).

    Yields:
        Both with batch (channel, scene).
    """
    first = 0
    for heard in observations:
        shape = heard.noise_power.shape
        scenes = slice(first, first + shape.numel())
        yield (
            heard,
            Sources(
                truth.parameters[scenes].reshape(*shape, -1, 3),
                truth.resolved[scenes].reshape(*shape, -1),
            ),
        )
        first += shape.numel()


class EpochOrder(Sampler[EpochKey]):
    """The order of an epoch's batches: a permutation that seed and epoch decide.

    Args:
        n_batches: of one pass.
        seed: of the run.
        shuffle: False goes through them in order.
        passes: over all batches, each in an order of its own.
        rank: of this process; it takes every ``world_size``-th batch.
        world_size: processes that share the batches. Where they do not come out even, the first
            ones are taken again, so that all ranks step equally often.

    Example:
        >>> order = EpochOrder(3, seed=0)
        >>> sorted(order), len(order)
        ([(0, 0), (0, 1), (0, 2)], 3)
    """

    def __init__(
        self,
        n_batches: int,
        seed: int,
        *,
        shuffle: bool = True,
        passes: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.n_batches = n_batches
        self.seed = seed
        self.shuffle = shuffle
        self.passes = passes
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning says which epoch begins, also after a resume."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.n_batches * self.passes / self.world_size)

    def __iter__(self) -> Iterator[EpochKey]:
        numbers = [n for turn in range(self.passes) for n in self._one_pass(turn)]
        own = range(self.rank, len(self) * self.world_size, self.world_size)
        return iter([(self.epoch, numbers[place % len(numbers)]) for place in own])

    def _one_pass(self, turn: int) -> list[int]:
        if not self.shuffle:
            return list(range(self.n_batches))
        generator = block_generator(self.seed, "order", self.epoch, turn)
        return torch.randperm(self.n_batches, generator=generator).tolist()


class _Keys(Dataset[tuple[int, Hashable]]):
    """Items are (epoch, what to load): all that has to pass through the loader."""

    def __init__(self, plan: Sequence[Hashable]) -> None:
        self.plan = plan

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, key: EpochKey | int) -> tuple[int, Hashable]:
        if not isinstance(key, tuple):
            raise TypeError(
                "batches are asked for by (epoch, number): got a plain index, so the order has "
                "been replaced by another sampler. Set trainer.use_distributed_sampler=false; "
                "ranks share the batches all the same."
            )
        epoch, number = key
        return epoch, self.plan[number]


class PlannedData(LightningDataModule):
    """Loaders for data that can say beforehand what its batches hold.

    A subclass gives a plan per split, and makes one batch of it. With ``trainer.overfit_batches``
    training repeats the same batches in the same order and validation looks at those.

    Args:
        passes_per_epoch: times that an epoch goes through the training plan.
        seed: of order and scenes; None takes that of the run.
        n_workers: processes that hand out keys ahead of time. Batches are made on the training
            device by the run itself, so that no number depends on it.

    Raises:
        ValueError: less than one pass, or than no worker.
    """

    def __init__(self, passes_per_epoch: int, seed: int | None, n_workers: int = 0) -> None:
        super().__init__()
        if passes_per_epoch < 1:
            raise ValueError(f"passes_per_epoch must be at least 1: got {passes_per_epoch}.")
        if n_workers < 0:
            raise ValueError(f"n_workers must be at least 0: got {n_workers}.")
        self.n_workers = n_workers
        self.passes_per_epoch = passes_per_epoch
        self.seed = torch.initial_seed() if seed is None else seed
        self._kept: dict[tuple[int, Hashable], SceneBatch] = {}

    @abstractmethod
    def plan(self, split: Split) -> Sequence[Hashable]:
        """What the batches of a split hold, one entry each."""

    @abstractmethod
    def load(self, entry: Any, epoch: int, device: torch.device) -> SceneBatch:
        """Makes the batch that an entry of a plan stands for."""

    @property
    @abstractmethod
    def is_fixed(self) -> bool:
        """Whether training sees the same scenes in every epoch, and validation looks at them."""

    @property
    def overfits(self) -> bool:
        """Whether the trainer was asked to repeat a few batches."""
        return self.trainer is not None and bool(self.trainer.overfit_batches)  # type: ignore[attr-defined]

    def train_dataloader(self) -> DataLoader[Any]:
        """The training plan, reordered each epoch."""
        if self.overfits:
            return self._loader("train", shuffle=False)
        return self._loader("train", shuffle=True, passes=self.passes_per_epoch)

    def val_dataloader(self) -> DataLoader[Any]:
        """The validation plan; that of training where those scenes are to be memorised."""
        return self._loader("train" if self.overfits or self.is_fixed else "val", shuffle=False)

    def test_dataloader(self) -> DataLoader[Any]:
        """The test plan, in order."""
        return self._loader("test", shuffle=False)

    def predict_dataloader(self) -> DataLoader[Any]:
        """The test plan, in order; here Lightning insists on a sampler of its own."""
        return DataLoader(
            dataset=[(0, entry) for entry in self.plan("test")],  # type: ignore[arg-type]
            batch_size=1,
            collate_fn=_only,
        )

    @override
    def transfer_batch_to_device(
        self, batch: tuple[int, Hashable], device: torch.device, dataloader_idx: int
    ) -> SceneBatch:
        """Makes the batch where it is needed; batches that come again are kept."""
        epoch, entry = batch
        training = self.trainer is not None and self.trainer.training
        fresh = training and not (self.is_fixed or self.overfits)
        key = (epoch if fresh else 0, entry)
        if key in self._kept:
            return self._kept[key]
        # what a validation made under inference_mode would be no use to training
        with torch.inference_mode(mode=False):
            made = self.load(entry, key[0], device)
        if not fresh and len(self._kept) < MAX_KEPT_BATCHES:
            self._kept[key] = made
        return made

    def _loader(self, split: Split, *, shuffle: bool, passes: int = 1) -> DataLoader[Any]:
        plan = self.plan(split)
        rank = 0 if self.trainer is None else self.trainer.global_rank
        world_size = 1 if self.trainer is None else self.trainer.world_size
        order = EpochOrder(
            len(plan),
            self.seed,
            shuffle=shuffle,
            passes=passes,
            rank=rank,
            world_size=world_size,
        )
        return ResumableLoader(
            dataset=_Keys(plan),
            # Lightning leaves it alone and finds the order in it
            batch_sampler=ResumableBatches(order, batch_size=1, drop_last=False),  # type: ignore[arg-type]
            collate_fn=_only,
            num_workers=self.n_workers,
            generator=torch.Generator(),  # or each epoch would take a number off the global one
        )


def _only(items: list[tuple[int, Hashable]]) -> tuple[int, Hashable]:
    (item,) = items
    return item
