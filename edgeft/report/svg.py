"""Charts as inline SVG. Colours are classes that the page's style defines for light and dark."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from edgeft.report.axes import Axis

WIDTH, HEIGHT = 360, 240  # as wide as a phone, so that text is of one size on every screen
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 42
ROW = 34  # height of a row of a chart of rows
LETTER, LINE = 6.9, 15  # width of a letter and height of a line of the chart's text, about
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


@dataclass(frozen=True)
class Dot:
    """A point of a chart; `interval` is along y."""

    x: float
    y: float
    kind: str
    name: str = ""
    interval: Sequence[float] | None = None


def chart(title: str, x: Axis, y: Axis, marks: Iterable[str], *, legend: Sequence[tuple[str, str]] = ()) -> str:
    """A figure with two axes; `legend` pairs a class with its meaning. `title` is what a reader without eyes gets."""
    parts = [*_y_axis(y), *_x_axis(x, HEIGHT - BOTTOM), *marks]
    return _figure(title, HEIGHT, parts, legend)


def rows_chart(title: str, x: Axis, rows: Sequence[tuple[str, float, Sequence[float] | None, str]]) -> str:
    """For each (name, value, interval or None, class) the name and below it a dot with its interval, as wide as the
    chart."""
    height = TOP + ROW * len(rows) + BOTTOM
    parts = _x_axis(x, height - BOTTOM, left=RIGHT)
    for place, (name, value, interval, kind) in enumerate(rows):
        top = TOP + ROW * place
        at = top + ROW - 10
        parts.append(f'<text class="name" x="{RIGHT}" y="{top + LINE - 2}">{_short(name)}</text>')
        if interval:
            low, high = (_across(x, min(max(end, x.low), x.high), RIGHT) for end in interval)
            parts.append(f'<line class="whisker {kind}" x1="{low:.1f}" x2="{high:.1f}" y1="{at}" y2="{at}"/>')
        dot = _across(x, min(max(value, x.low), x.high), RIGHT)
        parts.append(f'<circle class="dot {kind}" cx="{dot:.1f}" cy="{at}" r="4.5"/>')
    return _figure(title, height, parts, ())


def line(x: Axis, y: Axis, points: Sequence[Sequence[float]], kind: str) -> str:
    """Points joined in their order."""
    places = " ".join(f"{_across(x, a):.1f},{_down(y, b):.1f}" for a, b in points)
    return f'<polyline class="line {kind}" points="{places}"/>'


def bars(x: Axis, y: Axis, edges: Sequence[float], counts: Sequence[float], kind: str) -> str:
    """A histogram."""
    floor = HEIGHT - BOTTOM
    return "".join(
        f'<rect class="bar {kind}" x="{_across(x, low):.1f}" y="{_down(y, count):.1f}" '
        f'width="{max(_across(x, high) - _across(x, low) - 0.5, 0.5):.1f}" height="{floor - _down(y, count):.1f}"/>'
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
        if count
    )


def rule(x: Axis, value: float, text: str, *, row: int = 0) -> str:
    """A line down the chart with a few words at its top, `row` lines down."""
    at = _across(x, value)
    anchor, beside = ("end", at - 4) if at > WIDTH * 0.7 else ("start", at + 4)
    return (
        f'<line class="rule" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        f'<text class="mark" x="{beside:.1f}" y="{TOP + 10 + 13 * row}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def dots(x: Axis, y: Axis, points: Sequence[Dot]) -> list[str]:
    """Points with their names and their intervals along y; names keep clear of points and of each other."""
    parts = []
    centres = [(_across(x, point.x), _down(y, point.y)) for point in points]
    for point, (across, down) in zip(points, centres, strict=True):
        if point.interval:
            low, high = (_down(y, min(max(end, y.low), y.high)) for end in point.interval)
            ends = f'x1="{across:.1f}" x2="{across:.1f}" y1="{low:.1f}" y2="{high:.1f}"'
            parts.append(f'<line class="whisker {point.kind}" {ends}/>')
        parts.append(f'<circle class="dot {point.kind}" cx="{across:.1f}" cy="{down:.1f}" r="5"/>')
    taken = [(across - 6, down - 6, across + 6, down + 6) for across, down in centres]
    for point, centre in zip(points, centres, strict=True):
        if point.name:
            box = _free_place(centre, LETTER * len(point.name), taken)
            taken.append(box)
            parts.append(f'<text class="name" x="{box[0]:.1f}" y="{box[3] - 3:.1f}">{escape(point.name)}</text>')
    return parts


def _free_place(centre: tuple[float, float], width: float, taken: Sequence[Box]) -> Box:
    """Where words of this width overlap least with what is drawn: beside a point, under or over it, and near it."""
    across, down = centre
    sides = (across + 8, across - 8 - width, across - width / 2)
    lefts = [left for left in sides if LEFT < left < WIDTH - RIGHT - width] or [LEFT]
    shifts = sorted((way * step - LINE / 2 for step in range(0, 5 * LINE, LINE // 2) for way in (1, -1)), key=abs)
    places = [
        (left, down + shift, left + width, down + shift + LINE)
        for shift in shifts
        for left in lefts
        if TOP - 4 <= down + shift <= HEIGHT - BOTTOM - LINE
    ]
    return min(places, key=lambda place: sum(_overlap(place, other) for other in taken))


def _overlap(a: Box, b: Box) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return wide * high if wide > 0 and high > 0 else 0.0


def _figure(title: str, height: float, parts: Iterable[str], legend: Sequence[tuple[str, str]]) -> str:
    keys = "".join(f'<li><svg class="key" viewBox="0 0 18 10" aria-hidden="true"><line class="line {kind}" x1="0" '
                   f'x2="18" y1="5" y2="5"/></svg>{escape(name)}</li>' for kind, name in legend)  # fmt: skip
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>{f"<ul class=keys>{keys}</ul>" if keys else ""}</figure>'
    )


def _x_axis(x: Axis, floor: float, left: int = LEFT) -> list[str]:
    parts = []
    for tick in x.ticks():
        at = _across(x, tick, left)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{floor}"/>')
        parts.append(f'<text class="tick" x="{at:.1f}" y="{floor + 15}" text-anchor="middle">{x.write(tick)}</text>')
    middle = (left + WIDTH - RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{floor + 34}" text-anchor="middle">{escape(x.label)}</text>')
    return parts


def _y_axis(y: Axis) -> list[str]:
    parts = []
    for tick in y.ticks():
        at = _down(y, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{y.write(tick)}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text class="axis" transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">'
        f"{escape(y.label)}</text>"
    )
    return parts


def _across(x: Axis, value: float, left: int = LEFT) -> float:
    return left + x.place(value) * (WIDTH - RIGHT - left)


def _down(y: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - y.place(value) * (HEIGHT - BOTTOM - TOP)


def _short(text: str, most: int = 46) -> str:
    return escape(text if len(text) <= most else text[: most - 1] + "…")
