"""Where a microphone stands still while others hear: a cable that lets go for a moment."""

import math
from dataclasses import dataclass

import numpy as np

DROPOUT_S = 0.1
"""Seconds of one value that are no chance."""

_WINDOW_SHARE = 0.25  # of a window that is shorter than four of those
_FEWEST = 32  # samples
_STEPS = 64  # of a quantizer by which others have to move meanwhile
_HEARD = 1e-2  # of what a window holds: others have to move by so much meanwhile


@dataclass(frozen=True)
class Standstill:
    """One value for a while.

    Args:
        channel: which one.
        first: sample.
        n_samples: how many.
        beside: how far the loudest other channel moves within a moment meanwhile.
    """

    channel: int
    first: int
    n_samples: int
    beside: float


def standstills(samples: np.ndarray, rate: float, step: float) -> list[Standstill]:
    """Finds channels that hold one value for a tenth of a second, or a quarter of a window.

    Args:
        samples: finite, [sample, channel].
        rate: samples per second.
        step: of the quantizer; 0 if there is none.

    Returns:
        The longest of each channel, if others are heard meanwhile; not of one that never moves.

    Example:
        >>> samples = np.random.default_rng(0).standard_normal((1000, 3))
        >>> samples[200:500, 1] = 0.0
        >>> [(one.channel, one.first, one.n_samples) for one in standstills(samples, 1e3, 0.0)]
        [(1, 200, 300)]
    """
    n_samples = len(samples)
    fewest = max(_FEWEST, math.ceil(min(DROPOUT_S * rate, _WINDOW_SHARE * n_samples)))
    pitch = (fewest - 1) // 2  # a run of so many has two neighbours in any comb of that pitch
    comb = samples[::pitch]
    candidates = np.flatnonzero((comb[1:] == comb[:-1]).any(0)).tolist()
    if not candidates:
        return []
    block = max(2, pitch // 4)
    moves = _spreads(samples, block)
    heard = max(_STEPS * step, _HEARD * float(np.ptp(samples, axis=0).max()))
    found = []
    for channel in candidates:
        runs = [
            Standstill(channel, first, n, _beside(moves, block, first, n))
            for first, n in _runs(samples[:, channel], fewest)
            if n < n_samples
        ]
        lost = [run for run in runs if run.beside > heard]
        if lost:
            found.append(max(lost, key=lambda run: run.n_samples))
    return found


def _runs(values: np.ndarray, fewest: int) -> list[tuple[int, int]]:
    """First sample and length of each stretch of one value that is long enough."""
    edges = np.concatenate(([0], np.flatnonzero(values[1:] != values[:-1]) + 1, [len(values)]))
    lengths = np.diff(edges)
    long = np.flatnonzero(lengths >= fewest)
    return list(zip(edges[long].tolist(), lengths[long].tolist(), strict=True))


def _spreads(samples: np.ndarray, block: int) -> np.ndarray:
    """From lowest to highest value in each block, of the channel where that is most."""
    first = np.arange(0, len(samples), block)
    low, high = (extreme.reduceat(samples, first, axis=0) for extreme in (np.minimum, np.maximum))
    most: np.ndarray = (high - low).max(1)
    return most


def _beside(moves: np.ndarray, block: int, first: int, n_samples: int) -> float:
    """What others do in the middle of it: silence begins and ends elsewhere at each microphone."""
    margin = n_samples // 4
    inside = moves[-(-(first + margin) // block) : (first + n_samples - margin) // block]
    return float(inside.max(initial=0.0))
