"""The losses of a training so far: of a finished one its curve, of a running one what it said."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipeline.errors import UserError
from pipeline.specs import EncoderSpec, ExpertSpec, Spec, spec_of
from pipeline.store.entry import Entry

# As `Reporter.progress` writes it. Images that a killed process did again are there twice.
SAID = re.compile(r"^\S+ \S+ ([\d,]+)/([\d,]+) images .* loss (-?[\d.]+)", re.MULTILINE)


def losses(entry: Entry, spec: Spec) -> list[tuple[int, float]]:
    """Images and the mean loss since the point before, in their order; [] before the first point.

    Of an unfinished training these are points of the curve that it will leave, but not all of
    them: those that passed between two lines of its log are missing.
    """
    if entry.done and "curve.json" in entry.files():
        return [(int(images), loss) for images, loss in entry.load_json("curve.json")]
    found: dict[int, float] = {}
    for images, total, loss in _said(entry):
        at = _point(spec, images, total)
        if at is not None:
            found[at] = loss
    return sorted(found.items())


def _said(entry: Entry) -> Iterator[tuple[int, int, float]]:
    try:
        log = entry.log.read_text(errors="replace")
    except OSError:  # it has not begun
        log = ""
    for images, total, loss in SAID.findall(log):
        yield int(images.replace(",", "")), int(total.replace(",", "")), float(loss)
    state = entry.progress()
    if state and state["unit"] == "images" and state["loss"] is not None:
        yield state["done"], state["total"], state["loss"]


def _point(spec: Spec, images: int, total: int) -> int | None:
    """Where the last point lies of a training that has done so many images.

    None where that is not known: at its end a last point may be due or not, and the curve tells.
    """
    if isinstance(spec, ExpertSpec):
        batch = spec.training.batch
    elif isinstance(spec, EncoderSpec):
        batch = spec.settings.batch
    else:
        return images  # it leaves no curve
    from pipeline.training.run import CURVE_POINTS

    step = max(batch, total // CURVE_POINTS)
    ended = images // step * step
    return None if images >= total or not ended else -(-ended // batch) * batch


def spec_or_none(entry: Entry) -> Spec | None:
    """The spec of an entry; None for one that is not planned yet, or is of another version."""
    try:
        return spec_of(entry)
    except UserError:
        return None
