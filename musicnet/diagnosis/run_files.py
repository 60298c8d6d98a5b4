"""What lies in the folder of a run, and whether it belongs together.

A folder comes in; its files go out, read and held against each other, or one line on what is wrong.
A log must be whole but for a torn last line, of this run alone, and still the one that the doctor
has read.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from musicnet.diagnosis import saved, verdict
from musicnet.diagnosis.log_evidence import Row
from musicnet.diagnosis.saved import Diagnosis, read_diagnosis
from musicnet.diagnosis.verdict import Verdict, read_verdict
from musicnet.records import provenance
from musicnet.records.append_log import read_rows
from musicnet.records.log_mark import rows_since
from musicnet.records.provenance import Provenance, hash_config, read_provenance

LOG_NAME = "metrics.jsonl"
CONFIG_NAME = "config.yaml"
PREFLIGHT_NAME = "preflight"
"""The folder in that of a run with the record of what was tried before it."""


OLDER_CODE = "this log is from commit"
"""How the difference begins that a user may want to overlook."""


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
class RunFiles:
    """What a run has left.

    Args:
        folder: of the run.
        origin: where the run comes from; None if only a doctor has left something.
        rows: of the log, oldest first.
        left: by the doctor; None if there was none.
        rows_since: rows that the log has gained since.
        judged: the verdict by bars; None if there is none.
        stale: how the run differs from what is asked; empty if it does not.
    """

    folder: Path
    origin: Provenance | None
    rows: tuple[Row, ...]
    left: Diagnosis | None
    rows_since: int
    judged: Verdict | None
    stale: tuple[str, ...]


def read_files(folder: Path, asked: Asked) -> RunFiles:
    """Read the files of a run and hold them against each other.

    Args:
        folder: of the run.
        asked: what it must be of.

    Raises:
        FileNotFoundError: there is no such folder.
        UnreadableRun: they are broken, or not of one run, or say nothing.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no such run folder: {folder}")
    try:
        origin = _origin(folder)
        rows = _rows(folder, origin)
        left, since = _left_by_doctor(folder, origin)
        judged = _judged(folder, origin)
        stale = tuple(_differences(folder, origin, asked))
    except (ValueError, OSError) as error:
        raise UnreadableRun(" ".join(str(error).split())) from error
    if left is None and not any(_says_something(row) for row in rows):
        raise UnreadableRun(_why_nothing(folder, rows))
    return RunFiles(folder, origin, tuple(rows), left, since, judged, stale)


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


def _left_by_doctor(folder: Path, origin: Provenance | None) -> tuple[Diagnosis | None, int]:
    """What a doctor has left, and how many rows the log has gained since.

    Raises:
        ValueError: it is of another run, or the log is not the one that it was drawn from.
    """
    path, log = folder / saved.FILE_NAME, folder / LOG_NAME
    if not path.exists():
        return None, 0
    left = read_diagnosis(folder)
    if origin is None:
        if left.run_id is not None or left.log is not None:
            raise ValueError(
                f"{path} lies there without the {provenance.FILE_NAME} of its run: whose it is "
                "cannot be told."
            )
        return left, 0
    if left.run_id != origin.run_id:
        raise ValueError(
            f"{path} is of run {left.run_id}, the folder of {origin.run_id}: two runs are mixed."
        )
    if left.log is not None:
        return left, rows_since(log, left.log)
    if log.exists():
        raise ValueError(f"{path} was drawn without {log}, which lies beside it: mixed.")
    return left, 0


def _judged(folder: Path, origin: Provenance | None) -> Verdict | None:
    """The verdict by bars that the run has left, if it has one."""
    path = folder / verdict.FILE_NAME
    if not path.exists():
        return None
    judged = read_verdict(folder)
    if origin is not None and judged.run_id != origin.run_id:
        raise ValueError(
            f"{path} is of run {judged.run_id}, the folder of {origin.run_id}: two runs are mixed."
        )
    return judged


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
        tried = folder / PREFLIGHT_NAME
        hint = f" What its preflight saw is in {tried}." if tried.is_dir() else ""
        return f"{path} is missing.{hint}"
    if rows:
        return f"{path}, line {len(rows)}: not one of its {len(rows)} rows has a finite number."
    torn = path.stat().st_size > 0
    return f"{path}, line 1: {'only a torn line' if torn else 'the log is empty'}."


def _differences(folder: Path, origin: Provenance | None, asked: Asked) -> list[str]:
    if origin is None:
        return []
    found = []
    if asked.git_commit and origin.git_commit and asked.git_commit != origin.git_commit:
        found.append(
            f"{OLDER_CODE} {origin.git_commit[:10]}, started {origin.started}, before "
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
    if path.exists() and config_hash_of(path) != origin.config_hash:
        found.append(f"{path.name} is no longer the one that this run had")
    return found


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:10]
