"""The whole of `dvc repro` on real images: what runs, what does not, and that it is never wrong.

The tests share one checkout and run in order; each leaves it reproduced and committed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import time

import psutil
import pytest

from pipeline.store.files import write_sealed
from tests.workflow import PARAMS, Checkout, environment, stages_run

pytestmark = pytest.mark.slow

DISENTANGLED = PARAMS[PARAMS.index("  disentangled:") :]
THREE_STATES = DISENTANGLED.replace("states: 4", "states: 3")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    checkout = Checkout.create(tmp_path_factory.mktemp("workflow") / "tspace")
    remote = tmp_path_factory.mktemp("remote")
    checkout.run("dvc", "remote", "add", "--default", "local", str(remote))
    checkout.first = checkout.repro()
    checkout.run("dvc", "push")
    checkout.commit("first results")
    return checkout


@pytest.fixture(scope="module")
def first_mixtures(checkout):
    return checkout.mixtures()


def test_everything_is_made(checkout, first_mixtures):
    assert checkout.first == {
        "latents": 1,
        "analyses": 1,
        "features": 1,
        "experts": 6,
        "samples": 6,
        "scores": 6,
    }
    summary = checkout.summary()["recipes"]
    assert list(summary) == ["ddpm", "few-state", "disentangled"]
    for recipe in summary.values():
        assert recipe["images_seen"] == 640
        assert recipe["samples"] == 64
        assert recipe["fid"] > 0
    assert summary["disentangled"]["experts"] == 4
    assert summary["disentangled"]["images_seen_critical"] == 160
    assert len({d for digests in first_mixtures.values() for d in digests}) == 6
    page = (checkout.root / "results" / "report.html").read_text()
    for name in summary:
        assert name in page


def test_a_second_repro_does_nothing(checkout):
    started = time.monotonic()
    assert stages_run(checkout.run("dvc", "repro").stdout) == ["source"]
    assert checkout.run("git", "status", "--short").stdout == ""
    assert time.monotonic() - started < 30


def test_metrics_params_and_plots_are_declared(checkout):
    shown = json.loads(checkout.run("dvc", "metrics", "show", "--json").stdout)
    rows = next(iter(shown.values()))["data"]  # of the only revision: a row a recipe, flat
    assert {
        name.rpartition("/")[2]: len(row["data"]) for name, row in rows.items()
    } == dict.fromkeys(("ddpm.json", "few-state.json", "disentangled.json"), 7)
    checkout.edit("learning_rate: 0.001", "learning_rate: 0.002")
    assert "0.002" in checkout.run("dvc", "params", "diff").stdout
    checkout.edit("learning_rate: 0.002", "learning_rate: 0.001")
    checkout.run("dvc", "plots", "show", "--out", ".tspace/plots")
    drawn = (checkout.root / ".tspace/plots/index.html").read_text()
    assert "ddpm" in drawn and '"color": {"field": "recipe"' in drawn


def test_circumstances_change_nothing_that_dvc_tracks(checkout):
    """The same experts, made by a busy machine of another kind: only the page and costs differ."""
    costs = checkout.root / "results" / "costs.json"
    for entry in (checkout.root / "store" / "expert").iterdir():
        known = {"seconds": 1e6, "host": "another", "load": 9.0, "cores": 1, "threads": 1}
        write_sealed(entry / "circumstances.json", known)
    checkout.run("tspace", "report")
    assert "another" in costs.read_text()
    assert "up to date" in checkout.run("dvc", "status", "report").stdout
    assert checkout.run("git", "status", "--porcelain").stdout == ""


def test_a_changed_recipe_trains_alone_and_reverting_trains_nothing(checkout, first_mixtures):
    checkout.edit("learning_rate: 0.001", "learning_rate: 0.003")
    assert checkout.repro() == {"experts": 1, "samples": 2, "scores": 2}
    changed = checkout.mixtures()
    assert changed["few-state"] != first_mixtures["few-state"]
    assert changed["ddpm"] == first_mixtures["ddpm"]
    assert changed["disentangled"] == first_mixtures["disentangled"]
    changed_metrics = checkout.run("dvc", "metrics", "diff").stdout
    assert "results/metrics/few-state.json" in changed_metrics and "ddpm" not in changed_metrics
    checkout.edit("learning_rate: 0.003", "learning_rate: 0.001")
    assert checkout.repro() == {}
    assert checkout.mixtures() == first_mixtures
    # The page is of the recipes as they are: DVC did not bring back the old results beside it.
    assert "learning_rate: 0.003" not in (checkout.root / "results" / "report.html").read_text()
    assert checkout.run("git", "status", "--porcelain").stdout == ""


def test_a_profile_can_tell_recipes_apart(checkout, first_mixtures, tmp_path):
    profile = tmp_path / "profile"
    profile.mkdir()
    (profile / "config.yaml").write_text(
        "cores: 2\nset-resources:\n  expert:\n"
        "    disk_mb: \"321 if wildcards.recipe == 'few-state' else 123\"\n"
    )
    checkout.edit("learning_rate: 0.001", "learning_rate: 0.005")
    checkout.edit("states: 100", "states: 90")
    assert checkout.repro("train", SNAKEMAKE_PROFILE=str(profile)) == {"experts": 2}
    log = (checkout.root / ".tspace/runs/experts/snakemake.log").read_text()
    asked = re.findall(r"wildcards: recipe=([a-z-]+).*?disk_mb=(\d+)", log, re.DOTALL)
    assert sorted(asked) == [("ddpm", "123"), ("few-state", "321")]
    checkout.edit("learning_rate: 0.005", "learning_rate: 0.001")
    checkout.edit("states: 90", "states: 100")
    assert checkout.repro() == {}
    assert checkout.mixtures() == first_mixtures


def test_changed_scoring_trains_nothing(checkout):
    checkout.edit("samples: 64", "samples: 80")
    assert checkout.repro() == {"samples": 6, "scores": 6}
    checkout.edit("samples: 80", "samples: 64")
    assert checkout.repro() == {}


def test_fewer_experts_leave_no_stale_one(checkout, first_mixtures):
    """Trap: a folder of experts that a smaller plan leaves behind."""
    checkout.edit(DISENTANGLED, THREE_STATES)
    assert checkout.repro() == {"experts": 3, "samples": 2, "scores": 2}
    assert checkout.summary()["recipes"]["disentangled"]["experts"] == 3
    manifest = os.listdir(checkout.root / "artefacts" / "experts")
    assert len(manifest) == 1 + 1 + 1 + 3  # ddpm, few-state, three states, the manifest
    checkout.edit(THREE_STATES, DISENTANGLED)
    assert checkout.repro() == {}
    assert checkout.mixtures() == first_mixtures


def test_a_clone_that_pulls_runs_nothing_and_then_only_what_it_changes(
    checkout, first_mixtures, tmp_path
):
    """Trap: old weights recorded as the result of new settings after a pull."""
    checkout.run("git", "clone", "--quiet", str(checkout.root), str(tmp_path / "clone"))
    clone = Checkout(tmp_path / "clone")
    remote = checkout.run("dvc", "remote", "list").stdout.split()[1]
    clone.run("dvc", "remote", "add", "--local", "--force", "local", remote)
    clone.run("dvc", "pull")
    assert stages_run(clone.run("dvc", "repro").stdout) == ["source"]
    assert clone.summary() == checkout.summary()
    clone.edit("learning_rate: 0.001", "learning_rate: 0.004")
    assert clone.repro() == {"experts": 1, "samples": 2, "scores": 2}
    changed = clone.mixtures()
    assert changed["few-state"] != first_mixtures["few-state"]
    assert changed["disentangled"] == first_mixtures["disentangled"]


def test_old_params_and_an_edit_never_mix_weights(checkout, first_mixtures):
    """Trap: weights of two settings in one mixture after `git checkout` of older params."""
    checkout.edit("images: 640, batch: 16", "images: 640, batch: 32")
    assert checkout.repro()["experts"] == 6
    batch32 = checkout.mixtures()
    checkout.commit("batch 32")
    checkout.run("git", "checkout", "--quiet", "HEAD~1")
    checkout.run("dvc", "checkout")
    # The old results are back; the page, which DVC does not track, is still of the new ones.
    told = checkout.run("tspace", "verify").stdout
    assert "results/report.html is of other results" in told and "run `tspace report`" in told
    assert "writing the report again" in checkout.run("tspace", "report", "--if-needed").stdout
    assert checkout.run("tspace", "report", "--if-needed").stdout == ""
    assert "up to date" in checkout.run("dvc", "status", "report").stdout
    checkout.edit("learning_rate: 0.001", "learning_rate: 0.006")
    assert checkout.repro() == {"experts": 1, "samples": 2, "scores": 2}
    mixed = checkout.mixtures()
    assert mixed["ddpm"] == first_mixtures["ddpm"] != batch32["ddpm"]
    assert mixed["disentangled"] == first_mixtures["disentangled"]
    assert mixed["few-state"] not in (first_mixtures["few-state"], batch32["few-state"])
    checkout.run("git", "checkout", "--quiet", "--force", "main")
    checkout.run("git", "reset", "--quiet", "--hard", "HEAD~1")
    checkout.run("dvc", "checkout")


LONGER = PARAMS.replace("images: 640", "images: 9600").replace("[320]", "[]")


def profile(folder, workers):
    """A profile that runs so many jobs at once."""
    folder.mkdir()
    (folder / "config.yaml").write_text(f"cores: {workers}\nkeep-going: true\n")
    return str(folder)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Mixtures of a run that nobody disturbed, one job at a time."""
    root = tmp_path_factory.mktemp("whole")
    whole = Checkout.create(root / "tspace", LONGER)
    whole.repro("merge", SNAKEMAKE_PROFILE=profile(root / "one", 1))
    return whole.mixtures()


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_in_training_it_resumes_to_the_same_bits(uninterrupted, tmp_path, workers):
    killed = Checkout.create(tmp_path / "tspace", LONGER)
    env = {"SNAKEMAKE_PROFILE": profile(tmp_path / "profile", workers)}
    process = psutil.Popen(
        ["dvc", "repro", "merge"],
        cwd=killed.root,
        env=environment(**env, TSPACE_CHECKPOINT_SECONDS="0.2"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    experts = killed.root / "store" / "expert"
    deadline = time.monotonic() + 120
    while not list(experts.glob("*/state/checkpoint-*.pt")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    for each in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()
    time.sleep(0.5)
    assert list(experts.glob("*/state/checkpoint-*.pt")), "killed too late to show anything"
    finished = len(list(experts.glob("*/DONE")))
    assert killed.repro("merge", **env)["experts"] == 6 - finished
    logs = "".join(log.read_text() for log in experts.glob("*/log.txt"))
    assert "resumes at" in logs
    assert killed.mixtures() == uninterrupted


def test_a_failed_job_costs_nobody_elses_work(tmp_path):
    """A learning rate that blows up one recipe: the others finish, and a rerun tries it alone."""
    checkout = Checkout.create(
        tmp_path / "tspace", PARAMS.replace("learning_rate: 0.001", "learning_rate: 1.0e+6")
    )
    done = checkout.run("dvc", "repro", "train", check=False)
    assert done.returncode
    text = done.stdout + done.stderr
    assert "experts: 1 job failed, 5 finished and are kept" in text
    assert "few-state: the loss is no longer finite" in text
    assert "Traceback" not in text
    checkout.edit("learning_rate: 1.0e+6", "learning_rate: 0.001")
    assert checkout.repro("train")["experts"] == 1


def test_damage_in_dvcs_cache_is_refused_where_it_is_read_and_does_not_come_back(
    checkout, tmp_path
):
    """DVC would put what its cache has in the place of a result that was made again."""
    root = shutil.copytree(checkout.root, tmp_path / "tspace", symlinks=True)
    copy = Checkout(root)
    weights = sorted((root / "artefacts" / "experts").glob("*/weights-640.safetensors"))[0]
    good = weights.read_bytes()
    (cached,) = [
        path
        for path in (root / ".dvc" / "cache" / "files" / "md5").glob("??/*")
        if path.stat().st_size == len(good) and path.read_bytes() == good
    ]
    damaged = bytearray(good)
    damaged[len(good) // 2] ^= 1
    cached.unlink()
    cached.write_bytes(damaged)
    for folder in ("artefacts", "store", ".dvc/tmp"):
        shutil.rmtree(root / folder)
    copy.run("dvc", "checkout")
    assert weights.read_bytes() == damaged
    done = copy.run("dvc", "repro", "--single-item", "--force", "sample", check=False)
    assert done.returncode != 0
    said = f"{weights}: damaged (checksum differs); delete {weights.parent} and run again"
    assert f"{said} (so was its copy in DVC's cache, which is removed)" in done.stderr
    assert not cached.exists()
    shutil.rmtree(weights.parent)
    assert copy.repro()["experts"] == 1
    assert weights.read_bytes() == cached.read_bytes() == good
