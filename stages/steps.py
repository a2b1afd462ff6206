"""The stages of `dvc.yaml`, each: read artefacts, plan, run, write artefacts."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
from collections.abc import Mapping
from typing import Any

from pipeline import config, feasibility, plan
from pipeline.errors import UserError
from pipeline.files import write_sealed
from pipeline.identity import file_digest
from stages.fanout import drop_damaged, fan_out
from stages.numbers import counted
from stages.source import raw_path
from stages.workspace import Workspace

SHOWN_RECONSTRUCTIONS = 32


def prepare(workspace: Workspace) -> None:
    """The raw images in their one normal form."""
    from pipeline.dataset import prepare as prepare_dataset

    data = workspace.params.data
    settings = data.model_dump(exclude={"holdout"})
    settings["path"] = raw_path(workspace)
    info = prepare_dataset(workspace.dataset, **settings)
    facts = facts_of(workspace, analysed=False)
    plan.check(workspace.params, facts)
    # Labels need not start at 0: a class without images is only the room that its number takes.
    found = sum(count > 0 for count in info.class_counts or ())
    classes = counted(found, "class", "classes") if found else "no labels"
    print(
        f"prepare: {counted(info.rows, 'image')} of {info.resolution}x{info.resolution}, "
        f"{counted(info.channels, 'channel')}, {classes}, "
        f"{counted(info.duplicates, 'exact duplicate')}"
    )
    for doubt in feasibility.doubts(workspace.params, facts.rows, facts.class_counts):
        print(f"WARNING: {doubt}")


def facts_of(workspace: Workspace, analysed: bool = True) -> plan.DatasetFacts:
    """The prepared dataset, after checking that params.yaml is possible with it.

    analysed: with what the stage `analyse` found, which the stages before it do without.
    """
    from pipeline.dataset import open_dataset

    info = open_dataset(workspace.dataset).info
    feasibility.check_against(
        workspace.params, info.rows, info.resolution, info.channels, len(info.classes or ())
    )
    files = _extractor_files(workspace)
    found = _analysed(workspace) if analysed else {}
    return plan.facts(info, workspace.params.data.holdout, found, files)


def class_names(workspace: Workspace) -> tuple[str, ...]:
    """Names of the prepared dataset's classes, by label; empty without labels."""
    from pipeline.dataset import open_dataset

    return tuple(open_dataset(workspace.dataset).info.classes or ())


def _analysed(workspace: Workspace) -> dict[str, Any]:
    """What the stage `analyse` found, by job name; empty before it ran."""
    if not (workspace.artefacts("analyses") / "manifest.json").exists():
        return {}
    return {
        name: _read(workspace, "analyses", name, "analysis.json", files)
        for name, files in _found(workspace, "analyses").items()
        if "analysis.json" in files
    }


def _read(
    workspace: Workspace, stage: str, name: str, file: str, files: dict[str, dict[str, Any]]
) -> Any:
    """A JSON file of a stage's output as its manifest has it: from there, or from the store."""
    entry = workspace.store.entry(name)
    path = workspace.artefacts(stage) / entry.digest / file
    known = files[file]["sha256"]
    if path.is_file() and file_digest(path) == known:
        return workspace.read_json(path)
    if entry.done and entry.files().get(file, {}).get("sha256") == known:
        return entry.load_json(file)
    raise UserError(f"{path}: damaged or missing; delete {path.parent} and run `dvc repro`")


def encode(workspace: Workspace) -> None:
    """The images as the networks see them, in shards that map into memory."""
    facts = facts_of(workspace, analysed=False)

    def jobs() -> list[plan.Job]:
        params = _fresh(workspace)
        codec = plan.encoder(params, facts)
        shards = plan.latents(params, facts) + plan.held_out(params, facts)
        return [codec, *shards] if codec else shards

    fan_out(workspace, "latents", jobs)


def analyse(workspace: Workspace) -> None:
    """What schedules and partitions are fitted to."""
    drop_damaged(workspace, "analyses")
    facts = facts_of(workspace)
    # Where states are fitted, the partitions of these states are the second thing to measure.
    fan_out(workspace, "analyses", lambda: plan.analyses(_fresh(workspace), facts), ("latents",))
    found = dataclasses.replace(facts, analyses=_analysed(workspace))
    if len(plan.analyses(workspace.params, found)) > len(found.analyses):
        fan_out(
            workspace, "analyses", lambda: plan.analyses(_fresh(workspace), found), ("latents",)
        )


