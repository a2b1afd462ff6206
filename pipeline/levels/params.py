from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.block import (
    Block,
    Images,
    Interval,
    LogSnr,
    LogSnrs,
    Positive,
    PositiveFloat,
    Share,
    Sigma,
    Spread,
    States,
    Widths,
)

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


def state_count(schedule: Schedule) -> int | None:
    """Number of states, None for a continuous schedule."""
    if isinstance(schedule, ExplicitSchedule):
        return len(schedule.log_snr)
    return None if schedule.states == "continuous" else schedule.states
