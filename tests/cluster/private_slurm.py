"""A SLURM of two nodes on this machine, and checkouts of the project that use it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.workflow import Checkout, environment

HERE = Path(__file__).parent
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
PATIENCE = 480  # seconds for what takes a few on an idle machine
ACTIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING")
PROFILE = str(HERE / "profile")


def why_not() -> str:
    """Why no SLURM can be started here; empty if one can."""
    path = f"{os.environ['PATH']}{os.pathsep}/usr/sbin"
    missing = [name for name in NEEDED if not shutil.which(name, path=path)]
    if missing:
        return (
            f"{', '.join(missing)} not found; Debian: "
            "apt-get install --no-install-recommends slurm-wlm munge"
        )
    return "" if os.geteuid() == 0 else "it is started as root only"


def wait_for(what: Callable[[], object], alive: Callable[[], bool] = lambda: True):
    """The first true value of `what()`; AssertionError after PATIENCE or once not `alive()`."""
    deadline = time.monotonic() + PATIENCE
    while True:
        living = alive()
        if found := what():
            return found
        assert living, "it ended before that"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@dataclass(frozen=True)
class Job:
    """A SLURM job as `squeue` tells it."""

    number: str
    state: str
    node: str
    folder: str
    memory: str  # asked for
    comment: str


@dataclass(frozen=True)
class Slurm:
    """A running SLURM; its files are below `root`."""

    root: Path

    @classmethod
    @contextlib.contextmanager
    def started(cls) -> Iterator[Slurm]:
        root = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # sockets need a short path
        # It reads until this process ends, however that happens, and then cleans up.
        guard = subprocess.Popen(
            ["sh", "-c", 'read _; "$0" "$1"; rm -rf "$1"', HERE / "slurm" / "stop.sh", root],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            subprocess.run([HERE / "slurm" / "start.sh", root], check=True, timeout=PATIENCE)
            yield cls(root)
        finally:
            guard.stdin.close()
            guard.wait(timeout=PATIENCE)

    def environment(self, **extra: str) -> dict[str, str]:
        found = environment(**extra)
        found["PATH"] = f"{self.root / 'bin'}{os.pathsep}{found['PATH']}{os.pathsep}/usr/sbin"
        return found | {
            "SLURM_CONF": str(self.root / "slurm.conf"),
            "TSPACE_TEST_SLURM": str(self.root),  # by which stop.sh knows what to end
            "TSPACE_CHECKPOINT_SECONDS": "0",  # after every batch
            "PYTHONDONTWRITEBYTECODE": "",  # dozens of processes import the same checkout
        }

    def run(self, *command: str, cwd: Path | None = None, **extra: str) -> str:
        """What a command prints; AssertionError with all it said if it fails."""
        done = subprocess.run(
            command,
            cwd=cwd,
            env=self.environment(**extra),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def jobs(self) -> list[Job]:
        """All jobs, also those that ended."""
        lines = self.run("squeue", "--noheader", "--states=all", "--format=%i|%T|%N|%Z|%m|%k")
        return [Job(*line.split("|", 5)) for line in lines.splitlines()]

    def state(self, number: str) -> str:
        return next(job.state for job in self.jobs() if job.number == number)

    def active(self, number: str) -> bool:
        return self.state(number) in ACTIVE

    def processes(self, variable: str, value: str) -> list[int]:
        """Processes that jobs started, by a variable of their environment."""
        wanted = {f"{variable}={value}", f"TSPACE_TEST_SLURM={self.root}"}
        pids = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
        return [pid for pid in pids if wanted <= set(_read(pid, "environ").split("\0"))]

    def signal(self, number: str, sent: signal.Signals) -> None:
        """Send a signal to every process of a job."""
        for pid in self.processes("SLURM_JOB_ID", number):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sent)

    def cut_power(self, node: str) -> None:
        """End the node's daemon and all that runs on it, at once and without a word to anybody."""
        os.kill(int((self.root / "run" / f"slurmd.{node}.pid").read_text()), signal.SIGKILL)
        tasks = self.processes("SLURMD_NODENAME", node)
        parents = {_parent(pid) for pid in tasks}
        managers = [pid for pid in parents if _read(pid, "comm").startswith("slurmstepd")]
        for pid in managers + tasks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def switch_on(self, node: str) -> None:
        self.run("slurmd", "-N", node)
        wait_for(lambda: self.node_state(node) in ("idle", "mixed", "allocated"))

    def node_state(self, node: str) -> str:
        return self.run("sinfo", "--noheader", f"--nodes={node}", "--format=%T").strip()


