"""`tspace plan` and `tspace status` on a small real store: really trained, interrupted, failed."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import torch
import yaml
from pydantic import Field

from pipeline import plan
from pipeline.errors import UserError
from pipeline.evaluation.params import Classifier
from pipeline.networks.build import flops_of
from pipeline.sampling.params import Sampling
from pipeline.sampling.samplers import sampler
from pipeline.specs import FeaturesSpec, Images, LatentsSpec, Part
from pipeline.store.files import reached, write_sealed
from pipeline.training.run import Interrupted
from stages import encode, facts, prepare, sample
from stages.facts import facts_of
from stages.job import run_job
from stages.report.write import report
from stages.reporter import Reporter
from stages.tools import forecast, status
from stages.tools import plan as planning
from stages.tools.reasons import Reasons
from stages.train import train
from stages.workspace import Workspace
from tests.specs import block

PARAMS = """\
seed: 0
data: {source: digits, limit: 80}
latent: {encoder: pixels}
features: {extractor: classifier, images: 100, dimension: 8, channels: 8}
evaluate: {samples: 16, batch: 8}
defaults:
  network: {kind: unet, channels: 8, multipliers: [1], blocks: 1}
  training: {images: 96, batch: 16, milestones: [48]}
recipes:
  one:
    schedule: {kind: log-snr, states: 4}
    training: {learning_rate: 0.002}
  apart:
    schedule: {kind: log-snr, states: 4}
    partition: {kind: per-state}
    training: {experts_per_job: 2}
"""


def small_workspace(root: Path, params: str = PARAMS) -> Workspace:
    """A prepared and encoded workspace below `root`, without a Snakemake."""
    root.mkdir(parents=True)
    (root / "params.yaml").write_text(params)
    workspace = Workspace(root)
    prepare.prepare(workspace)
    facts = facts_of(workspace)
    make(workspace, plan.latents(workspace.params, facts))
    encode.encode(workspace)
    return workspace


def make(workspace: Workspace, jobs: list[plan.Job]) -> list[bool]:
    """Run jobs here, in this process."""
    entries = [workspace.store.plan(job.kind, job.spec.as_json()) for job in jobs]
    return [run_job(workspace, workspace.store, entry.name) for entry in entries]


def experts_of(workspace: Workspace, recipe: str) -> list[plan.Job]:
    recipes = plan.experts(workspace.params, facts.facts_of(workspace))
    return [expert.job for expert in recipes[recipe].experts]


def edited(workspace: Workspace, old: str, new: str) -> Workspace:
    """The same store and outputs with other params."""
    path = workspace.root / "params.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return Workspace(workspace.root)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Both recipes trained; the four experts of `apart` and that of `one`."""
    workspace = small_workspace(tmp_path_factory.mktemp("inspection") / "tspace")
    assert all(make(workspace, experts_of(workspace, "one") + experts_of(workspace, "apart")))
    return workspace


@pytest.fixture(autouse=True)
def own_store(monkeypatch):
    monkeypatch.delenv("TSPACE_STORE", raising=False)


@pytest.fixture
def restored(trained):
    yield trained
    (trained.root / "params.yaml").write_text(PARAMS)


def plan_rows(workspace, only=None):
    found = planning.outlook(workspace, only)
    return found.experts, found.totals


def by_label(workspace, **options):
    return {row.label: row for row in plan_rows(workspace, **options)[0]}


def test_a_fresh_clone_is_planned_before_anything_runs(tmp_path, capsys):
    text = PARAMS + (
        "  fitted:\n    schedule: {kind: fitted, states: 4}\n    training: {images: 32}\n"
    )
    (tmp_path / "params.yaml").write_text(text.replace("[48]", "[16]"))
    before = planning.outlook(Workspace(tmp_path))
    planning.show_plan(Workspace(tmp_path), None, everything=False, as_json=False)
    shown = capsys.readouterr().out
    assert "80 images of 8x8, 1 channel, 10 classes, by a look at the source" in shown
    assert list(before.waiting) == ["fitted"]
    assert sorted(str(p) for p in tmp_path.iterdir()) == [str(tmp_path / "params.yaml")]
    prepare.prepare(Workspace(tmp_path))
    after = planning.outlook(Workspace(tmp_path))
    assert after.unknown == "" != before.unknown
    # Of what it said before, only the names of the jobs follow from the images themselves.
    assert before.totals == after.totals
    assert before.totals["images"] == 192 and before.totals["experts_left"] == 5
    assert before.drawings == after.drawings and before.inputs == after.inputs
    same = [dataclasses.replace(row, name="", why="") for row in after.experts]
    assert [dataclasses.replace(row, name="") for row in before.experts] == same


