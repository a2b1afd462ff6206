"""What params.yaml asks for and a dataset cannot give, told before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.evaluation import chance
from pipeline.evaluation.params import Classifier
from pipeline.params.checks import dimension
from pipeline.params.mistakes import refusal
from pipeline.params.recipe import Params, Recipe

MOST_PASSES = 10_000  # over the dataset that are paired: each is a number for every row
MOST_LATENT_SHARDS = 10_000
# That principal components are computed from, at most: of a module that imports torch.
COMPONENT_ROWS = 8192


def check_against(params: Params, rows: int, resolution: int, channels: int, classes: int) -> None:
    """Refuse what is impossible with a dataset of `rows` square images. UserError lists it all.

    channels: of an image; classes: 0 without labels.
    """
    problems: list[str] = []
    if params.data.holdout >= rows:  # everything else would follow from it
        left = f"data.holdout: {params.data.holdout} of {rows} images leave none to train; lower it"
        raise refusal("params.yaml", [left])
    rows -= params.data.holdout
    downsample = getattr(params.latent, "downsample", 1)
    if resolution % downsample:
        problems.append(
            f"latent.downsample: {resolution} pixels are not a multiple of {downsample}; "
            "set data.resolution"
        )
    seen = rows * (2 if params.latent.flips else 1)
    if -(-seen // params.latent.shard) > MOST_LATENT_SHARDS:
        problems.append(
            f"latent.shard: {params.latent.shard} rows a file make "
            f"{-(-seen // params.latent.shard):,} files; at most {MOST_LATENT_SHARDS:,}: raise it"
        )
    side = max(resolution // downsample, 1)
    size = getattr(params.latent, "channels", channels) * side**2
    what = "pixels" if downsample == 1 else f"of the {resolution} pixels' latents"
    for name, recipe in params.recipes.items():
        found = _network(recipe, side, what, classes)
        found = [*found, *_training(recipe, rows, seen, size)]
        problems += [f"recipes.{name}.{problem}" for problem in found]
    problems += _evaluation(params, rows)
    if problems:
        raise refusal("params.yaml", problems)


def _network(recipe: Recipe, side: int, what: str, classes: int) -> Iterator[str]:
    """side: of what the networks see."""
    for key, text in recipe.network.misfits(side, what):
        yield f"network.{key}: {text}"
    if recipe.network.class_conditional and not classes:
        yield "network.class_conditional: the dataset has no labels; set it to false"


def _training(recipe: Recipe, rows: int, seen: int, size: int) -> Iterator[str]:
    """rows: images; seen: rows that training sees, of `size` values each."""
    training, pairing = recipe.training, recipe.pairing
    clusters = getattr(recipe.partition, "clusters", 0)
    if clusters * training.batch > seen:
        yield (
            f"partition.clusters: {clusters} of {seen} rows would have less than a batch each "
            f"(training.batch: {training.batch}); lower one of them"
        )
    if training.batch > rows:
        yield f"training.batch: {training.batch} is more than the dataset's {rows} images; lower it"
    if pairing.method == "independent":
        return
    images = max(training.images, getattr(recipe.partition, "router", training).images)
    passes = -(-images // max(seen, 1))
    if passes > MOST_PASSES:
        yield (
            f"training.images: {passes:,} passes over {seen} rows would be paired and stored; at "
            f"most {MOST_PASSES:,}: lower it, or use pairing.method: independent"
        )
    most = min(size, seen, COMPONENT_ROWS)
    for key in ("components", "keep"):
        wanted = getattr(pairing, key, None)
        if wanted is not None and wanted > most:
            yield (
                f"pairing.{key}: {wanted} of the {most} principal components that {seen} rows of "
                f"{size} values have; lower it, or null"
            )


def _evaluation(params: Params, rows: int) -> Iterator[str]:
    """What scores need of `rows` real images."""
    evaluate, features = params.evaluate, params.features
    compared = evaluate.consistency
    if compared is not None and compared.samples > rows:
        yield (
            f"evaluate.consistency.samples: {compared.samples} noisy images need as many real "
            f"ones, there are {rows}; lower it"
        )
    if evaluate.samples > rows and not evaluate.allow_few:
        yield (
            f"evaluate.samples: {evaluate.samples} samples against {rows} real images: "
            "scores at different numbers cannot be compared; lower it, or set evaluate.allow_few: "
            "true"
        )
    if evaluate.neighbours >= rows:
        yield (
            f"evaluate.neighbours: {rows} real images have no {evaluate.neighbours} neighbours "
            "each; lower it"
        )
    size = dimension(params)
    if size is not None and rows <= size and not evaluate.allow_few:
        yield (
            f"features.extractor: {rows} real images in {size} dimensions: the score would be "
            f"mostly bias; use more than {size} images, a smaller features.dimension, or set "
            "evaluate.allow_few: true"
        )
    if isinstance(features, Classifier):
        held = chance.held_out(rows)
        if not 0 < held <= rows - features.batch:
            yield (
                f"features.batch: {rows} images, {held} of them held out, are too few for a "
                f"classifier's batches of {features.batch}; lower it, or use another extractor"
            )


def doubts(params: Params, rows: int, class_counts: Sequence[int]) -> list[str]:
    """What a run would warn of in the end, as far as it follows from a dataset.

    rows: images that recipes train on, class_counts: of each class, empty without labels.
    """
    if not isinstance(params.features, Classifier):
        return []
    held = chance.held_out(rows)
    turned = sum(count > 0 for count in class_counts) < 2  # it then learns 4 directions
    guessed = 0.25 if turned else max(class_counts) / sum(class_counts)
    each = 4 if turned else 1
    if not chance.never_told(held * each, guessed):
        return []
    return [
        f"features.extractor: its classifier is tested on {held} of {rows} images, too "
        "few to tell it from guessing even if it is always right, so the scores may mean nothing; "
        f"{chance.more_held_out(chance.images_needed(guessed, each))}"
    ]
