"""`tspace plan` and `tspace status`: what would run and why, and what runs now.

Both only read: nothing is planned, copied or run, and they may be called while a run is on.
"""

from __future__ import annotations

import dataclasses
import graphlib
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import plan
from pipeline.config import MultiDecoder
from pipeline.errors import UserError
from pipeline.files import reached
from pipeline.identity import canonical_json
from pipeline.store import Entry, described
from stages import steps
from stages.costs import interval_costs
from stages.markup import counted, si
from stages.source import changes
from stages.workspace import Workspace

NEW = "new"
NEAR = 8  # an expert that differs in more settings than this explains nothing
OTHER_STATES = 3  # settings that a difference of states counts as
RECENT = 9  # finished experts whose speeds are looked at
WEIGHT_BYTES = 4  # of a parameter in a snapshot
WATCH_SECONDS = 2.0
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


def _done(workspace: Workspace, stage: str, name: str) -> bool:
    return look(workspace, stage, name).status == "done"


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""


# --- finished experts: what they were, cost and weighed


@dataclass(frozen=True)
class Finished:
    """A finished expert."""

    spec: dict[str, Any]
    record: dict[str, Any]
    seconds: float | None  # of training an image; None of one that was trained elsewhere
    label: str  # when its recipe was collected last; empty if it is no longer in a plan
    when: float


def finished_experts(workspace: Workspace) -> list[Finished]:
    """All finished experts of the store and of the checked out output, each once."""
    labels = {}
    manifest = workspace.artefacts("experts") / "manifest.json"
    if manifest.exists():
        items = workspace.read_json(manifest)["entries"]
        labels = {item["name"].partition("/")[2]: item["label"] for item in items}
    found: dict[str, Finished] = {}
    for folder in (workspace.store.root / "expert", workspace.artefacts("experts")):
        for path in _folders(folder):
            if path.name in found:
                continue
            try:
                when = os.stat(f"{path.path}/DONE").st_mtime
                spec = json.loads(Path(path.path, "spec.json").read_bytes())
                record = json.loads(Path(path.path, "record.json").read_bytes())
            except (OSError, ValueError):  # unfinished, or a damaged one that nobody asked for
                continue
            spent = Entry(Path(path.path)).circumstances().get("snapshot_seconds")
            seconds = max(spent.values()) / record["images"] if spent else None
            found[path.name] = Finished(spec, record, seconds, labels.get(path.name, ""), when)
    return list(found.values())


