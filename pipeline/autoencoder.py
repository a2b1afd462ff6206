"""Latent encoders: uint8 images to latents and back, ours or a pretrained one of `diffusers`.

Ours is a small convolutional autoencoder with a Gaussian posterior (Kingma & Welling 2014) whose
KL term is weak (Rombach et al. 2022, arXiv 2112.10752): it keeps the latents bounded and smooth,
and hides nothing that the decoder needs. Training draws by position, as that of an expert does:
image i of the run is row `permutation[i mod N]` of pass i // N and its posterior noise is number i,
so that a run that was killed and resumed gives the very bits of one that was not.

Either kind ends as a `Codec`, two files in a folder that need nothing else: no network, and none
of the paths they came from.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from pipeline import noise
from pipeline.ema import EMA
from pipeline.errors import UserError, one_line
from pipeline.files import replacing, write_text
from pipeline.identity import canonical_json, file_digest
from pipeline.networks.unet import EPS, initialise, norm_groups
from pipeline.optim import apply, make_optimizer, rate_and_momentum
from pipeline.rows import spread
from pipeline.run import CURVE_POINTS, Progress, Run

BETAS = (0.9, 0.99)
WARMUP = 0.02  # parts of the budget
EMA_HALFLIFE = 0.02
GRADIENT_WEIGHT = 1.0
MIN_WIDTH = 8
MEASURE_IMAGES = 10_000
LOG_VARIANCE = (-20.0, 10.0)  # beyond these a posterior is, to float32, a point or pure noise
WEIGHTS, ABOUT = "encoder.safetensors", "encoder.json"
DIFFUSERS_CLASSES = ("AutoencoderKL", "AutoencoderTiny")

Rows = Callable[[np.ndarray], np.ndarray]
Encode = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]
Decode = Callable[[Tensor], np.ndarray]


def _conv(c_in: int, c_out: int, stride: int = 1, zero: bool = False) -> nn.Conv2d:
    conv = nn.Conv2d(c_in, c_out, 3, stride, padding=1)
    conv.zero_init = zero
    return conv


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(norm_groups(width), width, EPS)


class _Block(nn.Module):
    """Residual block, [N, width, H, W] to the same."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.conv1 = _norm(width), _conv(width, width)
        self.norm2, self.conv2 = _norm(width), _conv(width, width, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class Autoencoder(nn.Module):
    """Images [N, image_channels, H, W] in [-1, 1] to Gaussians over latents, and back.

    image_channels, channels: of an image, and of its latents. downsample: the side of an image over
    that of its latents, a power of two from 2. width: channels at the latents' resolution, halved
    (down to 8) for each doubling of the resolution, so that all levels cost about the same. blocks:
    residual blocks a level, in encoder and decoder each; there are none at full resolution, where
    they would cost most and see least.

    The weights are a function of `seed` alone; no global generator is read or moved. Raises
    UserError for a setting out of range.
    """

    def __init__(
        self,
        image_channels: int,
        channels: int,
        downsample: int,
        width: int,
        blocks: int,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ):
        super().__init__()
        _require(channels >= 1, "channels", f"must be at least 1, got {channels}")
        power_of_two = downsample > 1 and downsample & (downsample - 1) == 0
        _require(power_of_two, "downsample", f"must be a power of two from 2, got {downsample}")
        _require(width >= MIN_WIDTH, "width", f"must be at least {MIN_WIDTH}, got {width}")
        _require(blocks >= 0, "blocks", f"must not be negative, got {blocks}")
        self.downsample = downsample
        levels = downsample.bit_length() - 1
        widths = [max(width >> level, MIN_WIDTH) for level in range(levels, -1, -1)]
        with torch.device("meta"):
            encoder: list[nn.Module] = [_conv(image_channels, widths[0])]
            decoder: list[nn.Module] = [_conv(channels, width)]
            for fine, coarse in itertools.pairwise(widths):
                encoder += [_conv(fine, coarse, stride=2), *(_Block(coarse) for _ in range(blocks))]
            for coarse, fine in itertools.pairwise(reversed(widths)):
                decoder += [*(_Block(coarse) for _ in range(blocks))]
                decoder += [nn.Upsample(scale_factor=2.0, mode="nearest"), _conv(coarse, fine)]
            encoder += [_norm(width), nn.SiLU(), _conv(width, 2 * channels)]
            decoder += [_norm(widths[0]), nn.SiLU(), _conv(widths[0], image_channels)]
            self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)
        self.to_empty(device=device)
        initialise(self, seed)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images -> mean and log-variance, [N, channels, H / downsample, W / downsample] each.

        Raises UserError unless `downsample` divides H and W.
        """
        check_divides(x.shape[-2:], self.downsample)
        mean, log_variance = self.encoder(x).chunk(2, 1)
        return mean, log_variance.clamp(*LOG_VARIANCE)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> images, not clipped to [-1, 1]."""
        return self.decoder(latents)


