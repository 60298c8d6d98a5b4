"""What the log of a run tells: rows of `metrics.jsonl` come in, evidence and curves go out.

A log holds less than a doctor sees who was there: gates, rates, losses and validation, but neither
graphs nor probes.
"""

import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from musicnet.diagnosis.evidence import (
    Gating,
    Length,
    Losses,
    RunEvidence,
    Tally,
    Validation,
)
from musicnet.diagnosis.loss_names import loss_name
from musicnet.diagnosis.saved import Curve, Veto

Row = Mapping[str, Any]

_VALIDATION = re.compile(r"^val")
_TERM = re.compile(r"(loss|penalt|reg|aux|kl|term|objective)", re.IGNORECASE)
_NOT_TRIED = "the log of a run without a doctor has neither graphs nor probes"


def evidence_of(rows: Sequence[Row]) -> RunEvidence:
    """The evidence in the rows of one run.

    Args:
        rows: in the order of the log, non-finite numbers as floats.
    """
    asked = [row for row in rows if row.get("event") in ("step", "veto")]
    vetoes = [row for row in asked if row["event"] == "veto"]
    epochs = _epochs(rows)
    last = rows[-1] if rows else {}
    return RunEvidence(
        length=Length(
            batches=_whole(last.get("batch")),
            steps=max((_whole(row.get("step")) for row in rows), default=0),
            attempts=max((_whole(row.get("attempt")) for row in asked), default=0),
            epochs=len(epochs),
        ),
        gating=_gating(asked, vetoes),
        losses=_losses(epochs, _whole(last.get("batch"))),
        validation=_validation(epochs),
        unseen=(_NOT_TRIED,),
    )


def curves_of(rows: Iterable[Row]) -> tuple[Curve, ...]:
    """The series in the rows, over batches or attempts, under the names that reports use."""
    rows = list(rows)
    names = _curve_names(rows)
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for key, value in row.items():
            if key in names and _is_number(value) and math.isfinite(value):
                x = float(row.get("batch", 0))
                points.setdefault(names[key], []).append((x, float(value)))
    return _as_curves(points)


