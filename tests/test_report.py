"""Numbers of the report: costs with what came before, seeds together, tables as text."""

from __future__ import annotations

import csv
import dataclasses
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest

from pipeline import plan
from pipeline.data.params import Autoencoder
from pipeline.evaluation import scores
from pipeline.store.files import write_json, write_sealed
from pipeline.store.identity import file_digest
from stages import pictures
from stages.numbers import MISSING
from stages.report import costs
from stages.report import write as report
from stages.report.charts import HeatMap
from stages.report.fresh import stale
from stages.report.groups import mean, units, units_of
from stages.report.page import sections_of, write_page
from stages.report.results import Encoder
from stages.report.sections import cost, latents, opening, training
from stages.tools import doctor
from stages.workspace import Workspace
from tests.pages import (
    CPU,
    HEAD,
    SEARCH,
    Page,
    check_self_contained,
    project,
    results_of,
    write_circumstances,
    written,
)
from tests.workflow import ROOT

FAMILY = f"""{HEAD.replace("data: {source: digits}", "data: {source: digits, holdout: 64}")}\
  base: {{schedule: {{kind: log-snr, states: 12}}}}
  fork:
    schedule: {{kind: log-snr, states: 12}}
    partition: {{kind: uniform, intervals: 2}}
    training: {{parent: base, images: 900, milestones: []}}
  merged:
    schedule: {{kind: log-snr, states: 12}}
    partition: {{kind: uniform, intervals: 2}}
    training: {{parent: base, images: 900, milestones: []}}
    merge: {{method: task-vector, images: 64}}
  grandchild:
    schedule: {{kind: log-snr, states: 12}}
    training: {{parent: merged, images: 600, milestones: []}}
"""
SEEDS = f"""{HEAD}\
  one: {{schedule: {{kind: log-snr, states: 12}}}}
  few: {{seeds: [3, 5], schedule: {{kind: log-snr, states: 4}}}}
"""
MEASURED = f"""{HEAD}\
  piloted:
    schedule: {{kind: fitted, states: 12, source: pilot, pilot_images: 500}}
    partition: {{kind: gradient, intervals: 2, pilot_images: 700, nodes: 8}}
  multi:
    schedule: {{kind: log-snr, states: continuous}}
    sampling: {{steps: 10}}
    partition: {{kind: optimal-denoiser, intervals: 3}}
    network: {{kind: multi-decoder, decoder_channels: [8, 8, 4]}}
  paired: {{pairing: {{method: assignment, keep: 4}}}}
  taken: {{pairing: {{method: semidiscrete}}}}
  knn: {{pairing: {{method: knn-l2, candidates: 8, center: false}}}}
  shrunk: {{pairing: {{method: independent, scale: 0.9}}}}
  least: {{schedule: {{kind: elbo, states: 8}}}}
"""


@pytest.fixture(autouse=True)
def own_store(monkeypatch):
    monkeypatch.delenv("TSPACE_STORE", raising=False)


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    arguments = project(tmp_path_factory.mktemp("family"), FAMILY)
    return arguments, written(arguments)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    def scores(number: int, share: float) -> dict:
        return {"fid": (0.5, 0.3, 0.4)[number] / share, "fid_interval": [0.25, 0.45]} | {
            "fid_interval_confidence": 0.95
        }

    arguments = project(tmp_path_factory.mktemp("seeds"), SEEDS, scores=scores)
    return arguments, written(arguments)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    arguments = project(tmp_path_factory.mktemp("measured"), MEASURED)
    return arguments, written(arguments)


def own_seconds(arguments, name):
    """Seconds of each of a recipe's experts, from their circumstances."""
    _, workspace, _, recipes, *_ = arguments
    known = [workspace.store.entry(e.job.name).circumstances() for e in recipes[name].experts]
    return [max(own["snapshot_seconds"].values()) for own in known]


def test_costs_hold_the_whole_line_of_parents(family):
    arguments, _ = family
    metrics = arguments[4]
    base, fork, last = (own_seconds(arguments, n) for n in ("base", "fork", "grandchild"))
    assert metrics["base"]["seconds"] == pytest.approx(base[0])
    assert metrics["fork"]["seconds"] == pytest.approx(base[0] + sum(fork))
    assert metrics["fork"]["seconds_critical"] == pytest.approx(base[0] + max(fork))
    assert [metrics[n]["images_seen"] for n in metrics] == [6000, 6900, 6900, 7500]
    assert [metrics[n]["images_seen_critical"] for n in metrics] == [6000, 6450, 6450, 7050]
    search = SEARCH
    assert metrics["merged"]["seconds"] == pytest.approx(metrics["fork"]["seconds"] + search)
    assert metrics["grandchild"]["seconds_critical"] == pytest.approx(
        base[0] + max(fork) + search + last[0]
    )
    assert metrics["grandchild"]["train_flops"] == pytest.approx(1.5e6 * 7500)


