import pytest
import torch

from callbacks import GradientNorm, LearningRates, OverfitSanity, ParameterDelta, RunLog
from callbacks.observing import Cadence, parameters_by_group, rates_by_group, total_norm
from musicnet.gate.step_gate import StepGate, group_norms
from musicnet.records.append_log import read_rows
from musicnet.records.provenance import read_provenance


def test_a_cadence_of_one_is_every_step() -> None:
    assert all(Cadence(1).is_due(step) for step in range(1, 10))


@pytest.mark.bad_shape
@pytest.mark.parametrize("every_n", [0, -3, 1.5, float("nan")])
def test_a_cadence_that_counts_nothing_is_refused(every_n: int) -> None:
    with pytest.raises(ValueError, match=f"got {every_n}"):
        Cadence(every_n)


def test_all_hear_of_a_gate_that_a_loop_of_anybody_asks(own_loop, fit, lines, tmp_path) -> None:
    judge = OverfitSanity(min_loss_drop=0.01)
    observers = [GradientNorm(every_n=1), ParameterDelta(every_n=1), LearningRates(), RunLog()]
    fit(own_loop, *observers, judge)
    assert ["ok=True" in line for line in lines("[GRAD]")] == [True, False] * 4
    assert [line.endswith("= 0.000e+00") for line in lines("[STEP]")] == [False, True] * 4
    assert len(lines("[LR]")) == 1
    run_id = read_provenance(tmp_path).run_id
    events = [row["event"] for row in read_rows(tmp_path / "metrics.jsonl", run_id=run_id)]
    assert events == ["step", "veto", "veto", "veto", "veto", "epoch"]
    assert (judge.verdict.verdict, judge.verdict.steps, judge.verdict.skipped) == ("fail", 4, 4)


def test_a_loop_may_give_the_gate_a_part_of_its_module(own_loop, fit) -> None:
    attempt, judge = own_loop.my_gate.attempt, OverfitSanity()
    own_loop.my_gate.attempt = lambda module, optimizer: attempt(module.head, optimizer)
    fit(own_loop, judge)
    assert (judge.verdict.steps, judge.verdict.skipped) == (4, 4)


def test_an_observer_of_a_gate_can_observe_a_plain_module_next(own_loop, plain, fit, lines) -> None:
    observer = GradientNorm(every_n=1)
    fit(own_loop, observer)
    fit(plain(), observer)
    assert len(lines("[GRAD]")) == 8 + 8


def test_groups_are_named_as_the_gate_names_them() -> None:
    weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(4)]
    optimizers = [
        torch.optim.SGD([{"params": pair[:1], "name": "head"}, {"params": pair[1:]}], lr=0.1)
        for pair in (weights[:2], weights[2:])
    ]
    torch.stack(weights).sum().backward()
    report = StepGate().attempt(torch.nn.ParameterList(weights), optimizers)
    assert rates_by_group(optimizers) == report.lr
    assert list(parameters_by_group(optimizers)) == list(report.lr)
    assert len(report.lr) == 4


def test_group_norms_and_their_total_agree_with_one_long_vector() -> None:
    torch.manual_seed(0)
    groups = {"a": [torch.randn(3, 2), torch.randn(5)], "b": [torch.randn(4)]}
    long = torch.cat([tensor.flatten() for group in groups.values() for tensor in group])
    assert total_norm(group_norms(groups)) == pytest.approx(long.norm().item())
    assert group_norms({}) == {}


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_norms_that_float32_squares_cannot_hold_are_shown_as_they_are(size: float) -> None:
    norms = group_norms({"a": [torch.tensor([2 * size, 0.0])], "b": [torch.full((3,), 2 * size)]})
    assert total_norm(norms) == pytest.approx(4 * size, rel=1e-6, abs=0)
