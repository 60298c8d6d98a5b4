"""Wideband sound in, JSON entries out: a scene is a window of it."""

import argparse
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from musicnet.estimation.wideband import WIDEBAND_METHODS
from musicnet.localization.sound import Bearings, localize_sound
from musicnet.localization.tracks import smoothed
from musicnet.recordings.array_descriptions import ArrayDescription
from musicnet.recordings.audio_files import SoundFile, is_sound, opened_sound
from musicnet.recordings.stores import read_beginning
from musicnet.scene.sound import SPEED_OF_SOUND, Sound, aliasing_limit

SOUND_METHODS = ("srp-phat", "cssm", "waves")
"""Methods for wideband sound alone; ``music`` is one as well, and what ``auto`` takes."""

_WINDOWS_AT_ONCE = 64


def add_sound_options(parser: argparse.ArgumentParser) -> None:
    """Adds what only sound is asked with.

    Args:
        parser: of the command that localises.
    """
    group = parser.add_argument_group("sound without --frequency: bearings from all of its band")
    group.add_argument(
        "--window",
        type=_positive,
        default=1.0,
        metavar="S",
        help="seconds that one answer is made from (default: 1)",
    )
    group.add_argument(
        "--band",
        type=_positive,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="frequencies to listen to, Hz (default: 300 to 0.45 of the rate)",
    )
    group.add_argument(
        "--speed-std",
        type=_not_negative,
        default=0.0,
        metavar="M/S",
        help="standard deviation of --speed; widens error bars (default: 0)",
    )
    group.add_argument(
        "--track",
        type=_positive,
        metavar="DEG/S",
        help="join windows to tracks that drift by so much in a second, and smooth them",
    )


def is_wideband(path: Path, arguments: argparse.Namespace) -> bool:
    """Whether a file is sound of which no narrow band was asked for.

    Raises:
        OSError: it cannot be read.
        ValueError: a method for sound and no sound, or the other way round.
    """
    if arguments.frequency is None and is_sound(read_beginning(path)):
        if arguments.method not in ("auto", *WIDEBAND_METHODS):
            raise ValueError(
                f"wideband sound is localised by one of {', '.join(WIDEBAND_METHODS)}: got "
                f"--method {arguments.method}. Give --frequency for one narrow band."
            )
        return True
    if arguments.method in SOUND_METHODS:
        raise ValueError(
            f"--method {arguments.method} is for wideband sound: got {path}"
            f"{'' if arguments.frequency is None else ' with --frequency'}."
        )
    return False


