"""DVC's cache of a checkout: files and lists of folders, each named by its own md5."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import subprocess
import sys
from pathlib import Path

Listing = dict[str, str]  # path within a folder -> md5


@functools.cache
def cache_folder(root: Path) -> Path:
    """DVC's cache of a checkout."""
    command = [sys.executable, "-m", "dvc", "cache", "dir"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    return root / done.stdout.strip() if done.stdout.strip() else root / ".dvc" / "cache"


def cached(root: Path, md5: str) -> Path:
    """Where DVC's cache has a file or the list of a folder; it need not be there."""
    return cache_folder(root) / "files" / "md5" / md5[:2] / md5[2:]


def cached_listing(root: Path, md5: str) -> Listing | None:
    """The list of a folder from DVC's cache; None if it is not there or damaged."""
    try:
        items = json.loads(cached(root, md5).read_text())
        return {item["relpath"]: item["md5"] for item in items}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def md5_of(path: Path) -> str:
    """What DVC knows a file by."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "md5").hexdigest()


def _named(file: Path) -> str:
    return file.parent.name + file.name.removesuffix(".dir")


def forget_damaged(root: Path, path: Path) -> int:
    """Remove files of a damaged file's size from the cache whose content is not that of their name.

    How many: the file is one of them, or a link to one, if it came from the cache. Where a write
    failed in the cache's own place, the damage changed no size.
    """
    try:
        size, found = path.stat().st_size, 0
    except OSError:
        return 0
    for folder in (cache_folder(root) / "files" / "md5").glob("??"):
        for file in folder.iterdir():
            with contextlib.suppress(OSError):
                if file.stat().st_size == size and md5_of(file) != _named(file):
                    file.unlink()
                    found += 1
    return found
