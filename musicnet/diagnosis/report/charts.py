"""Line charts as inline SVG: series come in, a figure with a text alternative goes out.

Colours and fonts come from the page's style, so that a chart is light or dark as the page is.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 112, 16, 16, 52
N_TICKS = 5
MOST_LINES = 6
MOST_MARKS = 200


@dataclass(frozen=True)
class Line:
    """One series of a chart.

    Args:
        name: in the legend.
        x: rising.
        y: finite.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Chart:
    """What a chart shows.

    Args:
        key: for ids; letters, digits and dashes.
        title: above it.
        x_label: of the horizontal axis.
        y_label: of the vertical axis.
        lines: the series; the first six are drawn.
        marks: places along x with a mark at the foot, such as vetoes.
        mark_name: what the marks are.
        logarithmic: draw the vertical axis so, where all values are positive.
    """

    key: str
    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    marks: tuple[float, ...] = ()
    mark_name: str = ""
    logarithmic: bool = field(default=False)


@dataclass(frozen=True)
class _Axis:
    """From values to pixels."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def place(self, value: float) -> float:
        low, high, value = (
            (math.log10(one) for one in (self.low, self.high, value))
            if self.is_log
            else (self.low, self.high, value)
        )
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.is_log:
            return _decades(self.low, self.high)
        return _round_steps(self.low, self.high)


def figure(chart: Chart) -> str:
    """The chart as an HTML figure; one that has nothing to show says so."""
    lines = [line for line in chart.lines[:MOST_LINES] if line.x]
    if not lines:
        return (
            f'<figure id="{chart.key}"><figcaption>{escape(chart.title)}</figcaption>'
            '<p class="none">Nothing was seen.</p></figure>'
        )
    x_axis, y_axis = _axes(chart, lines)
    parts = [*_grid(chart, x_axis, y_axis)]
    parts += [_marks(chart, x_axis)] if chart.marks else []
    parts += [_path(line, x_axis, y_axis, number) for number, line in enumerate(lines)]
    told = _described(chart, lines)
    return (
        f'<figure id="{chart.key}"><figcaption>{escape(chart.title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{chart.key}-told">'
        f'<title id="{chart.key}-told">{escape(told)}</title>{"".join(parts)}</svg>'
        f"{_legend(chart, lines)}</figure>"
    )


def _axes(chart: Chart, lines: Sequence[Line]) -> tuple[_Axis, _Axis]:
    xs = [x for line in lines for x in (line.x[0], line.x[-1])] + list(chart.marks[:MOST_MARKS])
    ys = [y for line in lines for y in line.y]
    is_log = chart.logarithmic and min(ys) > 0.0 and max(ys) > 3.0 * min(ys)
    low, high = min(ys), max(ys)
    if not is_log:
        margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
        low, high = (low if low == 0.0 else low - margin), high + margin
    else:
        low, high = low / 1.3, high * 1.3
    return (
        _Axis(min(xs), max(xs), float(LEFT), float(WIDTH - RIGHT)),
        _Axis(low, high, float(HEIGHT - BOTTOM), float(TOP), is_log),
    )


def _grid(chart: Chart, x_axis: _Axis, y_axis: _Axis) -> Iterable[str]:
    foot = HEIGHT - BOTTOM
    for tick, told in _told(y_axis.ticks()):
        y = y_axis.place(tick)
        yield f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
        yield f'<text class="tick end" x="{LEFT - 8}" y="{y + 5:.1f}">{told}</text>'
    for tick, told in _told(x_axis.ticks()):
        x = x_axis.place(tick)
        anchor = "end" if x > WIDTH - RIGHT - 30 else "middle"
        yield f'<text class="tick {anchor}" x="{x:.1f}" y="{foot + 20}">{told}</text>'
    yield f'<path class="axis" d="M{LEFT} {TOP}V{foot}H{WIDTH - RIGHT}"/>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield f'<text class="label middle" x="{middle}" y="{HEIGHT - 6}">{escape(chart.x_label)}</text>'
    yield (
        f'<text class="label middle" transform="translate(17 {(TOP + foot) / 2}) rotate(-90)">'
        f"{escape(chart.y_label)}</text>"
    )


def _marks(chart: Chart, x_axis: _Axis) -> str:
    foot = HEIGHT - BOTTOM
    strokes = "".join(f"M{x_axis.place(x):.1f} {foot}v-10" for x in chart.marks[:MOST_MARKS])
    return f'<path class="mark" d="{strokes}"/>'


def _path(line: Line, x_axis: _Axis, y_axis: _Axis, number: int) -> str:
    points = [
        f"{x_axis.place(x):.1f} {y_axis.place(y):.1f}" for x, y in zip(line.x, line.y, strict=True)
    ]
    if len(points) == 1:
        x, y = points[0].split()
        return f'<circle class="dot line{number}" cx="{x}" cy="{y}" r="3"/>'
    return f'<path class="line line{number}" d="M{"L".join(points)}"/>'


def _legend(chart: Chart, lines: Sequence[Line]) -> str:
    items = [
        f'<li><svg class="swatch" viewBox="0 0 28 8" aria-hidden="true">'
        f'<path class="line line{number}" d="M0 4H28"/></svg>{escape(line.name)}</li>'
        for number, line in enumerate(lines)
    ]
    if chart.marks:
        items.append(
            '<li><svg class="swatch" viewBox="0 0 28 8" aria-hidden="true">'
            f'<path class="mark" d="M8 8V0M16 8V0"/></svg>{escape(chart.mark_name)}</li>'
        )
    hidden = len(chart.lines) - MOST_LINES
    if hidden > 0:
        items.append(f"<li>and {hidden} more that are not drawn</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def _described(chart: Chart, lines: Sequence[Line]) -> str:
    """The chart for who cannot see it."""
    told = [
        f"{line.name} from {_number(line.y[0])} to {_number(line.y[-1])}, "
        f"between {_number(min(line.y))} and {_number(max(line.y))}"
        for line in lines
    ]
    if chart.marks:
        told.append(f"{len(chart.marks)} marks: {chart.mark_name}")
    return f"{chart.title}: {'; '.join(told)}."


def _round_steps(low: float, high: float) -> list[float]:
    if not high > low:
        return [low]
    rough = (high - low) / N_TICKS
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(scale * m for m in (1.0, 2.0, 2.5, 5.0, 10.0) if scale * m >= rough)
    first = math.ceil(low / step)
    return [k * step for k in range(first, math.floor(high / step) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten; where they are few, also what lies between them.

    Example:
        >>> _decades(0.02, 300.0), _decades(90.0, 2100.0), _decades(3.2, 12.0)
        ([0.1, 1.0, 10.0, 100.0], [100.0, 200.0, 500.0, 1000.0, 2000.0], [5.0, 10.0])
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    powers = range(first, last + 1, max(1, (last - first) // N_TICKS))
    for factors in ((1,), (1, 2, 5)):
        found = [factor * 10.0**power for power in powers for factor in factors]
        found = [tick for tick in found if low <= tick <= high]
        if len(found) > 2:
            break
    return found if len(found) > 1 else [low * 1.3, high / 1.3]


def _told(ticks: Sequence[float]) -> list[tuple[float, str]]:
    """Ticks with their words: as many digits as tell them apart.

    Example:
        >>> [word for _, word in _told([457.5, 458.0, 458.5])]
        ['457.5', '458', '458.5']
    """
    words = [_number(tick) for tick in ticks]
    for digits in range(4, 8):
        if len(set(words)) == len(words):
            break
        words = [f"{tick:.{digits}g}" for tick in ticks]
    return list(zip(ticks, words, strict=True))


def _number(value: float) -> str:
    """As short as a tick must be.

    Example:
        >>> [_number(value) for value in (0.0, 1200.0, 0.25, 1e-6)]
        ['0', '1200', '0.25', '1e-06']
    """
    return f"{value:.0f}" if 1e3 <= abs(value) < 1e5 else f"{value:.3g}"
