"""How well, and at what cost, every classical estimator finds sources, beside the Cramér-Rao bound.

    python benchmarks/estimators.py --json estimators.json --plots pictures

One row per scenario, method and kind of error; `benchmarks/README.md` explains the columns.
``--quick`` runs a few scenes of each scenario, to see that everything works: its figures mean
nothing. Times are CPU times of one core; their limits are scaled by ``eigh64_ms``, the time of one
complex64 64 x 64 eigendecomposition here, over what it took where the limits were set.
"""

import argparse
import json
import math
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scenarios import CASES, FROM_TRUTH, Bar, Case
from speed import measure_eigh, speed_rows
from torch import Tensor
from trials import Drawn, Trial, draw

from musicnet.coordinates import angles, wrap_angle, xyz_jacobian
from musicnet.estimation.bounds import angle_jacobian
from musicnet.estimation.problem import compress
from musicnet.estimation.refinement import refine
from musicnet.localization import localize
from musicnet.metrics.bound_ratios import (
    OUTLIER_FACTOR,
    bound_ratio,
    efficiency,
    normalized_squared_errors,
    outlier_rate,
)
from musicnet.metrics.matching import Matching, match
from musicnet.scene.sources import Sources

EIGH64_MS = 0.24
"""Where the limits of times were set."""

SCENES_AT_ONCE = 256
_QUICK_SHARE, _QUICK_LEAST = 0.02, 32
_REFINEMENT_STEPS = 20


@dataclass(frozen=True)
class Answer:
    """What a method made of all scenes of a case.

    Args:
        sources: batch (channel, scene).
        covariance: of (u, v, rho), as the method states it; None if it does not.
        cpu_ms: per scene.
    """

    sources: Sources
    covariance: Tensor | None
    cpu_ms: float


def answer(method: str, drawn: Drawn, trial: Trial, *, known: bool) -> Answer:
    """Runs a method over all scenes, and takes its time."""
    parts, seconds = [], 0.0
    for batch in drawn.batches(SCENES_AT_ONCE):
        start = time.process_time()
        parts.append(_ask(method, batch, trial, known=known))
        seconds += time.process_time() - start
    axis = 0 if drawn.truth.resolved.shape[0] > 1 else 1
    parameters, resolved, covariance = (
        None if column[0] is None else torch.cat(column, dim=axis)
        for column in zip(*parts, strict=True)
    )
    return Answer(Sources(parameters, resolved), covariance, 1e3 * seconds / drawn.n_scenes)


