"""Plans: what is in a digest and what is not, and that recipes share what they can."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from pipeline import plan
from pipeline.errors import UserError
from pipeline.levels import schedule
from pipeline.params.load import resolve
from tests.levels import curriculum_of, states_of

FACTS = plan.DatasetFacts("d" * 64, 1000, 8, 1, 10, (77.0,), (80.0,), class_counts=(100,) * 10)
RAW = {
    "defaults": {"training": {"images": 1000, "batch": 10}},
    "recipes": {
        "shared": {"schedule": {"kind": "log-snr", "states": 8}},
        "split": {
            "schedule": {"kind": "log-snr", "states": 8},
            "partition": {"kind": "per-state"},
        },
        "halves": {
            "schedule": {"kind": "log-snr", "states": 8},
            "partition": {"kind": "uniform", "intervals": 2},
        },
    },
}


def planned(change=None, facts=FACTS):
    raw = copy.deepcopy(RAW)
    if change is not None:
        change(raw)
    return plan.experts(resolve(raw), facts)


def names(recipe):
    return [expert.job.name for expert in recipe.experts]


def test_experts_own_all_states_once_and_share_the_budget_exactly():
    for recipe in planned().values():
        owned = [i for e in recipe.experts for i in range(e.first, e.last + 1)]
        assert owned == list(range(8))
        assert sum(e.images for e in recipe.experts) == 1000


def test_single_state_experts_have_no_time_input_and_differ_in_state_alone():
    specs = [expert.job.spec for expert in planned()["split"].experts]
    assert {spec.conditioning for spec in specs} == {"none"}
    for key in type(specs[0]).model_fields:
        values = {str(getattr(spec, key)) for spec in specs}
        assert (len(values) > 1) == (key in {"log_snr", "stream_key", "start_key"}), key


def test_the_same_expert_of_two_recipes_is_one_job():
    def copy_recipe(raw):
        raw["recipes"]["again"] = raw["recipes"]["split"]

    recipes = planned(copy_recipe)
    assert names(recipes["again"]) == names(recipes["split"])


def test_unchanged_intervals_keep_their_experts_when_others_change():
    """What is in the digest is the interval, not its number or how many there are."""

    def cut(*bounds):
        def change(raw):
            raw["recipes"]["halves"]["partition"] = {"kind": "bounds", "log_snr": list(bounds)}

        return change

    two = planned(cut(0.0))["halves"]
    three = planned(cut(0.0, -4.0))["halves"]
    assert len(three.experts) == 3
    # Budgets are equal shares, so only the budget tells the first interval's experts apart.
    first_of_two, first_of_three = two.experts[0].job.spec, three.experts[0].job.spec
    keys = type(first_of_two).model_fields
    differing = {k for k in keys if getattr(first_of_two, k) != getattr(first_of_three, k)}
    assert differing == {"images", "snapshots"}


@pytest.mark.parametrize(
    ("block", "key", "value"),
    [
        ("sampling", "steps", 4),
        ("sampling", "kind", "heun"),
    ],
)
def test_sampling_never_touches_experts(block, key, value):
    def change(raw):
        raw["defaults"][block] = {key: value}

    assert [names(r) for r in planned(change).values()] == [names(r) for r in planned().values()]


@pytest.mark.parametrize(
    ("block", "key", "value"),
    [
        ("training", "learning_rate", 0.1),
        ("training", "batch", 11),
        ("training", "precision", "bfloat16"),
        ("training", "threads", 2),
        ("network", "channels", 16),
        (None, "prediction", "eps"),
    ],
)
def test_what_makes_the_numbers_changes_every_expert(block, key, value):
    def change(raw):
        if block is None:
            raw["defaults"][key] = value
        else:
            raw["defaults"].setdefault(block, {})[key] = value

    before, after = planned(), planned(change)
    for name in before:
        assert not set(names(before[name])) & set(names(after[name]))


def test_a_curriculum_matters_only_where_there_is_something_to_draw():
    def change(raw):
        raw["defaults"]["curriculum"] = {"kind": "clts"}

    before, after = planned(), planned(change)
    assert names(before["split"]) == names(after["split"])
    assert names(before["shared"]) != names(after["shared"])


def test_data_and_seed_change_every_expert():
    other = plan.DatasetFacts("e" * 64, *list(vars(FACTS).values())[1:])
    assert not set(names(planned()["split"])) & set(names(planned(facts=other)["split"]))

    def change(raw):
        raw["seed"] = 1

    assert not set(names(planned()["split"])) & set(names(planned(change)["split"]))


def test_milestones_become_shares_of_each_expert():
    def change(raw):
        raw["defaults"]["training"]["milestones"] = [500]

    recipe = planned(change)["split"]
    assert recipe.milestones == [500, 1000]
    assert [e.snapshots for e in recipe.experts] == [{500: 62, 1000: 125}] * 8


def test_sampling_visits_states_of_the_schedule_with_both_ends():
    def change(raw):
        raw["defaults"]["sampling"] = {"steps": 3}

    recipe = planned(change)["shared"]
    states = recipe.sampling_states
    assert states == [recipe.log_snr[0], states[1], recipe.log_snr[-1]]
    assert states[1] in recipe.log_snr
    assert planned()["shared"].sampling_states == list(recipe.log_snr)


def test_a_continuous_schedule_is_sampled_on_its_own_spacing():
    def change(raw):
        raw["recipes"] = {"edm": {"schedule": {"kind": "edm"}, "sampling": {"steps": 18}}}

    recipe = planned(change)["edm"]
    states = np.array(recipe.sampling_states)
    assert len(states) == 18 and np.all(np.diff(states) < 0)
    # rho = 7: sigma^(1/7) is uniform.
    steps = np.diff((0.5 * np.exp(-states / 2)) ** (1 / 7))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)


def test_planning_does_not_import_torch():
    code = "import sys, pipeline.plan, stages.facts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- seeds, parents, measured schedules and partitions

SPECTRUM = {"spectrum": list(np.geomspace(20, 0.01, 64))}


def of(recipes, params=None, analyses=True):
    """Plans of some recipes over the defaults of this file, the spectrum being measured."""
    raw = {**copy.deepcopy(RAW), "recipes": recipes, **(params or {})}
    resolved = resolve(raw)
    found = {plan.spectrum(resolved, FACTS).name: SPECTRUM} if analyses else {}
    return plan.experts(resolved, dataclasses.replace(FACTS, analyses=found))


EIGHT = {"kind": "log-snr", "states": 8}


def test_a_recipe_with_seeds_is_a_recipe_for_each_and_its_parent_has_the_same_seed():
    recipes = {
        "base": {"schedule": EIGHT, "seeds": [0, 3]},
        "child": {"schedule": EIGHT, "seeds": [3], "training": {"parent": "base"}},
    }
    found = of(recipes)
    assert list(found) == ["base-seed0", "base-seed3", "child-seed3"]
    keys = {found[name].experts[0].job.spec.stream_key for name in ("base-seed0", "base-seed3")}
    assert len(keys) == 2
    child = found["child-seed3"].experts[0].job
    assert child.spec.parent.entry == found["base-seed3"].experts[0].job.name
    assert child.spec.parent.entry in child.needs


def test_a_forked_single_state_expert_keeps_its_parents_input():
    recipes = {
        "base": {"schedule": EIGHT},
        "fork": {
            "schedule": EIGHT,
            "partition": {"kind": "per-state"},
            "training": {"parent": "base"},
        },
    }
    found = of(recipes)
    assert {e.job.spec.conditioning for e in found["fork"].experts} == {"state"}
    assert {e.job.spec.parent.file for e in found["fork"].experts} == {"weights-1000.safetensors"}


def test_a_fitted_schedule_needs_its_measurement_and_follows_it():
    recipes = {"fitted": {"schedule": {"kind": "fitted", "states": 8}}}
    with pytest.raises(UserError, match=r"spectrum: not measured yet.*dvc repro"):
        of(recipes, analyses=False)
    expected = states_of("fitted", 8, spectrum=SPECTRUM["spectrum"])
    assert np.array_equal(of(recipes)["fitted"].log_snr, expected)


def test_a_flow_is_drawn_uniformly_in_its_time_and_sampled_at_even_steps_of_it():
    flow = {"kind": "flow", "shift": 3.0}
    found = of(
        {
            "flow": {
                "schedule": flow,
                "prediction": "flow",
                "sampling": {"kind": "euler", "steps": 4},
            },
            "other": {"schedule": {**flow, "shift": 1.0}},
            "states": {"schedule": {**flow, "states": 10}, "sampling": {"steps": None}},
        }
        | {"plain": {"schedule": {"kind": "log-snr", "states": "continuous"}}},
        {"defaults": {**RAW["defaults"], "sampling": {"steps": 4}}},
    )
    spec = found["flow"].experts[0].job.spec
    assert spec.continuous and spec.curriculum.form.shift == 3.0
    assert spec.curriculum.form.form.kind == "uniform"
    assert found["other"].experts[0].job.spec.curriculum.form.shift == 1.0
    t = np.array([0.999e-3, 0.999])
    t = 3 * t / (1 + 2 * t)
    np.testing.assert_allclose(spec.log_snr, 2 * np.log((1 - t) / t), atol=1e-7)
    t = 0.999 * np.arange(1, 5) / 4
    t = 3 * t / (1 + 2 * t)
    np.testing.assert_allclose(found["flow"].sampling_states, 2 * np.log((1 - t) / t), atol=1e-7)
    for name in ("states", "plain"):
        assert found[name].experts[0].job.spec.curriculum.form.kind == "uniform"
    assert found["states"].sampling_states == found["states"].log_snr.tolist()


def test_a_velocity_is_predicted_by_a_network_for_v_with_the_loss_of_a_flow():
    said = {"prediction": "v", "network": {"velocity": True}}
    flow = {"training": {"weighting": {"kind": "flow"}}}
    split = {"schedule": EIGHT, "partition": {"kind": "per-state"}, "prediction": "flow"}
    snr = {"training": {"weighting": {"kind": "min-snr"}}}
    found = of(
        {"short": {"prediction": "flow"}, "long": said | flow, "plain": {}, "split": split}
        | {"snr": {"prediction": "flow"} | snr}
    )
    short, plain = (found[name].experts[0].job.spec for name in ("short", "plain"))
    assert names(found["short"]) == names(found["long"]) != names(found["plain"])
    assert short.prediction == "v" and short.network.velocity
    assert short.training.weighting.kind == "flow"
    assert found["snr"].experts[0].job.spec.training.weighting.kind == "min-snr"
    assert "velocity" not in plain.as_json()["network"] and plain.code != short.code
    # v is made of it at a state, so an expert of one is told that.
    assert {e.job.spec.conditioning for e in found["split"].experts} == {"state"}


GUIDED = {"kind": "ddim", "guidance": 2.0}


def guided(**guide):
    return {"schedule": EIGHT, "sampling": GUIDED | {"guide": guide}}


def test_a_guide_is_part_of_the_samples_and_of_no_expert():
    recipes = {"good": guided(recipe="bad"), "bad": {"schedule": EIGHT}}
    resolved = resolve({**copy.deepcopy(RAW), "recipes": recipes})
    found = plan.experts(resolved, FACTS)
    good, bad = found["good"], found["bad"]
    assert names(good) == names(bad)

    def described(name, sha256):
        part = {"entry": f"expert/{name}", "file": "w", "sha256": sha256}
        return {"experts": [part | {"network": {"kind": "unet"}}]}

    def jobs(guide):
        return plan.samples(resolved, FACTS, good, described("one", "0"), "good", guide)

    [one], [other] = jobs(described("two", "1")), jobs(described("two", "2"))
    assert one.name != other.name
    assert one.needs == ("expert/one", "expert/two")
    assert one.spec.sampling.guidance == 2.0 and one.spec.sampling.guide is None
    assert one.spec.led.guide == described("two", "1")
    [plain] = jobs(None)  # a milestone that is not guided, as of a recipe without guidance
    assert plain.spec.sampling.guidance == 1.0 and plain.needs == ("expert/one",)
    [same] = plan.samples(resolved, FACTS, bad, described("one", "0"), "bad")
    assert plain.name == same.name


def test_a_milestone_is_not_led_away_from_itself_or_a_later_one():
    training = {"milestones": [100, 500]}
    recipes = {
        "own": guided(milestone=500) | {"training": training, "seeds": [0, 1]},
        "other": guided(recipe="own") | {"training": training, "seeds": [1]},
        "free": {"schedule": EIGHT, "sampling": GUIDED, "network": {"class_conditional": True}},
    }
    found = of(recipes)
    assert found["other-seed1"].recipe.sampling.guide.recipe == "own-seed1"
    own = found["own-seed0"]
    assert [own.guided(m) for m in own.milestones] == [False, False, True]
    assert all(found["other-seed1"].guided(m) for m in own.milestones)
    assert found["free"].guided(1000)


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        ({"recipe": "split"}, None),
        ({"recipe": "dense"}, None),
        ({"recipe": "narrow"}, r"'narrow' learnt nothing at 4 of the states .* log-SNR 9;"),
        ({"recipe": "shifted"}, r"'shifted' learnt nothing at 8 of the states .* log-SNR 9;"),
    ],
)
def test_a_guide_must_know_the_states_that_are_sampled(guide, message):
    alone = {"partition": {"kind": "per-state"}}
    recipes = {
        "one": guided(**guide),
        "split": {"schedule": EIGHT} | alone,
        "dense": {"schedule": {"kind": "log-snr", "states": 40}},
        "narrow": {"schedule": EIGHT | {"log_snr_max": 4, "log_snr_min": -4}},
        "shifted": {"schedule": EIGHT | {"shift": 0.2}} | alone,
    }
    if message is None:
        of(recipes)
        return
    with pytest.raises(UserError, match=f"recipes.one.sampling.guide: {message}"):
        of(recipes)


def test_a_state_without_signal_has_no_expert():
    recipes = {
        "ends": {
            "schedule": {**EIGHT, "zero_terminal": True},
            "partition": {"kind": "per-state"},
        }
    }
    found = of(recipes)["ends"]
    assert found.log_snr[-1] == -np.inf and len(found.experts) == 7
    assert sum(e.images for e in found.experts) == 1000
    assert found.sampling_states[-1] == -np.inf


def test_budgets_follow_difficulty_and_add_up():
    recipe = {"schedule": EIGHT, "partition": {"kind": "per-state"}}
    recipes = {"hard": recipe | {"training": {"budget": "by-difficulty"}}}
    found = of(recipes)["hard"]
    images = np.array([e.images for e in found.experts])
    slope = schedule.mmse_slope(found.log_snr, SPECTRUM["spectrum"])
    assert images.sum() == 1000
    assert images.argmax() == slope.argmax()
    assert images.min() >= 0.9 * 0.25 * images.mean() and images.max() > 1.3 * images.mean()


def test_a_curriculum_can_split_the_budget_of_single_state_experts():
    recipe = {
        "schedule": EIGHT,
        "partition": {"kind": "per-state"},
        "curriculum": {"kind": "static", "sigma": 0.2},
        "training": {"budget": "curriculum"},
    }
    images = [e.images for e in of({"r": recipe})["r"].experts]
    wanted = curriculum_of("static", of({"r": recipe})["r"].log_snr, sigma=0.2).average()
    assert sum(images) == 1000
    np.testing.assert_allclose(np.array(images) / 1000, wanted, atol=1e-3)


def test_widths_are_the_experts_own():
    recipe = {"schedule": EIGHT, "partition": {"kind": "uniform", "intervals": 2}}
    recipe["partition"]["channels"] = [8, 24]
    found = of({"r": recipe})["r"]
    assert [e.job.spec.network.channels for e in found.experts] == [8, 24]


def multi(**changes):
    return {
        "schedule": EIGHT,
        "network": {"kind": "multi-decoder", "decoder_channels": [8, 16]},
        "partition": {"kind": "snr", "intervals": 2},
    } | changes


def test_a_multi_decoder_is_one_expert_with_the_partitions_bounds():
    found = of({"r": multi()})["r"]
    (expert,) = found.experts
    assert expert.job.spec.interval_bounds == found.bounds
    assert len(expert.job.spec.log_snr) == 8


def test_merged_recipes_wait_for_their_experts_and_can_be_parents():
    cut = {"schedule": EIGHT, "partition": {"kind": "uniform", "intervals": 2}}
    recipes = {
        "base": {"schedule": EIGHT},
        "one": cut | {"training": {"parent": "base"}, "merge": {"method": "average"}},
        "again": {"schedule": EIGHT, "training": {"parent": "one"}},
    }
    found = of(recipes)
    (job,) = found["one"].merged.values()
    assert set(names(found["one"])) <= set(job.needs)
    parent = found["again"].experts[0].job.spec.parent
    assert (parent.entry, parent.file) == (job.name, "weights.safetensors")


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ({"training": {"parent": "bse"}}, "did you mean `base`"),
        ({"training": {"parent": "r"}}, "circle"),
        ({"training": {"parent": "apart"}}, "several experts"),
        ({"training": {"parent": "base"}, "network": {"channels": 64}}, "in its parent"),
        ({"merge": {"method": "average"}}, "needs a partition"),
        (
            {"partition": {"kind": "uniform", "intervals": 2}, "merge": {"method": "average"}},
            "did not start from the same",
        ),
        (
            {
                "partition": {"kind": "uniform", "intervals": 2},
                "merge": {"method": "task-vector"},
                "training": {"parent": "base"},
            },
            "data.holdout is 0",
        ),
        ({"decouple": {"outside": 0.1}}, "needs training.parent"),
        (multi(partition={"kind": "uniform", "intervals": 3}), "2 decoders for the 3 intervals"),
        (multi(partition={"kind": "per-state"}), "no intervals"),
        (
            {"partition": {"kind": "optimal-denoiser", "intervals": 4}},
            "two-anchor gives three intervals",
        ),
        (
            {"partition": {"kind": "uniform", "intervals": 2, "channels": [8]}},
            "1 widths for 2 experts",
        ),
        ({"curriculum": {"kind": "per-interval"}}, "per-interval needs one"),
        (
            {"partition": {"kind": "per-state"}, "sampling": {"kind": "heun", "s_churn": 1.0}},
            "recipes.r: sampling.s_churn: churn visits noise levels between the states",
        ),
        ({"training": {"train": "decoders"}}, "needs a multi-decoder network"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(recipe, says):
    recipes = {
        "base": {"schedule": EIGHT},
        "apart": {"schedule": EIGHT, "partition": {"kind": "per-state"}},
        "r": {"schedule": EIGHT} | recipe,
    }
    with pytest.raises(UserError, match=says):
        of(recipes)


def test_a_schedule_for_images_in_the_unit_range_is_the_papers_on_them():
    """Ho et al. add noise to images in [-1, 1]: sqrt(abar) y + sqrt(1 - abar) eps, y of std 0.6."""
    facts = dataclasses.replace(FACTS, std=(0.6 * 127.5,))

    def change(raw):
        raw["recipes"]["shared"]["schedule"] = {"kind": "linear", "shift": "unit-range"}

    found = planned(change, facts)["shared"].log_snr
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    expected = np.log(0.6**2 * alpha_bar / (1 - alpha_bar))  # signal over noise
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(np.diff(found), np.diff(states_of("linear", 1000)), atol=2e-8)


# --- latents


def test_flips_are_rows_and_held_out_images_are_apart():
    raw = copy.deepcopy(RAW) | {"data": {"holdout": 100}, "latent": {"flips": True, "shard": 700}}
    params = resolve(raw)
    facts = dataclasses.replace(FACTS, rows=900, held_out=100)
    shards = plan.latents(params, facts)
    assert [[job.spec.first, job.spec.last] for job in shards] == [
        [0, 700],
        [700, 1400],
        [1400, 1800],
    ]
    assert {job.spec.flips_after for job in shards} == {900}
    (apart,) = plan.held_out(params, facts)
    assert (apart.spec.first, apart.spec.last) == (900, 1000) and apart.spec.flips_after is None
    assert apart.name not in {job.name for job in shards}


def test_latents_wait_for_their_encoder_and_give_the_networks_its_shape():
    raw = copy.deepcopy(RAW) | {"latent": {"encoder": "autoencoder", "channels": 3}}
    params = resolve(raw)
    codec = plan.encoder(params, FACTS)
    assert all(codec.name in job.needs for job in plan.latents(params, FACTS))
    spec = plan.experts(params, FACTS)["shared"].experts[0].job.spec
    assert (spec.channels, spec.resolution) == (3, 2)


@pytest.mark.parametrize(
    ("pairing", "conditional", "classes"),
    [
        ({"method": "assignment"}, True, 10),
        ({"method": "assignment", "within_class": False}, True, 0),
        ({"method": "assignment"}, False, 0),
        ({"method": "knn-l2"}, True, 10),
        ({"method": "knn-l2", "center": False}, True, 0),
        ({"method": "semidiscrete"}, True, 10),
        ({"method": "semidiscrete", "within_class": False}, True, 0),
        ({"method": "semidiscrete"}, False, 0),
    ],
)
def test_pairings_heed_classes_only_where_asked_and_known(pairing, conditional, classes):
    def change(raw):
        raw["defaults"] |= {"pairing": pairing, "network": {"class_conditional": conditional}}

    [job] = planned(change)["shared"].experts[0].pairings
    assert job.spec.classes == classes
    assert getattr(job.spec.settings, "within_class", True)  # whatever the recipe says


def test_pairing_jobs_grow_and_long_runs_share_those_of_short_ones():
    def run(images):
        def change(raw):
            raw["defaults"]["pairing"] = {"method": "assignment"}
            raw["defaults"]["training"]["images"] = images
            raw["defaults"]["training"]["milestones"] = []

        return list(planned(change)["shared"].experts[0].pairings)

    slots = {n: [job.spec.slots for job in run(n * FACTS.rows)] for n in (1, 3, 17, 18, 25)}
    assert slots[1] == [[0, 1]] and slots[3] == [[0, 1], [1, 2], [2, 4]]
    assert slots[17] == slots[18] == [[0, 1], [1, 2], [2, 4], [4, 8], [8, 16], [16, 24]]
    assert slots[25] == [*slots[17], [24, 32]]
    short, long = run(3 * FACTS.rows), run(25 * FACTS.rows)
    assert [job.name for job in short] == [job.name for job in long[:3]]


def test_a_potential_is_learnt_by_the_first_pairing_job_and_waited_for_by_the_others():
    def change(raw):
        raw["defaults"]["pairing"] = {"method": "semidiscrete", "noises": 4}
        raw["defaults"]["training"]["images"] = 4 * FACTS.rows
        raw["defaults"]["training"]["milestones"] = []

    first, *others = planned(change)["shared"].experts[0].pairings
    assert first.spec.potential is None and len(others) == 2
    for job in others:
        assert job.spec.potential == first.name and first.name in job.needs


@pytest.mark.parametrize(
    ("recipe", "line"),
    [
        (
            {"schedule": {"kind": "log-snr", "log_snr_max": 60, "shift": 1}},
            "recipes.a: schedule: log-SNRs from 61 to -8; float32 carries none beyond 60 on either "
            "side: use less `shift`, or nearer ends",
        ),
        (
            {
                "schedule": {"kind": "log-snr", "states": 8},
                "partition": {"kind": "bounds", "log_snr": [20]},
            },
            "recipes.a: partition: interval 1 of 2 holds no state",
        ),
        (
            {
                "schedule": {"kind": "log-snr", "states": 8},
                "partition": {"kind": "uniform", "intervals": 2},
                "curriculum": {"kind": "edm-lognormal", "mean": 20, "std": 0.001},
            },
            "recipes.a: curriculum: no training images fall on the states",
        ),
    ],
    ids=["shift", "bounds", "curriculum"],
)
def test_what_cannot_be_planned_is_refused_beside_what_waits_for_measurements(recipe, line):
    recipe = {"sampling": {"steps": 4}, **recipe}
    waits = {"schedule": {"kind": "fitted"}}
    params = resolve({"recipes": {"waits": waits, "a": recipe, "b": recipe}})
    with pytest.raises(UserError) as caught:
        plan.check(params, FACTS)
    first, *told = str(caught.value).splitlines()
    assert first == "params.yaml: 2 mistakes:"
    assert told[0].startswith(f"  {line}")
    assert told[1].startswith(f"  {line.replace('recipes.a', 'recipes.b')}")


def test_equal_mass_follows_from_the_curriculum():
    cut = {"schedule": EIGHT, "partition": {"kind": "equal-mass", "intervals": 2}}
    even = {"curriculum": {"kind": "static", "mu": 0.5, "sigma": 100.0}}
    clean = {"curriculum": {"kind": "static", "mu": 0.0, "sigma": 0.2}}
    sizes = [
        [expert.last - expert.first + 1 for expert in of({"a": cut | drawn})["a"].experts]
        for drawn in ({}, even, clean)
    ]
    assert sizes == [[4, 4], [4, 4], [2, 6]]
    own = {"curriculum": {"kind": "per-interval"}}
    with pytest.raises(UserError, match="per-interval needs one of its own"):
        of({"a": cut | own})
