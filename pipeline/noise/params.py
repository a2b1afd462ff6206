from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.block import Block, PositiveFloat, Share, Width


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


Pairing = Independent | Assignment | Nearest
