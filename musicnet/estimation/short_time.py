"""Short-time spectra of sound, and what they leave of it: one covariance per frequency."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from musicnet.scene.sound import Sound

FRAME_S = 0.032
"""Length of a frame, about; speech stands still for so long."""

_FRAMES_AT_ONCE = 2048  # bounds the memory of long recordings


@dataclass(frozen=True, eq=False)
class Spectra:
    """Second moments of several stretches of sound, frequency by frequency.

    Args:
        covariances: mean of x x^H over the frames of a window; any linear unit.
        frequencies: Hz.
        middles: of the windows, seconds from the start; double precision.
    """

    covariances: Complex[Tensor, "window frequency element element"]
    frequencies: Float[Tensor, " frequency"]
    middles: Float[Tensor, " window"]


def frame_length(rate: float, frame_s: float = FRAME_S) -> int:
    """Samples of a frame, a power of two.

    Example:
        >>> frame_length(16000.0)
        512
    """
    return 1 << max(3, round(math.log2(frame_s * rate)))


def short_time_covariances(
    sound: Sound,
    band: tuple[float, float],
    *,
    frame_s: float = FRAME_S,
    window_s: float | None = None,
    phase_only: bool = False,
) -> Spectra:
    """Cuts sound into frames, and averages over those of each window.

    Frames have Hann windows and overlap by half. The phase of a wave that comes from nearer a
    microphone is ahead there, as in `musicnet.scene.steering`.

    Args:
        sound: what was heard.
        band: lowest and highest frequency kept, Hz.
        frame_s: length of a frame, seconds; rounded to a power of two of samples.
        window_s: length of a window, seconds; None is all of it.
        phase_only: divides every number by its modulus (PHAT), so that no loud moment or frequency
            rules.

    Returns:
        Covariances over windows and frequencies.

    Raises:
        ValueError: no frequency is in the band, or sound or window are shorter than two frames.

    Source: Knapp & Carter (1976), IEEE Transactions on Acoustics, Speech, and Signal Processing
    24(4), for the phase transform.
    """
    length = frame_length(sound.rate, frame_s)
    hop = length // 2
    n_samples = sound.samples.shape[-1]
    window = n_samples if window_s is None else min(round(window_s * sound.rate), n_samples)
    n_frames = (window - length) // hop + 1
    if n_frames < 2:
        raise ValueError(
            f"sound and window must hold two frames of {length / sound.rate:g} s: got "
            f"{sound.seconds:g} s of sound and a window of {window / sound.rate:g} s."
        )
    frequencies = torch.arange(hop + 1, dtype=torch.float64) * (sound.rate / length)
    kept = (frequencies >= band[0]) & (frequencies <= band[1])
    if not bool(kept.any()):
        raise ValueError(
            f"the band must hold a multiple of {sound.rate / length:g} Hz up to "
            f"{sound.rate / 2:g} Hz: got {band[0]:g} to {band[1]:g} Hz."
        )
    n_windows = n_samples // window
    heard = sound.samples[:, : n_windows * window].reshape(-1, n_windows, window)
    taper = torch.hann_window(length, dtype=heard.dtype, device=heard.device)
    kept = kept.to(heard.device)
    total = torch.zeros((), device=heard.device)
    for first in range(0, n_frames, _FRAMES_AT_ONCE):
        n_now = min(_FRAMES_AT_ONCE, n_frames - first)
        part = heard[..., first * hop : (first + n_now - 1) * hop + length]
        bins = torch.stft(
            part.flatten(0, 1), length, hop, window=taper, center=False, return_complex=True
        )[:, kept]
        if phase_only:
            bins = bins / bins.abs().clamp_min(torch.finfo(bins.real.dtype).tiny)
        bins = bins.reshape(*heard.shape[:2], *bins.shape[1:]).movedim(0, 2)
        total = total + bins @ bins.mH
    middles = (torch.arange(n_windows, dtype=torch.float64) + 0.5) * (window / sound.rate)
    return Spectra(total / n_frames, frequencies[kept.cpu()].to(heard), middles)
