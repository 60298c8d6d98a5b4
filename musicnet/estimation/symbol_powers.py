r"""How loud Gaussian symbols are, source by source, given where the sources stand.

Where a problem says that symbols are Gaussian, independent, and of one power :math:`\gamma_k` per
source, amplitudes are no longer free: their best values are those of ridge regression,

.. math:: s_q = A_q^{-1} B_q^H y_q, \qquad A_q = B_q^H B_q + \sigma^2 \Gamma^{-1}

and :math:`\sigma^2 A_q^{-1}` is what remains uncertain about them. The powers themselves are the
most likely ones, between bounds. A load of 0 in the place of :math:`\sigma^2 / \gamma_k` leaves
amplitudes free, so that one code serves both.
"""

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from musicnet.estimation.problem import Problem

# rounds of the fixed point: afterwards the likelihood is a tenth of a neper from its maximum
_ROUNDS = 6
# an amplitude that nothing was heard of still counts so much
_LEAST_SHARE = 0.01
_TINY = 1e-12


def log_power_bounds(problem: Problem) -> tuple[float, float]:
    """Logarithm of the least and the most power over that of the noise.

    Args:
        problem: of Gaussian symbols.

    Returns:
        Nepers of power.

    Raises:
        ValueError: a problem whose amplitudes are free.
    """
    if problem.log_powers is None:
        raise ValueError("symbols need bounds of their power: got log_powers=None.")
    return problem.log_powers


def likeliest_log_powers(
    problem: Problem,
    gram: Complex[Tensor, "channel scene blocks source source"],
    heard: Complex[Tensor, "channel scene blocks source snapshot"],
    present: Bool[Tensor, "channel scene source"],
) -> Float[Tensor, "channel scene source"]:
    r"""The most likely powers of sources that stand where they stand.

    By MacKay's fixed point, :math:`\gamma = \sum |s|^2 / (n - \sum \sigma^2 A^{-1} / \gamma)`: an
    amplitude counts as far as it was heard.

    Args:
        problem: bounds, noise power and number of snapshots.
        gram: B_q^H B_q.
        heard: B_q^H y_q.
        present: slots that hold a source.

    Returns:
        log (gamma / sigma^2); the middle between the bounds in empty slots.
    """
    low, high = log_power_bounds(problem)
    identity = torch.eye(gram.shape[-1]).to(gram).expand_as(gram)
    wanted = torch.cat((heard, identity), dim=-1)
    noise = problem.noise_power[..., None]
    n_amplitudes = gram.shape[2] * problem.n_snapshots
    n_heard = heard.shape[-1]
    log_power = torch.full_like(gram[:, :, 0, :, 0].real, 0.5 * (low + high))
    for _ in range(_ROUNDS):
        load = (-log_power).exp()
        solved = torch.cholesky_solve(wanted, loaded_factor(gram, present, load))
        mean, spread = solved[..., :n_heard], solved[..., n_heard:]
        power = torch.view_as_real(mean).square().sum((2, 4, 5)) / noise
        unheard = problem.n_snapshots * spread.diagonal(dim1=-2, dim2=-1).real.sum(2) * load
        share = (n_amplitudes - unheard).clamp_min(_LEAST_SHARE * n_amplitudes)
        log_power = (power / share).clamp_min(_TINY).log().clamp(low, high)
    return torch.where(present, log_power, 0.5 * (low + high))


def loaded_factor(
    gram: Complex[Tensor, "channel scene blocks source source"],
    present: Bool[Tensor, "channel scene source"],
    load: Float[Tensor, "channel scene source"],
) -> Complex[Tensor, "channel scene blocks source source"]:
    """Lower Cholesky factor of a loaded Gram matrix.

    Args:
        gram: B_q^H B_q.
        present: slots that hold a source; the others get a one.
        load: sigma^2 over the power of each source's symbols; 0 leaves amplitudes free.

    Returns:
        The factor; coinciding sources get a ridge.
    """
    power = gram.diagonal(dim1=-2, dim2=-1).real
    ridge = 10.0 * torch.finfo(power.dtype).eps * power.mean(-1, keepdim=True)
    diagonal = ridge + torch.where(present, load.to(power), 1.0)[:, :, None]
    factor: Tensor = torch.linalg.cholesky_ex(gram + torch.diag_embed(diagonal)).L
    return factor
