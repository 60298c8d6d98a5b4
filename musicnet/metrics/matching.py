"""Who is who: estimates are assigned to true sources by least total distance."""

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from musicnet.scene.sources import Sources

MAX_SLOTS = 6
"""All orders are tried at once: 720 for six sources."""

_TIE_BREAK = 1e-4


@dataclass(frozen=True)
class Matching:
    """Which estimate stands for which true source.

    Args:
        estimate_index: slot of the estimate for each slot of the truth; -1 where not matched.
        matched: whether both the true source and its estimate exist.
        distance: metres (or what was asked for) between the two; NaN where not matched.
    """

    estimate_index: Int[Tensor, "*batch source"]
    matched: Bool[Tensor, "*batch source"]
    distance: Float[Tensor, "*batch source"]


def match(estimate: Sources, truth: Sources, cap: float = 3.0) -> Matching:
    """Assigns estimates to true sources by least total distance in space.

    Args:
        estimate: any number of slots.
        truth: any number of slots, the same batch.
        cap: metres beyond which a pair counts no worse, so that one stray estimate cannot turn
            all the others; such pairs are still matched.

    Returns:
        One entry per slot of the truth. Sources without an estimate stay unmatched.

    Example:
        >>> truth = Sources(torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.5]]), torch.ones(2) > 0)
        >>> estimate = Sources(truth.parameters.flip(0), truth.resolved)
        >>> match(estimate, truth).estimate_index.tolist()
        [1, 0]
    """
    offsets = truth.xyz[..., :, None, :] - estimate.xyz[..., None, :, :]
    distance = torch.linalg.vector_norm(offsets, dim=-1)  # (..., true source, estimate)
    return match_by(distance, estimate.resolved, truth.resolved, cap)


def match_by(
    distance: Float[Tensor, "*batch source estimate"],
    estimate_resolved: Bool[Tensor, "*batch estimate"],
    truth_resolved: Bool[Tensor, "*batch source"],
    cap: float,
) -> Matching:
    """Assigns estimates to true sources by least total of any distance.

    Args:
        distance: of each true source to each estimate; anything where one of the two is missing.
        estimate_resolved: which estimates exist.
        truth_resolved: which true sources exist.
        cap: beyond which a pair counts no worse.

    Returns:
        The assignment with the most pairs, and among those with the least capped total.

    Raises:
        ValueError: more slots than can be tried in all orders.
    """
    n_truth, n_estimate = distance.shape[-2:]
    n_slots = max(n_truth, n_estimate)
    if n_slots > MAX_SLOTS:
        raise ValueError(
            f"matching tries all orders of at most {MAX_SLOTS} slots: got {n_truth} true and "
            f"{n_estimate} estimated. Keep the {MAX_SLOTS} best estimates."
        )
    pair = truth_resolved[..., :, None] & estimate_resolved[..., None, :]
    # beyond the cap a pair costs hardly more, just enough that ties do not hang on the slots' order
    excess = (distance - cap).clamp_min(0.0)
    capped = distance.clamp_max(cap) + _TIE_BREAK * cap * excess / (excess + cap)
    # a missing partner costs more than any pair, so that pairing never hurts
    worst = cap * (1.0 + _TIE_BREAK)
    cost = distance.new_full((*distance.shape[:-2], n_slots, n_slots), worst)
    cost[..., :n_truth, :n_estimate] = torch.where(pair, capped, worst)
    orders = _orders(n_slots, distance.device)  # (order, slot)
    slots = torch.arange(n_slots, device=distance.device)
    best = cost[..., slots, orders].sum(-1).argmin(-1)  # (...)
    index = orders[best][..., :n_truth]
    inside = index.clamp_max(n_estimate - 1)[..., None]
    matched = pair.gather(-1, inside).squeeze(-1) & (index < n_estimate)
    return Matching(
        index.where(matched, torch.full_like(index, -1)),
        matched,
        distance.gather(-1, inside).squeeze(-1).masked_fill(~matched, math.nan),
    )


@lru_cache(maxsize=32)
def _orders(n_slots: int, device: torch.device) -> Int[Tensor, "order slot"]:
    """All orders of the slots; the identity comes first, so that ties keep it."""
    return torch.tensor(list(itertools.permutations(range(n_slots))), device=device)