def _ask(
    method: str, batch: Drawn, trial: Trial, *, known: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    truth = batch.truth
    if method != FROM_TRUTH:
        n_sources = trial.n_sources if known else None
        found = localize(batch.observation, method, n_sources, region=trial.region)
        return found.sources.parameters, found.sources.resolved, found.covariance
    problem = compress(batch.observation, trial.region)
    start, present = problem.flatten(truth.parameters), problem.flatten(truth.resolved)
    refined = refine(problem, start, present, _REFINEMENT_STEPS)
    return problem.unflatten(refined.parameters), truth.resolved, None


def errors_of(kind: str, found: Sources, drawn: Drawn, matching: Matching) -> tuple[Tensor, Tensor]:
    """Error of each true source, NaN where missing, and the bound's covariance of that error."""
    truth, bound = drawn.truth.parameters.double(), drawn.bound
    index = matching.estimate_index.clamp_min(0)[..., None]
    estimate = found.parameters.double().take_along_dim(index, dim=-2)
    estimate = estimate.masked_fill(~matching.matched[..., None], math.nan)
    if kind == "position_m":
        jacobian = xyz_jacobian(truth)
        return matching.distance.double(), jacobian @ bound @ jacobian.mT
    if kind == "range_m":
        error = (1.0 / estimate[..., 2] - 1.0 / truth[..., 2]).abs()
        jacobian = angle_jacobian(truth)[..., 2:, :]
    else:
        error = wrap_angle(angles(estimate)[0] - angles(truth)[0]).abs().rad2deg()
        jacobian = angle_jacobian(truth)[..., :1, :].rad2deg()
    return error, jacobian @ bound @ jacobian.mT


def rows_of(case: Case, share: float) -> list[dict[str, Any]]:
    """Measures one case."""
    least = _QUICK_LEAST if share < 1.0 else 1
    drawn = draw(case.trial, max(least, round(share * case.n_scenes)))
    some = drawn if case.n_slow is None else next(drawn.batches(max(least, case.n_slow)))
    answers: dict[str, tuple[Answer, Drawn]] = {}
    for method in (*case.methods, *(case.slow if share == 1.0 else ())):
        scenes = some if method in case.slow else drawn
        _ask(method, next(scenes.batches(8)), case.trial, known=case.known)  # warm up
        answers[method] = (answer(method, scenes, case.trial, known=case.known), scenes)
    rows = []
    for kind in case.errors:
        reference: dict[str, float] = {}
        # maximum likelihood from the truth comes first: others are compared with it
        for method in sorted(answers, key=lambda name: name != FROM_TRUTH):
            row = _row(case, kind, method, *answers[method], reference)
            if method == FROM_TRUTH:
                reference = row
            rows.append(row)
    return rows


def _row(
    case: Case, kind: str, method: str, given: Answer, drawn: Drawn, reference: dict[str, Any]
) -> dict[str, Any]:
    found, truth = given.sources, drawn.truth
    matching = match(found, truth, cap=case.cap)
    error, covariance = errors_of(kind, found, drawn, matching)
    deviation = covariance.diagonal(dim1=-2, dim2=-1).sum(-1).sqrt()
    there = error[error.isfinite()]
    exact = truth.resolved.sum(-1) == found.resolved.sum(-1)
    rmse, median = float(there.square().mean().sqrt()), float(there.median())
    row: dict[str, Any] = {
        "item": case.item,
        "scenario": case.trial.name,
        "method": method,
        "error": kind,
        "n_scenes": drawn.n_scenes,
        "median": median,
        "rmse": rmse,
        "bound": float(deviation[deviation.isfinite()].square().mean().sqrt()),
        "rmse_over_bound": float(bound_ratio(error, deviation)),
        "outliers": float(outlier_rate(error, deviation)),
        "efficiency": float(efficiency(error, covariance)),
        "resolved": float(matching.matched.sum() / truth.resolved.sum()),
        "count_right": float(exact.double().mean()),
        "nees": _nees(given, drawn, matching, error <= OUTLIER_FACTOR * deviation),
        "rmse_over_truth_start": rmse / reference["rmse"] if reference else None,
        "median_over_truth_start": median / reference["median"] if reference else None,
        "cpu_ms_per_scene": given.cpu_ms,
    }
    return row | _verdict(row, [bar for bar in case.bars if bar.applies(method, kind)])


def _nees(given: Answer, drawn: Drawn, matching: Matching, near: Tensor) -> float:
    """Squared errors over the stated variance, 1 if honest; the bound stands in for no statement.

    Outliers would rule the mean and are left out: they have a column of their own.
    """
    index = matching.estimate_index.clamp_min(0)[..., None]
    estimate = given.sources.parameters.take_along_dim(index, dim=-2)
    if given.covariance is None:
        stated = drawn.bound
    else:
        stated = given.covariance.take_along_dim(index[..., None], dim=-3)
    squared = normalized_squared_errors((estimate - drawn.truth.parameters).double(), stated)
    used = matching.matched & near & squared.isfinite()
    return float(squared[used].mean())


def _verdict(row: dict[str, Any], bars: list[Bar]) -> dict[str, Any]:
    """The limits of a row, and whether it keeps them."""
    if not bars:
        return {"limits": None, "holds": None}
    limits = {bar.column: [bar.low, bar.high] for bar in bars}
    return {"limits": limits, "holds": all(bar.holds(row) for bar in bars)}


def scaled(cases: list[Case], eigh64_ms: float) -> list[Case]:
    """Cases with the limits of times as they are on this machine."""
    return [case.scaled(eigh64_ms / EIGH64_MS) for case in cases]


def print_row(row: dict[str, Any]) -> None:
    """One line of the table."""
    said = {True: "holds", False: "FAILS", None: ""}[row["holds"]]
    limits = row["limits"] or {}
    spoken = ", ".join(f"{column} {_interval(*bounds)}" for column, bounds in limits.items())
    name = f"{row['scenario']:<44} {row['method']:<12} {row.get('error', ''):<12}"
    columns = ("median", "rmse", "rmse_over_bound", "outliers", "efficiency", "resolved", "nees")
    columns += ("count_right",)
    figures = "".join(f"{_spoken(row.get(column)):>9}" for column in columns)
    time_ms = f"{row['cpu_ms_per_scene']:10.3f}"
    print(f"{row['item']} {name}{figures}{time_ms}  {said} {spoken}", flush=True)


def _interval(low: float | None, high: float) -> str:
    return f"<= {high:.3g}" if low is None else f"in [{low:.3g}, {high:.3g}]"


def _spoken(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def main() -> None:
    """Measures, prints a table, writes the figures and draws the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--plots", type=Path, help="folder for pictures")
    parser.add_argument("--items", type=int, nargs="+", help="only these items")
    parser.add_argument("--quick", action="store_true", help="few scenes: does it run at all?")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    share = _QUICK_SHARE if arguments.quick else 1.0
    eigh64_ms = measure_eigh()
    print(f"eigh64_ms {eigh64_ms:.3f}; limits of times are those of {EIGH64_MS} scaled")
    heads = ("median", "rmse", "/bound", "outliers", "effic.", "resolved", "nees", "count")
    print(f"{'':71}" + "".join(f"{head:>9}" for head in heads) + f"{'cpu ms':>10}")
    rows = []
    for case in scaled(CASES, eigh64_ms):
        if arguments.items is None or case.item in arguments.items:
            new = rows_of(case, share)
            rows += new
            for row in new:
                print_row(row)
    if arguments.items is None or 6 in arguments.items:
        for row in speed_rows(eigh64_ms / EIGH64_MS, is_quick=arguments.quick):
            rows.append(row)
            print_row(row)
    kept = [row["holds"] for row in rows if row["holds"] is not None]
    print(f"{sum(kept)} of {len(kept)} limits hold")
    figures = {
        "eigh64_ms": eigh64_ms,
        "is_quick": arguments.quick,
        "threads": torch.get_num_threads(),
        "scenes_at_once": SCENES_AT_ONCE,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "rows": rows,
    }
    if arguments.json is not None:
        content = json.dumps(_finite(figures), indent=2, allow_nan=False)
        arguments.json.write_text(content + "\n", encoding="utf-8")
    if arguments.plots is not None:
        from pictures import draw_all

        draw_all(arguments.plots, answer, errors_of, is_quick=arguments.quick)


def _finite(tree: Any) -> Any:
    """JSON has no NaN: what is not finite is null."""
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


if __name__ == "__main__":
    main()
