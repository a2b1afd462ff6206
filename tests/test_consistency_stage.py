"""The stage `consistency`: its settings, its plan, and a small real comparison."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline import plan
from pipeline.errors import UserError
from pipeline.params.feasibility import check_against
from pipeline.params.load import resolve
from stages import analyse, encode, merge, prepare, train
from stages.consistency import consistency, consistency_jobs
from stages.facts import facts_of
from stages.job import run_job
from stages.workspace import Workspace
from tests.test_plan import FACTS

RECIPES = {
    "dense": {"schedule": {"kind": "linear", "states": 1000}, "seeds": [0, 1]},
    "apart": {
        "schedule": {"kind": "log-snr", "states": 6, "log_snr_max": 4, "log_snr_min": -4},
        "partition": {"kind": "per-state"},
    },
    "other": {
        "schedule": {"kind": "log-snr", "states": 4, "log_snr_max": 4, "log_snr_min": -4},
    },
    "edm": {"schedule": {"kind": "edm"}, "sampling": {"steps": 9}},
}
DEFAULTS = {"training": {"images": 1000, "batch": 10}}


def params(*recipes, **settings):
    block = {"recipes": list(recipes), **settings}
    return resolve({"defaults": DEFAULTS, "recipes": RECIPES, "evaluate": {"consistency": block}})


def planned(given):
    recipes = plan.experts(given, FACTS)
    mixtures = {name: {"experts": [{"entry": f"expert/{name}"}]} for name in recipes}
    guides = dict.fromkeys(recipes)
    return plan.consistency(given, FACTS, recipes, mixtures, guides, plan.features(given, FACTS))


def test_a_name_with_seeds_stands_for_all_of_its_runs():
    def names(*given):
        return params(*given).evaluate.consistency.recipes

    assert names("dense") == ["dense-seed0", "dense-seed1"]
    assert names("apart", "dense-seed1", "dense") == ["apart", "dense-seed1", "dense-seed0"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["dense", "apatr"],
            r"consistency\.recipes\.1: .apatr. is no recipe; did you mean `apart`",
        ),
        (["dense-seed0", "dense-seed7"], r"did you mean `dense-seed"),
        (["apart", "apart"], "two or more models can be compared, apart given"),
        ([], "two or more models can be compared, none given"),
    ],
)
def test_models_that_cannot_be_compared_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        params(*given)


def test_unknown_settings_are_refused_and_noisy_images_need_real_ones():
    with pytest.raises(UserError, match=r"evaluate\.consistency\.sampels: no such key.*samples"):
        params("dense", sampels=3)
    with pytest.raises(UserError, match=r"evaluate\.consistency\.samples: 256 noisy .* are 200"):
        check_against(params("dense"), 200, 8, 1, 10)


def test_outputs_are_made_once_a_recipe_and_compared_once_a_pair():
    outputs, pairs = planned(params("dense", "apart"))
    assert list(outputs) == ["dense-seed0", "dense-seed1", "apart"]
    assert list(pairs) == [
        ("dense-seed0", "dense-seed1"),
        ("dense-seed0", "apart"),
        ("dense-seed1", "apart"),
    ]
    for (a, b), job in pairs.items():
        assert set(job.needs) > {outputs[a].name, outputs[b].name}
    # How the numbers are compared makes no new outputs.
    again, compared = planned(params("dense", "apart", level=0.8, resamples=50, similarity=0.5))
    assert [job.name for job in again.values()] == [job.name for job in outputs.values()]
    assert not {job.name for job in compared.values()} & {job.name for job in pairs.values()}
    fewer, _ = planned(params("dense", "apart", samples=100))
    assert not {job.name for job in fewer.values()} & {job.name for job in outputs.values()}


def test_the_block_changes_no_scores_and_no_samples():
    with_block, without = (
        params("dense"),
        resolve({"defaults": DEFAULTS, "recipes": RECIPES}),
    )
    reference = plan.features(without, FACTS)
    names = [plan.scores(p, FACTS, [], reference, "x").name for p in (with_block, without)]
    assert names[0] == names[1]
    assert planned(without) == ({}, {})


def test_levels_are_states_that_the_recipes_know():
    given = params("dense", "apart", "other", "edm", states=6)
    recipes = plan.experts(given, FACTS)
    apart, dense, other, edm = (recipes[n] for n in ("apart", "dense-seed0", "other", "edm"))
    # Experts of one state decide; a dense schedule has a state near each, a continuous one all.
    levels = plan.shared_levels([dense, apart, edm], 6)
    assert levels == pytest.approx(apart.log_snr)
    for level in levels:
        assert plan.asked_at(apart, level) == level == plan.asked_at(edm, level)
        assert 0 < abs(plan.asked_at(dense, level) - level) < plan.outputs.NEAR_STATE
    # 6 and 4 states over one range have only its ends in common.
    assert plan.shared_levels([apart, other], 6) == [4, -4]
    assert plan.asked_at(other, float(apart.log_snr[1])) is None
    assert plan.asked_at(edm, 30.0) is None
    # Two of three know each level; who does not is skipped there.
    levels = plan.shared_levels([dense, apart, other], 50)
    assert levels == sorted({*apart.log_snr, *other.log_snr}, reverse=True)
    outputs, _ = planned(params("dense", "apart", "other", states=50))
    assert [level for level, _ in outputs["other"].spec.levels] == list(other.log_snr)
    assert plan.shared_levels([edm, edm], 3) == pytest.approx(
        [edm.log_snr[0], edm.log_snr.mean(), edm.log_snr[1]]
    )


PARAMS = """\
seed: 0
data: {source: digits, limit: 120, holdout: 20}
latent: {flips: true}
features: {extractor: classifier, images: 300, dimension: 8, channels: 8}
evaluate: {samples: 16, consistency: {recipes: [one, apart], samples: 20, resamples: 50, states: 4}}
defaults:
  network: {kind: unet, channels: 8, multipliers: [1], blocks: 1}
  training: {images: 160, batch: 16, warmup: 0, ema_halflife: 0}
