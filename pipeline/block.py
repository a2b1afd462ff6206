"""What the blocks of params.yaml and the specs of jobs are made of. Nothing here imports torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Self

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


# sigma_rel: of the run, 1/sqrt(12) for all of it
Length = Annotated[float, Field(ge=1e-3, lt=0.28)]

TAGS = ("kind", "method", "extractor", "encoder")  # the key that chooses a block's form


def named(place: str) -> Any:
    """What `module:name` names; the module is imported only now."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def neutral(default: Any) -> Any:
    """The default of a key that changes nothing as long as it has it.

    A spec leaves such a key out, so adding one changes no digest, and nothing is trained again.
    """
    return Field(default, exclude_if=lambda value: value == default)


class Block(BaseModel):
    """One block of params.yaml, or of a job's spec: unknown keys and loose types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    def arguments(self, *apart: str) -> dict[str, Any]:
        """Its values by key, but for the key that chooses its form, and those named."""
        keys = [key for key in type(self).model_fields if key not in (*TAGS, *apart)]
        return {key: getattr(self, key) for key in keys}

    def without(self, *keys: str) -> Self:
        """The same block with these keys at their defaults: what a job does not depend on."""
        fields = type(self).model_fields
        return self.model_copy(update={key: fields[key].default for key in keys if key in fields})


class Form(Block):
    """A form of a block that is made by a function of its own, in a module of any name.

    made_by: `module:function`. Only jobs that use the form depend on its code (`plan.job.code_of`),
    so adding one leaves the digests of all others as they are.
    """

    made_by: ClassVar[str]

    @property
    def maker(self) -> Callable[..., Any]:
        return named(self.made_by)

    @property
    def makers(self) -> tuple[str, ...]:
        """All functions that the form names: its own, and those of a form within it."""
        return (self.made_by,)
