"""`tspace status`: which jobs are done, run, failed and wait.

It only reads: nothing is planned, copied or run, and it may be called while a run is on.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import plan
from pipeline.errors import UserError
from pipeline.store.entry import described
from pipeline.store.files import reached
from stages import evaluate, merge
from stages.facts import facts_of
from stages.numbers import counted, speed
from stages.workspace import Workspace

SHOWN_JOBS = 20  # running or failed jobs listed by `status`


# --- what the store says of one job


@dataclass(frozen=True)
class Found:
    """A job as the store has it now.

    status: `done`, `running`, `failed` (error tells why), `resumes` (a checkpoint is there) or
    `waiting`. images: in the checkpoint, or done so far while it runs.
    """

    status: str
    images: int = 0
    progress: dict[str, Any] | None = None
    host: str = ""
    error: str = ""
    log: str = ""


def look(workspace: Workspace, stage: str, name: str) -> Found:
    """What the store, or the stage's output as DVC has it, has of the entry `kind/digest`."""
    entry = workspace.store.entry(name)
    if entry.done or (workspace.artefacts(stage) / entry.digest / "DONE").exists():
        return Found("done")
    log = str(entry.log)
    if entry.leased():
        progress = entry.progress()
        unit = progress and progress["unit"] == "images"
        images = progress["done"] if unit else 0
        return Found("running", images, progress, host=described(entry.holder()), log=log)
    images = reached(entry.state, "checkpoint.pt")
    error = _read(entry.path / "error.txt")
    # Asked to stop by a cluster or by Ctrl-C, which is no failure.
    if error and not error.startswith("interrupted"):
        return Found("failed", images, error=error.splitlines()[0], log=log)
    return Found("resumes" if images else "waiting", images, log=log)


def done(workspace: Workspace, stage: str, name: str) -> bool:
    return look(workspace, stage, name).status == "done"


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except FileNotFoundError:
        return ""


@dataclass(frozen=True)
class Needed:
    """Jobs of one stage that the current params need; `later` says why they are not known yet."""

    stage: str
    jobs: list[tuple[str, str]]  # name and label
    later: str = ""


def needed_jobs(workspace: Workspace) -> list[Needed]:
    """Jobs of every fan-out stage, as far as they can be planned now."""
    params, facts = workspace.params, facts_of(workspace)
    codec = plan.encoder(params, facts)
    shards = [*([codec] if codec else []), *plan.latents(params, facts)]
    found = [_needed("latents", shards + plan.held_out(params, facts))]
    found.append(_needed("analyses", plan.analyses(params, facts)))
    found.append(_needed("features", [plan.features(params, facts)]))
    try:
        recipes = plan.experts(params, facts)
    except UserError as e:  # its states are fitted to something that is not measured yet
        return [*found, Needed("experts", [], str(e))]
    paired = [job for recipe in recipes.values() for job in recipe.pairings]
    if paired:
        found.append(_needed("pairings", paired))
    trained = [job for recipe in recipes.values() for job in recipe.trainings]
    merges = [job for recipe in recipes.values() for job in recipe.merged.values()]
    found.append(_needed("experts", [*trained, *merges]))
    if not all(merged(workspace, name, recipe) for name, recipe in recipes.items()):
        later = "planned once `merge` has run"
        return [*found, Needed("samples", [], later), Needed("scores", [], later)]
    scores = evaluate.score_jobs(workspace, params, facts, recipes)
    samples = {
        need: f"{name} at {images:,} images, samples"
        for (name, images), job in scores.items()
        for need in job.needs
        if need.startswith("samples/")
    }
    found.append(Needed("samples", list(samples.items())))
    apart = evaluate.error_jobs(workspace, params, facts, recipes)
    return [*found, _needed("scores", [*scores.values(), *apart.values()])]


def _needed(stage: str, jobs: Iterable[plan.Job]) -> Needed:
    return Needed(stage, list({job.name: job.label for job in jobs}.items()))


def merged(workspace: Workspace, name: str, recipe: plan.RecipePlan) -> bool:
    """Whether the recipe's mixtures are there and of the experts that it has now."""
    if not (workspace.artefacts("mixtures") / f"{name}.json").exists():
        return False
    there = {item["images"]: item["mixture"] for item in merge.milestones_of(workspace, name)}
    return there.keys() == set(recipe.milestones) and all(
        [weights.job.name for weights in recipe.weights(images)]
        == [member["entry"] for member in mixture["experts"]]
        and (recipe.router and recipe.router.job.name) == mixture.get("router", {}).get("entry")
        for images, mixture in there.items()
    )


def show_status(workspace: Workspace) -> None:
    """Print what is done, runs, failed and waits."""
    needed = needed_jobs(workspace)
    for line in status_lines(needed, look_at(workspace, needed)):
        print(line)


def look_at(workspace: Workspace, needed: Sequence[Needed]) -> dict[str, Found]:
    """What the store has of all needed jobs, by name."""
    return {name: look(workspace, part.stage, name) for part in needed for name, _ in part.jobs}


def ended(needed: Sequence[Needed], found: dict[str, Found]) -> bool:
    """Whether all is done, and nothing is left to be planned."""
    done = all(f.status == "done" for f in found.values())
    return done and not any(part.later for part in needed)


def inputs(workspace: Workspace) -> list[Any]:
    """Changes when the jobs that are needed may have changed."""
    paths = [workspace.root / "params.yaml", workspace.dataset, workspace.artefacts("mixtures")]
    return [(s.st_mtime_ns, s.st_ino) if (s := _stat(path)) else None for path in paths]


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def status_lines(needed: Sequence[Needed], found: dict[str, Found]) -> Iterator[str]:
    """A table with a row a stage, then the running jobs and the failed ones."""
    head = ["stage", "jobs", "done", "running", "failed", "waiting"]
    table = [head]
    notes = []
    for part in needed:
        if part.later:
            notes.append(f"{part.stage}: {part.later}")
            continue
        states = [found[name].status for name, _ in part.jobs]
        waiting = len(states) - sum(states.count(s) for s in ("done", "running", "failed"))
        counts = [states.count(s) for s in ("done", "running", "failed")]
        table.append([part.stage, *(f"{n:,}" for n in (len(states), *counts, waiting))])
    widths = [max(len(line[i]) for line in table) for i in range(len(head))]
    for line in table:
        cells = [line[0].ljust(widths[0])]
        yield "  ".join([*cells, *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
    yield from notes
    jobs = [(label, found[name]) for part in needed for name, label in part.jobs]
    for status in ("running", "failed"):
        listed = [(label, f) for label, f in jobs if f.status == status]
        if listed:
            yield ""
            yield f"{status}:"
        for label, f in itertools.islice(listed, SHOWN_JOBS):
            yield f"  {label}: {_now(f) if status == 'running' else _failed(f)}"
        if len(listed) > SHOWN_JOBS:
            yield f"  and {len(listed) - SHOWN_JOBS} more"
    resumes = sum(f.status == "resumes" for _, f in jobs)
    if resumes:
        yield ""
        yield f"{counted(resumes, 'expert')} of the waiting ones go on from a checkpoint"


def _now(found: Found) -> str:
    parts = []
    state = found.progress
    if state:
        parts.append(f"{state['done'] / max(state['total'], 1):.0%}")
        if state["rate"]:
            parts.append(speed(state["rate"], state["unit"]))
        if state.get("loss") is not None:
            parts.append(f"loss {state['loss']:.4f}")
    else:
        parts.append("starts")
    if found.host:
        parts.append(f"on {found.host}")
    return "  ".join(parts)


def _failed(found: Found) -> str:
    return f"{found.error} (log: {found.log})"
