"""Latent encoders: exact resume, the KL term, the measured scale, and codecs through the disk."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from pipeline.data import codec, params
from pipeline.data.codec import DIFFUSERS_CLASSES, load_codec, measure
from pipeline.errors import UserError
from pipeline.networks.autoencoder import Autoencoder
from pipeline.rows import spread
from pipeline.store.files import reached
from pipeline.training import autoencoder
from pipeline.training.autoencoder import train_autoencoder
from pipeline.training.run import Interrupted
from tests.specs import block

SHAPE = (1, 8, 8)
SETTINGS = {
    "encoder": "autoencoder",
    "channels": 2,
    "downsample": 2,
    "width": 16,
    "blocks": 1,
    "images": 4000,
    "batch": 16,
    "learning_rate": 4e-3,
    "kl_weight": 1e-5,
}


@pytest.fixture(scope="module")
def digits():
    return (load_digits().images * 15.9375).astype(np.uint8)[:, None]


def train(digits, folder, stop=lambda: False, **changes):
    train_autoencoder(
        lambda rows: digits[rows],
        len(digits),
        shape=SHAPE,
        settings=block(params.Autoencoder, SETTINGS | changes),
        seed=3,
        folder=folder,
        stop=stop,
    )


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    train(digits, folder)
    return folder


def files(folder):
    names = ("encoder.safetensors", "encoder.json", "curve.json")
    return {name: (folder / name).read_bytes() for name in names}


@pytest.mark.parametrize("downsample, sides", [(2, (6, 10)), (4, (8, 12)), (8, (16, 8))])
def test_shapes_and_a_seed_that_touches_no_global_generator(downsample, sides):
    before = torch.get_rng_state()
    network = Autoencoder(3, 5, downsample, 16, 2, seed=7)
    assert torch.equal(before, torch.get_rng_state())
    x = torch.rand(2, 3, *sides)
    mean, log_variance = network.encode(x)
    assert mean.shape == log_variance.shape == (2, 5, *(side // downsample for side in sides))
    assert network.decode(mean).shape == x.shape
    again = Autoencoder(3, 5, downsample, 16, 2, seed=7).encode(x)[0]
    other = Autoencoder(3, 5, downsample, 16, 2, seed=8).encode(x)[0]
    assert torch.equal(mean, again) and not torch.equal(mean, other)


def test_kl_divergence_is_that_of_torch_distributions():
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = torch.randn(2, 100, generator=generator, dtype=torch.float64) * 3
    posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(autoencoder.kl_divergence(mean, log_variance), expected)


def test_reconstruction_loss_by_hand():
    x = np.random.default_rng(0).normal(size=(2, 2, 3, 4, 5))
    error = x[0] - x[1]
    across = np.abs(error[..., 1:] - error[..., :-1]).mean()
    down = np.abs(error[..., 1:, :] - error[..., :-1, :]).mean()
    expected = np.abs(error).mean() + (across + down) / 2
    found = autoencoder.reconstruction_loss(*torch.from_numpy(x))
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_digits_are_learnt(digits, trained):
    codec = load_codec(trained)
    assert codec.images == len(digits)
    scaled = digits / 127.5 - 1
    of_mean_image = np.square(scaled - scaled.mean(0)).mean()
    decoded = codec.decode(torch.from_numpy(codec.encode(digits)[0])) / 127.5 - 1
    error = np.square(decoded - scaled).mean()
    assert codec.reconstruction_mse == pytest.approx(error, rel=1e-9)
    assert error < 0.25 * of_mean_image


def test_scaled_latents_have_zero_mean_and_unit_average_variance(digits, trained):
    codec = load_codec(trained)
    mean, log_variance = codec.encode(digits)
    assert mean.shape == log_variance.shape == (len(digits), 2, 4, 4) == (len(digits), *codec.shape)
    wide = mean.astype(np.float64)
    np.testing.assert_allclose(codec.shift, wide.mean((0, 2, 3)), rtol=1e-9, atol=1e-12)
    assert codec.scale == pytest.approx(np.sqrt(wide.var((0, 2, 3)).mean()), rel=1e-9)
    shift = np.reshape(codec.shift, (-1, 1, 1))
    z = torch.from_numpy((wide[:20] - shift) / codec.scale)
    expected = codec.decode(torch.from_numpy(mean[:20]))
    assert np.abs(codec.to_images(z.float()).astype(int) - expected).max() <= 1


def test_measure_against_float64_on_a_fair_sample():
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (1000, 3, 2, 2), dtype=np.uint8)

    def encode(x):  # far from zero: plain float32 sums of squares would lose the variance
        return (x[:, :2] * np.float32(0.01) + np.float32(1000)).astype(np.float32), None

    def decode(latents):
        return np.repeat(np.full((len(latents), 1, 2, 2), 7, np.uint8), 3, axis=1)

    seen = []

    def rows(indices):
        seen.extend(indices.tolist())
        return images[indices]

    found = measure(encode, decode, rows, len(images), limit=300, batch=64)
    assert seen == spread(300, 1000).tolist()
    latents = encode(images[seen])[0].astype(np.float64)
    np.testing.assert_allclose(found["shift"], latents.mean((0, 2, 3)), rtol=1e-12)
    assert found["scale"] == pytest.approx(np.sqrt(latents.var((0, 2, 3)).mean()), rel=1e-9)
    mse = np.square((images[seen] - 7.0) / 127.5).mean()
    assert found["reconstruction_mse"] == pytest.approx(mse, rel=1e-12)
    assert found["images"] == 300
    with pytest.raises(UserError, match="the same"):
        measure(lambda x: (np.ones((len(x), 2, 1, 1), np.float32), None), decode, rows, 1000, 300)


def test_interrupted_and_resumed_is_bit_identical(digits, tmp_path):
    small = {"images": 700, "batch": 48}
    train(digits[:200], tmp_path / "whole", **small)
    train(digits[:200], tmp_path / "again", **small)
    calls = iter([False, False, False, False, True])
    for stop in (lambda: next(calls), lambda: True):
        with pytest.raises(Interrupted):
            train(digits[:200], tmp_path / "cut", stop=stop, **small)
    assert not (tmp_path / "cut" / "encoder.json").exists()
    assert reached(tmp_path / "cut" / "state", "checkpoint.pt") == 6 * 48
    train(digits[:200], tmp_path / "cut", **small)
    assert files(tmp_path / "whole") == files(tmp_path / "cut") == files(tmp_path / "again")


def test_codec_moved_to_another_folder_is_the_same(digits, trained, tmp_path):
    for name, content in files(trained).items():
        (tmp_path / name).write_bytes(content)
    here, there = load_codec(trained), load_codec(tmp_path)
    for one, other in zip(here.encode(digits[:9]), there.encode(digits[:9], batch=9), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="uint8"):
        here.encode(digits[:2] / 255)
    with pytest.raises(ValueError, match="latents of shape"):
        here.decode(torch.zeros(1, 3, 4, 4))


def test_damaged_and_missing_files_are_refused(trained, tmp_path):
    intact = files(trained)

    def refused(match, **changed):
        for name in ("encoder.json", "encoder.safetensors"):
            (tmp_path / name).unlink(missing_ok=True)
            content = changed.get(name.split(".")[1], intact[name])
            if content is not None:
                (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=match):
            load_codec(tmp_path)

    flipped = bytearray(intact["encoder.safetensors"])
    flipped[-5] ^= 1
    refused(r"encoder\.safetensors: damaged", safetensors=bytes(flipped))
    refused(r"encoder\.safetensors: no such file", safetensors=None)
    refused(r"encoder\.json: no such file", json=None)
    refused(r"encoder\.json: not the description", json=intact["encoder.json"][:40])
    other = json.loads(intact["encoder.json"])
    other["config"]["width"] = 24
    refused("not the weights of this", json=json.dumps(other).encode())


def test_settings_that_cannot_work_are_user_errors(digits, tmp_path):
    with pytest.raises(UserError, match=r"latent\.downsample: 16 does not divide .* 8x8"):
        train(digits, tmp_path, downsample=16)
    with pytest.raises(UserError, match=r"latent\.downsample must be a power of two"):
        Autoencoder(1, 2, 3, 16, 1)
    with pytest.raises(UserError, match=r"latent\.width"):
        train(digits, tmp_path, width=4)
    with pytest.raises(UserError, match="no longer finite"):
        train(digits, tmp_path, images=300, learning_rate=1e6)


def tiny_model(kind, folder, **changes):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    if kind == "AutoencoderKL":
        model = diffusers.AutoencoderKL(
            **{
                "in_channels": 3,
                "out_channels": 3,
                "down_block_types": ("DownEncoderBlock2D",) * 2,
                "up_block_types": ("UpDecoderBlock2D",) * 2,
                "block_out_channels": (8, 16),
                "norm_num_groups": 4,
                "latent_channels": 4,
                **changes,
            }
        )
    else:
        model = diffusers.AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
            latent_channels=3,
        )
    model.save_pretrained(folder)
    return model.eval()


def fetch(model, folder, images):
    codec.fetch_diffusers(
        str(model), folder, lambda rows: images[rows], len(images), shape=images.shape[1:]
    )


@pytest.mark.parametrize("kind", DIFFUSERS_CLASSES)
@pytest.mark.parametrize("channels", [1, 3])
def test_diffusers_codec_gives_what_the_model_gives(kind, channels, digits, tmp_path):
    model = tiny_model(kind, tmp_path / "model")
    images = np.repeat(digits[:40], channels, axis=1)
    fetch(tmp_path / "model", tmp_path / "codec", images)
    (tmp_path / "model").rename(tmp_path / "gone")
    before = torch.get_rng_state()
    codec = load_codec(tmp_path / "codec")
    assert torch.equal(before, torch.get_rng_state())
    assert str(tmp_path) not in (tmp_path / "codec" / "encoder.json").read_text()

    mean, log_variance = codec.encode(images)
    with torch.no_grad():
        x = torch.from_numpy(images).float() / 127.5 - 1
        encoded = model.encode(x.expand(-1, 3, -1, -1))
        if kind == "AutoencoderKL":
            expected = encoded.latent_dist.mean
            np.testing.assert_allclose(log_variance, encoded.latent_dist.logvar, atol=1e-4)
        else:
            expected = encoded.latents
            assert log_variance is None
        decoded = model.decode(expected).sample
    np.testing.assert_allclose(mean, expected, rtol=1e-4, atol=1e-4)
    if channels == 1:
        decoded = decoded.mean(1, keepdim=True)
    wanted = ((decoded + 1) * 127.5).round().clamp(0, 255).numpy()
    found = codec.decode(torch.from_numpy(mean))
    assert found.shape == images.shape and np.abs(found - wanted).max() <= 1
    assert codec.scale == pytest.approx(
        np.sqrt(mean.astype(np.float64).var((0, 2, 3)).mean()), rel=1e-5
    )


def test_diffusers_models_that_do_not_fit_are_user_errors(digits, tmp_path):
    tiny_model("AutoencoderKL", tmp_path / "model")
    with pytest.raises(UserError, match=r"multiples of 2.*7x7"):
        fetch(tmp_path / "model", tmp_path / "out", digits[:4, :, :7, :7])
    with pytest.raises(UserError, match="takes images of 3 channels"):
        fetch(tmp_path / "model", tmp_path / "out", np.repeat(digits[:4], 2, axis=1))
    with pytest.raises(UserError, match=r"latent\.model: cannot load"):
        fetch(tmp_path / "nothing", tmp_path / "out", digits[:4])
    weights = tmp_path / "model" / "diffusion_pytorch_model.safetensors"
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()  # only a pickle is left
    with pytest.raises(UserError, match=r"latent\.model: cannot load"):
        fetch(tmp_path / "model", tmp_path / "out", digits[:4])
    assert not (tmp_path / "out").exists()


def test_missing_diffusers_is_a_user_error(digits, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(UserError, match=r"pip install .* '\.\[diffusers\]'"):
        fetch(tmp_path, tmp_path / "out", digits[:4])