def _folders(path: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(path) as entries:
            return [entry for entry in entries if entry.is_dir()]
    except FileNotFoundError:
        return []


@dataclass(frozen=True)
class Cost:
    """What one expert's network costs. seconds: of training one image; None if never measured."""

    flops: float  # of training one image: forward and backward
    parameters: int
    seconds: float | None


class Costs:
    """Costs by network: measured where a finished expert has it, else counted, once a network."""

    def __init__(self, finished: Sequence[Finished]):
        self._finished: dict[str, list[Finished]] = {}
        for expert in sorted(finished, key=lambda e: -e.when):
            self._finished.setdefault(_network(expert.spec), []).append(expert)
        self._known: dict[str, Cost] = {}

    def of(self, spec: dict[str, Any]) -> Cost:
        """Cost of an expert's network, at the speed of the latest experts like it."""
        network = _network(spec)
        key = network + canonical_json(_speed(spec))
        if key not in self._known:
            self._known[key] = self._cost(network, spec)
        return self._known[key]

    def _cost(self, network: str, spec: dict[str, Any]) -> Cost:
        alike = self._finished.get(network)
        if not alike:
            return counted_cost(spec)
        record = alike[0].record
        timed = [e for e in alike if e.seconds is not None]
        # The same batch, threads and precision tell more than just the same network.
        same = [e for e in timed if _speed(e.spec) == _speed(spec)] or timed
        # The middle of some: the first one on a machine also waits for the disk.
        seconds = statistics.median(e.seconds for e in same[:RECENT]) if same else None
        return Cost(record["flops"] / record["images"], record["parameters"], seconds)


def _network(spec: dict[str, Any]) -> str:
    keys = ["network", "channels", "resolution", "classes", "conditioning"]
    if spec["network"]["kind"] == "multi-decoder":  # which decoder runs how often
        keys += ["curriculum", "log_snr"]
    return canonical_json({key: spec[key] for key in keys})


def _speed(spec: dict[str, Any]) -> list[Any]:
    return [spec["training"].get(key) for key in ("batch", "threads", "precision")]


def counted_cost(spec: dict[str, Any]) -> Cost:
    """Cost of a network that nobody trained yet: its layers are laid out, without memory."""
    from pipeline.networks.build import count_parameters, network_of
    from pipeline.training import flops_per_image

    parameters = count_parameters(network_of(spec, device="meta"))
    return Cost(3 * flops_per_image(spec), parameters, None)


# --- why an expert must be trained


class Reasons:
    """For an expert that must be trained: the nearest finished one and what is different."""

    def __init__(self, finished: Sequence[Finished]):
        self._finished = finished
        self._flat = [_flat(e.spec) for e in finished]
        self._columns = {key: i for i, key in enumerate(sorted({k for f in self._flat for k in f}))}
        self._codes: dict[tuple[str, str], int] = {}
        # A row an expert, a column a setting: comparing with all of them is one operation.
        self._table = np.array([self._row(f) for f in self._flat], np.int32)
        self._labels = np.array([e.label for e in finished], dtype=object)
        self._when = np.array([e.when for e in finished])
        self._weights = np.ones(len(self._columns))
        if "log_snr" in self._columns:
            self._weights[self._columns["log_snr"]] = OTHER_STATES

    def _row(self, flat: dict[str, Any]) -> list[int]:
        row = [0] * len(self._columns)
        for key, value in flat.items():
            if key in self._columns:
                code = self._codes.setdefault((key, repr(value)), len(self._codes) + 1)
                row[self._columns[key]] = code
        return row

    def of(self, spec: dict[str, Any], label: str) -> str:
        """`new`, or the settings in which the nearest finished expert differs: old -> new."""
        if not self._finished:
            return NEW
        flat = _flat(json.loads(json.dumps(spec)))
        distance = (self._table != np.array(self._row(flat), np.int32)) @ self._weights
        # Among equally near ones that of the same recipe and states, then the latest.
        distance += 0.5 * (self._labels != label)
        nearest = min(np.flatnonzero(distance == distance.min()), key=lambda i: -self._when[i])
        told = list(_differences(self._flat[nearest], flat))
        alien = spec["conditioning"] == "none" and "states" in [key for key, _ in told]
        if alien or len(told) > NEAR:
            return NEW
        return "; ".join(text for _, text in told)


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Settings by their dotted path; a list is one setting."""
    if not isinstance(value, dict):
        return {path: value}
    return {
        key: v
        for name, part in value.items()
        for key, v in _flat(part, f"{path}.{name}" if path else name).items()
    }


IN_WORDS = {
    "code": "code of training changed",
    "latents": "the latents changed (images, their scale or their encoder)",
    "pairings": "the noises paired with the images changed",
    "parent": "its parent expert changed",
    "curriculum.axis": "the states of the whole schedule changed",
    "curriculum.own": "its place among the states changed",
}


def _differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(setting, text) of each difference; what follows from another one is left out."""
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    # Keys of the random streams follow from the seed and the states, snapshots from the budget.
    if "noise_key" in changed:
        yield "seed", "seed changed"
    implied = {"noise_key", "stream_key"}
    if "noise_key" in changed or "log_snr" in changed:
        implied |= {"start_key"}
    if "images" in changed:
        implied |= {"snapshots"}
    told = set()
    for key in changed:
        if key in implied:
            continue
        top = key if key in IN_WORDS else key.partition(".")[0]
        if top in IN_WORDS:
            text = IN_WORDS[top]
        elif key == "log_snr":
            key, text = "states", f"states: {_states(old)} -> {_states(new)}"
        elif key == "start_key":
            text = "training.start changed"
        else:
            text = f"{key}: {_brief(old, key)} -> {_brief(new, key)}"
        if text not in told:
            told.add(text)
            yield key, text


def _states(flat: dict[str, Any]) -> str:
    values = flat.get("log_snr") or []
    if not values:
        return "none"
    ends = f"log-SNR {values[0]:.3g}" + (f" to {values[-1]:.3g}" if values[1:] else "")
    return ends if flat.get("continuous") else f"{len(values)} ({ends})"


def _brief(flat: dict[str, Any], key: str) -> str:
    if key not in flat:
        return "unset"
    value = flat[key]
    if isinstance(value, list) and len(value) > 6:
        return f"{len(value)} values"
    return "null" if value is None else str(value)


# --- tspace plan


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
    facts = _facts(workspace)
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
        "latents_jobs": sum(not _done(workspace, "latents", job.name) for job in shards),
        "pairing_jobs": sum(not _done(workspace, "pairings", name) for name in paired),
    }
    return rows, _totals(rows, jobs) | first


def _facts(workspace: Workspace) -> plan.DatasetFacts:
    if not workspace.dataset.exists():
        raise UserError(f"{workspace.dataset}: not made yet; run `dvc repro encode` first")
    return steps.facts_of(workspace)


def _need_latents(workspace: Workspace, jobs: Sequence[plan.Job]) -> None:
    """UserError unless latents were made, be it with older settings."""
    if (workspace.artefacts("latents") / "manifest.json").exists():
        return
    if not all(_done(workspace, "latents", job.name) for job in jobs):
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


