"""Reader of folders of images, one for each class where there are classes."""

import functools
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pipeline.data.raw import class_folders, walk
from pipeline.data.sources.base import Found, Refused, Sample, Source, chosen
from pipeline.data.sources.pictures import Unusable, decode
from pipeline.errors import shown


def open_folder(path: Path, split: str, limit: int | None) -> Source:
    root, classes = class_folders(path, split)
    labels = [*enumerate(classes)] or [(None, "")]

    def wanted_labels() -> np.ndarray:
        counts = [sum(1 for _ in walk(root, folder, False)) for _, folder in labels]
        return np.repeat(np.arange(len(counts)), counts)

    return Source(
        tuple(classes) or None, _folder_samples(root, labels, chosen(limit, wanted_labels))
    )


def _folder_samples(
    root: Path, folders: list[tuple[int | None, str]], wanted: np.ndarray | None
) -> Iterator[Refused | Callable[[], Found]]:
    row = 0
    for label, folder in folders:
        first = row
        for name in walk(root, folder, False):
            if wanted is None or (row < len(wanted) and wanted[row]):
                yield functools.partial(read_picture, root / name, name, label)
            row += 1
        if row == first and label is not None:
            yield Refused(shown(root / folder), "is a class folder without images")


def read_picture(path: Path, source_id: str, label: int | None) -> Found:
    """The picture in a file, by its name within the source, or why there is none."""
    where = shown(path)
    try:
        source_id.encode()
    except UnicodeEncodeError:
        return Refused(where, "has a name that is not UTF-8; rename it")
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return Refused(where, "is not a regular file")
        if status.st_size == 0:
            return Refused(where, "is empty (0 bytes)")
        with open(path, "rb") as stream:
            image = decode(stream)
    except OSError as error:
        return Refused(where, f"cannot be opened ({error.strerror})")
    except Unusable as error:
        return Refused(where, str(error))
    return Sample(image, label, source_id, where)
