"""`dvc repro` on a real SLURM, which is started here on this machine: always the same bits.

The tests share one SLURM. Each disturbs the training in its own copy of a checkout that has the
latents.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pipeline.store.entry import Entry
from tests.cluster.private_slurm import (
    PROFILE,
    Job,
    Site,
    Slurm,
    command_line,
    half_trained,
    starts,
    wait_for,
    why_not,
)
from tests.test_apptainer import STAND_IN
from tests.workflow import ROOT, Checkout, jobs_run, stages_run

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

# Sixteen experts in two jobs.
PARAMS = """\
seed: 0
data: {source: digits, limit: 200}
latent: {encoder: pixels}
features: {extractor: classifier, images: 4000, dimension: 16, channels: 16}
evaluate: {samples: 64}
defaults:
  network: {kind: unet, channels: 8, multipliers: [1, 2], blocks: 1}
  training: {images: 3840, batch: 16, milestones: []}
recipes:
  sixteen:
    schedule: {kind: log-snr, states: 16}
    partition: {kind: per-state}
    training: {experts_per_job: 8}
"""


@pytest.fixture(scope="module")
def slurm():
    if why := why_not():
        text = f"THE SLURM TESTS DID NOT RUN: {why}"
        warnings.warn(text, stacklevel=1)
        pytest.skip(text)
    with Slurm.started() as running:
        yield running


@pytest.fixture(scope="module")
def whole(slurm, tmp_path_factory):
    """A checkout in which `dvc repro` runs on SLURM, while the others are made."""
    site = Site(slurm, Checkout.create(tmp_path_factory.mktemp("whole") / "tspace", PARAMS))
    site.start("dvc", "repro")
    yield site
    site.close()


def workers(folder: Path, number: int) -> str:
    """The default profile with a number of workers."""
    text = (ROOT / "profiles" / "default" / "config.yaml").read_text()
    assert "cores: all" in text
    (folder / "config.yaml").write_text(text.replace("cores: all", f"cores: {number}"))
    return str(folder)


@pytest.fixture(scope="module")
def untrained(whole, tmp_path_factory):
    """A checkout that has all that experts and mixtures are made from, and none of them."""
    checkout = Checkout.create(tmp_path_factory.mktemp("untrained") / "tspace", PARAMS)
    made = checkout.repro("pair", "features")
    assert made == {"latents": 1, "analyses": 1, "features": 1}
    return checkout


def copy(checkout: Checkout, root: Path) -> Checkout:
    shutil.copytree(checkout.root, root, symlinks=True)
    return Checkout(root)


@pytest.fixture(scope="module")
def mixtures(untrained, tmp_path_factory):
    """What is right: the mixtures that one worker makes with the default profile."""
    folder = tmp_path_factory.mktemp("one")
    checkout = copy(untrained, folder / "tspace")
    assert checkout.repro("merge", SNAKEMAKE_PROFILE=workers(folder, 1)) == {"experts": 16}
    return checkout.mixtures()


@pytest.fixture
def site(slurm, untrained, tmp_path):
    site = Site(slurm, copy(untrained, tmp_path / "tspace"))
    yield site
    site.close()


def test_two_workers_give_the_bits_of_one(untrained, mixtures, tmp_path):
    checkout = copy(untrained, tmp_path / "tspace")
    assert checkout.repro("merge", SNAKEMAKE_PROFILE=workers(tmp_path, 2)) == {"experts": 16}
    assert checkout.mixtures() == mixtures


def test_jobs_cancelled_killed_and_requeued_at_random(site, mixtures, capsys):
    seed = int(os.environ.get("TSPACE_TEST_SEED") or time.time())
    with capsys.disabled():
        print(f"\nTSPACE_TEST_SEED={seed} repeats these moments and victims", flush=True)
    dice = random.Random(seed)
    site.checkout.edit("experts_per_job: 8", "experts_per_job: 6")

    def cancel(job: Job) -> None:
        site.slurm.run("scancel", job.number)

    def kill(job: Job) -> None:
        site.slurm.signal(job.number, signal.SIGKILL)

    def requeue(job: Job) -> None:
        site.slurm.run("scontrol", "requeue", job.number)

    driver = site.start("dvc", "repro", "merge")
    hits = []
    for strike in dice.sample([cancel, kill, requeue], 3):
        wait_for(lambda: site.expert_jobs("RUNNING"), alive=lambda: driver.poll() is None)
        time.sleep(dice.uniform(0, 5))  # the random moment
        # A job that was struck runs again, so there is always one that still runs.
        running = wait_for(lambda: site.expert_jobs("RUNNING"), alive=lambda: driver.poll() is None)
        victim = dice.choice(sorted(running, key=lambda job: job.number))
        strike(victim)
        hits += running[victim]
    status, output = site.finish(driver)
    if status:  # one job was struck more often than it is tried
        output += site.repro("merge")
    assert site.checkout.mixtures() == mixtures, output
    for expert in site.experts():
        assert 1 <= starts(expert) <= 1 + hits.count(expert)
        assert (expert / "log.txt").read_text().count(" finished\n") == 1


def test_the_whole_pipeline_gives_the_same_bits(whole, mixtures):
    status, output = whole.finish(whole.drivers[0])
    assert status == 0, output
    assert jobs_run(output) == {
        "latents": 1,
        "analyses": 1,
        "features": 1,
        "experts": 16,
        "samples": 1,
        "scores": 1,
    }
    assert whole.checkout.mixtures() == mixtures
    assert whole.checkout.summary()["recipes"]["sixteen"]["fid"] >= 0
    # What a user sees in squeue says the recipe and the states.
    jobs = whole.expert_jobs("COMPLETED")
    comments = sorted(job.comment for job in jobs)
    assert {job.memory for job in jobs} == {"700M"}  # the profile's, for this recipe
    assert len(comments) == 2
    assert "sixteen-state-1-and-7-more" in comments[0]
    assert "sixteen-state-9-and-7-more" in comments[1]
    for profile in (PROFILE, str(ROOT / "profiles" / "default")):
        assert stages_run(whole.repro(SNAKEMAKE_PROFILE=profile)) == ["source"]  # as at every run


def test_a_failed_node_costs_only_what_ran_on_it(site, mixtures):
    driver = site.start("dvc", "repro", "merge")

    def lost() -> tuple[Job, list[Path]] | None:
        """The job on n2, stopped in the middle of an expert."""
        for job, experts in site.expert_jobs("RUNNING").items():
            if job.node == "n2" and half_trained(experts):
                site.slurm.signal(job.number, signal.SIGSTOP)
                if half_trained(experts):
                    return job, experts
                site.slurm.signal(job.number, signal.SIGCONT)
        return None

    job, experts = wait_for(lost, alive=lambda: driver.poll() is None)
    (cut,) = half_trained(experts)
    assert {other.node for other in site.expert_jobs()} == {"n1", "n2"}
    site.slurm.cut_power("n2")
    wait_for(lambda: site.slurm.node_state("n2").startswith("down"))
    site.slurm.switch_on("n2")
    status, output = site.finish(driver)
    assert status == 0, output
    assert site.checkout.mixtures() == mixtures
    assert {expert: starts(expert) for expert in site.experts()} == {
        expert: 2 if expert == cut else 1 for expert in site.experts()
    }
    assert "resumes at" in (cut / "log.txt").read_text()
    assert site.slurm.state(job.number) == "COMPLETED"


def test_a_failure_of_its_own_is_tried_once_whatever_retries_says(site):
    site.checkout.edit("batch: 16,", "batch: 16, learning_rate: 1.0e+30,")
    status, output = site.finish(site.start("dvc", "repro", "train"))
    assert status != 0 and output.count("no longer finite") == 16
    assert {starts(expert) for expert in site.experts()} == {1}


def test_a_driver_in_a_job_is_killed_stopped_and_submitted_again(site, mixtures):
    """Jobs that it leaves behind go on, and no expert is trained twice."""
    command = ("dvc repro merge", PROFILE, "--job-name=tspace", "--cpus-per-task=1", "--mem=4G")
    first = site.submit(*command)
    orphans = wait_for(lambda: training(site), alive=lambda: site.slurm.active(first))
    with slowed(site, orphans):
        site.slurm.signal(first, signal.SIGKILL)
        wait_for(lambda: not site.slurm.active(first))

        second = site.submit(*command)
        wait_for(
            lambda: site.expert_jobs("PENDING", "RUNNING").keys() - orphans.keys(),
            alive=lambda: site.slurm.active(second),
        )
        site.slurm.run("scancel", second)
        wait_for(lambda: not site.slurm.active(second))

        third = site.submit(*command)
        wait_for(
            lambda: any(trainer(site, job) for job in site.expert_jobs("RUNNING").keys() - orphans),
            alive=lambda: site.slurm.active(third),
        )
        for job in orphans:
            assert site.slurm.state(job.number) == "RUNNING"
    wait_for(lambda: not site.slurm.active(third))
    assert site.slurm.state(third) == "COMPLETED", (site.root / "driver.log").read_text()
    assert site.checkout.mixtures() == mixtures
    assert [starts(expert) for expert in site.experts()] == [1] * 16


def training(site: Site) -> dict[Job, list[Path]]:
    """The jobs that run, once one of them is in the middle of an expert."""
    running = site.expert_jobs("RUNNING")
    return running if any(map(half_trained, running.values())) else {}


@contextlib.contextmanager
def slowed(site: Site, jobs: dict[Job, list[Path]]) -> Iterator[None]:
    """Makes jobs slow: they stand still, and their leases stay alive."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(1):
            for expert in itertools.chain.from_iterable(jobs.values()):
                for lease in expert.glob("lease/*"):
                    with contextlib.suppress(FileNotFoundError):
                        os.utime(lease)

    for job in jobs:
        site.slurm.signal(job.number, signal.SIGSTOP)
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        for job in jobs:
            site.slurm.signal(job.number, signal.SIGCONT)


