r"""Weighted subspace fitting: sources fitted to the signal subspace instead of to every snapshot.

Where sources are coherent, all snapshots together lie in fewer dimensions than there are sources.
Least squares over the snapshots gives every source an amplitude of its own in each of them, enough
freedom to explain noise at low SNR. Fitting the r strongest singular vectors of the snapshots,
weighted by :math:`(\lambda_i - \sigma^2)^2 / \lambda_i`, leaves that freedom out and stays
efficient. In the layout of a `Problem` it is the same problem with r snapshots, so that every
search and refinement serves both.

Source: Viberg, Ottersten & Kailath (1991), IEEE Transactions on Signal Processing 39(11), for the
criterion and its weights.
"""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from musicnet.estimation.found import Found
from musicnet.estimation.linearization import Explanation, explain
from musicnet.estimation.problem import Problem
from musicnet.estimation.pursuit import multistart
from musicnet.estimation.spectrum import SearchGrid

# weight that a direction at the noise keeps: of a signal too weak to be seen, in units of noise
_LEAST_WEIGHT = 1e-3


def refit(problem: Problem, grid: SearchGrid | None, found: Found) -> Found:
    """Fits the signal subspace where it has fewer dimensions than there are sources.

    Args:
        problem: snapshots of one operator, of known noise power.
        grid: cells to try; None lays one that suits the aperture.
        found: as many sources as wanted, by least squares over the snapshots.

    Returns:
        Of every scene the sources, found or refitted, that are likelier for Gaussian symbols of
        any covariance; the cost is that of the snapshots.
    """
    rank = signal_rank(problem, found)
    counts = found.present.sum(-1)
    if not bool((rank < counts).any()):
        return found
    fitted = multistart(fit_subspace(problem, rank), grid, problem.unflatten(counts))
    left = explain(problem, fitted.parameters, fitted.present).residual
    cost = torch.view_as_real(left).square().sum((2, 3, 4, 5))
    fitted = Found(fitted.parameters, fitted.present, cost)
    better = stochastic_misfit(problem, fitted) < stochastic_misfit(problem, found)
    better = better & (rank < counts)
    return Found(
        torch.where(better[..., None, None], fitted.parameters, found.parameters),
        found.present,
        torch.where(better, fitted.cost, found.cost),
    )


def stochastic_misfit(problem: Problem, found: Found) -> Float[Tensor, "channel scene"]:
    r"""Minus the log-likelihood of Gaussian symbols, at their likeliest covariance.

    With mu the eigenvalues of the power per snapshot within the sources' span, in units of the
    noise, and no less than 1: :math:`c / \sigma^2 + T \sum (\log \mu_i + e_i / \mu_i)`.

    Args:
        problem: snapshots of one operator, of known noise power.
        found: sources of each scene.

    Returns:
        Nepers, up to a number that is the same for all sources of one count.

    Source: Jaffer (1988), ICASSP, for the concentrated likelihood; here of known noise power.
    """
    explained = explain(problem, found.parameters, found.present)
    noise = problem.noise_power
    power = _power_in_span(problem, explained) / (problem.n_snapshots * noise[..., None])
    likeliest = power.clamp_min(1.0)
    left = torch.view_as_real(explained.residual).square().sum((2, 3, 4, 5)) / noise
    return left + problem.n_snapshots * (likeliest.log() + power / likeliest).sum(-1)


def signal_rank(problem: Problem, found: Found) -> Int[Tensor, "channel scene"]:
    """Dimensions that the symbols of a scene fill: fewer than sources where some are coherent.

    Counts the eigenvalues of the power inside the span of the sources' signatures that are above
    the largest one that noise alone would have there (the edge of Marchenko and Pastur).

    Args:
        problem: snapshots of one operator, of known noise power.
        found: sources of each scene, near enough to span what they should.

    Returns:
        From 1 to the number of sources; 0 where there are none.
    """
    power = _power_in_span(problem, explain(problem, found.parameters, found.present))
    n_sources = found.present.sum(-1)
    noise_dimensions = (n_sources - 1).clamp_min(0).to(power.dtype)
    edge = problem.noise_power * (problem.n_snapshots**0.5 + noise_dimensions.sqrt()).square()
    rank = (power > edge[..., None]).sum(-1)
    return torch.minimum(rank.clamp_min(1), n_sources)


def fit_subspace(problem: Problem, rank: Int[Tensor, "channel scene"]) -> Problem:
    """The problem of the signal subspace.

    Args:
        problem: snapshots of one operator, of known noise power.
        rank: singular vectors to fit in each scene.

    Returns:
        A problem with as many weighted singular vectors for snapshots as the highest rank; those
        beyond a scene's own rank are zero.
    """
    heard = problem.y[:, :, 0]
    n_kept = max(int(rank.max()), 1)
    # one scene that is not finite would stop the decomposition of all
    _, values, directions = torch.linalg.svd(heard.nan_to_num(), full_matrices=False)
    power = values[..., :n_kept].square() / problem.n_snapshots  # lambda
    noise = problem.noise_power[..., None]
    signal = (power - noise).clamp_min(_LEAST_WEIGHT * noise)
    kept = torch.arange(n_kept, device=rank.device) < rank[..., None]
    weight = (problem.n_snapshots / power.clamp_min(_LEAST_WEIGHT * noise)).sqrt() * signal * kept
    fitted = (weight[..., None] * directions[..., :n_kept, :]).to(heard.dtype)
    spoilt = ~heard.isfinite().all(-1).all(-1)
    fitted = fitted.masked_fill(spoilt[..., None, None], torch.nan)
    return replace(
        problem,
        y=fitted[:, :, None],
        unexplained=torch.zeros_like(problem.unexplained),
        n_snapshots=n_kept,
        n_unexplained=0,
    )


def _power_in_span(
    problem: Problem, explained: Explanation
) -> Float[Tensor, "channel scene source"]:
    """Eigenvalues of the snapshots' power within the span of the sources."""
    seen = problem.y[:, :, 0] @ explained.basis[:, :, 0].mH  # (.., snapshot, source)
    # one scene that is not finite would stop the decomposition of all
    values: Tensor = torch.linalg.eigvalsh((seen.mH @ seen).nan_to_num())
    return values
