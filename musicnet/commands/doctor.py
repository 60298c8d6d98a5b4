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

from musicnet.commands.run_comparison import compare
from musicnet.diagnosis.findings import EXIT_CODES
from musicnet.diagnosis.reading import Reading, dumped, read_run
from musicnet.diagnosis.report.page import picture_in, write_report
from musicnet.diagnosis.run_files import CONFIG_NAME, Asked, UnreadableRun, config_hash_of
from musicnet.records.atomic_files import write_json
from musicnet.records.provenance import collect_provenance, hash_file

_BAD_INPUT = 1
_WIDTH = 96
_AS_IT_WAS = "Add --as-it-was to take a run of older code as it was."


def run(argv: Sequence[str]) -> int:
    """Ask the doctor about one run, or compare two.

    Args:
        argv: what follows the word `doctor`.

    Returns:
        The exit code: 0 learns, 3 does not learn, 4 could not tell (also of a stale run), 1 after
        one line on what is wrong; of a comparison 0, or 4 if a run could not be read, is stale, or
        has nothing in common with the other that could be compared.
    """
    try:
        arguments = _parser().parse_args(argv)
        folders = arguments.compare or ([arguments.run] if arguments.run else [])
        if not folders or (arguments.run and arguments.compare):
            hint = ""
            if arguments.json not in (None, "-") and Path(arguments.json).is_dir():
                hint = f" --json takes the word behind it, {arguments.json}: put it last."
            raise ValueError(
                f"one run, or --compare with two: got both or neither.{hint} See --help."
            )
        asked = _asked(arguments)
        if arguments.compare:
            first, second = (_read(folder, asked) for folder in folders)
            return _compare(first, second, arguments.json)
        answer = _read(folders[0], asked)
        if arguments.report and isinstance(answer, Reading) and not answer.stale:
            _write_page(answer)
        if isinstance(answer, str):
            _tell(_unreadable(folders[0], answer), [f"could not tell: {answer}"], arguments.json)
            return EXIT_CODES["could not tell"]
        _tell(dumped(answer), _lines(answer), arguments.json)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return _BAD_INPUT
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
    if not arguments.as_it_was:
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
    if reading.is_only_older:
        yield f"  {_AS_IT_WAS}"
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
        picture=picture_in(reading.folder),
    )


def _compare(first: Reading | str, second: Reading | str, output: str | None) -> int:
    """Two runs side by side; none that nothing can be said of, and none that is stale."""
    reasons = [
        answer if isinstance(answer, str) else f"{answer.folder}: {answer.judgement.because}"
        for answer in (first, second)
        if isinstance(answer, str) or answer.stale
    ]
    if isinstance(first, str) or isinstance(second, str) or reasons:
        tree: dict[str, Any] = {
            "format": "musicnet.doctor/1",
            "outcome": "could not tell",
            "because": reasons,
        }
        lines = [f"could not tell: {reason}" for reason in reasons]
        older = [one for one in (first, second) if isinstance(one, Reading) and one.stale]
        helps = len(older) == len(reasons) and all(one.is_only_older for one in older)
        _tell(tree, [*lines, _AS_IT_WAS] if helps else lines, output)
        return EXIT_CODES["could not tell"]
    found = compare(first, second)
    tree = {
        "format": "musicnet.doctor/1",
        "outcome": "could not tell" if found.unlike else "compared",
        "because": list(found.unlike),
        "rows": found.rows,
        "runs": [dumped(first), dumped(second)],
    }
    _tell(tree, list(found.lines()), output)
    return EXIT_CODES["could not tell"] if found.unlike else 0


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
