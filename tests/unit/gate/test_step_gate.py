"""The rule, the report and what a veto leaves untouched, in plain torch loops."""

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from musicnet.gate.step_gate import GateStuckError, StepGate


def with_gradients(*gradients: Tensor | None) -> nn.ParameterList:
    """Parameters of one that hold these gradients."""
    shapes = [torch.ones(2) if g is None else torch.ones(g.shape, dtype=g.dtype) for g in gradients]
    module = nn.ParameterList([nn.Parameter(shape) for shape in shapes])
    for parameter, gradient in zip(module, gradients, strict=True):
        parameter.grad = gradient
    return module


def state_of(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return copy.deepcopy({"module": module.state_dict(), "optimizer": optimizer.state_dict()})


def assert_same(left: Any, right: Any) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)


def test_one_broken_entry_vetoes_all_parameters() -> None:
    module = with_gradients(torch.tensor([1.0, 2.0]), torch.tensor([0.5, math.nan]))
    assert StepGate().attempt(module, SGD(module.parameters(), lr=1.0)).reason == "nonfinite"
    assert_same(list(module), [torch.ones(2), torch.ones(2)])


def test_several_optimizers_share_one_norm_and_all_step() -> None:
    module = with_gradients(torch.tensor([3.0]), torch.tensor([4.0]))
    left, right = SGD([module[0]], lr=0.1), SGD([module[1]], lr=0.2)
    report = StepGate().attempt(module, [left, right])
    assert report.norm == 5
    assert report.lr == {"group0": 0.1, "1.group0": 0.2}
    assert [p.item() for p in module] == pytest.approx([0.7, 0.2])


def test_a_broken_gradient_in_one_optimizer_holds_back_the_other() -> None:
    module = with_gradients(torch.tensor([math.inf]), torch.tensor([4.0]))
    report = StepGate().attempt(module, [SGD([module[0]], lr=0.1), SGD([module[1]], lr=0.2)])
    assert not report.stepped
    assert report.group_norms == {"group0": math.inf, "1.group0": 4.0}
    assert [p.item() for p in module] == [1, 1]


def test_zero_gradients_step_only_where_that_was_asked_for() -> None:
    module = with_gradients(torch.zeros(2))
    optimizer = AdamW(module.parameters(), lr=0.1, weight_decay=0.5)
    report = StepGate(zero="step").attempt(module, optimizer)
    assert (report.stepped, report.norm) == (True, 0)
    assert module[0].tolist() == pytest.approx([0.95, 0.95])


def test_group_norms_come_at_the_first_attempt_and_every_nth() -> None:
    module = with_gradients(torch.tensor([1.0]))
    gate, optimizer = StepGate(group_norms_every=3), SGD(module.parameters(), lr=0.0)
    shown = [gate.attempt(module, optimizer).group_norms is not None for _ in range(7)]
    assert shown == [True, False, False, True, False, False, True]


def test_a_gate_that_never_steps_ends_the_run_and_names_the_reason() -> None:
    module = nn.Linear(2, 1)
    gate, optimizer = StepGate(max_consecutive_skips=2), SGD(module.parameters(), lr=0.1)

    def poisoned() -> None:
        module.weight.grad = torch.full((1, 2), math.nan)
        module.bias.grad = torch.ones(1)
        gate.attempt(module, optimizer)

    poisoned()
    poisoned()
    with pytest.raises(GateStuckError, match=r"got 3 vetoes in a row.*nonfinite 3.*weight") as end:
        poisoned()
    assert end.value.reasons == {"nonfinite": 3}
    assert "bias" not in str(end.value)
    assert str(pickle.loads(pickle.dumps(end.value))) == str(end.value)


def test_a_real_step_forgives_the_vetoes_before_it() -> None:
    module = with_gradients(torch.ones(1))
    gate, optimizer = StepGate(max_consecutive_skips=1), SGD(module.parameters(), lr=0.1)
    for _ in range(3):
        module[0].grad = None
        assert not gate.attempt(module, optimizer).stepped
        module[0].grad = torch.ones(1)
        assert gate.attempt(module, optimizer).stepped
    assert (gate.skips, gate.consecutive_skips, gate.first_skip, gate.last_skip) == (3, 0, 1, 5)


def test_a_strict_gate_ends_the_run_at_the_first_broken_gradient() -> None:
    module = with_gradients(torch.tensor([math.inf]))
    with pytest.raises(GateStuckError, match="nonfinite='raise'"):
        StepGate(nonfinite="raise").attempt(module, SGD(module.parameters(), lr=0.1))


