"""Samplers: how images are drawn from a trained model."""

from __future__ import annotations

from typing import ClassVar, Literal

from pipeline.block import Form, NonNegativeFloat, PositiveFloat, Share, States


class Walk(Form):
    """What all samplers have."""

    steps: States | None = None
    """Number of steps; null: every state. A continuous schedule needs a number."""
    guidance: NonNegativeFloat = 1.0
    """Classifier-free guidance (Ho & Salimans 2022); 1: none."""
    clip: bool = False
    """Bound each estimate of the image to what pixels can be, as the code of Ho et al. does; not
    for latents."""


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


class DpmppSampling(Walk):
    """DPM-Solver++(2M) (Lu et al. 2022)."""

    made_by: ClassVar[str] = "pipeline.sampling.samplers:dpmpp_2m"
    kind: Literal["dpmpp-2m"]


Sampling = DdimSampling | DdpmSampling | HeunSampling | DpmppSampling
