"""`diagnosis.json`: what a doctor saw, found and judged, so that it can be asked again later.

The file is whole or not there, carries the id of its run, and holds the evidence itself: a newer
doctor may come to another answer from the same evidence.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musicnet.diagnosis.evidence import RunEvidence
from musicnet.diagnosis.findings import Finding, Judgement
from musicnet.records.atomic_files import write_json
from musicnet.records.log_mark import LogMark
from musicnet.records.plain_data import from_plain, to_plain

FILE_NAME = "diagnosis.json"
FORMAT = "musicnet.diagnosis/2"
AS_LOGGED = "training loss, as logged"
"""Name of the curve by epoch, beside that of what went backward, by batch."""


@dataclass(frozen=True)
class Curve:
    """One series of a run.

    Args:
        name: what it is, with its unit; `part: group` for series by group.
        x: steps or batches, rising.
        y: values, finite.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class Veto:
    """One attempt that did not step.

    Args:
        attempt: its number.
        reason: why.
    """

    attempt: float
    reason: str


@dataclass(frozen=True)
class Diagnosis:
    """All that a doctor leaves of a run.

    Args:
        run_id: whose it is; None if the run has no provenance.
        evidence: what was seen.
        findings: what was found, causes first.
        judgement: the verdict.
        curves: series of the run, thinned out.
        vetoes: the first vetoes.
        log: how far the log of the run went by then; None if there was none.
    """

    run_id: str | None
    evidence: RunEvidence
    findings: tuple[Finding, ...]
    judgement: Judgement
    curves: tuple[Curve, ...] = ()
    vetoes: tuple[Veto, ...] = ()
    log: LogMark | None = None

    def write(self, folder: str | Path) -> Path:
        """Write `diagnosis.json`; a number that is not finite becomes null."""
        path = Path(folder) / FILE_NAME
        write_json(path, {"format": FORMAT, **_finite(to_plain(self))})
        return path


def joined(earlier: Sequence[Curve], later: Sequence[Curve]) -> tuple[Curve, ...]:
    """Curves of a run that was resumed.

    Args:
        earlier: those of before.
        later: those since.

    Returns:
        One curve per name; what the earlier part saw beyond the start of the later one is dropped.

    Example:
        >>> joined([Curve("loss", (1.0, 2.0, 3.0), (9.0, 8.0, 7.0))],
        ...        [Curve("loss", (3.0, 4.0), (6.0, 5.0))])
        (Curve(name='loss', x=(1.0, 2.0, 3.0, 4.0), y=(9.0, 8.0, 6.0, 5.0)),)
    """
    before = {curve.name: curve for curve in earlier}
    found = []
    for curve in later:
        old = before.pop(curve.name, Curve(curve.name, (), ()))
        kept = [place for place, x in enumerate(old.x) if not curve.x or x < curve.x[0]]
        found.append(
            Curve(
                curve.name,
                (*(old.x[place] for place in kept), *curve.x),
                (*(old.y[place] for place in kept), *curve.y),
            )
        )
    return (*before.values(), *found)


def read_diagnosis(folder: str | Path) -> Diagnosis:
    """Read the `diagnosis.json` of a run folder.

    Raises:
        FileNotFoundError: the run has none.
        ValueError: the file is not a diagnosis; the message is one line.
    """
    path = Path(folder) / FILE_NAME
    try:
        tree: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be JSON in UTF-8: got {error}.") from error
    if not isinstance(tree, dict) or tree.pop("format", None) != FORMAT:
        raise ValueError(
            f"{path} must be a {FORMAT}: it was written by another program or version."
        )
    return from_plain(Diagnosis, tree, str(path))


def _finite(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