def critical_seconds(
    seconds: dict[str, float], group: dict[str, str], needs: dict[str, Iterable[str]]
) -> float:
    """The longest chain of processes, each of which runs the jobs of a group in turn.

    What a cluster with room for everything waits for. Needs that are not among the jobs are done.
    """
    cost: dict[str, float] = {}
    before: dict[str, set[str]] = {}
    for name, value in seconds.items():
        own = group[name]
        cost[own] = cost.get(own, 0.0) + value
        after = {group[need] for need in needs[name] if need in group} - {own}
        before.setdefault(own, set()).update(after)
    end: dict[str, float] = {}
    for own in graphlib.TopologicalSorter(before).static_order():
        end[own] = cost[own] + max((end[other] for other in before[own]), default=0.0)
    return max(end.values(), default=0.0)


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
    recipes = plan.experts(workspace.params, _facts(workspace))
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


# --- tspace status


@dataclass(frozen=True)
class Needed:
    """Jobs of one stage that the current params need; `later` says why they are not known yet."""

    stage: str
    jobs: list[tuple[str, str]]  # name and label
    later: str = ""


def needed_jobs(workspace: Workspace) -> list[Needed]:
    """Jobs of every fan-out stage, as far as they can be planned now."""
    params, facts = workspace.params, _facts(workspace)
    codec = plan.encoder(params, facts)
    shards = [*([codec] if codec else []), *plan.latents(params, facts)]
    found = [_needed("latents", shards + plan.held_out(params, facts))]
    found.append(_needed("analyses", plan.analyses(params, facts)))
    found.append(_needed("features", [plan.features(params, facts)]))
    try:
        recipes = plan.experts(params, facts)
    except UserError as e:  # its states are fitted to something that is not measured yet
        return [*found, Needed("experts", [], str(e))]
    experts = [expert for recipe in recipes.values() for expert in recipe.experts]
    paired = [job for expert in experts for job in expert.pairings]
    if paired:
        found.append(_needed("pairings", paired))
    merges = [job for recipe in recipes.values() for job in recipe.merged.values()]
    found.append(_needed("experts", [*(expert.job for expert in experts), *merges]))
    if not all(merged(workspace, name, recipe) for name, recipe in recipes.items()):
        later = "planned once `merge` has run"
        return [*found, Needed("samples", [], later), Needed("scores", [], later)]
    scores = steps.score_jobs(workspace, params, facts, recipes)
    samples = {
        need: f"{name} at {images:,} images, samples"
        for (name, images), job in scores.items()
        for need in job.needs
        if need.startswith("samples/")
    }
    found.append(Needed("samples", list(samples.items())))
    return [*found, _needed("scores", scores.values())]


def _needed(stage: str, jobs: Iterable[plan.Job]) -> Needed:
    return Needed(stage, list({job.name: job.label for job in jobs}.items()))


def merged(workspace: Workspace, name: str, recipe: plan.RecipePlan) -> bool:
    """Whether the recipe's mixtures are there and of the experts that it has now."""
    if not (workspace.artefacts("mixtures") / f"{name}.json").exists():
        return False
    there = {item["images"]: item["mixture"] for item in steps.milestones_of(workspace, name)}
    return there.keys() == set(recipe.milestones) and all(
        [weights.job.name for weights in recipe.weights(images)]
        == [member["entry"] for member in mixture["experts"]]
        for images, mixture in there.items()
    )


def show_status(workspace: Workspace, watch: bool) -> None:
    """Print what is done, runs, failed and waits; `watch`: again and again until all is done."""
    seen, needed = None, []
    while True:
        inputs = _inputs(workspace)
        if inputs != seen:  # planning anew costs more than looking
            workspace = Workspace(workspace.root)
            needed, seen = needed_jobs(workspace), inputs
        found = {
            name: look(workspace, part.stage, name) for part in needed for name, _ in part.jobs
        }
        if watch and sys.stdout.isatty():
            print("\033[H\033[2J", end="")
        for line in status_lines(needed, found):
            print(line)
        ended = all(f.status == "done" for f in found.values())
        if not watch or (ended and not any(part.later for part in needed)):
            return
        sys.stdout.flush()
        time.sleep(WATCH_SECONDS)


def _inputs(workspace: Workspace) -> list[Any]:
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
            parts.append(f"{state['rate']:,.0f} {state['unit']}/s")
        if state.get("loss") is not None:
            parts.append(f"loss {state['loss']:.4f}")
    else:
        parts.append("starts")
    if found.host:
        parts.append(f"on {found.host}")
    return "  ".join(parts)


def _failed(found: Found) -> str:
    return f"{found.error} (log: {found.log})"