def losses_by_step(rows: Iterable[Row]) -> tuple[Curve, ...]:
    """The losses that were logged by epoch, over optimiser steps, under their own names."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in _epochs(rows):
        for split in ("train", "val"):
            key = loss_name(row, split)
            if key and _is_number(row[key]) and math.isfinite(row[key]):
                point = (float(_whole(row.get("step"))), float(row[key]))
                points.setdefault(key, []).append(point)
    return _as_curves(points)


def vetoes_of(rows: Iterable[Row]) -> tuple[Veto, ...]:
    """Every attempt that did not step."""
    return tuple(
        Veto(float(row.get("attempt", 0)), str(row.get("reason")))
        for row in rows
        if row.get("event") == "veto"
    )


def _gating(asked: Sequence[Row], vetoes: Sequence[Row]) -> Gating:
    refused = [
        row
        for row in vetoes
        if row.get("reason") not in ("nonfinite", "scaler", "other_rank")
        and _is_positive(row.get("grad_norm"))
    ]
    scales = [scale for row in asked if (scale := _scale(row)) is not None]
    ratios = [1.0 / row["clip_coef"] for row in asked if _is_positive(row.get("clip_coef"))]
    reasons = Counter(_reason(row, before) for row, before in _with_scale(asked))
    reasons.pop("", None)
    empty = [
        key.rpartition("/")[2]
        for key, value in (refused[-1] if refused else {}).items()
        if key.startswith("optim/grad_norm/") and value == 0.0
    ]
    return Gating(
        vetoes=tuple(Tally(name, count) for name, count in sorted(reasons.items())),
        refused_finite=len(refused),
        refused_norm=float(refused[-1]["grad_norm"]) if refused else None,
        empty_groups=tuple(empty),
        clip_ratio=statistics.median(ratios) if ratios else None,
        clip_samples=len(ratios),
        clip_first=ratios[0] if ratios else None,
        scale=scales[-1] if scales else None,
        scale_first=scales[0] if scales else None,
        back_offs=_back_offs(asked),
    )


def _with_scale(asked: Sequence[Row]) -> Iterable[tuple[Row, float | None]]:
    """Every attempt with the loss scale that it found."""
    before: float | None = None
    for row in asked:
        yield row, before
        scale = _scale(row)
        before = before if scale is None else scale


def _scale(row: Row) -> float | None:
    scale: Any = row.get("loss_scale")
    return float(scale) if _is_positive(scale) else None


def _reason(row: Row, scale_before: float | None) -> str:
    """Why a row did not step; empty if it did."""
    if row["event"] == "step":
        return ""
    scale = _scale(row)
    backed_off = scale is not None and (scale_before is None or scale < scale_before)
    return "overflow" if backed_off else str(row.get("reason"))


def _back_offs(asked: Sequence[Row]) -> int:
    """Most falls of the loss scale in a row without a step."""
    in_a_row = most = 0
    for row, before in _with_scale(asked):
        falls = _reason(row, before) == "overflow"
        in_a_row = in_a_row + 1 if falls else 0
        most = max(most, in_a_row)
    return most


def _losses(epochs: Sequence[Row], batches: int) -> Losses:
    names = {key for row in epochs for key in row}
    train_key, val_key = loss_name(names, "train") or "", loss_name(names, "val") or ""
    train = [row[train_key] for row in epochs if _is_number(row.get(train_key))]
    val = [row[val_key] for row in epochs if _is_number(row.get(val_key))]
    finite = [value for value in train if math.isfinite(value)]
    is_gone = bool(train) and not math.isfinite(train[-1])
    terms = {key for row in epochs for key in row if key.startswith("train/") and _TERM.search(key)}
    return Losses(
        n=len(train),
        n_nonfinite=len(train) - len(finite),
        first=finite[0] if len(finite) > 1 else None,
        last=finite[-1] if len(finite) > 1 and not is_gone else None,
        highest=max(finite, default=None),
        zero_terms=tuple(
            Tally(name, batches)
            for name in sorted(terms)
            if len(epochs) > 1 and all(row.get(name, 0.0) == 0.0 for row in epochs)
        ),
        val_first=val[0] if len(val) > 1 and math.isfinite(val[0]) else None,
        val_last=val[-1] if len(val) > 1 and math.isfinite(val[-1]) else None,
        key=train_key,
        val_key=val_key,
    )


def _validation(epochs: Sequence[Row]) -> Validation:
    """Figures that repeat although steps were made in between."""
    figures = [
        (row.get("step"), {key: repr(v) for key, v in row.items() if _VALIDATION.match(key)})
        for row in epochs
    ]
    figures = [(step, values) for step, values in figures if values]
    equal = 1 if figures else 0
    for (before, old), (step, new) in pairwise(figures):
        equal = equal + (step != before) if old == new else 1
    key, value = next(iter(figures[-1][1].items()), ("", "")) if figures else ("", "")
    return Validation(n=len(figures), equal=equal, figure=f"{key} = {value}" if key else "")


def _curve_names(rows: Iterable[Row]) -> dict[str, str]:
    """What reports call the keys of rows that they draw."""
    keys = {key for row in rows for key in row}
    names = {
        loss_name(keys, "train"): "training loss",
        loss_name(keys, "val"): "validation loss",
        "grad_norm": "gradient norm",
    }
    for key in keys:
        for prefix, told in (
            ("optim/lr/", "learning rate"),
            ("optim/delta_ratio/", "update ratio"),
        ):
            if key.startswith(prefix):
                names[key] = f"{told}: {key.removeprefix(prefix)}"
    return {key: name for key, name in names.items() if key is not None}


def _as_curves(points: Mapping[str, Sequence[tuple[float, float]]]) -> tuple[Curve, ...]:
    return tuple(
        Curve(name, tuple(x for x, _ in line), tuple(y for _, y in line))
        for name, line in points.items()
    )


def _epochs(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.get("event") == "epoch"]


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value) and value > 0.0
