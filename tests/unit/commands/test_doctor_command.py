"""`python -m musicnet doctor`: verdicts of whole runs, and none of stale, torn or mixed logs."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from musicnet import __main__ as door
from musicnet.commands import doctor as doctor_command
from musicnet.diagnosis.evidence import Length, Losses, Motion, Processes, RunEvidence
from musicnet.diagnosis.findings import Finding, Judgement
from musicnet.diagnosis.saved import Diagnosis
from musicnet.diagnosis.verdict import Bars, Evidence, Verdict, judge
from musicnet.records.append_log import AppendLog
from musicnet.records.log_mark import mark_of
from musicnet.records.provenance import Provenance, collect_provenance, hash_config

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


@pytest.fixture(scope="module")
def origin() -> Provenance:
    """Where runs of this code come from; git is asked once."""
    return collect_provenance(CONFIG, run_id=RUN_ID, code_folder=Path(__file__).parent)


@pytest.fixture(autouse=True)
def same_code(origin: Provenance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_command, "collect_provenance", lambda **_: origin)


@pytest.fixture
def run_folder(tmp_path: Path, origin: Provenance) -> Callable[..., Path]:
    def make(
        content: list[dict[str, Any]] | None = None,
        diagnosis: Diagnosis | None = None,
        name: str = "run",
        **changes: Any,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        replace(origin, **changes).write(folder)
        (folder / "config.yaml").write_text(json.dumps(CONFIG), encoding="utf-8")
        with AppendLog(folder / "metrics.jsonl", run_id=RUN_ID) as log:
            for row in rows() if content is None else content:
                log.append(row)
        if diagnosis is not None:
            replace(diagnosis, log=mark_of(folder / "metrics.jsonl")).write(folder)
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
    return "has an unknown key 'run'"


def provenance_of_other_types(folder: Path) -> str:
    path = folder / "provenance.json"
    tree = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(tree | {"git_commit": 5}), encoding="utf-8")
    return "git_commit must be str: got 5"


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
    provenance_of_other_types,
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


def cut(folder: Path) -> str:
    _keep(folder, 20)
    return "metrics.jsonl has 20 rows, and it had 44 when it was last read: rows are lost"


def edited(folder: Path) -> str:
    path = folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"train/loss": 1.0', b'"train/loss": 0.1'))
    return "is not the log that was last read: its first 44 rows were changed"


def shortened(folder: Path) -> str:
    path = folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"train/loss": 1.0', b'"train/loss": 1'))
    return "is not the log that was last read: its first 44 rows were changed"


def emptied(folder: Path) -> str:
    _keep(folder, 0)
    return "metrics.jsonl has 0 rows, and it had 44"


def deleted(folder: Path) -> str:
    (folder / "metrics.jsonl").unlink()
    return "metrics.jsonl is missing, and it had 44 rows"


def alone(folder: Path) -> str:
    for name in ("metrics.jsonl", "provenance.json"):
        (folder / name).unlink()
    return "lies there without the provenance.json of its run"


def of_no_log(folder: Path) -> str:
    Diagnosis(RUN_ID, LEARNED, (), Judgement("learns", "it fell.")).write(folder)
    return "was drawn without"


def older_format(folder: Path) -> str:
    path = folder / "diagnosis.json"
    path.write_text(path.read_text().replace("diagnosis/2", "diagnosis/1"), encoding="utf-8")
    return "another program or version"


def broken_verdict(folder: Path) -> str:
    (folder / "verdict.json").write_text('{"verdict": "pass"', encoding="utf-8")
    return "verdict.json must be JSON"


def verdict_of_other_types(folder: Path) -> str:
    path = a_verdict().write(folder)
    tree = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(tree | {"steps": "20"}), encoding="utf-8")
    return "steps must be int: got '20'"


def foreign_verdict(folder: Path) -> str:
    a_verdict(run_id="deadbeef").write(folder)
    return "verdict.json is of run deadbeef"


@pytest.mark.parametrize(
    "damage",
    [
        *DAMAGES,
        *(cut, edited, shortened, emptied, deleted, alone, of_no_log, older_format),
        *(broken_verdict, verdict_of_other_types, foreign_verdict),
    ],
)
def test_a_whole_diagnosis_is_no_verdict_beside_a_damaged_log(damage, run_folder, ask) -> None:
    left = Diagnosis(RUN_ID, LEARNED, (), Judgement("learns", "it fell."))
    folder = run_folder(diagnosis=left)
    assert ask(folder)[0] == 0
    reason = damage(folder)
    exit_code, out, err = ask(folder, "--json")
    tree = json.loads(out)
    assert (exit_code, tree["outcome"], err) == (4, "could not tell", "")
    assert reason in tree["because"] or damage in DAMAGES  # these have their reasons above
    assert "\n" not in tree["because"]
    assert tree["findings"] == []


def _keep(folder: Path, n_rows: int) -> None:
    path = folder / "metrics.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:n_rows]))


def a_verdict(recall: float = 0.2, steps: int = 40, run_id: str = RUN_ID) -> Verdict:
    seen = Evidence(recall=recall, steps=steps, delta_total=1.0)
    bars = Bars(min_loss_drop=None, min_recall=0.9)
    return judge(seen, bars, seconds=1.0, run_id=run_id)


def _left_early(steps: int) -> Diagnosis:
    """Of a doctor that last looked after so many steps."""
    seen = replace(LEARNED, length=Length(batches=steps, steps=steps), losses=Losses())
    return Diagnosis(RUN_ID, seen, (), Judgement("could not tell", "too few."))


def test_a_torn_last_line_beside_a_diagnosis_is_passed_over_too(run_folder, ask) -> None:
    folder = run_folder(diagnosis=Diagnosis(RUN_ID, LEARNED, (), Judgement("learns", "it fell.")))
    with (folder / "metrics.jsonl").open("ab") as log:
        log.write(b'{"run_id": "c0ffee00", "event": "st')
    assert ask(folder)[0] == 0


@pytest.mark.parametrize(
    ("last_loss", "outcome", "because"),
    [
        (0.5, "learns", "the loss fell by 75 %: train/loss 2 to 0.5, val/loss 2.1 to 0.6"),
        (1.99, "could not tell", "the loss did not fall clearly"),
        (math.nan, "could not tell", "the last losses are not finite"),
    ],
)
def test_a_log_that_goes_on_after_the_last_look_is_judged_to_its_end(
    last_loss, outcome, because, run_folder, ask
) -> None:
    content = rows(0.5 if math.isnan(last_loss) else last_loss)
    content[-1]["train/loss"] = last_loss
    folder = run_folder(content[:11], diagnosis=_left_early(10))
    with AppendLog(folder / "metrics.jsonl", run_id=RUN_ID) as log:
        for row in content[11:]:
            log.append(row)
    _, out, _ = ask(folder, "--json")
    tree = json.loads(out)
    assert tree["outcome"] == outcome
    assert because in tree["because"]
    assert any("last looked at step 10, and the log goes on to step 40" in n for n in tree["notes"])


def test_losses_that_the_doctor_has_not_followed_are_those_of_the_log(run_folder, ask) -> None:
    seen = RunEvidence(
        length=Length(steps=40),
        processes=Processes(n=2, is_sharded=True),
        unseen=("weights: they are sharded",),
    )
    left = Diagnosis(RUN_ID, seen, (), Judgement("could not tell", "sharded: not watched."))
    exit_code, out, _ = ask(run_folder(diagnosis=left))
    assert exit_code == 0
    assert "train/loss 2 to 0.5" in out
    assert "note: not seen: weights: they are sharded" in out
    exit_code, out, _ = ask(run_folder(rows()[:11], diagnosis=left, name="first epoch"))
    assert (exit_code, "  sharded: " in out) == (4, True)


def test_without_a_diagnosis_nobody_says_that_no_doctor_was_there(run_folder, ask) -> None:
    _, out, _ = ask(run_folder())
    assert "no doctor was there, or the run ended before its first step" in " ".join(out.split())


def test_a_run_that_missed_its_bars_does_not_learn(run_folder, ask) -> None:
    folder = run_folder()
    a_verdict().write(folder)
    exit_code, out, _ = ask(folder)
    assert exit_code == 3
    assert "its verdict is fail: recall is 0.2000, 0.9 was asked for." in out
    assert "note: verdict.json" not in out
    a_verdict(recall=0.95).write(folder)
    exit_code, out, _ = ask(folder)
    assert (exit_code, "note: verdict.json: pass" in out) == (0, True)


def test_a_verdict_from_before_the_run_went_on_does_not_count(run_folder, ask) -> None:
    folder = run_folder()
    a_verdict(steps=20).write(folder)
    exit_code, out, _ = ask(folder)
    assert exit_code == 0
    assert "verdict.json is of step 20, and the run went on" in out


def test_a_log_of_older_code_is_stale_unless_it_is_taken_as_it_was(run_folder, ask) -> None:
    folder = run_folder(git_commit="0" * 40)
    exit_code, out, _ = ask(folder)
    assert exit_code == 4
    assert "stale: this log is from commit 0000000000" in " ".join(out.split())
    assert "Add --as-it-was" in out
    assert ask(folder, "--as-it-was")[0] == 0
    edited_config(folder)  # which no word lets pass
    for words in ((), ("--as-it-was",)):
        exit_code, out, _ = ask(folder, *words)
        assert exit_code == 4
        assert "Add --as-it-was" not in out


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


@pytest.fixture
def pair(run_folder) -> Callable[..., tuple[Path, Path]]:
    """Two runs with these configurations, the second with rows of its own."""

    def make(
        config: dict[str, Any], content: list[dict[str, Any]] | None = None, **changes: Any
    ) -> tuple[Path, Path]:
        finding = Finding("CLIP_ALWAYS", "cut 40 times.", "clipping norm")
        left = Diagnosis(RUN_ID, LEARNED, (finding,), Judgement("learns", "it fell."))
        first = run_folder(diagnosis=left, name="first")
        changes = {"config_hash": hash_config(config), **changes}
        second = run_folder(content, name="second", **changes)
        (second / "config.yaml").write_text(json.dumps(config), encoding="utf-8")
        return first, second

    return make


def table_of(out: str) -> dict[str, str]:
    return {line.split("  ")[0].strip(): " ".join(line.split()) for line in out.splitlines()}


def test_two_runs_side_by_side(pair, ask) -> None:
    folders = pair({"optimizer": {"lr": 0.1}, "seed": 0}, rows(1.9))
    exit_code, out, _ = ask("--compare", *folders)
    table = table_of(out)
    assert exit_code == 0
    key = "train/loss by step 40"
    assert table[key] == f"{key} 2 to 0.5 2 to 1.9"
    assert table["only here: CLIP_ALWAYS"].split()[-1] == "x"
    assert table["optimizer.lr"].split() == ["optimizer.lr", "0.001", "0.1"]


def test_a_longer_run_is_compared_at_the_last_step_of_the_shorter(pair, ask) -> None:
    exit_code, out, _ = ask("--compare", *pair(CONFIG, rows(0.8)[:33]))
    key = "val/loss by step 30"
    assert exit_code == 0
    assert table_of(out)[key] == f"{key} 2.1 to 1.1 2.1 to 1.3"
    assert table_of(out)["steps"] == "steps 40 30"


def _other_name(content: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = {"train/loss": "train_loss", "val/loss": "valid_loss"}
    return [{names.get(key, key): value for key, value in row.items()} for row in content]


@pytest.mark.parametrize(
    ("config", "content", "changes", "reason"),
    [
        ({**CONFIG, "experiment": "ris"}, None, {}, "other tasks: experiment - against ris"),
        ({**CONFIG, "data": {"n_scenes": 9}}, None, {}, "other tasks: data.n_scenes - against 9"),
        (
            {**CONFIG, "model": {"phases": [{"weights": {"spectrum": 1.0}}]}},
            None,
            {},
            "other tasks: model.phases",
        ),
        (CONFIG, None, {"data_hash": "d" * 64}, "other recordings: none against dddddddddd"),
        (CONFIG, _other_name(rows()), {}, "no loss of the same name"),
    ],
)
def test_unlike_runs_are_named_and_their_losses_are_not_held_together(
    config, content, changes, reason, pair, ask
) -> None:
    exit_code, out, _ = ask("--compare", *pair(config, content, **changes))
    assert exit_code == 4
    assert out.startswith("could not tell: the two runs")
    assert reason in out
    assert "loss by step" not in out
    assert "first finding" in out


def test_a_batch_size_makes_no_other_task(pair, ask) -> None:
    assert ask("--compare", *pair({**CONFIG, "data": {"batch_size": 9}}))[0] == 0


def test_a_stale_run_is_not_compared_unless_it_is_taken_as_it_was(pair, ask) -> None:
    folders = pair(CONFIG, git_commit="0" * 40)
    exit_code, out, _ = ask("--compare", *folders)
    assert exit_code == 4
    assert "second: stale: this log is from commit 0000000000" in out
    assert "loss by step" not in out
    assert ask("--compare", *folders, "--as-it-was")[0] == 0
    (folders[0] / "config.yaml").write_text("seed: 3\n", encoding="utf-8")
    exit_code, out, _ = ask("--compare", *folders, "--as-it-was", "--json")
    assert (exit_code, json.loads(out)["outcome"]) == (4, "could not tell")
    assert "config.yaml is no longer the one" in out


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
