"""Every idea in one params.yaml, from real images to the report: each part meets the others."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from pipeline import plan
from pipeline.sampling.mixture import Mixture
from stages import evaluate, merge, sample
from stages.facts import facts_of
from stages.film import Films
from stages.report.now import report_now
from stages.report.write import samples_of
from stages.tools import plan as planning
from stages.workspace import Workspace
from tests.pages import Page, check_self_contained
from tests.workflow import run_stages

pytestmark = pytest.mark.slow

TWELVE = {"kind": "log-snr", "states": 12, "log_snr_max": 7.0, "log_snr_min": -7.0}
FORKED = {
    "schedule": TWELVE,
    "partition": {"kind": "uniform", "intervals": 3},
    "training": {"parent": "base", "images": 300, "milestones": []},
    "decouple": {"outside": 0.2, "consistency": 0.5},
}
MULTI = {
    "network": {
        "kind": "multi-decoder",
        "channels": 8,
        "decoder_channels": [8, 8, 4],
        "multipliers": [1, 2],
    },
    "schedule": {"kind": "log-snr", "states": "continuous"},
    "partition": {
        "kind": "optimal-denoiser",
        "method": "matrix",
        "draws": 100,
        "nodes": 12,
        "eta": 0.05,
    },
}
PARAMS = {
    "seed": 0,
    "data": {"source": "digits", "limit": 400, "holdout": 48},
    "latent": {
        "encoder": "autoencoder",
        "channels": 2,
        "downsample": 2,
        "width": 8,
        "images": 800,
        "flips": True,
        "sample": True,
        "shard": 500,
    },
    "features": {"extractor": "classifier", "images": 600},
    "evaluate": {
        "samples": 100,
        "consistency": {"recipes": ["base", "forked"], "samples": 32, "states": 3},
    },
    "defaults": {
        "network": {"kind": "unet", "channels": 8, "multipliers": [1, 2], "blocks": 1},
        "training": {
            "images": 600,
            "batch": 32,
            "milestones": [300],
            "warmup": 60,
            "ema_halflife": 100,
        },
        "sampling": {"kind": "ddim", "steps": 6},
    },
    "recipes": {
        "base": {"schedule": TWELVE, "training": {"weighting": {"kind": "uncertainty"}}},
        "fitted": {
            "schedule": {"kind": "fitted", "states": 6, "zero_terminal": True},
            "partition": {"kind": "per-state", "channels": [8, 8, 8, 4, 4]},
            "training": {"budget": "by-difficulty"},
            "sampling": {"steps": None},
        },
        "piloted": {
            "schedule": {"kind": "fitted", "states": 12, "source": "pilot", "pilot_images": 200},
            "partition": {"kind": "gradient", "intervals": 2, "pilot_images": 200, "nodes": 6},
        },
        "multi": MULTI | {"curriculum": {"kind": "per-interval", "correct": True}},
        "branched": MULTI
        | {
            "schedule": TWELVE,
            "training": {"parent": "base", "train": "decoders", "images": 300, "milestones": []},
        },
        "forked": FORKED,
        "merged": FORKED
        | {
            "network": {"projections": True},
            "merge": {"method": "task-vector", "images": 48, "confirm": 40},
        },
        "average": {
            "schedule": TWELVE,
            "training": {"power_ema": [0.05, 0.1]},
            "merge": {"method": "post-hoc", "length": 0.07},
        },
        "snapshots": {"schedule": TWELVE, "merge": {"method": "snapshots", "images": 48}},
        "flow": {
            "schedule": {"kind": "flow", "shift": 2.0},
            "prediction": "flow",
            "sampling": {"kind": "heun-flow", "steps": 3},
        },
        "led": {
            "schedule": TWELVE,
            "sampling": {
                "guidance": 1.5,
                "guidance_interval": [-4.0, 4.0],
                "guide": {"milestone": 300},
            },
        },
        "paired": {
            "schedule": TWELVE,
            "seeds": [0, 1],
            "pairing": {"method": "assignment", "block": 64, "keep": 4},
        },
        "taken": {"schedule": TWELVE, "pairing": {"method": "semidiscrete", "components": 8}},
    },
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    root = tmp_path_factory.mktemp("everything")
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    found = Workspace(root)
    run_stages(found)
    return found


def mixture(workspace, name):
    return merge.milestones_of(workspace, name)[-1]["mixture"]


def test_every_recipe_is_scored(workspace):
    summary = json.loads((workspace.results / "summary.json").read_text())["recipes"]
    assert set(summary) == {*PARAMS["recipes"], "paired-seed0", "paired-seed1"} - {"paired"}
    for name, found in summary.items():
        assert found["samples"] == 100 and np.isfinite(found["fid"]), name
    # A fork's cost includes what it started from.
    assert summary["forked"]["images_seen"] == 900
    assert summary["paired-seed0"]["fid"] != summary["paired-seed1"]["fid"]


def test_films_have_the_samples_that_are_scored(workspace):
    """At every milestone of every recipe, also from snapshots of experts that are not finished."""
    films = Films(workspace)
    drawn = list(films.look())
    assert sorted(drawn) == sorted((n, m) for n, r in films.recipes.items() for m in r.milestones)
    jobs = evaluate.score_jobs(workspace, workspace.params, films.facts, films.recipes)
    for name, milestone in drawn:
        scored = samples_of(workspace, jobs[name, milestone]).raw(np.arange(16)).astype(int)
        found = np.load(films.frames(name)[milestone])
        assert np.abs(found - scored).max() <= 1, (name, milestone)  # drawn in other batches
        assert (workspace.results / "recipes" / name / "film.png").exists()
    experts = [e.job.name for r in films.recipes.values() for e in r.experts]
    marks = {workspace.store.entry(name).path / "DONE" for name in experts}
    try:
        for mark in marks:
            mark.rename(mark.with_name(".DONE"))
        unfinished = Films(workspace)
        unfinished._tried |= {path.name for path in unfinished._kept.iterdir()}
        again = list(unfinished.look())
        assert again == drawn  # known by the same digests: none had to be drawn
    finally:
        for mark in marks:
            mark.with_name(".DONE").rename(mark)


def test_an_unfinished_report_holds_the_recipes_that_are_scored(workspace):
    """Not those that start from one that is not, whose costs are not known."""
    facts = facts_of(workspace)
    recipes = plan.experts(workspace.params, facts)
    jobs = evaluate.score_jobs(workspace, workspace.params, facts, recipes)
    entry = workspace.store.entry(jobs["base", 600].name)
    marks = [entry.path / "DONE", workspace.artefacts("scores") / entry.digest / "DONE"]
    summary = (workspace.results / "summary.json").read_bytes()
    try:
        for mark in marks:
            mark.rename(mark.with_name(".DONE"))
        report_now(workspace)
    finally:
        for mark in marks:
            mark.with_name(".DONE").rename(mark)
    page = Page((workspace.results / "now" / "report.html").read_text(encoding="utf-8"))
    check_self_contained(page)
    lacking = {"base", "forked", "merged", "branched"}
    table = page.tables[0]
    assert {row[0] for row in table[1:] if row[-1] == "no"} == lacking
    assert {row[0] for row in table[1:] if row[-1] == "yes"} == {*recipes} - lacking
    assert f"{len(recipes) - 4} of {len(recipes)} recipes were scored" in page.text
    assert "Scores" in page.text and page.all("img", alt="Samples of flow at each milestone")
    assert page.all("img", alt="Samples of base at each milestone so far")
    assert (workspace.results / "summary.json").read_bytes() == summary


def test_a_terminal_state_answers_the_mean_and_costs_nothing(workspace):
    described = mixture(workspace, "fitted")
    assert described["log_snr"][-1] == "-inf" and len(described["experts"]) == 5
    assert [e["network"]["channels"] for e in described["experts"]] == [8, 8, 8, 4, 4]


def test_merging_makes_one_network_and_branches_share_the_parents_encoder(workspace):
    assert len(mixture(workspace, "forked")["experts"]) == 3
    assert len(mixture(workspace, "merged")["experts"]) == 1
    branched = mixture(workspace, "branched")
    ready = Mixture(branched, lambda e: workspace.store.entry(e["entry"]).file(e["file"]))
    base = Mixture(
        mixture(workspace, "base"), lambda e: workspace.store.entry(e["entry"]).file(e["file"])
    )
    shared = dict(base.network(0).encoder.named_parameters())
    for index in range(3):
        own = ready.network(index)
        assert all(
            np.array_equal(p.detach(), shared[name].detach())
            for name, p in own.encoder.named_parameters()
        )
        assert len(own.decoders) == 1


def test_samples_are_led_away_from_an_earlier_milestone(workspace):
    """What was drawn at the end depends on the earlier milestone, whose own samples do not."""
    facts = facts_of(workspace)
    recipes = plan.experts(workspace.params, facts)
    jobs = sample.sample_jobs(workspace, workspace.params, facts, {"led": recipes["led"]})
    [early], [late] = (jobs["led", images] for images in (300, 600))
    assert early.spec.led is None and early.spec.sampling.guidance == 1.0
    known = {m["images"]: m["mixture"] for m in merge.milestones_of(workspace, "led")}
    assert late.spec.led.guide == known[300] and late.spec.mixture == known[600]
    assert all(workspace.store.entry(job.name).done for job in (early, late))


def test_the_report_shows_what_there_was(workspace):
    page = (workspace.results / "report.html").read_text()
    for name in ("Partitions", "Pairings", "Latents", "Consistency", "Merging", "paired"):
        assert name in page, name


def test_the_plan_says_what_each_decoder_costs(workspace, capsys):
    planning.show_plan(workspace, "multi", False, False)
    told = capsys.readouterr().out.partition("decoder of")[2]
    lines = [line.split() for line in told.splitlines()]
    decoders = [line for line in lines if line[:2] == ["multi", "log-SNR"]]
    assert [line[5] for line in decoders] == ["8", "8", "4"]
    assert len({" ".join(line[6:8]) for line in decoders}) == 2  # two widths, two costs
