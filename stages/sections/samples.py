"""Samples of every recipe, with what its recipe says."""

from __future__ import annotations

import base64
import io
import struct
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.plan import RecipePlan
from stages.groups import stem
from stages.markup import Html, count, counted, el, fixed, join
from stages.sections.parts import Findings, Section, code, details, paragraph
from stages.sections.provenance import Origin, as_yaml, params_file

EMBEDDED_BYTES = 500_000  # a larger picture is embedded reduced
EMBEDDED_PIXELS = 1200


def samples(found: Findings, origins: dict[tuple[str, int], Origin]) -> Section:
    words = _own_words(found)
    fids = dict(
        zip(found.recipes, fixed([found.metrics[n]["fid"] for n in found.recipes]), strict=True)
    )
    cards, others, reduced = [], [], False

    def card(name: str) -> Html:
        nonlocal reduced
        recipe = found.recipes[name]
        source, width, height, whole = embedded(found.pictures[name])
        reduced = reduced or not whole
        images = found.metrics[name]["images_seen"]
        alt = f"Grid of samples of {name} after {count(images)} images"
        own, origin = words[name], origins[name, recipe.milestones[-1]]
        side = el("span", f"FID {fids[name]}", class_="side")
        return el(
            "figure",
            el("h3", el("span", found.name(name)), side),
            el("img", src=source, alt=alt, width=width, height=height),
            el(
                "figcaption",
                paragraph(_in_words(recipe)),
                el("pre", own) if own else paragraph("The defaults, unchanged."),
                paragraph(
                    el("span", code(origin.mixture)),
                    *(el("span", code(n)) for n in origin.samples[:1]),
                    f"and {counted(len(origin.samples) - 1, 'more shard')}"
                    if len(origin.samples) > 1
                    else None,
                    kind="digests",
                ),
            ),
            class_="card",
        )

    if found.real is not None:
        source, width, height, whole = embedded(found.real)
        reduced = reduced or not whole
        image = el(
            "img", src=source, alt="Grid of images of the dataset", width=width, height=height
        )
        cards.append(
            el(
                "figure",
                el("h3", "real images"),
                image,
                el("figcaption", paragraph("Of the dataset: a fair sample, not chosen.")),
                class_="card",
            )
        )
    for unit in found.units:
        cards.append(card(unit.members[0]))
        others += [card(name) for name in unit.members[1:]]
    notes = (
        "The first samples that were scored, not chosen; number for number they start from the "
        "same noise in every recipe. Below each: what its recipe sets differently from the "
        "defaults in params.yaml, its mixture and its first samples."
    )
    if reduced:
        notes += (
            " Large pictures are reduced here; each recipe has its samples.png in recipes/, beside "
            "this page."
        )
    seeds = None
    if others:
        seeds = details(
            f"The other seeds: {counted(len(others), 'run')}", el("div", *others, class_="cards")
        )
    return Section(
        "samples", "Samples", join([paragraph(notes), el("div", *cards, class_="cards"), seeds])
    )


def embedded(path: Path) -> tuple[str, int, int, bool]:
    """A PNG as a data URI, its width and height, and whether it is the whole picture."""
    data, kind, whole = path.read_bytes(), "png", True
    width, height = struct.unpack(">II", data[16:24])
    if len(data) > EMBEDDED_BYTES:
        from PIL import Image

        with Image.open(path) as picture:
            small = picture.convert("RGB")
        small.thumbnail((EMBEDDED_PIXELS, EMBEDDED_PIXELS), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        small.save(out, format="JPEG", quality=85)
        data, kind, whole = out.getvalue(), "jpeg", False
        width, height = small.size
    text = base64.b64encode(data).decode()
    return f"data:image/{kind};base64,{text}", width, height, whole


def _own_words(found: Findings) -> dict[str, str]:
    """What each recipe says in params.yaml, as YAML."""
    raw: dict[str, Any] = YAML(typ="safe", pure=True).load(params_file(found.workspace))["recipes"]
    words = {}
    for name, recipe in found.recipes.items():
        own = raw[name] if name in raw else raw[stem(name, recipe.recipe.seed)]
        words[name] = as_yaml(own, 40) if own else ""
    return words


def _in_words(recipe: RecipePlan) -> str:
    states = "Continuous states" if recipe.continuous else counted(len(recipe.log_snr), "state")
    sampling = recipe.recipe.sampling
    visited = counted(len(recipe.sampling_states), "step")
    experts = counted(len(recipe.experts), "expert")
    return f"{states}, {experts}, sampled by {sampling.kind} in {visited}."
