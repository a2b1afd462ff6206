"""`dvc repro` on a real SLURM, which is started here on this machine.

The tests share one checkout that runs on SLURM, and one that never does and says what is right.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.workflow import PARAMS, ROOT, Checkout, environment, jobs_run

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.xdist_group("workflow")]

HERE = Path(__file__).parent
INSTALL = "apt-get install --no-install-recommends slurm-wlm munge"
NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "squeue", "scancel", "scontrol")
PROFILE = str(HERE / "profile")
COMMON = PARAMS[: PARAMS.index("recipes:")]

# Sixteen experts in two jobs, and eight with a job each.
WHOLE = f"""\
{COMMON}recipes:
  disentangled:
    schedule: {{kind: log-snr, states: 16}}
    partition: {{kind: per-state}}
    training: {{experts_per_job: 8}}
  eight:
    schedule: {{kind: log-snr, states: 8}}
    partition: {{kind: per-state}}
"""

LONG = "training: {images: 6000, milestones: []}"
CANCELLED = f"""\
  cancelled:
    schedule: {{kind: log-snr, states: 3}}
    {LONG}
"""
REQUEUED = f"""\
  requeued:
    schedule: {{kind: log-snr, states: 4}}
    {LONG}
"""
# More jobs than the node has CPUs: some are still pending when the driver is killed.
ORPHANED = f"""\
  orphaned:
    schedule: {{kind: log-snr, states: 5}}
    partition: {{kind: per-state}}
    {LONG}
"""
STEPS = """\
  steps:
    schedule: {kind: log-snr, states: 3}
    partition: {kind: per-state}
"""


def recipes(*texts: str) -> str:
    return f"{COMMON}recipes:\n{''.join(texts)}"


@dataclass
class Cluster:
    """A running SLURM, and the checkout that uses it."""

    root: Path
    checkout: Checkout
    drivers: list[subprocess.Popen] = field(default_factory=list)

    def environment(self, **extra: str) -> dict[str, str]:
        found = environment()
        path = f"{self.root / 'bin'}{os.pathsep}{found['PATH']}"
        settings = {"SNAKEMAKE_PROFILE": PROFILE, "TSPACE_CHECKPOINT_SECONDS": "0.2"}
        return {
            **found,
            **settings,
            "PATH": path,
            "SLURM_CONF": str(self.root / "slurm.conf"),
            **extra,
        }

    def command(self, *command: str, **env: str) -> str:
        done = subprocess.run(
            command,
            cwd=self.checkout.root,
            env=self.environment(**env),
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, *command: str) -> subprocess.Popen:
        """A command in a session of its own."""
        driver = subprocess.Popen(
            command,
            cwd=self.checkout.root,
            env=self.environment(),
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.drivers.append(driver)
        return driver

    def experts(self, recipe: str) -> list[Path]:
        """Folders of a recipe's experts, from the plan that Snakemake runs."""
        try:
            plan = json.loads((self.checkout.root / ".tspace/runs/experts/plan.json").read_text())
        except (FileNotFoundError, ValueError):
            return []
        return [
            self.checkout.root / "store" / name
            for job in plan["jobs"].values()
            for name in job["names"]
            if job["label"].split()[0] == recipe
        ]

    def job_of(self, recipe: str, driver: subprocess.Popen) -> str:
        """Number of the SLURM job that trains a recipe's only expert, once it has a checkpoint."""
        deadline = time.monotonic() + 180
        while True:
            for expert in self.experts(recipe):
                if (expert / "state" / "checkpoint.pt").exists():
                    return json.loads((expert / "lease").read_text())["job"]
            assert driver.poll() is None, driver.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    path = f"{os.environ['PATH']}{os.pathsep}/usr/sbin"
    missing = [name for name in NEEDED if not shutil.which(name, path=path)]
    if missing or os.geteuid() != 0:
        why = f"{', '.join(missing)} not found: {INSTALL}" if missing else "not root"
        text = f"THE SLURM TESTS DID NOT RUN: {why}"
        warnings.warn(text, stacklevel=1)
        pytest.skip(text)
    root = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # sockets need a short path
    try:
        subprocess.run([HERE / "slurm" / "start.sh", root], check=True, timeout=120)
        checkout = Checkout.create(tmp_path_factory.mktemp("slurm") / "tspace", WHOLE)
        cluster = Cluster(root, checkout)
        yield cluster
        for driver in cluster.drivers:  # of a test that was interrupted
            if driver.poll() is None:
                os.killpg(driver.pid, signal.SIGKILL)
    finally:
        subprocess.run([HERE / "slurm" / "stop.sh", root], check=False, timeout=120)
        shutil.rmtree(root)


