"""The vote of a distributed run: every rank can veto for all, and all must hold one gradient."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ParallelStrategy, Strategy

FINE, SPIKE, EMPTY, BROKEN = 0.0, 1.0, 2.0, 3.0
"""How bad a gradient is: may be stepped on, is a spike, is zero or missing, is not finite."""


class RankMismatchError(RuntimeError):
    """The ranks of a distributed run hold different gradients: their weights would drift apart."""


def are_several() -> bool:
    """Tell whether this process is one of several that train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gradient_sync(strategy: Strategy, *, syncs: bool) -> AbstractContextManager[None]:
    """Let ranks exchange gradients in a backward pass, or keep them from it.

    Args:
        strategy: Of the trainer.
        syncs: False for all but the last pass of an accumulation window.
    """
    if syncs or not isinstance(strategy, ParallelStrategy):
        return nullcontext()
    return strategy.block_backward_sync()


def vote(severity: float, norm: float, rtol: float, device: torch.device) -> tuple[float, float]:
    """Agree on the worst gradient of all ranks, in one exchange of three numbers.

    Flags alone would not do: a backward pass that was never synchronised leaves fine gradients on
    every rank, and different ones.

    Args:
        severity: `FINE`, `SPIKE`, `EMPTY` or `BROKEN` on this rank.
        norm: Global gradient norm of this rank.
        rtol: Relative spread of the norm over ranks that still counts as equal.
        device: Where the exchange takes place.

    Returns:
        The worst severity, and the largest norm, which all ranks are to clip by.

    Raises:
        RankMismatchError: all are fine, and their norms differ.
    """
    shown = norm if severity <= SPIKE else 0.0
    ballot = torch.tensor([severity, shown, -shown], dtype=torch.float64, device=device)
    dist.all_reduce(ballot, dist.ReduceOp.MAX)
    worst, largest, minus_smallest = ballot.tolist()
    if worst <= SPIKE and largest + minus_smallest > rtol * largest:
        raise RankMismatchError(
            "every rank must hold the same gradient before a step: got norms from "
            f"{-minus_smallest:.4g} to {largest:.4g}. Synchronise the last backward pass of every "
            "accumulation window."
        )
    return float(worst), float(largest)
