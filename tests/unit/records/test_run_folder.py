import random
from datetime import datetime
from pathlib import Path

import pytest

from musicnet.records.run_folder import make_run_folder, new_run_id

NOON = datetime(2030, 1, 31, 12, 0)


def test_two_runs_of_one_second_have_two_folders(tmp_path: Path) -> None:
    folders = {make_run_folder(tmp_path, "ris", NOON, new_run_id()) for _ in range(20)}
    assert len(folders) == 20
    assert {folder.parent for folder in folders} == {tmp_path / "ris"}


def test_a_folder_that_is_there_is_never_taken(tmp_path: Path) -> None:
    make_run_folder(tmp_path, "ris", NOON, "c0ffee00")
    with pytest.raises(FileExistsError):
        make_run_folder(tmp_path, "ris", NOON, "c0ffee00")


@pytest.mark.parametrize("name", ["", "..", "../up", "a/b", ".hidden", "a b", "a\n"])
def test_names_cannot_leave_the_root(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="experiment names a folder"):
        make_run_folder(tmp_path, name, NOON, "c0ffee00")
    with pytest.raises(ValueError, match="run_id names a folder"):
        make_run_folder(tmp_path, "ris", NOON, name)
    assert not list(tmp_path.iterdir())


def test_seeding_does_not_repeat_run_ids() -> None:
    random.seed(0)
    first = new_run_id()
    random.seed(0)
    assert new_run_id() != first
