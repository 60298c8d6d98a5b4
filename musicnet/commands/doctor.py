"""`python -m musicnet doctor RUN`: why did this run (not) learn?

A run folder comes in, finished or killed; findings go out as a table or as JSON. A log that is
stale, mixed, torn or empty gets no verdict but the reason why.
"""

import argparse
import json
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml  # type: ignore[import-untyped]

from musicnet.diagnosis.findings import EXIT_CODES
from musicnet.diagnosis.reading import (
    CONFIG_NAME,
    Asked,
    Reading,
    UnreadableRun,
    config_hash_of,
    dumped,
    read_run,
)
from musicnet.diagnosis.report.page import write_report
from musicnet.records.atomic_files import write_json
from musicnet.records.provenance import collect_provenance, hash_file

_BAD_INPUT = 1
_WIDTH = 96


def run(argv: Sequence[str]) -> int:
    """Ask the doctor about one run, or compare two.

    Args:
        argv: what follows the word `doctor`.

    Returns:
        The exit code: 0 learns, 3 does not learn, 4 could not tell (also of a stale run), 1 after
        one line on what is wrong; of a comparison 0, or 4 if a run could not be read.
    """
    try:
        arguments = _parser().parse_args(argv)
        folders = arguments.compare or ([arguments.run] if arguments.run else [])
        if not folders or (arguments.run and arguments.compare):
            raise ValueError("one run, or --compare with two: got both or neither. See --help.")
        asked = _asked(arguments)
        if arguments.compare:
            first, second = (_read(folder, asked) for folder in folders)
            return _compare(first, second, arguments.json)
        answer = _read(folders[0], asked)
        if arguments.report and isinstance(answer, Reading) and not answer.stale:
            _write_page(answer)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return _BAD_INPUT
    if isinstance(answer, str):
        _tell(_unreadable(folders[0], answer), [f"could not tell: {answer}"], arguments.json)
        return EXIT_CODES["could not tell"]
    _tell(dumped(answer), _lines(answer), arguments.json)
    return answer.judgement.exit_code


def _read(folder: Path, asked: Asked) -> Reading | str:
    """What a folder says, or why it says nothing."""
    try:
        return read_run(folder, asked)
    except UnreadableRun as error:
        return str(error)


def _asked(arguments: argparse.Namespace) -> Asked:
    """What the run is held against: the code that asks, unless it shall be taken as it was."""
    commit = None
    if not arguments.as_it_was and not arguments.compare:
        commit = collect_provenance(code_folder=Path(__file__).parent).git_commit
    return Asked(
        git_commit=commit,
        config_hash=config_hash_of(arguments.config) if arguments.config else None,
        data_hash=hash_file(arguments.data) if arguments.data else None,
    )


def _lines(reading: Reading) -> Iterator[str]:
    """The table."""
    judgement = reading.judgement
    run_id = "unknown" if reading.origin is None else reading.origin.run_id
    yield f"run {run_id}: {judgement.outcome}"
    yield from textwrap.wrap(judgement.because, _WIDTH, initial_indent="  ", subsequent_indent="  ")
    if reading.stale:
        yield "  Add --as-it-was to judge it all the same."
    for number, finding in enumerate(reading.findings, start=1):
        place = f" in {finding.where}" if finding.where else ""
        sure = f"{100 * finding.confidence:.0f} % sure"
        yield ""
        yield (
            f"{number}. {finding.severity.upper():<7} {finding.code}{place}   "
            f"(step {finding.step}, {sure})"
        )
        for label, text in (("seen", finding.evidence), ("do", finding.cure)):
            yield from textwrap.wrap(
                text, _WIDTH, initial_indent=f"   {label:<5}", subsequent_indent=" " * 8
            )
    if not reading.findings and not reading.stale:
        yield "no findings"
    for note in reading.notes:
        yield from textwrap.wrap(f"note: {note}", _WIDTH, subsequent_indent="      ")


def _write_page(reading: Reading) -> None:
    """Leave `report.html`, as a run does at its end; one that was killed had none."""
    path = reading.folder / CONFIG_NAME
    write_report(
        reading.folder,
        reading.diagnosis,
        title=f"run {reading.diagnosis.run_id or reading.folder.name}",
        origin=reading.origin,
        config=path.read_text(encoding="utf-8") if path.exists() else None,
    )


