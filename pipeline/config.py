"""`params.yaml`: its schema, its checks, and each recipe resolved over the defaults.

All that is wrong is reported at once, each with its path and the nearest valid name. This module
knows no datasets: what depends on one (a batch larger than it, an expert without labels) is
checked by `pipeline.feasibility`.
"""

from __future__ import annotations

import itertools
import re
import typing
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pipeline import yaml_document
from pipeline.errors import UserError
from pipeline.wording import TAGS, nearest, refusal, shown, validate

# Whatever costs time or memory has a bound well above anything that was ever of use: a slip of some
# zeros is told at once, not by a machine out of memory.
MOST_IMAGES = 10**12
MOST_RUNS = 1_000  # recipes, each seed counted
MOST_EXPERTS = 20_000  # of all recipes
MOST_SHARDS = 100_000  # of samples, of all recipes and milestones
MOST_WIDTH = 8_192  # channels of a convolution: 2.4 GB of float32 weights
# exp(60) = 1e26: twice that in the exponent would leave float32's range, e^88, where weights
# multiply SNRs. The noise or the signal itself is lost in float32's rounding from 32 on.
MOST_LOG_SNR = 60.0
MOST_SEARCHED = 12  # merge weights: the faces of their box are 3^n
MOST_EVALUATIONS = 10_000  # of a search
FEATURES = {"inception": 2048, "dinov2": 1024}  # of the published extractors

