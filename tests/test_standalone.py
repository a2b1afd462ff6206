"""An exported folder runs with torch and safetensors alone, to the same images."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import plan
from pipeline.errors import UserError
from pipeline.noise import philox
from pipeline.sampling.exported import load_exported
from pipeline.sampling.samplers import ddim
from pipeline.store.bundle import FREE, bundle
from stages import analyse, encode, merge, prepare, train
from stages.facts import facts_of
from stages.tools.export import export_recipe
from stages.workspace import Workspace
from tests.test_inspection import make

BASE = """\
seed: 0
data: {source: digits, limit: 80}
features: {extractor: classifier, images: 100, dimension: 8, channels: 8}
evaluate: {samples: 16, batch: 4}
defaults:
  network: {kind: unet, channels: 8, multipliers: [1, 1], blocks: 1}
  training: {images: 64, batch: 16, milestones: [32]}
"""
PIXELS = """\
latent: {encoder: pixels}
recipes:
  apart:
    schedule: {kind: log-snr, states: 3}
    partition: {kind: per-state}
    sampling: {kind: ddpm, clip: true}
  halves:
    schedule: {kind: log-snr, states: 6}
    partition: {kind: uniform, intervals: 2}
    network: {attention: [4], projections: true, class_conditional: true}
    sampling: {kind: heun, s_churn: 2.0, guidance: 2.0, guidance_interval: [-4.0, 4.0]}
  stages:
    schedule: {kind: log-snr, states: 6}
    network: {kind: multi-decoder, decoder_channels: [4, 8]}
    partition: {kind: uniform, intervals: 2}
    sampling: {kind: dpmpp-2m}
  led:
    schedule: {kind: cosine, states: 5, zero_terminal: true}
    network: {class_conditional: true}
    prediction: x0
    sampling: {guidance: 3.0, guide: {milestone: 32}}
  flow:
    schedule: {kind: flow, states: continuous}
    prediction: flow
    network: {kind: multi-dit, patch: 2, depth: 1, width: 16, heads: 2, decoder_depths: [1, 0]}
    partition: {kind: uniform, intervals: 2}
    sampling: {kind: heun-flow, steps: 4}
  modern:
    schedule: {kind: edm, states: 4}
    network: {kind: dit, depth: 1, width: 16, heads: 2, qk_norm: true, swiglu: true, rotary: true,
      told: timestep}
    sampling: {kind: euler}
  own:
    schedule: {kind: log-snr, states: 3}
    network: {kind: module, module: "networks/own.py:Own", options: {width: 4}, told: sigma}
"""
LATENTS = """\
latent: {encoder: autoencoder, channels: 2, downsample: 2, width: 8, images: 128}
recipes:
  latent:
    schedule: {kind: log-snr, states: 3}
"""
THEIRS = """\
latent: {encoder: pixels}
recipes:
  theirs:
    schedule: {kind: linear, states: 1000}
    network: &unet
      kind: diffusers
      model: UNet2DModel
      class_conditional: true
      options:
        layers_per_block: 1
        block_out_channels: [8, 16]
        norm_num_groups: 4
        down_block_types: [DownBlock2D, DownBlock2D]
        up_block_types: [UpBlock2D, UpBlock2D]
    sampling: {steps: 5}
  few:
    schedule: {kind: log-snr, states: 4}
    network: *unet
"""
OWN = """\
import torch
from torch import nn


class Own(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, x, sigma, labels):
        return self.last(torch.relu(self.first(x))) / (1 + sigma[:, None, None, None])