def test_counters_survive_a_checkpoint_as_plain_data(tmp_path: Any) -> None:
    module = with_gradients(torch.ones(1))
    gate, optimizer = StepGate(), SGD(module.parameters(), lr=0.1)
    gate.attempt(module, optimizer)
    module[0].grad = None
    gate.attempt(module, optimizer)
    torch.save(gate.state_dict(), tmp_path / "gate.pt")
    other = StepGate()
    other.load_state_dict(torch.load(tmp_path / "gate.pt", weights_only=True))
    assert other.state_dict() == gate.state_dict()
    assert (other.attempts, other.steps, other.by_reason["no_grad"]) == (2, 1, 1)
    with pytest.raises(ValueError, match="got None"):
        other.load_state_dict({})


@pytest.mark.parametrize(
    ("settings", "got"),
    [
        ({"max_norm": 0.0}, "got 0.0"),
        ({"max_norm": math.nan}, "got nan"),
        ({"max_norm": True}, "got True"),
        ({"zero": "stop"}, "got 'stop'"),
        ({"nonfinite": "ignore"}, "got 'ignore'"),
        ({"max_consecutive_skips": 0}, "got 0"),
        ({"max_consecutive_skips": math.nan}, "got nan"),
        ({"max_consecutive_skips": 1.5}, "got 1.5"),
        ({"norm_rtol": math.inf}, "got inf"),
        ({"group_norms_every": -1}, "got -1"),
    ],
)
@pytest.mark.bad_shape
def test_settings_out_of_range_are_refused(settings: dict[str, Any], got: str) -> None:
    with pytest.raises(ValueError, match=got):
        StepGate(**settings)


def test_optimizers_may_come_one_by_one_and_must_come() -> None:
    module = with_gradients(torch.tensor([3.0]), torch.tensor([4.0]))
    report = StepGate().attempt(module, (SGD([p], lr=0.1) for p in module))
    assert (report.stepped, report.norm) == (True, 5)
    with pytest.raises(ValueError, match="needs an optimiser: got none"):
        StepGate().attempt(module, [])


def test_a_broken_gradient_that_no_optimizer_holds_vetoes_and_is_cleared() -> None:
    module = with_gradients(torch.tensor([3.0]), torch.tensor([math.nan]))
    gate, optimizer = StepGate(), SGD([module[0]], lr=0.1)
    report = gate.attempt(module, optimizer)
    assert (report.stepped, report.reason, math.isnan(report.norm)) == (False, "nonfinite", True)
    assert [p.item() for p in module] == [1, 1]
    assert module[1].grad is None
    module[0].grad = torch.tensor([3.0])
    assert gate.attempt(module, optimizer).stepped


def test_a_fine_gradient_that_no_optimizer_holds_is_no_part_of_the_norm() -> None:
    module = with_gradients(torch.tensor([3.0]), torch.tensor([4.0]))
    assert StepGate().attempt(module, SGD([module[0]], lr=0.1)).norm == 3


def test_a_parameter_that_comes_into_an_optimizer_late_counts_from_then_on() -> None:
    module = with_gradients(torch.tensor([3.0]), torch.tensor([4.0]))
    gate, optimizer = StepGate(), SGD([module[0]], lr=0.1)
    assert gate.attempt(module, optimizer).norm == 3
    optimizer.add_param_group({"params": [module[1]]})
    assert gate.attempt(module, optimizer).norm == 5


def test_the_other_player_of_a_gan_is_no_stray() -> None:
    module = with_gradients(torch.tensor([3.0]), torch.tensor([4.0]))
    gate, players = StepGate(), [SGD([p], lr=0.1) for p in module]
    assert [gate.attempt(module, player).norm for player in players] == [3, 4]
    module[1].grad = torch.tensor([math.nan])
    assert gate.attempt(module, players[0]).stepped
    assert module[1].grad is not None


def test_a_gate_that_knows_modules_can_be_copied_and_pickled() -> None:
    module = with_gradients(torch.tensor([3.0]))
    gate = StepGate()
    gate.attempt(module, SGD(module.parameters(), lr=0.1))
    for other in (copy.deepcopy(gate), pickle.loads(pickle.dumps(gate))):
        assert other.state_dict() == gate.state_dict()
