"""The kinds of drawings: lines over two axes, strips along log-SNR, seconds, matrices.

Lengths are CSS pixels. Whatever depends on the room for it takes the width as an argument.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from stages.numbers import fixed, known, short
from stages.report.figures import LIGHT, NARROW, TITLE, Drawing, Style

CHARACTER = 6.6  # mean width of a character at 12 px, on the safe side
LABEL_GAP = 16
MAX_LABELS = 24  # lines in one chart
MAX_TICKS = 250  # states of a recipe
MAX_OWNERS = 125  # experts of a recipe, or intervals, whose borders are drawn
MAX_NUMBERED = 8  # bounds of a recipe that are written as numbers
MAX_BARS = 24  # experts of a recipe in the timeline
MAX_CURVES = 32  # loss curves in one panel

HEAT = LinearSegmentedColormap.from_list("heat", ["#1a5fa8", "#f7f7f5", "#b03010"])
HEAT_LINE = "#111111"  # on the same ground in light and dark pages
_NAME = {"color": LIGHT["muted"]}  # of an axis
_TICK = {**_NAME, "fontsize": 11.5}


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


def _axes(drawing: Drawing, part: Any, width: float, box: Sequence[float], x: Scale, y: Scale):
    """Bare axes; box: left, right, top and bottom margins."""
    height, (left, right, top, bottom) = drawing.height(width), box
    size = ((width - left - right) / width, (height - top - bottom) / height)
    axes = part.add_axes((left / width, bottom / height, *size))
    scales = {f"{name}scale": "log" if s.log else "linear" for name, s in (("x", x), ("y", y))}
    axes.set(**scales, xlim=(x.low, x.high), ylim=(y.low, y.high))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set(major_locator=NullLocator(), minor_locator=NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: short(value, 6)))
    axes.spines[:].set_visible(False)
    axes.patch.set_visible(False)
    axes.set_axisbelow(True)
    axes.tick_params(colors=LIGHT["muted"], labelsize=11.5, length=0, pad=6)
    return axes


def _x_axis(axes: Any, width: float, scale: Scale, label: str) -> None:
    axes.xaxis.set_major_locator(FixedLocator(scale.ticks(max(5, int(width / 90)))))
    axes.set_xlabel(label, labelpad=6, **_NAME)


def _marks(style: Style) -> dict[str, Any]:
    """How matplotlib draws a recipe's sign."""
    return {
        "marker": style.shape,
        "markersize": {"s": 7.5, "D": 7.5, "^": 9, "v": 9}.get(style.shape, 8),
        "markerfacecolor": LIGHT[style.colour],
        "markeredgecolor": LIGHT["paper"],
        "markeredgewidth": 1,
        "linestyle": "none",
        "clip_on": False,
        "zorder": 3,
    }


