"""`python -m musicnet inspect FILE|FOLDER`: what a recording holds, and what is wrong with it."""

import argparse
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from musicnet.commands.option_kinds import check_options
from musicnet.commands.parsing import BAD_INPUT, OneLineParser, told
from musicnet.commands.recording_options import add_recording_options, setup_of
from musicnet.commands.sound_facts import look_at_sound
from musicnet.recordings.manifest_writing import write_manifest
from musicnet.recordings.manifests import NAME, read_manifest
from musicnet.recordings.opening import open_recording
from musicnet.recordings.setup import Setup
from musicnet.recordings.streams import ObservationStream, stream_of

_MOST_FAULTS = 20
"""Bad scenes that are named one by one."""


def run(argv: Sequence[str]) -> int:
    """Look at recordings.

    Args:
        argv: what follows the word `inspect`.

    Returns:
        The exit code: 0 if nothing is wrong, 1 after a line on each thing that is.
    """
    try:
        arguments = _parser().parse_args(argv)
        setup = setup_of(arguments)
        path: Path = arguments.path
        if arguments.write_manifest:
            shards = write_manifest(path)
            n_scenes = sum(shard.n_scenes for shard in shards)
            n_bad = sum(len(shard.bad_scenes or ()) for shard in shards)
            bad = f", {n_bad} of them bad" if n_bad else ""
            print(f"{len(shards)} shards, {n_scenes} scenes{bad}: {path / NAME}")
            return 0
        files = [place for place, _ in read_manifest(path)] if path.is_dir() else [path]
        kinds = check_options(files, arguments)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        sys.stderr.write(told(error))
        return BAD_INPUT
    n_wrong = 0
    for file, kind in zip(files, kinds, strict=True):
        n_wrong += _look_at_sound(file, setup) if kind == "sound" else _look(file, setup)
    return BAD_INPUT if n_wrong else 0


def _look(file: Path, setup: Setup) -> int:
    """Says what a file holds; the number of things that are wrong."""
    n_wrong = 0
    try:
        with warnings.catch_warnings(record=True) as noticed:
            warnings.simplefilter("always")
            with open_recording(file, setup) as store:
                print(f"{file}: {store.kind}, sha256 {store.sha256}")
                for key, array in store.arrays.items():
                    shape = ", ".join(map(str, array.shape))
                    print(f"  {key:<18}{array.dtype!s:<12}({shape})")
                stream = stream_of(store)
                for line in _facts(stream):
                    print(f"  {line}")
                for chunk in stream.chunks():
                    for scene, reason in sorted(chunk.faults.items()):
                        n_wrong += 1
                        if n_wrong <= _MOST_FAULTS:
                            sys.stderr.write(f"error: {file}:{reason} (scene {scene})\n")
                if n_wrong > _MOST_FAULTS:
                    sys.stderr.write(f"error: {file}: {n_wrong - _MOST_FAULTS} more scenes\n")
        for notice in noticed:
            sys.stderr.write(f"warning: {notice.message}\n")
    except (OSError, ValueError, ModuleNotFoundError) as error:
        sys.stderr.write(told(error))
        return 1
    print(f"  {'nothing is wrong' if not n_wrong else f'{n_wrong} scenes are bad'}")
    return n_wrong


def _look_at_sound(file: Path, setup: Setup) -> int:
    try:
        n_wrong = look_at_sound(file, setup)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        sys.stderr.write(told(error))
        return 1
    print(f"  {'nothing is wrong' if not n_wrong else f'wrong: {n_wrong}, see the errors'}")
    return n_wrong


def _facts(stream: ObservationStream) -> Iterator[str]:
    known, wavelength = stream.known, float(stream.known["wavelength"])
    n_scenes, n_blocks, n_rows = stream.y.shape
    places = known["element_positions"].astype(np.float64)
    size = float(np.linalg.norm(places.max(0) - places.min(0)))
    yield f"{n_scenes} scenes of {n_blocks} blocks by {n_rows} rows, {len(places)} elements"
    yield f"aperture {size:.4g} m, {size / wavelength:.3g} wavelengths of {wavelength:.4g} m"
    sector = {
        key: f"{low:g} to {high:g}"
        for key in ("azimuth_deg", "elevation_deg", "range_m")
        for low, high in [known[key].tolist()]
        if math.isfinite(low)
    }
    yield f"{known['field']} field, {', '.join(f'{key} {said}' for key, said in sector.items())}"
    if "noise_power" in known:
        low, high = (
            10 * math.log10(max(float(f(known["noise_power"])), 1e-300)) for f in (min, max)
        )
        yield f"noise power {low:.1f} to {high:.1f} dB"
    else:
        yield "noise power is not said, and will be estimated"
    if stream.n_true is not None:
        yield f"labels of {int(stream.n_true.min())} to {int(stream.n_true.max())} sources"
    if stream.rate_hz is not None:
        yield f"{stream.rate_hz:.4g} scenes per second"


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m musicnet inspect",
        description="What a recording holds, and what is wrong with it.",
        allow_abbrev=False,
    )
    parser.add_argument("path", type=Path, help="a recording, or a folder with a manifest")
    parser.add_argument(
        "--write-manifest",
        action="store_true",
        help=f"list the recordings of a folder, with their sha256, in its {NAME}",
    )
    add_recording_options(parser)
    return parser
