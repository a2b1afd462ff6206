"""What plans are made from: params.yaml, the prepared dataset and what was measured on it."""

from __future__ import annotations

from typing import Any

from pipeline import plan
from pipeline.errors import Damaged, UserError
from pipeline.params.feasibility import check_against
from pipeline.params.load import load
from pipeline.params.recipe import Params
from pipeline.store.identity import file_digest
from stages.source import edited, extractor_files, recipe_files, reference_file
from stages.workspace import Workspace


def facts_of(workspace: Workspace, analysed: bool = True) -> plan.DatasetFacts:
    """The prepared dataset, after checking that it is params.yaml's, which is possible with it.

    analysed: with what the stage `analyse` found, which the stages before it do without.
    """
    from pipeline.data.dataset import open_dataset

    if not workspace.dataset.exists():
        raise UserError(f"{workspace.dataset}: not made yet; {workspace.way_to_artefacts}")
    info = open_dataset(workspace.dataset).info
    if changed := edited(workspace, info):
        raise UserError(changed)
    return facts_from(workspace, info, analysed)


def facts_from(workspace: Workspace, info: Any, analysed: bool = True) -> plan.DatasetFacts:
    """The same from a dataset's info, which may lie elsewhere yet."""
    check_against(
        workspace.params, info.rows, info.resolution, info.channels, len(info.classes or ())
    )
    files = extractor_files(workspace)
    found = analysed_in(workspace) if analysed else {}
    held_out = workspace.params.data.holdout
    own, reference = recipe_files(workspace), reference_file(workspace)
    return plan.facts(info, held_out, found, files, own, reference)


def class_names(workspace: Workspace) -> tuple[str, ...]:
    """Names of the prepared dataset's classes, by label; empty without labels."""
    from pipeline.data.dataset import open_dataset

    return tuple(open_dataset(workspace.dataset).info.classes or ())


def analysed_in(workspace: Workspace) -> dict[str, Any]:
    """What the stage `analyse` found, by job name; empty before it ran."""
    if not (workspace.artefacts("analyses") / "manifest.json").exists():
        return {}
    return {
        name: read_intact(workspace, "analyses", name, "analysis.json", files)
        for name, files in found_entries(workspace, "analyses").items()
        if "analysis.json" in files
    }


def read_intact(
    workspace: Workspace, stage: str, name: str, file: str, files: dict[str, dict[str, Any]]
) -> Any:
    """A JSON file of a stage's output as its manifest has it: from there, or from the store."""
    entry = workspace.store.entry(name)
    path = workspace.artefacts(stage) / entry.digest / file
    known = files[file]["sha256"]
    if path.is_file() and file_digest(path) == known:
        return workspace.read_json(path)
    if entry.done and entry.files().get(file, {}).get("sha256") == known:
        return entry.load_json(file)
    raise Damaged(path, f"damaged or missing; delete {path.parent} and run `dvc repro`")


def found_entries(workspace: Workspace, stage: str) -> dict[str, dict[str, Any]]:
    """Files of a stage's output by entry, from its manifest and never by a glob."""
    return {item["name"]: item["files"] for item in workspace.manifest(stage)}


def part_of(job: plan.Job, file: str, found: dict[str, dict[str, Any]]) -> dict[str, str]:
    """A file of an entry, as a mixture names it."""
    if job.name not in found:
        raise UserError(
            f"{job.label}: not made yet, or params.yaml or the code changed; run `dvc repro`"
        )
    return {"entry": job.name, "file": file, "sha256": found[job.name][file]["sha256"]}


def fresh_params(workspace: Workspace) -> Params:
    """params.yaml as it is now: a plan is made again after the jobs, to see whether it holds."""
    return load(workspace.root / "params.yaml")