Positive = Annotated[int, Field(gt=0, le=10**6)]
Images = Annotated[int, Field(gt=0, le=MOST_IMAGES)]
ImagesOrNone = Annotated[int, Field(ge=0, le=MOST_IMAGES)]
Samples = Annotated[int, Field(gt=0, le=10**7)]
Batch = Annotated[int, Field(gt=0, le=2**20)]
Width = Annotated[int, Field(gt=0, le=MOST_WIDTH)]
Depth = Annotated[int, Field(gt=0, le=64)]
Threads = Annotated[int, Field(gt=0, le=1024)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
PositiveFloat = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Spread = Annotated[float, Field(ge=1e-3, le=1e3, allow_inf_nan=False)]  # what is divided by
NonNegativeFloat = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Finite = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
LogSnr = Annotated[float, Field(ge=-MOST_LOG_SNR, le=MOST_LOG_SNR, allow_inf_nan=False)]
Sigma = Annotated[float, Field(ge=1e-9, le=1e9, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
BelowOne = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
States = Annotated[int, Field(ge=1, le=1000)]
Interval = Annotated[int, Field(gt=0, le=1000)]
Widths = Annotated[list[Width], Field(max_length=1000)]
LogSnrs = Annotated[list[LogSnr], Field(min_length=1, max_length=1000)]


def _plain(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not hold a NUL character")
    return text


def _class_in_file(text: str) -> str:
    path, _, name = text.rpartition(":")
    if not path or not name.isidentifier():
        raise ValueError("must be path/to/file.py:ClassName")
    return text


Text = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_plain)]


class Block(BaseModel):
    """One block of params.yaml: unknown keys and loose types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


# --- data, latents, features, evaluation


class Data(Block):
    """Where the images come from and their normal form."""

    source: Literal["digits", "fashion-mnist", "cifar10", "folder", "parquet", "npz"] = "digits"
    path: Text | None = None
    split: Literal["train", "test"] = "train"
    # Pixels; null keeps the source's own
    resolution: Annotated[int, Field(gt=0, le=4096)] | None = None
    channels: Literal[1, 3] | None = None  # null keeps the source's own
    crop: Literal["center", "none"] = "center"
    limit: Images | None = None  # at most so many images, spread over the source
    duplicates: Literal["keep", "drop", "refuse"] = "keep"
    holdout: ImagesOrNone = 0  # images kept from training and scoring: a selection set


class Pixels(Block):
    """The networks see scaled pixels."""

    encoder: Literal["pixels"] = "pixels"
    flips: bool = False  # every image mirrored as well, as a row of its own
    shard: Images = 65_536  # rows a file


class Autoencoder(Block):
    """Latents of a small KL autoencoder that is trained here, on the dataset."""

    encoder: Literal["autoencoder"]
    channels: Annotated[int, Field(gt=0, le=1024)] = 4  # of the latents
    downsample: Literal[2, 4, 8, 16] = 4
    width: Width = 32  # at the latents' resolution
    blocks: Depth = 1  # residual blocks a level
    images: Images = 150_000  # training budget
    batch: Batch = 64
    learning_rate: PositiveFloat = 4e-3
    kl_weight: NonNegativeFloat = 1e-5
    sample: bool = False  # train on draws from the encoder's Gaussian, not on its mean
    flips: bool = False
    shard: Images = 65_536
    threads: Threads = 1


class Diffusers(Block):
    """Latents of a published autoencoder, through the package `diffusers`."""

    encoder: Literal["diffusers"]
    model: Text  # a local folder or a hub id: AutoencoderKL or AutoencoderTiny
    channels: Annotated[int, Field(gt=0, le=1024)] = 4
    downsample: Literal[2, 4, 8, 16, 32] = 8
    sample: bool = False
    flips: bool = False
    shard: Images = 65_536
    threads: Threads = 1


Latent = Pixels | Autoencoder | Diffusers


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


# --- the blocks of a recipe


class UNet(Block):
    kind: Literal["unet"] = "unet"
    channels: Width = 32
    multipliers: Annotated[list[Width], Field(min_length=1, max_length=10)] = [1, 2]
    blocks: Depth = 1  # residual blocks a level
    # Resolutions with self-attention
    attention: Annotated[list[Positive], Field(max_length=10)] = []
    dropout: BelowOne = 0.0
    projections: bool = False  # channel-wise, after each level (Decouple-then-Merge)
    class_conditional: bool = False
    label_dropout: BelowOne = 0.1


class MultiDecoder(UNet):
    """A shared encoder and a decoder for each interval of the partition (Zhang et al. 2024)."""

    kind: Literal["multi-decoder"]
    # Base widths, cleanest first
    decoder_channels: Annotated[list[Width], Field(min_length=1, max_length=1000)]


# Added to every log-SNR; `unit-range`: what makes it a schedule for images in [-1, 1].
Shift = LogSnr | Literal["unit-range"]


class LinearSchedule(Block):
    """DDPM's linear betas, re-spaced to any number of states."""

    kind: Literal["linear"]
    states: States = 1000
    shift: Shift = 0.0
    zero_terminal: bool = False


class CosineSchedule(Block):
    kind: Literal["cosine"]
    states: States = 1000
    shift: Shift = 0.0
    zero_terminal: bool = False


class LogSnrSchedule(Block):
    """Uniform in log-SNR between two ends."""

    kind: Literal["log-snr"]
    states: States | Literal["continuous"] = 16
    log_snr_max: LogSnr = 9.0
    log_snr_min: LogSnr = -9.0
    shift: Shift = 0.0
    zero_terminal: bool = False


class EdmSchedule(Block):
    """Karras et al.: sigma^(1/rho) uniform."""

    kind: Literal["edm"]
    states: States | Literal["continuous"] = "continuous"
    sigma_min: Sigma = 0.002
    sigma_max: Sigma = 80.0
    sigma_data: Sigma = 0.5
    rho: Annotated[float, Field(ge=0.1, le=100, allow_inf_nan=False)] = 7.0
    shift: LogSnr = 0.0


class LogisticSchedule(Block):
    """Truncated logistic density in log-SNR: a widened cosine with pinned ends."""

    kind: Literal["logistic"]
    states: States = 16
    mean: LogSnr = 0.0
    scale: Spread = 2.0
    log_snr_max: LogSnr = 9.0
    log_snr_min: LogSnr = -9.0
    shift: Shift = 0.0
    zero_terminal: bool = False


class ExplicitSchedule(Block):
    kind: Literal["explicit"]
    log_snr: LogSnrs
    shift: Shift = 0.0
    zero_terminal: bool = False


class FittedSchedule(Block):
    """Fitted to the data: node density (-d mmse / d log-SNR)^power between two ends."""

    kind: Literal["fitted"]
    states: States = 16
    power: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 0.5
    source: Literal["spectrum", "pilot"] = "spectrum"  # whose error: a Gaussian's, a short run's
    pilot_images: Images = 20_000  # budget of that run
    log_snr_max: LogSnr = 9.0
    log_snr_min: LogSnr = -9.0
    shift: LogSnr = 0.0
    zero_terminal: bool = False


class ElboSchedule(Block):
    """The states with the least evidence bound. A diagnostic: it samples worse than any other."""

    kind: Literal["elbo"]
    states: States = 16
    source: Literal["spectrum", "pilot"] = "spectrum"
    pilot_images: Images = 20_000
    log_snr_max: LogSnr = 9.0
    log_snr_min: LogSnr = -9.0
    shift: LogSnr = 0.0
    zero_terminal: bool = False


Schedule = (
    LinearSchedule
    | CosineSchedule
    | LogSnrSchedule
    | EdmSchedule
    | LogisticSchedule
    | ExplicitSchedule
    | FittedSchedule
    | ElboSchedule
)


class SinglePartition(Block):
    """One network for all states."""

    kind: Literal["single"] = "single"


class Cut(Block):
    """The time axis cut into intervals: an expert each, or a decoder of a multi-decoder network."""

    channels: Widths = []  # base width of each expert, cleanest first; []: network.channels


class PerStatePartition(Cut):
    """One expert per state: no time input."""

    kind: Literal["per-state"]


class UniformPartition(Cut):
    """Intervals with equally many states (to one)."""

    kind: Literal["uniform"]
    intervals: Interval


class BoundsPartition(Cut):
    """An interval between each two of these log-SNRs (descending, the ends left out)."""

    kind: Literal["bounds"]
    log_snr: LogSnrs


class SnrPartition(Cut):
    """Least distance in log-SNR of the states to the middle of their interval (Go et al. 2023)."""

    kind: Literal["snr"]
    intervals: Interval = 3


class OptimalDenoiserPartition(Cut):
    """Where the dataset's own optimal denoiser changes (Zhang et al. 2024, algorithm 1)."""

    kind: Literal["optimal-denoiser"]
    intervals: Interval = 3
    # Two anchors give three intervals; `matrix` any number, from the similarities of all nodes.
    method: Literal["two-anchor", "matrix"] = "two-anchor"
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.9
    eta: PositiveFloat = 2 / 256
    draws: Positive = 5_000
    nodes: Annotated[int, Field(ge=2, le=200)] = 40  # of `matrix`
    rows: Images = 50_000  # of the dataset, a fair sample


class LearntPartition(Cut):
    """From a short run of the recipe's network: equal parts of its loss, or alike gradients."""

    kind: Literal["gradient", "loss"]
    intervals: Interval = 3
    pilot_images: Images = 20_000
    nodes: Annotated[int, Field(ge=2, le=200)] = 40


Partition = (
    SinglePartition
    | PerStatePartition
    | UniformPartition
    | BoundsPartition
    | SnrPartition
    | OptimalDenoiserPartition
    | LearntPartition
)


class Independent(Block):
    """Each image with noise of its own, as everywhere."""

    method: Literal["independent"] = "independent"
    # Factor on the noise. Below 1 it is the control for the short noise that `knn-l2` selects.
    scale: PositiveFloat = 1.0


class Assignment(Block):
    """Linear assignment of the noises of a pass to its images (immiscible diffusion)."""

    method: Literal["assignment"]
    block: Annotated[int, Field(gt=0, le=16_384)] = 256  # images that are solved together exactly
    # 1 is batch-wise; more approach an assignment of the whole dataset
    sweeps: Annotated[int, Field(gt=0, le=1000)] = 1
    within_class: bool = True  # of a class-conditional network: noise then tells nothing of class
    components: Width | None = None  # cost in so many principal components; null: all pixels
    keep: Width | None = None  # paired noise in so many components, fresh noise in the others
    refresh: Share = 0.0  # share of the noise's variance that is drawn anew
    scale: PositiveFloat = 1.0


class Nearest(Block):
    """Each image chooses from some noises (improved immiscible diffusion)."""

    method: Literal["knn-l2", "knn-dot"]
    candidates: Annotated[int, Field(ge=2, le=65_536)] = 8
    center: bool = True  # choose by the rows without their mean; false is the paper's
    components: Width | None = None
    keep: Width | None = None
    refresh: Share = 0.0
    scale: PositiveFloat = 1.0


class UniformCurriculum(Block):
    kind: Literal["uniform"] = "uniform"


class Clts(Block):
    """From uniform to a Gaussian over the time axis (Xu et al. 2024; a reconstruction)."""

    kind: Literal["clts"]
    mu: LogSnr = 0.3  # place on the time axis, 0 cleanest, 1 noisiest
    sigma: Spread = 0.3
    end_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0  # of the run: then it stays
    lambda_max: Share = 1.0


class StaticDensity(Block):
    """CLTS's end state from the first image on: its control."""

    kind: Literal["static"]
    mu: LogSnr = 0.3
    sigma: Spread = 0.3
    lambda_max: Share = 1.0


class EasyToHard(Block):
    """Noisiest states first, then the union with ever cleaner ones (Kim et al. 2025)."""

    kind: Literal["easy-to-hard"]
    clusters: States | None = None
    end_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0


class EdmLognormal(Block):
    """ln sigma normal, as in EDM (sigma_data = 0.5)."""

    kind: Literal["edm-lognormal"]
    mean: LogSnr = -1.2
    std: Spread = 1.2


class LogitNormal(Block):
    """Esser et al. 2024; their objective is this density with training.weighting: flow."""

    kind: Literal["logit-normal"]
    mean: LogSnr = 0.0
    std: Spread = 1.0


class Speed(Block):
    """SpeeD (Wang et al. 2025): k times as often below tau, in antithetic pairs, weighted."""

    kind: Literal["speed"]
    k: PositiveFloat = 5.0
    tau: Share = 0.7
    lam: Share | None = 0.6  # of the change-aware weights; null: none
    mirror: Annotated[float, Field(gt=0, le=1)] | None = None


class IntervalDensity(Block):
    """Equally much training for every interval of the partition, as in the multi-stage paper."""

    kind: Literal["per-interval"]
    partition: (
        Annotated[
            UniformPartition | BoundsPartition | SnrPartition | OptimalDenoiserPartition,
            Field(discriminator="kind"),
        ]
        | None
    ) = None  # null: the recipe's own
    # Of each interval, cleanest first; []: equal
    shares: Annotated[list[PositiveFloat], Field(max_length=1000)] = []
    correct: bool = False  # importance weights that keep the objective of the uniform density


Curriculum = (
    UniformCurriculum
    | Clts
    | StaticDensity
    | EasyToHard
    | EdmLognormal
    | LogitNormal
    | Speed
    | IntervalDensity
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


Length = Annotated[
    float, Field(ge=1e-3, lt=0.28)
]  # sigma_rel: of the run, 1/sqrt(12) for all of it


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


class Walk(Block):
    """What all samplers have."""

    steps: States | None = None  # null: every state of the schedule
    guidance: NonNegativeFloat = 1.0  # 1: no classifier-free guidance
    clip: bool = False  # bound each estimate of the image to 0..255; pixels only


class DdimSampling(Walk):
    """Song et al. 2021."""

    kind: Literal["ddim"] = "ddim"
    eta: Share = 0.0


class DdpmSampling(Walk):
    """Ho et al. 2020."""

    kind: Literal["ddpm"]
    variance: Literal["small", "large"] = "small"  # its code's fixedsmall and fixedlarge


class HeunSampling(Walk):
    """Karras et al. 2022: algorithm 2, which without churn is algorithm 1."""

    kind: Literal["heun"]
    s_churn: NonNegativeFloat = 0.0
    s_min: NonNegativeFloat = 0.0  # sigma in EDM's units (sigma_data = 0.5)
    s_max: PositiveFloat | None = None
    s_noise: PositiveFloat = 1.0


class DpmppSampling(Walk):
    """DPM-Solver++(2M), Lu et al. 2022."""

    kind: Literal["dpmpp-2m"]


Sampling = DdimSampling | DdpmSampling | HeunSampling | DpmppSampling


class Decouple(Block):
    """How the experts of a parent are fine-tuned, for merging (Decouple-then-Merge)."""

    outside: Share = 0.0  # probability that a sample's state is drawn outside the expert's own
    consistency: NonNegativeFloat = 0.0  # weight of the distance to the frozen parent's answers


class Route(Block):
    """A mixture: every state goes to the expert that owns it."""

    method: Literal["route"] = "route"


class AverageMerge(Block):
    """One network: the mean of the experts' weights."""

    method: Literal["average"]


class TaskVectorMerge(Block):
    """One network: the parent plus weighted differences of the experts from it."""

    method: Literal["task-vector"]
    # Of each expert, cleanest first, or such a list by the beginning of a layer's name ("" is all
    # others); null: searched.
    weights: (
        Annotated[list[Finite], Field(max_length=1000)]
        | Annotated[
            dict[str, Annotated[list[Finite], Field(max_length=1000)]], Field(max_length=1000)
        ]
        | None
    ) = None
    images: Images = 2_048  # of the selection set that the search evaluates on
    # Samples whose FID chooses among the best candidates; 0: the loss
    confirm: Annotated[int, Field(ge=0, le=10**6)] = 0
    bounds: Annotated[list[Finite], Field(min_length=2, max_length=2)] = [0.0, 1.5]
    search: Literal["quadratic", "grid", "random"] = "quadratic"
    levels: Annotated[int, Field(ge=2, le=1000)] = 5  # values of each weight that `grid` tries
    evaluations: Annotated[int, Field(gt=0, le=MOST_EVALUATIONS)] = 20  # of `random`


class TiesMerge(Block):
    """One network: the parent plus the trimmed, sign-elected mean difference (Yadav et al.)."""

    method: Literal["ties"]
    density: Annotated[float, Field(gt=0, le=1)] = 0.2
    scale: PositiveFloat = 1.0


class SnapshotMerge(Block):
    """One network: a weighted sum of one run's snapshots, searched (LCSC)."""

    method: Literal["snapshots"]
    images: Images = 2_048


class PostHocMerge(Block):
    """The power-function average of another length than those kept, from their snapshots (EDM2)."""

    method: Literal["post-hoc"]
    length: Length


Merge = Route | AverageMerge | TaskVectorMerge | TiesMerge | SnapshotMerge | PostHocMerge


class Recipe(Block):
    # A run for each, as NAME-seed0 ...; []: one with `seed`
    seeds: Annotated[list[Seed], Field(max_length=MOST_RUNS)] = []
    seed: Seed | None = None
    network: Annotated[UNet | MultiDecoder, Field(discriminator="kind")] = UNet()
    schedule: Annotated[Schedule, Field(discriminator="kind")] = LinearSchedule(kind="linear")
    partition: Annotated[Partition, Field(discriminator="kind")] = SinglePartition()
    prediction: Literal["eps", "x0", "v"] = "v"
    pairing: Annotated[Independent | Assignment | Nearest, Field(discriminator="method")] = (
        Independent()
    )
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
    features: Annotated[Classifier | TorchModule | Inception, Field(discriminator="extractor")] = (
        Classifier()
    )
    evaluate: Evaluate = Evaluate()
    recipes: dict[str, Recipe]


NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")
SECTIONS = ("seed", "data", "latent", "features", "evaluate", "defaults", "recipes")


# --- reading


def load(path: Path) -> Params:
    """Read, resolve and check a params.yaml. UserError listing all that is wrong with it."""
    source = str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    try:
        raw = yaml_document.read(path.read_bytes())
    except FileNotFoundError as e:
        raise UserError(f"{source}: not found; run in the project's folder") from e
    except OSError as e:
        raise UserError(f"{source}: cannot be read ({e.strerror})") from e
    except yaml_document.NotReadable as e:
        raise UserError(f"{source}: {e}") from e
    return resolve(raw, source, SECTIONS)


def resolve(raw: Any, source: str = "params.yaml", required: Sequence[str] = ()) -> Params:
    """Params from a parsed YAML document. UserError listing all that is wrong with it.

    required: sections that DVC tracks by name, so an empty one must stand there.
    """
    if not isinstance(raw, dict):
        raise UserError(
            f"{source}: expected keys such as `data` and `recipes`, found "
            f"{'nothing' if raw is None else shown(raw)}"
        )
    problems = [
        f"{key}: missing; `{key}: {0 if key == 'seed' else '{}'}` is enough"
        for key in required
        if key not in raw and key != "recipes"
    ]
    shared = dict(raw)
    defaults = shared.pop("defaults", None)
    defaults = {} if defaults is None else defaults
    recipes = shared.pop("recipes", None)
    if not isinstance(recipes, dict) or not recipes:
        given = "" if not recipes else f", found {shown(recipes)}"
        problems.append(
            f"recipes: at least one recipe is needed, by name, as `recipes: {{ddpm: {{}}}}`{given}"
        )
        recipes = {}

    top = validate(Params, {**shared, "recipes": {}}, (), problems, Recipe, Params)
    before = len(problems)
    validate(Recipe, defaults, ("defaults",), problems, Recipe, Params)
    defaults_bad = len(problems) > before
    resolved: dict[str, Recipe] = {}
    for name, own in recipes.items():
        path = ("recipes", name)
        if not isinstance(name, str) or not NAME.fullmatch(name):
            problems.append(
                f"recipes.{str(name)[:60]}: a recipe's name is lower-case letters, digits, - and "
                "_, beginning with a letter, at most 40 long"
            )
            continue
        own = {} if own is None else own
        if not isinstance(own, dict):
            problems.append(f"recipes.{name}: expected keys such as `schedule`, found {shown(own)}")
            continue
        if defaults_bad:  # the recipe is checked alone, so that each mistake is told once
            alone: list[str] = []
            validate(Recipe, own, path, alone, Recipe, Params)
            problems.extend(p for p in alone if "missing" not in p)
            continue
        recipe = validate(Recipe, merge(defaults, own), path, problems, Recipe, Params)
        if recipe is not None:
            found = list(_contradictions(recipe))
            problems.extend(f"{'.'.join(path)}.{key}: {text}" for key, text in found)
            resolved[name] = recipe
    for name in resolved:
        problems.extend(
            f"recipes.{name}.{key}: {text}" for key, text in _strange_parent(name, resolved)
        )
    problems.extend(_same_names(resolved))
    if top is not None:
        problems.extend(_strange_sections(top))
    if top is not None and not problems:
        problems.extend(_without_holdout(top, resolved))
        problems.extend(_without_pixels(top, resolved))
        problems.extend(_too_many(top, resolved))
    compared: list[str] = []
    if top is not None and top.evaluate.consistency is not None and len(resolved) == len(recipes):
        compared = _compared(top.evaluate.consistency.recipes, resolved, problems)
    if problems:
        raise refusal(source, problems)
    assert top is not None
    evaluate = top.evaluate
    if evaluate.consistency is not None:
        block = evaluate.consistency.model_copy(update={"recipes": compared})
        evaluate = evaluate.model_copy(update={"consistency": block})
    return top.model_copy(update={"recipes": _by_seed(resolved), "evaluate": evaluate})


def _runs(name: str, recipe: Recipe) -> list[str]:
    return [f"{name}-seed{seed}" for seed in recipe.seeds] or [name]


def _same_names(recipes: dict[str, Recipe]) -> typing.Iterator[str]:
    """Two runs of one name, of which one would silently replace the other."""
    owners: dict[str, str] = {}
    for name, recipe in recipes.items():
        for seed, times in Counter(recipe.seeds).items():
            if times > 1:
                yield f"recipes.{name}.seeds: {seed} stands there {times} times; name each once"
        for run in dict.fromkeys(_runs(name, recipe)):
            if run in owners:
                one, other = sorted((name, owners[run]), key=lambda n: not recipes[n].seeds)
                yield (
                    f"recipes.{one}.seeds: makes a run `{run}`, and there is a recipe "
                    f"`{other}` of that name; rename one"
                )
            owners[run] = name


def _strange_sections(top: Params) -> typing.Iterator[str]:
    """Impossible combinations outside of the recipes."""
    data, features = top.data, top.features
    if data.limit is not None and data.holdout >= data.limit:
        yield f"data.holdout: {data.holdout} of {data.limit} images (data.limit) leave none"
    if isinstance(features, Classifier):
        for key in ("channels", "dimension"):
            if getattr(features, key) % 8:
                yield (
                    f"features.{key}: {getattr(features, key)} is no multiple of 8, the groups "
                    "that the classifier normalises"
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


def _too_many(top: Params, recipes: dict[str, Recipe]) -> typing.Iterator[str]:
    """More jobs than can be planned."""
    runs = {name: len(_runs(name, recipe)) for name, recipe in recipes.items()}
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


def _compared(names: list[str], recipes: dict[str, Recipe], problems: list[str]) -> list[str]:
    """The runs that `evaluate.consistency.recipes` stands for, each once."""
    path = "evaluate.consistency.recipes"
    runs = {name: _runs(name, recipe) for name, recipe in recipes.items()}
    known = {**{run: [run] for own in runs.values() for run in own}, **runs}
    before = len(problems)
    for i, name in enumerate(names):
        if name not in known:
            problems.append(f"{path}.{i}: {name!r} is no recipe; {nearest(name, list(known))}")
    found = list(dict.fromkeys(run for name in names for run in known.get(name, [])))
    if len(problems) == before and len(found) < 2:
        problems.append(
            f"{path}: two or more models can be compared, {', '.join(found) or 'none'} given; name "
            "another recipe, or give this one `seeds`"
        )
    return found


def _by_seed(recipes: dict[str, Recipe]) -> dict[str, Recipe]:
    """Every recipe with `seeds` as one recipe a seed; a parent is the one of the same seed."""
    each: dict[str, Recipe] = {}
    for name, recipe in recipes.items():
        parent = recipe.training.parent
        for run, seed in zip(_runs(name, recipe), recipe.seeds or [recipe.seed], strict=True):
            own = recipe.model_copy(update={"seed": seed, "seeds": []})
            if parent is not None and recipes[parent].seeds:
                training = recipe.training.model_copy(update={"parent": f"{parent}-seed{seed}"})
                own = own.model_copy(update={"training": training})
            each[run] = own
    return each


def _strange_parent(name: str, recipes: dict[str, Recipe]) -> typing.Iterator[tuple[str, str]]:
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
    plain = {"dropout", "label_dropout", "kind", "decoder_channels", "projections"}
    own, other = (r.network.model_dump(exclude=plain) for r in (recipe, source))
    differs = [key for key in own if own[key] != other.get(key)]
    if differs:
        yield (
            f"network.{differs[0]}",
            f"{own[differs[0]]} here, {other.get(differs[0])} in its parent {line[1]!r}",
        )
    if recipe.training.train == "decoders" and isinstance(source.network, MultiDecoder):
        yield "training.parent", f"{line[1]!r} has several decoders; branches start from a unet"
    if recipe.prediction != source.prediction:
        yield "prediction", f"must be its parent's, {source.prediction}"


def _one_network(recipe: Recipe) -> bool:
    joint = isinstance(recipe.network, MultiDecoder) and recipe.training.train == "all"
    return joint or isinstance(recipe.partition, SinglePartition)


def _without_holdout(top: Params, recipes: dict[str, Recipe]) -> typing.Iterator[str]:
    """Searches that have no images to evaluate on."""
    for name, recipe in recipes.items():
        images = getattr(recipe.merge, "images", 0)
        if getattr(recipe.merge, "weights", None) is None and images > top.data.holdout:
            yield (
                f"recipes.{name}.merge.images: the search for its weights needs {images} images "
                f"that are not trained on, but data.holdout is {top.data.holdout}; raise it"
            )


def _without_pixels(top: Params, recipes: dict[str, Recipe]) -> typing.Iterator[str]:
    """Settings that mean something for pixels only."""
    if isinstance(top.latent, Pixels):
        return
    for name, recipe in recipes.items():
        if recipe.sampling.clip:
            yield (
                f"recipes.{name}.sampling.clip: pixels end at 0 and 255, latents nowhere; "
                "set it to false"
            )
        if recipe.schedule.shift == "unit-range":
            yield (
                f"recipes.{name}.schedule.shift: unit-range is for pixels; latents have unit "
                "variance, as they are: leave it out"
            )


def merge(defaults: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A recipe's blocks over the defaults, key by key.

    A block of another form (`kind: cosine` over `kind: linear`) replaces the default block whole,
    since the keys of the one mean nothing to the other.
    """
    merged = dict(defaults)
    for key, value in own.items():
        default = defaults.get(key)
        same_form = (
            isinstance(value, dict)
            and isinstance(default, dict)
            and all(value.get(tag, default.get(tag)) == default.get(tag) for tag in TAGS)
        )
        merged[key] = {**default, **value} if same_form else value
    return merged


def state_count(schedule: Schedule) -> int | None:
    """Number of states, None for a continuous schedule."""
    if isinstance(schedule, ExplicitSchedule):
        return len(schedule.log_snr)
    return None if schedule.states == "continuous" else schedule.states


def _contradictions(recipe: Recipe) -> typing.Iterator[tuple[str, str]]:
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
    if states is not None and getattr(schedule, "zero_terminal", False):
        trained = states - 1  # nothing is learnt at a state without signal
        if not trained:
            yield "schedule.zero_terminal", "leaves no state to train; give two `states` or more"
    if isinstance(partition, PerStatePartition) and states is None:
        yield "partition.kind", "per-state needs a number of states, not `continuous`"
    if trained is not None and experts is not None and experts > trained:
        key = "log_snr" if isinstance(partition, BoundsPartition) else "intervals"
        yield f"partition.{key}", f"more intervals ({experts}) than states ({trained})"
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
    yield from _strange_merge(recipe, experts)
    yield from _strange_curriculum(recipe, experts, trained)
    if getattr(schedule, "zero_terminal", False) and states is None:
        yield "schedule.zero_terminal", "needs a number of states, not `continuous`"
    if experts and training.images < experts:
        yield (
            "training.images",
            f"{training.images} images for {experts} experts: one each at least",
        )
    for i, milestone in enumerate(training.milestones):
        if milestone > training.images:
            yield (
                f"training.milestones.{i}",
                f"{milestone} is past the budget (training.images: {training.images})",
            )
    if training.decay == "inverse-sqrt" and training.reference_images is None:
        yield "training.reference_images", "needed by decay: inverse-sqrt"
    if not _descending([-m for m in training.milestones]):
        yield "training.milestones", "must be strictly ascending"
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
    if recipe.sampling.guidance != 1.0 and not recipe.network.class_conditional:
        yield "sampling.guidance", "needs network.class_conditional: true (or set it to 1.0)"
    elif recipe.sampling.guidance != 1.0 and not recipe.network.label_dropout:
        yield (
            "network.label_dropout",
            f"0 trains nothing without labels, which sampling.guidance: "
            f"{recipe.sampling.guidance:g} asks for; use 0.1, or guidance 1",
        )
    highest = getattr(recipe.sampling, "s_max", None)
    if highest is not None and recipe.sampling.s_min >= highest:
        yield "sampling.s_min", f"must be below s_max ({highest})"


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
    return partition.intervals


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


def _strange_networks(recipe: Recipe, experts: int | None) -> typing.Iterator[tuple[str, str]]:
    joint = isinstance(recipe.network, MultiDecoder)
    widths = recipe.partition_channels
    decoders = recipe.network.decoder_channels if joint else []
    widest = max([recipe.network.channels, *widths, *decoders]) * max(recipe.network.multipliers)
    if widest > MOST_WIDTH:
        yield (
            "network.multipliers",
            f"the widest level has {widest:,} channels; at most {MOST_WIDTH:,}",
        )
    if joint:
        decoders = len(recipe.network.decoder_channels)
        if isinstance(recipe.partition, SinglePartition | PerStatePartition):
            yield (
                "partition.kind",
                f"{recipe.partition.kind} gives a multi-decoder network no intervals; "
                "use uniform, snr, optimal-denoiser or bounds",
            )
        elif experts != decoders:
            yield (
                "network.decoder_channels",
                f"{decoders} decoders for the {experts} intervals of the partition",
            )
        if widths:
            yield "partition.channels", "a multi-decoder network has network.decoder_channels"
    elif widths and experts is not None and len(widths) != experts:
        yield "partition.channels", f"{len(widths)} widths for {experts} experts"
    if widths and recipe.training.parent is not None:
        yield "partition.channels", "a parent's weights fit its own width only; leave it out"
    branched = recipe.training.train == "decoders"
    if branched and not (joint and recipe.training.parent):
        yield "training.train", "decoders: needs a multi-decoder network and a training.parent"
    if branched and state_count(recipe.schedule) is None:
        yield "training.train", "decoders: needs schedule.states to be a number"
    if recipe.decouple != Decouple() and recipe.training.parent is None:
        yield "decouple", "needs training.parent, the network that is fine-tuned"
    without = isinstance(recipe.partition, SinglePartition)
    if without and getattr(recipe.curriculum, "partition", recipe) is None:
        yield "curriculum.partition", "per-interval needs one, as the recipe's is single"


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
        elif recipe.training.parent is None:
            yield (
                "merge.method",
                f"{method} needs training.parent: networks that did not start from the same "
                "weights have nothing in common that a sum could keep",
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
