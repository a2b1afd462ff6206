"""Errors on held-out images by noise level: against a closed form, and through the pipeline."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import yaml

from pipeline import plan
from pipeline.data.latents import Latents, write_shard
from pipeline.evaluation.errors import MOST, held_out_errors
from stages.facts import facts_of
from stages.workspace import Workspace
from tests.workflow import run_stages

LEVELS = [6.0, 1.0, -2.0, -7.0]
VARIANCE = 0.4


class Denoiser:
    """What a mixture is asked here; its answers are scaled by `factor`."""

    def __init__(self, factor=None):
        self.factor = factor
        self.description, self.device = {"classes": 0}, torch.device("cpu")

    def denoiser(self, labels, batch):
        def best(x, log_snr):
            alpha2, sigma2 = 1 / (1 + math.exp(-log_snr)), 1 / (1 + math.exp(log_snr))
            shrink = math.sqrt(alpha2) * VARIANCE / (alpha2 * VARIANCE + sigma2)
            return (shrink if self.factor is None else self.factor * math.sqrt(alpha2)) * x

        return best


@pytest.fixture(scope="module")
def gaussian(tmp_path_factory):
    """Rows of independent values of one variance, in 8 bits."""
    path = tmp_path_factory.mktemp("gaussian") / "0.arrow"
    values = np.random.Generator(np.random.PCG64(0)).normal(size=(2 * MOST, 1, 8, 8))
    rows = np.clip(np.round(127.5 + 20 * values), 0, 255).astype(np.uint8)
    write_shard(path, [(rows, None)], (1, 8, 8), [127.5], 20 / math.sqrt(VARIANCE))
    return Latents([path])


def test_the_best_denoiser_of_a_gaussian_has_its_least_error(gaussian):
    found = held_out_errors(Denoiser(), gaussian, LEVELS, seed=0, batch=100)
    assert (found["log_snr"], found["images"]) == (LEVELS, MOST)
    for level, error, std in zip(LEVELS, found["error"], found["std"], strict=True):
        alpha2, sigma2 = 1 / (1 + math.exp(-level)), 1 / (1 + math.exp(level))
        wanted = VARIANCE / (alpha2 * VARIANCE + sigma2)
        assert error == pytest.approx(wanted, rel=0.02)
        assert std == pytest.approx(wanted * math.sqrt(2 / 64), rel=0.1)  # of 64 values' mean


def test_it_is_the_error_of_v(gaussian):
    """What knows nothing answers v = 0, which is x0 = alpha x, with the error alpha^2 var + ..."""
    found = held_out_errors(Denoiser(1.0), gaussian, LEVELS, seed=0, batch=4096)
    for level, error in zip(LEVELS, found["error"], strict=True):
        alpha2, sigma2 = 1 / (1 + math.exp(-level)), 1 / (1 + math.exp(level))
        assert error == pytest.approx(alpha2 + sigma2 * VARIANCE, rel=0.02)  # the size of v


PARAMS = {
    "seed": 0,
    "data": {"source": "digits", "limit": 300, "holdout": 60},
    "latent": {"encoder": "pixels"},
    "features": {"extractor": "classifier", "images": 300},
    "evaluate": {"samples": 80},
    "defaults": {
        "network": {"kind": "unet", "channels": 8, "multipliers": [1, 2], "blocks": 1},
        "schedule": {"kind": "log-snr", "states": 30},
        "training": {"images": 300, "batch": 32, "milestones": [150]},
        "sampling": {"kind": "ddim", "steps": 4},
    },
    "recipes": {
        "many": {"seeds": [0, 1]},
        "range": {"schedule": {"kind": "log-snr", "states": "continuous"}},
        "apart": {
            "schedule": {"kind": "log-snr", "states": 3},
            "partition": {"kind": "per-state"},
            "sampling": {"steps": None},
        },
        "told": {"network": {"class_conditional": True}},
    },
}


def test_every_recipe_has_errors_at_its_end(tmp_path):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    workspace = Workspace(tmp_path)
    run_stages(workspace)
    recipes = plan.experts(workspace.params, facts_of(workspace))
    counts = {}
    for name, recipe in recipes.items():
        path = workspace.results / "recipes" / name / "metrics.json"
        found = json.loads(path.read_text())["held_out"]
        counts[name] = len(found["log_snr"])
        assert found["images"] == 60
        assert all(0.02 < error < 3 for error in found["error"]), name
        assert found["log_snr"][0] == recipe.trained[0]
        assert found["log_snr"][-1] == recipe.trained[-1]
    assert counts == {"many-seed0": 24, "many-seed1": 24, "range": 24, "apart": 3, "told": 24}
    summary = json.loads((workspace.results / "summary.json").read_text())["recipes"]
    assert "held_out" not in summary["range"]
    page = (workspace.results / "report.html").read_text()
    assert "Errors by noise level" in page and "on 60 images that no recipe" in page
    assert (workspace.results / "figures" / "errors.svg").exists()


def test_without_held_out_images_there_are_none(tmp_path):
    apart = PARAMS | {"data": {"source": "digits", "limit": 300}}
    apart["recipes"] = {"range": PARAMS["recipes"]["range"]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(apart))
    workspace = Workspace(tmp_path)
    run_stages(workspace)
    path = workspace.results / "recipes" / "range" / "metrics.json"
    assert "held_out" not in json.loads(path.read_text())
    assert "Errors by noise level" not in (workspace.results / "report.html").read_text()