def trainer(site: Site, job: Job) -> list[int]:
    """The processes of a job that train, or wait for others that do."""
    return [
        pid
        for pid in site.slurm.processes("SLURM_JOB_ID", job.number)
        if "/tspace job " in command_line(pid)
    ]


def test_a_checkout_whose_path_needs_quotes(slurm, untrained, mixtures, tmp_path):
    site = Site(slurm, copy(untrained, tmp_path / "it's; & # a: b [1] (2) <|>*? ü"))
    try:
        assert jobs_run(site.repro("merge")) == {"experts": 16}
        assert site.checkout.mixtures() == mixtures
        assert os.listdir(tmp_path) == [site.root.name]
    finally:
        site.close()


def test_one_allocation_runs_jobs_as_steps(slurm, untrained, mixtures, tmp_path):
    """In a checkout that Snakemake's SLURM executor could not submit from."""
    site = Site(slurm, copy(untrained, tmp_path / "a b'c\"$HOME;&"))
    site.submit(
        *("dvc repro merge", "profiles/slurm-node", "--wait"),
        *("--ntasks=1", "--cpus-per-task=2", "--mem=4G"),
    )
    assert jobs_run((site.root / "driver.log").read_text()) == {"experts": 16}
    assert site.checkout.mixtures() == mixtures
    log = (site.root / ".tspace/runs/experts/snakemake.log").read_text()
    launched = re.findall(r"rule expert:.*?launch=(srun [^,\n]*)", log, re.DOTALL)
    assert len(launched) == 2
    assert all("--cpus-per-task=1" in launch for launch in launched)
    assert not site.expert_jobs()
    site.close()


