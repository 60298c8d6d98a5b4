"""The end of a run that cannot step any more, with what is known of why."""

from collections.abc import Iterable, Mapping, Sequence

_ADVICE = {
    "nonfinite": "Look for a division, log or sqrt of zero in the loss, or lower the rate.",
    "zero": "The loss depends on the parameters with weight zero: look for an empty mask.",
    "no_grad": "No gradient reaches any parameter: look for a detach, or for groups all frozen.",
    "spike": "Gradients have grown far beyond what they were: lower the rate, or relax gate.spike.",
    "scaler": "The loss scaler refuses: leave the gradients alone between backward and the gate.",
    "other_rank": "Another rank vetoes: look at its log.",
}


class GateStuckError(RuntimeError):
    """The gate ends a run that cannot step any more, and says why.

    Args:
        message: What held the run up and what to look at.
        reasons: How often each reason vetoed a step in this run.
    """

    def __init__(self, message: str, reasons: dict[str, int] | None = None) -> None:
        super().__init__(message)
        self.reasons = dict(reasons or {})


def stuck_error(
    rule: str,
    *,
    last: str,
    in_a_row: int,
    steps: int,
    reasons: Mapping[str, int],
    scales: Iterable[float],
    broken: Sequence[str],
) -> GateStuckError:
    """Put together what the gate knows when it gives up.

    Args:
        rule: What must hold and does not.
        last: Reason of the last veto.
        in_a_row: Vetoes since the last real step.
        steps: Real steps of the run.
        reasons: How often each reason vetoed.
        scales: The last loss scales; empty without a scaler.
        broken: Names of parameters with a non-finite gradient.

    Returns:
        The error to raise.

    Example:
        >>> error = stuck_error("one of 3 attempts in a row must step", last="zero", in_a_row=3,
        ...                     steps=0, reasons={"zero": 3}, scales=[], broken=[])
        >>> print(str(error)[:90])
        one of 3 attempts in a row must step: got 3 vetoes in a row, the last for reason=zero, aft
    """
    vetoes = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
    facts = [
        f"{rule}: got {in_a_row} vetoes in a row, the last for reason={last}, "
        f"after {steps} real steps (all vetoes: {vetoes})"
    ]
    history = ", ".join(f"{scale:g}" for scale in scales)
    if history:
        facts.append(f"last loss scales {history}")
    if broken:
        facts.append("first non-finite gradients " + ", ".join(broken))
    return GateStuckError("; ".join(facts) + ". " + _ADVICE[last], dict(reasons))
