"""Codecs: what turns images into latents and back, their files, and published ones."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from pipeline.errors import UserError, one_line
from pipeline.networks.autoencoder import Autoencoder
from pipeline.rows import spread
from pipeline.store.files import replacing, write_text
from pipeline.store.identity import canonical_json, file_digest

MEASURE_IMAGES = 10_000


WEIGHTS, ABOUT = "encoder.safetensors", "encoder.json"
DIFFUSERS_CLASSES = ("AutoencoderKL", "AutoencoderTiny")

Rows = Callable[[np.ndarray], np.ndarray]
Encode = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]
Decode = Callable[[Tensor], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Codec:
    """An encoder and its decoder, with what was measured of them.

    kind: `autoencoder` or `diffusers`. image_shape (C, H, W) of an image, shape (c, h, w) of its
    latents. shift (one per latent channel) and scale bring the means of the dataset's latents to
    zero mean per channel and unit average variance: z = (mean - shift) / scale.
    reconstruction_mse: of decoded means, on `images` images, all in [-1, 1] after rounding to 8
    bits.
    """

    kind: str
    image_shape: tuple[int, int, int]
    shape: tuple[int, int, int]
    shift: tuple[float, ...]
    scale: float
    reconstruction_mse: float
    images: int
    _encode: Encode = dataclasses.field(repr=False)
    _decode: Decode = dataclasses.field(repr=False)

    def encode(self, images: np.ndarray, batch: int = 256) -> tuple[np.ndarray, np.ndarray | None]:
        """uint8 [n, C, H, W] -> mean and log-variance of the latents, float32 [n, c, h, w] each.

        In the encoder's own units, not those of z. The log-variance is None for an encoder without
        one (`AutoencoderTiny`). Raises ValueError for images of another shape or type.
        """
        if images.dtype != np.uint8 or images.shape[1:] != self.image_shape:
            raise ValueError(
                f"images must be uint8 [n, {', '.join(map(str, self.image_shape))}], "
                f"not {images.dtype} {list(images.shape)}"
            )
        mean = np.empty((len(images), *self.shape), np.float32)
        log_variance: np.ndarray | None = np.empty_like(mean)
        for start in range(0, len(images), batch):
            part = slice(start, start + batch)
            mean[part], found = self._encode(images[part])
            if found is None:
                log_variance = None
            else:
                log_variance[part] = found
        return mean, log_variance

    def decode(self, latents: Tensor, batch: int = 256) -> np.ndarray:
        """Latents in the encoder's own units, float32 [n, c, h, w] -> uint8 [n, C, H, W].

        Raises ValueError for latents of another shape.
        """
        if tuple(latents.shape[1:]) != self.shape:
            raise ValueError(f"latents of shape {list(latents.shape)}, not [n, *{self.shape}]")
        images = np.empty((len(latents), *self.image_shape), np.uint8)
        for start in range(0, len(latents), batch):
            images[start : start + batch] = self._decode(latents[start : start + batch])
        return images

    def to_images(self, z: Tensor, batch: int = 256) -> np.ndarray:
        """Scaled latents z, as a network samples them, float32 [n, c, h, w] -> uint8 images."""
        shift = torch.tensor(self.shift, dtype=z.dtype, device=z.device).reshape(-1, 1, 1)
        return self.decode(z * self.scale + shift, batch)


def measure(
    encode: Encode, decode: Decode, rows: Rows, count: int, limit: int, batch: int = 256
) -> dict[str, Any]:
    """Moments of the latents' means, and the error of what is decoded from them.

    On at most `limit` of the `count` rows, a fair sample; streamed sums in float64. Returns
    `shift` (mean of each channel), `scale` (root of the average over the channels of the
    variance), `reconstruction_mse` (in [-1, 1]) and `images` (how many).

    Raises UserError for latents that are constant or not finite.
    """
    images = min(count, limit)
    chosen = spread(images, count)
    total = squares = origin = 0.0
    error, values = 0.0, 0
    for start in range(0, images, batch):
        x = rows(chosen[start : start + batch])
        mean, _ = encode(x)
        flat = np.moveaxis(mean.astype(np.float64), 1, 0).reshape(mean.shape[1], -1)
        if start == 0:  # sums about a point near the mean lose no digits to cancellation
            origin = flat.mean(1, keepdims=True)
        flat -= origin
        total += flat.sum(1)
        squares += np.square(flat).sum(1)
        values += flat.shape[1]
        decoded = decode(torch.from_numpy(mean)).astype(np.float64)
        error += np.square((decoded - x) / 127.5).sum() / x[0].size
    mean = total / values
    scale = math.sqrt((squares / values - np.square(mean)).clip(0).mean())
    shift = (origin[:, 0] + mean).tolist()
    if not (math.isfinite(scale) and scale > 0):
        raise UserError(
            "the latents of all images are the same, or not finite; lower latent.kl_weight or "
            "latent.learning_rate"
        )
    return {
        "shift": shift,
        "scale": scale,
        "reconstruction_mse": error / images,
        "images": images,
    }


def reconstructions(
    codec: Codec, images: Any, count: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """A fair sample of `count` training images of a `split.Split`, encoded and decoded.

    Their rows (int64 [n], ascending), images (uint8 [n, C, H, W]) and labels (or None), some at a
    time.
    """
    for rows, originals in images.chosen(images.some(count)):
        mean, _ = codec.encode(originals)
        yield rows, codec.decode(torch.from_numpy(mean)), images.labels_of(rows)


def write_codec(
    folder: Path,
    kind: str,
    network: nn.Module,
    config: Mapping[str, Any],
    image_shape: Sequence[int],
    latent_shape: Sequence[int],
    measured: Mapping[str, Any],
) -> None:
    """Write `encoder.safetensors` and `encoder.json`; equal arguments give equal bytes.

    config: what builds the network, JSON-like: arguments of `Autoencoder`, or the config of a
    `diffusers` class with its `_class_name`. measured: what `measure` returned.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS) as temporary:
        save_file({k: v.to("cpu", copy=True) for k, v in network.state_dict().items()}, temporary)
    about = {
        "kind": kind,
        "config": dict(config),
        "image_shape": list(image_shape),
        "shape": list(latent_shape),
        **measured,
        "weights": file_digest(folder / WEIGHTS),
    }
    write_text(folder / ABOUT, canonical_json(about) + "\n")


