"""Did it learn? What was seen and what was asked for come in, a verdict goes out.

There are three verdicts. `pass`: every bar was met. `fail`: all was seen, and a bar was missed.
`unknown`: something that the judgement needs was not seen, so neither can be said.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeGuard

from musicnet.diagnosis.findings import Finding
from musicnet.records.atomic_files import write_json
from musicnet.records.plain_data import from_plain

FILE_NAME = "verdict.json"
Outcome = Literal["pass", "fail", "unknown"]
EXIT_CODES: dict[Outcome, int] = {"pass": 0, "fail": 3, "unknown": 4}


@dataclass(frozen=True)
class Evidence:
    """What was seen of a training run; None stands for what was not.

    Args:
        loss_first: loss on the trained samples in eval mode, before the first step.
        loss_last: the same after the last step.
        val_first: validation loss before the first step.
        val_last: the same after the last step.
        train_first: mean loss of the training batches of the first epoch.
        train_last: the same of the last epoch.
        recall: share of the true sources that were found, in [0, 1].
        median_error_m: median position error, metres.
        delta_total: norm of the way that all parameters went, end to end, since the start or, in a
            resumed run, since the resume.
        still_groups: parameter groups that should have moved and did not.
        steps: optimiser steps that were taken, those before a resume included.
        resumed_at: how many of them were taken before the resume; 0 in a run that was not resumed.
        skipped: attempts that the gate vetoed.
        faults: why the run itself cannot be judged.
        ended_early: why it took fewer steps than planned.
    """

    loss_first: float | None = None
    loss_last: float | None = None
    val_first: float | None = None
    val_last: float | None = None
    train_first: float | None = None
    train_last: float | None = None
    recall: float | None = None
    median_error_m: float | None = None
    delta_total: float | None = None
    still_groups: tuple[str, ...] = ()
    steps: int = 0
    skipped: int = 0
    resumed_at: int = 0
    faults: tuple[str, ...] = ()
    ended_early: str | None = None


@dataclass(frozen=True)
class Bars:
    """What a run must reach. A bar of None is not asked for.

    Args:
        min_loss_drop: share of the first loss that must be gone at the end, in (0, 1].
        min_recall: least recall, in [0, 1].
        max_median_m: largest median position error, metres.
        max_skipped_fraction: largest share of vetoed attempts, in [0, 1].

    Example:
        >>> Bars(min_recall=94.0)
        Traceback (most recent call last):
        ValueError: min_recall must be a share between 0 and 1: got 94.0. Write 0.94 for 94 %.
    """

    min_loss_drop: float | None = 0.97
    min_recall: float | None = None
    max_median_m: float | None = None
    max_skipped_fraction: float = 0.1

    def __post_init__(self) -> None:
        for name in ("min_loss_drop", "min_recall", "max_skipped_fraction"):
            share = getattr(self, name)
            if share is not None and not 0.0 <= share <= 1.0:
                raise ValueError(
                    f"{name} must be a share between 0 and 1: got {share}. Write 0.94 for 94 %."
                )
        if self.max_median_m is not None and not 0.0 < self.max_median_m < math.inf:
            raise ValueError(
                f"max_median_m must be a finite length > 0: got {self.max_median_m}. "
                "Give metres, or None to ask for nothing."
            )


@dataclass(frozen=True)
class Verdict:
    """The judgement of one run, and the numbers that it rests on.

    Args:
        verdict: pass, fail or unknown.
        reasons: why it is not a pass; empty for a pass.
        loss_first: this and the numbers down to `skipped`: see `Evidence`.
        seconds: wall time since the start of the process.
        run_id: whose verdict this is; None if the run has no provenance.
    """

    verdict: Outcome
    reasons: tuple[str, ...]
    loss_first: float | None
    loss_last: float | None
    val_first: float | None
    val_last: float | None
    recall: float | None
    median_error_m: float | None
    delta_total: float | None
    steps: int
    skipped: int
    seconds: float
    run_id: str | None

    @property
    def exit_code(self) -> int:
        """0 for pass, 3 for fail, 4 for unknown."""
        return EXIT_CODES[self.verdict]

    def write(self, folder: str | Path) -> Path:
        """Write `verdict.json`; numbers that are not finite become null, the reasons name them."""
        path = Path(folder) / FILE_NAME
        tree = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
        }
        write_json(path, tree)
        return path


def read_verdict(folder: str | Path) -> Verdict:
    """Read the `verdict.json` of a run folder.

    Raises:
        FileNotFoundError: the run has no verdict.
        ValueError: the file is not a verdict.
    """
    path = Path(folder) / FILE_NAME
    try:
        tree: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be JSON: got {error}. Run the training again.") from error
    read = from_plain(Verdict, tree, str(path))
    if (read.verdict == "pass") == bool(read.reasons):
        raise ValueError(f"{path} must give reasons unless it is a pass: got {read.reasons}.")
    return read


def judge(evidence: Evidence, bars: Bars, *, seconds: float, run_id: str | None) -> Verdict:
    """Hold the evidence against the bars.

    Args:
        evidence: what was seen.
        bars: what was asked for.
        seconds: wall time since the start of the process.
        run_id: whose verdict it is.

    Returns:
        `unknown` if anything that the bars need was not seen, or if a bar was missed by a run that
        ended before its time; else `fail` if a bar was missed; else `pass`.

    Example:
        >>> seen = Evidence(loss_first=2.0, loss_last=0.5, val_first=2.0, val_last=0.5, steps=10,
        ...                 delta_total=1.0)
        >>> verdict = judge(seen, Bars(), seconds=1.0, run_id=None)
        >>> verdict.exit_code, verdict.reasons
        (3, ('the loss fell by 75.00 % of 2, a fall by 97.00 % was asked for',))
    """
    doubts = [*evidence.faults, *_doubts(evidence, bars)]
    misses = [*_misses(evidence, bars)]
    if misses and evidence.ended_early:
        doubts.append(evidence.ended_early)
    outcome: Outcome = "unknown" if doubts else "fail" if misses else "pass"
    return Verdict(
        verdict=outcome,
        reasons=(*doubts, *misses),
        loss_first=evidence.loss_first,
        loss_last=evidence.loss_last,
        val_first=evidence.val_first,
        val_last=evidence.val_last,
        recall=evidence.recall,
        median_error_m=evidence.median_error_m,
        delta_total=evidence.delta_total,
        steps=evidence.steps,
        skipped=evidence.skipped,
        seconds=round(seconds, 2),
        run_id=run_id,
    )


def because(verdict: Verdict, findings: Sequence[Finding]) -> Verdict:
    """The verdict with the cause that a doctor has found before the bars that were missed.

    Example:
        >>> seen = Evidence(steps=10, delta_total=1.0)
        >>> bars = Bars(min_loss_drop=None, min_recall=0.9)
        >>> verdict = judge(seen, bars, seconds=1.0, run_id=None)
        >>> because(verdict, [Finding("GROUP_FROZEN", "off.", "backbone")]).reasons
        ('GROUP_FROZEN in backbone: off', 'recall is None')
    """
    if not findings:
        return verdict
    first = findings[0]
    place = f" in {first.where}" if first.where else ""
    # reasons are joined by semicolons, and none of them is a sentence
    told = f"{first.code}{place}: {first.evidence.rstrip('.')}"
    return replace(verdict, reasons=(told, *verdict.reasons))


def _doubts(evidence: Evidence, bars: Bars) -> Iterator[str]:
    """What the bars need and was not seen."""
    if evidence.steps == 0 and evidence.skipped == 0:
        yield "no optimiser step was tried"
    if not _is_number(evidence.delta_total):
        yield f"delta_total is {evidence.delta_total}"
    if bars.min_loss_drop is not None:
        yield from _doubtful_losses(evidence)
    if bars.min_recall is not None and not _is_number(evidence.recall):
        yield f"recall is {evidence.recall}"
    # With nothing found there is no error to take the median of; the recall says so already.
    wants_median = bars.max_median_m is not None and evidence.recall != 0.0
    if wants_median and not _is_number(evidence.median_error_m):
        yield f"median_error_m is {evidence.median_error_m}"


def _doubtful_losses(evidence: Evidence) -> Iterator[str]:
    for name in ("loss_first", "loss_last", "val_first", "val_last"):
        if not _is_number(loss := getattr(evidence, name)):
            yield f"{name} is {loss}"
        elif name.endswith("first") and loss <= 0.0:
            yield f"{name} is {loss:g}, and a drop is a share of a first loss > 0"
    # The loss of the training batches is a witness, not a bar: absent is fine, NaN is not.
    for name in ("train_first", "train_last"):
        if (loss := getattr(evidence, name)) is not None and not math.isfinite(loss):
            yield f"{name} is {loss}"


def _misses(evidence: Evidence, bars: Bars) -> Iterator[str]:
    """The bars that what was seen does not reach."""
    attempts = evidence.steps + evidence.skipped
    if evidence.steps == 0 and evidence.skipped:
        yield f"none of {attempts} attempts was a real step"
    elif attempts and evidence.skipped > bars.max_skipped_fraction * attempts:
        yield (
            f"{evidence.skipped} of {attempts} attempts were vetoed, at most "
            f"{100 * bars.max_skipped_fraction:g} % may be"
        )
    new_steps = evidence.steps - evidence.resumed_at
    if new_steps > 0 and evidence.delta_total == 0.0:
        since = " since the resume" if evidence.resumed_at else ""
        yield f"no parameter moved in {new_steps} steps{since}"
    elif evidence.still_groups:
        yield f"parameter groups that never moved: {', '.join(evidence.still_groups)}"
    yield from _missed_losses(evidence, bars)
    if _below(evidence.recall, bars.min_recall):
        yield f"recall is {evidence.recall:.4f}, {bars.min_recall:g} was asked for"
    if _below(bars.max_median_m, evidence.median_error_m):
        yield (
            f"median error is {evidence.median_error_m:.3g} m, "
            f"{bars.max_median_m:g} m was asked for"
        )


def _missed_losses(evidence: Evidence, bars: Bars) -> Iterator[str]:
    if bars.min_loss_drop is None:
        return
    first, last = evidence.loss_first, evidence.loss_last
    if _is_number(first) and _is_number(last) and first > 0.0:
        drop = 1.0 - last / first
        if drop < bars.min_loss_drop:
            way = "fell" if drop >= 0.0 else "rose"
            yield (
                f"the loss {way} by {abs(100 * drop):.2f} % of {first:g}, a fall by "
                f"{100 * bars.min_loss_drop:.2f} % was asked for"
            )
    for what, before, after in (
        ("validation", evidence.val_first, evidence.val_last),
        ("training", evidence.train_first, evidence.train_last),
    ):
        if before is not None and after is not None and after >= before:
            yield f"the {what} loss did not fall: {before:g} at first, {after:g} at last"


def _is_number(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _below(value: float | None, bar: float | None) -> bool:
    return value is not None and bar is not None and value < bar
