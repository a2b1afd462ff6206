"""The drawings of training: losses, and where the seconds went."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from stages.charts import COLOURS, Axis, Box, Line, marker, panel, path, shortened, svg, text
from stages.markup import Html, coordinate, el, fixed, join, short

MAX_CURVES = 32  # loss curves in one panel
MAX_BARS = 24  # experts of a recipe in the timeline


def loss_curves(curves: Sequence[Line], y_axis: Axis, alt: str) -> Html:
    """Loss of a recipe's experts, thin lines from faint (cleanest states) to strong (noisiest)."""
    named = [curves[0], curves[-1]] if len(curves) > 1 else []
    return panel(
        curves,
        x_axis=Axis.over([x for line in curves for x, _ in line.points], zero=True),
        y_axis=y_axis,
        x_label="images of an expert",
        y_label="loss",
        alt=alt,
        named=named,
    )


@dataclass(frozen=True)
class Work:
    """The training of a recipe: (label, seconds) of each expert, and the two sums.

    before: (label, seconds in all, seconds on the critical path) of what had to be trained first;
    after: seconds of merging.
    """

    name: str
    style: int
    experts: list[tuple[str, float]]
    before: list[tuple[str, float, float]] = field(default_factory=list)
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
    parts = [
        marker(work.style, box.left + 5.0, top + 10.0),
        text(box.left + 15, top + 14, shortened(work.name, box.width), "label strong"),
        _in_all(work, box, top + 20),
    ]
    several = len(work.experts) > 1
    told = _seconds(work.total) + (" in all" if several else "")
    parts.append(text(box.at(work.total, 0)[0] + 6, top + 30, told, "tick"))
    if several:
        parts.append(_at_once(work, box, top + 36, thick))
    return join(parts)


def _in_all(work: Work, box: Box, y: float) -> Html:
    """One bar of everything, one after the other."""
    colour, done = f"c{work.style % COLOURS}", 0.0
    parts: list[Html] = []
    turns: tuple[list[str], list[str]] = ([], [])

    def bar(seconds: float) -> str:
        nonlocal done
        start, end = (coordinate(box.at(at, 0)[0]) for at in (done, done + seconds))
        done += seconds
        return f"M{start} {coordinate(y)}H{end}v12H{start}z"

    for label, seconds, _ in work.before:
        told = el("title", f"{label}: {_seconds(seconds)}")
        parts.append(el("path", told, d=bar(seconds), class_=f"first {colour}"))
    for i, (_, seconds) in enumerate(work.experts):
        turns[i % 2].append(bar(seconds))
    for i, part in enumerate(turns):
        if part:
            parts.append(el("path", d="".join(part), class_=f"sum{i} {colour}"))
    if work.after:
        told = el("title", f"merging: {_seconds(work.after)}")
        parts.append(el("path", told, d=bar(work.after), class_=f"first {colour}"))
    return join(parts)


def _at_once(work: Work, box: Box, y: float, thick: int) -> Html:
    """A bar an expert, all starting when what they need is there."""
    colour, left = f"c{work.style % COLOURS}", box.at(work.start, 0)[0]
    parts: list[Html] = []
    longest = max(seconds for _, seconds in work.experts)
    shown = _slowest(work.experts)
    if work.before:
        size = {"width": max(left - box.left, 0.5), "height": len(shown) * thick - 1.0}
        told = el("title", ", ".join(label for label, _, _ in work.before))
        kind = f"first {colour}"
        parts.append(el("rect", told, x=float(box.left), y=float(y), **size, class_=kind))
    for name, seconds in shown:
        end = box.at(work.start + seconds, 0)[0]
        title = el("title", f"{name}: {_seconds(seconds)}")
        size = {"width": max(end - left, 0.5), "height": thick - 1.0}
        kind = f"each {colour}"
        parts.append(el("rect", title, x=float(left), y=float(y), **size, class_=kind))
        if seconds == longest:
            longest = math.inf  # named once
            told = f"{_seconds(work.critical)} critical path"
            parts.append(text(end + 6, y + thick / 2 + 4, told, "tick"))
        y += thick
    return join(parts)


def _seconds(value: float) -> str:
    return f"{fixed([value], most=2)[0]} s"
