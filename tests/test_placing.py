"""A stage through the real Snakemake: checkouts of any name, and what is said when it fails."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from click.testing import CliRunner

from pipeline.errors import UserError
from pipeline.plan import Job
from stages import cli, encode, fanout, prepare, train
from stages.numbers import speed
from stages.workspace import Workspace
from tests.workflow import ROOT, Checkout, environment

PARAMS = """\
seed: 0
data: {source: digits, limit: 200}
latent: {encoder: pixels}
features: {extractor: classifier, images: 256, dimension: 8, channels: 8}
evaluate: {samples: 16}
defaults:
  network: {kind: unet, channels: 8, multipliers: [1], blocks: 1}
  training: {images: 64, batch: 16, milestones: []}
recipes:
  one:
    schedule: {kind: log-snr, states: 2}
"""
# What a shell, YAML, Snakemake's patterns, SLURM's file names or a string format would read.
ALL_AT_ONCE = "-n a'b\"c $HOME;e&f #g: [1] (2)\\h ü%s|<y>*?~`!"
ONE_BY_ONE = [
    *("my proj", "it's", 'a"b', "$HOME", "a;b", "a&b", "a#b", "a #b", "a: b", "a:b", "[1] (2)"),
    *("a\\b", "größe", "%j", "-rf", "a*", "`id`", "~", "a=b", "a,b"),
]


@pytest.fixture(autouse=True)
def default_places(monkeypatch):
    for name in ("TSPACE_STORE", "SNAKEMAKE_PROFILE"):
        monkeypatch.delenv(name, raising=False)


def prepared(root: Path) -> Workspace:
    """A checkout without git in which nothing but `prepare` ran."""
    root.mkdir(parents=True)
    for name in ("stages", "pipeline"):
        (root / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "profiles", root / "profiles")
    shutil.copytree(ROOT / "envs", root / "envs")
    shutil.copy(ROOT / "Snakefile", root)
    (root / "params.yaml").write_text(PARAMS)
    workspace = Workspace(root)
    prepare.prepare(workspace)
    return workspace


def encoded(workspace: Workspace) -> str:
    """Names and checksums of what the stage made."""
    encode.encode(workspace)
    return (workspace.artefacts("latents") / "manifest.json").read_text()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return encoded(prepared(tmp_path_factory.mktemp("plain") / "tspace"))


@pytest.mark.parametrize(
    "name", [ALL_AT_ONCE, *(pytest.param(n, marks=pytest.mark.slow) for n in ONE_BY_ONE)]
)
def test_a_stage_runs_in_a_checkout_of_any_name(plain, tmp_path, name):
    workspace = prepared(tmp_path / name)
    assert encoded(workspace) == plain
    assert os.listdir(tmp_path) == [name]


@pytest.mark.slow
def test_the_whole_pipeline_runs_in_a_checkout_of_any_name(tmp_path):
    made = []
    for root in (tmp_path / "plain" / "tspace", tmp_path / "other" / ALL_AT_ONCE):
        checkout = Checkout.create(root, PARAMS)
        checkout.repro()
        manifests = [(root / "artefacts" / s / "manifest.json") for s in ("samples", "scores")]
        made.append([checkout.mixtures(), *(path.read_text() for path in manifests)])
        assert os.listdir(root.parent) == [root.name]
    assert made[0] == made[1]


@pytest.mark.parametrize("name", ["{x}", "a}b", "a\nb"])
def test_names_that_dvc_cannot_work_with_are_refused(tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    with pytest.raises(UserError, match=r"DVC cannot work in a folder.*rename it"):
        Workspace.here()


@pytest.mark.parametrize(
    ("root", "python", "character"),
    [
        ("/home/a b's [1] (2)", "/opt/env/bin", None),
        ("/home/größe", "/home/größe/.venv/bin", None),
        ("/home/a b", "/home/a b/.venv/bin", "' '"),
        ("/home/it's", "/home/it's/.venv/bin", '"\'"'),
        ("/home/$HOME", "/opt/env/bin", r"'\$'"),
        ("/home/a%j", "/opt/env/bin", "'%'"),
        ("/home/a\\b", "/opt/env/bin", r"'\\\\'"),
    ],
)
def test_checkouts_that_slurm_jobs_cannot_start_from_are_refused(root, python, character):
    if character is None:
        fanout.check_submittable(Path(root), Path(python))
        return
    with pytest.raises(UserError, match=f"cannot start jobs from a path with {character} in it"):
        fanout.check_submittable(Path(root), Path(python))


def test_a_slurm_profile_is_refused_before_anything_is_submitted(tmp_path, monkeypatch):
    monkeypatch.setenv("SNAKEMAKE_PROFILE", "profiles/slurm")
    workspace = prepared(tmp_path / "$x")
    with pytest.raises(UserError, match="SLURM executor cannot start jobs"):
        encode.encode(workspace)
    assert not workspace.scratch.exists()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ("keep-going: true", r"Snakemake: cores have to be specified.*\(log: .*snakemake\.log\)"),
        ("cores: many", "must be integer or 'all'"),
        # A launcher that is not there, and one that is killed as by a machine out of memory.
        (
            "cores: 1\ndefault-resources:\n  launch: \"'nosuch-launcher'\"",
            r"nosuch-launcher: command not found \(log: .*latents-images.*\.log\)",
        ),
        (
            "cores: 1\ndefault-resources:\n  launch: \"'kill -9 $$;'\"",
            r"Snakemake: died with <Signals\.SIGKILL: 9> \(log: .*snakemake\.log\)",
        ),
    ],
)
def test_a_failure_of_the_machinery_is_named(tmp_path, monkeypatch, settings, why):
    workspace = prepared(tmp_path / "tspace")
    (tmp_path / "config.yaml").write_text(settings + "\n")
    monkeypatch.setenv("SNAKEMAKE_PROFILE", str(tmp_path))
    with pytest.raises(UserError, match=why) as failure:
        encode.encode(workspace)
    assert "latents: 1 job failed, 0 finished" in str(failure.value)
    assert len(str(failure.value).splitlines()) == 2


# As Snakemake 9.27 and version 2.8 of its SLURM executor print them.
REFUSED = """\
Error in rule expert:
    message: SLURM sbatch failed. The error message was 'sbatch: error: invalid partition: nosuch
