"""Rows 51 to 56: rates and averages over real steps."""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch.optim import SGD

from musicnet.gate.averaging import Averaging
from musicnet.gate.schedules import Schedule


@pytest.mark.parametrize(
    ("total", "warmup"), [(0, 0), (1, 0), (49, 0), (50, 1), (499, 9), (500, 10), (9999, 10)]
)
def test_row_51_warm_up_rises_from_the_floor_to_one(total: int, warmup: int) -> None:
    schedule = Schedule(shape="constant")
    factors = [schedule.factor(step, total) for step in range(total + 1)]
    assert factors[0] == (0.1 if warmup else 1.0)
    rise = [max(0.1, k / warmup) if warmup else 1 for k in range(warmup)]
    assert factors[: warmup + 1] == [*rise, 1]
    assert factors == sorted(factors)
    assert factors[-1] == 1


class EndlessTrainer(Trainer):
    """A trainer of which only the length of the run is known."""

    num_training_batches = max_epochs = max_steps = None  # type: ignore[assignment]

    def __init__(self) -> None:
        self.fit_loop = SimpleNamespace(setup_data=lambda: None)  # type: ignore[assignment]
        self.num_training_batches = float("inf")  # type: ignore[assignment]
        self.max_epochs = self.max_steps = -1  # type: ignore[assignment]


def test_row_51_an_endless_run_needs_an_explicit_length() -> None:
    with pytest.raises(ValueError, match=r"got an endless one \(max_epochs=-1, max_steps=-1\)"):
        Schedule().total(EndlessTrainer(), accumulate=1)
    assert Schedule(total_steps=300).total(EndlessTrainer(), accumulate=1) == 300


def test_row_52_the_head_keeps_four_times_the_rate_at_every_step(
    regressor: Any, loader: Any, trainer: Any, reports: Any
) -> None:
    module = regressor(schedule=Schedule(warmup_steps=3), averaging=Averaging("swa"))
    trainer(callbacks=[reports]).fit(module, loader(20))
    rates = [report.lr for report in reports.reports]
    assert all(rate["head"] == pytest.approx(4 * rate["backbone"]) for rate in rates)
    assert rates[0]["backbone"] == pytest.approx(1e-3)
    assert rates[3]["backbone"] == pytest.approx(1e-2)
    annealed = 0.6 * module.schedule.factor(15, 20) + 0.4 * 0.5
    assert rates[19]["backbone"] == pytest.approx(1e-2 * annealed)


def test_row_52_the_head_keeps_four_times_the_rate_after_a_resume(
    regressor: Any, loader: Any, trainer: Any, reports: Any, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"averaging": Averaging("swa", start_fraction=0.5)}
    run = trainer(max_epochs=4, limit_train_batches=5, callbacks=[StopAfter(2)])
    run.fit(regressor(**settings), loader(5))
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = trainer(max_epochs=4, callbacks=[reports])
    again.fit(regressor(**settings), loader(5), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    rates = [report.lr for report in reports.reports]
    assert [report.step for report in reports.reports] == list(range(11, 21))
    assert all(rate["head"] == pytest.approx(4 * rate["backbone"]) for rate in rates)


class StopAfter(Callback):
    """Ends a run after so many epochs, as a wish and not as a limit that schedules know."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


def test_row_53_torch_has_nothing_to_say_of_the_order_of_steps(
    regressor: Any, loader: Any, trainer: Any
) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer(max_epochs=2).fit(regressor(), loader(5, poisoned=(0, 3)))
    assert not [one for one in said if "lr_scheduler.step()" in str(one.message)]


def run_of_swa(regressor: Any, loader: Any, trainer: Any) -> tuple[Any, Any, list[float]]:
    """Four epochs of five batches with Lightning's own SWA, and the rate of each epoch."""
    swa = StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=2, annealing_epochs=2)
    module = regressor(norm=True)
    run = trainer(max_epochs=4, callbacks=[swa])
    rates = []

    class Rates(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    run.callbacks.append(Rates())
    run.fit(module, loader(5))
    return module, run, rates


@pytest.mark.filterwarnings("ignore:.*SWA.*")
def test_row_54_the_rates_of_lightnings_swa_move_by_the_epoch(
    regressor: Any, loader: Any, trainer: Any
) -> None:
    _, _, rates = run_of_swa(regressor, loader, trainer)
    start, middle, *rest = rates[1:]
    assert middle == pytest.approx((start + 1e-3) / 2)
    assert rest == pytest.approx([1e-3] * 2)


@pytest.mark.filterwarnings("ignore:.*SWA.*")
def test_row_55_the_statistics_pass_of_lightnings_swa_does_not_train(
    regressor: Any, loader: Any, trainer: Any
) -> None:
    module, run, _ = run_of_swa(regressor, loader, trainer)
    assert module.gate.steps == run.global_step == 20


@pytest.mark.parametrize(("every", "averaged"), [(1, 6), (2, 3)])
@pytest.mark.parametrize("n_optimizers", [1, 2])
def test_row_56_the_average_counts_real_steps_whatever_the_optimizers(
    regressor: Any, loader: Any, trainer: Any, every: int, averaged: int, n_optimizers: int
) -> None:
    class Own(type(regressor())):  # type: ignore[misc]
        def configure_optimizers(self) -> Any:
            parts = (self,) if n_optimizers == 1 else (self.backbone, self.head)
            return [SGD(part.parameters(), lr=0.1) for part in parts]

    module = Own(averaging=Averaging("ema", every_steps=every))
    run = trainer(max_epochs=2)
    run.fit(module, loader(5, poisoned=(0, 3)))
    assert (module.gate.steps, module.average.n_averaged) == (6, averaged)
    assert run.global_step == 6 * n_optimizers
