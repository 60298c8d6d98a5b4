"""The optional spike rule: a norm far above what this run has seen lately vetoes its step.

Norms of gradients are spread like their logarithms, so that is where mean and deviation are taken.
"""

import math
from collections import deque
from dataclasses import dataclass

from musicnet.gate.settings import check_count


@dataclass(frozen=True)
class SpikeRule:
    """When a norm is a spike.

    Args:
        deviations: Standard deviations of the logarithm that a spike lies above the mean.
        least_ratio: A norm below so many times the geometric mean is no spike, however calm the
            run has been.
        window: Norms that mean and deviation are taken over.
        after: Norms that have to be seen before any can be a spike.

    Raises:
        ValueError: a number is not finite, not whole where it counts, or out of range.
    """

    deviations: float = 6.0
    least_ratio: float = 4.0
    window: int = 128
    after: int = 32

    def __post_init__(self) -> None:
        for name, least in (("deviations", 0.0), ("least_ratio", 1.0)):
            value = getattr(self, name)
            if not least < value < math.inf:
                raise ValueError(f"{name} must be finite and > {least:g}: got {value}.")
        check_count("window", self.window, least=2)
        check_count("after", self.after, least=2)
        if self.after > self.window:
            raise ValueError(
                "after must not exceed window, or no norm could ever be a spike: got "
                f"after={self.after}, window={self.window}."
            )


class NormHistory:
    """The norms that a run has seen lately, and whether the next one fits them.

    A spike comes into the history at the limit that it broke: a single one hardly moves that
    limit, while a run that has come to larger gradients for good is let through after some vetoes.

    Args:
        rule: What counts as a spike.

    Example:
        >>> history, spikes = NormHistory(SpikeRule(after=4)), []
        >>> for norm in (1.0, 1.1, 0.9, 1.0, 3.0, 90.0, 1.0):
        ...     if history.is_spike(norm):
        ...         spikes.append(norm)
        ...     history.take(norm)
        >>> spikes
        [90.0]
    """

    def __init__(self, rule: SpikeRule) -> None:
        self.rule = rule
        self._logarithms: deque[float] = deque(maxlen=rule.window)

    def is_spike(self, norm: float) -> bool:
        """Tell whether a norm, finite and above 0, is far above those before it."""
        return math.log(norm) > self._limit()

    def take(self, norm: float) -> None:
        """Remember a norm, finite and above 0."""
        self._logarithms.append(min(math.log(norm), self._limit()))

    def state_dict(self) -> list[float]:
        """Give the logarithms, oldest first."""
        return list(self._logarithms)

    def load_state_dict(self, logarithms: list[float]) -> None:
        """Take the history up where `state_dict` left it."""
        self._logarithms = deque(logarithms, maxlen=self.rule.window)

    def _limit(self) -> float:
        """Give the largest logarithm that is no spike."""
        seen = self._logarithms
        if len(seen) < self.rule.after:
            return math.inf
        mean = math.fsum(seen) / len(seen)
        deviation = math.sqrt(math.fsum((one - mean) ** 2 for one in seen) / len(seen))
        return mean + max(self.rule.deviations * deviation, math.log(self.rule.least_ratio))
