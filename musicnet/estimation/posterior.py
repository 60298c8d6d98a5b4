r"""How probable sources are, given what was heard and how loud sources can be.

The likelihood alone likes to explain two close sources by one, and noise by the other: a source far
too faint, or two far too loud ones that all but cancel. Where amplitudes are held over the
observation and their modulus is log-uniform between two bounds, Laplace's method gives

.. math:: \log p = -\frac{c}{\sigma^2} - \sum_q \log\det\frac{B_q^H B_q}{\sigma^2}
   + \sum_k \Big(\log p(s_k) - \log V\Big), \qquad
   \log p(s) = -2 \log \frac{r}{\sigma} - \frac{(|s| - r)^2}{\sigma^2 v}

with r the modulus brought between the bounds and :math:`\sigma^2 v` the variance of the estimated
amplitude, so that a modulus beyond a bound is as improbable as noise makes it. What is the same for
all sources of one count is left out.

Symbols that change from block to block are Gaussian, of a log-uniform power; they are integrated
out without approximation (`musicnet.estimation.symbol_likelihood`), and powers are at their best.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from musicnet.estimation.evidence import log_cells
from musicnet.estimation.found import Found
from musicnet.estimation.linearization import Explanation, explain, linearize
from musicnet.estimation.problem import Problem
from musicnet.estimation.symbol_likelihood import symbol_information
from musicnet.scene.sources import SourceLaw

_TINY = 1e-12


@dataclass(frozen=True)
class Loudness:
    """Between which bounds the modulus of a source's amplitude lies.

    Args:
        low: least |s| over the noise's standard deviation, > 0.
        high: most.
    """

    low: float
    high: float

    @classmethod
    def of(cls, law: SourceLaw) -> "Loudness":
        """The bounds of a law whose ratios are those of each source.

        Args:
            law: how sources are drawn.

        Returns:
            The bounds.

        Raises:
            ValueError: the ratio is that of all sources together, or always the same.
        """
        low, high = law.snr_db
        if law.snr_of != "source" or low >= high:
            raise ValueError(
                "amplitudes need bounds of their own: got "
                f"snr_of={law.snr_of!r}, snr_db={law.snr_db}. Set snr_of='source' and an interval."
            )
        return cls(10.0 ** (low / 20.0), 10.0 ** (high / 20.0))

    @property
    def log_powers(self) -> tuple[float, float]:
        """The same of Gaussian symbols, as `Problem.log_powers` has it."""
        return 2.0 * math.log(self.low), 2.0 * math.log(self.high)


def misfit(problem: Problem, found: Found, loudness: Loudness) -> Float[Tensor, "channel scene"]:
    """Minus the logarithm of the posterior density, amplitudes integrated out.

    Args:
        problem: what was heard; pilots, or Gaussian symbols.
        found: sources of each scene, near a minimum of the cost.
        loudness: what is known about amplitudes; of Gaussian symbols the problem knows it.

    Returns:
        Nepers; comparable between answers of as many sources.
    """
    if problem.log_powers is not None:
        return found.cost / problem.noise_power
    explained = explain(problem, found.parameters, found.present)
    prior = log_loudness(problem, explained, loudness)
    prior = prior.masked_fill(~found.present, 0.0).sum(-1)
    return explained.cost / problem.noise_power + explained.log_volume - prior


def log_posterior(
    problem: Problem, found: Found, loudness: Loudness
) -> Float[Tensor, "channel scene"]:
    """Logarithm of how probable it is that these are the sources, comparable over their number.

    Positions are integrated out as well, as in `musicnet.estimation.evidence`; a number of sources
    is as probable as any other before anything is heard.

    Args:
        problem: what was heard; pilots, or Gaussian symbols.
        found: sources of each scene, near a minimum of the cost.
        loudness: what is known about amplitudes.

    Returns:
        Nepers, up to a number that is the same whatever the sources.
    """
    n_sources = found.present.sum(-1)
    if found.present.shape[-1] == 0:
        return -found.cost / problem.noise_power
    orders = torch.lgamma(n_sources + 1.0)
    if problem.log_powers is not None:
        cells = _symbol_cells(problem, found, loudness)
    else:
        curvature = linearize(problem, found.parameters, found.present).curvature.double()
        cells = log_cells(problem, curvature / problem.noise_power[..., None, None])
        cells = cells + n_sources * math.log(2.0 * math.log(loudness.high / loudness.low))
    probable = orders - misfit(problem, found, loudness) - cells
    # no prior makes sources more probable than likely; Laplace's method does where they coincide
    return torch.minimum(probable, (-found.cost / problem.noise_power).to(probable))


def _symbol_cells(
    problem: Problem, found: Found, loudness: Loudness
) -> Float[Tensor, "channel scene"]:
    """How many distinguishable places and powers there are; natural logarithm."""
    load = explain(problem, found.parameters, found.present).load
    log_power = -torch.where(found.present, load, 1.0).log()
    information = symbol_information(problem, found.parameters, found.present, log_power)
    low, high = loudness.log_powers
    width = (high - low) / math.sqrt(2.0 * math.pi)
    scaled = information.powers.double() * width**2
    identity = torch.eye(scaled.shape[-1]).to(scaled)
    powers: Tensor = 0.5 * torch.logdet(identity + scaled)
    return log_cells(problem, information.of_positions.double()) + powers


def log_loudness(
    problem: Problem, explained: Explanation, loudness: Loudness
) -> Float[Tensor, "channel scene source"]:
    """Log p(s_k) of every source, up to the logarithm of the bounds' ratio.

    Args:
        problem: what was heard; pilots.
        explained: amplitudes and what they could be confused with.
        loudness: what is known about amplitudes.

    Returns:
        Nepers; anything in empty slots.
    """
    modulus = explained.amplitudes[:, :, 0, :, 0].abs() / problem.noise_power.sqrt()[..., None]
    allowed = modulus.clamp(loudness.low, loudness.high)
    beyond = (modulus - allowed).square() / explained.amplitude_spread.clamp_min(_TINY)
    return -2.0 * allowed.log() - beyond
