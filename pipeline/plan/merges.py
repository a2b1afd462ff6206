"""A recipe as planned, and the jobs that make one network of its experts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.block import Form
from pipeline.noise.philox import derive_key
from pipeline.params.recipe import Params, Recipe
from pipeline.plan.expert import Weights, seed_of
from pipeline.plan.inputs import (
    DatasetFacts,
    encoder,
    features,
    held_out,
    images_of,
    latents,
    spectrum,
)
from pipeline.plan.job import Job, code_of
from pipeline.specs import Confirmation, DenoiserSpec, MergedSpec, Part, as_states


@dataclass(frozen=True)
class Expert:
    """An expert of a recipe: its job, the states it owns, and its snapshots."""

    job: Job
    first: int  # index of its cleanest state; 0 for a continuous schedule
    last: int  # index of its noisiest state, inclusive
    images: int
    snapshots: dict[int, int]  # milestone of the recipe -> images of this expert
    pairings: tuple[Job, ...] = ()  # the jobs that pair its images with noise
    cluster: int | None = None  # of the data, that it is trained on alone


@dataclass(frozen=True)
class Router:
    """What tells the experts over clusters of the data apart: the job that trains it."""

    job: Job
    pairings: tuple[Job, ...]

    @property
    def weights(self) -> Weights:
        """Its network, the same at all milestones."""
        return Weights(self.job, "weights.safetensors", self.job.spec)


@dataclass(frozen=True)
class RecipePlan:
    """A recipe resolved: its states (log-SNR, cleanest first), milestones and experts.

    bounds: log-SNRs between the intervals of its partition; merged: for each milestone the job
    that makes one network of the experts (none for a mixture that routes). clusters: rows of each
    cluster of the data, and router, where the experts are of clusters.
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
    clusters: list[int] = field(default_factory=list)
    router: Router | None = None

    @property
    def trained(self) -> np.ndarray:
        """The states that a network answers for: all but one without any signal."""
        return self.log_snr if self.continuous else self.log_snr[np.isfinite(self.log_snr)]

    @property
    def trainings(self) -> list[Job]:
        """The jobs that train its experts and its router; none needs another."""
        return [one.job for one in self._trained]

    @property
    def pairings(self) -> list[Job]:
        """The jobs that pair their images with noise, each once."""
        return list({job.name: job for one in self._trained for job in one.pairings}.values())

    @property
    def _trained(self) -> list[Expert | Router]:
        return [*self.experts, *([self.router] if self.router else [])]

    def guided(self, milestone: int) -> bool:
        """Whether the samples of a milestone are drawn with guidance.

        A milestone is not led away from itself, nor from a later one of its own recipe.
        """
        sampling, guide = self.recipe.sampling, self.recipe.sampling.guide
        own = guide is not None and guide.recipe in (None, self.name)
        return sampling.guidance != 1 and not (own and milestone <= guide.milestone)

    def weights(self, milestone: int) -> list[Weights]:
        """The networks that the recipe has at a milestone: one an expert, or the merged one."""
        if milestone in self.merged:
            job = self.merged[milestone]
            return [Weights(job, "weights.safetensors", self.experts[0].job.spec)]
        return [
            Weights(e.job, f"weights-{e.snapshots[milestone]}.safetensors", e.job.spec)
            for e in self.experts
        ]


def merged_job(params: Params, data: DatasetFacts, plan: RecipePlan, milestone: int) -> Job:
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
            Part(entry=expert.job.name, file=f"{kind}-{images}.safetensors")
            for images in taken
            for kind in kinds
        ]
    else:
        sources = [
            Part(entry=e.job.name, file=f"weights-{e.snapshots[milestone]}.safetensors")
            for e in plan.experts
        ]
    more: dict[str, Any] = {}
    forms: list[Form] = [recipe.network, *([block] if isinstance(block, Form) else [])]
    if block.method == "post-hoc":
        batch = recipe.training.batch  # a snapshot is taken at the end of a batch
        ends = [min(-(-images // batch) * batch, expert.images) for images in taken]
        more = {"ends": ends, "kept": recipe.training.power_ema}
    needs = [source.entry for source in sources]
    first = plan.experts[0].job.spec
    if first.parent is not None:
        needs.append(first.parent.entry)
    if block.method == "snapshots" or getattr(block, "weights", 0) is None:
        shards = [job.name for job in held_out(params, data)]
        more["latents"] = shards
        needs += shards
        if getattr(block, "confirm", 0):
            more["confirm"], entries = _confirmation(params, data, plan)
            needs += entries
            forms.append(recipe.sampling)
    spec = MergedSpec(
        settings=block,
        experts=sources,
        of=[e.job.spec.log_snr for e in plan.experts],
        model=DenoiserSpec(**{key: getattr(first, key) for key in DenoiserSpec.model_fields}),
        noise_key=derive_key(seed_of(params, recipe), "selection"),
        parent=first.parent,
        initial=first.initial if len(plan.experts) > 1 else None,
        code=code_of("merged", *forms),
        **more,
    )
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
) -> tuple[Confirmation, list[str]]:
    """What scoring samples of a candidate takes, and the entries needed for it."""
    reference, codec = features(params, data), encoder(params, data)
    needs = [reference.name]
    more: dict[str, Any] = {}
    if plan.recipe.network.class_conditional:  # as the held-out images are, whatever is scored
        more["class_counts"] = list(data.class_counts)
    if codec is None:
        first = latents(params, data)[0].spec
        more |= {"shift": first.shift, "scale": first.scale}
    else:
        more["encoder"] = codec.name
        needs.append(codec.name)
    if not np.isfinite(plan.log_snr[-1]):
        more["terminal"] = spectrum(params, data).name
        needs.append(more["terminal"])
    spec = Confirmation(
        features=reference.name,
        images=images_of(data),
        log_snr=as_states(plan.log_snr),
        states=as_states(plan.sampling_states),
        sampling=plan.recipe.sampling.without("steps"),
        seed=derive_key(params.seed, "confirmation"),
        **more,
    )
    return spec, needs
