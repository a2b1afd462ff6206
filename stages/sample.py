"""The stage `sample`, and reconstructions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline import plan
from pipeline.params.recipe import Params
from pipeline.specs import ReconstructionsSpec, SamplesSpec
from pipeline.store.entry import Entry, Store
from pipeline.store.files import replacing
from stages.facts import facts_of, fresh_params
from stages.fanout import fan_out
from stages.inputs import codec_of, dataset_of, mixture_of, save_array
from stages.merge import guide_of, milestones_of
from stages.reporter import Reporter
from stages.workspace import Workspace


def run_samples(
    spec: SamplesSpec, entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    import torch

    from pipeline.data.latents import write_shard
    from pipeline.sampling.mixture import draw

    torch.set_num_threads(spec.threads)
    reporter.unit = "states"
    images, labels = draw(
        mixture_of(spec.mixture, store, workspace, spec.led),
        spec.states,
        range(spec.first, spec.last),
        seed=spec.seed,
        sampling=spec.sampling,
        batch=spec.batch,
        progress=reporter.progress,
        class_counts=spec.class_counts,
    )
    with replacing(entry.path / "samples.arrow") as path:
        write_shard(path, [(images, labels)], images.shape[1:], [0.0] * images.shape[1], 1.0)


def run_reconstructions(
    spec: ReconstructionsSpec, entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    import numpy as np
    import torch

    from pipeline.data.codec import reconstructions
    from pipeline.data.latents import write_shard

    torch.set_num_threads(1)
    images, codec = dataset_of(workspace, spec.images), codec_of(spec.encoder, store)
    chosen = []

    def batches():
        done = 0
        for rows, decoded, labels in reconstructions(codec, images, spec.count):
            yield decoded, labels
            chosen.append(rows)
            done += len(rows)
            reporter.progress(done, spec.count)

    shape = codec.image_shape
    with replacing(entry.path / "samples.arrow") as path:
        write_shard(path, batches(), shape, [0.0] * shape[0], 1.0)
    save_array(entry.path / "rows.npy", np.concatenate(chosen))


SHOWN_RECONSTRUCTIONS = 32


def sample_jobs(
    workspace: Workspace,
    params: Params,
    facts: plan.DatasetFacts,
    recipes: Mapping[str, plan.RecipePlan],
) -> dict[tuple[str, int], list]:
    """The sampling jobs of each recipe and milestone."""
    return {
        (name, item["images"]): plan.samples(
            params,
            facts,
            recipe,
            item["mixture"],
            f"{name} at {item['images']:,}",
            guide_of(workspace, recipe, item["images"]),
        )
        for name, recipe in recipes.items()
        for item in milestones_of(workspace, name)
    }


def sample(workspace: Workspace) -> None:
    """Samples of every recipe at every milestone."""
    facts = facts_of(workspace)

    def jobs() -> list[plan.Job]:
        params = fresh_params(workspace)
        parts = sample_jobs(workspace, params, facts, plan.experts(params, facts)).values()
        decoded = plan.reconstructions(params, facts)
        return [*(job for part in parts for job in part), *([decoded] if decoded else [])]

    fan_out(workspace, "samples", jobs, ("latents", "analyses", "experts"))


def reconstruction_jobs(
    workspace: Workspace, params: Params, facts: plan.DatasetFacts
) -> tuple[plan.Job, ...]:
    """The job that reconstructs images, and the one that scores them; empty for pixels."""
    decoded = plan.reconstructions(params, facts)
    if decoded is None:
        return ()
    reference = plan.features(params, facts)
    return decoded, plan.scores(params, facts, [decoded], reference, "reconstructions")


def reconstruction(workspace: Workspace, facts: plan.DatasetFacts) -> dict[str, Any] | None:
    """Some images, what the encoder makes of them, and the scores of all its reconstructions.

    A dict with `originals` and `images`, uint8 [n, C, H, W], and `scores`; None for pixels.
    """
    import numpy as np

    from pipeline.data.dataset import open_dataset
    from pipeline.data.latents import Latents
    from pipeline.data.split import Split
    from pipeline.rows import spread

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
