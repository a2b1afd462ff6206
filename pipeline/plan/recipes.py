"""Recipes resolved: states, intervals, experts and what merges them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import numpy as np

from pipeline.block import Form
from pipeline.errors import UserError
from pipeline.levels import curriculum, partition, schedule
from pipeline.levels.params import (
    Curriculum,
    DataPartition,
    FlowSchedule,
    IntervalDensity,
    OptimalDenoiserPartition,
    Partition,
    UniformCurriculum,
    state_count,
)
from pipeline.merging.params import Route
from pipeline.noise.params import Semidiscrete
from pipeline.noise.philox import derive_key
from pipeline.params.mistakes import refusal
from pipeline.params.recipe import Params, Recipe
from pipeline.plan.analyses import (
    FROM_DATA,
    NotMeasured,
    bounds_jobs,
    build_states,
    clusters_job,
    measured_errors,
    measured_on,
    states_of,
)
from pipeline.plan.clusters import router_of, rows_of_each
from pipeline.plan.expert import Run, expert_spec, own_network, seed_of
from pipeline.plan.inputs import (
    DatasetFacts,
    features,
    held_out,
    latent_facts,
    latents,
    spectrum,
)
from pipeline.plan.job import Job, code_of
from pipeline.plan.merges import Expert, RecipePlan, merged_job
from pipeline.plan.outputs import NEAR_STATE
from pipeline.specs import InFlowTime, OwnCurriculum, PairingSpec

LEAST_SHARE = 0.25  # of an equal budget: what `by-difficulty` leaves to the easiest state
SLOTS_PER_JOB = 8  # passes over the dataset that one pairing job pairs, at most


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

    found = {name: of(name) for name in params.recipes}
    for name, recipe in found.items():
        guide = recipe.recipe.sampling.guide
        if guide is not None:
            unknown = _unknown_to(found[guide.recipe or name], recipe.sampling_states)
            if unknown:
                raise UserError(
                    f"params.yaml: recipes.{name}.sampling.guide: {guide.recipe or name!r} learnt "
                    f"nothing at {len(unknown)} of the states that are sampled, such as log-SNR "
                    f"{unknown[0]:.4g}; use a guide of the same schedule, or another "
                    "sampling.steps"
                )
    return found


def _unknown_to(guide: RecipePlan, states: list[float]) -> list[float]:
    """Those of some states at which a recipe's networks cannot be asked."""
    wanted = np.array([v for v in states if np.isfinite(v)])
    known = guide.trained
    if any(expert.job.spec.conditioning == "none" for expert in guide.experts):
        strange = np.abs(known - wanted[:, None]).min(axis=1) > partition.SAME_STATE
    else:
        strange = (wanted > known[0] + NEAR_STATE) | (wanted < known[-1] - NEAR_STATE)
    return wanted[strange].tolist()


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
    alone = {"training": training, "merge": Route(), "sampling": recipe.sampling.without("guide")}
    return recipe.model_copy(update=alone)


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
    continuous = state_count(recipe.schedule) is None
    milestones = sorted({*training.milestones, training.images})
    bounds = _bounds(params, data, recipe, recipe.partition, log_snr, continuous)
    visited = _sampling_states(params, data, recipe, log_snr)
    plan = RecipePlan(name, recipe, log_snr, continuous, milestones, visited, bounds, parent=parent)
    states = plan.trained
    several = bool(recipe.network.decoders)
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
    run = Run(
        recipe,
        states,
        continuous,
        _curriculum(params, data, recipe, bounds, log_snr, continuous),
        tuple(bounds) if joint else (),
        start,
    )
    every = latent_facts(params, data).rows

    @functools.cache
    def paired_over(slots: int) -> tuple[Job, ...]:
        return tuple(pairings(params, data, recipe, slots, shards))

    shares = _shares(params, data, run, intervals)
    clusters, numbers = None, [None]
    if isinstance(recipe.partition, DataPartition):
        clusters = clusters_job(params, data, recipe.partition)
        rows = rows_of_each(data, clusters, recipe)
        drawn = _over_time(recipe, UniformCurriculum(), [], continuous)
        paired = paired_over(-(-recipe.partition.router.images // every))
        router = router_of(params, data, run, drawn, clusters, paired)
        plan = dataclasses.replace(plan, clusters=rows, router=router)
        # In proportion to their rows, so that all make as many passes over these.
        shares, numbers = np.outer(rows, shares).ravel(), range(len(rows))
    owners = itertools.product(numbers, intervals)
    budgets = curriculum.split_images(training.images, shares)
    together = training.experts_per_job
    for number, ((cluster, own), images) in enumerate(zip(owners, budgets, strict=True)):
        images = max(images, 1)
        snapshots = {m: max(1, round(images * m / training.images)) for m in milestones}
        spec = expert_spec(
            params,
            data,
            run,
            own,
            images,
            sorted(set(snapshots.values())),
            shards,
            own_network(recipe, branched, number),
            cluster,
        )
        paired = paired_over(-(-images // (every if cluster is None else plan.clusters[cluster])))
        apart = [job.name for job in held_out(params, data)] if training.stop else []
        needs = [*shards, *(job.name for job in paired), *apart]
        aligned = None
        if training.auxiliary is not None and training.auxiliary.kind == "repa":
            aligned = features(params, data).name
            needs.append(aligned)
        more = {"pairings": [job.name for job in paired], "held_out": apart, "features": aligned}
        if clusters is not None:
            more["clusters"] = clusters.name
            needs.append(clusters.name)
        spec = spec.model_copy(update=more)
        if start is not None:
            needs.append(start.job.name)
        label = name if cluster is None else f"{name} cluster {cluster + 1}"
        label += "" if len(intervals) == 1 else f" {_interval_name(*own)}"
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
        plan.experts.append(Expert(job, *own, images, snapshots, paired, cluster))
    if getattr(recipe.sampling, "s_churn", 0) and any(
        e.job.spec.conditioning == "none" for e in plan.experts
    ):
        raise ValueError(
            "sampling.s_churn: churn visits noise levels between the states, and experts of one "
            "state each answer at theirs only; leave it out"
        )
    if recipe.merge.method != "route":
        for milestone in milestones:
            plan.merged[milestone] = merged_job(params, data, plan, milestone)
    return plan


def pairings(
    params: Params, data: DatasetFacts, recipe: Recipe, slots: int, shards: tuple[str, ...]
) -> list[Job]:
    """Jobs that pair the first `slots` passes of a run; none where the noise is independent.

    A job depends on the method and the passes it covers alone, so recipes and experts share it.
    """
    if recipe.pairing.method == "independent":
        return []
    # What is done to the noise afterwards does not change who is paired with whom.
    settings = recipe.pairing.without("refresh", "scale", "within_class")
    # Within or around the classes that the network is told: 0 where these play no part.
    by_class = recipe.network.class_conditional and (
        getattr(recipe.pairing, "within_class", False) or getattr(recipe.pairing, "center", False)
    )
    jobs = []
    start = 0
    while start < slots:
        # 1, 1, 2, 4, 8, 8 ...: a short run pairs few passes that it does not need, and a long one
        # has the jobs of the short one among its own.
        stop = start + min(max(start, 1), SLOTS_PER_JOB)
        more: dict[str, Any] = {}
        if isinstance(settings, Semidiscrete) and jobs:
            more["potential"] = jobs[0].name
        spec = PairingSpec(
            settings=settings,
            slots=[start, stop],
            classes=data.classes if by_class else 0,
            noise_key=derive_key(seed_of(params, recipe), "noise"),
            dataset=data.digest,
            latents=list(shards),
            code=code_of("pairing", *([settings] if isinstance(settings, Form) else [])),
            **more,
        )
        label = f"{settings.method} passes {start + 1}-{stop}"
        needs = (*shards, *more.values())
        jobs.append(Job("pairing", spec, label, needs, weight=stop - start))
        start = stop
    return jobs


def _interval_name(first: int, last: int) -> str:
    return f"state {first + 1}" if first == last else f"states {first + 1}-{last + 1}"


def _curriculum(
    params: Params,
    data: DatasetFacts,
    recipe: Recipe,
    bounds: list[float],
    log_snr: np.ndarray,
    continuous: bool,
) -> OwnCurriculum:
    """The recipe's curriculum; one that is given by intervals with their bounds."""
    block = recipe.curriculum
    if not isinstance(block, IntervalDensity):
        return _over_time(recipe, block, [], continuous)
    if block.partition is not None:
        bounds = _bounds(params, data, recipe, block.partition, log_snr, continuous)
    shares = block.shares or [1.0] * (len(bounds) + 1)
    if len(shares) != len(bounds) + 1:
        raise ValueError(f"curriculum.shares: {len(shares)} for {len(bounds) + 1} intervals")
    resolved = block.model_copy(update={"partition": None, "shares": shares})
    return _over_time(recipe, resolved, bounds, continuous)


def _over_time(
    recipe: Recipe, form: Curriculum, bounds: list[float], continuous: bool
) -> OwnCurriculum:
    """A curriculum on the time axis of a continuous schedule: log-SNR, or the time of a flow."""
    schedule = recipe.schedule
    if continuous and isinstance(schedule, FlowSchedule):
        return OwnCurriculum(form=InFlowTime(shift=schedule.shift, form=form, bounds=bounds))
    return OwnCurriculum(form=form, bounds=bounds)


def _shares(
    params: Params, data: DatasetFacts, run: Run, intervals: list[tuple[int, int]]
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
        error = measured_errors(params, data, run.recipe)
    found = measured_on(data, spectrum(params, data))["spectrum"]
    difficulty = np.sqrt(schedule.mmse_slope(run.log_snr, found, error))
    difficulty = np.maximum(difficulty / difficulty.mean(), LEAST_SHARE)
    return np.array([difficulty[part].sum() for part in parts])


def _bounds(
    params: Params,
    data: DatasetFacts,
    recipe: Recipe,
    cut: Partition,
    log_snr: np.ndarray,
    continuous: bool,
) -> list[float]:
    axis = partition.axis_of(log_snr, continuous)

    def measured() -> dict[str, Any]:
        found = measured_on(data, bounds_jobs(params, data, recipe, cut)[-1])
        if isinstance(cut, OptimalDenoiserPartition):
            return found
        if cut.kind == "gradient":
            affinity = np.asarray(found["affinity"])
            return {"bounds": partition.affinity_bounds(axis, affinity, cut.intervals).log_snr}
        return {"bounds": partition.equal_parts(axis, found, cut.intervals)}

    def drawn() -> np.ndarray:
        states = log_snr if continuous else axis
        block = _curriculum(params, data, recipe, [], log_snr, continuous)
        return partition.mass_on(axis, curriculum.built(block, states, continuous))

    try:
        return partition.bounds(cut, axis, measured, drawn)
    except ValueError as e:
        raise ValueError(f"partition: {e}") from e


def _sampling_states(
    params: Params, data: DatasetFacts, recipe: Recipe, log_snr: np.ndarray
) -> list[float]:
    steps = recipe.sampling.steps
    if state_count(recipe.schedule) is None:
        return [float(v) for v in build_states(params, data, recipe, steps)]
    if steps is None:
        return [float(v) for v in log_snr]
    return [float(log_snr[i]) for i in schedule.subset(len(log_snr), steps)]
