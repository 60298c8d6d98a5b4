"""What goes by in every step: losses, gradients, the gate's answers, the scale, the time."""

import math
import statistics
import time
from collections import Counter, deque
from pathlib import Path

import torch
from torch import Tensor

from callbacks.doctoring.graphs import GraphWatch
from callbacks.doctoring.series import Series
from musicnet.diagnosis.evidence import Gating, Losses, Pace, Tally
from musicnet.gate.step_gate import StepReport

DEFERRED = 16
RECENT = 256
OVERFLOW = "overflow"
"""Reason of a veto by which a loss scaler finds its scale."""
GONE = 5
"""Losses in a row that are not finite."""


class LossWatch:
    """The losses as backward gets them; on a device they are read a few at a time."""

    def __init__(self) -> None:
        self.n = self.n_nonfinite = self.hidden = 0
        self.curve = Series()
        self.graphs = GraphWatch()
        self.first: list[float] = []
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._highest: float | None = None
        self._broken_tail = 0
        self._pending: list[tuple[Tensor | float, float]] = []
        self._passed: list[bool] = []
        self._epoch: list[float] = [0.0, 0.0]  # their sum and their number

    def see(self, loss: Tensor, factor: float) -> None:
        """Take a loss in that a backward pass begins with.

        Args:
            loss: a scalar.
            factor: of what it was multiplied by.
        """
        kept = loss.detach()
        value = float(kept) if kept.device.type == "cpu" else kept
        self._pending.append((value, factor))
        self._passed.append(False)

    def looks_broken(self) -> bool:
        """Whether a loss that waits is not finite, or cannot be told without asking a device."""
        if not self._pending:
            return False
        value = self._pending[-1][0]
        if isinstance(value, float):
            return not math.isfinite(value)
        return len(self._pending) >= DEFERRED

    def settle(self, *, was_hidden: bool, weights_are_finite: bool | None) -> None:
        """A batch has ended.

        Args:
            was_hidden: whether its gradients passed for finite: a gate found them so, or the
                optimiser stepped on them.
            weights_are_finite: of a few elements; None if that is not known.
        """
        if not self._pending:
            return
        self._passed[-1] = was_hidden
        if isinstance(self._pending[-1][0], float) or len(self._pending) >= DEFERRED:
            self._drain(weights_are_finite=weights_are_finite)

    def epoch_ends(self, *, weights_are_finite: bool) -> float | None:
        """The mean of the finite losses of the epoch; None if there were none.

        Args:
            weights_are_finite: of a few elements.
        """
        if self._pending:
            self._drain(weights_are_finite=weights_are_finite)
        total, n = self._epoch
        self._epoch = [0.0, 0.0]
        return total / n if n else None

    def _drain(self, *, weights_are_finite: bool | None) -> None:
        """Count the losses that wait."""
        values = [value for value, _ in self._pending]
        if not isinstance(values[-1], float):
            values = torch.stack([torch.as_tensor(one).reshape(()) for one in values]).tolist()
        for value, (_, factor), passed in zip(values, self._pending, self._passed, strict=True):
            hidden = passed and bool(weights_are_finite)
            self._count(float(value) / factor, hidden=hidden)
        self._pending, self._passed = [], []

    def losses(
        self, zero_terms: tuple[Tally, ...], val: tuple[float | None, float | None]
    ) -> Losses:
        """What is known now."""
        tail = list(self._recent)[-max(10, min(50, self.n // 5)) :]
        # what was finite long ago says nothing of now
        last = statistics.median(tail) if tail and self._broken_tail < GONE else None
        return Losses(
            n=self.n,
            n_nonfinite=self.n_nonfinite,
            first=statistics.median(self.first) if self.first else None,
            last=last,
            highest=self._highest,
            zero_terms=zero_terms,
            val_first=val[0],
            val_last=val[1],
        )

    def _count(self, value: float, *, hidden: bool) -> None:
        self.n += 1
        self.curve.add(self.n, value)
        if not math.isfinite(value):
            self.n_nonfinite += 1
            self._broken_tail += 1
            self.hidden += hidden
            return
        self._broken_tail = 0
        self._epoch[0] += value
        self._epoch[1] += 1.0
        if len(self.first) < 3:
            self.first.append(value)
        self._recent.append(value)
        if self.n % 5 == 0 and len(self._recent) >= 5:
            median = statistics.median(list(self._recent)[-5:])
            self._highest = max(median, self._highest or median)


class GateWatch:
    """What a gate, a loss scaler or Lightning's clipping did to the steps."""

    def __init__(self) -> None:
        self.attempts = 0
        self.steps = 0
        self.reasons: Counter[str] = Counter()
        self.norms = Series()
        self.vetoes: list[tuple[float, str]] = []
        self.max_norm: float | None = None
        self._refused = 0
        self._refused_norm: float | None = None
        self._empty: tuple[str, ...] = ()
        self._unused = 0
        self._ratios: deque[float] = deque(maxlen=RECENT)
        self._first_ratios: list[float] = []
        self._scale_first: float | None = None
        self._scale: float | None = None
        self._in_a_row = self._most_in_a_row = 0

    def hear(self, report: StepReport) -> None:
        """A gate has answered."""
        self.attempts += 1
        self.steps += report.stepped
        self.norms.add(self.attempts, report.norm)
        if report.scale_after is not None:
            if self._scale is None:
                self.see_scale(report.scale_before or report.scale_after, stepped=False)
            self.see_scale(report.scale_after, stepped=report.stepped)
        if report.stepped:
            self.see_clip(1.0 / report.clip_coef if report.clip_coef > 0.0 else 1.0)
            return
        reason: str = report.reason
        if report.scale_after is not None and report.scale_after < (report.scale_before or 0.0):
            reason = OVERFLOW
        self.reasons[reason] += 1
        if len(self.vetoes) < 200:
            self.vetoes.append((float(self.attempts), reason))
        is_fit = math.isfinite(report.norm) and report.norm > 0.0
        if is_fit and report.reason not in ("nonfinite", "scaler", "other_rank"):
            self._refused += 1
            self._refused_norm = report.norm
            self._empty = tuple(n for n, v in (report.group_norms or {}).items() if v == 0.0)

    def count_scaled(self, *, stepped: bool) -> None:
        """A batch of a loop with a loss scaler and without a gate has ended."""
        self.attempts += 1
        if not stepped:
            self.reasons[OVERFLOW] += 1

    def see_norm(self, norm: float, step: int, clips_at: float | None) -> None:
        """A gradient norm that no gate reports, before it is clipped."""
        self.norms.add(step, norm)
        if clips_at and math.isfinite(norm):
            self.max_norm = clips_at
            self.see_clip(max(norm / clips_at, 1.0))

    def see_clip(self, ratio: float) -> None:
        """By what a gradient was divided."""
        self._ratios.append(ratio)
        if len(self._first_ratios) < 3:
            self._first_ratios.append(ratio)

    def see_scale(self, scale: float, *, stepped: bool) -> None:
        """The loss scale after an attempt."""
        if self._scale is None:
            self._scale_first = scale
        elif scale < self._scale:
            self._in_a_row += 1
        elif stepped:
            self._in_a_row = 0
        self._most_in_a_row = max(self._most_in_a_row, self._in_a_row)
        self._scale = scale

    def see_unused(self, norm: float) -> None:
        """A gradient that was there while nothing has ever stepped."""
        if math.isfinite(norm) and norm > 0.0:
            self._unused += 1
            self._refused_norm = norm

    def gating(self, hidden: int) -> Gating:
        """What is known now."""
        return Gating(
            vetoes=tuple(Tally(name, count) for name, count in sorted(self.reasons.items())),
            refused_finite=self._refused,
            refused_norm=self._refused_norm,
            empty_groups=self._empty,
            unused_gradients=self._unused,
            clip_ratio=statistics.median(self._ratios) if self._ratios else None,
            clip_samples=len(self._ratios),
            clip_first=statistics.median(self._first_ratios) if self._first_ratios else None,
            max_norm=self.max_norm,
            scale=self._scale,
            scale_first=self._scale_first,
            back_offs=self._most_in_a_row,
            hidden=hidden,
        )


class PaceWatch:
    """Waiting and working, batch by batch, and the memory of the process."""

    def __init__(self) -> None:
        self.step_times = Series()
        self.memory = Series()
        self._waits: deque[float] = deque(maxlen=RECENT)
        self._works: deque[float] = deque(maxlen=RECENT)
        self._started: float | None = None
        self._ended: float | None = None
        self.n = 0
        self._memory_first: float | None = None

    def starts(self) -> None:
        """A batch is there."""
        now = time.perf_counter()
        if self._ended is not None:
            self._waits.append(now - self._ended)
        self._started = now

    def ends(self) -> None:
        """A batch is done."""
        now = time.perf_counter()
        if self._started is not None:
            self.n += 1
            if self.n > 1:  # the first allocates
                self._works.append(now - self._started)
            self.step_times.add(self.n, 1e3 * (now - self._started))
        self._ended = now

    def is_interrupted(self) -> None:
        """Something else comes before the next batch: that is no waiting."""
        self._ended = None

    def pace(self, kept: tuple[int, int]) -> Pace:
        """What is known now; memory is looked at too."""
        memory = resident_mb()
        if memory is not None:
            self.memory.add(self.n, memory)
            if self._memory_first is None and len(self._works) >= 4:
                self._memory_first = memory
        return Pace(
            n=len(self._waits),
            wait_ms=1e3 * statistics.median(self._waits) if self._waits else None,
            step_ms=1e3 * statistics.median(self._works) if self._works else None,
            kept_graphs=kept[0],
            watched_graphs=kept[1],
            memory_first_mb=self._memory_first,
            memory_last_mb=memory,
        )


def resident_mb() -> float | None:
    """Resident memory of this process; None where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * 4096 / 2**20
