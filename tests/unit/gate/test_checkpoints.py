"""What a checkpoint keeps of the harness, and what it refuses to mix."""

from pathlib import Path
from typing import Any

import pytest
import torch

from musicnet.gate.checkpoints import KEY, RunShape, compare_shapes, load_harness, save_harness
from musicnet.gate.parameter_groups import ParameterGroup
from musicnet.gate.step_gate import StepGate

SHAPE = RunShape({"backbone": "a", "head": "b"}, total_steps=10, accumulate=1, world_size=1)


def test_the_entry_is_plain_data(regressor: Any, loader: Any, trainer: Any, tmp_path: Path) -> None:
    run = trainer()
    run.fit(regressor(), loader(3, poisoned=(1,)))
    run.save_checkpoint(tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)[KEY]
    assert state["gate"]["steps"] == 2
    assert state["gate"]["by_reason"] == {"nonfinite": 1}
    assert state["shape"]["total_steps"] == 3
    assert sorted(state["shape"]["groups"]) == ["backbone", "head"]


def test_a_checkpoint_inside_a_window_tells_what_is_lost(regressor: Any) -> None:
    checkpoint: dict[str, Any] = {}
    save_harness(checkpoint, StepGate(), None, SHAPE, open_batches=3)
    with pytest.warns(UserWarning, match="gradients of 3 batches are lost"):
        assert load_harness(checkpoint, regressor(), StepGate(), None) == SHAPE


def test_other_parameter_groups_are_refused_on_resume(
    regressor: Any, loader: Any, trainer: Any, tmp_path: Path
) -> None:
    run = trainer()
    run.fit(regressor(), loader(3))
    run.save_checkpoint(tmp_path / "a.ckpt")
    groups = [
        ParameterGroup("backbone", ["backbone", "head.bias"]),
        ParameterGroup("head", ["head.weight"]),
    ]
    with pytest.raises(ValueError, match="got other parameters in backbone, head"):
        trainer().fit(regressor(groups=groups), loader(3), ckpt_path=tmp_path / "a.ckpt")


def test_another_world_is_told() -> None:
    with pytest.warns(UserWarning, match="world_size=1 and goes on with 2"):
        compare_shapes(SHAPE, RunShape(SHAPE.groups, 10, 1, world_size=2))
