"""The drawings of the report, as inline SVG whose colours come from the page's style sheet.

A drawing has a fixed width in CSS pixels. The page shows one of two widths, so that text keeps its
size on a phone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from stages.markup import Html, coordinate, counted, el, fixed, join, known, short

WIDE, HALF, NARROW = 900, 520, 350
COLOURS = 7
SHAPES = 5  # no common factor with COLOURS: 35 styles before one comes again
CHARACTER = 6.4  # mean width of a character at 12 px, on the safe side
LABEL_GAP = 16

LARGEST = 308.0  # log10 of the largest number there is

MAX_LABELS = 24  # lines in one chart
MAX_CURVES = 32  # loss curves in one panel
MAX_BARS = 24  # experts of a recipe in the timeline
MAX_TICKS = 250  # states of a recipe in the picture of the schedules
MAX_OWNERS = 125  # experts of a recipe whose borders are drawn there


@dataclass(frozen=True)
class Series:
    """A line: its points in order, and its style (the number of the recipe)."""

    name: str
    points: list[tuple[float, float]]
    style: int


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


def loss_curves(
    curves: Sequence[tuple[str, list[tuple[float, float]]]], y_axis: Axis, alt: str
) -> Html:
    """Loss of a recipe's experts, thin lines from faint (cleanest states) to strong (noisiest)."""
    width, height = NARROW, 230
    x_axis = Axis.over([x for _, points in curves for x, _ in points], zero=True)
    named = len(curves) > 1
    room = 78 if named else 14
    left = _tick_room(y_axis)
    box = Box(left, 24, width - left - room, height - 24 - 42, x_axis, y_axis)
    parts: list[Html] = [_frame(box, "images of an expert", "loss", 3)]
    for i, (name, points) in enumerate(curves):
        kind = f"curve r{round(4 * i / max(len(curves) - 1, 1)) if named else 4}"
        steps = " ".join(
            f"{coordinate(x)} {coordinate(y)}" for x, y in (box.at(*p) for p in points)
        )
        parts.append(el("path", el("title", name), d=f"M{steps}", class_=kind))
    if named:
        ends = [curves[0], curves[-1]]
        places = [box.at(*points[-1]) for _, points in ends]
        heights = spread([y for _, y in places], 14, box.top + 4, box.top + box.height)
        for (name, _), (x, _), y in zip(ends, places, heights, strict=True):
            parts.append(text(x + 5, y + 4, shortened(name, room), "tick"))
    return svg(width, height, alt, *parts)


@dataclass(frozen=True)
class Strip:
    """A recipe in the picture of the schedules: log-SNRs, cleanest first."""

    name: str
    style: int
    states: list[float]
    continuous: bool
    owned: list[tuple[int, int]]  # first and last state of each expert
    visited: list[float]  # by sampling


def schedules(strips: Sequence[Strip], width: int) -> Html:
    """A row a recipe along log-SNR: a band an expert, a tick a state, a dot a sampling step."""
    row, top = 64, 8
    height = top + row * len(strips) + 44
    everything = [v for s in strips for v in s.states]
    box = Box(4, top, width - 8, row * len(strips), Axis.over(everything), Axis(0, 1))
    bottom = box.top + box.height
    parts: list[Html] = []
    for value in box.x.ticks(max(5, int(width / 90))):
        x = box.at(value, 0)[0]
        parts.append(path([(x, box.top), (x, bottom)], "grid"))
        parts.append(text(x, bottom + 16, short(value, 6), "tick", "middle"))
    parts.append(text(box.left, bottom + 36, "← noisier", "name"))
    parts.append(text(width / 2, bottom + 36, "log-SNR", "name", "middle"))
    parts.append(text(width - 4, bottom + 36, "cleaner →", "name", "end"))
    for i, strip in enumerate(strips):
        parts.append(_strip(strip, box, box.top + i * row))
    alt = "States of each recipe along log-SNR and the experts that own them: " + "; ".join(
        f"{s.name} {_described(s)}" for s in strips
    )
    return svg(width, height, alt, *parts)


def _described(strip: Strip) -> str:
    states = "continuous" if strip.continuous else counted(len(strip.states), "state")
    return f"{states}, {counted(len(strip.owned), 'expert')}"


def _strip(strip: Strip, box: Box, top: float) -> Html:
    """One recipe: the name, the band with its ticks, the dots of sampling."""
    band, height = top + 20, 22
    name = shortened(strip.name, box.width - 30 * CHARACTER)
    colour = f"c{strip.style % COLOURS}"
    parts = [
        marker(strip.style, box.left + 5.0, top + 10.0),
        el(
            "text",
            el("tspan", name, class_="strong"),
            f"  {_described(strip)}",
            x=box.left + 15.0,
            y=top + 14.0,
            class_="label",
        ),
    ]

    def place(value: float) -> float:
        return box.at(value, 0)[0]

    edges = [place(strip.states[0]) + 4]
    for (_, last), (first, _) in itertools.pairwise(strip.owned):
        edges.append((place(strip.states[last]) + place(strip.states[first])) / 2)
    edges.append(place(strip.states[-1]) - 4)
    if len(strip.owned) <= MAX_OWNERS:
        for i, (right, left) in enumerate(itertools.pairwise(edges)):
            parts.append(
                el(
                    "rect",
                    x=left,
                    y=band,
                    width=max(right - left, 0.5),
                    height=height,
                    class_=f"band b{i % 2} {colour}",
                )
            )
    if not strip.continuous:
        parts.append(_ticks(strip, place, band, height))
    y = coordinate(band + height + 6)
    dots = (f"M{coordinate(place(value))} {y}h0" for value in thinned(strip.visited, MAX_TICKS))
    parts.append(el("path", d="".join(dots), class_="visit"))
    return join(parts)


