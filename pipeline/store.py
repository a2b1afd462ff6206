"""The store: one folder an entry, named by what determines its bits.

    store/<kind>/<digest>/
        spec.json    the resolved settings whose digest names the folder
        lease        who works on it now; its modification time is the heartbeat
        state/       resumable state of unfinished work; removed when finished
        log.txt      what the job said; progress.json its last progress
        error.txt    why it failed last; removed when finished
        circumstances.json  how it was made: seconds, host, load, interruptions
        ...          the entry's files
        DONE         sizes and checksums of the files; renamed into place last

An entry is finished when `DONE` exists. File times carry no meaning, so checkouts, clones and
shared file systems are safe. Several processes, on several hosts, may work on one store.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import stat
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, room_for
from pipeline.identity import digest, file_digest

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 90.0  # a lease without a heartbeat for so long belongs to a dead job

# Files of an entry that are not results: never listed in DONE, never copied.
WORKING_FILES = frozenset(
    {
        *("spec.json", "lease", "state", "log.txt", "progress.json", "error.txt"),
        *("circumstances.json", "DONE"),
    }
)


def write_text(path: Path, text: str) -> None:
    """Write a small file so that it is either absent, the old one, or complete."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON; NaN is a ValueError."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


@dataclass(frozen=True)
class Entry:
    """One piece of work and its results. `path` need not exist."""

    path: Path

    @property
    def kind(self) -> str:
        return self.path.parent.name

    @property
    def digest(self) -> str:
        return self.path.name

    @property
    def name(self) -> str:
        """`kind/digest`, the entry's name in plans, manifests and commands."""
        return f"{self.kind}/{self.digest}"

    @property
    def done(self) -> bool:
        return (self.path / "DONE").exists()

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def state(self) -> Path:
        """Folder for resumable state."""
        return self.path / "state"

    def spec(self) -> dict[str, Any]:
        """The settings this entry was planned with. UserError if missing or not its own."""
        path = self.path / "spec.json"
        try:
            spec = json.loads(path.read_text())
        except (OSError, ValueError) as e:
            raise UserError(f"{path}: no readable spec of this entry; plan it again ({e})") from e
        if digest(spec) != self.digest:
            raise UserError(f"{path}: does not match the entry's name; delete {self.path}")
        return spec

    def files(self) -> dict[str, dict[str, Any]]:
        """Name -> {bytes, sha256} of the results. UserError if not finished or DONE is damaged."""
        path = self.path / "DONE"
        try:
            return json.loads(path.read_text())["files"]
        except FileNotFoundError as e:
            raise UserError(f"{self.path}: not finished; run its stage again") from e
        except (ValueError, KeyError) as e:
            raise UserError(f"{path}: damaged; delete {self.path} and run again") from e

    def file(self, name: str) -> Path:
        """Path of a result after checking size and checksum. UserError if missing or damaged."""
        known = self.files()
        if name not in known:
            raise UserError(f"{self.path}: has no file {name}; it has {', '.join(sorted(known))}")
        _check(self.path / name, known[name])
        return self.path / name

    def load_json(self, name: str) -> Any:
        """A JSON result, checked."""
        return json.loads(self.file(name).read_text())

    def verify(self) -> None:
        """Check every file. UserError naming the first damaged one."""
        for name, known in self.files().items():
            _check(self.path / name, known)

    def finish(self) -> None:
        """Declare every file now in the folder a result, and the entry finished.

        Equal results give an equal DONE, whatever happened on the way.
        """
        files = {}
        permissions = stat.S_IMODE((self.path / "spec.json").stat().st_mode)
        for path in sorted(self.path.iterdir()):
            if path.name in WORKING_FILES or path.name.startswith("."):
                continue
            with open(path, "rb") as f:
                os.fsync(f.fileno())
            if stat.S_IMODE(path.stat().st_mode) != permissions:
                path.chmod(permissions)  # safetensors writes for its user alone, whatever the umask
            files[path.name] = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        write_json(self.path / "DONE", {"files": files})
        (self.path / "error.txt").unlink(missing_ok=True)
        shutil.rmtree(self.state, ignore_errors=True)
        for leftover in self.path.glob(".taken-over.*"):
            leftover.unlink(missing_ok=True)

    def progress(self) -> dict[str, Any] | None:
        """Last progress the job wrote, or None."""
        try:
            return json.loads((self.path / "progress.json").read_text())
        except (OSError, ValueError):
            return None

    def circumstances(self) -> dict[str, Any]:
        """How it was made; empty where that is not known, as of an entry that was pulled.

        seconds (wall clock), cpu_seconds, device_seconds (of a GPU; None without one), over all
        processes that worked on it; device; host (the kind of processor), its cores, threads, load
        (mean 1-minute load average a core); interruptions; of trainings also snapshot_seconds and
        snapshot_cpu_seconds, by images.
        """
        try:
            return json.loads((self.path / "circumstances.json").read_text())
        except (OSError, ValueError):
            return {}

    def leased(self) -> bool:
        """Whether a live job works on it."""
        return self._holder()[1]

    def _holder(self) -> tuple[str | None, bool]:
        """Token of the lease (None without a lease) and whether its holder lives."""
        path = self.path / "lease"
        try:
            age = _now(self.path) - path.stat().st_mtime
            holder = json.loads(path.read_text())
        except FileNotFoundError:
            return None, False
        except ValueError:  # being written at this moment, or cut short by a crash
            return "", age < STALE_SECONDS
        return holder["token"], age < STALE_SECONDS and not _dead(holder)

    @contextlib.contextmanager
    def lease(self, job: str = "") -> Iterator[None]:
        """Hold the entry exclusively; waits while another live job holds it.

        A lease whose process died on this host, or whose heartbeat stopped, is taken over.
        """
        path = self.path / "lease"
        token = uuid.uuid4().hex
        text = json.dumps(
            {"host": socket.gethostname(), "pid": os.getpid(), "job": job, "token": token}
        )
        while not _create(path, text):
            holder, alive = self._holder()
            if alive:
                time.sleep(0.5)
            elif holder is None:  # given back meanwhile
                continue
            # One marker a token: of several waiting jobs one wins, and a slow one that judged
            # an older lease can never push out the winner's.
            elif _create(path.with_name(f".taken-over.{holder}"), text):
                write_text(path, text)
                break
            else:
                time.sleep(0.1)
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(HEARTBEAT_SECONDS):
                with contextlib.suppress(OSError):
                    os.utime(path)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            with contextlib.suppress(OSError, ValueError):
                if json.loads(path.read_text())["token"] == token:
                    path.unlink()


