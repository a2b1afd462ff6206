"""`tspace export` of a really trained recipe: loads, draws the same samples, finds damage."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from pipeline import plan
from pipeline.data import dataset
from pipeline.errors import UserError
from pipeline.params.load import resolve
from pipeline.sampling.exported import load_exported
from stages import analyse, cli, merge, train
from stages.facts import facts_of
from stages.pictures import LABEL_PIXELS
from stages.tools.draw import _in_file_name, draw_from
from stages.tools.export import _copy_files, export_recipe
from stages.tools.outlook import outlook
from stages.workspace import Workspace
from tests.test_inspection import edited, make, small_workspace

PARAMS = """\
seed: 0
data: {source: digits, limit: 80}
latent: {encoder: pixels}
features: {extractor: classifier, images: 100, dimension: 8, channels: 8}
evaluate: {samples: 16, batch: 8}
defaults:
  network: {kind: unet, channels: 8, multipliers: [1], blocks: 1}
  training: {images: 64, batch: 16, milestones: [32]}
recipes:
  apart:
    schedule: {kind: log-snr, states: 3}
    partition: {kind: per-state}
    sampling: {kind: ddim, eta: 0.5}
  led:
    schedule: {kind: log-snr, states: 2}
    sampling: {guidance: 3.0, guide: {milestone: 32}}
  told:
    schedule: {kind: log-snr, states: 2}
    network: {class_conditional: true}
"""


@pytest.fixture(autouse=True)
def own_store(monkeypatch):
    monkeypatch.delenv("TSPACE_STORE", raising=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workspace = small_workspace(tmp_path_factory.mktemp("export") / "tspace", PARAMS)
    facts = facts_of(workspace)
    assert all(make(workspace, plan.analyses(workspace.params, facts)))
    analyse.analyse(workspace)
    recipes = plan.experts(workspace.params, facts_of(workspace))
    assert all(make(workspace, [e.job for recipe in recipes.values() for e in recipe.experts]))
    train.train(workspace)
    merge.merge(workspace)
    return workspace


@pytest.fixture(scope="module")
def exported(finished):
    folder = finished.root.parent / "model"
    export_recipe(finished, "apart", folder)
    return folder


@pytest.fixture
def copy(exported, tmp_path):
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def drawn(workspace, folder, number, seed, recipe="apart"):
    """Samples of `tspace sample`, read back from its pictures."""
    draw_from(workspace, recipe, number, seed, folder)
    return np.stack([np.asarray(Image.open(p))[None] for p in sorted(folder.iterdir())])


def test_it_draws_the_bits_of_tspace_sample(finished, copy, tmp_path):
    # Away from the store: nothing but the folder is read.
    images, classes = load_exported(copy).draw(range(20), seed=3)
    assert classes is None
    assert np.array_equal(images, drawn(finished, tmp_path / "own", 20, 3))
    assert not np.array_equal(images, load_exported(copy).draw(range(20), seed=4)[0])


def test_the_model_that_guidance_leads_away_from_goes_along(finished, tmp_path):
    """At the guide's own milestone there is none, and no guidance."""
    export_recipe(finished, "led", tmp_path / "late")
    files = {str(p.relative_to(tmp_path / "late")) for p in (tmp_path / "late").rglob("*.safet*")}
    assert files == {f"{part}experts/states-1-2.safetensors" for part in ("", "guide/")}
    assert "worse model" in (tmp_path / "late" / "README.md").read_text()
    late = load_exported(tmp_path / "late")
    images, _ = late.draw(range(6), seed=3)
    assert np.array_equal(images, drawn(finished, tmp_path / "own", 6, 3, "led"))
    sampling = late.drawing.sampling.without("guidance")
    drawing = late.drawing.model_copy(update={"sampling": sampling})
    plain = dataclasses.replace(late, drawing=drawing)
    assert not np.array_equal(images, plain.draw(range(6), seed=3)[0])
    export_recipe(finished, "led", tmp_path / "early", 32)
    early = load_exported(tmp_path / "early")
    assert early.drawing.led is None and early.drawing.sampling.guidance == 1.0


