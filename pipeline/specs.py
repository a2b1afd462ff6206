"""What a job is asked to do, and all that its result depends on: a class for each kind of job.

A spec is planned as an object of its class, written to the store as JSON, and read back by the same
class. Its digest names the entry. Keys at a `neutral` default are left out of the JSON, so adding
such a key changes no digest. `code` is the digest of the code that makes the result. What a block
of params.yaml holds beside what the job depends on stands at its default (`Block.without`).

Entries are named `kind/digest`. Log-SNRs of states go from the cleanest to the noisiest.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, ValidationError

from pipeline.block import Block, Form, LogSnr, PositiveFloat, neutral
from pipeline.data.params import Autoencoder, Diffusers
from pipeline.errors import UserError
from pipeline.evaluation.params import Features
from pipeline.levels.params import Adaptive, Curriculum, OptimalDenoiserPartition
from pipeline.merging.params import Merge
from pipeline.networks.params import Network, RouterNetwork
from pipeline.noise.params import Assignment, Nearest, Pairing, Semidiscrete
from pipeline.sampling.params import DdimSampling, Sampling
from pipeline.store.entry import Entry
from pipeline.training.params import Training

# JSON has no infinity; float() reads the text.
States = list[float | Literal["-inf"]]


def as_states(log_snr: Any) -> States:
    """Log-SNRs as JSON has them."""
    return [float(v) if np.isfinite(v) else str(float(v)) for v in log_snr]


class Spec(Block):
    """Base of all: what is asked of a job."""

    code: str

    def as_json(self) -> dict[str, Any]:
        """The spec as it is written, and as its digest is taken."""
        return self.model_dump(mode="json")


class Part(Block):
    """A file of another entry."""

    entry: str
    file: str


class File(Block):
    """A file of the checkout: its path, relative to the project, and its checksum."""

    path: str
    sha256: str


class Images(Block):
    """Which dataset a job reads, as a `split.Split`; rows: those that are trained on."""

    dataset: str
    held_out: int = neutral(0)
    rows: int


class EncoderSpec(Spec):
    images: Images
    shape: list[int]  # of an image, [C, H, W]
    settings: Annotated[Autoencoder | Diffusers, Field(discriminator="encoder")]
    seed: int


class LatentsSpec(Spec):
    images: Images
    first: int  # rows first .. last - 1
    last: int
    flips_after: int | None = neutral(None)  # this row is the first one mirrored
    # Of pixels; encoded latents have those of their encoder.
    shift: list[float] = neutral([])
    scale: float = neutral(0.0)
    encoder: str | None = neutral(None)
    variance: bool = neutral(False)


class SpectrumSpec(Spec):
    latents: list[str]
    classes: int


class BoundsSpec(Spec):
    latents: list[str]
    settings: OptimalDenoiserPartition
    axis: list[float]
    key: int


class ClustersSpec(Spec):
    latents: list[str]
    clusters: int
    rows: int  # that the centres are fitted to, at most
    key: int


class PilotSpec(Spec):
    expert: Part
    latents: list[str]
    levels: list[float]
    gradients: bool
    noise_key: int
    threads: int


class FeaturesSpec(Spec):
    images: Images
    settings: Annotated[Features, Field(discriminator="extractor")]
    files: dict[str, str]  # checksums of the files that the extractor is made of
    seed: int


class PairingSpec(Spec):
    settings: Annotated[Assignment | Nearest | Semidiscrete, Field(discriminator="method")]
    slots: list[int]  # passes over the dataset, from the first to before the second
    classes: int  # 0 where the pairing does not look at them
    noise_key: int
    dataset: str
    latents: list[str]
    potential: str | None = neutral(None)  # the entry that has it; null: this one learns it


class NetworkSpec(Block):
    """A network: its settings, and what they leave open."""

    network: Annotated[Network, Field(discriminator="kind")]
    conditioning: Literal["state", "none"]  # none: an expert of one state
    channels: int
    resolution: int
    classes: int  # 0: it is not told any
    interval_bounds: list[float] = neutral([])  # log-SNRs between a multi-decoder's intervals
    source: str | None = neutral(None)  # checksum of the file of a `module`


class DenoiserSpec(NetworkSpec):
    """A network, and what its answers mean."""

    prediction: Literal["eps", "x0", "v"]
    continuous: bool


class InFlowTime(Form):
    """A curriculum over the time of a flow, instead of log-SNR, on a continuous range."""

    made_by: ClassVar[str] = "pipeline.levels.flow:in_time"
    kind: Literal["in-flow-time"] = "in-flow-time"
    shift: PositiveFloat
    form: Annotated[Curriculum, Field(discriminator="kind")]
    bounds: list[float] = neutral([])  # of `per-interval`

    @property
    def makers(self) -> tuple[str, ...]:
        return (*super().makers, *self.form.makers)

    @property
    def correct(self) -> bool:
        return getattr(self.form, "correct", False)


class OwnCurriculum(Block):
    """A curriculum as an expert needs it: its own states on the whole axis."""

    form: Annotated[Curriculum | InFlowTime, Field(discriminator="kind")]
    bounds: list[float] = neutral([])  # of `per-interval`
    axis: list[float] = neutral([])  # the recipe's states; []: the expert's own are all
    own: list[int] = neutral([])  # first and last of the expert's on it

    @property
    def learnt(self) -> Adaptive | None:
        """The form, if its density is learnt along with the expert."""
        form = self.form.form if isinstance(self.form, InFlowTime) else self.form
        return form if isinstance(form, Adaptive) else None


class Decoupled(Block):
    """How an expert of a parent is fine-tuned (Decouple-then-Merge)."""

    outside: float
    consistency: float
    axis: list[float]


class ExpertSpec(DenoiserSpec, Spec):
    log_snr: list[float]  # its states, or the ends of a continuous range
    curriculum: OwnCurriculum
    pairing: Annotated[Pairing, Field(discriminator="method")]
    noise_key: int
    stream_key: int
    start_key: int
    images: int
    snapshots: list[int]
    training: Training
    latents: list[str]
    pairings: list[str] = neutral([])
    parent: Part | None = neutral(None)
    initial: File | None = neutral(None)  # what it starts from, where that is no parent
    train: Literal["all", "decoders"] = neutral("all")
    decouple: Decoupled | None = neutral(None)
    held_out: list[str] = neutral([])  # latents by which it may end early
    features: str | None = neutral(None)  # those that it is aligned with
    clusters: str | None = neutral(None)  # the entry that has the cluster of each row
    cluster: int | None = neutral(None)  # whose rows alone it is trained on


class RoutingSpec(NetworkSpec):
    """The network of a router."""

    network: RouterNetwork


class RouterSpec(RoutingSpec, Spec):
    """A router is trained on what experts are, on rows of all clusters."""

    # What `Draws` looks at in an expert's spec, and a router has no choice of.
    prediction: ClassVar[str] = "x0"
    decouple: ClassVar[None] = None

    log_snr: list[float]  # the recipe's states, or the ends of a continuous range
    continuous: bool
    curriculum: OwnCurriculum
    pairing: Annotated[Pairing, Field(discriminator="method")]
    noise_key: int
    stream_key: int
    start_key: int
    images: int
    batch: int
    learning_rate: float
    threads: int
    latents: list[str]
    clusters: str
    pairings: list[str] = neutral([])


class Confirmation(Block):
    """What scoring samples of a merge's candidates takes."""

    features: str
    images: Images
    log_snr: States
    states: States
    sampling: Annotated[Sampling, Field(discriminator="kind")]
    seed: int
    class_counts: list[int] = neutral([])
    shift: list[float] = neutral([])
    scale: float = neutral(0.0)
    encoder: str | None = neutral(None)
    terminal: str | None = neutral(None)


