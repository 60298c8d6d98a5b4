"""The spike rule: off by default, blind to what is usual, patient with what stays."""

import json
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD

from musicnet.gate.spikes import NormHistory, SpikeRule
from musicnet.gate.step_gate import StepGate


def norms(n: int, spread: float = 0.3, seed: int = 0) -> list[float]:
    """Norms of a calm run: log-normal."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, generator=generator) * spread).exp().tolist()


def spikes(history: NormHistory, seen: list[float]) -> list[int]:
    found = []
    for i, norm in enumerate(seen):
        if history.is_spike(norm):
            found.append(i)
        history.take(norm)
    return found


@pytest.mark.parametrize("spread", [0.0, 0.01, 0.3, 1.0])
def test_a_calm_run_has_no_spikes(spread: float) -> None:
    for seed in range(5):
        assert not spikes(NormHistory(SpikeRule()), norms(1000, spread, seed))


def test_a_slow_drift_is_no_spike() -> None:
    falling = [norm * math.exp(-0.02 * i) for i, norm in enumerate(norms(1000))]
    assert not spikes(NormHistory(SpikeRule()), falling)
    assert not spikes(NormHistory(SpikeRule()), falling[::-1])


@pytest.mark.parametrize("size", [20.0, 1e3, 1e20])
def test_single_spikes_are_found_and_hide_no_later_one(size: float) -> None:
    seen = norms(600)
    for place in (100, 101, 300, 599):
        seen[place] = size
    assert spikes(NormHistory(SpikeRule()), seen) == [100, 101, 300, 599]


def test_the_limit_is_mean_and_deviations_of_the_logarithm() -> None:
    rule = SpikeRule(deviations=3.0, least_ratio=1.01, window=4, after=4)
    last = [1.0, 2.0, 4.0, 8.0]
    logs = torch.tensor(last).log()
    limit = (logs.mean() + 3 * logs.std(correction=0)).exp().item()
    for factor, is_spike in ((0.999, False), (1.001, True)):
        history = NormHistory(rule)
        assert not spikes(history, [1e6, *last])  # the first has left the window
        assert history.is_spike(limit * factor) == is_spike


@pytest.mark.parametrize("jump", [30.0, 1e3, 1e8])
def test_a_run_that_has_come_to_larger_gradients_for_good_is_let_through(jump: float) -> None:
    seen = norms(400) + [norm * jump for norm in norms(400, seed=1)]
    found = spikes(NormHistory(SpikeRule()), seen)
    assert 0 < len(found) <= 30  # fewer than the gate bears in a row
    assert max(found) < 500


def train(gate: StepGate, sizes: list[float]) -> list[str]:
    layer = nn.Linear(1, 1, bias=False)
    optimizer, reasons = SGD(layer.parameters(), lr=0.1), []
    for size in sizes:
        start = layer.weight.detach().clone()
        layer.weight.grad = torch.full((1, 1), size)
        report = gate.attempt(layer, optimizer)
        reasons.append(report.reason)
        assert report.stepped == (report.reason == "ok")
        assert torch.equal(layer.weight, start) != report.stepped
    return reasons


def test_a_gate_vetoes_a_spike_and_only_if_it_was_asked_to() -> None:
    sizes = [1.0] * 10 + [50.0, 1.0]
    gate = StepGate(spike=SpikeRule(after=8))
    assert train(gate, sizes) == ["ok"] * 10 + ["spike", "ok"]
    assert dict(gate.by_reason) == {"spike": 1}
    assert train(StepGate(), sizes) == ["ok"] * 12


def test_other_vetoes_leave_the_history_alone() -> None:
    gate = StepGate(spike=SpikeRule(after=8))
    reasons = train(gate, [1.0] * 8 + [math.nan, math.inf, 0.0] + [1.5, 50.0])
    assert reasons == ["ok"] * 8 + ["nonfinite"] * 2 + ["zero", "ok", "spike"]


def test_the_history_is_saved_as_plain_data_and_resumed() -> None:
    whole, first = (StepGate(spike=SpikeRule(after=8)) for _ in range(2))
    sizes = norms(40)
    sizes[30] = 40.0
    train(whole, sizes)
    train(first, sizes[:20])
    state = json.loads(json.dumps(first.state_dict()))
    second = StepGate(spike=SpikeRule(after=8))
    second.load_state_dict(state)
    train(second, sizes[20:])
    assert second.state_dict() == whole.state_dict()
    assert dict(second.by_reason) == {"spike": 1}


def test_a_state_without_a_history_loads_into_a_gate_with_a_rule() -> None:
    state = StepGate().state_dict()
    del state["norm_history"]
    gate = StepGate(spike=SpikeRule())
    gate.load_state_dict(state)
    assert gate.attempts == 0


@pytest.mark.bad_shape
@pytest.mark.parametrize(
    ("settings", "got"),
    [
        ({"deviations": 0.0}, "deviations must be .* got 0.0"),
        ({"deviations": math.nan}, "got nan"),
        ({"least_ratio": 1.0}, "least_ratio must be .* got 1.0"),
        ({"window": 1}, "window must be >= 2: got 1"),
        ({"after": 2.5}, "got 2.5"),
        ({"after": 200}, "got after=200, window=128"),
    ],
)
def test_rules_that_mean_nothing_are_refused(settings: dict[str, Any], got: str) -> None:
    with pytest.raises(ValueError, match=got):
        SpikeRule(**settings)
