"""Checkpoints are whole, old or new, and what is damaged is named and never used."""

import contextlib
import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from musicnet.gate.checkpoint_files import (
    DamagedCheckpointError,
    WholeCheckpoints,
    last_whole,
    read_checkpoint_file,
    write_checkpoint,
)
from musicnet.records import atomic_files, manifest


def checkpoint(number: int) -> dict[str, Any]:
    return {"state_dict": {"weight": torch.full((64,), float(number))}, "number": number}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Holds the third of three saves, the second, and a best one from between."""
    for number in (1, 2, 3):
        write_checkpoint(checkpoint(number), tmp_path / "last.ckpt")
        if number == 2:
            write_checkpoint(checkpoint(9), tmp_path / "best.ckpt")
    return tmp_path


def numbers(folder: Path) -> dict[str, int]:
    return {path.name: read_checkpoint_file(path)["number"] for path in folder.glob("*.ckpt")}


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-40] ^= 4
    path.write_bytes(content)


def test_the_last_two_saves_are_kept(folder: Path) -> None:
    assert numbers(folder) == {"last.ckpt": 3, "previous.ckpt": 2, "best.ckpt": 9}
    assert {path.name for path in folder.iterdir()} == {*numbers(folder), "manifest.json"}
    assert last_whole(folder) == folder / "last.ckpt"


@pytest.mark.parametrize("number", range(12))
def test_a_writer_that_dies_anywhere_leaves_what_may_be_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """It dies before its n-th word with the system, and cleans nothing up."""
    said = 0

    class Died(BaseException):
        pass

    def mortal(call: Any) -> Any:
        def made(*arguments: Any, **options: Any) -> Any:
            nonlocal said
            said += 1
            if said > number:
                raise Died
            return call(*arguments, **options)

        return made

    for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "hardlink_to"), (Path, "unlink")):
        monkeypatch.setattr(owner, name, mortal(getattr(owner, name)))
    for save in (4, 5):  # and so does the one who comes after it
        said = 0
        with contextlib.suppress(Died):
            write_checkpoint(checkpoint(save), folder / "last.ckpt")
    monkeypatch.undo()
    found = numbers(folder)  # reads and verifies them all
    assert found["last.ckpt"] in (3, 4, 5)
    assert found["previous.ckpt"] in (2, 3, 4)
    write_checkpoint(checkpoint(6), folder / "last.ckpt")
    after = numbers(folder)
    assert (after["last.ckpt"], after["previous.ckpt"]) == (6, found["last.ckpt"])
    assert last_whole(folder) == folder / "last.ckpt"
    assert not list(folder.glob(".*.tmp"))  # swept


def test_a_full_disk_is_told_as_one_and_the_old_file_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def __init__(self, file: Any) -> None:
            self.file, self.left = file, 500

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: Any) -> None:
            self.file.close()

        def write(self, data: Any) -> int:
            self.left -= len(data)
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(data)

    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda *a, **o: Full(opened(*a, **o)))
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(checkpoint(4), folder / "last.ckpt")
    monkeypatch.undo()
    assert numbers(folder) == {"last.ckpt": 3, "previous.ckpt": 2, "best.ckpt": 9}
    assert not list(folder.glob(".*.tmp"))


def test_damaged_files_are_named_and_put_aside(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.utime(folder / "best.ckpt")
    damage(folder / "last.ckpt")
    (folder / "previous.ckpt").write_bytes((folder / "previous.ckpt").read_bytes()[:100])
    assert last_whole(folder) == folder / "best.ckpt"
    assert f"{folder / 'last.ckpt'} fails its checksum" in caplog.text
    assert f"{folder / 'previous.ckpt'} fails its checksum" in caplog.text
    assert f"going on from {folder / 'best.ckpt'}" in caplog.text
    damage(folder / "best.ckpt")
    assert last_whole(folder) is None
    assert {path.name for path in folder.glob("*.damaged")} == {
        *("last.ckpt.damaged", "previous.ckpt.damaged", "best.ckpt.damaged")
    }


@pytest.mark.parametrize(
    "content", [b"", b"weights, I swear", b"PK\x05\x06" + bytes(18)], ids=["empty", "text", "zip"]
)
def test_what_is_no_checkpoint_is_refused_without_a_manifest_too(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=r"a\.ckpt must be a whole checkpoint"):
        read_checkpoint_file(tmp_path / "a.ckpt")


def test_a_checkpoint_that_was_moved_elsewhere_is_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    moved = (folder / "last.ckpt").rename(tmp_path / "elsewhere" / "mine.ckpt")
    assert read_checkpoint_file(moved)["number"] == 3


def test_removing_forgets(folder: Path) -> None:
    for _ in range(2):
        WholeCheckpoints().remove_checkpoint(folder / "best.ckpt")
    assert set(manifest.read_manifest(folder)) == {"last.ckpt", "previous.ckpt"}


def test_a_manifest_that_is_damaged_keeps_nobody_from_going_on(folder: Path) -> None:
    (folder / manifest.FILE_NAME).write_text("{")
    assert last_whole(folder) == folder / "last.ckpt"
    write_checkpoint(checkpoint(4), folder / "last.ckpt")
    damage(folder / "last.ckpt")
    assert last_whole(folder) == folder / "previous.ckpt"
    assert atomic_files.sweep_leftovers(folder) == []
