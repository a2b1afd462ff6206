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
)

FEATURES = {"inception": 2048, "dinov2": 1024}  # of the published extractors


def _class_in_file(text: str) -> str:
    path, _, name = text.rpartition(":")
    if not path or not name.isidentifier():
        raise ValueError("must be path/to/file.py:ClassName")
    return text


class Classifier(Block):
    """A small classifier trained here, on the dataset's labels (or on rotations without any)."""

    extractor: Literal["classifier"] = "classifier"
    images: Images = 60_000  # training budget
    batch: Batch = 64
    learning_rate: PositiveFloat = 4e-3
    dimension: Width = 64
    channels: Annotated[int, Field(gt=0, le=1024)] = 32


class TorchModule(Block):
    """Any torch module: `path/to/file.py:ClassName` with safetensors weights."""

    extractor: Literal["module"]
    module: Annotated[Text, AfterValidator(_class_in_file)]
    weights: Text | None = None


class Inception(Block):
    """torch-fidelity's port of the Inception network that published FIDs use."""

    extractor: Literal["inception", "dinov2"]
    weights: Text | None = None  # a local file; null lets torch-fidelity download its own


Features = Classifier | TorchModule | Inception


class Consistency(Block):
    """How alike recipes' or seeds' outputs are from the same noise."""

    # Two or more; a name with `seeds` stands for all of its runs
    recipes: Annotated[list[str], Field(max_length=MOST_RUNS)]
    samples: Annotated[int, Field(ge=2, le=10**5)] = 256
    # Noise levels at which estimates from the same noisy images are compared.
    states: Annotated[int, Field(ge=2, le=1000)] = 9
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95  # of the confidence intervals
    resamples: Positive = 1_000  # of the bootstrap
    similarity: Annotated[float, Field(gt=-1, lt=1)] | None = None  # cosine of alike; null: fitted
    # Training images that copies are looked for in
    nearest: Annotated[int, Field(ge=2, le=MOST_IMAGES)] = 50_000


class Evaluate(Block):
    """How samples are scored."""

    samples: Samples = 2_000
    seed: Seed = 0
    shard: Samples = 2_000  # samples a job
    batch: Batch = 250  # samples at once; part of the results' identity only to the last bit
    # k of precision, recall, density and coverage
    neighbours: Annotated[int, Field(gt=0, le=1000)] = 3
    allow_few: bool = False  # score fewer samples than feature dimensions
    labels: Literal["dataset", "uniform"] = "dataset"  # classes of samples, in what proportions
    consistency: Consistency | None = None  # null: not measured