def sound_entries(
    path: Path, array: ArrayDescription | None, arguments: argparse.Namespace
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Localises a sound file, window by window.

    Args:
        path: a local file.
        array: where the microphones stand, in metres.
        arguments: of a parser with the options.

    Yields:
        How many windows there are, and entries of some of them; a file for ``--track`` comes in
        one piece.

    Raises:
        OSError: the file cannot be read.
        ValueError: something was not said, or does not fit.
        ModuleNotFoundError: soundfile is not installed.
    """
    with opened_sound(path) as file:
        positions = _positions(file, array)
        n_sources = _n_sources(path, arguments)
        speed = arguments.speed or SPEED_OF_SOUND
        window = min(round(arguments.window * file.rate), file.n_samples)
        n_windows = file.n_samples // max(window, 1)
        parts: list[Bearings] = []
        started = time.process_time()
        for first in range(0, n_windows, _WINDOWS_AT_ONCE):
            last = min(first + _WINDOWS_AT_ONCE, n_windows)
            samples = file.read(first * window, last * window)
            heard = Sound(torch.from_numpy(samples.T.copy()).float(), file.rate, positions)
            found = _bearings(heard, n_sources, speed, arguments, window / file.rate)
            parts.append(found.later(first * window / file.rate))
            if arguments.track is None:
                cpu_ms = 1e3 * (time.process_time() - started) / (last - first)
                yield n_windows, list(_entries(path, parts.pop(), first, cpu_ms))
                started = time.process_time()
        _tell_of_aliasing(path, file, positions, speed, arguments)
        if parts:
            tracks = smoothed(Bearings.joined(parts), math.radians(arguments.track))
            cpu_ms = 1e3 * (time.process_time() - started) / n_windows
            yield n_windows, list(_entries(path, tracks, 0, cpu_ms))


def _bearings(
    heard: Sound, n_sources: int, speed: float, arguments: argparse.Namespace, window_s: float
) -> Bearings:
    return localize_sound(
        heard,
        n_sources,
        "music" if arguments.method == "auto" else arguments.method,
        speed=speed,
        speed_std=arguments.speed_std,
        elevation=_elevation(arguments),
        band=None if arguments.band is None else tuple(arguments.band),
        window_s=window_s,
    )


def _entries(path: Path, found: Bearings, first: int, cpu_ms: float) -> Iterator[dict[str, Any]]:
    name, std = f"{found.name}_deg", f"std_{found.name}_deg"
    for window, middle in enumerate(found.middles.tolist()):
        rows = zip(
            found.angles[window].rad2deg().tolist(),
            found.deviations[window].rad2deg().tolist(),
            strict=True,
        )
        sources = [
            {
                name: None if math.isnan(angle) else angle,
                std: None if math.isnan(spread) else spread,
                "resolved": not math.isnan(angle),
                "method": found.method,
            }
            for angle, spread in rows
        ]
        yield {
            "file": str(path),
            "scene": first + window,
            "time_s": middle,
            "n_sources": sum(one["resolved"] for one in sources),
            "log_likelihood": None,
            "cpu_ms": cpu_ms,
            "sources": sources,
        }


def _positions(file: SoundFile, array: ArrayDescription | None) -> torch.Tensor:
    if array is None:
        raise ValueError(
            f"{file.path} does not say where its microphones stand: got no array. Give --array, "
            "for example uca:8:0.10m."
        )
    if array.unit != "m":
        raise ValueError(
            f"sound has many wavelengths, so that its array is described in metres: got --array "
            f"{array.word}. Use m, or --frequency for one narrow band."
        )
    positions = array.positions(1.0)
    if len(positions) != file.n_channels:
        raise ValueError(
            f"{file.path} has {file.n_channels} channels, --array {array.word} has "
            f"{len(positions)} microphones."
        )
    return torch.from_numpy(positions).float()


def _n_sources(path: Path, arguments: argparse.Namespace) -> int:
    if not isinstance(arguments.n_sources, int):
        raise ValueError(
            f"{path} is wideband sound, whose sources are not counted: got --n-sources "
            f"{arguments.n_sources}. Give a number."
        )
    return arguments.n_sources


def _elevation(arguments: argparse.Namespace) -> float:
    for name in ("azimuth_deg", "elevation_deg", "range_m", "bearing_deg"):
        if getattr(arguments, name) is not None:
            word = name.replace("_", "-")
            raise ValueError(
                f"wideband sound is sought all around, at one elevation: got --{word}. Leave it "
                "out, or give --plane-elevation-deg."
            )
    return math.radians(arguments.plane_elevation_deg or 0.0)


def _tell_of_aliasing(
    path: Path,
    file: SoundFile,
    positions: torch.Tensor,
    speed: float,
    arguments: argparse.Namespace,
) -> None:
    limit = aliasing_limit(positions, speed)
    highest = arguments.band[1] if arguments.band else 0.45 * file.rate
    if highest > limit:
        sys.stderr.write(
            f"{path}: frequencies to {highest:.0f} Hz are used, where microphones further apart "
            f"than half a wavelength (above {limit:.0f} Hz) see false directions; those differ "
            "from frequency to frequency and lose. --band LOW HIGH keeps them out.\n"
        )


def _positive(word: str) -> float:
    value = _not_negative(word)
    if value == 0.0:
        raise argparse.ArgumentTypeError(f"must be a finite number > 0: got {word!r}")
    return value


def _not_negative(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not 0.0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a finite number >= 0: got {word!r}")
    return value
