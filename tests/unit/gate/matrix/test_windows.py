"""Rows 24 to 28: accumulation windows and clipping."""

from functools import partial
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import SGD

from musicnet.cli.trainer_settings import trainer_fault
from musicnet.gate.schedules import Schedule
from musicnet.gate.step_gate import StepGate

CONSTANT = Schedule(shape="constant", warmup_steps=0)


def weights(module: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_row_24_the_last_window_of_an_epoch_is_weighted_by_what_it_holds(
    regressor: Any, loader: Any, trainer: Any, reports: Any
) -> None:
    module = regressor(accumulate=4, optimizer=partial(SGD, lr=0.1), schedule=CONSTANT)
    data = loader(10)
    trainer(callbacks=[reports]).fit(module, data)
    assert module.gate.steps == 3
    assert module.total_steps == 3

    twin = regressor(optimizer=partial(SGD, lr=0.1))
    x, y = data.dataset.tensors
    for start, end, report in zip((0, 16, 32), (16, 32, 40), reports.reports, strict=True):
        twin.zero_grad()
        twin.compute_loss((x[start:end], y[start:end]), 0).backward()
        norm = torch.cat([p.grad.flatten() for p in twin.parameters()]).norm()
        assert report.norm == pytest.approx(norm.item(), rel=1e-5)
        with torch.no_grad():
            for name, parameter in twin.named_parameters():
                rate = 0.4 if name.startswith("head") else 0.1
                parameter -= rate * parameter.grad
    torch.testing.assert_close(module.state_dict(), twin.state_dict())


def test_row_25_a_nan_in_one_batch_vetoes_its_window_and_the_next_starts_clean(
    regressor: Any, loader: Any, trainer: Any, reports: Any
) -> None:
    module = regressor(norm=True, accumulate=4, schedule=CONSTANT)
    trainer(callbacks=[reports]).fit(module, loader(8, poisoned=(1,)))
    assert [report.reason for report in reports.reports] == ["nonfinite", "ok"]

    clean = regressor(norm=True, accumulate=4, schedule=CONSTANT)
    second_half = torch.utils.data.Subset(loader(8).dataset, range(16, 32))
    trainer().fit(clean, torch.utils.data.DataLoader(second_half, batch_size=4))
    torch.testing.assert_close(weights(module), weights(clean), rtol=0, atol=0)


def test_row_26_a_window_of_four_is_one_batch_four_times_as_large(
    regressor: Any, loader: Any, trainer: Any
) -> None:
    final = []
    for accumulate, batch_size in ((4, 4), (1, 16)):
        module = regressor(accumulate=accumulate, optimizer=partial(SGD, lr=0.1), schedule=CONSTANT)
        data = torch.utils.data.DataLoader(loader(8).dataset, batch_size=batch_size)
        trainer().fit(module, data)
        assert module.gate.steps == 2
        final.append(weights(module))
    torch.testing.assert_close(final[0], final[1])


@pytest.mark.parametrize(("limit", "factor"), [(2.5, 0.5), (5.0, 1.0), (7.0, 1.0)])
def test_row_27_clipping_shortens_to_the_limit_or_touches_no_bit(
    limit: float, factor: float
) -> None:
    gradients = [torch.tensor([3.0, 0.0]), torch.tensor([4.0])]
    module = nn.ParameterList([nn.Parameter(torch.ones_like(g)) for g in gradients])
    for parameter, gradient in zip(module, gradients, strict=True):
        parameter.grad = gradient.clone()
    report = StepGate(max_norm=limit).attempt(module, SGD(module.parameters(), lr=1.0))
    assert (report.norm, report.clip_coef) == (5.0, factor)
    left = [parameter.grad for parameter in module]
    if factor == 1:
        torch.testing.assert_close(left, gradients, rtol=0, atol=0)
    else:
        assert torch.cat(left).norm().item() == pytest.approx(limit)


def test_row_28_clipping_by_value_is_refused(regressor: Any, loader: Any, trainer: Any) -> None:
    with pytest.raises(MisconfigurationException, match=r"gradient clipping.*manual optimization"):
        trainer(gradient_clip_val=0.5, gradient_clip_algorithm="value").fit(regressor(), loader(1))
    settings = {"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"}
    assert "got 0.5. Set gate.max_norm." in str(trainer_fault(settings))
