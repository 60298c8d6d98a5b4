r"""The likelihood of Gaussian symbols around given sources: its cost, slope and information.

Each block is Gaussian, :math:`y_{qt} \sim CN(0, R_q)` with :math:`R_q = B_q \Gamma B_q^H + \sigma^2
I`, so that no amplitude has to be estimated and a faint source costs no freedom:

.. math:: c = \sigma^2 \sum_q \Big( \sum_t y_{qt}^H R_q^{-1} y_{qt}
   + T \log\det (R_q / \sigma^2) \Big)

Unknown are positions and :math:`\log \gamma_k`. R is never formed: all follows from one Gram matrix
of signatures and slopes, since :math:`\sigma^2 R_q^{-1} = I - B_q A_q^{-1} B_q^H` with A of
`musicnet.estimation.symbol_powers`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from musicnet.estimation.linearization import Explanation
from musicnet.estimation.problem import Problem
from musicnet.estimation.signatures import signatures_and_slopes
from musicnet.estimation.symbol_powers import loaded_factor


@dataclass(frozen=True)
class SymbolLinearization:
    """The likelihood around given sources and powers; positions coordinate by coordinate.

    Args:
        cost: sigma^2 times minus the log-likelihood, without what noise alone has.
        gradient: of minus the log-likelihood along positions, nepers; 0 for empty slots.
        curvature: along positions, positive semidefinite: the Gauss-Newton matrix of the symbols as
            they are estimated. The information would have their mean power in its place, and steps
            by it are several times as slow where symbols are loud.
        power_gradient: along log (gamma / sigma^2).
        power_information: of the powers on themselves.
        amplitudes: s, of each (compressed) snapshot.
    """

    cost: Float[Tensor, "channel scene"]
    gradient: Float[Tensor, "channel scene unknown"]
    curvature: Float[Tensor, "channel scene unknown unknown"]
    power_gradient: Float[Tensor, "channel scene source"]
    power_information: Float[Tensor, "channel scene source source"]
    amplitudes: Complex[Tensor, "channel scene blocks source snapshot"]


@dataclass(frozen=True)
class SymbolInformation:
    """What positions and powers could be known by, after Slepian and Bangs.

    Args:
        positions: on the positions, coordinate by coordinate; 0 for empty slots.
        crossed: of positions and logarithms of powers.
        powers: on the logarithms of powers; 0 for empty slots.
    """

    positions: Float[Tensor, "channel scene unknown unknown"]
    crossed: Float[Tensor, "channel scene unknown source"]
    powers: Float[Tensor, "channel scene source source"]

    @property
    def of_positions(self) -> Float[Tensor, "channel scene unknown unknown"]:
        """On positions alone, powers unknown."""
        empty = (self.powers.diagonal(dim1=-2, dim2=-1) <= 0).to(self.powers.dtype)
        solved = torch.linalg.solve_ex(self.powers + torch.diag_embed(empty), self.crossed.mT)
        taken: Tensor = self.crossed @ solved.result
        return self.positions - taken


def symbol_cost(
    problem: Problem, explained: Explanation, present: Bool[Tensor, "channel scene source"]
) -> Float[Tensor, "channel scene"]:
    """The cost of Gaussian symbols.

    Args:
        problem: what has to be explained.
        explained: sources and their powers.
        present: slots that hold a source.

    Returns:
        Sigma^2 times minus the log-likelihood, without what noise alone has; what `explain` calls
        the cost is the part of it that is no determinant.
    """
    log_power = torch.where(present, -explained.load.log(), 0.0).sum(-1)
    volume = explained.log_volume + problem.y.shape[2] * log_power
    return explained.cost + problem.noise_power * problem.n_snapshots * volume


def linearize_symbols(
    problem: Problem,
    parameters: Float[Tensor, "channel scene source 3"],
    present: Bool[Tensor, "channel scene source"],
    log_power: Float[Tensor, "channel scene source"],
) -> SymbolLinearization:
    """Finds how the likelihood changes as sources move and grow louder.

    Args:
        problem: what has to be explained.
        parameters: (u, v, rho), finite in every slot.
        present: slots that hold a source.
        log_power: log (gamma / sigma^2), finite in every slot.

    Returns:
        Cost and derivatives.
    """
    at = _Products.at(problem, parameters, present, log_power)
    n_searched, n_snapshots = len(problem.active), problem.n_snapshots
    noise, load = problem.noise_power, at.load
    # d^H sigma^2 R^-1 y, against the symbols that it would be heard as
    pull = at.slopes_heard - at.slopes_still @ at.amplitudes
    towards = (pull * at.amplitudes.conj().tile(n_searched, 1)).real.sum((2, -1))
    own = at.by_source.diagonal(dim1=-3, dim2=-1).real.sum(2).flatten(2)
    loudness = torch.view_as_real(at.amplitudes).square().sum((2, 4, 5)) / noise[..., None]
    learned = n_snapshots * at.learned.diagonal(dim1=-2, dim2=-1).real.sum(2)
    together = (at.amplitudes @ at.amplitudes.mH).tile(n_searched, n_searched)
    curvature = (together * at.slopes.conj()).real.sum(2).mul_(2.0)
    fit = _power(at.residual) / noise + (loudness * load).sum(-1)
    volume = 2.0 * at.factor.diagonal(dim1=-2, dim2=-1).real.log().sum((-2, -1))
    volume = volume + problem.y.shape[2] * (log_power * present).sum(-1)
    return SymbolLinearization(
        noise * (fit + n_snapshots * volume),
        2.0 * (n_snapshots * own - towards / noise[..., None]),
        curvature / noise[..., None, None],
        (learned - loudness) * load,
        n_snapshots * at.power_information,
        at.amplitudes,
    )


def symbol_information(
    problem: Problem,
    parameters: Float[Tensor, "channel scene source 3"],
    present: Bool[Tensor, "channel scene source"],
    log_power: Float[Tensor, "channel scene source"],
) -> SymbolInformation:
    r"""The Fisher information, sums of :math:`tr(R_q^{-1} \partial_i R_q R_q^{-1} \partial_j R_q)`.

    Args:
        problem: what was heard.
        parameters: (u, v, rho), finite in every slot.
        present: slots that hold a source.
        log_power: log (gamma / sigma^2), finite in every slot.

    Returns:
        The information.
    """
    at = _Products.at(problem, parameters, present, log_power)
    n_searched = len(problem.active)
    # k, l are sources, i, j coordinates
    crosswise = torch.einsum("cnqkjl,cnqlik->cnikjl", at.by_source, at.by_source).real
    crosswise = crosswise.flatten(-2).flatten(2, 3)
    along = (at.learned.tile(n_searched, n_searched) * at.slopes.conj()).real.sum(2)
    turned = torch.einsum("cnqkl,cnqlik->cnikl", at.learned, at.by_source).real.flatten(2, 3)
    n_snapshots = problem.n_snapshots
    return SymbolInformation(
        n_snapshots * 2.0 * (crosswise + along),
        n_snapshots * 2.0 * turned * at.load[:, :, None],
        n_snapshots * at.power_information,
    )


@dataclass(frozen=True)
class _Products:
    """What cost, slope and information are made of; b are signatures and d slopes, block by block.

    Args:
        amplitudes: s.
        residual: y - B s.
        factor: of A.
        slopes: d^H sigma^2 R^-1 d'.
        slopes_heard: d^H y.
        slopes_still: d^H b.
        by_source: gamma_k b_k^H R^-1 d.
        learned: gamma_k b_k^H R^-1 b_l gamma_l over sigma^2: how uncertain symbols were, less how
            uncertain they still are.
        load: sigma^2 / gamma; 0 in empty slots.
    """

    amplitudes: Complex[Tensor, "channel scene blocks source snapshot"]
    residual: Complex[Tensor, "channel scene blocks snapshot row"]
    factor: Complex[Tensor, "channel scene blocks source source"]
    slopes: Complex[Tensor, "channel scene blocks line line"]
    slopes_heard: Complex[Tensor, "channel scene blocks line snapshot"]
    slopes_still: Complex[Tensor, "channel scene blocks line source"]
    by_source: Complex[Tensor, "channel scene blocks source searched source"]
    learned: Complex[Tensor, "channel scene blocks source source"]
    load: Float[Tensor, "channel scene source"]

    @classmethod
    def at(
        cls,
        problem: Problem,
        parameters: Float[Tensor, "channel scene source 3"],
        present: Bool[Tensor, "channel scene source"],
        log_power: Float[Tensor, "channel scene source"],
    ) -> "_Products":
        n_sources, n_searched = present.shape[-1], len(problem.active)
        there = present.to(log_power.dtype)
        load = (-log_power).exp() * there
        lines = signatures_and_slopes(problem, parameters, present)
        gram, heard = lines.conj() @ lines.mT, lines.conj() @ problem.y.mT
        still, moving = slice(None, n_sources), slice(n_sources, None)
        factor = loaded_factor(gram[..., still, still], present, load)
        identity = torch.eye(n_sources).to(factor).expand_as(factor)
        known = torch.cat((heard[..., still, :], gram[..., still, moving], identity), dim=-1)
        amplitudes, carried, spread = torch.cholesky_solve(known, factor).split_with_sizes(
            (heard.shape[-1], n_sources * n_searched, n_sources), dim=-1
        )
        crossed = gram[..., moving, still]
        both = (present[..., None] & present[..., None, :])[:, :, None]
        power = torch.diag_embed(log_power.exp() * there)[:, :, None]
        return cls(
            amplitudes=amplitudes,
            residual=problem.y - amplitudes.mT @ lines[..., still, :],
            factor=factor,
            slopes=gram[..., moving, moving] - crossed @ carried,
            slopes_heard=heard[..., moving, :],
            slopes_still=crossed,
            by_source=carried.reshape(*carried.shape[:-1], n_searched, n_sources),
            learned=(power - spread) * both,
            load=load,
        )

    @property
    def power_information(self) -> Float[Tensor, "channel scene source source"]:
        """Of one snapshot."""
        squared = torch.view_as_real(self.learned).square().sum(-1).sum(2)
        return squared * self.load[..., None] * self.load[..., None, :]


def _power(
    values: Complex[Tensor, "channel scene blocks snapshot row"],
) -> Float[Tensor, "channel scene"]:
    return torch.view_as_real(values).flatten(2).square().sum(-1)
