"""What the gate sees of the gradients, and what its rule says to it, before anything moves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from musicnet.gate import loss_scale, ranks
from musicnet.gate.gradients import Gradients, all_finite, exact_norm, stored_values
from musicnet.gate.reports import Reason
from musicnet.gate.spikes import NormHistory, SpikeRule
from musicnet.gate.strays import Strays

_SEVERITIES: dict[Reason, float] = {
    "ok": ranks.FINE,
    "spike": ranks.SPIKE,
    "nonfinite": ranks.BROKEN,
}


@dataclass(frozen=True)
class Look:
    """What the gate has seen, before anything moves.

    Args:
        optimizers: Raw ones, whose gradients were looked at.
        gradients: Of these optimisers, unscaled.
        strays: Parameters of the module that have a gradient and are in no optimiser.
        norm: Global gradient norm.
        group_norms: Norm per named group; None where nobody needs them.
        reason: "ok", or what stands against a step; all ranks agree on which of the two.
    """

    optimizers: Sequence[Optimizer]
    gradients: Gradients
    strays: list[nn.Parameter]
    norm: float
    group_norms: dict[str, float] | None
    reason: Reason

    def clear(self) -> None:
        """Let go of every gradient that was looked at."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        for stray in self.strays:
            stray.grad = None


class Judge:
    """Applies the rule of the gate to gradients, and lets ranks agree on the answer.

    Args:
        steps_on_zero: Whether a gradient that is exactly zero may step.
        norm_rtol: Relative spread of the norm over ranks that still counts as equal.
        spike: What counts as a spike; None lets any finite norm pass.
    """

    def __init__(self, *, steps_on_zero: bool, norm_rtol: float, spike: SpikeRule | None) -> None:
        self._steps_on_zero = steps_on_zero
        self._norm_rtol = norm_rtol
        self._history = NormHistory(spike) if spike is not None else None
        self._strays = Strays()

    def look(
        self,
        module: nn.Module,
        optimizers: Sequence[Optimizer],
        scaler: GradScaler | None,
        trainer: Trainer | None,
        *,
        by_group: bool,
    ) -> Look:
        """Measure the gradients and say what stands against a step.

        Args:
            module: Owns the parameters.
            optimizers: Raw ones, with gradients that are unscaled already.
            scaler: Learns of overflows that it could not see itself.
            trainer: Its optimisers make no strays of each other's parameters.
            by_group: Whether norms per group are wanted though nothing is wrong.

        Raises:
            RankMismatchError: the ranks hold different gradients.
        """
        gradients = Gradients.of(optimizers)
        strays = self._strays.of(module, [*optimizers, *(trainer.optimizers if trainer else ())])
        strays = [stray for stray in strays if stray.grad is not None]
        norm, reason = self._judge(gradients.tensors)
        if strays and not all_finite([stored_values(stray) for stray in strays]):
            norm, reason = math.nan, "nonfinite"
            if scaler is not None:
                # the scaler has not seen this gradient, and must back off all the same
                loss_scale.record(scaler, optimizers[0], overflow=True)
        if ranks.are_several():
            norm, reason = self._vote(norm, reason, optimizers[0], scaler)
        if self._history is not None and reason in ("ok", "spike") and norm > 0:
            # what all ranks agree on, so that their histories agree as well
            self._history.take(norm)
        group_norms = gradients.norms() if by_group or reason != "ok" else None
        return Look(optimizers, gradients, strays, norm, group_norms, reason)

    def state_dict(self) -> list[float]:
        """Give what spikes are told from."""
        return self._history.state_dict() if self._history is not None else []

    def load_state_dict(self, state: list[float]) -> None:
        """Take the history up where `state_dict` left it."""
        if self._history is not None:
            self._history.load_state_dict(state)

    def _judge(self, gradients: list[Tensor]) -> tuple[float, Reason]:
        """Apply the rule to the gradients of this rank."""
        if not gradients:
            return math.nan, "no_grad"
        norm = exact_norm(gradients)
        if not math.isfinite(norm):
            return norm, "nonfinite"
        if norm == 0:
            return norm, "ok" if self._steps_on_zero else "zero"
        is_spike = self._history is not None and self._history.is_spike(norm)
        return norm, "spike" if is_spike else "ok"

    def _vote(
        self, norm: float, reason: Reason, optimizer: Optimizer, scaler: GradScaler | None
    ) -> tuple[float, Reason]:
        """Let every rank veto for all; a shared veto moves the loss scale of all ranks alike."""
        severity = _SEVERITIES.get(reason, ranks.EMPTY)
        device = optimizer.param_groups[0]["params"][0].device
        worst, largest = ranks.vote(severity, norm, self._norm_rtol, device)
        if worst == ranks.FINE:
            return largest, "ok"
        if scaler is not None:
            loss_scale.record(scaler, optimizer, overflow=worst == ranks.BROKEN)
        if worst == ranks.SPIKE:
            return largest, "spike"
        return norm, reason if severity == worst else "other_rank"
