"""What a trial that was broken off by its clock allows."""

import pytest

from musicnet.cli.preflight import Trial
from musicnet.diagnosis.findings import Finding
from musicnet.diagnosis.verdict import Bars, Evidence, judge

ERROR, WARNING = Finding("GRAPH_DETACHED", "no gradient"), Finding("CLIP_ALWAYS", "clipped")


def trial(
    last: float | None, *findings: Finding, first: float = 2.0, ran_out: bool = True
) -> Trial:
    seen = Evidence(loss_first=first, loss_last=last, steps=5, ended_early="its seconds were over")
    return Trial(
        judge(seen, Bars(min_loss_drop=0.5), seconds=1.0, run_id=None), findings, ran_out=ran_out
    )


def test_a_loss_that_was_falling_is_let_through() -> None:
    assert trial(1.7).verdict.verdict == "unknown"
    assert trial(1.7).exit_code == 0
    assert trial(1.7, WARNING).exit_code == 0


@pytest.mark.parametrize(
    "kept",
    [
        *(trial(1.9), trial(None), trial(1.7, ERROR), trial(1.7, ran_out=False)),
        *(trial(-0.95, first=-1.0), trial(-2.0, first=-1.0)),
    ],
    ids=["hardly fell", "not seen", "error", "it had its time", "rose below 0", "from below 0"],
)
def test_anything_else_is_kept_from_training(kept: Trial) -> None:
    assert kept.exit_code in (3, 4)
