r"""Spectra of plain arrays searched on a grid and refined off it: Bartlett, Capon and MUSIC alike.

Each of the three is a weighted sum of beam powers, to be made as large as can be,

.. math:: s(p) = \sum_r w_r |v_r^H a(p)|^2

with the eigenvectors of the covariance: all of them weighted by their eigenvalues (Bartlett) or by
minus their inverse (Capon), or those of the signal subspace with weight one (MUSIC). One grid
search and one Newton refinement serve them all, near or far, in one, two or three coordinates.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from musicnet.estimation.hermitian import (
    check_covariance,
    check_definite,
    check_n_sources,
    hermitian_eigen,
    source_slots,
)
from musicnet.estimation.peaks import find_peaks
from musicnet.estimation.products import product
from musicnet.estimation.spectrum import SearchGrid
from musicnet.scene.sources import Sources
from musicnet.scene.steering import steering, steering_derivatives
from musicnet.shapes import Covariance, Map, Parameters, Positions

# beams times cells of one piece: within a processor's cache, within an accelerator's memory
_COLUMNS = 16  # products of matrices have a multiple of them
_PIECE_ON_CPU, _PIECE_ELSEWHERE = 2**19, 2**27


@dataclass(frozen=True)
class Beams:
    """A score of directions and ranges: the sum of weighted powers of a few beams.

    Args:
        vectors: v_r in columns; unit norm.
        weights: w_r.
    """

    vectors: Complex[Tensor, "*batch row beam"]
    weights: Float[Tensor, "*batch beam"]

    def score(self, response: Complex[Tensor, "grid row"]) -> Float[Tensor, "*batch grid"]:
        """Sums the powers that the beams collect from every line of a dictionary.

        Args:
            response: a_g, one a line.

        Returns:
            s, of the unit of the weights times a squared norm of steering.
        """
        *batch, n_rows, n_beams = self.vectors.shape
        # all scenes side by side make one product of matrices
        columns = self.vectors.reshape(-1, n_rows, n_beams).movedim(0, 1)  # (row, scene, beam)
        weights = self.weights.reshape(-1, n_beams)
        lines = response.conj()
        # whole dictionaries of full-rank covariances would take gigabytes at once
        piece = _PIECE_ON_CPU if lines.device.type == "cpu" else _PIECE_ELSEWHERE
        n_together = max(1, piece // (len(response) * n_beams))
        pieces = [
            _weighted_power(_products(lines, some.flatten(1)), by)
            for some, by in zip(
                torch.split(columns, n_together, dim=1),
                torch.split(weights, n_together),
                strict=True,
            )
        ]
        return torch.cat(pieces, dim=-1).mT.reshape(*batch, -1)


def _products(lines: Tensor, columns: Tensor) -> Tensor:
    """Lines times columns; few columns would be rounded otherwise than many."""
    missing = -columns.shape[1] % _COLUMNS
    padded = torch.nn.functional.pad(columns, (0, missing))
    return (lines @ padded)[:, : columns.shape[1]]


def _weighted_power(collected: Tensor, weights: Tensor) -> Tensor:
    """Powers of all beams, summed for each scene: (grid, scene)."""
    power = torch.view_as_real(collected).square().sum(-1)
    return (power.reshape(len(power), *weights.shape) * weights).sum(-1)


def bartlett_beams(covariance: Covariance) -> Beams:
    """Delay-and-sum: the score is a^H R a.

    Args:
        covariance: R; linear power.

    Returns:
        N beams.
    """
    check_covariance(covariance)
    values, vectors = hermitian_eigen(covariance)
    check_definite(values)
    return Beams(vectors, values)


def capon_beams(covariance: Covariance, loading: float = 1e-3) -> Beams:
    """Minimum variance (MVDR): the score is -a^H (R + e I)^-1 a.

    Args:
        covariance: R; linear power.
        loading: e over the mean power of a row; keeps a rank-one R invertible.

    Returns:
        N beams.
    """
    check_covariance(covariance)
    values, vectors = hermitian_eigen(covariance)
    check_definite(values)
    floor = (loading * values.mean(-1, keepdim=True)).clamp_min(torch.finfo(values.dtype).tiny)
    # a quiet observation must not overflow the score: the mean power sets the unit
    return Beams(vectors, -floor / (values.clamp_min(0.0) + floor))


def music_beams(covariance: Covariance, n_sources: int | Int[Tensor, "*batch"]) -> Beams:
    """MUSIC: the score is |a|^2 - |U_n^H a|^2, the power within the signal subspace.

    Args:
        covariance: R; linear power.
        n_sources: K, one number for all scenes or one for each.

    Returns:
        As many beams as the scene with most sources has.

    Raises:
        ValueError: as many sources as sensors, or no covariance.
    """
    check_covariance(covariance)
    n_rows = covariance.shape[-1]
    check_n_sources(n_sources, n_rows, n_rows - 1, "MUSIC")
    values, vectors = hermitian_eigen(covariance)
    check_definite(values)
    n_slots, present = source_slots(n_sources, values[..., 0])
    return Beams(vectors[..., n_rows - n_slots :].flip(-1), present.to(values.dtype))


def search(
    beams: Beams,
    grid: SearchGrid,
    n_sources: int | Int[Tensor, "*batch"],
    positions: Positions,
    wavelength: float,
    n_iterations: int = 4,
) -> Sources:
    """Finds the highest peaks of a score and refines them off the grid.

    Args:
        beams: the score.
        grid: where to look first; peaks stay in its region.
        n_sources: K, most peaks to return; one number for all scenes or one for each.
        positions: of the elements, one per row of the beams; metres.
        wavelength: metres.
        n_iterations: of Newton's method; 0 returns the centres of cells.

    Returns:
        Best peak first. A slot without a peak is not resolved; a scene that is not finite has none.

    Raises:
        ValueError: positions of another array, or more peaks than cells.
    """
    if positions.shape[0] != beams.vectors.shape[-2]:
        raise ValueError(
            "the beams must have one row per element: got "
            f"{beams.vectors.shape[-2]} rows for {positions.shape[0]} elements."
        )
    dtype = beams.weights.dtype
    positions = positions.to(dtype)
    cells = grid.visible_cells.to(dtype=dtype, device=positions.device)
    score = score_map(beams, cells, positions, wavelength)
    n_slots, present = source_slots(n_sources, score[..., 0, 0, 0])
    peaks = find_peaks(score, n_slots)
    resolved = peaks.resolved & present
    start = cells[peaks.cells[..., 0], peaks.cells[..., 1], peaks.cells[..., 2]]
    refined = climb(beams, start, resolved, grid, positions, wavelength, n_iterations)
    return Sources(refined.masked_fill(~resolved[..., None], math.nan), resolved)


def score_map(
    beams: Beams, cells: Float[Tensor, "v u rho 3"], positions: Positions, wavelength: float
) -> Map:
    """The score over a grid.

    Args:
        beams: the score.
        cells: (u, v, rho) of each cell.
        positions: metres.
        wavelength: metres.

    Returns:
        s at each cell.
    """
    dictionary = steering(positions, cells.flatten(0, 2), wavelength)
    score = beams.score(dictionary)
    return score.reshape(*score.shape[:-1], *cells.shape[:-1])


def climb(
    beams: Beams,
    parameters: Parameters,
    resolved: Bool[Tensor, "*batch source"],
    grid: SearchGrid,
    positions: Positions,
    wavelength: float,
    n_iterations: int = 4,
) -> Parameters:
    r"""Climbs from cells to the maxima of the score, each peak on its own.

    Newton's method on what the region leaves free. The phase's own curvature is left out of the
    Hessian: its part vanishes at a maximum. No step is longer than a cell, none leaves the region,
    and a step that does not raise the score is taken back and tried again at a quarter.

    Args:
        beams: the score.
        parameters: (u, v, rho) to start at, in the region.
        resolved: slots to move.
        grid: its steps limit ours, its region holds us.
        positions: metres.
        wavelength: metres.
        n_iterations: evaluations of the score and its derivatives.

    Returns:
        (u, v, rho); no gradient.
    """
    searched = [i for i, is_active in enumerate(grid.region.active) if is_active]
    if n_iterations < 1 or not searched:
        return parameters
    step_v, step_u, step_rho = grid.steps
    reach = parameters.new_tensor([step_u, step_v, step_rho])
    with torch.no_grad():
        best, step = parameters, torch.zeros_like(parameters)
        highest = torch.full_like(parameters[..., 0], -math.inf)
        for _ in range(n_iterations):
            trial = grid.region.clamp(best + step)
            score, slope, curvature = _expand(beams, trial, positions, wavelength, searched)
            rose = _rose(score, highest)[..., None]
            best = torch.where(rose, trial, best)
            highest = torch.where(rose[..., 0], score, highest)
            onward = _newton_step(slope, curvature, trial, grid, searched).clamp(-reach, reach)
            step = torch.where(rose, onward, 0.25 * step)
            step = step.nan_to_num(0.0)
        # the last step is small: where it is not, the score decides again
        trial = grid.region.clamp(best + step)
        score = _expand(beams, trial, positions, wavelength, [])[0]
        rose = _rose(score, highest)[..., None]
        moved = torch.where(rose, trial, best)
        return torch.where(resolved[..., None], moved, parameters)


def _rose(score: Tensor, highest: Tensor) -> Tensor:
    """Whether a step paid, up to rounding: near a top the score is flat, but its slope is not."""
    return score >= highest - 16.0 * torch.finfo(score.dtype).eps * score.abs()


def _expand(
    beams: Beams, parameters: Tensor, positions: Tensor, wavelength: float, searched: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Score, gradient and Hessian (without the phase's curvature) at each source."""
    vectors, weights = beams.vectors, beams.weights[..., None, :]
    if not searched:
        heard = product(steering(positions, parameters, wavelength).conj(), vectors)
        return (heard.abs().square() * weights).sum(-1), parameters, parameters
    response, slopes = steering_derivatives(positions, parameters, wavelength)
    slopes = slopes[..., searched].movedim(-1, -2)  # (..., source, searched, element)
    # a_n = exp(j psi_n): second derivatives are -psi_i psi_j a
    # real parts by themselves: a complex product is rounded otherwise at a vector's end
    still = response[..., None, :]
    phases = still.real * slopes.imag - still.imag * slopes.real
    pairs = phases[..., :, None, :] * phases[..., None, :, :]
    n = len(searched)
    second = -(pairs.flatten(-3, -2) * response[..., None, :])
    lines = torch.cat((response[..., None, :], slopes, second), dim=-2)
    heard = product(lines.flatten(-3, -2).conj(), vectors)
    heard = heard.reshape(*lines.shape[:-1], -1)  # (..., source, 1 + n + n n, beam)
    weighted = heard[..., 0, :].conj() * weights
    score = (heard[..., 0, :] * weighted).real.sum(-1)
    slope = 2.0 * (heard[..., 1 : 1 + n, :] * weighted[..., None, :]).real.sum(-1)
    moved = heard[..., 1 : 1 + n, :]
    curvature = product(moved * weights[..., None, :], moved.mH)
    bent = (heard[..., 1 + n :, :] * weighted[..., None, :]).real.sum(-1)
    return score, slope, 2.0 * (curvature.real + bent.reshape(*bent.shape[:-1], n, n))


