"""Terms of the loss: which were never anything but zero?"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch

from musicnet.diagnosis.evidence import Tally

_TERM = re.compile(r"(loss|penalt|regular|(^|[/_.])(reg|aux|kl|kld|term)([/_.]|$))", re.IGNORECASE)
_FIGURE = re.compile(
    r"acc(uracy)?([/_.]|$)|recall|precision|f1|auc|iou|count|frac|rate|ratio|skip|veto|(^|[/_.])(n|num)_",
    re.IGNORECASE,
)
_EVALUATION = re.compile(r"^(val|valid|validation|dev|eval|test)([/_.-]|$)")


class TermWatch:
    """Keeps for every term the batches over which it was seen, for as long as it is zero."""

    def __init__(self) -> None:
        self._zero: dict[str, int] = {}
        self._alive: set[str] = set()
        self._looks: dict[str, int] = {}

    def see_logged(self, metrics: Mapping[str, Any], batches: int) -> None:
        """Look among logged metrics for those that are called a loss or a part of one."""
        for key, value in metrics.items():
            is_one = _TERM.search(key) and not _EVALUATION.match(key)
            if is_one and torch.as_tensor(value).numel() == 1:
                self._see(key, float(value), batches)

    def see_returned(self, terms: Mapping[str, float], batches: int) -> None:
        """Look at what came beside the loss itself."""
        for name, value in terms.items():
            if not _EVALUATION.match(name) and not _FIGURE.search(name):
                self._see(name, value, batches)

    def zero_terms(self) -> tuple[Tally, ...]:
        """Terms that were zero in two looks and more, with the batches that they cover."""
        return tuple(
            Tally(name, batches)
            for name, batches in sorted(self._zero.items())
            if name not in self._alive and self._looks[name] > 1
        )

    def _see(self, name: str, value: float, batches: int) -> None:
        if value != 0.0 or math.isnan(value):
            self._alive.add(name)
        elif self._zero.get(name) != batches:
            self._zero[name] = batches
            self._looks[name] = self._looks.get(name, 0) + 1
