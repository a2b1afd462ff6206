"""`tspace status --watch`: a full screen that tells how a run is getting on.

It only reads. The screen is drawn by ANSI sequences on the terminal's alternate screen, each cell
written over the old one, so nothing flickers and what was on the terminal before comes back.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.devices import cores
from pipeline.errors import UserError
from pipeline.store.entry import Entry
from stages.numbers import MISSING, counted, duration, si
from stages.tools import outlook as planning
from stages.tools.status import (
    Found,
    Needed,
    ended,
    inputs,
    look_at,
    needed_jobs,
    show_status,
)
from stages.workspace import Workspace

FORECAST_SECONDS = 30.0  # between two estimates, which read more than a look does
RECENT = 9  # finished jobs of a kind whose seconds are looked at
GPU_SECONDS = 5.0  # for an answer of nvidia-smi
ENTER, LEAVE = "\033[?1049h\033[?25l", "\033[?25h\033[?1049l"  # alternate screen, without cursor


def watch(workspace: Workspace, every: float) -> None:
    """Show the screen until all jobs are done, or Ctrl-C; then the state as text.

    Where standard output is no terminal, the state is printed once. UserError if nothing can be
    planned. Raises SystemExit when the process is asked to end.
    """
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        print("status --watch: standard output is no terminal; printed once", file=sys.stderr)
        show_status(workspace)
        return
    watcher = Watcher(workspace)
    watcher.look()  # what cannot be planned is told before the screen is taken
    with contextlib.suppress(KeyboardInterrupt), _screen() as draw:
        while not watcher.ended:
            draw(watcher.lines)
            wait = time.monotonic() + every
            while (left := wait - time.monotonic()) > 0:
                time.sleep(min(left, 0.2))
                draw.resized(watcher.lines)
            try:
                watcher.look()
            except UserError as e:  # somebody is editing params.yaml
                watcher.told = str(e)
    show_status(Workspace(workspace.root))


class _Draw:
    """Draws lines on the whole terminal."""

    def __init__(self) -> None:
        self.size = os.terminal_size((0, 0))

    def __call__(self, lines: Callable[[int, int], Sequence[str]]) -> None:
        """lines: what to show on so many columns and rows."""
        size = _size()
        erase = "" if size == self.size else "\033[2J"
        self.size = size
        shown = lines(size.columns, size.lines)[: size.lines]
        # Every cell of a row is written, so none has to be erased first.
        rows = [
            f"\033[{number};1H{line[: size.columns].ljust(size.columns)}"
            for number, line in enumerate(shown, 1)
        ]
        below = "" if len(shown) == size.lines else f"\033[{len(shown) + 1};1H\033[J"
        sys.stdout.write(f"{erase}{''.join(rows)}{below}")
        sys.stdout.flush()

    def resized(self, lines: Callable[[int, int], Sequence[str]]) -> None:
        """Draw again if the terminal has another size than before."""
        if _size() != self.size:
            self(lines)


def _size() -> os.terminal_size:
    """Of the terminal itself: an exported COLUMNS would stay what it was."""
    found = os.get_terminal_size(sys.stdout.fileno())
    return found if found.columns and found.lines else os.terminal_size((80, 24))


@contextlib.contextmanager
def _screen() -> Iterator[_Draw]:
    """The terminal as a screen; it comes back as it was, also at Ctrl-C and SIGTERM."""

    def end(*_: Any) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        sys.stdout.write(ENTER)
        sys.stdout.flush()
        yield _Draw()
    finally:
        with contextlib.suppress(OSError):  # the terminal is gone
            sys.stdout.write(LEAVE)
            sys.stdout.flush()
        signal.signal(signal.SIGTERM, before)


# --- what is shown


@dataclass(frozen=True)
class Running:
    """A running job: its label, and what is known of it; memory and GPU of this machine alone."""

    label: str
    found: Found
    memory: int | None  # bytes
    gpu: str


@dataclass
class Forecast:
    """Seconds that jobs are expected to take, one after the other; None where unknown."""

    experts: dict[str, float | None] = field(default_factory=dict)
    samples: float | None = None
    scores: int = 0  # jobs, planned or not
    kinds: dict[str, float | None] = field(default_factory=dict)  # of one job


class Watcher:
    """A run as it was when it was looked at last."""

    def __init__(self, workspace: Workspace):
        self.workspace = workspace
        self.needed: list[Needed] = []
        self.found: dict[str, Found] = {}
        self.running: list[Running] = []
        self.gpus: list[str] | None = None  # None: no nvidia-smi here
        self.cost = ""
        self.told = ""
        self.forecast = Forecast()
        self._inputs: Any = None
        self._forecast_at = -FORECAST_SECONDS
        self._spent: dict[str, dict[str, Any]] = {}  # circumstances of finished jobs

    @property
    def ended(self) -> bool:
        return ended(self.needed, self.found)

    def look(self) -> None:
        """UserError if params.yaml cannot be planned."""
        seen = inputs(self.workspace)
        if seen != self._inputs:  # planning anew costs more than looking
            self.workspace = Workspace(self.workspace.root)
            self.needed, self._inputs = needed_jobs(self.workspace), seen
            self._forecast_at = -FORECAST_SECONDS
        if time.monotonic() - self._forecast_at >= FORECAST_SECONDS:
            self.forecast = forecast(self.workspace)
            self._forecast_at = time.monotonic()
        self.found = look_at(self.workspace, self.needed)
        labels = {name: label for part in self.needed for name, label in part.jobs}
        using = gpu_use()
        self.gpus = None if using is None else using[0]
        self.running = []
        for name, found in self.found.items():
            if found.status == "running":
                pids = processes_of(self.workspace.store.entry(name))
                memory = sum(map(resident_bytes, pids)) or None
                gpu = ", ".join(using[1][pid] for pid in pids if pid in using[1]) if using else ""
                self.running.append(Running(labels[name], found, memory, gpu))
        self.cost = self._cost()
        self.told = ""

    def _cost(self) -> str:
        """What all jobs of the plan took so far, those that are not finished included."""
        device, cpu, unknown = 0.0, 0.0, 0
        for name, found in self.found.items():
            known = self._spent.get(name)
            if known is None:
                known = self.workspace.store.entry(name).circumstances()
                if found.status == "done":
                    self._spent[name] = known
            if (on_device := known.get("device_seconds")) is not None:
                device += on_device
            elif "cpu_seconds" in known:
                cpu += known["cpu_seconds"]
            else:
                unknown += found.status == "done"
        parts = [f"{duration(device)} of GPU"] if device else []
        parts += [f"{duration(cpu)} of CPU"] if cpu or not device else []
        told = f"; {counted(unknown, 'job')} made elsewhere" if unknown else ""
        return " and ".join(parts) + told

    def lines(self, columns: int, rows: int) -> list[str]:
        """The whole screen, at most so many rows."""
        if self.told:
            return textwrap.wrap(f"tspace: {self.told}", columns)
        left = [
            stage_left(part, self.found, self.forecast, len(self.running)) for part in self.needed
        ]
        head = [["stage", "jobs", "done", "running", "failed", "waiting", "time left"]]
        for part, seconds in zip(self.needed, left, strict=True):
            states = [self.found[name].status for name, _ in part.jobs]
            counts = [states.count(s) for s in ("done", "running", "failed")]
            numbers = [f"{n:,}" for n in (len(states), *counts, len(states) - sum(counts))]
            if part.later:
                numbers = [MISSING] * 5
            head.append([part.stage, *numbers, _time(seconds)])
        known = [seconds for seconds in left if seconds is not None]
        least = "at least " if len(known) < len(left) else "about "
        clock = time.strftime("%H:%M:%S")
        shown = [
            f"{self.workspace.root.name}  {clock}  time left: "
            f"{'unknown' if not any(known) else least + duration(sum(known))}"
            f"  cost so far: {self.cost}",
            "",
            *_table(head, columns, range(1, 7)),
        ]
        if self.gpus:
            shown += ["", *self.gpus]
        failed = [
            f"failed: {label}: {self.found[name].error}"
            for part in self.needed
            for name, label in part.jobs
            if self.found[name].status == "failed"
        ]
        notes = [f"{part.stage}: {part.later}" for part in self.needed if part.later]
        shown += ["", *self._jobs(columns, rows - len(shown) - len(failed[:3]) - len(notes) - 3)]
        return [*shown, *failed[:3], "", *notes]

    def _jobs(self, columns: int, rows: int) -> list[str]:
        """The running jobs, on so many rows."""
        head = ["running", "done", "speed", "loss", "left", "memory"]
        head += ["GPU"] if self.gpus is not None else []
        table = [head]
        for job in self.running:
            state = job.found.progress
            cells = [job.label, *(_now(state) if state else ["starts", "", "", ""])]
            cells.append("" if job.memory is None else _bytes(job.memory))
            table.append(cells + ([job.gpu] if self.gpus is not None else []))
        room = max(rows - 1, 1)
        more = len(self.running) - room
        if more > 0:
            del table[room:]
        lines = _table(table, columns, range(1, 6))
        return [*lines, *([f"and {more + 1} more"] if more > 0 else [])]


def _now(state: dict[str, Any]) -> list[str]:
    done, total, rate = state["done"], max(state["total"], 1), state["rate"]
    speed = f"{si(rate, digits=3)} {state['unit']}/s".replace("\u202f", " ") if rate else ""
    loss = "" if state.get("loss") is None else f"{state['loss']:.4f}"
    return [f"{done / total:.0%}", speed, loss, _time((total - done) / rate if rate else None)]


def _time(seconds: float | None) -> str:
    return "?" if seconds is None else duration(seconds) if seconds else ""


def _bytes(number: float) -> str:
    return si(number, "B", digits=3).replace("\u202f", " ")


def _table(lines: Sequence[Sequence[str]], columns: int, right: range) -> list[str]:
    """Rows as wide as the terminal: what is left over goes to the first column, or is cut there."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    widths[0] = max(columns - sum(widths[1:]) - 2 * (len(widths) - 1), 8)
    shown = []
    for line in lines:
        first = line[0] if len(line[0]) <= widths[0] else f"{line[0][: widths[0] - 1]}…"
        cells = [first.ljust(widths[0])]
        cells += [
            cell.rjust(widths[i]) if i in right else cell.ljust(widths[i])
            for i, cell in enumerate(line[1:], 1)
        ]
        shown.append("  ".join(cells))
    return shown


