"""`params.yaml`: its schema, its checks, and each recipe resolved over the defaults.

All that is wrong is reported at once, each with its path and the nearest valid name. This module
knows no datasets: what depends on one (a batch larger than it, an expert without labels) is
checked by `pipeline.params.feasibility`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.block import MOST_RUNS, Block, Seed
from pipeline.data.params import Data, Latent, Pixels
from pipeline.evaluation.params import Classifier, Evaluate, Features
from pipeline.levels.params import (
    Curriculum,
    LinearSchedule,
    Partition,
    Schedule,
    SinglePartition,
    UniformCurriculum,
)
from pipeline.merging.params import Merge, Route
from pipeline.networks.params import Network, UNet
from pipeline.noise.params import Independent, Pairing
from pipeline.sampling.params import DdimSampling, Sampling
from pipeline.training.params import Decouple, Training


class Recipe(Block):
    # A run for each, as NAME-seed0 ...; []: one with `seed`
    seeds: Annotated[list[Seed], Field(max_length=MOST_RUNS)] = []
    seed: Seed | None = None
    network: Annotated[Network, Field(discriminator="kind")] = UNet()
    schedule: Annotated[Schedule, Field(discriminator="kind")] = LinearSchedule(kind="linear")
    partition: Annotated[Partition, Field(discriminator="kind")] = SinglePartition()
    prediction: Literal["eps", "x0", "v"] = "v"
    pairing: Annotated[Pairing, Field(discriminator="method")] = Independent()
    curriculum: Annotated[Curriculum, Field(discriminator="kind")] = UniformCurriculum()
    training: Training = Training()
    decouple: Decouple = Decouple()
    merge: Annotated[Merge, Field(discriminator="method")] = Route()
    sampling: Annotated[Sampling, Field(discriminator="kind")] = DdimSampling()

    @property
    def partition_channels(self) -> list[int]:
        """Base width of each expert's network, cleanest first; empty for network.channels."""
        return getattr(self.partition, "channels", [])


class Params(Block):
    """A whole params.yaml, every recipe resolved."""

    seed: Seed = 0
    data: Data = Data()
    latent: Annotated[Latent, Field(discriminator="encoder")] = Pixels()
    features: Annotated[Features, Field(discriminator="extractor")] = Classifier()
    evaluate: Evaluate = Evaluate()
    recipes: dict[str, Recipe]
