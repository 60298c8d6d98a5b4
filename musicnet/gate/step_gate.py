"""The step gate: may the optimiser step on this gradient?

A backward pass has left gradients; `StepGate.attempt` decides, steps or vetoes, and returns a
`StepReport`. The rule: step if and only if the norm over all parameters together is finite and
greater than zero. Never "every group greater than zero": a zero-initialised head makes the
gradient of the backbone exactly zero, and that rule would never take the first step.

All parameters are those of the given optimisers, and a gradient that is not finite vetoes as well
if its parameter is in the module and in no optimiser at all.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, cast

from lightning.pytorch import Trainer
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from musicnet.gate import line_search, loss_scale
from musicnet.gate.counters import Counters
from musicnet.gate.foreign_parts import warn_of_bare_optimizers
from musicnet.gate.gradients import group_norms, groups_by_name
from musicnet.gate.judgement import Judge, Look
from musicnet.gate.listeners import tell_callbacks, trainer_of
from musicnet.gate.reports import Reason, StepReport
from musicnet.gate.settings import check_count
from musicnet.gate.sharding import check_strategy
from musicnet.gate.spikes import SpikeRule
from musicnet.gate.stepping import AnyOptimizer, Steppable, bare, listed, step_all
from musicnet.gate.stuck import GateStuckError

__all__ = [
    "GateStuckError",
    "SpikeRule",
    "StepGate",
    "StepReport",
    "group_norms",
    "groups_by_name",
]

_STATE_VERSION = 1


class StepGate(Counters):
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
        spike: Vetoes a norm far above those before it; None lets any finite norm pass.
        mode: "observe" reports what the rule says, touches nothing and lets every step happen, for
            strategies that decide themselves and for a first look at a project.

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
        spike: SpikeRule | None = None,
        mode: Literal["decide", "observe"] = "decide",
    ) -> None:
        super().__init__()
        self.max_norm = max_norm
        self.zero = zero
        self.nonfinite = nonfinite
        self.max_consecutive_skips = max_consecutive_skips
        self.norm_rtol = norm_rtol
        self.group_norms_every = group_norms_every
        self.spike = spike
        self.mode = mode
        _check_settings(self)
        self._has_told_of_bare = False
        self._judge = Judge(steps_on_zero=zero == "step", norm_rtol=norm_rtol, spike=spike)

    @property
    def decides(self) -> bool:
        """Whether the gate vetoes, or only observes."""
        return self.mode == "decide"

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
            ValueError: no optimiser came, or a closure with clipping or with a loss scaler, or
                the trainer's strategy is one that a gate cannot work with.
        """
        wrapped = listed(optimizers)
        raw = bare(wrapped)
        trainer = trainer_of(module, wrapped)
        check_strategy(trainer, decides=self.decides)
        if not self._has_told_of_bare:
            self._has_told_of_bare = warn_of_bare_optimizers(trainer, wrapped)
        scaler = scaler or loss_scale.scaler_of(trainer)
        if closure is not None:
            self._refuse_with_closure(scaler)
            closure = line_search.evaluated(closure)
        tell_callbacks(trainer, "on_before_step_gate")
        if scaler is not None:
            loss_scale.unscale(scaler, raw)

        look = self.look(module, raw, scaler, trainer)
        clip_coef = self.clip(look)
        scale_before = float(scaler.get_scale()) if scaler is not None else None
        stepped, reason = look.reason == "ok" or not self.decides, look.reason
        if stepped and not step_all(wrapped, closure, scaler, can_undo=self.decides):
            stepped, reason = False, "nonfinite"
        scale_after = loss_scale.update(scaler, raw) if scaler is not None else None
        if stepped and scale_after is not None and scale_after < cast(float, scale_before):
            # the scaler met an overflow that the norm does not show, and has not stepped
            stepped, reason = False, "scaler" if reason == "ok" else reason
        report = self.conclude(
            module,
            look,
            reason=reason,
            stepped=stepped,
            clip_coef=clip_coef,
            scales=(scale_before, scale_after),
        )
        if stepped:
            for scheduler in schedulers or ():
                scheduler.step()
        if settle is not None:
            settle(report)
        tell_callbacks(trainer, "on_step_gate", report)
        return report

    def look(
        self,
        module: nn.Module,
        optimizers: Sequence[Optimizer],
        scaler: GradScaler | None,
        trainer: Trainer | None,
    ) -> Look:
        """Measure the gradients and decide, without moving anything: the first half of an attempt.

        Args:
            module: Owns the parameters.
            optimizers: Raw ones, with gradients that are unscaled already.
            scaler: Learns of overflows that it could not see itself.
            trainer: Its optimisers make no strays of each other's parameters.

        Raises:
            RankMismatchError: the ranks hold different gradients.
        """
        self.attempts += 1
        every = self.group_norms_every
        by_group = every > 0 and (self.attempts - 1) % every == 0
        return self._judge.look(module, optimizers, scaler, trainer, by_group=by_group)

    def clip(self, look: Look) -> float:
        """Shorten the gradients to `max_norm` if they may step and are longer; give the factor."""
        if look.reason != "ok" or self.max_norm is None or look.norm <= self.max_norm:
            return 1.0
        look.gradients.scale(self.max_norm / look.norm)
        return self.max_norm / look.norm

    def conclude(
        self,
        module: nn.Module,
        look: Look,
        *,
        reason: Reason,
        stepped: bool,
        clip_coef: float,
        scales: tuple[float | None, float | None],
    ) -> StepReport:
        """Count what came of a look and clear vetoed gradients: the second half of an attempt.

        Args:
            module: Owns the parameters.
            look: The first half.
            reason: "ok", or what stood against the step in the end.
            stepped: Whether the optimisers moved.
            clip_coef: What the gradients were multiplied by.
            scales: Loss scale before and after; None without a scaler.

        Raises:
            GateStuckError: nothing has stepped for too long, or the loss scale fell below 1.
        """
        report = StepReport(
            attempt=self.attempts,
            step=self.steps + stepped,
            norm=look.norm,
            ok=look.reason == "ok",
            reason=reason,
            stepped=stepped,
            clip_coef=clip_coef,
            group_norms=look.group_norms,
            lr=look.gradients.rates,
            scale_before=scales[0],
            scale_after=scales[1],
        )
        self.count(report)
        if not stepped:
            strict = self.nonfinite == "raise"
            rule = self.broken_rule(report, self.max_consecutive_skips, strict=strict)
            # worth a look at every single parameter only now, and only before they are cleared
            error = self.stuck(rule, report, module) if rule and self.decides else None
            look.clear()
            if error is not None:
                raise error
        return report

    def state_dict(self) -> dict[str, Any]:
        """Give the counters, and the norms that spikes are told from, as plain data."""
        history = self._judge.state_dict()
        return {"version": _STATE_VERSION, "norm_history": history, **super().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take everything up where `state_dict` left it.

        Raises:
            ValueError: the state is of another version.
        """
        if state.get("version") != _STATE_VERSION:
            raise ValueError(
                f"the state of a step gate must be of version {_STATE_VERSION}: got "
                f"{state.get('version')!r}. Load it with the musicnet that saved it."
            )
        super().load_state_dict(state)
        self._judge.load_state_dict(state.get("norm_history", []))

    def _refuse_with_closure(self, scaler: GradScaler | None) -> None:
        if self.max_norm is not None or scaler is not None:
            raise ValueError(
                "a closure evaluates gradients that the gate can neither clip nor unscale: got "
                f"max_norm={self.max_norm}, loss scaler {'on' if scaler else 'off'}. "
                "Use max_norm=None and float32, or an optimiser without a closure."
            )


def _check_settings(gate: StepGate) -> None:
    """Refuse settings that no run can mean."""
    if gate.max_norm is not None and (gate.max_norm is True or not 0 < gate.max_norm < math.inf):
        raise ValueError(
            f"max_norm must be finite and > 0: got {gate.max_norm}. Use null not to clip."
        )
    for name, allowed in (
        ("zero", ("skip", "step")),
        ("nonfinite", ("skip", "raise")),
        ("mode", ("decide", "observe")),
    ):
        if getattr(gate, name) not in allowed:
            raise ValueError(f"{name} must be one of {allowed}: got {getattr(gate, name)!r}.")
    patience = "Use a large number to bear many vetoes in a row."
    check_count("max_consecutive_skips", gate.max_consecutive_skips, least=1, advice=patience)
    check_count("group_norms_every", gate.group_norms_every, least=0, advice="Use 0 for never.")
    if not 0 < gate.norm_rtol < math.inf:
        raise ValueError(f"norm_rtol must be finite and > 0: got {gate.norm_rtol}.")
    if gate.mode == "observe" and (gate.max_norm is not None or gate.nonfinite == "raise"):
        raise ValueError(
            "a gate that only observes touches nothing: got mode='observe' with "
            f"max_norm={gate.max_norm}, nonfinite={gate.nonfinite!r}. Use null and 'skip'."
        )
