"""Jobs that measure what schedules, partitions and budgets are fitted to."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.block import MOST_LOG_SNR
from pipeline.errors import UserError
from pipeline.levels import partition, schedule
from pipeline.levels.params import (
    FROM_DATA,
    DataPartition,
    LearntPartition,
    Partition,
    UniformCurriculum,
    state_count,
)
from pipeline.noise.params import Independent
from pipeline.noise.philox import derive_key
from pipeline.params.recipe import Params, Recipe
from pipeline.plan.expert import Run, expert_spec
from pipeline.plan.inputs import DatasetFacts, latents, pixel_std, spectrum
from pipeline.plan.job import Job, code_of
from pipeline.specs import BoundsSpec, ClustersSpec, OwnCurriculum, Part, PilotSpec
from pipeline.training.params import Decouple

PILOT_NODES = 64  # noise levels at which a pilot's error is measured


HALF_RANGE = 127.5  # in uint8 units, of images that are scaled to [-1, 1]


class NotMeasured(UserError):
    """Planning waits for something that is measured on the data."""


def analyses(params: Params, data: DatasetFacts) -> list[Job]:
    """All that is measured before the recipes can be planned: see `experts`."""
    jobs = [spectrum(params, data)]
    for recipe in params.recipes.values():
        if isinstance(recipe.schedule, FROM_DATA) and recipe.schedule.source == "pilot":
            jobs += _pilot(params, data, recipe, recipe.schedule.pilot_images, _pilot_axis(recipe))
        if isinstance(recipe.partition, DataPartition):
            jobs.append(clusters_job(params, data, recipe.partition))
    # The states that partitions cut may come from the schedules' own analyses.
    if all(job.name in data.analyses for job in jobs if job.kind in ("spectrum", "pilot")):
        for recipe in params.recipes.values():
            for cut in (recipe.partition, getattr(recipe.curriculum, "partition", None)):
                if isinstance(cut, partition.MEASURED):
                    jobs += bounds_jobs(params, data, recipe, cut)
    return list({job.name: job for job in jobs}.values())


def bounds_jobs(params: Params, data: DatasetFacts, recipe: Recipe, cut: Partition) -> list[Job]:
    """Jobs that find a partition's bounds; the last one has the result."""
    states = states_of(params, data, recipe)
    axis = partition.axis_of(states, state_count(recipe.schedule) is None)
    if isinstance(cut, LearntPartition):
        nodes = partition.node_states(len(axis), min(cut.nodes, len(axis)))
        levels = [float(axis[i]) for i in nodes]
        return _pilot(params, data, recipe, cut.pilot_images, levels, cut.kind == "gradient")
    shards = tuple(job.name for job in latents(params, data))
    spec = BoundsSpec(
        latents=list(shards),
        settings=cut.without("channels"),
        axis=[float(v) for v in axis],
        key=derive_key(params.seed, "bounds"),
        code=code_of("bounds"),
    )
    return [Job("bounds", spec, f"bounds of {cut.intervals} intervals", shards)]


def clusters_job(params: Params, data: DatasetFacts, cut: DataPartition) -> Job:
    """The job that finds the cluster of every row, and how many each cluster has."""
    shards = tuple(job.name for job in latents(params, data))
    spec = ClustersSpec(
        latents=list(shards),
        clusters=cut.clusters,
        rows=cut.rows,
        key=derive_key(params.seed, "clusters"),
        code=code_of("clusters"),
    )
    return Job("clusters", spec, f"{cut.clusters} clusters", shards)


def _pilot_axis(recipe: Recipe) -> list[float]:
    high, low = recipe.schedule.log_snr_max, recipe.schedule.log_snr_min
    return [float(v) for v in np.linspace(high, low, PILOT_NODES)]


def _pilot(
    params: Params,
    data: DatasetFacts,
    recipe: Recipe,
    images: int,
    levels: list[float],
    gradients: bool = False,
) -> list[Job]:
    """A short run of the recipe's network on all noise levels, and what is measured on it."""
    shards = tuple(job.name for job in latents(params, data))
    network = recipe.network.alone()  # bounds between intervals may be what is looked for
    apart = {"pairing": Independent(), "decouple": Decouple(), "network": network}
    apart["training"] = recipe.training.without("parent", "initial", "stop", "auxiliary")
    plain = recipe.model_copy(update=apart)
    ends = np.array([levels[0], levels[-1]])
    run = Run(plain, ends, True, OwnCurriculum(form=UniformCurriculum()))
    spec = expert_spec(params, data, run, (0, 1), images, [images], shards, network)
    threads = recipe.training.threads
    trained = Job("expert", spec, "pilot", shards, weight=images, threads=threads)
    measured = PilotSpec(
        expert=Part(entry=trained.name, file=f"weights-{images}.safetensors"),
        latents=list(shards),
        levels=levels,
        gradients=gradients,
        noise_key=derive_key(params.seed, "pilot"),
        threads=threads,
        code=code_of("pilot", network),
    )
    return [trained, Job("pilot", measured, "pilot's errors", (trained.name, *shards))]


def measured_on(data: DatasetFacts, job: Job) -> dict[str, Any]:
    try:
        return data.analyses[job.name]
    except KeyError:
        raise NotMeasured(
            f"{job.label}: not measured yet, or params.yaml or the code changed since; "
            "run `dvc repro`"
        ) from None


def states_of(params: Params, data: DatasetFacts, recipe: Recipe) -> np.ndarray:
    """Log-SNR of each state, strictly descending; for a continuous schedule its two ends.

    UserError if the schedule is fitted to measurements that were not made yet.
    """
    count = state_count(recipe.schedule)
    if count is None:
        return build_states(params, data, recipe, partition.CONTINUOUS_STATES)[[0, -1]]
    return build_states(params, data, recipe, count)


def build_states(params: Params, data: DatasetFacts, recipe: Recipe, states: int) -> np.ndarray:
    block, measured = recipe.schedule, {}
    if getattr(block, "shift", 0.0) == "unit-range":
        shift = 2 * float(np.log(pixel_std(data) / HALF_RANGE))
        block = block.model_copy(update={"shift": shift})
    if isinstance(block, FROM_DATA):
        if block.source == "pilot":
            measured["error_curve"] = measured_errors(params, data, recipe)
        else:
            measured["spectrum"] = measured_on(data, spectrum(params, data))["spectrum"]
    found = schedule.build(block, states, **measured)
    ends = found[np.isfinite(found)]
    if len(ends) and np.abs(ends[[0, -1]]).max() > MOST_LOG_SNR:
        raise UserError(
            f"schedule: log-SNRs from {ends[0]:g} to {ends[-1]:g}; float32 carries none beyond "
            f"{MOST_LOG_SNR:g} on either side: use less `shift`, or nearer ends"
        )
    return found


def measured_errors(params: Params, data: DatasetFacts, recipe: Recipe) -> tuple[list, list]:
    block = recipe.schedule
    job = _pilot(params, data, recipe, block.pilot_images, _pilot_axis(recipe))[-1]
    found = measured_on(data, job)
    return found["log_snr"], found["error"]
