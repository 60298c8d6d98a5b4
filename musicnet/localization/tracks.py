"""Bearings over time: which is the same source, and where it is, given what came before."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from musicnet.localization.sound import Bearings

FASTEST_DEG = 3600.0
"""Degrees in a second that a track may drift at most: beyond ten turns nothing is remembered."""

_GATE = 16.0  # deviations squared beyond which an angle is another source's
_PATIENCE_S = 1.0  # a track that was not heard for longer may begin anew elsewhere
_LEAST = math.radians(0.1)  # of a deviation: no error bar is so short that nothing else counts


def smoothed(bearings: Bearings, drift: float) -> Bearings:
    """Joins the angles of windows that follow each other into tracks, and smooths each of them.

    A track is a random walk: from window to window its angle drifts, and what is heard moves it by
    as much as both are uncertain (a Kalman filter in one dimension). What is further from all
    tracks than noise and drift explain is dropped, unless one of them was not heard for a second:
    that one begins anew there.

    Args:
        bearings: of windows in order of time.
        drift: standard deviation of what an angle moves in a second, radians.

    Returns:
        The same windows; each slot is a track. NaN where a track was not heard.

    Raises:
        ValueError: a drift that is none, or beyond `FASTEST_DEG`.

    Source: Kalman (1960), Journal of Basic Engineering 82(1).
    """
    if not 0.0 < drift <= math.radians(FASTEST_DEG):
        raise ValueError(
            f"drift must be > 0 and at most {math.radians(FASTEST_DEG):.4g} rad in a second: got "
            f"{drift}."
        )
    angles, deviations = bearings.angles.double().numpy(), bearings.deviations.double().numpy()
    seconds = bearings.middles.double().numpy()
    n_tracks = angles.shape[1]
    track = _Tracks(n_tracks, is_closed=bearings.name == "bearing")
    smooth, spread = np.full_like(angles, math.nan), np.full_like(angles, math.nan)
    for window, now in enumerate(seconds):
        heard = np.flatnonzero(np.isfinite(angles[window]))
        noise = np.maximum(np.nan_to_num(deviations[window, heard], nan=_LEAST), _LEAST) ** 2
        for slot in track.take(angles[window, heard], noise, now, drift):
            smooth[window, slot] = track.angle[slot]
            spread[window, slot] = math.sqrt(track.variance[slot])
    return replace(
        bearings,
        angles=torch.from_numpy(smooth).to(bearings.angles),
        deviations=torch.from_numpy(spread).to(bearings.deviations),
    )


class _Tracks:
    """Where each track is, how surely, and when it was heard last."""

    def __init__(self, n_tracks: int, *, is_closed: bool) -> None:
        self.angle = np.zeros(n_tracks)
        self.variance = np.full(n_tracks, math.inf)  # nowhere yet
        self.heard_at = np.full(n_tracks, -math.inf)
        self.is_closed = is_closed

    def take(self, angles: np.ndarray, noise: np.ndarray, now: float, drift: float) -> list[int]:
        """Gives each angle to a track; the tracks that were heard."""
        began = np.isfinite(self.variance)
        silent_for = np.where(began, now - self.heard_at, 0.0)
        variance = self.variance + drift**2 * silent_for
        apart = self._apart(angles[:, None] - self.angle)
        unlikely = np.where(began, apart**2 / (variance + noise[:, None]), math.inf)
        lost = ~began | (silent_for > _PATIENCE_S)
        # no better than what the gate refuses, but better than where nothing may begin
        price = np.where(unlikely <= _GATE, unlikely, np.where(lost, 2.0 * _GATE, 4.0 * _GATE))
        moved = []
        for one, slot in zip(*linear_sum_assignment(price), strict=True):
            if began[slot] and unlikely[one, slot] <= _GATE:
                gain = variance[slot] / (variance[slot] + noise[one])
                self.angle[slot] += gain * apart[one, slot]
                self.variance[slot] = gain * noise[one]  # (1 - gain) * variance would lose it all
            elif lost[slot]:
                self.angle[slot], self.variance[slot] = angles[one], noise[one]
            else:
                continue
            if self.is_closed:
                self.angle[slot] = self._apart(self.angle[slot])
            self.heard_at[slot] = now
            moved.append(int(slot))
        return moved

    def _apart(self, difference: Any) -> Any:
        """On a circle the short way round."""
        if not self.is_closed:
            return difference
        return (difference + math.pi) % (2.0 * math.pi) - math.pi
