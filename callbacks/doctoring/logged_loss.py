"""The loss that a module logs by epoch, beside what goes backward."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from callbacks.doctoring.series import Series
from musicnet.diagnosis.evidence import Losses
from musicnet.diagnosis.loss_names import loss_name

SAME_SHARE = 0.1
"""By how much an epoch's mean may be off: batches of other sizes, vetoed ones."""


class LoggedLoss:
    """Follows both, and finds out whether what goes backward can be compared over the run.

    Where phases of a training have objectives of their own, what goes backward jumps from one to
    the next: the module says so by its `phase_index`, or the share in the logged loss changes. Then
    the logged loss is what tells.
    """

    def __init__(self) -> None:
        self.key = ""
        self.curve = Series()
        self._seen: list[float] = []  # the first, the highest and the last
        self._n = 0
        self._share: float | None = None
        self._phase: int | None = None
        self._jumps = False

    def begun(self) -> dict[str, Any]:
        """What a resumed run has to know."""
        return {
            "key": self.key,
            "seen": list(self._seen),
            "n": self._n,
            "share": self._share,
            "phase": self._phase,
            "jumps": self._jumps,
        }

    def takes_up(self, begun: Mapping[str, Any]) -> None:
        """Begin where another has ended."""
        self.key, self._seen, self._n = begun["key"], list(begun["seen"]), int(begun["n"])
        self._share, self._phase = begun["share"], begun["phase"]
        self._jumps = bool(begun["jumps"])

    def see_phase(self, phase: Any) -> None:
        """The phase that a module says it is in; None if it has none."""
        if isinstance(phase, int):
            self._phase = phase if self._phase is None else self._phase
            self._jumps |= phase != self._phase

    def epoch_ends(self, metrics: Mapping[str, Any], objective: float | None, batches: int) -> None:
        """Take in the figures of an epoch in which something stepped.

        Args:
            metrics: all that was logged.
            objective: mean of what went backward in the epoch; None if that is not known.
            batches: of the run so far.
        """
        key = self.key or loss_name(metrics, "train")
        if key is None or key not in metrics:
            return
        value = float(metrics[key])
        self.key = key
        self.curve.add(batches, value)
        self._n += 1
        if not self._seen:
            self._seen = [value] * 3
        self._seen[1] = max(self._seen[1], value)
        self._seen[2] = value
        if objective is None or not math.isfinite(value) or abs(value) < 1e-12:
            return
        share = objective / value
        self._share = share if self._share is None else self._share
        self._jumps |= abs(share - self._share) > SAME_SHARE * abs(self._share)

    def instead_of(self, losses: Losses) -> Losses:
        """The losses by batch, or, where those cannot be compared, the logged ones by epoch."""
        if not self._jumps or not self._seen or not math.isfinite(self._seen[0]):
            return losses
        if self._n < 2:
            return replace(losses, first=None, last=None, highest=None, key=self.key)
        first, highest, last = self._seen
        if self._share and losses.first is not None:
            # the first batches in the measure of the log: its first epoch has a burst in its mean
            first = min(first, losses.first / self._share)
        is_there = losses.last is not None and math.isfinite(last)
        return replace(
            losses,
            first=first,
            last=last if is_there else None,
            highest=highest if math.isfinite(highest) else None,
            key=self.key,
        )