@pytest.fixture(scope="module")
def here(tmp_path_factory, cluster):
    """A checkout whose jobs run on this machine with the default profile."""
    return Checkout.create(tmp_path_factory.mktemp("here") / "tspace", WHOLE)


@pytest.fixture(scope="module")
def undisturbed(here):
    """Mixtures of the recipes that are disturbed on SLURM."""
    (here.root / "params.yaml").write_text(recipes(CANCELLED, REQUEUED, ORPHANED, STEPS))
    here.repro("merge")
    return here.mixtures()


def test_the_whole_pipeline_gives_the_same_bits(cluster, here):
    here.repro()
    output = cluster.command("dvc", "repro")
    assert jobs_run(output) == {
        "latents": 1,
        "features": 1,
        "experts": 24,
        "samples": 4,
        "scores": 4,
    }
    assert cluster.checkout.mixtures() == here.mixtures()
    for name, recipe in here.summary()["recipes"].items():
        found = cluster.checkout.summary()["recipes"][name]
        assert [found[key] for key in ("fid", "kid")] == [recipe[key] for key in ("fid", "kid")]
    jobs = cluster.command("squeue", "--noheader", "--states=all", "--format=%T %k")
    trained = [line for line in jobs.splitlines() if "rule_expert" in line]
    assert len(trained) == 10
    assert all(line.startswith("COMPLETED") for line in jobs.splitlines())
    # What a user sees in squeue says the recipe and the state.
    assert sum("eight-state-3-" in line for line in trained) == 1
    assert sum("disentangled-state-9-and-7-more" in line for line in trained) == 1


@pytest.mark.parametrize("profile", [PROFILE, str(ROOT / "profiles" / "default")])
def test_neither_a_second_run_nor_another_profile_runs_anything(cluster, profile):
    assert "Running stage" not in cluster.command("dvc", "repro", SNAKEMAKE_PROFILE=profile)


def test_cancelled_and_requeued_jobs_resume_to_the_same_bits(cluster, undisturbed):
    (cluster.checkout.root / "params.yaml").write_text(recipes(CANCELLED, REQUEUED))
    driver = cluster.start("dvc", "repro", "merge")
    stopped = {}
    for recipe, command in (("cancelled", ["scancel"]), ("requeued", ["scontrol", "requeue"])):
        stopped[recipe] = cluster.job_of(recipe, driver)
        cluster.command(*command, stopped[recipe])
    output = driver.communicate(timeout=600)[0]
    assert driver.returncode == 0, output
    for recipe in stopped:
        (expert,) = cluster.experts(recipe)
        log = (expert / "log.txt").read_text()
        assert "resumes at" in log
        assert log.count(" finished\n") == 1
    states = cluster.command("squeue", "--noheader", "--states=all", "--format=%i %T")
    assert f"{stopped['cancelled']} CANCELLED" in states
    assert f"{stopped['requeued']} COMPLETED" in states
    mixtures = cluster.checkout.mixtures()
    assert mixtures == {name: undisturbed[name] for name in mixtures}
    assert set(mixtures) == set(stopped)


def test_a_killed_driver_leaves_jobs_that_the_next_one_waits_for(cluster, undisturbed):
    (cluster.checkout.root / "params.yaml").write_text(recipes(ORPHANED))
    driver = cluster.start("dvc", "repro", "merge")
    cluster.job_of("orphaned", driver)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.communicate()
    experts = cluster.experts("orphaned")
    assert len(experts) == 5
    queued = cluster.command("squeue", "--noheader", "--states=running,pending", "--format=%T")
    assert {"RUNNING", "PENDING"} <= set(queued.split())
    cluster.command("dvc", "repro", "merge")
    for expert in experts:
        log = (expert / "log.txt").read_text()
        assert log.count("started by process") == log.count(" finished\n") == 1
    assert cluster.checkout.mixtures()["orphaned"] == undisturbed["orphaned"]


def test_one_allocation_runs_jobs_as_steps(cluster, undisturbed):
    (cluster.checkout.root / "params.yaml").write_text(recipes(STEPS))
    where = ["--ntasks=1", "--cpus-per-task=3", "--mem=4000", "--output=.tspace/driver.log"]
    cluster.command(
        *("sbatch", "--wait", *where, "--wrap", "dvc repro merge"),
        SNAKEMAKE_PROFILE=str(ROOT / "profiles" / "slurm-node"),
    )
    assert jobs_run((cluster.checkout.root / ".tspace/driver.log").read_text()) == {"experts": 3}
    assert cluster.checkout.mixtures()["steps"] == undisturbed["steps"]
    log = (cluster.checkout.root / ".tspace/runs/experts/snakemake.log").read_text()
    assert log.count("launch=srun") >= 3
