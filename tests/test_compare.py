"""`tspace compare`: what it says of two recipes, by hand and of real runs and revisions."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from PIL import Image

from pipeline.params.load import resolve
from stages.tools import compare
from stages.tools.sides import HERE, Side, settings_of
from tests.workflow import Checkout

RUN = {
    "fid": 2.0,
    "fid_interval": [1.8, 2.3],
    "kid": 0.010,
    "kid_std": 0.001,
    "precision": 0.5,
    "recall": 0.5,
    "coverage": 0.5,
    "samples": 100,
    "reference_samples": 100,
    "extractor_digest": "e",
    "images_seen": 1000,
    "experts": 1,
    "parameters": 10,
    "parameters_active": 10,
    "train_flops": 1e9,
    "compute_seconds": 4.0,
    "seconds_critical": 4.0,
}


def side(*metrics, name="one", settings=None, **other):
    runs = tuple(f"{name}-seed{i}" for i in range(len(metrics))) if metrics[1:] else (name,)
    made = Side(
        name,
        HERE,
        runs,
        settings or {"schedule.kind": "linear"},
        "",
        tuple({**RUN, **own} for own in metrics),
        None,
        tuple(f"m{i}" for i in range(len(metrics))),
        (None,) * len(metrics),
        lambda _: None,
    )
    return dataclasses.replace(made, **other)


def told(a, b):
    return "\n".join(compare.lines(a, b))


def row(text, title):
    return " ".join(next(line for line in text.splitlines() if line.startswith(title)).split())


def test_an_interval_of_a_difference_by_hand():
    # Symmetric intervals add as standard errors do.
    assert compare.difference(1.0, (0.7, 1.3), 2.0, (1.6, 2.4)) == pytest.approx((0.5, 1.5))
    # Of uneven ones, those ends count that are towards each other.
    low, high = compare.difference(1.0, (0.9, 1.3), 2.0, (1.6, 2.1))
    assert low == pytest.approx(1 - 0.5) and high == pytest.approx(1 + math.hypot(0.1, 0.1))
    assert compare.difference(1.0, None, 2.0, (1.6, 2.4)) is None


def test_welch_by_hand():
    # Equal variances 1 and 3 each: t of 4 degrees of freedom is 2.776.
    low, high = compare.welch([1.0, 2.0, 3.0], [11.0, 12.0, 13.0])
    half = 2.7764451 * math.sqrt(1 / 3 + 1 / 3)
    assert (low, high) == pytest.approx((10 - half, 10 + half))
    assert compare.welch([1.0, 1.0], [3.0, 3.0]) == (2.0, 2.0)


def test_a_difference_is_told_from_chance():
    near = told(side({}), side({"fid": 2.2, "fid_interval": [2.0, 2.5]}))
    assert "within chance" in row(near, "FID")
    far = told(side({}), side({"fid": 1.0, "fid_interval": [0.9, 1.1], "precision": 0.6}))
    assert "more than chance" in row(far, "FID") and row(far, "FID").endswith("B is better")
    assert row(far, "precision").endswith("+0.100 no interval")
    worse = told(side({"fid": 1.0, "fid_interval": [0.9, 1.1]}), side({}))
    assert row(worse, "FID").endswith("A is better")
    assert row(far, "KID") == "KID ×10³ 10.00 (8.04..11.96) 10.00 (8.04..11.96) equal"
    assert "not that of training" in far


def test_costs_are_ratios_and_unknown_ones_dashes():
    text = told(side({}), side({"train_flops": 5e9, "compute_seconds": None}))
    assert row(text, "training FLOPs").endswith("5 times")
    assert row(text, "compute-seconds") == "compute-seconds 4.00 – –"
    assert row(text, "images") == "images 1,000 1,000 equal"


def test_seeds_are_compared_by_their_spread():
    a = side({"fid": 2.0}, {"fid": 2.1}, {"fid": 1.9})
    b = side({"fid": 1.0}, {"fid": 1.1}, {"fid": 0.9})
    text = told(a, b)
    assert row(text, "FID").startswith("FID 2.000 (1.900..2.100) 1.000 (0.900..1.100)")
    assert row(text, "FID").endswith("B is better") and "Welch" in text
    assert row(told(a, side({"fid": 1.0})), "FID").endswith("one run beside several")


@pytest.mark.parametrize("key", list(compare.GROUNDS))
def test_scores_of_other_grounds_are_not_judged(key):
    text = told(side({}), side({key: 7, "fid": 1.0, "fid_interval": [0.9, 1.1]}))
    assert f"WARNING: other {compare.GROUNDS[key]}" in text and "chance" not in text


def test_settings_are_resolved_ones():
    params = resolve(
        {
            "seed": 3,
            "evaluate": {"samples": 99},
            "defaults": {"training": {"batch": 16}},
            "recipes": {"a": {}, "b": {"seed": 4, "schedule": {"kind": "cosine", "states": 10}}},
        }
    )
    a, b = (settings_of(params, name) for name in "ab")
    assert a["training.batch"] == 16 and a["evaluate.samples"] == 99 and a["data.limit"] is None
    assert (a["seed"], b["seed"]) == (3, 4)
    text = told(side({}, settings=a), side({}, settings=b))
    assert "seed" in text and "schedule.kind" in text
    assert "training.batch" not in text and "evaluate.samples" not in text
    unread = dataclasses.replace(side({}), settings=None, unread="old:params.yaml: x")
    assert "settings: not compared (old:params.yaml: x)" in told(unread, side({}))


def test_bits():
    same = told(side({}), side({}))
    assert "models: the same bits" in same and "samples: checksums not known" in same
    assert "models: other bits (m0 and n)" in told(side({}), side({}, mixtures=("n",)))
    some = told(side({}, {}), side({}, {}, mixtures=("m0", "n")))
    assert "models: the same bits in 1 of 2 runs" in some


PARAMS = """\
seed: 0
data: {source: digits, limit: 200}
latent: {encoder: pixels}
features: {extractor: classifier, images: 4000, dimension: 16, channels: 16}
evaluate: {samples: 32}
defaults:
  network: {kind: unet, channels: 8, multipliers: [1], blocks: 1}
  training: {images: 64, batch: 16}
  schedule: {kind: log-snr, states: 4}