def test_compute_is_device_time_where_there_is_a_device(family):
    """Half of a run's device-seconds at half of its clock; the search was on the CPU."""
    _, workspace, facts, recipes, metrics, *_ = family[0]
    assert metrics["base"]["compute_seconds"] == pytest.approx(CPU * metrics["base"]["seconds"])
    assert metrics["base"]["device_seconds"] is None
    entry = workspace.store.entry(recipes["base"].experts[0].job.name)
    known = entry.circumstances()
    try:
        on_gpu = {"device": "cuda", "device_seconds": 40.0}
        write_sealed(entry.path / "circumstances.json", known | on_gpu)
        half = costs.times(workspace, facts, recipes["base"], 3000)
        assert half["compute_seconds"] == half["device_seconds"] == pytest.approx(20.0)
        merged = costs.times(workspace, facts, recipes["merged"], 900)
        forks = sum(own_seconds(family[0], "merged"))
        assert merged["compute_seconds"] == pytest.approx(40 + CPU * (forks + SEARCH))
        assert merged["devices"] == ["cpu", "cuda"]
    finally:
        write_sealed(entry.path / "circumstances.json", known)


def test_a_merged_recipe_has_the_parameters_of_one_network(family):
    metrics = family[0][4]
    assert metrics["fork"]["parameters"] == 2 * 60123
    assert metrics["merged"]["parameters"] == metrics["merged"]["parameters_active"] == 60123


def test_the_page_says_what_costs_hold(family):
    _, page = family
    check_self_contained(page)
    assert "fork, merged from base; grandchild from merged and base" in page.text
    assert "evaluations: merged 9. Their seconds are in the table" in page.text
    merging = next(t for t in page.tables if t[0][2:4] == ["method", "weights"])
    assert merging[1][2:7] == ["task-vector", "0.75, 1.25", "1.93", "1.97", "9"]
    assert merging[1][7:9] == ["5.25", "2.50"]  # of the best candidate; seconds
    assert merging[1][9:11] == ["0.470", "0.125"]  # of signs; the cosine of the two


def test_a_pilot_is_part_of_the_costs_once(measured):
    arguments, page = measured
    check_self_contained(page)
    _, workspace, facts, recipes, metrics, *_ = arguments
    # The schedule's pilot and the partition's have different budgets.
    before = costs.before(workspace, facts, recipes["piloted"])
    assert [spent.images for _, spent in before] == [500, 700]
    assert metrics["piloted"]["images_seen"] == 6000 + 1200
    assert "piloted: with the pilot run" in page.text


def test_warnings_name_pairings_that_leave_the_marginal(measured):
    _, page = measured
    warnings = [a for a in page.all("p") if a.get("class") == "warning"]
    assert len(warnings) == 2
    assert "knn: knn-l2 leaves N(0, 1)." in page.text
    assert "standard deviation 0.9341 instead of 1, 6.6 % shorter" in page.text
    # m_8 = 1.4236 of a score of variance 2 * 64 + 4 * 64.
    expected = math.sqrt(1 - 2 * 1.4236 / math.sqrt(6 * 64))
    assert f"in 64 values: {expected:.4g}" in page.text
    assert "Its mean lies 0.67 standard deviations along the mean image, which is 33 %" in page.text
    assert "pairing.center: true removes that" in page.text
    assert "6.5 % is that short noise and only 10.5 % alignment" in page.text
    assert "shrunk: its noise is multiplied by 0.9" in page.text
    assert "paired: assignment leaves" not in page.text
    assert "taken: semidiscrete leaves" not in page.text
    table = next(t for t in page.tables if "unevenness" in t[0])
    method, column = (table[0].index(name) for name in ("method", "unevenness"))
    told = {line[method]: line[column] for line in table[1:]}
    assert told["semidiscrete"] == "0.120" and told["assignment"] == MISSING


