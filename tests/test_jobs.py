"""Jobs run in this process, on blocks so small that every dataset has several."""

import errno
import json
import os
import signal

import numpy as np
import pytest
import yaml
from scipy import stats
from sklearn.datasets import load_digits

from pipeline import plan
from pipeline.data import dataset, split
from pipeline.noise import philox, semidiscrete
from pipeline.params.load import resolve
from pipeline.store.files import reached
from pipeline.training.draws import Draws
from stages import facts, fanout, features, inputs, train
from stages import job as jobs
from stages.facts import facts_of
from stages.workspace import Workspace

ROWS = 300


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.delenv("TSPACE_STORE", raising=False)
    monkeypatch.setattr(split, "BLOCK", 128)
    images, labels = load_digits(return_X_y=True)
    pixels = (images[:ROWS].reshape(-1, 8, 8, 1) * 15).astype(np.uint8)
    np.savez(tmp_path / "raw.npz", images=pixels, labels=labels[:ROWS])
    dataset.prepare(tmp_path / "artefacts" / "dataset", source="npz", path=tmp_path / "raw.npz")
    params = {
        **{
            "seed": 0,
            "data": {"source": "npz", "path": "raw.npz"},
            "latent": {},
            "evaluate": {"samples": 100},
            "defaults": {},
        },
        "features": {"extractor": "classifier", "images": 600},
        "recipes": {"ddpm": {"training": {"images": 100}}},
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    return Workspace(tmp_path)


def test_features_of_more_images_than_a_block(workspace):
    job = plan.features(workspace.params, facts.facts_of(workspace))
    entry = workspace.store.plan(job.kind, job.spec.as_json())
    assert jobs.run_job(workspace, workspace.store, job.name), entry.log.read_text()
    found = np.load(entry.file("features.npy"))
    report = json.loads(entry.file("report.json").read_text())
    assert found.shape == (ROWS, report["dimension"])
    assert np.isfinite(found).all() and found.std(0).max() > 0


@pytest.mark.parametrize("conditional", [False, True])
def test_centred_choices_pull_the_noise_nowhere(workspace, conditional):
    found = {}
    for center in (False, True):
        recipe = {"pairing": {"method": "knn-l2", "center": center}}
        recipe["network"] = {"class_conditional": conditional}
        raw = yaml.safe_load((workspace.root / "params.yaml").read_text())
        raw["recipes"] = {"knn": recipe | {"training": {"images": 100, "batch": 10}}}
        params = resolve(raw)
        facts = facts_of(workspace)
        for job in (
            *plan.latents(params, facts),
            *plan.experts(params, facts)["knn"].experts[0].pairings,
        ):
            entry = workspace.store.plan(job.kind, job.spec.as_json())
            assert jobs.run_job(workspace, workspace.store, job.name), entry.log.read_text()
        found[center] = entry.load_json("diagnostics.json")
    assert found[False]["noise_mean"] > 10 * found[False]["noise_mean_error"]
    assert abs(found[True]["noise_mean"]) < 4 * found[True]["noise_mean_error"]


@pytest.mark.parametrize("conditional", [False, True])
def test_noises_that_take_their_images_stay_normal_and_are_trained_with(workspace, conditional):
    recipe = {"pairing": {"method": "semidiscrete", "components": 32}}
    recipe["network"] = {"class_conditional": conditional}
    recipe["training"] = {"images": 2 * ROWS, "batch": 10}
    raw = yaml.safe_load((workspace.root / "params.yaml").read_text())
    raw["recipes"] = {"one": recipe}
    params, facts = resolve(raw), facts_of(workspace)
    [expert] = plan.experts(params, facts)["one"].experts
    entries = []
    for job in (*plan.latents(params, facts), *expert.pairings, expert.job):
        entry = workspace.store.plan(job.kind, job.spec.as_json())
        assert jobs.run_job(workspace, workspace.store, job.name), entry.log.read_text()
        entries.append(entry)
    first, second = entries[-3:-1]
    assert "potential.arrow" in first.files() and "potential.arrow" not in second.files()
    for entry in (first, second):
        found = entry.load_json("diagnostics.json")
        assert abs(found["noise_mean"]) < 4 * found["noise_mean_error"]
        assert found["noise_std"] == pytest.approx(1, abs=5 / np.sqrt(2 * 64 * ROWS))
        assert np.abs(np.array(found["component_variance"]) - 1).max() < 5 * np.sqrt(2 / ROWS)
        # Classes hold much of the first components, and noises cannot choose among them.
        assert max(found["component_correlation"]) > 0.3
        assert conditional or min(found["component_correlation"]) > 0.3
        assert found["alignment_percent"] == pytest.approx(found["distance_cut_percent"], abs=1)
        assert found["unevenness"] < 0.6
    latents = inputs.latents_of(expert.job.spec.latents, workspace.store, "cpu")
    draws = Draws(expert.job.spec, latents, train._pairings(expert.job.spec, workspace.store))
    drawn = draws.draw(0, 2 * ROWS)
    for slot in (0, 1):
        mine = drawn.slots == slot
        ids, rows = drawn.ids[mine], drawn.rows[mine]
        assert sorted(ids) == list(range(ROWS))  # each noise once, in an order of its own
        assert list(ids) != sorted(ids) and len(np.unique(rows)) < ROWS
        eps = draws.noises(drawn.slots[mine], rows, ids).flatten(1).numpy()
        expected = philox.normal(expert.job.spec.noise_key, slot, ids, (64,))
        assert np.array_equal(eps, expected)
        own = latents.gather(rows).flatten(1).numpy()
        inner = (own * eps).sum(1).mean()
        assert inner > 5 * np.sqrt((own**2).sum(1).mean() / ROWS)
        assert stats.kstest(eps.ravel(), "norm").pvalue > 1e-3
        if conditional:
            labels = latents.labels[rows]
            assert np.array_equal(np.bincount(labels), np.bincount(latents.labels))
            assert set(np.unique(drawn.labels[mine])) <= {
                *np.unique(labels),
                expert.job.spec.classes,
            }


def test_a_killed_potential_goes_on(workspace, monkeypatch):
    raw = yaml.safe_load((workspace.root / "params.yaml").read_text())
    raw["recipes"] = {"one": {"pairing": {"method": "semidiscrete"}, "training": {"images": 100}}}
    params, facts = resolve(raw), facts_of(workspace)
    [pairing] = plan.experts(params, facts)["one"].experts[0].pairings
    for job in (*plan.latents(params, facts), pairing):
        entry = workspace.store.plan(job.kind, job.spec.as_json())
        if job is not pairing:
            assert jobs.run_job(workspace, workspace.store, job.name)
    monkeypatch.setattr(semidiscrete, "STATE_SECONDS", 0)
    keep = semidiscrete.keep

    def killed(folder, name, far, write):
        keep(folder, name, far, write)
        if far > 100:
            raise KeyboardInterrupt

    monkeypatch.setattr(semidiscrete, "keep", killed)
    with pytest.raises(KeyboardInterrupt):
        jobs.run_job(workspace, workspace.store, pairing.name)
    far = reached(entry.state, semidiscrete.STATE)
    assert far > 100 and not entry.done
    monkeypatch.setattr(
        semidiscrete, "keep", lambda folder, name, reached, write: told.append(reached)
    )
    told = []
    assert jobs.run_job(workspace, workspace.store, pairing.name), entry.log.read_text()
    assert min(told) == far + 1


def test_mapped_images_are_the_datasets(workspace):
    opened = split.Split(dataset.open_dataset(workspace.dataset))
    entry = workspace.store.plan("features", {"any": "spec"})
    said = []
    for damaged in (False, False, True):  # the second time from the file of the first
        if damaged:
            (path,) = entry.state.iterdir()
            path.write_bytes(path.read_bytes()[:-1])
        found = inputs.mapped_images(opened, ROWS - 10, entry, said.append)
        assert np.array_equal(found, opened.images(0, ROWS - 10))
    assert said == [f"{path.name}: damaged"]


def test_a_classifier_of_one_class_learns_rotations(workspace):
    """The labels occur in the dataset, so no key could leave them out."""
    raw = workspace.root / "raw.npz"
    np.savez(raw, images=np.load(raw)["images"], labels=np.full(ROWS, 3))
    dataset.prepare(workspace.dataset, source="npz", path=raw)
    job = plan.features(workspace.params, facts.facts_of(workspace))
    entry = workspace.store.plan(job.kind, job.spec.as_json())
    assert jobs.run_job(workspace, workspace.store, job.name), entry.log.read_text()
    report = json.loads(entry.file("report.json").read_text())
    assert (report["task"], report["classes"]) == ("rotations", 4)
    assert "one label: the classifier learnt rotations instead" in entry.log.read_text()


@pytest.mark.parametrize(
    ("kind", "asking"),
    [("expert", signal.SIGTERM), ("expert", signal.SIGINT), ("features", signal.SIGTERM)],
)
def test_training_that_is_asked_to_stop_keeps_a_checkpoint_and_goes_on(
    workspace, monkeypatch, kind, asking
):
    facts = facts_of(workspace)
    if kind == "expert":
        job = plan.experts(workspace.params, facts)["ddpm"].experts[0].job
    else:
        job = plan.features(workspace.params, facts)
    for needed in [*plan.latents(workspace.params, facts), job]:
        entry = workspace.store.plan(needed.kind, needed.spec.as_json())
        if needed is not job:
            assert jobs.run_job(workspace, workspace.store, needed.name)
    sent = []

    def progress(reporter):
        def report(_):
            if not sent:
                sent.append(signal.raise_signal(asking))

        return report

    for stage in (train, features):
        monkeypatch.setattr(stage, "training_progress", progress)
    with pytest.raises(SystemExit):
        jobs.run_job(workspace, workspace.store, job.name)
    assert reached(entry.state, "checkpoint.pt") > 0 and not entry.done
    assert jobs.run_job(workspace, workspace.store, job.name)
    assert "resumes at" in entry.log.read_text()


def test_a_failure_that_is_final_is_not_tried_again_until_its_stage_runs(workspace):
    job = plan.features(workspace.params, facts.facts_of(workspace))
    bad = job.spec.as_json()
    bad["images"]["dataset"] = "another"
    entry = workspace.store.plan(job.kind, bad)
    for _ in range(3):  # as Snakemake's retries would
        assert not jobs.run_job(workspace, workspace.store, entry.name)
    assert entry.log.read_text().count("started by process") == 1
    assert "is not the dataset" in (entry.path / "error.txt").read_text()
    (entry.path / fanout.FINAL).unlink()  # which the stage does when it runs
    assert not jobs.run_job(workspace, workspace.store, entry.name)
    assert entry.log.read_text().count("started by process") == 2


def test_a_failure_of_the_machine_is_tried_again(workspace, monkeypatch):
    job = plan.features(workspace.params, facts.facts_of(workspace))
    entry = workspace.store.plan(job.kind, job.spec.as_json())
    for number in (errno.ENOSPC, errno.EIO):
        error = OSError(number, os.strerror(number), str(entry.path / "x"))

        def refuse(*_, error=error):
            raise error

        monkeypatch.setitem(jobs.RUNNERS, "features", refuse)
        assert not jobs.run_job(workspace, workspace.store, job.name)
        assert not (entry.path / fanout.FINAL).exists()
    monkeypatch.undo()
    assert jobs.run_job(workspace, workspace.store, job.name)
