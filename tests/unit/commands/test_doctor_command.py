"""`python -m musicnet doctor`: verdicts of whole runs, and none of stale, torn or mixed logs."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from musicnet import __main__ as door
from musicnet.diagnosis.evidence import Length, Losses, Motion, RunEvidence
from musicnet.diagnosis.findings import Finding, Judgement
from musicnet.diagnosis.saved import Diagnosis
from musicnet.records.append_log import AppendLog
from musicnet.records.provenance import collect_provenance, hash_config

CONFIG = {"optimizer": {"lr": 0.001}, "seed": 0}
RUN_ID = "c0ffee00"
LEARNED = RunEvidence(
    length=Length(batches=40, steps=40, epochs=4),
    losses=Losses(n=40, first=2.0, last=0.5, highest=2.0),
    motion=Motion(n_measured=5, ratio_median=0.01),
)


def rows(last_loss: float = 0.5) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for epoch in range(1, 5):
        for attempt in range(10 * epoch - 9, 10 * epoch + 1):
            found.append(
                {
                    "event": "step",
                    "batch": attempt,
                    "step": attempt,
                    "attempt": attempt,
                    "grad_norm": 0.5,
                    "ok": True,
                    "reason": "ok",
                    "clip_coef": 1.0,
                }
            )
        share = (epoch - 1) / 3
        loss = 2.0 + share * (last_loss - 2.0)
        found.append(
            {
                "event": "epoch",
                "batch": 10 * epoch,
                "step": 10 * epoch,
                "train/loss": loss,
                "val/loss": loss + 0.1,
            }
        )
    return found


@pytest.fixture
def run_folder(tmp_path: Path) -> Callable[..., Path]:
    def make(
        content: list[dict[str, Any]] | None = None,
        diagnosis: Diagnosis | None = None,
        name: str = "run",
        **changes: Any,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        here = Path(__file__).parent
        origin = collect_provenance(CONFIG, run_id=RUN_ID, code_folder=here)
        replace(origin, **changes).write(folder)
        (folder / "config.yaml").write_text(json.dumps(CONFIG), encoding="utf-8")
        with AppendLog(folder / "metrics.jsonl", run_id=RUN_ID) as log:
            for row in rows() if content is None else content:
                log.append(row)
        if diagnosis is not None:
            diagnosis.write(folder)
        return folder

    return make


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def doctor(*words: Any) -> tuple[int, str, str]:
        exit_code = door.run(["doctor", *map(str, words)])
        said = capsys.readouterr()
        return exit_code, said.out, said.err

    return doctor


def test_a_log_of_a_run_that_learned(run_folder, ask) -> None:
    exit_code, out, _ = ask(run_folder())
    assert exit_code == 0
    assert out.startswith(f"run {RUN_ID}: learns\n  the loss fell by 75 %")
    assert "no findings" in out


def test_what_the_doctor_left_is_told(run_folder, ask) -> None:
    finding = Finding("GRAPH_DETACHED", "no gradient reached it.", "backbone", 0.95, 8)
    left = Diagnosis(RUN_ID, LEARNED, (finding,), Judgement("learns", "an older verdict."))
    exit_code, out, _ = ask(run_folder(diagnosis=left))
    assert exit_code == 3
    assert "1. ERROR   GRAPH_DETACHED in backbone   (step 8, 95 % sure)" in out
    assert "   seen no gradient reached it." in out
    assert "   do   Look for detach()" in out


def test_the_log_alone_names_a_gate_that_is_too_strict(run_folder, ask) -> None:
    vetoes = [
        {
            "event": "veto",
            "batch": n,
            "step": 0,
            "attempt": n,
            "grad_norm": 0.4,
            "reason": "zero",
            "clip_coef": 1.0,
            "optim/grad_norm/backbone": 0.0,
            "optim/grad_norm/head": 0.4,
        }
        for n in range(1, 31)
    ]
    exit_code, out, _ = ask(run_folder(vetoes), "--json")
    tree = json.loads(out)
    assert exit_code == 3
    assert tree["findings"][0]["code"] == "GATE_TOO_STRICT"
    assert "30 of 30 steps vetoed" in tree["findings"][0]["evidence"]
    assert "zero in group backbone" in tree["findings"][0]["evidence"]


def test_json_goes_to_a_file_beside_the_table(run_folder, ask, tmp_path: Path) -> None:
    _, out, _ = ask(run_folder(), "--json", tmp_path / "answer.json")
    tree = json.loads((tmp_path / "answer.json").read_text(encoding="utf-8"))
    assert tree["outcome"] == "learns"
    assert out.startswith("run")


def test_a_killed_run_gets_its_page_on_request(run_folder, ask) -> None:
    folder = run_folder()
    assert ask(folder)[0] == 0
    assert not (folder / "report.html").exists()
    assert ask(folder, "--report")[0] == 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "This run learns." in page
    assert "Training loss: training loss from 2 to 0.5" in page


def test_a_torn_last_line_is_passed_over(run_folder, ask) -> None:
    folder = run_folder()
    with (folder / "metrics.jsonl").open("ab") as log:
        log.write(b'{"run_id": "c0ffee00", "event": "st')
    assert ask(folder)[0] == 0


def empty(folder: Path) -> str:
    (folder / "metrics.jsonl").write_bytes(b"")
    return "line 1: the log is empty"


def only_torn(folder: Path) -> str:
    (folder / "metrics.jsonl").write_bytes(b'{"run_id": "c0ff')
    return "line 1: only a torn line"


def missing(folder: Path) -> str:
    (folder / "metrics.jsonl").unlink()
    return "metrics.jsonl is missing"


def only_nan(folder: Path) -> str:
    path = folder / "metrics.jsonl"
    path.unlink()
    with AppendLog(path, run_id=RUN_ID) as log:
        for n in range(1, 4):
            log.append({"event": "epoch", "batch": n, "step": n, "train/loss": math.nan})
    return "line 3: not one of its 3 rows has a finite number"


def broken_line(folder: Path) -> str:
    _replace_line(folder, 4, b'{"run_id": "c0ffee00", "batch": 5,,}')
    return "line 5"


def binary(folder: Path) -> str:
    _replace_line(folder, 0, b"\x00\xff\x00")
    return "line 1"


def no_json_object(folder: Path) -> str:
    _replace_line(folder, 2, b"[1, 2]")
    return "got run None in"


def other_run(folder: Path) -> str:
    _replace_line(folder, 7, b'{"run_id": "deadbeef", "event": "step", "batch": 8}')
    return "got run deadbeef"


def decreasing(folder: Path) -> str:
    lines = (folder / "metrics.jsonl").read_bytes().split(b"\n")
    (folder / "metrics.jsonl").write_bytes(b"\n".join([*lines[20:-1], *lines[:20], b""]))
    return "batch 1 comes after 40: two runs are mixed"


def twice(folder: Path) -> str:
    lines = (folder / "metrics.jsonl").read_bytes().split(b"\n")
    (folder / "metrics.jsonl").write_bytes(b"\n".join([*lines[:5], *lines[4:]]))
    return "line 6: attempt 5 comes after 5"


def no_whole_number(folder: Path) -> str:
    _replace_line(folder, 1, b'{"run_id": "c0ffee00", "event": "step", "batch": "two"}')
    return "line 2: batch must be a whole number"


def no_provenance(folder: Path) -> str:
    (folder / "provenance.json").unlink()
    return "whose it is cannot be told"


def broken_provenance(folder: Path) -> str:
    (folder / "provenance.json").write_text("{", encoding="utf-8")
    return "must be JSON"


def foreign_provenance(folder: Path) -> str:
    (folder / "provenance.json").write_text('{"run": 3}', encoding="utf-8")
    return "written by another program or version"


def nothing_at_all(folder: Path) -> str:
    for file in folder.iterdir():
        file.unlink()
    return "no run left it"


def foreign_diagnosis(folder: Path) -> str:
    Diagnosis("deadbeef", LEARNED, (), Judgement("learns", "it fell.")).write(folder)
    return "two runs are mixed"


def broken_diagnosis(folder: Path) -> str:
    (folder / "diagnosis.json").write_text('{"format": "musicnet.diag', encoding="utf-8")
    return "must be JSON"


def folder_for_a_log(folder: Path) -> str:
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").mkdir()
    return "directory"


def edited_config(folder: Path) -> str:
    (folder / "config.yaml").write_text("optimizer: {lr: 0.1}\nseed: 0\n", encoding="utf-8")
    return "stale: config.yaml is no longer the one"


def no_config(folder: Path) -> str:
    (folder / "config.yaml").write_text("- 1\n", encoding="utf-8")
    return "must be a mapping"


DAMAGES = [
    empty,
    only_torn,
    missing,
    only_nan,
    broken_line,
    binary,
    no_json_object,
    other_run,
    decreasing,
    twice,
    no_whole_number,
    no_provenance,
    broken_provenance,
    foreign_provenance,
    nothing_at_all,
    foreign_diagnosis,
    broken_diagnosis,
    folder_for_a_log,
    edited_config,
    no_config,
]


def _replace_line(folder: Path, place: int, line: bytes) -> None:
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")
    lines[place] = line
    path.write_bytes(b"\n".join(lines))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_log_gets_a_reason_and_never_a_verdict(damage, run_folder, ask) -> None:
    folder = run_folder()
    reason = damage(folder)
    exit_code, out, err = ask(folder, "--json")
    tree = json.loads(out)
    assert (exit_code, tree["outcome"], err) == (4, "could not tell", "")
    assert reason in tree["because"]
    assert "\n" not in tree["because"]
    assert tree["findings"] == []


def test_a_log_of_older_code_is_stale_unless_it_is_taken_as_it_was(run_folder, ask) -> None:
    folder = run_folder(git_commit="0" * 40)
    exit_code, out, _ = ask(folder)
    assert exit_code == 4
    assert "stale: this log is from commit 0000000000" in " ".join(out.split())
    assert ask(folder, "--as-it-was")[0] == 0


def test_another_configuration_or_recording_than_asked_for_is_stale(
    run_folder, ask, tmp_path: Path
) -> None:
    config, data = tmp_path / "other.yaml", tmp_path / "other.npz"
    config.write_text("seed: 1\n", encoding="utf-8")
    data.write_bytes(b"snapshots")
    folder = run_folder()
    assert "had another configuration" in ask(folder, "--config", config)[1]
    assert ask(folder, "--config", folder / "config.yaml")[0] == 0
    exit_code, out, _ = ask(folder, "--data", data)
    assert (exit_code, "had other data, none" in out) == (4, True)


def test_two_runs_side_by_side(run_folder, ask) -> None:
    finding = Finding("CLIP_ALWAYS", "cut 40 times.", "clipping norm")
    left = Diagnosis(RUN_ID, LEARNED, (finding,), Judgement("learns", "it fell."))
    other = {"optimizer": {"lr": 0.1}, "seed": 0}
    first = run_folder(diagnosis=left, name="first")
    second = run_folder(rows(1.9), name="second", config_hash=hash_config(other))
    (second / "config.yaml").write_text(json.dumps(other), encoding="utf-8")
    exit_code, out, _ = ask("--compare", first, second)
    table = {line.split("  ")[0].strip(): line for line in out.splitlines()}
    assert exit_code == 0
    assert "2 to 0.5" in table["training loss"]
    assert "2 to 1.9" in table["training loss"]
    assert table["only here: CLIP_ALWAYS"].split()[-1] == "x"
    assert table["optimizer.lr"].split() == ["optimizer.lr", "0.001", "0.1"]


def test_a_run_that_cannot_be_read_cannot_be_compared(run_folder, ask) -> None:
    first, second = run_folder(name="first"), run_folder(name="second")
    empty(second)
    exit_code, out, _ = ask("--compare", first, second)
    assert exit_code == 4
    assert "could not tell" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "got both or neither"),
        (["no/such/run"], "no such run folder: no/such/run"),
        (["--compare", "a"], "expected 2 arguments"),
        (["a", "--compare", "b", "c"], "got both or neither"),
        (["a", "--verbose"], "unrecognized arguments: --verbose"),
        ([".", "--config", "no/such.yaml"], "no/such.yaml"),
    ],
)
def test_bad_words_are_refused_in_one_line(words, message, ask) -> None:
    exit_code, out, err = ask(*words)
    assert (exit_code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
