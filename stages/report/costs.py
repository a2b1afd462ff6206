"""What the training of a recipe took, with all that had to be trained before it could begin.

Images, FLOPs and parameters follow from the plan and are the same wherever it runs (`costs`).
Seconds depend on the machine and on what else it did (`times`): they come from
`Entry.circumstances`, are None where an entry was made elsewhere and pulled, and stand in no file
that DVC tracks.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from pipeline import plan
from pipeline.plan import DatasetFacts, Job, RecipePlan
from stages.workspace import Workspace

BUSY = 1.25  # load a core, over what the run's own threads explain


@dataclass(frozen=True)
class Spent:
    """What some training took. Seconds are None where unknown.

    critical: along the longest chain of jobs; seconds: wall clock, one job after the other;
    compute: of the device where there is one, else of the CPU; machines: what the jobs ran on.
    """

    images: int = 0
    images_critical: int = 0
    flops: float = 0.0
    seconds: float | None = 0.0
    seconds_critical: float | None = 0.0
    compute: float | None = 0.0
    cpu: float | None = 0.0
    device: float | None = 0.0
    machines: tuple[dict[str, Any], ...] = ()

    def then(self, later: Spent) -> Spent:
        """Both, one after the other."""
        return Spent(**{
            field.name: _sum([getattr(self, field.name), getattr(later, field.name)])
            for field in fields(self)
        })  # fmt: skip


def _sum(values: Sequence[Any]) -> Any:
    """None where one of them is unknown."""
    return None if None in values else sum(values[1:], start=values[0])


def spent(workspace: Workspace, job: Job, images: int | None = None) -> Spent:
    """A job's, up to its snapshot after so many images or to its end.

    A device's seconds up to a snapshot are in proportion to the clock's.
    """
    entry = workspace.store.entry(job.name)
    known = entry.circumstances()
    record = {"images": 0, "flops": 0.0} if job.kind == "merged" else entry.load_json("record.json")
    seconds, cpu = known.get("seconds"), known.get("cpu_seconds")
    device, seen, flops = known.get("device_seconds"), record["images"], record["flops"]
    if images is not None:
        whole, seconds = seconds, known.get("snapshot_seconds", {}).get(str(images))
        cpu = known.get("snapshot_cpu_seconds", {}).get(str(images))
        device = device * seconds / whole if device and seconds else device
        images = min(images, seen)  # it may have ended before
        seen, flops = images, flops * images / seen
    if seconds is None:
        return Spent(seen, seen, flops, None, None, None, None, None, (known,))
    compute = cpu if device is None else device
    return Spent(seen, seen, flops, seconds, seconds, compute, cpu, device or 0.0, (known,))


def own(workspace: Workspace, recipe: RecipePlan, milestone: int) -> Spent:
    """The training of a recipe's experts and router, all of which can run at the same time.

    Images are those of the experts alone; the router is the same, and whole, at every milestone.
    """
    each = [spent(workspace, e.job, e.snapshots[milestone]) for e in recipe.experts]
    if recipe.router is not None:
        each.append(replace(spent(workspace, recipe.router.job), images=0, images_critical=0))
    total = functools.reduce(Spent.then, each)
    walls = [one.seconds for one in each]
    longest = None if None in walls else max(walls)
    most = max(one.images for one in each)
    return replace(total, images_critical=most, seconds_critical=longest)


def merging(workspace: Workspace, recipe: RecipePlan, milestone: int) -> Spent:
    """The job that merges a recipe's experts."""
    merged = recipe.merged.get(milestone)
    return Spent() if merged is None else spent(workspace, merged)


def before(
    workspace: Workspace, facts: DatasetFacts, recipe: RecipePlan
) -> list[tuple[str, Spent]]:
    """What is trained before a recipe's own experts, first things first, each once."""
    line = ancestors(recipe)
    pilots = {
        job.name: job
        for each in [*line, recipe]
        for job in analyses_of(workspace, facts, each)
        if job.kind == "expert"
    }
    found = [("pilot", spent(workspace, job)) for job in pilots.values()]
    for each in line:
        last = each.milestones[-1]
        trained = own(workspace, each, last).then(merging(workspace, each, last))
        found.append((f"parent {each.name}", trained))
    return found


