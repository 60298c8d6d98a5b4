import json
from pathlib import Path

import pytest

from musicnet.cli import resumption
from musicnet.cli.resumption import Wanted, take_up
from musicnet.records.provenance import collect_provenance
from musicnet.records.run_lock import RunLock

CONFIG = {"seed": 0}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three runs that were broken off: one began anew, two with a checkpoint, the last one now."""
    for name, start in (("1_anew", None), ("2_first", "first.ckpt"), ("3_other", "other.ckpt")):
        folder = tmp_path / "ula" / name
        folder.mkdir(parents=True)
        start = None if start is None else tmp_path / start
        collect_provenance(CONFIG, ckpt_path=start).write(folder)
    return tmp_path


def test_a_folder_that_cannot_be_read_is_let_go(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def last_whole(folder: Path) -> None:
        raise OSError(f"{folder} is gone")

    monkeypatch.setattr(resumption, "last_whole", last_whole)
    with pytest.raises(OSError, match="is gone"):
        take_up("auto", runs, Wanted("ula", CONFIG))
    RunLock(runs / "ula" / "1_anew").release()


@pytest.mark.parametrize(
    ("start", "taken"),
    [(None, "1_anew"), ("first.ckpt", "2_first"), ("other.ckpt", "3_other"), ("new.ckpt", None)],
)
def test_auto_takes_a_run_that_began_as_this_one_would(
    runs: Path, start: str | None, taken: str | None
) -> None:
    wanted = Wanted("ula", CONFIG, None if start is None else runs / start)
    found = take_up("auto", runs, wanted)
    assert (None if found is None else found.folder.name) == taken
    if found is not None:
        assert (found.start, found.checkpoint) == (wanted.start, None)
        found.lock.release()


def test_a_folder_that_is_named_knows_what_it_began_with(runs: Path) -> None:
    folder = runs / "ula" / "2_first"
    found = take_up(str(folder), runs, Wanted("ula", CONFIG))
    assert found is not None
    assert found.start == runs / "first.ckpt"
    found.lock.release()


def test_provenance_of_before_has_none_of_it_and_is_read(runs: Path) -> None:
    path = runs / "ula" / "1_anew" / "provenance.json"
    tree = json.loads(path.read_text())
    del tree["ckpt_path"], tree["threads"]
    path.write_text(json.dumps(tree))
    found = take_up("auto", runs, Wanted("ula", CONFIG))
    assert found is not None
    assert (found.start, found.origin.threads) == (None, None)
    found.lock.release()
