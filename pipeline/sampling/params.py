from __future__ import annotations

from typing import ClassVar, Literal

from pipeline.block import Form, NonNegativeFloat, PositiveFloat, Share, States


class Walk(Form):
    """What all samplers have."""

    steps: States | None = None  # null: every state of the schedule
    guidance: NonNegativeFloat = 1.0  # 1: no classifier-free guidance
    clip: bool = False  # bound each estimate of the image to 0..255; pixels only


class DdimSampling(Walk):
    """Song et al. 2021."""

    made_by: ClassVar[str] = "pipeline.sampling.samplers:ddim"
    kind: Literal["ddim"] = "ddim"
    eta: Share = 0.0


class DdpmSampling(Walk):
    """Ho et al. 2020."""

    made_by: ClassVar[str] = "pipeline.sampling.samplers:ddpm"
    kind: Literal["ddpm"]
    variance: Literal["small", "large"] = "small"  # its code's fixedsmall and fixedlarge


class HeunSampling(Walk):
    """Karras et al. 2022: algorithm 2, which without churn is algorithm 1."""

    made_by: ClassVar[str] = "pipeline.sampling.samplers:heun"
    kind: Literal["heun"]
    s_churn: NonNegativeFloat = 0.0
    s_min: NonNegativeFloat = 0.0  # sigma in EDM's units (sigma_data = 0.5)
    s_max: PositiveFloat | None = None
    s_noise: PositiveFloat = 1.0


class DpmppSampling(Walk):
    """DPM-Solver++(2M), Lu et al. 2022."""

    made_by: ClassVar[str] = "pipeline.sampling.samplers:dpmpp_2m"
    kind: Literal["dpmpp-2m"]


Sampling = DdimSampling | DdpmSampling | HeunSampling | DpmppSampling