def _in_all(workspace: Workspace, facts: DatasetFacts, recipe: RecipePlan, milestone: int) -> Spent:
    """With the pilots that found its states or intervals, and its parent (and the parent's)."""
    parts = [part for _, part in before(workspace, facts, recipe)]
    parts += [own(workspace, recipe, milestone), merging(workspace, recipe, milestone)]
    return functools.reduce(Spent.then, parts, Spent())


def costs(
    workspace: Workspace, facts: DatasetFacts, recipe: RecipePlan, milestone: int
) -> dict[str, float]:
    """Training spent up to a milestone with all before it, as it is wherever it runs."""
    total = _in_all(workspace, facts, recipe, milestone)
    entries = (workspace.store.entry(expert.job.name) for expert in recipe.experts)
    parameters = [entry.load_json("record.json")["parameters"] for entry in entries]
    networks = parameters[: len(recipe.weights(milestone))]  # merged experts are all alike
    active, router = max(networks), 0
    if recipe.router is not None:
        router = workspace.store.entry(recipe.router.job.name).load_json("record.json")[
            "parameters"
        ]
        active = max(networks) * recipe.recipe.sampling.top + router
    return {
        "images_seen": total.images,
        "images_seen_critical": total.images_critical,
        "experts": len(recipe.experts),
        "parameters": sum(networks) + router,
        "parameters_active": active,
        "train_flops": total.flops,
    }


def times(
    workspace: Workspace, facts: DatasetFacts, recipe: RecipePlan, milestone: int
) -> dict[str, Any]:
    """The same training in seconds, with the search for a merged network's weights.

    `compute_seconds` are device-seconds on a device and CPU-seconds without one. `devices`,
    `hosts`, `cores` and `threads`: every one that took part; `load`: the highest mean load a core;
    `busy`: whether it is well above what the run itself explains. None and [] where unknown.
    """
    total = _in_all(workspace, facts, recipe, milestone)
    machines = total.machines
    on_devices = any(m.get("device_seconds") is not None for m in machines)
    loads = [m["load"] for m in machines if m.get("load") is not None]
    return {
        "seconds": total.seconds,
        "seconds_critical": total.seconds_critical,
        "compute_seconds": total.compute,
        "cpu_seconds": total.cpu,
        "device_seconds": total.device if on_devices else None,
        "devices": _each(machines, "device"),
        "hosts": _each(machines, "host"),
        "cores": _each(machines, "cores"),
        "threads": _each(machines, "threads"),
        "load": max(loads, default=None),
        "busy": any(map(_busy, machines)) if loads else None,
    }


def _each(machines: Iterable[Mapping[str, Any]], key: str) -> list[Any]:
    return sorted({m[key] for m in machines if m.get(key) is not None})


def _busy(machine: Mapping[str, Any]) -> bool:
    """Whether others used the machine: a run by itself fills its cores, or has more threads."""
    load, cores, threads = (machine.get(key) for key in ("load", "cores", "threads"))
    if load is None:
        return False
    return load > BUSY * max(1.0, threads / cores if threads and cores else 1.0)


def elsewhere(found: Mapping[str, Mapping[str, Any]]) -> dict[str, bool | None]:
    """Which recipes ran, at least in part, on another kind of machine than most of them.

    found: `times` of each recipe. None where its machine is unknown. Beside a device the CPU does
    not count: some jobs of such a machine do without its device.
    """
    kinds = {}
    for name, own in found.items():
        devices = [device for device in own["devices"] if device != "cpu"] or own["devices"]
        kinds[name] = (tuple(devices), tuple(own["hosts"]))
    most = Counter(kind for kind in kinds.values() if any(kind)).most_common(1)
    return {name: kind != most[0][0] if any(kind) else None for name, kind in kinds.items()}


