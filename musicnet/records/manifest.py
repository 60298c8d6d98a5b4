"""Checksums of the files in a folder, so that a damaged one is never taken for a whole one.

A file's name and sha256 come in; `manifest.json` beside the files goes out. A new checksum is
entered before the file takes its name and the old ones stay beside it: whenever the writer is
killed, the file that lies there has one of them.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from musicnet.records.atomic_files import write_json

FILE_NAME = "manifest.json"
_KEPT = 16
"""Checksums that a file may have: any of them is that of a file that was saved as a whole."""


def announce(folder: str | Path, checksums: Mapping[str, Sequence[str]]) -> None:
    """Enter the checksums that files of a folder are about to have.

    Args:
        folder: of the files.
        checksums: sha256 by file name; several where it is not known which one comes.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> announce(folder, {"a": [hashlib.sha256(b"old").hexdigest()]})
        >>> announce(folder, {"a": [hashlib.sha256(b"new").hexdigest()]})
        >>> [is_whole(folder / "a", content) for content in (b"old", b"new", b"odd")]
        [True, True, False]
        >>> is_whole(folder / "b", b"anything") is None
        True
    """
    known = read_manifest(folder)
    for name, coming in checksums.items():
        # writers may be killed one after another before the file has taken its name
        known[name] = list(dict.fromkeys([*coming, *known.get(name, [])]))[:_KEPT]
    write_json(Path(folder) / FILE_NAME, known)


def forget(folder: str | Path, name: str) -> None:
    """Take a file that is gone out of the manifest."""
    known = read_manifest(folder)
    if known.pop(name, None) is not None:
        write_json(Path(folder) / FILE_NAME, known)


def is_whole(path: str | Path, content: bytes) -> bool | None:
    """Whether the content of a file is what was written there.

    Returns:
        None where nobody has entered the file.
    """
    path = Path(path)
    expected = read_manifest(path.parent).get(path.name)
    return None if expected is None else hashlib.sha256(content).hexdigest() in expected


def read_manifest(folder: str | Path) -> dict[str, list[str]]:
    """Checksums by file name, the newest first; empty without a manifest that can be read."""
    try:
        tree = json.loads((Path(folder) / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # a manifest that is damaged vouches for nothing, and must not keep a run from going on
        return {}
    entries = tree.items() if isinstance(tree, dict) else ()
    return {name: list(sums) for name, sums in entries if isinstance(sums, list)}
