"""`tspace plan`: what a run would do, why, and what it costs. It only reads."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import plan
from pipeline.config import MultiDecoder
from pipeline.errors import UserError
from stages.costs import interval_costs
from stages.forecast import Costs, critical_seconds, finished_experts
from stages.inspection import Found, done, facts_here, look
from stages.markup import counted, si
from stages.reasons import Reasons
from stages.source import changes
from stages.workspace import Workspace

WEIGHT_BYTES = 4  # of a parameter in a snapshot


@dataclass(frozen=True)
class Row:
    """One expert of a recipe in the plan. first, last: its states, counted from 1."""

    recipe: str
    label: str
    name: str
    first: int
    last: int
    status: str  # cached | running | resumes | failed | trains
    why: str
    images: int
    images_left: int
    flops: float
    flops_left: float
    seconds_left: float | None  # None: no such network was trained yet
    weights_bytes: int


def plan_rows(workspace: Workspace, only: str | None = None) -> tuple[list[Row], dict[str, Any]]:
    """A row an expert in the order of the plan, and the totals of what has to run.

    UserError naming the stage that has to run first, or an unknown recipe.
    """
    params = workspace.params
    if only is not None and only not in params.recipes:
        raise UserError(f"--recipe {only}: no such recipe; one of: {', '.join(params.recipes)}")
    facts = facts_here(workspace)
    shards = plan.latents(params, facts)
    _need_latents(workspace, shards)
    recipes = plan.experts(params, facts)
    wanted = [recipes[only]] if only else list(recipes.values())
    finished = finished_experts(workspace)
    costs, reasons = Costs(finished), Reasons(finished)
    rows, jobs, known = [], {}, {}
    for recipe in wanted:
        for expert in recipe.experts:
            job = expert.job
            jobs[job.name] = job
            if job.name not in known:
                known[job.name] = look(workspace, "experts", job.name)
            rows.append(_row(recipe.name, expert, known[job.name], costs, reasons))
    paired = {job.name: job for r in wanted for e in r.experts for job in e.pairings}
    first = {
        "latents_jobs": sum(not done(workspace, "latents", job.name) for job in shards),
        "pairing_jobs": sum(not done(workspace, "pairings", name) for name in paired),
    }
    return rows, _totals(rows, jobs) | first


def _need_latents(workspace: Workspace, jobs: Sequence[plan.Job]) -> None:
    """UserError unless latents were made, be it with older settings."""
    if (workspace.artefacts("latents") / "manifest.json").exists():
        return
    if not all(done(workspace, "latents", job.name) for job in jobs):
        raise UserError("the latents are not made yet; run `dvc repro encode` first")


def _row(recipe: str, expert: plan.Expert, found: Found, costs: Costs, reasons: Reasons) -> Row:
    job = expert.job
    cost = costs.of(job.spec)
    images = expert.images
    left = 0 if found.status == "done" else max(images - found.images, 0)
    status, why = {"done": "cached", "waiting": "trains"}.get(found.status, found.status), ""
    if found.status == "waiting":
        why = reasons.of(job.spec, job.label)
    elif found.status == "resumes":
        why = f"at {found.images:,} images"
    elif found.status == "running":
        why = f"at {found.images:,} images" + (f", {found.host}" if found.host else "")
    elif found.status == "failed":
        again = f"; goes on at {found.images:,} images" if found.images else ""
        why = f"{found.error}{again}"
    return Row(
        recipe=recipe,
        label=job.label,
        name=job.name,
        first=expert.first + 1,
        last=expert.last + 1,
        status=status,
        why=why,
        images=images,
        images_left=left,
        flops=cost.flops * images,
        flops_left=cost.flops * left,
        seconds_left=0.0 if not left else cost.seconds and cost.seconds * left,
        weights_bytes=WEIGHT_BYTES * cost.parameters * len(job.spec["snapshots"]),
    )


def _totals(rows: Sequence[Row], jobs: dict[str, plan.Job]) -> dict[str, Any]:
    """Sums over what has to run, an expert that recipes share counted once."""
    left = {row.name: row for row in rows if row.status != "cached"}
    seconds = {name: row.seconds_left for name, row in left.items()}
    unknown = sum(value is None for value in seconds.values())
    # Jobs of a group run in one process, one after the other.
    group = {name: f"{jobs[name].group}" or name for name in left}
    return {
        "experts": len({row.name for row in rows}),
        "experts_left": len(left),
        "jobs": len(set(group.values())),
        "images": sum(row.images_left for row in left.values()),
        "flops": sum(row.flops_left for row in left.values()),
        "seconds": sum(value or 0.0 for value in seconds.values()),
        "seconds_critical": critical_seconds(
            {name: value or 0.0 for name, value in seconds.items()},
            group,
            {name: jobs[name].needs for name in left},
        ),
        "seconds_unknown_for": unknown,
        "weights_bytes": sum(row.weights_bytes for row in left.values()),
    }


def show_plan(workspace: Workspace, only: str | None, everything: bool, as_json: bool) -> None:
    """Print what a run would do, a line an expert (alike ones together unless `everything`)."""
    rows, totals = plan_rows(workspace, only)
    if as_json:
        experts = [dataclasses.asdict(row) for row in rows]
        print(json.dumps({"experts": experts, "totals": totals}, indent=1))
        return
    lines = [["recipe", "experts", "images", "TFLOP", "time", "", ""]]
    lines += [_line(group) for group in (([r] for r in rows) if everything else _grouped(rows))]
    _print_table(lines, right=(2, 3, 4))
    print()
    print_intervals(workspace, only)
    for line in _total_lines(totals):
        print(line)
    if changed := changes(workspace):
        print(f"data: {changed}")


def print_intervals(workspace: Workspace, only: str | None) -> None:
    """A line for each decoder of the multi-decoder recipes: its width, parameters and FLOPs."""
    joint = [
        name
        for name, recipe in workspace.params.recipes.items()
        if isinstance(recipe.network, MultiDecoder) and only in (None, name)
    ]
    if not joint:
        return
    recipes = plan.experts(workspace.params, facts_here(workspace))
    lines = [
        [
            name,
            f"log-SNR {cost.clean:.3g} to {cost.noisy:.3g}",
            str(cost.channels),
            _si(cost.parameters, ""),
            _si(cost.active, ""),
            _si(cost.flops, "FLOP"),
        ]
        for name in joint
        for cost in interval_costs(recipes[name])
    ]
    head = ["decoder of", "interval", "width", "parameters", "with encoder", "forward"]
    _print_table([head, *lines], right=(2, 3, 4, 5))
    print()


def _grouped(rows: Sequence[Row]) -> Iterable[list[Row]]:
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        # How far each one is differs, and is no reason to tell them apart.
        why = row.why if row.status in ("trains", "failed") else ""
        groups.setdefault((row.recipe, row.status, why), []).append(row)
    return groups.values()


def _line(rows: Sequence[Row]) -> list[str]:
    first = rows[0]
    seconds = [row.seconds_left for row in rows]
    why = first.why
    if len(rows) > 1 and first.status in ("resumes", "running"):
        why = f"{sum(r.images_left for r in rows):,} images left"
    return [
        first.recipe,
        _owned(rows),
        f"{sum(r.images for r in rows):,}",
        f"{sum(r.flops for r in rows) * 1e-12:.3g}",
        "?" if None in seconds else _time(sum(seconds)),
        first.status,
        why,
    ]


def _owned(rows: Sequence[Row]) -> str:
    """States of some experts: `state 3`, `4 experts, states 1-4`."""
    runs: list[list[int]] = []
    for row in rows:
        if runs and row.first <= runs[-1][1] + 1:
            runs[-1][1] = max(runs[-1][1], row.last)
        else:
            runs.append([row.first, row.last])
    shown = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs[:3])
    more = ", ..." if runs[3:] else ""
    word = "state" if len(runs) == 1 and runs[0][0] == runs[0][1] else "states"
    count = f"{counted(len(rows), 'expert')}, " if len(rows) > 1 else ""
    return f"{count}{word} {shown}{more}"


def _total_lines(totals: dict[str, Any]) -> Iterator[str]:
    kinds = ("latents", "pairing")
    first = [counted(n, f"{kind} job") for kind in kinds if (n := totals[f"{kind}_jobs"])]
    if first:
        yield f"first: {', '.join(first)}"
    if not totals["experts_left"]:
        yield f"nothing to train: {counted(totals['experts'], 'expert')} cached"
        return
    yield (
        f"to train: {totals['experts_left']:,} of {counted(totals['experts'], 'expert')} in "
        f"{counted(totals['jobs'], 'job')}, {totals['images']:,} images, "
        f"{_si(totals['flops'], 'FLOP')}, {_si(totals['weights_bytes'], 'B')} of weights"
    )
    unknown = totals["seconds_unknown_for"]
    if unknown == totals["experts_left"]:
        yield "time: unknown, no finished expert has such a network"
        return
    least = "at least " if unknown else ""
    yield (
        f"time: {least}{_time(totals['seconds'])} one after the other, "
        f"{least}{_time(totals['seconds_critical'])} on workers enough (the longest chain), at the "
        "speed of finished experts"
    )
    if unknown:
        yield f"time of {counted(unknown, 'expert')} unknown: no finished one has such a network"


def _si(value: float, unit: str) -> str:
    return si(value, unit).replace("\u202f", " ")


def _time(seconds: float) -> str:
    """`0 s`, `1.2 s`, `42 s`, `3:07 min`, `12:03 h`, `2.5 d`."""
    if seconds < 59.5:
        return f"{seconds:.0f} s" if seconds >= 10 or not seconds else f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
    if seconds < 48 * 3600:
        return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d} h"
    return f"{seconds / 86400:.1f} d"


def _print_table(lines: Sequence[Sequence[str]], right: Iterable[int] = ()) -> None:
    right = set(right)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
