"""The campaign of benchmarks/silent_faults.py: the doctor names what was planted, and only that."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from musicnet.diagnosis.codes import CODES
from musicnet.diagnosis.findings import alarms

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore")]

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
UNPLANTED = {"ZERO_INIT_HEAD", "WEIGHTS_NONFINITE"}  # one is no fault, one follows from others
PLANTED = [code for code in CODES if code not in UNPLANTED]
AT_ONCE = ["GATE_TOO_STRICT", "NONFINITE_HIDDEN", "EVAL_WEIGHTS_DIFFER", "LABELS_SHUFFLED"]
"""Those that are planted in a MusicNet in every run of the suite; the others in the slow one."""


@pytest.fixture(scope="module")
def campaign() -> Any:
    """The script, which is in no package."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import silent_faults

        yield silent_faults
    finally:
        sys.path.remove(str(BENCHMARKS))


def check(campaign: ModuleType, code: str, subject: str, folder: Path) -> None:
    row = campaign.plant_and_run(code, subject, folder)
    assert row["first"] == code, row
    assert row["verdict"] == "does not learn" or CODES[code].severity == "warning", row


def test_the_campaign_plants_every_fault_in_both_modules(campaign) -> None:
    assert set(campaign.FAULTS) == {
        (code, subject) for code in PLANTED for subject in ("classifier", "musicnet")
    }
    assert len(PLANTED) == 26


@pytest.mark.parametrize(
    "code",
    # a loader that is slower than a step takes its time on any machine
    [pytest.param(c, marks=[pytest.mark.slow] * (c == "DATA_STARVED")) for c in PLANTED],
)
def test_a_fault_in_a_classifier_is_the_first_finding(code, campaign, tmp_path: Path) -> None:
    check(campaign, code, "classifier", tmp_path)


@pytest.mark.parametrize("code", AT_ONCE)
def test_a_fault_in_a_musicnet_is_the_first_finding(code, campaign, tmp_path: Path) -> None:
    check(campaign, code, "musicnet", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("code", [code for code in PLANTED if code not in AT_ONCE])
def test_any_fault_in_a_musicnet_is_the_first_finding(code, campaign, tmp_path: Path) -> None:
    check(campaign, code, "musicnet", tmp_path)


@pytest.mark.parametrize(
    "name", ["sgd without momentum", "zero head", "float16 mixed", "one cycle"]
)
def test_a_healthy_run_is_left_in_peace(name, campaign, tmp_path: Path) -> None:
    doctor = campaign.run(dict(campaign.healthy_runs())[name](), tmp_path)
    assert not alarms(doctor.findings)
    assert doctor.judgement.outcome == "learns"


@pytest.mark.slow
def test_no_healthy_run_is_alarmed(campaign) -> None:
    rows = list(campaign.healthy_rows())
    assert len(rows) >= 40
    assert not [(row["run"], row["alarms"]) for row in rows if row["alarms"]]
