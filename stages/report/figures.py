"""The report's figures, drawn by matplotlib: SVG in the page, in its colours, and files for papers.

Lengths are CSS pixels, which are matplotlib's points at 72 dots an inch. A figure is drawn in the
light colours; in the page each of them is replaced by the variable of that name, so that dark pages
are dark. Whatever depends on the room for it takes the width as an argument.
"""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from pipeline.files import replacing
from stages.numbers import fixed, known, short

WIDE, HALF, NARROW = 900, 520, 350
CHARACTER = 6.6  # mean width of a character at 12 px, on the safe side
LABEL_GAP = 16
MAX_LABELS = 24  # lines in one chart
MAX_TICKS = 250  # states of a recipe
MAX_OWNERS = 125  # experts of a recipe, or intervals, whose borders are drawn
MAX_NUMBERED = 8  # bounds of a recipe that are written as numbers
MAX_BARS = 24  # experts of a recipe in the timeline
MAX_CURVES = 32  # loss curves in one panel

# Seven colours that differ in lightness as well as in hue, so that they stay apart in the common
# forms of colour blindness, and five shapes: 35 styles before one comes again.
COLOURS = tuple(f"p{i}" for i in range(7))
SHAPES = {  # matplotlib's markers, and the same in a box of 24 by 12
    "o": "M16 6a4 4 0 1 1-8 0a4 4 0 1 1 8 0z",
    "s": "M8 2h8v8H8z",
    "^": "M12 1l4.8 9H7.2z",
    "D": "M12 .4l5.6 5.6-5.6 5.6L6.4 6z",
    "v": "M12 11l4.8-9H7.2z",
}
SHADES = tuple(f"r{i}" for i in range(5))  # from faint to strong
LIGHT = {
    **{"paper": "#ffffff", "ink": "#1b1d21", "muted": "#5b616b", "rule": "#d9dce1"},
    **{"p0": "#1a73c2", "p1": "#b23a08", "p2": "#138a63", "p3": "#54207c", "p4": "#ad8c14"},
    **{"p5": "#2b2b2b", "p6": "#cf5a96"},
    **{"r0": "#9cc4e4", "r1": "#68a3d2", "r2": "#3b80b8", "r3": "#1d5c92", "r4": "#0b3a63"},
}
HEAT = LinearSegmentedColormap.from_list("heat", ["#1a5fa8", "#f7f7f5", "#b03010"])
HEAT_LINE = "#111111"  # on the same ground in light and dark pages

_STYLE = {
    "font.family": ["DejaVu Sans"],  # part of matplotlib, so the same everywhere
    "font.size": 12,
    "text.color": LIGHT["ink"],
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "tspace",
    "pdf.fonttype": 42,
    "image.interpolation": "nearest",
}
_VARIABLES = {value: f"var(--{name})" for name, value in LIGHT.items()}
_TITLE = "title:"  # before what a reader is told of a mark: the id of its group in the SVG


@dataclass(frozen=True)
class Style:
    """How a recipe is drawn wherever it is: its number gives a colour and a shape."""

    number: int = 0

    @property
    def colour(self) -> str:
        return COLOURS[self.number % len(COLOURS)]

    @property
    def shape(self) -> str:
        return list(SHAPES)[self.number % len(SHAPES)]

    @property
    def outline(self) -> str:
        """Its shape as the path of an SVG, 24 by 12."""
        return SHAPES[self.shape]


@dataclass(frozen=True)
class Scale:
    """What an axis spans. On a log scale what is not positive lies on the lower edge."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def over(cls, values: Iterable[float], log: bool = False, zero: bool = False) -> Scale:
        """One that holds all values; zero: from 0. Linear when no value is positive."""
        values = [v for v in values if known(v)]
        positive = [v for v in values if v > 0]
        if log and positive:
            low, high = math.log10(min(positive)), math.log10(max(positive))
            pad = max(0.06 * (high - low), 0.04)
            return cls(10.0 ** max(low - pad, -306), 10.0 ** min(high + pad, 306), True)
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        if zero:
            low, high = min(low, 0.0), max(high, 0.0)
        if low == high:
            more = (abs(high) or 1.0) * 0.5
            low, high = (low if zero and low == 0 else low - more), high + more
        pad = 0.03 * (high - low)
        return cls(low if zero and low == 0 else low - pad, high + pad)

    def ticks(self, about: int = 5) -> list[float]:
        """Round values on the axis."""
        if not self.log or self.high < 3 * self.low:
            found = MaxNLocator(about, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
            return [float(value) for value in found if self.low <= value <= self.high]
        decades = range(math.floor(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
        for steps in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
            found = [step * 10.0**k for k in decades for step in steps]
            found = [value for value in found if self.low <= value <= self.high]
            if len(found) <= about + 1:
                return found
        return found[:: -(-len(found) // about)]


@dataclass(frozen=True)
class Line:
    """A line of a chart; band: (x, lowest, highest) of what it is the mean of.

    sign: the style whose shape marks each point, with what is told of it.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    width: float = 1.4
    band: Sequence[tuple[float, float, float]] = ()
    sign: Style | None = None


