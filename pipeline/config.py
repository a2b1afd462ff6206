"""`params.yaml`: its schema, its checks, and each recipe resolved over the defaults.

All that is wrong is reported at once, each with its path and the nearest valid name. This module
knows no datasets: what depends on one (a batch larger than it, an expert without labels) is
checked by `check_against`.
"""

from __future__ import annotations

import difflib
import itertools
import re
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import UserError

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
States = Annotated[int, Field(ge=1, le=1000)]


class Block(BaseModel):
    """One block of params.yaml: unknown keys and loose types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


# --- data, latents, features, evaluation


class Data(Block):
    """Where the images come from and their normal form."""

    source: Literal["digits", "fashion-mnist", "cifar10", "folder", "parquet", "npz"] = "digits"
    path: str | None = None
    split: Literal["train", "test"] = "train"
    resolution: Positive | None = None  # pixels; null keeps the source's own
    channels: Literal[1, 3] | None = None  # null keeps the source's own
    crop: Literal["center", "none"] = "center"
    limit: Positive | None = None  # at most so many images, spread over the source
    duplicates: Literal["keep", "drop", "refuse"] = "keep"
    holdout: NonNegative = 0  # images kept from training and scoring: a selection set


class Pixels(Block):
    """The networks see scaled pixels."""

    encoder: Literal["pixels"] = "pixels"
    flips: bool = False  # every image mirrored as well, as a row of its own
    shard: Positive = 65_536  # rows a file


class Autoencoder(Block):
    """Latents of a small KL autoencoder that is trained here, on the dataset."""

    encoder: Literal["autoencoder"]
    channels: Positive = 4  # of the latents
    downsample: Literal[2, 4, 8, 16] = 4
    width: Positive = 32  # at the latents' resolution
    blocks: Positive = 1  # residual blocks a level
    images: Positive = 150_000  # training budget
    batch: Positive = 64
    learning_rate: PositiveFloat = 4e-3
    kl_weight: NonNegativeFloat = 1e-5
    sample: bool = False  # train on draws from the encoder's Gaussian, not on its mean
    flips: bool = False
    shard: Positive = 65_536
    threads: Positive = 1


class Diffusers(Block):
    """Latents of a published autoencoder, through the package `diffusers`."""

    encoder: Literal["diffusers"]
    model: str  # a local folder or a hub id: AutoencoderKL or AutoencoderTiny
    channels: Positive = 4
    downsample: Literal[2, 4, 8, 16, 32] = 8
    sample: bool = False
    flips: bool = False
    shard: Positive = 65_536
    threads: Positive = 1


Latent = Pixels | Autoencoder | Diffusers


class Classifier(Block):
    """A small classifier trained here, on the dataset's labels (or on rotations without any)."""

    extractor: Literal["classifier"] = "classifier"
    images: Positive = 60_000  # training budget
    batch: Positive = 64
    learning_rate: PositiveFloat = 4e-3
    dimension: Positive = 64
    channels: Positive = 32


class TorchModule(Block):
    """Any torch module: `path/to/file.py:ClassName` with safetensors weights."""

    extractor: Literal["module"]
    module: str
    weights: str | None = None


class Inception(Block):
    """torch-fidelity's port of the Inception network that published FIDs use."""

    extractor: Literal["inception", "dinov2"]
    weights: str | None = None  # a local file; null lets torch-fidelity download its own


class Consistency(Block):
    """How alike recipes' or seeds' outputs are from the same noise."""

    recipes: list[str]  # two or more; a name with `seeds` stands for all of its runs
    samples: Annotated[int, Field(ge=2)] = 256
    # Noise levels at which estimates from the same noisy images are compared.
    states: Annotated[int, Field(ge=2)] = 9
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95  # of the confidence intervals
    resamples: Positive = 1_000  # of the bootstrap
    similarity: Annotated[float, Field(gt=-1, lt=1)] | None = None  # cosine of alike; null: fitted
    nearest: Annotated[int, Field(ge=2)] = 50_000  # training images that copies are looked for in


