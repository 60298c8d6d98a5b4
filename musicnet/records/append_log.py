"""A log that only grows: one JSON object a line, each with the id of its run.

Rows come in as dicts; lines of `metrics.jsonl` go out, each in one write, so that a killed run
leaves every row it wrote and at most one unfinished line. Reading asks whose log it shall be.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# JSON has no word for these; a bare NaN would make the line unreadable to other programs.
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class AppendLog:
    r"""Appends the rows of one run to a file.

    Args:
        path: the log; made if it is not there, continued if it is this run's.
        run_id: stands in every row.
        keep: bytes of the log to go on from, as `sync` gave them: a resumed run makes the rows
            after them again. None keeps all.

    Raises:
        ValueError: the file holds rows of another run, or fewer than are to be kept.

    Example:
        >>> path = getfixture("tmp_path") / "metrics.jsonl"
        >>> with AppendLog(path, run_id="c0ffee00") as log:
        ...     log.append({"epoch": 1, "loss": math.nan})
        >>> path.read_text()
        '{"run_id": "c0ffee00", "epoch": 1, "loss": "nan"}\n'
        >>> read_rows(path, run_id="c0ffee00")
        [{'run_id': 'c0ffee00', 'epoch': 1, 'loss': nan}]
    """

    def __init__(self, path: str | Path, *, run_id: str, keep: int | None = None) -> None:
        self.path = Path(path)
        self.run_id = run_id
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            read_rows(self.path, run_id=run_id)
            _drop_unfinished_line(self.path)
            if keep is not None:
                _cut(self.path, keep)
        # Without a buffer each row is one write, which no other process can split.
        self._file = self.path.open("ab", buffering=0)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row; it is in the system's hands when this returns."""
        if "run_id" in row:
            raise ValueError(
                f"the log itself writes run_id: got a row with {sorted(row)}. Drop the key."
            )
        tree = {"run_id": self.run_id} | {key: _plain(value) for key, value in row.items()}
        line = json.dumps(tree, ensure_ascii=False, allow_nan=False) + "\n"
        self._file.write(line.encode("utf-8"))

    def sync(self) -> int:
        """Bring all rows to the disk.

        Returns:
            Length of the log in bytes.
        """
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Close the file; the rows are there already."""
        self._file.close()

    def __enter__(self) -> "AppendLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_rows(path: str | Path, *, run_id: str) -> list[dict[str, Any]]:
    """The rows of one run's log, oldest first.

    Args:
        path: the log.
        run_id: whose rows they must be.

    Returns:
        One dict a line, non-finite numbers as floats. A last line that a killed writer left
        unfinished is passed over.

    Raises:
        ValueError: a line is broken, or belongs to another run; the message has its number.
    """
    rows = []
    *lines, _unfinished = Path(path).read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(
                f"every line of a log must be JSON: got {line[:40]!r} in {path}, line {number}. "
                "The file was damaged or edited."
            ) from error
        owner = row.get("run_id") if isinstance(row, dict) else None
        if owner != run_id:
            raise ValueError(
                f"every row must be of run {run_id}: got run {owner} in {path}, line {number}. "
                "Each run needs a folder of its own."
            )
        rows.append(
            {
                key: _NOT_FINITE.get(value, value) if isinstance(value, str) else value
                for key, value in row.items()
            }
        )
    return rows


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _drop_unfinished_line(path: Path) -> None:
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


def _cut(path: Path, length: int) -> None:
    size = path.stat().st_size
    if size < length:
        raise ValueError(
            f"a resumed log must reach as far as the checkpoint that it goes on from: got {size} "
            f"of {length} bytes in {path}. Rows are lost; go on from ckpt_path in a new folder."
        )
    with path.open("r+b") as file:
        file.truncate(length)
