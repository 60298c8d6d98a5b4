"""What the gate and the callbacks cost: time of a training step, side by side.

Many loops train the same small transformer in one process and take turns step by step, in a new
random order every round, so that whatever else the machine does falls on all of them alike. On the
CPU it is CPU time of one thread, on a GPU wall time up to the end of the step's work.

Run `python benchmarks/gate.py --json out.json`; `--help` says how to measure less.
"""

import argparse
import json
import logging
import platform
import random
import statistics
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from gate_variants import SIZES, VARIANTS, VOCABULARY, Setting, transformer
from torch import Tensor

BASE = "auto_clip"
BLOCK = 50
"""Rounds of one sample: the cadence of the callbacks, so that each holds one of their looks."""
LIMITS = {"gate": 1.02, "callbacks": 1.02}
"""Most that a variant may take, in steps of Lightning's automatic optimisation with clipping."""
N_DRAWS = 1000
ALWAYS = (BASE, "gate", "callbacks")
FUSED = ("auto", BASE, "manual_clip", "gate", "callbacks")


class Turns:
    """Batches that are handed out when it is this loop's turn, and the time between them."""

    def __init__(self, setting: Setting) -> None:
        generator = torch.Generator().manual_seed(0)
        size = setting.size
        shape = (setting.n_steps, size.sequences, size.length + 1)
        self.batches = torch.randint(VOCABULARY, shape, generator=generator)
        self.on_gpu = setting.device == "cuda"
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.seconds: list[float] = []
        self.fault: BaseException | None = None

    def __iter__(self) -> Iterator[Tensor]:
        start = self._now()
        for batch in self.batches:
            self.seconds.append(self._now() - start)
            self.done.release()
            self.go.acquire()
            start = self._now()
            yield batch

    def _now(self) -> float:
        if self.on_gpu:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.thread_time()

    def run(self, name: str, setting: Setting) -> None:
        """Train in a thread of its own, one step per turn."""
        torch.set_num_threads(1)
        try:
            VARIANTS[name](setting, iter(self))
        except BaseException as fault:
            self.fault = fault
        finally:
            self.done.release()


def measure(names: list[str], setting: Setting, n_rounds: int) -> dict[str, list[float]]:
    """Run all variants in turns.

    Args:
        names: Of the variants.
        setting: What they share; it has three steps more than are timed, since the first ones
            allocate and the last may be fetched ahead.
        n_rounds: Steps per variant that are timed.

    Returns:
        Seconds of every step of every variant.
    """
    turns = {name: Turns(setting) for name in names}
    threads = []
    for name, turn in turns.items():
        thread = threading.Thread(target=turn.run, args=(name, setting))
        thread.start()
        threads.append(thread)
        turn.done.acquire()
        _check(turn)
    shuffler, order = random.Random(0), list(names)
    for _ in range(setting.n_steps):
        shuffler.shuffle(order)
        for name in order:
            turns[name].go.release()
            turns[name].done.acquire()
            _check(turns[name])
    for thread in threads:
        thread.join()
    return {name: turn.seconds[2 : 2 + n_rounds] for name, turn in turns.items()}


def _check(turn: Turns) -> None:
    if turn.fault is not None:
        raise turn.fault


def typical_block(blocks: list[list[float]]) -> float:
    """Seconds of one block: at each of its places the median over all blocks.

    A look of a callback falls on the same place of every block and is kept; what else the machine
    did at some moment falls on another place each time and is not.
    """
    return sum(statistics.median(places) for places in zip(*blocks, strict=True))


def compare(one: list[float], other: list[float]) -> tuple[float, float, float]:
    """Ratio of two variants' typical blocks, with a 95 % interval by drawing blocks anew.

    Args:
        one: Seconds of every step.
        other: The same of the variant that it is compared with, in the same rounds.
    """
    starts = range(0, len(other), BLOCK)
    pairs = [(one[i : i + BLOCK], other[i : i + BLOCK]) for i in starts]

    def ratio(drawn: list[tuple[list[float], list[float]]]) -> float:
        return typical_block([p[0] for p in drawn]) / typical_block([p[1] for p in drawn])

    chance = random.Random(0)
    draws = sorted(ratio(chance.choices(pairs, k=len(pairs))) for _ in range(N_DRAWS))
    return ratio(pairs), draws[N_DRAWS // 40], draws[-1 - N_DRAWS // 40]


def rows_of(
    names: list[str], size: str, *, n_blocks: int, device: str, fused: bool
) -> list[dict[str, Any]]:
    """Measure the variants at one size, a few at a time, and print a line for each."""
    parameters = sum(p.numel() for part in transformer(SIZES[size]) for p in part.parameters())
    n_rounds = n_blocks * BLOCK
    setting = Setting(SIZES[size], n_rounds + 3, device, fused)
    others = [name for name in names if name not in ALWAYS]
    # weights and optimisers of all that run together must fit into memory
    share = len(others) if size == "1M" else 6
    groups = [others[i : i + share] for i in range(0, len(others), max(share, 1))] or [[]]
    rows = []
    for index, group in enumerate(groups):
        together = [*(ALWAYS if index == 0 else (BASE,)), *group]
        seconds = measure(together, setting, n_rounds)
        for name in together[0 if index == 0 else 1 :]:
            ratio, low, high = compare(seconds[name], seconds[BASE])
            row = {
                "size": size,
                "parameters": parameters,
                "fused": fused,
                "device": device,
                "variant": name,
                "step_ms": 1e3 * typical_block(_blocks(seconds[name])) / BLOCK,
                f"over_{BASE}": ratio,
                f"over_{BASE}_interval": [low, high],
                "limit": LIMITS.get(name),
                "holds": ratio <= LIMITS[name] if name in LIMITS else None,
            }
            rows.append(row)
            print(_line(row), flush=True)
    return rows


def _blocks(seconds: list[float]) -> list[list[float]]:
    return [seconds[i : i + BLOCK] for i in range(0, len(seconds), BLOCK)]


def _line(row: dict[str, Any]) -> str:
    low, high = row[f"over_{BASE}_interval"]
    limit = "" if row["limit"] is None else f"  at most {row['limit']}: {row['holds']}"
    fused = " fused" if row["fused"] else ""
    return (
        f"{row['size']:>4}{fused:6}  {row['variant']:22} {row['step_ms']:8.1f} ms"
        f"  {row[f'over_{BASE}']:.3f} [{low:.3f}, {high:.3f}]{limit}"
    )


def main() -> None:
    """Print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    parser.add_argument("--blocks", type=int, default=6, help="blocks of 50 rounds, at least 2")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--device", choices=["cpu", "cuda"], default=None, help="default: a GPU")
    parser.add_argument("--fused", choices=["off", "on", "both"], default="both")
    arguments = parser.parse_args()
    if arguments.blocks < 2:
        parser.error(f"an interval needs at least 2 blocks: got {arguments.blocks}")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    rows: list[dict[str, Any]] = []
    for size in arguments.sizes:
        for fused in {"off": [False], "on": [True], "both": [False, True]}[arguments.fused]:
            names = [n for n in arguments.variants if not fused or n in FUSED]
            rows += rows_of(names, size, n_blocks=arguments.blocks, device=device, fused=fused)
            if arguments.json:  # what is there already, should the rest be broken off
                report = {"machine": _machine(device), "blocks": arguments.blocks, "rows": rows}
                arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _machine(device: str) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor()
    return {"device": name or platform.machine(), "torch": torch.__version__}


if __name__ == "__main__":
    main()
