"""What is planned of experts over clusters of the data beside these experts: their router."""

from __future__ import annotations

from pipeline.errors import UserError
from pipeline.networks.params import RouterNetwork
from pipeline.noise.philox import derive_key
from pipeline.params.recipe import Params, Recipe
from pipeline.plan.analyses import measured_on
from pipeline.plan.expert import Run, seed_of
from pipeline.plan.inputs import DatasetFacts, latent_facts, latents
from pipeline.plan.job import Job, code_of
from pipeline.plan.merges import Router
from pipeline.specs import OwnCurriculum, RouterSpec


def rows_of_each(data: DatasetFacts, clusters: Job, recipe: Recipe) -> list[int]:
    """Rows of each cluster, the largest first. NotMeasured before they are known.

    UserError if an expert would see less than a batch.
    """
    rows = measured_on(data, clusters)["rows"]
    if rows[-1] < recipe.training.batch:
        raise UserError(
            f"partition.clusters: the smallest of {len(rows)} clusters has {rows[-1]} rows, less "
            f"than a batch (training.batch: {recipe.training.batch}); lower one of them"
        )
    return rows


def router_of(
    params: Params,
    data: DatasetFacts,
    run: Run,
    drawn: OwnCurriculum,
    clusters: Job,
    paired: tuple[Job, ...],
) -> Router:
    """The router of a recipe, whose training needs none of the experts.

    drawn: when it sees which of the recipe's states; paired: the jobs that pair its noise.
    """
    recipe, seen = run.recipe, latent_facts(params, data)
    settings, seed = recipe.partition.router, seed_of(params, recipe)
    shards = [job.name for job in latents(params, data)]
    told = recipe.network.class_conditional
    own = RouterNetwork(
        channels=settings.channels,
        clusters=recipe.partition.clusters,
        label_dropout=recipe.network.label_dropout if told else 0.0,
    )
    spec = RouterSpec(
        network=own,
        conditioning="state",
        channels=seen.channels,
        resolution=seen.resolution,
        classes=data.classes if told else 0,
        log_snr=[float(value) for value in run.log_snr],
        continuous=run.continuous,
        curriculum=drawn,
        pairing=recipe.pairing,
        noise_key=derive_key(seed, "noise"),
        stream_key=derive_key(seed, "router"),
        start_key=derive_key(seed, "router", "start"),
        images=settings.images,
        batch=settings.batch,
        learning_rate=settings.learning_rate,
        threads=recipe.training.threads,
        latents=shards,
        clusters=clusters.name,
        pairings=[job.name for job in paired],
        code=code_of("router", own, drawn.form),
    )
    job = Job(
        "router",
        spec,
        f"router of {recipe.partition.clusters} clusters",
        (*shards, clusters.name, *spec.pairings),
        weight=settings.images,
        threads=spec.threads,
    )
    return Router(job, paired)
