"""Speed-ups of the training benchmarks against numbers worked out by hand, and their workspace."""

import importlib
import itertools
import math
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import experiment

BENCHMARKS = Path(experiment.__file__).parent


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_a_benchmark_finds_what_it_imports(name):
    importlib.import_module(name)


def recipe(points):
    """Metrics from (milestone, critical images, FLOPs, experts' seconds, FID)."""
    keys = ("images_seen", "images_seen_critical", "train_flops", "expert_seconds", "fid")
    return {"milestones": {str(p[0]): dict(zip(keys, p, strict=True)) for p in points}}


# Ends with FID 2. Milestones of metrics.json are text: "1000" sorts before "200" as such.
BASELINE = recipe([(1000, 1000, 1e6, [[10.0]], 2.0), (200, 200, 2e5, [[2.0]], 8.0)])
# Four experts; FID falls as images^-2: it is 2 at 400 images, a quarter of them critical.
ARM = recipe(
    [
        (200, 50, 1e5, [[1.0, 1.0, 1.0, 1.0]], 8.0),
        (800, 200, 4e5, [[4.0, 4.0, 4.0, 4.0]], 0.5),
    ]
)


def test_curve_is_ordered_by_images():
    images, fid = experiment.curve(BASELINE)
    assert images.tolist() == [200, 1000] and fid.tolist() == [8, 2]
    assert experiment.curve(ARM, "train_flops")[0].tolist() == [1e5, 4e5]


def test_between_milestones_a_power_law_is_met_exactly():
    images = [100.0, 1000.0, 3000.0]
    fid = [50 * (i / 100) ** -0.7 for i in images]
    for target in (40.0, 12.3, 5.0):
        exact = 100 * (50 / target) ** (1 / 0.7)
        assert experiment.images_to_reach(images, fid, target) == pytest.approx(exact)


def test_reaching_at_a_milestone_before_all_never_and_for_the_first_time():
    images, fid = [100, 200, 300, 400], [9.0, 4.0, 6.0, 3.0]
    assert experiment.images_to_reach(images, fid, 4.0) == 200
    assert experiment.images_to_reach(images, fid, 20.0) == 100
    assert experiment.images_to_reach(images, fid, 2.9) is None
    expected = 100 * 2 ** (math.log(9 / 6) / math.log(9 / 4))
    assert experiment.images_to_reach(images, fid, 6.0) == pytest.approx(expected)


def test_speedups_by_hand():
    # At FID 2 the arm has seen 400 images: 100 of them critical, 2e5 FLOPs, 2 s of each expert.
    assert experiment.s_iterations(BASELINE, ARM) == pytest.approx(1000 / 100)
    assert experiment.s_compute(BASELINE, ARM) == pytest.approx(1e6 / 2e5)
    assert experiment.s_wall(BASELINE, ARM, 1) == pytest.approx(10 / 8)
    assert experiment.s_wall(BASELINE, ARM, 3) == pytest.approx(10 / 4)  # the fourth goes second
    assert experiment.s_wall(BASELINE, ARM, 4) == pytest.approx(10 / 2)
    assert experiment.s_iterations(ARM, BASELINE) is None
    assert experiment.s_compute(BASELINE, BASELINE) == 1


def test_a_speedup_to_the_worse_of_the_two_ends():
    slow = recipe([(100, 100, 1e5, [[1]], 8.0), (400, 400, 4e5, [[4]], 4.0)])
    fast = recipe([(100, 50, 1e5, [[1]], 4.0), (400, 200, 4e5, [[4]], 1.0)])
    assert experiment.s_iterations(fast, slow) is None
    assert experiment.s_iterations(fast, slow, worse=True) == pytest.approx(50 / 400)
    assert experiment.s_iterations(slow, fast, worse=True) == pytest.approx(400 / 50)
    assert experiment.s_iterations(slow, fast, worse=True) == experiment.s_iterations(slow, fast)
    assert experiment.s_wall(fast, slow, 1, worse=True) == pytest.approx(1 / 4)


def test_a_baseline_that_got_worse_is_charged_for_its_best_moment_only():
    worse = recipe([(100, 100, 1, [[1]], 3.0), (200, 200, 2, [[2]], 1.0), (400, 400, 4, [[4]], 3)])
    assert experiment.s_iterations(worse, ARM) < 2


