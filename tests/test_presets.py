"""The ready-made params.yaml: valid, complete, and run from raw files to the report, cut down."""

from __future__ import annotations

import functools
import importlib.util
import io
import json
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.params.load import load
from stages.tools import preset
from stages.workspace import Workspace
from tests.workflow import run_stages

ROOT = Path(__file__).parent.parent
NAMES = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))
ROWS = 160  # of the generated images

text = functools.cache(lambda name: (ROOT / "presets" / f"{name}.yaml").read_text())


def test_there_are_presets_for_the_usual_datasets():
    assert {"cifar10", "celeba64", "imagenet256-latent", "fashion-mnist"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_presets_are_valid_as_they_are_and_as_a_rehearsal(name, tmp_path):
    rehearsed = tmp_path / "params.yaml"
    rehearsed.write_text(preset.rehearsal(text(name), 1e-7, 0.04))
    whole, part = load(ROOT / "presets" / f"{name}.yaml"), load(rehearsed)
    assert list(whole.recipes) == list(part.recipes)
    # A default that a preset does not write down would not be cut.
    assert getattr(part.latent, "images", 64) == getattr(part.features, "images", 64) == 64
    for key, recipe in part.recipes.items():
        full = whole.recipes[key]
        assert recipe.training.images == 64
        assert recipe.training.milestones in ([], [64])
        assert recipe.training.batch == 8
        network = recipe.network
        if network.kind == "dit":
            assert (network.width, network.depth) in ((32, 1), (48, 1)) and network.heads == 2
        else:
            assert network.channels == 8 and network.blocks == 1
        assert recipe.partition.kind == full.partition.kind
        cut = {"network", "training", "sampling", "merge", "partition", "curriculum"}
        assert recipe.model_dump(exclude=cut) == full.model_dump(exclude=cut)
    assert part.data.channels == whole.data.channels
    assert getattr(part.latent, "channels", None) == getattr(whole.latent, "channels", None)


def test_a_rehearsal_multiplies_counts_and_keeps_comments():
    before = """\
# images: 1000000
evaluate:
  samples: 50000 # samples: 3
defaults:
  network: {kind: unet, channels: 128, attention: [16]}
  training: {images: 1000000, batch: 512, milestones: [1000, 2000, 500000], warmup: 0}
  sampling: {steps: null}
"""
    after = """\
# images: 1000000
evaluate:
  allow_few: true
  samples: 500 # samples: 3
defaults:
  network: {kind: unet, channels: 32, attention: [16]}
  training: {images: 10000, batch: 512, milestones: [64, 5000], warmup: 0}
  sampling: {steps: null}
"""
    assert preset.rehearsal(before, 0.01, 0.25) == after
    assert "images: 1000, batch: 125," in preset.rehearsal(before, 0.001, 1.0)
    assert preset.rehearsal(before, 1.0, 1.0) == before


# --- end to end


def shapes(rows: int, side: int, channels: int) -> np.ndarray:
    """Discs on a gradient with grain, uint8 [rows, side, side, channels]."""
    draw = np.random.default_rng(0)
    grid = np.linspace(-1, 1, side)
    x, y = draw.uniform(-0.5, 0.5, (2, rows, 1, 1))
    disc = (grid - x) ** 2 + (grid[:, None] - y) ** 2 < 0.2
    colour, slope = draw.uniform(40, 215, (2, rows, 1, 1, channels))
    image = slope * (1 + 0.3 * grid[:, None]) + disc[..., None] * (colour - slope)
    image += draw.integers(-6, 7, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def write_fashion_mnist(folder: Path) -> Path:
    images = shapes(ROWS, 28, 1)[..., 0]
    for name, data in (("images-idx3", images), ("labels-idx1", np.arange(ROWS) % 10)):
        sizes = np.array(data.shape, ">u4").tobytes()
        head = bytes([0, 0, 8, data.ndim]) + sizes
        (folder / f"train-{name}-ubyte").write_bytes(head + data.astype(np.uint8).tobytes())
    return folder


def write_cifar10(folder: Path) -> Path:
    """The binary version's archive, of five batches: a row is its label and three planes."""
    planes = shapes(ROWS, 32, 3).transpose(0, 3, 1, 2).reshape(ROWS, -1)
    rows = np.concatenate([(np.arange(ROWS) % 10).astype(np.uint8)[:, None], planes], 1)
    path = folder / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for number, part in enumerate(np.array_split(rows, 5), start=1):
            info = tarfile.TarInfo(f"cifar-10-batches-bin/data_batch_{number}.bin")
            info.size = part.nbytes
            archive.addfile(info, io.BytesIO(part.tobytes()))
    return path


def write_faces(folder: Path) -> Path:
    for row, image in enumerate(shapes(ROWS, 218, 3)):
        Image.fromarray(image[:, 20:198]).save(folder / f"{row:06}.jpg", quality=90)
    return folder


def write_class_folders(folder: Path) -> Path:
    for row, image in enumerate(shapes(ROWS, 256, 3)):
        own = folder / f"n{row % 4:08}"
        own.mkdir(exist_ok=True)
        Image.fromarray(image).save(own / f"{row}.png", compress_level=1)
    return folder


WRITERS = {
    "fashion-mnist": write_fashion_mnist,
    "fashion-mnist-latent": write_fashion_mnist,
    "cifar10": write_cifar10,
    "celeba64": write_faces,
    "imagenet256-latent": write_class_folders,
}


def tiny_vae(folder: Path) -> Path:
    """A diffusers autoencoder as small as it can be, with the shape of Stable Diffusion's."""
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=4,
        mid_block_add_attention=False,
    ).save_pretrained(folder)
    return folder


def without_downloads(params: dict, folder: Path) -> None:
    """What a preset would fetch from the network, made here."""
    if params["features"]["extractor"] == "inception":
        params["features"] = {"extractor": "classifier", "images": 64, "batch": 16}
    if params["latent"]["encoder"] != "diffusers":
        return
    if importlib.util.find_spec("diffusers"):
        params["latent"]["model"] = str(tiny_vae(folder))
        return
    warnings.warn("no package diffusers: our own autoencoder in its place", stacklevel=2)
    kept = {key: params["latent"][key] for key in ("channels", "downsample", "flips")}
    params["latent"] = {"encoder": "autoencoder", "images": 64, "batch": 8, "width": 8, **kept}


@pytest.mark.presets
@pytest.mark.parametrize("name", NAMES)
def test_a_rehearsal_runs_from_raw_files_to_the_report(name, tmp_path, monkeypatch):
    monkeypatch.delenv("TSPACE_STORE", raising=False)
    (tmp_path / "presets").symlink_to(ROOT / "presets")
    preset.write_preset(Workspace(tmp_path), name, force=False, scale=1e-7, width=0.04)
    params = yaml.safe_load((tmp_path / "params.yaml").read_text())
    for folder in ("raw", "model"):
        (tmp_path / folder).mkdir()
    params["data"]["path"] = str(WRITERS[name](tmp_path / "raw"))
    without_downloads(params, tmp_path / "model")
    for recipe in params["recipes"].values():
        cut = recipe.get("partition", {})
        if cut.get("kind") == "optimal-denoiser":
            # Of so few images the two anchors' regions meet: nothing is left between them.
            cut |= {"method": "matrix", "nodes": 12}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))

    workspace = Workspace(tmp_path)
    run_stages(workspace)
    summary = json.loads((tmp_path / "results" / "summary.json").read_text())["recipes"]
    assert set(summary) == set(params["recipes"])
    for recipe, found in summary.items():
        assert found["images_seen"] >= 64, recipe
        # A classifier of so few images may have learnt nothing, and gives no score then.
        assert found["fid"] is None or np.isfinite(found["fid"]), recipe
