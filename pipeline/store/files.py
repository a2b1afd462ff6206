"""Files that are absent, the old one, or complete, and that nobody writes who lost the right to.

A process that holds an entry of the store *guards* its folder. A write there first makes a file
under a name of its own, then asks the guard, then renames. Whoever takes the folder over removes
such unfinished files first (`sweep`). So a process that was stopped at any moment, taken over and
woken again finds either its guard against it or its unfinished file gone.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import re
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.store.identity import digest, file_digest

KEPT = 2  # resumable files of a name: the last, and the one before it
_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{32}\.part|\.tmp\w{6}")  # the latter safetensors'
_guards: dict[Path, Callable[[], None]] = {}
_passed = itertools.count(1)


class Lost(Exception):
    """Another process took over the entry that this one worked on."""


@contextlib.contextmanager
def guarded(folder: Path, guard: Callable[[], None]) -> Iterator[None]:
    """Ask `guard`, which raises Lost, before anything below `folder` is renamed into place."""
    before = _guards.get(folder)
    _guards[folder] = guard
    try:
        yield
    finally:
        if before is None:
            del _guards[folder]
        else:
            _guards[folder] = before


def ask(path: Path) -> None:
    """Raise Lost if `path` is in a folder that this process guarded and lost."""
    for folder in (path, *path.parents):
        if folder in _guards:
            _guards[folder]()


def sweep(folder: Path) -> None:
    """Remove the unfinished files of whoever worked in `folder` before."""
    for path in folder.glob(".*"):
        if _UNFINISHED.fullmatch(path.name):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path: Path, synced: bool = True) -> Iterator[Path]:
    """A name to write a file under that becomes `path` once the block ends without an error.

    synced: on disk before it does. Raises Lost instead of touching a `path` that is not ours.
    """
    temporary = _unfinished(path)
    try:
        fault("open", path)
        yield temporary
        _place(temporary, path, synced)
    finally:
        _drop(temporary)


def write_text(path: Path, text: str, synced: bool = True) -> None:
    """Write a small file so that it is either absent, the old one, or complete."""
    with replacing(path, synced) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, synced: bool = True) -> None:
    """`write_text` of indented JSON; NaN is a ValueError."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n", synced)


def write_sealed(path: Path, value: dict[str, Any], synced: bool = True) -> None:
    """`write_json` of a dict with a digest of it inside, for `sealed`."""
    write_json(path, with_digest(value), synced)


def with_digest(value: dict[str, Any]) -> dict[str, Any]:
    """A dict with its own digest inside, as `sealed` reads it."""
    return value | {"digest": digest(value)}


def sealed(text: str) -> dict[str, Any]:
    """What was written `with_digest`. ValueError if it is anything else."""
    value = json.loads(text)
    if not isinstance(value, dict) or value.pop("digest", None) != digest(value):
        raise ValueError("its digest does not match")
    return value


def plain(name: str) -> bool:
    """Whether a name, read from a file, names a file beside it and nothing elsewhere."""
    return isinstance(name, str) and name[:1] not in ("", ".") and not set(name) & set("/\\\0:")


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")


def _drop(path: Path) -> None:
    with contextlib.suppress(OSError):  # it must not hide why the file is not finished
        path.unlink(missing_ok=True)


def _place(temporary: Path, path: Path, synced: bool) -> None:
    fault("write", path)
    try:
        if synced:
            with open(temporary, "rb") as f:
                os.fsync(f.fileno())
        ask(path)
        fault("rename", path)
        os.replace(temporary, path)
    except FileNotFoundError:
        ask(path)  # swept away by the process that took over
        raise
    fault("renamed", path)


# --- resumable files: <name>-<how far>-<checksum>.<suffix>, the last two of a name


def keep(folder: Path, name: str, reached: int, write: Callable[[Path], None]) -> None:
    """Keep resumable work as `name` (with its suffix), sealed by a checksum.

    reached: how far it is, a count that grows. The work kept before it stays, what is older goes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem, _, suffix = name.partition(".")
    temporary = _unfinished(folder / name)
    try:
        fault("open", folder / name)
        write(temporary)
        target = folder / f"{stem}-{reached}-{file_digest(temporary)}.{suffix}"
        _place(temporary, target, synced=True)
    finally:
        _drop(temporary)
    for _, old in _kept(folder, name)[:-KEPT]:
        old.unlink(missing_ok=True)


def kept(
    folder: Path, name: str, log: Callable[[str], None] = lambda _: None
) -> Iterator[tuple[int, Path]]:
    """What `keep` kept and is intact, the furthest first: (how far, file).

    What is damaged is removed, as is what the caller finds no use for and goes on from: the next.
    """
    for reached, path in reversed(_kept(folder, name)):
        if file_digest(path) == path.stem.rpartition("-")[2]:
            yield reached, path
            log(f"{path.name}: cannot be used")
        else:
            log(f"{path.name}: damaged")
        path.unlink(missing_ok=True)


def kept_at(folder: Path, name: str, far: int) -> Path | None:
    """What `keep` kept of work so far, if it is intact; for one who must not remove anything."""
    for count, path in reversed(_kept(folder, name)):
        if count == far and file_digest(path) == path.stem.rpartition("-")[2]:
            return path
    return None


def reached(folder: Path, name: str) -> int:
    """How far the work is that `keep` kept as `name`; 0 if there is none."""
    return max((count for count, _ in _kept(folder, name)), default=0)


def _kept(folder: Path, name: str) -> list[tuple[int, Path]]:
    """The least far first."""
    stem, _, suffix = name.partition(".")
    found = re.compile(rf"{re.escape(stem)}-(\d+)-[0-9a-f]{{64}}\.{re.escape(suffix)}")
    paths = folder.iterdir() if folder.is_dir() else ()
    matches = ((found.fullmatch(path.name), path) for path in paths)
    numbers = [(int(match[1]), path) for match, path in matches if match]
    return sorted(numbers, key=lambda item: (item[0], item[1].stat().st_mtime_ns))


# --- for tests


def fault(point: str, path: Path) -> None:
    """Where tests kill, stop or fail a process: TSPACE_FAULT is `kill:7`, `stop:7`, `ENOSPC:7` ...

    The number counts the points that the process passes, from 1.
    """
    wanted = os.environ.get("TSPACE_FAULT")
    if not wanted:
        return
    action, _, number = wanted.partition(":")
    if action not in ("kill", "stop") and point in ("renamed", "leased"):
        return  # nothing is left that could be refused
    if next(_passed) != int(number):
        return
    print(f"fault: {action} at {point} {path.name}", file=sys.stderr, flush=True)
    if action in ("kill", "stop"):
        os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGSTOP)
    else:
        code = getattr(errno, action)
        raise OSError(code, os.strerror(code), str(path))
