"""The rule, the report and what a veto leaves untouched, in plain torch loops."""

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.utils._python_dispatch import TorchDispatchMode

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


def zero_headed() -> tuple[nn.Module, list[dict[str, Any]]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    nn.init.zeros_(net[2].weight)
    nn.init.zeros_(net[2].bias)
    groups = [
        {"params": list(net[0].parameters()), "name": "backbone"},
        {"params": list(net[2].parameters()), "name": "head"},
    ]
    return net, groups


def backward(net: nn.Module) -> Tensor:
    x = torch.linspace(-1, 1, 32).view(8, 4)
    loss = (net(x) - x.sum(1, keepdim=True)).square().mean()
    loss.backward()
    return loss.detach()


def test_a_head_that_starts_at_zero_trains_from_the_first_step() -> None:
    net, groups = zero_headed()
    optimizer, gate = SGD(groups, lr=0.1), StepGate(group_norms_every=1)
    first = backward(net)
    reports = [gate.attempt(net, optimizer)]
    for _ in range(19):
        optimizer.zero_grad()
        last = backward(net)
        reports.append(gate.attempt(net, optimizer))
    assert [report.stepped for report in reports] == [True] * 20
    assert reports[0].group_norms is not None
    assert reports[0].group_norms["backbone"] == 0
    assert reports[0].group_norms["head"] > 0
    assert last < 0.7 * first


def test_the_rule_of_the_predecessor_never_takes_that_step() -> None:
    """The fixture of the fault: `backbone > 0 and head > 0` is False for ever."""
    net, groups = zero_headed()
    optimizer, gate = SGD(groups, lr=0.1), StepGate(group_norms_every=1)
    taken = 0
    for _ in range(20):
        optimizer.zero_grad()
        backward(net)
        trial = copy.deepcopy(net)
        for mine, theirs in zip(net.parameters(), trial.parameters(), strict=True):
            theirs.grad = None if mine.grad is None else mine.grad.clone()
        trial_groups = [
            {"params": list(trial[i].parameters()), "name": n} for i, n in ((0, "b"), (2, "h"))
        ]
        norms = gate.attempt(trial, SGD(trial_groups, lr=0.0)).group_norms
        assert norms is not None
        if all(norm > 0 for norm in norms.values()):
            optimizer.step()
            taken += 1
    assert taken == 0


@pytest.mark.parametrize("fault", ["nan", "inf", "zero", "none"])
@pytest.mark.parametrize("build", [AdamW, lambda p: SGD(p, lr=0.1, momentum=0.9)])
def test_a_veto_leaves_every_bit_and_the_next_batch_trains(build: Any, fault: str) -> None:
    net = nn.Linear(3, 2)
    optimizer, gate = build(net.parameters()), StepGate()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    net(torch.ones(1, 3)).sum().backward()
    gate.attempt(net, optimizer, schedulers=[scheduler])
    before, rates = state_of(net, optimizer), scheduler.state_dict()

    for parameter in net.parameters():
        value = {"nan": math.nan, "inf": math.inf, "zero": 0.0, "none": 0.0}[fault]
        parameter.grad = None if fault == "none" else torch.full_like(parameter, value)
    report = gate.attempt(net, optimizer, schedulers=[scheduler])

    assert_same(state_of(net, optimizer), before)
    assert scheduler.state_dict() == rates
    reason = {"nan": "nonfinite", "inf": "nonfinite", "zero": "zero", "none": "no_grad"}[fault]
    assert (report.ok, report.stepped, report.reason) == (False, False, reason)
    assert all(parameter.grad is None for parameter in net.parameters())

    net(torch.ones(1, 3)).sum().backward()
    assert gate.attempt(net, optimizer, schedulers=[scheduler]).stepped
    assert (gate.attempts, gate.steps, gate.skips, dict(gate.by_reason)) == (3, 2, 1, {reason: 1})
    assert not torch.equal(net.weight, before["module"]["weight"])


def test_one_broken_entry_vetoes_all_parameters() -> None:
    module = with_gradients(torch.tensor([1.0, 2.0]), torch.tensor([0.5, math.nan]))
    assert StepGate().attempt(module, SGD(module.parameters(), lr=1.0)).reason == "nonfinite"
    assert_same(list(module), [torch.ones(2), torch.ones(2)])


def test_frozen_groups_are_absent_from_the_norms_and_not_zero() -> None:
    module = with_gradients(torch.tensor([3.0, 4.0]), None)
    groups = [{"params": [p], "name": n} for p, n in zip(module, ("free", "frozen"), strict=True)]
    report = StepGate().attempt(module, SGD(groups, lr=0.1))
    assert report.stepped
    assert report.group_norms == {"free": 5.0}
    assert report.lr == {"free": 0.1, "frozen": 0.1}


def test_an_unfrozen_parameter_counts_from_the_next_attempt() -> None:
    module = with_gradients(torch.tensor([3.0]), None)
    gate, optimizer = StepGate(), SGD(module.parameters(), lr=0.1)
    assert gate.attempt(module, optimizer).norm == 3
    module[1].grad = torch.tensor([0.0, 4.0])
    assert gate.attempt(module, optimizer).norm == 5


def test_duplicate_entries_of_a_sparse_gradient_add_up() -> None:
    table = nn.Embedding(5, 1, sparse=True)
    (table(torch.tensor([2, 2])).squeeze() * torch.tensor([3.0, 4.0])).sum().backward()
    start = table.weight.detach().clone()
    report = StepGate(max_norm=3.5).attempt(table, SGD(table.parameters(), lr=1.0))
    assert report.norm == 7
    assert report.clip_coef == 0.5
    assert (start - table.weight)[2].item() == pytest.approx(3.5)


def test_complex_gradients_are_measured_by_magnitude() -> None:
    module = with_gradients(torch.tensor([3 + 4j]), torch.tensor([12.0]))
    assert StepGate().attempt(module, SGD(module.parameters(), lr=0.1)).norm == 13


def test_half_precision_norms_pass_the_largest_half() -> None:
    module = with_gradients(torch.full((4,), 49984.0, dtype=torch.float16))
    report = StepGate(max_norm=1.0).attempt(module, SGD(module.parameters(), lr=0.5))
    assert report.norm == 99968
    assert report.stepped
    assert module[0].tolist() == pytest.approx([0.75] * 4, rel=1e-3)


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_norms_that_float32_squares_cannot_hold_still_step(size: float) -> None:
    module = with_gradients(torch.tensor([3 * size, 0.0]), torch.tensor([4 * size]))
    report = StepGate(max_norm=1.0).attempt(module, SGD(module.parameters(), lr=0.5))
    assert report.stepped
    assert report.norm == pytest.approx(5 * size, rel=1e-6)
    moved = 1 - module[0][0].item()
    assert moved == pytest.approx(0.3 if size > 1 else 0.0, rel=1e-5)


def test_clipping_shortens_the_gradient_to_the_limit() -> None:
    module = with_gradients(torch.tensor([3.0, 0.0]), torch.tensor([4.0]))
    report = StepGate(max_norm=2.5).attempt(module, SGD(module.parameters(), lr=1.0))
    assert (report.norm, report.clip_coef) == (5.0, 0.5)
    clipped = torch.cat([p.grad for p in module if p.grad is not None])
    assert clipped.norm().item() == pytest.approx(2.5)


def test_a_short_gradient_is_not_touched_by_clipping() -> None:
    gradient = torch.tensor([0.1, 0.2])
    module = with_gradients(gradient.clone())
    report = StepGate(max_norm=2.5).attempt(module, SGD(module.parameters(), lr=1.0))
    assert report.clip_coef == 1
    assert_same(module[0].grad, gradient)


def test_an_attempt_takes_one_norm_and_waits_for_the_device_once() -> None:
    counts: dict[str, int] = {}

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            name = func.overloadpacket.__name__
            counts[name] = counts.get(name, 0) + 1
            return func(*args, **kwargs or {})

    module = with_gradients(torch.tensor([3.0]), torch.tensor([4.0]))
    gate, optimizer = StepGate(max_norm=1.0, group_norms_every=0), SGD(module.parameters(), lr=1.0)
    with Counting():
        assert gate.attempt(module, optimizer).stepped
    assert counts["_foreach_norm"] == 1
    assert counts["_local_scalar_dense"] == 1


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


def lbfgs_on_a_bowl() -> tuple[nn.ParameterList, torch.optim.LBFGS]:
    module = nn.ParameterList([nn.Parameter(torch.tensor([3.0, -2.0]))])
    return module, torch.optim.LBFGS(module.parameters(), lr=0.5, max_iter=4)


def three_lbfgs_steps(gate: StepGate | None) -> tuple[Tensor, int]:
    module, optimizer = lbfgs_on_a_bowl()
    evaluations = 0

    def closure() -> Tensor:
        nonlocal evaluations
        evaluations += 1
        optimizer.zero_grad()
        loss = (module[0] * torch.tensor([1.0, 3.0])).square().sum()
        loss.backward()
        return loss

    for _ in range(3):
        if gate is None:
            optimizer.step(closure)
        else:
            gate.attempt(module, optimizer, closure=closure)
    return module[0].detach(), evaluations


def test_lbfgs_takes_the_steps_that_it_takes_without_the_gate() -> None:
    gate = StepGate()
    gated, plain = three_lbfgs_steps(gate), three_lbfgs_steps(None)
    assert gate.steps == 3
    assert_same(gated[0], plain[0])
    assert gated[1] == plain[1]


def test_a_line_search_that_ends_in_nan_is_undone() -> None:
    module, optimizer = lbfgs_on_a_bowl()
    start = state_of(module, optimizer)
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = module[0].square().sum() * (1.0 if calls == 1 else math.nan)
        loss.backward()
        return loss

    report = StepGate().attempt(module, optimizer, closure=closure)
    assert (report.ok, report.stepped, report.reason) == (True, False, "nonfinite")
    assert_same(state_of(module, optimizer), start)


def test_a_closure_cannot_be_clipped() -> None:
    module, optimizer = lbfgs_on_a_bowl()
    with pytest.raises(ValueError, match=r"got max_norm=1.0"):
        StepGate(max_norm=1.0).attempt(module, optimizer, closure=lambda: None)
