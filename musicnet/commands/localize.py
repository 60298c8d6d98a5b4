"""`python -m musicnet localize FILE...`: positions with error bars from recorded snapshots.

Recordings come in; ``musicnet.positions/1``, a JSON tree or a CSV table, goes out. Labels in a file
are not looked at, but for the number of sources where ``--n-sources truth`` asks for it. A scene,
or a file, that cannot be localised is named and left out; the others are kept, and the exit code
is 1.
"""

import argparse
import hashlib
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from musicnet.commands.option_kinds import check_method, check_options, fill_defaults
from musicnet.commands.parsing import (
    BAD_INPUT,
    INTERRUPTED,
    OneLineParser,
    check_file_target,
    check_folder_target,
    told,
)
from musicnet.commands.positions_files import FORMAT, Journal, write_positions, write_tree
from musicnet.commands.progress import progress_bar
from musicnet.commands.question import config_of, question_of
from musicnet.commands.recording_options import (
    add_bearing_options,
    add_recording_options,
    around_of,
    setup_of,
)
from musicnet.commands.scene_answers import (
    SCENES_AT_ONCE,
    Asked,
    answers,
    bad_entry,
    no_labels,
)
from musicnet.commands.sound_answers import sound_entries
from musicnet.commands.sound_options import SOUND_METHODS, add_sound_options
from musicnet.commands.tally import tally_of
from musicnet.commands.weights_choice import Choice, named_weights, weights_for
from musicnet.localization import METHODS
from musicnet.localization.task import MOST_COUNTED
from musicnet.networks.fitting import fewest_of
from musicnet.networks.pretrained import Pretrained, shipped
from musicnet.plots.figures import new_figure
from musicnet.plots.positions import draw_positions
from musicnet.recordings.lazy_arrays import sha256_of
from musicnet.recordings.manifests import NAME as MANIFEST
from musicnet.recordings.manifests import read_manifest
from musicnet.recordings.setup import Setup
from musicnet.recordings.streams import Chunk, ObservationStream, all_bad, open_observations
from musicnet.records.provenance import collect_provenance

_REFUSALS = (OSError, ValueError, ModuleNotFoundError)


@dataclass
class Outcome:
    """How one file went.

    Args:
        name: of the file.
        sha256: of its content; None where it was not read.
        error: why the whole file was.
        choice: of weights.
        is_cut_short: whether more sources could be told apart than are ever counted.
    """

    name: str
    sha256: str | None = None
    error: str | None = None
    choice: Choice = field(default_factory=Choice)
    is_cut_short: bool = False


def run(argv: Sequence[str]) -> int:
    """Localise the sources of files.

    Args:
        argv: what follows the word `localize`.

    Returns:
        The exit code: 0; 1 after a line on each thing that is wrong; 130 when interrupted.
    """
    try:
        arguments = _parser().parse_args(argv)
        files = arguments.file = _expanded(arguments.file)
        check_file_target("--output", arguments.output, files)
        check_folder_target("--plot", arguments.plot)
        if arguments.plot is not None:
            new_figure()  # says what to install
        if len({str(file) for file in files}) < len(files):
            raise ValueError("every file must be named once: got one twice.")
        arguments.kinds = check_options(files, arguments)
        is_narrow = any(kind not in ("sound", None) for kind in arguments.kinds)
        setup, arguments.around = setup_of(arguments), around_of(arguments) if is_narrow else None
        fill_defaults(arguments)
        # once: whoever begins to answer goes on to the end
        arguments.named = named_weights(arguments.method, arguments.weights)
        question = question_of(arguments, setup, files, arguments.named)
        journal = Journal(arguments.output, question)
    except _REFUSALS as error:
        sys.stderr.write(told(error))
        return BAD_INPUT
    try:
        return _localize_all(arguments, setup, journal)
    except KeyboardInterrupt:
        journal.close()
        kept = f"; {journal.path} is kept, and the same command goes on" if journal.path else ""
        sys.stderr.write(f"interrupted{kept}\n")
        return INTERRUPTED
    except _REFUSALS as error:
        journal.remove()
        sys.stderr.write(told(error))
        return BAD_INPUT


def _expanded(files: Sequence[Path]) -> list[Path]:
    """Files as they are; of a folder those that its manifest lists."""
    expanded = []
    for file in files:
        is_listed = file.is_dir() and (file / MANIFEST).exists()
        expanded += [place for place, _ in read_manifest(file)] if is_listed else [file]
    return expanded