recipes:
  plain: {}
  faster: {training: {learning_rate: 0.003}}
"""


@pytest.mark.slow
def test_recipes_revisions_and_experiments(tmp_path):
    checkout = Checkout.create(tmp_path / "tspace", PARAMS)
    checkout.repro()
    checkout.commit("first")
    checkout.edit("learning_rate: 0.003", "learning_rate: 0.004")
    stale = checkout.run("tspace", "compare", "plain", "faster", check=False)
    assert stale.returncode == 2 and "faster: not scored yet, or params.yaml" in stale.stderr
    checkout.repro()
    checkout.commit("second")
    # DVC names the commit of an experiment, which no branch has.
    steps = "+recipes.plain.sampling={steps: 2}"
    checkout.run("dvc", "exp", "run", "--name", "short", "-S", steps)
    checkout.run("git", "checkout", "--", "params.yaml", "dvc.lock")
    checkout.run("dvc", "checkout")

    def say(*arguments):
        return checkout.run("tspace", "compare", *arguments).stdout

    text = say("plain", "faster")
    assert row(text, "training.learning_rate") == "training.learning_rate 0.002 0.004"
    assert "models: other bits" in text and "samples: other bits" in text
    assert "than chance" in row(text, "FID") or "within chance" in row(text, "FID")
    both = say("HEAD~1")
    assert both.count("A: HEAD~1:") == 2 and "settings: all equal" in both
    assert "models: the same bits" in both and "samples: the same bits" in both
    assert row(both, "training.learning_rate") == "training.learning_rate 0.003 0.004"
    text = say("plain", "short")
    assert text.startswith("A: plain    B: short:plain")
    assert row(text, "sampling.steps") == "sampling.steps null 2"
    assert "models: the same bits" in text and "samples: other bits" in text

    # Networks of a revision that the store has no more come from DVC's cache.
    old = say("HEAD~1:faster", "faster", "--out", "old.png", "-n", "8")
    checkout.run("rm", "-r", "store", "artefacts/experts")
    checkout.run("dvc", "checkout")
    picture = np.asarray(Image.open(checkout.root / "old.png"))
    (checkout.root / "old.png").unlink()
    again = say("HEAD~1:faster", "faster", "--out", "old.png", "-n", "8")
    assert again.splitlines()[-1] == old.splitlines()[-1] and "from equal noise" in again
    assert np.array_equal(np.asarray(Image.open(checkout.root / "old.png")), picture)

    for wrong, message in (
        (("plane",), "no recipe of params.yaml, and no revision or experiment; did you mean `pla"),
        (("plain",), "with what?"),
        (("HEAD:plane", "plain"), "HEAD has no recipe 'plane'; did you mean `plain`"),
        (("HEAD~2", "HEAD"), "compare HEAD~2: has no results"),
        (("HEAD", "--out", "x.png"), "2 recipes are compared; name one, as REV:recipe"),
        (("plain", "faster", "--out", "x.jpg"), "give a .png file"),
    ):
        done = checkout.run("tspace", "compare", *wrong, check=False)
        assert done.returncode == 2 and message in done.stderr, done.stderr

    checkout.edit("  faster: {training: {learning_rate: 0.004}}\n", "")
    assert "on one side only: faster\n" in say("HEAD")

    # What DVC itself shows: few columns, a row a recipe, samples as pictures.
    shown = checkout.run("dvc", "metrics", "show", "--json").stdout
    assert "results/metrics/plain.json" in shown and "extractor" not in shown
    plots = checkout.run("dvc", "plots", "diff", "HEAD~1", "--json").stdout
    assert "results/recipes/faster/samples.png" in plots and "FID over training FLOPs" in plots
