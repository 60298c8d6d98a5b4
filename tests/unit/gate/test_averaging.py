"""Averages of the weights: what they hold, when they move, and that they overwrite nothing."""

import contextlib
import math
from typing import Any

import pytest
import torch
from torch import nn

from musicnet.gate.averaging import Averaging, WeightAverage


def layer_of(value: float) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


def test_swa_is_the_plain_mean_of_all_weights_since_its_start() -> None:
    layer, average = layer_of(0.0), WeightAverage(Averaging("swa", start_fraction=0.5))
    for step in range(1, 11):
        nn.init.constant_(layer.weight, float(step))
        average.follow(layer, step, total=10)
    assert average.n_averaged == 5
    with average.applied(layer):
        assert layer.weight.item() == pytest.approx(8.0)
    assert layer.weight.item() == 10


def test_ema_is_the_recursion_of_its_definition() -> None:
    settings = Averaging("ema", decay=0.5)
    layer, average, expected = layer_of(0.0), WeightAverage(settings), 0.0
    for n, value in enumerate((4.0, 8.0, -2.0, 6.0, 1.0, 3.0)):
        nn.init.constant_(layer.weight, value)
        average.update(layer)
        decay = min(0.5, (1 + n) / (10 + n)) if n else 0.0
        expected = decay * expected + (1 - decay) * value
    with average.applied(layer):
        assert layer.weight.item() == pytest.approx(expected)


def test_an_average_that_does_not_exist_is_never_evaluated() -> None:
    layer, average = layer_of(3.0), WeightAverage(Averaging("swa"))
    with pytest.raises(RuntimeError, match="got n_averaged=0"), average.applied(layer):
        pass
    assert layer.weight.item() == 3


def test_the_trained_weights_come_back_after_an_error() -> None:
    layer, average = layer_of(1.0), WeightAverage(Averaging())
    average.update(layer)
    nn.init.constant_(layer.weight, 2.0)
    with pytest.raises(KeyError), average.applied(layer):
        raise KeyError
    assert layer.weight.item() == 2


def test_statistics_of_normalisation_layers_are_averaged_with_the_weights() -> None:
    layer, average = nn.BatchNorm1d(1), WeightAverage(Averaging("swa"))
    assert layer.running_mean is not None
    for value in (1.0, 3.0):
        layer.running_mean.fill_(value)
        average.update(layer)
    with average.applied(layer):
        assert layer.running_mean.item() == 2
    assert layer.running_mean.item() == 3


def test_half_precision_weights_are_averaged_in_float32() -> None:
    layer = layer_of(1.0).to(torch.bfloat16)
    average = WeightAverage(Averaging("swa"))
    for value in (1.0, 1.0078125):
        nn.init.constant_(layer.weight, value)
        average.update(layer)
    assert average.state_dict()["weights"]["weight"].item() == 1.00390625


def test_an_average_survives_a_checkpoint_and_refuses_another_module(tmp_path: Any) -> None:
    layer, average = layer_of(2.0), WeightAverage(Averaging())
    average.update(layer)
    torch.save(average.state_dict(), tmp_path / "average.pt")
    state = torch.load(tmp_path / "average.pt", weights_only=True)
    other = WeightAverage(Averaging())
    other.load_state_dict(state, layer)
    assert other.n_averaged == 1
    with other.applied(layer_of(0.0)) as nothing:
        assert nothing is None
    with pytest.raises(ValueError, match="got a difference in bias"):
        other.load_state_dict(state, nn.Linear(1, 1))


def test_a_fit_ends_with_the_weights_that_it_trained_whether_or_not_an_average_is_kept(
    regressor: Any, loader: Any, trainer: Any
) -> None:
    """Validation looks at both, and fails once in the middle of the average."""
    ends = []
    for averaging in (None, Averaging("ema", decay=0.5)):

        class Validating(type(regressor())):  # type: ignore[misc]
            def validation_step(self, batch: Any, batch_idx: int) -> None:
                self.log("val/loss", self.compute_loss(batch, batch_idx))
                if self.average is not None and self.average.n_averaged:
                    with contextlib.suppress(KeyError), self.averaged_weights():
                        averaged = self.compute_loss(batch, batch_idx)
                        self.log("val/averaged_loss", averaged)
                        raise KeyError

        torch.manual_seed(0)
        module = Validating(averaging=averaging, norm=True)
        run = trainer(max_epochs=2)
        run.fit(module, loader(5, poisoned=(1,)), loader(2))
        ends.append((module.state_dict(), run.callback_metrics))
    (plain, shown), (beside, shown_beside) = ends
    torch.testing.assert_close(beside, plain, rtol=0, atol=0)
    assert shown_beside["val/loss"] == shown["val/loss"]
    assert shown_beside["val/averaged_loss"] != shown["val/loss"]


def test_a_module_without_an_average_says_so(regressor: Any) -> None:
    with pytest.raises(RuntimeError, match="got averaging=None"), regressor().averaged_weights():
        pass


@pytest.mark.parametrize(
    ("settings", "got"),
    [
        ({"kind": "mean"}, "got 'mean'"),
        ({"start_fraction": 1.0}, "got 1.0"),
        ({"decay": math.nan}, "got nan"),
        ({"rate_factor": 0.0}, "got 0.0"),
        ({"every_steps": 0}, "got 0"),
        ({"every_steps": 1.5}, "got 1.5"),
        ({"annealing_steps": -1}, "got -1"),
    ],
)
@pytest.mark.bad_shape
def test_settings_out_of_range_are_refused(settings: dict[str, Any], got: str) -> None:
    with pytest.raises(ValueError, match=got):
        Averaging(**settings)
