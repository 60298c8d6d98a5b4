"""What a sound file holds, and what is wrong with it: the part of `inspect` for sound."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from musicnet.commands.sound_answers import check_length, microphones
from musicnet.localization.sound import usable_band
from musicnet.recordings.audio_files import SoundFile, opened_sound
from musicnet.recordings.lazy_arrays import sha256_of
from musicnet.recordings.setup import Setup
from musicnet.recordings.sound_checks import Survey, survey_seconds
from musicnet.scene.sound import SPEED_OF_SOUND, aliasing_limit, check_aperture, check_speed

_MOST_FAULTS = 20
"""Bad windows that are named one by one."""


def look_at_sound(path: Path, setup: Setup) -> int:
    """Prints what a sound file holds, second by second looked at.

    Args:
        path: a local file.
        setup: the array, and the speed of sound, if they are known.

    Returns:
        How many things are wrong; a line on each went to stderr.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, or the array is not its.
        ModuleNotFoundError: soundfile is not installed.
    """
    if setup.array is None and setup.speed_m_s is not None:
        raise ValueError(
            f"the speed of sound matters with an array: got --speed {setup.speed_m_s:g} alone. "
            "Give --array, or leave it out."
        )
    with opened_sound(path) as file:
        found, n_windows = survey_seconds(file)
        print(f"{path}: sound, sha256 {sha256_of(path)}")
        for line in (*_facts(file), *_channels(found)):
            print(f"  {line}")
        told = [] if found.blame is None else [found.blame]
        wrong = [f"{path}: {one}" for one in (*told, *found.faults.values())]
        for check in (_check_length, _fit):
            try:
                check(file, setup)
            except ValueError as error:
                wrong.append(" ".join(str(error).split()))
    if found.silent and found.blame is None:
        print(f"  {len(found.silent)} of {n_windows} windows of a second are silent")
    if found.warning is not None:
        sys.stderr.write(f"warning: {path}: {found.warning}\n")
    sys.stderr.writelines(f"error: {one}\n" for one in wrong[:_MOST_FAULTS])
    if len(wrong) > _MOST_FAULTS:
        sys.stderr.write(f"error: {path}: {len(wrong) - _MOST_FAULTS} more such lines\n")
    return len(wrong)


def _facts(file: SoundFile) -> Iterator[str]:
    yield (
        f"{file.rate:g} samples per second, {file.n_channels} channels, {file.n_samples} samples "
        f"each ({file.n_samples / file.rate:.6g} s), stored as {file.subtype}"
    )
    band = _usual_band(file)
    said = (
        "too low for the usual band: --band"
        if band is None
        else f"the usual band is {band[0]:g} to {band[1]:g} Hz"
    )
    yield f"holds frequencies to {file.rate / 2:g} Hz; {said}"


def _usual_band(file: SoundFile) -> tuple[float, float] | None:
    try:
        return usable_band(None, file.rate)
    except ValueError:
        return None


def _channels(found: Survey) -> Iterator[str]:
    """A line for each: how loud, and what is odd."""
    nothing = "dead (one value only)" if found.level.any() else "silent"
    for channel, (level, peak) in enumerate(zip(found.level, found.peak, strict=True)):
        share = found.clipped[channel]
        clipped = f", clipped ({100 * share:.2g} %)" if share else ""
        said = nothing if level == 0.0 else f"level {_db(level)}, peak {_db(peak)}"
        yield f"channel {channel:<4}{said}{clipped}"
    for one, other in sorted(found.copies):
        yield f"channels {one} and {other} are identical"


def _check_length(file: SoundFile, _: Setup) -> None:
    check_length(f"{file.path} holds", file.n_samples, file.rate)


def _fit(file: SoundFile, setup: Setup) -> None:
    """Says whether an array can be that of the file, and where it is ambiguous.

    Raises:
        ValueError: it is not.
    """
    if setup.array is None:
        print("  where the microphones stand is not said: --array")
        return
    positions = microphones(file, setup.array)
    speed = setup.speed_m_s or SPEED_OF_SOUND
    try:
        check_speed(speed)
        if (band := _usual_band(file)) is not None:
            check_aperture(positions, band, speed)
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from error
    limit = aliasing_limit(positions, speed)
    print(
        f"  --array {setup.array.word} fits: {len(positions)} microphones; above {limit:.0f} Hz "
        "neighbours are more than half a wavelength apart (spatial aliasing)"
    )


def _db(amplitude: float) -> str:
    return f"{20 * np.log10(amplitude):.1f} dB"
