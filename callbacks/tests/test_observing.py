import pytest
import torch

from callbacks.observing import (
    Cadence,
    group_norms,
    parameters_by_group,
    rates_by_group,
    total_norm,
)
from musicnet.gate.step_gate import StepGate


def test_a_cadence_of_one_is_every_step() -> None:
    assert all(Cadence(1).is_due(step) for step in range(1, 10))


@pytest.mark.parametrize("every_n", [0, -3])
def test_a_cadence_below_one_is_refused(every_n: int) -> None:
    with pytest.raises(ValueError, match=f"got {every_n}"):
        Cadence(every_n)


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


def test_the_norm_of_halves_adds_up_in_single_precision() -> None:
    # 2^16 ones: the sum of squares is beyond what float16 can hold.
    ones = torch.ones(1 << 16, dtype=torch.float16)
    assert group_norms({"all": [ones]}) == {"all": 256.0}


def test_norms_of_complex_and_sparse_tensors_are_those_of_their_entries() -> None:
    duplicate = torch.sparse_coo_tensor(
        torch.tensor([[1, 1]]), torch.tensor([1.0, 2.0]), (5,), check_invariants=True
    )
    norms = group_norms({"complex": [torch.tensor([3.0 + 4.0j])], "sparse": [duplicate]})
    assert norms == {"complex": 5.0, "sparse": 3.0}


def test_group_norms_and_their_total_agree_with_one_long_vector() -> None:
    torch.manual_seed(0)
    groups = {"a": [torch.randn(3, 2), torch.randn(5)], "b": [torch.randn(4)]}
    long = torch.cat([tensor.flatten() for group in groups.values() for tensor in group])
    assert total_norm(group_norms(groups)) == pytest.approx(long.norm().item())
    assert group_norms({}) == {}
