"""The report's figures, drawn by matplotlib: SVG in the page, in its colours, and files for papers.

Lengths are CSS pixels, which are matplotlib's points at 72 dots an inch. A figure is drawn in the
light colours; in the page each of them is replaced by the variable of that name, so that dark pages
are dark. Whatever depends on the room for it takes the width as an argument.
"""

from __future__ import annotations

import io
import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from pipeline.store.files import replacing

WIDE, HALF, NARROW = 900, 520, 350

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
TITLE = "title:"  # before what a reader is told of a mark: the id of its group in the SVG


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
class Drawing(ABC):
    """A figure of any width; alt: what it shows, in words; wide: its width where there is room."""

    alt: str
    title: str = field(default="", kw_only=True)
    wide: int = field(default=WIDE, kw_only=True)

    @abstractmethod
    def height(self, width: int) -> float:
        """Of the figure at a width; both in pixels."""

    @abstractmethod
    def draw(self, part: Any, width: int) -> None:
        """Draw into a matplotlib figure or a part of one."""


def _drawn(drawing: Drawing, width: int) -> Figure:
    figure = Figure((width / 72, drawing.height(width) / 72), dpi=72)
    drawing.draw(figure, width)
    return figure


def _as_svg(figure: Figure) -> str:
    """An SVG without dates and names of groups, its marks' titles where browsers look for them."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", out.getvalue(), flags=re.S)
    text = re.sub(rf'<g id="{TITLE}([^"]*)"', r"<g><title>\1</title", text)
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
            part.text(0.5, y, drawing.title, ha="center", weight="bold")
    return figure