def test_what_the_source_cannot_give_is_refused_in_a_fresh_clone(tmp_path):
    (tmp_path / "params.yaml").write_text(PARAMS.replace("batch: 16, mile", "batch: 96, mile"))
    with pytest.raises(UserError, match="batch: 96 is more than the dataset"):
        planning.outlook(Workspace(tmp_path))


def test_a_test_that_cannot_be_passed_is_told_in_a_fresh_clone(tmp_path, capsys):
    few = PARAMS.replace("limit: 80", "limit: 15").replace(
        "dimension: 8,", "dimension: 8, batch: 8,"
    )
    (tmp_path / "params.yaml").write_text(
        few.replace("samples: 16,", "samples: 12,").replace("batch: 16, mile", "batch: 8, mile")
    )
    planning.show_plan(Workspace(tmp_path), None, everything=False, as_json=False)
    told = "WARNING: features.extractor: its classifier is tested on 2 of 15 images"
    assert told in capsys.readouterr().out
    prepare.prepare(Workspace(tmp_path))
    assert told in capsys.readouterr().out


def data_edited(workspace, data):
    raw = yaml.safe_load(PARAMS)
    raw["data"] |= data
    (workspace.root / "params.yaml").write_text(yaml.safe_dump(raw))
    return Workspace(workspace.root)


def test_other_settings_of_the_data_are_planned_as_a_dataset_that_is_not_prepared(restored, capsys):
    """What the old dataset could not give is no matter, and all is trained again."""
    changed = data_edited(restored, {"limit": 90, "duplicates": "drop"})
    found = planning.outlook(changed)
    assert found.totals["experts_left"] == 5 and {r.status for r in found.experts} == {"trains"}
    planning.show_plan(changed, None, everything=False, as_json=False)
    assert (
        "data: data.limit (80 -> 90), data.duplicates (keep -> drop) changed since the dataset was "
        "prepared: 90 images of 8x8"
    ) in capsys.readouterr().out
    for command in (status.needed_jobs, train, sample.sample, report):
        with pytest.raises(UserError, match=r"data\.limit \(80 -> 90\).*`dvc repro` prepares it"):
            command(changed)
    # 80 images could give no batch of 90, and 90 can.
    text = PARAMS.replace("limit: 80", "limit: 90").replace("batch: 16, mile", "batch: 90, mile")
    (restored.root / "params.yaml").write_text(text)
    assert planning.outlook(Workspace(restored.root)).totals["experts_left"] == 5


def test_a_refused_prepare_leaves_the_dataset_as_it_was(restored):
    before = restored.dataset.read_bytes()
    with pytest.raises(UserError, match="batch: 16 is more than the dataset's 10 images"):
        prepare.prepare(data_edited(restored, {"limit": 10}))
    assert restored.dataset.read_bytes() == before


def test_all_cached_costs_nothing(trained):
    rows, totals = plan_rows(trained)
    assert [row.status for row in rows] == ["cached"] * 5
    assert totals["experts"] == 5
    for key in (
        "experts_left",
        "jobs",
        "images",
        "flops",
        "seconds",
        "weights_bytes",
        "latents_jobs",
    ):
        assert totals[key] == 0, key


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("rate: 0.002", "rate: 0.003", "training.learning_rate: 0.002 -> 0.003"),
        ("seed: 0", "seed: 1", "seed changed"),
        ("[48]", "[32]", "snapshots: [48, 96] -> [32, 96]"),
        ("images: 96", "images: 128", "images: 96 -> 128"),
        ("channels: 8, multipliers", "channels: 16, multipliers", "network.channels: 8 -> 16"),
        (
            "one:\n    schedule: {kind: log-snr, states: 4}",
            "one:\n    schedule: {kind: log-snr, states: 3}",
            "states: 4 (log-SNR 9 to -9) -> 3 (log-SNR 9 to -9)",
        ),
    ],
)
def test_an_edit_is_named(restored, old, new, why):
    row = by_label(edited(restored, old, new), only="one")["one"]
    assert (row.status, row.why) == ("trains", why)


def test_changed_inputs_and_code_are_named_in_words(trained):
    job = experts_of(trained, "one")[0]
    reasons = Reasons(forecast.finished_experts(trained))
    of = lambda **changes: reasons.of(job.spec.model_copy(update=changes), "one")  # noqa: E731
    assert of(code="other") == "code of training changed"
    assert of(latents=["latents/other"]).startswith("the latents changed")
    assert of(pairings=["pairing/other"]).startswith("the noises paired")
    assert of(parent=Part(entry="expert/a", file="b")) == "its parent expert changed"
    settings = job.spec.training.model_copy(update={"batch": 32})
    both = of(training=settings, code="other").split("; ")
    assert sorted(both) == ["code of training changed", "training.batch: 16 -> 32"]


