"""The store: one folder an entry, named by what determines its bits.

    store/<kind>/<digest>/
        spec.json    the resolved settings whose digest names the folder
        lease/<n>    who works on it, the highest number; its modification time is the heartbeat
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
import errno
import json
import os
import shutil
import socket
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import Damaged, UserError, room_for
from pipeline.store.files import (
    Lost,
    fault,
    guarded,
    plain,
    replacing,
    sealed,
    sweep,
    with_digest,
    write_json,
)
from pipeline.store.identity import digest, file_digest

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 90.0  # a lease without a heartbeat for so long belongs to a dead job
POLL_SECONDS = 0.5

# Files of an entry that are not results: never listed in DONE, never copied.
WORKING_FILES = frozenset(
    {
        *("spec.json", "lease", "state", "log.txt", "progress.json", "error.txt"),
        *("circumstances.json", "DONE"),
    }
)


class Claim(NamedTuple):
    """One of the files in an entry's `lease` folder: who may work on it, as of its number."""

    number: int
    holder: dict[str, Any]  # empty if it cannot be read
    beat: int  # its modification time in ns; 0 for a lease that was given back

    @property
    def ended(self) -> bool:
        """Given back, or its process is dead."""
        return self.beat == 0 or _dead(self.holder)


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
            found = digest(spec)
        except (OSError, ValueError) as e:
            raise UserError(f"{path}: no readable spec of this entry; plan it again ({e})") from e
        if found != self.digest:
            raise UserError(f"{path}: does not match the entry's name; delete {self.path}")
        return spec

    def files(self) -> dict[str, dict[str, Any]]:
        """Name -> {bytes, sha256} of the results. UserError if not finished or DONE is damaged."""
        path = self.path / "DONE"
        try:
            files = json.loads(path.read_text())["files"]
            seals = [(known["bytes"], known["sha256"]) for known in files.values()]
        except FileNotFoundError as e:
            raise UserError(f"{self.path}: not finished; run its stage again") from e
        except (ValueError, LookupError, TypeError, AttributeError) as e:  # other JSON, too
            raise Damaged(path, f"damaged; delete {self.path} and run again") from e
        if not all(isinstance(size, int) and isinstance(sha, str) for size, sha in seals):
            raise Damaged(path, f"damaged; delete {self.path} and run again")
        for name in files:
            if not plain(name) or name in WORKING_FILES:
                raise UserError(f"{path}: lists {name!r}, which is no name of a result; refused")
        return files

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
        (self.path / "error.txt").unlink(missing_ok=True)
        write_json(self.path / "DONE", {"files": files})
        shutil.rmtree(self.state, ignore_errors=True)

    def progress(self) -> dict[str, Any] | None:
        """Last progress the job wrote; None if there is none, or it is damaged."""
        return _working(self.path / "progress.json") or None

    def circumstances(self) -> dict[str, Any]:
        """How it was made; empty where that is not known (it was pulled), or damaged.

        seconds (wall clock), cpu_seconds, device_seconds (of a GPU; None without one), over all
        processes that worked on it; device; host (the kind of processor), its cores, threads, load
        (mean 1-minute load average a core); interruptions; of trainings also snapshot_seconds and
        snapshot_cpu_seconds, by images.
        """
        return _working(self.path / "circumstances.json")

    def leased(self) -> bool:
        """Whether a live job works on it."""
        claim = self._claim()
        return claim is not None and not claim.ended and self._age(claim) < STALE_SECONDS

    def holder(self) -> dict[str, Any]:
        """Who works on it: `host`, `pid`, `job` and `since` (unix time); empty for nobody."""
        return claim.holder if (claim := self._claim()) is not None else {}

    def _claim(self) -> Claim | None:
        """The lease with the highest number; None if there never was one."""
        number = max(_numbers(self.path / "lease"), default=None)
        if number is None:
            return None
        path = self.path / "lease" / str(number)
        try:
            beat = path.stat().st_mtime_ns
        except FileNotFoundError:  # the entry was finished at this moment
            return None
        return Claim(number, _working(path), beat)

    def _age(self, claim: Claim) -> float:
        """Seconds between its heartbeat and now; one that lies ahead is as wrong as an old one."""
        return abs(_now(self.path) - claim.beat / 1e9)

    @contextlib.contextmanager
    def lease(self, job: str = "", tell: Callable[[str], None] = lambda _: None) -> Iterator[None]:
        """Hold the entry exclusively; waits while another live job holds it, and tells for whom.

        Leases are numbered, and one is taken by creating the next number, whole, which only one
        process can do: a takeover is nothing but a lease. Within, whatever is written by
        `store.files` raises Lost once another process took over. Raises OSError if the lease
        cannot be written.
        """
        folder = self.path / "lease"
        seen, since, told = None, 0.0, 0
        while True:
            claim = self._claim()
            if claim is not None and claim != seen:
                # Clocks are compared once. From then on it counts whether the heartbeat moves.
                seen, since = claim, time.monotonic() - self._age(claim)
            if claim is None or claim.ended or time.monotonic() - since >= STALE_SECONDS:
                number = 1 if claim is None else claim.number + 1
                if _create(folder, number, _myself(job)):
                    break
                continue
            if claim.number != told:
                told = claim.number
                tell(f"waits for {described(claim.holder)}")
            time.sleep(POLL_SECONDS)
        path = folder / str(number)
        for old in _numbers(folder):
            if old < number:
                (folder / str(old)).unlink(missing_ok=True)
        for place in (self.path, self.state):
            sweep(place)
        stop = threading.Event()

        def held() -> None:
            if max(_numbers(folder), default=None) != number:
                other = self.holder()
                how = (
                    f"taken over by {described(other)}" if other else "finished by another process"
                )
                raise Lost(f"{self.path}: {how}")

        def beat() -> None:
            while not stop.wait(HEARTBEAT_SECONDS):
                with contextlib.suppress(OSError):
                    os.utime(path)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            with guarded(self.path, held):
                yield
        finally:
            stop.set()
            thread.join()
            # The number stays, so that nobody who looked earlier takes the same one again.
            with contextlib.suppress(OSError):
                os.utime(path, ns=(0, 0))
                if self.done:
                    shutil.rmtree(folder)


