"""The examples run as they stand, and show what they say."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore")]

FILE = Path(__file__).parents[2] / "examples" / "mnist_like.py"


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location(FILE.stem, FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_doctor_takes_five_lines() -> None:
    marks = [line for line in FILE.read_text(encoding="utf-8").splitlines() if "  # " in line]
    numbered = [
        line.rpartition("  # ")[2][0] for line in marks if line.rpartition("  # ")[2][0] in "12345"
    ]
    assert numbered == list("12345")


def test_it_learns(example, tmp_path: Path, capsys) -> None:
    doctor = example.main(["--epochs", "4", "--folder", str(tmp_path)])
    assert doctor.findings == []
    assert doctor.judgement.outcome == "learns"
    assert "outcome='learns'" in capsys.readouterr().out
    assert (tmp_path / "report.html").exists()


def test_its_mistake_is_named(example, tmp_path: Path) -> None:
    doctor = example.main(["--fault", "--epochs", "1", "--folder", str(tmp_path)])
    assert doctor.judgement.because.startswith("GRAPH_DETACHED in backbone")