class Evaluate(Block):
    """How samples are scored."""

    samples: Positive = 2_000
    seed: NonNegative = 0
    shard: Positive = 2_000  # samples a job
    batch: Positive = 250  # samples at once; part of the results' identity only to the last bit
    neighbours: Positive = 3  # k of precision, recall, density and coverage
    allow_few: bool = False  # score fewer samples than feature dimensions
    labels: Literal["dataset", "uniform"] = "dataset"  # classes of samples, in what proportions
    consistency: Consistency | None = None  # null: not measured


# --- the blocks of a recipe


class UNet(Block):
    kind: Literal["unet"] = "unet"
    channels: Positive = 32
    multipliers: Annotated[list[Positive], Field(min_length=1)] = [1, 2]
    blocks: Positive = 1  # residual blocks a level
    attention: list[Positive] = []  # resolutions with self-attention
    dropout: Share = 0.0
    projections: bool = False  # channel-wise, after each level (Decouple-then-Merge)
    class_conditional: bool = False
    label_dropout: Share = 0.1


class MultiDecoder(UNet):
    """A shared encoder and a decoder for each interval of the partition (Zhang et al. 2024)."""

    kind: Literal["multi-decoder"]
    decoder_channels: Annotated[list[Positive], Field(min_length=1)]  # base widths, cleanest first


# Added to every log-SNR; `unit-range`: what makes it a schedule for images in [-1, 1].
Shift = Finite | Literal["unit-range"]


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
    log_snr_max: Finite = 9.0
    log_snr_min: Finite = -9.0
    shift: Shift = 0.0
    zero_terminal: bool = False


class EdmSchedule(Block):
    """Karras et al.: sigma^(1/rho) uniform."""

    kind: Literal["edm"]
    states: States | Literal["continuous"] = "continuous"
    sigma_min: PositiveFloat = 0.002
    sigma_max: PositiveFloat = 80.0
    sigma_data: PositiveFloat = 0.5
    rho: PositiveFloat = 7.0
    shift: Finite = 0.0


class LogisticSchedule(Block):
    """Truncated logistic density in log-SNR: a widened cosine with pinned ends."""

    kind: Literal["logistic"]
    states: States = 16
    mean: Finite = 0.0
    scale: PositiveFloat = 2.0
    log_snr_max: Finite = 9.0
    log_snr_min: Finite = -9.0
    shift: Shift = 0.0
    zero_terminal: bool = False


class ExplicitSchedule(Block):
    kind: Literal["explicit"]
    log_snr: Annotated[list[Finite], Field(min_length=1)]
    shift: Shift = 0.0
    zero_terminal: bool = False


class FittedSchedule(Block):
    """Fitted to the data: node density (-d mmse / d log-SNR)^power between two ends."""

    kind: Literal["fitted"]
    states: States = 16
    power: NonNegativeFloat = 0.5
    source: Literal["spectrum", "pilot"] = "spectrum"  # whose error: a Gaussian's, a short run's
    pilot_images: Positive = 20_000  # budget of that run
    log_snr_max: Finite = 9.0
    log_snr_min: Finite = -9.0
    shift: Finite = 0.0
    zero_terminal: bool = False


class ElboSchedule(Block):
    """The states with the least evidence bound. A diagnostic: it samples worse than any other."""

    kind: Literal["elbo"]
    states: States = 16
    source: Literal["spectrum", "pilot"] = "spectrum"
    pilot_images: Positive = 20_000
    log_snr_max: Finite = 9.0
    log_snr_min: Finite = -9.0
    shift: Finite = 0.0
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

    channels: list[Positive] = []  # base width of each expert, cleanest first; []: network.channels


class PerStatePartition(Cut):
    """One expert per state: no time input."""

    kind: Literal["per-state"]


class UniformPartition(Cut):
    """Intervals with equally many states (to one)."""

    kind: Literal["uniform"]
    intervals: Positive


class BoundsPartition(Cut):
    """An interval between each two of these log-SNRs (descending, the ends left out)."""

    kind: Literal["bounds"]
    log_snr: Annotated[list[Finite], Field(min_length=1)]


