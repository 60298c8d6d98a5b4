"""The folder of a run, read with suspicion: whose log is it, is it whole, is it of this code?

A folder comes in; what can be said of its run goes out, or the reason why nothing can. A log that
is empty, torn, mixed or of another run gets no verdict, and one of older code only on request.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from musicnet.diagnosis import saved
from musicnet.diagnosis.evidence import RunEvidence
from musicnet.diagnosis.findings import Finding, Judgement, in_order
from musicnet.diagnosis.judging import diagnose, judge_run
from musicnet.diagnosis.log_evidence import Row, curves_of, evidence_of, vetoes_of
from musicnet.diagnosis.saved import Diagnosis, read_diagnosis
from musicnet.records import provenance
from musicnet.records.append_log import read_rows
from musicnet.records.plain_data import to_plain
from musicnet.records.provenance import Provenance, hash_config, read_provenance

LOG_NAME = "metrics.jsonl"
CONFIG_NAME = "config.yaml"


class UnreadableRun(ValueError):  # noqa: N818
    """Nothing can be said of a run; the message says why, in one line."""


@dataclass(frozen=True)
class Asked:
    """What a run is asked to be of.

    Args:
        git_commit: of the code; None asks for nothing.
        config_hash: of the configuration; None asks for nothing.
        data_hash: of the recorded data; None asks for nothing.
    """

    git_commit: str | None = None
    config_hash: str | None = None
    data_hash: str | None = None


@dataclass(frozen=True)
class Reading:
    """What a run folder says.

    Args:
        folder: of the run.
        origin: where the run comes from; None if only a doctor has left something.
        diagnosis: findings and verdict.
        stale: how the run differs from what is asked; empty if it does not.
        notes: what else is to be known.
    """

    folder: Path
    origin: Provenance | None
    diagnosis: Diagnosis
    stale: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def judgement(self) -> Judgement:
        """The verdict; "could not tell" of a run that is stale."""
        if self.stale:
            return Judgement("could not tell", f"stale: {'; '.join(self.stale)}.")
        return self.diagnosis.judgement

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was found; nothing in a run that is stale."""
        return () if self.stale else self.diagnosis.findings


def read_run(folder: Path, asked: Asked) -> Reading:
    """Read what a run has left, finished or killed.

    Args:
        folder: of the run.
        asked: what it must be of.

    Raises:
        FileNotFoundError: there is no such folder.
        UnreadableRun: nothing can be said of the run.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no such run folder: {folder}")
    try:
        origin = _origin(folder)
        rows = _rows(folder, origin)
        left = read_diagnosis(folder) if (folder / saved.FILE_NAME).exists() else None
        stale = tuple(_differences(folder, origin, rows, asked))
    except (ValueError, OSError) as error:
        raise UnreadableRun(" ".join(str(error).split())) from error
    if left is not None and origin is not None and left.run_id != origin.run_id:
        raise UnreadableRun(
            f"{folder / saved.FILE_NAME} is of run {left.run_id}, the folder of {origin.run_id}: "
            "two runs are mixed."
        )
    if left is None and not any(_says_something(row) for row in rows):
        raise UnreadableRun(_why_nothing(folder, rows))
    return Reading(
        folder=folder,
        origin=origin,
        diagnosis=_diagnosis(origin, rows, left),
        stale=stale,
        notes=tuple(_notes(origin, left)),
    )


def config_hash_of(path: Path) -> str:
    """The hash of a configuration file, as provenance has it.

    Raises:
        ValueError: it is no YAML mapping; one line.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path} must be a mapping: got {type(tree).__name__}.")
    return hash_config(tree)


def _origin(folder: Path) -> Provenance | None:
    if (folder / provenance.FILE_NAME).exists():
        return read_provenance(folder)
    if (folder / LOG_NAME).exists():
        raise ValueError(
            f"{folder / LOG_NAME} lies there without {provenance.FILE_NAME}: whose it is cannot "
            "be told."
        )
    if not (folder / saved.FILE_NAME).exists():
        raise ValueError(f"{folder} has neither {LOG_NAME} nor {saved.FILE_NAME}: no run left it.")
    return None


