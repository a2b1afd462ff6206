"""What params.yaml asks for and cannot be, whatever the dataset."""

from __future__ import annotations

import itertools
import typing
from collections import Counter

from pipeline.block import MOST_RUNS, MOST_WIDTH
from pipeline.data.params import Autoencoder, Data, Pixels, strange
from pipeline.evaluation.params import FEATURES, Classifier
from pipeline.levels.params import (
    Adaptive,
    BoundsPartition,
    DataPartition,
    ExplicitSchedule,
    IntervalDensity,
    PerStatePartition,
    SinglePartition,
    state_count,
)
from pipeline.merging.params import MOST_EVALUATIONS, TaskVectorMerge
from pipeline.params.mistakes import nearest
from pipeline.params.recipe import Params, Recipe
from pipeline.training.params import Decouple

MOST_EXPERTS = 20_000  # of all recipes
MOST_SHARDS = 100_000  # of samples, of all recipes and milestones


MOST_SEARCHED = 12  # merge weights: the faces of their box are 3^n


def runs_of(name: str, recipe: Recipe) -> list[str]:
    return [f"{name}-seed{seed}" for seed in recipe.seeds] or [name]


def same_names(recipes: dict[str, Recipe]) -> typing.Iterator[str]:
    """Two runs of one name, of which one would silently replace the other."""
    owners: dict[str, str] = {}
    for name, recipe in recipes.items():
        for seed, times in Counter(recipe.seeds).items():
            if times > 1:
                yield f"recipes.{name}.seeds: {seed} stands there {times} times; name each once"
        for run in dict.fromkeys(runs_of(name, recipe)):
            if run in owners:
                one, other = sorted((name, owners[run]), key=lambda n: not recipes[n].seeds)
                yield (
                    f"recipes.{one}.seeds: makes a run `{run}`, and there is a recipe "
                    f"`{other}` of that name; rename one"
                )
            owners[run] = name


def strange_data(data: Data) -> typing.Iterator[str]:
    """Impossible combinations of what says where the images come from."""
    if data.limit is not None and data.holdout >= data.limit:
        yield f"data.holdout: {data.holdout} of {data.limit} images (data.limit) leave none"
    yield from strange(data.source, data.limit, data.side)
    if data.source == "synthetic":
        for key in ("resolution", "channels", "duplicates"):
            if getattr(data, key) != type(data).model_fields[key].default:
                yield (
                    f"data.{key}: {getattr(data, key)} would change the images of `synthetic` or "
                    "how often each comes, and so their law; leave it out"
                )


def strange_sections(top: Params) -> typing.Iterator[str]:
    """Impossible combinations outside of the recipes."""
    data, features = top.data, top.features
    yield from strange_data(data)
    if data.source == "synthetic" and top.latent.flips:
        yield "latent.flips: mirrored images are not of the law of `synthetic`; set it to false"
    if isinstance(features, Classifier):
        for key in ("channels", "dimension"):
            if getattr(features, key) % 8:
                yield (
                    f"features.{key}: {getattr(features, key)} is no multiple of 8, the groups "
                    "that the classifier normalises"
                )
        if top.evaluate.reference is not None:
            yield (
                "evaluate.reference: statistics of others are of an extractor that they had; a "
                "classifier is trained here: use features.extractor: inception, dinov2 or module"
            )
    if isinstance(top.latent, Autoencoder) and top.latent.width * top.latent.blocks > MOST_WIDTH:
        yield f"latent.width: times latent.blocks, {MOST_WIDTH:,} at most"
    few, samples = top.evaluate.allow_few, top.evaluate.samples
    if samples <= top.evaluate.neighbours:
        yield (
            f"evaluate.samples: {samples} samples have no {top.evaluate.neighbours} neighbours "
            "each; raise it, or lower evaluate.neighbours"
        )
    size = dimension(top)
    if size is not None and samples <= size and not few:
        yield (
            f"evaluate.samples: {samples} samples in {size} dimensions (features): the score would "
            f"be mostly bias; use more than {size}, a smaller features.dimension, or set "
            "evaluate.allow_few: true"
        )