def check_divides(sides: Sequence[int], downsample: int) -> None:
    """UserError unless `downsample` divides both sides (height, width) of an image."""
    height, width = sides
    if height % downsample or width % downsample:
        raise UserError(
            f"latent.downsample: {downsample} does not divide images of {height}x{width} pixels; "
            "choose another, or a multiple of it as data.resolution"
        )


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) of each latent value, in nats, same shape."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


def reconstruction_loss(decoded: Tensor, images: Tensor) -> Tensor:
    """Mean absolute error of the values, plus that of their differences to the next pixel.

    The second term is what blur costs: it counts edges as much as areas.
    """
    error = decoded - images
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + GRADIENT_WEIGHT / 2 * edges


def train_autoencoder(
    rows: Rows,
    count: int,
    *,
    shape: tuple[int, int, int],
    settings: Mapping[str, Any],
    seed: int,
    folder: Path,
    device: torch.device | str = "cpu",
    threads: int = 1,
    limit: int = MEASURE_IMAGES,
    progress: Callable[[Progress], None] = lambda _: None,
    log: Callable[[str], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train an `Autoencoder`, from its checkpoint in `folder`/state if there is one.

    rows: dataset rows (int64 [n]) to uint8 images [n, *shape]; count: rows in the dataset.
    settings: `channels`, `downsample`, `width`, `blocks` of the autoencoder; `images`, the budget;
        `batch`; `learning_rate`, its peak: a warm-up over the first 2% of the budget, then a cosine
        to zero; `kl_weight`, the factor on the KL divergence averaged over all latent values, added
        to a `reconstruction_loss` averaged over all pixel values (of images in [-1, 1]).

    limit: rows that the finished codec is measured on, at most.

    Leaves in `folder` a codec (`load_codec`) with the averaged weights; `curve.json` (mean loss
    over the run) and `record.json` (images, parameters).

    Raises Interrupted, with the checkpoint written, once `stop()` is true; UserError for settings
    that do not fit the images, a damaged checkpoint, or a loss that is no longer finite.
    """
    check_divides(shape[1:], settings["downsample"])
    for key in ("images", "batch"):
        _require(settings[key] >= 1, key, f"must be at least 1, got {settings[key]}")
    _require(settings["kl_weight"] >= 0, "kl_weight", "must not be negative")
    torch.set_num_threads(threads)
    device = torch.device(device)
    config = {key: settings[key] for key in ("channels", "downsample", "width", "blocks")}
    config = {"image_channels": shape[0], **config}
    network = Autoencoder(**config, seed=noise.derive_key(seed, "weights") >> 1, device=device)
    optimizer = make_optimizer(network.parameters(), "adam", settings["learning_rate"], BETAS)
    budget, batch = settings["images"], settings["batch"]
    ema = EMA(network, budget * EMA_HALFLIFE)
    parts = {"network": network, "optimizer": optimizer, "ema": ema}
    run = Run(folder, parts, device, log)
    run.resume()

    rows_key, noise_key = noise.derive_key(seed, "rows"), noise.derive_key(seed, "posterior")
    slot, order = -1, np.empty(0, np.int64)
    latent_shape = _latent_shape(shape, settings["channels"], settings["downsample"])
    step = max(batch, budget // CURVE_POINTS)
    with run:
        while run.images < budget:
            start, stop_at = run.images, min(run.images + batch, budget)
            positions = np.arange(start, stop_at, dtype=np.int64)
            slots, places = np.divmod(positions, count)
            chosen = np.empty_like(positions)
            for due in np.unique(slots):
                if due != slot:
                    slot, order = int(due), noise.permutation(rows_key, int(due), count)
                chosen[slots == due] = order[places[slots == due]]
            x = _to_float(rows(chosen), device)
            eps = noise.normal(noise_key, 0, torch.from_numpy(positions).to(device), latent_shape)
            mean, log_variance = network.encode(x)
            decoded = network.decode(mean + (0.5 * log_variance).exp() * eps)
            loss = reconstruction_loss(decoded, x)
            loss = loss + settings["kl_weight"] * kl_divergence(mean, log_variance).mean()
            loss.backward()
            factor, beta1 = rate_and_momentum(
                "cosine",
                start / budget,
                stop_at,
                beta0=BETAS[0],
                floor=0.0,
                warmup_images=int(budget * WARMUP),
            )
            apply(optimizer, settings["learning_rate"] * factor, beta1)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            ema.update(start, stop_at - start)
            run.add_loss(loss, stop_at - start)

            due = start // step != stop_at // step or stop_at == budget
            if due and not math.isfinite(run.close_point()):
                raise UserError(
                    f"the loss of the autoencoder is no longer finite after {stop_at} images; "
                    "lower latent.learning_rate"
                )
            run.tell(progress, budget)
            # The last one: a kill while the result is measured repeats no training.
            if stop() and stop_at < budget:
                run.interrupt()
            if run.due() or stop_at == budget:
                run.checkpoint()

    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(ema.weights[name])
    encode, decode = _functions(network, shape, device)
    found = measure(encode, decode, rows, count, limit)
    write_codec(folder, "autoencoder", network, config, shape, latent_shape, found)
    write_text(folder / "curve.json", canonical_json(run.curve) + "\n")
    parameters = sum(p.numel() for p in network.parameters())
    record = {"images": budget, "parameters": parameters}
    write_text(folder / "record.json", canonical_json(record) + "\n")


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
    encode, decode = _functions(network.to(device), codec["image_shape"], device)
    return Codec(**codec, _encode=encode, _decode=decode)


def fetch_diffusers(
    model: str,
    folder: Path,
    rows: Rows,
    count: int,
    *,
    shape: tuple[int, int, int],
    revision: str | None = None,
    device: torch.device | str = "cpu",
    threads: int = 1,
    limit: int = MEASURE_IMAGES,
    log: Callable[[str], None] = lambda _: None,
) -> None:
    """Make a codec in `folder` of a pretrained `AutoencoderKL` or `AutoencoderTiny`.

    model: a folder that `save_pretrained` wrote, or the name of a model on the Hugging Face hub
    (`revision`: its branch, tag or commit). Only safetensors weights are read, never pickles. The
    scale is measured as for our own; the model's `scaling_factor` is not used.
    rows, count, shape, limit: as for `train_autoencoder`. Images of one channel are repeated to the
    model's, and averaged back when decoded.

    Raises UserError if the package `diffusers` is missing, the model cannot be read, or it does not
    fit the images.
    """
    diffusers = _import_diffusers()
    torch.set_num_threads(threads)
    device = torch.device(device)
    source = {} if revision is None else {"revision": revision}
    try:
        config = dict(diffusers.AutoencoderKL.load_config(str(model), **source))
        name = config.get("_class_name")
        if name not in DIFFUSERS_CLASSES:
            raise ValueError(f"it is a {name}, not one of {', '.join(DIFFUSERS_CLASSES)}")
        network, report = getattr(diffusers, name).from_pretrained(
            str(model),
            use_safetensors=True,
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,
            output_loading_info=True,
            **source,
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
    encode, decode = _functions(network.to(device), shape, device)
    found = measure(encode, decode, rows, count, limit, batch=32)
    latent_shape = encode(rows(np.zeros(1, np.int64)))[0].shape[1:]
    write_codec(folder, "diffusers", network, config, shape, latent_shape, found)


def _import_diffusers() -> Any:
    try:
        import diffusers
    except ModuleNotFoundError as e:
        raise UserError(
            "latent: this encoder needs the package diffusers; pip install 'tspace[latents]'"
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


def _functions(
    network: nn.Module, image_shape: Sequence[int], device: torch.device
) -> tuple[Encode, Decode]:
    """Encode and decode of a network on arrays, one batch at a time."""
    network.eval().requires_grad_(False)
    ours = isinstance(network, Autoencoder)
    repeats = 1 if ours else network.config.in_channels // image_shape[0]
    varies = ours or type(network).__name__ == "AutoencoderKL"

    @torch.no_grad()
    def encode(images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        x = _to_float(images, device).repeat(1, repeats, 1, 1)
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


def _latent_shape(shape: Sequence[int], channels: int, downsample: int) -> tuple[int, int, int]:
    return channels, shape[1] // downsample, shape[2] // downsample


def _to_float(images: np.ndarray, device: torch.device) -> Tensor:
    """uint8 images to float32 in [-1, 1] on the device."""
    x = torch.from_numpy(np.ascontiguousarray(images)).to(device)
    return x.to(torch.float32).div_(127.5).sub_(1)


def _require(ok: bool, key: str, problem: str) -> None:
    if not ok:
        raise UserError(f"latent.{key} {problem}")
