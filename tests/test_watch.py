"""`tspace status --watch` on a real terminal, beside a training that really runs."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import psutil
import pytest

from pipeline.store.files import write_sealed
from stages.reporter import Reporter
from stages.tools import watch
from stages.workspace import Workspace
from tests.test_inspection import PARAMS, experts_of, make, small_workspace

LONG = PARAMS.replace("images: 96,", "images: 2000000,").replace("[48]", "[]")
ENTER, LEAVE = watch.ENTER.encode(), watch.LEAVE.encode()


class Terminal:
    """A command on a terminal of its own, and what it wrote there."""

    def __init__(self, root: Path, *command: str, size: tuple[int, int] = (24, 90), **env: str):
        kept = {k: v for k, v in os.environ.items() if k != "TSPACE_STORE"}
        bins = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.pid, self._end = pty.fork()
        if not self.pid:
            os.chdir(root)
            os.execvpe(command[0], command, {**kept, "PATH": bins, "TERM": "xterm", **env})
        self.written = b""
        self.status: int | None = None
        self.resize(size)

    def resize(self, size: tuple[int, int]) -> None:
        fcntl.ioctl(self._end, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))

    def type(self, text: bytes) -> None:
        os.write(self._end, text)

    def read_until(self, found, seconds: float = 60) -> None:
        """Until `found(written)`, or the command's end where it never is."""
        wait = time.monotonic() + seconds
        while not found(self.written):
            assert time.monotonic() < wait, self.written.decode()
            if select.select([self._end], [], [], 0.1)[0]:
                try:
                    more = os.read(self._end, 65536)
                except OSError:  # Linux's end of a terminal
                    more = b""
                self.written += more
                if not more:
                    assert found is ENDED, self.written.decode()
                    break
        if found is ENDED:
            self.status = os.waitpid(self.pid, 0)[1]
            os.close(self._end)

    def screen(self) -> list[str]:
        """The rows of the last whole drawing."""
        last = self.written.partition(LEAVE)[0].split(b"\033[1;1H")[-1].decode()
        return re.sub(r"\033\[\d+;1H", "\n", last).replace("\033[J", "").split("\n")


def ENDED(_: bytes) -> bool:
    return False


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TSPACE_STORE", raising=False)
        found = small_workspace(tmp_path_factory.mktemp("watch") / "tspace", LONG)
        for needed in ("Snakefile", "dvc.yaml"):
            (found.root / needed).touch()
        yield found


@pytest.fixture(scope="module")
def trains(workspace):
    """A process that trains `one`, far from its end."""
    [job] = experts_of(workspace, "one")
    entry = workspace.store.plan("expert", job.spec.as_json())
    command = [sys.executable, "-m", "stages.cli", "job", "--root", str(workspace.root)]
    command += ["--store", str(workspace.store.root), entry.name]
    process = subprocess.Popen(command, cwd=Path(__file__).parent.parent)
    wait = time.monotonic() + 60
    while entry.progress() is None:
        assert time.monotonic() < wait and process.poll() is None
        time.sleep(0.1)
    yield psutil.Process(process.pid)
    process.send_signal(signal.SIGTERM)
    process.wait(60)


def drawn(times: int):
    return lambda written: written.count(b"\033[1;1H") > times


def test_a_running_job_is_shown_and_ctrl_c_gives_the_terminal_back(workspace, trains):
    terminal = Terminal(workspace.root, "tspace", "status", "--watch", "--every", "0.5")
    terminal.read_until(drawn(3))
    rows = terminal.screen()
    assert all(len(row) == 90 for row in rows[:-1])
    assert re.match(r"tspace  \d\d:\d\d:\d\d  time left: .*cost so far: .* of CPU", rows[0])
    experts = next(row.split() for row in rows if row.startswith("experts"))
    assert experts[1:6] == ["5", "0", "1", "0", "4"]
    head = next(row for row in rows if row.startswith("running"))
    assert head.split() == ["running", "done", "speed", "loss", "left", "memory"]
    [job] = [row for row in rows if row.startswith("one ")]
    done, speed, unit, *_, memory, size = job.split()[1:]
    assert done.endswith("%") and float(speed) > 0 and unit in ("images/s", "kimages/s", "k")
    assert size == "MB" and 0.5 < float(memory) * 1e6 / trains.memory_info().rss < 2
    assert any("samples: planned once" in row for row in rows)
    terminal.type(b"\x03")
    terminal.read_until(ENDED)
    assert terminal.status == 0
    before, _, rest = terminal.written.partition(ENTER)
    assert before == b"" and terminal.written.count(LEAVE) == 1
    assert terminal.written.count(b"\033[2J") == 1  # the first time alone: nothing flickers
    # What it showed stays on the terminal as text.
    assert "experts" in rest.partition(LEAVE)[2].decode()
    assert trains.is_running()


def test_sigterm_gives_the_terminal_back(workspace):
    terminal = Terminal(workspace.root, "tspace", "status", "--watch")
    terminal.read_until(drawn(0))
    os.kill(terminal.pid, signal.SIGTERM)
    terminal.read_until(ENDED)
    assert terminal.written.endswith(LEAVE)
    assert os.waitstatus_to_exitcode(terminal.status) == 143


