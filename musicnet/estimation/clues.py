"""What speaks for and against every source that was found: numbers without a unit, of order one.

A wrong answer gives itself away: much is left over, a source explains little that another place
would not explain as well, two lie closer than the aperture resolves, an amplitude is too faint or
too loud. No single clue is sure; together they nearly are, see `musicnet.networks.trust`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from musicnet.estimation.dictionary import Dictionary
from musicnet.estimation.found import Found, surplus
from musicnet.estimation.leave_one_out import leave_one_out
from musicnet.estimation.linearization import explain
from musicnet.estimation.problem import Problem

# name: what is taken off and what it is divided by, so that clues of right answers are about
# normal; read off greedy answers to the default task
_SCALES = {
    "surplus": (0.0, 3.0),
    "remaining": (1.8, 0.3),
    "own": (6.4, 1.8),
    "elsewhere": (-5.7, 1.8),
    "beside": (-4.2, 1.8),
    "modulus": (0.9, 0.9),
    "entangled": (-2.3, 0.25),
    "nearest": (2.2, 0.65),
    "count": (3.8, 0.65),
    "depth": (0.5, 0.4),
    "edge_u": (0.0, 1.0),
    "edge_v": (0.0, 1.0),
    "edge_rho": (0.0, 1.0),
}

N_CLUES = len(_SCALES)
"""Clues to each source."""

# radians that the aperture's ends turn against each other: what lies farther is another place
_BESIDE = 3.5
_ALONE = 30.0  # the same unit, where there is no other source
_SMALLEST, _LARGEST = 1e-4, 1e3
_AT_EDGE = 1e-4  # of a coordinate


@dataclass(frozen=True)
class Clues:
    """Clues to every source and how far sources are from each other.

    Args:
        of_sources: 0 in empty slots.
        log_distance: logarithm of the phase, in radians, by which the aperture's far ends tell two
            sources apart.
        present: slots that hold a source.
    """

    of_sources: Float[Tensor, "channel scene source clue"]
    log_distance: Float[Tensor, "channel scene source source"]
    present: Bool[Tensor, "channel scene source"]


def gather_clues(problem: Problem, dictionary: Dictionary, found: Found) -> Clues:
    """Looks for clues.

    Args:
        problem: what was heard.
        dictionary: other places to compare with.
        found: sources of each scene, at least one slot.

    Returns:
        The clues, in single precision; no gradient.
    """
    present = found.present
    explained = explain(problem, found.parameters, present)
    noise = problem.noise_power[..., None]
    left_out = leave_one_out(dictionary, explained, present)
    places = found.parameters / problem.resolution
    cells = dictionary.cells / problem.resolution
    # without products of matrices, which would round a lone source otherwise
    apart = torch.cdist(
        places,
        cells.expand(places.shape[0], 1, -1, -1),
        compute_mode="donot_use_mm_for_euclid_dist",
    )
    is_beside = apart < _BESIDE
    beside = torch.where(is_beside, left_out.gains, 0.0).amax(-1)
    elsewhere = torch.where(is_beside, 0.0, left_out.gains).amax(-1)
    distance = torch.cdist(places, places)
    others = present[..., None] & present[..., None, :]
    others = others & ~torch.eye(present.shape[-1], dtype=torch.bool, device=present.device)
    distance = distance.masked_fill(~others, _ALONE)
    modulus = torch.view_as_real(explained.amplitudes).square().sum((2, 4, 5)) / noise
    own, elsewhere, beside, remaining = (
        _nepers(problem, gain / noise)
        for gain in (left_out.own, elsewhere, beside, left_out.remaining.amax(-1)[..., None])
    )
    spread = explained.amplitude_spread
    if problem.log_powers is not None:
        modulus = torch.where(present, explained.load, 1.0).reciprocal()
    at_edge = ((found.parameters - problem.box[:, None, None, None]).abs() < _AT_EDGE).any(0)
    everywhere = torch.ones_like(left_out.own)
    values = {
        "surplus": surplus(problem, found)[..., None] * everywhere,
        "remaining": remaining.log1p() * everywhere,
        "own": own.log1p(),
        "elsewhere": _signed_log(elsewhere - own),
        "beside": _signed_log(beside - own),
        "modulus": 0.5 * modulus.clamp_min(_SMALLEST).log(),
        "entangled": 0.5 * (spread / problem.y.shape[2]).clamp(_SMALLEST, _LARGEST).log(),
        "nearest": (distance.amin(-1) + 0.1).log(),
        "count": present.sum(-1, keepdim=True) * everywhere,
        "depth": found.parameters[..., 2],
        **dict(zip(("edge_u", "edge_v", "edge_rho"), at_edge.float().unbind(-1), strict=True)),
    }
    clues = [(values[name] - centre) / scale for name, (centre, scale) in _SCALES.items()]
    of_sources = torch.stack(clues, dim=-1).float().masked_fill(~present[..., None], 0.0)
    return Clues(of_sources, (distance + 0.1).log().float(), present)


def _nepers(
    problem: Problem, gain: Float[Tensor, "channel scene any"]
) -> Float[Tensor, "channel scene any"]:
    """What a gain, in units of the noise, makes an answer likelier by.

    The gain itself where amplitudes are free. Gaussian symbols explain n numbers by one power: what
    noise would explain by it is taken off.
    """
    if problem.log_powers is None:
        return gain
    n_amplitudes = problem.y.shape[2] * problem.n_snapshots
    share = (gain / n_amplitudes).clamp_min(1.0)
    return n_amplitudes * (share - 1.0 - share.log())


def _signed_log(values: Tensor) -> Tensor:
    return values.sign() * values.abs().log1p()
