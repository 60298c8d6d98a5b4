"""Folders of recordings with a manifest: which files, with which content, none twice.

``manifest.json`` lists the shards of a folder with the sha256 of each: what has no checksum of its
own has one there.
"""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musicnet.recordings.archives import RecordingError, read_regular_file
from musicnet.recordings.lazy_arrays import sha256_of

NAME = "manifest.json"
FORMAT = "musicnet.manifest/1"

_LARGEST = 64 * 1024**2
_KEYS = {"file": str, "sha256": str, "n_scenes": int}
_BAD = "bad_scenes"


@dataclass(frozen=True)
class Shard:
    """One file of a folder.

    Args:
        file: its name in the folder, with ``/`` between parts.
        sha256: of its content, in hexadecimal.
        n_scenes: in it, good and bad.
        bad_scenes: numbers of those that training leaves out; None where nobody has looked.
    """

    file: str
    sha256: str
    n_scenes: int
    bad_scenes: tuple[int, ...] | None = None


def read_manifest(folder: Path) -> list[tuple[Path, Shard]]:
    """The shards that a manifest lists; each is there, inside the folder, and as it was.

    Args:
        folder: with a manifest.

    Returns:
        Path and entry of each.

    Raises:
        OSError: there is no manifest, or a shard cannot be read.
        RecordingError: the manifest is damaged, or a shard is not what it says.
    """
    path = folder / NAME
    try:
        tree = json.loads(read_regular_file(path, _LARGEST))
    except (ValueError, RecursionError) as error:
        if isinstance(error, RecordingError):
            raise
        raise RecordingError(f"{path} is no JSON ({' '.join(str(error).split()):.120}).") from error
    return listed_shards(folder, tree)


def listed_shards(folder: Path, tree: Any) -> list[tuple[Path, Shard]]:
    """The same of a manifest that has been read, or is about to be written.

    Args:
        folder: that it lists.
        tree: what it says.

    Returns:
        Path and entry of each shard.

    Raises:
        OSError: a shard cannot be read.
        RecordingError: this is no manifest, or a shard is not what it says.
    """
    path = folder / NAME
    listed = tree.get("shards") if isinstance(tree, dict) else None
    if not isinstance(tree, dict) or tree.get("format") != FORMAT or not isinstance(listed, list):
        raise RecordingError(f"{path} must be a {FORMAT} with a list of shards.")
    shards = [_shard(path, index, entry) for index, entry in enumerate(listed)]
    if not shards:
        raise RecordingError(f"{path}:shards lists nothing.")
    found: dict[Path, Shard] = {}
    for index, shard in enumerate(shards):
        place = _inside(folder, shard, f"{path}:shards[{index}]")
        if place in found:
            raise RecordingError(f"{path}:shards[{index}] lists {shard.file!r:.80} twice.")
        if (own := sha256_of(place)) != shard.sha256:
            raise RecordingError(
                f"{place} fails its checksum: sha256 {own[:16]}..., {NAME} says "
                f"{shard.sha256[:16]}...."
            )
        found[place] = shard
    return list(found.items())


def _shard(path: Path, index: int, entry: Any) -> Shard:
    is_whole = isinstance(entry, dict) and set(entry) - {_BAD} == set(_KEYS)
    if not is_whole or any(type(entry[key]) is not kind for key, kind in _KEYS.items()):
        raise RecordingError(
            f"{path}:shards[{index}] must hold {', '.join(_KEYS)}: got {entry!r:.80}."
        )
    bad = entry.get(_BAD)
    if bad is None:
        return Shard(**{**entry, _BAD: None})
    if not isinstance(bad, list) or any(type(scene) is not int for scene in bad):
        raise RecordingError(f"{path}:shards[{index}] {_BAD} must be numbers: got {bad!r:.80}.")
    return Shard(**{**entry, _BAD: tuple(sorted(set(bad)))})


def _inside(folder: Path, shard: Shard, name: str) -> Path:
    """The place of a shard; links are followed, but not out of the folder."""
    said = f"{name} {shard.file!r:.80}"
    try:
        place = (folder / shard.file).resolve()
        is_inside = "\\" not in shard.file and place.is_relative_to(folder.resolve())
        if is_inside:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                place.stat()
    except (OSError, ValueError, RuntimeError) as error:  # a link to itself, half a character
        raise RecordingError(f"{said} cannot be the name of a file.") from error
    if not is_inside:
        raise RecordingError(f"{said} is outside the data folder.")
    return place
