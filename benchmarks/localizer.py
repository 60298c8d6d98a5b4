"""Does the network find the right basin? Trained weights beside all whom they must beat.

    python benchmarks/localizer.py --weights ris --json localizer.json

One row per number of sources, signal-to-noise ratio and method, over two seeds that neither
training nor the fixed evaluation set has; then how the cost grows with the surface and the batch.
`benchmarks/README.md` explains the columns. ``--quick`` runs a few scenes, to see that everything
works: its figures mean nothing.
"""

import argparse
import json
import platform
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from growth import growth_rows
from localizer_limits import JUDGED, limits_of, verdict
from speed import measure_eigh

from musicnet.commands.evaluate import (
    QUICK_SNR_DB,
    finite,
    plan_of,
    table_head,
    table_line,
)
from musicnet.commands.evaluation_pictures import draw_all
from musicnet.learning.checkpoint_weights import find_network
from musicnet.localization.contestants import CONTESTANTS, Contestant
from musicnet.localization.evaluation import Cell, Plan, cells_of, evaluate_cell
from musicnet.networks.pretrained import Pretrained

FRESH_SEEDS = (7_301, 7_302)

PARTS = ("cells", "growth")
_STAGES = ("image", "network", "peaks", "refinement")


def cell_rows(
    pretrained: Pretrained, cells: list[Cell], plan: Plan, eigh64_ms: float
) -> list[dict[str, Any]]:
    """Measures and prints all cells; the judged method's rows say what they have to keep."""
    limits = limits_of(pretrained.scene, eigh64_ms)
    if not limits:
        print("no limits: there are some for the default task, and for data symbols in its place")
    print(table_head())
    rows = []
    for cell in cells:
        new = {row["method"]: row for row in evaluate_cell(pretrained, cell, plan)}
        for method, row in new.items():
            print(table_line(row))
            asked = verdict(new, limits) if method == JUDGED else {"limits": None, "holds": None}
            rows.append(row | asked)
        print_limits(rows[-len(new) :])
    return rows


def contestants_of(arguments: argparse.Namespace) -> dict[str, Contestant]:
    """Who takes part; whether they are asked to count the sources as well."""
    names = arguments.methods or list(CONTESTANTS)
    return {
        name: replace(one, counts=one.counts and not arguments.told)
        for name, one in CONTESTANTS.items()
        if name in names
    }


def print_limits(rows: list[dict[str, Any]]) -> None:
    """Limits of a cell, one a line."""
    for row in rows:
        for limit in row["limits"] or ():
            said = "holds" if limit["holds"] else "FAILS"
            print(f"      {said}  item {limit['item']}: {limit['limit']}")
    print(end="", flush=True)


def pooled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Outliers over all cells of a number of sources, clear and noisy ones apart.

    Single cells hold few outliers: their sum says more about ratios.
    """
    table = []
    groups = sorted({(row["n_sources"], row["snr_db"] >= 5.0) for row in rows})
    for n_sources, is_clear in groups:
        some = [r for r in rows if r["n_sources"] == n_sources and (r["snr_db"] >= 5.0) == is_clear]
        counts: dict[str, float] = {}
        for row in some:
            missed = row["outliers"] * row["n_scenes"] * n_sources
            counts[row["method"]] = counts.get(row["method"], 0.0) + missed
        n_scenes = sum(row["n_scenes"] for row in some if row["method"] == JUDGED)
        table.append(
            {
                "n_sources": n_sources,
                "snr_db": sorted({row["snr_db"] for row in some}),
                "n_scenes": n_scenes,
                "n_outliers": {method: round(count) for method, count in counts.items()},
            }
        )
    return table


def print_growth(row: dict[str, Any]) -> None:
    """One line of the table of growth."""
    name = f"{row['side']:>3}x{row['side']:<3}{row['batch']:>6}"
    if row["skipped"] is not None:
        print(f"{name}  skipped: {row['skipped']}", flush=True)
        return
    stages = "".join(f"{row[f'{stage}_ms']:>11.3f}" for stage in _STAGES)
    print(f"{name}{row['cpu_ms_per_scene']:>11.3f}{stages}  {row['dominates']}", flush=True)


def main() -> int:
    """Measures, prints tables and writes the figures."""
    arguments = _parser().parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {
        "eigh64_ms": measure_eigh(),
        "is_quick": arguments.quick,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    print(f"eigh64_ms {figures['eigh64_ms']:.3f}; times are limited by others of the same run")
    if "cells" in arguments.parts:
        try:
            pretrained = find_network(arguments.weights)
            plan = plan_of(arguments.n_scenes, arguments.seeds, is_quick=arguments.quick)
            plan = replace(plan, contestants=contestants_of(arguments))
            cells = arguments.cells or cells_of(pretrained.scene)
            if arguments.quick and not arguments.cells:
                cells = cells_of(pretrained.scene, QUICK_SNR_DB)
            rows = cell_rows(pretrained, cells, plan, figures["eigh64_ms"])
        except (OSError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        if arguments.plots is not None:
            draw_all(arguments.plots, pretrained, rows, plan)
        kept = [limit["holds"] for row in rows for limit in row["limits"] or ()]
        print(f"{sum(kept)} of {len(kept)} limits hold")
        figures |= {"weights": pretrained.name, "seeds": list(plan.seeds), "rows": rows}
        figures["pooled"] = pooled(rows)
        for line in figures["pooled"]:
            ratios = ", ".join(f"{snr:g}" for snr in line["snr_db"])
            counts = ", ".join(f"{name} {n}" for name, n in line["n_outliers"].items())
            print(f"outliers, K={line['n_sources']}, {ratios} dB pooled: {counts}")
    if "growth" in arguments.parts:
        heads = "".join(f"{head:>11}" for head in ("cpu ms", *_STAGES))
        print(f"{'side':<7}{'batch':>6}{heads}  dominates")
        figures["growth"] = []
        for row in growth_rows(is_quick=arguments.quick):
            figures["growth"].append(row)
            print_growth(row)
    if arguments.json is not None:
        content = json.dumps(finite(figures), indent=2, allow_nan=False)
        arguments.json.write_text(content + "\n", encoding="utf-8")
    return 0


def _cell(word: str) -> Cell:
    n_sources, _, snr_db = word.partition(":")
    try:
        return Cell(int(n_sources), float(snr_db))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must read K:SNR, as in 4:10: got {word!r}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="ris", metavar="NAME|FILE", help="default: ris")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--cells", type=_cell, nargs="+", metavar="K:SNR", help="only these")
    parser.add_argument("--n-scenes", type=int, help="of each cell, of all seeds")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(FRESH_SEEDS))
    parser.add_argument(
        "--methods", nargs="+", choices=CONTESTANTS, help="only these; all by default"
    )
    parser.add_argument("--told", action="store_true", help="nobody has to count the sources")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--plots", type=Path, metavar="DIR", help="folder for pictures")
    parser.add_argument("--quick", action="store_true", help="few scenes: does it run at all?")
    return parser


if __name__ == "__main__":
    sys.exit(main())
