"""What is wrong with sound: of the whole file, of single windows of it, and of channels.

One pass over all samples. Channels count from 0. A window without sound is normal, a file without
is not; a microphone that is dead, for a while at least, or the copy of another, spoils a window in
which others hear.
"""

import math
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from musicnet.recordings.archives import RecordingError
from musicnet.recordings.audio_files import SoundFile, opened_sound
from musicnet.recordings.checks import LOUDEST_POWER, WEAKEST_POWER
from musicnet.recordings.standstills import DROPOUT_S, Standstill, standstills

_MOST_BYTES = 1024**3  # of samples that are held at once
_QUIET = 1e-4  # of the loudest window: below, a channel may well have nothing to say
_CLIPPED_SHARE, _FEWEST_CLIPPED = 1e-4, 8  # samples between two others of the same extreme value
_FEWEST_SAMPLES = 256  # of a window: few may well be alike by chance
_COUNTABLE = 1e140  # what a sum of squares still holds
_LOWEST_CLIP = 64 * 2.0**-15  # of full scale: quieter, equal samples are but coarse steps
_COARSE = {"PCM_U8": 2.0**-7, "PCM_S8": 2.0**-7, "ULAW": 2.0**-5, "ALAW": 2.0**-5}
_FLOATING = ("FLOAT", "DOUBLE")
_HELD = "holds one value for"

