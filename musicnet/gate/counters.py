"""What a gate has counted, and when that is the end of the run."""

from collections import Counter, deque
from collections.abc import Sequence
from typing import Any, cast

from torch import nn

from musicnet.gate.gradients import nonfinite_names
from musicnet.gate.reports import StepReport
from musicnet.gate.stuck import GateStuckError, stuck_error

_NUMBERS = ("attempts", "steps", "skips", "consecutive_skips", "first_skip", "last_skip")


class Counters:
    """Attempts, real steps and vetoes of a run.

    Attributes:
        attempts: Times that the gate was asked.
        steps: Times that the optimisers moved.
        skips: Times that they did not.
        consecutive_skips: Of these, those since the last real step.
        first_skip: Attempt that was vetoed first; None before.
        last_skip: Attempt that was vetoed last; None before.
        by_reason: How often each reason stood against a step.
    """

    def __init__(self) -> None:
        self.attempts = 0
        self.steps = 0
        self.skips = 0
        self.consecutive_skips = 0
        self.first_skip: int | None = None
        self.last_skip: int | None = None
        self.by_reason: Counter[str] = Counter()
        self._scales: deque[float] = deque(maxlen=8)

    def count(self, report: StepReport) -> None:
        """Take in what an attempt has done; its number was counted when it began."""
        if report.reason != "ok":
            self.by_reason[report.reason] += 1
        if report.stepped:
            self.steps += 1
            self.consecutive_skips = 0
            return
        self.skips += 1
        self.consecutive_skips += 1
        self.first_skip = self.first_skip or report.attempt
        self.last_skip = report.attempt
        if report.scale_after is not None:
            self._scales.append(report.scale_after)

    def broken_rule(self, report: StepReport, most_skips: int, *, strict: bool) -> str | None:
        """Say what must hold and does not, if the run has to end at this veto.

        Args:
            report: Of the veto, counted already.
            most_skips: Vetoes in a row that are borne.
            strict: Whether a gradient that is not finite ends the run. Under fp16 loss scaling it
                never does: an overflow is how the scale is found.
        """
        if self.consecutive_skips > most_skips:
            return f"one of {most_skips + 1} attempts in a row must step"
        if report.scale_after is None:
            raises = strict and report.reason == "nonfinite"
            return "every gradient must be finite (nonfinite='raise')" if raises else None
        if report.scale_after < min(1.0, cast(float, report.scale_before)):
            return "the loss scale must not fall below 1"
        return None

    def stuck(self, rule: str, report: StepReport, module: nn.Module) -> GateStuckError:
        """Put together the error that ends the run, while the gradients are still there.

        Args:
            rule: What must hold and does not.
            report: Of the last veto.
            module: Its parameters are searched one by one for gradients that are not finite.
        """
        broken: Sequence[str] = nonfinite_names(module.named_parameters())
        return stuck_error(
            rule,
            last=report.reason,
            in_a_row=self.consecutive_skips,
            steps=self.steps,
            reasons=self.by_reason,
            scales=self._scales,
            broken=broken,
        )

    def state_dict(self) -> dict[str, Any]:
        """Give the counts as plain data."""
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        return {"by_reason": dict(self.by_reason), **numbers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the counts up where `state_dict` left them."""
        for name in _NUMBERS:
            setattr(self, name, state[name])
        self.by_reason = Counter(state["by_reason"])
