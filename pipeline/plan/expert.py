"""One expert of a recipe: its spec."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.block import Form
from pipeline.levels import curriculum
from pipeline.levels.params import UniformCurriculum
from pipeline.networks.params import Network
from pipeline.noise.philox import derive_key
from pipeline.params.recipe import Params, Recipe
from pipeline.plan.inputs import DatasetFacts, latent_facts
from pipeline.plan.job import Job, code_of
from pipeline.specs import Decoupled, ExpertSpec, File, OwnCurriculum, Part, RouterSpec
from pipeline.training.params import Decouple, Training


@dataclass(frozen=True)
class Weights:
    """A file of weights in the store, and the network it is for."""

    job: Job
    file: str
    spec: ExpertSpec | RouterSpec


@dataclass(frozen=True)
class Run:
    """What the experts of one recipe have in common."""

    recipe: Recipe
    log_snr: np.ndarray  # the trained states, or the two ends
    continuous: bool
    curriculum: OwnCurriculum
    bounds: tuple[float, ...] = ()  # of a multi-decoder's intervals
    parent: Weights | None = None

    @functools.cached_property
    def drawn(self) -> curriculum.Curriculum:
        """The recipe's curriculum on all of its states."""
        return curriculum.built(self.curriculum, self.log_snr, self.continuous)


def own_network(recipe: Recipe, branched: bool, number: int) -> Network:
    """The network of the recipe's expert `number`, with a width of its own if it has one."""
    network = recipe.network
    if branched:
        own = {network.decoder_key: [network.decoders[number]]}
        return network.model_copy(update=own)
    widths = recipe.partition_channels
    if not widths or network.decoders:
        return network
    return network.model_copy(update={network.width_key: widths[number]})


def expert_spec(
    params: Params,
    data: DatasetFacts,
    run: Run,
    interval: tuple[int, int],
    images: int,
    snapshots: list[int],
    shards: tuple[str, ...],
    network: Network,
    cluster: int | None = None,
) -> ExpertSpec:
    recipe, (first, last) = run.recipe, interval
    seen = latent_facts(params, data)
    own = [float(value) for value in run.log_snr[first : last + 1]]
    name = [value.hex() for value in own] + ([] if cluster is None else [f"cluster {cluster}"])
    stream = derive_key(seed_of(params, recipe), "expert", *name)
    start = seed_of(params, recipe) if recipe.training.start == "shared-seed" else stream
    classes = data.classes if recipe.network.class_conditional else 0
    apart = ["class_conditional", *([] if classes else ["label_dropout"])]
    drawn = _own_curriculum(run, interval)
    spec = ExpertSpec(
        network=network.without(*apart),
        conditioning="none" if len(own) == 1 and not _told(recipe) else "state",
        channels=seen.channels,
        resolution=seen.resolution,
        classes=classes,
        interval_bounds=list(run.bounds),
        source=data.recipe_files[recipe.network.file] if recipe.network.file else None,
        log_snr=own,
        continuous=run.continuous,
        prediction=recipe.prediction,
        curriculum=drawn,
        pairing=recipe.pairing,
        noise_key=derive_key(seed_of(params, recipe), "noise"),
        stream_key=stream,
        start_key=derive_key(start, "start"),
        images=images,
        snapshots=snapshots,
        training=recipe.training.without(*APART),
        latents=list(shards),
        cluster=cluster,
        code=code_of("expert", recipe.network, drawn.form, *_own_forms(recipe.training)),
    )
    if run.parent is not None:
        parent = Part(entry=run.parent.job.name, file=run.parent.file)
        started: dict[str, Any] = {"parent": parent, "train": recipe.training.train}
    elif recipe.training.initial is not None:
        path = recipe.training.initial
        started = {"initial": File(path=path, sha256=data.recipe_files[path])}
    else:
        return spec
    if recipe.decouple != Decouple():
        axis = [float(v) for v in run.log_snr]
        started["decouple"] = Decoupled(**recipe.decouple.arguments(), axis=axis)
    return spec.model_copy(update=started)


def _own_forms(training: Training) -> list[Form]:
    """The blocks of a training that name what makes them."""
    return [b for b in (training.optimizer, training.auxiliary) if isinstance(b, Form)]


def _told(recipe: Recipe) -> bool:
    """Whether its experts are told their state even where they have but one.

    Weights that were told it fit no network that is not; and v is made of a velocity at a state.
    """
    training = recipe.training
    network = recipe.network
    return bool(training.parent or training.initial or network.always_told or network.velocity)


# What a recipe's training says of other things than how one expert is trained.
APART = ("images", "milestones", "start", "experts_per_job", "parent", "initial", "budget", "train")


def _own_curriculum(run: Run, interval: tuple[int, int]) -> OwnCurriculum:
    """The curriculum as an expert needs it.

    A single-state expert has nothing to draw, so no curriculum can matter to it. A uniform one
    depends on the own states only; any other on their place on the whole time axis.
    """
    first, last = interval
    if run.continuous:  # it has one expert, and its own states are all of the axis
        return run.curriculum
    if first == last or run.recipe.curriculum.kind == "uniform":
        return OwnCurriculum(form=UniformCurriculum())
    run.drawn.restrict(np.arange(first, last + 1))  # refuses states that nothing falls on
    axis = [float(v) for v in run.log_snr]
    return run.curriculum.model_copy(update={"axis": axis, "own": [first, last]})


def seed_of(params: Params, recipe: Recipe) -> int:
    return params.seed if recipe.seed is None else recipe.seed
