"""Noise levels: which there are, how they are cut into intervals, and which is drawn when."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from pipeline.block import (
    Batch,
    Block,
    Form,
    Images,
    Interval,
    LogSnr,
    LogSnrs,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Share,
    Sigma,
    Spread,
    States,
    Width,
    Widths,
    named,
)

Shift = LogSnr | Literal["unit-range"]


class LinearSchedule(Form):
    """DDPM's betas, re-spaced to any number of states (Ho et al. 2020)."""

    made_by: ClassVar[str] = "pipeline.levels.schedule:linear"
    kind: Literal["linear"]
    states: States = 1000
    """Number of states; `continuous`: all log-SNRs between the ends."""
    shift: Shift = 0.0
    """Added to every log-SNR; scaling the images by s is a shift of 2 ln s (Chen 2023).
    `unit-range`, for pixels only: 2 ln of the dataset's standard deviation in [-1, 1].

    Networks here see images of unit variance, so that log-SNRs mean what they say. Papers that
    train on pixels add their noise to images in [-1, 1], whose standard deviation is about 0.5: the
    same betas then leave 1.39 less in log-SNR. `unit-range` makes `linear` and `cosine` those of
    the papers (the presets `cifar10` and `celeba64` use it); `edm` has it in `sigma_data`.
    Published latents are scaled to about unit variance by their makers.
    """
    zero_terminal: bool = False
    """The last state has no signal, and the data's mean for its network (Lin et al. 2024)."""


class CosineSchedule(Form):
    """The cosine schedule of Nichol & Dhariwal 2021."""

    made_by: ClassVar[str] = "pipeline.levels.schedule:cosine"
    kind: Literal["cosine"]
    states: States = 1000
    shift: Shift = 0.0
    zero_terminal: bool = False


class LogSnrSchedule(Form):
    """Uniform in log-SNR."""

    made_by: ClassVar[str] = "pipeline.levels.schedule:uniform"
    kind: Literal["log-snr"]
    states: States | Literal["continuous"] = 16
    log_snr_max: LogSnr = 9.0
    """The clean end."""
    log_snr_min: LogSnr = -9.0
    """The noisy end."""
    shift: Shift = 0.0
    zero_terminal: bool = False


class EdmSchedule(Form):
    """sigma^(1/rho) uniform (Karras et al. 2022)."""

    made_by: ClassVar[str] = "pipeline.levels.schedule:edm"
    kind: Literal["edm"]
    states: States | Literal["continuous"] = "continuous"
    sigma_min: Sigma = 0.002
    """The clean end, as in the paper."""
    sigma_max: Sigma = 80.0
    """The noisy end, as in the paper."""
    sigma_data: Sigma = 0.5
    """Standard deviation of the data in [-1, 1], as in the paper."""
    rho: Annotated[float, Field(ge=0.1, le=100, allow_inf_nan=False)] = 7.0
    """Spacing of the states, as in the paper."""
    shift: LogSnr = 0.0


class FlowSchedule(Form):
    """Uniform in the time t of a flow, (1 - t) z + t eps, up to t = 0.999 (Lipman et al. 2023, Liu
    et al. 2023).

    With `curriculum: {kind: uniform}` its times are drawn uniformly, with `logit-normal` as Esser
    et al. 2024 do; what it learns to predict is `prediction`.
    """

    made_by: ClassVar[str] = "pipeline.levels.flow:flow"
    kind: Literal["flow"]
    states: States | Literal["continuous"] = "continuous"
    shift: PositiveFloat = 1.0
    """Time t becomes s t / (1 + (s - 1) t) (Esser et al. 2024): more noise for s > 1, as larger
    images need. In log-SNR it adds -2 ln s."""

    @property
    def added(self) -> float:
        """To every log-SNR."""
        return -2 * math.log(self.shift)


