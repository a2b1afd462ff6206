"""From settings to jobs: every recipe resolved to experts, samples and scores, each with a digest.

A job's spec holds all that determines its bits and nothing else: its own states and not how many
experts there are, what it reads (by name, and names are digests), the code that makes the numbers
and the precision. Host, executor, worker count and log options stay out. Nothing is read or run
here, and torch is not imported.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline import config, schedule
from pipeline.config import Params, Recipe
from pipeline.curriculum import split_images
from pipeline.errors import UserError
from pipeline.identity import code_digest, digest
from pipeline.noise import derive_key
from pipeline.partition import cut

# The modules in which each kind of job makes its numbers (with all they import).
CODE = {
    "latents": ("pipeline.latents",),
    "features": ("pipeline.features", "pipeline.networks.classifier"),
    "pairing": ("pipeline.pairing", "pipeline.latents"),
    "expert": ("pipeline.training",),
    "samples": ("pipeline.mixture", "pipeline.sampling"),
    "scores": ("pipeline.scores",),
}


SLOTS_PER_JOB = 8  # passes over the dataset that one pairing job pairs


@dataclass(frozen=True)
class Job:
    """One entry of the store to be made. `label` is for people, and not part of the identity."""

    kind: str
    spec: dict[str, Any]
    label: str
    needs: tuple[str, ...] = ()  # names of entries that must be finished first
    weight: float = 1.0  # rough cost relative to others of its kind, for ordering
    threads: int = 1
    group: str = ""  # jobs of one group run in one process, one after the other

    @functools.cached_property
    def name(self) -> str:
        return f"{self.kind}/{digest(self.spec)}"


@dataclass(frozen=True)
class DatasetFacts:
    """What planning needs to know of the prepared dataset."""

    digest: str
    rows: int
    resolution: int
    channels: int
    classes: int  # 0 without labels
    mean: tuple[float, ...]  # per channel, in uint8 units
    std: tuple[float, ...]


@dataclass(frozen=True)
class Expert:
    """An expert of a recipe: its job, the states it owns, and its snapshots."""

    job: Job
    first: int  # index of its cleanest state; 0 for a continuous schedule
    last: int  # index of its noisiest state, inclusive
    images: int
    snapshots: dict[int, int]  # milestone of the recipe -> images of this expert
    pairings: tuple[Job, ...] = ()  # the jobs that pair its images with noise


@dataclass(frozen=True)
class RecipePlan:
    """A recipe resolved: its states (log-SNR, cleanest first), milestones and experts."""

    name: str
    recipe: Recipe
    log_snr: np.ndarray
    continuous: bool
    milestones: list[int]
    experts: list[Expert] = field(default_factory=list)


def code_of(kind: str) -> str:
    """Digest of the code that makes the numbers of a kind of job."""
    return code_digest(*CODE[kind])


def latents(params: Params, data: DatasetFacts) -> list[Job]:
    """Jobs that turn the prepared images into shards that training maps into memory."""
    size = params.latent.shard
    scale = float(np.sqrt(np.mean(np.square(data.std))))
    if scale == 0:
        raise UserError("data: every pixel of every image has the same value; nothing to learn")
    jobs = []
    for start in range(0, data.rows, size):
        stop = min(start + size, data.rows)
        spec = {
            "dataset": data.digest,
            "rows": [start, stop],
            "encoder": {"kind": params.latent.encoder},
            # Unit average variance: log-SNRs then mean what they say.
            "shift": list(data.mean),
            "scale": scale,
            "code": code_of("latents"),
        }
        jobs.append(Job("latents", spec, f"images {start}-{stop - 1}", weight=stop - start))
    return jobs


def features(params: Params, data: DatasetFacts, files: Mapping[str, str]) -> Job:
    """The job that makes the feature extractor and the features of the real images.

    files: the checksums of the extractor's own files, by their key in params.yaml.
    """
    settings = params.features.model_dump(mode="json")
    spec = {
        "dataset": data.digest,
        "settings": settings,
        "files": dict(files),
        "seed": params.seed,
        "code": code_of("features"),
    }
    return Job("features", spec, f"{settings['extractor']} features")


def pairings(
    params: Params, data: DatasetFacts, recipe: Recipe, images: int, shards: tuple[str, ...]
) -> list[Job]:
    """Jobs that pair the first `images` images of a run; none where the noise is independent.

    A job depends on the method and the passes it covers alone, so recipes and experts share it.
    """
    if recipe.pairing.method == "independent":
        return []
    # What is done to the noise afterwards does not change who is paired with whom.
    settings = recipe.pairing.model_dump(mode="json", exclude={"refresh", "scale"})
    slots = -(-images // data.rows)
    jobs = []
    for start in range(0, slots, SLOTS_PER_JOB):
        spec = {
            "settings": settings,
            "slots": [start, start + SLOTS_PER_JOB],
            "by_class": recipe.network.class_conditional,
            "noise_key": derive_key(params.seed, "noise"),
            "dataset": data.digest,
            "latents": list(shards),
            "code": code_of("pairing"),
        }
        label = f"{settings['method']} passes {start + 1}-{start + SLOTS_PER_JOB}"
        jobs.append(Job("pairing", spec, label, shards, weight=SLOTS_PER_JOB))
    return jobs


def states_of(recipe: Recipe) -> np.ndarray:
    """Log-SNR of each state, strictly descending; for a continuous schedule its two ends."""
    return _build(recipe.schedule, config.state_count(recipe.schedule) or 2)


def _build(block: config.Schedule, states: int) -> np.ndarray:
    options = block.model_dump(exclude={"kind", "states"})
    return schedule.build(block.kind, states, **options)


def experts(params: Params, data: DatasetFacts) -> dict[str, RecipePlan]:
    """Every recipe's experts. Two recipes that need the same expert get the same job."""
    shards = tuple(job.name for job in latents(params, data))
    return {
        name: _plan_recipe(name, recipe, params, data, shards)
        for name, recipe in params.recipes.items()
    }


