"""Directions of sound: wideband methods, error bars, and windows over time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from musicnet.coordinates import wrap_angle
from musicnet.estimation.circle_peaks import CirclePeaks, circle_peaks, parabola_offset
from musicnet.estimation.short_time import Spectra, frame_length, short_time_covariances
from musicnet.estimation.wideband import (
    WIDEBAND_METHODS,
    WidebandMethod,
    drawing,
    plane_wave_steering,
)
from musicnet.localization.frequency_jackknife import (
    FEWEST_FREQUENCIES,
    jackknife_variance,
    leaving_out,
    variance_near_an_end,
)
from musicnet.scene.sound import (
    SPEED_OF_SOUND,
    SearchCircle,
    Sound,
    aliasing_limit,
    check_aperture,
    check_speed,
)

LOWEST_HZ = 300.0
"""Where the default band begins: below it, hum and rumble are louder than speech."""

_NYQUIST_SHARE = 0.9  # of half the rate: above it, filters of converters leave little
_INTERPOLATION = 0.005  # of a cell, that a parabola through three of them is off
_HIGHEST = math.radians(89.0)  # elevation above a plane in which bearings still are directions
_ANY_ANGLE = {"bearing": 2.0 * math.pi / math.sqrt(12.0), "lateral": math.pi / math.sqrt(12.0)}


@dataclass(frozen=True, eq=False)
class Bearings:
    """Directions of the sources of each window, with their error bars.

    Args:
        angles: radians, best first, bearings in (-pi, pi]; NaN where the map had no peak left.
        deviations: standard deviations, radians. They hold what differs between frequencies, as
            noise does, and the speed of sound; not what is wrong at all frequencies alike, as
            positions of microphones, and only a part of what reflections do.
        middles: of the windows, seconds from the start.
        name: of the angle, "bearing" or "lateral".
        method: which one it was.
        band: lowest and highest frequency used, Hz.
        aliasing_hz: frequency above which neighbours are further apart than half a wavelength.
    """

    angles: Float[Tensor, "window source"]
    deviations: Float[Tensor, "window source"]
    middles: Float[Tensor, " window"]
    name: str
    method: WidebandMethod
    band: tuple[float, float]
    aliasing_hz: float

    @property
    def resolved(self) -> Bool[Tensor, "window source"]:
        """Slots that hold a source."""
        return self.angles.isfinite()

    def later(self, seconds: float) -> "Bearings":
        """The same of sound that began so much later."""
        return replace(self, middles=self.middles + seconds)

    @classmethod
    def joined(cls, parts: Sequence["Bearings"]) -> "Bearings":
        """Windows one part after another; what is the same for all is taken from the first."""
        return replace(
            parts[0],
            angles=torch.cat([part.angles for part in parts]),
            deviations=torch.cat([part.deviations for part in parts]),
            middles=torch.cat([part.middles for part in parts]),
        )


def localize_sound(
    sound: Sound,
    n_sources: int,
    method: WidebandMethod = "music",
    *,
    speed: float = SPEED_OF_SOUND,
    speed_std: float = 0.0,
    elevation: float = 0.0,
    band: tuple[float, float] | None = None,
    window_s: float | None = None,
) -> Bearings:
    """Finds where sound comes from.

    Args:
        sound: what was heard.
        n_sources: how many to look for in each window.
        method: see `musicnet.estimation.wideband`.
        speed: of sound, metres per second.
        speed_std: its standard deviation.
        elevation: of the sources above the x-y plane, radians; no matter for a line.
        band: lowest and highest frequency used, Hz; None from 300 Hz to nine tenths of half the
            rate. It may go beyond the spatial-aliasing limit but has to begin below it.
        window_s: seconds that one answer is made from; None makes one from all.

    Returns:
        Bearings of each window; a line's are lateral angles. Silence has none.

    Raises:
        ValueError: an argument out of range, a band that the rate does not hold or that begins
            above the aliasing limit, or sound too short.

    Example:
        >>> noise = torch.randn(8194, generator=torch.Generator().manual_seed(0))
        >>> pair = torch.tensor([[-0.05, 0.0, 0.0], [0.05, 0.0, 0.0]])
        >>> heard = Sound(torch.stack((noise[:-2], noise[2:])), rate=16000.0, positions=pair)
        >>> found = localize_sound(heard, 1)  # two samples earlier on the right
        >>> found.name, round(float(found.angles.rad2deg()))
        ('lateral', 25)
    """
    _check(method, speed, speed_std, elevation)
    limit = aliasing_limit(sound.positions, speed)
    band = usable_band(band, sound.rate)
    if band[0] >= limit:
        raise ValueError(
            "band must begin below the spatial-aliasing limit of this array, "
            f"{limit:.0f} Hz: got {band[0]:g} to {band[1]:g} Hz. Use a lower band, or microphones "
            "closer together."
        )
    circle = SearchCircle.around(sound.positions, elevation)
    check_aperture(sound.positions, band, speed, elevation if circle.name == "bearing" else 0.0)
    spectra = short_time_covariances(
        sound, band, window_s=window_s, phase_only=method == "srp-phat"
    )
    _check_frequencies(len(spectra.frequencies), band, sound.rate)
    weights = leaving_out(len(spectra.frequencies), spectra.frequencies)

    def score(speed: float, weights: Tensor) -> Float[Tensor, "window draw cell"]:
        steering = plane_wave_steering(
            sound.positions, circle.directions, spectra.frequencies, speed
        )
        draw = drawing(method, spectra, steering, n_sources, is_closed=circle.is_closed)
        return draw(weights)

    drawn = score(speed, weights)
    peaks = circle_peaks(drawn[:, 0], n_sources, is_closed=circle.is_closed)
    found = _near(drawn, peaks, circle)  # (window, draw, source)
    n = len(spectra.frequencies)
    variance = jackknife_variance(found[:, 1:], n) + (_INTERPOLATION * circle.step) ** 2
    if not circle.is_closed:
        squeezed = variance_near_an_end(drawn[:, 1:], peaks, circle, found[:, 0], n)
        variance = variance.maximum(squeezed)
    if speed_std > 0.0:
        faster, slower = (
            _near(score(other, weights[:1]), peaks, circle)
            for other in (speed + speed_std, speed - speed_std)
        )
        variance = variance + (0.5 * (faster - slower)[:, 0]).square()
    there = peaks.present & ~_silent(spectra)[:, None]
    angles = found[:, 0]
    if circle.is_closed:
        angles = wrap_angle(angles)
    return Bearings(
        angles.masked_fill(~there, math.nan),
        variance.sqrt().clamp_max(_ANY_ANGLE[circle.name]).masked_fill(~there, math.nan),
        spectra.middles,
        circle.name,
        method,
        band,
        limit,
    )


def usable_band(band: tuple[float, float] | None, rate: float) -> tuple[float, float]:
    """The band that is asked for, or the usual one, if sound of a rate holds it.

    Args:
        band: lowest and highest frequency, Hz; None asks for the usual one.
        rate: samples per second.

    Returns:
        Lowest and highest frequency, Hz.

    Raises:
        ValueError: half the rate is too low for it, or it is no band.

    Example:
        >>> usable_band(None, 16000.0)
        (300.0, 7200.0)
    """
    highest = 0.5 * rate
    if band is None and highest * _NYQUIST_SHARE <= LOWEST_HZ:
        raise ValueError(
            f"sound of {rate:g} samples per second holds no frequency above {highest:g} Hz, too "
            f"low for the usual band, which begins at {LOWEST_HZ:g} Hz: got no band. Give one "
            f"below {highest:g} Hz, or record at a higher rate."
        )
    low, high = band or (LOWEST_HZ, _NYQUIST_SHARE * highest)
    if not 0.0 < low < high < math.inf:
        raise ValueError(f"band must be two rising frequencies > 0: got {low:g} to {high:g} Hz.")
    if high > highest:
        raise ValueError(
            f"band must end at or below half the sampling rate, {highest:g} Hz, above which sound "
            f"of {rate:g} samples per second holds nothing: got {low:g} to {high:g} Hz."
        )
    return low, high


def _check_frequencies(n: int, band: tuple[float, float], rate: float) -> None:
    length = frame_length(rate)
    if n < FEWEST_FREQUENCIES:
        raise ValueError(
            f"error bars need {FEWEST_FREQUENCIES} frequencies or more: got {n} in the band from "
            f"{band[0]:g} to {band[1]:g} Hz, which are {rate / length:g} Hz apart in frames of "
            f"{length / rate:g} s. Use a band wider than "
            f"{FEWEST_FREQUENCIES * rate / length:g} Hz, or record at a higher rate."
        )


def _near(
    score: Float[Tensor, "window draw cell"], peaks: CirclePeaks, circle: SearchCircle
) -> Float[Tensor, "window draw source"]:
    """Where the maximum of each map is that belongs to each peak; radians, not wrapped."""
    reach = torch.arange(-3, 4, device=score.device)
    around = peaks.cells[:, None, :, None] + reach  # (window, 1, source, near)
    n_cells = score.shape[-1]
    # beyond the end of a line everything comes again, backwards
    inside = around if circle.is_closed else _folded(around, n_cells - 1)
    wanted = (inside % n_cells).expand(-1, score.shape[1], -1, -1)
    near = score.gather(-1, wanted.flatten(-2)).reshape(wanted.shape)
    best = near[..., 1:-1].argmax(-1, keepdim=True) + 1
    left, here, right = (near.gather(-1, best + step)[..., 0] for step in (-1, 0, 1))
    cell = around.expand_as(wanted).gather(-1, best)[..., 0] + parabola_offset(left, here, right)
    if not circle.is_closed:
        cell = _folded(cell, n_cells - 1)
    return cell * circle.step + circle.angles[0]


def _folded(cells: Shaped[Tensor, "*batch"], last: int) -> Shaped[Tensor, "*batch"]:
    return last - (last - cells.abs()).abs()


def _silent(spectra: Spectra) -> Bool[Tensor, " window"]:
    """Windows in which nothing was heard, or numbers that are none."""
    power = spectra.covariances.diagonal(dim1=-2, dim2=-1).real.sum((-2, -1))
    return ~((power > torch.finfo(power.dtype).tiny) & power.isfinite())


def _check(method: str, speed: float, speed_std: float, elevation: float) -> None:
    if method not in WIDEBAND_METHODS:
        raise ValueError(
            f"sound is localised by one of {', '.join(WIDEBAND_METHODS)}: got {method!r}."
        )
    check_speed(speed, speed_std)
    if not abs(elevation) <= _HIGHEST:
        raise ValueError(
            f"bearings are told apart up to {math.degrees(_HIGHEST):g} degrees above or below the "
            f"plane of the array: got an elevation of {math.degrees(elevation):.7g} degrees."
        )
