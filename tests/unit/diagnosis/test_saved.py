"""What a doctor saves comes back as it was; what is not a diagnosis is refused in one line."""

from pathlib import Path

import pytest

from musicnet.diagnosis.evidence import Deal, Length, Motion, Part, RunEvidence, Tally, Wiring
from musicnet.diagnosis.findings import Finding, Judgement
from musicnet.diagnosis.saved import FILE_NAME, Curve, Diagnosis, Veto, joined, read_diagnosis

SEEN = RunEvidence(
    length=Length(batches=3, steps=2),
    wiring=Wiring(parts=(Part("head", 2, 2, strays=("head.bias",)),), n_traced=3),
    deals=(Deal(2, "val", 1.0, 2.0, 0.1),),
)


def diagnosis(seen: RunEvidence = SEEN) -> Diagnosis:
    return Diagnosis(
        "c0ffee00",
        seen,
        (Finding("GROUP_FROZEN", "off.", "head", 0.9, 2),),
        Judgement("could not tell", "too few."),
        (Curve("training loss", (1.0, 2.0), (0.5, 0.25)),),
        (Veto(1.0, "zero"),),
    )


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    diagnosis().write(tmp_path)
    assert read_diagnosis(tmp_path) == diagnosis()


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    diagnosis(RunEvidence(motion=Motion(growth=float("inf")))).write(tmp_path)
    assert read_diagnosis(tmp_path).evidence.motion.growth is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be JSON"),
        (b"\xff\xfe", "must be JSON"),
        (b"[]", "another program"),
        (b'{"format": "musicnet.diagnosis/9"}', "another program"),
        (b'{"format": "musicnet.diagnosis/2", "run_id": 3}', "lacks the key"),
    ],
)
def test_what_is_no_diagnosis_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(ValueError, match=message) as refusal:
        read_diagnosis(tmp_path)
    assert "\n" not in str(refusal.value)
    assert FILE_NAME in str(refusal.value)


def test_a_new_series_stands_beside_the_old_ones() -> None:
    old, new = Curve("a", (1.0,), (2.0,)), Curve("b", (3.0,), (4.0,))
    assert joined([old], [new]) == (old, new)


def test_terms_are_kept_by_name() -> None:
    assert Tally("nonfinite", 3).count == 3
