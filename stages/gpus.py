"""Which GPUs of this machine a job takes, where no scheduler says so.

A GPU has a lock file for each job that it may be shared by. The kernel frees a lock when its
process ends, however it does.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.errors import UserError

POLL_SECONDS = 0.2
MOST_SHARING = 64
VISIBLE = "CUDA_VISIBLE_DEVICES"
# They compute in numpy.
WITHOUT = ("spectrum", "bounds", "clusters", "pairing", "consistency")


def listed() -> list[str]:
    """The GPUs that jobs may take: those that CUDA_VISIBLE_DEVICES lists, else this machine's."""
    if VISIBLE in os.environ:
        return [name.strip() for name in os.environ[VISIBLE].split(",") if name.strip()]
    return _asked("index")


def kinds() -> list[str]:
    """What the GPUs of this machine are; none where jobs may take none."""
    return _asked("name") if listed() else []


def _asked(field: str) -> list[str]:
    """Of each GPU of this machine."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return []


def used_by_torch() -> bool:
    """Whether this build of torch computes on GPUs at all."""
    import torch

    return torch.version.cuda is not None or torch.version.hip is not None


def sharing() -> int:
    """Jobs that may share a GPU. UserError if TSPACE_JOBS_PER_GPU is no such number."""
    text = os.environ.get("TSPACE_JOBS_PER_GPU") or "1"
    if not text.isdecimal() or not 0 < int(text) <= MOST_SHARING:
        raise UserError(f"TSPACE_JOBS_PER_GPU: {text!r} is no number of jobs; use 1, 2, 3, ...")
    return int(text)


@contextlib.contextmanager
def claimed(kind: str, wanted: int, tell: Callable[[str], None] = print) -> Iterator[None]:
    """Within, this process and its children see GPUs that no other job has, and `wanted` at most.

    Waits until there are as many. Nothing is done under SLURM, on a machine without a GPU, and with
    a torch that has no use for one. Must be entered before torch looks for devices.
    """
    names = [] if "SLURM_JOB_ID" in os.environ or kind in WITHOUT else listed()
    if not names or not used_by_torch():
        yield
        return
    folder = Path(tempfile.gettempdir()) / f"tspace-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    count, told = min(wanted, len(names)), False
    while not (locks := _locked(folder, names, count)):
        if not told:
            tell(f"waits for {count} of the GPUs {', '.join(names)}")
            told = True
        time.sleep(POLL_SECONDS)
    before = os.environ.get(VISIBLE)
    os.environ[VISIBLE] = ",".join(locks)
    try:
        yield
    finally:
        for lock in locks.values():
            os.close(lock)
        os.environ.pop(VISIBLE)
        if before is not None:
            os.environ[VISIBLE] = before


def _locked(folder: Path, names: list[str], count: int) -> dict[str, int]:
    """Locks of `count` GPUs, by name, those that fewest share first; none if fewer are free."""
    found: dict[str, int] = {}
    # One at a time looks, or two jobs could each hold half of what they want.
    with open(folder / "looking", "a") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        for place in range(sharing()):
            for name in names:
                if len(found) < count and name not in found:
                    path = folder / f"{name.replace('/', '-')}.{place}"
                    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
                    try:
                        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        found[name] = lock
                    except BlockingIOError:
                        os.close(lock)
        if len(found) < count:
            for lock in found.values():
                os.close(lock)
            return {}
    return found
