"""The step gate: may the optimiser step on this gradient?

A backward pass has left gradients; `StepGate.attempt` decides, steps or vetoes, and returns a
`StepReport`. The rule: step if and only if the norm over all parameters together is finite and
greater than zero. Never "every group greater than zero": a zero-initialised head makes the
gradient of the backbone exactly zero, and that rule would never take the first step.

All parameters are those of the given optimisers, and a gradient that is not finite vetoes as well
if its parameter is in the module and in no optimiser at all.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, runtime_checkable

from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from musicnet.gate import line_search, loss_scale, ranks
from musicnet.gate.gradients import (
    Gradients,
    all_finite,
    exact_norm,
    group_norms,
    groups_by_name,
    nonfinite_names,
    stored_values,
)
from musicnet.gate.listeners import tell_callbacks, trainer_of
from musicnet.gate.settings import check_count
from musicnet.gate.strays import Strays
from musicnet.gate.stuck import GateStuckError, stuck_error

__all__ = ["GateStuckError", "StepGate", "StepReport", "group_norms", "groups_by_name"]

Reason = Literal["ok", "nonfinite", "zero", "no_grad", "scaler", "other_rank"]
AnyOptimizer = Optimizer | LightningOptimizer

_STATE_VERSION = 1
_COUNTERS = ("attempts", "steps", "skips", "consecutive_skips", "first_skip", "last_skip")


@runtime_checkable
class Steppable(Protocol):
    """What the gate needs of a scheduler."""

    def step(self) -> None:
        """Move on by one real optimiser step."""


@dataclass(frozen=True)
class StepReport:
    """What one attempt saw and did.

    Args:
        attempt: Number of this attempt, from 1.
        step: Real steps so far, this one included.
        norm: Global gradient norm, unscaled and unclipped; nan where nothing has a gradient, or
            where a parameter that no optimiser holds has one that is not finite.
        ok: Whether the gate allowed the step.
        reason: "ok", or why nothing moved.
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