def dimension(params: Params) -> int | None:
    """Number of features that scores are computed on; None for a module, which says it itself."""
    features = params.features
    if isinstance(features, Classifier):
        return features.dimension
    return FEATURES.get(features.extractor)


def too_many(top: Params, recipes: dict[str, Recipe]) -> typing.Iterator[str]:
    """More jobs than can be planned."""
    runs = {name: len(runs_of(name, recipe)) for name, recipe in recipes.items()}
    if sum(runs.values()) > MOST_RUNS:
        yield f"recipes: {sum(runs.values()):,} with each seed counted; at most {MOST_RUNS:,}"
    experts = sum(runs[name] * (_experts(recipe) or 1) for name, recipe in recipes.items())
    if experts > MOST_EXPERTS:
        yield f"recipes: {experts:,} experts in all; at most {MOST_EXPERTS:,}"
    milestones = sum(
        runs[name] * (len(recipe.training.milestones) + 1) for name, recipe in recipes.items()
    )
    shards = -(-top.evaluate.samples // top.evaluate.shard) * milestones
    if shards > MOST_SHARDS:
        yield (
            f"evaluate.shard: {top.evaluate.shard} samples a job makes {shards:,} jobs; at most "
            f"{MOST_SHARDS:,}: raise it"
        )


def strange_parent(name: str, recipes: dict[str, Recipe]) -> typing.Iterator[tuple[str, str]]:
    """What is wrong with the recipe that a recipe's experts start from."""
    recipe = recipes[name]
    parent = recipe.training.parent
    if parent is None:
        return
    if parent not in recipes:
        yield "training.parent", f"{parent!r} is no recipe; {nearest(parent, list(recipes))}"
        return
    line = [name]
    while parent is not None and parent in recipes:
        if parent in line:
            yield "training.parent", f"{' <- '.join([*line, parent])} goes in a circle"
            return
        line.append(parent)
        parent = recipes[parent].training.parent
    source = recipes[line[1]]
    if source.merge.method == "route" and not _one_network(source):
        yield (
            "training.parent",
            f"{line[1]!r} has several experts; a parent is one network (or merges its experts)",
        )
    if source.seeds and not set(recipe.seeds or [recipe.seed]) <= set(source.seeds):
        yield "seeds", f"its parent {line[1]!r} has seeds {source.seeds}; use some of these"
    kinds = [r.network.kind for r in (recipe, source)]
    if recipe.network.alone().kind != source.network.alone().kind:
        yield "network.kind", f"{kinds[0]} here, {kinds[1]} in its parent {line[1]!r}"
        return
    plain = {"dropout", "label_dropout", "kind", "projections", "velocity"}
    plain |= {"decoder_channels", "decoder_depths"}
    own, other = (r.network.model_dump(exclude=plain) for r in (recipe, source))
    differs = [key for key in own if own[key] != other.get(key)]
    if differs:
        yield (
            f"network.{differs[0]}",
            f"{own[differs[0]]} here, {other.get(differs[0])} in its parent {line[1]!r}",
        )
    if recipe.training.train == "decoders" and source.network.decoders:
        yield (
            "training.parent",
            f"{line[1]!r} has several decoders; branches start from one network",
        )
    if recipe.predicts != source.predicts:
        yield "prediction", f"must be its parent's, {source.predicts}"


def strange_guide(name: str, recipes: dict[str, Recipe]) -> typing.Iterator[tuple[str, str]]:
    """What is wrong with the model that a recipe's samples are led away from."""
    recipe = recipes[name]
    guide = recipe.sampling.guide
    if guide is None:
        return
    of = guide.recipe or name
    if of not in recipes:
        yield "sampling.guide.recipe", f"{of!r} is no recipe; {nearest(of, list(recipes))}"
        return
    source = recipes[of]
    known = sorted({*source.training.milestones, source.training.images})
    if of == name:
        known = [images for images in known if images < recipe.training.images]
    if not known:
        yield (
            "sampling.guide",
            "a model cannot guide itself: name an earlier one of its training.milestones, of which "
            "there is none, or another recipe",
        )
    elif (guide.milestone or source.training.images) not in known:
        yield (
            "sampling.guide.milestone",
            f"{of!r} has no such milestone that could guide this one; use one of "
            f"{', '.join(map(str, known))}",
        )
    if source.network.class_conditional and not recipe.network.class_conditional:
        yield (
            "sampling.guide.recipe",
            f"{of!r} is class-conditional, and samples of this recipe have no classes",
        )
    if source.seeds and not set(recipe.seeds or [recipe.seed]) <= set(source.seeds):
        yield "seeds", f"its guide {of!r} has seeds {source.seeds}; use some of these"


def _one_network(recipe: Recipe) -> bool:
    joint = bool(recipe.network.decoders) and recipe.training.train == "all"
    return joint or isinstance(recipe.partition, SinglePartition)


def without_holdout(top: Params, recipes: dict[str, Recipe]) -> typing.Iterator[str]:
    """What needs images that are not trained on, where there are none."""
    for name, recipe in recipes.items():
        images = getattr(recipe.merge, "images", 0)
        if getattr(recipe.merge, "weights", None) is None and images > top.data.holdout:
            yield (
                f"recipes.{name}.merge.images: the search for its weights needs {images} images "
                f"that are not trained on, but data.holdout is {top.data.holdout}; raise it"
            )
        if recipe.training.stop is not None and not top.data.holdout:
            yield (
                f"recipes.{name}.training.stop: it goes by images that are not trained on, but "
                "data.holdout is 0; raise it"
            )


def without_pixels(top: Params, recipes: dict[str, Recipe]) -> typing.Iterator[str]:
    """Settings that mean something for pixels only."""
    if isinstance(top.latent, Pixels):
        return
    for name, recipe in recipes.items():
        if recipe.sampling.clip:
            yield (
                f"recipes.{name}.sampling.clip: pixels end at 0 and 255, latents nowhere; "
                "set it to false"
            )
        if getattr(recipe.schedule, "shift", 0.0) == "unit-range":
            yield (
                f"recipes.{name}.schedule.shift: unit-range is for pixels; latents have unit "
                "variance, as they are: leave it out"
            )


def contradictions(recipe: Recipe) -> typing.Iterator[tuple[str, str]]:
    """Impossible combinations inside one recipe, as (key, what and the way out)."""
    states = state_count(recipe.schedule)
    schedule, partition, training = recipe.schedule, recipe.partition, recipe.training
    for low, high in (("log_snr_min", "log_snr_max"), ("sigma_min", "sigma_max")):
        if hasattr(schedule, low) and getattr(schedule, low) >= getattr(schedule, high):
            yield f"schedule.{low}", f"must be below {high} ({getattr(schedule, high)})"
    if isinstance(schedule, ExplicitSchedule) and not _descending(schedule.log_snr):
        yield "schedule.log_snr", "must be strictly descending (cleanest state first)"
    if isinstance(partition, BoundsPartition) and not _descending(partition.log_snr):
        yield "partition.log_snr", "must be strictly descending (cleanest bound first)"
    experts, trained = _experts(recipe), states
    intervals = experts
    if isinstance(partition, DataPartition):
        intervals = partition.intervals
    if states is not None and getattr(schedule, "zero_terminal", False):
        trained = states - 1  # nothing is learnt at a state without signal
        if not trained:
            yield "schedule.zero_terminal", "leaves no state to train; give two `states` or more"
    if isinstance(partition, PerStatePartition) and states is None:
        yield "partition.kind", "per-state needs a number of states, not `continuous`"
    if trained is not None and intervals is not None and intervals > trained:
        key = "log_snr" if isinstance(partition, BoundsPartition) else "intervals"
        yield f"partition.{key}", f"more intervals ({intervals}) than states ({trained})"
    for key, cut in (
        ("partition", partition),
        ("curriculum.partition", getattr(recipe.curriculum, "partition", None)),
    ):
        if getattr(cut, "method", "") == "two-anchor" and cut.intervals != 3:
            yield f"{key}.method", "two-anchor gives three intervals; use matrix for others"
        compared = getattr(cut, "nodes", 0)
        if compared and getattr(cut, "method", "matrix") == "matrix" and cut.intervals > compared:
            yield f"{key}.nodes", f"{compared} noise levels cannot make {cut.intervals} intervals"
    yield from _strange_networks(recipe, experts)
    yield from _strange_clusters(recipe)
    yield from _strange_merge(recipe, experts)
    yield from _strange_curriculum(recipe, experts, trained)
    if getattr(schedule, "zero_terminal", False) and states is None:
        yield "schedule.zero_terminal", "needs a number of states, not `continuous`"
    if experts and training.images < experts:
        yield (
            "training.images",
            f"{training.images} images for {experts} experts: one each at least",
        )
    if training.optimizer.kind != "adam" and training.decay in ("mdlrc", "momentum-decay"):
        yield (
            "training.decay",
            f"{training.decay} is a decay of Adam's beta1, which {training.optimizer.kind} gives "
            "to few weights; use another, or training.optimizer.kind: adam",
        )
    yield from _strange_auxiliary(recipe)
    if training.stop is not None:
        if len(training.milestones) <= training.stop.patience:
            yield (
                "training.stop.patience",
                f"{training.stop.patience} of {len(training.milestones)} milestones never end a "
                "training early; list more in training.milestones, or lower it",
            )
        if recipe.merge.method in ("snapshots", "post-hoc"):
            yield (
                "training.stop",
                f"merge.method: {recipe.merge.method} takes the snapshots of a whole run; "
                "leave one of them out",
            )
    late = [str(milestone) for milestone in training.milestones if milestone > training.images]
    if late:
        is_past = f"{', '.join(late[:5])} {'is' if len(late) == 1 else 'are'} past"
        yield "training.milestones", f"{is_past} the budget (training.images: {training.images})"
    if training.decay == "inverse-sqrt" and training.reference_images is None:
        yield "training.reference_images", "needed by decay: inverse-sqrt"
    if not _descending([-m for m in training.milestones]):
        yield "training.milestones", "must be strictly ascending"
    if training.batch % training.shards:
        yield (
            "training.shards",
            f"{training.shards} equal parts cannot be made of a batch of {training.batch}",
        )
    for length, times in Counter(training.power_ema).items():
        if times > 1:
            yield "training.power_ema", f"{length:g} stands there {times} times; name each once"
    if recipe.sampling.steps is not None and states is not None and recipe.sampling.steps > states:
        yield (
            "sampling.steps",
            f"more steps ({recipe.sampling.steps}) than states ({states}); lower it, or null "
            "for every state",
        )
    if recipe.sampling.steps is None and states is None:
        yield "sampling.steps", "a continuous schedule needs a number of steps"
    if not getattr(recipe.pairing, "within_class", True) and not recipe.network.class_conditional:
        yield "pairing.within_class", "needs network.class_conditional: true (or leave it out)"
    yield from _strange_guidance(recipe)
    if recipe.network.velocity and recipe.prediction != "v":
        yield (
            "network.velocity",
            f"makes answers for `v` of velocities, not for `{recipe.prediction}`; leave it out, or "
            "use prediction: flow",
        )
    highest = getattr(recipe.sampling, "s_max", None)
    if highest is not None and recipe.sampling.s_min >= highest:
        yield "sampling.s_min", f"must be below s_max ({highest})"


def _strange_auxiliary(recipe: Recipe) -> typing.Iterator[tuple[str, str]]:
    training, block = recipe.training, recipe.training.auxiliary
    if block is None:
        return
    if block.kind == "contrastive":
        if not recipe.network.class_conditional:
            yield "training.auxiliary", "contrastive needs network.class_conditional: true"
        if training.weighting.kind == "uncertainty":
            yield (
                "training.auxiliary",
                "contrastive has the weights of the error, which uncertainty learns from that "
                "alone; use another training.weighting",
            )
        return
    if training.compile:
        yield (
            "training.compile",
            f"what training.auxiliary: {block.kind} looks at is inside the compiled network; leave "
            "one of them out",
        )
    if training.train == "decoders" and block.layer.partition(".")[0] == "encoder":
        yield "training.auxiliary.layer", "train: decoders leaves the encoder as it is"


def _strange_guidance(recipe: Recipe) -> typing.Iterator[tuple[str, str]]:
    sampling = recipe.sampling
    interval = sampling.guidance_interval
    if interval is not None and interval[0] >= interval[1]:
        yield "sampling.guidance_interval", f"must ascend, found {interval}"
    given = [key for key in ("guidance_interval", "guide") if getattr(sampling, key) is not None]
    if sampling.guidance == 1.0:
        for key in given:
            yield f"sampling.{key}", "means nothing at sampling.guidance: 1; raise that"
        return
    if given and getattr(recipe.merge, "confirm", 0):
        yield (
            "merge.confirm",
            f"draws samples of networks that are not made yet, without sampling.{given[-1]}; leave "
            "one of them out",
        )
    if sampling.guide is not None:
        return
    if not recipe.network.class_conditional:
        yield (
            "sampling.guidance",
            "needs network.class_conditional: true, or a sampling.guide (or set it to 1.0)",
        )
    elif not recipe.network.label_dropout:
        yield (
            "network.label_dropout",
            f"0 trains nothing without labels, which sampling.guidance: {sampling.guidance:g} "
            "asks for; use 0.1, or guidance 1",
        )


def _experts(recipe: Recipe) -> int | None:
    """Number of intervals of the partition; None where the number of states is not known."""
    partition, states = recipe.partition, state_count(recipe.schedule)
    if isinstance(partition, SinglePartition):
        return 1
    if isinstance(partition, BoundsPartition):
        return len(partition.log_snr) + 1
    if isinstance(partition, PerStatePartition):
        without = getattr(recipe.schedule, "zero_terminal", False)
        return None if states is None else states - bool(without)
    if isinstance(partition, DataPartition):
        return partition.clusters * partition.intervals
    return partition.intervals


def _strange_clusters(recipe: Recipe) -> typing.Iterator[tuple[str, str]]:
    """What cannot be with experts over clusters of the data, and what only they can have."""
    partition, top = recipe.partition, recipe.sampling.top
    if not isinstance(partition, DataPartition):
        if top > 1:
            yield "sampling.top", "of the experts of partition: {kind: data}; leave it out"
        return
    if top > partition.clusters:
        yield "sampling.top", f"more experts ({top}) than clusters ({partition.clusters}); lower it"
    if partition.intervals > 1 and state_count(recipe.schedule) is None:
        yield (
            "partition.intervals",
            "a continuous schedule cannot be cut into experts; give schedule.states a number, or "
            "leave it out",
        )
    if recipe.pairing.method == "semidiscrete":
        yield (
            "pairing.method",
            "semidiscrete lets each noise choose among the rows of all clusters; use another",
        )
    if recipe.merge.method != "route":
        yield (
            "merge.method",
            f"{recipe.merge.method} makes one network, and experts over clusters are mixed by "
            "their router; use route",
        )
    if recipe.training.stop is not None:
        yield (
            "training.stop",
            "the held-out images are of all clusters, and an expert learns one; leave it out",
        )


def _strange_curriculum(
    recipe: Recipe, experts: int | None, trained: int | None
) -> typing.Iterator[tuple[str, str]]:
    block = recipe.curriculum
    clusters = getattr(block, "clusters", None)
    if clusters is not None and trained is not None and clusters > trained:
        yield "curriculum.clusters", f"more steps ({clusters}) than states ({trained})"
    if isinstance(block, IntervalDensity) and block.shares:
        cut = block.partition
        if cut is not None:
            experts = len(cut.log_snr) + 1 if isinstance(cut, BoundsPartition) else cut.intervals
        if experts is not None and len(block.shares) != experts:
            yield "curriculum.shares", f"{len(block.shares)} for {experts} intervals"
    cut = getattr(block, "partition", None)
    if isinstance(cut, BoundsPartition) and not _descending(cut.log_snr):
        yield "curriculum.partition.log_snr", "must be strictly descending"
    if isinstance(block, Adaptive):
        yield from _strange_policy(recipe, block, experts, trained)


def _strange_policy(
    recipe: Recipe, block: Adaptive, experts: int | None, trained: int | None
) -> typing.Iterator[tuple[str, str]]:
    """What cannot be with states that are drawn by a policy."""
    training, partition = recipe.training, recipe.partition
    if block.selected > block.nodes:
        yield "curriculum.selected", f"more than there are nodes ({block.nodes}); lower it"
    intervals = partition.intervals if isinstance(partition, DataPartition) else experts
    if trained is not None and intervals == trained:
        yield (
            "curriculum.kind",
            "adaptive chooses among an expert's states, and each expert has one; leave it out",
        )
    if recipe.network.decoders:
        yield (
            "curriculum.kind",
            "adaptive says only as it trains how often each decoder is asked; use another, or a "
            "network with one",
        )
    if training.shards > 1:
        yield (
            "training.shards",
            "curriculum: {kind: adaptive} draws and compares the images of a whole batch; use 1",
        )
    if training.batch < 2:
        yield (
            "training.batch",
            "curriculum: {kind: adaptive} compares the images of a batch; use 2 or more",
        )
    if training.budget == "curriculum":
        yield (
            "training.budget",
            "what curriculum: {kind: adaptive} draws is not known before; use uniform or "
            "by-difficulty",
        )
    if partition.kind == "equal-mass":
        yield (
            "partition.kind",
            "equal-mass follows from what curriculum: {kind: adaptive} draws, which is not known "
            "before; use another",
        )
    if recipe.pairing.method != "independent":
        yield (
            "pairing.method",
            "curriculum: {kind: adaptive} measures the loss with noise that is paired with no "
            "image; use independent",
        )
    if recipe.decouple.outside:
        yield (
            "decouple.outside",
            "these images would not be drawn by curriculum: {kind: adaptive}; use 0",
        )


def _strange_networks(recipe: Recipe, experts: int | None) -> typing.Iterator[tuple[str, str]]:
    joint = bool(recipe.network.decoders)
    widths = recipe.partition_channels
    yield from recipe.network.contradictions(widths)
    if joint:
        key, decoders = recipe.network.decoder_key, len(recipe.network.decoders)
        if isinstance(recipe.partition, SinglePartition | PerStatePartition | DataPartition):
            yield (
                "partition.kind",
                f"{recipe.partition.kind} gives a multi-decoder network no intervals; "
                "use uniform, snr, equal-mass, optimal-denoiser or bounds",
            )
        elif experts != decoders:
            yield (
                f"network.{key}",
                f"{decoders} decoders for the {experts} intervals of the partition",
            )
        if widths:
            yield "partition.channels", f"a multi-decoder network has network.{key}"
    elif widths and experts is not None and len(widths) != experts:
        yield "partition.channels", f"{len(widths)} widths for {experts} experts"
    if widths and recipe.training.parent is not None:
        yield "partition.channels", "a parent's weights fit its own width only; leave it out"
    branched = recipe.training.train == "decoders"
    if branched and not (joint and recipe.training.parent):
        yield "training.train", "decoders: needs a multi-decoder network and a training.parent"
    if branched and state_count(recipe.schedule) is None:
        yield "training.train", "decoders: needs schedule.states to be a number"
    started = recipe.training.parent or recipe.training.initial
    if recipe.training.parent and recipe.training.initial:
        yield "training.initial", "training.parent is what it starts from; leave one of them out"
    if recipe.decouple != Decouple() and not started:
        yield "decouple", "needs training.parent (or initial), the network that is fine-tuned"
    without = isinstance(recipe.partition, SinglePartition)
    if getattr(recipe.curriculum, "partition", recipe) is None:
        if without or isinstance(recipe.partition, DataPartition):
            kind = recipe.partition.kind
            yield "curriculum.partition", f"per-interval needs one, as the recipe's is {kind}"
        elif recipe.partition.kind == "equal-mass":
            yield (
                "curriculum.partition",
                "per-interval needs one of its own, as equal-mass follows from the curriculum",
            )


def _strange_merge(recipe: Recipe, experts: int | None) -> typing.Iterator[tuple[str, str]]:
    method = recipe.merge.method
    if method == "snapshots":
        if not _one_network(recipe) or len(recipe.training.milestones) < 1:
            yield "merge.method", "snapshots needs one network with training.milestones"
        elif len(recipe.training.milestones) > MOST_SEARCHED:
            yield (
                "training.milestones",
                f"merge.method: snapshots finds the weights of at most {MOST_SEARCHED} and the end",
            )
    elif method == "post-hoc":
        if not _one_network(recipe) or not recipe.training.power_ema:
            yield "merge.method", "post-hoc needs one network with training.power_ema: [0.05, 0.1]"
    elif method != "route":
        if _one_network(recipe):
            yield "merge.method", f"{method} needs a partition into several experts"
        elif not (recipe.training.parent or recipe.training.initial):
            yield (
                "merge.method",
                f"{method} needs training.parent (or initial): networks that did not start from "
                "the same weights have nothing in common that a sum could keep",
            )
        weights = getattr(recipe.merge, "weights", None) or []
        for prefix, own in weights.items() if isinstance(weights, dict) else [("", weights)]:
            if own and experts is not None and len(own) != experts:
                key = f"merge.weights.{prefix}" if prefix else "merge.weights"
                yield key, f"{len(own)} weights for {experts} experts"
        if isinstance(recipe.merge, TaskVectorMerge):
            yield from _strange_search(recipe.merge, experts)


def _strange_search(
    block: TaskVectorMerge, experts: int | None
) -> typing.Iterator[tuple[str, str]]:
    """What a search for merge weights cannot do."""
    if block.weights is not None:
        if block.confirm:
            yield "merge.confirm", "belongs to a search: leave merge.weights out, or this"
        return
    if block.confirm == 1:
        yield "merge.confirm", "one sample has no covariance; give two or more, or 0"
    if block.bounds[0] >= block.bounds[1]:
        yield "merge.bounds", f"must ascend, found {block.bounds}"
    if experts is None:
        return
    if block.search == "quadratic" and experts > MOST_SEARCHED:
        yield (
            "merge.search",
            f"quadratic finds at most {MOST_SEARCHED} weights, not {experts}; give merge.weights, "
            "or use random",
        )
    if block.search == "grid" and block.levels**experts > MOST_EVALUATIONS:
        yield (
            "merge.levels",
            f"{block.levels} levels of {experts} weights are more than {MOST_EVALUATIONS:,} "
            "evaluations; lower it, or use quadratic",
        )


def _descending(values: list[float]) -> bool:
    return all(a > b for a, b in itertools.pairwise(values))