def test_it_follows_the_size_of_the_terminal(workspace, trains):
    terminal = Terminal(workspace.root, "tspace", "status", "--watch", "--every", "60")
    terminal.read_until(drawn(0))
    terminal.resize((9, 60))
    terminal.read_until(lambda written: written.count(b"\033[2J") == 2)
    terminal.type(b"\x03")
    terminal.read_until(ENDED)
    rows = terminal.screen()
    assert len(rows) == 9 and all(len(row) == 60 for row in rows[:-1])


def test_a_mistake_while_watching_is_told_and_mended(workspace):
    terminal = Terminal(workspace.root, "tspace", "status", "--watch", "--every", "0.2")
    path = workspace.root / "params.yaml"
    text = path.read_text()
    try:
        terminal.read_until(drawn(1))
        path.write_text(text.replace("seed: 0", "seed: a"))
        terminal.read_until(lambda written: b"seed: expected a whole number" in written)
        path.write_text(text)
        terminal.read_until(lambda w: b"time left" in w.rpartition(b"seed: expected")[2])
    finally:
        path.write_text(text)
    terminal.type(b"\x03")
    terminal.read_until(ENDED)
    assert terminal.status == 0


@pytest.mark.parametrize("option", [["--watch"], ["--watch", "--every", "1"]])
def test_where_there_is_no_terminal_it_prints_once(workspace, option):
    command = [Path(sys.executable).parent / "tspace", "status", *option]
    done = subprocess.run(
        command, cwd=workspace.root, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == "status --watch: standard output is no terminal; printed once\n"
    assert done.stdout.startswith("stage") and "\033" not in done.stdout


def test_a_gpu_has_a_line_and_a_column(workspace, trains, tmp_path):
    """nvidia-smi's answers on a machine with two cards, of which the job uses the second."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        "#!/bin/sh\ncase $1 in\n"
        "*query-gpu*) echo 'GPU-a, 0, NVIDIA H100, 0, 4, 81559'\n"
        "  echo 'GPU-b, 1, NVIDIA H100, 93, 20480, 81559';;\n"
        f"*) echo '{trains.pid}, GPU-b, 20470';;\nesac\n"
    )
    smi.chmod(0o755)
    bins = f"{tmp_path}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    terminal = Terminal(workspace.root, "tspace", "status", "--watch", PATH=bins)
    terminal.read_until(drawn(0))
    terminal.type(b"\x03")
    terminal.read_until(ENDED)
    rows = [row.rstrip() for row in terminal.screen()]
    assert "GPU 1  NVIDIA H100  93 %  21.5 GB of 85.5 GB" in rows
    assert next(row for row in rows if row.startswith("running")).endswith("memory  GPU")
    assert next(row for row in rows if row.startswith("one ")).endswith("1: 21.5 GB")


def test_times_left_are_those_of_the_jobs(tmp_path, monkeypatch):
    """Of a running job by its own speed; of others as such ones took; the longest at least."""
    monkeypatch.setattr(watch, "cores", lambda: 2)
    workspace = small_workspace(tmp_path / "tspace")
    done, *_ = experts_of(workspace, "apart")
    assert make(workspace, [done]) == [True]
    entry = workspace.store.entry(done.name)
    known = entry.circumstances()
    known |= {"seconds": 12.0, "cpu_seconds": 12.0, "snapshot_seconds": {"12": 6.0, "24": 12.0}}
    write_sealed(entry.path / "circumstances.json", known)
    [one] = experts_of(workspace, "one")
    running = workspace.store.plan("expert", one.spec.as_json())
    with running.lease():
        Reporter(running).progress(46, 96, 2.0, 0.5)  # 25 s left
        write_sealed(running.path / "circumstances.json", {"cpu_seconds": 30.0})
        watcher = watch.Watcher(workspace)
        watcher.look()
        of = {part.stage: part for part in watcher.needed}
        left = watch.stage_left(of["experts"], watcher.found, watcher.forecast, 2)
        # One job of 25 s, and three of 24 images, of which each takes as the finished one did.
        assert left == pytest.approx((25 + 3 * 12) / 2)
        assert watch.stage_left(of["experts"], watcher.found, watcher.forecast, 9) == 25
        assert watch.stage_left(of["latents"], watcher.found, watcher.forecast, 2) == 0
        # Nothing of the sort was ever made here.
        assert watch.stage_left(of["features"], watcher.found, watcher.forecast, 2) is None
        lines = watcher.lines(100, 30)
        spent = 42 + workspace.store.entry(of["latents"].jobs[0][0]).circumstances()["cpu_seconds"]
    assert f"cost so far: {spent:.0f} s of CPU" in lines[0] and "at least" in lines[0]
    assert [job.label for job in watcher.running] == ["one"]


def test_memory_is_what_is_in_ram():
    found = watch.resident_bytes(os.getpid())
    assert found == pytest.approx(psutil.Process().memory_info().rss, rel=0.1)
    assert watch.resident_bytes(2**22 + 1) == 0


def test_a_process_elsewhere_has_no_memory_here(tmp_path):
    entry = Workspace(tmp_path).store.plan("expert", {"any": "spec"})
    assert watch.processes_of(entry) == []
    with entry.lease():
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        found = watch.processes_of(entry)
        assert found[0] == os.getpid() and child.pid in found
        child.communicate(b"\n")
        path = entry.path / "lease" / "1"
        holder = entry.holder()
        for other in ({"host": "elsewhere"}, {"born": "1"}, {"pid": 2**22 + 1}):
            write_sealed(path, {k: v for k, v in (holder | other).items() if k != "digest"})
            assert watch.processes_of(entry) == []
