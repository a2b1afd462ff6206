"""Recipes resolved: states, intervals, experts and what merges them."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline import clustering, config, curriculum, partition, schedule
from pipeline.config import Params, Recipe
from pipeline.errors import UserError
from pipeline.noise import derive_key
from pipeline.plan.inputs import (
    DatasetFacts,
    as_json,
    encoder,
    features,
    held_out,
    images_of,
    latent_facts,
    latents,
    pixel_std,
    spectrum,
)
from pipeline.plan.job import Job, code_of
from pipeline.wording import refusal

PILOT_NODES = 64  # noise levels at which a pilot's error is measured
LEAST_SHARE = 0.25  # of an equal budget: what `by-difficulty` leaves to the easiest state
SLOTS_PER_JOB = 8  # passes over the dataset that one pairing job pairs, at most
HALF_RANGE = 127.5  # in uint8 units, of images that are scaled to [-1, 1]
FROM_DATA = (config.FittedSchedule, config.ElboSchedule)


class NotMeasured(UserError):
    """Planning waits for something that is measured on the data."""


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


@dataclass(frozen=True)
class _Run:
    """What the experts of one recipe have in common."""

    recipe: Recipe
    log_snr: np.ndarray  # the trained states, or the two ends
    continuous: bool
    bounds: tuple[float, ...] = ()  # of a multi-decoder's intervals
    density: dict[str, Any] | None = None  # a curriculum by intervals, resolved
    parent: Weights | None = None

    @functools.cached_property
    def drawn(self) -> curriculum.Curriculum:
        """The recipe's curriculum on all of its states."""
        options = self.density or self.recipe.curriculum.model_dump(mode="json")
        options = {k: v for k, v in options.items() if k not in ("kind", "correct", "partition")}
        kind = self.recipe.curriculum.kind
        return curriculum.build(kind, self.log_snr, self.continuous, **options)


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
            except NotMeasured:
                raise
            except (ValueError, UserError) as e:
                raise UserError(f"params.yaml: recipes.{name}: {e}") from e
        return plans[name]

    return {name: of(name) for name in params.recipes}


def check(params: Params, data: DatasetFacts) -> None:
    """Refuse recipes that cannot be planned. UserError with all of them, a line each.

    Those that wait for measurements are left for when these are there.
    """
    problems = []
    for name, recipe in params.recipes.items():
        alone = params.model_copy(update={"recipes": {name: _without_parent(recipe)}})
        try:
            experts(alone, data)
        except NotMeasured:
            continue
        except UserError as e:
            problems.append(str(e).removeprefix("params.yaml: "))
    if problems:
        raise refusal("params.yaml", problems)


def _without_parent(recipe: Recipe) -> Recipe:
    """The recipe with the same states and experts, of which none needs another recipe's."""
    training = recipe.training.model_copy(update={"parent": None, "train": "all"})
    return recipe.model_copy(update={"training": training, "merge": config.Route()})


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
    several = isinstance(recipe.network, config.MultiDecoder)
    # Decoders behind a frozen encoder do not meet in training: each is an expert of its own.
    branched = several and training.train == "decoders"
    joint = several and not branched
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
        spec = _expert_spec(
            params,
            data,
            run,
            own,
            images,
            sorted(set(snapshots.values())),
            shards,
            _own_width(recipe, branched, number),
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
            recipe=name,
        )
        plan.experts.append(Expert(job, *own, images, snapshots, paired))
    if getattr(recipe.sampling, "s_churn", 0) and any(
        e.job.spec["conditioning"] == "none" for e in plan.experts
    ):
        raise ValueError(
            "sampling.s_churn: churn visits noise levels between the states, and experts of one "
            "state each answer at theirs only; leave it out"
        )
    if recipe.merge.method != "route":
        for milestone in milestones:
            plan.merged[milestone] = _merged(params, data, plan, milestone)
    return plan


