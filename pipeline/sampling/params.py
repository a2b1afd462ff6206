"""Samplers: how images are drawn from a trained model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.block import (
    Block,
    Form,
    Images,
    LogSnr,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Share,
    States,
    Text,
    neutral,
)


class Guide(Block):
    """A worse model, whose answers guidance leads away from (autoguidance, Karras et al. 2024)."""

    recipe: Text | None = None
    """Its recipe; null: the recipe that it guides."""
    milestone: Images | None = None
    """Which of its milestones, in images; null: its end."""


class Walk(Form):
    """What all samplers have."""

    steps: States | None = None
    """Number of steps; null: every state. A continuous schedule needs a number."""
    guidance: NonNegativeFloat = 1.0
    """How far each estimate is led away from that without a class (classifier-free guidance, Ho &
    Salimans 2022), or from that of the `guide`; 1: not at all."""
    guidance_interval: Annotated[list[LogSnr], Field(min_length=2, max_length=2)] | None = neutral(
        None
    )
    """Log-SNRs [low, high] between which there is guidance (Kynkaanniemi et al. 2024); null:
    everywhere. Their sigma s is log-SNR -2 ln(s / 0.5)."""
    guide: Guide | None = neutral(None)
    """A worse model to lead away from; null: the same one without a class. The recipe's milestones
    up to one of its own that guides it are drawn without guidance."""
    top: Positive = neutral(1)
    """With `partition: {kind: data}`: how many experts answer for a sample at each step, the most
    probable ones, weighted by their probabilities. 1 costs least, but in much noise, where little
    tells clusters apart, most samples have the largest one's."""
    clip: bool = False
    """Bound each estimate of the image to what pixels can be, as the code of Ho et al. does; not
    for latents."""

    def asked(self, states: Sequence[float]) -> dict[float, int]:
        """How often a sample asks a network at each state; none is asked at one without signal."""
        return {state: 1 for state in states if state > -math.inf}


class DdimSampling(Walk):
    """DDIM (Song et al. 2021)."""

    made_by: ClassVar[str] = "pipeline.sampling.samplers:ddim"
    kind: Literal["ddim"] = "ddim"
    eta: Share = 0.0
    """Noise of each step over that of `ddpm`; 0 is deterministic, 1 is `ddpm`."""


class DdpmSampling(Walk):
    """Ancestral sampling (Ho et al. 2020)."""

    made_by: ClassVar[str] = "pipeline.sampling.samplers:ddpm"
    kind: Literal["ddpm"]
    variance: Literal["small", "large"] = "small"
    """Variance of each step: the posterior's (`small`) or the forward step's (`large`); fixedsmall
    and fixedlarge of Ho et al., who use the latter for CIFAR-10."""


class HeunSampling(Walk):
    """Heun's method (Karras et al. 2022, algorithm 2, which without churn is algorithm 1)."""

    made_by: ClassVar[str] = "pipeline.sampling.samplers:heun"
    kind: Literal["heun"]
    s_churn: NonNegativeFloat = 0.0
    """Noise that is added before each step, as in the paper; not for experts of one state."""
    s_min: NonNegativeFloat = 0.0
    """Noise is added from this sigma up, in EDM's units (`sigma_data` 0.5)."""
    s_max: PositiveFloat | None = None
    """Noise is added up to this sigma; null: no bound."""
    s_noise: PositiveFloat = 1.0
    """Factor on the noise that is added."""

    def asked(self, states: Sequence[float]) -> dict[float, int]:
        """Twice where a step ends, but for one from no signal, which is of first order."""
        first, *later = sorted(super().asked(states))
        return {first: 1} | dict.fromkeys(later, 2)


class DpmppSampling(Walk):
    """DPM-Solver++(2M) (Lu et al. 2022)."""

    made_by: ClassVar[str] = "pipeline.sampling.samplers:dpmpp_2m"
    kind: Literal["dpmpp-2m"]


class EulerSampling(Walk):
    """Euler's method in the time of a flow (Liu et al. 2023); `ddim` on the same states is it."""

    made_by: ClassVar[str] = "pipeline.sampling.flow:euler"
    kind: Literal["euler"]


class HeunFlowSampling(Walk):
    """Heun's method in the time of a flow; `heun` takes its steps in sigma/alpha."""

    made_by: ClassVar[str] = "pipeline.sampling.flow:heun_flow"
    kind: Literal["heun-flow"]

    def asked(self, states: Sequence[float]) -> dict[float, int]:
        """Twice where a step ends."""
        start = min(states)
        return {state: 2 - (state == start) for state in super().asked(states)}


Sampling = (
    DdimSampling | DdpmSampling | HeunSampling | DpmppSampling | EulerSampling | HeunFlowSampling
)