def test_partitions_show_what_their_bounds_were_found_from(measured):
    _, page = measured
    assert "Optimal denoiser: multi" in page.text and "Gradient affinity: piloted" in page.text
    assert len(page.all("image")) == 4  # two matrices, each with the scale of its colours
    decoders = next(t for t in page.tables if t[0][1] == "decoder width")
    assert [row[0] for row in decoders[1:]] == ["9 to 3", "3 to −2.5", "−2.5 to −9"]
    assert decoders[1][2:] == decoders[2][2:] != decoders[3][2:]
    sensitivity = next(t for t in page.tables if t[0][0] == "alpha")
    assert sensitivity[2][5:] == ["–"] * 6


def test_steps_are_compared_with_32_and_4_even_states(measured):
    _, page = measured
    table = next(t for t in page.tables if t[0][1] == "states visited")
    even = {row[1]: float(row[2]) for row in table if row[0].startswith("for comparison")}
    # e^D - 1 bounds the condition, and is reached where the component is known already.
    for states, condition in even.items():
        bound = math.expm1(18 / (int(states) - 1))
        assert 0.9 * bound < condition <= bound * 1.001
    assert " has the states with the least evidence bound, as a diagnostic." in page.text


def test_seeds_are_one_row_with_mean_and_range(seeds):
    _, page = seeds
    check_self_contained(page)
    main, every = page.tables[:2]
    assert [row[0].strip() for row in main[1:]] == ["one", "few 2 seeds"]
    assert main[2][1] == "0.350 (best)0.300..0.400"
    assert main[1][1] == "0.5000.250..0.450"  # the interval of a single run
    assert [row[0].strip() for row in every[1:]] == ["few-seed3", "few-seed5"]
    # The words of both, params.yaml as it is and resolved.
    assert sum("seeds: [3, 5]" in text for text in page.preformatted) >= 3


def test_the_band_spans_lowest_to_highest(seeds):
    charts = cost.section(results_of(seeds[0])).figures
    assert len(charts) == 3
    for (chart,) in charts.values():
        one, few = chart.lines
        assert one.band == [] and len(few.band) == 3
        for (x, low, high), (at, middle) in zip(few.band, few.points, strict=True):
            assert x == at and low < middle < high
        assert [low for _, low, _ in few.band] == pytest.approx([1.2, 0.6, 0.3])
        assert [high for _, _, high in few.band] == pytest.approx([1.6, 0.8, 0.4])


def test_units_from_recipes_and_from_a_summary_agree(seeds):
    recipes, metrics = seeds[0][3], seeds[0][4]
    found = units({name: recipe.recipe for name, recipe in recipes.items()})
    assert [(u.name, u.members) for u in found] == [
        ("one", ("one",)),
        ("few", ("few-seed3", "few-seed5")),
    ]
    assert units_of(list(metrics), {"few": ["few-seed3", "few-seed5"]}) == found
    assert mean([1, 2.5]) == 1.75 and mean([1, None]) is None


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ("{source: digits}", "1 recipe on digits"),
        ("{source: folder, path: pictures/cats}", "1 recipe on cats (folder)"),
        ("{source: npz, path: /big/flowers.npz}", "1 recipe on flowers.npz (npz)"),
    ],
)
def test_the_title_names_what_the_images_are_of(tmp_path, data, named):
    params = HEAD.replace("{source: digits}", data) + "  only: {}\n"
    assert opening.data(results_of(project(tmp_path, params)))["title"] == named


def test_the_opening_says_what_samples_are_compared_with(family, seeds):
    """Held-out images are neither trained on nor scored against."""
    assert "samples against all 1,797 images, in the 64 features" in seeds[1].text
    text = family[1].text
    assert "64 more images are held out from training and from scoring." in text
    assert "samples against the 1,733 images that recipes train on, in the" in text


def test_the_page_says_when_and_of_which_commit_it_is(seeds):
    told = "Trained on AMD EPYC. Page of 2026-01-02 03:04 UTC, commit c0ffee , written on 2 cores"
    assert told in seeds[1].text