class StepGate:
    """Decides every optimiser and scheduler step from one global gradient norm.

    Args:
        max_norm: Clip the gradient to this norm; None does not clip.
        zero: What to do with a gradient that is exactly zero. "step" departs from the rule:
            weight decay and momentum then move weights that learn nothing.
        nonfinite: "raise" ends the run at the first non-finite gradient. Under fp16 loss scaling
            an overflow is how the scale is found, and is skipped all the same.
        max_consecutive_skips: Vetoes in a row that are borne; one more raises `GateStuckError`.
        norm_rtol: Relative spread of the norm over ranks that still counts as equal.
        group_norms_every: Attempts between two reports with norms per group, the first attempt
            included; 0 never. A veto always has them.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import torch
        >>> layer = nn.Linear(4, 1, bias=False)
        >>> layer(torch.ones(1, 4)).sum().backward()
        >>> report = StepGate().attempt(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
        >>> report.stepped, report.norm
        (True, 2.0)
    """

    def __init__(
        self,
        max_norm: float | None = None,
        zero: Literal["skip", "step"] = "skip",
        nonfinite: Literal["skip", "raise"] = "skip",
        max_consecutive_skips: int = 50,
        norm_rtol: float = 1e-3,
        group_norms_every: int = 50,
    ) -> None:
        self.max_norm = max_norm
        self.zero = zero
        self.nonfinite = nonfinite
        self.max_consecutive_skips = max_consecutive_skips
        self.norm_rtol = norm_rtol
        self.group_norms_every = group_norms_every
        _check_settings(self)
        self.attempts = 0
        self.steps = 0
        self.skips = 0
        self.consecutive_skips = 0
        self.first_skip: int | None = None
        self.last_skip: int | None = None
        self.by_reason: Counter[str] = Counter()
        self._scales: deque[float] = deque(maxlen=8)
        self._strays = Strays()

    def attempt(
        self,
        module: nn.Module,
        optimizers: AnyOptimizer | Iterable[AnyOptimizer],
        *,
        closure: Callable[[], Any] | None = None,
        schedulers: Sequence[Steppable] | None = None,
        scaler: GradScaler | None = None,
        settle: Callable[[StepReport], None] | None = None,
    ) -> StepReport:
        """Step on the gradients that are there, or veto the step and clear them.

        In a fit the callbacks of the trainer that have them hear
        ``on_before_step_gate(trainer, module)`` before the gate looks at the gradients, and
        ``on_step_gate(trainer, module, report)`` when all is done.

        Args:
            module: Owns the parameters; its trainer, if it has one, owns the loss scaler. A
                gradient that is not finite vetoes too if its parameter is in this module and in
                none of the optimisers that were ever given with it or belong to the trainer.
            optimizers: Raw or Lightning's; all that have gradients step, or none.
            closure: For optimisers that evaluate the loss themselves (LBFGS): clears the
                gradients, runs backward, returns the loss. It is evaluated here before the gate
                decides, so no backward pass is due before.
            schedulers: Stepped after a real step only.
            scaler: Loss scaler of a loop without Lightning; None takes the trainer's.
            settle: Is called with the report right before the callbacks hear of it, for what
                else has to move with a step or go back with a veto.

        Returns:
            What was seen and done. The gradients of a real step are left for observers.

        Raises:
            GateStuckError: nothing has stepped for too long, or the loss scale fell below 1.
            RankMismatchError: the ranks hold different gradients.
            ValueError: no optimiser came, or a closure with clipping or with a loss scaler.
        """
        wrapped = _listed(optimizers)
        raw = [o.optimizer if isinstance(o, LightningOptimizer) else o for o in wrapped]
        trainer = trainer_of(module, wrapped)
        scaler = scaler or loss_scale.scaler_of(trainer)
        if closure is not None:
            self._refuse_with_closure(scaler)
            closure = line_search.evaluated(closure)
        tell_callbacks(trainer, "on_before_step_gate")
        if scaler is not None:
            loss_scale.unscale(scaler, raw)

        gradients = Gradients.of(raw)
        strays = self._strays.of(module, [*raw, *(trainer.optimizers if trainer else ())])
        strays = [stray for stray in strays if stray.grad is not None]
        norm, reason = self._judge(gradients.tensors)
        if strays and not all_finite([stored_values(stray) for stray in strays]):
            norm, reason = math.nan, "nonfinite"
            if scaler is not None:
                # the scaler has not seen this gradient, and must back off all the same
                loss_scale.record(scaler, raw[0], overflow=True)
        if ranks.are_several():
            reason = self._vote(norm, reason, raw[0], scaler)
        ok = reason == "ok"
        self.attempts += 1
        group_norms = gradients.norms() if not ok or self._group_norms_are_due() else None
        clip_coef = self._clip(gradients, norm) if ok else 1.0
        scale_before = float(scaler.get_scale()) if scaler is not None else None
        if ok and not _step(wrapped, raw, closure, scaler):
            reason = "nonfinite"
        scale_after = loss_scale.update(scaler, raw) if scaler is not None else None
        if ok and scale_after is not None and scale_after < cast(float, scale_before):
            # the scaler met an overflow that the norm does not show, and has not stepped
            reason = "scaler"

        stepped = reason == "ok"
        report = StepReport(
            attempt=self.attempts,
            step=self.steps + stepped,
            norm=norm,
            ok=ok,
            reason=reason,
            stepped=stepped,
            clip_coef=clip_coef,
            group_norms=group_norms,
            lr=gradients.rates,
            scale_before=scale_before,
            scale_after=scale_after,
        )
        if stepped:
            self._count_step(schedulers or ())
        else:
            self._count_veto(module, raw, strays, report)
        if settle is not None:
            settle(report)
        tell_callbacks(trainer, "on_step_gate", report)
        return report

    def state_dict(self) -> dict[str, Any]:
        """Give the counters as plain data."""
        counters = {name: getattr(self, name) for name in _COUNTERS}
        return {"version": _STATE_VERSION, "by_reason": dict(self.by_reason), **counters}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the counters up where `state_dict` left them.

        Raises:
            ValueError: the state is of another version.
        """
        if state.get("version") != _STATE_VERSION:
            raise ValueError(
                f"the state of a step gate must be of version {_STATE_VERSION}: got "
                f"{state.get('version')!r}. Load it with the musicnet that saved it."
            )
        for name in _COUNTERS:
            setattr(self, name, state[name])
        self.by_reason = Counter(state["by_reason"])

    def _judge(self, gradients: list[Tensor]) -> tuple[float, Reason]:
        """Apply the rule to the gradients of this rank."""
        if not gradients:
            return math.nan, "no_grad"
        norm = exact_norm(gradients)
        if not math.isfinite(norm):
            return norm, "nonfinite"
        return norm, "zero" if norm == 0 and self.zero == "skip" else "ok"

    def _vote(
        self, norm: float, reason: Reason, optimizer: Optimizer, scaler: GradScaler | None
    ) -> Reason:
        """Let every rank veto for all; a shared veto moves the loss scale of all ranks alike."""
        severity = {"ok": ranks.FINE, "nonfinite": ranks.BROKEN}.get(reason, ranks.EMPTY)
        device = optimizer.param_groups[0]["params"][0].device
        worst = ranks.vote(severity, norm, self.norm_rtol, device)
        if worst != ranks.FINE and scaler is not None:
            loss_scale.record(scaler, optimizer, overflow=worst == ranks.BROKEN)
        return reason if severity == worst else "other_rank"

    def _group_norms_are_due(self) -> bool:
        every = self.group_norms_every
        return every > 0 and (self.attempts - 1) % every == 0

    def _clip(self, gradients: Gradients, norm: float) -> float:
        """Shorten the gradients to `max_norm` if they are longer; give the factor."""
        if self.max_norm is None or norm <= self.max_norm:
            return 1.0
        gradients.scale(self.max_norm / norm)
        return self.max_norm / norm

    def _refuse_with_closure(self, scaler: GradScaler | None) -> None:
        if self.max_norm is not None or scaler is not None:
            raise ValueError(
                "a closure evaluates gradients that the gate can neither clip nor unscale: got "
                f"max_norm={self.max_norm}, loss scaler {'on' if scaler else 'off'}. "
                "Use max_norm=None and float32, or an optimiser without a closure."
            )

    def _count_step(self, schedulers: Sequence[Steppable]) -> None:
        self.steps += 1
        self.consecutive_skips = 0
        for scheduler in schedulers:
            scheduler.step()

    def _count_veto(
        self,
        module: nn.Module,
        optimizers: list[Optimizer],
        strays: list[nn.Parameter],
        report: StepReport,
    ) -> None:
        """Count the veto and clear the gradients; end the run if it is stuck."""
        self.skips += 1
        self.consecutive_skips += 1
        self.by_reason[report.reason] += 1
        self.first_skip = self.first_skip or report.attempt
        self.last_skip = report.attempt
        if report.scale_after is not None:
            self._scales.append(report.scale_after)
        rule = self._broken_rule(report)
        # worth a look at every single parameter only now, and only before they are cleared
        broken = nonfinite_names(module.named_parameters()) if rule else []
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        for stray in strays:
            stray.grad = None
        if rule:
            raise stuck_error(
                rule,
                last=report.reason,
                in_a_row=self.consecutive_skips,
                steps=self.steps,
                reasons=self.by_reason,
                scales=self._scales,
                broken=broken,
            )

    def _broken_rule(self, report: StepReport) -> str | None:
        """Say what must hold and does not, if the run has to end here."""
        if self.consecutive_skips > self.max_consecutive_skips:
            return f"one of {self.max_consecutive_skips + 1} attempts in a row must step"
        if report.scale_after is None:
            raises = self.nonfinite == "raise" and report.reason == "nonfinite"
            return "every gradient must be finite (nonfinite='raise')" if raises else None
        if report.scale_after < min(1.0, cast(float, report.scale_before)):
            return "the loss scale must not fall below 1"
        return None


def _listed(optimizers: AnyOptimizer | Iterable[AnyOptimizer]) -> list[AnyOptimizer]:
    """Give one or several optimisers, whatever they came in."""
    if isinstance(optimizers, Optimizer | LightningOptimizer):
        return [optimizers]
    listed = list(optimizers)
    if not listed:
        raise ValueError("an attempt needs an optimiser: got none. Give all that are to step.")
    return listed


def _step(
    optimizers: Sequence[AnyOptimizer],
    raw: Sequence[Optimizer],
    closure: Callable[[], Any] | None,
    scaler: GradScaler | None,
) -> bool:
    """Step every optimiser that has gradients; tell whether the step stands."""
    rewind = line_search.Rewind(raw) if closure is not None else None
    with loss_scale.already_unscaled(scaler):
        for optimizer, bare in zip(optimizers, raw, strict=True):
            if not loss_scale.has_gradients(bare):
                continue
            if scaler is None or isinstance(optimizer, LightningOptimizer):
                optimizer.step(closure)
            else:
                scaler.step(optimizer)
    return rewind is None or rewind.undo_unless_finite()


def _check_settings(gate: StepGate) -> None:
    """Refuse settings that no run can mean."""
    if gate.max_norm is not None and (gate.max_norm is True or not 0 < gate.max_norm < math.inf):
        raise ValueError(
            f"max_norm must be finite and > 0: got {gate.max_norm}. Use null not to clip."
        )
    for name, allowed in (("zero", ("skip", "step")), ("nonfinite", ("skip", "raise"))):
        if getattr(gate, name) not in allowed:
            raise ValueError(f"{name} must be one of {allowed}: got {getattr(gate, name)!r}.")
    patience = "Use a large number to bear many vetoes in a row."
    check_count("max_consecutive_skips", gate.max_consecutive_skips, least=1, advice=patience)
    check_count("group_norms_every", gate.group_norms_every, least=0, advice="Use 0 for never.")
    if not 0 < gate.norm_rtol < math.inf:
        raise ValueError(f"norm_rtol must be finite and > 0: got {gate.norm_rtol}.")
