"""One expert on any number of processes: the same bits, whoever dies."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from pipeline.data.latents import Latents, write_shard
from pipeline.errors import Transient, UserError
from pipeline.params.load import resolve
from pipeline.store.files import reached
from pipeline.training import train
from pipeline.training.group import Group, ShardSum, ranges
from pipeline.training.run import CHECKPOINT
from stages import ranks
from stages.workspace import Workspace
from tests.specs import SMALL, expert_spec
from tests.test_dit import TINY
from tests.test_inspection import experts_of, make, small_workspace
from tests.test_placing import alive
from tests.workflow import environment

ROOT = Path(__file__).parent.parent
PARAMS = """\
seed: 0
data: {source: digits, limit: 120}
latent: {encoder: pixels}
features: {extractor: classifier, images: 100, dimension: 8, channels: 8}
evaluate: {samples: 16}
defaults:
  network: {kind: unet, channels: 8, multipliers: [1, 2], blocks: 1, dropout: 0.1}
  training: {images: 330, batch: 16, milestones: [160], warmup: 0, shards: 4, clip: 0.5}
recipes:
  one: {schedule: {kind: log-snr, states: 4}}
"""


# --- the sum of a batch's shards


class Side(Group):
    """One of several processes that are worked through one after the other in this one."""

    def __init__(self, rank: int, size: int, vectors: list[torch.Tensor]):
        self.rank, self.size, self.vectors = rank, size, vectors

    def total(self, vector: torch.Tensor) -> None:
        self.vectors.append(vector.clone())


@pytest.mark.parametrize("count", [16, 5])
def test_the_sum_is_that_of_the_tree_on_any_number_of_processes(count):
    shards, size = 8, 4
    drawn = torch.randn(count, 3, generator=torch.Generator().manual_seed(0)) * 1e3
    layer = torch.nn.Parameter(torch.zeros(3))

    def sums(group: Group) -> ShardSum:
        found, layer.grad = ShardSum([layer], shards, group), None
        for first, last in ranges(count, shards, group):
            if last > first:
                layer.grad = drawn[first:last].sum(0)
            found.add(drawn[first].sum() if last > first else None)
        return found

    vectors: list[torch.Tensor] = []
    for rank in range(size):
        sums(Side(rank, size, vectors)).total()
    a, b, c, d = vectors
    loss = sums(Group()).total()
    assert torch.equal(layer.grad, ((a + b) + (c + d))[:3])
    assert torch.equal(loss, ((a + b) + (c + d))[-1])
    torch.testing.assert_close(layer.grad, drawn.sum(0))


def test_a_parameter_without_a_gradient_in_any_shard_stays_without():
    used, unused, seldom = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    sums = ShardSum([used, unused, seldom], 2, Group())
    (used.sum() + seldom.sum()).backward()
    sums.add(torch.tensor(1.0))
    (3 * used.sum()).backward()
    sums.add(torch.tensor(2.0))
    assert sums.total() == 3
    assert used.grad.tolist() == [4, 4] and seldom.grad.tolist() == [1, 1] and unused.grad is None


def test_shards_are_cut_by_position():
    def cut(rank: int, size: int) -> list[tuple[int, int]]:
        return list(ranges(6, 4, Side(rank, size, [])))

    assert cut(0, 1) == [(0, 1), (1, 3), (3, 4), (4, 6)]
    assert cut(0, 2) + cut(1, 2) == cut(0, 1)


# --- trainings


@pytest.fixture
def latents(tmp_path):
    random = np.random.Generator(np.random.PCG64(0))
    images = random.integers(0, 256, (50, 1, 8, 8), np.uint8)
    write_shard(tmp_path / "a.arrow", [(images, None)], (1, 8, 8), [127.5], 73.9)
    return Latents([tmp_path / "a.arrow"])


def trained(folder: Path, latents: Latents, **changes) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    folder.mkdir(exist_ok=True)
    train.train(expert_spec(**changes), latents, folder)
    return load_file(folder / "weights-212.safetensors")


MULTI = {
    "network": SMALL | {"kind": "multi-decoder", "decoder_channels": [8, 8]},
    "interval_bounds": [2.0],
}


MULTI_DIT = {
    "network": TINY | {"kind": "multi-dit", "decoder_depths": [0, 1]},
    "interval_bounds": [2.0],
}
NETWORKS = {"unet": {}, "multi-decoder": MULTI, "dit": {"network": TINY}, "multi-dit": MULTI_DIT}


@pytest.mark.parametrize("change", NETWORKS.values(), ids=NETWORKS)
def test_shards_change_roundings_only(latents, tmp_path, change):
    whole = trained(tmp_path / "whole", latents, **change)
    parts = trained(tmp_path / "parts", latents, **change, training={"shards": 4})
    assert any(not torch.equal(whole[k], parts[k]) for k in whole)
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, atol=2e-3, rtol=0)


def test_gradients_are_clipped_by_the_norm_of_all(latents, tmp_path, monkeypatch):
    norms, step = [], train.Adam.step

    def one(optimizer) -> None:
        grads = [p.grad for p in optimizer._params if p.grad is not None]
        norms.append(float(torch.stack([g.square().sum() for g in grads]).sum().sqrt()))
        step(optimizer)

    monkeypatch.setattr(train.Adam, "step", one)
    trained(tmp_path / "free", latents)
    free, norms[:] = list(norms), []
    trained(tmp_path / "clipped", latents, training={"clip": 0.3})
    assert max(free) > 0.4
    assert max(norms) == pytest.approx(0.3, rel=1e-4)
    assert norms[0] == pytest.approx(min(free[0], 0.3), rel=1e-4)


def test_keys_at_their_defaults_are_not_in_a_spec():
    assert not {"clip", "shards"} & expert_spec().as_json()["training"].keys()
    assert expert_spec(training={"shards": 4}).as_json()["training"]["shards"] == 4


@pytest.mark.parametrize(
    ("training", "wrong"),
    [
        ({"shards": 3}, r"training.shards: "),
        ({"shards": 8, "batch": 12}, r"training.shards: 8 equal parts .* batch of 12"),
    ],
)
def test_shards_that_do_not_fit_are_refused(training, wrong):
    with pytest.raises(UserError, match=wrong):
        resolve({"recipes": {"one": {"training": training}}})


# --- processes


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """All that the training of one expert needs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TSPACE_STORE", raising=False)
        return small_workspace(tmp_path_factory.mktemp("shards") / "checkout", PARAMS)


