"""The processes that train one expert together: started here, or the ranks of an `srun`.

That of rank 0 holds the entry's lease, writes its files, and tells the others what to train. Each
of them has a connection to it, by which both sides see at once that the other has died: what a
process waits for in the middle of a sum may tell it only minutes later.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import queue
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import Transient, UserError
from pipeline.specs import Spec, spec_of
from pipeline.store.entry import Entry
from stages.workspace import Workspace

if TYPE_CHECKING:
    from pipeline.training.group import Group

START_SECONDS = 300.0  # for all processes to begin; they read torch from a busy file system
GRACE_SECONDS = 5.0  # for a process to come back from a sum that can no longer end
MOST_PROCESSES = 1024
ADDRESS = "TSPACE_RANK"  # what a process that was started here finds in its environment
Train = Callable[[str, "Group"], None]  # train the entry of this name with this group


def wanted_processes() -> int:
    """How many processes train an expert, as far as its shards allow. UserError if it is no number.

    No part of any result, so the environment or `srun` says it.
    """
    if srun_ranks() > 1:
        return srun_ranks()
    text = os.environ.get("TSPACE_PROCESSES") or "1"
    if not text.isdecimal() or not 0 < int(text) <= MOST_PROCESSES:
        raise UserError(f"TSPACE_PROCESSES: {text!r} is no number of processes; use 1, 2, 4, ...")
    return int(text)


def processes_for(shards: int) -> int:
    """The largest power of two that is wanted and that the shards of a batch can be shared by."""
    return 1 << (min(wanted_processes(), shards).bit_length() - 1)


def processes_of(spec: Spec) -> int:
    """How many processes work on a job."""
    training = getattr(spec, "training", None)
    return 1 if training is None else processes_for(training.shards)


def most_processes(entries: Iterable[Entry]) -> int:
    """How many processes work on one of some entries at most."""
    found = [1]
    for entry in entries:
        with contextlib.suppress(UserError):  # its job says what is wrong with it
            found.append(processes_of(spec_of(entry)))
    return max(found)


@dataclass
class Member:
    """Another process, as rank 0 knows it. connection: lines of JSON, both ways."""

    rank: int
    connection: socket.socket
    process: subprocess.Popen | None = None
    host: str = ""
    said: queue.Queue = field(default_factory=queue.Queue)

    def listen(self, lost: Callable[[str, bool], None]) -> None:
        """Until it is gone: put what it says where it is waited for; tell of its death or error."""
        with contextlib.suppress(OSError, ValueError), self.connection.makefile() as lines:
            for line in lines:
                message = json.loads(line)
                if "error" in message:
                    lost(message["error"], message["final"])
                self.said.put(message)
        lost(self._ended(), False)

    def _ended(self) -> str:
        if self.process is None:
            return f"process {self.rank} on {self.host} ended"
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE_SECONDS / 2)
        status = self.process.returncode
        if status is not None and status < 0:
            return f"process {self.rank} was killed by {signal.Signals(-status).name}"
        return f"process {self.rank} ended"


class Team:
    """All other processes of a job, and who waits for them to connect."""

    def __init__(self, host: str, size: int):
        """host: the address to be reached at; all of this machine's where it is empty."""
        self.size, self.host, self.token = size, host, secrets.token_hex(16)
        self.listener = socket.create_server((host, 0), backlog=size)
        self.members: list[Member] = []
        self.processes: list[subprocess.Popen] = []
        self._lost: tuple[str, bool] | None = None
        self._known = threading.Event()

    @property
    def address(self) -> dict[str, Any]:
        port = self.listener.getsockname()[1]
        return {"host": self.host or socket.gethostname(), "port": port, "token": self.token}

    def start(self, command: list[str]) -> None:
        """Start the others on this machine; each finds in its environment whom to follow."""
        root = Path(__file__).parent.parent
        for rank in range(1, self.size):
            found = json.dumps(self.address | {"rank": rank})
            environment = {**os.environ, ADDRESS: found}
            self.processes.append(subprocess.Popen(command, cwd=root, env=environment))

    def gather(self) -> None:
        """Wait for the others. Transient if one ends or does not come."""
        until = time.monotonic() + START_SECONDS
        self.listener.settimeout(0.2)
        while len(self.members) < self.size - 1:
            ended = [p.returncode for p in self.processes if p.poll() is not None]
            if ended or time.monotonic() > until:
                why = f"one ended with status {ended[0]}" if ended else "the others did not come"
                raise Transient(
                    f"{len(self.members) + 1} of {self.size} processes are there: {why}; run again"
                )
            with contextlib.suppress(TimeoutError):
                self._welcome(self.listener.accept()[0])

    def _welcome(self, connection: socket.socket) -> None:
        connection.settimeout(GRACE_SECONDS)
        hello = receive(connection)
        if not secrets.compare_digest(str(hello.get("token")), self.token):
            connection.close()
            return
        connection.settimeout(None)
        keep_alive(connection)
        rank = hello["rank"]
        process = self.processes[rank - 1] if self.processes else None
        member = Member(rank, connection, process, hello["host"])
        self.members.append(member)
        threading.Thread(target=member.listen, args=(self._loses,), daemon=True).start()

    def _loses(self, why: str, final: bool) -> None:
        if self._lost is None:
            self._lost = (why, final)
            self._known.set()

    @contextlib.contextmanager
    def lead(self, entry: str, size: int, fail: Callable[[str], None]) -> Iterator[Group]:
        """The group that trains an entry. Transient or UserError for what befell another process.

        fail: tells why where this process has to end in the middle of a sum that another one left.
        """
        import torch

        from pipeline.training.group import Group, Parted

        if self._lost is not None:
            raise Transient(told(*self._lost))
        self.gather()
        host = self.address["host"]
        store = torch.distributed.TCPStore(host, 0, size, is_master=True, wait_for_workers=False)
        for member in self.members:
            send(member.connection, {"entry": entry, "size": size, "port": store.port})
        left, group = threading.Event(), None
        threading.Thread(target=self._watch, args=(left, fail), daemon=True).start()
        try:
            group = Group(0, size, store, backend())
            yield group
            for member in self.members:
                if member.rank < size:  # what it may yet fail at changes nothing any more
                    with contextlib.suppress(queue.Empty):
                        member.said.get(timeout=GRACE_SECONDS)
        except Parted as e:
            self._known.wait(GRACE_SECONDS)
            why, final = self._lost or (str(e), False)
            raise (UserError if final else Transient)(told(why, final)) from e
        finally:
            left.set()
            if group is not None:
                group.close()

    def _watch(self, left: threading.Event, fail: Callable[[str], None]) -> None:
        """End this process if one of the others was lost and the training does not notice."""
        self._known.wait()
        if not left.wait(GRACE_SECONDS):
            fail(told(*self._lost))
            os._exit(1)

    def dismiss(self) -> None:
        """Let the others end, and wait until those that were started here have."""
        for member in self.members:
            with contextlib.suppress(OSError):
                member.connection.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for process in self.processes:
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def told(why: str, final: bool) -> str:
    return why if final else f"{why}; the last checkpoint is kept, run again to go on from it"


