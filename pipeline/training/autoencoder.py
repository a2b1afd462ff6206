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

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.data import params
from pipeline.data.codec import (
    MEASURE_IMAGES,
    Rows,
    functions,
    measure,
    shape_of_latents,
    to_float,
    write_codec,
)
from pipeline.errors import UserError
from pipeline.networks.autoencoder import Autoencoder, check_divides
from pipeline.noise import philox
from pipeline.store.files import write_text
from pipeline.store.identity import canonical_json
from pipeline.training.ema import EMA
from pipeline.training.optim import Adam, apply, rate_and_momentum
from pipeline.training.run import CURVE_POINTS, Progress, Run

BETAS = (0.9, 0.99)
WARMUP = 0.02  # parts of the budget
EMA_HALFLIFE = 0.02
GRADIENT_WEIGHT = 1.0


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
    settings: params.Autoencoder,
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
    settings: a block `latent` of params.yaml. Its learning rate is the peak: a warm-up over the
        first 2% of the budget, then a cosine to zero. Its KL weight is a factor on the divergence
        averaged over all latent values, which is added to a `reconstruction_loss` averaged over all
        pixel values (of images in [-1, 1]).

    limit: rows that the finished codec is measured on, at most.

    Leaves in `folder` a codec (`load_codec`) with the averaged weights; `curve.json` (mean loss
    over the run) and `record.json` (images, parameters).

    Raises Interrupted, with the checkpoint written, once `stop()` is true; UserError for settings
    that do not fit the images, a damaged checkpoint, or a loss that is no longer finite.
    """
    check_divides(shape[1:], settings.downsample)
    torch.set_num_threads(threads)
    device = torch.device(device)
    config = {
        "image_channels": shape[0],
        "channels": settings.channels,
        "downsample": settings.downsample,
        "width": settings.width,
        "blocks": settings.blocks,
    }
    network = Autoencoder(**config, seed=philox.derive_key(seed, "weights") >> 1, device=device)
    optimizer = Adam(network.parameters(), settings.learning_rate, BETAS, weight_decay=0.0)
    budget, batch = settings.images, settings.batch
    ema = EMA(network, budget * EMA_HALFLIFE)
    parts = {"network": network, "optimizer": optimizer, "ema": ema}
    run = Run(folder, parts, device, log)
    run.resume()

    rows_key, noise_key = philox.derive_key(seed, "rows"), philox.derive_key(seed, "posterior")
    slot, order = -1, np.empty(0, np.int64)
    latent_shape = shape_of_latents(shape, settings.channels, settings.downsample)
    step = max(batch, budget // CURVE_POINTS)
    with run:
        while run.images < budget:
            start, stop_at = run.images, min(run.images + batch, budget)
            positions = np.arange(start, stop_at, dtype=np.int64)
            slots, places = np.divmod(positions, count)
            chosen = np.empty_like(positions)
            for due in np.unique(slots):
                if due != slot:
                    slot, order = int(due), philox.permutation(rows_key, int(due), count)
                chosen[slots == due] = order[places[slots == due]]
            x = to_float(rows(chosen), device)
            eps = philox.normal(noise_key, 0, torch.from_numpy(positions).to(device), latent_shape)
            mean, log_variance = network.encode(x)
            decoded = network.decode(mean + (0.5 * log_variance).exp() * eps)
            loss = reconstruction_loss(decoded, x)
            loss = loss + settings.kl_weight * kl_divergence(mean, log_variance).mean()
            loss.backward()
            factor, beta1 = rate_and_momentum(
                "cosine",
                start / budget,
                stop_at,
                beta0=BETAS[0],
                floor=0.0,
                reference_images=None,
                warmup_images=int(budget * WARMUP),
            )
            apply(optimizer, settings.learning_rate * factor, beta1)
            optimizer.step()
            optimizer.zero_grad()
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
    encode, decode = functions(network, shape, device)
    found = measure(encode, decode, rows, count, limit)
    write_codec(folder, "autoencoder", network, config, shape, latent_shape, found)
    write_text(folder / "curve.json", canonical_json(run.curve) + "\n")
    parameters = sum(p.numel() for p in network.parameters())
    record = {"images": budget, "parameters": parameters}
    write_text(folder / "record.json", canonical_json(record) + "\n")
