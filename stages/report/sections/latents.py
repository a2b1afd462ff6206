"""What the encoder makes of the images, and what of them comes back."""

from __future__ import annotations

import math

import numpy as np

from stages.numbers import count, counted, fixed, si
from stages.report.results import Encoder, Results
from stages.report.section import Codes, Section

PEAK = 2.0  # of images in [-1, 1]
HALF = np.dtype(np.float16).itemsize  # latents are stored in half precision


def section(results: Results) -> Section | None:
    """None for pixels."""
    if results.encoder is None:
        return None
    sampled = results.params.latent.sample
    facts = _facts(results.encoder, sampled)
    scores = results.summary.get("reconstruction", {})
    if "fid" in scores:
        text = f"FID {fixed([scores['fid']])[0]}"
        if scores.get("fid_interval"):
            low, high = fixed(scores["fid_interval"])
            text += f" ({low}..{high})"
        if "samples" in scores:
            text += f", {counted(scores['samples'], 'image')}"
        facts["reconstructions score"] = text
    data = {"facts": facts, "picture": results.pictures.reconstructions}
    return Section("latents", "Latents", data)


def _facts(encoder: Encoder, sampled: bool) -> dict[str, str | Codes]:
    about, sizes = encoder.about, encoder.shards
    shape, image = about["shape"], about["image_shape"]
    values, pixels = math.prod(shape), math.prod(image)
    stored = count(values * HALF * (2 if sampled else 1))
    mse = about["reconstruction_mse"]
    psnr = 10 * math.log10(PEAK**2 / mse) if mse else math.inf
    kind = "half precision, mean and variance" if sampled else "half precision"
    facts: dict[str, str | Codes] = {
        "kind": about["kind"],
        "encoder": Codes([encoder.job.name]),
        "latent": f"{_shape(shape)} = {count(values)} values",
        "image": f"{_shape(image)} = {count(pixels)} values",
        "values": f"{values / pixels:.3g} for one of the image's",
        "bytes per image": f"{stored} of latents ({kind}) for {count(pixels)} of pixels",
        "reconstruction": f"mean squared error {fixed([mse])[0]} of images in −1..1, PSNR "
        f"{psnr:.1f} dB, over {counted(about['images'], 'image')}",
    }
    if encoder.record is not None:
        record, seconds = encoder.record, encoder.made.get("seconds")
        facts["training"] = (
            f"{fixed([seconds], most=1)[0]} s, {counted(record['images'], 'image')}, "
            f"{si(record['parameters'])} parameters; shared by all recipes and not in their costs"
        )
    each = "..".join(dict.fromkeys(si(size, "B") for size in (min(sizes), max(sizes))))
    total = si(sum(sizes), "B")
    facts["shards"] = f"{counted(len(sizes), 'file')} of {each}, {total} in all"
    return facts


def _shape(shape: list[int]) -> str:
    return " × ".join(map(str, shape))