@contextlib.contextmanager
def together(
    entry: str, shards: int, command: list[str], fail: Callable[[str], None]
) -> Iterator[Group]:
    """The group of processes that trains an entry, this one alone where no others are wanted."""
    from pipeline.training.group import Group

    size = processes_for(shards)
    if size == 1:
        yield Group()
        return
    if (team := srun_team()) is not None:
        with team.lead(entry, size, fail) as group:
            yield group
        return
    team = Team("127.0.0.1", size)
    try:
        team.start(command)
        with team.lead(entry, size, fail) as group:
            yield group
    finally:
        team.dismiss()


def backend() -> str:
    """Of `torch.distributed`, on this process's own GPU where there are some."""
    import torch

    if not torch.cuda.is_available():
        return "gloo"
    torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    return "nccl"


def local_rank() -> int:
    """Which of this machine's processes of the job this one is."""
    own = os.environ.get(ADDRESS)
    return json.loads(own)["rank"] if own else int(os.environ.get("SLURM_LOCALID", "0"))


# --- the ranks of an `srun`


def srun_ranks() -> int:
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))


def _meeting(workspace: Workspace) -> Path:
    """Where rank 0 says where it is: one file for each start of a step.

    A job that is requeued counts its steps anew, and Snakemake's executor keeps from it how often
    it was restarted. So the port of this very `srun` is in the name, too.
    """
    keys = ("JOB_ID", "STEP_ID", "RESTART_COUNT", "STEP_LAUNCHER_PORT")
    name = "-".join(os.environ.get(f"SLURM_{key}", "0") for key in keys)
    return workspace.scratch / "ranks" / f"{name}.json"


