"""From settings to jobs: every recipe resolved to experts, samples and scores, each with a digest.

A job's spec holds all that determines its bits and nothing else: its own states and not how many
experts there are, what it reads (by name, and names are digests), the code that makes the numbers
and the precision. Host, executor, worker count and log options stay out. Nothing is read or run
here, and torch is not imported.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline import clustering, config, curriculum, partition, schedule
from pipeline.config import Params, Recipe
from pipeline.errors import UserError
from pipeline.identity import code_digest, digest
from pipeline.noise import derive_key

# The modules in which each kind of job makes its numbers (with all they import).
CODE = {
    "encoder": ("pipeline.autoencoder",),
    "latents": ("pipeline.latents",),
    "spectrum": ("pipeline.spectrum",),
    "bounds": ("pipeline.clustering", "pipeline.latents"),
    "pilot": ("pipeline.pilot",),
    "features": ("pipeline.features", "pipeline.networks.classifier", "pipeline.scores"),
    "pairing": ("pipeline.pairing", "pipeline.latents"),
    "expert": ("pipeline.training",),
    "merged": ("pipeline.merging", "pipeline.selection"),
    "samples": ("pipeline.mixture", "pipeline.sampling"),
    "reconstructions": ("pipeline.autoencoder", "pipeline.latents"),
    "scores": ("pipeline.scores",),
    "outputs": ("pipeline.mixture", "pipeline.sampling", "pipeline.consistency"),
    "consistency": ("pipeline.consistency",),
}

PILOT_NODES = 64  # noise levels at which a pilot's error is measured
LEAST_SHARE = 0.25  # of an equal budget: what `by-difficulty` leaves to the easiest state
NEAR_STATE = 0.1  # log-SNR within which an expert's one state stands for a level (5 % in amplitude)

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
    """What planning needs to know of the prepared dataset, and what was measured on it."""

    digest: str
    rows: int  # that are trained on; the held-out ones follow them
    resolution: int
    channels: int
    classes: int  # 0 without labels
    mean: tuple[float, ...]  # per channel, in uint8 units
    std: tuple[float, ...]
    held_out: int = 0
    analyses: Mapping[str, Any] = field(default_factory=dict)  # results by job name


@dataclass(frozen=True)
class LatentFacts:
    """Shape and number of the rows that the networks see."""

    rows: int
    channels: int
    resolution: int


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
class Weights:
    """A file of weights in the store, and the network it is for."""

    job: Job
    file: str
    spec: dict[str, Any]


@dataclass(frozen=True)
class RecipePlan:
    """A recipe resolved: its states (log-SNR, cleanest first), milestones and experts.

    bounds: log-SNRs between the intervals of its partition; merged: for each milestone the job
    that makes one network of the experts (none for a mixture that routes).
    """

    name: str
    recipe: Recipe
    log_snr: np.ndarray
    continuous: bool
    milestones: list[int]
    sampling_states: list[float]  # those that sampling visits, cleanest first
    bounds: list[float] = field(default_factory=list)
    experts: list[Expert] = field(default_factory=list)
    merged: dict[int, Job] = field(default_factory=dict)
    parent: RecipePlan | None = None

    @property
    def trained(self) -> np.ndarray:
        """The states that a network answers for: all but one without any signal."""
        return self.log_snr if self.continuous else self.log_snr[np.isfinite(self.log_snr)]

    def weights(self, milestone: int) -> list[Weights]:
        """The networks that the recipe has at a milestone: one an expert, or the merged one."""
        if milestone in self.merged:
            job = self.merged[milestone]
            return [Weights(job, "weights.safetensors", self.experts[0].job.spec)]
        return [
            Weights(e.job, f"weights-{e.snapshots[milestone]}.safetensors", e.job.spec)
            for e in self.experts
        ]


def code_of(kind: str) -> str:
    """Digest of the code that makes the numbers of a kind of job."""
    return code_digest(*CODE[kind])


# --- latents


def latent_facts(params: Params, data: DatasetFacts) -> LatentFacts:
    """The rows that training sees. UserError if the images do not fit the encoder."""
    latent = params.latent
    rows = data.rows * (2 if latent.flips else 1)
    if isinstance(latent, config.Pixels):
        return LatentFacts(rows, data.channels, data.resolution)
    return LatentFacts(rows, latent.channels, data.resolution // latent.downsample)


def encoder(params: Params, data: DatasetFacts) -> Job | None:
    """The job that trains or fetches the encoder; None for pixels."""
    latent = params.latent
    if isinstance(latent, config.Pixels):
        return None
    settings = latent.model_dump(mode="json", exclude={"flips", "shard", "sample"})
    spec = {
        "dataset": data.digest,
        "rows": data.rows,
        "shape": [data.channels, data.resolution, data.resolution],
        "settings": settings,
        "seed": params.seed,
        "code": code_of("encoder"),
    }
    label, images = f"{latent.encoder} encoder", getattr(latent, "images", data.rows)
    return Job("encoder", spec, label, weight=images, threads=latent.threads)


def latents(params: Params, data: DatasetFacts) -> list[Job]:
    """Jobs that turn the prepared images into shards that training maps into memory."""
    return _shards(params, data, 0, latent_facts(params, data).rows, "images")


def held_out(params: Params, data: DatasetFacts) -> list[Job]:
    """The same for the held-out images (data.holdout), which no expert is trained on."""
    stop = data.rows + data.held_out
    return _shards(params, data, data.rows, stop, "held-out images", flips=False)


def _shards(
    params: Params, data: DatasetFacts, first: int, end: int, what: str, flips: bool | None = None
) -> list[Job]:
    latent, codec = params.latent, encoder(params, data)
    base = {"dataset": data.digest, "code": code_of("latents")}
    if latent.flips if flips is None else flips:
        base["flips_after"] = data.rows  # this row is the first one mirrored
    needs: tuple[str, ...] = ()
    if codec is None:
        scale = float(np.sqrt(np.mean(np.square(data.std))))
        if scale == 0:
            raise UserError("data: every pixel of every image has the same value; nothing to learn")
        # Unit average variance: log-SNRs then mean what they say.
        base |= {"shift": list(data.mean), "scale": scale}
    else:
        base |= {"encoder": codec.name, "variance": latent.sample}
        needs = (codec.name,)
    jobs = []
    for start in range(first, end, latent.shard):
        stop = min(start + latent.shard, end)
        spec = {**base, "rows": [start, stop]}
        label = f"{what} {start}-{stop - 1}"
        jobs.append(Job("latents", spec, label, needs, weight=stop - start))
    return jobs


# --- what is measured on the data before anything is planned with it


def spectrum(params: Params, data: DatasetFacts) -> Job:
    """The job that measures the latents' mean (also by class) and principal variances."""
    shards = tuple(job.name for job in latents(params, data))
    spec = {"latents": list(shards), "classes": data.classes, "code": code_of("spectrum")}
    return Job("spectrum", spec, "spectrum", shards)


