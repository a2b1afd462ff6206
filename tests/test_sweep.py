"""`tspace sweep`: what it tries, keeps and refuses, and a search by real runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.errors import UserError
from stages.tools.sweep import Step, _params, read_sweep, search, sweep
from stages.workspace import Workspace
from tests.workflow import ROOT

COSINE = {"schedule": {"kind": "cosine", "states": 4}}
RATES = {"training.learning_rate": [0.002, 0.00001], "training.batch": [20]}
SWEEP = {
    "recipe": "plain",
    "rungs": [40, 80],
    "keep": 0.5,
    "search": [
        {"name": "rate", "grid": RATES},
        {"name": "kind", "options": {"As it is": {}, "cosine": COSINE}},
    ],
}


def written(folder: Path, **changes) -> Path:
    path = folder / "first.yaml"
    path.write_text(yaml.safe_dump(SWEEP | changes))
    return path


def test_each_step_starts_from_the_best_of_the_one_before():
    seen = []

    def score(recipes, images):
        seen.append((images, recipes))
        return {
            name: own["training"]["batch"] + own.get("extra", 0.0) for name, own in recipes.items()
        }

    steps = [
        ("batch", {f"b{n}": {"training": {"batch": n}} for n in (8, 4, 16, 2)}),
        ("extra", {"none": {}, "less": {"extra": -1.0}}),
    ]
    best, rows = search(steps, [10, 20], 0.5, score, {"training": {"decay": "linear"}})
    assert best == {"training": {"batch": 2, "decay": "linear"}, "extra": -1.0}
    # Half of the four go on, the one of the last rung is what the next step starts from.
    assert [(images, set(tried)) for images, tried in seen] == [
        (10, {"b8", "b4", "b16", "b2"}),
        (20, {"b4", "b2"}),
        (10, {"none", "less"}),
        (20, {"less"}),
    ]
    options = ["b8", "b4", "b16", "b2", "b2", "b4", "none", "less", "less"]
    assert [r["option"] for r in rows] == options
    assert rows[0] == {"search": "batch", "option": "b8", "images": 10, "score": 8.0}


def test_a_score_that_is_no_number_is_the_worst():
    best, _ = search(
        [("a", {"x": {"k": 1}, "y": {"k": 2}})],
        [1],
        1.0,
        lambda r, _: {"x": float("nan"), "y": 9.0},
    )
    assert best == {"k": 2}


def test_a_grid_is_every_combination_and_random_ones_are_always_the_same():
    grid = Step(
        name="g", grid={"training.batch": [16, 32], "network.channels": [8, 16, 24]}
    ).tried()
    assert len(grid) == 6 and next(iter(grid)) == "g-0"
    assert grid["g-5"] == {"training": {"batch": 32}, "network": {"channels": 24}}
    ranges = {
        "training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "training.warmup": {"low": 0, "high": 1000, "whole": True},
    }
    drawn = Step(name="r", random=ranges, trials=200).tried()
    assert drawn == Step(name="r", random=ranges, trials=200).tried()
    rates = [own["training"]["learning_rate"] for own in drawn.values()]
    warmups = [own["training"]["warmup"] for own in drawn.values()]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates) and len(set(rates)) > 190
    assert 70 < sum(rate < 1e-3 for rate in rates) < 130  # evenly in the logarithm
    assert all(isinstance(n, int) and 0 <= n <= 1000 for n in warmups)
    assert 400 < sum(warmups) / 200 < 600


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rungs": [80, 40]}, r"rungs: must be ascending"),
        ({"search": []}, r"first\.yaml: search"),
        ({"keep": 0}, r"first\.yaml: keep"),
        ({"score": "loss"}, r"first\.yaml: score"),
        ({"serch": 1}, r"first\.yaml: serch.*did you mean `search`"),
        ({"search": [{"name": "a"}]}, r"give one of options, grid and random"),
        ({"search": [{"name": "a", "grid": {"b": [1]}}] * 2}, r"two steps have one name"),
        (
            {"search": [{"name": "a", "random": {"training.batch": {"low": 2, "high": 1}}}]},
            r"low must be below high",
        ),
    ],
)
def test_a_file_that_is_none_is_refused_by_name(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        read_sweep(written(tmp_path, **changes))


PARAMS = {
    "seed": 0,
    "data": {"source": "digits", "limit": 400},
    "latent": {},
    "features": {"extractor": "classifier", "images": 600},
    "evaluate": {"samples": 100},
    "defaults": {
        "schedule": {"kind": "log-snr", "states": 4},
        "network": {"kind": "unet", "channels": 8, "multipliers": [1], "blocks": 1},
        "training": {"batch": 10, "milestones": [50]},
    },
    "recipes": {"plain": {"training": {"milestones": [70]}, "seeds": [3, 4]}, "other": {}},
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.delenv("TSPACE_STORE", raising=False)
    for name in ("Snakefile", "data", "dvc.yaml", "envs", "profiles", "pipeline", "stages"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    return Workspace(tmp_path)


def test_what_params_yaml_would_refuse_is_refused_before_anything_runs(project, tmp_path):
    wrong = [{"name": "a", "grid": {"training.batch": [16, "many"]}}]
    with pytest.raises(UserError, match=r"first\.yaml: search, step a: .*training\.batch.*many"):
        sweep(project, written(tmp_path, search=wrong))
    with pytest.raises(UserError, match=r"recipe: plane: no such recipe; did you mean `plain`"):
        sweep(project, written(tmp_path, recipe="plane"))
    assert not (tmp_path / "sweeps").exists()


def test_the_plan_says_how_much(project, tmp_path, capsys):
    sweep(project, written(tmp_path, seeds=[0, 1]), only_plan=True)
    # Two options, then one, in each of two steps, with two seeds.
    assert capsys.readouterr().out == f"{tmp_path / 'first.yaml'}: 12 runs, 640 images\n"
    assert not (tmp_path / "sweeps").exists()
    found = _params(PARAMS, {"a-0": {"training": {"batch": 20}}}, 40, [0, 1])["recipes"]["a-0"]
    assert found == {"training": {"batch": 20, "images": 40, "milestones": []}, "seeds": [0, 1]}


@pytest.mark.slow
def test_a_search_by_real_runs(project, tmp_path):
    """On the project's store, and its best recipe is one that params.yaml takes."""
    written(tmp_path, search=[SWEEP["search"][0]])
    done = subprocess.run(
        [sys.executable, "-m", "stages.cli", "sweep", "first.yaml"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "sweeps" / "first"
    found = json.loads((folder / "sweep.json").read_text())
    runs = [(r["search"], r["images"]) for r in found["rows"]]
    assert runs == [("rate", 40), ("rate", 40), ("rate", 80)]
    best = yaml.safe_load((folder / "best.yaml").read_text())["plain-best"]
    assert best == found["best"] and best["training"]["batch"] == 20
    rung = {r["option"]: r["score"] for r in found["rows"][:2]}
    kept = min(rung, key=rung.__getitem__)
    assert found["rows"][2]["option"] == kept
    entries = sorted((tmp_path / "store" / "expert").iterdir())
    assert len(entries) == 3 and not (folder / "store").exists()
    (tmp_path / "params.yaml").write_text(
        yaml.safe_dump(PARAMS | {"recipes": {"plain-best": best}})
    )
    assert Workspace(tmp_path).params.recipes["plain-best"].training.batch == 20