def test_latents_say_what_the_encoder_keeps_and_loses(seeds):
    results = results_of(seeds[0])
    about = {"kind": "autoencoder", "shape": [2, 4, 4], "image_shape": [1, 8, 8], "images": 352}
    encoder = Encoder(
        plan.features(results.params, results.facts),
        about | {"reconstruction_mse": 0.04},
        {"images": 800, "parameters": 4200},
        {"seconds": 2.5},
        [1000, 250],
    )
    results = dataclasses.replace(
        results,
        encoder=encoder,
        params=results.params.model_copy(
            update={"latent": Autoencoder(encoder="autoencoder", sample=True)}
        ),
        summary=results.summary | {"reconstruction": {"fid": 8.5, "samples": 100}},
    )
    path = seeds[0][0].with_name("latents.html")
    write_page(path, results, [latents.section(results)])
    text = Page(path.read_text(encoding="utf-8")).text
    for words in (
        "latent 2 × 4 × 4 = 32 values image 1 × 8 × 8 = 64 values values 0.5 for one",
        "128 of latents (half precision, mean and variance) for 64 of pixels",
        "mean squared error 0.0400 of images in −1..1, PSNR 20.0 dB, over 352 images",
        "2.50 s, 800 images, 4.20\u202fk parameters; shared by all recipes",
        "2 files of 250\u202fB..1.00\u202fkB, 1.25\u202fkB in all",
        "reconstructions score FID 8.50, 100 images",
    ):
        assert words in text, words


def test_a_page_of_other_results_is_noticed(seeds, tmp_path):
    """What `dvc checkout` leaves: other results beside the page and costs as they were."""
    workspace = Workspace(tmp_path)
    assert stale(workspace) is None  # nothing there
    workspace.results.mkdir()
    write_json(workspace.results / "summary.json", {"recipes": {}})
    assert stale(workspace) == ("results/report.html is missing and results/costs.json is missing")
    digest = file_digest(workspace.results / "summary.json")
    results = dataclasses.replace(results_of(seeds[0]), summary_digest=digest)
    write_page(workspace.results / "report.html", results, sections_of(results))
    write_json(workspace.results / "costs.json", {"summary": digest, "recipes": {}})
    assert stale(workspace) is None and list(doctor.check_report(workspace)) == []
    write_json(workspace.results / "summary.json", {"recipes": {"other": {}}})
    assert stale(workspace) == (
        "results/report.html is of other results and results/costs.json is of other results"
    )
    (found,) = doctor.check_report(workspace)
    assert found.level == "warn" and found.text.endswith("of other results; run `tspace report`")


TOOLS = ("plan", "verify", "status")


def test_plans_and_help_do_without_matplotlib_and_jinja():
    modules = (
        "stages.cli, stages.tools.plan, stages.fanout, stages.tools.verify, stages.tools.status"
    )
    code = f"import sys, {modules}; sys.exit(bool({{'matplotlib', 'jinja2'}} & {{*sys.modules}}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_table_as_text_has_means_and_ranges(seeds):
    metrics = seeds[0][4]
    head, one, few = report.table_rows(metrics, {"few": ["few-seed3", "few-seed5"]})
    assert one[:2] == ["one", "0.500"]
    assert few[:2] == ["few (2 seeds)", "0.350 (0.300..0.400)"]
    assert few[head.index("images")] == "6,000"


def test_seconds_that_do_not_compare_are_marked(tmp_path):
    """One row from another machine, one of a busy one, one that was pulled; in table and page."""
    recipes = "".join(
        f"  {n}: {{schedule: {{kind: log-snr, states: {i + 4}}}}}\n" for i, n in enumerate("abcde")
    )
    arguments = project(tmp_path, HEAD + recipes)
    path, workspace, facts, planned, metrics, summary, pictures = arguments
    others = {"b": {"host": "Intel Xeon"}, "c": {"load": 3.0}, "d": {"threads": 6, "load": 3.0}}
    for name, own in others.items():
        entry = workspace.store.entry(planned[name].experts[0].job.name)
        write_sealed(entry.path / "circumstances.json", entry.circumstances() | own)
    pulled = workspace.store.entry(planned["e"].experts[0].job.name)
    (pulled.path / "circumstances.json").unlink()
    times = report.recipe_times(workspace, facts, planned)
    both = costs.together(metrics, times)
    head, *rows = report.table_rows(both, {})
    assert head[-2:] == ["CPU-s", "s critical"]
    assert [row[0] for row in rows] == ["a", "b *", "c †", "d", "e"]
    assert rows[4][-2:] == ["–", "–"] and "–" not in "".join("".join(row) for row in rows[:4])
    notes = report.footnote_text(both)
    assert "than the rest (b on Intel Xeon, cpu)" in notes and "(load a core up to 3)" in notes
    page = written([path, workspace, facts, planned, both, summary, pictures])
    check_self_contained(page)
    assert [row[0].split() for row in page.tables[0][1:3]] == [["a"], ["b", "*"]]
    assert page.tables[0][5][-2:] == ["–", "–"]
    assert "Recipes whose seconds are unknown are in the first chart only." in page.text


