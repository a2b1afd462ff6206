"""What the report's drawings are made of: inline SVG, its colours from the page's style sheet.

A drawing has a fixed width in CSS pixels. The page shows one of two widths, so that text keeps its
size on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from stages.markup import Html, coordinate, el, join, known, short

WIDE, HALF, NARROW = 900, 520, 350
COLOURS = 7
SHAPES = 5  # no common factor with COLOURS: 35 styles before one comes again
CHARACTER = 6.4  # mean width of a character at 12 px, on the safe side
LABEL_GAP = 16

LARGEST = 308.0  # log10 of the largest number there is

MAX_LABELS = 24  # lines in one chart

Points = list[tuple[float, float]]
Band = list[tuple[float, float, float]]


@dataclass(frozen=True)
class Series:
    """A line: its points in order, and its style (the number of the recipe).

    band: (x, lowest, highest) of what the line is the mean of.
    """

    name: str
    points: Points
    style: int
    band: Band = field(default_factory=list)


@dataclass(frozen=True)
class Line:
    """A line without signs in a small drawing; kind: its classes in the style sheet."""

    name: str
    points: Points
    kind: str
    band: Band = field(default_factory=list)


@dataclass(frozen=True)
class Axis:
    """Values to places 0..1. On a log axis what is not positive lies on the lower edge."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def over(cls, values: Iterable[float], log: bool = False, zero: bool = False) -> Axis:
        """An axis that holds all values; zero: from 0. Linear when no value is positive."""
        values = [v for v in values if known(v)]
        positive = [v for v in values if v > 0]
        if log and positive:
            low, high = math.log10(min(positive)), math.log10(max(positive))
            pad = max(0.06 * (high - low), 0.04)
            return cls(low - pad, high + pad, True)
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        if zero:
            low, high = min(low, 0.0), max(high, 0.0)
        if low == high:
            low, high = (
                low - (abs(low) or 1.0) * 0.5 * (not zero or low < 0),
                high + (abs(high) or 1.0) * 0.5,
            )
        pad = 0.03 * (high - low)
        return cls(low if zero and low == 0 else low - pad, high + pad)

    def place(self, value: float) -> float:
        if self.log:
            value = math.log10(value) if value > 0 else self.low
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)

    def ticks(self, about: int = 5) -> list[float]:
        """Round values inside the axis."""
        if not self.log:
            return _linear_ticks(self.low, self.high, about)
        if self.high - self.low < 0.5 and self.high < LARGEST:
            return _linear_ticks(10**self.low, 10**self.high, about)
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        for steps in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
            ticks = [
                step * 10.0**k
                for k in decades
                for step in steps
                if self.low <= k + math.log10(step) <= min(self.high, LARGEST)
            ]
            if len(ticks) <= about + 1:
                break
        if len(ticks) > about + 1:
            ticks = ticks[:: -(-len(ticks) // about)]
        return ticks


def _linear_ticks(low: float, high: float, about: int) -> list[float]:
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


@dataclass(frozen=True)
class Box:
    """Where data is drawn, in pixels, with its two axes."""

    left: float
    top: float
    width: float
    height: float
    x: Axis
    y: Axis

    def at(self, x: float, y: float) -> tuple[float, float]:
        return (
            self.left + self.width * self.x.place(x),
            self.top + self.height * (1 - self.y.place(y)),
        )


def svg(width: float, height: float, alt: str, *children: object) -> Html:
    size = f"0 0 {coordinate(width)} {coordinate(height)}"
    style = f"max-width:{coordinate(width)}px"
    return el("svg", *children, viewbox=size, style=style, role="img", aria_label=alt)


def responsive(draw: Callable[[int], Html], wide: int = WIDE) -> Html:
    """The same drawing for wide and for narrow screens, of which the style sheet shows one."""
    return join([el("div", draw(wide), class_="wide"), el("div", draw(NARROW), class_="narrow")])


def text(x: float, y: float, content: str, kind: str = "", anchor: str | None = None) -> Html:
    return el("text", content, x=float(x), y=float(y), class_=kind or None, text_anchor=anchor)


def path(points: Sequence[tuple[float, float]], kind: str) -> Html:
    steps = " ".join(f"{coordinate(x)} {coordinate(y)}" for x, y in points)
    return el("path", d=f"M{steps}", class_=kind)


def area(box: Box, band: Band, kind: str) -> Html | None:
    """The ground between the lowest and the highest of a band; None where there is none."""
    if len(band) < 2:
        return None
    upper = [box.at(x, high) for x, _, high in band]
    lower = [box.at(x, low) for x, low, _ in reversed(band)]
    steps = " ".join(f"{coordinate(x)} {coordinate(y)}" for x, y in [*upper, *lower])
    return el("path", d=f"M{steps}z", class_=f"area {kind}")


def shortened(name: str, room: float) -> str:
    """A name cut in the middle to at most `room` pixels."""
    fits = max(int(room / CHARACTER), 5)
    if len(name) <= fits:
        return name
    tail = (fits - 1) // 3
    return f"{name[: fits - 1 - tail]}…{name[-tail:]}"


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places moved apart to `gap` at least, in their order, inside low..high if there is room."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = list(places)
    edge = low
    for i in order:
        moved[i] = max(moved[i], edge)
        edge = moved[i] + gap
    edge = high
    for i in reversed(order):
        moved[i] = max(min(moved[i], edge), low)
        edge = moved[i] - gap
    return moved


def marker(style: int, x: float, y: float, radius: float = 4.0, title: str | None = None) -> Html:
    """The sign of a recipe: one of five shapes in one of seven colours."""
    r = radius
    shapes = (
        ((-r, 0), (0, -r), (r, 0), (0, r)),  # replaced by a circle below
        ((-r, -r), (r, -r), (r, r), (-r, r)),
        ((0, -1.25 * r), (1.2 * r, r), (-1.2 * r, r)),
        ((0, -1.4 * r), (1.4 * r, 0), (0, 1.4 * r), (-1.4 * r, 0)),
        ((0, 1.25 * r), (1.2 * r, -r), (-1.2 * r, -r)),
    )
    kind = f"dot c{style % COLOURS}"
    told = el("title", title) if title else None
    shape = style % SHAPES
    if shape == 0:
        return el("circle", told, cx=x, cy=y, r=r, class_=kind)
    corners = " ".join(f"{coordinate(x + dx)},{coordinate(y + dy)}" for dx, dy in shapes[shape])
    return el("polygon", told, points=corners, class_=kind)


def swatch(style: int) -> Html:
    """A recipe's line and sign, to stand before its name."""
    line = path([(0, 6), (24, 6)], f"line c{style % COLOURS}")
    return el(
        "svg",
        line,
        marker(style, 12.0, 6.0),
        viewbox="0 0 24 12",
        class_="swatch",
        aria_hidden="true",
    )


def _tick_room(axis: Axis) -> float:
    """Width that the numbers left of a chart need."""
    return max(len(short(value, 6)) for value in axis.ticks()) * CHARACTER + 20


def _frame(box: Box, x_label: str, y_label: str, about: int) -> Html:
    bottom, right = box.top + box.height, box.left + box.width
    parts = [text(0, 12, y_label, "name")]
    for value in box.y.ticks():
        y = box.at(0, value)[1]
        parts.append(path([(box.left, y), (right, y)], "grid"))
        parts.append(text(box.left - 8, y + 4, short(value, 6), "tick", "end"))
    for value in box.x.ticks(about):
        x = box.at(value, 0)[0]
        parts.append(path([(x, bottom), (x, bottom + 5)], "axis"))
        parts.append(text(x, bottom + 18, short(value, 6), "tick", "middle"))
    parts.append(path([(box.left, bottom), (right, bottom)], "axis"))
    parts.append(text((box.left + right) / 2, bottom + 36, x_label, "name", "middle"))
    return join(parts)


def lines(
    series: Sequence[Series],
    *,
    width: int,
    x_label: str,
    y_label: str,
    alt: str,
    x_axis: Axis,
    y_axis: Axis,
    reference: tuple[float, str] | None = None,
) -> Html:
    """Lines with a sign at each point and the name beside the last, and a dashed line across."""
    wanted = max((len(s.name) for s in series), default=0) * CHARACTER + 30
    room = min(wanted, 0.36 * width)
    height = max(0.38 * width, 270, len(series) * LABEL_GAP + 80)
    left = _tick_room(y_axis)
    box = Box(left, 26, width - left - room, height - 26 - 44, x_axis, y_axis)
    right = box.left + box.width
    parts: list[Html] = [_frame(box, x_label, y_label, max(4, int(box.width / 80)))]
    if reference is not None:
        y = box.at(0, reference[0])[1]
        parts.append(path([(box.left, y), (right, y)], "reference"))
        parts.append(text(box.left + 6, y - 6, reference[1], "tick"))
    ends = [box.at(*s.points[-1]) for s in series]
    heights = spread([y for _, y in ends], LABEL_GAP, box.top + 4, box.top + box.height - 2)
    for s, (x, y), label_y in zip(series, ends, heights, strict=True):
        parts.append(path([(x, y), (right + 4, label_y)], f"leader c{s.style % COLOURS}"))
    parts += [area(box, s.band, f"c{s.style % COLOURS}") for s in series]
    for s in series:
        if len(s.points) > 1:
            parts.append(path([box.at(*p) for p in s.points], f"line c{s.style % COLOURS}"))
    for s in series:
        for x, y in s.points:
            title = f"{s.name}: {y_label} {short(y)} at {short(x)} {x_label}"
            parts.append(marker(s.style, *box.at(x, y), title=title))
    for s, label_y in zip(series, heights, strict=True):
        parts.append(marker(s.style, right + 12, label_y))
        name = shortened(s.name, room - 24)
        told = el("title", s.name) if name != s.name else None
        parts.append(el("text", told, name, x=right + 22.0, y=label_y + 4.0, class_="label"))
    return svg(width, height, alt, *parts)


def panel(
    drawn: Sequence[Line],
    *,
    x_axis: Axis,
    y_axis: Axis,
    x_label: str,
    y_label: str,
    alt: str,
    named: Sequence[Line] = (),
    bounds: Sequence[float] = (),
    reference: tuple[float, str] | None = None,
    width: int = NARROW,
    height: int = 230,
) -> Html:
    """A small drawing of lines, some of them named at their right end.

    bounds: places on the x axis with a line from top to bottom; reference: a line across.
    """
    room = max((min(len(line.name) * CHARACTER + 8, 118) for line in named), default=14)
    left = _tick_room(y_axis)
    box = Box(left, 24, width - left - room, height - 24 - 42, x_axis, y_axis)
    parts: list[Html | None] = [_frame(box, x_label, y_label, max(4, int(box.width / 80)))]
    for value in bounds:
        x = box.at(value, 0)[0]
        parts.append(path([(x, box.top), (x, box.top + box.height)], "bound"))
    if reference is not None:
        y = box.at(0, reference[0])[1]
        parts.append(path([(box.left, y), (box.left + box.width, y)], "reference"))
        parts.append(text(box.left + 4, y - 5, reference[1], "tick"))
    parts += [area(box, line.band, line.kind) for line in drawn]
    for line in drawn:
        steps = " ".join(
            f"{coordinate(x)} {coordinate(y)}" for x, y in (box.at(*p) for p in line.points)
        )
        parts.append(el("path", el("title", line.name), d=f"M{steps}", class_=line.kind))
    ends = [box.at(*max(line.points)) for line in named]
    heights = spread([y for _, y in ends], 14, box.top + 4, box.top + box.height)
    for line, (x, _), y in zip(named, ends, heights, strict=True):
        parts.append(text(x + 5, y + 4, shortened(line.name, room), "tick"))
    return svg(width, height, alt, *parts)


def thinned(values: Sequence, most: int) -> list:
    """At most `most` of the values, evenly chosen, with the first and the last."""
    if len(values) <= most:
        return list(values)
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]
