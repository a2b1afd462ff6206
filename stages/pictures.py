"""Pictures of samples: grids, single files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.store.files import replacing
from stages.numbers import short

SHOWN_PIXELS = 48  # small images are enlarged to at least this size in a grid
LABEL_PIXELS = 12  # for a line of text
FILMED = 16  # samples in a film


def grid(
    images: np.ndarray,
    columns: int,
    enlarge: int | None = None,
    labels: Sequence[str] | None = None,
) -> Image.Image:
    """Images uint8 [N, C, H, W] in rows of `columns`, with a gap, under each its label if given."""
    size = images.shape[-1]
    factor = enlarge or max(1, -(-SHOWN_PIXELS // size))
    cell = size * factor
    rows = -(-len(images) // columns)
    gap = 2
    across, down = cell + gap, cell + gap + (0 if labels is None else LABEL_PIXELS)
    sheet = Image.new("RGB", (columns * across + gap, rows * down + gap), (255, 255, 255))
    for i, image in enumerate(images):
        left, top = gap + i % columns * across, gap + i // columns * down
        tile = as_image(image).convert("RGB").resize((cell, cell), Image.Resampling.NEAREST)
        sheet.paste(tile, (left, top))
        if labels is not None:
            sheet.paste(_written(labels[i], cell), (left, top + cell))
    return sheet


def _written(text: str, width: int) -> Image.Image:
    """A line of text, cut at the width. Its font is part of Pillow, and so the same everywhere."""
    font = ImageFont.load_default_imagefont()
    line = Image.new("RGB", (width, LABEL_PIXELS), "white")
    known = text.encode("latin-1", "replace").decode("latin-1")
    ImageDraw.Draw(line).text((1, 0), known, fill="black", font=font)
    return line


def pairs(above: np.ndarray, below: np.ndarray, columns: int) -> Image.Image:
    """Images uint8 [N, C, H, W] in rows of `columns`, under each row what became of its images."""
    rows = []
    for start in range(0, len(above), columns):
        rows += [above[start : start + columns], below[start : start + columns]]
    blank = np.full_like(above[:1], 255)
    filled = [np.concatenate([row, *[blank] * (columns - len(row))]) for row in rows]
    return grid(np.concatenate(filled), columns)


def film(frames: Mapping[int, np.ndarray]) -> Image.Image:
    """Frames uint8 [N, C, H, W] by milestone: a column each, under the number of its images.

    Each row is of one noise, so it shows what becomes of one sample.
    """
    columns = [grid(images, 1) for images in frames.values()]
    width, height = columns[0].size
    sheet = Image.new("RGB", (len(columns) * width, height + LABEL_PIXELS), "white")
    for number, (images, column) in enumerate(zip(frames, columns, strict=True)):
        title = _written(short(images).replace("\u202f", ""), width)
        sheet.paste(title, (number * width, 0))
        sheet.paste(column, (number * width, LABEL_PIXELS))
    return sheet


def as_image(image: np.ndarray) -> Image.Image:
    """One uint8 [C, H, W] array as a picture."""
    if len(image) == 1:
        return Image.fromarray(image[0])
    return Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))


def save(image: Image.Image, path: Path) -> None:
    """Write a PNG so that the file is complete or absent."""
    with replacing(path) as temporary:
        image.save(temporary, format="PNG", optimize=True)
