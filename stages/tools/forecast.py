"""What experts will cost: as finished ones did where such a network was trained, else counted."""

from __future__ import annotations

import contextlib
import functools
import graphlib
import math
import os
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from pipeline import plan
from pipeline.errors import UserError
from pipeline.sampling.params import Sampling, Walk
from pipeline.specs import ExpertSpec, NetworkSpec, Spec
from pipeline.store.circumstances import processor
from pipeline.store.entry import Entry
from pipeline.store.identity import canonical_json
from stages.workspace import Workspace

RECENT = 9  # finished experts whose speeds are looked at
SAMPLING = TypeAdapter(Annotated[Sampling, Field(discriminator="kind")])


@dataclass(frozen=True)
class Rate:
    """Seconds of a kind of work: some for each job, and some for each image, row or evaluation."""

    fixed: float
    each: float

    def seconds(self, amount: float) -> float:
        return self.fixed + self.each * amount


@dataclass(frozen=True)
class Measured:
    """What was measured of a machine beforehand.

    rates: by kind of work (`work.Work`). flops: of training an image, by kind. overheads: seconds
    around the work, by name (`calibration`).
    """

    rates: Mapping[str, Rate] = field(default_factory=dict)
    flops: Mapping[str, float] = field(default_factory=dict)
    overheads: Mapping[str, float] = field(default_factory=dict)

    @property
    def evaluations(self) -> dict[str, float]:
        """Seconds of an evaluation, as `evaluation_seconds` has them."""
        start = f"{DRAWING} "
        return {
            kind.removeprefix(start): rate.each
            for kind, rate in self.rates.items()
            if kind.startswith(start)
        }

    @property
    def seconds_a_flop(self) -> float | None:
        """Of training, in the middle of what was measured."""
        rates = [self.rates[kind].each / flops for kind, flops in self.flops.items()]
        return statistics.median(rates) if rates else None


TRAINING, DRAWING = "training", "evaluations"  # what these kinds of work begin with


def training_of(spec: dict[str, Any]) -> str:
    """The kind of work of training an expert, from its spec as it is written."""
    return f"{TRAINING} {_network(spec)} {canonical_json(_speed(spec))}"


@dataclass(frozen=True)
class Finished:
    """A finished expert."""

    spec: dict[str, Any]  # as it was written, by whatever version
    record: dict[str, Any]
    seconds: float | None  # of training an image; None of one that was trained elsewhere
    label: str  # when its recipe was collected last; empty if it is no longer in a plan
    when: float
    host: str = ""  # the kind of processor that it was trained on


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
            entry = Entry(Path(path.path))
            try:
                when = os.stat(f"{path.path}/DONE").st_mtime
                spec, record = entry.spec(), entry.load_json("record.json")
            except (OSError, UserError):  # unfinished, or a damaged one that nobody asked for
                continue
            made = entry.circumstances()
            spent = made.get("snapshot_seconds")
            seconds = max(spent.values()) / record["images"] if spent else None
            label, host = labels.get(path.name, ""), made.get("host", "")
            found[path.name] = Finished(spec, record, seconds, label, when, host)
    return list(found.values())


def begun_experts(workspace: Workspace) -> list[Finished]:
    """Unfinished experts of the store that told how fast they were; their records are empty."""
    found = []
    for path in _folders(workspace.store.root / "expert"):
        entry = Entry(Path(path.path))
        state = None if entry.done else entry.progress()
        if state and state["unit"] == "images" and state["rate"]:
            with contextlib.suppress(UserError):  # damaged, or planned again at this moment
                host = entry.circumstances().get("host", "")
                found.append(Finished(entry.spec(), {}, 1 / state["rate"], "", state["time"], host))
    return found


