"""What the neural method has to keep, beside the methods of the same run.

There are limits for the default task, and for the same surface with unknown symbols in every code.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from musicnet.localization.evaluation import SNR_DB
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.sources import SourceLaw
from musicnet.scene.surface import Surface

DEFAULT_TASK = Scene(ArrayGeometry(8, 8), SourceLaw(), surface=Surface())
"""Limits were set for these scenes, and for data symbols in the place of pilots."""

EIGH64_MS = 0.24
"""Where the limits of times were set; others scale them by their own."""


JUDGED = "neural"

Row = Mapping[str, Any]

_ALL = (1, 2, 3, 4)
_CLEAR = (5.0, 10.0, 20.0)
_NOISY = (-5.0, 0.0)


@dataclass(frozen=True)
class Limit:
    """A limit on one figure of one method.

    Args:
        point: number of the requirement.
        n_sources: of the cells that it is about.
        snr_db: of the cells.
        column: of the table.
        high: most that it may read.
        low: least that it may read.
        of: method whose figure multiplies both; None takes them as they are.
        is_strict: equal is not enough.
        beyond_interval: broken only if the whole interval of the figure lies above.
        judged: the method.
    """

    point: int
    n_sources: tuple[int, ...]
    snr_db: tuple[float, ...]
    column: str
    high: float = math.inf
    low: float = -math.inf
    of: str | None = None
    is_strict: bool = False
    beyond_interval: bool = False
    judged: str = JUDGED

    def applies(self, row: Row) -> bool:
        """Whether it is about the cell of a row."""
        return row["n_sources"] in self.n_sources and row["snr_db"] in self.snr_db

    def holds(self, rows: Mapping[str, Row]) -> bool:
        """Whether the method keeps it; what is no number does not.

        Args:
            rows: method -> its row in one cell.
        """
        row = rows[self.judged]
        value = row[f"{self.column}_interval"][0] if self.beyond_interval else row[self.column]
        if self.beyond_interval and math.isnan(value):  # there is nothing to be worse at
            return True
        low, high = self.bounds(rows)
        if value is None or math.isnan(value) or math.isnan(high):
            return False
        inside: bool = low < value < high if self.is_strict else low <= value <= high
        return inside

    def bounds(self, rows: Mapping[str, Row]) -> tuple[float, float]:
        """Least and most in one cell."""
        if self.of is None:
            return self.low, self.high
        unit = rows[self.of][self.column]
        scaled = (bound if math.isinf(bound) else bound * unit for bound in (self.low, self.high))
        low, high = scaled
        return low, high

    def said(self) -> str:
        """The limit in words."""
        of = f" x {self.of}" if self.of else ""
        equal = "" if self.is_strict else "="
        parts = []
        if self.low > -math.inf:
            parts.append(f">{equal} {self.low:g}{of}")
        if self.high < math.inf:
            parts.append(f"<{equal} {self.high:g}{of}")
        beyond = ", beyond the interval" if self.beyond_interval else ""
        whose = "" if self.judged == JUDGED else f"{self.judged}: "
        return f"{whose}{self.column} {' and '.join(parts)}{beyond}"


LIMITS = (
    Limit(1, (4,), _CLEAR, "outliers", 0.25, of="nomp"),
    Limit(1, (4,), _CLEAR, "outliers", 1.0, of="multistart"),
    Limit(1, (4,), _CLEAR, "cpu_ms_per_scene", 0.6, of="nomp"),
    Limit(2, (1, 2), SNR_DB, "outliers_less_nomp", 0.0, beyond_interval=True),
    # both end at the same maximum, up to single precision
    Limit(2, (1, 2), SNR_DB, "median_over_nomp", 1.001, beyond_interval=True),
    Limit(2, (3,), _CLEAR, "outliers", 0.5, of="nomp"),
    # with one or two sources nothing can be better: the limits of item 2 are all there is
    Limit(3, (3, 4), _NOISY, "outliers", 1.0, of="nomp"),
    Limit(3, (3, 4), _NOISY, "median", 1.0, of="nomp", is_strict=True),
    Limit(4, _ALL, (10.0, 20.0), "efficiency", 1.08),
    Limit(5, _ALL, SNR_DB, "count_right", low=1.0, of="nomp"),
    Limit(5, (3, 4), SNR_DB, "gospa", 1.0, of="nomp", is_strict=True),
    Limit(6, _ALL, _CLEAR, "nees_xyz", 1.2, low=0.85),
)
"""Times are held against those of the same run: they need no scaling by the machine."""

DATA_LIMITS = (
    Limit(6, (4,), (20.0,), "outliers", 0.10),
    Limit(6, _ALL, SNR_DB, "cpu_ms_per_scene", 20.0),
    Limit(6, _ALL, SNR_DB, "outliers_less_nomp", 0.0, beyond_interval=True),
    # what is known of symbols counts where they are faint
    Limit(6, (4,), _NOISY, "outliers", 1.0, of="nomp"),
    Limit(6, (4,), _NOISY, "outliers", 1.0, of="multistart"),
    Limit(6, (2, 3), (-5.0,), "outliers", 1.0, of="nomp"),
    Limit(6, (2, 3), (-5.0,), "outliers", 1.0, of="multistart"),
    Limit(6, _ALL, _NOISY, "median", 1.0, of="nomp", is_strict=True),
    Limit(6, (3, 4), SNR_DB, "cpu_ms_per_scene", 1.0, of="multistart"),
)


def limits_of(scene: Scene, eigh64_ms: float = EIGH64_MS) -> tuple[Limit, ...]:
    """What weights of a scene have to keep, however often training drew each number of sources.

    Args:
        scene: what they were trained for.
        eigh64_ms: of this machine.

    Returns:
        Limits, those of milliseconds scaled; none for other scenes.
    """
    plain = replace(scene, sources=replace(scene.sources, count_weights=None))
    if plain == DEFAULT_TASK:
        return LIMITS
    if plain != replace(DEFAULT_TASK, symbols="data"):
        return ()
    pace = eigh64_ms / EIGH64_MS
    return tuple(
        replace(one, high=one.high * pace)
        if one.column == "cpu_ms_per_scene" and one.of is None
        else one
        for one in DATA_LIMITS
    )


def verdict(rows: Mapping[str, Row], limits: tuple[Limit, ...] = LIMITS) -> dict[str, Any]:
    """The limits of one cell, and whether the neural method keeps them.

    A limit on what another method has is not asked for where that takes no part.

    Args:
        rows: method -> its row.
        limits: all that there are.

    Returns:
        ``limits`` and ``holds``, both None where nothing is asked.
    """
    asked = [
        limit
        for limit in limits
        if limit.applies(rows[JUDGED]) and (limit.of is None or limit.of in rows)
    ]
    if not asked:
        return {"limits": None, "holds": None}
    said = [
        {
            "item": limit.point,
            "limit": limit.said(),
            "bounds": list(limit.bounds(rows)),
            "holds": limit.holds(rows),
        }
        for limit in asked
    ]
    return {"limits": said, "holds": all(one["holds"] for one in said)}