def _heading(axes: Any, width: float, top: float, name: str, style: Style) -> None:
    """A recipe's sign and name at the left of its row."""
    across = axes.get_yaxis_transform()
    axes.plot([6 / width], [top - 10], transform=across, **_marks(style))
    axes.text(17 / width, top - 14, name, transform=across, weight="bold")


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
        axes.grid(axis="y", color=LIGHT["rule"])
        part.text(0, 1 - 12 / self.height(width), self.y_label, **_NAME)
        for place in self.bounds:
            axes.axvline(place, color=LIGHT["ink"], linewidth=1.1, dashes=(2, 3))
        if self.reference is not None:
            value, label = self.reference
            axes.axhline(value, color=LIGHT["muted"], linewidth=1.3, dashes=(5, 3))
            at = ((0, value), (6, 5), axes.get_yaxis_transform(), "offset points")
            axes.annotate(label, *at, **_TICK)
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
        drawn.set(solid_joinstyle="round", gid=f"{TITLE}{line.name}")
        if line.sign is None:
            return
        for x, y in line.points:
            told = f"{line.name}: {self.y_label} {short(y)} at {short(x)} {self.x_label}"
            at = (self._place([x], self.x), self._place([y], self.y))
            axes.plot(*at, gid=f"{TITLE}{told}", **_marks(line.sign))

    def _names(self, part: Any, axes: Any, width: int, room: float) -> None:
        """The names at the right, moved apart, each with a dotted line from the end of its own."""
        size, box = np.array([width, self.height(width)]), axes.get_position()
        here = part.transSubfigure
        ends = []
        for line in self.named:
            x, y = max(line.points)
            place = [*self._place([x], self.x), *self._place([y], self.y)]
            ends.append(here.inverted().transform(axes.transData.transform(place)) * size)
        right, low, high = box.x1 * width, box.y0 * size[1] + 2, box.y1 * size[1] - 4
        heights = apart([y for _, y in ends], LABEL_GAP, low, high)
        for line, end, height in zip(self.named, ends, heights, strict=True):
            after = 22 if line.sign else 5
            leader = np.array([end, (right + 3, height)]) / size
            dotted = {"color": LIGHT[line.colour], "linewidth": 1, "dashes": (1, 3)}
            part.add_artist(Line2D(*leader.T, transform=here, **dotted))
            if line.sign:
                at = (np.array([right + 12, height]) / size)[:, None]
                part.add_artist(Line2D(*at, transform=here, **_marks(line.sign)))
            name = shortened(line.name, room - after - 2)
            told = {"gid": f"{TITLE}{line.name}"} if name != line.name else {}
            at = np.array([right + after, height]) / size
            part.text(*at, name, va="center_baseline", fontsize=12 if line.sign else 11.5, **told)


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
        axes.grid(axis="x", color=LIGHT["rule"])
        for x, text, align in ((0, "← noisier", "left"), (1, "cleaner →", "right")):
            part.text(x, 10 / self.height(width), text, ha=align, **_NAME)
        for number, strip in enumerate(self.strips):
            self._strip(axes, strip, self.ROW * (len(self.strips) - number), width)

    def _strip(self, axes: Any, strip: Strip, top: float, width: int) -> None:
        colour, thick = LIGHT[strip.style.colour], 21
        name = shortened(strip.name, width - (len(strip.told) + 6) * CHARACTER)
        _heading(axes, width, top, name, strip.style)
        right = {"transform": axes.get_yaxis_transform(), "ha": "right"}
        axes.text(1, top - 14, strip.told, **right, **_NAME)
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
        axes = _axes(self, part, width, (5, room, 8, 44), scale, Scale(0, top))
        _x_axis(axes, width - room, scale, "seconds")
        axes.grid(axis="x", color=LIGHT["rule"])
        for work in self.works:
            _heading(axes, width - room, top, shortened(work.name, width - 20), work.style)
            self._work(axes, work, top - 20)
            top -= work.rows

    def _work(self, axes: Any, work: Work, top: float) -> None:
        colour, several = LIGHT[work.style.colour], len(work.experts) > 1

        def bar(start: float, y: float, size: tuple[float, float], alpha: float, label: str):
            told = f"{TITLE}{label}: {_seconds(size[0])}"
            shade = {"facecolor": colour, "alpha": alpha, "linewidth": 0, "gid": told}
            axes.add_patch(Rectangle((start, y), *size, **shade))

        def say(x: float, y: float, text: str) -> None:
            axes.annotate(text, (x, y), (6, 0), "data", "offset points", va="center", **_TICK)

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
        part.text(0, 1 - 12 / height, "log-SNR", **_NAME)
        scale = part.add_axes((74 / width, 10 / height, 160 / width, 12 / height))
        scale.imshow(np.linspace(-1, 1, 65)[None], **show)
        scale.set_axis_off()
        for x, text, align in ((66, "−1", "right"), (242, "1", "left")):
            part.text(x / width, 11 / height, text, ha=align, **_TICK)

    def cuts(self) -> np.ndarray:
        """Where the bounds lie between the levels, which are 0, 1, 2 ..."""
        levels = np.asarray(self.log_snr)[::-1]
        return np.interp(list(self.bounds), levels, np.arange(len(levels))[::-1])
