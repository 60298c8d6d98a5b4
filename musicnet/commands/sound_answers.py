"""Wideband sound in, JSON entries out: a scene is a window of it."""

import argparse
import math
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from musicnet.commands.scene_answers import bad_entry
from musicnet.estimation.short_time import frame_length
from musicnet.localization.bearings import Around
from musicnet.localization.sound import Bearings, localize_sound
from musicnet.localization.tracks import smoothed
from musicnet.recordings.array_descriptions import ArrayDescription
from musicnet.recordings.audio_files import SoundFile, opened_sound
from musicnet.recordings.setup import check_size, is_line
from musicnet.recordings.sound_checks import Survey, most_samples, survey
from musicnet.scene.sound import SPEED_OF_SOUND, Sound, aliasing_limit

_WINDOWS_AT_ONCE = 64
_BYTES_AT_ONCE = 64 * 1024**2


def sound_entries(
    path: Path, array: ArrayDescription | None, arguments: argparse.Namespace
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Localises a sound file, window by window.

    Args:
        path: a local file.
        array: where the microphones stand, in metres.
        arguments: of a parser with the options.

    Yields:
        How many windows there are, and entries of some of them, bad ones with their reason; a file
        for ``--track`` comes in one piece.

    Raises:
        OSError: the file cannot be read.
        ValueError: something was not said, does not fit, or is wrong in all windows.
        ModuleNotFoundError: soundfile is not installed.
    """
    with opened_sound(path) as file:
        positions = _positions(file, array, arguments)
        n_sources = _n_sources(file, arguments)
        window = _window(file, arguments)
        n_windows = file.n_samples // window
        found = survey(file, window, n_windows)
        found.refuse(path, n_windows)
        if found.faults and arguments.strict:
            raise ValueError(f"{path}: {found.faults[min(found.faults)]}.")
        parts: list[Bearings] = []
        started = time.process_time()
        for first, last in _stretches(file, window, n_windows, arguments.batch_size):
            samples = file.read(first * window, last * window)
            for one in range(first, last):
                if one in found.faults or one in found.silent:
                    # a window's answer does not depend on its neighbours
                    samples[(one - first) * window : (one - first + 1) * window] = 0.0
            heard = Sound(torch.from_numpy(samples.T.copy()).float(), file.rate, positions)
            bearings = _bearings(path, heard, n_sources, arguments, window / file.rate)
            parts.append(bearings.later(first * window / file.rate))
            if arguments.track is None:
                cpu_ms = 1e3 * (time.process_time() - started) / (last - first)
                yield n_windows, list(_entries(path, parts.pop(), first, cpu_ms, found.faults))
                started = time.process_time()
        _tell(path, file, positions, arguments, found)
        if parts:
            tracks = smoothed(Bearings.joined(parts), math.radians(arguments.track))
            cpu_ms = 1e3 * (time.process_time() - started) / n_windows
            yield n_windows, list(_entries(path, tracks, 0, cpu_ms, found.faults))


def _window(file: SoundFile, arguments: argparse.Namespace) -> int:
    """Samples of a window."""
    check_length(f"{file.path} holds", file.n_samples, file.rate)
    asked: float = min(arguments.window * file.rate, file.n_samples)
    check_length("--window is", round(asked), file.rate)
    if round(asked) > most_samples(file):
        raise ValueError(
            f"{file.path} has {file.n_channels} channels, of which {most_samples(file)} samples "
            f"are held at once: got a window of {round(asked)}. Use a shorter --window."
        )
    return round(asked)


def check_length(what: str, n_samples: int, rate: float) -> None:
    """Refuses what is too short for two frames.

    Args:
        what: has so many samples, for messages.
        n_samples: of it.
        rate: samples per second.

    Raises:
        ValueError: it is shorter.
    """
    fewest = 3 * frame_length(rate) // 2
    if n_samples < fewest:
        raise ValueError(
            f"{what} {n_samples} samples ({n_samples / rate:.4g} s), want two frames that overlap "
            f"by half, {fewest} samples ({fewest / rate:.4g} s) or more."
        )


def _stretches(
    file: SoundFile, window: int, n_windows: int, most: int
) -> Iterator[tuple[int, int]]:
    """First and last window (not included) of what is read at once."""
    fitting = _BYTES_AT_ONCE // (8 * window * file.n_channels)
    n_at_once = max(1, min(_WINDOWS_AT_ONCE, most, fitting))
    for first in range(0, n_windows, n_at_once):
        yield first, min(first + n_at_once, n_windows)


def _bearings(
    path: Path, heard: Sound, n_sources: int, arguments: argparse.Namespace, window_s: float
) -> Bearings:
    around = Around(elevation_deg=arguments.plane_elevation_deg or 0.0)
    try:
        return localize_sound(
            heard,
            n_sources,
            "music" if arguments.method == "auto" else arguments.method,
            speed=arguments.speed or SPEED_OF_SOUND,
            speed_std=arguments.speed_std,
            elevation=around.circle.elevation,
            band=None if arguments.band is None else tuple(arguments.band),
            window_s=window_s,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _entries(
    path: Path, found: Bearings, first: int, cpu_ms: float, faults: Mapping[int, str]
) -> Iterator[dict[str, Any]]:
    name, std = f"{found.name}_deg", f"std_{found.name}_deg"
    for window, middle in enumerate(found.middles.tolist()):
        place = {"file": str(path), "scene": first + window, "time_s": middle}
        if first + window in faults:
            yield {**place, **bad_entry(faults[first + window])}
            continue
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
                "weights": None,
            }
            for angle, spread in rows
        ]
        yield {
            **place,
            "n_sources": sum(one["resolved"] for one in sources),
            "log_likelihood": None,
            "cpu_ms": cpu_ms,
            "sources": sources,
        }


def _positions(
    file: SoundFile, array: ArrayDescription | None, arguments: argparse.Namespace
) -> torch.Tensor:
    if array is None:
        raise ValueError(
            f"{file.path} does not say where its microphones stand: got no array. Give --array, "
            "for example uca:8:0.10m."
        )
    positions = microphones(file, array)
    if arguments.plane_elevation_deg is not None and is_line(positions.numpy()):
        raise ValueError(
            f"a line of microphones hears the same angle at any elevation: got --array "
            f"{array.word} and --plane-elevation-deg {arguments.plane_elevation_deg:g}. Leave it "
            "out."
        )
    return positions


def microphones(file: SoundFile, array: ArrayDescription) -> torch.Tensor:
    """Where those of a file stand.

    Args:
        file: an open one.
        array: described beside it.

    Returns:
        Positions in metres, [element, 3].

    Raises:
        ValueError: the description is not in metres, of no sensible size, or of another number.
    """
    if array.unit != "m":
        raise ValueError(
            f"sound has many wavelengths, so that its array is described in metres: got --array "
            f"{array.word}. Use m, or --frequency for one narrow band."
        )
    positions = array.positions(1.0)
    check_size(f"--array {array.word}", positions)
    if len(positions) != file.n_channels:
        raise ValueError(
            f"{file.path} has {file.n_channels} channels, --array {array.word} has "
            f"{len(positions)} microphones."
        )
    return torch.from_numpy(positions).float()


def _n_sources(file: SoundFile, arguments: argparse.Namespace) -> int:
    asked = arguments.n_sources
    if not isinstance(asked, int):
        raise ValueError(
            f"{file.path} is wideband sound, whose sources are not counted: got "
            f"{'no --n-sources' if asked is None else f'--n-sources {asked}'}. Give a number."
        )
    if asked >= file.n_channels:
        raise ValueError(
            f"{file.path} has {file.n_channels} microphones, which tell fewer sources apart: got "
            f"--n-sources {asked}. Use --n-sources <= {file.n_channels - 1}."
        )
    return asked


def _tell(
    path: Path,
    file: SoundFile,
    positions: torch.Tensor,
    arguments: argparse.Namespace,
    found: Survey,
) -> None:
    """What a user is told beside the answers."""
    rest = file.n_samples % _window(file, arguments)
    if rest:
        sys.stderr.write(
            f"{path}: the last {rest / file.rate:.4g} s are less than a window and not used. "
            "--window S cuts it otherwise.\n"
        )
    if found.warning is not None:
        sys.stderr.write(f"warning: {path}: {found.warning}\n")
    limit = aliasing_limit(positions, arguments.speed or SPEED_OF_SOUND)
    highest = arguments.band[1] if arguments.band else 0.45 * file.rate
    if highest > limit:
        sys.stderr.write(
            f"{path}: frequencies to {highest:.0f} Hz are used, where microphones further apart "
            f"than half a wavelength (above {limit:.0f} Hz) see false directions; those differ "
            "from frequency to frequency and lose. --band LOW HIGH keeps them out.\n"
        )
