import errno
import os
from pathlib import Path

import numpy as np
import pytest

from musicnet.records import atomic_files
from musicnet.records.atomic_files import open_atomically, write_bytes, write_json, write_text


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "weights"
    write_bytes(target, b"old")

    def fail_half_way() -> None:
        with open_atomically(target) as file:
            file.write(b"half of the n")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(step: str, tmp_path: Path, monkeypatch) -> None:
    target = tmp_path / "log"
    write_bytes(target, b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    owner = atomic_files.os if step == "fsync" else Path
    monkeypatch.setattr(owner, step, full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(target, b"new")
    monkeypatch.undo()
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_the_content_is_on_the_disk_before_it_takes_the_name(tmp_path: Path, monkeypatch) -> None:
    order = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("sync"), fsync(fd))[1])
    monkeypatch.setattr(
        Path, "replace", lambda self, to: (order.append("move"), replace(self, to))[1]
    )
    write_text(tmp_path / "new", "ä")
    assert order == ["sync", "move", "sync"]
    assert (tmp_path / "new").read_text(encoding="utf-8") == "ä"


def test_readers_see_the_old_file_until_the_end(tmp_path: Path) -> None:
    target = tmp_path / "log"
    write_bytes(target, b"old")
    with open_atomically(target) as file:
        file.write(b"new")
        file.flush()
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"


def test_it_serves_numpy(tmp_path: Path) -> None:
    with open_atomically(tmp_path / "deep" / "scene.npz") as file:
        np.savez(file, y=np.arange(3))
    with np.load(tmp_path / "deep" / "scene.npz") as content:
        assert content["y"].tolist() == [0, 1, 2]


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_text(tmp_path / "atomic", "")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_json_refuses_what_it_cannot_say(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "tree", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())
