"""Files that are whole, old or new, whatever happens while they are written.

A path and its content come in. The content goes to a temporary file in the same folder, to the
disk, and takes the name in one move; a killed writer or a full disk leaves the old file as it was.
"""

import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


@contextmanager
def open_atomically(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends well, and is gone when it does not.

    Args:
        path: where the file shall be; its folder is made if need be.

    Yields:
        The open temporary file: for `torch.save`, `numpy.savez` and their like.

    Raises:
        OSError: the folder cannot be written, or the disk is full; `path` is then as before.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        # "x" keeps the permissions that the user's umask gives; tempfile would make it private.
        with temporary.open("x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def sweep_leftovers(folder: str | Path) -> list[Path]:
    """Remove the temporary files that killed writers have left in a folder and below.

    Args:
        folder: nobody else may be writing there.

    Returns:
        What was removed.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> (folder / ".answer.0123abcd.tmp").touch()
        >>> (folder / "answer").touch()
        >>> [path.name for path in sweep_leftovers(folder)], (folder / "answer").exists()
        (['.answer.0123abcd.tmp'], True)
    """
    found = [path for path in Path(folder).rglob(".*.tmp") if _LEFTOVER.fullmatch(path.name)]
    for path in found:
        path.unlink(missing_ok=True)
    return found


def write_bytes(path: str | Path, content: bytes) -> None:
    """Replace `path` by these bytes in one move.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> write_bytes(folder / "answer", b"42")
        >>> [file.name for file in folder.iterdir()], (folder / "answer").read_bytes()
        (['answer'], b'42')
    """
    with open_atomically(path) as file:
        file.write(content)


def write_text(path: str | Path, content: str) -> None:
    """Replace `path` by this text, as UTF-8, in one move."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: str | Path, tree: Any) -> None:
    """Replace `path` by this tree as JSON in one move.

    Raises:
        ValueError: a number is not finite, which JSON cannot say.
        TypeError: something is not of a JSON type.
    """
    write_text(path, json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _sync_folder(folder: Path) -> None:
    """Bring the new name itself to the disk; only POSIX lets a folder be opened."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
