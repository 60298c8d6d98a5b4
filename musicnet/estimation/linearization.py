r"""The likelihood around given sources: its cost, its slope, its Gauss-Newton matrix.

With B_q = G_q A the signatures, amplitudes are least squares, :math:`s_q = B_q^+ y_q`, and

.. math:: r_q = y_q - B_q s_q, \quad c = \sum_q \|r_q\|^2, \quad
   E_q[:, (k,i)] = P_q G_q \frac{\partial a_k}{\partial p_i} s_{qk}, \quad
   \nabla c = -2 \sum_q \Re(E_q^H r_q), \quad H = 2 \sum_q \Re(E_q^H E_q)

which is variable projection in Kaufman's form; H / sigma^2 is the information matrix, whose inverse
is the Cramér-Rao bound. E is never formed: its products follow from one Gram matrix of signatures
and slopes. The residual is, since in single precision the cost must not be a difference of powers.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from musicnet.estimation.problem import Problem
from musicnet.estimation.products import product
from musicnet.estimation.signatures import signatures, signatures_and_slopes
from musicnet.estimation.symbol_powers import likeliest_log_powers, loaded_factor


@dataclass(frozen=True)
class Explanation:
    """What given sources explain.

    Args:
        basis: orthonormal lines that span the signatures; 0 for empty slots.
        amplitudes: s, of each (compressed) snapshot; 0 for empty slots.
        residual: what is left of y.
        factor: lower Cholesky factor of B_q^H B_q, with a one for empty slots.
        load: of Gaussian symbols sigma^2 over their power, which the factor's diagonal has too:
            amplitudes are then shrunken ones, and the basis spans the less the fainter they are; 0
            where amplitudes are free, and in empty slots.
    """

    basis: Complex[Tensor, "channel scene blocks source row"]
    amplitudes: Complex[Tensor, "channel scene blocks source snapshot"]
    residual: Complex[Tensor, "channel scene blocks snapshot row"]
    factor: Complex[Tensor, "channel scene blocks source source"]
    load: Float[Tensor, "channel scene source"]

    @property
    def cost(self) -> Float[Tensor, "channel scene"]:
        """Power that is left; and what it costs Gaussian symbols to be as loud as they are."""
        power = torch.view_as_real(self.amplitudes).square().sum((2, 4, 5))
        return _power(self.residual) + (power * self.load).sum(-1)

    @property
    def log_volume(self) -> Float[Tensor, "channel scene"]:
        """Log det of factor and factor^H over the slots that hold a source, summed over q."""
        volume = 2.0 * self.factor.diagonal(dim1=-2, dim2=-1).real.log()
        return volume.sum((-2, -1))

    @property
    def amplitude_spread(self) -> Float[Tensor, "channel scene source"]:
        """Variance of each amplitude for unit noise power, the mean over blocks."""
        identity = torch.eye(self.factor.shape[-1]).to(self.factor).expand_as(self.factor)
        inverse = torch.linalg.solve_triangular(self.factor, identity, upper=False)
        return torch.view_as_real(inverse).square().sum((-3, -1)).mean(2)


@dataclass(frozen=True)
class Linearization:
    """The cost around given sources, over unknowns ordered coordinate by coordinate.

    Args:
        cost: power that is left.
        gradient: its derivative along each unknown; 0 for empty slots.
        curvature: H, positive semidefinite; 0 for empty slots.
        amplitudes: s, of each (compressed) snapshot.
    """

    cost: Float[Tensor, "channel scene"]
    gradient: Float[Tensor, "channel scene unknown"]
    curvature: Float[Tensor, "channel scene unknown unknown"]
    amplitudes: Complex[Tensor, "channel scene blocks source snapshot"]

    def chosen(
        self, better: Bool[Tensor, "channel scene"], other: "Linearization"
    ) -> "Linearization":
        """Another one where that is better, scene by scene."""
        return Linearization(
            torch.where(better, other.cost, self.cost),
            torch.where(better[..., None], other.gradient, self.gradient),
            torch.where(better[..., None, None], other.curvature, self.curvature),
            torch.where(better[..., None, None, None], other.amplitudes, self.amplitudes),
        )


def explain(
    problem: Problem,
    parameters: Float[Tensor, "channel scene source 3"],
    present: Bool[Tensor, "channel scene source"],
) -> Explanation:
    """Fits the amplitudes of given sources; of Gaussian symbols their powers, too.

    With Gaussian symbols y less the basis' part of it is R^-1 y, up to sigma^2, and the same holds
    for whatever else was heard: maps of gains that leave the basis out are then those of whitened
    data. See `musicnet.estimation.symbol_powers`.

    Args:
        problem: what has to be explained.
        parameters: (u, v, rho), finite in every slot.
        present: slots that hold a source.

    Returns:
        Amplitudes, residual, and a basis of what the sources span.
    """
    lines = signatures(problem, parameters, present)
    gram, heard = lines.conj() @ lines.mT, lines.conj() @ problem.y.mT
    load = torch.zeros_like(parameters[..., 0])
    if problem.log_powers is not None and present.shape[-1] > 0:
        log_power = likeliest_log_powers(problem, gram, heard, present)
        load = (-log_power).exp().masked_fill(~present, 0.0)
    factor = loaded_factor(gram, present, load)
    amplitudes = torch.cholesky_solve(heard, factor)
    residual = problem.y - amplitudes.mT @ lines
    basis = torch.linalg.solve_triangular(factor.conj(), lines, upper=False)
    return Explanation(basis, amplitudes, residual, factor, load)


def linearize(
    problem: Problem,
    parameters: Float[Tensor, "channel scene source 3"],
    present: Bool[Tensor, "channel scene source"],
) -> Linearization:
    """Fits free amplitudes to given sources, and finds how the cost changes as they move.

    Args:
        problem: what has to be explained.
        parameters: (u, v, rho), finite in every slot.
        present: slots that hold a source.

    Returns:
        Cost, gradient and Gauss-Newton matrix along the searched coordinates.

    Source: Kaufman (1975), BIT 15(1), for leaving out the derivative of the projector.
    """
    n_sources, n_searched = present.shape[-1], len(problem.active)
    lines = signatures_and_slopes(problem, parameters, present)
    gram = lines.conj() @ lines.mT
    heard = product(lines.conj(), problem.y.mT)  # (..., line, snapshot)
    still, moving = slice(None, n_sources), slice(n_sources, None)
    free = torch.zeros_like(parameters[..., 0])
    factor = loaded_factor(gram[..., still, still], present, free)
    known = torch.cat((heard[..., still, :], gram[..., still, moving]), dim=-1)
    amplitudes, carried = torch.cholesky_solve(known, factor).split_with_sizes(
        (heard.shape[-1], n_sources * n_searched), dim=-1
    )
    residual = problem.y - amplitudes.mT @ lines[..., still, :]
    crossed = gram[..., moving, still]
    # inner products of the slopes with each other and with the residual, signatures projected out
    spread = gram[..., moving, moving] - crossed @ carried
    pull = heard[..., moving, :] - crossed @ amplitudes
    loudness = amplitudes.conj() @ amplitudes.mT  # (..., source, source)
    loudness = loudness.tile(n_searched, n_searched)
    gradient = _real_product(pull, amplitudes.conj().tile(n_searched, 1)).sum((2, -1)).mul_(-2.0)
    curvature = _real_product(spread, loudness).sum(2).mul_(2.0)
    return Linearization(_power(residual), gradient, curvature, amplitudes)


def _real_product(one: Tensor, other: Tensor) -> Tensor:
    """Re(a b), element by element."""
    # products of complex numbers are rounded otherwise at the end of a vector than within it: a
    # scene's answer would depend on where in its batch it stands
    one, other = one.resolve_conj(), other.resolve_conj()
    return one.real * other.real - one.imag * other.imag


def _power(
    values: Complex[Tensor, "channel scene blocks snapshot row"],
) -> Float[Tensor, "channel scene"]:
    parts = torch.view_as_real(values).flatten(2)
    power: Tensor = (parts * parts).sum(-1)
    return power