sbatch: error: Batch job submission failed: Invalid partition name specified'.
    sbatch call:
        sbatch --parsable
WorkflowError:
At least one job did not complete successfully.
"""
TIMED_OUT = """\
Error in rule expert:
    message: SLURM-job '12' failed, SLURM status is: 'TIMEOUT'. For further error details see
WorkflowError:
At least one job did not complete successfully.
"""
RESOURCE = """\
InputFunctionException in rule expert in file "/x/Snakefile", line 46:
Error:
  ResourceConversionError: Resource 'mem_mb' assigned callable that returned "foo"
Wildcards:
"""
NOT_THERE = """\
MissingOutputException in rule expert in file "/x/Snakefile", line 46:
Job 1 completed successfully, but some output files are missing.
"""


@pytest.mark.parametrize(
    ("log", "why"),
    [
        (REFUSED, "invalid partition: nosuch"),
        (TIMED_OUT, "SLURM-job '12' failed, SLURM status is: 'TIMEOUT'"),
        (
            RESOURCE,
            "InputFunctionException: ResourceConversionError: Resource 'mem_mb' assigned callable "
            'that returned "foo"',
        ),
        (
            NOT_THERE,
            "MissingOutputException: Job 1 completed successfully, but some output files are "
            "missing.",
        ),
        ("usage: snakemake\nsnakemake: error: argument --jobs: no", "argument --jobs: no"),
        ("something\nelse\n\n", "else"),
        ("", "nothing"),
    ],
)
def test_the_reason_is_found_in_what_snakemake_prints(log, why):
    assert fanout.snakemake_reason(log) == why


def test_more_threads_than_cores_are_warned_of_on_this_machine_alone():
    cores = len(os.sched_getaffinity(0))
    job = lambda kind, threads: Job(kind, {}, "one", threads=threads)  # noqa: E731
    told = fanout.crowded({"cores": "all"}, [job("scores", 1), job("expert", cores + 60)])
    assert told.startswith(f"training.threads: {cores + 60} is more than the {cores} core")
    assert told.endswith(f"set it to {cores} at most")
    told = fanout.crowded({}, [job("encoder", cores + 1)])
    assert told.startswith("latent.threads: ")
    assert fanout.crowded({}, [job("expert", cores)]) is None
    assert fanout.crowded({}, []) is None
    for name in ("slurm", "slurm-apptainer", "slurm-node"):
        settings = yaml.safe_load((ROOT / "profiles" / name / "config.yaml").read_text())
        assert fanout.crowded(settings, [job("expert", 4096)]) is None


@pytest.mark.parametrize(
    ("rate", "unit", "text"),
    [
        (12345.6, "images", "12,346 images/s"),
        (10.0, "images", "10 images/s"),
        (2.54, "states", "2.5 states/s"),
        (0.025, "states", "40 s/state"),
        (0.4, "passes", "2.5 s/pass"),
        (0.0, "images", "0 images/s"),
    ],
)
def test_speeds_are_shown_in_units_that_say_something(rate, unit, text):
    assert speed(rate, unit) == text


def test_ctrl_c_says_what_is_kept(monkeypatch):
    def stop(_):
        raise KeyboardInterrupt("experts: stopped; 2 of 5 jobs finished and kept")

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(train, "train", stop)
    done = CliRunner().invoke(cli.main, ["train"])
    assert done.exit_code == 130
    assert "tspace: experts: stopped; 2 of 5 jobs finished and kept" in done.output
    assert "Aborted" not in done.output


ENCODE = "from stages.cli import main; main(['encode'])"


def alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def asked(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it ended meanwhile
        return []


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_snakemake_and_its_jobs_end_with_the_stage_that_started_them(tmp_path, how):
    """Which alone is stopped or killed: no process group, no terminal tells the others."""
    workspace = prepared(tmp_path / "tspace")
    (workspace.root / "dvc.yaml").touch()
    launch = "cores: 1\ndefault-resources:\n  launch: \"'sleep 61;'\"\n"
    (tmp_path / "config.yaml").write_text(launch)
    stage = psutil.Popen(
        [sys.executable, "-c", ENCODE],
        cwd=workspace.root,
        env=environment(PYTHONPATH=str(workspace.root), SNAKEMAKE_PROFILE=str(tmp_path)),
    )
    deadline = time.monotonic() + 60
    while not any("61;" in part for child in stage.children(True) for part in asked(child)):
        assert stage.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    started = stage.children(recursive=True)
    assert len(started) >= 4  # the watch, Snakemake, the job's shell and what it sleeps in
    stage.send_signal(how)
    deadline = time.monotonic() + 30
    while any(map(alive, started)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert stage.wait() == (130 if how == signal.SIGTERM else -signal.SIGKILL)
