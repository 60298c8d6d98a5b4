"""How many processors there are to use, and that both doors say in time how threads shall wait."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from musicnet.processors import let_waiting_threads_sleep, usable_processors

ROOT = Path(__file__).parents[2]

# Stands where torch is looked for, and tells what torch would find.
PROBE = """
import importlib.abc, os, sys

class Torch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            raise SystemExit(os.environ.get("OMP_WAIT_POLICY"))

sys.meta_path.insert(0, Torch())
for door in ("train", "musicnet.__main__"):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        os.environ.pop(name, None)
    try:
        __import__(door)
    except SystemExit as end:
        print(door, end.code)
"""


def test_a_choice_of_the_user_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    for chosen, said in zip(names, ("active", "7"), strict=True):
        for name in names:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(chosen, said)
        let_waiting_threads_sleep()
        assert {name: os.environ[name] for name in names if name in os.environ} == {chosen: said}


def test_both_doors_say_so_before_torch_is_loaded() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", PROBE],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.split("\n") == ["train passive", "musicnet.__main__ passive", ""]


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (None, 6),
        ("max 100000\n", 6),
        ("200000 100000\n", 2),
        ("250000 100000\n", 2),  # a third thread would stand still for half of the time
        ("50000 100000\n", 1),
        ("1600000 100000\n", 6),
        ("something else", 6),
    ],
)
def test_a_quota_counts_where_it_is_less_than_what_is_there(
    content: str | None, wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 5, 6, 7}, raising=False)
    quota = tmp_path / "cpu.max"
    if content is not None:
        quota.write_text(content)
    assert usable_processors(quota) == wanted