@dataclass(frozen=True)
class Store:
    """All entries below one folder."""

    root: Path

    def entry(self, name: str) -> Entry:
        """The entry called `kind/digest`; it need not exist."""
        kind, separator, key = name.partition("/")
        if not (separator and kind and key) or "/" in key or ".." in name:
            raise UserError(f"{name}: not the name of an entry (kind/digest)")
        return Entry(self.root / kind / key)

    def plan(self, kind: str, spec: dict[str, Any]) -> Entry:
        """The entry for `spec`; its spec.json is written, so a job can start from its name."""
        entry = Entry(self.root / kind / digest(spec))
        if not (entry.path / "spec.json").exists():
            entry.path.mkdir(parents=True, exist_ok=True)
            write_json(entry.path / "spec.json", spec)
        return entry

    def adopt(self, source: Path, name: str) -> Entry:
        """Take a finished entry from a copy at `source`. UserError if the copy is damaged.

        Of one that is here already, files that lie on the disk for this store alone become links
        to those of the copy that others (DVC's cache) share.
        """
        entry = self.entry(name)
        if not entry.done:
            copy_entry(Entry(source), entry.path)
        elif (source / "DONE").exists():
            with contextlib.suppress(OSError):  # it only saves room
                _share(Entry(source), entry)
        return entry


def copy_entry(entry: Entry, target: Path) -> None:
    """A finished entry's files at `target` (hard links where the file system allows), DONE last."""
    target.mkdir(parents=True, exist_ok=True)
    for name, known in entry.files().items():
        _check(entry.path / name, known)
        _place(entry.path / name, target / name)
    for name in ("spec.json", "DONE"):
        _place(entry.path / name, target / name)


def _share(source: Entry, entry: Entry) -> None:
    for name, known in entry.files().items():
        theirs, ours = (source.path / name).stat(), (entry.path / name).stat()
        apart = theirs.st_dev == ours.st_dev and theirs.st_ino != ours.st_ino
        if apart and theirs.st_nlink > 1 and ours.st_nlink == 1:
            _check(source.path / name, known)
            _place(source.path / name, entry.path / name)


def _place(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        try:
            os.link(source, temporary)
        except OSError:  # another file system, or one without hard links
            with room_for(target, source.stat().st_size):
                shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _check(path: Path, known: dict[str, Any]) -> None:
    try:
        intact = path.stat().st_size == known["bytes"] and file_digest(path) == known["sha256"]
    except FileNotFoundError as e:
        raise UserError(f"{path}: missing; delete {path.parent} and run again") from e
    if not intact:
        raise UserError(f"{path}: damaged (checksum differs); delete {path.parent} and run again")


def _create(path: Path, text: str) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w") as f:
        f.write(text)
    return True


def _dead(holder: dict[str, Any]) -> bool:
    if holder.get("host") != socket.gethostname() or "pid" not in holder:
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return _is_zombie(holder["pid"])


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


def _now(folder: Path) -> float:
    """The file system's own clock: on a network share it is not this host's."""
    probe = folder / f".clock.{uuid.uuid4().hex}"
    try:
        probe.touch()
    except OSError:  # a store that may only be read: this host's clock has to do
        return time.time()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()