def test_a_state_nobody_trained_is_new(restored):
    rows = plan_rows(
        edited(restored, "states: 4}\n    partition", "states: 5}\n    partition"), "apart"
    )[0]
    # Of five states from 9 to -9 the two ends are states of four as well, with other budgets.
    assert [row.why == "new" for row in rows] == [False, True, True, True, False]
    assert rows[0].why.startswith("images: 24 -> ")


def test_nearest_is_the_one_with_fewest_other_settings(trained):
    """Against counting by hand over all, on random settings."""
    draw = np.random.default_rng(0)
    base = experts_of(trained, "one")[0].spec
    keys = ("batch", "warmup", "ema_halflife", "threads", "experts_per_job", "images")

    def random_spec():
        settings = {key: int(draw.integers(1, 4)) for key in keys}
        training = base.training.model_copy(update=settings)
        return base.model_copy(update={"training": training, "images": int(draw.integers(2))})

    specs = [random_spec() for _ in range(60)]
    finished = [forecast.Finished(s.as_json(), {}, None, "", float(i)) for i, s in enumerate(specs)]
    reasons = Reasons(finished)
    for _ in range(40):
        wanted = random_spec()
        least = min(
            sum(getattr(s.training, k) != getattr(wanted.training, k) for k in keys)
            + (s.images != wanted.images)
            for s in specs
        )
        told = reasons.of(wanted, "x")
        assert len([t for t in told.split("; ") if t]) == least


def test_costs_are_those_of_finished_experts(restored):
    record = trained_record(restored)
    changed = edited(restored, "rate: 0.002", "rate: 0.003")
    rows, totals = plan_rows(changed, "one")
    assert totals["images"] == 96 and totals["jobs"] == 1
    assert totals["flops"] == record["flops"]
    assert totals["weights_bytes"] == 2 * 4 * record["parameters"]
    made = restored.store.entry(experts_of(restored, "one")[0].name).circumstances()
    assert rows[0].seconds_left == pytest.approx(made["snapshot_seconds"]["96"], rel=1e-9)
    assert totals["seconds_critical"] == totals["seconds"] == rows[0].seconds_left


def trained_record(workspace):
    name = experts_of(workspace, "one")[0].name
    return workspace.store.entry(name).load_json("record.json")


def test_costs_are_counted_where_nothing_was_measured(trained):
    job = experts_of(trained, "one")[0]
    record = trained_record(trained)
    cost = forecast.Costs([]).of(job.spec)
    assert cost.flops * record["images"] == pytest.approx(record["flops"])
    assert cost.parameters == record["parameters"]
    assert cost.seconds is None


def test_time_of_another_network_follows_from_its_flops(restored):
    rates = [e.seconds / (e.record["flops"] / e.record["images"]) for e in finished(restored)]
    changed = edited(restored, "channels: 8, multipliers", "channels: 16, multipliers")
    row = by_label(changed, only="one")["one"]
    assert row.estimated
    assert row.seconds_left == pytest.approx(row.flops_left * float(np.median(rates)))
    elsewhere = [dataclasses.replace(e, host="another") for e in finished(restored)]
    job = experts_of(changed, "one")[0]
    assert forecast.Costs(elsewhere).of(job.spec).seconds is None


def finished(workspace):
    return forecast.finished_experts(workspace)


@pytest.mark.parametrize("kind", ["ddpm", "ddim", "euler", "heun", "heun-flow", "dpmpp-2m"])
@pytest.mark.parametrize("states", [[5.0, 0.0, -5.0], [5.0, 0.0, -np.inf], [1.0]])
def test_evaluations_are_those_that_a_sampler_asks_for(kind, states):
    asked = []

    def denoise(x, log_snr):
        asked.append(log_snr)
        return x

    settings = block(Annotated[Sampling, Field(discriminator="kind")], {"kind": kind})
    sampler(settings)(denoise, torch.zeros(1, 1, 2, 2), states, noise=lambda _: torch.zeros(1))
    of_networks = [state for state in asked if state > -np.inf]
    assert forecast.evaluations_of(states, settings) == (len(of_networks), 0)
    guided = settings.model_copy(update={"guidance": 2.0})
    assert forecast.evaluations_of(states, guided) == (len(of_networks),) * 2
    within = [state for state in of_networks if -1 <= state < 5]
    assert forecast.evaluations_of(states, guided, [-1.0, 5.0]) == (len(of_networks), len(within))


