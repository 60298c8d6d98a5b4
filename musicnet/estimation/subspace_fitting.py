r"""Weighted subspace fitting: sources fitted to the signal subspace instead of to every snapshot.

Where sources are coherent, all snapshots together lie in fewer dimensions than there are sources.
Least squares over the snapshots gives every source an amplitude of its own in each of them, enough
freedom to explain noise at low SNR. Fitting the r strongest singular vectors of the snapshots,
weighted by :math:`(\lambda_i - \sigma^2)^2 / \lambda_i`, leaves that freedom out and stays
efficient. In the layout of a `Problem` it is the same problem with r snapshots, so that every
search and refinement serves both.

The number of dimensions cannot be read off a few snapshots, and a wrong one costs more than the
right one wins. Therefore each is tried, and `symbol_misfit` decides between the answers.

Source: Viberg, Ottersten & Kailath (1991), IEEE Transactions on Signal Processing 39(11), for the
criterion and its weights.
"""

import math
from dataclasses import replace

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from musicnet.estimation.found import Found
from musicnet.estimation.linearization import Explanation, explain
from musicnet.estimation.problem import Problem, pack_scenes, put_scenes, take_scenes
from musicnet.estimation.pursuit import multistart
from musicnet.estimation.spectrum import SearchGrid

# weight that a direction at the noise keeps: of a signal too weak to be seen, in units of noise
_LEAST_WEIGHT = 1e-3
_TINY = 1e-30


def refit(problem: Problem, grid: SearchGrid | None, found: Found) -> Found:
    """Fits signal subspaces of fewer dimensions than sources, and keeps the best answer.

    A dimension is left out in scenes where not even a perfect fit would be the best answer.

    Args:
        problem: snapshots of one operator, of known noise power.
        grid: cells to try; None lays one that suits the aperture.
        found: as many sources as wanted, by least squares over the snapshots.

    Returns:
        Of every scene the sources of the least `symbol_misfit`, found or refitted; the cost is
        that of the snapshots.
    """
    counts, n_slots = found.present.sum(-1), found.present.shape[-1]
    if n_slots < 2:
        return found
    misfit = symbol_misfit(problem, found)
    for rank in range(1, min(n_slots - 1, problem.y.shape[-2]) + 1):
        hopeful = (rank < counts) & (_least_misfit(problem, counts, rank) < misfit)
        some = pack_scenes(hopeful)
        if some.shape[1] == 0:
            continue
        part = problem.take(some)
        fitted = multistart(fit_subspace(part, rank), grid, take_scenes(counts, some))
        fitted = with_cost(part, fitted, n_slots)
        # a weak source that is not there would pass for an independent one
        new = symbol_misfit(part, fitted, may_be_independent=False)
        better = take_scenes(hopeful, some) & (new < take_scenes(misfit, some))
        found = found.replaced(fitted, some, better)
        misfit = put_scenes(misfit, new, some, better)
    return found


def powers_in_span(
    problem: Problem, explained: Explanation
) -> Float[Tensor, "channel scene source"]:
    """How strong each dimension is between the sources.

    Args:
        problem: snapshots of one operator, of known noise power.
        explained: what the sources explain.

    Returns:
        Eigenvalues of the covariance within the sources' span, in units of the noise, falling;
        float64.
    """
    powers: Tensor = torch.linalg.eigvalsh(_covariance_in_span(problem, explained))
    return powers.flip(-1)