class SnrPartition(Cut):
    """Least distance in log-SNR of the states to the middle of their interval (Go et al. 2023)."""

    kind: Literal["snr"]
    intervals: Positive = 3


class OptimalDenoiserPartition(Cut):
    """Where the dataset's own optimal denoiser changes (Zhang et al. 2024, algorithm 1)."""

    kind: Literal["optimal-denoiser"]
    intervals: Positive = 3
    # Two anchors give three intervals; `matrix` any number, from the similarities of all nodes.
    method: Literal["two-anchor", "matrix"] = "two-anchor"
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.9
    eta: PositiveFloat = 2 / 256
    draws: Positive = 5_000
    nodes: Annotated[int, Field(ge=2, le=200)] = 40  # of `matrix`
    rows: Positive = 50_000  # of the dataset, a fair sample


class LearntPartition(Cut):
    """From a short run of the recipe's network: equal parts of its loss, or alike gradients."""

    kind: Literal["gradient", "loss"]
    intervals: Positive = 3
    pilot_images: Positive = 20_000
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
    block: Positive = 256  # images that are solved together exactly
    sweeps: Positive = 1  # 1 is batch-wise; more approach an assignment of the whole dataset
    within_class: bool = True  # of a class-conditional network: noise then tells nothing of class
    components: Positive | None = None  # cost in so many principal components; null: all pixels
    keep: Positive | None = None  # paired noise in so many components, fresh noise in the others
    refresh: Share = 0.0  # share of the noise's variance that is drawn anew
    scale: PositiveFloat = 1.0


class Nearest(Block):
    """Each image chooses from some noises (improved immiscible diffusion)."""

    method: Literal["knn-l2", "knn-dot"]
    candidates: Annotated[int, Field(ge=2, le=65_536)] = 8
    center: bool = True  # choose by the rows without their mean; false is the paper's
    components: Positive | None = None
    keep: Positive | None = None
    refresh: Share = 0.0
    scale: PositiveFloat = 1.0


class UniformCurriculum(Block):
    kind: Literal["uniform"] = "uniform"


class Clts(Block):
    """From uniform to a Gaussian over the time axis (Xu et al. 2024; a reconstruction)."""

    kind: Literal["clts"]
    mu: Finite = 0.3  # place on the time axis, 0 cleanest, 1 noisiest
    sigma: PositiveFloat = 0.3
    end_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0  # of the run: then it stays
    lambda_max: Share = 1.0


class StaticDensity(Block):
    """CLTS's end state from the first image on: its control."""

    kind: Literal["static"]
    mu: Finite = 0.3
    sigma: PositiveFloat = 0.3
    lambda_max: Share = 1.0


class EasyToHard(Block):
    """Noisiest states first, then the union with ever cleaner ones (Kim et al. 2025)."""

    kind: Literal["easy-to-hard"]
    clusters: Positive | None = None
    end_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0


class EdmLognormal(Block):
    """ln sigma normal, as in EDM (sigma_data = 0.5)."""

    kind: Literal["edm-lognormal"]
    mean: Finite = -1.2
    std: PositiveFloat = 1.2


class LogitNormal(Block):
    """Esser et al. 2024; their objective is this density with training.weighting: flow."""

    kind: Literal["logit-normal"]
    mean: Finite = 0.0
    std: PositiveFloat = 1.0


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
    shares: list[PositiveFloat] = []  # of each interval, cleanest first; []: equal
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
    gamma: NonNegativeFloat = 1.0


class UncertaintyWeighting(Block):
    """EDM2's learned weighting: every noise level contributes alike (Karras et al. 2024)."""

    kind: Literal["uncertainty"]


Length = Annotated[float, Field(gt=0, lt=0.28)]  # sigma_rel: of the run, 1/sqrt(12) for all of it


