"""What every reader of raw images gives, and what they share."""

import contextlib
import tarfile
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import pyarrow as pa

from pipeline.data.raw import SHARDS, shards
from pipeline.data.sources.pictures import (
    HEAD_BYTES,
    MAX_PIXELS,
    Unusable,
    decode,
    foreign_container,
)
from pipeline.errors import UserError, shown
from pipeline.rows import spread

CHUNK_BYTES = 2**22
MOST_THREADS = 16  # each holds a picture of up to 200 MB while it decodes it

Done = TypeVar("Done")


@dataclass(frozen=True)
class Sample:
    """One picture as its source has it.

    image: uint8 [H, W, C], C = 1 (grey) or 3 (RGB), not yet cropped or scaled.
    label: class number from 0, or None.
    source_id: its name within the source; the same wherever the source is stored.
    where: what a message calls it (file, or file and row).
    """

    image: np.ndarray
    label: int | None
    source_id: str
    where: str


@dataclass(frozen=True)
class Refused:
    """One picture that cannot be used, and why."""

    where: str
    reason: str


Found = Sample | Refused


@dataclass(frozen=True)
class Source:
    """`samples` can be read once. `classes` is None where the source does not name them.

    What takes time and needs nothing else, such as decoding, is left to be called by any thread.
    """

    classes: tuple[str, ...] | None
    samples: Iterator[Found | Callable[[], Found]]


def in_order(
    found: Iterator[Found | Callable[[], Found]], work: Callable[[Found], Done], threads: int
) -> Iterator[Done]:
    """`work` of each, in their order; what is left to be called is called some way ahead."""
    with contextlib.closing(found), ThreadPoolExecutor(threads) as pool:
        ahead: deque[Found | Future[Done]] = deque()

        def first() -> Done:
            one = ahead.popleft()
            return one.result() if isinstance(one, Future) else work(one)

        try:
            for one in found:
                ahead.append(pool.submit(_called, one, work) if callable(one) else one)
                if len(ahead) > 2 * threads:
                    yield first()
            while ahead:
                yield first()
        finally:
            pool.shutdown(cancel_futures=True)


def _called(one: Callable[[], Found], work: Callable[[Found], Done]) -> Done:
    return work(one())


def decoded(data: bytes, label: int | None, source_id: str, where: str) -> Found:
    """The picture in some bytes, as a sample."""
    try:
        return Sample(decode(BytesIO(data)), label, source_id, where)
    except Unusable as error:
        return Refused(where, str(error))


def chosen(limit: int | None, labels: Callable[[], np.ndarray]) -> np.ndarray | None:
    """Which rows are wanted, bool [rows], or None for all. `labels`: int [rows], -1 for none."""
    if limit is None:
        return None
    found = labels()
    wanted = np.zeros(len(found), bool)
    wanted[spread(min(limit, len(found)), len(found), found)] = True
    return wanted


_DAMAGED = (OSError, EOFError, ValueError, RuntimeError, zlib.error, zipfile.BadZipFile)
_DAMAGED += (tarfile.TarError, pa.ArrowException)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what readers of damaged containers raise into a UserError that names the file."""
    try:
        yield
    except (Unusable, *_DAMAGED) as error:
        if kind := _foreign_kind(path):
            raise UserError(f"{shown(path)}: is {kind[0]}; {kind[1]}") from error
        if isinstance(error, Unusable):
            raise UserError(f"{shown(path)}: {error}") from error
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(
            f"{shown(path)}: cannot be read ({shown(reason)}); put a sound copy in its place"
        ) from error


def _foreign_kind(path: Path) -> tuple[str, str] | None:
    try:
        with open(path, "rb") as stream:
            return foreign_container(stream.read(HEAD_BYTES))
    except OSError:
        return None


def read_exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise EOFError("the file is cut short")
    return data


def only_train(split: str, source: str) -> None:
    if split != "train":
        raise UserError(f"data.split: {source} has no split {split!r}; use 'train'")


def shards_of(source: str, path: Path, split: str) -> list[Path]:
    """The files of a split of a source: the shards in a folder, or the one file at `path`."""
    if path.is_dir():
        return [path / name for name in shards(path, split, SHARDS[source])]
    only_train(split, f"a single {SHARDS[source]} file")
    return [path]


def expect_end(stream: BinaryIO) -> None:
    if stream.read(1):
        raise ValueError("it is longer than its header says")


def stream_rows(
    stream: BinaryIO, rows: int, shape: tuple[int, int, int]
) -> Iterator[tuple[int, np.ndarray]]:
    """Rows of one shape [H, W, C] that follow each other in a stream of bytes."""
    size = int(np.prod(shape, dtype=object))
    if not 0 < size <= MAX_PIXELS * 3:
        raise Unusable(f"holds images of {shape[0]}x{shape[1]} pixels; they cannot be used")
    step = max(1, CHUNK_BYTES // size)
    for start in range(0, rows, step):
        count = min(step, rows - start)
        chunk = np.frombuffer(read_exactly(stream, count * size), np.uint8)
        yield from enumerate(chunk.reshape(count, *shape), start)
