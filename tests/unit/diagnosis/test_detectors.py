"""Every detector against records made by hand: beyond its line, and just before it."""

from dataclasses import replace
from pathlib import Path

import pytest

from musicnet.diagnosis.codes import CODES
from musicnet.diagnosis.codes_page import page
from musicnet.diagnosis.detectors import DETECTORS
from musicnet.diagnosis.evidence import (
    Deal,
    Gating,
    Inputs,
    Length,
    Losses,
    Motion,
    Pace,
    Part,
    Processes,
    Rates,
    RunEvidence,
    Tally,
    Validation,
    Wiring,
)
from musicnet.diagnosis.findings import Finding, alarms, in_order
from musicnet.diagnosis.judging import diagnose, judge_run

HEALTHY = RunEvidence(
    length=Length(batches=200, steps=200, attempts=200, epochs=4, planned_steps=1000),
    gating=Gating(clip_ratio=1.5, clip_samples=200, max_norm=1.0),
    wiring=Wiring(
        parts=(
            Part("backbone", 4, 4, 4, was_called=True, first_gradient=0.4, first_norm=5.0),
            Part("head", 2, 2, 2, was_called=True, first_gradient=0.3, first_norm=1.0),
        ),
        n_traced=12,
    ),
    motion=Motion(
        n_measured=10, moved_share=0.99, ratio_largest=0.02, ratio_median=0.01, growth=1.5
    ),
    rates=Rates(asked=1e-3, asked_as="hparams.lr", used=(1e-3, 4e-3)),
    losses=Losses(n=200, first=2.3, last=0.4, highest=2.4, val_first=2.3, val_last=0.5),
    inputs=Inputs(layer="backbone.0", rms=1.0, n_items=64),
    deals=(
        Deal(100, "val", loss=0.5, dealt=3.0, spread=0.1, output_spread=0.8, n_items=64),
        Deal(200, "val", loss=0.4, dealt=3.5, spread=0.1, output_spread=0.8, n_items=64),
    ),
    validation=Validation(n=4, equal=1, figure="val/loss = 0.5", n_items=500, n_shared=0),
    pace=Pace(n=200, wait_ms=1.0, step_ms=20.0, kept_graphs=0, watched_graphs=64),
)


def change(section: str, **values: object) -> RunEvidence:
    return replace(HEALTHY, **{section: replace(getattr(HEALTHY, section), **values)})


def with_parts(**values: object) -> RunEvidence:
    first, second = HEALTHY.wiring.parts
    return change("wiring", parts=(replace(first, **values), second))


STALLED = change("losses", last=2.29, val_last=2.29)
CHANCE = tuple(replace(deal, loss=2.3, dealt=2.31, spread=0.01) for deal in HEALTHY.deals)
EQUAL = tuple(
    replace(deal, loss=2.3, dealt=2.3, spread=0.0, output_spread=1e-9) for deal in HEALTHY.deals
)
ZERO_HEAD = (
    replace(HEALTHY.wiring.parts[0], first_gradient=0.0),
    replace(HEALTHY.wiring.parts[1], first_norm=0.0),
)

BEYOND: dict[str, RunEvidence] = {
    "RANKS_DIVERGED": replace(HEALTHY, processes=Processes(2, 1, spread=1e-7)),
    "SCALER_STUCK": change("gating", scale=0.5, scale_first=65536.0, back_offs=17),
    "GATE_TOO_STRICT": change("gating", refused_finite=101, refused_norm=0.4),
    "NOT_IN_OPTIMIZER": with_parts(strays=("backbone.0.weight",)),
    "GROUP_FROZEN": with_parts(n_trainable=0, n_reached=0),
    "GRAPH_DETACHED": with_parts(n_reached=0),
    "NONFINITE_HIDDEN": change("gating", hidden=1),
    "INPUT_UNSCALED": change("inputs", rms=1001.0),
    "RATE_NOT_AS_ASKED": change("rates", asked=1e-2),
    "SCHEDULE_PER_EPOCH": change("rates", per_epoch_horizon=1000, per_epoch_moves=4),
    "WARMUP_TOO_LONG": change("rates", rises_to_end=True, last_factor=0.2),
    "STEPPED_NOT_MOVED": change("motion", n_still=2, moved_share=0.0),
    "RATE_TOO_HIGH": replace(STALLED, motion=replace(HEALTHY.motion, ratio_median=0.051)),
    "CLIP_ALWAYS": change("gating", clip_ratio=10.1, clip_first=10.1),
    "RATE_TOO_LOW": replace(STALLED, motion=replace(HEALTHY.motion, ratio_largest=2.9e-5)),
    "INPUT_IGNORED": replace(HEALTHY, deals=EQUAL),
    "LABELS_SHUFFLED": replace(HEALTHY, deals=CHANCE),
    "MOVED_WITHOUT_STEP": change("motion", foreign=1, foreign_step=7),
    "EVAL_WEIGHTS_DIFFER": change("validation", on_other=2, stuck=2, other="average"),
    "BUFFER_NONFINITE": change("validation", nonfinite_buffers=("norm.running_var",)),
    "WEIGHTS_NONFINITE": change("motion", nonfinite=("head",)),
    "VALIDATION_CONSTANT": change("validation", equal=3),
    "LOSS_TERM_ZERO": change("losses", zero_terms=(Tally("train/penalty", 20),)),
    "MANY_VETOES": change("gating", vetoes=(Tally("nonfinite", 11),)),
    "TRAIN_VAL_LEAK": change("validation", n_shared=26),
    "DATA_STARVED": change("pace", wait_ms=21.0),
    "MEMORY_GROWS": change("pace", kept_graphs=33),
    "ZERO_INIT_HEAD": change("wiring", parts=ZERO_HEAD),
}
"""Code -> a healthy record with one thing changed, right behind the line."""