@pytest.fixture
def entry(workspace, tmp_path, monkeypatch):
    """The planned expert in a store of this test's own."""
    ignore = shutil.ignore_patterns("expert")
    shutil.copytree(workspace.store.root, tmp_path / "store", ignore=ignore)
    monkeypatch.setenv("TSPACE_STORE", str(tmp_path / "store"))
    own = Workspace(workspace.root)
    job = experts_of(own, "one")[0]
    return own.store.plan(job.kind, job.spec.as_json())


def start(entry, **variables: str) -> psutil.Popen:
    """The job as a profile would run it, with a checkpoint after every batch."""
    store = entry.path.parent.parent
    options = ["--root", str(store.parent), "--store", str(store), entry.name]
    return psutil.Popen(
        [sys.executable, "-m", "stages.cli", "job", *options],
        cwd=ROOT,
        env=environment(TSPACE_CHECKPOINT_SECONDS="0", **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def wanted(workspace):
    """What one process makes."""
    (job,) = experts_of(workspace, "one")
    assert make(workspace, [job]) == [True]
    return workspace.store.entry(job.name).files()


def test_killed_at_random_and_resumed_on_other_numbers_it_makes_the_same_bytes(entry, wanted):
    seed = int(os.environ.get("TSPACE_TEST_SEED") or time.time())
    print(f"TSPACE_TEST_SEED={seed} repeats these moments and victims")
    dice = random.Random(seed)
    for processes in (4, 1):
        # It stops itself at a change of files, of which a checkpoint takes four, so as to be hit.
        at = f"stop:{dice.randrange(12, 40)}"
        job = start(entry, TSPACE_PROCESSES=str(processes), TSPACE_FAULT=at)
        wait_until(lambda job=job: stopped(job), f"did not stop at {at}")
        all_of_it = [job, *job.children()]
        assert len(all_of_it) == processes
        victim = dice.choice(all_of_it)
        victim.kill()
        killed = time.monotonic()
        if victim != job:
            job.resume()
        said = job.communicate()[0]
        wait_until(lambda them=all_of_it: not any(map(alive, them)), f"some of {all_of_it} go on")
        assert time.monotonic() - killed < 120  # seconds, on any but a very busy machine
        assert job.returncode == (-signal.SIGKILL if victim == job else 1), said
        if victim != job:
            told = (entry.path / "error.txt").read_text()
            assert re.match(r"process \d was killed by SIGKILL; the last checkpoint is kept", told)
        assert not (entry.path / ".final").exists()  # another try is worth it
    job = start(entry, TSPACE_PROCESSES="2")
    assert job.wait(300) == 0, job.communicate()[0]
    said = entry.log.read_text()
    assert said.count("resumes at") == 2
    assert re.findall(r"(\d) processes share the batches", said) == ["4", "2"]
    assert entry.files() == wanted


@pytest.mark.parametrize("victim", ["Snakemake", "stage"])
def test_nothing_trains_on_where_what_started_it_was_killed(tmp_path, monkeypatch, victim):
    monkeypatch.delenv("TSPACE_STORE", raising=False)
    workspace = small_workspace(tmp_path / "tspace", PARAMS.replace("330", "1_000_000"))
    (job,) = experts_of(workspace, "one")
    entry = workspace.store.entry(job.name)
    for name in ("stages", "pipeline", "profiles", "Snakefile", "envs"):
        (workspace.root / name).symlink_to(ROOT / name)
    (workspace.root / "dvc.yaml").touch()
    numbers = {"TSPACE_PROCESSES": "2", "TSPACE_CHECKPOINT_SECONDS": "0"}
    stage = psutil.Popen(
        [sys.executable, "-c", "from stages.cli import main; main(['train'])"],
        cwd=workspace.root,
        env=environment(PYTHONPATH=str(workspace.root), **numbers),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    def trains() -> bool:
        assert stage.poll() is None, stage.communicate()[0]
        return reached(entry.state, CHECKPOINT) > 0

    started: list[psutil.Process] = []
    try:
        wait_until(trains, "it does not begin")
        started += stage.children(recursive=True)
        snakemake = next(p for p in stage.children() if "snakemake" in p.cmdline())
        assert sum(entry.name in p.cmdline() for p in started) >= 2
        (stage if victim == "stage" else snakemake).kill()
        wait_until(lambda: not any(map(alive, started)), f"some of {started} go on")
        said = stage.communicate()[0]
    finally:  # whatever failed, nothing trains on
        for each in filter(alive, [stage, *started]):
            each.kill()
    assert stage.returncode == (-signal.SIGKILL if victim == "stage" else 2), said
    assert "its checkpoint is kept" in (entry.path / "error.txt").read_text()
    assert victim == "stage" or "one: interrupted; its checkpoint is kept" in said


def stopped(process: psutil.Process) -> bool:
    assert process.poll() is None, process.communicate()[0]
    return process.status() == psutil.STATUS_STOPPED


def wait_until(true: Callable[[], bool], else_say: str) -> None:
    until = time.monotonic() + 300
    while not true():
        assert time.monotonic() < until, else_say
        time.sleep(0.05)


def test_the_ranks_of_an_srun_make_the_bytes_of_one(entry, wanted):
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    processes = [start(entry, **step, SLURM_PROCID=number) for number in "10"]
    for process in processes:
        assert process.wait(300) == 0, process.communicate()[0]
    assert "2 processes share the batches" in entry.log.read_text()
    assert entry.files() == wanted


def test_a_requeued_step_does_not_meet_where_the_one_before_did(entry, wanted, monkeypatch):
    """It has the numbers of the one before, and only its `srun` is another."""
    step = {"SLURM_JOB_ID": "8", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    for name, value in {**step, "SLURM_STEP_LAUNCHER_PORT": "5000"}.items():
        monkeypatch.setenv(name, value)
    root = Workspace(entry.path.parent.parent.parent)  # where `start` says that the checkout is
    ranks.srun_team.cache_clear()
    ranks.publish(root)
    ranks.srun_team().listener.close()  # as of a rank 0 that is gone
    ranks.srun_team.cache_clear()
    step["SLURM_STEP_LAUNCHER_PORT"] = "5001"
    other = start(entry, **step, SLURM_PROCID="1")
    time.sleep(5)  # it looks first
    processes = [other, start(entry, **step, SLURM_PROCID="0")]
    for process in processes:
        assert process.wait(200) == 0, process.communicate()[0]
    assert "2 processes share the batches" in entry.log.read_text()
    assert entry.files() == wanted


FAILS = """
import json, os
from pipeline.errors import Transient, UserError
from stages import ranks

def train(entry, group):
    raise UserError(f"rank {group.rank} cannot train {entry}")

ranks.follow(json.loads(os.environ[ranks.ADDRESS]), train)
"""


def test_what_another_process_failed_at_is_told():
    team = ranks.Team("127.0.0.1", 2)
    team.start([sys.executable, "-c", FAILS])
    try:
        with (
            pytest.raises(UserError, match=r"^rank 1 cannot train expert/x$") as caught,
            team.lead("expert/x", 2, lambda _: None) as group,
        ):
            group.total(torch.ones(2))
        assert not isinstance(caught.value, Transient)
    finally:
        team.dismiss()


@pytest.mark.parametrize(("wanted", "shards", "processes"), [(7, 8, 4), (8, 2, 2), (4, 1, 1)])
def test_shards_are_shared_by_a_power_of_two(monkeypatch, wanted, shards, processes):
    monkeypatch.setenv("TSPACE_PROCESSES", str(wanted))
    assert ranks.processes_for(shards) == processes


@pytest.mark.parametrize("text", ["0", "two", "-1"])
def test_a_number_of_processes_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv("TSPACE_PROCESSES", text)
    with pytest.raises(UserError, match=f"TSPACE_PROCESSES: '{text}' is no number"):
        ranks.processes_for(4)
