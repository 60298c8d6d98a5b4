"""Curves of bounded length, however long the run is."""

import math

MOST_POINTS = 400


class Series:
    """Points (x, y) that are thinned out evenly when there are too many.

    Example:
        >>> curve = Series()
        >>> for step in range(1000):
        ...     curve.add(step, 1.0)
        >>> len(curve.points) <= MOST_POINTS, curve.points[0]
        (True, (0.0, 1.0))
    """

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []
        self._stride = 1
        self._count = 0

    def add(self, x: int | float, y: float) -> None:
        """Take in a point; one that is not finite is dropped."""
        if self._count % self._stride == 0 and math.isfinite(y):
            self.points.append((float(x), float(y)))
            if len(self.points) > MOST_POINTS:
                self.points = self.points[::2]
                self._stride *= 2
        self._count += 1
