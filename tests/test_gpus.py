"""Which GPU a job takes on a machine with several; none is needed to see it."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from pipeline.errors import UserError
from stages import gpus


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """A machine with two GPUs."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(gpus, "used_by_torch", lambda: True)
    monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(tmp_path))
    for name in ("SLURM_JOB_ID", "TSPACE_JOBS_PER_GPU"):
        monkeypatch.delenv(name, raising=False)


def take(
    wanted: int = 1, kind: str = "expert", tell: Callable[[str], None] = print
) -> tuple[contextlib.ExitStack, str]:
    """As another process would: with all of this machine's GPUs to choose from."""
    stack = contextlib.ExitStack()
    os.environ["CUDA_VISIBLE_DEVICES"] = "0,1"
    stack.enter_context(gpus.claimed(kind, wanted, tell))
    return stack, os.environ["CUDA_VISIBLE_DEVICES"]


def test_each_job_takes_a_free_gpu_and_waits_for_one():
    first, one = take()
    second, two = take()
    assert (one, two) == ("0", "1")
    got, said = [], queue.Queue()
    waiting = threading.Thread(target=lambda: got.append(take(tell=said.put)), daemon=True)
    waiting.start()
    assert said.get(timeout=60) == "waits for 1 of the GPUs 0, 1"
    assert not got
    second.close()
    waiting.join(60)
    assert got[0][1] == "1"
    first.close()
    got[0][0].close()


def test_small_jobs_share_what_fewest_have(monkeypatch):
    monkeypatch.setenv("TSPACE_JOBS_PER_GPU", "2")
    taken = [take() for _ in range(4)]
    assert [name for _, name in taken] == ["0", "1", "0", "1"]
    for stack, _ in taken:
        stack.close()


def test_a_job_of_several_processes_takes_several_and_no_more_than_there_are():
    stack, names = take(wanted=4)
    assert names == "0,1"
    stack.close()


def test_the_lock_of_a_killed_job_is_free():
    code = "import sys, os; from stages import gpus\ngpus.used_by_torch = lambda: True\n"
    code += "with gpus.claimed('expert', 1):\n print("
    code += "os.environ['CUDA_VISIBLE_DEVICES'], flush=True); sys.stdin.read()"
    environment = {**os.environ, "TMPDIR": gpus.tempfile.gettempdir()}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
        cwd=os.path.dirname(os.path.dirname(gpus.__file__)),
    )
    assert process.stdout.readline() == "0\n"
    stack, name = take()
    assert name == "1"
    stack.close()
    process.kill()
    process.communicate()
    stack, name = take()
    assert name == "0"
    stack.close()


@pytest.mark.parametrize("why", ["numpy", "slurm", "torch"])
def test_what_needs_none_or_is_given_one_takes_none(monkeypatch, why):
    if why == "slurm":
        monkeypatch.setenv("SLURM_JOB_ID", "7")
    if why == "torch":
        monkeypatch.setattr(gpus, "used_by_torch", lambda: False)
    kind = "pairing" if why == "numpy" else "expert"
    stacks = [take(kind=kind) for _ in range(3)]
    assert {name for _, name in stacks} == {"0,1"}


def test_a_number_of_jobs_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv("TSPACE_JOBS_PER_GPU", "many")
    with pytest.raises(UserError, match="TSPACE_JOBS_PER_GPU: 'many' is no number of jobs"):
        take()