class LogisticSchedule(Form):
    """Truncated logistic density in log-SNR: a widened cosine with pinned ends."""

    made_by: ClassVar[str] = "pipeline.levels.schedule:logistic"
    kind: Literal["logistic"]
    states: States = 16
    mean: LogSnr = 0.0
    """Mean of the density."""
    scale: Spread = 2.0
    """Scale of the density."""
    log_snr_max: LogSnr = 9.0
    log_snr_min: LogSnr = -9.0
    shift: Shift = 0.0
    zero_terminal: bool = False


class ExplicitSchedule(Form):
    """The states one by one."""

    made_by: ClassVar[str] = "pipeline.levels.schedule:explicit"
    kind: Literal["explicit"]
    log_snr: LogSnrs
    """The states, descending."""
    shift: Shift = 0.0
    zero_terminal: bool = False


class FittedSchedule(Form):
    """Fitted to the data: density (-d mmse / d log-SNR)^power between the ends; ours, for the
    T-space paper's "careful selection"."""

    made_by: ClassVar[str] = "pipeline.levels.schedule:fitted"
    kind: Literal["fitted"]
    states: States = 16
    power: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 0.5
    """Power of the density; 0 is uniform in log-SNR."""
    source: Literal["spectrum", "pilot"] = "spectrum"
    """Whose error (mmse): `spectrum`, that of a Gaussian with the data's covariance; `pilot`, that
    of a short run of the recipe's network."""
    pilot_images: Images = 20_000
    """Training budget of that run."""
    log_snr_max: LogSnr = 9.0
    log_snr_min: LogSnr = -9.0
    shift: LogSnr = 0.0
    zero_terminal: bool = False


class ElboSchedule(Form):
    """The states with the least evidence bound (Watson et al. 2021). A diagnostic: it samples worse
    than any other."""

    made_by: ClassVar[str] = "pipeline.levels.schedule:elbo"
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
    | FlowSchedule
    | LogisticSchedule
    | ExplicitSchedule
    | FittedSchedule
    | ElboSchedule
)
FROM_DATA = (FittedSchedule, ElboSchedule)  # their states follow from what is measured on the data


class SinglePartition(Block):
    """One network for all states."""

    kind: Literal["single"] = "single"


class Cut(Block):
    """The time axis cut into intervals: an expert each, or a decoder of a multi-decoder network."""

    channels: Widths = []
    """Base width of each expert, cleanest first; []: `network.channels`."""


class PerStatePartition(Cut):
    """One expert per state, without time input (Gupta et al. 2025)."""

    kind: Literal["per-state"]


class UniformPartition(Cut):
    """Intervals with equally many states (to one)."""

    kind: Literal["uniform"]
    intervals: Interval
    """Number of intervals."""


class BoundsPartition(Cut):
    """An interval between each two given log-SNRs."""

    kind: Literal["bounds"]
    log_snr: LogSnrs
    """The bounds, descending, the ends left out."""


class SnrPartition(Cut):
    """Least distance of the states to the middle of their interval, in log-SNR (Go et al.
    2023)."""

    kind: Literal["snr"]
    intervals: Interval = 3


class EqualMassPartition(Cut):
    """Equal shares of the images that the curriculum draws, over the whole run (as DiffusionBlocks
    cuts the density of EDM, Shing et al. 2025)."""

    kind: Literal["equal-mass"]
    intervals: Interval = 3


class OptimalDenoiserPartition(Cut):
    """Where the dataset's own optimal denoiser changes (Zhang et al. 2024, algorithm 1)."""

    kind: Literal["optimal-denoiser"]
    intervals: Interval = 3
    method: Literal["two-anchor", "matrix"] = "two-anchor"
    """`two-anchor`, the paper's, gives three intervals; `matrix` any number, from the similarities
    of all nodes."""
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Similarity that an interval keeps. The paper's value is not known."""
    eta: PositiveFloat = 2 / 256
    """Difference that counts as none (2/256). The paper's value is not known."""
    draws: Positive = 5_000
    """Pairs of image and noise."""
    nodes: Annotated[int, Field(ge=2, le=200)] = 40
    """Noise levels that are compared (by `optimal-denoiser`: with `method: matrix`)."""
    rows: Images = 50_000
    """Rows of the dataset, a fair sample."""


