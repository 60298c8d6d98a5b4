"""`python -m musicnet evaluate --weights NAME|FILE`: how good trained weights are.

Weights come in; a table goes out, as JSON too (``musicnet.evaluation/1``), with pictures on
request. The scenes are fixed and training never sees them.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from musicnet.commands.parsing import (
    BAD_INPUT,
    OneLineParser,
    check_file_target,
    check_folder_target,
    told,
)
from musicnet.learning.checkpoint_weights import find_network
from musicnet.localization.evaluation import (
    BASELINE,
    EVALUATION_SEEDS,
    SNR_DB,
    Plan,
    Row,
    cells_of,
    evaluate_cell,
)
from musicnet.networks.pretrained import Pretrained
from musicnet.plots.figures import new_figure
from musicnet.records.atomic_files import write_json
from musicnet.records.provenance import collect_provenance

FORMAT = "musicnet.evaluation/1"
"""What the output is, and its version."""

QUICK_SNR_DB = (0.0, 20.0)

_WIDTH = 10  # of a column

_COLUMNS = {
    "median": "median",
    "rmse": "rmse",
    "bound": "bound",
    "recall": "recall",
    "outliers": "outliers",
    "efficiency": "effic.",
    "nees_xyz": "nees",
    "count_right": "count",
    "gospa": "gospa",
    f"cpu_over_{BASELINE}": f"/{BASELINE}",
}


def run(argv: Sequence[str]) -> int:
    """Judge trained weights.

    Args:
        argv: what follows the word `evaluate`.

    Returns:
        The exit code: 0, or 1 after one line on what is wrong.
    """
    try:
        arguments = _parser().parse_args(argv)
        _check_targets(arguments.json, arguments.plots)
        pretrained = find_network(arguments.weights)
        plan = plan_of(arguments.n_scenes, arguments.seeds, is_quick=arguments.quick)
        snr_db = QUICK_SNR_DB if arguments.quick else SNR_DB
        with one_thread():
            tree = evaluation(pretrained, plan, snr_db, print)
        if arguments.json is not None:
            write_json(arguments.json, finite(tree))
        if arguments.plots is not None:
            _draw(arguments.plots, pretrained, tree["rows"], plan)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        sys.stderr.write(told(error))
        return BAD_INPUT
    return 0


def plan_of(n_scenes: int | None, seeds: Sequence[int] | None, *, is_quick: bool) -> Plan:
    """How much to measure.

    Args:
        n_scenes: of each cell; None is the plan's own number.
        seeds: of the scenes; None are the fixed ones.
        is_quick: a few scenes, to see that everything works.

    Returns:
        The plan.
    """
    chosen: dict[str, Any] = {"seeds": tuple(seeds or EVALUATION_SEEDS)}
    if is_quick:
        chosen |= {"n_scenes": 32, "scenes_per_channel": 8, "n_draws": 50}
    if n_scenes is not None:
        chosen["n_scenes"] = n_scenes
    return Plan(**chosen)


def evaluation(
    pretrained: Pretrained, plan: Plan, snr_db: Sequence[float], say: Callable[[str], Any]
) -> dict[str, Any]:
    """Measures all cells and says each row as it comes.

    Args:
        pretrained: the network that is judged.
        plan: how much.
        snr_db: of the cells.
        say: takes a line of the table.

    Returns:
        The tree of ``musicnet.evaluation/1``; numbers may be infinite or NaN.
    """
    say(table_head())
    rows: list[Row] = []
    for cell in cells_of(pretrained.scene, tuple(snr_db)):
        for row in evaluate_cell(pretrained, cell, plan):
            rows.append(row)
            say(table_line(row))
    config = {
        "command": "evaluate",
        "weights": {"name": pretrained.name, "sha256": pretrained.sha256},
        "seeds": list(plan.seeds),
        "n_scenes": plan.n_scenes,
        "scenes_per_channel": plan.scenes_per_channel,
    }
    origin = collect_provenance(config, code_folder=Path(__file__).parent)
    return {
        "format": FORMAT,
        "provenance": {**asdict(origin), "config": config},
        "weights": pretrained.name,
        "card": pretrained.card,
        "rows": rows,
    }


def table_head() -> str:
    """Names of the columns."""
    heads = "".join(f"{head:>{_WIDTH}}" for head in (*_COLUMNS.values(), "cpu ms"))
    return f"{'K':>2}{'dB':>5}  {'method':<15}{heads}"


def table_line(row: Row) -> str:
    """One row of the table."""
    figures = [_spoken(row[column]) for column in _COLUMNS]
    figures.append(_spoken(row["cpu_ms_per_scene"], digits=3))
    name = f"{row['n_sources']:>2}{row['snr_db']:>5g}  {row['method']:<15}"
    return name + "".join(f"{figure:>{_WIDTH}}" for figure in figures)


def finite(tree: Any) -> Any:
    """JSON has no NaN: what is not finite is null.

    Example:
        >>> finite({"ratio": [1.0, float("inf")]})
        {'ratio': [1.0, None]}
    """
    if isinstance(tree, dict):
        return {key: finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


@contextmanager
def one_thread() -> Iterator[None]:
    """One core, so that CPU time says what a method costs, not how it was shared out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _spoken(value: float | None, digits: int = 4) -> str:
    """A figure that leaves a gap to the one before it."""
    if value is None:
        return ""
    said = f"{value:.{digits}f}"
    return said if len(said) < _WIDTH else f"{value:.2e}"


def _draw(folder: Path, pretrained: Pretrained, rows: Sequence[Row], plan: Plan) -> None:
    # matplotlib is an extra, and takes its time
    from musicnet.commands.evaluation_pictures import draw_all

    for file in draw_all(folder, pretrained, rows, plan):
        print(file)


def _check_targets(file: Path | None, folder: Path | None) -> None:
    """Finds out before the work, not after it, where the answer cannot go."""
    check_file_target("--json", file)
    if folder is not None:
        new_figure()  # says what to install
    check_folder_target("--plots", folder)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m musicnet evaluate",
        description="How good trained weights are, beside classical methods and the bound: one row "
        "for each number of sources, signal-to-noise ratio and method.",
        allow_abbrev=False,
    )
    parser.add_argument("--weights", required=True, metavar="NAME|FILE", help="what to judge")
    parser.add_argument("--json", type=Path, help=f"where the figures go ({FORMAT})")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="folder for pictures")
    parser.add_argument(
        "--n-scenes",
        type=int,
        metavar="N",
        help="of each cell, of all seeds; rounded up to whole channels",
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="of the scenes; default: fixed ones")
    parser.add_argument("--quick", action="store_true", help="few scenes: does it run at all?")
    return parser
