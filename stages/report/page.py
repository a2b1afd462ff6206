"""`results/report.html`: one self-contained page of the results and of the seconds they took.

Each of its sections is a function of the `Results` that gives data, or None where there is nothing
to show, and a template. The page needs no network and no script.
"""

from __future__ import annotations

import base64
import io
import itertools
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from pipeline.store.files import write_text
from stages import numbers
from stages.report import figures
from stages.report.figures import NARROW, Drawing
from stages.report.results import Results
from stages.report.section import Section
from stages.report.sections import (
    clusters,
    consistency,
    cost,
    errors,
    film,
    latents,
    merging,
    opening,
    pairings,
    partitions,
    provenance,
    samples,
    scores,
    states,
    steps,
    training,
)

SECTIONS = (
    *(scores, cost, samples, film, latents, states, steps, partitions, clusters, pairings),
    *(training, errors, merging, consistency, provenance),
)
EMBEDDED_BYTES = 500_000  # a larger picture is embedded reduced
EMBEDDED_PIXELS = 1200


class Embedded(NamedTuple):
    """A picture as a data URI; whole: not reduced."""

    source: str
    width: int
    height: int
    whole: bool


def sections_of(results: Results) -> list[Section]:
    """What there is to show."""
    found = [module.section(results) for module in SECTIONS]
    return [section for section in found if section is not None]


def write_page(path: Path, results: Results, sections: Sequence[Section]) -> None:
    """Write the page: the same bytes for the same results."""
    shown = {"digest": results.summary_digest, "opening": opening.data(results)}
    _write(path, "page.j2", shown, sections)


def write_unfinished(
    path: Path, so_far: Mapping[str, Any], results: Results | None, sections: Sequence[Section]
) -> None:
    """Write the page of an unfinished run, marked as such; results: of what is finished, if any.

    so_far: what `unfinished.j2` says at its top.
    """
    shown = {"digest": "", "so_far": so_far, "opening": results and opening.data(results)}
    _write(path, "unfinished.j2", shown, sections)


def _write(path: Path, template: str, shown: dict[str, Any], sections: Sequence[Section]) -> None:
    page = _environment().get_template(template)
    write_text(path, page.render(shown, sections=sections, light=figures.LIGHT))


def write_figures(folder: Path, sections: Sequence[Section]) -> None:
    """Write every figure below a folder, as SVG and PDF."""
    named: dict[str, Sequence[Drawing]] = {}
    for section in sections:
        named |= section.figures
    for name, drawings in named.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        figures.save(drawings, folder / name)


def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    keys = (f"f{number}" for number in itertools.count())

    def figure(drawing: Drawing) -> Markup:
        """A drawing for wide and for narrow screens, of which the style sheet shows one."""
        if drawing.wide <= NARROW:
            return figures.inline(drawing, drawing.wide, next(keys))
        wide, narrow = (figures.inline(drawing, w, next(keys)) for w in (drawing.wide, NARROW))
        return Markup('<div class="wide">{}</div><div class="narrow">{}</div>').format(wide, narrow)

    made.globals |= {
        "figure": figure,
        "embedded": embedded,
        "counted": numbers.counted,
        "style_sheet": Markup((Path(__file__).parent / "style.css").read_text(encoding="utf-8")),
    }
    made.filters |= {
        "count": numbers.count,
        "short": numbers.short,
        "si": numbers.si,
        "fixed": lambda value, most=3: numbers.fixed([value], most)[0],
    }
    return made


def embedded(path: Path) -> Embedded:
    """A PNG to stand in the page; a large one reduced, as a JPEG."""
    data, kind, whole = path.read_bytes(), "png", True
    width, height = struct.unpack(">II", data[16:24])
    if len(data) > EMBEDDED_BYTES:
        from PIL import Image

        with Image.open(path) as picture:
            small = picture.convert("RGB")
        small.thumbnail((EMBEDDED_PIXELS, EMBEDDED_PIXELS), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        small.save(out, format="JPEG", quality=85)
        data, kind, whole = out.getvalue(), "jpeg", False
        width, height = small.size
    text = base64.b64encode(data).decode()
    return Embedded(f"data:image/{kind};base64,{text}", width, height, whole)