def test_makespan_is_grahams_worst_case_for_longest_first():
    # 2W + 1 jobs (Graham 1969): longest-first takes 4W - 1 where 3W is possible.
    assert experiment.makespan([[5, 5, 4, 4, 3, 3, 3]], 3) == 11
    assert experiment.makespan([[3], [2, 2, 1]], 2) == 3 + 3


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=6),
    st.integers(1, 3),
)
def test_makespan_keeps_grahams_bound(seconds, workers):
    best = min(
        max(sum(s for s, w in zip(seconds, places, strict=True) if w == k) for k in range(workers))
        for places in itertools.product(range(workers), repeat=len(seconds))
    )
    found = experiment.makespan([seconds], workers)
    assert best <= found <= best * (4 / 3 - 1 / (3 * workers)) + 1e-9


def test_a_search_goes_on_until_a_worse_one_is_on_either_side_or_there_is_none():
    lowest, asked = {"a": 2, "b": 6, "c": 0}, []

    def score(wanted):
        asked.append(len(wanted))
        return {(name, place): float(abs(place - lowest[name])) for name, place in wanted}

    found = experiment.bracket(score, lowest, range(2, 4), 7)
    assert found == {
        name: {n: float(abs(n - lowest[name])) for n in places}
        for name, places in {"a": (1, 2, 3), "b": range(2, 7), "c": range(4)}.items()
    }
    assert asked == [6, 9, 11, 12]  # of all names at once


def test_seeds_are_grouped_and_ordered_by_number():
    names = ["a-seed10", "a-seed2", "b", "c-seed1-x"]
    assert experiment.by_seed({n: n for n in names}, 7) == {
        "a": {2: "a-seed2", 10: "a-seed10"},
        "b": {7: "b"},
        "c-seed1-x": {7: "c-seed1-x"},
    }
    assert list(experiment.by_seed(dict.fromkeys(names))["a"]) == [2, 10]


def test_summaries():
    found = experiment.summarise([2.0, 4.0, 9.0])
    assert found == {"mean": 5, "std": math.sqrt(13), "min": 2, "max": 9, "n": 3, "of": 3}
    assert experiment.text(found) == "5 (2-9)"
    assert experiment.summarise([3.0])["std"] == 0 and experiment.text({**found, "n": 1}) == "5"


def test_a_seed_that_never_got_there_leaves_no_mean():
    found = experiment.summarise([2.0, None, 3.0])
    assert found["mean"] is None and experiment.text(found) == ">budget (2/3)"
    assert experiment.ratio_with_spread([1.0, 2.0], [2.0, None])["mean"] is None


def test_ratios_are_paired_by_seed():
    found = experiment.ratio_with_spread([2.0, 9.0], [1.0, 3.0])
    assert (found["mean"], found["min"], found["max"]) == (2.5, 2, 3)
    with pytest.raises(ValueError):
        experiment.ratio_with_spread([1.0], [1.0, 2.0])


def test_a_workspace_runs_this_checkout_on_its_own_params(tmp_path, capfd):
    params = {
        "seed": 0,
        "data": {"source": "digits", "limit": 100},
        "latent": {},
        "features": {},
        "evaluate": {"samples": 10, "allow_few": True},
        "defaults": {},
        "recipes": {"tiny": {}},
    }
    for _ in range(2):  # made again over the old one
        workspace = experiment.make_workspace(tmp_path / "tiny", params, 2)
    code = "import os, sys; sys.path.insert(0, os.getcwd()); import stages; print(stages.__path__)"
    experiment.subprocess.run([sys.executable, "-c", code], cwd=workspace, check=True)
    experiment.tspace(workspace, "prepare")
    assert str(workspace / "stages") in (out := capfd.readouterr().out)
    assert "prepare: 100 images" in out
    assert (workspace / "artefacts" / "dataset").exists()
    assert (workspace / "pipeline").resolve() == Path(__file__).parent.parent / "pipeline"


def test_a_failed_stage_stops_the_benchmark(tmp_path):
    workspace = experiment.make_workspace(tmp_path / "bad", {"recipes": {}}, 1)
    with pytest.raises(SystemExit, match="tspace prepare"):
        experiment.tspace(workspace, "prepare")