@functools.cache
def srun_team() -> Team | None:
    """The other ranks of this `srun`; None where there is one only."""
    return Team("", srun_ranks()) if srun_ranks() > 1 else None


def publish(workspace: Workspace) -> None:
    """Tell the other ranks where this one is, before it works on anything."""
    from pipeline.store.files import write_json

    if (team := srun_team()) is not None:
        path = _meeting(workspace)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, team.address)
        path.chmod(0o600)


def address_to_follow(workspace: Workspace) -> dict[str, Any] | None:
    """Where rank 0 is, and which rank this process has; None for rank 0 itself."""
    if own := os.environ.get(ADDRESS):
        return json.loads(own)
    rank = int(os.environ.get("SLURM_PROCID", "0"))
    if srun_ranks() == 1 or rank == 0:
        return None
    path, until = _meeting(workspace), time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        with contextlib.suppress(OSError, ValueError):
            return json.loads(path.read_text()) | {"rank": rank}
        time.sleep(0.2)
    raise UserError(f"{path}: rank 0 of this srun did not write it; is the checkout on all nodes?")


# --- the others


def follow(address: dict[str, Any], train: Train) -> None:
    """Train what rank 0 says, until it is gone."""
    for asking in (signal.SIGTERM, signal.SIGINT):  # rank 0 is asked as well, and then goes
        signal.signal(asking, signal.SIG_IGN)
    try:
        connection = socket.create_connection((address["host"], address["port"]), START_SECONDS)
    except ConnectionRefusedError:  # it had nothing to do
        return
    connection.settimeout(None)
    keep_alive(connection)
    rank = address["rank"]
    send(connection, {"token": address["token"], "rank": rank, "host": socket.gethostname()})
    tasks: queue.Queue = queue.Queue()
    busy = threading.Event()

    def listen() -> None:
        with contextlib.suppress(OSError, ValueError), connection.makefile() as lines:
            for line in lines:
                tasks.put(json.loads(line))
        if busy.is_set():
            os._exit(1)
        tasks.put(None)

    threading.Thread(target=listen, daemon=True).start()
    while (task := tasks.get()) is not None:
        if rank >= task["size"]:
            continue
        busy.set()
        said = _take_part(address["host"], rank, task, train)
        busy.clear()
        with contextlib.suppress(OSError):  # rank 0 failed by itself, and tells of that
            send(connection, said)


def _take_part(host: str, rank: int, task: dict[str, Any], train: Train) -> dict[str, Any]:
    """What there is to say to rank 0 afterwards."""
    import torch

    from pipeline.training.group import Group, Parted

    size = task["size"]
    group = None
    try:
        store = torch.distributed.TCPStore(host, task["port"], size, is_master=False)
        group = Group(rank, size, store, backend())
        train(task["entry"], group)
        return {"done": task["entry"]}
    except Parted as e:
        return {"parted": str(e)}
    except UserError as e:
        return {"error": str(e), "final": not isinstance(e, Transient)}
    except Exception as e:
        traceback.print_exc(file=sys.stderr)
        return {"error": f"process {rank}: {type(e).__name__}: {e}", "final": False}
    finally:
        if group is not None:
            group.close()


# --- the connection


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def receive(connection: socket.socket) -> dict[str, Any]:
    """The first line of a connection, {} if it is nothing of ours."""
    found = b""
    with contextlib.suppress(OSError, ValueError):
        while not found.endswith(b"\n") and len(found) < 4096:
            if not (part := connection.recv(1)):
                break
            found += part
        message = json.loads(found)
        return message if isinstance(message, dict) else {}
    return {}


def keep_alive(connection: socket.socket) -> None:
    """Notice within some 15 seconds that the machine at the other end is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 2)):
        if hasattr(socket, name):  # not everywhere
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
