"""Where scenes come from: drawn on the training device, or read from an observation file."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from typing_extensions import override

from musicnet.learning.batches import PlannedData, SceneBatch, Split
from musicnet.learning.recorded_scene import check_recording, tell_left_out
from musicnet.recordings.observation_files import ObservationFile
from musicnet.recordings.shards import read_recording
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import Observation, block_generator, draw_known_blocks
from musicnet.scene.sources import Sources


class BlockRun(NamedTuple):
    """Consecutive blocks of one size, drawn for one batch.

    Args:
        split: whose scenes they are.
        numbers: of the blocks.
        n_scenes: of each block.
    """

    split: Split
    numbers: tuple[int, ...]
    n_scenes: int


class SceneData(PlannedData):
    """Simulated scenes, in blocks that share one channel and codebook.

    Without ``n_scenes`` every training batch is new and validation has scenes of its own; with it
    the same scenes come back every epoch, to be memorised, and validation looks at those.

    Args:
        scene: the physics.
        n_scenes: size of a fixed training set; None draws fresh scenes for ever.
        batch_size: scenes of a batch, whole blocks.
        passes_per_epoch: times that an epoch goes through its batches; of a fixed set only.
        seed: of order and scenes; None takes that of the run.
        batches_per_epoch: of fresh scenes.
        n_val: scenes of the validation set, and of the test set.
        scenes_per_channel: of a block; a new channel costs a new dictionary.
        n_snapshots_min: fewest snapshots of a batch; its number is log-uniform from there to that
            of the scene. None gives all batches as many as the scene has.
        n_workers: processes that hand out the keys of batches; no number depends on it.

    Raises:
        ValueError: a size out of range, or sizes that do not fit together.
    """

    def __init__(
        self,
        scene: Scene,
        n_scenes: int | None = None,
        batch_size: int = 64,
        passes_per_epoch: int = 1,
        seed: int | None = None,
        batches_per_epoch: int = 100,
        n_val: int = 512,
        scenes_per_channel: int = 32,
        n_snapshots_min: int | None = None,
        n_workers: int = 0,
    ) -> None:
        super().__init__(passes_per_epoch, seed, n_workers)
        sizes = {
            "n_scenes": 1 if n_scenes is None else n_scenes,
            "batches_per_epoch": batches_per_epoch,
            "n_val": n_val,
            "scenes_per_channel": scenes_per_channel,
        }
        _check_sizes(sizes)
        if batch_size < 1 or batch_size % scenes_per_channel:
            raise ValueError(
                "a batch is made of whole blocks, so batch_size must be a multiple of "
                f"scenes_per_channel={scenes_per_channel}: got {batch_size}."
            )
        if n_scenes is None and passes_per_epoch > 1:
            raise ValueError(
                "only a fixed training set can be gone through several times: got "
                f"passes_per_epoch={passes_per_epoch} without n_scenes. Raise batches_per_epoch."
            )
        if n_snapshots_min is not None and not 1 <= n_snapshots_min <= scene.n_snapshots:
            raise ValueError(
                f"n_snapshots_min must be from 1 to the scene's {scene.n_snapshots} snapshots: got "
                f"{n_snapshots_min}. Raise scene.n_snapshots, the most that are drawn."
            )
        self.scene = scene
        self.n_snapshots_min = n_snapshots_min
        self.n_scenes = n_scenes
        self.batch_size = batch_size
        self.batches_per_epoch = batches_per_epoch
        self.n_val = n_val
        self.scenes_per_channel = scenes_per_channel

    @property
    def is_fixed(self) -> bool:
        """Whether the same scenes come back every epoch."""
        return self.n_scenes is not None

    @override
    def plan(self, split: Split) -> Sequence[tuple[BlockRun, ...]]:
        """Blocks of about equal size; a batch holds a run of blocks for each size in it."""
        n_scenes = self.n_val
        if split == "train":
            n_scenes = self.n_scenes or self.batches_per_epoch * self.batch_size
        n_blocks = -(-n_scenes // self.scenes_per_channel)
        sizes = [n_scenes // n_blocks + (b < n_scenes % n_blocks) for b in range(n_blocks)]
        per_batch = self.batch_size // self.scenes_per_channel
        return [
            tuple(
                BlockRun(split, tuple(run), size)
                for size, run in groupby(range(n_blocks)[i : i + per_batch], sizes.__getitem__)
            )
            for i in range(0, n_blocks, per_batch)
        ]

    @override
    def load(self, entry: tuple[BlockRun, ...], epoch: int, device: torch.device) -> SceneBatch:
        """Draws the blocks."""
        scene = self._scene_of(entry[0], epoch)
        drawn = [
            draw_known_blocks(scene, run.numbers, run.n_scenes, device, self.seed, run.split, epoch)
            for run in entry
        ]
        truth = Sources(
            torch.cat([one.truth.parameters.flatten(0, 1) for one in drawn]),
            torch.cat([one.truth.resolved.flatten(0, 1) for one in drawn]),
        )
        is_coherent = None
        if scene.surface is None and scene.symbols == "data":
            is_coherent = torch.cat([one.is_coherent.flatten() for one in drawn])
        return SceneBatch(tuple(one.observation for one in drawn), truth, is_coherent)

    def _scene_of(self, first: BlockRun, epoch: int) -> Scene:
        """The scene with the number of snapshots of one batch."""
        fewest, most = self.n_snapshots_min, self.scene.n_snapshots
        if fewest is None:
            return self.scene
        key = (self.seed, f"{first.split}, snapshots", epoch, first.numbers[0])
        lot = torch.rand((), generator=block_generator(*key)).item()
        return replace(self.scene, n_snapshots=round(fewest * (most / fewest) ** lot))


class RecordedData(PlannedData):
    """Scenes of an observation file, or of all files of a folder with a manifest.

    Training, validation and test look at the same ones. Scenes that are bad are named once and left
    out; which ones belongs to the hash of the data, so that a resumed run leaves out the same.

    Args:
        scene: the physics that the file must fit.
        path: of the file, or of the folder, which may be larger than memory.
        n_scenes: how many to take, from the first on; None takes all.
        batch_size: most scenes of a batch. All batches are about equally full, with as few
            operators each as that allows.
        passes_per_epoch: times that an epoch goes through the scenes.
        seed: of the order; None takes that of the run.
        n_workers: processes that hand out the keys of batches; no number depends on it.
        max_bad_share: of all scenes that may be bad; more are refused, and 0 refuses any.

    Raises:
        ValueError: a size out of range; in `setup`, a file that does not fit.
        OSError: in `setup`, a file that cannot be read.
    """

    recording: ObservationFile

    def __init__(
        self,
        scene: Scene,
        path: str,
        n_scenes: int | None = None,
        batch_size: int = 32,
        passes_per_epoch: int = 1,
        seed: int | None = None,
        n_workers: int = 0,
        max_bad_share: float = 0.05,
    ) -> None:
        super().__init__(passes_per_epoch, seed, n_workers)
        _check_sizes({"n_scenes": 1 if n_scenes is None else n_scenes, "batch_size": batch_size})
        if not 0.0 <= max_bad_share < 1.0:
            raise ValueError(f"max_bad_share must be in [0, 1): got {max_bad_share}.")
        self.scene = scene
        self.path = path
        self.n_scenes = n_scenes
        self.batch_size = batch_size
        self.max_bad_share = max_bad_share

    @property
    def is_fixed(self) -> bool:
        """A file does not change."""
        return True

    @override
    def setup(self, stage: str) -> None:
        """Reads the file, once."""
        if not hasattr(self, "recording"):
            large = read_recording(Path(self.path), self.n_scenes, self.max_bad_share)
            tell_left_out(large.left_out, large.known.n_scenes)
            check_recording(large.known, self.scene, self.path, self.n_scenes)
            self.recording, self._received = large.known, large.received

    @override
    def plan(self, split: Split) -> Sequence[tuple[tuple[int, ...], ...]]:
        """The same batches for every split: scene numbers, grouped by operator.

        A small batch would steer a step as much as a full one, so that all are about equally full.
        """
        operators = self.recording.operator_index.tolist()
        scenes = sorted(range(len(operators)), key=operators.__getitem__)
        n_batches = -(-len(scenes) // self.batch_size)
        cuts = [len(scenes) * batch // n_batches for batch in range(n_batches + 1)]
        return [
            tuple(tuple(group) for _, group in groupby(scenes[start:end], operators.__getitem__))
            for start, end in pairwise(cuts)
        ]

    @override
    def load(
        self, entry: tuple[tuple[int, ...], ...], epoch: int, device: torch.device
    ) -> SceneBatch:
        """Picks the scenes."""
        heard = tuple(self._observation(list(group), device) for group in entry)
        truth = self.recording.truth
        if truth is None:
            return SceneBatch(heard, None)
        scenes = [scene for group in entry for scene in group]
        return SceneBatch(
            heard, Sources(truth.parameters[scenes], truth.resolved[scenes]).to(device)
        )

    def _observation(self, scenes: list[int], device: torch.device) -> Observation:
        """One operator's scenes, batch (1, scene)."""
        recording = self.recording
        operator = recording.operator[int(recording.operator_index[scenes[0]])]
        return Observation(
            y=self._received(scenes)[None],
            operator=operator[None],
            noise_power=recording.noise_power[scenes][None],
            positions=recording.positions,
            wavelength=recording.wavelength,
        ).to(device)


def _check_sizes(sizes: dict[str, int]) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1: got {size}.")
