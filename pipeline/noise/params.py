"""Which noise an image is trained with."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.block import Block, Form, PositiveFloat, Share, Width


class Independent(Block):
    """Noise of its own, as everywhere."""

    method: Literal["independent"] = "independent"
    scale: PositiveFloat = 1.0
    """Factor on the noise; below 1 it is the control for the short noise of `knn-l2`."""


class Assignment(Block):
    """Linear assignment of the noises of a pass over the dataset to its images (immiscible
    diffusion, Li et al. 2024)."""

    method: Literal["assignment"]
    block: Annotated[int, Field(gt=0, le=16_384)] = 256
    """Images that are solved together, exactly."""
    sweeps: Annotated[int, Field(gt=0, le=1000)] = 1
    """1 is batch-wise; more approach an assignment of the whole dataset."""
    within_class: bool = True
    """For a class-conditional network: noise is exchanged within classes only, and so tells nothing
    of the class; false is the code of Li et al."""
    components: Width | None = None
    """Cost in so many principal components; null: in all values."""
    keep: Width | None = None
    """Paired noise in so many components, fresh noise in the others; null: paired in all."""
    refresh: Share = 0.0
    """Share of the noise's variance that is drawn anew."""
    scale: PositiveFloat = 1.0


class Nearest(Block):
    """Of some noises, `knn-l2` takes the nearest (improved immiscible diffusion, Li et al. 2025,
    but for `center`), which is too short a noise; `knn-dot` takes the one of largest inner product,
    as long as any."""

    method: Literal["knn-l2", "knn-dot"]
    candidates: Annotated[int, Field(ge=2, le=65_536)] = 8
    """Noises that an image chooses from."""
    center: bool = True
    """Choose by what the rows differ in from the mean image (of their class, if the network is told
    it). A correction of ours: false is the paper's method.

    Training is on the rows as they are. Without centring, each row pulls its noise towards itself,
    and all together pull the noise's mean towards the mean image, where sampling does not start. An
    assignment needs none, as it only reorders the noises.
    """
    components: Width | None = None
    keep: Width | None = None
    refresh: Share = 0.0
    scale: PositiveFloat = 1.0


class Semidiscrete(Form):
    """Semidiscrete optimal transport (Mousavi-Hosseini et al. 2025): a noise takes the image of
    largest inner product plus a potential, which is learnt once and makes all images equally
    frequent. Every noise is used once, and so they stay N(0, 1) exactly; an image comes as often in
    a pass over the dataset as noises take it."""

    made_by: ClassVar[str] = "pipeline.noise.semidiscrete:pair"
    method: Literal["semidiscrete"]
    noises: Annotated[int, Field(gt=0, le=100_000)] = 16
    """Noises for each image that the potential is learnt from; the images' frequencies differ less
    with more.

    Time grows with them and with the square of the number of images (of a class). From some 10,000
    images on, set `components`, such as 64: noises are then compared in these alone.
    """
    within_class: bool = True
    components: Width | None = None
    scale: PositiveFloat = 1.0


Pairing = Independent | Assignment | Nearest | Semidiscrete
