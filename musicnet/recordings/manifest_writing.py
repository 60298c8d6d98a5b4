"""Lists the recordings of a folder, so that they can be learned from.

A folder comes in; its ``manifest.json`` goes out, which its reader has taken before it is written.
"""

from dataclasses import asdict
from pathlib import Path

from musicnet.recordings.archives import RecordingError
from musicnet.recordings.manifests import FORMAT, NAME, Shard, listed_shards
from musicnet.recordings.shards import open_shards
from musicnet.records.atomic_files import write_json

_SUFFIXES = (".npz", ".h5", ".hdf5", ".mat")


def write_manifest(folder: Path) -> list[Shard]:
    """Looks at all recordings of a folder and lists them.

    Args:
        folder: with observation files, also in folders of its own. What a link leads to is listed
            once.

    Returns:
        What was listed.

    Raises:
        OSError: this is no folder, a file cannot be read, or the manifest not written.
        RecordingError: a file is no observation file or lies outside, there is none, no scene is
            good, or files do not fit together.
    """
    names = _recordings(folder)
    opened = open_shards([(place, None) for place in names], folder, max_bad_share=1.0)
    shards = [
        Shard(
            name.as_posix(),
            part.known.sha256,
            len(part.good) + len(part.faults),
            tuple(sorted(part.faults)),
        )
        for name, part in zip(names.values(), opened.parts, strict=True)
    ]
    tree = {
        "format": FORMAT,
        "shards": [
            asdict(shard) | {"bad_scenes": list(shard.bad_scenes or ())} for shard in shards
        ],
    }
    listed_shards(folder, tree)
    write_json(folder / NAME, tree)
    return shards


def _recordings(folder: Path) -> dict[Path, Path]:
    """Their names in the folder, by the places that these lead to."""
    if not folder.is_dir():
        raise NotADirectoryError(
            f"a {NAME} lists the recordings of a folder: got {folder}, which is no folder."
        )
    found: dict[Path, Path] = {}
    # a file goes before the links to it
    for path in sorted(folder.rglob("*"), key=lambda path: (path.is_symlink(), path)):
        if path.suffix.lower() not in _SUFFIXES:
            continue
        try:
            place = path.resolve()
        except (OSError, RuntimeError) as error:
            raise RecordingError(f"{path} is a link that leads nowhere.") from error
        if not place.is_relative_to(folder.resolve()):
            raise RecordingError(
                f"{path} is a link to {place}, outside the data folder. Put the file itself there."
            )
        name = path.relative_to(folder)
        try:
            name.as_posix().encode()
        except UnicodeEncodeError as error:  # other bytes are a name to file systems, not to JSON
            raise RecordingError(f"{folder}: {name.as_posix()!r} is no text. Rename it.") from error
        found.setdefault(place, name)
    if not found:
        raise RecordingError(f"{folder} holds no recordings ({', '.join(_SUFFIXES)}).")
    return dict(sorted(found.items(), key=lambda item: item[1]))