@dataclass(frozen=True)
class Drawing:
    """A figure of any width; alt: what it shows, in words; wide: its width where there is room."""

    alt: str
    title: str = field(default="", kw_only=True)
    wide: int = field(default=WIDE, kw_only=True)

    def height(self, width: int) -> float:
        raise NotImplementedError

    def draw(self, part: Any, width: int) -> None:
        """Draw into a matplotlib figure or a part of one."""
        raise NotImplementedError


def _axes(drawing: Drawing, part: Any, width: float, box: Sequence[float], x: Scale, y: Scale):
    """Bare axes; box: left, right, top and bottom margins."""
    height, (left, right, top, bottom) = drawing.height(width), box
    axes = part.add_axes(
        (
            left / width,
            bottom / height,
            (width - left - right) / width,
            (height - top - bottom) / height,
        )
    )
    for scale, name in ((x, "x"), (y, "y")):
        axes.set(**{f"{name}scale": "log" if scale.log else "linear"})
        axes.set(**{f"{name}lim": (scale.low, scale.high)})
        axis = getattr(axes, f"{name}axis")
        axis.set_major_locator(NullLocator())
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: short(value, 6)))
    axes.spines[:].set_visible(False)
    axes.patch.set_visible(False)
    axes.tick_params(colors=LIGHT["muted"], labelsize=11.5, length=0, pad=6)
    return axes


def _x_axis(axes: Any, width: float, scale: Scale, label: str) -> None:
    axes.xaxis.set_major_locator(FixedLocator(scale.ticks(max(5, int(width / 90)))))
    axes.set_xlabel(label, color=LIGHT["muted"], labelpad=6)


def _grid(axes: Any, axis: str) -> None:
    axes.grid(axis=axis, color=LIGHT["rule"], linewidth=1)
    axes.set_axisbelow(True)


def _sign(part: Any, style: Style, x: float, y: float, size: float = 8) -> None:
    part.add_artist(
        Line2D(
            [x],
            [y],
            transform=part.transSubfigure,
            **_marks(style, size),
        )
    )


def _marks(style: Style, size: float = 8) -> dict[str, Any]:
    shape = style.shape
    return {
        "marker": shape,
        "markersize": size * (0.94 if shape in "sD" else 1.12 if shape in "^v" else 1),
        "markerfacecolor": LIGHT[style.colour],
        "markeredgecolor": LIGHT["paper"],
        "markeredgewidth": 1,
        "linestyle": "none",
    }


def shortened(name: str, room: float) -> str:
    """A name cut in the middle to at most `room` pixels."""
    fits = max(int(room / CHARACTER), 5)
    if len(name) <= fits:
        return name
    tail = (fits - 1) // 3
    return f"{name[: fits - 1 - tail]}…{name[-tail:]}"


def apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places moved to `gap` apart at least, in their order, inside low..high if there is room."""
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


def thinned(values: Sequence, most: int) -> list:
    """At most `most` of the values, evenly chosen, with the first and the last."""
    if len(values) <= most:
        return list(values)
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


@dataclass(frozen=True)
class Chart(Drawing):
    """Lines over two axes, each with its name at its right end where `named`.

    reference: a dashed line across with its label; bounds: places with a line from top to bottom.
    """

    lines: Sequence[Line]
    x: Scale
    y: Scale
    x_label: str
    y_label: str
    named: Sequence[Line] = ()
    reference: tuple[float, str] | None = None
    bounds: Sequence[float] = ()

    def height(self, width: int) -> float:
        least = len(self.named) * LABEL_GAP + 80
        return max(0.38 * width if width > NARROW else 0.66 * width, 230, least)

    def draw(self, part: Any, width: int) -> None:
        signs = any(line.sign for line in self.named)
        wanted = max((len(line.name) for line in self.named), default=0) * CHARACTER
        room = min(wanted + (30 if signs else 10), 0.36 * width) if self.named else 14
        left = max(len(short(v, 6)) for v in self.y.ticks()) * CHARACTER + 14
        axes = _axes(self, part, width, (left, room, 26, 44), self.x, self.y)
        _x_axis(axes, width - left - room, self.x, self.x_label)
        axes.yaxis.set_major_locator(FixedLocator(self.y.ticks()))
        axes.spines["bottom"].set(visible=True, color=LIGHT["muted"], linewidth=1)
        axes.tick_params(axis="x", length=5, pad=4)
        axes.tick_params(axis="y", pad=8)
        _grid(axes, "y")
        part.text(0, 1 - 12 / self.height(width), self.y_label, color=LIGHT["muted"])
        for place in self.bounds:
            axes.axvline(place, color=LIGHT["ink"], linewidth=1.1, dashes=(2, 3))
        if self.reference is not None:
            value, label = self.reference
            axes.axhline(value, color=LIGHT["muted"], linewidth=1.3, dashes=(5, 3))
            axes.annotate(
                label,
                (0, value),
                (6, 5),
                xycoords=axes.get_yaxis_transform(),
                textcoords="offset points",
                color=LIGHT["muted"],
                fontsize=11.5,
            )
        for line in self.lines:
            self._line(axes, line)
        self._names(part, axes, width, room)

    def _place(self, values: Iterable[float], scale: Scale) -> np.ndarray:
        found = np.array(list(values), float)
        return np.maximum(found, scale.low) if scale.log else found

    def _line(self, axes: Any, line: Line) -> None:
        colour = LIGHT[line.colour]
        if len(line.band) > 1:
            at, low, high = (self._place(v, self.y) for v in zip(*line.band, strict=True))
            axes.fill_between(at, low, high, color=colour, alpha=0.16, linewidth=0)
        xs, ys = ([p[i] for p in line.points] for i in (0, 1))
        (drawn,) = axes.plot(
            self._place(xs, self.x), self._place(ys, self.y), color=colour, linewidth=line.width
        )
        drawn.set(solid_joinstyle="round", gid=f"{_TITLE}{line.name}")
        if line.sign is None:
            return
        for x, y in line.points:
            told = f"{line.name}: {self.y_label} {short(y)} at {short(x)} {self.x_label}"
            axes.plot(
                self._place([x], self.x),
                self._place([y], self.y),
                gid=f"{_TITLE}{told}",
                clip_on=False,
                zorder=3,
                **_marks(line.sign),
            )

    def _names(self, part: Any, axes: Any, width: int, room: float) -> None:
        """The names at the right, moved apart, each with a dotted line from the end of its own."""
        height, box = self.height(width), axes.get_position()
        size, right = (width, height), box.x1 * width
        ends = []
        for line in self.named:
            x, y = max(line.points)
            place = [*self._place([x], self.x), *self._place([y], self.y)]
            shown = part.transSubfigure.inverted().transform(axes.transData.transform(place))
            ends.append(shown * size)
        low, high = box.y0 * height + 2, box.y1 * height - 4
        heights = apart([y for _, y in ends], LABEL_GAP, low, high)
        for line, (x, y), label_y in zip(self.named, ends, heights, strict=True):
            colour, signed = LIGHT[line.colour], line.sign is not None
            leader = Line2D([x / width, (right + 3) / width], [y / height, label_y / height])
            leader.set(transform=part.transSubfigure, color=colour, linewidth=1, dashes=(1, 3))
            part.add_artist(leader)
            if signed:
                _sign(part, line.sign, (right + 12) / width, label_y / height)
            name = shortened(line.name, room - (24 if signed else 4))
            told = {"gid": f"{_TITLE}{line.name}"} if name != line.name else {}
            at = (right + (22 if signed else 5)) / width
            size_ = 12 if signed else 11.5
            part.text(at, label_y / height, name, va="center_baseline", fontsize=size_, **told)


@dataclass(frozen=True)
class Strip:
    """A recipe along log-SNR: its bands (noisy end, clean end), cleanest first, and marks.

    states: the trained ones of each band; visited: by sampling; bounds: written as numbers.
    """

    name: str
    style: Style
    told: str
    bands: Sequence[tuple[float, float]]
    states: Sequence[Sequence[float]] = ()
    visited: Sequence[float] = ()
    bounds: Sequence[float] = ()


@dataclass(frozen=True)
class Strips(Drawing):
    """A row per recipe along log-SNR: a band per expert or interval, a tick per state."""

    strips: Sequence[Strip]

    ROW: ClassVar[int] = 62

    def height(self, width: int) -> float:
        return self.ROW * len(self.strips) + 52

    def draw(self, part: Any, width: int) -> None:
        scale = Scale.over([v for s in self.strips for band in s.bands for v in band])
        rows = Scale(0, self.ROW * len(self.strips))
        axes = _axes(self, part, width, (4, 4, 8, 44), scale, rows)
        _x_axis(axes, width, scale, "log-SNR")
        _grid(axes, "x")
        for x, text in ((0, "← noisier"), (1, "cleaner →")):
            align = "left" if x == 0 else "right"
            part.text(x, 10 / self.height(width), text, ha=align, color=LIGHT["muted"])
        for number, strip in enumerate(self.strips):
            self._strip(axes, strip, self.ROW * (len(self.strips) - number), width)

    def _strip(self, axes: Any, strip: Strip, top: float, width: int) -> None:
        colour, thick = LIGHT[strip.style.colour], 21
        across = axes.get_yaxis_transform()
        axes.plot([6 / width], [top - 10], transform=across, clip_on=False, **_marks(strip.style))
        name = shortened(strip.name, width - (len(strip.told) + 6) * CHARACTER)
        axes.text(17 / width, top - 14, name, transform=across, weight="bold")
        axes.text(1, top - 14, strip.told, transform=across, ha="right", color=LIGHT["muted"])
        low = top - 20 - thick
        if len(strip.bands) <= MAX_OWNERS:
            for i, (noisy, clean) in enumerate(strip.bands):
                size = (max(clean - noisy, 1e-9), thick)
                shade = {"facecolor": colour, "alpha": (0.12, 0.27)[i % 2], "linewidth": 0}
                axes.add_patch(Rectangle((noisy, low), *size, **shade))
        every = [state for own in strip.states for state in own]
        kept, several = {*thinned(every, MAX_TICKS)}, len(strip.states) > 1
        for i, own in enumerate(strip.states):
            shown = [state for state in own if state in kept]
            ends = (low + (10 if i % 2 == 0 else 2), low + (19 if i % 2 == 0 else 11))
            axes.vlines(shown, *(ends if several else (low + 3, low + 18)), colour, linewidth=1.5)
        visited = thinned(strip.visited, MAX_TICKS)
        dots = {"marker": "o", "markersize": 3.2, "markeredgewidth": 0, "linestyle": "none"}
        axes.plot(visited, [low - 6] * len(visited), color=LIGHT["muted"], **dots)
        if len(strip.bounds) <= MAX_NUMBERED:
            for value in strip.bounds:
                axes.text(value, low - 12, short(value, 3), ha="center", fontsize=11)


@dataclass(frozen=True)
class Work:
    """The training of a recipe: (label, seconds) of each expert, and the two sums.

    before: (label, seconds in all, seconds on the critical path) of what had to be trained first;
    after: seconds of merging.
    """

    name: str
    style: Style
    experts: Sequence[tuple[str, float]]
    before: Sequence[tuple[str, float, float]] = ()
    after: float = 0.0

    @property
    def total(self) -> float:
        return sum(s for _, s, _ in self.before) + sum(s for _, s in self.experts) + self.after

    @property
    def start(self) -> float:
        """When the experts can start."""
        return sum(s for _, _, s in self.before)

    @property
    def critical(self) -> float:
        return self.start + max(s for _, s in self.experts) + self.after

    @property
    def slowest(self) -> list[tuple[str, float]]:
        """At most MAX_BARS experts, the slowest ones, in their order."""
        ranked = sorted(range(len(self.experts)), key=lambda i: -self.experts[i][1])[:MAX_BARS]
        return [self.experts[i] for i in sorted(ranked)]

    @property
    def thickness(self) -> int:
        """Of an expert's bar."""
        return 6 if len(self.experts) <= 12 else 4

    @property
    def rows(self) -> float:
        return 42 + (self.thickness * len(self.slowest) + 6 if len(self.experts) > 1 else 0)


