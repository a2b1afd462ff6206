"""A fingerprint of raw data: what changes when a file that is read is added, removed or edited.

It covers names, sizes and contents, never file times or places, so that a copy has the same one.
Contents are read only of files whose size, times or inode moved since the last look, which a table
remembers: a line a file, in the order of the files. Old and new table are gone through once, side
by side, so memory does not grow with the number of files.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import stat
import time
import uuid
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipeline.store.identity import file_digest

CHUNK = 256  # files a task of a thread
THREADS = 16  # more than cores: on network storage reading a small file is waiting
# A file changed so short a time ago could change again within the resolution of its times.
SETTLED_NS = 2_000_000_000
COPY_BYTES = 2**20
DIGEST = 64  # characters
UNREADABLE = b"unreadable".ljust(DIGEST)  # its reader will say why


@dataclass(frozen=True)
class Fingerprint:
    """digest: sha256 over name, size and content of every file, in order. bytes: of all files."""

    files: int
    bytes: int
    digest: str


@dataclass
class _File:
    """A file as it is now. line: of the table, without the digest, which comes when known.

    kept: whether the new table is the old one up to this line. settled: whether it gets a line.
    """

    name: bytes
    size: int = 0
    line: bytes = b""
    settled: bool = False
    digest: bytes | None = UNREADABLE
    kept: bool = False


def fingerprint(
    root: Path, names: Iterable[str], table: Path, most_bytes: int | None = None
) -> Fingerprint | None:
    """The fingerprint of files `names` below `root`. `table` is read, and written where it changes.

    Files that cannot be opened count as unreadable. most_bytes: None is returned, and the table
    left alone, if contents of more than so many bytes had to be read. Names are gone through once.
    """
    folder = os.fspath(root)
    hashed = hashlib.sha256()
    files = size = unread = 0
    with _Table(table) as known, ThreadPoolExecutor(THREADS) as pool:
        waiting: deque[tuple[list[_File], Future | None]] = deque()

        def take() -> None:
            nonlocal files, size
            chunk, task = waiting.popleft()
            if task is not None:
                task.result()
            for file in chunk:
                known.write(file)
                hashed.update(b"%b %d %b\0" % (file.digest, file.size, file.name))
                files += 1
                size += file.size

        remaining = iter(names)
        while part := list(itertools.islice(remaining, CHUNK)):
            chunk = [_look(folder, name, known) for name in part]
            moved = [file for file in chunk if file.digest is None]
            unread += sum(file.size for file in moved)
            if most_bytes is not None and unread > most_bytes:
                return None
            task = pool.submit(_read, os.fsencode(folder), moved) if moved else None
            waiting.append((chunk, task))
            if len(waiting) > 2 * THREADS:
                take()
        while waiting:
            take()
        known.replace()
    return Fingerprint(files, size, hashed.hexdigest())


def _look(root: str, name: str, known: _Table) -> _File:
    encoded = os.fsencode(name)
    try:
        status = os.stat(f"{root}/{name}")
    except OSError:
        return _File(encoded)
    if not stat.S_ISREG(status.st_mode):
        return _File(encoded)
    line = b" %d %d %d %d %b\n" % (
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino,
        encoded,
    )
    # The time of change is the system's own; that of modification can be set to anything.
    settled = status.st_ctime_ns < known.started - SETTLED_NS and b"\n" not in encoded
    digest, kept = known.find(encoded, line, settled)
    return _File(encoded, status.st_size, line, settled, digest, kept)


def _read(root: bytes, files: list[_File]) -> None:
    for file in files:
        try:
            file.digest = file_digest(os.path.join(root, file.name)).encode()
        except OSError:
            file.digest, file.settled = UNREADABLE, False


class _Table:
    """The old table and, from the first difference on, the new one."""

    def __init__(self, path: Path):
        self.started = time.time_ns()
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        self._moved = False  # whether the new one differs from here on
        self._kept_bytes = 0
        self._new: BinaryIO | None = None

    def __enter__(self) -> _Table:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._old = open(self._path, "a+b")
        self._old.seek(0)
        self._line = self._old.readline()
        return self

    def __exit__(self, *_: object) -> None:
        self._old.close()
        if self._new is not None:
            self._new.close()
            self._temporary.unlink(missing_ok=True)

    def find(self, name: bytes, line: bytes, settled: bool) -> tuple[bytes | None, bool]:
        """The digest of a file, None if it moved, and whether the table is the same so far.

        Names come in the order in which the files were gone through last time.
        """
        while self._line:
            old = self._line
            if old.startswith(line, DIGEST):
                self._line = self._old.readline()
                return old[:DIGEST], not self._moved
            old_name = old[DIGEST + 1 : -1].split(b" ", 4)[-1]
            if old_name.split(b"/") > name.split(b"/"):
                break
            self._line = self._old.readline()
            self._moved = True
            if old_name == name:
                break
        self._moved |= settled
        return None, False

    def write(self, file: _File) -> None:
        """Take a file's line over, in the order of `find`."""
        if file.kept:
            self._kept_bytes += DIGEST + len(file.line)
        elif file.settled:
            self._begin().write(file.digest + file.line)

    def replace(self) -> None:
        """Let the new table take the place of the old one, where they differ."""
        if self._moved or self._line:
            self._begin().close()
            os.replace(self._temporary, self._path)

    def _begin(self) -> BinaryIO:
        if self._new is None:
            self._new = open(self._temporary, "wb")  # noqa: SIM115
            for start in range(0, self._kept_bytes, COPY_BYTES):
                size = min(COPY_BYTES, self._kept_bytes - start)
                self._new.write(os.pread(self._old.fileno(), size, start))
        return self._new