def test_a_job_that_does_without_the_device_is_not_elsewhere():
    gpu, both, cpu = ({"devices": d, "hosts": ["x"]} for d in (["H100"], ["H100", "cpu"], ["cpu"]))
    found = costs.elsewhere({"a": gpu, "b": both, "c": cpu, "d": {"devices": [], "hosts": []}})
    assert found == {"a": False, "b": False, "c": True, "d": None}


def test_what_dvc_tracks_does_not_depend_on_circumstances(family):
    """The costs in metrics.json are the same on a machine twice as slow."""
    _, workspace, facts, recipes, *_ = family[0]

    def tracked() -> dict:
        return {n: costs.costs(workspace, facts, r, r.milestones[-1]) for n, r in recipes.items()}

    first = tracked()
    entry = workspace.store.entry(recipes["base"].experts[0].job.name)
    known = (entry.path / "circumstances.json").read_bytes()
    try:
        (entry.path / "circumstances.json").unlink()
        assert tracked() == first
        assert costs.times(workspace, facts, recipes["base"], 6000)["seconds"] is None
    finally:
        (entry.path / "circumstances.json").write_bytes(known)


def test_different_numbers_of_samples_are_never_compared_silently(tmp_path):
    arguments = project(tmp_path, SEEDS, scores=lambda n, _: {"samples": 500 + 100 * (n == 0)})
    page = written(arguments)
    assert "scored with different numbers of samples (one 600, few-seed3 500" in page.text
    assert report.samples_text(arguments[4]).startswith("WARNING: ")


def test_curves_hold_plain_numbers_of_all_recipes(tmp_path):
    metrics = {
        "a": {"milestones": {"10": {"fid": 1.0, "fid_interval": [0.5, 2.0], "per_class": {}}}},
        "b": {"milestones": {"20": {"fid": 2.0, "fid_infinity": 1.5}}},
    }
    report.write_curves(tmp_path / "curves.csv", metrics)
    with open(tmp_path / "curves.csv") as f:
        rows = list(csv.DictReader(f))
    assert rows == [
        {"recipe": "a", "images": "10", "fid": "1.0", "fid_infinity": ""},
        {"recipe": "b", "images": "20", "fid": "2.0", "fid_infinity": "1.5"},
    ]


def test_bounds_lie_between_the_levels_of_a_heat_map():
    drawn = HeatMap("three levels", np.eye(3), [4.0, 2.0, -2.0], [3.0, -1.0])
    assert drawn.cuts() == pytest.approx([0.5, 1.75])


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.05, "high": value + 0.05}


def test_consistency_is_a_symmetric_matrix_with_curves(tmp_path):
    curve = {"log_snr": [4, 0, -4], "value": [0.9, 0.8, 0.3]}
    curve |= {"low": [0.85, 0.7, 0.2], "high": [0.95, 0.9, 0.4]}
    near = {"a": {"median": 1.5, "closer": 0.04}, "b": {"median": 1.25, "closer": 0.5}}
    near["real"] = {"median": 2.0, "closer": 0.05}
    pairs = [
        {"a": "one", "b": "two", "overall": estimate(0.8), "null": estimate(0.1)}
        | {"by_state": curve, "nearest": near}
        | {"features": estimate(0.6) | {"null": 0.01, "similarity": 0.7}},
        {"a": "two", "b": "<three>", "overall": estimate(0.3)},
    ]
    arguments = project(tmp_path, SEEDS)
    folder = arguments[1].artefacts("consistency")
    folder.mkdir(parents=True)
    write_sealed(folder / "consistency.json", {"pairs": pairs})
    page = written(arguments)
    check_self_contained(page)
    matrix = next(t for t in page.tables if t[0] == ["recipe", "one", "two", "<three>"])
    assert matrix[1:] == [
        ["one", "1", "0.8000.750..0.850", "–"],
        ["two", "0.8000.750..0.850", "1", "0.3000.250..0.350"],
        ["<three>", "–", "0.3000.250..0.350", "1"],
    ]
    full = next(t for t in page.tables if t[0][:2] == ["recipes", "C"])
    assert full[1][3:] == [
        *("0.6000.550..0.650", "0.0100", "1.50 and 1.25", "2.00", "4.0 % and 50.0 %"),
    ]
    drawn = [a["aria-label"] for a in page.all("svg") if "aria-label" in a]
    assert "Consistency of one and two over log-SNR" in drawn
    assert not any("three" in label and "log-SNR" in label for label in drawn if "Cons" in label)


