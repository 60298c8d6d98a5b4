"""How a run ended, and which runs have not.

The exit code of a run that came to its end goes into `outcome.json` of its folder. A run that was
killed, stopped by a signal or broken off by an error has none: it can be taken up again.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from musicnet.records.atomic_files import write_json
from musicnet.records.provenance import Provenance, read_provenance

FILE_NAME = "outcome.json"


def write_outcome(folder: str | Path, *, run_id: str, exit_code: int) -> None:
    """Say that a run has come to its end."""
    write_json(Path(folder) / FILE_NAME, {"run_id": run_id, "exit_code": exit_code})


def has_ended(folder: str | Path) -> bool:
    """Whether a run has come to its end, so that there is nothing to take up.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> has_ended(folder)
        False
        >>> write_outcome(folder, run_id="c0ffee00", exit_code=0)
        >>> has_ended(folder)
        True
    """
    try:
        return isinstance(json.loads((Path(folder) / FILE_NAME).read_text("utf-8")), dict)
    except (OSError, ValueError):
        return False


def unfinished_runs(folder: str | Path) -> Iterator[tuple[Path, Provenance]]:
    """The runs of an experiment that have not ended, the newest first.

    Args:
        folder: of the experiment: holds a folder per run.

    Yields:
        Folder and provenance; folders without a provenance are no runs.
    """
    started: list[tuple[str, Path, Provenance]] = []
    for run in Path(folder).glob("*"):
        try:
            origin = read_provenance(run)
        except (OSError, ValueError):
            continue
        if not has_ended(run):
            started.append((origin.started, run, origin))
    for _, run, origin in sorted(started, key=lambda one: (one[0], one[1].name), reverse=True):
        yield run, origin
