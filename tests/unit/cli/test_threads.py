from typing import Any

import pytest
import torch

from musicnet.cli import threads
from musicnet.cli.refusals import ConfigurationError
from musicnet.cli.threads import settle_threads


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What torch was told, on a machine of six processors."""
    told: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(threads, "usable_processors", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return told


@pytest.mark.parametrize(
    ("wanted", "devices", "saved", "n_threads"),
    [
        ("auto", 1, None, 6),
        ("auto", 2, None, 3),  # processes share them
        ("auto", [0, 1], None, 3),
        ("auto", "2", None, 3),
        ("auto", "auto", None, 6),
        ("auto", 7, None, 1),
        ("auto", 1, {}, 6),  # of a program that did not say
        ("auto", 1, {"run_state": {"threads": 4}}, 4),
        ("auto", 2, {"run_state": {"threads": 4}}, 4),  # it was shared out before
        (2, 1, {"run_state": {"threads": 4}}, 2),
        (9, 2, None, 9),
    ],
)
def test_the_key_comes_first_then_the_checkpoint_then_the_machine(
    settled: list[int], wanted: Any, devices: Any, saved: Any, n_threads: int
) -> None:
    settle_threads(wanted, devices, saved)
    assert settled == [n_threads]


def test_more_than_eight_would_only_wake_each_other_up(
    settled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "usable_processors", lambda: 64)
    settle_threads("auto", 1)
    settle_threads("auto", 2)
    settle_threads(32, 1)
    assert settled == [8, 4, 32]


def test_what_the_environment_says_stands_unless_the_key_says_otherwise(
    settled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for said in ("1", "5,2", " 7 "):
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        settle_threads("auto", 1, {"run_state": {"threads": 4}})
    settle_threads(3, 1)
    assert settled == [1, 5, 7, 3]


@pytest.mark.parametrize("said", ["", "0", "many", "-2", "100000"])
def test_what_is_no_number_of_threads_is_no_choice(
    settled: list[int], monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    settle_threads("auto", 1)
    assert settled == [6]


@pytest.mark.parametrize("wanted", [0, -1, 1025])
def test_numbers_that_are_out_of_range_are_refused(settled: list[int], wanted: int) -> None:
    with pytest.raises(ConfigurationError, match=f"from 1 to 1024: got {wanted}"):
        settle_threads(wanted, 1)
    assert settled == []