class Training(Block):
    images: Positive = 200_000  # in all, over all experts of the recipe
    batch: Positive = 64
    learning_rate: PositiveFloat = 2e-3
    warmup: NonNegative = 5_000  # images, per expert at most a tenth of its budget
    decay: Literal["constant", "linear", "cosine", "inverse-sqrt", "mdlrc", "momentum-decay"] = (
        "cosine"
    )
    floor: Share = 0.05  # learning rate at the end of `linear` and `cosine`, as a factor
    reference_images: Positive | None = None  # of `inverse-sqrt`: where the decay begins
    betas: Annotated[list[Share], Field(min_length=2, max_length=2)] = [0.9, 0.99]
    weight_decay: NonNegativeFloat = 0.0
    ema_halflife: NonNegative = 10_000  # images of an expert; 0 keeps the last weights
    power_ema: list[Length] = []  # averages kept beside it, for merge.method: post-hoc
    budget: Literal["uniform", "curriculum", "by-difficulty"] = "uniform"  # split over experts
    start: Literal["random", "shared-seed"] = "random"
    parent: str | None = None  # start from the network that this recipe ends with
    train: Literal["all", "decoders"] = "all"  # of a multi-decoder network with a parent
    milestones: list[Positive] = []  # images in all; the end always is one
    weighting: Annotated[
        PlainWeighting | MinSnrWeighting | P2Weighting | UncertaintyWeighting,
        Field(discriminator="kind"),
    ] = PlainWeighting()
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False  # torch.compile: other roundings, so part of the result's identity
    experts_per_job: Positive = 1  # small experts trained by one process, one after the other
    threads: Positive = 1  # CPU threads of a job: fixed, so that results do not depend on the host


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
    weights: list[Finite] | dict[str, list[Finite]] | None = None
    images: Positive = 2_048  # of the selection set that the search evaluates on
    confirm: NonNegative = 0  # samples whose FID chooses among the best candidates; 0: the loss
    bounds: Annotated[list[Finite], Field(min_length=2, max_length=2)] = [0.0, 1.5]
    search: Literal["quadratic", "grid", "random"] = "quadratic"
    levels: Positive = 5  # values of each weight that `grid` tries
    evaluations: Positive = 20  # of `random`


class TiesMerge(Block):
    """One network: the parent plus the trimmed, sign-elected mean difference (Yadav et al.)."""

    method: Literal["ties"]
    density: Annotated[float, Field(gt=0, le=1)] = 0.2
    scale: PositiveFloat = 1.0


class SnapshotMerge(Block):
    """One network: a weighted sum of one run's snapshots, searched (LCSC)."""

    method: Literal["snapshots"]
    images: Positive = 2_048


class PostHocMerge(Block):
    """The power-function average of another length than those kept, from their snapshots (EDM2)."""

    method: Literal["post-hoc"]
    length: Length


Merge = Route | AverageMerge | TaskVectorMerge | TiesMerge | SnapshotMerge | PostHocMerge


class Recipe(Block):
    seeds: list[NonNegative] = []  # a run for each, as NAME-seed0 ...; []: one with `seed`
    seed: NonNegative | None = None
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

    seed: NonNegative = 0
    data: Data = Data()
    latent: Annotated[Latent, Field(discriminator="encoder")] = Pixels()
    features: Annotated[Classifier | TorchModule | Inception, Field(discriminator="extractor")] = (
        Classifier()
    )
    evaluate: Evaluate = Evaluate()
    recipes: dict[str, Recipe]


NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")
TAGS = ("kind", "method", "extractor", "encoder")  # the key that chooses a block's form
SECTIONS = ("seed", "data", "latent", "features", "evaluate", "defaults", "recipes")


# --- reading


