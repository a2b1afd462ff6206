"""What a run will take here: the arithmetic of clocks, what is kept, and a real measurement."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from pipeline import plan
from pipeline.store.files import sealed, write_sealed
from stages import cli
from stages.tools import calibration, forecast
from stages.tools import outlook as planning
from stages.tools.clock import Process, makespan
from stages.tools.forecast import Measured, Rate, training_of
from stages.tools.rehearsal import Rehearsal, fitted
from stages.tools.timetable import STAGES
from stages.workspace import Workspace
from tests.test_inspection import PARAMS, experts_of, make, small_workspace
from tests.workflow import ROOT

OVERHEADS = {"dvc": 1.0, "stage": 0.5, "prepare": 2.0, "jobs": 3.0, "process": 0.25, "torch": 0.75}
OVERHEADS |= {"report": 4.0}
GUIDED = "    sampling: {steps: 2, guidance: 2, guide: {milestone: 48}}"
OTHER = "multipliers: [1], blocks: 2}"  # another network than that of PARAMS


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    for name in ("TSPACE_STORE", "SNAKEMAKE_PROFILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workspace = small_workspace(tmp_path_factory.mktemp("trained") / "tspace")
    assert all(make(workspace, experts_of(workspace, "one")))
    return workspace


@pytest.fixture
def workspace(tmp_path):
    """As in a fresh clone: nothing is prepared."""
    (tmp_path / "params.yaml").write_text(PARAMS)
    for name in ("Snakefile", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    return Workspace(tmp_path)


# --- the clock


def processes(*seconds: float, **more) -> list[Process]:
    return [Process(str(i), "expert", 1, s, weight=s, **more) for i, s in enumerate(seconds)]


@pytest.mark.parametrize(
    ("seconds", "cores", "expected"),
    [
        ((), 2, 0.0),
        ((3.0, 2.0, 2.0), 1, 7.0),
        ((3.0, 2.0, 2.0), 2, 4.0),
        ((4.0, 3.0, 3.0, 2.0), 2, 6.0),  # the longest first, each where there is room
        ((3.0, 2.0, 2.0), 9, 3.0),
    ],
)
def test_jobs_start_when_a_core_is_free(seconds, cores, expected):
    assert makespan(processes(*seconds), cores) == expected


def test_threads_take_cores_and_no_more_than_there_are():
    assert makespan(processes(2.0, 2.0, threads=2), 4) == 2.0
    assert makespan(processes(2.0, 2.0, threads=3), 4) == 4.0
    assert makespan(processes(2.0, 2.0, threads=9), 4) == 4.0


def test_jobs_that_compute_on_gpus_wait_for_one():
    assert makespan(processes(2.0, 2.0, 2.0), 8, gpus=2) == 4.0
    others = [dataclasses.replace(p, kind="pairing") for p in processes(2.0, 2.0, 2.0)]
    assert makespan(others, 8, gpus=2) == 2.0


def test_with_room_for_all_it_is_the_longest_chain_and_with_one_core_the_sum():
    draw = np.random.default_rng(0)
    for _ in range(20):
        names = [f"p{i}" for i in range(9)]
        seconds = {name: float(draw.integers(1, 10)) for name in names}
        needs = {n: [m for m in names[:i] if draw.random() < 0.3] for i, n in enumerate(names)}
        made = [Process(n, "expert", 1, seconds[n], needs=tuple(needs[n])) for n in names]
        chain = forecast.critical_seconds(seconds, {n: n for n in names}, needs)
        assert makespan(made, float("inf")) == chain
        assert makespan(made, 1) == sum(seconds.values())
        assert chain <= makespan(made, 2) <= sum(seconds.values())


@pytest.mark.parametrize(
    ("fixed", "each", "load"), [(0.2, 1e-3, 3.0), (0.0, 1e-5, 0.0), (0.0, 2.0, 0.0)]
)
def test_a_rate_is_found_from_runs_of_some_amounts(fixed, each, load):
    """Against work whose seconds are known, of which the first also loads something."""
    done = []

    def run(amount):
        done.append(amount)
        return fixed + each * amount + (load if len(done) == 1 else 0.0)

    rate = fitted(run, 10, 10_000, seconds=1.5)
    assert rate.each == pytest.approx(each)
    assert rate.fixed == pytest.approx(fixed + load)
    assert max(done) <= 10_000
    # Work that is large by itself is not tried with more.
    assert sum(each * amount for amount in done) < (8 * 1.5 if each < 1 else 2.5 * each * 10)


# --- what is kept


def known(workspace, rates=None, **more) -> Measured:
    found = Measured(rates or {}, {}, OVERHEADS)
    calibration._keep(workspace, found)
    return found


def test_what_was_measured_is_kept(workspace):
    assert calibration.kept(workspace) == Measured()
    found = known(workspace, {"training x": Rate(0.5, 0.25)})
    assert calibration.kept(workspace) == found


@pytest.mark.parametrize("key", ["processor", "cores", "gpus", "torch", "python", "tspace"])
def test_another_machine_knows_nothing_of_it(workspace, key):
    known(workspace)
    path = workspace.scratch / "calibration.json"
    found = sealed(path.read_text())
    found["machine"][key] = "another"
    write_sealed(path, found)
    assert calibration.kept(workspace) == Measured()


def test_a_damaged_file_is_as_none(workspace):
    known(workspace)
    path = workspace.scratch / "calibration.json"
    text = path.read_text()
    for damaged in ("", "{}", text[:-9], text.replace("4.0", "5.0"), "[1]"):
        assert damaged != text
        path.write_text(damaged)
        assert calibration.kept(workspace) == Measured()
        assert planning.outlook(workspace).measured is False


# --- the timetable


def test_every_stage_has_a_row_in_its_order(workspace):
    names = list(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
    assert list(STAGES) == names
    for measured in (False, True):
        if measured:
            known(workspace)
        found = planning.outlook(workspace)
        assert [row.stage for row in found.stages] == names
        assert found.measured is measured
    assert planning.outlook(workspace, "one").stages == []


def test_times_by_hand(workspace):
    """One recipe on one core, of rates that make every part another round number."""
    text = PARAMS[: PARAMS.index("  apart:")]
    (workspace.root / "params.yaml").write_text(text)
    (workspace.root / "profiles" / "default").mkdir(parents=True)
    (workspace.root / "profiles" / "default" / "config.yaml").write_text("cores: 1\n")
    workspace = Workspace(workspace.root)
    assert planning.outlook(workspace).workers == 1
    facts, _, _ = planning.facts_to_plan(workspace, "", None)
    kinds = kinds_of(Rehearsal(workspace, workspace.store, facts))
    known(workspace, {kind: Rate(0.0, 1.0) for kind in kinds})
    rows = {row.stage: row for row in planning.outlook(workspace).stages}
    start = OVERHEADS["process"] + OVERHEADS["torch"]
    around = OVERHEADS["stage"] + OVERHEADS["jobs"]
    assert rows["source"].clock == OVERHEADS["dvc"] + OVERHEADS["stage"]
    assert rows["prepare"].work == OVERHEADS["prepare"] + 80
    assert rows["encode"].clock == around + start + 80
    assert rows["analyse"].work == start + 80
    assert rows["features"].work == start + 100 + 80  # trained on 100 images, features of 80
    assert rows["pair"] == planning.StageTime("pair", 0, 0.0, OVERHEADS["stage"])
    assert (rows["train"].jobs, rows["train"].work) == (1, start + 96)
    assert rows["merge"].clock == OVERHEADS["stage"] + OVERHEADS["torch"]
    # Two milestones in one process, of 16 samples, each by 4 evaluations.
    assert (rows["sample"].jobs, rows["sample"].work) == (2, start + 2 * 16 * 4)
    # The features of 16 samples, and the pairs of these and 80 images.
    assert (rows["evaluate"].jobs, rows["evaluate"].work) == (2, start + 2 * (16 + 16 * 80))
    assert rows["report"].work == OVERHEADS["torch"] + OVERHEADS["report"]
    assert not any(row.unknown for row in rows.values())


def test_errors_on_held_out_images_are_counted(workspace):
    facts, _, _ = planning.facts_to_plan(workspace, "", None)
    recipes = plan.experts(workspace.params, facts)
    key = forecast.drawing_key(recipes["one"], None, False)
    known(workspace, {f"{forecast.DRAWING} {key}": Rate(9.0, 0.5)})
    before = {row.stage: row for row in planning.outlook(workspace).stages}["evaluate"]
    path = workspace.root / "params.yaml"
    path.write_text(PARAMS.replace("limit: 80", "limit: 120, holdout: 10"))
    after = {row.stage: row for row in planning.outlook(Workspace(workspace.root)).stages}
    assert after["evaluate"].jobs == before.jobs + 2
    start = OVERHEADS["process"] + OVERHEADS["torch"]
    # Of `one` 4 levels; of `apart` nothing is known, nor of scores.
    assert after["evaluate"].work == start + 0.5 * 4 * 10
    assert after["evaluate"].unknown == before.unknown + 1


def test_each_kind_of_work_is_measured_once_and_none_is_left_out(workspace):
    text = PARAMS.replace(
        "    training: {learning_rate: 0.002}", "    network: {channels: 16}\n" + GUIDED
    )
    (workspace.root / "params.yaml").write_text(
        f"{text}  like-one: {{schedule: {{kind: edm}}, sampling: {{steps: 4}}}}\n"
    )
    workspace = Workspace(workspace.root)
    facts, _, _ = planning.facts_to_plan(workspace, "", None)
    rehearsal = Rehearsal(workspace, workspace.store, facts)
    found = [what for what, _ in rehearsal.parts(frozenset())]
    assert sorted(found) == [
        *("features and scores", "latents"),
        *(
            "samples of apart",
            "samples of like-one",
            "samples of one",
            "samples of one",
            "spectrum",
        ),
        *("training of apart", "training of like-one", "training of one"),
    ]
    assert rehearsal.parts(frozenset(kinds_of(rehearsal))) == []


def kinds_of(rehearsal) -> set[str]:
    """All kinds of work that a rehearsal knows of."""
    works = rehearsal.works
    jobs = [*plan.latents(rehearsal.params, rehearsal.facts)]
    jobs += [plan.features(rehearsal.params, rehearsal.facts)]
    jobs += [plan.spectrum(rehearsal.params, rehearsal.facts)]
    found = {work.kind for job in jobs for work in works.of(job)}
    found |= {work.kind for work in [*works.prepared(), *works.scored(1)]}
    for recipe in rehearsal.recipes.values():
        found |= {training_of(expert.job.spec.as_json()) for expert in recipe.experts}
        for guided in (False, True):
            key = forecast.drawing_key(recipe, recipe if guided else None, guided)
            found.add(f"{forecast.DRAWING} {key}")
    return found


def test_what_ran_here_counts_more_than_what_was_measured(trained, tmp_path):
    root = tmp_path / "tspace"
    shutil.copytree(trained.root, root)
    (root / "params.yaml").write_text(PARAMS.replace("seed: 0", "seed: 7"))
    workspace = Workspace(root)
    before = {row.label: row.seconds_left for row in planning.outlook(workspace).experts}
    one, [apart, *_] = experts_of(workspace, "one")[0], experts_of(workspace, "apart")
    rates = {training_of(job.spec.as_json()): Rate(0.0, 1000.0) for job in (one, apart)}
    known(workspace, rates)
    after = {row.label: row for row in planning.outlook(workspace).experts}
    assert after["one"].seconds_left == before["one"]
    assert after["apart state 1"].seconds_left == 24 * 1000.0
    assert not after["apart state 1"].estimated
    # The same network in other batches ran here, and these were measured.
    (root / "params.yaml").write_text(PARAMS.replace("batch: 16", "batch: 8"))
    workspace = Workspace(root)
    told = {row.label: row.seconds_left for row in planning.outlook(workspace).experts}
    assert told["one"] == before["one"]
    [other] = experts_of(workspace, "one")
    known(workspace, {training_of(other.spec.as_json()): Rate(0.0, 1000.0)})
    [row] = planning.outlook(workspace, "one").experts
    assert row.seconds_left == 96 * 1000.0


def test_a_network_that_was_not_measured_is_told_by_its_flops(workspace):
    spec = planned(workspace)["one"]
    kind = training_of(spec.as_json())
    found = Measured({kind: Rate(0.0, 0.5)}, {kind: 1e6}, OVERHEADS)
    calibration._keep(workspace, found)
    path = workspace.root / "params.yaml"
    path.write_text(PARAMS.replace("multipliers: [1], blocks: 1}", OTHER))
    [row] = planning.outlook(Workspace(workspace.root), "one").experts
    assert row.estimated
    assert row.seconds_left == pytest.approx(row.flops * 0.5 / 1e6)


def planned(workspace):
    facts, _, _ = planning.facts_to_plan(workspace, "", None)
    recipes = plan.experts(workspace.params, facts)
    return {name: recipe.experts[0].job.spec for name, recipe in recipes.items()}


def test_finished_stages_take_no_time(trained):
    rows = {row.stage: row for row in planning.outlook(trained).stages}
    assert rows["prepare"].clock == rows["encode"].clock == 0.0
    assert rows["encode"].jobs == 0 and rows["train"].jobs == 4  # those of `apart`


# --- the command


def run(workspace, monkeypatch, *options: str) -> tuple[int, str]:
    monkeypatch.chdir(workspace.root)
    done = CliRunner().invoke(cli.main, ["plan", *options])
    return done.exit_code, done.output


def test_the_command_says_how_to_measure_and_the_price(workspace, monkeypatch):
    status, said = run(workspace, monkeypatch)
    assert status == 0, said
    assert "`tspace plan --measure` takes about a minute and tells it" in said
    known(workspace)
    status, said = run(workspace, monkeypatch, "--price", "3600", "--json")
    found = json.loads(said)
    clock = sum(row["clock"] for row in found["stages"])
    assert found["totals"]["dollars"] == pytest.approx(clock)
    assert clock > len(STAGES) * OVERHEADS["stage"]
    status, said = run(workspace, monkeypatch, "--gpu", "H100", "--price", "3", "--json")
    assert "dollars" not in json.loads(said)["totals"]


@pytest.mark.slow
def test_a_real_measurement_knows_every_stage_and_is_not_made_twice(workspace, monkeypatch):
    paired = "  paired: {schedule: {kind: log-snr, states: 4}, pairing: {method: semidiscrete}}\n"
    (workspace.root / "params.yaml").write_text(PARAMS + paired)
    status, said = run(workspace, monkeypatch, "--measure", "--json")
    assert status == 0, said
    found = json.loads(said[said.index("{") :])
    assert found["measured"] and not any(row["unknown"] for row in found["stages"])
    assert all(row["seconds_left"] > 0 for row in found["experts"])
    assert not [warning for warning in found["warnings"] if "not measured" in warning]
    # As in a fresh clone: nothing is left but what was measured.
    assert [path.name for path in workspace.root.iterdir() if path.name in calibration.OWN] == [
        ".tspace"
    ]
    before = calibration.kept(workspace)
    status, said = run(workspace, monkeypatch, "--measure")
    assert "measured before: nothing is new" in said and calibration.kept(workspace) == before
    text = PARAMS.replace("    training: {learning_rate: 0.002}", "    network: {channels: 16}")
    (workspace.root / "params.yaml").write_text(text + paired)
    status, said = run(workspace, monkeypatch, "--measure")
    assert "about a minute: training of one, samples of one\n" in said
    after = calibration.kept(workspace)
    assert len(after.rates) == len(before.rates) + 2
    assert after.overheads.keys() == before.overheads.keys()
