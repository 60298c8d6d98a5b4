import re

import pytest
import torch
from lightning.pytorch import Callback

from callbacks import ParameterDelta
from musicnet.gate.step_gate import group_norms

LINE = re.compile(r"\[STEP\] Δparam \|\|·\|\|₂ = (\d\.\d{3}e[+-]\d\d)")


class Walk(Callback):
    """The slow twin: every step's weights, whole."""

    def __init__(self) -> None:
        self.weights = []

    def on_train_start(self, trainer, pl_module) -> None:
        self._note(pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self._note(pl_module)

    def _note(self, module) -> None:
        flat = torch.cat([p.detach().flatten() for p in module.parameters()])
        self.weights.append(flat.clone())

    def way(self, batch: int) -> float:
        return (self.weights[batch] - self.weights[batch - 1]).norm().item()


def measured(lines) -> list[float]:
    return [float(LINE.fullmatch(line)[1]) for line in lines("[STEP]")]


@pytest.mark.parametrize("kind", ["gated", "plain"])
def test_the_way_of_a_step_agrees_with_a_slow_twin(kind, request, fit, lines) -> None:
    walk = Walk()
    fit(request.getfixturevalue(kind)(), ParameterDelta(every_n=3), walk)
    assert measured(lines) == pytest.approx([walk.way(1), walk.way(4), walk.way(7)], rel=1e-3)


def test_a_plain_gradient_step_is_the_rate_times_the_gradient(plain, fit, lines) -> None:
    module = plain(lr=0.5)
    norms = []

    def note(optimizer, *_) -> None:
        norms.extend(group_norms({"all": [p.grad for p in module.parameters()]}).values())

    module.on_before_optimizer_step = note
    fit(module, ParameterDelta(every_n=1), limit_train_batches=2)
    assert measured(lines) == pytest.approx([0.5 * norm for norm in norms], rel=1e-3)
    assert len(norms) == 2


def test_a_veto_shows_zero_and_the_next_attempt_is_measured(gated, fit, lines) -> None:
    fit(gated(poisoned={0}), ParameterDelta(every_n=50))
    vetoed, stepped = measured(lines)
    assert vetoed == 0.0
    assert stepped > 0.0


def test_it_warns_of_a_step_that_moved_nothing(gated, fit, lines) -> None:
    fit(gated(lr=0.0), ParameterDelta(), limit_train_batches=1)
    assert measured(lines) == [0.0]
    (warning,) = lines("the optimiser made step 1 and no parameter moved")
    assert "'head': 0.0" in warning
    assert "torch.float32" in warning


def test_it_warns_of_weights_that_move_through_a_veto(gated, fit, lines) -> None:
    class Intruder(Callback):
        def on_step_gate(self, trainer, pl_module, report) -> None:
            if not report.stepped:
                with torch.no_grad():
                    pl_module.head.bias.add_(1.0)

    fit(gated(poisoned={0}), Intruder(), ParameterDelta(), limit_train_batches=1)
    assert measured(lines) == [1.0]
    assert lines("parameters moved by 1.000e+00")


def test_parameters_are_copied_only_for_the_steps_that_are_measured(
    gated, fit, monkeypatch
) -> None:
    copies = []
    remember = ParameterDelta._remember
    monkeypatch.setattr(
        ParameterDelta, "_remember", lambda self, trainer: copies.append(remember(self, trainer))
    )
    callback = ParameterDelta(every_n=5)
    fit(gated(), callback, max_epochs=2)
    assert len(copies) == 4  # steps 1, 6, 11, 16 of 16
    assert callback._before is None
