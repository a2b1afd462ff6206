"""The stage `evaluate`: scores of the samples."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline import plan
from pipeline.params.recipe import Params
from pipeline.specs import ScoresSpec
from pipeline.store.entry import Entry, Store
from pipeline.store.files import write_json
from stages.facts import facts_of, fresh_params
from stages.fanout import fan_out
from stages.features import extractor_of
from stages.inputs import checked_file
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
    """Scores of every recipe at every milestone."""
    facts = facts_of(workspace)

    def jobs() -> list[plan.Job]:
        params = fresh_params(workspace)
        found = score_jobs(workspace, params, facts, plan.experts(params, facts)).values()
        decoded = reconstruction_jobs(workspace, params, facts)
        return [*found, *decoded[1:]]

    fan_out(workspace, "scores", jobs, ("samples", "features"))