def symbol_misfit(
    problem: Problem, found: Found, *, may_be_independent: bool = True
) -> Float[Tensor, "channel scene"]:
    r"""Minus the log-likelihood of Gaussian symbols, coherent or not, and the price of choosing.

    Two kinds of symbols are weighed against each other, and the better one counts. R is the
    covariance of the T snapshots within the sources' span, in units of the noise:

    - independent ones, K numbers: :math:`T (\log\det C + \mathrm{tr}(C^{-1} R))`, with C of noise
      and sources of the powers :math:`\gamma_k` that their amplitudes have beyond noise;
    - any of rank r, 2 K r - r^2 numbers: :math:`T \sum_i (\log m_i + \mu_i / m_i)`, with
      :math:`\mu_i` the eigenvalues of R in falling order, and :math:`m_i = \max(\mu_i, 1)` up to
      i = r, 1 from there on.

    What is left over is added, and :math:`\frac12 \log T` for each number. Powers are as likely on
    any scale, which adds :math:`\sum_k \log\gamma_k`, or K log of their mean where they are not
    independent: sources that nearly coincide explain anything by amplitudes without limit.

    Args:
        problem: snapshots of one operator, of known noise power.
        found: sources of each scene.
        may_be_independent: False weighs symbols of any rank only.

    Returns:
        Nepers, up to a number that is the same for all sources of one count; float64.

    Source: Jaffer (1988), ICASSP, for the concentrated likelihood; here of known noise power.
    """
    explained = explain(problem, found.parameters, found.present)
    seen = _covariance_in_span(problem, explained)
    misfit = _coherent_misfit(problem, explained, seen, found.present)
    if may_be_independent:
        independent = _independent_misfit(problem, explained, seen, found.present)
        misfit = torch.minimum(misfit, independent)
    return explained.cost.double() / problem.noise_power + misfit


def fit_subspace(problem: Problem, rank: int) -> Problem:
    """The problem of the signal subspace.

    Args:
        problem: snapshots of one operator, of known noise power.
        rank: dimensions of the subspace, at most as many as snapshots and rows.

    Returns:
        A problem with as many weighted singular vectors for snapshots.
    """
    heard = problem.y[:, :, 0]
    values, directions = problem.dimensions
    power = values[..., :rank].square() / problem.n_snapshots  # lambda
    noise = problem.noise_power[..., None]
    signal = (power - noise).clamp_min(_LEAST_WEIGHT * noise)
    weight = (problem.n_snapshots / power.clamp_min(_LEAST_WEIGHT * noise)).sqrt() * signal
    fitted = (weight[..., None] * directions[..., :rank, :]).to(heard.dtype)
    spoilt = ~heard.isfinite().all(-1).all(-1)
    fitted = fitted.masked_fill(spoilt[..., None, None], torch.nan)
    return replace(
        problem,
        y=fitted[:, :, None],
        unexplained=torch.zeros_like(problem.unexplained),
        n_snapshots=rank,
        n_unexplained=0,
    )


def _covariance_in_span(
    problem: Problem, explained: Explanation
) -> Complex[Tensor, "channel scene source source"]:
    """R, in units of the noise and in coordinates of the sources' basis; 0 for empty slots."""
    heard = problem.y[:, :, 0] @ explained.basis[:, :, 0].mH  # (.., snapshot, source)
    # in double: strong sources must not hide what is weak; one bad scene would stop all
    heard = heard.to(torch.complex128).nan_to_num()
    power = problem.n_snapshots * problem.noise_power.double()
    return heard.mT @ heard.conj() / power[..., None, None]


def _independent_misfit(
    problem: Problem,
    explained: Explanation,
    seen: Complex[Tensor, "channel scene source source"],
    present: Bool[Tensor, "channel scene source"],
) -> Float[Tensor, "channel scene"]:
    """The misfit of sources that know nothing of each other, without what is left over."""
    n_snapshots, n_sources = problem.n_snapshots, present.sum(-1)
    amplitudes = torch.view_as_real(explained.amplitudes[:, :, 0]).double()
    heard = amplitudes.square().sum((-2, -1)) / n_snapshots
    noise = explained.amplitude_spread.double()
    # no power is less than what noise alone lends an amplitude
    power = torch.maximum(heard / problem.noise_power[..., None] - noise, noise)
    power = power.masked_fill(~present, 0.0)
    root = _signatures(explained) * power.sqrt()[..., None, :]
    ones = torch.ones_like(power)
    factor = torch.linalg.cholesky_ex(root @ root.mH + torch.diag_embed(ones)).L
    log_det = 2.0 * factor.diagonal(dim1=-2, dim2=-1).real.log().sum(-1)
    whitened = torch.cholesky_solve(seen, factor).diagonal(dim1=-2, dim2=-1).real.sum(-1)
    scale = power.masked_fill(~present, 1.0).log().sum(-1)
    price = 0.5 * math.log(n_snapshots) * n_sources
    misfit: Tensor = n_snapshots * (log_det + whitened) + price + scale
    return misfit


