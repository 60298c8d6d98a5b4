"""What ships, asked scene by scene: a batch may hold nothing but one kind of scene."""

import json
from pathlib import Path

import pytest

from musicnet.commands import localize as command

DATA = Path(__file__).parents[2] / "data"


@pytest.mark.parametrize("name", ["ula_near_16", "ula_far_24"])
def test_scenes_are_answered_alone_as_together(name, tmp_path, capsys):
    def scenes(*words):
        target = tmp_path / "positions.json"
        assert command.run([str(DATA / f"{name}.npz"), *words, "--output", str(target)]) == 0
        tree = json.loads(target.read_text(encoding="utf-8"))
        target.unlink()
        return [{**one, "cpu_ms": None} for one in tree["scenes"]]

    together = scenes()
    assert "weights: " in capsys.readouterr().err
    assert scenes("--batch-size", "1") == together
    assert scenes("--batch-size", "3") == together