class MergedSpec(Spec):
    settings: Annotated[Merge, Field(discriminator="method")]
    experts: list[Part]
    of: list[list[float]]  # the states of each
    model: DenoiserSpec
    noise_key: int
    parent: Part | None = neutral(None)
    initial: File | None = neutral(None)
    latents: list[str] = neutral([])  # held-out ones, for a search
    confirm: Confirmation | None = neutral(None)
    # Of `post-hoc`: images at each snapshot, and the lengths that were kept there
    ends: list[int] = neutral([])
    kept: list[float] = neutral([])


class Led(Form):
    """Where guidance leads samples away from what, if not everywhere from the same model without
    its classes.

    interval: log-SNRs from the lower, inclusive, to the upper; guide: the mixture that is led away
    from.
    """

    made_by: ClassVar[str] = "pipeline.sampling.guidance:Guided"
    interval: list[LogSnr] | None = neutral(None)
    guide: dict[str, Any] | None = neutral(None)


class Routed(Form):
    """A mixture of experts over clusters of the data."""

    made_by: ClassVar[str] = "pipeline.sampling.clusters:Clustered"


class SamplesSpec(Spec):
    mixture: dict[str, Any]
    states: States
    sampling: Annotated[Sampling, Field(discriminator="kind")]
    led: Led | None = neutral(None)
    class_counts: list[int] = neutral([])
    first: int  # samples first .. last - 1
    last: int
    seed: int
    batch: int
    threads: int


