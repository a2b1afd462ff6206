"""Which files of artefacts/ are intact, without reading again those that nobody touched.

A file counts as untouched while its size, inode and times of change are those at the last reading.
The time of inode change is among them, which nothing but the clock can set: a byte that was flipped
and a modification time that was put back are both seen. Without the record everything is read once.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from pipeline.store.files import write_text
from pipeline.store.identity import file_digest


class Record:
    """What was read and found intact, by path, kept in a file that may be deleted at any time."""

    def __init__(self, path: Path):
        self.path = path
        self.known: dict[str, list[Any]] = {}
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(path.read_text())
            self.known = found if isinstance(found, dict) else {}
        self.seen: dict[str, list[Any]] = {}

    def intact(self, path: Path, sha256: str) -> bool:
        """Whether a file has this checksum; it is read only if it changed since it last had."""
        try:
            now = _signature(path, sha256)
            if self.known.get(str(path)) != now and file_digest(path) != sha256:
                return False
        except OSError:
            return False
        self.seen[str(path)] = now
        return True

    def save(self) -> None:
        """Keep what was seen, and nothing else."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps(self.seen), synced=False)


def _signature(path: Path, sha256: str) -> list[Any]:
    s = path.stat()
    return [s.st_size, s.st_ino, s.st_mtime_ns, s.st_ctime_ns, sha256]
