from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.block import (
    Batch,
    BelowOne,
    Block,
    Images,
    ImagesOrNone,
    Length,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Share,
    Text,
    Threads,
)


class PlainWeighting(Block):
    """Unit weight on the network's own target, or on the error of another prediction."""

    kind: Literal["uniform", "eps", "x0", "v", "edm", "flow"] = "uniform"


class MinSnrWeighting(Block):
    """Hang et al. 2023."""

    kind: Literal["min-snr"]
    gamma: PositiveFloat = 5.0


class P2Weighting(Block):
    """Choi et al. 2022."""

    kind: Literal["p2"]
    k: PositiveFloat = 1.0
    gamma: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 1.0


class UncertaintyWeighting(Block):
    """EDM2's learned weighting: every noise level contributes alike (Karras et al. 2024)."""

    kind: Literal["uncertainty"]


class Training(Block):
    images: Images = 200_000  # in all, over all experts of the recipe
    batch: Batch = 64
    learning_rate: PositiveFloat = 2e-3
    warmup: ImagesOrNone = 5_000  # images, per expert at most a tenth of its budget
    decay: Literal["constant", "linear", "cosine", "inverse-sqrt", "mdlrc", "momentum-decay"] = (
        "cosine"
    )
    floor: Share = 0.05  # learning rate at the end of `linear` and `cosine`, as a factor
    reference_images: Images | None = None  # of `inverse-sqrt`: where the decay begins
    betas: Annotated[list[BelowOne], Field(min_length=2, max_length=2)] = [0.9, 0.99]
    weight_decay: NonNegativeFloat = 0.0
    ema_halflife: ImagesOrNone = 10_000  # images of an expert; 0 keeps the last weights
    # Averages kept beside it, for merge.method: post-hoc
    power_ema: Annotated[list[Length], Field(max_length=20)] = []
    budget: Literal["uniform", "curriculum", "by-difficulty"] = "uniform"  # split over experts
    start: Literal["random", "shared-seed"] = "random"
    parent: Text | None = None  # start from the network that this recipe ends with
    train: Literal["all", "decoders"] = "all"  # of a multi-decoder network with a parent
    # Images in all; the end always is one
    milestones: Annotated[list[Images], Field(max_length=1000)] = []
    weighting: Annotated[
        PlainWeighting | MinSnrWeighting | P2Weighting | UncertaintyWeighting,
        Field(discriminator="kind"),
    ] = PlainWeighting()
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False  # torch.compile: other roundings, so part of the result's identity
    experts_per_job: Positive = 1  # small experts trained by one process, one after the other
    threads: Threads = 1  # CPU threads of a job: fixed, so that results do not depend on the host


class Decouple(Block):
    """How the experts of a parent are fine-tuned, for merging (Decouple-then-Merge)."""

    outside: Share = 0.0  # probability that a sample's state is drawn outside the expert's own
    consistency: NonNegativeFloat = 0.0  # weight of the distance to the frozen parent's answers