def _newton_step(
    slope: Tensor, curvature: Tensor, parameters: Tensor, grid: SearchGrid, searched: list[int]
) -> Tensor:
    """The step to the top of the local parabola; uphill where there is none."""
    bounds = list(grid.region.bounds.values())
    low = parameters.new_tensor([bounds[i][0] for i in searched])
    high = parameters.new_tensor([bounds[i][1] for i in searched])
    inside = parameters[..., searched]
    # what pushes against a wall stays there, and the others move as if it were known
    held = ((inside <= low) & (slope < 0)) | ((inside >= high) & (slope > 0))
    slope = slope.masked_fill(held, 0.0)
    free = ~held
    curvature = curvature * (free[..., :, None] & free[..., None, :])
    scale = curvature.diagonal(dim1=-2, dim2=-1).abs().clamp_min(1e-30).rsqrt()
    bowl = -curvature * scale[..., :, None] * scale[..., None, :] + torch.diag_embed(held.to(slope))
    # diagonal one after scaling, of either sign: a parabola opening downwards is positive definite
    factor, info = torch.linalg.cholesky_ex(bowl)
    downhill = (info != 0)[..., None, None]
    identity = torch.eye(len(searched), dtype=slope.dtype, device=slope.device)
    factor = torch.where(downhill, identity, factor)
    onward = torch.cholesky_solve((slope * scale)[..., None], factor).squeeze(-1) * scale
    step = torch.zeros_like(parameters)
    step[..., searched] = onward
    return step
