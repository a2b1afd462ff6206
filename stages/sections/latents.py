"""What the encoder makes of the images, and what of them comes back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import plan
from stages.markup import Html, count, counted, el, fixed, join, si
from stages.sections.parts import Findings, Section, code, pairs, paragraph
from stages.sections.samples import embedded

PEAK = 2.0  # of images in [-1, 1]
HALF = np.dtype(np.float16).itemsize  # latents are stored in half precision


def latents(found: Findings, picture: Path | None) -> Section | None:
    """None for pixels. picture: a grid of originals above what was decoded from their latents."""
    params, facts, store = found.workspace.params, found.facts, found.workspace.store
    job = plan.encoder(params, facts)
    if job is None:
        return None
    entry = store.entry(job.name)
    about = entry.load_json("encoder.json")
    shape, image = about["shape"], about["image_shape"]
    values, pixels = math.prod(shape), math.prod(image)
    stored = values * HALF * (2 if params.latent.sample else 1)
    mse = about["reconstruction_mse"]
    psnr = 10 * math.log10(PEAK**2 / mse) if mse else math.inf
    facts_of = [
        ("encoder", f"{about['kind']}, ", code(job.name)),
        ("latent", f"{_shape(shape)} = {count(values)} values"),
        ("image", f"{_shape(image)} = {count(pixels)} values"),
        ("values", f"{values / pixels:.3g} for one of the image's"),
        (
            "bytes an image",
            f"{count(stored)} of latents (half precision"
            + (", mean and variance" if params.latent.sample else "")
            + f") for {count(pixels)} of pixels",
        ),
        (
            "reconstruction",
            f"mean squared error {fixed([mse])[0]} of images in −1..1, PSNR "
            f"{psnr:.1f} dB, over {counted(about['images'], 'image')}",
        ),
    ]
    if "record.json" in entry.files():
        record, made = entry.load_json("record.json"), entry.circumstances()
        facts_of.append(
            (
                "training",
                f"{fixed([made.get('seconds')], most=1)[0]} s, "
                f"{count(record['images'])} images, "
                f"{si(record['parameters'])} parameters; shared by all recipes and not in their "
                "costs",
            )
        )
    sizes = [
        store.entry(shard.name).files()["latents.arrow"]["bytes"]
        for shard in plan.latents(params, facts)
    ]
    each = si(sizes[0], "B") if len(sizes) == 1 else f"{si(min(sizes), 'B')}..{si(max(sizes), 'B')}"
    facts_of.append(
        ("shards", f"{counted(len(sizes), 'file')} of {each}, {si(sum(sizes), 'B')} in all")
    )
    facts_of += _scores(found.reconstruction or {})
    body = [
        paragraph(
            "Networks are trained on what an encoder makes of the images, and samples are decoded "
            "from it. Detail that the decoder cannot bring back no recipe can draw: judge its "
            "scores beside those of the reconstructions."
        ),
        pairs([(key, join(parts)) for key, *parts in facts_of]),
        _grid(picture),
    ]
    return Section("latents", "Latents", join(body))


def _shape(shape: list[int]) -> str:
    return " × ".join(map(str, shape))


def _scores(scores: dict[str, Any]) -> list[tuple[str, str]]:
    if "fid" not in scores:
        return []
    text = f"FID {fixed([scores['fid']])[0]}"
    if scores.get("fid_interval"):
        low, high = fixed(scores["fid_interval"])
        text += f" ({low}..{high})"
    if "samples" in scores:
        text += f", {counted(scores['samples'], 'image')}"
    return [("reconstructions score", text)]


def _grid(picture: Path | None) -> Html | None:
    if picture is None:
        return None
    source, width, height, _ = embedded(picture)
    alt = "Rows of images by turns: originals, and below each its reconstruction"
    image = el("img", src=source, alt=alt, width=width, height=height)
    caption = el("figcaption", "Originals, and below each what was decoded from its latent")
    return el("figure", caption, image, class_="picture")