class ReconstructionsSpec(Spec):
    images: Images
    count: int
    encoder: str


class Published(Form):
    """Statistics that others computed of real images, as a file."""

    made_by: ClassVar[str] = "pipeline.evaluation.published:compared"
    file: File


class Law(Form):
    """A known law of the images, that of a source."""

    made_by: ClassVar[str] = "pipeline.evaluation.law:compared"
    source: Literal["synthetic"] = "synthetic"


class ScoresSpec(Spec):
    samples: list[str]
    features: str
    seed: int
    neighbours: int
    allow_few: bool
    labels: Literal["dataset", "uniform"] | None = neutral(None)
    published: Published | None = neutral(None)
    law: Law | None = neutral(None)


class ErrorsSpec(Spec):
    mixture: dict[str, Any]
    levels: list[float]
    latents: list[str]  # of held-out images
    seed: int
    batch: int


class OutputsSpec(Spec):
    mixture: dict[str, Any]
    states: States
    sampling: DdimSampling
    led: Led | None = neutral(None)
    levels: list[list[float]]  # what is compared, and the state at which this recipe is asked
    samples: int
    nearest: int
    images: Images
    flips: bool
    latents: list[str]
    features: str
    class_counts: list[int] = neutral([])
    seed: int
    batch: int
    threads: int


class ConsistencySpec(Spec):
    outputs: list[str]
    features: str
    levels: list[float]
    level: float
    resamples: int
    similarity: float | None
    seed: int


SPECS: dict[str, type[Spec]] = {
    "encoder": EncoderSpec,
    "latents": LatentsSpec,
    "spectrum": SpectrumSpec,
    "bounds": BoundsSpec,
    "clusters": ClustersSpec,
    "pilot": PilotSpec,
    "features": FeaturesSpec,
    "pairing": PairingSpec,
    "expert": ExpertSpec,
    "router": RouterSpec,
    "merged": MergedSpec,
    "samples": SamplesSpec,
    "reconstructions": ReconstructionsSpec,
    "scores": ScoresSpec,
    "errors": ErrorsSpec,
    "outputs": OutputsSpec,
    "consistency": ConsistencySpec,
}


def spec_of(entry: Entry) -> Spec:
    """The spec that an entry was planned with. UserError if it is damaged or of another version."""
    try:
        return SPECS[entry.kind].model_validate(entry.spec())
    except ValidationError as e:
        raise UserError(
            f"{entry.path / 'spec.json'}: not a spec of this version of tspace; run `dvc repro`"
        ) from e
