"""What is drawn from finished models, and what is said of it: samples, scores, consistency."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter

from pipeline.block import Form
from pipeline.networks.params import Network, RouterNetwork
from pipeline.params.recipe import Params
from pipeline.plan.inputs import DatasetFacts, encoder, held_out, images_of, latents
from pipeline.plan.job import Job, code_of
from pipeline.plan.merges import RecipePlan
from pipeline.sampling.params import DdimSampling, Sampling
from pipeline.specs import (
    ConsistencySpec,
    ErrorsSpec,
    File,
    Law,
    Led,
    OutputsSpec,
    Published,
    ReconstructionsSpec,
    Routed,
    SamplesSpec,
    ScoresSpec,
    as_states,
)

NETWORK = TypeAdapter(Annotated[Network, Field(discriminator="kind")])
ERROR_LEVELS = 24  # noise levels at which errors are measured, at most
NEAR_STATE = 0.1  # log-SNR within which an expert's one state stands for a level (5 % in amplitude)


def class_counts(params: Params, data: DatasetFacts, plan: RecipePlan) -> list[int]:
    """In which proportions a recipe's samples are of each class; [] if it does not know classes.

    Classes without an image to learn from are never drawn, whatever `evaluate.labels` says.
    """
    if not plan.recipe.network.class_conditional:
        return []
    if params.evaluate.labels == "uniform":
        return [min(count, 1) for count in data.class_counts]
    return list(data.class_counts)


def samples(
    params: Params,
    data: DatasetFacts,
    plan: RecipePlan,
    mixture: dict[str, Any],
    label: str,
    guide: dict[str, Any] | None = None,
) -> list[Job]:
    """Jobs that draw the samples to be scored from one mixture of a recipe.

    guide: the mixture that guidance leads away from.
    """
    settings = params.evaluate
    recipe = plan.recipe
    sampling, led = own_sampling(plan, guide), led_of(plan, guide)
    base = {
        "mixture": mixture,
        "states": as_states(plan.sampling_states),
        "sampling": sampling,
        "led": led,
        "class_counts": class_counts(params, data, plan),
        "seed": settings.seed,
        "batch": settings.batch,
        "threads": recipe.training.threads,
        "code": code_of("samples", recipe.network, sampling, *_forms(mixture, led)),
    }
    needs = _parts(mixture, guide)
    jobs = []
    for start in range(0, settings.samples, settings.shard):
        stop = min(start + settings.shard, settings.samples)
        jobs.append(
            Job(
                "samples",
                SamplesSpec(**base, first=start, last=stop),
                f"{label} samples {start}-{stop - 1}",
                needs,
                weight=(stop - start) * len(base["states"]),
                threads=base["threads"],
                # The milestones of a recipe share a process: starting one costs seconds.
                group=f"{plan.name} {start}",
                recipe=plan.name,
            )
        )
    return jobs


def own_sampling(plan: RecipePlan, guide: dict[str, Any] | None) -> Sampling:
    """A recipe's sampling as its jobs need it: without guidance where its guide is no other."""
    sampling = plan.recipe.sampling
    if sampling.guide is not None and guide is None:
        sampling = sampling.without("guidance")
    return sampling.without("steps", "guide", "guidance_interval", "top")


def led_of(plan: RecipePlan, guide: dict[str, Any] | None) -> Led | None:
    """Where a recipe's guidance leads away from what; None for all states, and from no guide."""
    sampling = plan.recipe.sampling
    if guide is None and (sampling.guide is not None or sampling.guidance_interval is None):
        return None
    return Led(interval=sampling.guidance_interval, guide=guide)


def _parts(*mixtures: dict[str, Any] | None) -> tuple[str, ...]:
    """Entries that mixtures are made of."""
    parts = [
        part
        for mixture in mixtures
        if mixture
        for part in (*map(mixture.get, ("decoder", "terminal", "router")), *mixture["experts"])
    ]
    return tuple(dict.fromkeys(part["entry"] for part in parts if part))


def _forms(mixture: dict[str, Any], led: Led | None) -> list[Form]:
    """What guides, the networks of a guide, and what routes between clusters."""
    guide = (led and led.guide) or {"experts": []}
    forms: list[Form] = [led] if led else []
    forms += [NETWORK.validate_python(expert["network"]) for expert in guide["experts"]]
    for router in filter(None, (mixture.get("router"), guide.get("router"))):
        forms += [Routed(), RouterNetwork.model_validate(router["network"])]
    return forms


def reconstructions(params: Params, data: DatasetFacts) -> Job | None:
    """The job that encodes and decodes some images: what the encoder alone loses; None for pixels.

    As many as are sampled, so that their scores compare with those of the recipes.
    """
    codec = encoder(params, data)
    if codec is None:
        return None
    spec = ReconstructionsSpec(
        images=images_of(data),
        count=min(params.evaluate.samples, data.rows),
        encoder=codec.name,
        code=code_of("reconstructions"),
    )
    return Job("reconstructions", spec, "reconstructions", (codec.name,))


