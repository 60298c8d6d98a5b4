"""GradientNorm: how large was the gradient, and did the gate let it through?"""

import logging
import math

from lightning.pytorch import LightningModule, Trainer
from torch.optim import Optimizer
from typing_extensions import override

from callbacks.observing import (
    Cadence,
    StepObserver,
    parameters_by_group,
    total_norm,
    write_series,
)
from musicnet.gate.step_gate import StepReport, group_norms

log = logging.getLogger(__name__)


class GradientNorm(StepObserver):
    """Logs the global gradient norm at the first step, at every n-th attempt, and at every veto.

    The norm is unscaled and unclipped. With a gate it is the gate's own, so that nothing is
    computed twice; under automatic optimisation it is computed at the steps that are shown, where
    `ok=False` says that the gradient was not finite or was zero, though nobody stopped it.
    Series, over batches: `optim/grad_norm`, and `optim/grad_norm/<group>` where they are known.

    What bad looks like: `nan` or `inf` again and again; 0 after the first steps; a norm hundreds
    of times the clipping norm.

    Args:
        every_n: attempts (without a gate: steps) from one line to the next.

    Example:
        >>> gradient_line(0.01234, ok=True)
        '[GRAD] ||g||_2=1.234e-02 ok=True'
        >>> gradient_line(math.nan, ok=False, reason="nonfinite")
        '[GRAD] ||g||_2=nan ok=False reason=nonfinite'
    """

    def __init__(self, every_n: int = 50) -> None:
        self._cadence = Cadence(every_n)

    @override
    def on_step_gate(
        self, trainer: Trainer, pl_module: LightningModule, report: StepReport
    ) -> None:
        if not self._cadence.is_worth_a_line(report):
            return
        reason = None if report.reason == "ok" else report.reason
        self._show(trainer, report.norm, report.group_norms or {}, ok=report.ok, reason=reason)

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        # Fired by a gate's step too, whose report tells more.
        if not self._cadence.is_due(trainer.global_step + 1) or self.hears_gate:
            return
        norms = group_norms(
            {
                name: [parameter.grad for parameter in group if parameter.grad is not None]
                for name, group in parameters_by_group([optimizer]).items()
            }
        )
        norm = total_norm(norms)
        reason = "zero" if norm == 0.0 else None if math.isfinite(norm) else "nonfinite"
        self._show(trainer, norm, norms, ok=reason is None, reason=reason)

    def _show(
        self,
        trainer: Trainer,
        norm: float,
        norms: dict[str, float],
        *,
        ok: bool,
        reason: str | None,
    ) -> None:
        if trainer.is_global_zero:
            log.info("%s", gradient_line(norm, ok=ok, reason=reason))
        by_group = {f"optim/grad_norm/{name}": value for name, value in norms.items()}
        write_series(trainer, {"optim/grad_norm": norm} | by_group)


def gradient_line(norm: float, *, ok: bool, reason: str | None = None) -> str:
    """The console line of one attempt; the reason stands there if the gate was against a step."""
    ending = "" if reason is None else f" reason={reason}"
    return f"[GRAD] ||g||_2={norm:.3e} ok={ok}{ending}"