BEFORE: dict[str, RunEvidence] = {
    "RANKS_DIVERGED": replace(HEALTHY, processes=Processes(2, 1, spread=0.0)),
    "SCALER_STUCK": change("gating", scale=1.0, scale_first=65536.0, back_offs=16),
    "GATE_TOO_STRICT": change("gating", refused_finite=100, refused_norm=0.4),
    "GROUP_FROZEN": with_parts(n_trainable=1, n_reached=1),
    "GRAPH_DETACHED": with_parts(n_reached=1),
    "INPUT_UNSCALED": change("inputs", rms=5000.0, is_normalised=True),
    "RATE_NOT_AS_ASKED": change("rates", asked=4e-3),
    "STEPPED_NOT_MOVED": change("motion", n_still=1, moved_share=0.0),
    "RATE_TOO_HIGH": change("motion", ratio_median=0.2),
    # cut now, and not at first: the gradients have grown
    "CLIP_ALWAYS": change("gating", clip_ratio=40.0, clip_first=9.9),
    "RATE_TOO_LOW": replace(STALLED, motion=replace(HEALTHY.motion, ratio_largest=3.1e-5)),
    "INPUT_IGNORED": replace(HEALTHY, deals=tuple(replace(d, step=9) for d in EQUAL)),
    "LABELS_SHUFFLED": replace(HEALTHY, deals=tuple(replace(d, spread=0.002) for d in CHANCE)),
    "EVAL_WEIGHTS_DIFFER": change("validation", on_other=2, stuck=0, other="average"),
    "VALIDATION_CONSTANT": change("validation", equal=2),
    "LOSS_TERM_ZERO": change("losses", zero_terms=(Tally("train/penalty", 19),)),
    "MANY_VETOES": change("gating", vetoes=(Tally("nonfinite", 10), Tally("overflow", 20))),
    "TRAIN_VAL_LEAK": change("validation", n_shared=500, shares_by_intent=True),
    "DATA_STARVED": change("pace", wait_ms=9.0, step_ms=2.0),
    "MEMORY_GROWS": change("pace", kept_graphs=32),
}


def codes(seen: RunEvidence) -> list[str]:
    return [finding.code for finding in diagnose(seen)]


def test_a_healthy_record_has_no_finding() -> None:
    assert codes(HEALTHY) == []
    assert judge_run(HEALTHY, []).outcome == "learns"


def test_nothing_seen_is_nothing_found() -> None:
    assert codes(RunEvidence()) == []
    assert judge_run(RunEvidence(), []).outcome == "could not tell"


def test_every_code_has_a_detector_in_the_order_of_the_table() -> None:
    assert list(DETECTORS) == list(CODES)
    assert set(BEYOND) == set(CODES)


@pytest.mark.parametrize("code", BEYOND)
def test_behind_its_line_a_code_is_the_only_finding(code: str) -> None:
    found = diagnose(BEYOND[code])
    assert [finding.code for finding in found] == [code]
    assert found[0].evidence.endswith(".")
    assert found[0].cure


@pytest.mark.parametrize("code", BEFORE)
def test_before_its_line_there_is_no_alarm(code: str) -> None:
    assert codes(BEFORE[code]) == []


def test_evidence_has_its_numbers() -> None:
    (clipped,) = diagnose(change("gating", clip_ratio=41.2, max_norm=1.0))
    assert clipped.evidence == (
        "median gradient norm 41.2, clipping norm 1: the steps are cut 41 times."
    )


def test_causes_stand_before_what_they_bring_about() -> None:
    both = replace(BEYOND["RATE_TOO_HIGH"], deals=EQUAL)
    assert codes(both) == ["RATE_TOO_HIGH", "INPUT_IGNORED"]
    order = in_order([Finding(code, "seen.") for code in reversed(CODES)])
    assert [finding.code for finding in order] == list(CODES)


@pytest.mark.parametrize("code", [code for code in CODES if CODES[code].severity == "error"])
def test_an_error_is_the_reason_even_of_a_falling_loss(code: str) -> None:
    judgement = judge_run(BEYOND[code], diagnose(BEYOND[code]))
    assert judgement.outcome == "does not learn"
    assert judgement.because.startswith(code)
    assert judgement.exit_code == 3


def test_a_warning_is_the_reason_only_of_a_loss_that_stands_still() -> None:
    starved = change("pace", wait_ms=50.0)
    assert judge_run(starved, diagnose(starved)).outcome == "learns"
    stalled = replace(starved, losses=STALLED.losses)
    assert judge_run(stalled, diagnose(stalled)).because.startswith("DATA_STARVED")


def test_what_is_harmless_alarms_nobody() -> None:
    assert alarms(diagnose(BEYOND["ZERO_INIT_HEAD"])) == []


def test_a_loss_that_stands_still_for_no_known_reason_is_said_so() -> None:
    judgement = judge_run(STALLED, diagnose(STALLED))
    assert judgement.outcome == "could not tell"
    assert "no known cause" in judgement.because


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("NO_SUCH", ""), "got 'NO_SUCH'"), (("DATA_STARVED", "", "", 1.5), "got 1.5")],
)
def test_a_finding_is_checked(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Finding(*arguments)


def test_the_page_of_codes_is_up_to_date() -> None:
    docs = Path(__file__).parents[3] / "docs" / "diagnosis.md"
    assert docs.read_text(encoding="utf-8") == page().rstrip("\n") + "\n"
