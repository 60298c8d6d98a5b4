"""How far a log went when something was drawn from it: is it still that log?

A mark is taken of the whole lines that are there; later the log may have grown, and by nothing else
may it differ.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class LogMark:
    r"""The beginning of a log, so that it is known again.

    Args:
        rows: whole lines.
        length: their bytes.
        digest: their sha256.

    Example:
        >>> path = getfixture("tmp_path") / "metrics.jsonl"
        >>> _ = path.write_text('{"step": 1}\n{"st')
        >>> mark = mark_of(path)
        >>> mark.rows, mark.length
        (1, 12)
        >>> _ = path.write_text('{"step": 1}\n{"step": 2}\n')
        >>> rows_since(path, mark)
        1
    """

    rows: int
    length: int
    digest: str


def mark_of(path: str | Path) -> LogMark | None:
    """Where a log ends now; None if there is none.

    Args:
        path: the log. A last line that is not finished does not count.
    """
    if not Path(path).is_file():
        return None
    content = Path(path).read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    return LogMark(whole.count(b"\n"), len(whole), hashlib.sha256(whole).hexdigest())


def rows_since(path: str | Path, mark: LogMark) -> int:
    """How many whole rows a log has gained since a mark was taken of it.

    Args:
        path: the log.
        mark: of an earlier time.

    Raises:
        ValueError: the log is gone, shorter than it was, or another one; one line.
    """
    now = mark_of(path)
    if now is None:
        raise ValueError(f"{path} is missing, and it had {mark.rows} rows when it was last read.")
    if now.rows < mark.rows:
        raise ValueError(
            f"{path} has {now.rows} rows, and it had {mark.rows} when it was last read: rows are "
            "lost."
        )
    begins = Path(path).read_bytes()[: mark.length]
    if hashlib.sha256(begins).hexdigest() != mark.digest:
        raise ValueError(
            f"{path} is not the log that was last read: its first {mark.rows} rows were changed."
        )
    return now.rows - mark.rows
