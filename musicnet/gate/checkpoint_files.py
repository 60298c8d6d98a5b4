"""Checkpoints on the disk: written whole or not at all, and verified before anything is used.

A checkpoint is written to a temporary file beside its target, brought to the disk and renamed; its
sha256 stands in the manifest beside it. What was `last.ckpt` before is kept as `previous.ckpt`.
"""

import hashlib
import io
import logging
import os
import shutil
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO, cast

import torch
from lightning.fabric.plugins import CheckpointIO
from typing_extensions import override

from musicnet.records import manifest
from musicnet.records.atomic_files import open_atomically, sweep_leftovers

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"

_NO_CHECKPOINT = (
    *(zipfile.BadZipFile, UnpicklingError),
    *(RuntimeError, EOFError, KeyError, ValueError, TypeError, AttributeError),
)

logger = logging.getLogger(__name__)


class DamagedCheckpointError(ValueError):
    """A checkpoint is not what was written there; the message names the file."""


class WholeCheckpoints(CheckpointIO):
    """Writes and reads the checkpoints of a Lightning trainer: ``Trainer(plugins=[...])``."""

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write it; whatever happens meanwhile, a whole file has the name, old or new."""
        if storage_options is not None:
            raise TypeError(
                f"checkpoints go to local files, without storage options: got {storage_options}."
            )
        write_checkpoint(checkpoint, Path(path))

    @override
    def load_checkpoint(
        self, path: Any, map_location: Any | None = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read it as plain data and tensors, whatever `weights_only` says."""
        return read_checkpoint_file(Path(path), map_location=map_location)

    @override
    def remove_checkpoint(self, path: Any) -> None:
        """Remove it, if it is there still."""
        Path(path).unlink(missing_ok=True)
        manifest.forget(Path(path).parent, Path(path).name)


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint and enter it in the manifest of its folder.

    Args:
        checkpoint: plain data and tensors.
        path: of the file. A `last.ckpt` that is there becomes `previous.ckpt`.

    Raises:
        OSError: the folder cannot be written, or the disk is full; the old file is as it was.
    """
    with open_atomically(path) as file:
        hashing = _Hashing(file)
        try:
            torch.save(checkpoint, cast(BinaryIO, hashing))
        except RuntimeError:
            if hashing.error is not None:
                raise hashing.error from None  # torch speaks of positions where a disk is full
            raise
        checksums = {path.name: [hashing.digest.hexdigest()]}
        keeps = path.name == LAST and path.exists()
        if keeps and (known := manifest.read_manifest(path.parent).get(LAST)):
            checksums[PREVIOUS] = known
        manifest.announce(path.parent, checksums)
        if keeps:
            _keep(path, path.with_name(PREVIOUS))


def read_checkpoint_file(path: Path, map_location: Any | None = "cpu") -> dict[str, Any]:
    """Read a checkpoint and verify it before any of it is used.

    Args:
        path: a local file. Beside a manifest that has it, its sha256 must be that; elsewhere the
            checksums of its own format must hold.
        map_location: as of `torch.load`.

    Returns:
        Plain data and tensors; nothing in the file can run code.

    Raises:
        OSError: it is not there or cannot be read.
        DamagedCheckpointError: it is not what was written.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}")
    content = path.read_bytes()
    if manifest.is_whole(path, content) is False:
        raise DamagedCheckpointError(
            f"{path} fails its checksum: {len(content)} bytes that are not those that were saved."
        )
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"bad checksum of {damaged}")
        checkpoint = torch.load(io.BytesIO(content), map_location=map_location, weights_only=True)
    except _NO_CHECKPOINT as error:
        raise DamagedCheckpointError(
            f"{path} must be a whole checkpoint of this program: got what is empty, truncated, "
            f"damaged or another format ({type(error).__name__})."
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise DamagedCheckpointError(f"{path} must hold a state_dict: got another program's file.")
    return checkpoint


def last_whole(folder: Path) -> Path | None:
    """The checkpoint to go on from: `last.ckpt`, else the newest one that is whole.

    Damaged files are named aloud, and put aside so that they cannot push out a whole one.

    Args:
        folder: of the checkpoints; leftovers of killed writers are removed from it.

    Returns:
        None where no file is whole.
    """
    for leftover in sweep_leftovers(folder) if folder.is_dir() else ():
        logger.info("removed %s, left by a writer that was killed", leftover.name)
    others = set(folder.glob("*.ckpt")) - {folder / LAST, folder / PREVIOUS}
    by_age = sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)
    refused = 0
    for path in (folder / LAST, folder / PREVIOUS, *by_age):
        if not path.exists():
            continue
        try:
            read_checkpoint_file(path)
        except (OSError, DamagedCheckpointError) as error:
            refused += 1
            logger.warning("%s It is left aside.", error)
            path.replace(path.with_name(f"{path.name}.damaged"))
            continue
        if refused:
            logger.warning("going on from %s, the last whole checkpoint", path)
        return path
    return None


class _Hashing:
    """A file to write on that remembers the sha256 of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self.digest = hashlib.sha256()
        self.error: OSError | None = None
        self._file = file

    def write(self, data: bytes | memoryview) -> int:
        self.digest.update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _keep(path: Path, copy: Path) -> None:
    """Give the old file a second name, for nothing on most file systems."""
    temporary = copy.with_name(f".{copy.name}.{os.urandom(4).hex()}.tmp")
    try:
        temporary.hardlink_to(path)
    except OSError:
        shutil.copyfile(path, temporary)
    temporary.replace(copy)
