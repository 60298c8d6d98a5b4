"""Factors of the learning rate, and the length of a run in real steps."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import Trainer

from musicnet.gate.averaging import Averaging, rate_factor
from musicnet.gate.schedules import Schedule, planned_steps


class PlannedTrainer(Trainer):
    """A trainer of which only the length of the run is known."""

    num_training_batches = max_epochs = max_steps = None  # type: ignore[assignment]

    def __init__(self, batches: float, max_epochs: int, max_steps: int = -1) -> None:
        self.fit_loop = SimpleNamespace(setup_data=lambda: None)  # type: ignore[assignment]
        self.num_training_batches = batches  # type: ignore[assignment]
        self.max_epochs, self.max_steps = max_epochs, max_steps  # type: ignore[assignment]


def test_cosine_falls_from_one_to_its_end_through_the_middle() -> None:
    schedule = Schedule(warmup_steps=10, final_factor=0.2)
    factors = [schedule.factor(step, 110) for step in range(10, 111)]
    assert factors[0] == 1
    assert factors[50] == pytest.approx(0.6)
    assert factors[-1] == pytest.approx(0.2)
    assert factors == sorted(factors, reverse=True)
    assert schedule.factor(500, 110) == pytest.approx(0.2)


def test_floor_cap_and_share_of_the_warm_up_can_be_chosen() -> None:
    schedule = Schedule(warmup_floor=0.5, warmup_cap=4, warmup_divisor=10, shape="constant")
    assert [schedule.factor(step, 100) for step in range(5)] == [0.5, 0.5, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("trainer", "accumulate", "n_optimizers", "steps"),
    [
        (PlannedTrainer(10, 3), 1, 1, 30),
        (PlannedTrainer(10, 3), 4, 1, 9),
        (PlannedTrainer(10, 3, max_steps=7), 4, 1, 7),
        (PlannedTrainer(10, 3, max_steps=10), 1, 2, 5),
        (PlannedTrainer(math.inf, -1, max_steps=8), 1, 1, 8),
        (PlannedTrainer(10, 0), 1, 1, 0),
        (PlannedTrainer(0, 5), 1, 1, 0),
        (PlannedTrainer(math.inf, 0), 1, 1, 0),
    ],
)
def test_planned_steps_count_attempts(
    trainer: Any, accumulate: int, n_optimizers: int, steps: int
) -> None:
    assert planned_steps(trainer, accumulate, n_optimizers) == steps


def test_a_warm_up_longer_than_the_run_is_told() -> None:
    with pytest.warns(UserWarning, match="never passes 24%"):
        Schedule(warmup_steps=500).total(PlannedTrainer(120, 1), accumulate=1)


@pytest.mark.parametrize(("total", "share"), [(1, "1%"), (1200, "98%")])
def test_a_length_that_is_not_that_of_the_run_is_told(total: int, share: str) -> None:
    schedule = Schedule(total_steps=total, warmup_steps=0)
    with pytest.warns(UserWarning, match=f"total_steps={total} and the run makes 120.* {share}"):
        assert schedule.total(PlannedTrainer(120, 1), accumulate=1) == total


@pytest.mark.parametrize(
    ("settings", "got"),
    [
        ({"warmup_steps": -1}, "got -1"),
        ({"warmup_floor": math.nan}, "got nan"),
        ({"final_factor": 1.5}, "got 1.5"),
        ({"total_steps": 0}, "got 0"),
        ({"warmup_steps": 1.5}, "got 1.5"),
        ({"warmup_divisor": 0}, "got 0"),
        ({"shape": "linear"}, "got 'linear'"),
    ],
)
@pytest.mark.bad_shape
def test_settings_out_of_range_are_refused(settings: dict[str, Any], got: str) -> None:
    with pytest.raises(ValueError, match=got):
        Schedule(**settings)


def test_swa_replaces_the_main_schedule_from_its_start_on() -> None:
    schedule = Schedule(warmup_steps=0)
    swa = Averaging("swa", start_fraction=0.5, rate_factor=0.8, annealing_steps=10)
    factor = rate_factor(schedule, swa, 100)
    assert [factor(k) for k in range(51)] == [schedule.factor(k, 100) for k in range(51)]
    halfway = (schedule.factor(50, 100) + 0.8) / 2
    assert factor(55) == pytest.approx(halfway)
    assert [factor(k) for k in (60, 99, 100)] == pytest.approx([0.8] * 3)


def test_an_exponential_average_leaves_the_schedule_alone() -> None:
    schedule = Schedule()
    factor = rate_factor(schedule, Averaging("ema"), 100)
    assert [factor(k) for k in range(100)] == [schedule.factor(k, 100) for k in range(100)]
