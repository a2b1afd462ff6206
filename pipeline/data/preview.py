"""What raw images are, as far as it can be told without preparing them."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.raw import class_folders, locate, raw_files
from pipeline.data.sources.base import Refused
from pipeline.data.sources.open import open_source
from pipeline.errors import UserError, shown

LOOK_SECONDS = 3.0  # at a source whose rows have to be read to be counted


@dataclass(frozen=True)
class Preview:
    """A dataset that is not prepared yet.

    rows: of the source, or as many as were seen if not `exact`; unusable ones count as well.
    resolution: of the first image where none is asked for. class_counts: () without labels.
    """

    rows: int
    exact: bool
    resolution: int
    channels: int
    class_counts: tuple[int, ...]


def preview(
    *,
    source: str,
    path: Path | None = None,
    split: str = "train",
    resolution: int | None = None,
    channels: int | None = None,
    limit: int | None = None,
    side: int | None = None,
    seconds: float = LOOK_SECONDS,
) -> Preview:
    """A quick look at a source, with the settings that `dataset.prepare` has.

    Of a folder only names are read, and one image; of other sources what comes within `seconds`.
    Raises UserError as `open_source` does, and for a source without any image.
    """
    # Nothing but the limit says how many images are drawn of a law.
    reader = open_source(source, path, split, limit if source == "synthetic" else None, side)
    labels: Counter[int] = Counter()
    rows, first, ended = 0, None, True
    started = time.monotonic()
    with contextlib.closing(reader.samples) as samples:
        for sample in samples:
            rows += 1
            if not isinstance(sample, Refused):
                first = sample if first is None else first
                if sample.label is not None:
                    labels[sample.label] += 1
            if first is not None and (source == "folder" or time.monotonic() - started > seconds):
                ended = False
                break
    if first is None:
        raise UserError(f"{shown(path or source)}: has no images; put some there")
    if source == "folder":
        rows, labels, ended = *_listed(path, split), True
    classes = len(reader.classes or ()) or max(labels, default=-1) + 1
    height, width, depth = first.image.shape
    return Preview(
        rows=rows if limit is None else min(rows, limit),
        exact=ended or (limit is not None and limit <= rows),
        resolution=resolution or min(height, width),
        channels=channels or depth,
        class_counts=tuple(labels[i] for i in range(classes)) if labels else (),
    )


def _listed(path: Path, split: str) -> tuple[int, Counter[int]]:
    """Files of a folder of images, and how many each class folder has."""
    _, names = raw_files("folder", path, split)
    _, classes = class_folders(locate("folder", path, split), split)
    number = {name: i for i, name in enumerate(classes)}
    files = list(names)
    return len(files), Counter(number[f.partition("/")[0]] for f in files if classes)