def features(workspace: Workspace) -> None:
    """The feature extractor, and the features of the real images."""
    from pipeline.scores import features_warning

    facts = facts_of(workspace, analysed=False)
    fan_out(workspace, "features", lambda: [plan.features(_fresh(workspace), facts)])
    made = workspace.store.entry(plan.features(workspace.params, facts).name)
    warning = features_warning(made.load_json("report.json"))
    if warning:
        print(f"WARNING: {warning}")


def _extractor_files(workspace: Workspace) -> dict[str, str]:
    """Checksums of the files that params.yaml names for the extractor; UserError without one."""
    settings = workspace.params.features.model_dump()
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
    return files


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
        recipes = plan.experts(_fresh(workspace), facts).values()
        trained = [expert.job for recipe in recipes for expert in recipe.experts]
        return trained + [job for recipe in recipes for job in recipe.merged.values()]

    fan_out(workspace, "experts", jobs, ("latents", "analyses", "features", "pairings"))


def merge(workspace: Workspace) -> None:
    """Every recipe's experts as one model, at each of its milestones."""
    from pipeline.mixture import describe

    facts = facts_of(workspace)
    shared = _what_mixtures_share(workspace, facts)
    found = _found(workspace, "experts")
    target = workspace.artefacts("mixtures")
    fresh = target.with_name(f".mixtures.{os.getpid()}")
    for left in target.parent.glob(f".{target.name}.*"):  # by a run that was killed
        shutil.rmtree(left)
    fresh.mkdir(parents=True)
    try:
        for name, recipe in plan.experts(workspace.params, facts).items():
            terminal = shared["terminal"] if recipe.log_snr[-1] == -math.inf else None
            milestones = []
            for milestone in recipe.milestones:
                mixture = describe(
                    recipe.experts[0].job.spec,
                    [float(v) for v in recipe.log_snr],
                    _members(recipe, milestone, found),
                    **{**shared, "terminal": terminal},
                )
                milestones.append({"images": milestone, "mixture": mixture})
            write_sealed(fresh / f"{name}.json", {"milestones": milestones})
        shutil.rmtree(target, ignore_errors=True)
        os.replace(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    print(f"mixtures: {counted(len(workspace.params.recipes), 'recipe')}")


def _what_mixtures_share(workspace: Workspace, facts: plan.DatasetFacts) -> dict[str, Any]:
    """The latents' scale, what decodes them, and the data's means."""
    codec = plan.encoder(workspace.params, facts)
    spectrum = plan.spectrum(workspace.params, facts)
    terminal = _part(spectrum, "means.safetensors", _found(workspace, "analyses"))
    if codec is None:
        spec = plan.latents(workspace.params, facts)[0].spec
        scale = {key: spec[key] for key in ("shift", "scale")}
        return scale | {"decoder": None, "terminal": terminal}
    decoder = _part(codec, "encoder.json", _found(workspace, "latents"))
    files = _found(workspace, "latents")[codec.name]
    about = _read(workspace, "latents", codec.name, "encoder.json", files)
    scale = {key: about[key] for key in ("shift", "scale")}
    return scale | {"decoder": decoder, "terminal": terminal}


def _found(workspace: Workspace, stage: str) -> dict[str, dict[str, Any]]:
    """Files of a stage's output by entry, from its manifest and never by a glob."""
    return {item["name"]: item["files"] for item in workspace.manifest(stage)}


def _part(job: plan.Job, file: str, found: dict[str, dict[str, Any]]) -> dict[str, str]:
    """A file of an entry, as a mixture names it."""
    if job.name not in found:
        raise UserError(
            f"{job.label}: not made yet, or params.yaml or the code changed; run `dvc repro`"
        )
    return {"entry": job.name, "file": file, "sha256": found[job.name][file]["sha256"]}


def _members(
    recipe: plan.RecipePlan, milestone: int, found: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """The networks of a mixture, and the states that each owns."""
    networks = recipe.weights(milestone)
    owners = [(e.first, e.last) for e in recipe.experts]
    if len(networks) < len(owners):  # they were merged
        owners = [(owners[0][0], owners[-1][1])]
    return [
        {
            **_part(weights.job, weights.file, found),
            "network": weights.spec["network"],
            "conditioning": weights.spec["conditioning"],
            "first": first,
            "last": last,
        }
        for weights, (first, last) in zip(networks, owners, strict=True)
    ]


def milestones_of(workspace: Workspace, name: str) -> list[dict[str, Any]]:
    """A recipe's mixtures, by milestone."""
    return workspace.read_sealed(workspace.artefacts("mixtures") / f"{name}.json")["milestones"]


def sample_jobs(
    workspace: Workspace,
    params: config.Params,
    facts: plan.DatasetFacts,
    recipes: Mapping[str, plan.RecipePlan],
) -> dict[tuple[str, int], list]:
    """The sampling jobs of each recipe and milestone."""
    return {
        (name, item["images"]): plan.samples(
            params, facts, recipe, item["mixture"], f"{name} at {item['images']:,}"
        )
        for name, recipe in recipes.items()
        for item in milestones_of(workspace, name)
    }


def sample(workspace: Workspace) -> None:
    """Samples of every recipe at every milestone."""
    facts = facts_of(workspace)

    def jobs() -> list[plan.Job]:
        params = _fresh(workspace)
        parts = sample_jobs(workspace, params, facts, plan.experts(params, facts)).values()
        decoded = plan.reconstructions(params, facts)
        return [*(job for part in parts for job in part), *([decoded] if decoded else [])]

    fan_out(workspace, "samples", jobs, ("latents", "analyses", "experts"))


def score_jobs(
    workspace: Workspace,
    params: config.Params,
    facts: plan.DatasetFacts,
    recipes: Mapping[str, plan.RecipePlan],
) -> dict[tuple[str, int], plan.Job]:
    """The scoring job of each recipe and milestone."""
    reference = plan.features(params, facts)
    return {
        (name, images): plan.scores(params, shards, reference, f"{name} at {images:,}")
        for (name, images), shards in sample_jobs(workspace, params, facts, recipes).items()
    }


def evaluate(workspace: Workspace) -> None:
    """Scores of every recipe at every milestone."""
    facts = facts_of(workspace)

    def jobs() -> list[plan.Job]:
        params = _fresh(workspace)
        found = score_jobs(workspace, params, facts, plan.experts(params, facts)).values()
        decoded = reconstruction_jobs(workspace, params, facts)
        return [*found, *decoded[1:]]

    fan_out(workspace, "scores", jobs, ("samples", "features"))


def reconstruction_jobs(
    workspace: Workspace, params: config.Params, facts: plan.DatasetFacts
) -> tuple[plan.Job, ...]:
    """The job that reconstructs images, and the one that scores them; empty for pixels."""
    decoded = plan.reconstructions(params, facts)
    if decoded is None:
        return ()
    reference = plan.features(params, facts)
    return decoded, plan.scores(params, [decoded], reference, "reconstructions")


def reconstruction(workspace: Workspace, facts: plan.DatasetFacts) -> dict[str, Any] | None:
    """Some images, what the encoder makes of them, and the scores of all its reconstructions.

    A dict with `originals` and `images`, uint8 [n, C, H, W], and `scores`; None for pixels.
    """
    import numpy as np

    from pipeline.dataset import open_dataset
    from pipeline.latents import Latents
    from pipeline.rows import spread
    from pipeline.split import Split

    jobs = reconstruction_jobs(workspace, workspace.params, facts)
    if not jobs:
        return None
    decoded, scored = (workspace.store.entry(job.name) for job in jobs)
    shard = Latents([decoded.file("samples.arrow")])
    images = Split(open_dataset(workspace.dataset), facts.held_out)
    shown = spread(min(SHOWN_RECONSTRUCTIONS, len(shard)), len(shard), shard.labels)
    rows = np.load(decoded.file("rows.npy"))[shown]
    return {
        "originals": np.concatenate([found for _, found in images.chosen(rows)]),
        "images": shard.raw(shown),
        "scores": scored.load_json("scores.json"),
    }


def _fresh(workspace: Workspace) -> config.Params:
    """params.yaml as it is now: a plan is made again after the jobs, to see whether it holds."""
    return config.load(workspace.root / "params.yaml")