def _plan_recipe(
    name: str, recipe: Recipe, params: Params, data: DatasetFacts, shards: tuple[str, ...]
) -> RecipePlan:
    training = recipe.training
    log_snr = states_of(recipe)
    continuous = config.state_count(recipe.schedule) is None
    milestones = sorted({*training.milestones, training.images})
    plan = RecipePlan(name, recipe, log_snr, continuous, milestones)
    try:
        intervals = cut(recipe.partition, log_snr, continuous)
    except ValueError as e:
        raise UserError(f"params.yaml: recipes.{name}.partition: {e}") from e
    budgets = split_images(training.images, np.full(len(intervals), 1 / len(intervals)))
    together = training.experts_per_job
    for number, ((first, last), images) in enumerate(zip(intervals, budgets, strict=True)):
        snapshots = {m: max(1, round(images * m / training.images)) for m in milestones}
        spec = _expert_spec(params, recipe, data, plan, first, last, images, snapshots, shards)
        paired = tuple(pairings(params, data, recipe, images, shards))
        if paired:
            spec["pairings"] = [job.name for job in paired]
        label = name if len(intervals) == 1 else f"{name} {_interval_name(first, last)}"
        job = Job(
            "expert",
            spec,
            label,
            (*shards, *(job.name for job in paired)),
            weight=images,
            threads=training.threads,
            group=f"{name} {number // together}" if together > 1 else "",
        )
        plan.experts.append(Expert(job, first, last, images, snapshots, paired))
    return plan


def _interval_name(first: int, last: int) -> str:
    return f"state {first + 1}" if first == last else f"states {first + 1}-{last + 1}"


