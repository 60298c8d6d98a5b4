"""`python -m musicnet convert FILE TARGET`: a recording of any kind as an observation file."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from musicnet.commands.option_kinds import check_options
from musicnet.commands.parsing import BAD_INPUT, OneLineParser, check_file_target, told
from musicnet.commands.recording_options import add_recording_options, setup_of
from musicnet.recordings.checks import FORMAT_KEYS
from musicnet.recordings.opening import open_recording
from musicnet.recordings.streams import all_bad, stream_of
from musicnet.recordings.writing import SUFFIXES, check_suffix, write_arrays


def run(argv: Sequence[str]) -> int:
    """Convert a recording.

    Args:
        argv: what follows the word `convert`.

    Returns:
        The exit code: 0, or 1 after one line on what is wrong; then nothing is written.
    """
    try:
        arguments = _parser().parse_args(argv)
        check_file_target("TARGET", arguments.target, [arguments.file])
        check_suffix(arguments.target)
        check_options([arguments.file], arguments)
        with (
            warnings.catch_warnings(record=True) as noticed,
            open_recording(arguments.file, setup_of(arguments)) as store,
        ):
            warnings.simplefilter("always")
            stream = stream_of(store)
            for chunk in stream.chunks():
                if chunk.faults:
                    raise all_bad(stream.path, chunk.faults, stream.n_scenes)
            kept = {key: value for key, value in store.arrays.items() if key in FORMAT_KEYS}
            write_arrays(arguments.target, kept)
        for notice in noticed:
            sys.stderr.write(f"warning: {notice.message}\n")
    except (OSError, ValueError, ModuleNotFoundError) as error:
        sys.stderr.write(told(error))
        return BAD_INPUT
    print(f"{stream.n_scenes} scenes: {arguments.target}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m musicnet convert",
        description="Writes a recording of any kind as an observation file.",
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, help="a recording")
    parser.add_argument("target", type=Path, help=f"where to ({', '.join(SUFFIXES)})")
    add_recording_options(parser)
    return parser
