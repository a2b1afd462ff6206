from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.levels import curriculum
from pipeline.networks.params import MultiDecoder
from pipeline.noise.philox import derive_key
from pipeline.params.recipe import Params, Recipe
from pipeline.plan.inputs import DatasetFacts, latent_facts
from pipeline.plan.job import Job, code_of
from pipeline.training.params import Decouple


@dataclass(frozen=True)
class Weights:
    """A file of weights in the store, and the network it is for."""

    job: Job
    file: str
    spec: dict[str, Any]


@dataclass(frozen=True)
class Run:
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


def own_width_of(recipe: Recipe, branched: bool, number: int) -> dict[str, Any]:
    """What an expert's network has for itself."""
    if branched:
        return {"decoder_channels": [recipe.network.decoder_channels[number]]}
    widths = recipe.partition_channels
    if not widths or isinstance(recipe.network, MultiDecoder):
        return {}
    return {"channels": widths[number]}


def expert_spec(
    params: Params,
    data: DatasetFacts,
    run: Run,
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
    stream = derive_key(seed_of(params, recipe), "expert", *(value.hex() for value in own))
    start = seed_of(params, recipe) if recipe.training.start == "shared-seed" else stream
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
        "noise_key": derive_key(seed_of(params, recipe), "noise"),
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
        if recipe.decouple != Decouple():
            spec["decouple"] = {
                **recipe.decouple.model_dump(mode="json"),
                "axis": [float(v) for v in run.log_snr],
            }
    return spec


def _own_curriculum(run: Run, interval: tuple[int, int]) -> dict[str, Any]:
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


def seed_of(params: Params, recipe: Recipe) -> int:
    return params.seed if recipe.seed is None else recipe.seed