# --- an expert over two nodes

SHARED = PARAMS.replace("images: 3840", "images: 3840, shards: 4").replace(
    """    partition: {kind: per-state}
    training: {experts_per_job: 8}
""",
    "",
)
TWO_NODES = """\
    nodes: 2
    tasks: 2
    mpi: srun
    launch: "f'srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpus-per-task={threads}'"
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A checkout in which one process trained the expert, and the checkout before that."""
    folder = tmp_path_factory.mktemp("alone")
    before = Checkout.create(folder / "before", SHARED)
    assert before.repro("pair", "features") == {"latents": 1, "analyses": 1, "features": 1}
    after = copy(before, folder / "after")
    assert after.repro("merge", SNAKEMAKE_PROFILE=workers(folder, 1)) == {"experts": 1}
    return before, after


@pytest.fixture
def two_nodes(slurm, alone, tmp_path):
    text = (Path(PROFILE) / "config.yaml").read_text()
    profile = tmp_path / "profile"
    profile.mkdir()
    (profile / "config.yaml").write_text(text.replace("  expert:\n", f"  expert:\n{TWO_NODES}"))
    site = Site(slurm, copy(alone[0], tmp_path / "tspace"), str(profile))
    yield site
    site.close()


def ranks(site: Site) -> dict[str, int]:
    """Processes that train, by node."""
    return {
        node: pid
        for node in ("n1", "n2")
        for pid in site.slurm.processes("SLURMD_NODENAME", node)
        if "/tspace job " in command_line(pid) and "srun" not in command_line(pid)
    }