def _folders(path: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(path) as entries:
            return [entry for entry in entries if entry.is_dir()]
    except FileNotFoundError:
        return []


@dataclass(frozen=True)
class Cost:
    """What one expert's network costs."""

    flops: float  # of training one image: forward and backward
    parameters: int
    seconds: float | None  # of training one image; None where nothing like it was measured
    estimated: bool = False  # the seconds are those of other networks, by their FLOPs


class Costs:
    """Costs by network: measured where an expert has it, else counted, once a network.

    finished, begun: experts as `finished_experts` and `begun_experts` find them. beforehand: what
    was measured, for networks that none of them has with this batch, precision and threads. root:
    where files that networks name are.
    """

    def __init__(
        self,
        finished: Sequence[Finished],
        begun: Sequence[Finished] = (),
        root: Path = Path(),
        beforehand: Measured | None = None,
    ):
        self._root, self._beforehand = root, beforehand or Measured()
        self._finished: dict[str, list[Finished]] = {}
        self._timed: dict[str, list[Finished]] = {}
        for expert in sorted(finished, key=lambda e: -e.when):
            self._finished.setdefault(_network(expert.spec), []).append(expert)
        # One that is finished tells more of its speed than one that is not.
        for expert in [*sorted(finished, key=lambda e: -e.when), *begun]:
            if expert.seconds is not None:
                self._timed.setdefault(_network(expert.spec), []).append(expert)
        self._known: dict[str, Cost] = {}

    def of(self, spec: ExpertSpec) -> Cost:
        """Cost of an expert's network, at the speed of the latest experts like it."""
        written = spec.as_json()
        network, speed = _network(written), _speed(written)
        key = network + canonical_json(speed)
        if key not in self._known:
            self._known[key] = self._cost(network, speed, spec)
        return self._known[key]

    def _cost(self, network: str, speed: list[Any], spec: ExpertSpec) -> Cost:
        if alike := self._finished.get(network):
            record = alike[0].record
            flops, parameters = record["flops"] / record["images"], record["parameters"]
        else:
            flops, parameters = counted_cost(spec, self._root)
        timed = self._timed.get(network, [])
        # The same batch, threads and precision tell more than just the same network.
        same = [e for e in timed if _speed(e.spec) == speed]
        known = self._beforehand.rates.get(training_of(spec.as_json()))
        if known is not None and not same:
            return Cost(flops, parameters, known.each)
        if timed:
            # The middle of some: the first one on a machine also waits for the disk.
            seconds = statistics.median(e.seconds for e in (same or timed)[:RECENT])
            return Cost(flops, parameters, seconds)
        rate = self._seconds_a_flop or self._beforehand.seconds_a_flop
        return Cost(flops, parameters, rate and rate * flops, estimated=rate is not None)

    @functools.cached_property
    def _seconds_a_flop(self) -> float | None:
        """Of the latest experts that were trained on this kind of processor, whatever network."""
        here = processor()
        rates = [
            expert.seconds * expert.record["images"] / expert.record["flops"]
            for experts in self._finished.values()
            for expert in experts[:RECENT]
            if expert.seconds is not None and expert.host == here
        ]
        return statistics.median(rates) if rates else None


def _network(spec: dict[str, Any]) -> str:
    keys = (*NetworkSpec.model_fields,)
    form = (spec.get("curriculum") or {}).get("form", {})
    learnt = form.get("form", form).get("kind") == "adaptive"  # it asks the network more often
    if spec.get("interval_bounds") or learnt:  # which decoder runs how often
        keys += ("curriculum", "log_snr")
    return canonical_json({key: spec.get(key) for key in keys})


def _speed(spec: dict[str, Any]) -> list[Any]:
    return [spec.get("training", {}).get(key) for key in ("batch", "threads", "precision")]


def counted_cost(spec: ExpertSpec, root: Path) -> tuple[float, int]:
    """FLOPs of training an image, and parameters, of a network that nobody trained yet.

    Its layers are laid out, without memory.
    """
    from pipeline.networks.build import count_parameters, network_of
    from pipeline.training.draws import flops_of_policy, flops_per_image

    network, forward = network_of(spec, device="meta", root=root), flops_per_image(spec, root)
    beside = flops_of_policy(spec, spec.images, forward) / spec.images
    return 3 * forward + beside, count_parameters(network)


@dataclass(frozen=True)
class Drawing:
    """What the samples of a recipe will cost, all milestones together.

    samples: in all; samples_left: of these not drawn yet; evaluations: of networks, for a sample;
    guiding: how many of these are of what guidance leads away from. evaluations_left, flops_left,
    seconds_left: of the samples left; seconds None if unknown.
    """

    recipe: str
    samples: int
    samples_left: int
    evaluations: int
    guiding: int
    evaluations_left: int
    flops_left: float
    seconds_left: float | None


def drawing(
    recipe: plan.RecipePlan,
    guide: plan.RecipePlan | None,
    samples: int,
    left: dict[int, int],
    costs: Costs,
    measured: dict[str, float],
) -> Drawing:
    """The cost of a recipe's samples.

    guide: the recipe that they are led away from; samples: a milestone; left: by milestone.
    measured: seconds an evaluation, see `evaluation_seconds`.
    """
    sampling = recipe.recipe.sampling
    own, guiding = evaluations_of(recipe.sampling_states, sampling, sampling.guidance_interval)
    drawn, other = _forward(recipe, costs), _forward(guide or recipe, costs)
    work, flops, seconds = 0, 0.0, 0.0
    for milestone, count in left.items():
        guided = recipe.guided(milestone)
        away = guiding if guided else 0
        work += count * (own + away)
        flops += count * (own * drawn.flops + away * other.flops)
        each = measured.get(drawing_key(recipe, guide, guided))
        time = each and each * (own + away)
        if time is None and None not in (drawn.seconds, other.seconds):
            time = own * drawn.seconds + away * other.seconds
        if count:
            seconds = None if None in (seconds, time) else seconds + count * time
    total = samples * len(recipe.milestones)
    evaluations = own + guiding
    return Drawing(
        recipe.name, total, sum(left.values()), evaluations, guiding, work, flops, seconds
    )


@dataclass(frozen=True)
class _Forward:
    """FLOPs and seconds (None if unknown) of one evaluation, over the states that are sampled."""

    flops: float
    seconds: float | None


def _forward(recipe: plan.RecipePlan, costs: Costs) -> _Forward:
    asked = [state for state in recipe.sampling_states if state > -math.inf]
    # All clusters have networks of one size, for the same states.
    experts = [expert for expert in recipe.experts if not expert.cluster]
    by_expert = [costs.of(expert.job.spec) for expert in experts]
    ends = [float(recipe.trained[expert.last]) for expert in experts[:-1]]
    owners = [by_expert[sum(state < end for end in ends)] for state in asked]
    top = recipe.recipe.sampling.top
    more = [costs.of(recipe.router.job.spec)] if recipe.router else []
    # Training an image costs three evaluations: forward, and twice as much backward.
    flops = top * statistics.fmean(cost.flops for cost in owners) + sum(c.flops for c in more)
    times = [cost.seconds for cost in (*owners, *more)]
    if None in times:
        return _Forward(flops / 3, None)
    seconds = top * statistics.fmean(cost.seconds for cost in owners)
    return _Forward(flops / 3, (seconds + sum(cost.seconds for cost in more)) / 3)


def _first(recipe: plan.RecipePlan) -> dict[str, Any]:
    routed = {"top": recipe.recipe.sampling.top} if recipe.router else {}
    return recipe.experts[0].job.spec.as_json() | routed


def drawing_key(recipe: plan.RecipePlan, guide: plan.RecipePlan | None, guided: bool) -> str:
    """What the samples of a recipe are asked of, as `evaluation_seconds` has it."""
    by = [_first(guide)] if guide and guided else []
    return _evaluated([_first(recipe), *by], guided)


def evaluation_seconds(workspace: Workspace) -> dict[str, float]:
    """Seconds of one evaluation for one sample, by network, in the latest finished samplings."""
    found: dict[str, list[tuple[float, float]]] = {}
    for when, seconds, spec in _timed(workspace, "samples"):
        try:
            sampling = SAMPLING.validate_python(spec["sampling"])
        except ValidationError:
            continue  # of another version
        states, led = [float(state) for state in spec["states"]], spec.get("led", {})
        evaluations = sum(evaluations_of(states, sampling, led.get("interval")))
        mixtures = [spec["mixture"], *([led["guide"]] if "guide" in led else [])]
        networks = [{**mixture, **mixture["experts"][0]} for mixture in mixtures]
        key = _evaluated(networks, sampling.guidance != 1)
        each = seconds / (_rows(spec) * evaluations)
        found.setdefault(key, []).append((when, each))
    return {key: _middle(times) for key, times in found.items()}


def _timed(workspace: Workspace, kind: str) -> Iterator[tuple[float, float, dict[str, Any]]]:
    """Finished entries of a kind that were made here: when, in how many seconds, and their spec."""
    for path in _folders(workspace.store.root / kind):
        entry = Entry(Path(path.path))
        seconds = entry.circumstances().get("seconds") if entry.done else None
        if seconds is not None:
            with contextlib.suppress(OSError, UserError):  # damaged, and nobody asked for it
                yield entry.path.stat().st_mtime, seconds, entry.spec()


def _middle(times: Sequence[tuple[float, float]]) -> float:
    """Of the latest; times: (when, seconds)."""
    return statistics.median(each for _, each in sorted(times)[-RECENT:])


def evaluations_of(
    states: Sequence[float], sampling: Walk, interval: Sequence[float] | None = None
) -> tuple[int, int]:
    """How often a sample asks its model, and how often what guidance leads away from."""
    low, high = interval or (-math.inf, math.inf)
    asked = sampling.asked(states)
    guided = [n for state, n in asked.items() if low <= state < high and sampling.guidance != 1]
    return sum(asked.values()), sum(guided)


def _evaluated(networks: Sequence[dict[str, Any]], guided: bool) -> str:
    keys = (*NetworkSpec.model_fields, "top")  # experts that answer for a sample, where it varies
    return canonical_json([guided, *(spec.get(key) for spec in networks for key in keys)])


class History:
    """What finished jobs of the store took, those of each kind read once."""

    def __init__(self, workspace: Workspace):
        self._workspace = workspace
        self._known: dict[str, list[tuple[float, float, dict[str, Any]]]] = {}

    def of(self, kind: str, spec: Spec | None = None) -> float | None:
        """Seconds of a job as the latest took that are alike but for their rows; None of none.

        spec: None for a kind whose jobs have no settings of their own.
        """
        if kind not in self._known:
            self._known[kind] = list(_timed(self._workspace, kind))
        wanted = {} if spec is None else spec.as_json()
        times = [
            (when, seconds / _rows(made))
            for when, seconds, made in self._known[kind]
            if made.get("settings") == wanted.get("settings")
        ]
        return _middle(times) * _rows(wanted) if times else None


def _rows(spec: dict[str, Any]) -> int:
    """Rows of a shard, or passes over them; 1 of a job whose settings say how much it does."""
    first, last = spec.get("slots") or (spec.get("first", 0), spec.get("last", 1))
    return last - first


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
