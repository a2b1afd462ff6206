"""What the training of a recipe took, with all that had to be trained before it could begin.

Images, FLOPs and parameters follow from the plan and are the same wherever it runs. Seconds depend
on the machine and on what else it did: they come from `Entry.circumstances`, are None where an
entry was made elsewhere and pulled, and stand in no file that DVC tracks.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import plan
from pipeline.plan import DatasetFacts, Job, RecipePlan
from stages.workspace import Workspace

BUSY = 1.25  # load a core, over what the run's own threads explain


@dataclass(frozen=True)
class Cost:
    """Of some training: in all, and along the longest chain of jobs."""

    images: int = 0
    images_critical: int = 0
    flops: float = 0.0

    def then(self, later: Cost) -> Cost:
        """Both, one after the other."""
        return Cost(
            self.images + later.images,
            self.images_critical + later.images_critical,
            self.flops + later.flops,
        )


@dataclass(frozen=True)
class Time:
    """Seconds of some training, None where unknown, and where it was spent.

    seconds: wall clock, one job after the other; critical: along the longest chain of jobs;
    compute: of the device where there is one, else of the CPU; machines: what the jobs ran on.
    """

    seconds: float | None = 0.0
    critical: float | None = 0.0
    compute: float | None = 0.0
    cpu: float | None = 0.0
    device: float | None = 0.0
    machines: tuple[dict[str, Any], ...] = ()

    def then(self, later: Time) -> Time:
        """Both, one after the other."""
        return Time(
            _sum([self.seconds, later.seconds]),
            _sum([self.critical, later.critical]),
            _sum([self.compute, later.compute]),
            _sum([self.cpu, later.cpu]),
            _sum([self.device, later.device]),
            self.machines + later.machines,
        )


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def costs(
    workspace: Workspace, facts: DatasetFacts, recipe: RecipePlan, milestone: int
) -> dict[str, float]:
    """Training spent up to a milestone: in all, and along the longest chain of jobs.

    With the pilots that its states or intervals were found with, and its parent (and the parent's).
    """
    total = Cost()
    for _, cost, _ in before(workspace, facts, recipe):
        total = total.then(cost)
    total = total.then(own(workspace, recipe, milestone))
    parameters = [_record(workspace, e.job)["parameters"] for e in recipe.experts]
    networks = parameters[: len(recipe.weights(milestone))]  # merged experts are all alike
    return {
        "images_seen": total.images,
        "images_seen_critical": total.images_critical,
        "experts": len(recipe.experts),
        "parameters": sum(networks),
        "parameters_active": max(networks),
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
    total = Time()
    for _, _, time in before(workspace, facts, recipe):
        total = total.then(time)
    total = total.then(own_time(workspace, recipe, milestone))
    total = total.then(merging(workspace, recipe, milestone))
    machines = total.machines
    on_devices = any(m.get("device_seconds") is not None for m in machines)
    loads = [m["load"] for m in machines if m.get("load") is not None]
    return {
        "seconds": total.seconds,
        "seconds_critical": total.critical,
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


def before(
    workspace: Workspace, facts: DatasetFacts, recipe: RecipePlan
) -> list[tuple[str, Cost, Time]]:
    """What is trained before a recipe's own experts, first things first, each once."""
    line = ancestors(recipe)
    pilots = {
        job.name: job
        for each in [*line, recipe]
        for job in analyses_of(workspace, facts, each)
        if job.kind == "expert"
    }
    found = []
    for job in pilots.values():
        record = _record(workspace, job)
        images = record["images"]
        found.append(("pilot", Cost(images, images, record["flops"]), whole(workspace, job)))
    for each in line:
        last = each.milestones[-1]
        spent = own_time(workspace, each, last).then(merging(workspace, each, last))
        found.append((f"parent {each.name}", own(workspace, each, last), spent))
    return found


def own(workspace: Workspace, recipe: RecipePlan, milestone: int) -> Cost:
    """The training of a recipe's experts."""
    flops, images = 0.0, []
    for expert in recipe.experts:
        record = _record(workspace, expert.job)
        seen = expert.snapshots[milestone]
        flops += record["flops"] * seen / record["images"]
        images.append(seen)
    return Cost(sum(images), max(images), flops)


def own_time(workspace: Workspace, recipe: RecipePlan, milestone: int) -> Time:
    """The training of a recipe's experts, all of which can run at the same time."""
    each = [
        snapshot(workspace, expert.job, expert.snapshots[milestone]) for expert in recipe.experts
    ]
    walls = [time.seconds for time in each]
    return Time(
        _sum(walls),
        None if None in walls else max(walls),
        _sum([time.compute for time in each]),
        _sum([time.cpu for time in each]),
        _sum([time.device for time in each]),
        tuple(machine for time in each for machine in time.machines),
    )


def snapshot(workspace: Workspace, job: Job, images: int) -> Time:
    """A training job up to so many images; a device's seconds in proportion to the clock's."""
    known = workspace.store.entry(job.name).circumstances()
    seconds = known.get("snapshot_seconds", {}).get(str(images))
    if seconds is None:
        return Time(None, None, None, None, None, (known,))
    device = known.get("device_seconds")
    if device is not None:
        device *= seconds / known["seconds"]
    return _time(known, seconds, known.get("snapshot_cpu_seconds", {}).get(str(images)), device)


def whole(workspace: Workspace, job: Job) -> Time:
    """A job from its beginning to its end."""
    known = workspace.store.entry(job.name).circumstances()
    return _time(known, known.get("seconds"), known.get("cpu_seconds"), known.get("device_seconds"))


def _time(
    known: dict[str, Any], seconds: float | None, cpu: float | None, device: float | None
) -> Time:
    compute = cpu if device is None else device
    idle = 0.0 if known else None  # of a device that was not there
    return Time(seconds, seconds, compute, cpu, idle if device is None else device, (known,))


def merging(workspace: Workspace, recipe: RecipePlan, milestone: int) -> Time:
    """The job that merges a recipe's experts."""
    if milestone not in recipe.merged:
        return Time()
    return whole(workspace, recipe.merged[milestone])


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


def _record(workspace: Workspace, job: Job) -> dict[str, Any]:
    return workspace.store.entry(job.name).load_json("record.json")


@dataclass(frozen=True)
class IntervalCost:
    """A decoder of a multi-decoder network, and what answering in its interval takes."""

    clean: float  # log-SNR at its two ends
    noisy: float
    channels: int
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
    widths = recipe.recipe.network.decoder_channels
    found = []
    for (clean, noisy), width, (spec, decoder) in zip(
        itertools.pairwise(ends), widths, decoders, strict=True
    ):
        own = count_parameters(decoder)
        flops = flops_of(spec, (clean + noisy) / 2)
        found.append(IntervalCost(clean, noisy, width, own, shared + own, flops))
    return found