def _compare(first: Reading | str, second: Reading | str, output: str | None) -> int:
    """Two runs side by side."""
    both = (first, second)
    if isinstance(first, str) or isinstance(second, str):
        reasons = [answer for answer in both if isinstance(answer, str)]
        tree = {"format": "musicnet.doctor/1", "outcome": "could not tell", "because": reasons}
        _tell(tree, [f"could not tell: {reason}" for reason in reasons], output)
        return EXIT_CODES["could not tell"]
    readings = (first, second)
    rows = [("", *(_name(one) for one in readings))]
    rows += [
        ("outcome", *(one.judgement.outcome for one in readings)),
        ("first finding", *(_first(one) for one in readings)),
        ("steps", *(str(one.diagnosis.evidence.length.steps) for one in readings)),
        ("training loss", *(_fell(one, "") for one in readings)),
        ("validation loss", *(_fell(one, "val_") for one in readings)),
        ("commit", *(_commit(one) for one in readings)),
    ]
    codes = [{one.code for one in reading.findings} for reading in readings]
    rows += [
        (f"only here: {code}", *("x" if code in mine else "" for mine in codes))
        for code in sorted(codes[0] ^ codes[1])
    ]
    rows += [
        (key, str(left)[:40], str(right)[:40])
        for key, left, right in _config_differences(first.folder, second.folder)
    ]
    width = max(len(row[0]) for row in rows)
    lines = [f"{name:<{width}}  {left:<42}  {right}".rstrip() for name, left, right in rows]
    runs = [dumped(one) for one in readings]
    _tell({"format": "musicnet.doctor/1", "runs": runs, "rows": rows}, lines, output)
    return 0


def _name(reading: Reading) -> str:
    return reading.folder.name


def _first(reading: Reading) -> str:
    return next((finding.code for finding in reading.findings), "none")


def _fell(reading: Reading, prefix: str) -> str:
    losses = reading.diagnosis.evidence.losses
    pair = [getattr(losses, f"{prefix}{end}") for end in ("first", "last")]
    return " to ".join("unknown" if value is None else f"{value:.4g}" for value in pair)


def _commit(reading: Reading) -> str:
    origin = reading.origin
    if origin is None or origin.git_commit is None:
        return "unknown"
    return origin.git_commit[:10] + (" with changes" if origin.git_dirty else "")


def _config_differences(first: Path, second: Path) -> Iterator[tuple[str, Any, Any]]:
    trees = [_flat(_config(folder)) for folder in (first, second)]
    for key in sorted(set(trees[0]) | set(trees[1])):
        left, right = (tree.get(key, "-") for tree in trees)
        if left != right:
            yield key, left, right


def _config(folder: Path) -> Any:
    path = folder / CONFIG_NAME
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and tree:
        pairs = [_flat(value, f"{path}.{key}" if path else str(key)) for key, value in tree.items()]
        return {key: value for pair in pairs for key, value in pair.items()}
    return {path: tree}


def _unreadable(folder: Path, reason: str) -> dict[str, Any]:
    return {
        "format": "musicnet.doctor/1",
        "run": str(folder),
        "outcome": "could not tell",
        "because": reason,
        "findings": [],
    }


def _tell(tree: dict[str, Any], lines: Sequence[str] | Iterator[str], output: str | None) -> None:
    if output == "-":
        print(json.dumps(tree, indent=2, ensure_ascii=False))
        return
    if output is not None:
        write_json(output, tree)
    print("\n".join(lines))


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(
        prog="python -m musicnet doctor",
        description="Why did a run (not) learn? Reads what it left, finished or killed.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, nargs="?", help="folder of the run")
    parser.add_argument(
        "--compare", type=Path, nargs=2, metavar="RUN", help="two runs side by side instead"
    )
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="print JSON instead of a table; with FILE, write it there beside the table",
    )
    parser.add_argument(
        "--as-it-was",
        action="store_true",
        help="judge the run although the code has another commit now",
    )
    parser.add_argument(
        "--report", action="store_true", help="write report.html into the run's folder as well"
    )
    parser.add_argument("--config", type=Path, help="the run must have had this configuration")
    parser.add_argument("--data", type=Path, help="the run must have had this recording")
    return parser


class _OneLineParser(argparse.ArgumentParser):
    """Refuses in one line instead of printing its usage and leaving."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}. See --help.")
