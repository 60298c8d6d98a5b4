"""How the weights move: every step a glance at a few elements, now and then all of them."""

import statistics
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from callbacks.doctoring.fingerprints import Fingerprint
from callbacks.observing import parameters_by_group, total_norm
from musicnet.diagnosis.evidence import Motion
from musicnet.gate.step_gate import group_norms

EARLY = frozenset({1, 2, 3, 5, 8, 13, 20, 30})
EVERY = 100
SHARES_AT_FIRST = 4
GLANCES_AT_FIRST, GLANCE_EVERY = 60, 4
_HALF = (torch.float16, torch.bfloat16)


class MotionWatch:
    """Listens to the optimisers themselves, whoever steps them.

    Args:
        optimizers: raw.
        told: is called with the ratios per group after every measured step.
        tried: calls what it is given and lets no exception out: a step must not fail of it.
    """

    def __init__(
        self,
        optimizers: list[Optimizer],
        told: Callable[[int, dict[str, float]], None],
        tried: Callable[[str, Callable[[], Any]], Any],
    ) -> None:
        self._optimizers = optimizers
        self._told = told
        self._marks = [Fingerprint(_parameters(one)) for one in optimizers]
        self._after: list[Tensor | None] = [None] * len(optimizers)
        self._counts = [0] * len(optimizers)
        self._before: dict[int, dict[str, list[Tensor]]] = {}
        self._ratios: deque[float] = deque(maxlen=64)
        self.largest: float | None = None
        self._n_measured = self._n_still = 0
        self._share: float | None = None
        self._first_norm: float | None = None
        self._growth: float | None = None
        self._foreign = self._foreign_step = 0
        self._suspicions: list[Tensor] = []
        self._is_half = any(p.dtype in _HALF for one in optimizers for p in _parameters(one))
        self._handles: list[RemovableHandle] = []
        for index, optimizer in enumerate(optimizers):
            self._handles.append(
                optimizer.register_step_pre_hook(
                    partial(_quietly, tried, partial(self._starts, index))
                )
            )
            self._handles.append(
                optimizer.register_step_post_hook(
                    partial(_quietly, tried, partial(self._ends, index))
                )
            )

    @property
    def steps(self) -> int:
        """Steps of the optimiser that has made most."""
        return max(self._counts, default=0)

    def close(self) -> None:
        """Listen no more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._before = {}

    def read(self) -> Tensor:
        """The few elements of all optimisers' weights as they are now."""
        marks = [mark.read().float().cpu() for mark in self._marks]
        return torch.cat(marks) if marks else torch.zeros(0)

    def refresh(self) -> None:
        """Glance now: the last step is over, and something else will happen before the next."""
        for index, mark in enumerate(self._marks):
            if self._after[index] is None and self._counts[index]:
                self._after[index] = mark.read()

    def trained(self) -> Tensor | None:
        """The same as the last steps left them; None before every optimiser has stepped."""
        if any(one is None for one in self._after):
            return None
        return torch.cat([one.float().cpu() for one in self._after if one is not None])

    def look_for_writers(self) -> None:
        """Compare the weights with what the last step left: nobody has stepped since."""
        for index in range(len(self._marks)):
            self._compare(index)

    def settle(self) -> None:
        """Look at comparisons that wait on a device."""
        if self._suspicions:
            for changed in torch.stack(self._suspicions).tolist():
                if changed:
                    self._count_foreign(self.steps)
            self._suspicions.clear()

    def motion(self, nonfinite: tuple[str, ...]) -> Motion:
        """What is known now.

        Args:
            nonfinite: parts whose weights are not finite.
        """
        return Motion(
            n_measured=self._n_measured,
            n_still=self._n_still,
            moved_share=self._share,
            is_half=self._is_half,
            ratio_largest=self.largest,
            ratio_median=statistics.median(self._ratios) if self._ratios else None,
            growth=self._growth,
            foreign=self._foreign,
            foreign_step=self._foreign_step,
            nonfinite=nonfinite,
        )

    def _starts(self, index: int) -> None:
        self._compare(index)
        count = self._counts[index] + 1
        if count in EARLY or count % EVERY == 1:
            self._before[index] = _copies(self._optimizers[index])

    def _ends(self, index: int) -> None:
        self._counts[index] += 1
        count = self._counts[index]
        is_due = count <= GLANCES_AT_FIRST or count % GLANCE_EVERY == 0
        self._after[index] = self._marks[index].read() if is_due else None
        before = self._before.pop(index, None)
        if before is not None:
            self._measure(index, before)

    def _compare(self, index: int) -> None:
        after = self._after[index]
        if after is None:
            return
        now = self._marks[index].read()
        if now.device.type != "cpu":
            # asked for now and then: to look at every step would wait for the device
            changed = (now.nan_to_num() != after.nan_to_num()).any()
            self._suspicions.append(changed)
        # what is nan on both sides is as it was
        elif not torch.equal(now, after) and not torch.equal(now.nan_to_num(), after.nan_to_num()):
            self._count_foreign(self._counts[index])
            self._after[index] = now

    def _count_foreign(self, step: int) -> None:
        self._foreign += 1
        self._foreign_step = self._foreign_step or step

    def _measure(self, index: int, before: dict[str, list[Tensor]]) -> None:
        now = parameters_by_group([self._optimizers[index]])
        norms = group_norms(before)
        n_moved = n_all = 0
        with torch.no_grad():
            for name, copies in before.items():
                current = [p.detach() for p in now[name]]
                for copy, one in zip(copies, current, strict=True):
                    copy.sub_(one)
                if self._is_half or self._n_measured < SHARES_AT_FIRST:
                    n_moved += sum(int(torch.count_nonzero(copy)) for copy in copies)
                    n_all += sum(copy.numel() for copy in copies)
        deltas = group_norms(before)
        delta, norm = total_norm(deltas), total_norm(norms)
        self._n_measured += 1
        self._n_still = self._n_still + 1 if delta == 0.0 else 0
        self._share = n_moved / n_all if n_all else self._share
        if delta == 0.0:
            self._share = 0.0
        if norm > 0.0 and delta / norm < float("inf"):
            self._ratios.append(delta / norm)
            self.largest = max(self.largest or 0.0, delta / norm)
            self._first_norm = self._first_norm or norm
            self._growth = norm / self._first_norm
            self._told(
                self.steps, {name: deltas[name] / norms[name] for name in deltas if norms[name] > 0}
            )


def _quietly(tried: Callable[[str, Callable[[], Any]], Any], look: Any, *_: Any) -> None:
    """A hook of an optimiser; it must not return anything, or the step would take it up."""
    tried("weights", look)


def _parameters(optimizer: Optimizer) -> list[Any]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _copies(optimizer: Optimizer) -> dict[str, list[Tensor]]:
    return {
        name: [p.detach().clone() for p in group]
        for name, group in parameters_by_group([optimizer]).items()
    }
