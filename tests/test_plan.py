"""Plans: what is in a digest and what is not, and that recipes share what they can."""

from __future__ import annotations

import copy
import subprocess
import sys

import numpy as np
import pytest

from pipeline import config, plan

FACTS = plan.DatasetFacts("d" * 64, 1000, 8, 1, 10, (77.0,), (80.0,))
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
    return plan.experts(config.resolve(raw), facts)


def names(recipe):
    return [expert.job.name for expert in recipe.experts]


def test_experts_own_all_states_once_and_share_the_budget_exactly():
    for recipe in planned().values():
        owned = [i for e in recipe.experts for i in range(e.first, e.last + 1)]
        assert owned == list(range(8))
        assert sum(e.images for e in recipe.experts) == 1000


def test_single_state_experts_have_no_time_input_and_differ_in_state_alone():
    specs = [expert.job.spec for expert in planned()["split"].experts]
    assert {spec["conditioning"] for spec in specs} == {"none"}
    for key in specs[0]:
        values = {str(spec[key]) for spec in specs}
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
    differing = {k for k in first_of_two if first_of_two[k] != first_of_three[k]}
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
    code = "import sys, pipeline.plan, stages.steps; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
