"""`params.yaml`: its schema, its checks, and each recipe resolved over the defaults.

All that is wrong is reported at once, each with its path and the nearest valid name. This module
knows no datasets: what depends on one (a batch larger than it, an expert without labels) is
checked by `pipeline.params.feasibility`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

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

UNIFORM = {"kind": "uniform"}


class Recipe(Block):
    """A named set of choices, merged over `defaults` key by key; a block of another form (another
    `kind`, `method`, ...) replaces the default block whole."""

    seeds: Annotated[list[Seed], Field(max_length=MOST_RUNS)] = []
    """A run for each, as NAME-seed0 ...; []: one run. No two runs may have one name."""
    seed: Seed | None = None
    """Seed of this recipe; null: the one at the top."""
    network: Annotated[Network, Field(discriminator="kind")] = UNet()
    """What predicts."""
    schedule: Annotated[Schedule, Field(discriminator="kind")] = LinearSchedule(kind="linear")
    """Which states there are."""
    partition: Annotated[Partition, Field(discriminator="kind")] = SinglePartition()
    """How the states are cut into intervals, with an expert each, or a decoder of a `multi-decoder`
    network; or the data into clusters."""
    prediction: Literal["eps", "x0", "v", "flow"] = "v"
    """What the network predicts. `v` with uniform weighting is EDM's preconditioning. `flow` is the
    velocity eps - z of flow matching (Lipman et al. 2023, Liu et al. 2023): short for `v` with
    `network.velocity: true` and, in place of `uniform`, `training.weighting: {kind: flow}`, which
    is unit weight on the velocity's error."""
    pairing: Annotated[Pairing, Field(discriminator="method")] = Independent()
    """Which noise an image is trained with."""
    curriculum: Annotated[Curriculum, Field(discriminator="kind")] = UniformCurriculum()
    """Which state is drawn when."""
    training: Training = Training()
    """How the experts are trained."""
    decouple: Decouple = Decouple()
    """How the experts of a parent are fine-tuned."""
    merge: Annotated[Merge, Field(discriminator="method")] = Route()
    """How the experts become one model."""
    sampling: Annotated[Sampling, Field(discriminator="kind")] = DdimSampling()
    """How images are drawn from the model."""

    @model_validator(mode="before")
    @classmethod
    def _of_a_flow(cls, given: Any) -> Any:
        """`prediction: flow` as what it stands for, so that both spellings are one recipe."""
        if not isinstance(given, dict) or given.get("prediction") != "flow":
            return given
        network, training = given.get("network", {}), given.get("training", {})
        if not isinstance(network, dict) or not isinstance(training, dict):
            return given
        network = {"kind": "unet", **network, "velocity": True}
        if training.get("weighting", UNIFORM) == UNIFORM:
            training = {**training, "weighting": {"kind": "flow"}}
        return {**given, "prediction": "v", "network": network, "training": training}

    @property
    def predicts(self) -> str:
        """What its networks predict, in one word."""
        return "flow" if self.network.velocity else self.prediction

    @property
    def partition_channels(self) -> list[int]:
        """Base width of each expert's network, cleanest first; empty for network.channels."""
        return getattr(self.partition, "channels", [])

    @property
    def files(self) -> dict[str, str]:
        """Files that it names, by their key: paths relative to the project."""
        named = {f"network.{self.network.file_key}": self.network.file}
        named["training.initial"] = self.training.initial or ""
        return {key: path for key, path in named.items() if path}


class Params(Block):
    """A whole params.yaml, every recipe resolved."""

    seed: Seed = 0
    """Seed of everything that is drawn; a recipe can have its own."""
    data: Data = Data()
    """Where the images come from, and their normal form."""
    latent: Annotated[Latent, Field(discriminator="encoder")] = Pixels()
    """What the networks see."""
    features: Annotated[Features, Field(discriminator="extractor")] = Classifier()
    """What scores are computed on."""
    evaluate: Evaluate = Evaluate()
    """How samples are scored."""
    recipes: dict[str, Recipe]
    """The recipes by name."""