class LearntPartition(Cut):
    """From a short run of the recipe's network: alike gradients (`gradient`, Go et al. 2023), or
    equal parts of its loss (`loss`)."""

    kind: Literal["gradient", "loss"]
    intervals: Interval = 3
    pilot_images: Images = 20_000
    """Training budget of that run."""
    nodes: Annotated[int, Field(ge=2, le=200)] = 40


class Router(Block):
    """The classifier of noisy images into clusters, by whose answers their experts are mixed."""

    channels: Width = 16
    """Base width."""
    images: Images = 20_000
    """Training budget, beside that of the experts."""
    batch: Batch = 64
    """Total batch."""
    learning_rate: PositiveFloat = 2e-3
    """The highest, after a tenth of the run, from where it falls to 0."""


class DataPartition(Block):
    """The data, not the time axis, cut: an expert for each cluster of the rows (k-means), mixed by
    a router (decentralized diffusion, McAllister et al. 2025).

    Clusters share `training.images` by their sizes, so that each expert makes as many passes over
    its own rows. `sampling.top` says how many experts answer for a sample at each step.
    """

    kind: Literal["data"]
    clusters: Annotated[int, Field(ge=2, le=1000)]
    """Number of clusters."""
    intervals: Interval = 1
    """Experts of each cluster, for equal parts of the time axis as `uniform` cuts it."""
    rows: Images = 20_000
    """Rows that the clusters' centres are fitted to, a fair sample."""
    router: Router = Router()
    """What tells how probable each cluster is for a noisy image."""


Partition = (
    SinglePartition
    | PerStatePartition
    | UniformPartition
    | BoundsPartition
    | SnrPartition
    | EqualMassPartition
    | OptimalDenoiserPartition
    | LearntPartition
    | DataPartition
)


class UniformCurriculum(Form):
    """Every state alike."""

    made_by: ClassVar[str] = "pipeline.levels.curriculum:uniform"
    kind: Literal["uniform"] = "uniform"


class Clts(Form):
    """From uniform to a Gaussian over the time axis (Xu et al. 2024; a reconstruction)."""

    made_by: ClassVar[str] = "pipeline.levels.curriculum:clts"
    kind: Literal["clts"]
    mu: LogSnr = 0.3
    """Mean of the Gaussian on the time axis, from 0, cleanest, to 1. The paper gives this alone."""
    sigma: Spread = 0.3
    """Standard deviation of the Gaussian on the time axis."""
    end_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Part of the run after which it stays as it is."""
    lambda_max: Share = 1.0
    """Largest share of the Gaussian."""


class StaticDensity(Form):
    """The Gaussian of `clts` from the first image on: its control."""

    made_by: ClassVar[str] = "pipeline.levels.curriculum:static"
    kind: Literal["static"]
    mu: LogSnr = 0.3
    sigma: Spread = 0.3
    lambda_max: Share = 1.0


class EasyToHard(Form):
    """The noisiest states first, then ever cleaner ones as well (Kim et al. 2025; a
    reconstruction)."""

    made_by: ClassVar[str] = "pipeline.levels.curriculum:easy_to_hard"
    kind: Literal["easy-to-hard"]
    clusters: States | None = None
    """Steps in which states are added; null: 20, or one per state if there are fewer."""
    end_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0


class EdmLognormal(Form):
    """ln sigma normal (Karras et al. 2022)."""

    made_by: ClassVar[str] = "pipeline.levels.curriculum:edm_lognormal"
    kind: Literal["edm-lognormal"]
    mean: LogSnr = -1.2
    """Mean of ln sigma, in EDM's units (`sigma_data` 0.5)."""
    std: Spread = 1.2
    """Standard deviation of ln sigma."""