def test_sampling_is_part_of_the_cost(restored):
    sampling = "    sampling: {kind: heun, guidance: 2}\n    network: {class_conditional: true}\n"
    changed = edited(restored, "rate: 0.002}\n", f"rate: 0.002}}\n{sampling}")
    found = planning.outlook(changed, "one")
    [drawn] = found.drawings
    assert (drawn.samples, drawn.samples_left, drawn.evaluations) == (32, 32, 14)
    assert drawn.guiding == 7
    forward = flops_of(experts_of(changed, "one")[0].spec)
    assert drawn.flops_left == pytest.approx(32 * 14 * forward)
    assert drawn.seconds_left == pytest.approx(
        found.experts[0].seconds_left / 96 / 3 * 32 * 14
    )  # nothing was sampled yet: forward is a third of training


def test_measured_sampling_tells_the_time_of_sampling(tmp_path):
    workspace = Workspace(tmp_path)
    network = {"network": {"kind": "unet"}, "conditioning": "state"}
    mixture = {"channels": 1, "resolution": 8, "classes": 0, "experts": [network]}
    sampling = {"kind": "heun", "guidance": 1.0}
    for first, last, seconds in ((0, 10, 90.0), (10, 30, 180.0), (30, 40, 90.0)):
        spec = {"mixture": mixture, "sampling": sampling, "states": [5, 0, "-inf"]}
        spec |= {"first": first, "last": last}
        entry = workspace.store.plan("samples", spec)
        write_sealed(entry.path / "circumstances.json", {"seconds": seconds})
        entry.finish()
    key = forecast._evaluated([{**mixture, **network}], guided=False)
    assert forecast.evaluation_seconds(workspace) == {key: 3.0}


def test_inputs_take_what_such_inputs_took(tmp_path):
    workspace = Workspace(tmp_path)

    def features(images, dataset):
        read = Images(dataset=dataset, rows=40)
        settings = Classifier(images=images)
        spec = FeaturesSpec(images=read, settings=settings, files={}, seed=0, code="")
        return plan.Job("features", spec, "features")

    def latents(last):
        spec = LatentsSpec(images=Images(dataset="a", rows=100), first=0, last=last, code="")
        return plan.Job("latents", spec, "latents")

    entry = workspace.store.plan("features", features(100, "a").spec.as_json())
    write_sealed(entry.path / "circumstances.json", {"seconds": 7.0})
    asked = features(100, "b")

    def told(job):
        return forecast.History(workspace).of(job.kind, job.spec)

    assert told(asked) is None
    entry.finish()
    assert told(asked) == 7.0
    assert told(features(200, "a")) is None
    entry = workspace.store.plan("latents", latents(100).spec.as_json())
    write_sealed(entry.path / "circumstances.json", {"seconds": 5.0})
    entry.finish()
    assert told(latents(40)) == 2.0


def test_jobs_of_a_group_count_once_and_one_after_the_other(restored):
    rows, totals = plan_rows(edited(restored, "seed: 0", "seed: 7"), "apart")
    assert totals["experts_left"] == 4 and totals["jobs"] == 2
    pairs = [rows[0].seconds_left + rows[1].seconds_left]
    pairs += [rows[2].seconds_left + rows[3].seconds_left]
    assert totals["seconds_critical"] == pytest.approx(max(pairs))
    assert totals["seconds"] == pytest.approx(sum(pairs))


def test_critical_path_is_the_longest_chain():
    """Against trying every chain."""
    draw = np.random.default_rng(1)
    for _ in range(20):
        names = [f"e{i}" for i in range(9)]
        seconds = {n: float(draw.integers(1, 10)) for n in names}
        needs = {
            n: [m for m in names[:i] if draw.random() < 0.3] + ["latents/done"]
            for i, n in enumerate(names)
        }

        def longest(name, seconds=seconds, needs=needs):
            return seconds[name] + max((longest(m) for m in needs[name] if m in seconds), default=0)

        found = forecast.critical_seconds(seconds, {n: n for n in names}, needs)
        assert found == max(longest(n) for n in names)


def test_long_chains_do_not_overflow():
    names = [str(i) for i in range(5000)]
    needs = {n: names[i - 1 : i] for i, n in enumerate(names)}
    assert forecast.critical_seconds(dict.fromkeys(names, 1.0), {n: n for n in names}, needs) == 5e3