def pairings(
    params: Params, data: DatasetFacts, recipe: Recipe, images: int, shards: tuple[str, ...]
) -> list[Job]:
    """Jobs that pair the first `images` images of a run; none where the noise is independent.

    A job depends on the method and the passes it covers alone, so recipes and experts share it.
    """
    if recipe.pairing.method == "independent":
        return []
    # What is done to the noise afterwards does not change who is paired with whom.
    apart = {"refresh", "scale", "within_class"}
    settings = recipe.pairing.model_dump(mode="json", exclude=apart)
    # Within or around the classes that the network is told: 0 where these play no part.
    by_class = recipe.network.class_conditional and (
        getattr(recipe.pairing, "within_class", False) or getattr(recipe.pairing, "center", False)
    )
    slots = -(-images // latent_facts(params, data).rows)
    jobs = []
    start = 0
    while start < slots:
        # 1, 1, 2, 4, 8, 8 ...: a short run pairs few passes that it does not need, and a long one
        # has the jobs of the short one among its own.
        stop = start + min(max(start, 1), SLOTS_PER_JOB)
        spec = {
            "settings": settings,
            "slots": [start, stop],
            "classes": data.classes if by_class else 0,
            "noise_key": derive_key(_seed(params, recipe), "noise"),
            "dataset": data.digest,
            "latents": list(shards),
            "code": code_of("pairing"),
        }
        label = f"{settings['method']} passes {start + 1}-{stop}"
        jobs.append(Job("pairing", spec, label, shards, weight=stop - start))
        start = stop
    return jobs


def _own_width(recipe: Recipe, branched: bool, number: int) -> dict[str, Any]:
    """What an expert's network has for itself."""
    if branched:
        return {"decoder_channels": [recipe.network.decoder_channels[number]]}
    widths = recipe.partition_channels
    if not widths or isinstance(recipe.network, config.MultiDecoder):
        return {}
    return {"channels": widths[number]}


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
    own_width: dict[str, Any] | None = None,
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
    network |= own_width or {}
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
    run.drawn.restrict(np.arange(first, last + 1))  # refuses states that nothing falls on
    return settings | {"axis": [float(v) for v in run.log_snr], "own": [first, last]}


def _merged(params: Params, data: DatasetFacts, plan: RecipePlan, milestone: int) -> Job:
    """The job that makes one network of a recipe's experts, or of one run's snapshots."""
    recipe = plan.recipe
    block = recipe.merge
    if block.method in ("snapshots", "post-hoc"):
        [expert] = plan.experts
        taken = [expert.snapshots[m] for m in plan.milestones if m <= milestone]
        kinds = ["weights"]
        if block.method == "post-hoc":
            kinds = [f"power-{length}" for length in recipe.training.power_ema]
        sources = [
            {"entry": expert.job.name, "file": f"{kind}-{images}.safetensors"}
            for images in taken
            for kind in kinds
        ]
    else:
        sources = [
            {"entry": e.job.name, "file": f"weights-{e.snapshots[milestone]}.safetensors"}
            for e in plan.experts
        ]
    settings = block.model_dump(mode="json")
    if block.method == "post-hoc":
        batch = recipe.training.batch  # a snapshot is taken at the end of a batch
        ends = [min(-(-images // batch) * batch, expert.images) for images in taken]
        settings |= {"images": ends, "kept": recipe.training.power_ema}
    spec = {
        "settings": settings,
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
        if getattr(block, "confirm", 0):
            spec["confirm"], more = _confirmation(params, data, plan)
            needs += more
    label = f"{plan.name} merged at {milestone:,}"
    return Job(
        "merged",
        spec,
        label,
        tuple(dict.fromkeys(needs)),
        threads=recipe.training.threads,
        recipe=plan.name,
    )


def _confirmation(
    params: Params, data: DatasetFacts, plan: RecipePlan
) -> tuple[dict[str, Any], list[str]]:
    """What scoring samples of a candidate takes, and the entries needed for it."""
    reference, codec = features(params, data), encoder(params, data)
    spec = {
        "features": reference.name,
        **images_of(data),
        "rows": [data.rows, data.rows + data.held_out],
        "log_snr": as_json(plan.log_snr),
        "states": as_json(plan.sampling_states),
        "sampling": plan.recipe.sampling.model_dump(mode="json", exclude={"steps"}),
        "seed": derive_key(params.seed, "confirmation"),
    }
    if plan.recipe.network.class_conditional:  # as the held-out images are, whatever is scored
        spec["class_counts"] = list(data.class_counts)
    needs = [reference.name]
    if codec is None:
        first = latents(params, data)[0].spec
        spec |= {"shift": first["shift"], "scale": first["scale"]}
    else:
        spec["encoder"] = codec.name
        needs.append(codec.name)
    if not np.isfinite(plan.log_snr[-1]):
        spec["terminal"] = spectrum(params, data).name
        needs.append(spec["terminal"])
    return spec, needs


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
        return curriculum.budget_shares(run.drawn, parts)
    error = None
    if isinstance(run.recipe.schedule, FROM_DATA) and run.recipe.schedule.source == "pilot":
        error = _error_curve(params, data, run.recipe)
    found = _measured(data, spectrum(params, data))["spectrum"]
    difficulty = np.sqrt(schedule.mmse_slope(run.log_snr, found, error))
    difficulty = np.maximum(difficulty / difficulty.mean(), LEAST_SHARE)
    return np.array([difficulty[part].sum() for part in parts])


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


def _seed(params: Params, recipe: Recipe) -> int:
    return params.seed if recipe.seed is None else recipe.seed


# --- what is measured on the data before anything is planned with it


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
        raise NotMeasured(
            f"{job.label}: not measured yet, or params.yaml or the code changed since; "
            "run `dvc repro`"
        ) from None


def states_of(params: Params, data: DatasetFacts, recipe: Recipe) -> np.ndarray:
    """Log-SNR of each state, strictly descending; for a continuous schedule its two ends.

    UserError if the schedule is fitted to measurements that were not made yet.
    """
    return _build(params, data, recipe, config.state_count(recipe.schedule) or 2)


def _build(params: Params, data: DatasetFacts, recipe: Recipe, states: int) -> np.ndarray:
    block = recipe.schedule
    apart = {"kind", "states", "source", "pilot_images"}
    options = block.model_dump(exclude=apart)
    if options["shift"] == "unit-range":
        options["shift"] = 2 * float(np.log(pixel_std(data) / HALF_RANGE))
    if isinstance(block, FROM_DATA):
        if block.source == "pilot":
            options["error_curve"] = _error_curve(params, data, recipe)
        else:
            options["spectrum"] = _measured(data, spectrum(params, data))["spectrum"]
    found = schedule.build(block.kind, states, **options)
    ends = found[np.isfinite(found)]
    if len(ends) and np.abs(ends[[0, -1]]).max() > config.MOST_LOG_SNR:
        raise UserError(
            f"schedule: log-SNRs from {ends[0]:g} to {ends[-1]:g}; float32 carries none beyond "
            f"{config.MOST_LOG_SNR:g} on either side: use less `shift`, or nearer ends"
        )
    return found


def _error_curve(params: Params, data: DatasetFacts, recipe: Recipe) -> tuple[list, list]:
    block = recipe.schedule
    job = _pilot(params, data, recipe, block.pilot_images, _pilot_axis(recipe))[-1]
    found = _measured(data, job)
    return found["log_snr"], found["error"]


def _sampling_states(
    params: Params, data: DatasetFacts, recipe: Recipe, log_snr: np.ndarray
) -> list[float]:
    steps = recipe.sampling.steps
    if config.state_count(recipe.schedule) is None:
        return [float(v) for v in _build(params, data, recipe, steps)]
    if steps is None:
        return [float(v) for v in log_snr]
    return [float(log_snr[i]) for i in schedule.subset(len(log_snr), steps)]