def scores(
    params: Params, data: DatasetFacts, shards: list[Job], reference: Job, label: str
) -> Job:
    """The job that scores one set of samples against the real images.

    Its scores say how the classes of the samples were drawn, where they were.
    """
    settings = params.evaluate
    names = [job.name for job in shards]
    conditional = any(getattr(job.spec, "class_counts", ()) for job in shards)
    published = None
    if settings.reference is not None:
        file = File(path=settings.reference, sha256=data.reference_file)
        published = Published(file=file)
    law = Law() if params.data.source == "synthetic" else None
    spec = ScoresSpec(
        samples=names,
        features=reference.name,
        seed=settings.seed,
        neighbours=settings.neighbours,
        allow_few=settings.allow_few,
        labels=settings.labels if conditional else None,
        published=published,
        law=law,
        code=code_of("scores", *filter(None, (published, law))),
    )
    needs = (*names, reference.name)
    return Job("scores", spec, f"{label} scores", needs, group=label.partition(" ")[0])


def errors(
    params: Params, data: DatasetFacts, plan: RecipePlan, mixture: dict[str, Any]
) -> Job | None:
    """The job that measures a mixture's errors on held-out images by noise level; None without
    such images.

    At some of the recipe's states, evenly over them, or evenly over its continuous range.
    """
    shards = [job.name for job in held_out(params, data)]
    if not shards:
        return None
    states, most = plan.trained, ERROR_LEVELS
    levels = np.linspace(states[0], states[-1], most) if plan.continuous else states
    chosen = np.unique(np.round(np.linspace(0, len(levels) - 1, most)).astype(int))
    spec = ErrorsSpec(
        mixture=mixture,
        levels=[float(v) for v in levels[chosen]],
        latents=shards,
        seed=params.evaluate.seed,
        batch=params.evaluate.batch,
        code=code_of("errors", plan.recipe.network, *_forms(mixture, None)),
    )
    needs = (*_parts(mixture), *shards)
    return Job("errors", spec, f"{plan.name} errors", needs, group=plan.name)


def consistency(
    params: Params,
    data: DatasetFacts,
    recipes: Mapping[str, RecipePlan],
    mixtures: Mapping[str, dict[str, Any]],
    guides: Mapping[str, dict[str, Any] | None],
    reference: Job,
) -> tuple[dict[str, Job], dict[tuple[str, str], Job]]:
    """Jobs that make each compared recipe's outputs, by its name, and one that compares each pair.

    recipes, mixtures and guides (at their ends): all by name. Drawing and denoising is done once a
    recipe, so a further one costs its own outputs and the comparison of stored numbers. Empty
    without the block `evaluate.consistency`.
    """
    block = params.evaluate.consistency
    if block is None:
        return {}, {}
    compared = {name: recipes[name] for name in block.recipes}
    levels = shared_levels(list(compared.values()), block.states)
    outputs = {
        name: _outputs(params, data, recipe, mixtures[name], guides[name], levels, reference)
        for name, recipe in compared.items()
    }
    pairs = {}
    for a, b in itertools.combinations(compared, 2):
        needs = (outputs[a].name, outputs[b].name, reference.name)
        spec = ConsistencySpec(
            outputs=list(needs[:2]),
            features=reference.name,
            levels=levels,
            level=block.level,
            resamples=block.resamples,
            similarity=block.similarity,
            seed=params.evaluate.seed,
            code=code_of("consistency"),
        )
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
    guide: dict[str, Any] | None,
    levels: list[float],
    reference: Job,
) -> Job:
    """The job that draws a recipe's samples, and denoises images made noisy with the same noise."""
    block = params.evaluate.consistency
    shards = tuple(job.name for job in latents(params, data))
    asked = [[level, asked_at(recipe, level)] for level in levels]
    # Without noise in its steps: the samples are functions of their starting noise alone.
    sampling = DdimSampling(guidance=own_sampling(recipe, guide).guidance)
    led = led_of(recipe, guide)
    spec = OutputsSpec(
        mixture=mixture,
        states=as_states(recipe.sampling_states),
        sampling=sampling,
        led=led,
        class_counts=class_counts(params, data, recipe),
        levels=[pair for pair in asked if pair[1] is not None],
        samples=block.samples,
        nearest=min(block.nearest, data.rows),
        images=images_of(data),
        flips=params.latent.flips,
        latents=list(shards),
        features=reference.name,
        seed=params.evaluate.seed,
        batch=params.evaluate.batch,
        threads=recipe.recipe.training.threads,
        code=code_of("outputs", recipe.recipe.network, sampling, *_forms(mixture, led)),
    )
    return Job(
        "outputs",
        spec,
        f"{recipe.name} outputs",
        (*_parts(mixture, guide), *shards, reference.name),
        weight=block.samples * (len(spec.states) + len(levels)),
        threads=spec.threads,
    )