def _ticks(strip: Strip, place: Callable[[float], float], band: float, height: float) -> Html:
    """Ticks of the states, upper half and lower half by turns from expert to expert."""
    kept = set(thinned(range(len(strip.states)), MAX_TICKS))
    turns: tuple[list[str], list[str]] = ([], [])
    for number, (first, last) in enumerate(strip.owned):
        start = band + 3 + (number % 2) * (height / 2 - 2)
        for i in range(first, last + 1):
            if i in kept:
                x = coordinate(place(strip.states[i]))
                turns[number % 2].append(f"M{x} {coordinate(start)}v{coordinate(height / 2 - 4)}")
    if len(strip.owned) == 1:
        turns = ([t.rpartition("v")[0] + f"v{coordinate(height - 6)}" for t in turns[0]], [])
    return join(
        el("path", d="".join(part), class_=f"state c{strip.style % COLOURS}")
        for part in turns
        if part
    )


@dataclass(frozen=True)
class Work:
    """The training of a recipe: (label, seconds) of each expert, and the two sums."""

    name: str
    style: int
    experts: list[tuple[str, float]]

    @property
    def total(self) -> float:
        return sum(s for _, s in self.experts)

    @property
    def critical(self) -> float:
        return max(s for _, s in self.experts)


def timeline(works: Sequence[Work], width: int) -> Html:
    """Seconds of each recipe twice: experts one after the other, and all at the same time."""
    axis = Axis.over([w.total for w in works], zero=True)
    left, right = 1, 118
    heights = [_bar_height(len(_slowest(w.experts))) for w in works]
    rows = [46 + h * min(len(w.experts), MAX_BARS) for w, h in zip(works, heights, strict=True)]
    box = Box(left, 4, width - left - right, sum(rows), axis, Axis(0, 1))
    bottom = box.top + box.height
    parts: list[Html] = []
    for value in axis.ticks(max(4, int(width / 110))):
        x = box.at(value, 0)[0]
        parts.append(path([(x, box.top), (x, bottom)], "grid"))
        parts.append(text(x, bottom + 16, short(value, 6), "tick", "middle"))
    parts.append(text(box.left + box.width / 2, bottom + 36, "seconds", "name", "middle"))
    top = box.top
    for work, thick, row in zip(works, heights, rows, strict=True):
        parts.append(_work(work, box, top, thick))
        top += row
    alt = "Seconds of training: " + "; ".join(
        f"{w.name} {short(w.total)} in all, {short(w.critical)} on the critical path" for w in works
    )
    return svg(width, bottom + 44, alt, *parts)


def _bar_height(bars: int) -> int:
    return 12 if bars == 1 else 6 if bars <= 12 else 4


def _slowest(experts: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """At most MAX_BARS experts, the slowest ones, in their order."""
    ranked = sorted(range(len(experts)), key=lambda i: -experts[i][1])[:MAX_BARS]
    return [experts[i] for i in sorted(ranked)]


def _work(work: Work, box: Box, top: float, thick: int) -> Html:
    colour = f"c{work.style % COLOURS}"
    parts = [
        marker(work.style, box.left + 5.0, top + 10.0),
        text(box.left + 15, top + 14, shortened(work.name, box.width), "label strong"),
    ]
    y, done = top + 20, 0.0
    turns: tuple[list[str], list[str]] = ([], [])
    for i, (_, seconds) in enumerate(work.experts):
        start, end = box.at(done, 0)[0], box.at(done + seconds, 0)[0]
        done += seconds
        turns[i % 2].append(
            f"M{coordinate(start)} {coordinate(y)}H{coordinate(end)}v12H{coordinate(start)}z"
        )
    for i, part in enumerate(turns):
        if part:
            parts.append(el("path", d="".join(part), class_=f"sum{i} {colour}"))
    several = len(work.experts) > 1
    told = _seconds(work.total) + (" in all" if several else "")
    parts.append(text(box.at(work.total, 0)[0] + 6, y + 10, told, "tick"))
    if not several:
        return join(parts)
    y += 16
    slowest = work.critical
    for name, seconds in _slowest(work.experts):
        end = box.at(seconds, 0)[0]
        title = el("title", f"{name}: {_seconds(seconds)}")
        parts.append(
            el(
                "rect",
                title,
                x=float(box.left),
                y=float(y),
                width=max(end - box.left, 0.5),
                height=thick - 1.0,
                class_=f"each {colour}",
            )
        )
        if seconds == slowest:
            slowest = math.inf  # named once
            told = f"{_seconds(seconds)} critical path"
            parts.append(text(end + 6, y + thick / 2 + 4, told, "tick"))
        y += thick
    return join(parts)


def _seconds(value: float) -> str:
    return f"{fixed([value], most=2)[0]} s"


def thinned(values: Sequence, most: int) -> list:
    """At most `most` of the values, evenly chosen, with the first and the last."""
    if len(values) <= most:
        return list(values)
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]