class LogitNormal(Form):
    """The density of Esser et al. 2024; their objective, that of a rectified flow, is this with
    `prediction: flow`, or with `training.weighting: {kind: flow}`."""

    made_by: ClassVar[str] = "pipeline.levels.curriculum:logit_normal"
    kind: Literal["logit-normal"]
    mean: LogSnr = 0.0
    """Mean of logit t."""
    std: Spread = 1.0
    """Standard deviation of logit t."""


class Speed(Form):
    """k times as often below tau, in antithetic pairs, with change-aware weights (SpeeD, Wang et
    al. 2025, by its code)."""

    made_by: ClassVar[str] = "pipeline.levels.curriculum:speed"
    kind: Literal["speed"]
    k: PositiveFloat = 5.0
    """How many times as often."""
    tau: Share = 0.7
    """Place on the time axis, from 0, cleanest, to 1."""
    lam: Share | None = 0.6
    """Weights below tau, from 1 - lam where the noise's variance changes least from state to state
    to lam where it changes most; beyond tau 1, as in its code. null: none."""
    mirror: Annotated[float, Field(gt=0, le=1)] | None = None
    """Place that pairs are mirrored at; null: as in its code."""


class IntervalDensity(Form):
    """Equally much for every interval of a partition (Zhang et al. 2024)."""

    made_by: ClassVar[str] = "pipeline.levels.curriculum:per_interval"
    kind: Literal["per-interval"]
    partition: (
        Annotated[
            UniformPartition | BoundsPartition | SnrPartition | OptimalDenoiserPartition,
            Field(discriminator="kind"),
        ]
        | None
    ) = None
    """A partition of its own, with the keys of [partition](#partition); null: the recipe's."""
    shares: Annotated[list[PositiveFloat], Field(max_length=1000)] = []
    """Share of each interval, cleanest first; []: equal."""
    correct: bool = False
    """Importance weights that keep the objective of the uniform density."""


class Adaptive(Form):
    """Where training steps lower the loss most, by a policy that is learnt along: a Beta
    distribution for each image (Kim et al. 2025; a reconstruction).

    Every few steps it measures how much a step lowered the variational bound's terms at some noise
    levels, and learns from that by REINFORCE (`pipeline/training/adaptive.py` says what of it is
    the paper's). The loss is not corrected for the density, as in the paper: the weights 1/density
    of a Beta distribution have no finite variance once a or b is 2.
    """

    made_by: ClassVar[str] = "pipeline.levels.curriculum:adaptive"
    learnt_by: ClassVar[str] = "pipeline.training.adaptive:Adaptive"
    kind: Literal["adaptive"]
    every: Images = 2_560
    """Images from one step that it learns from to the next; 40 steps, as in the paper, of 64."""
    selected: Annotated[int, Field(ge=1, le=100)] = 3
    """Noise levels whose losses are its reward."""
    nodes: Annotated[int, Field(ge=2, le=1000)] = 64
    """Noise levels that the selected ones are chosen from, at most all states; 1000 in the
    paper."""
    entropy: NonNegativeFloat = 0.01
    """Weight of the distribution's entropy beside the reward."""
    policy_rate: PositiveFloat = 0.01
    """Learning rate of the policy."""

    @property
    def learner(self) -> Callable[..., Any]:
        return named(self.learnt_by)

    @property
    def makers(self) -> tuple[str, ...]:
        return (*super().makers, self.learnt_by)


Curriculum = (
    UniformCurriculum
    | Clts
    | StaticDensity
    | EasyToHard
    | EdmLognormal
    | LogitNormal
    | Speed
    | IntervalDensity
    | Adaptive
)


def state_count(schedule: Schedule) -> int | None:
    """Number of states, None for a continuous schedule."""
    if isinstance(schedule, ExplicitSchedule):
        return len(schedule.log_snr)
    return None if schedule.states == "continuous" else schedule.states