def _read(pid: int, name: str) -> str:
    """A file of a process below /proc; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def command_line(pid: int) -> str:
    return _read(pid, "cmdline").replace("\0", " ")


def _parent(pid: int) -> int:
    return int(re.search(r"^PPid:\s*(\d+)", _read(pid, "status") or "PPid: 0", re.M).group(1))


@dataclass
class Site:
    """A checkout of the project, the SLURM that it uses, and the profile."""

    slurm: Slurm
    checkout: Checkout
    profile: str = PROFILE
    drivers: list[subprocess.Popen] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.checkout.root

    def start(self, *command: str) -> subprocess.Popen:
        """A command on the login node, in a session of its own."""
        with open(self.root / f"driver-{len(self.drivers)}.log", "w") as output:
            driver = subprocess.Popen(
                command,
                cwd=self.root,
                env=self.slurm.environment(SNAKEMAKE_PROFILE=self.profile),
                start_new_session=True,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.drivers.append(driver)
        return driver

    def finish(self, driver: subprocess.Popen) -> tuple[int, str]:
        """Exit status and output of a command that was started."""
        status = driver.wait(timeout=PATIENCE)
        number = self.drivers.index(driver)
        return status, (self.root / f"driver-{number}.log").read_text()

    def repro(self, *stages: str, **extra: str) -> str:
        """What `dvc repro` prints."""
        extra = {"SNAKEMAKE_PROFILE": self.profile, **extra}
        return self.slurm.run("dvc", "repro", *stages, cwd=self.root, **extra)

    def submit(self, command: str, profile: str, *options: str) -> str:
        """`sbatch` of a driver, as docs/slurm.md says it; the number of the job."""
        return self.slurm.run(
            *("sbatch", "--parsable", "--open-mode=append", "--output=driver.log", *options),
            *(f"--export=ALL,SNAKEMAKE_PROFILE={profile}", "--wrap", command),
            cwd=self.root,
        ).strip()

    def expert_jobs(self, *states: str) -> dict[Job, list[Path]]:
        """SLURM jobs of this checkout that train, with the folders of their experts."""
        try:
            plan = json.loads((self.root / ".tspace/runs/experts/plan.json").read_text())["jobs"]
        except (FileNotFoundError, ValueError):  # not planned yet, or being planned again
            return {}
        found = {}
        for job in self.slurm.jobs():
            kind, _, wildcards = job.comment.partition("_wildcards_")
            key = wildcards[wildcards.find("expert-") :]
            mine = job.folder == str(self.root) and kind == "rule_expert" and key in plan
            if mine and (not states or job.state in states):
                found[job] = [self.root / "store" / name for name in plan[key]["names"]]
        return found

    def experts(self) -> list[Path]:
        folder = self.root / "store" / "expert"
        return sorted(folder.iterdir()) if folder.exists() else []

    def close(self) -> None:
        for driver in self.drivers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()

        def left() -> list[str]:
            mine = [job for job in self.slurm.jobs() if job.folder == str(self.root)]
            return [job.number for job in mine if job.state in ACTIVE]

        if numbers := left():
            self.slurm.run("scancel", *numbers)
            for number in numbers:
                self.slurm.signal(number, signal.SIGKILL)
        wait_for(lambda: not left())


def starts(expert: Path) -> int:
    """How many processes ever began to train an expert."""
    return (expert / "log.txt").read_text().count(" started by process ")


def half_trained(experts: list[Path]) -> list[Path]:
    """Those experts that have a checkpoint and are not finished."""
    return [
        expert
        for expert in experts
        if any(expert.glob("state/checkpoint-*.pt")) and not (expert / "DONE").exists()
    ]
