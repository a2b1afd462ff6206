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
    """One network: the parent plus weighted differences of the experts from it."""

    method: Literal["task-vector"]
    # Of each expert, cleanest first, or such a list by the beginning of a layer's name ("" is all
    # others); null: searched.
    weights: (
        Annotated[list[Finite], Field(max_length=1000)]
        | Annotated[
            dict[str, Annotated[list[Finite], Field(max_length=1000)]], Field(max_length=1000)
        ]
        | None
    ) = None
    images: Images = 2_048  # of the selection set that the search evaluates on
    # Samples whose FID chooses among the best candidates; 0: the loss
    confirm: Annotated[int, Field(ge=0, le=10**6)] = 0
    bounds: Annotated[list[Finite], Field(min_length=2, max_length=2)] = [0.0, 1.5]
    search: Literal["quadratic", "grid", "random"] = "quadratic"
    levels: Annotated[int, Field(ge=2, le=1000)] = 5  # values of each weight that `grid` tries
    evaluations: Annotated[int, Field(gt=0, le=MOST_EVALUATIONS)] = 20  # of `random`


class TiesMerge(Form):
    """One network: the parent plus the trimmed, sign-elected mean difference (Yadav et al.)."""

    made_by: ClassVar[str] = "pipeline.merging.merge:ties"
    method: Literal["ties"]
    density: Annotated[float, Field(gt=0, le=1)] = 0.2
    scale: PositiveFloat = 1.0


class SnapshotMerge(Block):
    """One network: a weighted sum of one run's snapshots, searched (LCSC)."""

    method: Literal["snapshots"]
    images: Images = 2_048


class PostHocMerge(Block):
    """The power-function average of another length than those kept, from their snapshots (EDM2)."""

    method: Literal["post-hoc"]
    length: Length


Merge = Route | AverageMerge | TaskVectorMerge | TiesMerge | SnapshotMerge | PostHocMerge
