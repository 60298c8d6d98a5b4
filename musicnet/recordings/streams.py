"""Recordings scene by scene: files larger than memory, and bad scenes that harm only themselves."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from musicnet.recordings.archives import RecordingError
from musicnet.recordings.checks import (
    FORMAT_KEYS,
    WEAKEST_POWER,
    check_keys,
    check_shapes,
    check_shared,
    faults,
    index_tests,
    operator_tests,
    scene_tests,
    truth_tests,
)
from musicnet.recordings.lazy_arrays import LazyArray, Store
from musicnet.recordings.observation_files import ObservationFile, assemble, labels_of
from musicnet.recordings.opening import open_recording
from musicnet.recordings.setup import Setup

_PER_SCENE = ("operator_index", "noise_power", "truth_xyz")
_CHUNK_BYTES = 16 * 1024**2

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chunk:
    """Some scenes in a row.

    Args:
        first: number of the first.
        n_scenes: in the row, good and bad.
        good: their numbers.
        recording: the good ones; None where there is none.
        faults: number of each bad one, and what is wrong with it.
    """

    first: int
    n_scenes: int
    good: tuple[int, ...]
    recording: ObservationFile | None
    faults: dict[int, str]


@dataclass(frozen=True)
class ObservationStream:
    """An open recording, checked but for its scenes.

    Args:
        path: of the file.
        kind: of the file, in a word.
        sha256: of the file, in hexadecimal.
        rate_hz: scenes per second, where they follow each other.
        y: of all scenes, not read yet.
        known: everything else.
    """

    path: Path
    kind: str
    sha256: str
    rate_hz: float | None
    y: LazyArray
    known: Mapping[str, np.ndarray]

    @property
    def n_scenes(self) -> int:
        """Scenes of the file, good and bad."""
        return self.y.shape[0]

    @cached_property
    def head(self) -> ObservationFile:
        """What all scenes share, with a scene of zeros: to choose methods and weights by."""
        known = {**self.known, "y": np.zeros((1, *self.y.shape[1:]), np.complex64)}
        known |= {key: self.known[key][:1] for key in _PER_SCENE if key in self.known}
        known["noise_power"] = np.ones(1, np.float32)
        return assemble(self.path, known, self.sha256)

    def whole_but_received(
        self, good: Sequence[int], noise_power: Float[Tensor, " scene"]
    ) -> ObservationFile:
        """Everything in memory but y, which has its shape and holds nothing.

        Args:
            good: numbers of the scenes to keep.
            noise_power: of each of them.

        Returns:
            The recording of those scenes.
        """
        labels, field = self.known.get("truth_xyz"), self.head.field
        kept = np.array(good, dtype=np.int64)
        return replace(
            self.head,
            y=torch.zeros((), dtype=torch.complex64).expand(len(kept), *self.y.shape[1:]),
            operator_index=torch.from_numpy(self.known["operator_index"][kept].astype(np.int64)),
            noise_power=noise_power,
            truth=None if labels is None else labels_of(labels[kept], field),
        )

    @cached_property
    def n_true(self) -> Int[Tensor, " scene"] | None:
        """How many sources the labels name in each scene; None without labels."""
        if "truth_xyz" not in self.known:
            return None
        return torch.from_numpy(~np.isnan(self.known["truth_xyz"]).any(-1)).sum(-1)

    @cached_property
    def _operator_faults(self) -> dict[int, str]:
        return faults(operator_tests(self.known))

    def chunks(self, start: int = 0, n_at_once: int | None = None) -> Iterator[Chunk]:
        """Reads the scenes.

        Args:
            start: number of the first.
            n_at_once: scenes of a chunk; None suits the memory.

        Yields:
            All scenes in their order; what a scene holds does not depend on its chunk.

        Raises:
            RecordingError: the file is damaged there, or no noise power can be estimated.
        """
        line = max(self.y.n_bytes // max(self.n_scenes, 1), 1)
        size = n_at_once or max(1, min(_CHUNK_BYTES // line, 4096))
        for first in range(start, self.n_scenes, size):
            yield self._chunk(first, min(first + size, self.n_scenes))

    def _chunk(self, first: int, last: int) -> Chunk:
        part = {key: self.known[key][first:last] for key in _PER_SCENE if key in self.known}
        part["y"] = self.y.read(first, last)
        tests = [*index_tests({**self.known, **part}), *scene_tests(part)]
        if "truth_xyz" in part:
            tests += truth_tests({**self.known, **part})
        bad = faults(tests, first)
        for scene, operator in enumerate(part["operator_index"].tolist(), start=first):
            if operator in self._operator_faults:
                bad.setdefault(scene, self._operator_faults[operator])
        good = [scene for scene in range(first, last) if scene not in bad]
        recording = None
        if good:
            kept = np.array(good) - first
            some = {**self.known, **{key: value[kept] for key, value in part.items()}}
            estimated = "noise_power" not in some
            recording = assemble(self.path, some, self.sha256, refuse_silence=False)
            if estimated:
                noisy = (recording.noise_power >= WEAKEST_POWER).numpy()
                for scene in np.array(good)[~noisy].tolist():
                    bad[scene] = f"y has no noise to estimate its power from at index {scene}"
                good = np.array(good)[noisy].tolist()
                recording = recording.scenes(torch.from_numpy(noisy)) if good else None
        return Chunk(first, last - first, tuple(good), recording, bad)


@contextmanager
def open_observations(path: str | Path, setup: Setup | None = None) -> Iterator[ObservationStream]:
    """Opens a recording of any kind, and checks all but its scenes.

    Args:
        path: a local file.
        setup: what the file does not say.

    Yields:
        The open recording.

    Raises:
        OSError: the file cannot be read.
        RecordingError: it is damaged, or says too little; one line that names file and key.
        ModuleNotFoundError: its kind needs a package that is not installed.
    """
    with open_recording(path, setup) as store:
        yield stream_of(store)


def stream_of(store: Store) -> ObservationStream:
    """Checks the keys, types, shapes and shared values of an open store.

    Args:
        store: in the keys of the observation format.

    Returns:
        The stream; usable while the store is open.

    Raises:
        RecordingError: what is wrong.
    """
    path = store.path
    check_keys(path, store.arrays)
    arrays = {key: value for key, value in store.arrays.items() if key in FORMAT_KEYS}
    stand_ins = {key: value.stand_in for key, value in arrays.items()}
    check_shapes(path, stand_ins)
    known = {key: value.whole() for key, value in arrays.items() if key != "y"}
    check_shared(path, known)
    y = arrays["y"]
    if y.dtype != np.complex64:
        _logger.info("%s is %s, read as complex64", y.name, y.dtype)
    return ObservationStream(path, store.kind, store.sha256, store.rate_hz, y, known)


def all_bad(
    path: Path, found: Mapping[int, str], n_scenes: int, count: str | None = None
) -> RecordingError:
    """What to say of a file that is refused for its scenes.

    Args:
        path: names the file.
        found: what is wrong with some of them.
        n_scenes: that were looked at.
        count: how many are bad, in words; None says that of those that were found.

    Returns:
        To be raised.
    """
    return RecordingError(f"{path}:{found[min(found)]} ({count or f'{len(found)} of {n_scenes}'}).")
