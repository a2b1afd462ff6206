"""What a run would do, why, and what it costs, for `tspace plan`. It only reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline import plan
from pipeline.errors import UserError
from pipeline.params.feasibility import check_against, doubts
from pipeline.params.recipe import Params
from stages import sample
from stages.facts import facts_of
from stages.fanout import crowded, profile_settings
from stages.numbers import counted
from stages.source import MOVED, changes, raw_path, recipe_files, require_images
from stages.tools import calibration, hardware
from stages.tools.clock import StageTime
from stages.tools.declared import Declared, declared
from stages.tools.forecast import (
    Costs,
    Drawing,
    begun_experts,
    critical_seconds,
    drawing,
    evaluation_seconds,
    finished_experts,
)
from stages.tools.reasons import Reasons
from stages.tools.status import Found, done, look, merged
from stages.tools.timetable import Timetable
from stages.workspace import Workspace

WEIGHT_BYTES = 4  # of a parameter in a snapshot


@dataclass(frozen=True)
class Row:
    """One expert of a recipe in the plan.

    first, last: its states, counted from 1; of a continuous schedule there are none to count, and
    `levels` says its range of log-SNR.
    """

    recipe: str
    label: str
    name: str
    first: int
    last: int
    status: str  # cached | running | resumes | failed | trains
    why: str
    images: int
    images_left: int
    flops: float
    flops_left: float
    seconds_left: float | None  # None: nothing like it was trained yet
    estimated: bool  # its seconds are those of other networks, by their FLOPs
    weights_bytes: int
    levels: str = ""


@dataclass(frozen=True)
class Input:
    """Jobs that encode the images, or make features of them. seconds_left: None if unknown."""

    what: str
    work: str
    seconds_left: float | None


@dataclass(frozen=True)
class Outlook:
    """What a run would do.

    waiting: recipes whose experts are not known yet, and why. stages: what is left of each stage of
    dvc.yaml, the recipes that wait by others of their size; empty where one recipe was asked for.
    workers: cores that jobs share; None on a cluster. measured: whether this machine was.
    unknown: what is not known before the dataset is prepared (again), in words; empty once it is.
    changed: how the dataset differs from params.yaml and the raw images, or may. warnings: of what
    it will find too late. on_gpu: what it takes on a GPU that was asked for.
    """

    experts: list[Row]
    waiting: dict[str, str]
    drawings: list[Drawing]
    inputs: list[Input]
    totals: dict[str, Any]
    stages: list[StageTime] = field(default_factory=list)
    workers: int | None = 0
    measured: bool = False
    unknown: str = ""
    changed: str = ""
    warnings: list[str] = field(default_factory=list)
    on_gpu: hardware.Estimate | None = None


def outlook(
    workspace: Workspace,
    only: str | None = None,
    gpu: hardware.Hardware | None = None,
    said: Declared | None = None,
) -> Outlook:
    """What a run would do: a row an expert in the order of the plan, samples, inputs and totals.

    gpu: what to estimate it on, besides. said: of images that are not there. UserError for an
    unknown recipe, and for what params.yaml says and the images cannot give.
    """
    params = workspace.params
    if only is not None:
        workspace.known_recipe(only)
    changed = changes(workspace) or ""
    facts, unknown, exact = facts_to_plan(workspace, changed, said)
    recipes, guides, waiting = plannable(params, facts, [only] if only else list(params.recipes))
    finished, beforehand = finished_experts(workspace), calibration.kept(workspace)
    costs = Costs(finished, begun_experts(workspace), workspace.root, beforehand)
    reasons = Reasons(finished)
    rows, jobs, known = [], {}, {}
    for recipe in recipes.values():
        for expert in recipe.experts:
            job = expert.job
            jobs[job.name] = job
            if job.name not in known:
                known[job.name] = look(workspace, "experts", job.name)
            rows.append(_row(recipe, expert, known[job.name], costs, reasons))
    if unknown:  # names of jobs follow from the dataset, so none can be looked up
        rows = [dataclasses.replace(row, why="") for row in rows]
    samples = params.evaluate.samples
    left = {name: dict.fromkeys(recipe.milestones, samples) for name, recipe in recipes.items()}
    if not unknown:
        left = {
            name: _undrawn(workspace, facts, recipe, guides.get(name))
            for name, recipe in recipes.items()
        }
    measured = beforehand.evaluations | evaluation_seconds(workspace)
    drawings = [
        drawing(recipe, guides.get(name), samples, left[name], costs, measured)
        for name, recipe in recipes.items()
    ]
    paired = {job.name: job for recipe in recipes.values() for job in recipe.pairings}
    routers = {r.router.job.name: r.router.job for r in recipes.values() if r.router}
    untrained = [job for name, job in routers.items() if not done(workspace, "experts", name)]
    shards = plan.latents(params, facts)
    first = {
        "latents_jobs": sum(not done(workspace, "latents", job.name) for job in shards),
        "pairing_jobs": sum(not done(workspace, "pairings", name) for name in paired),
        "routers": len(untrained),
        "router_flops": sum(costs.of(job.spec).flops * job.spec.images for job in untrained),
        "sampling_flops": sum(drawn.flops_left for drawn in drawings),
    }
    crowd = crowded(profile_settings(workspace), [job for n, job in jobs.items() if n in known])
    doubted = doubts(params, facts.rows, facts.class_counts) if exact else []
    on_gpu = None
    more, more_drawings = _unmeasured(params, facts, list(waiting), costs, measured)
    if gpu is not None:
        flops_left = {row.name: row.flops_left for row in rows}
        work = [
            hardware.Work(name, expert.job.name, expert.job.spec, flops_left[expert.job.name])
            for name, recipe in recipes.items()
            for expert in recipe.experts
        ]
        work += [
            hardware.Work(name, job.name, job.spec, costs.of(job.spec).flops * expert.images)
            for name, recipe in more.items()
            for expert in recipe.experts
            for job in [expert.job]
        ]
        on_gpu = hardware.estimated(
            gpu,
            work,
            drawings + more_drawings,
            set(waiting),
            _row_bytes(params, facts),
            workspace.root,
        )
    timetable = Timetable(
        workspace,
        params,
        facts,
        recipes | more,
        drawings + more_drawings,
        {row.name: row.images_left for row in rows},
        measured,
        costs,
        beforehand,
        prepared=not unknown,
    )
    return Outlook(
        rows,
        waiting,
        drawings,
        _inputs(workspace, facts, timetable),
        _totals(rows, jobs) | first,
        [] if only else timetable.rows(),
        timetable.workers if timetable.local else None,
        bool(beforehand.overheads),
        unknown,
        changed,
        [*([crowd] if crowd else []), *doubted],
        on_gpu,
    )


def _unmeasured(
    params: Params,
    facts: plan.DatasetFacts,
    waiting: Sequence[str],
    costs: Costs,
    measured: dict[str, float],
) -> tuple[dict[str, plan.RecipePlan], list[Drawing]]:
    """Recipes that wait for measurements as others of their size, and their samples."""
    recipes, guides, _ = plannable(hardware.without_measurements(params), facts, waiting)
    samples = params.evaluate.samples
    drawings = [
        drawing(
            recipe,
            guides.get(name),
            samples,
            dict.fromkeys(recipe.milestones, samples),
            costs,
            measured,
        )
        for name, recipe in recipes.items()
    ]
    return recipes, drawings


def _row_bytes(params: Params, facts: plan.DatasetFacts) -> int:
    """Of all rows that the networks see, as they are stored: uint8 pixels, or float16 latents."""
    latent, found = params.latent, plan.latent_facts(params, facts)
    each = 1 if latent.encoder == "pixels" else 4 if latent.sample else 2
    return each * found.rows * found.channels * found.resolution**2


def facts_to_plan(
    workspace: Workspace, changed: str, said: Declared | None
) -> tuple[plan.DatasetFacts, str, bool]:
    """The dataset's facts, what is not known yet in words, and whether they count all images.

    Those of the raw images where it is not prepared yet, or has to be prepared again; where there
    are none either, what is said of them.
    """
    path = raw_path(workspace)
    missing = path is not None and not path.exists()
    prepared = workspace.dataset.exists() and changed in ("", MOVED)
    if said is not None and (prepared or not missing):
        raise UserError("--rows, --classes: the images are here and are looked at; leave these out")
    if prepared:
        return facts_of(workspace), "", True
    from pipeline.data.preview import preview

    data = workspace.params.data
    keys = {"source", "split", "side", "resolution", "channels", "limit"}
    settings = data.model_dump(include=keys)
    why = changed.partition("; ")[0] or "the dataset is not prepared yet"
    seen = declared(workspace.params, said or Declared()) if missing else None
    how = "by a look at the source" if seen is None else f"as said, for {data.path} is not there"
    if seen is None:
        try:
            require_images(workspace, why)
        except UserError as e:
            raise UserError(f"{e}; to plan without them, say --rows and --classes") from e
        seen = preview(path=path, **settings)
    classes = len(seen.class_counts)
    if seen.exact:
        check_against(workspace.params, seen.rows, seen.resolution, seen.channels, classes)
    facts = plan.DatasetFacts(
        digest="",
        rows=max(seen.rows - data.holdout, 1),
        resolution=seen.resolution,
        channels=seen.channels,
        classes=classes,
        mean=(0.0,) * seen.channels,
        std=(1.0,) * seen.channels,
        held_out=data.holdout,
        class_counts=seen.class_counts,
        recipe_files=recipe_files(workspace),
    )
    labels = f"{classes} classes" if classes else "no labels"
    lack = (
        f"{why}: {'' if seen.exact else 'at least '}{seen.rows:,} images "
        f"of {seen.resolution}x{seen.resolution}, {counted(seen.channels, 'channel')}, {labels}, "
        f"{how}; what a store already has is known after `dvc repro prepare`"
    )
    return facts, lack, seen.exact


def plannable(
    params: Params, facts: plan.DatasetFacts, wanted: Sequence[str]
) -> tuple[dict[str, plan.RecipePlan], dict[str, plan.RecipePlan], dict[str, str]]:
    """Recipes that can be planned now, the guides of their samples, and why others cannot be."""
    found, guides, waiting = {}, {}, {}
    for name in wanted:
        needed = [name]
        for other in needed:
            recipe = params.recipes[other]
            guide = recipe.sampling.guide
            named = (recipe.training.parent, guide and guide.recipe)
            needed += [more for more in named if more is not None and more not in needed]
        recipes = {other: params.recipes[other] for other in needed}
        try:
            planned = plan.experts(params.model_copy(update={"recipes": recipes}), facts)
        except plan.NotMeasured as e:
            waiting[name] = str(e)
            continue
        found[name] = planned[name]
        guide = params.recipes[name].sampling.guide
        if guide is not None:
            guides[name] = planned[guide.recipe or name]
    return found, guides, waiting


def _undrawn(
    workspace: Workspace,
    facts: plan.DatasetFacts,
    recipe: plan.RecipePlan,
    guide: plan.RecipePlan | None,
) -> dict[int, int]:
    """Samples of each milestone that are still to be drawn: all where experts must be trained."""
    params = workspace.params
    if not all(merged(workspace, made.name, made) for made in (recipe, guide) if made):
        return dict.fromkeys(recipe.milestones, params.evaluate.samples)
    parts = sample.sample_jobs(workspace, params, facts, {recipe.name: recipe})
    known, left = set(), {}
    for (_, milestone), jobs in parts.items():
        fresh = {job.name: job.spec for job in jobs if job.name not in known}
        known |= set(fresh)
        left[milestone] = sum(
            spec.last - spec.first
            for name, spec in fresh.items()
            if not done(workspace, "samples", name)
        )
    return left


def _inputs(workspace: Workspace, facts: plan.DatasetFacts, timetable: Timetable) -> list[Input]:
    """Jobs that are still to encode images, and to make features of the real ones."""
    params, found = workspace.params, []
    codec, shards = plan.encoder(params, facts), plan.latents(params, facts)
    extractor = plan.features(params, facts)
    work = [
        ("latents", codec and [codec], lambda job: f"trained on {job.weight:,} images"),
        ("latents", shards, lambda _: f"{plan.latent_facts(params, facts).rows:,} images"),
        ("features", [extractor], lambda _: _of_features(params, facts)),
    ]
    for stage, jobs, about in work:
        left = [job for job in jobs or () if not done(workspace, stage, job.name)]
        if left:
            what = left[0].label if left[0].kind != "latents" else "latents"
            times = [timetable.job(job) for job in left]
            found.append(Input(what, about(left[0]), None if None in times else sum(times)))
    return found


def _of_features(params: Params, facts: plan.DatasetFacts) -> str:
    trained = getattr(params.features, "images", None)
    first = f"trained on {trained:,} images, " if trained else ""
    return f"{first}features of {facts.rows:,}"


def _row(
    recipe: plan.RecipePlan, expert: plan.Expert, found: Found, costs: Costs, reasons: Reasons
) -> Row:
    job = expert.job
    levels = ""
    if recipe.continuous:
        levels = f"log-SNR {recipe.log_snr[0]:.3g} to {recipe.log_snr[-1]:.3g}"
    cost = costs.of(job.spec)
    images = expert.images
    left = 0 if found.status == "done" else max(images - found.images, 0)
    status, why = {"done": "cached", "waiting": "trains"}.get(found.status, found.status), ""
    if found.status == "waiting":
        why = reasons.of(job.spec, job.label)
    elif found.status == "resumes":
        why = f"at {found.images:,} images"
    elif found.status == "running":
        why = f"at {found.images:,} images" + (f", {found.host}" if found.host else "")
    elif found.status == "failed":
        again = f"; goes on at {found.images:,} images" if found.images else ""
        why = f"{found.error}{again}"
    return Row(
        recipe=recipe.name,
        label=job.label,
        name=job.name,
        first=expert.first + 1,
        last=expert.last + 1,
        status=status,
        why=why,
        images=images,
        images_left=left,
        flops=cost.flops * images,
        flops_left=cost.flops * left,
        seconds_left=0.0 if not left else cost.seconds and cost.seconds * left,
        estimated=cost.estimated,
        weights_bytes=WEIGHT_BYTES * cost.parameters * len(job.spec.snapshots),
        levels=levels,
    )


def _totals(rows: Sequence[Row], jobs: dict[str, plan.Job]) -> dict[str, Any]:
    """Sums over what has to run, an expert that recipes share counted once."""
    left = {row.name: row for row in rows if row.status != "cached"}
    seconds = {name: row.seconds_left for name, row in left.items()}
    unknown = sum(value is None for value in seconds.values())
    estimated = sum(row.estimated and row.seconds_left is not None for row in left.values())
    # Jobs of a group run in one process, one after the other.
    group = {name: f"{jobs[name].group}" or name for name in left}
    return {
        "experts": len({row.name for row in rows}),
        "experts_left": len(left),
        "jobs": len(set(group.values())),
        "images": sum(row.images_left for row in left.values()),
        "flops": sum(row.flops_left for row in left.values()),
        "seconds": sum(value or 0.0 for value in seconds.values()),
        "seconds_critical": critical_seconds(
            {name: value or 0.0 for name, value in seconds.items()},
            group,
            {name: jobs[name].needs for name in left},
        ),
        "seconds_unknown_for": unknown,
        "seconds_estimated_for": estimated,
        "weights_bytes": sum(row.weights_bytes for row in left.values()),
    }
