"""How samples are scored, and on which features."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from pipeline.block import (
    MOST_IMAGES,
    MOST_RUNS,
    Batch,
    Block,
    Images,
    Positive,
    PositiveFloat,
    Samples,
    Seed,
    Text,
    Width,
    neutral,
)

FEATURES = {"inception": 2048, "dinov2": 1024}  # of the published extractors


def _class_in_file(text: str) -> str:
    path, _, name = text.rpartition(":")
    if not path or not name.isidentifier():
        raise ValueError("must be path/to/file.py:ClassName")
    return text


class Classifier(Block):
    """A small classifier, trained here on the labels, or on rotations where there are none or all
    images have the same.

    Where it tells held-out images apart no better than chance, there are no scores, and the table
    says why.
    """

    extractor: Literal["classifier"] = "classifier"
    images: Images = 60_000
    """Training budget."""
    batch: Batch = 64
    """Batch size of that training."""
    learning_rate: PositiveFloat = 4e-3
    """Learning rate of that training, of AdamW."""
    dimension: Width = 64
    """Number of features, a multiple of 8."""
    channels: Annotated[int, Field(gt=0, le=1024)] = 32
    """Base width of the classifier, a multiple of 8."""


class TorchModule(Block):
    """Any torch module."""

    extractor: Literal["module"]
    module: Annotated[Text, AfterValidator(_class_in_file)]
    """`path/to/file.py:ClassName`."""
    weights: Text | None = None
    """File of the weights, safetensors; null: as the class makes them."""


class Inception(Block):
    """The network of published FIDs (`inception`), or DINOv2 (`dinov2`), by torch-fidelity
    (`pip install -c constraints.txt -e '.[fid]'`)."""

    extractor: Literal["inception", "dinov2"]
    weights: Text | None = None
    """File of the weights; null lets torch-fidelity download its own."""


Features = Classifier | TorchModule | Inception


class Consistency(Block):
    """How alike the outputs of several models are from the same noise (Xu et al. 2024; Zhang et al.
    2024)."""

    recipes: Annotated[list[str], Field(max_length=MOST_RUNS)]
    """Recipes that are compared, two or more; a name with `seeds` stands for all of its runs."""
    samples: Annotated[int, Field(ge=2, le=10**5)] = 256
    """Noises that all models start from."""
    states: Annotated[int, Field(ge=2, le=1000)] = 9
    """Noise levels at which the models' estimates from the same noisy images are compared."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Coverage of the confidence intervals."""
    resamples: Positive = 1_000
    """Resamples of the bootstrap."""
    similarity: Annotated[float, Field(gt=-1, lt=1)] | None = None
    """Cosine of features from which two images count as alike; null: fitted to the real images."""
    nearest: Annotated[int, Field(ge=2, le=MOST_IMAGES)] = 50_000
    """Training images that copies are looked for in."""


class Evaluate(Block):
    """How samples are scored."""

    samples: Samples = 2_000
    """Samples per recipe and milestone; scores of different numbers cannot be compared."""
    seed: Seed = 0
    """Seed of the samples."""
    shard: Samples = 2_000
    """Samples per job."""
    batch: Batch = 250
    """Samples drawn at once."""
    neighbours: Annotated[int, Field(gt=0, le=1000)] = 3
    """k of precision, recall, density and coverage."""
    allow_few: bool = False
    """Score fewer samples than features, or more than there are images."""
    labels: Literal["dataset", "uniform"] = "dataset"
    """Classes of a class-conditional recipe's samples: `dataset` in the proportions of the images
    trained on, `uniform` as many of each that occurs."""
    reference: Text | None = neutral(None)
    """Statistics of real images that others computed, an .npz with `mu` [d] and `sigma` [d, d]: the
    samples' FID to them is given as well, beside that to the dataset. Not for `classifier`.

    Such a file does not say from how many images or with which code it was made, so the score
    compares with a paper's number only where these agree."""
    consistency: Consistency | None = None
    """Measure how alike the outputs of several models are; null: do not."""
