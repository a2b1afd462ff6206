"""How the experts of a recipe become one model."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.block import Block, Finite, Form, Images, Length, PositiveFloat

MOST_EVALUATIONS = 10_000  # of a search


class Route(Block):
    """A mixture: every state goes to the expert that owns it."""

    method: Literal["route"] = "route"


class AverageMerge(Form):
    """One network: the mean of the experts' weights."""

    made_by: ClassVar[str] = "pipeline.merging.merge:average"
    method: Literal["average"]


class TaskVectorMerge(Block):
    """One network: the parent plus weighted differences of the experts from it (Ma et al. 2025)."""

    method: Literal["task-vector"]
    weights: (
        Annotated[list[Finite], Field(max_length=1000)]
        | Annotated[
            dict[str, Annotated[list[Finite], Field(max_length=1000)]], Field(max_length=1000)
        ]
        | None
    ) = None
    """Weight of each expert, cleanest first; or such lists by the beginning of a layer's name, as
    `{decoder: [1, 0], "": [0.5, 0.5]}`; null: searched."""
    images: Images = 2_048
    """Held-out images that the search evaluates on."""
    confirm: Annotated[int, Field(ge=0, le=10**6)] = 0
    """So many samples of each of the best candidates are drawn, and the lowest FID to the held-out
    images is taken; 0: the lowest held-out loss."""
    bounds: Annotated[list[Finite], Field(min_length=2, max_length=2)] = [0.0, 1.5]
    """Least and greatest value of each weight."""
    search: Literal["quadratic", "grid", "random"] = "quadratic"
    """`quadratic` takes the minimum of a fitted quadratic; `grid` and `random` the best of those
    tried."""
    levels: Annotated[int, Field(ge=2, le=1000)] = 5
    """Values of each weight that `grid` tries."""
    evaluations: Annotated[int, Field(gt=0, le=MOST_EVALUATIONS)] = 20
    """Weights that `random` tries."""


class TiesMerge(Form):
    """One network: the parent plus the trimmed, sign-elected mean difference (Yadav et al.
    2023)."""

    made_by: ClassVar[str] = "pipeline.merging.merge:ties"
    method: Literal["ties"]
    density: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the differences that is kept."""
    scale: PositiveFloat = 1.0
    """Factor on their mean."""


class SnapshotMerge(Block):
    """One network: a weighted sum of one run's milestones (LCSC, Liu et al. 2024)."""

    method: Literal["snapshots"]
    images: Images = 2_048


class PostHocMerge(Block):
    """One network: the power-function average of any length, from those that `training.power_ema`
    kept at the milestones so far (Karras et al. 2024); recipes that differ in `length` alone train
    once."""

    method: Literal["post-hoc"]
    length: Length
    """sigma_rel of the average: the standard deviation of its profile as a share of the run."""


Merge = Route | AverageMerge | TaskVectorMerge | TiesMerge | SnapshotMerge | PostHocMerge
