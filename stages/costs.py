"""What the training of a recipe took, with all that had to be trained before it could begin."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from pipeline import plan
from pipeline.plan import DatasetFacts, Job, RecipePlan
from stages.workspace import Workspace


@dataclass(frozen=True)
class Cost:
    """Of some training: in all, and along the longest chain of jobs."""

    images: int = 0
    images_critical: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    seconds_critical: float = 0.0

    def then(self, later: Cost) -> Cost:
        """Both, one after the other."""
        return Cost(
            self.images + later.images,
            self.images_critical + later.images_critical,
            self.flops + later.flops,
            self.seconds + later.seconds,
            self.seconds_critical + later.seconds_critical,
        )


def costs(
    workspace: Workspace, facts: DatasetFacts, recipe: RecipePlan, milestone: int
) -> dict[str, float]:
    """Training spent up to a milestone: in all, and along the longest chain of jobs.

    With the pilots that its states or intervals were found with, its parent (and the parent's), and
    the search for the weights of a merged network.
    """
    total = Cost()
    for _, cost in before(workspace, facts, recipe):
        total = total.then(cost)
    total = total.then(own(workspace, recipe, milestone))
    total = total.then(merging(workspace, recipe, milestone))
    parameters = [_record(workspace, e.job)["parameters"] for e in recipe.experts]
    networks = parameters[: len(recipe.weights(milestone))]  # merged experts are all alike
    return {
        "images_seen": total.images,
        "images_seen_critical": total.images_critical,
        "experts": len(recipe.experts),
        "parameters": sum(networks),
        "parameters_active": max(networks),
        "train_flops": total.flops,
        "train_seconds_total": total.seconds,
        "train_seconds_critical": total.seconds_critical,
    }


def before(workspace: Workspace, facts: DatasetFacts, recipe: RecipePlan) -> list[tuple[str, Cost]]:
    """What is trained before a recipe's own experts, first things first, each once."""
    line = ancestors(recipe)
    pilots = {
        job.name: job
        for each in [*line, recipe]
        for job in analyses_of(workspace, facts, each)
        if job.kind == "expert"
    }
    found = []
    for job in pilots.values():
        record = _record(workspace, job)
        images = record["images"]
        seconds = _seconds(workspace, job, images)
        found.append(("pilot", Cost(images, images, record["flops"], seconds, seconds)))
    for each in line:
        cost = own(workspace, each, each.milestones[-1])
        cost = cost.then(merging(workspace, each, each.milestones[-1]))
        found.append((f"parent {each.name}", cost))
    return found


def own(workspace: Workspace, recipe: RecipePlan, milestone: int) -> Cost:
    """The training of a recipe's experts."""
    flops, images, seconds = 0.0, [], []
    for expert in recipe.experts:
        record = _record(workspace, expert.job)
        seen = expert.snapshots[milestone]
        flops += record["flops"] * seen / record["images"]
        images.append(seen)
        seconds.append(_seconds(workspace, expert.job, seen))
    return Cost(sum(images), max(images), flops, sum(seconds), max(seconds))


def merging(workspace: Workspace, recipe: RecipePlan, milestone: int) -> Cost:
    """The job that merges a recipe's experts, as far as it wrote down what it took."""
    if milestone not in recipe.merged:
        return Cost()
    made = workspace.store.entry(recipe.merged[milestone].name).circumstances()
    seconds = made.get("seconds", 0.0)
    return Cost(seconds=seconds, seconds_critical=seconds)


def ancestors(recipe: RecipePlan) -> list[RecipePlan]:
    """The recipes it starts from, the first one first."""
    line = []
    while recipe.parent is not None:
        recipe = recipe.parent
        line.append(recipe)
    return line[::-1]


def analyses_of(workspace: Workspace, facts: DatasetFacts, recipe: RecipePlan) -> list[Job]:
    """What was measured before one recipe could be planned."""
    alone = workspace.params.model_copy(update={"recipes": {recipe.name: recipe.recipe}})
    return plan.analyses(alone, facts)


def _seconds(workspace: Workspace, job: Job, images: int) -> float:
    made = workspace.store.entry(job.name).circumstances()
    return made.get("snapshot_seconds", {}).get(str(images), 0.0)


def _record(workspace: Workspace, job: Job) -> dict[str, Any]:
    return workspace.store.entry(job.name).load_json("record.json")


@dataclass(frozen=True)
class IntervalCost:
    """A decoder of a multi-decoder network, and what answering in its interval takes."""

    clean: float  # log-SNR at its two ends
    noisy: float
    channels: int
    parameters: int  # of the decoder alone
    active: int  # of the encoder and the decoder
    flops: float  # forward, one image


def interval_costs(recipe: RecipePlan) -> list[IntervalCost]:
    """Each interval of a multi-decoder recipe, cleanest first. Imports torch."""
    from pipeline.networks.build import count_parameters, flops_of, network_of

    # Branched decoders are experts of their own, each with a copy of the one encoder.
    specs = [expert.job.spec for expert in recipe.experts]
    networks = [network_of(spec, device="meta") for spec in specs]
    decoders = [
        (spec, decoder)
        for spec, network in zip(specs, networks, strict=True)
        for decoder in network.decoders
    ]
    shared = count_parameters(networks[0].encoder)
    ends = [float(recipe.trained[0]), *recipe.bounds, float(recipe.trained[-1])]
    widths = recipe.recipe.network.decoder_channels
    found = []
    for (clean, noisy), width, (spec, decoder) in zip(
        itertools.pairwise(ends), widths, decoders, strict=True
    ):
        own = count_parameters(decoder)
        flops = flops_of(spec, (clean + noisy) / 2)
        found.append(IntervalCost(clean, noisy, width, own, shared + own, flops))
    return found
