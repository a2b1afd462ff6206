from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

# Whatever costs time or memory has a bound well above anything that was ever of use: a slip of some
# zeros is told at once, not by a machine out of memory.
MOST_IMAGES = 10**12
MOST_RUNS = 1_000  # recipes, each seed counted


MOST_WIDTH = 8_192  # channels of a convolution: 2.4 GB of float32 weights
# exp(60) = 1e26: twice that in the exponent would leave float32's range, e^88, where weights
# multiply SNRs. The noise or the signal itself is lost in float32's rounding from 32 on.
MOST_LOG_SNR = 60.0


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


Text = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_plain)]


class Block(BaseModel):
    """One block of params.yaml: unknown keys and loose types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Length = Annotated[
    float, Field(ge=1e-3, lt=0.28)
]  # sigma_rel: of the run, 1/sqrt(12) for all of it


TAGS = ("kind", "method", "extractor", "encoder")  # the key that chooses a block's form
