"""The stages of `dvc.yaml`, each: read artefacts, plan, run, write artefacts."""

from __future__ import annotations

import os
import shutil
from typing import Any

from pipeline import config, plan
from pipeline.errors import UserError
from pipeline.identity import file_digest
from pipeline.store import write_json
from stages.fanout import fan_out
from stages.workspace import Workspace


def prepare(workspace: Workspace) -> None:
    """The raw images in their one normal form."""
    from pipeline.dataset import prepare as prepare_dataset

    data = workspace.params.data
    settings = data.model_dump()
    settings["path"] = None if data.path is None else workspace.root / data.path
    info = prepare_dataset(workspace.dataset, **settings)
    facts_of(workspace)
    classes = f", {len(info.classes)} classes" if info.classes else ", no labels"
    print(
        f"prepare: {info.rows:,} images of {info.resolution}x{info.resolution}, "
        f"{info.channels} channels{classes}, {info.duplicates} exact duplicates"
    )


def facts_of(workspace: Workspace) -> plan.DatasetFacts:
    """The prepared dataset, after checking that params.yaml is possible with it."""
    from pipeline.dataset import open_dataset

    facts = plan.facts(open_dataset(workspace.dataset).info)
    config.check_against(workspace.params, facts.rows, facts.resolution, facts.classes)
    return facts


def encode(workspace: Workspace) -> None:
    """The images as the networks see them, in shards that map into memory."""
    facts = facts_of(workspace)
    fan_out(workspace, "latents", lambda: plan.latents(_fresh(workspace), facts))


def features(workspace: Workspace) -> None:
    """The feature extractor, and the features of the real images."""
    facts = facts_of(workspace)
    fan_out(workspace, "features", lambda: [reference_job(workspace, _fresh(workspace), facts)])


def reference_job(
    workspace: Workspace, params: config.Params, facts: plan.DatasetFacts
) -> plan.Job:
    """The features job; UserError if a file that params.yaml names for it is missing."""
    settings = params.features.model_dump()
    named = {
        "module": (settings.get("module") or "").rpartition(":")[0],
        "weights": settings.get("weights"),
    }
    files = {}
    for key, path in named.items():
        if path:
            try:
                files[key] = file_digest(workspace.root / path)
            except OSError as e:
                raise UserError(f"features.{key}: {path}: cannot be read ({e.strerror})") from e
    return plan.features(params, facts, files)


def pair(workspace: Workspace) -> None:
    """For each image the noise it is trained with; nothing to store where it is independent."""
    facts = facts_of(workspace)

    def jobs() -> list[plan.Job]:
        recipes = plan.experts(_fresh(workspace), facts)
        experts = [expert for recipe in recipes.values() for expert in recipe.experts]
        return [job for expert in experts for job in expert.pairings]

    fan_out(workspace, "pairings", jobs, ("latents",))


def train(workspace: Workspace) -> None:
    """Every recipe's experts."""
    facts = facts_of(workspace)

    def jobs() -> list[plan.Job]:
        recipes = plan.experts(_fresh(workspace), facts)
        return [expert.job for recipe in recipes.values() for expert in recipe.experts]

    fan_out(workspace, "experts", jobs, ("latents", "pairings"))


def merge(workspace: Workspace) -> None:
    """Every recipe's experts as one model, at each of its milestones."""
    from pipeline.mixture import describe

    facts = facts_of(workspace)
    latents = plan.latents(workspace.params, facts)[0].spec
    target = workspace.artefacts("mixtures")
    fresh = target.with_name(f".mixtures.{os.getpid()}")
    fresh.mkdir(parents=True)
    try:
        for name, recipe in plan.experts(workspace.params, facts).items():
            milestones = []
            for milestone in recipe.milestones:
                experts = [_member(workspace, e, milestone) for e in recipe.experts]
                mixture = describe(
                    recipe.experts[0].job.spec,
                    [float(v) for v in recipe.log_snr],
                    experts,
                    latents["shift"],
                    latents["scale"],
                )
                milestones.append({"images": milestone, "mixture": mixture})
            write_json(fresh / f"{name}.json", {"milestones": milestones})
        shutil.rmtree(target, ignore_errors=True)
        os.replace(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    print(f"mixtures: {len(workspace.params.recipes)} recipes")


def _member(workspace: Workspace, expert: plan.Expert, milestone: int) -> dict[str, Any]:
    """An expert as a mixture names it, read from the stage's output and never by a glob."""
    folder = workspace.artefacts("experts")
    manifest = workspace.read_json(folder / "manifest.json")["entries"]
    known = {item["name"]: item["files"] for item in manifest}
    file = f"weights-{expert.snapshots[milestone]}.safetensors"
    if expert.job.name not in known:
        raise UserError(f"{folder}: has no {expert.job.label}; run `dvc repro train`")
    return {
        "entry": expert.job.name,
        "file": file,
        "sha256": known[expert.job.name][file]["sha256"],
        "conditioning": expert.job.spec["conditioning"],
        "first": expert.first,
        "last": expert.last,
    }


def milestones_of(workspace: Workspace, name: str) -> list[dict[str, Any]]:
    """A recipe's mixtures, by milestone."""
    path = workspace.artefacts("mixtures") / f"{name}.json"
    return workspace.read_json(path)["milestones"]


def sample_jobs(workspace: Workspace, params: config.Params) -> dict[tuple[str, int], list]:
    """The sampling jobs of each recipe and milestone."""
    recipes = plan.experts(params, facts_of(workspace))
    return {
        (name, item["images"]): plan.samples(
            params, recipe, item["mixture"], f"{name} at {item['images']:,}"
        )
        for name, recipe in recipes.items()
        for item in milestones_of(workspace, name)
    }


def sample(workspace: Workspace) -> None:
    """Samples of every recipe at every milestone."""

    def jobs() -> list[plan.Job]:
        return [j for part in sample_jobs(workspace, _fresh(workspace)).values() for j in part]

    fan_out(workspace, "samples", jobs, ("experts",))


def score_jobs(workspace: Workspace, params: config.Params) -> dict[tuple[str, int], plan.Job]:
    """The scoring job of each recipe and milestone."""
    reference = reference_job(workspace, params, facts_of(workspace))
    return {
        (name, images): plan.scores(params, shards, reference, f"{name} at {images:,}")
        for (name, images), shards in sample_jobs(workspace, params).items()
    }


def evaluate(workspace: Workspace) -> None:
    """Scores of every recipe at every milestone."""

    def jobs() -> list[plan.Job]:
        return list(score_jobs(workspace, _fresh(workspace)).values())

    fan_out(workspace, "scores", jobs, ("samples", "features"))


def _fresh(workspace: Workspace) -> config.Params:
    """params.yaml as it is now: a plan is made again after the jobs, to see whether it holds."""
    return config.load(workspace.root / "params.yaml")
