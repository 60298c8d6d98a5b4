"""What an attempt saw and did, as the gate tells it."""

from dataclasses import dataclass
from typing import Literal

Reason = Literal["ok", "nonfinite", "zero", "no_grad", "spike", "scaler", "other_rank"]


@dataclass(frozen=True)
class StepReport:
    """What one attempt saw and did.

    Args:
        attempt: Number of this attempt, from 1.
        step: Real steps so far, this one included.
        norm: Global gradient norm, unscaled and unclipped; nan where nothing has a gradient, or
            where a parameter that no optimiser holds has one that is not finite.
        ok: Whether the gate allows the step by its rule.
        reason: "ok", or why nothing moved. A gate that only observes gives the reason that it
            would have had, and steps.
        stepped: Whether the optimisers moved.
        clip_coef: What the gradients were multiplied by; 1 if they were not clipped.
        group_norms: Norm per named group that has gradients; None on most attempts.
        lr: Learning rate per named group, as this attempt used it.
        scale_before: Loss scale that the gradients were unscaled by; None without a scaler.
        scale_after: Loss scale of the next backward pass; None without a scaler.
    """

    attempt: int
    step: int
    norm: float
    ok: bool
    reason: Reason
    stepped: bool
    clip_coef: float
    group_norms: dict[str, float] | None
    lr: dict[str, float]
    scale_before: float | None
    scale_after: float | None