def _localize_all(arguments: argparse.Namespace, setup: Setup, journal: Journal) -> int:
    started = time.monotonic()
    outcomes = _answer_all(arguments, setup, journal)
    good = [one for one in outcomes if one.error is None]
    sys.stderr.writelines(f"error: {one.error}\n" for one in outcomes if one.error is not None)
    if not good:
        journal.remove()
        return BAD_INPUT
    head, names = _head(arguments, outcomes), {one.name for one in good}

    def kept() -> Iterator[dict[str, Any]]:
        return (entry for entry in journal.entries() if entry["file"] in names)

    tally = tally_of(kept())
    sys.stderr.writelines(f"error: {line}\n" for line in tally.bad)
    if arguments.output is None:
        write_tree(sys.stdout.write, head, kept())
    else:
        write_positions(arguments.output, head, kept())
        pace = tally.n_scenes / max(time.monotonic() - started, 1e-9)
        found = f"{tally.n_scenes} scenes, {tally.n_resolved} sources"
        print(f"{found}: {arguments.output} ({pace:.3g} scenes/s)")
    if arguments.plot is not None:
        for picture in draw_positions(arguments.plot, kept()):
            print(picture)
    journal.remove()
    # not before the work: a refusal is one line
    said = [one.choice.said(tally.answered.get(one.name, ())) for one in good]
    said += [tally.warning(one.name) for one in good if one.is_cut_short]
    sys.stderr.writelines(f"{line}\n" for line in dict.fromkeys(said) if line is not None)
    return BAD_INPUT if tally.bad or len(good) < len(outcomes) else 0


def _answer_all(arguments: argparse.Namespace, setup: Setup, journal: Journal) -> list[Outcome]:
    """Fills the journal; a file that is refused stops nothing but itself, unless it is alone."""
    if n_done := journal.begin():
        sys.stderr.write(f"going on after {n_done} scenes that are in {journal.path}\n")
    outcomes = [Outcome(str(file)) for file in arguments.file]
    with progress_bar() as advance:
        for outcome, file, kind in zip(outcomes, arguments.file, arguments.kinds, strict=True):
            try:
                if kind is not None:
                    check_method(file, kind, arguments.method)
                if kind == "sound":
                    outcome.sha256 = sha256_of(file)
                    done = journal.n_done(file)
                    for n_windows, entries in sound_entries(file, setup.array, arguments):
                        start = min(done, len(entries))  # what a journal has is made again
                        done -= start
                        journal.add(entries[start:])
                        advance(len(entries), n_windows, file.name)
                    continue
                with (
                    _warnings_told(strict=arguments.strict),
                    open_observations(file, setup) as stream,
                ):
                    outcome.sha256 = stream.sha256
                    for entries in _file_answers(stream, arguments, outcome, journal):
                        journal.add(entries)
                        advance(len(entries), stream.n_scenes, stream.path.name)
            except _REFUSALS as error:
                if len(outcomes) == 1:
                    raise
                reason = " ".join(str(error).split())
                outcome.error = reason if str(file) in reason else f"{file}: {reason}"
    return outcomes


def _file_answers(
    stream: ObservationStream, arguments: argparse.Namespace, outcome: Outcome, journal: Journal
) -> Iterator[list[dict[str, Any]]]:
    """Entries of a file's scenes, some at a time."""
    asked: Asked = arguments.n_sources
    fewest = asked if isinstance(asked, int) else None
    if asked == "truth":
        if stream.n_true is None:
            raise no_labels()
        # what auto chooses must not depend on which scenes are together
        is_demanded = arguments.method == "neural" or arguments.named is not None
        fewest = fewest_of(stream.n_true) if is_demanded else None
    if arguments.around is None:
        outcome.choice = weights_for(
            stream.head, arguments.method, arguments.named, arguments.weights, fewest
        )
    highest = min(stream.head.operator.shape[-2:]) - 1
    outcome.is_cut_short = asked is None and highest > MOST_COUNTED
    bad = journal.faults(stream.path)
    for chunk in stream.chunks(journal.n_done(stream.path)):
        bad |= chunk.faults
        if chunk.faults and (arguments.strict or len(bad) == stream.n_scenes):
            raise all_bad(stream.path, bad, stream.n_scenes)
        yield _chunk_entries(stream, chunk, arguments, outcome.choice.network)