def analyses(params: Params, data: DatasetFacts) -> list[Job]:
    """All that is measured before the recipes can be planned: see `experts`."""
    jobs = [spectrum(params, data)]
    for recipe in params.recipes.values():
        if isinstance(recipe.schedule, FROM_DATA) and recipe.schedule.source == "pilot":
            jobs += _pilot(params, data, recipe, recipe.schedule.pilot_images, _pilot_axis(recipe))
    # The states that partitions cut may come from the schedules' own analyses.
    if all(job.name in data.analyses for job in jobs if job.kind in ("spectrum", "pilot")):
        for recipe in params.recipes.values():
            for cut in (recipe.partition, getattr(recipe.curriculum, "partition", None)):
                if isinstance(cut, partition.MEASURED):
                    jobs += _bounds_jobs(params, data, recipe, cut)
    return list({job.name: job for job in jobs}.values())


FROM_DATA = (config.FittedSchedule, config.ElboSchedule)


def _bounds_jobs(
    params: Params, data: DatasetFacts, recipe: Recipe, cut: config.Partition
) -> list[Job]:
    """Jobs that find a partition's bounds; the last one has the result."""
    states = states_of(params, data, recipe)
    axis = partition.axis_of(states, config.state_count(recipe.schedule) is None)
    if isinstance(cut, config.LearntPartition):
        nodes = clustering.node_states(len(axis), min(cut.nodes, len(axis)))
        levels = [float(axis[i]) for i in nodes]
        return _pilot(params, data, recipe, cut.pilot_images, levels, cut.kind == "gradient")
    shards = tuple(job.name for job in latents(params, data))
    spec = {
        "latents": list(shards),
        "settings": cut.model_dump(mode="json", exclude={"kind", "channels"}),
        "axis": [float(v) for v in axis],
        "key": derive_key(params.seed, "bounds"),
        "code": code_of("bounds"),
    }
    return [Job("bounds", spec, f"bounds of {cut.intervals} intervals", shards)]


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
    plain = recipe.model_copy(
        update={
            "curriculum": config.UniformCurriculum(),
            "pairing": config.Independent(),
            "partition": config.SinglePartition(),
            "decouple": config.Decouple(),
            "network": config.UNet(
                **{k: getattr(recipe.network, k) for k in config.UNet.model_fields if k != "kind"}
            ),
        }
    )
    run = _Run(plain, np.array([levels[0], levels[-1]]), True)
    spec = _expert_spec(params, data, run, (0, 1), images, [images], shards)
    threads = recipe.training.threads
    trained = Job("expert", spec, "pilot", shards, weight=images, threads=threads)
    measured = {
        "expert": trained.name,
        "file": f"weights-{images}.safetensors",
        "latents": list(shards),
        "levels": levels,
        "gradients": gradients,
        "noise_key": derive_key(params.seed, "pilot"),
        "threads": threads,
        "code": code_of("pilot"),
    }
    return [trained, Job("pilot", measured, "pilot's errors", (trained.name, *shards))]


