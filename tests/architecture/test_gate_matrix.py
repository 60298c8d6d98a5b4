"""The matrix of hard places for the gate: every row is a test that is called after its number.

The tests lie in tests/unit/gate/matrix; a row may have several, and further ones elsewhere.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]

ROWS = {
    # the rule
    1: "a head that starts at zero steps at the first batch",
    2: "a rule that asks for every group is told to be stuck within 20 attempts",
    3: "nan batch: weights, optimiser state, rates, average bit-identical",
    4: "infinite gradient",
    5: "zero gradients move nothing, weight decay included",
    6: "no gradient at all is a reason of its own",
    7: "frozen group: steps, its norm absent and not zero",
    8: "one parameter without a gradient",
    9: "sparse: duplicates of 3 and 4 are 7",
    10: "complex gradients",
    11: "bf16-mixed",
    12: "bf16-true: a step that moves nothing is warned of",
    13: "half gradients with a norm beyond 65504",
    14: "norm of 1e-25",
    15: "norm of 1e25, clipped",
    # fp16 with a loss scaler
    16: "overflow is skipped, then all counters agree",
    17: "a loop that never updates its scale is told to be stuck",
    18: "underflow: the scale grows",
    19: "fused AdamW",
    20: "the logged norm is that of float32",
    21: "a clipped step is as long as that of float32",
    22: "two optimisers: an overflow in one leaves the norm of the other exact",
    23: "the scale falls below its floor",
    # accumulation and clipping
    24: "the last window is weighted by what it holds",
    25: "nan in one batch vetoes its window, the next starts clean",
    26: "a window of four is a batch four times as large",
    27: "clipping shortens to the limit, or touches no bit",
    28: "clipping by value is refused",
    # two processes
    29: "nan on one rank",
    30: "nan after the exchange",
    31: "gradients that were never exchanged",
    32: "parameters that some batches leave out",
    33: "weights bit-identical after 50 steps",
    34: "one rank without gradients",
    35: "FSDP2: norm and weights of one process",
    36: "FSDP2: nan in one shard",
    # the trainer
    37: "compiled network: same norms, same names",
    38: "two optimisers and max_steps",
    39: "global_step is the number of real steps",
    40: "max_steps and nothing but vetoes ends",
    41: "fast_dev_run of 1 and 3",
    42: "overfit_batches: judged on the batch that is trained on",
    43: "no epochs, no batches",
    # resuming
    44: "at an epoch, to the last bit",
    45: "loss scale and growth",
    46: "inside an epoch, with a loader that can",
    47: "inside an epoch, with a loader that cannot: warned of",
    48: "checkpoint without a gate",
    49: "another length of the run is told",
    50: "plain data that load safely",
    # rates and averages
    51: "warm-up for all lengths of a run",
    52: "the head at four times the rate, resumed and under SWA too",
    53: "torch has nothing to say of the order of steps",
    54: "rates of Lightning's SWA move by the epoch",
    55: "the statistics pass of Lightning's SWA does not train",
    56: "the average counts real steps",
    # corners
    57: "LBFGS: one report per step, nan in a line search undone",
    58: "early stopping survives a veto",
    59: "checkpoints by step are not repeated under vetoes",
    60: "an error in a toggled optimiser",
    61: "a profiler and ten vetoes",
    62: "gradient checkpointing",
    63: "no logger",
    64: "misspelt keys behind both doors",
    65: "hyper-parameters from OmegaConf",
    66: "a bare optimiser in a fit is warned of",
    67: "thawing and new groups in a run",
    68: "a veto under BatchNorm leaves the whole state as a run without the batch",
    69: "the adapter refuses fused and fp16",
    70: "one norm and one wait for the device per attempt",
}

MAY_NOT_RUN = {"gpu", "slow", "skip", "skipif", "xfail"}


def marks(function: ast.FunctionDef) -> set[str]:
    """Names of the pytest marks on a test."""
    text = " ".join(map(ast.unparse, function.decorator_list))
    return set(re.findall(r"pytest\.mark\.(\w+)", text))


def rows_tested() -> dict[int, list[set[str]]]:
    """The marks of every test of every row, by its number."""
    found: dict[int, list[set[str]]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and (
                row := re.match(r"test_row_(\d\d)_", node.name)
            ):
                found.setdefault(int(row[1]), []).append(marks(node))
    return found


def test_every_row_has_a_test_that_runs_on_every_machine() -> None:
    found = rows_tested()
    assert sorted(ROWS) == list(range(1, 71))
    assert sorted(found) == sorted(ROWS)
    assert not [row for row, tests in found.items() if all(each & MAY_NOT_RUN for each in tests)]