def load_codec(folder: Path, device: torch.device | str = "cpu") -> Codec:
    """Read what `write_codec` wrote.

    Raises UserError for files that are missing, damaged, or do not belong together, and for kind
    `diffusers` without that package.
    """
    folder, device = Path(folder), torch.device(device)
    path = folder / ABOUT
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        codec = {
            "kind": about["kind"],
            "image_shape": tuple(about["image_shape"]),
            "shape": tuple(about["shape"]),
            "shift": tuple(about["shift"]),
            "scale": float(about["scale"]),
            "reconstruction_mse": float(about["reconstruction_mse"]),
            "images": int(about["images"]),
        }
        config, checksum = about["config"], about["weights"]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; it describes the latent encoder") from None
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path}: not the description of a latent encoder ({one_line(e)})") from e

    path = folder / WEIGHTS
    try:
        if file_digest(path) != checksum:
            raise UserError(f"{path}: damaged, its checksum does not match; delete it, run again")
        weights = load(path.read_bytes())
        if codec["kind"] == "autoencoder":
            network = Autoencoder(**config)
        elif codec["kind"] == "diffusers":
            network = _diffusers_network(config)
        else:
            raise ValueError(f"unknown kind {codec['kind']!r}")
        network.load_state_dict(weights)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; it is the weights of the encoder") from None
    except (SafetensorError, OSError, RuntimeError, TypeError, ValueError) as e:
        raise UserError(f"{path}: not the weights of this latent encoder ({one_line(e)})") from e
    encode, decode = functions(network.to(device), codec["image_shape"], device)
    return Codec(**codec, _encode=encode, _decode=decode)