def _measured(data: DatasetFacts, job: Job) -> dict[str, Any]:
    try:
        return data.analyses[job.name]
    except KeyError:
        raise UserError(
            f"{job.label}: not measured yet, or params.yaml or the code changed since; "
            "run `dvc repro`"
        ) from None


def features(params: Params, data: DatasetFacts, files: Mapping[str, str]) -> Job:
    """The job that makes the feature extractor and the features of the real images.

    files: the checksums of the extractor's own files, by their key in params.yaml.
    """
    settings = params.features.model_dump(mode="json")
    spec = {
        "dataset": data.digest,
        "rows": data.rows,
        "settings": settings,
        "files": dict(files),
        "seed": params.seed,
        "code": code_of("features"),
    }
    return Job("features", spec, f"{settings['extractor']} features")


# --- pairings and experts


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
    slots = -(-images // latent_facts(params, data).rows)
    jobs = []
    for start in range(0, slots, SLOTS_PER_JOB):
        spec = {
            "settings": settings,
            "slots": [start, start + SLOTS_PER_JOB],
            "by_class": recipe.network.class_conditional,
            "noise_key": derive_key(_seed(params, recipe), "noise"),
            "dataset": data.digest,
            "latents": list(shards),
            "code": code_of("pairing"),
        }
        label = f"{settings['method']} passes {start + 1}-{start + SLOTS_PER_JOB}"
        jobs.append(Job("pairing", spec, label, shards, weight=SLOTS_PER_JOB))
    return jobs


def _seed(params: Params, recipe: Recipe) -> int:
    return params.seed if recipe.seed is None else recipe.seed


def states_of(params: Params, data: DatasetFacts, recipe: Recipe) -> np.ndarray:
    """Log-SNR of each state, strictly descending; for a continuous schedule its two ends.

    UserError if the schedule is fitted to measurements that were not made yet.
    """
    return _build(params, data, recipe, config.state_count(recipe.schedule) or 2)


def _build(params: Params, data: DatasetFacts, recipe: Recipe, states: int) -> np.ndarray:
    block = recipe.schedule
    apart = {"kind", "states", "source", "pilot_images"}
    options = block.model_dump(exclude=apart)
    if isinstance(block, FROM_DATA):
        if block.source == "pilot":
            options["error_curve"] = _error_curve(params, data, recipe)
        else:
            options["spectrum"] = _measured(data, spectrum(params, data))["spectrum"]
    return schedule.build(block.kind, states, **options)


def _error_curve(params: Params, data: DatasetFacts, recipe: Recipe) -> tuple[list, list]:
    block = recipe.schedule
    job = _pilot(params, data, recipe, block.pilot_images, _pilot_axis(recipe))[-1]
    found = _measured(data, job)
    return found["log_snr"], found["error"]


def experts(params: Params, data: DatasetFacts) -> dict[str, RecipePlan]:
    """Every recipe's experts. Two recipes that need the same expert get the same job.

    UserError if something is fitted to measurements (`analyses`) that were not made yet.
    """
    shards = tuple(job.name for job in latents(params, data))
    plans: dict[str, RecipePlan] = {}

    def of(name: str) -> RecipePlan:
        if name not in plans:
            recipe = params.recipes[name]
            parent = None if recipe.training.parent is None else of(recipe.training.parent)
            try:
                plans[name] = _plan_recipe(name, recipe, params, data, shards, parent)
            except ValueError as e:
                raise UserError(f"params.yaml: recipes.{name}: {e}") from e
        return plans[name]

    return {name: of(name) for name in params.recipes}


@dataclass(frozen=True)
class _Run:
    """What the experts of one recipe have in common."""

    recipe: Recipe
    log_snr: np.ndarray  # the trained states, or the two ends
    continuous: bool
    bounds: tuple[float, ...] = ()  # of a multi-decoder's intervals
    density: dict[str, Any] | None = None  # a curriculum by intervals, resolved
    parent: Weights | None = None


def _plan_recipe(
    name: str,
    recipe: Recipe,
    params: Params,
    data: DatasetFacts,
    shards: tuple[str, ...],
    parent: RecipePlan | None,
) -> RecipePlan:
    training = recipe.training
    log_snr = states_of(params, data, recipe)
    continuous = config.state_count(recipe.schedule) is None
    milestones = sorted({*training.milestones, training.images})
    bounds = _bounds(params, data, recipe, recipe.partition, log_snr, continuous)
    visited = _sampling_states(params, data, recipe, log_snr)
    plan = RecipePlan(name, recipe, log_snr, continuous, milestones, visited, bounds, parent=parent)
    states = plan.trained
    joint = isinstance(recipe.network, config.MultiDecoder)
    if joint or not bounds:
        intervals = [(0, len(states) - 1)]
    elif continuous:
        raise ValueError(
            "partition: a continuous schedule cannot be cut into experts; "
            "give `schedule.states` a number"
        )
    else:
        intervals = partition.owned(bounds, states)
    start = None if parent is None else parent.weights(parent.milestones[-1])[0]
    run = _Run(
        recipe,
        states,
        continuous,
        tuple(bounds) if joint else (),
        _density(params, data, recipe, bounds, log_snr, continuous),
        start,
    )
    budgets = curriculum.split_images(training.images, _shares(params, data, run, intervals))
    together = training.experts_per_job
    for number, (own, images) in enumerate(zip(intervals, budgets, strict=True)):
        images = max(images, 1)
        snapshots = {m: max(1, round(images * m / training.images)) for m in milestones}
        widths = [] if joint else recipe.partition_channels
        spec = _expert_spec(
            params,
            data,
            run,
            own,
            images,
            sorted(set(snapshots.values())),
            shards,
            widths[number] if widths else None,
        )
        paired = tuple(pairings(params, data, recipe, images, shards))
        needs = [*shards, *(job.name for job in paired)]
        if paired:
            spec["pairings"] = [job.name for job in paired]
        if start is not None:
            needs.append(start.job.name)
        label = name if len(intervals) == 1 else f"{name} {_interval_name(*own)}"
        job = Job(
            "expert",
            spec,
            label,
            tuple(needs),
            weight=images,
            threads=training.threads,
            group=f"{name} {number // together}" if together > 1 else "",
        )
        plan.experts.append(Expert(job, *own, images, snapshots, paired))
    if recipe.merge.method != "route":
        for milestone in milestones:
            plan.merged[milestone] = _merged(params, data, plan, milestone)
    return plan


def _bounds(
    params: Params,
    data: DatasetFacts,
    recipe: Recipe,
    cut: config.Partition,
    log_snr: np.ndarray,
    continuous: bool,
) -> list[float]:
    axis = partition.axis_of(log_snr, continuous)

    def measured() -> dict[str, Any]:
        found = _measured(data, _bounds_jobs(params, data, recipe, cut)[-1])
        if isinstance(cut, config.OptimalDenoiserPartition):
            return found
        if cut.kind == "gradient":
            affinity = np.asarray(found["affinity"])
            return {"bounds": clustering.affinity_bounds(axis, affinity, cut.intervals).log_snr}
        return {"bounds": partition.equal_parts(axis, found, cut.intervals)}

    try:
        return partition.bounds(cut, axis, measured)
    except ValueError as e:
        raise ValueError(f"partition: {e}") from e


def _density(
    params: Params,
    data: DatasetFacts,
    recipe: Recipe,
    bounds: list[float],
    log_snr: np.ndarray,
    continuous: bool,
) -> dict[str, Any] | None:
    """A curriculum given by intervals, with their bounds."""
    block = recipe.curriculum
    if not isinstance(block, config.IntervalDensity):
        return None
    if block.partition is not None:
        bounds = _bounds(params, data, recipe, block.partition, log_snr, continuous)
    shares = block.shares or [1.0] * (len(bounds) + 1)
    if len(shares) != len(bounds) + 1:
        raise ValueError(f"curriculum.shares: {len(shares)} for {len(bounds) + 1} intervals")
    return {"kind": block.kind, "bounds": bounds, "shares": shares, "correct": block.correct}


def _shares(
    params: Params, data: DatasetFacts, run: _Run, intervals: list[tuple[int, int]]
) -> np.ndarray:
    """Share of the recipe's images for each expert."""
    kind = run.recipe.training.budget
    if kind == "uniform" or len(intervals) == 1:
        return np.full(len(intervals), 1 / len(intervals))
    parts = [np.arange(first, last + 1) for first, last in intervals]
    if kind == "curriculum":
        options = run.density or run.recipe.curriculum.model_dump(mode="json")
        options = {k: v for k, v in options.items() if k not in ("kind", "correct", "partition")}
        drawn = curriculum.build(run.recipe.curriculum.kind, run.log_snr, **options)
        return curriculum.budget_shares(drawn, parts)
    error = None
    if isinstance(run.recipe.schedule, FROM_DATA) and run.recipe.schedule.source == "pilot":
        error = _error_curve(params, data, run.recipe)
    found = _measured(data, spectrum(params, data))["spectrum"]
    difficulty = np.sqrt(schedule.mmse_slope(run.log_snr, found, error))
    difficulty = np.maximum(difficulty / difficulty.mean(), LEAST_SHARE)
    return np.array([difficulty[part].sum() for part in parts])


def _interval_name(first: int, last: int) -> str:
    return f"state {first + 1}" if first == last else f"states {first + 1}-{last + 1}"


def _expert_spec(
    params: Params,
    data: DatasetFacts,
    run: _Run,
    interval: tuple[int, int],
    images: int,
    snapshots: list[int],
    shards: tuple[str, ...],
    channels: int | None = None,
) -> dict[str, Any]:
    recipe, (first, last) = run.recipe, interval
    seen = latent_facts(params, data)
    own = [float(value) for value in run.log_snr[first : last + 1]]
    one_state = len(own) == 1
    apart = {"images", "milestones", "start", "experts_per_job", "parent", "budget", "train"}
    settings = recipe.training.model_dump(mode="json", exclude=apart)
    stream = derive_key(_seed(params, recipe), "expert", *(value.hex() for value in own))
    start = _seed(params, recipe) if recipe.training.start == "shared-seed" else stream
    classes = data.classes if recipe.network.class_conditional else 0
    network = recipe.network.model_dump(mode="json", exclude={"class_conditional"})
    if channels is not None:
        network["channels"] = channels
    if not classes:
        del network["label_dropout"]
    if run.bounds:
        network["interval_bounds"] = list(run.bounds)
    spec = {
        "network": network,
        # A parent's network was told its state, and its weights fit no other kind.
        "conditioning": "none" if one_state and run.parent is None else "state",
        "channels": seen.channels,
        "resolution": seen.resolution,
        "classes": classes,
        "log_snr": own,
        "continuous": run.continuous,
        "prediction": recipe.prediction,
        "curriculum": _own_curriculum(run, interval),
        "pairing": recipe.pairing.model_dump(mode="json"),
        "noise_key": derive_key(_seed(params, recipe), "noise"),
        "stream_key": stream,
        "start_key": derive_key(start, "start"),
        "images": images,
        "snapshots": snapshots,
        "training": settings,
        "latents": list(shards),
        "code": code_of("expert"),
    }
    if run.parent is not None:
        spec["parent"] = {"entry": run.parent.job.name, "file": run.parent.file}
        if recipe.training.train != "all":
            spec["train"] = recipe.training.train
        if recipe.decouple != config.Decouple():
            spec["decouple"] = {
                **recipe.decouple.model_dump(mode="json"),
                "axis": [float(v) for v in run.log_snr],
            }
    return spec


def _own_curriculum(run: _Run, interval: tuple[int, int]) -> dict[str, Any]:
    """The curriculum as an expert needs it.

    A single-state expert has nothing to draw, so no curriculum can matter to it. A uniform one
    depends on the own states only; any other on their place on the whole time axis.
    """
    first, last = interval
    if first == last or run.recipe.curriculum.kind == "uniform":
        return {"kind": "uniform"}
    settings = run.density or run.recipe.curriculum.model_dump(mode="json")
    if run.continuous:  # it has one expert, and its own states are all of the axis
        return settings
    return settings | {"axis": [float(v) for v in run.log_snr], "own": [first, last]}


def _merged(params: Params, data: DatasetFacts, plan: RecipePlan, milestone: int) -> Job:
    """The job that makes one network of a recipe's experts, or of one run's snapshots."""
    recipe = plan.recipe
    block = recipe.merge
    sources = [
        {"entry": e.job.name, "file": f"weights-{images}.safetensors"}
        for e in plan.experts
        for images in (
            [e.snapshots[m] for m in plan.milestones if m <= milestone]
            if block.method == "snapshots"
            else [e.snapshots[milestone]]
        )
    ]
    spec = {
        "settings": block.model_dump(mode="json"),
        "experts": sources,
        "of": [e.job.spec["log_snr"] for e in plan.experts],
        "model": {
            key: plan.experts[0].job.spec[key]
            for key in ("network", "conditioning", "channels", "resolution", "classes")
        }
        | {"prediction": recipe.prediction, "continuous": plan.continuous},
        "noise_key": derive_key(_seed(params, recipe), "selection"),
        "code": code_of("merged"),
    }
    needs = [source["entry"] for source in sources]
    if "parent" in plan.experts[0].job.spec:
        spec["parent"] = plan.experts[0].job.spec["parent"]
        needs.append(spec["parent"]["entry"])
    if block.method == "snapshots" or getattr(block, "weights", 0) is None:
        shards = [job.name for job in held_out(params, data)]
        spec["latents"] = shards
        needs += shards
    label = f"{plan.name} merged at {milestone:,}"
    return Job("merged", spec, label, tuple(dict.fromkeys(needs)), threads=recipe.training.threads)


def _sampling_states(
    params: Params, data: DatasetFacts, recipe: Recipe, log_snr: np.ndarray
) -> list[float]:
    steps = recipe.sampling.steps
    if config.state_count(recipe.schedule) is None:
        return [float(v) for v in _build(params, data, recipe, steps)]
    if steps is None:
        return [float(v) for v in log_snr]
    return [float(log_snr[i]) for i in schedule.subset(len(log_snr), steps)]


# --- samples and scores


def samples(params: Params, plan: RecipePlan, mixture: dict[str, Any], label: str) -> list[Job]:
    """Jobs that draw the samples to be scored from one mixture of a recipe.

    `mixture` is identified by the checksums of its weights, so an expert retrained to the same
    bits costs no new samples.
    """
    settings = params.evaluate
    base = {
        "mixture": mixture,
        "states": _as_json(plan.sampling_states),
        "sampling": plan.recipe.sampling.model_dump(mode="json", exclude={"steps"}),
        "seed": settings.seed,
        "batch": settings.batch,
        "threads": plan.recipe.training.threads,
        "code": code_of("samples"),
    }
    needs = _parts(mixture)
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


def _as_json(states: list[float]) -> list[float | str]:
    return [v if np.isfinite(v) else str(v) for v in states]  # float() reads the text


def _parts(mixture: dict[str, Any]) -> tuple[str, ...]:
    """Entries that a mixture is made of."""
    parts = [mixture.get("decoder"), mixture.get("terminal"), *mixture["experts"]]
    return tuple(dict.fromkeys(part["entry"] for part in parts if part))


def reconstructions(params: Params, data: DatasetFacts) -> Job | None:
    """The job that encodes and decodes some images: what the encoder alone loses; None for pixels.

    As many as are sampled, so that their scores compare with those of the recipes.
    """
    codec = encoder(params, data)
    if codec is None:
        return None
    spec = {
        "dataset": data.digest,
        "rows": data.rows,
        "count": min(params.evaluate.samples, data.rows),
        "encoder": codec.name,
        "code": code_of("reconstructions"),
    }
    return Job("reconstructions", spec, "reconstructions", (codec.name,))


def scores(params: Params, shards: list[Job], reference: Job, label: str) -> Job:
    """The job that scores one set of samples against the real images."""
    settings = params.evaluate.model_dump(mode="json", exclude={"shard", "batch", "consistency"})
    names = [job.name for job in shards]
    spec = {
        "samples": names,
        "features": reference.name,
        "settings": settings,
        "code": code_of("scores"),
    }
    needs = (*names, reference.name)
    return Job("scores", spec, f"{label} scores", needs, group=label.partition(" ")[0])


# --- consistency: how alike models answer to the same noise


def consistency(
    params: Params,
    data: DatasetFacts,
    recipes: Mapping[str, RecipePlan],
    mixtures: Mapping[str, dict[str, Any]],
    reference: Job,
) -> tuple[dict[str, Job], dict[tuple[str, str], Job]]:
    """Jobs that make each compared recipe's outputs, by its name, and one that compares each pair.

    recipes and mixtures (at their ends): all by name. Drawing and denoising is done once a recipe,
    so a further one costs its own outputs and the comparison of stored numbers. Empty without the
    block `evaluate.consistency`.
    """
    block = params.evaluate.consistency
    if block is None:
        return {}, {}
    compared = {name: recipes[name] for name in block.recipes}
    levels = shared_levels(list(compared.values()), block.states)
    outputs = {
        name: _outputs(params, data, recipe, mixtures[name], levels, reference)
        for name, recipe in compared.items()
    }
    pairs = {}
    for a, b in itertools.combinations(compared, 2):
        needs = (outputs[a].name, outputs[b].name, reference.name)
        spec = {
            "outputs": list(needs[:2]),
            "features": reference.name,
            "levels": levels,
            "settings": block.model_dump(mode="json", include={"level", "resamples", "similarity"}),
            "seed": params.evaluate.seed,
            "code": code_of("consistency"),
        }
        pairs[a, b] = Job("consistency", spec, f"{a} and {b}", needs, group="pairs")
    return outputs, pairs


def shared_levels(recipes: list[RecipePlan], count: int) -> list[float]:
    """At most `count` >= 2 log-SNRs, cleanest first, at which two recipes or more can be asked.

    Evenly over the range that all share. Where schedules are discrete, the levels are states of
    theirs: in each part of the range that one which the most recipes know. Empty if the ranges or
    states have nothing in common.
    """
    high = min(float(recipe.trained[0]) for recipe in recipes)
    low = max(float(recipe.trained[-1]) for recipe in recipes)
    if high < low:
        return []
    wanted = np.linspace(high, low, count)
    if all(recipe.continuous for recipe in recipes):
        return [float(v) for v in wanted]
    known: list[float] = []
    # The coarsest first: a dense schedule has a state near any of theirs, but not the reverse.
    for recipe in sorted((r for r in recipes if not r.continuous), key=lambda r: len(r.trained)):
        inside = recipe.trained[(recipe.trained <= high) & (recipe.trained >= low)]
        apart = [v for v in inside if all(abs(v - other) > NEAR_STATE for other in known)]
        known += [float(v) for v in apart]
    levels: dict[int, tuple[int, float, float]] = {}  # by part of the range, the best so far
    for level in known:
        part = int(np.abs(wanted - level).argmin())
        asked = sum(asked_at(recipe, level) is not None for recipe in recipes)
        found = (asked, -abs(float(wanted[part]) - level), level)
        if asked > 1:
            levels[part] = max(levels.get(part, found), found)
    return [levels[part][-1] for part in sorted(levels)]


def asked_at(recipe: RecipePlan, log_snr: float) -> float | None:
    """The log-SNR at which a recipe is asked for a level; None where it learnt nothing near it."""
    states = recipe.trained
    if recipe.continuous:
        return log_snr if states[-1] <= log_snr <= states[0] else None
    own = float(states[np.abs(states - log_snr).argmin()])
    return own if abs(own - log_snr) <= NEAR_STATE else None


def _outputs(
    params: Params,
    data: DatasetFacts,
    recipe: RecipePlan,
    mixture: dict[str, Any],
    levels: list[float],
    reference: Job,
) -> Job:
    """The job that draws a recipe's samples, and denoises images made noisy with the same noise."""
    block = params.evaluate.consistency
    shards = tuple(job.name for job in latents(params, data))
    asked = [[level, asked_at(recipe, level)] for level in levels]
    spec = {
        "mixture": mixture,
        "states": _as_json(recipe.sampling_states),
        "guidance": recipe.recipe.sampling.guidance,
        "levels": [pair for pair in asked if pair[1] is not None],
        "samples": block.samples,
        "nearest": min(block.nearest, data.rows),
        "dataset": data.digest,
        "rows": data.rows,
        "flips": params.latent.flips,
        "latents": list(shards),
        "features": reference.name,
        "seed": params.evaluate.seed,
        "batch": params.evaluate.batch,
        "threads": recipe.recipe.training.threads,
        "code": code_of("outputs"),
    }
    return Job(
        "outputs",
        spec,
        f"{recipe.name} outputs",
        (*_parts(mixture), *shards, reference.name),
        weight=block.samples * (len(spec["states"]) + len(levels)),
        threads=spec["threads"],
    )


def facts(info: Any, held_out: int = 0, analyses: Mapping[str, Any] | None = None) -> DatasetFacts:
    """Planning's view of a dataset's info, its last `held_out` rows apart."""
    return DatasetFacts(
        digest=info.digest,
        rows=info.rows - held_out,
        resolution=info.resolution,
        channels=info.channels,
        classes=len(info.classes or ()),
        mean=tuple(info.mean),
        std=tuple(info.std),
        held_out=held_out,
        analyses=analyses or {},
    )
