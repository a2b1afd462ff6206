"""params.yaml: what is refused, with what words, and how recipes are resolved."""

from __future__ import annotations

import copy
import itertools

import pytest

from pipeline import config, feasibility
from pipeline.errors import UserError

GOOD = {
    "seed": 0,
    "data": {"source": "digits"},
    "defaults": {"training": {"images": 1000, "batch": 10}, "sampling": {"steps": 4}},
    "recipes": {
        "one": {"schedule": {"kind": "linear", "states": 100}},
        "two": {
            "schedule": {"kind": "log-snr", "states": 8},
            "partition": {"kind": "per-state"},
        },
    },
}


def with_change(path: str, value):
    """GOOD with the value at a dotted path replaced."""
    params = copy.deepcopy(GOOD)
    here = params
    *parents, last = path.split(".")
    for key in parents:
        here = here.setdefault(key, {})
    here[last] = value
    return params


# (where, what is put there, what the one line says)
BAD = [
    ("sede", 1, "sede: no such key; did you mean `seed`?"),
    ("seed", -1, "seed: input should be greater than or equal to 0, found -1"),
    ("seed", "a", "seed: input should be a valid integer, found 'a'"),
    ("seed", 1.5, "seed: input should be a valid integer, found 1.5"),
    ("seed", True, "seed: input should be a valid integer, found True"),
    ("data.source", "digit", "data.source: 'digit' is none of them; did you mean `digits`?"),
    ("data.pth", "x", "data.pth: no such key; did you mean `path`?"),
    ("data.channels", 2, "data.channels: 2 is none of them"),
    ("data.resolution", 0, "data.resolution: input should be greater than 0, found 0"),
    ("data.limit", "ten", "data.limit: input should be a valid integer, found 'ten'"),
    ("data", [1], "data: input should be a valid dictionary"),
    ("latent.encoder", "pixel", "latent.encoder: 'pixel' is none of them; did you mean `pixels`?"),
    ("features.extractor", "clasifier", "did you mean `classifier`?"),
    ("features.dimension", -3, "features.dimension: input should be greater than 0, found -3"),
    ("evaluate.samples", 0, "evaluate.samples: input should be greater than 0, found 0"),
    ("recipes.one.pairing", {"method": "assignment", "within_class": False}, "needs network.class"),
    ("recipes.one.pairing", {"method": "assignment", "center": True}, "center: no such key"),
    ("evaluate.sample", 5, "evaluate.sample: no such key; did you mean `samples`?"),
    ("defaults.traning", {}, "defaults.traning: no such key; did you mean `training`?"),
    ("defaults.training.lr", 0.1, "defaults.training.lr: no such key"),
    (
        "defaults.training.learning_rate",
        0,
        "defaults.training.learning_rate: input should be greater than 0, found 0",
    ),
    ("defaults.training.learning_rate", "1e-3x", "input should be a valid number"),
    ("defaults.training.betas", [0.9], "defaults.training.betas: list should have at least 2"),
    ("defaults.training.betas", [0.9, 2], "defaults.training.betas.1: input should be less than"),
    (
        "defaults.network.multipliers",
        [],
        "defaults.network.multipliers: list should have at least 1",
    ),
    ("defaults.network.kind", "unett", "defaults.network.kind: 'unett' is none of them; did you"),
    ("recipes", {}, "recipes: at least one recipe is needed"),
    ("recipes", None, "recipes: at least one recipe is needed"),
    ("recipes", ["ddpm"], "recipes: at least one recipe is needed"),
    ("recipes.One", {}, "recipes.One: a recipe's name is lower-case letters"),
    ("recipes.3", {}, "recipes.3: a recipe's name is lower-case letters"),
    ("recipes.one", "ddpm", "recipes.one: expected blocks such as `schedule`, found 'ddpm'"),
    ("recipes.one.schedul", {}, "recipes.one.schedul: no such key; did you mean `schedule`?"),
    (
        "recipes.one.schedule.kind",
        "liner",
        "recipes.one.schedule.kind: 'liner' is none of them; did you mean `linear`?",
    ),
    ("recipes.one.schedule", {"states": 3}, "recipes.one.schedule.kind: missing; one of: linear"),
    (
        "recipes.one.schedule.stats",
        3,
        "recipes.one.schedule.stats: no such key; did you mean `states`?",
    ),
    ("recipes.one.schedule.states", 0, "recipes.one.schedule.states: input should be greater"),
    ("recipes.one.schedule.states", 1001, "recipes.one.schedule.states: input should be less"),
    (
        "recipes.two.schedule.log_snr_min",
        9.0,
        "recipes.two.schedule.log_snr_min: must be below log_snr_max (9.0)",
    ),
    (
        "recipes.two.schedule",
        {"kind": "explicit", "log_snr": [1, 2, 3, 4]},
        "recipes.two.schedule.log_snr: must be strictly descending",
    ),
    (
        "recipes.two.partition",
        {"kind": "uniform", "intervals": 9},
        "recipes.two.partition.intervals: more intervals (9) than states (8)",
    ),
    (
        "recipes.two.partition",
        {"kind": "bounds", "log_snr": [0, 1]},
        "recipes.two.partition.log_snr: must be strictly descending",
    ),
    (
        "recipes.two.schedule.states",
        "continuous",
        "recipes.two.partition.kind: per-state needs a number of states",
    ),
    ("recipes.two.training.images", 5, "recipes.two.training.images: 5 images for 8 experts"),
    (
        "recipes.two.training.milestones",
        [2000],
        "recipes.two.training.milestones.0: 2000 is past the budget (training.images: 1000)",
    ),
    (
        "recipes.two.training.milestones",
        [20, 10],
        "recipes.two.training.milestones: must be strictly ascending",
    ),
    ("recipes.two.sampling.steps", 9, "recipes.two.sampling.steps: more steps (9) than states (8)"),
    (
        "recipes.one.sampling.guidance",
        2.0,
        "recipes.one.sampling.guidance: needs network.class_conditional: true",
    ),
    (
        "recipes.one.sampling",
        {"kind": "heun", "eta": 0.5},
        "recipes.one.sampling.eta: belongs to kind: ddim, not heun",
    ),
    ("recipes.one.prediction", "epsilon", "recipes.one.prediction: 'epsilon' is none of them"),
    (
        "recipes.one.training.decay",
        "inverse-sqrt",
        "recipes.one.training.reference_images: needed by decay: inverse-sqrt",
    ),
    (
        "recipes.one.curriculum",
        {"kind": "cltss"},
        "recipes.one.curriculum.kind: 'cltss' is none of them; did you mean `clts`?",
    ),
]