"""
# What is installed beside tspace, and must not be needed.
ABSENT = ["numpy", "pipeline", "stages", "tspace", "pydantic", "PIL", "scipy", "pyarrow", "yaml"]


@pytest.fixture(autouse=True)
def own_store(monkeypatch):
    monkeypatch.delenv("TSPACE_STORE", raising=False)


def finished(root: Path, params: str) -> Workspace:
    (root / "networks").mkdir(parents=True)
    (root / "networks" / "own.py").write_text(OWN)
    (root / "params.yaml").write_text(BASE + params)
    workspace = Workspace(root)
    prepare.prepare(workspace)
    facts = facts_of(workspace)
    encoder = plan.encoder(workspace.params, facts)
    make(workspace, [encoder] if encoder else [])
    make(workspace, plan.latents(workspace.params, facts))
    encode.encode(workspace)
    assert all(make(workspace, plan.analyses(workspace.params, facts_of(workspace))))
    analyse.analyse(workspace)
    recipes = plan.experts(workspace.params, facts_of(workspace))
    assert all(make(workspace, [e.job for recipe in recipes.values() for e in recipe.experts]))
    train.train(workspace)
    merge.merge(workspace)
    return workspace


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("standalone") / "tspace", PIXELS)


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("standalone") / "tspace", LATENTS)


def alone(folder: Path, *options: str, absent: list[str] = ABSENT) -> subprocess.CompletedProcess:
    """Run sample.py where most of what is installed here is not."""
    blocked = folder.with_name(folder.name + "-absent")
    blocked.mkdir(exist_ok=True)
    for name in absent:
        (blocked / f"{name}.py").write_text(f"raise ModuleNotFoundError({name!r}, name={name!r})\n")
    return subprocess.run(
        [sys.executable, "sample.py", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(blocked)},
        capture_output=True,
        text=True,
    )


def cells(path: Path, number: int) -> np.ndarray:
    """The images of a square grid, uint8 [N, 1, 8, 8]."""
    sheet = np.asarray(Image.open(path))
    columns = sheet.shape[1] // 8
    return np.stack(
        [
            sheet[None, 8 * r : 8 * r + 8, 8 * c : 8 * c + 8]
            for r, c in (divmod(i, columns) for i in range(number))
        ]
    )


@pytest.mark.parametrize("recipe", ["apart", "halves", "stages", "led", "flow", "modern", "own"])
def test_a_folder_draws_the_same_images_without_tspace(pixels, tmp_path, recipe):
    folder = tmp_path / "out"
    export_recipe(pixels, recipe, folder)
    done = alone(folder, "-n", "9", "--seed", "3")
    assert done.returncode == 0, done.stderr
    images, _ = load_exported(folder).draw(range(9), seed=3)
    assert images.std() > 1
    assert np.array_equal(cells(folder / "samples.png", 9), images)


def test_latents_are_decoded(latents, tmp_path):
    folder = tmp_path / "out"
    export_recipe(latents, "latent", folder)
    done = alone(folder, "-n", "4", "--seed", "3")
    assert done.returncode == 0, done.stderr
    images, _ = load_exported(folder).draw(range(4), seed=3)
    assert np.array_equal(cells(folder / "samples.png", 4), images)


def test_its_code_names_no_package_of_ours_and_what_it_imports_is_free(pixels, tmp_path):
    for recipe in ("halves", "flow", "own"):
        export_recipe(pixels, recipe, tmp_path / recipe)
        files = sorted((tmp_path / recipe / "model").glob("*.py"))
        assert len(files) > 6
        for path in files:
            tree = ast.parse(path.read_text())
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and not node.level:
                    names = [node.module]
                elif isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                else:
                    continue
                roots = {name.split(".")[0] for name in names}
                assert roots <= FREE | {"diffusers"}, path
        # Of a recipe's kind of network and sampler, and no others.
        names = {path.stem for path in files}
        assert ("module" in names) == (recipe == "own") and ("dit" in names) == (recipe == "flow")
        done = subprocess.run(
            [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F", *files],
            capture_output=True,
            text=True,
        )
        assert "F401" not in done.stdout and "F811" not in done.stdout, done.stdout


def test_damage_is_told_in_a_line(pixels, tmp_path):
    export_recipe(pixels, "apart", tmp_path / "out")
    path = tmp_path / "out" / "experts" / "state-2.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    done = alone(tmp_path / "out", "-n", "1")
    assert done.returncode == 1 and "state-2.safetensors: damaged" in done.stderr
    assert "Traceback" not in done.stderr
    path.unlink()
    done = alone(tmp_path / "out", "-n", "1")
    assert done.returncode == 1 and "No such file" in done.stderr
    assert "state-2.safetensors" in done.stderr and "Traceback" not in done.stderr


def test_an_npz_needs_numpy_and_says_so(pixels, tmp_path):
    export_recipe(pixels, "apart", tmp_path / "out")
    done = alone(tmp_path / "out", "-n", "1", "--out", "s.npz")
    assert done.returncode == 1 and "pip install numpy" in done.stderr


@pytest.mark.parametrize("shape", [(3,), (3, 4, 5), (1, 8, 8)])
def test_noise_is_the_same_bits_by_torch_alone(shape):
    ids = torch.tensor([0, 7, 1 << 40])
    key = philox.derive_key("standalone")
    found = philox.normal_by_torch(key, 5, ids, shape)
    assert torch.equal(found, philox.normal(key, 5, ids, shape))


def test_code_that_needs_more_is_refused():
    with pytest.raises(ValueError, match=r"pipeline\.noise\.philox needs numpy"):
        bundle("pipeline.rows")
    with pytest.raises(ValueError, match=r"needs pipeline\.errors"):
        bundle("pipeline.networks.autoencoder", apart=("pipeline.errors",))


def answers(model, x, log_snr, labels=None):
    return model.mixture.denoise(x, log_snr, labels)


@pytest.mark.parametrize(
    ("recipe", "files", "level"),
    [("halves", 2, -1.0), ("stages", 2, 3.0), ("modern", 1, 0.5), ("own", 1, 0.5)],
)
def test_programs_answer_as_the_networks_do(pixels, tmp_path, recipe, files, level):
    """For any number of images, in the right one of them."""
    export_recipe(pixels, recipe, tmp_path / "whole")
    export_recipe(pixels, recipe, tmp_path / "out", kind="programs")
    model = load_exported(tmp_path / "whole")
    about = json.loads((tmp_path / "out" / "denoisers.json").read_text())
    assert len(about["denoisers"]) == files
    (own,) = [
        one["file"]
        for one in about["denoisers"]
        if (one["below"] is None or level < one["below"])
        and (one["from"] is None or level >= one["from"])
    ]
    program = torch.export.load(tmp_path / "out" / own).module()
    for n in (1, 2, 5):
        x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(n))
        labels = torch.arange(n) % 11 if about["classes"] else None
        given = [x, torch.tensor([level]), *([] if labels is None else [labels])]
        with torch.no_grad():
            found = program(*given)
        torch.testing.assert_close(found, answers(model, x, level, labels), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("recipe", ["halves", "flow"])
def test_onnx_answers_as_the_networks_do(pixels, tmp_path, recipe):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    export_recipe(pixels, recipe, tmp_path / "whole")
    export_recipe(pixels, recipe, tmp_path / "out", kind="onnx")
    model = load_exported(tmp_path / "whole")
    session = runtime.InferenceSession(tmp_path / "out" / "denoiser-0.onnx")
    for n in (1, 5):
        x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(n))
        given = {"x": x.numpy(), "log_snr": np.array([2.0], np.float32)}
        labels = torch.arange(n) if recipe == "halves" else None
        if labels is not None:
            given["labels"] = labels.numpy()
        found = torch.from_numpy(session.run(None, given)[0])
        torch.testing.assert_close(found, answers(model, x, 2.0, labels), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_of_a_format_is_refused_and_leaves_nothing(pixels, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"--format diffusers: it is 2 networks"):
        export_recipe(pixels, "halves", tmp_path / "out", kind="diffusers")
    with pytest.raises(UserError, match=r"--format diffusers: network\.kind: dit is no network of"):
        export_recipe(pixels, "modern", tmp_path / "out", kind="diffusers")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"--format onnx: needs the packages onnx and onnxscript"):
        export_recipe(pixels, "own", tmp_path / "out", kind="onnx")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    pytest.importorskip("diffusers")
    return finished(tmp_path_factory.mktemp("standalone") / "tspace", THEIRS)


class TestOfDiffusers:
    """A model of diffusers goes back into that package."""

    def test_its_pipeline_draws_our_images(self, theirs, tmp_path):
        import diffusers

        export_recipe(theirs, "theirs", tmp_path / "whole")
        export_recipe(theirs, "theirs", tmp_path / "out", kind="diffusers")
        model = load_exported(tmp_path / "whole")
        pipeline = diffusers.DiffusionPipeline.from_pretrained(
            str(tmp_path / "out"), custom_pipeline=str(tmp_path / "out"), trust_remote_code=True
        )
        pipeline.set_progress_bar_config(disable=True)
        noise = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(3))
        labels = torch.tensor([1, 5, 9])
        found = pipeline(
            batch_size=3,
            latents=noise,
            class_labels=labels,
            guidance_scale=2.0,
            num_inference_steps=5,
            output_type="pt",
        ).images
        pipeline.scheduler.set_timesteps(5)
        kept = pipeline.scheduler.alphas_cumprod[pipeline.scheduler.timesteps.flip(0)].double()
        denoise = model.mixture.denoiser(labels, 2.0)
        z = ddim(eta=0.0)(denoise, noise, torch.logit(kept).tolist())
        images = model.mixture.decode(z)
        assert images.std() > 1
        assert np.abs((255 * found).round().numpy() - images).max() <= 1

    def test_it_runs_without_tspace(self, theirs, tmp_path):
        export_recipe(theirs, "theirs", tmp_path / "out")
        done = alone(tmp_path / "out", "-n", "4", absent=["pipeline", "stages", "tspace"])
        assert done.returncode == 0, done.stderr
        images, _ = load_exported(tmp_path / "out").draw(range(4), seed=0)
        assert np.array_equal(cells(tmp_path / "out" / "samples.png", 4), images)

    def test_other_states_are_refused(self, theirs, tmp_path):
        with pytest.raises(UserError, match=r"states are not the 1000 of schedule: linear"):
            export_recipe(theirs, "few", tmp_path / "out", kind="diffusers")


def test_the_page_about_it_shows_what_runs(pixels, tmp_path):
    text = (Path(__file__).parent.parent / "docs" / "sharing.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    export_recipe(pixels, "stages", tmp_path / "out")
    shapes = "assert images.shape == (64, 1, 8, 8) and labels is None and estimate.shape == x.shape"
    (tmp_path / "out" / "sample.py").write_text(
        f"import torch\nx = torch.randn(2, 1, 8, 8)\n{program}{shapes}\n"
    )
    done = alone(tmp_path / "out")
    assert done.returncode == 0, done.stderr