# --- how long it takes


def forecast(workspace: Workspace) -> Forecast:
    """What is left of experts and samples as `tspace plan` has it, of others as such jobs took."""
    found = planning.outlook(workspace)
    times = [drawing.seconds_left for drawing in found.drawings]
    milestones = sum(
        drawing.samples // workspace.params.evaluate.samples for drawing in found.drawings
    )
    folders = workspace.store.root.iterdir() if workspace.store.root.exists() else ()
    return Forecast(
        experts={row.name: row.seconds_left for row in found.experts},
        samples=None if None in times else sum(times),
        scores=milestones,
        kinds={folder.name: _typical(folder) for folder in folders},
    )


def _typical(folder: Path) -> float | None:
    """Seconds of the latest finished jobs of a kind, in the middle; None if there are none."""
    times = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda e: -e.stat().st_mtime):
            made = Entry(Path(entry.path))
            seconds = made.circumstances().get("seconds") if made.done else None
            if seconds is not None:
                times.append(seconds)
            if len(times) == RECENT:
                break
    return statistics.median(times) if times else None


def stage_left(
    part: Needed, found: dict[str, Found], expected: Forecast, running: int
) -> float | None:
    """Seconds until a stage is done, with as many jobs at once as run now; None where unknown.

    Where nothing runs: as many as this machine has cores.
    """
    workers = running or cores()
    each = [_job_left(n, found[n], expected) for n, _ in part.jobs if found[n].status != "done"]
    if part.stage == "scores" and part.later:
        each = [expected.kinds.get("scores")] * expected.scores
    if part.stage == "samples" and (each or part.later):
        # What is not begun is known in all, and not by job.
        longest = max((s for s in each if s is not None), default=0.0)
        return None if expected.samples is None else max(expected.samples / workers, longest)
    if None in each or (part.later and not each):
        return None
    return max(sum(each) / workers, max(each, default=0.0))


