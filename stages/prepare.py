"""The stage `prepare`: raw images to the one dataset."""

from __future__ import annotations

from pipeline import plan
from pipeline.params.feasibility import doubts
from stages.facts import facts_from
from stages.numbers import counted
from stages.source import raw_path
from stages.workspace import Workspace


def prepare(workspace: Workspace) -> None:
    """The raw images in their one normal form."""
    from pipeline.data.dataset import DatasetInfo
    from pipeline.data.dataset import prepare as prepare_dataset

    data = workspace.params.data
    settings = data.model_dump(exclude={"holdout"})
    settings["path"] = raw_path(workspace)
    facts: plan.DatasetFacts | None = None

    def accept(info: DatasetInfo) -> None:
        nonlocal facts
        facts = facts_from(workspace, info, analysed=False)
        plan.check(workspace.params, facts)

    info = prepare_dataset(workspace.dataset, accept=accept, **settings)
    # Labels need not start at 0: a class without images is only the room that its number takes.
    found = sum(count > 0 for count in info.class_counts or ())
    classes = counted(found, "class", "classes") if found else "no labels"
    print(
        f"prepare: {counted(info.rows, 'image')} of {info.resolution}x{info.resolution}, "
        f"{counted(info.channels, 'channel')}, {classes}, "
        f"{counted(info.duplicates, 'exact duplicate')}"
    )
    for doubt in doubts(workspace.params, facts.rows, facts.class_counts):
        print(f"WARNING: {doubt}")
