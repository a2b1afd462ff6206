"""The drawings along the axis of log-SNR: states, the experts that own them, and intervals."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stages.charts import (
    CHARACTER,
    COLOURS,
    Axis,
    Box,
    marker,
    path,
    shortened,
    svg,
    text,
    thinned,
)
from stages.markup import Html, coordinate, counted, el, join, short

MAX_TICKS = 250  # states of a recipe
MAX_OWNERS = 125  # experts of a recipe, or intervals, whose borders are drawn
MAX_NUMBERED = 8  # bounds of a recipe that are written as numbers


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
    parts = _log_snr_axis(box, width)
    for i, strip in enumerate(strips):
        parts.append(_strip(strip, box, box.top + i * row))
    alt = "States of each recipe along log-SNR and the experts that own them: " + "; ".join(
        f"{s.name} {_described(s)}" for s in strips
    )
    return svg(width, height, alt, *parts)


def _log_snr_axis(box: Box, width: int) -> list[Html]:
    bottom = box.top + box.height
    parts: list[Html] = []
    for value in box.x.ticks(max(5, int(width / 90))):
        x = box.at(value, 0)[0]
        parts.append(path([(x, box.top), (x, bottom)], "grid"))
        parts.append(text(x, bottom + 16, short(value, 6), "tick", "middle"))
    parts.append(text(box.left, bottom + 36, "← noisier", "name"))
    parts.append(text(width / 2, bottom + 36, "log-SNR", "name", "middle"))
    parts.append(text(width - 4, bottom + 36, "cleaner →", "name", "end"))
    return parts


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
class Cut:
    """A recipe's time axis in intervals: its two ends and the bounds, log-SNR, descending."""

    name: str
    style: int
    clean: float
    noisy: float
    bounds: list[float]
    kind: str  # of the partition


def intervals(cuts: Sequence[Cut], width: int) -> Html:
    """A row a recipe along log-SNR: a band an interval, with the bounds between them."""
    row, top, thick = 60, 8, 16
    height = top + row * len(cuts) + 44
    axis = Axis.over([v for c in cuts for v in (c.clean, c.noisy)])
    box = Box(4, top, width - 8, row * len(cuts), axis, Axis(0, 1))
    parts = _log_snr_axis(box, width)
    for i, cut in enumerate(cuts):
        y = box.top + i * row
        told = f"  {cut.kind}, {counted(len(cut.bounds) + 1, 'interval')}"
        name = shortened(cut.name, box.width - (len(told) + 4) * CHARACTER)
        parts.append(marker(cut.style, box.left + 5.0, y + 10.0))
        words = [el("tspan", name, class_="strong"), told]
        parts.append(el("text", *words, x=box.left + 15.0, y=y + 14.0, class_="label"))
        if len(cut.bounds) >= MAX_OWNERS:
            continue
        edges = [box.at(v, 0)[0] for v in (cut.clean, *cut.bounds, cut.noisy)]
        for number, (right, left) in enumerate(itertools.pairwise(edges)):
            kind = f"band b{number % 2} c{cut.style % COLOURS}"
            size = {"width": max(right - left, 0.5), "height": thick}
            parts.append(el("rect", x=left, y=y + 20.0, **size, class_=kind))
        for value, x in zip(cut.bounds, edges[1:-1], strict=True):
            if len(cut.bounds) <= MAX_NUMBERED:
                parts.append(text(x, y + 20 + thick + 13, short(value, 3), "tick", "middle"))
    alt = "Intervals of each recipe along log-SNR: " + "; ".join(
        f"{c.name} {counted(len(c.bounds) + 1, 'interval')}" for c in cuts
    )
    return svg(width, height, alt, *parts)