def test_a_loss_below_zero_has_a_linear_axis_of_its_own(tmp_path):
    params = f"{HEAD}  plain: {{}}\n  learnt: {{training: {{batch: 32}}}}\n"
    arguments = project(tmp_path, params)
    _, workspace, _, recipes, *_ = arguments
    folder = workspace.store.entry(recipes["learnt"].experts[0].job.name).path
    shutil.rmtree(folder)
    job = recipes["learnt"].experts[0].job
    falling = [[60.0 * k, 1.0 - 4.0 * k / 100] for k in range(101)]
    entry = workspace.store.plan("expert", job.spec.as_json())
    write_json(entry.path / "curve.json", falling)
    write_json(entry.path / "record.json", {"images": 6000, "parameters": 1, "flops": 1.0})
    entry.finish()
    write_circumstances(entry, 60.0, {"1500": 0.25, "3000": 0.5, "6000": 1.0})
    plain, learnt = training.section(results_of(arguments)).figures["figures/losses"]
    assert plain.y.log and not learnt.y.log
    # Over the whole panel: not flat on one edge.
    (line,) = learnt.lines
    assert line.points == [tuple(point) for point in falling]
    assert learnt.y.low == pytest.approx(-3, abs=0.2) and learnt.y.high == pytest.approx(1, abs=0.2)


def test_classes_are_called_by_their_names(tmp_path):
    by_class = {"per_class": {"0": {"fid": 1.5}, "1": {"fid": 2.5}}}
    arguments = project(tmp_path, SEEDS, scores=lambda *_: by_class)
    arguments[5]["classes"] = ["cats & dogs", "7"]
    table = next(t for t in written(arguments).tables if t[0][1:] == ["cats & dogs", "7"])
    assert table[1] == ["one", "1.50", "2.50"] or table[1][1:] == ["1.50", "2.50"]


def test_a_grid_has_each_label_below_its_image():
    images = np.full((3, 1, 8, 8), 40, np.uint8)
    plain = np.asarray(pictures.grid(images, 2).convert("L"))
    sheet = np.asarray(pictures.grid(images, 2, labels=["one", "", "ünknown 日"]).convert("L"))
    assert plain.shape == (2 * 50 + 2, 102) and sheet.shape == (2 * 62 + 2, 102)
    written_below = [(sheet[r : r + 12, c : c + 48] < 128).any() for r, c in LABELS]
    assert written_below == [True, False, True]


LABELS = [(50, 2), (50, 52), (112, 2)]  # where they are in that grid


def test_reconstructions_stand_below_their_originals():
    above = np.full((3, 1, 8, 8), 40, np.uint8)
    below = np.full((3, 1, 8, 8), 200, np.uint8)
    sheet = np.asarray(pictures.pairs(above, below, 2).convert("L"))
    cell = (sheet.shape[1] - 2) // 2
    rows = [[int(sheet[r * cell + 9, c * cell + 9]) for c in range(2)] for r in range(4)]
    assert rows == [[40, 40], [200, 200], [40, 255], [200, 255]]


def test_features_that_learnt_nothing_give_no_scores_and_a_warning(tmp_path, capsys):
    none = dict.fromkeys(scores.MEASURED)
    arguments = project(tmp_path, SEEDS, scores=lambda number, share: none)
    *_, metrics, summary, _ = arguments
    report_of = {"task": "labels", "accuracy": 0.1, "chance": 0.12, "holdout": 50, "learnt": False}
    summary["reference"] |= report_of | {"floor": None}
    page = written(arguments)
    check_self_contained(page)
    for words in ("Warning: features.extractor: this classifier of", "raise features.images"):
        assert words in page.text
    assert "There are no scores to draw" in page.text
    report.print_table(metrics, summary | {"groups": {}})
    told = capsys.readouterr().out
    assert "WARNING: features.extractor" in told and "floor" not in told
    untold = report_of | {"learnt": None, "needed": 85}
    report.print_table(
        metrics, summary | {"groups": {}, "reference": summary["reference"] | untold}
    )
    assert "too few held-out images" in capsys.readouterr().out
