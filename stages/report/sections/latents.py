"""What the encoder makes of the images, and what of them comes back."""

from __future__ import annotations

import math

import numpy as np

from stages.report.results import Results
from stages.report.section import Section

PEAK = 2.0  # of images in [-1, 1]
HALF = np.dtype(np.float16).itemsize  # latents are stored in half precision


def section(results: Results) -> Section | None:
    """None for pixels."""
    encoder = results.encoder
    if encoder is None:
        return None
    values, sampled = math.prod(encoder.about["shape"]), results.params.latent.sample
    mse = encoder.about["reconstruction_mse"]
    data = {
        "encoder": encoder,
        "size": values,
        "pixels": math.prod(encoder.about["image_shape"]),
        "sampled": sampled,
        "stored": values * HALF * (2 if sampled else 1),
        "mse": mse,
        "psnr": 10 * math.log10(PEAK**2 / mse) if mse else math.inf,
        "scores": results.summary.get("reconstruction", {}),
        "picture": results.pictures.reconstructions,
    }
    return Section("latents", "Latents", data)