@dataclass(frozen=True)
class Timeline(Drawing):
    """Seconds of each recipe twice: experts one after the other, and all at the same time."""

    works: Sequence[Work]

    def height(self, width: int) -> float:
        return sum(work.rows for work in self.works) + 52

    def draw(self, part: Any, width: int) -> None:
        scale, room = Scale.over([w.total for w in self.works], zero=True), 124
        top = sum(work.rows for work in self.works)
        axes = _axes(self, part, width, (1, room, 8, 44), scale, Scale(0, top))
        _x_axis(axes, width - room, scale, "seconds")
        _grid(axes, "x")
        for work in self.works:
            across, y = axes.get_yaxis_transform(), top - 10
            marks = _marks(work.style)
            axes.plot([6 / (width - room)], [y], transform=across, clip_on=False, **marks)
            name = shortened(work.name, width - 20)
            axes.text(17 / (width - room), top - 14, name, transform=across, weight="bold")
            self._work(axes, work, top - 20)
            top -= work.rows

    def _work(self, axes: Any, work: Work, top: float) -> None:
        colour, several = LIGHT[work.style.colour], len(work.experts) > 1

        def bar(start: float, y: float, size: tuple[float, float], alpha: float, label: str):
            told = f"{_TITLE}{label}: {_seconds(size[0])}"
            shade = {"facecolor": colour, "alpha": alpha, "linewidth": 0, "gid": told}
            axes.add_patch(Rectangle((start, y), *size, **shade))

        def say(x: float, y: float, text: str) -> None:
            axes.annotate(
                text,
                (x, y),
                (6, 0),
                textcoords="offset points",
                va="center",
                color=LIGHT["muted"],
                fontsize=11.5,
            )

        parts = [(label, seconds, 0.22) for label, seconds, _ in work.before]
        parts += [(label, s, (1.0, 0.62)[i % 2]) for i, (label, s) in enumerate(work.experts)]
        parts += [("merging", work.after, 0.22)] if work.after else []
        done = 0.0
        for label, seconds, alpha in parts:
            bar(done, top - 12, (seconds, 12), alpha, label)
            done += seconds
        say(work.total, top - 6, _seconds(work.total) + (" in all" if several else ""))
        if not several:
            return
        y, shown = top - 17, work.slowest
        if work.before:
            label = ", ".join(label for label, _, _ in work.before)
            size = (work.start, len(shown) * work.thickness - 1)
            bar(0, y - size[1], size, 0.22, label)
        longest = max(range(len(shown)), key=lambda i: shown[i][1])
        for i, (label, seconds) in enumerate(shown):
            y -= work.thickness
            bar(work.start, y + 1, (seconds, work.thickness - 1), 0.8, label)
            if i == longest:
                told = f"{_seconds(work.critical)} critical path"
                say(work.start + seconds, y + work.thickness / 2, told)


