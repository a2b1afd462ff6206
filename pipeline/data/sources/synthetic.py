"""Images of a known law: one shape, of a colour and a size, at a place. Every chance is stated.

So what a model has learnt can be counted, without a network of features (`evaluation.law`).
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.data.raw import SPLITS
from pipeline.data.sources.base import Sample, Source
from pipeline.noise import philox

SIDE = 16
BACKGROUND = (32, 32, 32)
# Chances are whole shares: of 10, of 100 for a colour, so of a million for all five.
SHAPES = {"square": 5, "disc": 3, "triangle": 2}
COLOURS = {
    "red": (230, 60, 60),
    "green": (60, 200, 80),
    "blue": (70, 90, 240),
    "yellow": (240, 210, 60),
    "magenta": (220, 80, 220),
    "cyan": (70, 210, 220),
}
# Of the colours above, for each shape: the only factor that depends on another.
COLOUR_OF = ((40, 25, 15, 10, 6, 4), (6, 4, 40, 25, 15, 10), (15, 10, 6, 4, 40, 25))
# A shape stands in the middle of a box, whose upper left corner is one of 4 x 4.
BOX, CORNERS = 8, (1, 3, 5, 7)
ROWS, COLUMNS = (1, 2, 3, 4), (4, 3, 2, 1)
SIZES = {4: 2, 6: 5, 8: 3}  # side of the shape, pixels

CHUNK = 4096
_KEY = philox.derive_key("synthetic")


def shares() -> np.ndarray:
    """Chance of each combination, in millionths: int64 [3, 6, 4, 4, 3].

    By shape, colour, row, column and size: P(shape) P(colour | shape) P(row) P(column) P(size).
    """
    parts = (list(SHAPES.values()), ROWS, COLUMNS, list(SIZES.values()))
    shape, row, column, size = (np.array(part, np.int64) for part in parts)
    coloured = shape[:, None] * np.array(COLOUR_OF, np.int64)
    return np.einsum("sc,r,k,z->scrkz", coloured, row, column, size)


def templates() -> np.ndarray:
    """The image of each combination, in the order of `shares().ravel()`: uint8 [864, 16, 16, 3]."""
    every = itertools.product(SHAPES, COLOURS.values(), CORNERS, CORNERS, SIZES)
    images = []
    for shape, colour, top, left, size in every:
        image = np.full((SIDE, SIDE, 3), BACKGROUND, np.uint8)
        image[top : top + BOX, left : left + BOX][_mask(shape, size)] = colour
        images.append(image)
    return np.stack(images)


def _mask(shape: str, size: int) -> np.ndarray:
    """The pixels of a shape in its box, whose centres are 1/2, 3/2 .. from its middle: bool."""
    places = np.arange(BOX) - (BOX - 1) / 2
    down, right = places[:, None], places[None, :]
    inside = np.maximum(abs(down), abs(right)) < size / 2
    if shape == "disc":
        inside = down**2 + right**2 < (size / 2) ** 2
    if shape == "triangle":
        inside = inside & (abs(right) <= (down + (size + 1) / 2) / 2)
    return inside


def drawn(split: str, first: int, count: int) -> np.ndarray:
    """Which combination rows `first` .. are, as its place in `shares().ravel()`: int64 [count].

    Independent draws; each depends on the split and its row alone.
    """
    shared = np.cumsum(shares())
    ids = np.arange(first, first + count)
    numbers = philox.randint(_KEY, SPLITS.index(split), ids, int(shared[-1]))
    return np.searchsorted(shared, numbers, side="right")


def open_synthetic(path: Path, split: str, limit: int) -> Source:
    """Draws of the law, as many as `limit` says; a label is the number of the shape."""
    images, of_one_shape = templates(), shares()[0].size

    def samples() -> Iterator[Sample]:
        for first in range(0, limit, CHUNK):
            found = drawn(split, first, min(CHUNK, limit - first))
            for row, place in enumerate(found.tolist(), first):
                label, name = place // of_one_shape, str(row)
                yield Sample(images[place], label, name, f"synthetic row {row}")

    return Source(tuple(SHAPES), samples())