def test_the_example_runs(finished, copy, tmp_path):
    root = Path(__file__).parent.parent
    out = tmp_path / "samples.png"
    done = subprocess.run(
        [sys.executable, copy / "sample.py", "-n", "5", "--seed", "3", "--out", out],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    sheet = np.asarray(Image.open(out))
    cells = [sheet[r : r + 8, c : c + 8] for r in (0, 8, 16) for c in (0, 8)]
    assert np.array_equal(np.stack(cells[:5])[:, None], drawn(finished, tmp_path / "own", 5, 3))
    assert (cells[5] == 255).all()


def example(folder, *options):
    root = Path(__file__).parent.parent
    command = [sys.executable, "sample.py", *options]
    env = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def test_the_example_writes_what_evaluators_read_and_no_traceback(finished, tmp_path):
    folder = tmp_path / "told"
    export_recipe(finished, "told", folder)
    done = example(folder, "-n", "3", "--seed", "3", "--out", "new/s.npz")
    assert done.returncode == 0, done.stderr
    found = np.load(folder / "new" / "s.npz")
    draw_from(finished, "told", 3, 3, tmp_path / "own.npz")
    own = np.load(tmp_path / "own.npz")
    assert found.files == own.files == ["arr_0", "arr_1"]
    assert all(np.array_equal(found[key], own[key]) for key in own.files)
    for options in (("--out", "s.jpg"), ("-n", "0"), ("--seed", "-1")):
        done = example(folder, *options)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert "--out a .png or an .npz file" in done.stderr
    (folder / "model" / "settings.json").unlink()
    done = example(folder)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "settings.json" in done.stderr


def test_a_recipe_with_seeds_is_asked_for_by_the_names_of_its_runs(finished, tmp_path):
    path = finished.root / "params.yaml"
    try:
        seeds = edited(finished, "  told:\n", "  told:\n    seeds: [3, 5]\n")
        for ask in (
            lambda: draw_from(seeds, "told", 1, 0, tmp_path / "s.png"),
            lambda: export_recipe(seeds, "told", tmp_path / "out"),
            lambda: outlook(seeds, "told"),
        ):
            with pytest.raises(UserError) as caught:
                ask()
            assert str(caught.value) == (
                "--recipe told: has `seeds`; name one of its runs: told-seed3, told-seed5"
            )
    finally:
        path.write_text(PARAMS)
    with pytest.raises(UserError, match=r"--recipe tol: no such recipe; did you mean `told`\?"):
        outlook(finished, "tol")


@pytest.mark.parametrize(
    ("options", "lacking"),
    [
        (["-n", "8"], "--recipe and --out missing"),
        (["--seed", "0"], "--recipe and --out missing"),
        (["-n", "8", "--out", "s.png"], "--recipe missing"),
        (["--recipe", "apart"], "--out missing"),
        (["--class", "1"], "--recipe and --out missing"),
        (["--recipe", "apart", "--sampler", "heun"], "--out missing"),
    ],
)
def test_no_option_of_sample_is_ignored(finished, monkeypatch, options, lacking):
    for needed in ("Snakefile", "dvc.yaml"):
        (finished.root / needed).touch()
    monkeypatch.chdir(finished.root)
    monkeypatch.setattr("stages.sample.sample", lambda workspace: pytest.fail("the stage ran"))
    done = CliRunner().invoke(cli.main, ["sample", *options])
    assert done.exit_code == 2 and f"tspace: sample: {lacking}; give both" in done.output


def test_the_folder_tells_what_it_is(exported):
    model = json.loads((exported / "model.json").read_text())
    assert (model["recipe"], model["images"]) == ("apart", 64)
    assert sorted(f["states"] for f in model["files"].values()) == [[[1, 1]], [[2, 2]], [[3, 3]]]
    for known in model["files"].values():
        data = (exported / known["path"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == known["sha256"]
    named = {"model.json", "model", "sample.py", "README.md", "experts"}
    assert {p.name for p in exported.iterdir()} == named
    readme = (exported / "README.md").read_text()
    assert "`experts/state-2.safetensors`" in readme and "{" not in readme
    assert "`tspace sample --recipe\napart` draws with the same seed" in readme


def test_classes_are_named(exported, finished, tmp_path):
    assert json.loads((exported / "model.json").read_text())["classes"] is None
    export_recipe(finished, "told", tmp_path / "told")
    names = json.loads((tmp_path / "told" / "model.json").read_text())["classes"]
    assert names == [str(digit) for digit in range(10)]
    assert "10 classes (label and name: 0 0, 1 1," in (tmp_path / "told" / "README.md").read_text()


def test_samples_as_evaluators_read_them(finished, tmp_path):
    """An npz of NHWC images and labels: the images that the folder has, told the same classes."""
    draw_from(finished, "told", 5, 3, tmp_path / "s.npz")
    found = np.load(tmp_path / "s.npz")
    assert sorted(found.files) == ["arr_0", "arr_1"]
    assert found["arr_0"].dtype == np.uint8 and found["arr_0"].shape == (5, 8, 8, 1)
    assert found["arr_1"].dtype == np.int64 and found["arr_1"].shape == (5,)
    draw_from(finished, "told", 5, 3, tmp_path / "s")
    single = [np.asarray(Image.open(p)) for p in sorted((tmp_path / "s").iterdir())]
    assert np.array_equal(found["arr_0"][..., 0], np.stack(single))
    draw_from(finished, "apart", 5, 3, tmp_path / "unlabelled.npz")
    assert np.load(tmp_path / "unlabelled.npz").files == ["arr_0"]


def test_samples_of_some_classes_are_told_them_and_say_so_in_their_names(finished, tmp_path):
    draw_from(finished, "told", 6, 3, tmp_path / "s", classes=["7", "2"])
    names = sorted(path.name for path in (tmp_path / "s").iterdir())
    kinds = [re.fullmatch(r"told-3-00000(\d)-([27])\.png", name).groups() for name in names]
    assert [number for number, _ in kinds] == list("012345")
    assert sorted(kind for _, kind in kinds) == list("222777")
    draw_from(finished, "told", 6, 3, tmp_path / "s.npz", classes=["7", "2"])
    labels = np.load(tmp_path / "s.npz")["arr_1"]
    assert [str(label) for label in labels] == [kind for _, kind in kinds]
    draw_from(finished, "apart", 1, 3, tmp_path / "plain")
    assert [path.name for path in (tmp_path / "plain").iterdir()] == ["apart-3-000000.png"]
    assert _in_file_name("T-shirt/top & more") == "T-shirt-top-more"


def test_a_parquet_file_of_samples_is_a_source_of_images(finished, tmp_path):
    """Read back by the project's own reader: the same images, labels and names of classes."""
    draw_from(finished, "told", 5, 3, tmp_path / "s.npz")
    draw_from(finished, "told", 5, 3, tmp_path / "s.parquet")
    info = dataset.prepare(tmp_path / "data", source="parquet", path=tmp_path / "s.parquet")
    assert info.classes == tuple(map(str, range(10)))
    read, found = dataset.open_dataset(tmp_path / "data"), np.load(tmp_path / "s.npz")
    assert np.array_equal(read.images(0, 5).transpose(0, 2, 3, 1), found["arr_0"])
    assert read.labels(0, 5).tolist() == found["arr_1"].tolist()
    draw_from(finished, "apart", 2, 3, tmp_path / "plain.parquet")
    assert pq.read_schema(tmp_path / "plain.parquet").names == ["image"]


def test_samples_are_drawn_in_pieces_and_each_is_its_numbers(finished, tmp_path):
    """The shard and the batch move a sample by rounding alone."""
    whole, parts = tmp_path / "whole.npz", tmp_path / "parts.npz"
    draw_from(finished, "led", 7, 3, whole)
    evaluate = finished.params.evaluate.model_copy(update={"shard": 3})
    other = Workspace(finished.root)
    vars(other)["params"] = finished.params.model_copy(update={"evaluate": evaluate})
    draw_from(other, "led", 7, 3, parts)
    found = [np.load(path)["arr_0"].astype(int) for path in (whole, parts)]
    assert np.abs(found[0] - found[1]).max() <= 1


def test_samples_by_another_sampler_are_those_of_a_recipe_that_says_so(finished, tmp_path):
    def drawn_with(name, **options):
        draw_from(finished, name, 4, 3, tmp_path / "s.npz", **options)
        return np.load(tmp_path / "s.npz")["arr_0"]

    def said(name, **sampling):
        raw = yaml.safe_load(PARAMS)
        raw["recipes"][name]["sampling"] = sampling
        other = Workspace(finished.root)
        vars(other)["params"] = resolve(raw)
        draw_from(other, name, 4, 3, tmp_path / "said.npz")
        return np.load(tmp_path / "said.npz")["arr_0"]

    plain = drawn_with("told")
    for options, sampling in (
        ({"guidance": 3.0}, {"guidance": 3.0}),
        ({"sampler": "heun"}, {"kind": "heun"}),
        ({"steps": 1}, {"steps": 1}),
        (
            {"sampler": "euler", "guidance": 0.0, "steps": 2},
            {"kind": "euler", "guidance": 0.0, "steps": 2},
        ),
    ):
        found = drawn_with("told", **options)
        assert np.array_equal(found, said("told", **sampling))
        assert not np.array_equal(found, plain)
    led = {"guidance": 1.5, "guide": {"milestone": 32}}
    assert np.array_equal(drawn_with("led", guidance=1.5), said("led", **led))
    assert np.array_equal(drawn_with("led", guidance=1.0), said("led"))
    # A sampler takes the other keys along.
    assert np.array_equal(
        drawn_with("led", sampler="heun"), said("led", kind="heun", **(led | {"guidance": 3.0}))
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("apart", {"classes": ["1"]}, r"--class: this recipe does not know classes"),
        ("told", {"classes": ["1", "11"]}, r"--class 11: no such class; did you mean `1`"),
        ("told", {"steps": 3}, r"--steps: more steps \(3\) than states \(2\)"),
        ("apart", {"guidance": 2.0}, r"--guidance: needs network.class_conditional: true, or a"),
        ("told", {"sampler": "hein"}, r"--sampler hein: no such sampler; did you mean `heun`"),
        ("tald", {}, r"--recipe tald: no such recipe"),
    ],
)
def test_what_a_recipe_cannot_draw_is_refused(finished, tmp_path, name, options, message):
    with pytest.raises(UserError, match=message):
        draw_from(finished, name, 2, 0, tmp_path / "s.npz", **options)
    assert not list(tmp_path.iterdir())


def test_the_command_passes_its_options_on(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(finished.root)
    monkeypatch.setattr(Workspace, "here", lambda: finished)
    out = tmp_path / "s.npz"
    options = ["-n", "3", "--seed", "3", "--class", "4", "--class", "5", "--guidance", "0"]
    options += ["--steps", "1", "--sampler", "heun", "--out", str(out)]
    done = CliRunner().invoke(cli.main, ["sample", "--recipe", "told", *options])
    assert done.exit_code == 0, done.output
    assert done.output == f"3 samples of told, seed 3: {out}\n"
    draw_from(
        finished,
        "told",
        3,
        3,
        tmp_path / "same.npz",
        classes=["4", "5"],
        guidance=0.0,
        steps=1,
        sampler="heun",
    )
    assert out.read_bytes() == (tmp_path / "same.npz").read_bytes()
    done = CliRunner().invoke(cli.main, ["sample", "--guidance", "0"])
    assert done.exit_code == 2 and "--recipe and --out missing; give both" in done.output


def test_samples_that_are_told_a_class_are_labelled_in_a_grid(finished, tmp_path):
    draw_from(finished, "told", 4, 3, tmp_path / "told.png")
    draw_from(finished, "apart", 4, 3, tmp_path / "apart.png")
    assert Image.open(tmp_path / "told.png").size == (102, 2 * (50 + LABEL_PIXELS) + 2)
    assert Image.open(tmp_path / "apart.png").size == (102, 102)


@pytest.mark.parametrize("name", ["s.jpg", "s.npy", "s.v2", "folder.png", "file"])
def test_samples_go_only_where_their_kind_is_clear(finished, tmp_path, name):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=f"--out .*{name}: "):
        draw_from(finished, "apart", 1, 0, tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before and (tmp_path / "file").read_text() == "mine"


def test_an_earlier_milestone(finished, tmp_path):
    export_recipe(finished, "apart", tmp_path / "early", 32)
    early = load_exported(tmp_path / "early")
    assert early.images == 32
    assert "so not from this model" in (tmp_path / "early" / "README.md").read_text()
    mixture = merge.milestones_of(finished, "apart")[0]["mixture"]
    assert early.mixture.description == mixture
    with pytest.raises(UserError, match=r"--milestone 33: .* one of: 32, 64"):
        export_recipe(finished, "apart", tmp_path / "none", 33)
    assert not (tmp_path / "none").exists()


def test_damage_is_found(copy):
    path = copy / "experts" / "state-2.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"state-2\.safetensors: damaged"):
        load_exported(copy)
    path.unlink()
    with pytest.raises(UserError, match=r"state-2\.safetensors: missing"):
        load_exported(copy)
    (copy / "model.json").write_text('{"format": 1')
    with pytest.raises(UserError, match=r"model\.json: damaged"):
        load_exported(copy)
    (copy / "model.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match="not a model of this version"):
        load_exported(copy)
    (copy / "model.json").unlink()
    with pytest.raises(UserError, match=r"model\.json: missing"):
        load_exported(copy)


def test_nothing_is_overwritten(finished, copy, tmp_path):
    before = sorted(copy.rglob("*"))
    with pytest.raises(UserError, match="not an empty folder"):
        export_recipe(finished, "apart", copy)
    assert sorted(copy.rglob("*")) == before
    (tmp_path / "empty").mkdir()
    export_recipe(finished, "apart", tmp_path / "empty")
    assert (tmp_path / "empty" / "model.json").exists()


def test_changed_params_are_refused(finished, tmp_path):
    path = finished.root / "params.yaml"
    try:
        changed = edited(finished, "batch: 16", "batch: 32")
        with pytest.raises(UserError, match="changed since it was trained"):
            export_recipe(changed, "apart", tmp_path / "out")
    finally:
        path.write_text(PARAMS)
    with pytest.raises(UserError, match="no such recipe; one of: apart"):
        export_recipe(finished, "other", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_member_is_copied_and_equal_experts_once(finished, tmp_path):
    """A decoder's two files, the data's means, and two experts of the same bits."""

    def entry(kind, **files):
        made = finished.store.plan(kind, {"files": sorted(files)})
        for name, data in files.items():
            (made.path / name.replace("__", ".")).write_bytes(data)
        made.finish()
        return made.name

    codec = entry("encoder", encoder__json=b"{}", encoder__safetensors=b"abc", other__txt=b"no")
    means = entry("spectrum", means__safetensors=b"means")
    experts = [
        {"entry": entry("expert", w__safetensors=b"same", **{tag: b""}), "first": i, "last": i}
        for i, tag in enumerate(("a__txt", "b__txt"))
    ]
    mixture = {
        "channels": 1,
        "decoder": {"entry": codec, "file": "encoder.json"},
        "terminal": {"entry": means, "file": "means.safetensors"},
        "experts": [{**e, "file": "w.safetensors"} for e in experts],
    }
    files = _copy_files(finished, mixture, tmp_path)
    copied = {str(p.relative_to(tmp_path)): p.read_bytes() for p in tmp_path.rglob("*.*")}
    assert copied == {
        "decoder/encoder.json": b"{}",
        "decoder/encoder.safetensors": b"abc",
        "terminal/means.safetensors": b"means",
        "experts/state-1.safetensors": b"same",
    }
    assert {files[f"{e['entry']}/w.safetensors"]["path"] for e in experts} == {
        "experts/state-1.safetensors"
    }
    assert (
        _copy_files(finished, {**mixture, "decoder": None}, tmp_path / ".").keys() <= files.keys()
    )
