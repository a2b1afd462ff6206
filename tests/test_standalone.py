"""An exported folder runs with torch and safetensors alone, to the same images."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import plan
from pipeline.noise import philox
from pipeline.sampling.exported import load_exported
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
    with pytest.raises(ValueError, match=r"pipeline\.rows needs numpy"):
        bundle("pipeline.rows")
    with pytest.raises(ValueError, match=r"needs pipeline\.errors"):
        bundle("pipeline.networks.autoencoder", apart=("pipeline.errors",))
