"""Films: drawn from snapshots of trainings that are not finished, and of nothing half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from PIL import Image

from pipeline import plan
from pipeline.errors import UserError
from pipeline.training import train
from pipeline.training.run import Interrupted
from stages import film, pictures
from stages.analyse import analyse
from stages.inputs import latents_of
from stages.job import run_here
from stages.report.now import report_now
from stages.workspace import Workspace
from tests.pages import Page, check_self_contained
from tests.test_inspection import experts_of, make, small_workspace

PARAMS = """\
seed: 0
data: {source: digits, limit: 80}
latent: {encoder: pixels}
features: {extractor: classifier, images: 100, dimension: 8, channels: 8}
evaluate: {samples: 20, batch: 8}
defaults:
  network: {kind: unet, channels: 8, multipliers: [1], blocks: 1}
  training: {images: 96, batch: 16, milestones: [48]}
recipes:
  one:
    schedule: {kind: linear, states: 100}
  two:
    schedule: {kind: log-snr, states: 4}
    partition: {kind: uniform, intervals: 2}
"""


@pytest.fixture(autouse=True)
def own_store(monkeypatch):
    monkeypatch.delenv("TSPACE_STORE", raising=False)


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setattr("stages.fanout._run", run_here)
    found = small_workspace(tmp_path / "tspace", PARAMS)
    analyse(found)
    return found


def interrupted(workspace: Workspace, job: plan.Job, images: int) -> None:
    """Train an expert until it has seen so many images, and stop it there."""
    entry = workspace.store.plan("expert", job.spec.as_json())
    seen = []

    def stop() -> bool:
        seen.append(16)
        return sum(seen) >= images

    with pytest.raises(Interrupted):
        rows = latents_of(job.spec.latents, workspace.store)
        train.train(job.spec, rows, entry.path, stop=stop)
    assert not entry.done


def test_a_film_is_drawn_before_its_training_ends(workspace):
    [job] = experts_of(workspace, "one")
    films = film.Films(workspace)
    assert list(films.look()) == [] and not (workspace.results / "now").exists()
    interrupted(workspace, job, 64)
    assert list(films.look()) == [("one", 48)]
    assert Image.open(films.path("one")).size == (52, 16 * 50 + 2 + 12)
    assert list(films.look()) == []
    first = films.frames("one")[48]
    before = first.stat().st_mtime_ns, first.read_bytes()
    assert make(workspace, [job]) == [True]
    again = film.Films(workspace)
    assert list(again.look()) == [("one", 48), ("one", 96)]
    # The finished expert has the same snapshot, so its frame is that very one.
    assert again.frames("one")[48] == first
    assert (first.stat().st_mtime_ns, first.read_bytes()) == before
    assert Image.open(films.path("one")).size == (2 * 52, 16 * 50 + 2 + 12)


def test_a_long_sampling_is_thinned_and_keeps_its_ends(workspace):
    [job] = experts_of(workspace, "one")
    make(workspace, [job])
    films = film.Films(workspace)
    spec, whole = films._spec("one", 96), films.recipes["one"].sampling_states
    assert len(whole) == 100 and len(spec.states) == film.STATES
    assert (spec.states[0], spec.states[-1]) == (whole[0], whole[-1])
    assert set(spec.states) <= set(whole) and spec.last == pictures.FILMED


def test_a_mixture_is_drawn_when_all_its_experts_have_the_milestone(workspace):
    first, second = experts_of(workspace, "two")
    films = film.Films(workspace)
    interrupted(workspace, first, 32)
    assert list(films.look()) == []
    interrupted(workspace, second, 32)
    assert list(films.look()) == [("two", 48)]
    assert not films.complete


def test_a_damaged_snapshot_is_told_and_costs_no_other_frame(workspace):
    [job], pair = experts_of(workspace, "one"), experts_of(workspace, "two")
    interrupted(workspace, job, 64)
    for each in pair:
        make(workspace, [each])
    path = workspace.store.entry(job.name).path / "weights-48.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    films = film.Films(workspace)
    with pytest.raises(UserError, match=r"weights-48\.safetensors: not the weights"):
        list(films.look())
    assert list(films.look()) == [("two", 48), ("two", 96)]
    assert make(workspace, [job]) == [True]  # which does not rely on what it did not seal
    assert list(films.look()) == [("one", 48), ("one", 96)]


def test_a_kill_at_any_point_leaves_whole_files_or_none(workspace):
    [job] = experts_of(workspace, "one")
    make(workspace, [job])
    points = 0
    while True:
        points += 1
        child = os.fork()
        if not child:
            os.environ["TSPACE_FAULT"] = f"kill:{points}"
            list(film.Films(workspace).look())
            os._exit(0)
        _, status = os.waitpid(child, 0)
        for path in workspace.root.rglob("film.png"):
            Image.open(path).load()
        for path in workspace.root.rglob("film/*.npy"):
            assert np.load(path).shape == (16, 1, 8, 8)
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    assert points > 4
    assert len(film.Films(workspace).frames("one")) == 0
    films = film.Films(workspace)
    assert list(films.look()) == [("one", 48), ("one", 96)]


def test_the_columns_of_a_film_are_its_milestones():
    frames = {1000: np.zeros((3, 1, 8, 8), np.uint8), 20000: np.full((3, 1, 8, 8), 255, np.uint8)}
    picture = np.asarray(pictures.film(frames).convert("L"))
    assert picture.shape == (12 + 3 * 50 + 2, 2 * 52)
    assert (picture[20:60, 4:48] == 0).all() and (picture[20:60, 56:100] == 255).all()
    assert (picture[:12, :52] < 128).any() and (picture[:12, 52:] < 128).any()


def test_it_ends_with_the_process_that_started_it(tmp_path):
    """Also with one that was killed, which can tell it nothing."""
    small_workspace(tmp_path / "tspace", PARAMS)
    for needed in ("Snakefile", "dvc.yaml"):
        (tmp_path / "tspace" / needed).touch()
    code = (
        "import time, stages.film as f; from pathlib import Path; "
        "from stages.workspace import Workspace; f.BEGIN_SECONDS = 0\n"
        "with f.drawn_beside(Workspace(Path.cwd())): time.sleep(60)"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("TSPACE_STORE", film.OFF)}
    command = [sys.executable, "-c", code]
    for ending, off in ((signal.SIGINT, None), (signal.SIGKILL, None), (signal.SIGINT, "0")):
        told = environment | ({film.OFF: off} if off else {})
        process = subprocess.Popen(
            command, cwd=tmp_path / "tspace", env=told, stderr=subprocess.DEVNULL
        )
        started = psutil.Process(process.pid)
        wait = time.monotonic() + (5 if off else 60)
        while not (children := started.children()) and time.monotonic() < wait:
            time.sleep(0.05)
        assert bool(children) == (off is None)
        process.send_signal(ending)
        process.wait(30)
        _, alive = psutil.wait_procs(children, timeout=30)
        assert not alive


def test_the_report_of_an_unfinished_run(workspace, capsys):
    [job] = experts_of(workspace, "one")
    interrupted(workspace, job, 64)
    before = sorted(p for p in workspace.root.rglob("*") if "artefacts" in str(p))
    report_now(workspace)
    said = "unfinished report, 0 of 2 recipes scored: results/now/report.html"
    assert said in capsys.readouterr().out
    page = Page((workspace.results / "now" / "report.html").read_text(encoding="utf-8"))
    check_self_contained(page)
    assert "Unfinished: what existed at" in page.text and "2 recipes, none of them" in page.text
    assert "0 of 2 recipes were scored" in page.text
    [table] = page.tables
    assert table[1][:4] == ["one", "0 of 1", "64", "67%"] and table[1][5:] == ["48", "no"]
    assert table[2] == ["two", "0 of 2", "0", "0%", "–", "–", "no"]
    assert page.all("img", alt="Samples of one at each milestone so far")
    # What the report of a finished run writes is not there, nor is anything left behind.
    assert [p.name for p in workspace.results.iterdir()] == ["now"]
    assert sorted(p for p in workspace.root.rglob("*") if "artefacts" in str(p)) == before
    assert not list(workspace.scratch.glob("now.*"))
