import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from musicnet.records.append_log import AppendLog, read_rows


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with AppendLog(path, run_id="a") as log:
        log.append({"step": 1, "loss": 0.5, "reason": "ok"})
        log.append({"step": 2, "loss": -math.inf})
    assert read_rows(path, run_id="a") == [
        {"run_id": "a", "step": 1, "loss": 0.5, "reason": "ok"},
        {"run_id": "a", "step": 2, "loss": -math.inf},
    ]


def test_a_killed_writer_leaves_every_row_it_wrote(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    program = (
        "import os, signal, sys\n"
        "from musicnet.records.append_log import AppendLog\n"
        "log = AppendLog(sys.argv[1], run_id='a')\n"
        "for step in range(100): log.append({'step': step})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[3]
    killed = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        env=os.environ | {"PYTHONPATH": str(root)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert [row["step"] for row in read_rows(path, run_id="a")] == list(range(100))


def test_an_unfinished_last_line_is_passed_over_and_not_glued_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with AppendLog(path, run_id="a") as log:
        log.append({"step": 1})
    with path.open("ab") as file:
        file.write(b'{"run_id": "a", "st')
    assert [row["step"] for row in read_rows(path, run_id="a")] == [1]
    with AppendLog(path, run_id="a") as log:
        log.append({"step": 2})
    assert [row["step"] for row in read_rows(path, run_id="a")] == [1, 2]


def test_the_log_of_another_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with AppendLog(path, run_id="before") as log:
        log.append({"step": 1})
    content = path.read_bytes()
    with pytest.raises(ValueError, match=r"got run before in .*, line 1"):
        AppendLog(path, run_id="after")
    with pytest.raises(ValueError, match="got run before"):
        read_rows(path, run_id="after")
    assert path.read_bytes() == content


def test_a_damaged_line_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"run_id": "a"}\n{"run_id": \xff}\n{"run_id": "a"}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_rows(path, run_id="a")


def test_a_row_that_is_no_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"[1, 2]\n")
    with pytest.raises(ValueError, match="got run None"):
        read_rows(path, run_id="a")


def test_a_row_cannot_bring_its_own_run_id(tmp_path: Path) -> None:
    with (
        AppendLog(tmp_path / "log", run_id="a") as log,
        pytest.raises(ValueError, match=r"got a row with \['run_id'\]"),
    ):
        log.append({"run_id": "b"})


def test_each_row_is_one_write(tmp_path: Path) -> None:
    writes = []
    with AppendLog(tmp_path / "log", run_id="a") as log:
        file = log._file
        log._file = type("Counting", (), {"write": writes.append, "close": file.close})()
        log.append({"step": 1, "loss": 2.0})
    assert writes == [b'{"run_id": "a", "step": 1, "loss": 2.0}\n']
