"""The stage `merge`: each recipe's experts described as one model."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from typing import Any

from pipeline import plan
from pipeline.store.files import write_sealed
from stages.facts import facts_of, found_entries, part_of, read_intact
from stages.numbers import counted
from stages.workspace import Workspace


def merge(workspace: Workspace) -> None:
    """Every recipe's experts as one model, at each of its milestones."""
    facts = facts_of(workspace)
    shared = what_mixtures_share(workspace, facts)
    found = found_entries(workspace, "experts")

    def part(weights: plan.Weights) -> dict[str, str]:
        return part_of(weights.job, weights.file, found)

    target = workspace.artefacts("mixtures")
    fresh = target.with_name(f".mixtures.{os.getpid()}")
    for left in target.parent.glob(f".{target.name}.*"):  # by a run that was killed
        shutil.rmtree(left)
    fresh.mkdir(parents=True)
    try:
        for name, recipe in plan.experts(workspace.params, facts).items():
            milestones = [
                {"images": milestone, "mixture": mixture_at(recipe, milestone, shared, part)}
                for milestone in recipe.milestones
            ]
            write_sealed(fresh / f"{name}.json", {"milestones": milestones})
        shutil.rmtree(target, ignore_errors=True)
        os.replace(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    print(f"mixtures: {counted(len(workspace.params.recipes), 'recipe')}")


def mixture_at(
    recipe: plan.RecipePlan,
    milestone: int,
    shared: dict[str, Any],
    part: Callable[[plan.Weights], dict[str, str]],
) -> dict[str, Any]:
    """A recipe's experts at a milestone as one model. part: what a mixture says of a file."""
    from pipeline.sampling.clusters import routed
    from pipeline.sampling.mixture import describe

    terminal = shared["terminal"] if recipe.log_snr[-1] == -math.inf else None
    described = describe(
        recipe.experts[0].job.spec,
        [float(v) for v in recipe.log_snr],
        _members(recipe, milestone, part),
        **{**shared, "terminal": terminal},
    )
    if recipe.router is None:
        return described
    weights = recipe.router.weights
    return routed(described, part(weights), weights.spec, recipe.recipe.sampling.top)


def what_mixtures_share(workspace: Workspace, facts: plan.DatasetFacts) -> dict[str, Any]:
    """The latents' scale, what decodes them, and the data's means."""
    codec = plan.encoder(workspace.params, facts)
    spectrum = plan.spectrum(workspace.params, facts)
    terminal = part_of(spectrum, "means.safetensors", found_entries(workspace, "analyses"))
    if codec is None:
        spec = plan.latents(workspace.params, facts)[0].spec
        scale = {"shift": spec.shift, "scale": spec.scale}
        return scale | {"decoder": None, "terminal": terminal}
    decoder = part_of(codec, "encoder.json", found_entries(workspace, "latents"))
    files = found_entries(workspace, "latents")[codec.name]
    about = read_intact(workspace, "latents", codec.name, "encoder.json", files)
    scale = {key: about[key] for key in ("shift", "scale")}
    return scale | {"decoder": decoder, "terminal": terminal}


def _members(
    recipe: plan.RecipePlan, milestone: int, part: Callable[[plan.Weights], dict[str, str]]
) -> list[dict[str, Any]]:
    """The networks of a mixture, and the states that each owns."""
    from pipeline.sampling.mixture import member

    networks = recipe.weights(milestone)
    owners = [(e.first, e.last) for e in recipe.experts]
    if len(networks) < len(owners):  # they were merged
        owners = [(owners[0][0], owners[-1][1])]
    found = [
        member(part(weights), weights.spec, first, last)
        for weights, (first, last) in zip(networks, owners, strict=True)
    ]
    if recipe.router is None:
        return found
    return [one | {"cluster": e.cluster} for one, e in zip(found, recipe.experts, strict=True)]


def guide_of(workspace: Workspace, recipe: plan.RecipePlan, images: int) -> dict[str, Any] | None:
    """The mixture that the samples of a recipe's milestone are led away from; None without one."""
    guide = recipe.recipe.sampling.guide
    if guide is None or not recipe.guided(images):
        return None
    items = milestones_of(workspace, guide.recipe or recipe.name)
    known = {item["images"]: item["mixture"] for item in items}
    return known[guide.milestone or max(known)]


def milestones_of(workspace: Workspace, name: str) -> list[dict[str, Any]]:
    """A recipe's mixtures, by milestone."""
    return workspace.read_sealed(workspace.artefacts("mixtures") / f"{name}.json")["milestones"]
