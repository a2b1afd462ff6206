"""Reader of tar files in the layout of WebDataset: the files of a sample share their name.

`n01440764_36.jpg` and `n01440764_36.cls` are one sample: its picture, and its class as a number.
What else it has (a caption, JSON) is not read. Nothing is ever unpacked, and a shard is read from
its beginning to its end, a few samples in memory.
"""

from __future__ import annotations

import functools
import itertools
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pipeline.data.raw import is_sidecar
from pipeline.data.sources.base import Found, Refused, Source, chosen, decoded, reading, shards_of
from pipeline.data.sources.pictures import Unusable
from pipeline.errors import shown

PICTURES = {"bmp", "gif", "jpeg", "jpg", "pgm", "png", "pnm", "ppm", "tif", "tiff", "webp"}
CLASS = "cls"
MOST_BYTES = 2**28  # of a picture: more than any of 67 million pixels should have


def open_webdataset(path: Path, split: str, limit: int | None) -> Source:
    files = shards_of("webdataset", path, split)
    wanted = chosen(limit, lambda: np.array([*_labels(files)], np.int64))
    return Source(None, _samples(files, wanted))


def _members(file: Path) -> Iterator[tuple[tarfile.TarFile, str, dict[str, tarfile.TarInfo]]]:
    """The samples of a shard in order: their name, and their files by what follows its dot."""
    with reading(file), tarfile.open(file, "r:") as archive:
        files = (m for m in archive if m.isfile() and not is_sidecar(Path(m.name).name))
        for name, members in itertools.groupby(files, lambda member: _parts(member.name)[0]):
            parts: dict[str, tarfile.TarInfo] = {}
            for member in members:
                if parts.setdefault(_parts(member.name)[1], member) is not member:
                    raise Unusable(f"has {shown(member.name)} twice")
            yield archive, name, parts
            archive.members = []  # else it keeps what it knows of each of a million files
        # Also at a damaged header, and at the end of a file that is cut short, tarfile stops.
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise EOFError("it is damaged, or cut short")


def _parts(name: str) -> tuple[str, str]:
    """What the files of a sample share, and what follows: up to and from the first dot."""
    folder, slash, file = name.rpartition("/")
    stem, _, rest = file.partition(".")
    return f"{folder}{slash}{stem}", rest.lower()


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > MOST_BYTES:
        raise Unusable(f"has {member.size:,} bytes")
    data = archive.extractfile(member).read()
    if len(data) != member.size:
        raise EOFError("the file is cut short")
    return data


def _label(archive: tarfile.TarFile, parts: dict[str, tarfile.TarInfo]) -> int | None:
    if CLASS not in parts:
        return None
    text = _read(archive, parts[CLASS]).strip()
    if not text.isdigit() or len(text) > 9:
        raise Unusable(f"has the class {shown(text.decode(errors='replace')[:20])}, no number")
    return int(text)


def _labels(files: list[Path]) -> Iterator[int]:
    """The class of every sample, -1 for none or one that is no number."""
    for file in files:
        for archive, _, parts in _members(file):
            try:
                label = _label(archive, parts)
            except Unusable:
                label = None
            yield -1 if label is None else label


def _samples(
    files: list[Path], wanted: np.ndarray | None
) -> Iterator[Refused | Callable[[], Found]]:
    total = 0
    for file in files:
        for archive, name, parts in _members(file):
            if wanted is None or wanted[total]:
                source_id = f"{file.stem}/{name}"
                yield _sample(archive, parts, source_id, f"{shown(file)}: {shown(name)}")
            total += 1


def _sample(
    archive: tarfile.TarFile, parts: dict[str, tarfile.TarInfo], source_id: str, where: str
) -> Refused | Callable[[], Found]:
    pictures = sorted(PICTURES & parts.keys())
    try:
        if len(pictures) != 1:
            found = ", ".join(f".{end}" for end in pictures or parts)
            raise Unusable(f"has {len(pictures) or 'no'} pictures ({shown(found)})")
        label = _label(archive, parts)
        data = _read(archive, parts[pictures[0]])
        return functools.partial(decoded, data, label, source_id, where)
    except Unusable as error:
        return Refused(where, str(error))
