"""Readers of raw image data: one generator a source, each in bounded memory.

Every reader yields `Sample`s in a fixed order that does not depend on the machine, and a `Refused`
for each picture that cannot be used, so that a caller can name all of them at once. A container
that is damaged as a whole (an archive cut short, a missing shard) raises `UserError`.
"""

from pathlib import Path

from pipeline.block import named
from pipeline.data.params import SOURCES
from pipeline.data.raw import locate
from pipeline.data.sources.base import Source


def open_source(
    source: str, path: Path | None = None, split: str = "train", limit: int | None = None
) -> Source:
    """Open one of `SOURCES`. `path` is None for the source's own place, where it has one.

    limit: at most so many rows, spread over the source and in its order, each class in its
    proportion; labels are then read first, and no other picture is decoded.

    Raises UserError for an unknown source or split, and for a missing, foreign or ambiguous path;
    while `samples` is read, for a container that is damaged as a whole.
    """
    place = locate(source, path, split)
    return named(SOURCES[source])(place, split, limit)
