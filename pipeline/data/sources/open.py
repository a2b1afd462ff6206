"""Readers of raw image data: one generator a source, each in bounded memory.

Every reader yields `Sample`s in a fixed order that does not depend on the machine, and a `Refused`
for each picture that cannot be used, so that a caller can name all of them at once. A container
that is damaged as a whole (an archive cut short, a missing shard) raises `UserError`.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.block import named
from pipeline.data.params import SOURCES, strange
from pipeline.data.raw import locate
from pipeline.data.sources.base import Found, Source, in_order
from pipeline.errors import UserError


def open_source(
    source: str,
    path: Path | None = None,
    split: str = "train",
    limit: int | None = None,
    side: int | None = None,
    *,
    work: Callable[[Found], Any] = lambda found: found,
    threads: int = 1,
) -> Source:
    """Open one of `SOURCES`. `path` is None for the source's own place, where it has one.

    limit: at most so many rows, spread over the source and in its order, each class in its
    proportion; labels are then read first, and no other picture is decoded.
    side: of the squares that are `patches`, which need it, in pixels of the photographs.
    work: what `samples` gives of each. threads: so many decode pictures and do this work ahead of
    their turn; neither the order nor a bit depends on their number.

    Raises UserError for an unknown source or split, for a missing, foreign or ambiguous path, and
    for a missing or superfluous side or limit;
    while `samples` is read, for a container that is damaged as a whole.
    """
    place = locate(source, path, split)
    for problem in strange(source, limit, side):
        raise UserError(problem)
    own = {} if side is None else {"side": side}
    found = named(SOURCES[source])(place, split, limit, **own)
    return replace(found, samples=in_order(found.samples, work, threads))