def test_interrupted_running_and_failed(tmp_path, capsys):
    """The three live states, each brought about for real."""
    from pipeline.training import train
    from stages.inputs import latents_of

    workspace = small_workspace(tmp_path / "tspace")
    one, apart = experts_of(workspace, "one")[0], experts_of(workspace, "apart")
    entry = workspace.store.plan("expert", one.spec.as_json())
    asked = iter([False] * 4 + [True] * 9)  # asked twice a batch at most
    with pytest.raises(Interrupted):
        rows = latents_of(one.spec.latents, workspace.store)
        train.train(one.spec, rows, entry.path, stop=lambda: next(asked))
    images = reached(entry.state, "checkpoint.pt")
    assert 0 < images < 96
    row = by_label(workspace)["one"]
    assert (row.status, row.images_left) == ("resumes", 96 - images)
    assert row.why == f"at {images} images"
    assert row.seconds_left is None
    Reporter(entry).progress(images, 96, 5.0, 0.5)
    assert by_label(workspace)["one"].seconds_left == pytest.approx((96 - images) / 5)

    missing = Part(entry="expert/none", file="weights.safetensors")
    spec = apart[1].spec.model_copy(update={"parent": missing})
    bad = dataclasses.replace(apart[1], spec=spec)
    assert make(workspace, [bad]) == [False]
    found = status.look(workspace, "experts", bad.name)
    assert found.status == "failed" and "expert/none" in found.error
    assert Path(found.log).exists()

    entry = workspace.store.plan("expert", apart[0].spec.as_json())
    with entry.lease("123"):
        Reporter(entry).progress(12, 24, 5.0, 0.5)
        row = by_label(workspace)["apart state 1"]
        assert (row.status, row.images_left) == ("running", 12)
        before = listing(workspace.root)
        status.show_status(workspace)
        text = capsys.readouterr().out
        assert listing(workspace.root) == before
    assert (
        f"apart state 1: 50%  5.0 images/s  loss 0.5000  on process {os.getpid()} on "
        f"{socket.gethostname()} (job 123), since 20" in text
    )
    line = next(line.split() for line in text.splitlines() if line.startswith("experts"))
    assert line == ["experts", "5", "0", "1", "0", "4"]
    assert "1 expert of the waiting ones go on" in text
    assert by_label(workspace)["apart state 1"].status == "trains"


def listing(root):
    return sorted(str(p) for p in root.rglob("*"))


def test_a_checked_out_output_counts_as_cached(trained, tmp_path):
    """A clone that pulled has its experts in the output and an empty store."""
    import shutil

    train(trained)
    clone = tmp_path / "clone"
    shutil.copytree(trained.root, clone, ignore=shutil.ignore_patterns("store"))
    rows, _ = plan_rows(Workspace(clone))
    assert {row.status for row in rows} == {"cached"}
    changed = edited(Workspace(clone), "rate: 0.002", "rate: 0.003")
    assert by_label(changed)["one"].why == "training.learning_rate: 0.002 -> 0.003"
    assert not (clone / "store").exists()


def test_alike_experts_share_a_line(restored, capsys):
    changed = edited(restored, "seed: 0", "seed: 7")
    planning.show_plan(changed, None, everything=False, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert sum("trains" in line for line in lines if line.startswith("apart")) == 1
    assert any("4 experts, states 1-4" in line and "seed changed" in line for line in lines)
    planning.show_plan(changed, None, everything=True, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert sum("trains" in line for line in lines if line.startswith("apart")) == 4
    planning.show_plan(changed, "apart", everything=False, as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert [e["why"] for e in shown["experts"]] == ["seed changed"] * 4
    assert shown["totals"]["experts_left"] == 4


def test_an_unknown_recipe_names_the_known_ones(trained):
    with pytest.raises(UserError, match="no such recipe; one of: one, apart"):
        plan_rows(trained, "two")


def test_neither_needs_torch_where_the_networks_are_known(trained):
    code = (
        "import sys; from pathlib import Path; from stages.tools import status as i, plan as p;"
        "from stages.workspace import Workspace; w = Workspace(Path(sys.argv[1]));"
        "p.show_plan(w, None, False, False); i.show_status(w);"
        "assert 'torch' not in sys.modules"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TSPACE_STORE"}
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", code, str(trained.root)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_thousand_experts_are_compared_with_a_thousand_quickly(trained):
    base = experts_of(trained, "one")[0].spec
    specs = [
        base.model_copy(update={"log_snr": [float(i)], "conditioning": "none"}) for i in range(1000)
    ]
    finished = [forecast.Finished(s.as_json(), {}, None, "", 0.0) for s in specs]
    started = time.process_time()
    reasons = Reasons(finished)
    told = {reasons.of(s.model_copy(update={"code": "other"}), "") for s in specs}
    assert told == {"code of training changed"}
    assert time.process_time() - started < 5