@dataclass(frozen=True)
class Store:
    """All entries below one folder."""

    root: Path

    def entry(self, name: str) -> Entry:
        """The entry called `kind/digest`; it need not exist."""
        kind, separator, key = name.partition("/")
        if not (separator and kind and key and plain(kind) and plain(key)):
            raise UserError(f"{name}: not the name of an entry (kind/digest)")
        return Entry(self.root / kind / key)

    def plan(self, kind: str, spec: dict[str, Any]) -> Entry:
        """The entry for `spec`; its spec.json is there, so a job can start from its name."""
        entry = Entry(self.root / kind / digest(spec))
        path = entry.path / "spec.json"
        try:
            intact = json.loads(path.read_bytes()) == spec
        except (OSError, ValueError):
            intact = False
        if not intact:
            entry.path.mkdir(parents=True, exist_ok=True)
            write_json(path, spec)
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
            # It only saves room; a damaged copy is restored when its stage collects.
            with contextlib.suppress(OSError, UserError):
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
    with replacing(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:  # another file system, or one without hard links
            with room_for(target, source.stat().st_size):
                shutil.copyfile(source, temporary)


def _check(path: Path, known: dict[str, Any]) -> None:
    try:
        intact = path.stat().st_size == known["bytes"] and file_digest(path) == known["sha256"]
    except FileNotFoundError as e:
        raise UserError(f"{path}: missing; delete {path.parent} and run again") from e
    if not intact:
        raise Damaged(path, f"damaged (checksum differs); delete {path.parent} and run again")


def described(holder: dict[str, Any]) -> str:
    """Who holds a lease, for people."""
    if not holder:
        return "an unknown process"
    job = f" (job {holder['job']})" if holder.get("job") else ""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.get("since", 0)))
    return f"process {holder.get('pid')} on {holder.get('host')}{job}, since {since}"


def _working(path: Path) -> dict[str, Any]:
    """A sealed file that is no result; empty if it is missing or damaged: nothing relies on it."""
    try:
        return sealed(path.read_text())
    except (OSError, ValueError):
        return {}


def _numbers(folder: Path) -> list[int]:
    try:
        return [int(name) for name in os.listdir(folder) if name.isdecimal()]
    except FileNotFoundError:
        return []


def _create(folder: Path, number: int, holder: dict[str, Any]) -> bool:
    """Create lease `number`, complete from its first moment; False if there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    path, temporary = folder / str(number), folder / f".{uuid.uuid4().hex}"
    text = json.dumps(with_digest(holder))
    try:
        fault("lease", path)
        temporary.write_text(text)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as e:
            if e.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            if not _create_without_links(path, text):
                return False
        fault("leased", path)
        # Whoever took a higher number removed this one, which is why it was free.
        if max(_numbers(folder), default=None) == number:
            return True
        path.unlink(missing_ok=True)
        return False
    except FileNotFoundError:  # the entry was finished at this moment, and the folder removed
        return False
    except OSError as e:
        e.filename = e.filename or str(path)  # a refused write does not say where
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _create_without_links(path: Path, text: str) -> bool:
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    try:
        with os.fdopen(handle, "w") as f:
            f.write(text)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def _myself(job: str) -> dict[str, Any]:
    """This process, as a lease names it. `machine` tells where its number means something."""
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "born": (_status(os.getpid()) or [None] * 20)[19],
        "job": job,
        "since": time.time(),
        "token": uuid.uuid4().hex,
    }


def _machine() -> list[str] | None:
    """The boot and the process namespace; None where the system tells neither."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return [boot, os.readlink("/proc/self/ns/pid")]
    except OSError:
        return None


def _dead(holder: dict[str, Any]) -> bool:
    """Whether a lease's process surely has ended: only where its number means something."""
    machine = holder.get("machine")
    if machine is None or machine != _machine():
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    status = _status(holder["pid"])
    return status is not None and (status[0] == "Z" or status[19] != holder["born"])


def _status(pid: int) -> list[str] | None:
    """Fields 3 and on of /proc/<pid>/stat (state first, start time at 19); None if unreadable."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _now(folder: Path) -> float:
    """The file system's own clock: on a network share it is not this host's."""
    probe = folder / f".clock.{uuid.uuid4().hex}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:  # read-only, or full
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
