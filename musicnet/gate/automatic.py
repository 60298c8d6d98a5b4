"""The gate for modules under automatic optimisation, whose steps Lightning takes itself.

A vetoed step is taken without gradients, which moves nothing in the optimisers of torch. What
cannot be had this way: Lightning counts such a step and moves its schedulers all the same. A
`GatedModule` has no such limit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import LBFGS, Optimizer
from typing_extensions import override

from musicnet.gate import loss_scale
from musicnet.gate.judgement import Look
from musicnet.gate.listeners import tell_callbacks
from musicnet.gate.reports import Reason, StepReport
from musicnet.gate.running_statistics import StatisticsSnapshot, normalisation_layers
from musicnet.gate.sharding import check_strategy
from musicnet.gate.step_gate import StepGate


@dataclass(frozen=True)
class _Pending:
    """A decision that Lightning has not carried out yet."""

    look: Look
    clip_coef: float
    scale_before: float | None


class AutomaticGate(Callback):
    """Puts a `StepGate` between the gradients and the step of a plain LightningModule.

    Other callbacks hear ``on_before_step_gate`` and ``on_step_gate`` as they do of a
    `GatedModule`; those that are to hear of a step before their own ``on_train_batch_end`` come
    after this one in the list.

    Args:
        gate: Decides; None takes its defaults. Its ``max_norm`` clips in place of the trainer's
            ``gradient_clip_val``, by the norm that it knows anyway.

    Attributes:
        last_report: Of the newest attempt; None before.

    Raises:
        ValueError: at the start of a fit, for what cannot be gated this way.
    """

    def __init__(self, gate: StepGate | None = None) -> None:
        self.gate = gate if gate is not None else StepGate()
        self.last_report: StepReport | None = None
        self._pending: _Pending | None = None
        self._layers: list[nn.Module] = []
        self._snapshot: StatisticsSnapshot | None = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_strategy(trainer, decides=self.gate.decides)
        if fault := _fault(trainer, pl_module, self.gate):
            raise ValueError(fault)
        self._layers = list(normalisation_layers(pl_module).values())
        self._pending = self._snapshot = None

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._snapshot is None:
            self._snapshot = StatisticsSnapshot(self._layers)

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        tell_callbacks(trainer, "on_before_step_gate")
        scaler = loss_scale.scaler_of(trainer)
        look = self.gate.look(pl_module, [optimizer], scaler, trainer)
        scale = float(scaler.get_scale()) if scaler is not None else None
        self._pending = _Pending(look, self.gate.clip(look), scale)
        if look.reason != "ok" and self.gate.decides:
            look.clear()

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        pending, self._pending = self._pending, None
        if pending is None:
            return  # the window is still open
        scale = _scale_after(loss_scale.scaler_of(trainer))
        stepped, reason = _outcome(pending, scale, decides=self.gate.decides)
        if not stepped and self._snapshot is not None:
            self._snapshot.restore()
        self._snapshot = None
        self.last_report = self.gate.conclude(
            pl_module,
            pending.look,
            reason=reason,
            stepped=stepped,
            clip_coef=pending.clip_coef,
            scales=(pending.scale_before, scale),
        )
        tell_callbacks(trainer, "on_step_gate", self.last_report)

    @override
    def state_dict(self) -> dict[str, Any]:
        return self.gate.state_dict()

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.gate.load_state_dict(dict(state_dict))


def _scale_after(scaler: GradScaler | None) -> float | None:
    return float(scaler.get_scale()) if scaler is not None else None


def _outcome(pending: _Pending, scale: float | None, *, decides: bool) -> tuple[bool, Reason]:
    """Tell whether Lightning's step has moved anything, and what stood against it."""
    reason = pending.look.reason
    if scale is not None and pending.scale_before is not None and scale < pending.scale_before:
        return False, "scaler" if reason == "ok" else reason
    return reason == "ok" or not decides, reason


def _fault(trainer: Trainer, module: LightningModule, gate: StepGate) -> str | None:
    """Say in one line what cannot be gated from a callback."""
    if not module.automatic_optimization:
        return (
            "AutomaticGate is for automatic optimisation: got "
            f"{type(module).__name__}.automatic_optimization=False. Call StepGate.attempt in its "
            "training_step, or derive it from GatedModule."
        )
    for optimizer in trainer.optimizers:
        if isinstance(optimizer, LBFGS):
            return (
                "AutomaticGate sees one gradient per step: got LBFGS, which evaluates many. Use a "
                "GatedModule."
            )
        fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        if fused and loss_scale.scaler_of(trainer) is not None:
            return (
                "AutomaticGate needs gradients that are unscaled before the step: got a fused "
                f"{type(optimizer).__name__} with a loss scaler, which unscales inside. Use "
                "fused=False, bf16-mixed, or a GatedModule."
            )
    if gate.max_norm is not None and trainer.gradient_clip_val:
        return (
            "gradients must be clipped in one place: got gate.max_norm="
            f"{gate.max_norm} and trainer.gradient_clip_val={trainer.gradient_clip_val}. "
            "Leave one of them out."
        )
    return None