def _job_left(name: str, found: Found, expected: Forecast) -> float | None:
    state = found.progress
    if found.status == "running" and state and state["rate"]:
        return (state["total"] - state["done"]) / state["rate"]
    if name in expected.experts:
        return expected.experts[name]
    return expected.kinds.get(name.partition("/")[0])


# --- what jobs on this machine use


def processes_of(entry: Entry) -> list[int]:
    """The process that works on an entry and all that it started; [] where it is elsewhere.

    Elsewhere is another host, or another process that has its number by now.
    """
    holder = entry.holder()
    if holder.get("host") != socket.gethostname():
        return []
    try:
        status = Path(f"/proc/{holder['pid']}/stat").read_text().rpartition(")")[2].split()
    except (OSError, KeyError):
        return []
    if status[19] != holder.get("born"):  # field 22, when it started
        return []
    found = [holder["pid"]]
    for pid in found:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                children = Path(f"/proc/{pid}/task/{thread}/children").read_text()
                found += [int(child) for child in children.split()]
    return found


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM; 0 for one that has ended."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def gpu_use() -> tuple[list[str], dict[int, str]] | None:
    """A line for each GPU, and what each process uses of which; None without an nvidia-smi."""
    cards = _asked("--query-gpu=uuid,index,name,utilization.gpu,memory.used,memory.total")
    if cards is None:
        return None
    lines, index = [], {}
    for uuid, number, name, busy, used, total in cards:
        index[uuid] = number
        lines.append(f"GPU {number}  {name}  {busy} %  {_mib(used)} of {_mib(total)}")
    using: dict[int, str] = {}
    for pid, uuid, used in _asked("--query-compute-apps=pid,gpu_uuid,used_memory") or []:
        using[int(pid)] = f"{index.get(uuid, '?')}: {_mib(used)}"
    return lines, using


def _asked(query: str) -> list[list[str]] | None:
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=GPU_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line]


def _mib(text: str) -> str:
    """Mebibytes as nvidia-smi has them; [N/A] where a driver does not tell."""
    return _bytes(float(text) * 2**20) if text.replace(".", "").isdecimal() else MISSING