def _seconds(value: float) -> str:
    return f"{fixed([value], most=2)[0]} s"


@dataclass(frozen=True)
class HeatMap(Drawing):
    """Values -1..1 of each two of some noise levels, with bounds as lines and the scale below.

    matrix [n, n]; log_snr [n], descending: the levels, which stand equally far apart.
    """

    matrix: Sequence[Sequence[float]]
    log_snr: Sequence[float]
    bounds: Sequence[float]

    LABELS: ClassVar[int] = 7  # at most, on each side

    def height(self, width: int) -> float:
        return width - 46 - 8 + 20 + 62

    def draw(self, part: Any, width: int) -> None:
        count, height = len(self.log_snr), self.height(width)
        full = Scale(-0.5, count - 0.5)
        axes = _axes(self, part, width, (46, 8, 20, 62), full, Scale(count - 0.5, -0.5))
        show = {"cmap": HEAT, "vmin": -1, "vmax": 1, "aspect": "auto", "interpolation": "none"}
        axes.imshow(self.matrix, extent=(-0.5, count - 0.5, count - 0.5, -0.5), **show)
        places = range(0, count, -(-count // self.LABELS))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(FixedLocator(places))
            axis.set_major_formatter(lambda at, _: short(float(self.log_snr[round(at)]), 2))
        for at in self.cuts():
            for line in (axes.axvline, axes.axhline):
                line(at, color=HEAT_LINE, linewidth=1.2, dashes=(4, 3))
        part.text(0, 1 - 12 / height, "log-SNR", color=LIGHT["muted"])
        scale = part.add_axes((74 / width, 10 / height, 160 / width, 12 / height))
        scale.imshow(np.linspace(-1, 1, 65)[None], **show)
        scale.set_axis_off()
        for x, text, align in ((66, "−1", "right"), (242, "1", "left")):
            part.text(x / width, 11 / height, text, ha=align, color=LIGHT["muted"], fontsize=11.5)

    def cuts(self) -> np.ndarray:
        """Where the bounds lie between the levels, which are 0, 1, 2 ..."""
        levels = np.asarray(self.log_snr)[::-1]
        return np.interp(list(self.bounds), levels, np.arange(len(levels))[::-1])


# --- from drawings to pages and files


def _drawn(drawing: Drawing, width: int) -> Figure:
    figure = Figure((width / 72, drawing.height(width) / 72), dpi=72)
    drawing.draw(figure, width)
    return figure


def _as_svg(figure: Figure) -> str:
    """An SVG without dates and names of groups, its marks' titles where browsers look for them."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", out.getvalue(), flags=re.S)
    text = re.sub(rf'<g id="{_TITLE}([^"]*)"', r"<g><title>\1</title", text)
    text = re.sub(r'<g id="[a-zA-Z_0-9.]*"', "<g", text)
    return re.sub(r"\n\s*", "\n", text)


def inline(drawing: Drawing, width: int, key: str) -> Markup:
    """A drawing as a part of an HTML page; key: what its ids begin with, unique in the page."""
    with matplotlib.rc_context(_STYLE):
        text = _as_svg(_drawn(drawing, width))
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, count=1, flags=re.S)
    body = re.sub(r' id="', f' id="{key}-', body)
    body = re.sub(r'xlink:href="#', f'href="#{key}-', body).replace("url(#", f"url(#{key}-")
    body = body.replace("xlink:href", "href")
    body = re.sub(r' (?:d|x|y|transform|points)="[^"]*"', _rounded, body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, variable)
    size = f"0 0 {width} {drawing.height(width):g}"
    style = f"max-width:{width}px"
    head = Markup('<svg viewBox="{}" style="{}" role="img" aria-label="{}" class="figure">')
    return head.format(size, style, drawing.alt) + Markup(body)


def _rounded(found: re.Match) -> str:
    """Hundredths of a pixel are finer than any screen."""
    return re.sub(r"(\.\d\d)\d+", r"\1", found[0])


def save(drawings: Sequence[Drawing], path: Path) -> None:
    """Write `path`.svg and `path`.pdf, the same bytes for the same drawings; several as panels."""
    with matplotlib.rc_context(_STYLE):
        if len(drawings) == 1:
            figure = _drawn(drawings[0], min(drawings[0].wide, HALF))
        else:
            figure = _panels(drawings)
        with replacing(path.with_suffix(".svg")) as temporary:
            temporary.write_text(_as_svg(figure), encoding="utf-8")
        with replacing(path.with_suffix(".pdf")) as temporary:
            none = dict.fromkeys(("CreationDate", "Creator", "Producer"))
            figure.savefig(temporary, format="pdf", transparent=True, metadata=none)


def _panels(drawings: Sequence[Drawing]) -> Figure:
    columns = min(len(drawings), 3)
    rows = -(-len(drawings) // columns)
    height = max(drawing.height(NARROW) for drawing in drawings)
    figure = Figure((columns * NARROW / 72, rows * height / 72), dpi=72)
    parts = figure.subfigures(rows, columns, squeeze=False, wspace=0, hspace=0)
    for part, drawing in itertools.zip_longest(parts.flat, drawings):
        if drawing is not None:
            drawing.draw(part, NARROW)
            y = 1 - 12 / drawing.height(NARROW)
            part.text(0.5, y, shortened(drawing.title, 200), ha="center", weight="bold")
    return figure