@pytest.mark.parametrize(("where", "value", "message"), BAD, ids=[f"{b[0]}={b[1]}" for b in BAD])
def test_refused_in_one_line(where, value, message):
    with pytest.raises(UserError) as caught:
        config.resolve(with_change(where, value))
    text = str(caught.value)
    assert text.startswith("params.yaml: ")
    assert message in text
    assert "\n" not in text


def test_all_mistakes_are_told_at_once():
    params = with_change("recipes.two.partition", {"kind": "uniform", "intervals": 9})
    params["recipes"]["one"]["schedule"]["kind"] = "liner"
    params["sede"] = 1
    with pytest.raises(UserError) as caught:
        config.resolve(params)
    lines = str(caught.value).splitlines()
    assert lines[0] == "params.yaml: 3 mistakes:"
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "sede",
        "recipes.one.schedule.kind",
        "recipes.two.partition.intervals",
    ]


def test_a_mistake_in_the_defaults_is_told_once_and_not_for_each_recipe():
    with pytest.raises(UserError) as caught:
        config.resolve(with_change("defaults.training.batch", "many"))
    assert str(caught.value).count("\n") == 0


def test_recipes_take_the_defaults_key_by_key():
    params = config.resolve(with_change("recipes.one.training", {"batch": 20}))
    assert params.recipes["one"].training.batch == 20
    assert params.recipes["one"].training.images == 1000
    assert params.recipes["two"].training.batch == 10


def test_a_block_of_another_form_replaces_the_default_block():
    raw = with_change("defaults.schedule", {"kind": "linear", "states": 500})
    raw["recipes"]["one"]["schedule"] = {"states": 50}
    params = config.resolve(raw)
    assert params.recipes["one"].schedule == config.LinearSchedule(kind="linear", states=50)
    assert params.recipes["two"].schedule == config.LogSnrSchedule(kind="log-snr", states=8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: [1", "not valid YAML"),
        ("seed: 1\nseed: 2", "params.yaml: line 2: the key `seed` stands there twice"),
        ("a: " + "[" * 3000 + "]" * 3000, "params.yaml: nested too deep"),
        ("a: &a [*a]", "params.yaml: nested too deep"),
        ("seed: " + "9" * 5000, "params.yaml: not valid YAML: Exceeds the limit"),
        ("seed: !!int x", "params.yaml: not valid YAML: invalid literal for int"),
        ("a: '" + "x" * 300_000 + "'", "params.yaml: 300,005 bytes; at most 262,144 are read"),
        (
            "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
            + "\n".join(
                f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]"
                for a, b in itertools.pairwise("abcdefghijklmno")
            ),
            "params.yaml: its aliases stand for more than 100,000 values",
        ),
        (
            "seed: 1\nrecipes: {}",
            "data, latent, features, evaluate, defaults missing; `data: {}` is",
        ),
        ("- 1", "expected keys such as"),
        ("", "expected keys such as"),
    ],
)
def test_unreadable_yaml_is_refused(tmp_path, text, message):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        config.load(tmp_path / "params.yaml")


def test_scientific_notation_is_a_number(tmp_path):
    """YAML 1.1 reads 1e-3 as text; DVC and this project read YAML 1.2."""
    (tmp_path / "params.yaml").write_text(
        "{seed: 0, data: {}, latent: {}, features: {}, evaluate: {}, defaults: {}, "
        "recipes: {a: {training: {learning_rate: 1e-3}}}}"
    )
    params = config.load(tmp_path / "params.yaml")
    assert params.recipes["a"].training.learning_rate == 0.001


def test_what_the_dataset_makes_impossible_is_refused_together():
    raw = with_change("defaults.training.batch", 100)
    raw["defaults"]["network"] = {"multipliers": [1, 2, 2], "attention": [7]}
    raw["recipes"]["two"]["network"] = {"class_conditional": True}
    raw["evaluate"] = {"samples": 65}
    with pytest.raises(UserError) as caught:
        feasibility.check_against(
            config.resolve(raw), rows=50, resolution=10, channels=1, classes=0
        )
    text = str(caught.value)
    for line in (
        "recipes.one.training.batch: 100 is larger than the dataset (50 images)",
        "recipes.one.network.multipliers: 3 levels halve the image 2 times, but 10 pixels are not "
        "a multiple of 4",
        "recipes.one.network.attention: no level has resolution 7; there are [10, 5, 2]",
        "recipes.two.network.class_conditional: the dataset has no labels",
        "evaluate.samples: 65 samples against 50 real images",
        "features.extractor: 50 real images in 64 dimensions",
        "features.batch: 50 images, 5 of them held out, are too few",
    ):
        assert line in text
