"""Runs that have not ended, the newest first."""

from dataclasses import replace
from pathlib import Path

from musicnet.records.provenance import collect_provenance
from musicnet.records.run_outcome import has_ended, unfinished_runs, write_outcome


def make_run(folder: Path, name: str, started: str) -> Path:
    origin = collect_provenance({}, run_id=name[-8:], device="cpu")
    (folder / name).mkdir()
    replace(origin, started=started).write(folder / name)
    return folder / name


def test_the_newest_comes_first_and_ended_ones_do_not(tmp_path: Path) -> None:
    noon, later = "2030-01-01T12:00:00+00:00", "2030-01-01T12:00:01+00:00"
    make_run(tmp_path, "a_00000001", noon)
    make_run(tmp_path, "b_00000002", later)
    ended = make_run(tmp_path, "c_00000003", later)
    write_outcome(ended, run_id="00000003", exit_code=0)
    (tmp_path / "no run").mkdir()
    found = [(run.name, origin.run_id) for run, origin in unfinished_runs(tmp_path)]
    assert found == [("b_00000002", "00000002"), ("a_00000001", "00000001")]


def test_a_half_written_outcome_is_none(tmp_path: Path) -> None:
    (tmp_path / "outcome.json").write_text('{"run_')
    assert not has_ended(tmp_path)
    assert list(unfinished_runs(tmp_path / "nowhere")) == []