def together(
    metrics: Mapping[str, Mapping[str, Any]], spent: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Metrics and `times` of each recipe, and of each of its milestones, as one."""
    found = {}
    for name, own in metrics.items():
        found[name] = {**own, **spent[name]}
        if "milestones" in own:
            milestones = together(own["milestones"], spent[name]["milestones"])
            found[name]["milestones"] = milestones
    return found


def compute_unit(found: Mapping[str, Mapping[str, Any]]) -> str:
    """What `compute_seconds` of these recipes are seconds of."""
    kinds = {own["device_seconds"] is not None for own in found.values() if own["devices"]}
    return {(True,): "GPU", (False, True): "CPU or GPU"}.get(tuple(sorted(kinds)), "CPU")


def footnotes(found: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[str], str]]:
    """What makes seconds in a table incomparable: a sign, the recipes it is about, and why.

    found: `times` of each recipe with `elsewhere`. Unknown seconds are a dash of their own.
    """
    away = [name for name, own in found.items() if own["elsewhere"]]
    busy = [name for name, own in found.items() if own["busy"]]
    unknown = [name for name, own in found.items() if own["compute_seconds"] is None]
    machines = "; ".join(
        f"{name} on {', '.join(map(str, [*found[name]['hosts'], *found[name]['devices']]))}"
        for name in away
    )
    load = max((found[name]["load"] for name in busy), default=0.0)
    notes = [
        ("*", away, f"measured on another kind of machine than the rest ({machines})"),
        (
            "†",
            busy,
            f"measured while the machine had other work, too (load a core up to {load:.2g})",
        ),
        ("–", unknown, "seconds unknown: trained elsewhere"),
    ]
    return [note for note in notes if note[1]]


def signs(found: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """The signs of `footnotes` that stand beside any of these names."""
    return [sign for sign, own, _ in footnotes(found) if sign != "–" and {*own} & {*names}]


def ancestors(recipe: RecipePlan) -> list[RecipePlan]:
    """The recipes it starts from, the first one first."""
    line = []
    while recipe.parent is not None:
        recipe = recipe.parent
        line.append(recipe)
    return line[::-1]


def analyses_of(workspace: Workspace, facts: DatasetFacts, recipe: RecipePlan) -> list[Job]:
    """What was measured before one recipe could be planned."""
    alone = workspace.params.model_copy(update={"recipes": {recipe.name: recipe.recipe}})
    return plan.analyses(alone, facts)


@dataclass(frozen=True)
class IntervalCost:
    """A decoder of a multi-decoder network, and what answering in its interval takes."""

    clean: float  # log-SNR at its two ends
    noisy: float
    size: int  # its width or number of blocks, as in params.yaml
    parameters: int  # of the decoder alone
    active: int  # of the encoder and the decoder
    flops: float  # forward, one image


def interval_costs(recipe: RecipePlan) -> list[IntervalCost]:
    """Each interval of a multi-decoder recipe, cleanest first. Imports torch."""
    from pipeline.networks.build import count_parameters, flops_of, network_of

    # Branched decoders are experts of their own, each with a copy of the one encoder.
    specs = [expert.job.spec for expert in recipe.experts]
    networks = [network_of(spec, device="meta") for spec in specs]
    decoders = [
        (spec, decoder)
        for spec, network in zip(specs, networks, strict=True)
        for decoder in network.decoders
    ]
    shared = count_parameters(networks[0].encoder)
    ends = [float(recipe.trained[0]), *recipe.bounds, float(recipe.trained[-1])]
    widths = recipe.recipe.network.decoders
    found = []
    for (clean, noisy), width, (spec, decoder) in zip(
        itertools.pairwise(ends), widths, decoders, strict=True
    ):
        own = count_parameters(decoder)
        flops = flops_of(spec, (clean + noisy) / 2)
        found.append(IntervalCost(clean, noisy, width, own, shared + own, flops))
    return found
