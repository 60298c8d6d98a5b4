import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from musicnet.diagnosis.verdict import Bars, Evidence, Verdict, judge, read_verdict

LEARNED = Evidence(
    loss_first=2.0,
    loss_last=0.02,
    val_first=2.0,
    val_last=0.02,
    train_first=1.5,
    train_last=0.03,
    recall=0.96,
    median_error_m=0.001,
    delta_total=4.0,
    steps=660,
    skipped=0,
)
BARS = Bars(min_loss_drop=0.97, min_recall=0.94, max_median_m=0.005)


def verdict_of(bars: Bars = BARS, **changes: object) -> Verdict:
    return judge(replace(LEARNED, **changes), bars, seconds=12.3456, run_id="c0ffee00")


def test_a_run_that_meets_every_bar_passes() -> None:
    verdict = verdict_of()
    assert (verdict.verdict, verdict.reasons, verdict.exit_code) == ("pass", (), 0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"loss_last": 0.2}, "the loss fell by 90.00 % of 2, a fall by 97.00 % was asked for"),
        ({"loss_last": 3.0}, "the loss rose by 50.00 % of 2"),
        ({"val_last": 2.5}, "the validation loss did not fall: 2 at first, 2.5 at last"),
        ({"train_last": 1.5}, "the training loss did not fall"),
        ({"recall": 0.93}, "recall is 0.9300, 0.94 was asked for"),
        ({"median_error_m": 0.006}, "median error is 0.006 m, 0.005 m was asked for"),
        ({"delta_total": 0.0}, "no parameter moved in 660 steps"),
        ({"still_groups": ("head",)}, "never moved: head"),
        ({"skipped": 100}, "100 of 760 attempts were vetoed"),
        ({"steps": 0, "skipped": 50}, "none of 50 attempts was a real step"),
        ({"recall": 0.0, "median_error_m": math.nan}, "recall is 0.0000"),
    ],
)
def test_a_missed_bar_fails_and_is_named(changes: dict, reason: str) -> None:
    verdict = verdict_of(**changes)
    assert (verdict.verdict, verdict.exit_code) == ("fail", 3)
    assert any(reason in text for text in verdict.reasons)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"loss_first": None}, "loss_first is None"),
        ({"loss_last": math.nan}, "loss_last is nan"),
        ({"val_first": math.inf}, "val_first is inf"),
        ({"val_last": None}, "val_last is None"),
        ({"loss_first": 0.0}, "loss_first is 0"),
        ({"loss_first": -3.0, "loss_last": -5.0}, "loss_first is -3"),
        ({"train_last": math.nan}, "train_last is nan"),
        ({"recall": None}, "recall is None"),
        ({"recall": math.nan}, "recall is nan"),
        ({"median_error_m": None}, "median_error_m is None"),
        ({"delta_total": None}, "delta_total is None"),
        ({"delta_total": math.nan}, "delta_total is nan"),
        ({"steps": 0, "skipped": 0}, "no optimiser step was tried"),
        ({"faults": ("training ended by KeyError: 'x'",)}, "ended by KeyError"),
        ({"recall": 0.5, "ended_early": "stopped"}, "stopped"),
    ],
)
def test_what_was_not_seen_is_never_judged(changes: dict, reason: str) -> None:
    verdict = verdict_of(**changes)
    assert (verdict.verdict, verdict.exit_code) == ("unknown", 4)
    assert any(reason in text for text in verdict.reasons)


def test_a_run_that_was_stopped_after_it_had_learned_passes() -> None:
    assert verdict_of(ended_early="stopped").verdict == "pass"


def test_bars_that_are_not_asked_for_need_no_evidence() -> None:
    nothing = Bars(min_loss_drop=None)
    blank = dict.fromkeys(("loss_first", "loss_last", "val_first", "val_last"))
    assert verdict_of(nothing, **blank, recall=None, median_error_m=None).verdict == "pass"


def test_skips_up_to_the_bar_are_borne() -> None:
    assert verdict_of(steps=90, skipped=10).verdict == "pass"
    assert verdict_of(steps=89, skipped=11).verdict == "fail"


def test_a_drop_of_exactly_the_bar_passes() -> None:
    assert verdict_of(Bars(min_loss_drop=0.5), loss_last=1.0).verdict == "pass"


@pytest.mark.parametrize(
    "bars",
    [
        {"min_loss_drop": 97.0},
        {"min_recall": -0.1},
        {"max_skipped_fraction": math.nan},
        {"max_median_m": 0.0},
        {"max_median_m": math.inf},
    ],
)
def test_bars_out_of_range_are_refused(bars: dict) -> None:
    (value,) = bars.values()
    with pytest.raises(ValueError, match=f"got {value}"):
        Bars(**bars)


def test_the_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    verdict = verdict_of(recall=0.5)
    verdict.write(tmp_path)
    assert read_verdict(tmp_path) == verdict


def test_the_file_is_json_even_of_numbers_that_are_not_finite(tmp_path: Path) -> None:
    verdict_of(loss_last=math.nan).write(tmp_path)
    tree = json.loads((tmp_path / "verdict.json").read_text(encoding="utf-8"))
    assert tree["loss_last"] is None
    assert "loss_last is nan" in tree["reasons"]


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"verdict": "pass"}'])
def test_what_is_no_verdict_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "verdict.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"verdict\.json (must .*: got|lacks the key)"):
        read_verdict(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("verdict", []), ("reasons", None), ("reasons", "abc"), ("reasons", [1, 2])),
        *(("steps", "20"), ("steps", None), ("loss_first", "2"), ("run_id", 5)),
    ],
)
def test_values_of_another_type_are_refused(key: str, value: object, tmp_path: Path) -> None:
    path = verdict_of().write(tmp_path)
    tree = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(tree | {key: value}), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"verdict\.json\.{key}.* must .*: got"):
        read_verdict(tmp_path)


@pytest.mark.parametrize("tree", [{"verdict": "fail"}, {"reasons": ["recall is 0"]}])
def test_a_pass_alone_has_no_reasons(tree: dict[str, object], tmp_path: Path) -> None:
    path = verdict_of().write(tmp_path)
    whole = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(whole | tree), encoding="utf-8")
    with pytest.raises(ValueError, match="must give reasons unless it is a pass"):
        read_verdict(tmp_path)


def test_a_verdict_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    path = verdict_of().write(tmp_path)
    path.write_text(path.read_text(encoding="utf-8").replace('"pass"', '"maybe"'), encoding="utf-8")
    with pytest.raises(ValueError, match="maybe"):
        read_verdict(tmp_path)
