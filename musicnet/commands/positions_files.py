"""Files of positions, JSON or CSV, written scene by scene and resumed after an interruption.

Entries go into a journal beside the target, a line each; at the end the journal becomes the target
in one move. A journal of the same question is gone on with, its half last line left out.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from musicnet.records.atomic_files import open_atomically

FORMAT = "musicnet.positions/1"
"""What the output is, and its version."""

_OF_SCENE = ("file", "scene", "time_s", "n_sources", "log_likelihood", "error")
_OF_SOURCE = (
    *("azimuth_deg", "elevation_deg", "range_m", "bearing_deg", "lateral_deg", "x", "y", "z"),
    *("std_azimuth_deg", "std_elevation_deg", "std_range_m", "std_bearing_deg"),
    *("std_lateral_deg", "std_x", "std_y", "std_z", "resolved", "method"),
)
_OF_RUN = ("weights", "run_id", "data_sha256")


class Journal:
    """Entries of scenes, kept in a file until they are complete, or in memory where none is asked.

    Args:
        target: the file that shall be; None keeps the entries in memory.
        question: what is asked of which data; JSON types. Another question begins anew.
    """

    def __init__(self, target: Path | None, question: dict[str, Any]) -> None:
        self.path = None if target is None else target.with_name(f"{target.name}.partial")
        self.question = question
        self.n_found = 0
        self._done: Counter[str] = Counter()
        self._faults: dict[str, dict[int, str]] = {}
        self._kept: list[dict[str, Any]] = []
        self._file: TextIO | None = None

    def begin(self) -> int:
        """Looks for what was begun.

        Returns:
            Entries that are there already.
        """
        if self.path is not None and self.path.is_file():
            whole = self._whole_lines()
            if whole and _parsed(whole[0]) == self.question:
                self.n_found = len(whole) - 1
                for line in whole[1:]:
                    self._note(json.loads(line))
                with open_atomically(self.path) as file:
                    file.writelines(f"{line}\n".encode() for line in whole)
        return self.n_found

    def n_done(self, file: Path) -> int:
        """Scenes of a file, from its first on, that were there already."""
        return self._done[str(file)]

    def faults(self, file: Path) -> dict[int, str]:
        """What is wrong with some of those scenes, by their numbers."""
        return dict(self._faults.get(str(file), {}))

    def add(self, entries: Sequence[dict[str, Any]]) -> None:
        """Keeps some more entries, on the disk where there is a target."""
        if self.path is None:
            self._kept += entries
            return
        if self._file is None:
            self._file = self._opened(self.path)
        self._file.writelines(f"{json.dumps(entry, allow_nan=False)}\n" for entry in entries)
        self._file.flush()

    def entries(self) -> Iterator[dict[str, Any]]:
        """All entries, from the first on."""
        self.close()
        if self.path is None:
            yield from self._kept
            return
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8") as file:
            next(file, None)
            for line in file:
                yield json.loads(line)

    def close(self) -> None:
        """Nothing more is added."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """Leaves nothing behind."""
        self.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _note(self, entry: dict[str, Any]) -> None:
        self._done[entry["file"]] += 1
        if "error" in entry:
            self._faults.setdefault(entry["file"], {})[entry["scene"]] = entry["error"]

    def _opened(self, path: Path) -> TextIO:
        if self.n_found:
            return path.open("a", encoding="utf-8")
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8")
        file.write(f"{json.dumps(self.question)}\n")
        return file

    def _whole_lines(self) -> list[str]:
        text = self.path.read_text(encoding="utf-8", errors="replace") if self.path else ""
        lines = text.split("\n")[:-1]  # what has no end was being written
        while len(lines) > 1 and _parsed(lines[-1]) is None:
            lines.pop()
        return lines


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def write_positions(path: Path, head: dict[str, Any], entries: Iterator[dict[str, Any]]) -> None:
    """Writes a file of positions, whole or not at all.

    Args:
        path: ``.csv`` makes a table with a row for each source, anything else JSON.
        head: format, provenance and files.
        entries: of the scenes.

    Raises:
        OSError: the file cannot be written.
    """
    with open_atomically(path) as binary:
        text = io.TextIOWrapper(binary, encoding="utf-8", newline="")
        if path.suffix.lower() == ".csv":
            _write_table(text, head, entries)
        else:
            write_tree(text.write, head, entries)
        text.flush()
        text.detach()


def write_tree(
    write: Callable[[str], Any], head: dict[str, Any], entries: Iterator[dict[str, Any]]
) -> None:
    """Writes the tree of ``musicnet.positions/1``, a scene a line.

    Args:
        write: takes the text, piece by piece.
        head: format, provenance and files.
        entries: of the scenes.
    """
    write(json.dumps(head, indent=2, allow_nan=False).rstrip("}").rstrip())
    write(',\n  "scenes": [')
    for number, entry in enumerate(entries):
        write(f"{',' if number else ''}\n    {json.dumps(entry, allow_nan=False)}")
    write("\n  ]\n}\n")


def _write_table(
    text: io.TextIOWrapper, head: dict[str, Any], entries: Iterator[dict[str, Any]]
) -> None:
    columns = [*_OF_SCENE, "source", *_OF_SOURCE, *_OF_RUN]
    table = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    origin = head["provenance"]
    hashes = {one["file"]: one["sha256"] for one in head["files"]}
    weights = {one["file"]: one["weights"] for one in head["files"]}
    for entry in entries:
        file = entry["file"]
        run = {"run_id": origin["run_id"], "data_sha256": hashes[file], "weights": weights[file]}
        common = {**entry, **run}
        # a scene without sources has a row too, or nobody would know that it was looked at
        for number, source in enumerate(entry["sources"] or [{}]):
            row = {**common, **source, "source": number if source else None}
            table.writerow(row)
