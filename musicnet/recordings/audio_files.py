"""Sound of several channels: its samples, or snapshots of one narrow band.

A snapshot is the Fourier coefficient of one windowed frame of every channel at one frequency: the
array hears it as it hears a narrow-band wave of that frequency.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from musicnet.recordings.archives import RecordingError
from musicnet.recordings.lazy_arrays import LazyArray, Store, sha256_of
from musicnet.recordings.wave_files import check_wave_is_whole

FRAME = 1024
"""Samples of a frame; frames overlap by half."""

_MOST_CHANNELS = 1024


def is_sound(beginning: bytes) -> bool:
    """Whether a file begins as WAV or FLAC do.

    Example:
        >>> is_sound(b"RIFF....WAVEfmt "), is_sound(b"OggS")
        (True, False)
    """
    is_wave = beginning[:4] in (b"RIFF", b"RF64", b"RIFX") and beginning[8:12] == b"WAVE"
    return is_wave or beginning.startswith(b"fLaC")


def open_sound(path: Path, frequency_hz: float | None) -> Store:
    """Opens a sound file as narrow-band snapshots.

    Args:
        path: a local file.
        frequency_hz: the band's centre.

    Returns:
        ``y``, complex64 [frame, channel]; its rate is that of the frames.

    Raises:
        OSError: the file cannot be read.
        RecordingError: it is damaged, or the frequency is not in it.
        ModuleNotFoundError: soundfile is not installed.
    """
    if frequency_hz is None:
        raise RecordingError(
            f"{path} is sound, of which one narrow band is listened to: got no frequency. Give "
            "--frequency HZ."
        )
    sha256 = sha256_of(path)
    with ExitStack() as stack:
        file = stack.enter_context(_opened(path))
        rate = float(file.samplerate)
        if not 0 < frequency_hz < rate / 2:
            raise RecordingError(
                f"--frequency must lie below half the sampling rate of {path}, {rate / 2:g} Hz: "
                f"got {frequency_hz:g}."
            )
        hop = FRAME // 2
        n_frames = max((file.frames - FRAME) // hop + 1, 0)
        if n_frames < 1:
            raise RecordingError(f"{path} has {file.frames} samples, want at least {FRAME}.")
        phase = -2.0 * math.pi * frequency_hz / rate * np.arange(FRAME)
        kernel = np.hanning(FRAME + 1)[:-1] * np.exp(1j * phase) * (2.0 / FRAME)

        def read(first: int, last: int) -> np.ndarray:
            sound = _samples(file, first * hop, (last - first - 1) * hop + FRAME, path)
            frames = np.lib.stride_tricks.sliding_window_view(sound, FRAME, axis=0)[::hop]
            heard: np.ndarray = frames @ kernel  # (frame, channel)
            return heard.astype(np.complex64)

        y = LazyArray(str(path), (n_frames, file.channels), np.dtype(np.complex64), read)
        return Store(path, "sound", {"y": y}, sha256, stack.pop_all(), rate / hop, frequency_hz)


@dataclass(frozen=True, eq=False)
class SoundFile:
    """An open sound file.

    Args:
        path: of it.
        rate: samples per second.
        n_samples: of each channel.
        n_channels: microphones.
        subtype: how samples are stored, as soundfile names it.
        read: first and last sample (not included) -> samples, float64 [sample, channel].
    """

    path: Path
    rate: float
    n_samples: int
    n_channels: int
    subtype: str
    read: Callable[[int, int], np.ndarray]


@contextmanager
def opened_sound(path: Path) -> Iterator[SoundFile]:
    """Opens a sound file for its samples.

    Args:
        path: a local file.

    Yields:
        What reads it, while the block lasts.

    Raises:
        OSError: the file cannot be read.
        RecordingError: it is damaged, or has one channel or no samples.
        ModuleNotFoundError: soundfile is not installed.
    """
    with _opened(path) as file:
        yield SoundFile(
            path,
            float(file.samplerate),
            int(file.frames),
            int(file.channels),
            str(file.subtype),
            lambda first, last: _samples(file, first, last - first, path),
        )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    soundfile = _library()
    try:
        file = soundfile.SoundFile(path)
    except (RuntimeError, OSError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RecordingError(f"{path} is truncated or no sound file ({reason:.120}).") from error
    with file:
        if not 2 <= file.channels <= _MOST_CHANNELS:
            raise RecordingError(
                f"{path} has {file.channels} channels, want 2 to {_MOST_CHANNELS}: one hears no "
                "direction."
            )
        if file.frames == 0:
            raise RecordingError(f"{path} has 0 samples.")
        check_wave_is_whole(path)
        yield file


def _samples(file: Any, start: int, count: int, path: Path) -> np.ndarray:
    try:
        file.seek(start)
        sound: np.ndarray = file.read(count, dtype="float64", always_2d=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise RecordingError(f"{path} cannot be read at sample {start} ({reason:.120}).") from error
    if len(sound) < count:
        raise RecordingError(f"{path} ends at sample {start + len(sound)}: it is truncated.")
    return sound


def _library() -> Any:
    try:
        import soundfile
    except (ModuleNotFoundError, OSError) as error:
        raise ModuleNotFoundError(
            "sound needs soundfile, which is not installed. Run pip install 'musicnet[formats]'."
        ) from error
    return soundfile