Pairs = frozenset[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Survey:
    """What was found in a file.

    Args:
        peak: largest magnitude of each channel, full scale is 1 where samples are whole numbers.
        level: root of the mean square around the mean of each channel.
        copies: channels that equal each other throughout.
        clipped: share of each channel's samples that stand in a row at its extreme; 0 if that may
            be chance.
        silent: windows in which nothing is heard.
        faults: window -> what is wrong with it, beside what is wrong throughout.
        dropouts: those of them where a channel held one value for a part of the window.
        blame: what is wrong with the file as a whole; None if nothing is.
    """

    peak: np.ndarray
    level: np.ndarray
    copies: Pairs
    clipped: np.ndarray
    silent: frozenset[int]
    faults: dict[int, str]
    dropouts: tuple[str, ...]
    blame: str | None

    def refuse(self, path: object, n_windows: int) -> None:
        """Refuses a file of which no window can be used.

        Args:
            path: names it.
            n_windows: that were looked at.

        Raises:
            RecordingError: what is wrong.
        """
        if self.blame is not None:
            raise RecordingError(f"{path}: {self.blame}")
        if self.faults and len(self.faults) + len(self.silent) == n_windows:
            first = self.faults[min(self.faults)]
            rest = f" ({len(self.faults)} of {n_windows} windows are bad, none is good)"
            raise RecordingError(f"{path}: {first}{rest if n_windows > 1 else ''}.")

    @property
    def warning(self) -> str | None:
        """What harms and is no reason to refuse; one line."""
        channels = np.flatnonzero(self.clipped)
        if not len(channels):
            return None
        return (
            f"{_named(channels.tolist())} clipped: up to {100 * self.clipped.max():.2g} % of the "
            "samples stand in a row at the extreme value. Bearings may be off; record with less "
            "gain."
        )


def check_sound(path: Path) -> None:
    """Refuses a file that is spoilt as a whole; warns of what harms.

    Args:
        path: a local file.

    Raises:
        OSError: it cannot be read.
        RecordingError: it is damaged, or what is wrong with it throughout.
        ModuleNotFoundError: soundfile is not installed.
    """
    with opened_sound(path) as file:
        found, _ = survey_seconds(file)
    if found.blame is not None:
        raise RecordingError(f"{path}: {found.blame}")
    if found.warning is not None:
        warnings.warn(f"{path}: {found.warning}", stacklevel=2)
    for reason in found.dropouts[:1]:
        more = f" (and {len(found.dropouts) - 1} more)" if len(found.dropouts) > 1 else ""
        warnings.warn(f"{path}: {reason}{more}. Bearings there are off.", stacklevel=2)


def most_samples(file: SoundFile) -> int:
    """Of each channel, that are read at once."""
    return max(1, _MOST_BYTES // (8 * file.n_channels))


def survey_seconds(file: SoundFile) -> tuple[Survey, int]:
    """Looks at a whole file, second by second.

    A second has 256 samples at least. A rest is a window of its own, unless it is shorter than a
    tenth of a second, or than 256 samples: then it belongs to the last one.

    Args:
        file: an open file.

    Returns:
        What was found, and how many windows there are.

    Raises:
        RecordingError: the file is damaged.
    """
    second = max(1, min(max(_FEWEST_SAMPLES, round(file.rate)), most_samples(file)))
    n_windows, rest = divmod(file.n_samples, second)
    n_windows = max(1, n_windows + (rest >= max(_FEWEST_SAMPLES, DROPOUT_S * file.rate)))
    return survey(file, second, n_windows, to_end=True), n_windows


def survey(file: SoundFile, window: int, n_windows: int, *, to_end: bool = False) -> Survey:
    """Looks at all samples of some windows.

    Args:
        file: an open file.
        window: samples of each.
        n_windows: from the beginning on.
        to_end: whether the last one goes on to the end of the file.

    Returns:
        What was found.

    Raises:
        RecordingError: the file is damaged.
    """
    tally = _Tally(file, window)
    for number in range(n_windows):
        first = number * window
        is_last = to_end and number == n_windows - 1
        tally.take(first, file.read(first, file.n_samples if is_last else first + window))
    return tally.survey()


@dataclass
class _Tally:
    """What is known after some windows."""

    file: SoundFile
    window: int  # samples
    n_samples: int = 0
    bad: dict[int, str] = field(default_factory=dict)
    spreads: list[float] = field(default_factory=list)
    flat: list[frozenset[int]] = field(default_factory=list)  # channels of each window
    pairs: list[Pairs] = field(default_factory=list)  # of channels of each window
    still: dict[int, list[Standstill]] = field(default_factory=dict)  # of windows that have some

    def __post_init__(self) -> None:
        n = self.file.n_channels
        self.low, self.high = np.full(n, math.inf), np.full(n, -math.inf)
        self.total, self.squares = np.zeros(n), np.zeros(n)
        self.at_extreme = np.zeros((2, n), dtype=np.int64)

    def take(self, start: int, samples: np.ndarray) -> None:
        """Adds the next window, which begins at a sample."""
        window = len(self.spreads)
        finite = np.isfinite(samples)
        if not finite.all():
            sample, channel = np.argwhere(~finite)[0].tolist()
            self._note(window, f"channel {channel} is not finite at sample {start + sample},")
            samples = np.where(finite, samples, 0.0)
        low, high = samples.min(0), samples.max(0)
        peak = np.maximum(-low, high)
        if peak.max() > math.sqrt(LOUDEST_POWER):
            channel = int(peak.argmax())
            sample = start + int(np.abs(samples[:, channel]).argmax())
            said = f"channel {channel} is {peak[channel]:.3g} at sample {sample}"
            self._note(window, f"{said}, above {math.sqrt(LOUDEST_POWER):g} (scale the file),")
            samples = np.clip(samples, -_COUNTABLE, _COUNTABLE)
        total = samples.sum(0)
        is_flat = low == high
        self.spreads.append(float((high - low).max()))
        self.flat.append(frozenset(np.flatnonzero(is_flat).tolist()))
        self.pairs.append(_copies(samples, np.stack((low, high, total)), is_flat))
        still = standstills(samples, self.file.rate, self._step)
        if still:
            self.still[window] = [replace(one, first=start + one.first) for one in still]
        self._count_extremes(samples, low, high, is_flat)
        self.total += total
        self.squares += (samples * samples).sum(0)
        self.n_samples += len(samples)

    def survey(self) -> Survey:
        """What all windows say together."""
        spreads = np.array(self.spreads)
        usable = np.delete(spreads, list(self.bad)) if len(self.bad) < len(spreads) else spreads
        loudest = float(usable.max(initial=0.0))
        spoilt = [bool(flat or pairs) for flat, pairs in zip(self.flat, self.pairs, strict=True)]
        # what is nearly silent may be all zero, or alike, in some channels
        is_silent = (spreads == 0.0) | (np.array(spoilt, bool) & (spreads < _QUIET * loudest))
        silent = frozenset(w for w in np.flatnonzero(is_silent).tolist() if w not in self.bad)
        heard = [w for w in range(len(spreads)) if w not in silent and w not in self.bad]
        flat = frozenset.intersection(*(self.flat[window] for window in heard or [0]))
        copies = frozenset.intersection(*(self.pairs[window] for window in heard or [0]))
        for window in heard:
            if (said := _said(self.flat[window] - flat, self.pairs[window] - copies)) is not None:
                self._note(window, said)
            # where it is dead, and others whisper, little is lost
            lost = [
                one
                for one in self.still.get(window, ())
                if one.channel not in flat and one.beside > _QUIET * loudest
            ]
            if lost:
                self._note(window, _held(lost))
        n = max(self.n_samples, 1)
        mean = self.total / n
        varies = self.low < self.high  # of a constant, rounding would leave a level
        return Survey(
            peak=np.maximum(-self.low, self.high),
            level=np.sqrt(np.where(varies, np.maximum(self.squares / n - mean**2, 0.0), 0.0)),
            copies=copies,
            clipped=self._clipped(),
            silent=silent,
            faults=dict(sorted(self.bad.items())),
            dropouts=tuple(said for _, said in sorted(self.bad.items()) if _HELD in said),
            blame=self._blame(heard, loudest, flat, copies),
        )

    def _blame(
        self, heard: list[int], loudest: float, flat: frozenset[int], copies: Pairs
    ) -> str | None:
        if not heard and self.bad:
            return None  # windows say why
        if not heard:
            return (
                "no channel ever changes: it is silent throughout. Look for the right file, or "
                "the gain."
            )
        if loudest < math.sqrt(WEAKEST_POWER):
            return (
                f"nothing in it is louder than {loudest:.3g}, too faint: want "
                f"{math.sqrt(WEAKEST_POWER):g} or more. Scale the file."
            )
        said = _said(flat, copies)
        if said is None:
            return None
        return f"{said} throughout. Leave what is bad out of file and array, or record anew."

    def _note(self, window: int, said: str) -> None:
        seconds = window * self.window / self.file.rate
        self.bad.setdefault(window, f"{said} in window {window} (from {seconds:.6g} s)")

    @property
    def _step(self) -> float:
        """Below which the samples of a file are all alike, however they are stored."""
        return 0.0 if self.file.subtype in _FLOATING else _COARSE.get(self.file.subtype, 2.0**-15)

    def _count_extremes(
        self, samples: np.ndarray, low: np.ndarray, high: np.ndarray, is_flat: np.ndarray
    ) -> None:
        """Samples between two others of the same value, the channel's extreme so far."""
        for side, (now, sign) in enumerate(((low, -1.0), (high, 1.0))):
            so_far = self.low if side == 0 else self.high
            beyond = sign * now > sign * so_far
            so_far[beyond] = now[beyond]
            self.at_extreme[side, beyond] = 0
            reached = np.flatnonzero((now == so_far) & ~is_flat)
            there = samples[:, reached] == now[reached]
            self.at_extreme[side, reached] += (there[2:] & there[1:-1] & there[:-2]).sum(0)

    def _clipped(self) -> np.ndarray:
        """Share of samples at either extreme, of channels where that is no chance."""
        least = max(_LOWEST_CLIP, 64 * _COARSE.get(self.file.subtype, 0.0))
        reach = np.stack((-self.low, self.high))
        counted = np.where(reach >= min(least, 0.5), self.at_extreme, 0).sum(0)
        is_much = counted >= max(_FEWEST_CLIPPED, _CLIPPED_SHARE * self.n_samples)
        return np.where(is_much, counted / max(self.n_samples, 1), 0.0)


def _copies(samples: np.ndarray, keys: np.ndarray, is_flat: np.ndarray) -> Pairs:
    """Channels that equal an earlier one to the last bit."""
    first: dict[tuple[float, ...], int] = {}
    pairs = []
    for channel in np.flatnonzero(~is_flat).tolist():
        earlier = first.setdefault(tuple(keys[:, channel].tolist()), channel)
        if earlier != channel and np.array_equal(samples[:, earlier], samples[:, channel]):
            pairs.append((earlier, channel))
    return frozenset(pairs)


def _said(flat: frozenset[int], pairs: Pairs) -> str | None:
    said = [f"{_named(sorted(flat))} dead (one value only)"] if flat else []
    if pairs:
        one, other = min(pairs)
        more = f" ({len(pairs)} such pairs)" if len(pairs) > 1 else ""
        said.append(f"channels {one} and {other} are identical{more}")
    return ", ".join(said) or None


def _held(lost: list[Standstill]) -> str:
    longest = max(lost, key=lambda one: one.n_samples)
    channels = {one.channel for one in lost}
    more = f" ({len(channels)} such channels)" if len(channels) > 1 else ""
    return (
        f"channel {longest.channel} {_HELD} {longest.n_samples} samples from sample "
        f"{longest.first} while others do not{more},"
    )


def _named(channels: list[int]) -> str:
    if len(channels) == 1:
        return f"channel {channels[0]} is"
    listed = ", ".join(map(str, channels[:8])) + (", ..." if len(channels) > 8 else "")
    return f"channels {listed} are"
