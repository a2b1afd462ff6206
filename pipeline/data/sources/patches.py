"""Reader of small squares that large photographs are cut into.

No two squares of a photograph overlap, so no two rows of a dataset share a pixel. Where the grid of
a photograph starts is drawn by its name: else the blocks that JPEG codes would lie at the same
places in all squares.

A square's class is the photograph that it is of, as in albums of textures (Brodatz 1966): squares
have no names of their own, and a classifier that tells photographs apart sees colour and texture,
where one that learns rotations is left with chance: most squares have no upper side.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.data.raw import photographs
from pipeline.data.sources.base import Refused, Sample, Source, chosen
from pipeline.data.sources.folder import read_picture
from pipeline.data.sources.pictures import Unusable, upright_size
from pipeline.noise import philox


def open_patches(path: Path, split: str, limit: int | None, side: int) -> Source:
    """Squares of `side` pixels, photograph by photograph, row by row, each photograph a class."""
    root, names = photographs(path, split)
    photos = list(names)
    counts: list[int | None] = [None] * len(photos)

    def labels() -> np.ndarray:
        counts[:] = [_count(root / name, name, side) for name in photos]
        return np.repeat(np.arange(len(counts)), counts)

    return Source(tuple(photos), _patches(root, photos, side, chosen(limit, labels), counts))


def corners(height: int, width: int, name: str, side: int) -> list[tuple[int, int]]:
    """Upper left corners (top, left) of the squares that a photograph of this name is cut into."""
    if min(height, width) < side:
        return []
    drawn = philox.uniform(philox.derive_key("patches", name), 0, np.arange(2))
    places = []
    for size, number in zip((height, width), drawn, strict=True):
        first = int(number * min(side, size - side + 1))
        places.append(range(first, size - side + 1, side))
    return list(itertools.product(*places))


def _count(path: Path, name: str, side: int) -> int:
    """The number of a photograph's squares, from its head; none of what will be refused."""
    try:
        with open(path, "rb") as stream:
            return len(corners(*upright_size(stream), name, side))
    except (OSError, Unusable, UnicodeEncodeError):  # the last: of a name that is not UTF-8
        return 0


def _patches(
    root: Path,
    photos: list[str],
    side: int,
    wanted: np.ndarray | None,
    counts: list[int | None],
) -> Iterator[Sample | Refused]:
    first = 0
    for label, (name, count) in enumerate(zip(photos, counts, strict=True)):
        mine = itertools.repeat(True)
        if wanted is not None:
            mine = wanted[first : first + count]
            first += count
            if count and not mine.any():
                continue
        photo = read_picture(root / name, name, None)
        if isinstance(photo, Refused):
            yield photo
            continue
        height, width = photo.image.shape[:2]
        places = corners(height, width, name, side)
        if not places:
            yield Refused(
                photo.where, f"has {width}x{height} pixels, less than data.side ({side}) asks for"
            )
        for (top, left), keep in zip(places, mine, strict=False):
            if keep:
                image = photo.image[top : top + side, left : left + side]
                at = f"at {left},{top}"
                yield Sample(image, label, f"{name} {at}", f"{photo.where} {at}")
