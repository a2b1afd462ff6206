"""The stage `evaluate`: scores of the samples, and errors on held-out images."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline import plan
from pipeline.params.recipe import Params
from pipeline.specs import ErrorsSpec, ScoresSpec
from pipeline.store.entry import Entry, Store
from pipeline.store.files import write_json
from stages.facts import facts_of, fresh_params
from stages.fanout import fan_out
from stages.features import extractor_of
from stages.inputs import checked_file, latents_of, mixture_of
from stages.merge import milestones_of
from stages.reporter import Reporter
from stages.sample import reconstruction_jobs, sample_jobs
from stages.workspace import Workspace


def run_scores(
    spec: ScoresSpec, entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    import numpy as np
    import torch

    from pipeline.data.latents import Latents
    from pipeline.evaluation import scores

    torch.set_num_threads(1)
    reference = store.entry(spec.features)
    extractor, moments = extractor_of(reference, workspace)
    samples = Latents([store.entry(n).file("samples.arrow") for n in spec.samples])
    images = samples.raw(np.arange(len(samples)))
    generated = extractor.features(images)
    real = np.load(reference.file("features.npy"), mmap_mode="r", allow_pickle=False)
    labelled = "labels.npy" in reference.files()
    result = scores.score(
        moments,
        real,
        generated,
        seed=spec.seed,
        neighbours=spec.neighbours,
        allow_few=spec.allow_few,
        extractor=extractor.name,
        real_labels=np.load(reference.file("labels.npy")) if labelled else None,
        labels=samples.labels,
        useless=scores.useless_features(reference.load_json("report.json")),
    )
    if spec.published is not None:
        file = spec.published.file
        path = checked_file(workspace, file)
        result |= spec.published.maker(path, generated, moments.extractor)
        result["published"]["file"] = file.path
    if spec.law is not None:
        result |= spec.law.maker(images, samples.labels, spec.seed)
    if spec.labels is not None:
        result["labels"] = spec.labels
    write_json(entry.path / "scores.json", result)


def run_errors(
    spec: ErrorsSpec, entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    import torch

    from pipeline.evaluation.errors import held_out_errors

    torch.set_num_threads(1)
    reporter.unit = "levels"
    found = held_out_errors(
        mixture_of(spec.mixture, store, workspace),
        latents_of(spec.latents, store),
        spec.levels,
        seed=spec.seed,
        batch=spec.batch,
        progress=reporter.progress,
    )
    write_json(entry.path / "errors.json", found)


def error_jobs(
    workspace: Workspace,
    params: Params,
    facts: plan.DatasetFacts,
    recipes: Mapping[str, plan.RecipePlan],
) -> dict[str, plan.Job]:
    """The job that measures each recipe's errors, at its end; {} without held-out images."""
    ends = {name: milestones_of(workspace, name)[-1]["mixture"] for name in recipes}
    found = {name: plan.errors(params, facts, recipes[name], end) for name, end in ends.items()}
    return {name: job for name, job in found.items() if job is not None}


def score_jobs(
    workspace: Workspace,
    params: Params,
    facts: plan.DatasetFacts,
    recipes: Mapping[str, plan.RecipePlan],
) -> dict[tuple[str, int], plan.Job]:
    """The scoring job of each recipe and milestone."""
    reference = plan.features(params, facts)
    return {
        (name, images): plan.scores(params, facts, shards, reference, f"{name} at {images:,}")
        for (name, images), shards in sample_jobs(workspace, params, facts, recipes).items()
    }


def evaluate(workspace: Workspace) -> None:
    """Scores of every recipe at every milestone, and its errors at the end."""
    facts = facts_of(workspace)

    def jobs() -> list[plan.Job]:
        params = fresh_params(workspace)
        recipes = plan.experts(params, facts)
        found = score_jobs(workspace, params, facts, recipes).values()
        apart = error_jobs(workspace, params, facts, recipes).values()
        decoded = reconstruction_jobs(workspace, params, facts)
        return [*found, *apart, *decoded[1:]]

    fan_out(workspace, "scores", jobs, ("latents", "experts", "samples", "features"))
