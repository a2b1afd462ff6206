"""Readers of raw image data: one generator a source, each in bounded memory.

Every reader yields `Sample`s in a fixed order that does not depend on the machine, and a `Refused`
for each picture that cannot be used, so that a caller can name all of them at once. A container
that is damaged as a whole (an archive cut short, a missing shard) raises `UserError`.
"""

from collections.abc import Callable
from pathlib import Path

from pipeline.data.raw import locate
from pipeline.data.sources.base import Source
from pipeline.data.sources.builtin import open_digits, open_fashion_mnist
from pipeline.data.sources.cifar10 import open_cifar10
from pipeline.data.sources.folder import open_folder
from pipeline.data.sources.npz import open_npz
from pipeline.data.sources.parquet import open_parquet


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
    return _READERS[source](place, split, limit)


_READERS: dict[str, Callable[[Path, str, int | None], Source]] = {
    "digits": open_digits,
    "fashion-mnist": open_fashion_mnist,
    "folder": open_folder,
    "parquet": open_parquet,
    "npz": open_npz,
    "cifar10": open_cifar10,
}
