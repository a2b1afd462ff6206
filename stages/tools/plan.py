"""`tspace plan`: an outlook as a page of text, or as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence

from stages.facts import facts_of
from stages.numbers import counted, duration, si
from stages.report.costs import interval_costs
from stages.source import changes
from stages.tools import calibration, hardware
from stages.tools.declared import Declared
from stages.tools.forecast import Drawing
from stages.tools.outlook import Outlook, Row, facts_to_plan, outlook, plannable
from stages.workspace import Workspace


def show_plan(
    workspace: Workspace,
    only: str | None,
    everything: bool,
    as_json: bool,
    gpu: hardware.Hardware | None = None,
    said: Declared | None = None,
    measure: bool = False,
    price: float | None = None,
) -> None:
    """Print what a run would do, a line an expert (alike ones together unless `everything`).

    measure: first, what is not known of this machine. price: dollars for an hour of it.
    """
    failed = []
    if measure:
        facts, unknown, _ = facts_to_plan(workspace, changes(workspace) or "", said)
        failed = calibration.measure(workspace, facts, prepared=not unknown)
    found = outlook(workspace, only, gpu, said)
    if price is not None:
        seconds = sum(row.clock for row in found.stages)
        found.totals["dollars"] = price * seconds / 3600
    found.warnings.extend(f"not measured: {what}" for what in failed)
    if as_json:
        print(json.dumps(dataclasses.asdict(found), indent=1))
        return
    rows = found.experts
    lines = [["recipe", "experts", "images", "TFLOP", "time", "", ""]]
    lines += [_line(group) for group in (([r] for r in rows) if everything else _grouped(rows))]
    for name, why in found.waiting.items():
        images = workspace.params.recipes[name].training.images
        lines.append([name, "not known yet", f"{images:,}", "?", "?", "waits", why])
    _print_table(lines, right=(2, 3, 4))
    print()
    if not found.unknown:
        print_intervals(workspace, only)
    drawn = [drawing for drawing in found.drawings if drawing.samples_left]
    if drawn:
        head = ["to sample", "samples", "evaluations", "TFLOP", "time", ""]
        _print_table([head, *map(_drawn, drawn)], right=(1, 2, 3, 4))
        print()
    for line in _total_lines(found):
        print(line)
    if found.stages:
        print()
        _print_table(_stage_lines(found, price), right=(1, 2, 3, 4))
        print()
        print(*_about_stages(found), sep="\n")
    if found.on_gpu is not None:
        print()
        lines = hardware.table(found.on_gpu)
        _print_table(lines, right=range(1, len(lines[0])))
        print()
        print(*hardware.lines(found.on_gpu), sep="\n")
    if told := found.unknown or found.changed:
        print(f"data: {told}")
    for warning in found.warnings:
        print(f"WARNING: {warning}")


def _drawn(drawing: Drawing) -> list[str]:
    return [
        drawing.recipe,
        f"{drawing.samples_left:,}",
        f"{drawing.evaluations_left:,}",
        f"{drawing.flops_left * 1e-12:.3g}",
        "?" if drawing.seconds_left is None else duration(drawing.seconds_left),
        f"{drawing.evaluations} a sample"
        + (f", {drawing.guiding} of them for guidance" if drawing.guiding else ""),
    ]


def _stage_lines(found: Outlook, price: float | None) -> list[list[str]]:
    """A row a stage of dvc.yaml with its time and price, and one for all of them."""

    def line(name: str, jobs: int, work: float, clock: float, unknown: int) -> list[str]:
        least = ">= " if unknown else ""
        cost = [] if price is None else [f"{least}{price * clock / 3600:,.2f}" if clock else ""]
        times = [least + duration(s) if s else "?" if unknown else "" for s in (work, clock)]
        return [name, f"{jobs:,}" if jobs else "", *times, *cost]

    head = ["stage", "jobs", "work", "by the clock", *([] if price is None else ["$"])]
    keys = ("jobs", "work", "clock", "unknown")
    rows = [line(row.stage, *(getattr(row, key) for key in keys)) for row in found.stages]
    total = [sum(getattr(row, key) for row in found.stages) for key in keys]
    return [head, *rows, line("all", *total)]


def _about_stages(found: Outlook) -> Iterator[str]:
    """What the times of stages rest on."""
    at_once = "as many jobs at once as the profile lets run here"
    if found.workers is None:
        at_once = "a worker for each job"
    yield f"work: seconds of processes, one after the other; by the clock: with {at_once}"
    if not found.measured:
        yield (
            "without what starting stages and processes takes, which was not measured here; "
            "`tspace plan --measure` does, in about a minute, with all that nothing like it ran of"
        )
    unknown = [row.stage for row in found.stages if row.unknown]
    if unknown:
        yield f">= without jobs of which no time is known: {', '.join(unknown)}"


def print_intervals(workspace: Workspace, only: str | None) -> None:
    """A line for each decoder of the multi-decoder recipes: its width, parameters and FLOPs."""
    joint = [
        name
        for name, recipe in workspace.params.recipes.items()
        if recipe.network.decoders and only in (None, name)
    ]
    if not joint:
        return
    recipes, _, _ = plannable(workspace.params, facts_of(workspace), joint)
    lines = [
        [
            name,
            f"log-SNR {cost.clean:.3g} to {cost.noisy:.3g}",
            str(cost.size),
            _si(cost.parameters, ""),
            _si(cost.active, ""),
            _si(cost.flops, "FLOP"),
        ]
        for name, recipe in recipes.items()
        for cost in interval_costs(recipe)
    ]
    head = ["decoder of", "interval", "size", "parameters", "with encoder", "forward"]
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
        "?" if None in seconds else duration(sum(seconds)),
        first.status,
        why,
    ]


def _owned(rows: Sequence[Row]) -> str:
    """States of some experts: `state 3`, `4 experts, states 1-4`, `log-SNR 12 to -10`."""
    if rows[0].levels:
        return rows[0].levels
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


def _total_lines(found: Outlook) -> Iterator[str]:
    totals = found.totals
    for item in found.inputs:
        left = "time unknown" if item.seconds_left is None else duration(item.seconds_left)
        yield f"first: {item.what}, {item.work}, {left}"
    if totals["pairing_jobs"]:
        yield f"first: {counted(totals['pairing_jobs'], 'pairing job')}"
    if totals["routers"]:
        flops = _si(totals["router_flops"], "FLOP")
        yield f"beside the experts: {counted(totals['routers'], 'router')} of clusters, {flops}"
    if not totals["experts_left"]:
        if not found.waiting:
            unsure = ", unless the images changed" if found.changed else ""
            yield f"nothing to train: {counted(totals['experts'], 'expert')} cached{unsure}"
        return
    yield (
        f"to train: {totals['experts_left']:,} of {counted(totals['experts'], 'expert')} in "
        f"{counted(totals['jobs'], 'job')}, {totals['images']:,} images, "
        f"{_si(totals['flops'], 'FLOP')}, {_si(totals['weights_bytes'], 'B')} of weights"
    )
    unknown, estimated = totals["seconds_unknown_for"], totals["seconds_estimated_for"]
    if unknown == totals["experts_left"]:
        yield (
            "time: unknown, nothing was trained here yet that it could be told from; "
            "`tspace plan --measure` takes about a minute and tells it"
        )
        return
    least = "at least " if unknown else ""
    yield (
        f"time: {least}{duration(totals['seconds'])} of training one after the other, "
        f"{least}{duration(totals['seconds_critical'])} on workers enough (the longest chain), at "
        "the speed that was measured here"
    )
    if estimated:
        yield f"of {counted(estimated, 'expert')} by the FLOP/s of other networks on this machine"
    if unknown:
        yield f"time of {counted(unknown, 'expert')} unknown: none with such a network ran here"
    times = [drawing.seconds_left for drawing in found.drawings]
    if any(times) and None not in times:
        yield f"sampling: {duration(sum(times))} one after the other"


def _si(value: float, unit: str) -> str:
    return si(value, unit).replace("\u202f", " ")


def _print_table(lines: Sequence[Sequence[str]], right: Iterable[int] = ()) -> None:
    right = set(right)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
