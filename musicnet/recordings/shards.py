"""Recordings to learn from: one file, or all files of a folder with a manifest, as one.

Scenes are read when they are asked for: a folder may be larger than memory.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Complex
from torch import Tensor

from musicnet.recordings.archives import RecordingError
from musicnet.recordings.manifests import read_manifest
from musicnet.recordings.observation_files import ObservationFile, read_observations
from musicnet.recordings.streams import ObservationStream, all_bad, open_observations
from musicnet.scene.sources import Sources

_SHARED = ("wavelength", "field", "azimuth_deg", "elevation_deg", "range_m")


@dataclass(frozen=True)
class LargeRecording:
    """A recording whose numbers are read when they are asked for.

    Args:
        known: everything but what was received: its ``y`` has the right shape and holds nothing.
        received: gives y of some scenes, by number.
    """

    known: ObservationFile
    received: Callable[[Sequence[int]], Complex[Tensor, "scene block row"]]


def read_recording(path: Path, limit: int | None = None) -> LargeRecording:
    """Opens a file, or a folder with a manifest, every scene of which is good.

    Args:
        path: of either.
        limit: most scenes to keep, from the first on; None keeps all. All are checked.

    Returns:
        The recording.

    Raises:
        OSError: a file cannot be read.
        RecordingError: a file is damaged, a scene is bad, or files do not fit together.
    """
    if not path.is_dir():
        recording = read_observations(path, limit)
        return LargeRecording(recording, lambda scenes: recording.y[list(scenes)])
    parts: list[ObservationFile] = []
    streams: list[ObservationStream] = []
    for place, _ in read_manifest(path):
        # observation files are opened anew for each part that is read
        with open_observations(place) as stream:
            streams.append(stream)
            parts.append(_checked(stream, parts[0] if parts else None))
    known = _together(parts, path)
    ends = list(accumulate(stream.n_scenes for stream in streams))

    def received(scenes: Sequence[int]) -> Complex[Tensor, "scene block row"]:
        lines = []
        for scene in scenes:
            number = bisect_right(ends, scene)
            own = scene - (ends[number - 1] if number else 0)
            lines.append(streams[number].y.read(own, own + 1).astype(np.complex64))
        return torch.from_numpy(np.concatenate(lines))

    if limit is not None:
        known = known.scenes(torch.arange(known.n_scenes) < limit)
    return LargeRecording(known, received)


def _checked(stream: ObservationStream, first: ObservationFile | None) -> ObservationFile:
    """All of a shard but what it received, which is looked at and forgotten."""
    noise = []
    for chunk in stream.chunks():
        if chunk.faults or chunk.recording is None:
            raise all_bad(stream.path, chunk.faults, stream.n_scenes)
        noise.append(chunk.recording.noise_power)
    whole = stream.whole_but_received(torch.cat(noise))
    if first is not None:
        _check_alike(stream.path, whole, first)
    return whole


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
        y=parts[0].y[:1].expand(n_scenes, -1, -1),
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
