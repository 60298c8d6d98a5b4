"""How the benchmark of the gate compares loops, on times made by hand; and each loop trains."""

import importlib.util
import random
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def gate():
    """The script, which is in no package, and the one beside it."""
    modules = []
    for name in ("gate_variants", "gate"):
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        modules.append(importlib.util.module_from_spec(spec))
        sys.modules[name] = modules[-1]
        spec.loader.exec_module(modules[-1])
    yield modules[-1]
    for module in modules:
        del sys.modules[module.__name__]


def times(n_blocks: int, looks: float = 0.0, disturbed: int = 0) -> list[float]:
    """Steps of 1 s, one of each block dearer by what a callback takes, some disturbed at random."""
    seconds = [1.0 + looks * (i % 50 == 7) for i in range(50 * n_blocks)]
    for place in random.Random(1).sample(range(len(seconds)), disturbed):
        seconds[place] += 10.0
    return seconds


def test_the_look_of_a_callback_counts_and_what_the_machine_does_beside_it_does_not(gate) -> None:
    ratio, low, high = gate.compare(times(6, looks=1.0, disturbed=12), times(6, disturbed=8))
    assert ratio == pytest.approx(1.02)
    assert low <= ratio <= high


def test_an_interval_holds_what_blocks_differ_by(gate) -> None:
    blocks = [1.0, 1.1, 0.9, 1.05, 0.95, 1.0]
    one = [seconds for block in blocks for seconds in [block] * 50]
    ratio, low, high = gate.compare(one, times(6))
    assert ratio == pytest.approx(1.0)
    assert 0.9 <= low < ratio < high <= 1.1


def test_every_loop_trains_the_same_network(gate) -> None:
    """To the first digits: all clip, but two that say so, and step at the same rates."""
    variants = sys.modules["gate_variants"]
    small = variants.Size(width=8, sequences=2, length=4)
    setting = variants.Setting(small, n_steps=4, device="cpu", fused=False)
    built = []
    make = variants.transformer

    def remembered(size):
        built.append(make(size))
        return built[-1]

    variants.transformer = remembered
    for name, loop in variants.VARIANTS.items():
        built.clear()
        generator = torch.Generator().manual_seed(0)
        batches = torch.randint(64, (4, 2, 5), generator=generator)
        loop(setting, iter(batches))
        weights = built[0][1].weight.detach()
        if name == "auto":
            unclipped = weights
        elif name == "auto_clip":
            clipped = weights
        expected = unclipped if name in ("auto", "loop") else clipped
        torch.testing.assert_close(weights, expected, rtol=1e-3, atol=1e-5, msg=name)
    variants.transformer = make
