"""How long jobs take by the clock, as many at once as there is room for."""

from __future__ import annotations

import contextlib
import heapq
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from stages.gpus import WITHOUT
from stages.inputs import device


@contextlib.contextmanager
def timed() -> Iterator[list[float]]:
    """The seconds that the block takes, in the list once it has ended.

    On a CPU those that it computes, if these are fewer: what else the machine does is not counted.
    """
    took: list[float] = []
    wall, cpu = time.perf_counter(), time.process_time()
    yield took
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    took.append(wall if device() == "cuda" else min(wall, cpu))


@dataclass(frozen=True)
class Process:
    """Jobs that one process does, one after the other.

    seconds: of all of them and of its start; None if unknown. needs: names of processes that must
    have ended. weight: the heaviest start first, as in `fanout`.
    """

    name: str
    kind: str
    jobs: int
    seconds: float | None
    threads: int = 1
    needs: tuple[str, ...] = ()
    weight: float = 0.0


@dataclass(frozen=True)
class StageTime:
    """What is left of a stage.

    jobs: that are missing; 0 of a stage that has none at any time. work: seconds of them, one after
    the other. clock: seconds by the clock. unknown: jobs of which no time is known; both are
    without these.
    """

    stage: str
    jobs: int
    work: float
    clock: float
    unknown: int = 0


def makespan(processes: Iterable[Process], cores: float, gpus: int = 0) -> float:
    """Seconds until the last of some processes ends, each started as soon as there is room for it.

    cores: that their threads share; gpus: of which each process takes one that computes there, or
    none here. Unknown seconds count as none.
    """
    left = {process.name: process for process in processes}
    waiting = sorted(left.values(), key=lambda process: -process.weight)
    running: list[tuple[float, str]] = []  # when each ends
    now, free, cards = 0.0, cores, gpus or math.inf
    while waiting or running:
        for process in list(waiting) if free else ():
            threads, card = _takes(process, cores)
            ready = not any(need in left for need in process.needs)
            if ready and threads <= free and card <= cards:
                waiting.remove(process)
                heapq.heappush(running, (now + (process.seconds or 0.0), process.name))
                free, cards = free - threads, cards - card
            if not free:
                break
        if not running:
            raise ValueError("processes need one another")
        now, name = heapq.heappop(running)
        threads, card = _takes(left.pop(name), cores)
        free, cards = free + threads, cards + card
    return now


def _takes(process: Process, cores: float) -> tuple[float, int]:
    """Cores and GPUs; Snakemake cuts threads to what there is."""
    return min(process.threads, cores), int(process.kind not in WITHOUT)
