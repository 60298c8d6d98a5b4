"""Pursuit in the signal subspace that a trained network chooses, or in all snapshots.

One search of each scene, in what costs least there by what the network has learned. A subspace has
fewer snapshots, so that its search is cheaper, too; what is saved goes into new starts where the
residual is not noise.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from musicnet.estimation.dictionary import Dictionary
from musicnet.estimation.found import Found, nothing
from musicnet.estimation.problem import Problem, pack_scenes, take_scenes
from musicnet.estimation.pursuit import grow
from musicnet.estimation.redetection import redetect
from musicnet.estimation.refinement import refine
from musicnet.estimation.subspace_fitting import with_cost
from musicnet.localization.near_search import look_elsewhere
from musicnet.networks.fit_choice import FitChoice

_GROWTH_STEPS, _STEPS = 2, 6
# standard deviations of what noise leaves, from which a residual is not noise
_DOUBT = 2.5
_STARTS, _PAIRS = 3, 4
# with a range to search as well, more pairs of cells look alike
_NEAR_PAIRS = 16
# weight that a direction at the noise keeps: of a signal too weak to be seen, in units of noise
_LEAST_WEIGHT = 1e-3


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of what was heard, and their directions.

    Args:
        values: of the covariance of the snapshots, in units of noise, falling.
        directions: one a line.
    """

    values: Float[Tensor, "channel scene row"]
    directions: Complex[Tensor, "channel scene row row"]

    @classmethod
    def of(cls, problem: Problem) -> "Spectrum":
        """Decomposes the snapshots of a plain array.

        Args:
            problem: its snapshots.

        Returns:
            All eigenvalues, those of absent snapshots zero.
        """
        heard = problem.y[:, :, 0].to(torch.complex128).nan_to_num()
        power = (problem.n_snapshots * problem.noise_power.double())[..., None, None]
        values, vectors = torch.linalg.eigh(heard.mH @ heard / power)
        return cls(values.flip(-1).clamp_min(0.0).float(), vectors.flip(-1).mH)

    def fitted(self, problem: Problem, ranks: Int[Tensor, "channel scene"]) -> Problem:
        """The problem of the signal subspace of each scene.

        Args:
            problem: that was decomposed.
            ranks: dimensions of the subspace of each scene, at least one somewhere.

        Returns:
            As many weighted directions for snapshots as the largest subspace has.
        """
        most = int(ranks.max())
        values = self.values[..., :most].double()
        signal = (values - 1.0).clamp_min(_LEAST_WEIGHT)
        is_there = torch.arange(most, device=ranks.device) < ranks[..., None]
        power = problem.n_snapshots * problem.noise_power.double()[..., None]
        weight = (power / values.clamp_min(_LEAST_WEIGHT)).sqrt() * signal * is_there
        y = weight[..., None] * self.directions[..., :most, :]
        return replace(
            problem,
            y=y[:, :, None].to(problem.y.dtype),
            unexplained=torch.zeros_like(problem.unexplained),
            n_snapshots=most,
            n_unexplained=0,
        )

    def take(self, some: Int[Tensor, "channel some"]) -> "Spectrum":
        """Those of some scenes; index of each."""
        return Spectrum(take_scenes(self.values, some), take_scenes(self.directions, some))


@torch.no_grad()
def pursue_chosen(
    choice: FitChoice, problem: Problem, counts: Int[Tensor, "channel scene"]
) -> Found:
    """Finds sources in what the network chooses.

    Args:
        choice: trained.
        problem: snapshots of a plain array.
        counts: sources of each scene, at least one somewhere.

    Returns:
        As many sources as asked; the cost is that of all snapshots.
    """
    spectrum = Spectrum.of(problem)
    ranks = choice(spectrum.values, problem.n_snapshots, counts).argmin(-1)
    return pursue_ranked(problem, spectrum, counts, ranks)


def pursue_ranked(
    problem: Problem,
    spectrum: Spectrum,
    counts: Int[Tensor, "channel scene"],
    ranks: Int[Tensor, "channel scene"],
) -> Found:
    """Finds sources in a signal subspace of each scene.

    Args:
        problem: snapshots of a plain array.
        spectrum: of the problem.
        counts: sources of each scene, at least one somewhere.
        ranks: dimensions of the subspace; 0 takes all snapshots.

    Returns:
        As many sources as asked; the cost is that of all snapshots.
    """
    dictionary = Dictionary.over(problem, None)
    n_slots = int(counts.max())
    parameters = problem.box.mean(0).expand(*counts.shape, n_slots, 3)
    present = torch.arange(n_slots, device=counts.device) < counts[..., None]
    found = Found(parameters, present, nothing(problem).cost)
    for wanted in (ranks == 0, ranks > 0):
        some = pack_scenes(wanted)
        if some.shape[1] == 0:
            continue
        part, n_some, rank = problem.take(some), take_scenes(counts, some), take_scenes(ranks, some)
        chosen = take_scenes(wanted, some)
        if bool((rank > 0).any()):
            rank = rank.clamp_min(1)  # of scenes that only fill up
            fit = spectrum.take(some).fitted(part, rank)
        else:
            fit, rank = part, torch.full_like(rank, part.n_snapshots)
        better = with_cost(part, searched(fit, dictionary, n_some, rank), n_slots)
        found = found.replaced(better, some, chosen)
    return found


def searched(
    problem: Problem,
    dictionary: Dictionary,
    counts: Int[Tensor, "channel scene"],
    n_snapshots: Int[Tensor, "channel scene"],
) -> Found:
    """Greedy pursuit, and new starts where the residual is not noise.

    Args:
        problem: all snapshots, or a subspace.
        dictionary: cells to try.
        counts: sources of each scene.
        n_snapshots: of each scene.

    Returns:
        As many sources as asked.
    """
    grown = grow(problem, dictionary, counts, _GROWTH_STEPS)
    refined = refine(problem, grown.parameters, grown.present, _STEPS)
    found = Found(refined.parameters, grown.present, refined.cost)
    is_near = len(problem.active) > 1
    n_pairs = _NEAR_PAIRS if is_near else _PAIRS
    for n_starts, n_out in ((_STARTS, 1), (n_pairs, 2)):
        doubtful = _is_doubtful(problem, found, n_snapshots)
        found = redetect(problem, dictionary, found, doubtful, n_starts, n_out)
    if is_near:
        found = look_elsewhere(problem, dictionary, found, n_snapshots < counts)
    return found


def _is_doubtful(
    problem: Problem, found: Found, n_snapshots: Int[Tensor, "channel scene"]
) -> Bool[Tensor, "channel scene"]:
    """Whether more is left than noise leaves."""
    n_sources = found.present.sum(-1)
    freedom = n_snapshots * (problem.y.shape[-1] - n_sources)
    freedom = (freedom - 0.5 * len(problem.active) * n_sources).clamp_min(1).to(found.cost)
    return found.cost / problem.noise_power > freedom + _DOUBT * freedom.sqrt()
