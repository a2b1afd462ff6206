"""How an entry was made: time, processor, load, interruptions. No part of what was made.

A retrain that gives the same bits takes another time on another machine, so none of this is in the
set of files that an entry's DONE lists and that DVC hashes.
"""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.store.entry import Entry
from pipeline.store.files import Lost, write_sealed

SAMPLE_SECONDS = 10.0  # between two looks at the load


def cpu_seconds() -> float:
    """CPU time that this process and its ended children have used, in seconds."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


class Clock:
    """Wall-clock and CPU-seconds of some work, over all processes that worked on it."""

    def __init__(self) -> None:
        self.before = (0.0, 0.0)  # of earlier processes
        self._started = (time.monotonic(), cpu_seconds())

    def read(self) -> tuple[float, float]:
        """Seconds by the wall clock and of CPUs so far."""
        now = (time.monotonic(), cpu_seconds())
        wall, cpu = (b + n - s for b, n, s in zip(self.before, now, self._started, strict=True))
        return wall, cpu


def processor() -> str:
    """The kind of processor, as the system calls it; its architecture where it does not."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@contextlib.contextmanager
def measured(entry: Entry) -> Iterator[dict[str, Any]]:
    """Measure the work of the block and keep `circumstances.json` of the entry up to date.

    What earlier processes spent on the entry is added up; each that did not finish it counts as an
    interruption. What the block puts into the dict it is given is kept with the rest.
    """
    earlier, more = entry.circumstances(), {}
    clock = Clock()
    clock.before = (earlier.get("seconds", 0.0), earlier.get("cpu_seconds", 0.0))
    cores = os.cpu_count() or 1
    loads = [os.getloadavg()[0] / cores]

    def write() -> None:
        seconds, cpu = clock.read()
        own = seconds - clock.before[0]
        before = clock.before[0]
        load = sum(loads) / len(loads)
        # torch is looked at, never imported: most kinds of work do without it.
        torch = sys.modules.get("torch")
        on_gpu = torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized()
        held = earlier.get("device_seconds")
        found = {
            "seconds": seconds,
            "cpu_seconds": cpu,
            "device_seconds": (held or 0.0) + own if on_gpu else held,
            "device": torch.cuda.get_device_name() if on_gpu else "cpu",
            "host": processor(),
            "cores": cores,
            "threads": torch.get_num_threads() if torch is not None else 1,
            "load": (earlier.get("load", 0.0) * before + load * own) / seconds if seconds else load,
            "interruptions": earlier["interruptions"] + 1 if earlier else 0,
        }
        write_sealed(entry.path / "circumstances.json", found | more)

    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(SAMPLE_SECONDS):
            loads.append(os.getloadavg()[0] / cores)
            # A full disk, or that the entry was taken over, is for the work itself to report.
            with contextlib.suppress(OSError, Lost):
                write()

    write()
    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield more
    finally:
        stop.set()
        thread.join()
        with contextlib.suppress(OSError):
            write()