def _coherent_misfit(
    problem: Problem,
    explained: Explanation,
    seen: Complex[Tensor, "channel scene source source"],
    present: Bool[Tensor, "channel scene source"],
) -> Float[Tensor, "channel scene"]:
    """The misfit of symbols of the best rank, without what is left over."""
    n_snapshots, n_sources = problem.n_snapshots, present.sum(-1)
    values, vectors = torch.linalg.eigh(seen)
    root = vectors * (values - 1.0).clamp_min(0.0).sqrt()[..., None, :]
    symbols = torch.linalg.solve_triangular(_signatures(explained), root, upper=True)
    power = torch.view_as_real(symbols).square().sum((-3, -2, -1))
    noise = explained.amplitude_spread.double().masked_fill(~present, 0.0).sum(-1)
    scale = n_sources * (torch.maximum(power, noise) / n_sources.clamp_min(1)).log()
    ranks = torch.arange(1, present.shape[-1] + 1, device=present.device)
    misfit = _ranked_misfit(values.flip(-1), n_snapshots, n_sources)
    misfit = misfit.masked_fill(ranks > n_sources[..., None], torch.inf).amin(-1)
    return torch.where(n_sources > 0, misfit + scale, 0.0)


def _ranked_misfit(
    values: Float[Tensor, "channel scene row"],
    n_snapshots: int,
    n_sources: Int[Tensor, "channel scene"],
) -> Float[Tensor, "channel scene row"]:
    """The misfit of symbols of rank 1, 2 and so on, on any scale; eigenvalues in falling order."""
    likeliest = values.clamp_min(1.0)
    signal = (likeliest.log() + values / likeliest).cumsum(-1)
    noise = values.sum(-1, keepdim=True) - values.cumsum(-1)
    rank = torch.arange(1, values.shape[-1] + 1, device=values.device)
    n_free = rank * (2 * n_sources[..., None] - rank)
    return n_snapshots * (signal + noise) + 0.5 * math.log(n_snapshots) * n_free


def _least_misfit(
    problem: Problem, counts: Int[Tensor, "channel scene"], rank: int
) -> Float[Tensor, "channel scene"]:
    """Below it sources with symbols of a rank cannot come, however well they fit.

    No span has larger eigenvalues than all rows, and no power is lower than where all sources add
    up.
    """
    power = problem.n_snapshots * problem.noise_power.double()
    values = problem.dimensions[0].square() / power[..., None]
    misfit = _ranked_misfit(values, problem.n_snapshots, counts)[..., rank - 1]
    n_rows = problem.y.shape[-1]
    loudest = n_rows if problem.operator is None else problem.operator.abs().sum(-1).square().sum()
    least = (values[..., :rank] - 1.0).clamp_min(0.0).sum(-1) / (loudest * counts.square())
    bound: Tensor = misfit + counts * least.clamp_min(_TINY).log()
    return bound


def _signatures(explained: Explanation) -> Complex[Tensor, "channel scene source source"]:
    """The sources' signatures in columns, in coordinates of their basis; a one for empty slots."""
    return explained.factor[:, :, 0].mH.to(torch.complex128)


def with_cost(problem: Problem, fitted: Found, n_slots: int) -> Found:
    """The same sources with the cost of another problem, in as many slots as wanted.

    Args:
        problem: whose cost it shall be.
        fitted: sources of each of its scenes, found by another problem.
        n_slots: at least as many as there are.

    Returns:
        Empty slots behind.
    """
    cost = explain(problem, fitted.parameters, fitted.present).cost
    return Found(fitted.parameters, fitted.present, cost).widened(n_slots)
