"""Jobs run in this process, on blocks so small that every dataset has several."""

import json

import numpy as np
import pytest
import yaml
from sklearn.datasets import load_digits

from pipeline import config, dataset, plan
from stages import jobs, steps
from stages.workspace import Workspace

ROWS = 300


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.delenv("TSPACE_STORE", raising=False)
    monkeypatch.setattr(jobs, "BLOCK", 128)
    images, labels = load_digits(return_X_y=True)
    pixels = (images[:ROWS].reshape(-1, 8, 8, 1) * 15).astype(np.uint8)
    np.savez(tmp_path / "raw.npz", images=pixels, labels=labels[:ROWS])
    dataset.prepare(tmp_path / "artefacts" / "dataset", source="npz", path=tmp_path / "raw.npz")
    params = {
        **{"seed": 0, "data": {}, "latent": {}, "evaluate": {"samples": 100}, "defaults": {}},
        "features": {"extractor": "classifier", "images": 600},
        "recipes": {"ddpm": {"training": {"images": 100}}},
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    return Workspace(tmp_path)


def test_features_of_more_images_than_a_block(workspace):
    job = plan.features(workspace.params, steps.facts_of(workspace))
    entry = workspace.store.plan(job.kind, job.spec)
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
        params = config.resolve(raw)
        facts = steps.facts_of(workspace)
        for job in (
            *plan.latents(params, facts),
            *plan.experts(params, facts)["knn"].experts[0].pairings,
        ):
            entry = workspace.store.plan(job.kind, job.spec)
            assert jobs.run_job(workspace, workspace.store, job.name), entry.log.read_text()
        found[center] = entry.load_json("diagnostics.json")
    assert found[False]["noise_mean"] > 10 * found[False]["noise_mean_error"]
    assert abs(found[True]["noise_mean"]) < 4 * found[True]["noise_mean_error"]


def test_mapped_images_are_the_datasets(workspace):
    opened = dataset.open_dataset(workspace.dataset)
    entry = workspace.store.plan("features", {"any": "spec"})
    for _ in range(2):  # the second time from the file of the first
        found = jobs._mapped(opened, ROWS - 10, entry)
        assert np.array_equal(found, opened.images(0, ROWS - 10))


def test_a_classifier_of_one_class_learns_rotations(workspace):
    """The labels occur in the dataset, so no key could leave them out."""
    raw = workspace.root / "raw.npz"
    np.savez(raw, images=np.load(raw)["images"], labels=np.full(ROWS, 3))
    dataset.prepare(workspace.dataset, source="npz", path=raw)
    job = plan.features(workspace.params, steps.facts_of(workspace))
    entry = workspace.store.plan(job.kind, job.spec)
    assert jobs.run_job(workspace, workspace.store, job.name), entry.log.read_text()
    report = json.loads(entry.file("report.json").read_text())
    assert (report["task"], report["classes"]) == ("rotations", 4)
    assert "one label: the classifier learns rotations instead" in entry.log.read_text()
