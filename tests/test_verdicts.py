"""The verdicts' recipes and words: nothing is trained here."""

import sys
from pathlib import Path

import pytest

from pipeline.params.load import resolve

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import verdicts
from experiment import by_seed


@pytest.fixture(scope="module")
def arms():
    tuning = {name: {"recipe": own} for name, own in verdicts.STARTS.items()}
    edm = verdicts.STARTS["edm"]
    for base in verdicts.BASELINES:
        muon = verdicts.TRICKS["muon"].recipe
        tuning[f"{base}-muon"] = {"recipe": verdicts.over(tuning[base]["recipe"], muon)}
    for name in ("edm-quick", "quick"):
        tuning[name] = {"recipe": verdicts.over(edm, next(iter(verdicts.SEARCH_QUICK.values())))}
    return verdicts.arms(tuning)


@pytest.mark.parametrize("dataset", verdicts.DATASETS)
def test_every_recipe_is_one_that_the_pipeline_takes(arms, dataset):
    recipes = resolve(verdicts.params(dataset, arms, "photos")).recipes
    assert set(by_seed(recipes)) == set(arms)
    assert all(set(own) == {0, 1, 2} for own in by_seed(recipes).values())
    for name in arms:
        assert verdicts.control_of(name) in arms


def test_every_option_of_a_search_is_one_that_the_pipeline_takes():
    tried = [("step", verdicts.SEARCH_QUICK), ("rate", verdicts.OTHER_RATES), *verdicts.SEARCH]
    recipes = {
        f"{base}-{step}-{number}": verdicts.over(start, own)
        for base, start in verdicts.STARTS.items()
        for step, options in tried
        for number, own in enumerate(options.values())
    }
    found = resolve(verdicts.params(verdicts.TUNED_ON, recipes, None)).recipes
    assert len(found) == len(recipes) * 3


def settings(recipe):
    """What a recipe sets, training by its keys."""
    training = {f"training.{key}": value for key, value in recipe.get("training", {}).items()}
    return {key: value for key, value in recipe.items() if key != "training"} | training


@pytest.mark.parametrize("base", verdicts.BASELINES)
def test_a_trick_changes_nothing_but_what_it_says(arms, base):
    plain = settings(arms[base])
    for name, trick in verdicts.TRICKS.items():
        own = settings(arms[f"{base}-{name}"])
        changed = {key for key in own.keys() | plain.keys() if own.get(key) != plain.get(key)}
        said = set(settings(trick.recipe)) | ({"network"} if trick.labelled else set())
        lost = set(verdicts.LEVELS) if "schedule" in trick.recipe else set()
        assert changed <= said | lost, name
        assert changed or name == "uniform"  # which DDPM has


def test_a_class_conditional_trick_is_compared_with_a_baseline_that_is_told_the_classes():
    assert verdicts.control_of("edm-contrastive") == "edm-labelled"
    assert verdicts.control_of("ddpm-min-snr") == "ddpm"
    assert {verdicts.control_of(n) for n in ("best", "quick", "edm-quick", "flow")} == {"edm"}


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        ([(1.2, 1.1, 1.3)], "gains"),
        ([(1.2, 1.0, 1.3)], "no clear difference"),  # not in every seed
        ([(0.8, 0.7, 0.9)], "loses"),
        ([(1.2, 1.1, 1.3), (1.0, 0.9, 1.1)], "gains in 1 of 2"),
        ([(1.2, 1.1, 1.3), (0.5, 0.4, 0.6)], "gains and loses"),
        ([(None, None, None)], "no clear difference"),
    ],
)
def test_a_verdict_needs_all_seeds(gains, said):
    rows = [dict(zip(("mean", "min", "max"), own, strict=True)) for own in gains]
    assert verdicts.verdict([verdicts.word(row) for row in rows]) == said


def test_a_dataset_where_some_tricks_alone_were_run_has_no_headline():
    gains = {"mean": 2.0}
    row = dict.fromkeys(
        ("images", "seconds", *(f"seconds_vs_{other}" for other in verdicts.QUICK_BESIDE)), gains
    )
    whole = [
        row | {"dataset": "fashion", "recipe": name} for name in (*verdicts.BEST, *verdicts.QUICK)
    ]
    alone = row | {"dataset": "synthetic", "recipe": "edm-adaptive"}
    assert verdicts.headline_of([*whole, alone]) == verdicts.headline_of(whole)