def _expert_spec(
    params: Params,
    recipe: Recipe,
    data: DatasetFacts,
    plan: RecipePlan,
    first: int,
    last: int,
    images: int,
    snapshots: dict[int, int],
    shards: tuple[str, ...],
) -> dict[str, Any]:
    own = [float(value) for value in plan.log_snr[first : last + 1]]
    one_state = len(own) == 1
    apart = {"images", "milestones", "start", "experts_per_job"}
    settings = recipe.training.model_dump(mode="json", exclude=apart)
    # A single-state expert has nothing to draw, so no curriculum can matter to it. A uniform one
    # depends on the own states only; any other on their place on the whole time axis.
    curriculum: dict[str, Any] = {"kind": "uniform"}
    if not one_state and recipe.curriculum.kind != "uniform":
        curriculum = recipe.curriculum.model_dump(mode="json")
        if not plan.continuous:  # a continuous schedule has one expert, and `own` is all of it
            curriculum |= {"axis": [float(v) for v in plan.log_snr], "own": [first, last]}
    stream = derive_key(params.seed, "expert", *(value.hex() for value in own))
    start = params.seed if recipe.training.start == "shared-seed" else stream
    classes = data.classes if recipe.network.class_conditional else 0
    network = recipe.network.model_dump(mode="json", exclude={"class_conditional"})
    if not classes:
        del network["label_dropout"]
    return {
        "network": network,
        "conditioning": "none" if one_state else "state",
        "channels": data.channels,
        "resolution": data.resolution,
        "classes": classes,
        "log_snr": own,
        "continuous": plan.continuous,
        "prediction": recipe.prediction,
        "curriculum": curriculum,
        "pairing": recipe.pairing.model_dump(mode="json"),
        "noise_key": derive_key(params.seed, "noise"),
        "stream_key": stream,
        "start_key": derive_key(start, "start"),
        "images": images,
        "snapshots": sorted(set(snapshots.values())),
        "training": settings,
        "latents": list(shards),
        "code": code_of("expert"),
    }


def sampling_states(plan: RecipePlan) -> list[float]:
    """The states that sampling visits, cleanest first."""
    steps = plan.recipe.sampling.steps
    if plan.continuous:
        return [float(v) for v in _build(plan.recipe.schedule, steps)]
    if steps is None:
        return [float(v) for v in plan.log_snr]
    return [float(plan.log_snr[i]) for i in schedule.subset(len(plan.log_snr), steps)]


def samples(params: Params, plan: RecipePlan, mixture: dict[str, Any], label: str) -> list[Job]:
    """Jobs that draw the samples to be scored from one mixture of a recipe.

    `mixture` is identified by the checksums of its weights, so an expert retrained to the same
    bits costs no new samples.
    """
    settings = params.evaluate
    base = {
        "mixture": mixture,
        "states": sampling_states(plan),
        "sampling": plan.recipe.sampling.model_dump(mode="json", exclude={"steps"}),
        "seed": settings.seed,
        "batch": settings.batch,
        "threads": plan.recipe.training.threads,
        "code": code_of("samples"),
    }
    needs = tuple(e["entry"] for e in mixture["experts"])
    jobs = []
    for start in range(0, settings.samples, settings.shard):
        stop = min(start + settings.shard, settings.samples)
        jobs.append(
            Job(
                "samples",
                {**base, "rows": [start, stop]},
                f"{label} samples {start}-{stop - 1}",
                needs,
                weight=(stop - start) * len(base["states"]),
                threads=base["threads"],
                # The milestones of a recipe share a process: starting one costs seconds.
                group=f"{plan.name} {start}",
            )
        )
    return jobs


def scores(params: Params, shards: list[Job], reference: Job, label: str) -> Job:
    """The job that scores one set of samples against the real images."""
    settings = params.evaluate.model_dump(mode="json", exclude={"shard", "batch"})
    names = [job.name for job in shards]
    spec = {
        "samples": names,
        "features": reference.name,
        "settings": settings,
        "code": code_of("scores"),
    }
    needs = (*names, reference.name)
    return Job("scores", spec, f"{label} scores", needs, group=label.partition(" ")[0])


def facts(info: Any) -> DatasetFacts:
    """Planning's view of a dataset's info."""
    return DatasetFacts(
        digest=info.digest,
        rows=info.rows,
        resolution=info.resolution,
        channels=info.channels,
        classes=len(info.classes or ()),
        mean=tuple(info.mean),
        std=tuple(info.std),
    )
