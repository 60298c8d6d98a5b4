import hashlib
import json
import subprocess
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import pytest

from musicnet.records.provenance import (
    collect_provenance,
    hash_config,
    hash_file,
    read_provenance,
)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "model.py").write_text("rate = 1\n")
    who = ["-c", "user.name=T", "-c", "user.email=t@example.org"]
    for arguments in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)
    return folder


def test_it_comes_back_as_it_was_written(tmp_path: Path) -> None:
    origin = collect_provenance({"seed": 0}, data_hash="d", device="cuda:0")
    origin.write(tmp_path)
    assert read_provenance(tmp_path) == origin
    assert json.loads((tmp_path / "provenance.json").read_text()) == asdict(origin)


def test_code_that_no_commit_holds_is_dirty(repository: Path) -> None:
    clean = collect_provenance(code_folder=repository)
    (repository / "model.py").write_text("rate = 2\n")
    dirty = collect_provenance(code_folder=repository)
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert (clean.git_commit, clean.git_dirty) == (head, False)
    assert (dirty.git_commit, dirty.git_dirty) == (head, True)


def test_outside_a_repository_there_is_no_commit(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    origin = collect_provenance(code_folder=tmp_path)
    assert (origin.git_commit, origin.git_dirty) == (None, None)


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert collect_provenance().git_commit is None


def test_a_folder_is_given_to_one_run_only(tmp_path: Path) -> None:
    collect_provenance(run_id="before").write(tmp_path)
    with pytest.raises(FileExistsError, match="which run before has"):
        collect_provenance(run_id="after").write(tmp_path)
    assert read_provenance(tmp_path).run_id == "before"


def test_runs_have_different_ids_and_a_start_with_its_zone() -> None:
    first, second = collect_provenance(), collect_provenance()
    assert first.run_id != second.run_id
    assert datetime.fromisoformat(first.started).tzinfo is not None


def test_the_config_hash_sees_every_value_and_no_order() -> None:
    one = hash_config({"model": {"lr": 1e-3, "width": 8}, "seed": 0})
    assert one == hash_config({"seed": 0, "model": {"width": 8, "lr": 1e-3}})
    assert one != hash_config({"seed": 0, "model": {"width": 8, "lr": 1.1e-3}})


def test_a_config_of_live_objects_has_no_hash() -> None:
    with pytest.raises(TypeError):
        hash_config({"model": object()})


def test_the_data_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "data").write_bytes(content)
    assert hash_file(tmp_path / "data") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"run_id": "a"}', b"\xff\xfe"])
def test_what_is_no_provenance_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "provenance.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"provenance\.json (must .*: got|lacks the key)"):
        read_provenance(tmp_path)
