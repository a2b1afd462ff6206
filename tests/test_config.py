"""params.yaml: what is refused, with what words, and how recipes are resolved."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys

import pytest

from pipeline.errors import UserError
from pipeline.evaluation.params import FEATURES
from pipeline.levels.params import LinearSchedule, LogSnrSchedule
from pipeline.params.checks import MOST_SEARCHED
from pipeline.params.feasibility import COMPONENT_ROWS, check_against, doubts
from pipeline.params.load import load, resolve

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
    ("seed", -1, "seed: must be 0 or more, found -1"),
    ("seed", "a", "seed: expected a whole number, found 'a'"),
    ("seed", 1.5, "seed: expected a whole number, found 1.5"),
    ("seed", True, "seed: expected a whole number, found true"),
    ("data.source", "digit", "data.source: 'digit' is not allowed; did you mean `digits`?"),
    ("data.pth", "x", "data.pth: no such key; did you mean `path`?"),
    ("data.channels", 2, "data.channels: 2 is not allowed"),
    ("data.resolution", 0, "data.resolution: must be above 0, found 0"),
    ("data.limit", "ten", "data.limit: expected a whole number or null, found 'ten'"),
    ("data", [1], "data: expected keys, found [1]; its keys are source"),
    ("latent.encoder", "pixel", "latent.encoder: 'pixel' is not allowed; did you mean `pixels`?"),
    ("features.extractor", "clasifier", "did you mean `classifier`?"),
    ("features.dimension", -3, "features.dimension: must be above 0, found -3"),
    ("evaluate.samples", 0, "evaluate.samples: must be above 0, found 0"),
    ("recipes.one.pairing", {"method": "assignment", "within_class": False}, "needs network.class"),
    ("recipes.one.pairing", {"method": "assignment", "center": True}, "center: no such key"),
    ("evaluate.sample", 5, "evaluate.sample: no such key; did you mean `samples`?"),
    ("defaults.traning", {}, "defaults.traning: no such key; did you mean `training`?"),
    ("defaults.training.lr", 0.1, "defaults.training.lr: no such key"),
    (
        "defaults.training.learning_rate",
        0,
        "defaults.training.learning_rate: must be above 0, found 0",
    ),
    ("defaults.training.learning_rate", "1e-3x", "expected a number"),
    ("defaults.training.betas", [0.9], "defaults.training.betas: has too few values (at least 2)"),
    ("defaults.training.betas", [0.9, 2], "defaults.training.betas.1: must be below 1"),
    (
        "defaults.network.multipliers",
        [],
        "defaults.network.multipliers: has too few values (at least 1)",
    ),
    ("defaults.network.kind", "unett", "defaults.network.kind: 'unett' is not allowed; did you"),
    ("recipes", {}, "recipes: at least one recipe is needed"),
    ("recipes", None, "recipes: at least one recipe is needed"),
    ("recipes", ["ddpm"], "recipes: at least one recipe is needed"),
    ("recipes.One", {}, "recipes.One: a recipe's name is lower-case letters"),
    ("recipes.3", {}, "recipes.3: a recipe's name is lower-case letters"),
    ("recipes.one", "ddpm", "recipes.one: expected keys such as `schedule`, found 'ddpm'"),
    ("recipes.one.schedul", {}, "recipes.one.schedul: no such key; did you mean `schedule`?"),
    (
        "recipes.one.schedule.kind",
        "liner",
        "recipes.one.schedule.kind: 'liner' is not allowed; did you mean `linear`?",
    ),
    ("recipes.one.schedule", {"states": 3}, "recipes.one.schedule.kind: missing; one of: linear"),
    (
        "recipes.one.schedule.stats",
        3,
        "recipes.one.schedule.stats: no such key; did you mean `states`?",
    ),
    ("recipes.one.schedule.states", 0, "recipes.one.schedule.states: must be 1 or more"),
    ("recipes.one.schedule.states", 1001, "recipes.one.schedule.states: must be 1,000 or less"),
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
        "recipes.two.training.milestones: 2000 is past the budget (training.images: 1000)",
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
        "recipes.one.sampling.eta: no such key",
    ),
    (
        "recipes.one.sampling",
        {"kind": "ddpm", "variance": "learnt"},
        "recipes.one.sampling.variance: 'learnt' is not allowed",
    ),
    (
        "recipes.one.sampling",
        {"kind": "heun", "s_churn": -1},
        "recipes.one.sampling.s_churn: must be 0 or more",
    ),
    (
        "recipes.one.sampling",
        {"kind": "heun", "s_churn": 40, "s_min": 2.0, "s_max": 1.0},
        "recipes.one.sampling.s_min: must be below s_max (1.0)",
    ),
    ("recipes.one.prediction", "epsilon", "recipes.one.prediction: 'epsilon' is not allowed"),
    (
        "recipes.one.training.decay",
        "inverse-sqrt",
        "recipes.one.training.reference_images: needed by decay: inverse-sqrt",
    ),
    (
        "recipes.one.curriculum",
        {"kind": "cltss"},
        "recipes.one.curriculum.kind: 'cltss' is not allowed; did you mean `clts`?",
    ),
]


@pytest.mark.parametrize(("where", "value", "message"), BAD, ids=[f"{b[0]}={b[1]}" for b in BAD])
def test_refused_in_one_line(where, value, message):
    with pytest.raises(UserError) as caught:
        resolve(with_change(where, value))
    text = str(caught.value)
    assert text.startswith("params.yaml: ")
    assert message in text
    assert "\n" not in text


def test_a_shift_is_a_number_or_for_images_in_the_unit_range():
    params = with_change("recipes.one.schedule.shift", "unit-range")
    assert resolve(params).recipes["one"].schedule.shift == "unit-range"
    with pytest.raises(UserError, match=r"recipes\.one\.schedule\.shift: unit-range is for pixels"):
        resolve(params | {"latent": {"encoder": "autoencoder"}})
    # EDM's noise levels have a scale of their own: sigma_data.
    for schedule in ({"kind": "edm"}, {"kind": "fitted"}):
        with pytest.raises(UserError, match=r"one\.schedule\.shift: expected a number"):
            resolve(with_change("recipes.one.schedule", schedule | {"shift": "unit-range"}))
    with pytest.raises(UserError, match=r"recipes\.one\.schedule\.shift"):
        resolve(with_change("recipes.one.schedule.shift", "unit-rnge"))


def test_latents_have_no_range_to_clip_to():
    params = with_change("recipes.one.sampling", {"clip": True})
    assert resolve(params).recipes["one"].sampling.clip
    with pytest.raises(UserError, match=r"recipes\.one\.sampling\.clip: pixels end at 0 and 255"):
        resolve(params | {"latent": {"encoder": "autoencoder"}})


def test_all_mistakes_are_told_at_once():
    params = with_change("recipes.two.partition", {"kind": "uniform", "intervals": 9})
    params["recipes"]["one"]["schedule"]["kind"] = "liner"
    params["sede"] = 1
    with pytest.raises(UserError) as caught:
        resolve(params)
    lines = str(caught.value).splitlines()
    assert lines[0] == "params.yaml: 3 mistakes:"
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "sede",
        "recipes.one.schedule.kind",
        "recipes.two.partition.intervals",
    ]


def test_a_mistake_in_the_defaults_is_told_once_and_not_for_each_recipe():
    with pytest.raises(UserError) as caught:
        resolve(with_change("defaults.training.batch", "many"))
    assert str(caught.value).count("\n") == 0


def test_recipes_take_the_defaults_key_by_key():
    params = resolve(with_change("recipes.one.training", {"batch": 20}))
    assert params.recipes["one"].training.batch == 20
    assert params.recipes["one"].training.images == 1000
    assert params.recipes["two"].training.batch == 10


def test_a_block_of_another_form_replaces_the_default_block():
    raw = with_change("defaults.schedule", {"kind": "linear", "states": 500})
    raw["recipes"]["one"]["schedule"] = {"states": 50}
    params = resolve(raw)
    assert params.recipes["one"].schedule == LinearSchedule(kind="linear", states=50)
    assert params.recipes["two"].schedule == LogSnrSchedule(kind="log-snr", states=8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: [1", "params.yaml: line 1, column 9: not valid YAML: while parsing a flow"),
        ("a:\n \tb: 1", "params.yaml: line 2: starts with a tab; YAML is indented by spaces only"),
        ("seed:0\ndata: {}", "line 2, column 5: .* has a colon without a space after it"),
        ("seed: 1\nseed: 2", "params.yaml: line 2: the key `seed` stands there twice"),
        ("a: " + "[" * 3000 + "]" * 3000, "params.yaml: nested too deep"),
        ("a: &a [*a]", "params.yaml: nested too deep"),
        ("a: 1\nseed: " + "9" * 5000, "params.yaml: line 2: an integer of 5,000 digits"),
        ("seed: 0x" + "f" * 5000, "params.yaml: line 1: an integer of 5,002 digits"),
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
            "6 mistakes:\n  data: missing; `data: {}` is enough\n  latent: missing",
        ),
        ("- 1", "expected keys such as"),
        ("", "expected keys such as"),
    ],
)
def test_unreadable_yaml_is_refused(tmp_path, text, message):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "params.yaml")


def test_scientific_notation_is_a_number(tmp_path):
    """YAML 1.1 reads 1e-3 as text; DVC and this project read YAML 1.2."""
    (tmp_path / "params.yaml").write_text(
        "{seed: 0, data: {}, latent: {}, features: {}, evaluate: {}, defaults: {}, "
        "recipes: {a: {training: {learning_rate: 1e-3}}}}"
    )
    params = load(tmp_path / "params.yaml")
    assert params.recipes["a"].training.learning_rate == 0.001


def test_what_the_dataset_makes_impossible_is_refused_together():
    raw = with_change("defaults.training.batch", 100)
    raw["defaults"]["network"] = {"multipliers": [1, 2, 2], "attention": [7]}
    raw["recipes"]["two"]["network"] = {"class_conditional": True}
    raw["evaluate"] = {"samples": 65}
    with pytest.raises(UserError) as caught:
        check_against(resolve(raw), rows=50, resolution=10, channels=1, classes=0)
    text = str(caught.value)
    for line in (
        "recipes.one.training.batch: 100 is more than the dataset's 50 images; lower it",
        "recipes.one.network.multipliers: 3 levels halve the image 2 times, but 10 pixels are not "
        "a multiple of 4",
        "recipes.one.network.attention: no level has resolution 7; there are [10, 5, 2]",
        "recipes.two.network.class_conditional: the dataset has no labels",
        "evaluate.samples: 65 samples against 50 real images",
        "features.extractor: 50 real images in 64 dimensions",
        "features.batch: 50 images, 5 of them held out, are too few",
    ):
        assert line in text


# (where, what is put there, the whole line), of what was accepted or ended in a traceback before.
REFUSED_LATE = [
    (
        "recipes.one.seeds",
        [0, 0],
        "recipes.one.seeds: 0 stands there 2 times; name each once",
    ),
    (
        "recipes.one-seed1",
        {"seeds": []},
        "recipes.one.seeds: makes a run `one-seed1`, and there is a recipe `one-seed1` of that "
        "name; rename one",
    ),
    (
        "defaults.training.betas",
        [1, 1],
        "defaults.training.betas.0: must be below 1, found 1",
    ),
    (
        "evaluate",
        {"samples": 3, "allow_few": True},
        "evaluate.samples: 3 samples have no 3 neighbours each; raise it, or lower "
        "evaluate.neighbours",
    ),
    (
        "evaluate.samples",
        64,
        "evaluate.samples: 64 samples in 64 dimensions (features): the score would be mostly bias; "
        "use more than 64, a smaller features.dimension, or set evaluate.allow_few: true",
    ),
    (
        "features",
        {"extractor": "inception"},
        "evaluate.samples: 2000 samples in 2048 dimensions (features): the score would be mostly "
        "bias; use more than 2048, a smaller features.dimension, or set evaluate.allow_few: true",
    ),
    (
        "features.dimension",
        60,
        "features.dimension: 60 is no multiple of 8, the groups that the classifier normalises",
    ),
    (
        "features",
        {"extractor": "module", "module": "a.py"},
        "features.module: must be path/to/file.py:ClassName, found 'a.py'",
    ),
    (
        "features",
        {"extractor": "module", "module": "a\0.py:A"},
        "features.module: must not hold a NUL character, found 'a\\x00.py:A'",
    ),
    ("data.path", "a\0b", "data.path: must not hold a NUL character, found 'a\\x00b'"),
    (
        "data",
        {"limit": 8, "holdout": 8},
        "data.holdout: 8 of 8 images (data.limit) leave none",
    ),
    (
        "recipes.one.network",
        {"class_conditional": True, "label_dropout": 0.0},
        "recipes.one.network.label_dropout: 0 trains nothing without labels, which "
        "sampling.guidance: 2 asks for; use 0.1, or guidance 1",
    ),
    (
        "evaluate.reference",
        "stats.npz",
        "evaluate.reference: statistics of others are of an extractor that they had; a classifier "
        "is trained here: use features.extractor: inception, dinov2 or module",
    ),
    (
        "recipes.one.sampling",
        {"guidance_interval": [-1.0, 2.0]},
        "recipes.one.sampling.guidance_interval: means nothing at sampling.guidance: 1; raise that",
    ),
    (
        "recipes.one.sampling",
        {"guide": {"milestone": 1}},
        "recipes.one.sampling.guide: means nothing at sampling.guidance: 1; raise that",
    ),
    (
        "recipes.one.sampling",
        {"guidance": 2.0, "guide": {"recipe": "two"}, "guidance_interval": [2.0, 2.0]},
        "recipes.one.sampling.guidance_interval: must ascend, found [2.0, 2.0]",
    ),
    (
        "recipes.one.sampling",
        {"guidance": 2.0, "guide": {"recipe": "tow"}},
        "recipes.one.sampling.guide.recipe: 'tow' is no recipe; did you mean `two`? "
        "(one of: one, two)",
    ),
    (
        "recipes.one.sampling",
        {"guidance": 2.0, "guide": {}},
        "recipes.one.sampling.guide: a model cannot guide itself: name an earlier one of its "
        "training.milestones, of which there is none, or another recipe",
    ),
    (
        "recipes.one",
        {
            "training": {"images": 100, "milestones": [20, 50]},
            "sampling": {"guidance": 2.0, "guide": {"milestone": 100}},
        },
        "recipes.one.sampling.guide.milestone: 'one' has no such milestone that could guide this "
        "one; use one of 20, 50",
    ),
    (
        "recipes.two",
        {
            "training": {"images": 100, "milestones": [20]},
            "sampling": {"guidance": 2.0, "guide": {"recipe": "two"}},
        },
        "recipes.two.sampling.guide.milestone: 'two' has no such milestone that could guide this "
        "one; use one of 20",
    ),
    (
        "recipes.two.schedule",
        {"kind": "log-snr", "states": 1, "zero_terminal": True},
        "recipes.two.schedule.zero_terminal: leaves no state to train; give two `states` or more",
    ),
    (
        "recipes.one.partition",
        {"kind": "gradient", "intervals": 41},
        "recipes.one.partition.nodes: 40 noise levels cannot make 41 intervals",
    ),
    (
        "recipes.two.curriculum",
        {"kind": "easy-to-hard", "clusters": 9},
        "recipes.two.curriculum.clusters: more steps (9) than states (8)",
    ),
    (
        "recipes.two.curriculum",
        {"kind": "per-interval", "shares": [1.0]},
        "recipes.two.curriculum.shares: 1 for 8 intervals",
    ),
    (
        "defaults.training.power_ema",
        [0.05, 0.05],
        "recipes.one.training.power_ema: 0.05 stands there 2 times; name each once",
    ),
    (
        "recipes.one.network",
        {"channels": 4096, "multipliers": [1, 4]},
        "recipes.one.network.multipliers: the widest level has 16,384 channels; at most 8,192",
    ),
    (
        "recipes.two.schedule",
        {"kind": "elbo", "log_snr_max": 1.7e308},
        "recipes.two.schedule.log_snr_max: must be 60 or less, found 1.7e+308",
    ),
    (
        "recipes.one.pairing",
        {"method": "assignment", "sweeps": 10**30},
        "recipes.one.pairing.sweeps: must be 1,000 or less, found 1000000000000000000000000000000",
    ),
    (
        "evaluate",
        {"samples": 10**7, "shard": 1},
        "evaluate.shard: 1 samples a job makes 20,000,000 jobs; at most 100,000: raise it",
    ),
    (
        "defaults.training.images",
        2**53,
        "defaults.training.images: must be 1,000,000,000,000 or less, found 9007199254740992",
    ),
    (
        "defaults.training.images",
        6e4,
        "defaults.training.images: expected a whole number, found 60000.0; write 60000",
    ),
    (
        "evaluate.allow_few",
        "yes",
        "evaluate.allow_few: expected true or false, found 'yes'; write true",
    ),
    (
        "evaluate.allow_few",
        "no",
        "evaluate.allow_few: expected true or false, found 'no'; write false",
    ),
]


@pytest.mark.parametrize(("where", "value", "line"), REFUSED_LATE, ids=lambda v: str(v)[:40])
def test_what_a_job_would_refuse_is_refused_at_once(where, value, line):
    raw = with_change(where, value)
    if where == "recipes.one-seed1":
        raw["recipes"]["one"]["seeds"] = [1]
    if "label_dropout" in str(value):
        raw["recipes"]["one"]["sampling"] = {"guidance": 2.0}
    with pytest.raises(UserError) as caught:
        resolve(raw)
    found = str(caught.value).removeprefix("params.yaml: ").splitlines()
    assert line in [one.strip() for one in found]


# (where, what is put there, the whole line) of values of another form or type than a key's.
WRITTEN_OTHERWISE = [
    ("recipes.one.schedule", "cosine", "expected keys, found 'cosine'; write {kind: cosine}"),
    (
        "recipes.one.merge",
        "averag",
        "expected keys, found 'averag'; write {method: ...}, did you mean `average`? (one of: "
        "route, average, task-vector, ties, snapshots, post-hoc)",
    ),
    ("latent", "off", "expected keys, found 'off'; write {encoder: pixels}, the default"),
    ("latent", None, "expected keys, found null; write {encoder: pixels}, the default"),
    ("data", "digits", "expected keys, found 'digits'; write {source: digits}"),
    ("data", None, "expected keys, found null; write {} for its defaults"),
    (
        "defaults.decouple",
        True,
        "expected keys, found true; its keys are outside, consistency",
    ),
    (
        "defaults.training.milestones",
        300,
        "expected a list of whole numbers, found 300; write [300]",
    ),
    (
        "defaults.training.milestones",
        "300, 1e3",
        "expected a list of whole numbers, found '300, 1e3'; write [300, 1000]",
    ),
    (
        "defaults.training.betas",
        0.9,
        "expected a list of numbers, found 0.9; the default is [0.9, 0.99]",
    ),
    (
        "recipes.one.seeds",
        2,
        "expected a list of whole numbers, found 2; write [0, 1] for 2 seeds, [2] for the seed 2",
    ),
    ("recipes.one.seeds", 0, "expected a list of whole numbers, found 0; write [0]"),
    ("defaults.training.images", "60k", "expected a whole number, found '60k'; write 60000"),
    (
        "defaults.training.images",
        None,
        "expected a whole number, found null; the default is 200000",
    ),
    (
        "recipes.two.schedule.states",
        "many",
        "expected a whole number or `continuous`, found 'many'",
    ),
    ("recipes.two.schedule.states", 0, "must be 1 or more, found 0"),
    (
        "recipes.one.schedule.log_snr_max",
        5,
        "no such key of kind: linear; it belongs to log-snr, logistic, fitted, elbo",
    ),
    (
        "recipes.one.pairing.candidates",
        4,
        "no such key of method: independent; it belongs to knn-l2, knn-dot",
    ),
    ("defaults", [], "expected keys, found []; its keys are seeds, seed, network"),
]


@pytest.mark.parametrize(
    ("where", "value", "told"), WRITTEN_OTHERWISE, ids=[f"{w[0]}={w[1]}" for w in WRITTEN_OTHERWISE]
)
def test_a_value_of_another_form_is_answered_by_how_it_is_written(where, value, told):
    raw = with_change(where, value)
    raw["recipes"] = {"one": raw["recipes"]["one"]} if "one" in where else raw["recipes"]
    with pytest.raises(UserError) as caught:
        resolve(raw)
    assert f"{caught.value}".startswith(f"params.yaml: {where}: {told}")
    assert "\n" not in f"{caught.value}"


def test_a_block_that_leaves_its_form_out_has_the_default_form():
    with pytest.raises(UserError) as caught:
        resolve(with_change("recipes.one.partition", {"intervals": 3}))
    assert str(caught.value) == (
        "params.yaml: recipes.one.partition.intervals: no such key of kind: single; it belongs to "
        "uniform, snr, equal-mass, optimal-denoiser, gradient, loss, data"
    )


def test_of_a_value_of_several_types_the_closest_is_told():
    for weights, told in (
        ({"enc": 1}, "weights.enc: expected a list of numbers, found 1; write [1]"),
        (["a"], "weights.0: expected a number, found 'a'"),
    ):
        block = {"method": "task-vector", "weights": weights}
        with pytest.raises(UserError) as caught:
            resolve(with_change("recipes.one.merge", block))
        assert str(caught.value) == f"params.yaml: recipes.one.merge.{told}"


def test_a_misspelt_section_is_named_beside_the_missing_one(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text(
        "{seed: 0, dta: {}, latent: {}, features: {}, evaluate: {}, defaults: {}, recipes: {a: {}}}"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        load(tmp_path / "params.yaml")
    first, *lines = str(caught.value).splitlines()
    assert first == "params.yaml: 2 mistakes:"  # not its place on this machine
    assert lines[0] == "  data: missing; `data: {}` is enough"
    assert lines[1].startswith("  dta: no such key; did you mean `data`?")


ALIASED = [
    ("defaults.training.lr", "did you mean `learning_rate`?"),
    ("recipes.one.lr", "did you mean `training.learning_rate`?"),
    ("lr", "did you mean `training.learning_rate`, in `defaults` or in a recipe?"),
    ("recipes.one.network.lr", "did you mean `training.learning_rate` of the recipe?"),
    ("features.lr", "did you mean `learning_rate`?"),
    ("defaults.training.batch_size", "did you mean `batch`? (the total batch)"),
    (
        "defaults.training.epochs",
        "did you mean `images`? (training counts images, not steps or epochs: epochs times the "
        "dataset's images)",
    ),
    (
        "defaults.training.steps",
        "did you mean `images`? (training counts images, not steps or epochs: steps times the "
        "batch)",
    ),
    (
        "recipes.one.training.warmup_steps",
        "did you mean `warmup`? (in images, not steps: steps times the batch)",
    ),
    (
        "recipes.one.training.ema",
        "did you mean `ema_halflife`? (in images: batch * ln(1/2) / ln(decay), not a factor a "
        "step)",
    ),
    (
        "recipes.two.schedule.steps",
        "did you mean `states`? (noise levels that are trained)",
    ),
    ("recipes.one.model", "did you mean `network`?"),
    ("recipes.one.T", "did you mean `schedule.states`? (noise levels that are trained)"),
    ("recipes.one.cfg_scale", "did you mean `sampling.guidance`? (1 is no guidance)"),
    ("recipes.one.num_steps", "did you mean `sampling.steps`?"),
    ("data.image_size", "did you mean `resolution`? (in pixels)"),
    ("data.dataset", "did you mean `source`?"),
    ("network", "did you mean `network`, in `defaults` or in a recipe?"),
    ("recipes.one.learning_rate", "did you mean `training.learning_rate`?"),
    (
        "recipes.one.latent",
        "did you mean `latent`, at the top level? It is one for all recipes",
    ),
    ("recipes.one.data", "did you mean `data`, at the top level? It is one for all recipes"),
    ("defaults.evaluate", "did you mean `evaluate`, at the top level? It is one for all recipes"),
]


@pytest.mark.parametrize(("where", "meant"), ALIASED, ids=[a[0] for a in ALIASED])
def test_a_key_by_its_name_elsewhere_is_led_to_its_own(where, meant):
    with pytest.raises(UserError) as caught:
        resolve(with_change(where, 1))
    assert str(caught.value) == f"params.yaml: {where}: no such key; {meant}"


# (params over GOOD, rows, resolution, channels, classes, the line)
IMPOSSIBLE = [
    (
        {"defaults.pairing": {"method": "assignment", "components": 65}},
        (2000, 8, 1, 0),
        "recipes.one.pairing.components: 65 of the 64 principal components that 2000 rows of 64 "
        "values have; lower it, or null",
    ),
    (
        {"defaults.pairing": {"method": "knn-dot", "keep": 200}},
        (100, 16, 1, 0),
        "recipes.two.pairing.keep: 200 of the 100 principal components that 100 rows of 256 values "
        "have; lower it, or null",
    ),
    (
        {"defaults.pairing": {"method": "knn-dot"}, "defaults.training.images": 10**9},
        (2000, 8, 1, 0),
        "recipes.one.training.images: 500,000 passes over 2000 rows would be paired and stored; at "
        "most 10,000: lower it, or use pairing.method: independent",
    ),
    (
        {"evaluate": {"samples": 70}},
        (64, 8, 1, 2),
        "features.extractor: 64 real images in 64 dimensions: the score would be mostly bias; use "
        "more than 64 images, a smaller features.dimension, or set evaluate.allow_few: true",
    ),
    (
        {"evaluate": {"samples": 70, "neighbours": 60, "allow_few": True}},
        (60, 8, 1, 2),
        "evaluate.neighbours: 60 real images have no 60 neighbours each; lower it",
    ),
    (
        {"features.batch": 64},
        (70, 8, 1, 2),
        "features.batch: 70 images, 7 of them held out, are too few for a classifier's batches of "
        "64; lower it, or use another extractor",
    ),
    (
        {"latent.shard": 1},
        (20_000, 8, 1, 2),
        "latent.shard: 1 rows a file make 20,000 files; at most 10,000: raise it",
    ),
    (
        {"data.holdout": 70},
        (70, 8, 1, 2),
        "data.holdout: 70 of 70 images leave none to train; lower it",
    ),
]


@pytest.mark.parametrize(("changes", "facts", "line"), IMPOSSIBLE, ids=[i[2] for i in IMPOSSIBLE])
def test_what_a_dataset_cannot_give_is_refused_by_the_exact_keys(changes, facts, line):
    raw = copy.deepcopy(GOOD)
    for path, value in changes.items():
        here = raw
        *parents, last = path.split(".")
        for key in parents:
            here = here.setdefault(key, {})
        here[last] = value
    with pytest.raises(UserError) as caught:
        check_against(resolve(raw), *facts)
    found = [one.strip() for one in f"{caught.value}".replace("params.yaml: ", "").splitlines()]
    assert line in found
    if "data.holdout" in changes:
        assert found == [line]  # without what follows from having no image


@pytest.mark.parametrize(
    ("rows", "class_counts", "needed"),
    [
        (60, (30, 30), 850),  # 6 held out: 0.5^6 = 0.016
        (70, (35, 35), None),  # 0.5^7 = 0.008
        (74, (50, 0, 24), 1_540),
        (10, (), None),  # 1 in four directions: 0.25^4 = 0.004
        (10, (10,), None),
    ],
)
def test_too_few_images_to_test_a_classifier_are_told_before_it_is_trained(
    rows, class_counts, needed
):
    found = doubts(resolve(GOOD), rows, class_counts)
    assert len(found) == (needed is not None)
    for line in found:
        assert f"tested on {round(rows / 10)} of {rows} images" in line
        assert f"use {needed:,} images or more" in line
    other = GOOD | {"features": {"extractor": "inception"}, "evaluate": {"samples": 5000}}
    assert doubts(resolve(other), rows, class_counts) == []


def test_the_limits_are_those_of_the_code_that_would_refuse():
    """It imports torch, and params are read without."""
    import inspect

    from pipeline.data.dataset import MAX_RESOLUTION
    from pipeline.evaluation import features
    from pipeline.merging import search
    from pipeline.networks import classifier
    from pipeline.noise import assignment

    parameters = inspect.signature(assignment.principal_components).parameters
    assert parameters["sample"].default == COMPONENT_ROWS
    assert classifier._GROUPS == 8
    assert search.MAX_EXPERTS == MOST_SEARCHED
    assert {k: v[2] for k, v in features._TORCH_FIDELITY.items()} == FEATURES
    with pytest.raises(UserError, match=f"must be {MAX_RESOLUTION:,} or less"):
        resolve(with_change("data.resolution", MAX_RESOLUTION + 1))


def test_params_are_read_without_torch():
    modules = "from pipeline.params import recipe as config, feasibility; from pipeline import plan"
    code = f"import sys; {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_missing_file_names_no_option_that_there_is_not(tmp_path):
    with pytest.raises(UserError) as caught:
        load(tmp_path / "params.yaml")
    assert str(caught.value) == f"{tmp_path}/params.yaml: not found; run in the project's folder"