def load(path: Path) -> Params:
    """Read, resolve and check a params.yaml. UserError listing all that is wrong with it."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        raw = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise UserError(f"{path}: not found; run in the project's folder, or pass --params") from e
    except (YAMLError, UnicodeDecodeError) as e:
        where = " ".join(str(e).split())
        raise UserError(f"{path}: not valid YAML: {where}") from e
    missing = [key for key in SECTIONS if isinstance(raw, dict) and key not in raw]
    if missing:  # DVC tracks them by name, so an empty one must stand there
        example = "seed: 0" if missing[0] == "seed" else f"{missing[0]}: {{}}"
        raise UserError(f"{path}: {', '.join(missing)} missing; `{example}` is enough")
    return resolve(raw, str(path))


def resolve(raw: Any, source: str = "params.yaml") -> Params:
    """Params from a parsed YAML document. UserError listing all that is wrong with it."""
    if not isinstance(raw, dict):
        raise UserError(f"{source}: expected keys such as `data` and `recipes`, found none")
    problems: list[str] = []
    shared = dict(raw)
    defaults = shared.pop("defaults", None) or {}
    recipes = shared.pop("recipes", None)
    if not isinstance(recipes, dict) or not recipes:
        problems.append("recipes: at least one recipe is needed, as `recipes: {ddpm: {}}`")
        recipes = {}

    top = _validate(Params, {**shared, "recipes": {}}, (), problems, known_extra=("defaults",))
    before = len(problems)
    _validate(Recipe, defaults, ("defaults",), problems)
    defaults_bad = len(problems) > before
    resolved: dict[str, Recipe] = {}
    for name, own in recipes.items():
        path = ("recipes", name)
        if not isinstance(name, str) or not NAME.fullmatch(name):
            problems.append(
                f"recipes.{name}: a recipe's name is lower-case letters, digits, - and _, "
                "beginning with a letter, at most 40 long"
            )
            continue
        own = {} if own is None else own
        if not isinstance(own, dict):
            problems.append(f"recipes.{name}: expected blocks such as `schedule`, found {own!r}")
            continue
        if defaults_bad:  # the recipe is checked alone, so that each mistake is told once
            alone: list[str] = []
            _validate(Recipe, own, path, alone)
            problems.extend(p for p in alone if "missing" not in p)
            continue
        recipe = _validate(Recipe, merge(defaults, own), path, problems)
        if recipe is not None:
            found = list(_contradictions(recipe))
            problems.extend(f"{'.'.join(path)}.{key}: {text}" for key, text in found)
            resolved[name] = recipe
    for name in resolved:
        problems.extend(
            f"recipes.{name}.{key}: {text}" for key, text in _strange_parent(name, resolved)
        )
    if top is not None and not problems:
        problems.extend(_without_holdout(top, resolved))
        problems.extend(_without_pixels(top, resolved))
    compared: list[str] = []
    if top is not None and top.evaluate.consistency is not None and len(resolved) == len(recipes):
        compared = _compared(top.evaluate.consistency.recipes, resolved, problems)
    if problems:
        raise _refusal(source, problems)
    assert top is not None
    evaluate = top.evaluate
    if evaluate.consistency is not None:
        block = evaluate.consistency.model_copy(update={"recipes": compared})
        evaluate = evaluate.model_copy(update={"consistency": block})
    return top.model_copy(update={"recipes": _by_seed(resolved), "evaluate": evaluate})


def _runs(name: str, recipe: Recipe) -> list[str]:
    return [f"{name}-seed{seed}" for seed in recipe.seeds] or [name]


def _compared(names: list[str], recipes: dict[str, Recipe], problems: list[str]) -> list[str]:
    """The runs that `evaluate.consistency.recipes` stands for, each once."""
    path = "evaluate.consistency.recipes"
    runs = {name: _runs(name, recipe) for name, recipe in recipes.items()}
    known = {**{run: [run] for own in runs.values() for run in own}, **runs}
    before = len(problems)
    for i, name in enumerate(names):
        if name not in known:
            problems.append(f"{path}.{i}: {name!r} is no recipe; {_nearest(name, list(known))}")
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
        yield "training.parent", f"{parent!r} is no recipe; {_nearest(parent, list(recipes))}"
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


def check_against(params: Params, rows: int, resolution: int, classes: int) -> None:
    """Refuse what is impossible with a dataset of `rows` square images. UserError lists it all."""
    problems = []
    if params.data.holdout >= rows:
        problems.append(f"data.holdout: {params.data.holdout} of {rows} images leave none to train")
    rows -= params.data.holdout
    downsample = getattr(params.latent, "downsample", 1)
    if resolution % downsample:
        problems.append(
            f"latent.downsample: {resolution} pixels are not a multiple of {downsample}; "
            "set data.resolution"
        )
    pixels, resolution = resolution, max(resolution // downsample, 1)
    what = "pixels" if downsample == 1 else f"of the {pixels} pixels' latents"
    for name, recipe in params.recipes.items():
        path = f"recipes.{name}"
        if recipe.training.batch > rows:
            problems.append(
                f"{path}.training.batch: {recipe.training.batch} is larger than the dataset "
                f"({rows} images)"
            )
        factor = 2 ** (len(recipe.network.multipliers) - 1)
        if resolution % factor:
            problems.append(
                f"{path}.network.multipliers: {len(recipe.network.multipliers)} levels halve the "
                f"image {len(recipe.network.multipliers) - 1} times, but {resolution} {what} are "
                f"not a multiple of {factor}"
            )
        sizes = [resolution // 2**i for i in range(len(recipe.network.multipliers))]
        for size in recipe.network.attention:
            if size not in sizes:
                problems.append(
                    f"{path}.network.attention: no level has resolution {size}; there are {sizes}"
                )
        if recipe.network.class_conditional and not classes:
            problems.append(
                f"{path}.network.class_conditional: the dataset has no labels; set it to false"
            )
    compared = params.evaluate.consistency
    if compared is not None and compared.samples > rows:
        problems.append(
            f"evaluate.consistency.samples: {compared.samples} noisy images need as many real "
            f"ones, there are {rows}; lower it"
        )
    if params.evaluate.samples > rows and not params.evaluate.allow_few:
        problems.append(
            f"evaluate.samples: {params.evaluate.samples} samples against {rows} real images: "
            "scores at different numbers cannot be compared; lower it, or set allow_few: true"
        )
    if problems:
        raise _refusal("params.yaml", problems)


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
    experts: int | None = 1
    if isinstance(partition, PerStatePartition):
        experts = states
        if states is None:
            yield "partition.kind", "per-state needs a number of states, not `continuous`"
        elif getattr(schedule, "zero_terminal", False):
            experts = states - 1  # nothing is learnt at a state without signal
    elif isinstance(partition, BoundsPartition):
        experts = len(partition.log_snr) + 1
    elif not isinstance(partition, SinglePartition):
        experts = partition.intervals
        if states is not None and experts > states:
            yield "partition.intervals", f"more intervals ({experts}) than states ({states})"
    if getattr(partition, "method", "") == "two-anchor" and partition.intervals != 3:
        yield "partition.method", "two-anchor gives three intervals; use matrix for others"
    yield from _strange_networks(recipe, experts)
    yield from _strange_merge(recipe, experts)
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
    highest = getattr(recipe.sampling, "s_max", None)
    if highest is not None and recipe.sampling.s_min >= highest:
        yield "sampling.s_min", f"must be below s_max ({highest})"


def _strange_networks(recipe: Recipe, experts: int | None) -> typing.Iterator[tuple[str, str]]:
    joint = isinstance(recipe.network, MultiDecoder)
    widths = recipe.partition_channels
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
        if getattr(recipe.merge, "confirm", 0) and recipe.merge.weights is not None:
            yield "merge.confirm", "belongs to a search: leave merge.weights out, or this"


def _descending(values: list[float]) -> bool:
    return all(a > b for a, b in itertools.pairwise(values))


# --- turning pydantic's errors into one line each


def _validate(
    model: type[Block],
    raw: Any,
    path: tuple[str, ...],
    problems: list[str],
    known_extra: tuple[str, ...] = (),
) -> Any:
    try:
        return model.model_validate(_with_forms(model, raw))
    except ValidationError as e:
        for error in e.errors(include_url=False):
            problems.append(_line(model, raw, path, error, known_extra))
        return None


def _with_forms(block: type[Block], raw: Any) -> Any:
    """`raw` with the default form written where a block leaves its own out."""
    if not isinstance(raw, dict):
        return raw
    filled = dict(raw)
    for key, field in block.model_fields.items():
        value, forms = raw.get(key), _forms(field.annotation)
        if not isinstance(value, dict) or not forms:
            continue
        if len(forms) > 1 and not any(tag in value for tag in TAGS):
            for form in forms:
                for tag in TAGS:
                    default = form.model_fields.get(tag)
                    if default is not None and isinstance(default.default, str):
                        value = {tag: default.default, **value}
        form = _block_below(block, key, value)
        filled[key] = value if form is None else _with_forms(form, value)
    return filled


def _line(
    model: type[Block], raw: Any, path: tuple[str, ...], error: Any, known_extra: tuple[str, ...]
) -> str:
    """One error as `path: what is wrong; the way out`."""
    location: list[str] = []
    here, block = raw, model
    steps = list(error["loc"])
    for i, step in enumerate(steps):
        last = i == len(steps) - 1
        if isinstance(here, dict) and step not in here and not last:
            continue  # pydantic names the chosen form of a union: not a key
        if isinstance(step, str) and step not in _fields(block) and not isinstance(here, dict):
            continue  # the same for a union of plain types
        location.append(str(step))
        if not last or error["type"] != "missing":
            if isinstance(here, dict):
                here = here.get(step)
                block = _block_below(block, step, here)
            elif isinstance(here, list) and isinstance(step, int):
                here = here[step] if step < len(here) else None
    where = ".".join([*path, *location])
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        parent = model
        here = raw
        for step in location[:-1]:
            here = here.get(step) if isinstance(here, dict) else None
            parent = _block_below(parent, step, here)
        names = [*_fields(parent), *(known_extra if parent is model else ())]
        return f"{where}: no such key; {_nearest(location[-1], names)}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = str(context["discriminator"]).strip("'")
        options = _tags(error, model, location, raw)
        given = context.get("tag")
        if given is None:
            return f"{where}.{tag}: missing; {_nearest('', options)}"
        return f"{where}.{tag}: {given!r} is none of them; {_nearest(given, options)}"
    if kind == "literal_error":
        options = [o.strip("'\" ") for o in re.split(r", | or ", context["expected"])]
        return f"{where}: {here!r} is none of them; {_nearest(str(here), options)}"
    text = error["msg"][0].lower() + error["msg"][1:]
    return f"{where}: {text}, found {here!r}" if kind != "missing" else f"{where}: missing"


def _fields(block: Any) -> list[str]:
    return list(block.model_fields) if isinstance(block, type) else []


def _block_below(block: Any, key: Any, value: Any) -> Any:
    """The block class that describes `value`, found under `key` of `block`; None if none does."""
    if not isinstance(block, type) or key not in block.model_fields:
        return None
    forms = _forms(block.model_fields[key].annotation)
    if len(forms) > 1 and isinstance(value, dict):
        for form in forms:
            for tag in TAGS:
                field = form.model_fields.get(tag)
                if field is not None and value.get(tag, field.default) in typing.get_args(
                    field.annotation
                ):
                    return form
        return None
    return forms[0] if forms else None


def _forms(annotation: Any) -> list[type[Block]]:
    if isinstance(annotation, type) and issubclass(annotation, Block):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [f for a in typing.get_args(annotation) for f in _forms(a)]
    if typing.get_origin(annotation) is Annotated:
        return _forms(typing.get_args(annotation)[0])
    return []


def _tags(error: Any, model: type[Block], location: list[str], raw: Any) -> list[str]:
    expected = error.get("ctx", {}).get("expected_tags")
    if expected:
        return [t.strip("' ") for t in str(expected).split(",")]
    forms = _forms(model.model_fields[location[-1]].annotation) if location else []
    return [
        option
        for form in forms
        for tag in TAGS
        if tag in form.model_fields
        for option in typing.get_args(form.model_fields[tag].annotation)
    ]


def _nearest(given: str, names: list[str]) -> str:
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    options = ", ".join(names)
    return f"did you mean `{close[0]}`? (one of: {options})" if close else f"one of: {options}"


def _refusal(source: str, problems: list[str]) -> UserError:
    unique = list(dict.fromkeys(problems))
    if len(unique) == 1:
        return UserError(f"{source}: {unique[0]}")
    return UserError(f"{source}: {len(unique)} mistakes:\n" + "\n".join(f"  {p}" for p in unique))