def _chunk_entries(
    stream: ObservationStream,
    chunk: Chunk,
    arguments: argparse.Namespace,
    weights: Pretrained | None,
) -> list[dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {
        scene: bad_entry(reason) for scene, reason in chunk.faults.items()
    }
    if chunk.recording is not None:
        good = answers(
            chunk.recording,
            arguments.method,
            arguments.n_sources,
            weights,
            arguments.batch_size,
            arguments.around,
        )
        found |= dict(zip(chunk.good, good, strict=True))
    return [
        {"file": str(stream.path), "scene": scene, **_when(stream, scene), **found[scene]}
        for scene in range(chunk.first, chunk.first + chunk.n_scenes)
    ]


def _when(stream: ObservationStream, scene: int) -> dict[str, float]:
    return {} if stream.rate_hz is None else {"time_s": scene / stream.rate_hz}


def _head(arguments: argparse.Namespace, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    networks = [one.choice.network for one in outcomes]
    used = next((one for one in networks if one is not None), None)
    weights = used and {"name": used.name, "sha256": used.sha256}
    config = {**config_of(arguments), "weights": weights}
    hashes = [one.sha256 or "" for one in outcomes]
    data = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    origin = collect_provenance(config, data_hash=data, code_folder=Path(__file__).parent)
    return {
        "format": FORMAT,
        "provenance": {**asdict(origin), "config": config},
        "files": [
            {
                "file": one.name,
                "sha256": one.sha256,
                "weights": network and network.name,
                "error": one.error,
            }
            for one, network in zip(outcomes, networks, strict=True)
        ],
    }


@contextmanager
def _warnings_told(*, strict: bool) -> Iterator[None]:
    """Says what was noticed while a file was opened, a line each; strictly, it is refused."""
    with warnings.catch_warnings(record=True) as noticed:
        warnings.simplefilter("always")
        if strict:
            warnings.filterwarnings("error", category=UserWarning, message=".*is no key of")
        try:
            yield
        except UserWarning as notice:
            raise ValueError(str(notice)) from notice
    for line in dict.fromkeys(f"warning: {notice.message}\n" for notice in noticed):
        sys.stderr.write(line)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m musicnet localize",
        description="Positions with error bars from recorded snapshots. A file's sector is "
        "searched as the smallest box in (u, v, 1/r) around it: answers may lie outside the sector "
        "in azimuth, where the box is wider.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "file",
        type=Path,
        nargs="+",
        help="observations (.npz, HDF5, .mat), or snapshots alone (.npy, .mat, HDF5, SigMF, .wav, "
        ".flac) with --array",
    )
    parser.add_argument(
        "--method", choices=(*METHODS, *SOUND_METHODS), default="auto", help="default: auto"
    )
    parser.add_argument(
        "--weights",
        metavar="NAME|FILE|CKPT",
        help="trained network of the methods neural and auto: a name of those that ship "
        f"({', '.join(shipped()) or 'none'}), a file, or a run's checkpoint; default: the first "
        "that fits the array. A calibration belongs to one piece of hardware and must be named",
    )
    parser.add_argument(
        "--n-sources",
        type=_asked,
        metavar="K|truth",
        help="sources of every scene, or 'truth' to take their number from the file's labels; "
        "without it they are counted",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help=f"JSON ({FORMAT}), or a table where it ends in .csv; default: print JSON",
    )
    parser.add_argument("--plot", type=Path, metavar="DIR", help="folder for pictures")
    parser.add_argument(
        "--strict", action="store_true", help="refuse a file of which one scene is bad"
    )
    parser.add_argument(
        "--batch-size",
        type=_positive,
        default=SCENES_AT_ONCE,
        metavar="N",
        help=f"scenes at once (default: {SCENES_AT_ONCE}); answers do not depend on it",
    )
    add_recording_options(parser)
    add_bearing_options(parser)
    add_sound_options(parser)
    return parser


def _asked(word: str) -> Asked:
    if word == "truth":
        return "truth"
    if not (word.isascii() and word.isdigit() and int(word) > 0):
        raise argparse.ArgumentTypeError(f"must be a number >= 1, or 'truth': got {word!r}")
    return int(word)


def _positive(word: str) -> int:
    if not (word.isascii() and word.isdigit() and 0 < len(word) < 10 and int(word) > 0):
        raise argparse.ArgumentTypeError(f"must be a number from 1 to {10**9 - 1}: got {word!r}")
    return int(word)
