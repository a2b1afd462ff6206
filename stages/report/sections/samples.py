"""Samples of every recipe beside real images, with what its recipe says."""

from __future__ import annotations

from typing import Any

from stages.numbers import fixed
from stages.report.results import Results
from stages.report.section import Section


def section(results: Results) -> Section:
    fids = fixed([m["fid"] for m in results.metrics.values()])
    cards = {
        name: _card(results, name, fid) for name, fid in zip(results.recipes, fids, strict=True)
    }
    first = [unit.members[0] for unit in results.units]
    data = {
        "real": results.pictures.real,
        "cards": [cards[name] for name in first],
        "others": [card for name, card in cards.items() if name not in first],
    }
    return Section("samples", "Samples", data)


def _card(results: Results, name: str, fid: str) -> dict[str, Any]:
    recipe = results.recipes[name]
    return {
        "name": results.named(name),
        "recipe": recipe,
        "fid": fid,
        "picture": results.pictures.samples[name],
        "images": results.metrics[name]["images_seen"],
        "words": results.words[name],
        "origin": results.origins[name, recipe.milestones[-1]],
    }