def fetch_diffusers(
    model: str,
    folder: Path,
    rows: Rows,
    count: int,
    *,
    shape: tuple[int, int, int],
    device: torch.device | str = "cpu",
    threads: int = 1,
    limit: int = MEASURE_IMAGES,
    log: Callable[[str], None] = lambda _: None,
) -> None:
    """Make a codec in `folder` of a pretrained `AutoencoderKL` or `AutoencoderTiny`.

    model: a folder that `save_pretrained` wrote, or the name of a model on the Hugging Face
    hub. Only safetensors weights are read, never pickles. The
    scale is measured as for our own; the model's `scaling_factor` is not used.
    rows, count, shape, limit: as for `train_autoencoder`. Images of one channel are repeated to the
    model's, and averaged back when decoded.

    Raises UserError if the package `diffusers` is missing, the model cannot be read, or it does not
    fit the images.
    """
    diffusers = _import_diffusers()
    torch.set_num_threads(threads)
    device = torch.device(device)
    try:
        config = dict(diffusers.AutoencoderKL.load_config(str(model)))
        name = config.get("_class_name")
        if name not in DIFFUSERS_CLASSES:
            raise ValueError(f"it is a {name}, not one of {', '.join(DIFFUSERS_CLASSES)}")
        network, report = getattr(diffusers, name).from_pretrained(
            str(model),
            use_safetensors=True,
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
        if report["missing_keys"] or report["mismatched_keys"]:
            raise ValueError(f"weights missing: {report['missing_keys'][:3]}")
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as e:
        raise UserError(
            f"latent.model: cannot load {str(model)!r} ({one_line(e)}); give a folder with "
            "config.json and diffusion_pytorch_model.safetensors, or the name of such a model on "
            "the hub"
        ) from e
    # Of the config as the class read it: defaults filled in, and no trace of where it came from.
    config = {k: v for k, v in json.loads(network.to_json_string()).items() if k[0] != "_"}
    config["_class_name"] = name
    levels = "down_block_types" if name == "AutoencoderKL" else "num_encoder_blocks"
    factor = 2 ** (len(config[levels]) - 1)
    if any(side % factor for side in shape[1:]):
        raise UserError(
            f"latent.model: {str(model)!r} needs images whose sides are multiples of "
            f"{factor}, these have {shape[1]}x{shape[2]} pixels; change data.resolution"
        )
    if shape[0] not in (1, config["in_channels"]):
        raise UserError(
            f"latent.model: {str(model)!r} takes images of {config['in_channels']} channels, these "
            f"have {shape[0]}; change data.channels"
        )
    log(f"{name} with {sum(p.numel() for p in network.parameters()):,} parameters")
    encode, decode = functions(network.to(device), shape, device)
    found = measure(encode, decode, rows, count, limit, batch=32)
    latent_shape = encode(rows(np.zeros(1, np.int64)))[0].shape[1:]
    write_codec(folder, "diffusers", network, config, shape, latent_shape, found)


def _import_diffusers() -> Any:
    try:
        import diffusers
    except ModuleNotFoundError as e:
        raise UserError(
            "latent.encoder: needs the package diffusers: "
            "pip install -c constraints.txt -e '.[diffusers]'"
        ) from e
    diffusers.utils.logging.set_verbosity_error()
    return diffusers


def _diffusers_network(config: Mapping[str, Any]) -> nn.Module:
    """A `diffusers` autoencoder of this config, its weights still to be loaded."""
    diffusers = _import_diffusers()
    name = config.get("_class_name")
    if name not in DIFFUSERS_CLASSES:
        raise ValueError(f"unknown class {name}")
    with torch.random.fork_rng(devices=[]):  # it draws weights that are then replaced
        return getattr(diffusers, name).from_config(dict(config))


def functions(
    network: nn.Module, image_shape: Sequence[int], device: torch.device
) -> tuple[Encode, Decode]:
    """Encode and decode of a network on arrays, one batch at a time."""
    network.eval().requires_grad_(False)
    ours = isinstance(network, Autoencoder)
    repeats = 1 if ours else network.config.in_channels // image_shape[0]
    varies = ours or type(network).__name__ == "AutoencoderKL"

    @torch.no_grad()
    def encode(images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        x = to_float(images, device).repeat(1, repeats, 1, 1)
        if ours:
            mean, log_variance = network.encode(x)
        elif varies:
            posterior = network.encode(x).latent_dist
            mean, log_variance = posterior.mean, posterior.logvar
        else:
            return network.encode(x).latents.float().cpu().numpy(), None
        return mean.float().cpu().numpy(), log_variance.float().cpu().numpy()

    @torch.no_grad()
    def decode(latents: Tensor) -> np.ndarray:
        found = network.decode(latents.to(device, torch.float32))
        x = found if ours else found.sample
        if repeats > 1:
            x = x.mean(1, keepdim=True)
        x = ((x.float() + 1) * 127.5).round_().clamp_(0, 255)
        return x.to(torch.uint8).cpu().numpy()

    return encode, decode


def shape_of_latents(shape: Sequence[int], channels: int, downsample: int) -> tuple[int, int, int]:
    return channels, shape[1] // downsample, shape[2] // downsample


def to_float(images: np.ndarray, device: torch.device) -> Tensor:
    """uint8 images to float32 in [-1, 1] on the device."""
    x = torch.from_numpy(np.ascontiguousarray(images)).to(device)
    return x.to(torch.float32).div_(127.5).sub_(1)
