r"""Pseudo-spectra of wideband sound: one map of directions from covariances at many frequencies.

A *drawing* is a function of weights over frequencies, so that whoever wants to know how sure a peak
is can leave some of them out:

============  ===================================================================================
``music``     the mean over frequencies of what leaks into the noise subspace
``srp-phat``  the mean of the power that a beam collects from phases alone
``cssm``      covariances brought to one frequency by unitary focusing matrices, then MUSIC
``waves``     the same with the signal subspaces, each vector by its ratio of signal to noise
============  ===================================================================================

Reflections and lobes lie elsewhere at each frequency, and a mean of bounded scores is ruled by none
of them: so all of them may go beyond the spatial-aliasing limit. The last two focus on the peaks of
the first and their neighbours, since no unitary matrix turns all directions of one frequency into
those of another.
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from musicnet.estimation.circle_peaks import circle_peaks
from musicnet.estimation.short_time import Spectra
from musicnet.estimation.spectrum import quadratic_form
from musicnet.estimation.subspace import eigen_decomposition
from musicnet.shapes import Positions

WidebandMethod = Literal["music", "srp-phat", "cssm", "waves"]
WIDEBAND_METHODS: tuple[WidebandMethod, ...] = get_args(WidebandMethod)

_TINY = 1e-30

Drawing = Callable[[Float[Tensor, "draw frequency"]], Float[Tensor, "window draw cell"]]
"""Weights of each frequency -> score of each direction; the higher the likelier a source."""


def plane_wave_steering(
    positions: Positions,
    directions: Float[Tensor, "cell 3"],
    frequencies: Float[Tensor, " frequency"],
    speed: float,
) -> Complex[Tensor, "frequency cell element"]:
    """Response of microphones to distant sources.

    Args:
        positions: metres.
        directions: towards the sources; metres per metre.
        frequencies: Hz.
        speed: of sound, metres per second.

    Returns:
        exp(+j 2 pi f (p . d) / c): sound arrives earlier where it comes from.
    """
    ahead = directions @ positions.mT * (2.0 * math.pi / speed)
    phase = frequencies[:, None, None] * ahead
    return torch.complex(phase.cos(), phase.sin())


def drawing(
    method: WidebandMethod,
    spectra: Spectra,
    steering: Complex[Tensor, "frequency cell element"],
    n_sources: int,
    *,
    is_closed: bool,
) -> Drawing:
    """Prepares one method for given spectra.

    Args:
        method: see the module's docstring; ``srp-phat`` wants spectra of phases only.
        spectra: covariances per window and frequency.
        steering: of each direction at each frequency.
        n_sources: K, for the subspaces.
        is_closed: whether the last direction is beside the first.

    Returns:
        What draws the map.

    Raises:
        ValueError: not fewer sources than microphones.
    """
    n_elements = steering.shape[-1]
    if not 1 <= n_sources < n_elements:
        raise ValueError(
            f"{method} needs one source at least and fewer than microphones: got "
            f"n_sources={n_sources}, {n_elements} microphones."
        )
    if method == "srp-phat":
        power = quadratic_form(spectra.covariances, steering) / n_elements**2
        return lambda weights: _mean(power, weights)
    values, vectors = eigen_decomposition(spectra.covariances)
    n_noise = n_elements - n_sources
    leaked = _leaked(vectors[..., :n_noise], steering)
    if method == "music":
        return lambda weights: _mean(-leaked, weights)
    middle = len(spectra.frequencies) // 2
    peaks = circle_peaks(-leaked.mean(-2), n_sources, is_closed=is_closed).cells
    around = (peaks[..., None] + torch.tensor([-1, 0, 1], device=peaks.device)).flatten(-2)
    around = around % steering.shape[1]  # beyond the end of a line is its other end: no harm
    towards = steering[:, around].movedim(0, 1)  # (window, frequency, cell, element)
    focusing = focusing_matrices(towards, towards[:, middle : middle + 1])
    if method == "cssm":
        power = spectra.covariances.diagonal(dim1=-2, dim2=-1).real.mean(-1)
        matrices = spectra.covariances / power.clamp_min(_TINY)[..., None, None]
    else:
        noise = values[..., :n_noise].mean(-1, keepdim=True).clamp_min(_TINY)
        signal = values[..., n_noise:]
        loudness = (signal - noise).clamp_min(0.0).square() / (signal * noise)
        signals = vectors[..., n_noise:]
        matrices = (signals * loudness[..., None, :]) @ signals.mH
    focused = focusing @ matrices @ focusing.mH

    def draw(weights: Float[Tensor, "draw frequency"]) -> Float[Tensor, "window draw cell"]:
        total = torch.einsum("df,wfmn->wdmn", weights.to(focused), focused)
        _, axes = eigen_decomposition(total)
        return -_leaked(axes[..., :n_noise], steering[middle])

    return draw


def focusing_matrices(
    steering: Complex[Tensor, "*batch cell element"],
    reference: Complex[Tensor, "*reference cell element"],
) -> Complex[Tensor, "*batch element element"]:
    r"""Unitary matrices that turn the responses at each frequency into those at another.

    .. math:: T_f = \arg\min_T \sum_g \| T a_f(g) - a_0(g) \|^2, \quad T^H T = I

    Args:
        steering: a_f, where sources are guessed.
        reference: a_0, in the same directions.

    Returns:
        T_f.

    Source: Hung & Kaveh (1988), IEEE Transactions on Acoustics, Speech, and Signal Processing
    36(8), rotational signal subspaces.
    """
    crossed = reference.mT @ steering.conj()
    left, _, right = torch.linalg.svd(crossed)
    turned: Tensor = left @ right
    return turned


def _leaked(
    noise: Complex[Tensor, "*batch element noise"],
    steering: Complex[Tensor, "*dictionary cell element"],
) -> Float[Tensor, "*batch cell"]:
    """Share of each response that lies in the noise subspace, from 0 to 1."""
    return (steering.conj() @ noise).abs().square().sum(-1) / steering.shape[-1]


def _mean(
    score: Float[Tensor, "window frequency cell"], weights: Float[Tensor, "draw frequency"]
) -> Float[Tensor, "window draw cell"]:
    return (weights / weights.sum(-1, keepdim=True)) @ score