recipes:
  one:
    schedule: {kind: log-snr, states: 4, zero_terminal: true}
    network: {class_conditional: true}
    seeds: [0, 1]
  apart:
    schedule: {kind: log-snr, states: 4}
    partition: {kind: per-state}
"""


def make(workspace, jobs):
    names = [workspace.store.plan(job.kind, job.spec.as_json()).name for job in jobs]
    for name in names:
        entry = workspace.store.entry(name)
        assert run_job(workspace, workspace.store, name), (entry.path / "error.txt").read_text()


def test_three_small_models_are_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("TSPACE_STORE", raising=False)
    (tmp_path / "params.yaml").write_text(PARAMS)
    workspace = Workspace(tmp_path)
    prepare.prepare(workspace)
    facts = facts_of(workspace)
    make(workspace, plan.latents(workspace.params, facts) + plan.held_out(workspace.params, facts))
    encode.encode(workspace)
    make(workspace, plan.analyses(workspace.params, facts))
    analyse.analyse(workspace)
    make(workspace, [plan.features(workspace.params, facts)])
    recipes = plan.experts(workspace.params, facts)
    make(workspace, [expert.job for recipe in recipes.values() for expert in recipe.experts])
    train.train(workspace)
    merge.merge(workspace)
    outputs, pairs = consistency_jobs(workspace)
    make(workspace, [*outputs.values(), *pairs.values()])
    consistency(workspace)

    folder = tmp_path / "artefacts" / "consistency"
    found = json.loads((folder / "consistency.json").read_text())
    assert found["recipes"] == ["one-seed0", "one-seed1", "apart"]
    assert found["grid"] == "consistency.png" and (folder / "consistency.png").exists()
    assert [(p["a"], p["b"]) for p in found["pairs"]] == list(pairs)
    for pair in found["pairs"]:
        assert pair["overall"]["low"] <= pair["overall"]["value"] <= pair["overall"]["high"]
        assert abs(pair["null"]["value"]) < 0.3
        curve = pair["by_state"]
        assert len(curve["log_snr"]) == len(curve["value"]) == len(curve["low"]) > 0
        # Trained on the same images, all of them keep what a nearly clean image shows.
        assert curve["value"][0] > 0.8
        assert 0 <= pair["features"]["value"] <= 1
        assert pair["nearest"]["real"]["median"] > 0
    assert "by chance" in capsys.readouterr().out

    # The same starting noise and labels: other weights of the network answer otherwise.
    images = [np.load(workspace.store.entry(j.name).file("images.npy")) for j in outputs.values()]
    assert images[0].shape == (20, 1, 8, 8) and (images[0] != images[1]).any()
    name = outputs["apart"].name
    distances = np.load(workspace.store.entry(name).file("nearest.npy"))
    rows = np.concatenate([images_of(workspace, 100), images_of(workspace, 100)[..., ::-1]])
    differences = images[2][:, None].astype(float) - rows
    oracle = np.sqrt((differences**2).mean(axis=(2, 3, 4))).min(axis=1)
    np.testing.assert_allclose(distances, oracle)

    text = PARAMS.replace("evaluate: {samples: 16, consistency", "evaluate: {samples: 16} #")
    (tmp_path / "params.yaml").write_text(text)
    consistency(Workspace(tmp_path))
    assert [path.name for path in folder.iterdir()] == ["manifest.json"]


def images_of(workspace, rows):
    from pipeline.data.dataset import open_dataset
    from pipeline.data.split import Split

    return Split(open_dataset(workspace.dataset), 20).images(0, rows)