def _rows(folder: Path, origin: Provenance | None) -> list[dict[str, Any]]:
    path = folder / LOG_NAME
    if origin is None or not path.exists():
        return []
    rows = read_rows(path, run_id=origin.run_id)
    for axis in ("batch", "attempt"):
        last = 0
        for number, row in enumerate(rows, start=1):
            value = row.get(axis)
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"{path}, line {number}: {axis} must be a whole number: {value!r}")
            is_again = axis == "attempt" and value == last
            if value < last or is_again:
                raise ValueError(
                    f"{path}, line {number}: {axis} {value} comes after {last}: two runs are mixed."
                )
            last = value
    return rows


def _says_something(row: Row) -> bool:
    values = [value for key, value in row.items() if key not in ("batch", "step", "epoch", "phase")]
    return any(isinstance(value, float) and math.isfinite(value) for value in values)


def _why_nothing(folder: Path, rows: Sequence[Row]) -> str:
    path = folder / LOG_NAME
    if not path.exists():
        return f"{path} is missing."
    if rows:
        return f"{path}, line {len(rows)}: not one of its {len(rows)} rows has a finite number."
    torn = path.stat().st_size > 0
    return f"{path}, line 1: {'only a torn line' if torn else 'the log is empty'}."


def _diagnosis(origin: Provenance | None, rows: Sequence[Row], left: Diagnosis | None) -> Diagnosis:
    """What the doctor left, judged anew; without one, what the log alone tells."""
    run_id = None if origin is None else origin.run_id
    told = evidence_of(rows)
    seen: RunEvidence = told if left is None else left.evidence
    found = {(one.code, one.where): one for one in (*(left.findings if left else ()),)}
    for finding in (*diagnose(seen), *diagnose(told)):
        known = any(code == finding.code for code, _ in found)
        if not known:
            found[finding.code, finding.where] = finding
    findings = tuple(in_order(found.values()))
    judgement = judge_run(seen, findings)
    if left is None:
        return Diagnosis(run_id, seen, findings, judgement, curves_of(rows), vetoes_of(rows))
    return replace(left, findings=findings, judgement=judgement)


def _differences(
    folder: Path, origin: Provenance | None, rows: Sequence[Row], asked: Asked
) -> list[str]:
    if origin is None:
        return []
    found = []
    if asked.git_commit and origin.git_commit and asked.git_commit != origin.git_commit:
        found.append(
            f"this log is from commit {origin.git_commit[:10]}, started {origin.started}, before "
            f"or beside the change that is now {asked.git_commit[:10]}"
        )
    if asked.config_hash and asked.config_hash != origin.config_hash:
        found.append(
            f"this run had another configuration, {_short(origin.config_hash)}; "
            f"{_short(asked.config_hash)} is asked for"
        )
    if asked.data_hash and asked.data_hash != origin.data_hash:
        found.append(
            f"this run had other data, {_short(origin.data_hash)}; {_short(asked.data_hash)} is "
            "asked for"
        )
    path = folder / CONFIG_NAME
    # a run that went on from a checkpoint of another folder had its path in the configuration
    began_here = all(row.get("step", 0) <= 1 for row in rows[:1])
    if path.exists() and began_here and config_hash_of(path) != origin.config_hash:
        found.append(f"{path.name} is no longer the one that this run had")
    return found


def _notes(origin: Provenance | None, left: Diagnosis | None) -> list[str]:
    notes = []
    if origin is not None and origin.git_dirty:
        notes.append("the code had changes that no commit holds")
    if left is None:
        notes.append("no doctor was there: findings rest on the log alone")
    elif left.evidence.unseen:
        notes += [f"not seen: {line}" for line in left.evidence.unseen]
    return notes


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:10]


def dumped(reading: Reading) -> dict[str, Any]:
    """A reading as JSON types."""
    return {
        "format": "musicnet.doctor/1",
        "run": str(reading.folder),
        "run_id": None if reading.origin is None else reading.origin.run_id,
        "outcome": reading.judgement.outcome,
        "because": reading.judgement.because,
        "stale": list(reading.stale),
        "notes": list(reading.notes),
        "findings": [
            {
                "code": one.code,
                "severity": one.severity,
                "where": one.where,
                "evidence": one.evidence,
                "cure": one.cure,
                "confidence": one.confidence,
                "step": one.step,
            }
            for one in reading.findings
        ],
        "evidence": to_plain(reading.diagnosis.evidence),
    }
