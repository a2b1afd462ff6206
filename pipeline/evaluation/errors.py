"""How well a model denoises images that it was not trained on, at each noise level.

One number for all levels misleads: a recipe can gain where images are nearly clean and lose where
their layout is decided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from pipeline.data.latents import Latents
from pipeline.noise import philox, process
from pipeline.rows import spread

MOST = 1024  # held-out images, each with one noise at all levels


def held_out_errors(
    mixture: Any,
    latents: Latents,
    levels: Sequence[float],
    *,
    seed: int,
    batch: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Squared error of a `mixture.Mixture` in `v` at each log-SNR, over a fair sample of held-out
    images.

    The same images and noises at all levels and for all mixtures. Whatever a network predicts, its
    answer is an estimate of the clean image, whose error times 1 + snr is that of `v`: of unit
    size at every level for a network that knows nothing.
    `log_snr`, `error` (mean) and `std` (over images; both [L]), and the number of `images`.
    """
    count = min(MOST, len(latents))
    rows = spread(count, len(latents), latents.labels)
    z = latents.gather(rows)
    ids = torch.arange(count, device=mixture.device)
    eps = philox.normal(philox.derive_key(seed, "held-out errors"), 0, ids, latents.shape)
    labels = None
    if mixture.description["classes"]:
        labels = torch.as_tensor(latents.labels[rows], device=mixture.device)
    denoise = mixture.denoiser(labels, batch=batch)
    errors, deviations = [], []
    for done, level in enumerate(levels):
        found = process.squared_error(denoise(process.add_noise(z, eps, level), level), z).double()
        found = found * (1 + math.exp(level))
        errors.append(found.mean().item())
        deviations.append(found.std(correction=0).item())
        progress(done + 1, len(levels))
    return {"log_snr": list(levels), "error": errors, "std": deviations, "images": count}
