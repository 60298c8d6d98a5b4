"""Recordings to learn from: one file, or all files of a folder with a manifest, as one.

Scenes are taken from the files when they are asked for, from maps of them where their format allows
it: a folder may be larger than memory. Bad scenes are left out, if they are few.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Complex
from torch import Tensor

from musicnet.recordings.archives import MAX_BYTES, RecordingError
from musicnet.recordings.lazy_arrays import LazyArray
from musicnet.recordings.manifests import NAME, Shard, read_manifest
from musicnet.recordings.mapped_arrays import FileState
from musicnet.recordings.observation_files import ObservationFile
from musicnet.recordings.streams import ObservationStream, all_bad, open_observations
from musicnet.scene.sources import Sources

_SHARED = ("wavelength", "field", "azimuth_deg", "elevation_deg", "range_m")


@dataclass(frozen=True)
class LargeRecording:
    """A recording whose numbers are taken from its files when they are asked for.

    Args:
        known: everything but what was received, of the good scenes: its ``y`` has the right shape
            and holds nothing. Its hash covers which scenes were left out.
        received: gives y of some good scenes, by number.
        left_out: file, index and fault of every bad scene, a line each.
    """

    known: ObservationFile
    received: Callable[[Sequence[int]], Complex[Tensor, "scene block row"]]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """One file: what is known of its good scenes, and where the rest lies.

    Args:
        state: of the file when it was looked at.
        y: what was received, of all its scenes.
        known: everything else, of the good ones.
        good: their numbers in the file.
        faults: what is wrong with the others, by number.
    """

    state: FileState
    y: LazyArray
    known: ObservationFile
    good: tuple[int, ...]
    faults: dict[int, str]


@dataclass(frozen=True)
class Shards:
    """Files that fit together.

    Args:
        parts: each by itself.
        known: of all good scenes, but what was received.
    """

    parts: tuple[Part, ...]
    known: ObservationFile


def read_recording(
    path: Path, limit: int | None = None, max_bad_share: float = 0.0
) -> LargeRecording:
    """Opens a file, or a folder with a manifest, and looks at every scene once.

    Args:
        path: of either.
        limit: most good scenes to keep, from the first on; None keeps all. All are checked.
        max_bad_share: of the scenes of all files that may be bad; they are left out.

    Returns:
        The recording.

    Raises:
        OSError: a file cannot be read.
        RecordingError: a file is damaged, too many scenes are bad, or files do not fit together.
    """
    listed = read_manifest(path) if path.is_dir() else [(path, None)]
    opened = open_shards(listed, path, max_bad_share)
    parts, known = opened.parts, opened.known
    if not path.is_dir():
        known = replace(known, sha256=parts[0].known.sha256)
    left_out = [sorted(part.faults.items()) for part in parts]
    if any(left_out):
        numbers = json.dumps([[scene for scene, _ in one] for one in left_out])
        all_of_it = f"{known.sha256}{numbers}".encode()
        known = replace(known, sha256=hashlib.sha256(all_of_it).hexdigest())
    if limit is not None:
        known = known.first(limit)
    return LargeRecording(
        known,
        _reader(parts),
        tuple(
            f"{part.state.path}:{reason} (scene {scene})"
            for part, some in zip(parts, left_out, strict=True)
            for scene, reason in some
        ),
    )


def open_shards(
    listed: Sequence[tuple[Path, Shard | None]], path: Path, max_bad_share: float
) -> Shards:
    """Looks at every scene of some files once.

    Args:
        listed: the files, and what a manifest says of them, if there is one.
        path: of all of them, for messages.
        max_bad_share: of all scenes that may be bad.

    Returns:
        The files, which are closed again.

    Raises:
        OSError: a file cannot be read.
        RecordingError: as `read_recording`.
    """
    parts: list[Part] = []
    for place, entry in listed:
        state = FileState.of(place)
        # files are opened anew for what is read later: a process may not hold so many open
        with open_observations(place) as stream:
            part = _checked(stream, state.holding(stream.sha256))
            if entry is not None:
                _check_listed(stream, part, entry)
        if parts:
            _check_alike(place, part.known, parts[0].known)
        parts.append(part)
    _check_bad(parts, max_bad_share)
    _check_held(parts, path)
    return Shards(tuple(parts), _together([part.known for part in parts], path))


def _checked(stream: ObservationStream, state: FileState) -> Part:
    """All of a file but what it received, which is looked at and forgotten."""
    noise, good, faults = [], list[int](), dict[int, str]()
    for chunk in stream.chunks():
        faults |= chunk.faults
        good += chunk.good
        if chunk.recording is not None:
            noise.append(chunk.recording.noise_power)
    known = stream.whole_but_received(good, torch.cat(noise) if noise else torch.empty(0))
    return Part(state, stream.y, known, tuple(good), faults)


def _check_listed(stream: ObservationStream, part: Part, entry: Shard) -> None:
    """A shard is what the manifest says, also when it is opened again."""
    if stream.sha256 != entry.sha256:
        raise RecordingError(f"{stream.path} has changed since it was opened.")
    if stream.n_scenes != entry.n_scenes:
        raise RecordingError(
            f"{stream.path} holds {stream.n_scenes} scenes, {NAME} says {entry.n_scenes}."
        )
    bad = sorted(part.faults)
    if entry.bad_scenes is not None and list(entry.bad_scenes) != bad:
        raise RecordingError(
            f"{stream.path} has the bad scenes {bad!s:.80}, {NAME} says "
            f"{list(entry.bad_scenes)!s:.80}. Write the manifest anew."
        )


def _check_bad(parts: Sequence[Part], max_bad_share: float) -> None:
    n_bad = sum(len(part.faults) for part in parts)
    n_scenes = n_bad + sum(len(part.good) for part in parts)
    if n_bad > max_bad_share * n_scenes or n_bad == n_scenes:
        first = next(part for part in parts if part.faults)
        allowed = f"max_bad_share={max_bad_share:g} allows {int(max_bad_share * n_scenes)}"
        count = f"{n_bad} of {n_scenes}, {'none is good' if n_bad == n_scenes else allowed}"
        raise all_bad(first.state.path, first.faults, n_scenes, count)


def _check_held(parts: Sequence[Part], path: Path) -> None:
    """What is compressed as a whole can only be held as a whole."""
    held = sum(part.y.n_bytes for part in parts if part.y.is_held)
    if held > MAX_BYTES:
        raise RecordingError(
            f"{path} expands to {held} bytes, the limit is {MAX_BYTES}. Store y uncompressed, as "
            "python -m musicnet convert does."
        )


def _reader(parts: Sequence[Part]) -> Callable[[Sequence[int]], Tensor]:
    """Gives y of good scenes, which are counted through all files."""
    owners = np.repeat(np.arange(len(parts)), [len(part.good) for part in parts])
    numbers = np.concatenate([np.array(part.good, dtype=np.int64) for part in parts])
    places = [(part.state, part.y) for part in parts]
    shape = parts[0].y.shape[1:]

    def received(scenes: Sequence[int]) -> Complex[Tensor, "scene block row"]:
        y = np.empty((len(scenes), *shape), np.complex64)
        owner, own = owners[list(scenes)], numbers[list(scenes)]
        for part in np.unique(owner):
            is_mine, (state, array) = owner == part, places[part]
            state.check()  # what is read now must be what was looked at
            y[is_mine] = array.lines(own[is_mine].tolist())
        return torch.from_numpy(y)

    return received


def _check_alike(path: Path, head: ObservationFile, first: ObservationFile) -> None:
    """Shards of a folder were recorded with one array, in one sector."""
    for name in _SHARED:
        if getattr(head, name) != getattr(first, name):
            raise RecordingError(
                f"{path}:{name} is {getattr(head, name)}, the first shard of the folder has "
                f"{getattr(first, name)}."
            )
    shapes = {
        "y": (head.y.shape[1:], first.y.shape[1:]),
        "operator": (head.operator.shape[1:], first.operator.shape[1:]),
    }
    for name, (ours, theirs) in shapes.items():
        if ours != theirs:
            raise RecordingError(
                f"{path}:{name} has shape {tuple(ours)} for each, the first shard of the folder "
                f"has {tuple(theirs)}."
            )
    if not torch.equal(head.positions, first.positions):
        raise RecordingError(f"{path}:element_positions is not that of the folder's first shard.")


def _together(parts: Sequence[ObservationFile], folder: Path) -> ObservationFile:
    operators = [len(part.operator) for part in parts]
    starts = [0, *accumulate(operators)][:-1]
    truths = [part.truth for part in parts]
    if any(truth is None for truth in truths) and any(truth is not None for truth in truths):
        raise RecordingError(f"{folder} has labels in some of its shards, and none in others.")
    n_slots = max((truth.resolved.shape[1] for truth in truths if truth is not None), default=0)
    labels = [_padded(truth, n_slots) for truth in truths if truth is not None]
    n_scenes = sum(part.n_scenes for part in parts)
    return replace(
        parts[0],
        y=torch.zeros((), dtype=torch.complex64).expand(n_scenes, *parts[0].y.shape[1:]),
        operator=torch.cat([part.operator for part in parts]),
        operator_index=torch.cat(
            [part.operator_index + start for part, start in zip(parts, starts, strict=True)]
        ),
        noise_power=torch.cat([part.noise_power for part in parts]),
        truth=None
        if not labels
        else Sources(
            torch.cat([one.parameters for one in labels]),
            torch.cat([one.resolved for one in labels]),
        ),
        sha256=hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest(),
    )


def _padded(truth: Sources, n_slots: int) -> Sources:
    missing = n_slots - truth.resolved.shape[1]
    pad = torch.nn.functional.pad
    return Sources(
        pad(truth.parameters, (0, 0, 0, missing), value=torch.nan),
        pad(truth.resolved, (0, missing)),
    )
