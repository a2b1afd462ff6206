"""Samples scored against statistics that others computed: the job `scores`, and what it is told."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline import plan
from pipeline.data.latents import write_shard
from pipeline.errors import UserError
from pipeline.evaluation.frechet import frechet_distance, moments
from pipeline.sampling.params import DdimSampling
from pipeline.specs import SamplesSpec
from stages.facts import facts_of
from stages.report.write import PASSED_ON
from stages.workspace import Workspace
from tests.test_inspection import edited, make, small_workspace

PARAMS = """\
seed: 0
data: {source: digits, limit: 80}
latent: {encoder: pixels}
features: {extractor: module, module: "halves.py:Halves"}
evaluate: {samples: 40, reference: stats.npz}
defaults: {}
recipes: {one: {}}
"""
HALVES = """\
import torch

class Halves(torch.nn.Module):
    dimension = 2

    def forward(self, images):
        return torch.stack([half.float().mean((1, 2, 3)) for half in images.chunk(2, 2)], 1)
"""


def features_of(images):
    return np.stack([half.mean((1, 2, 3)) for half in np.split(images.astype(float), 2, 2)], 1)


@pytest.fixture
def other():
    """Features of other images, by the same extractor."""
    return np.random.default_rng(1).normal(size=(60, 2)) * [30, 50] + 100


@pytest.fixture
def workspace(tmp_path, monkeypatch, other):
    """The files that params.yaml names are needed only once scores are planned."""
    monkeypatch.delenv("TSPACE_STORE", raising=False)
    plain = PARAMS.replace(", reference: stats.npz", "")
    plain = plain.replace('{extractor: module, module: "halves.py:Halves"}', "{dimension: 8}")
    found = small_workspace(tmp_path / "tspace", plain)
    (found.root / "params.yaml").write_text(PARAMS)
    (found.root / "halves.py").write_text(HALVES)
    np.savez(found.root / "stats.npz", mu=other.mean(axis=0), sigma=np.cov(other.T))
    return Workspace(found.root)


def planned(workspace, images):
    """The jobs of features, samples (these images) and scores; the samples are there."""
    params, facts = workspace.params, facts_of(workspace)
    spec = SamplesSpec(
        mixture={},
        states=[0.0],
        sampling=DdimSampling(),
        first=0,
        last=len(images),
        seed=0,
        batch=8,
        threads=1,
        code="",
    )
    samples = plan.Job("samples", spec, "samples")
    entry = workspace.store.plan("samples", spec.as_json())
    if not entry.done:
        write_shard(entry.path / "samples.arrow", [(images, None)], images.shape[1:], [0.0], 1.0)
        entry.finish()
    reference = plan.features(params, facts)
    return reference, plan.scores(params, facts, [samples], reference, "one")


def test_samples_are_scored_against_the_dataset_and_against_statistics_of_others(workspace, other):
    images = np.random.default_rng(2).integers(0, 256, (40, 1, 8, 8), np.uint8)
    reference, scored = planned(workspace, images)
    assert all(make(workspace, [reference, scored]))
    found = workspace.store.entry(scored.name).load_json("scores.json")
    expected = frechet_distance(moments(other), moments(features_of(images)))
    assert found["fid_published"] == pytest.approx(expected.value, rel=1e-5)
    assert found["published"]["file"] == "stats.npz"
    assert "40 samples' features" in found["published"]["compared"]
    assert found["fid"] != pytest.approx(found["fid_published"], rel=0.1)
    assert {"fid_published", "published"} < set(PASSED_ON)
    # Without it, and with other statistics in the file, it is another job; nothing else is.
    again, plain = planned(edited(workspace, ", reference: stats.npz", ""), images)
    assert again.name == reference.name and plain.name != scored.name
    assert "published" not in plain.spec.as_json()


def test_statistics_that_change_are_another_job_and_never_taken_for_the_old_ones(workspace):
    images = np.zeros((40, 1, 8, 8), np.uint8)
    reference, scored = planned(workspace, images)
    np.savez(workspace.root / "stats.npz", mu=np.zeros(3), sigma=np.eye(3))
    assert planned(workspace, images)[1].name != scored.name
    assert make(workspace, [reference, scored]) == [True, False]
    assert "stats.npz: changed since" in workspace.store.entry(scored.name).log.read_text()
    (workspace.root / "stats.npz").unlink()
    with pytest.raises(UserError, match=r"evaluate\.reference: stats\.npz: cannot be read"):
        facts_of(workspace)
