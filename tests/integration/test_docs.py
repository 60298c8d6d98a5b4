"""What the pages of docs/ show in Python runs, if it stands alone."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "step_gate.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
@pytest.mark.filterwarnings("ignore:.*Trainer already configured.*")
def test_an_example_of_the_gate_runs(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, str(PAGE), "exec"), {"__name__": "example"})
    said = capsys.readouterr().out
    if "vetoed" in block:
        assert re.search(r"^\d+ steps, \{.*\} vetoed$", said, re.M)


def test_there_are_examples_of_all_three_doors() -> None:
    text = "\n".join(BLOCKS)
    assert len(BLOCKS) >= 4
    assert all(door in text for door in ("GatedModule", "gate.attempt", "AutomaticGate"))