def results(root: Path) -> dict[str, str]:
    """Checksums of the files of the only expert."""
    [expert] = (root / "store" / "expert").iterdir()
    return {name: known["sha256"] for name, known in Entry(expert).files().items()}


def test_an_expert_over_two_nodes_has_the_bits_of_one_process(two_nodes, alone):
    status, output = two_nodes.finish(two_nodes.start("dvc", "repro", "merge"))
    assert status == 0, output
    [expert] = two_nodes.experts()
    assert "2 processes share the batches" in (expert / "log.txt").read_text()
    [job] = two_nodes.expert_jobs("COMPLETED")
    assert job.node == "n[1-2]"
    assert results(two_nodes.root) == results(alone[1].root)
    assert two_nodes.checkout.mixtures() == alone[1].mixtures()


@pytest.mark.parametrize("victim", ["process", "node"])
def test_one_of_two_nodes_is_lost_and_the_expert_goes_on_from_its_checkpoint(
    two_nodes, alone, victim
):
    site = two_nodes
    driver = site.start("dvc", "repro", "merge")

    def cut() -> tuple[Path, int] | None:
        """The expert, and the process on n2, which stands still in the middle of it."""
        experts, found = half_trained(site.experts()), ranks(site)
        if not experts or found.keys() != {"n1", "n2"}:
            return None
        os.kill(found["n2"], signal.SIGSTOP)
        return experts[0], found["n2"]

    expert, other = wait_for(cut, alive=lambda: driver.poll() is None)
    [job] = site.expert_jobs("RUNNING")
    if victim == "node":
        site.slurm.cut_power("n2")
    else:
        os.kill(other, signal.SIGKILL)
    lost = time.monotonic()
    wait_for((expert / "error.txt").exists, alive=lambda: driver.poll() is None)
    told = (expert / "error.txt").read_text()
    wait_for(lambda: site.slurm.state(job.number) != "RUNNING")
    assert time.monotonic() - lost < 120  # seconds, on any but a very busy machine
    assert re.match(r"process 1 on \S+ ended; the last checkpoint is kept, run again to go", told)
    if victim == "node":
        site.slurm.switch_on("n2")
    status, output = site.finish(driver)
    assert status == 0, output
    log = (expert / "log.txt").read_text()
    assert starts(expert) == 2 and "resumes at" in log
    assert log.count("2 processes share the batches") == 2
    assert results(site.root) == results(alone[1].root)
    assert site.checkout.mixtures() == alone[1].mixtures()


# --- jobs in an image


def test_a_job_of_the_profile_with_an_image_is_wrapped_on_its_node(slurm, tmp_path):
    """By a stand-in for Apptainer, see tests/test_apptainer.py."""
    record, program = tmp_path / "asked.jsonl", slurm.root / "bin" / "apptainer"
    program.write_text(STAND_IN.format(python=sys.executable, record=str(record)))
    program.chmod(0o755)
    own, image = (
        yaml.safe_load((Path(folder) / "config.yaml").read_text())
        for folder in (PROFILE, ROOT / "profiles" / "slurm-apptainer")
    )
    own["default-resources"]["launch"] = image["default-resources"]["launch"]
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "config.yaml").write_text(yaml.safe_dump(own))
    site = Site(slurm, Checkout.create(tmp_path / "tspace", SHARED), str(tmp_path / "profile"))
    try:
        store = str(tmp_path / "store")
        assert jobs_run(site.repro("encode", TSPACE_STORE=store)) == {"latents": 1}
        [(argv, environment, folder)] = map(json.loads, record.read_text().splitlines())
        root = str(site.root)
        assert folder == root and environment["SLURMD_NODENAME"] in ("n1", "n2")
        assert argv[:8] == ["exec", "--nv", "--pwd", root, "--bind", root, "--bind", store]
        assert argv[10].endswith("/bin/tspace") and argv[11] == "job"
    finally:
        site.close()
        program.unlink()
