"""What a run would take on a GPU that is not here: hours, memory and price, all of them estimates.

FLOPs are counted; how fast a GPU works through them is assumed, as a share of its published peak.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.levels.params import (
    FROM_DATA,
    DataPartition,
    LogSnrSchedule,
    SinglePartition,
    UniformPartition,
)
from pipeline.levels.partition import MEASURED
from pipeline.params.recipe import Params, Recipe
from pipeline.store.identity import canonical_json
from stages.numbers import si
from stages.tools.forecast import Drawing

if TYPE_CHECKING:
    from pipeline.specs import ExpertSpec
    from stages.tools.memory import Memory

UTILIZATION = 0.2  # of the peak; assumed, not measured
SAMPLING_PRECISION = "float32"  # `training.precision` is that of a training alone


@dataclass(frozen=True)
class Gpu:
    """memory: bytes. peak: FLOP/s by `training.precision`, dense, as its maker publishes it."""

    name: str
    memory: float
    peak: dict[str, float]


def _gpu(name: str, gigabytes: float, bfloat16: float, tf32: float, float32: float) -> Gpu:
    peak = {"bfloat16": bfloat16 * 1e12, "tf32": tf32 * 1e12, "float32": float32 * 1e12}
    return Gpu(name, gigabytes * 1e9, peak)


GPUS = (
    _gpu("A10", 24, 125, 62.5, 31.2),
    _gpu("A100", 80, 312, 156, 19.5),
    _gpu("H100", 80, 989.4, 494.7, 66.9),  # SXM
    _gpu("H200", 141, 989.4, 494.7, 66.9),
    _gpu("L40S", 48, 362, 183, 91.6),
    _gpu("RTX 3090", 24, 71, 35.6, 35.6),
    _gpu("RTX 4090", 24, 165.2, 82.6, 82.6),
)


@dataclass(frozen=True)
class Hardware:
    """A kind of GPU, the share of its peak that is reached, and its price in dollars an hour."""

    gpu: Gpu
    utilization: float = UTILIZATION
    price: float | None = None

    def hours(self, flops: float, precision: str) -> float:
        """Of one GPU."""
        return flops / (self.utilization * self.gpu.peak[precision]) / 3600

    def dollars(self, hours: float) -> float | None:
        return None if self.price is None else self.price * hours


def gpu_named(name: str) -> Gpu:
    """The GPU of a name, however it is spaced. UserError with the known ones."""

    def plain(text: str) -> str:
        return text.lower().replace(" ", "").replace("-", "")

    for gpu in GPUS:
        if plain(gpu.name) == plain(name):
            return gpu
    known = ", ".join(gpu.name for gpu in GPUS)
    raise UserError(f"--gpu: {name!r} is not known; one of: {known}")


@dataclass(frozen=True)
class Work:
    """An expert that has to be trained, or to be trained on. flops: of what is left."""

    recipe: str
    name: str
    spec: ExpertSpec
    flops: float


@dataclass(frozen=True)
class Share:
    """What is left of a recipe, on one GPU.

    assumed: what the recipe measures on the data was replaced, see `without_measurements`. memory:
    of its largest training; None where all are finished. dollars: None without a price.
    """

    recipe: str
    assumed: bool
    training_flops: float
    training_hours: float
    sampling_flops: float
    sampling_hours: float
    dollars: float | None
    memory: Memory | None
    memory_bytes: int  # its total; 0 of none


@dataclass(frozen=True)
class Estimate:
    """What is left of a run, on one GPU; an expert that recipes share counts once in the total."""

    hardware: Hardware
    recipes: list[Share]
    total: Share


def estimated(
    hardware: Hardware,
    work: Sequence[Work],
    drawings: Iterable[Drawing],
    assumed: Iterable[str],
    row_bytes: int,
    root: Path = Path(),
) -> Estimate:
    """What some experts and samples take. row_bytes: of all rows that the networks see."""
    drawn = {drawing.recipe: drawing for drawing in drawings}
    memory = _Memories(row_bytes, root)

    def share(recipe: str, work: Iterable[Work], drawings: Iterable[Drawing]) -> Share:
        left = [each for each in work if each.flops]
        hours = sum(hardware.hours(each.flops, each.spec.training.precision) for each in left)
        sampling = sum(drawing.flops_left for drawing in drawings)
        drawing_hours = hardware.hours(sampling, SAMPLING_PRECISION)
        most = max((memory.of(each.spec) for each in left), key=lambda m: m.total, default=None)
        return Share(
            recipe=recipe,
            assumed=recipe in assumed,
            training_flops=sum(each.flops for each in left),
            training_hours=hours,
            sampling_flops=sampling,
            sampling_hours=drawing_hours,
            dollars=hardware.dollars(hours + drawing_hours),
            memory=most,
            memory_bytes=most.total if most else 0,
        )

    recipes = [
        share(name, [each for each in work if each.recipe == name], [drawing])
        for name, drawing in drawn.items()
    ]
    once = {each.name: each for each in work}.values()
    return Estimate(hardware, recipes, share("", once, drawn.values()))


class _Memories:
    """Memory by what it depends on, looked at once."""

    def __init__(self, row_bytes: int, root: Path):
        self.row_bytes, self.root = row_bytes, root
        self._known: dict[str, Memory] = {}

    def of(self, spec: ExpertSpec) -> Memory:
        from stages.tools.memory import training_memory

        written = spec.as_json()
        own = ("network", "conditioning", "channels", "resolution", "classes", "interval_bounds")
        key = canonical_json([written.get(name) for name in (*own, "training", "decouple")])
        if key not in self._known:
            self._known[key] = training_memory(spec, self.row_bytes, self.root)
        return self._known[key]


def without_measurements(params: Params) -> Params:
    """The same with what is measured on the data replaced by something of the same size.

    Fitted states become as many even ones, intervals found from the data as many equal ones,
    budgets by difficulty equal, and clusters of the data one network on all of it, without router.
    Each expert's network and the sum of their images stay.
    """
    recipes = {name: _unmeasured(recipe) for name, recipe in params.recipes.items()}
    return params.model_copy(update={"recipes": recipes})


def _unmeasured(recipe: Recipe) -> Recipe:
    changed: dict[str, Any] = {}
    if isinstance(recipe.schedule, FROM_DATA):
        kept = recipe.schedule.model_dump(include=set(LogSnrSchedule.model_fields) - {"kind"})
        changed["schedule"] = LogSnrSchedule(kind="log-snr", **kept)
    if isinstance(recipe.partition, MEASURED):
        changed["partition"] = _equal(recipe.partition)
    elif isinstance(recipe.partition, DataPartition):  # its sizes are not known yet
        changed["partition"] = SinglePartition()
        changed["sampling"] = recipe.sampling.without("top")
    own = getattr(recipe.curriculum, "partition", None)
    if isinstance(own, MEASURED):
        curriculum = recipe.curriculum.model_copy(update={"partition": _equal(own)})
        changed["curriculum"] = curriculum
    if recipe.training.budget == "by-difficulty":
        changed["training"] = recipe.training.model_copy(update={"budget": "uniform"})
    return recipe.model_copy(update=changed)


def _equal(partition: Any) -> UniformPartition:
    widths = partition.channels
    return UniformPartition(kind="uniform", intervals=partition.intervals, channels=widths)


# --- as text


def table(found: Estimate) -> list[list[str]]:
    """A line a recipe, and one for all of them together."""
    priced = found.hardware.price is not None
    head = [
        "on the GPU",
        "to train",
        "hours",
        "to sample",
        "hours",
        *(["$"] if priced else []),
        "memory",
    ]
    return [head, *(_line(share, priced) for share in (*found.recipes, found.total))]


def _line(share: Share, priced: bool) -> list[str]:
    return [
        (share.recipe or "all") + (" *" if share.assumed else ""),
        _unit(share.training_flops, "FLOP"),
        f"{share.training_hours:,.1f}",
        _unit(share.sampling_flops, "FLOP"),
        f"{share.sampling_hours:,.1f}",
        *([f"{share.dollars:,.2f}"] if priced else []),
        _unit(share.memory_bytes, "B") if share.memory else "",
    ]


def lines(found: Estimate) -> Iterator[str]:
    """What the table rests on."""
    hardware, total = found.hardware, found.total
    gpu = hardware.gpu
    peaks = ", ".join(f"{peak / 1e12:,.4g} in {kind}" for kind, peak in gpu.peak.items())
    yield (
        f"on one {gpu.name}: estimates, from counted FLOPs and an assumed "
        f"{hardware.utilization:.0%} of its published peak ({peaks} TFLOP/s, dense); samples are "
        f"drawn in {SAMPLING_PRECISION}"
    )
    yield (
        f"GPU-hours: {total.training_hours:,.1f} of training, {total.sampling_hours:,.1f} of "
        "sampling; not counted: encoding, measurements, features, pairing, routers, merging, scores"
    )
    if any(share.assumed for share in found.recipes):
        yield (
            "* what it measures on the data is not known yet: as with as many even parts; of "
            "clusters of the data, as with one network"
        )
    memory = total.memory
    if memory is None:
        return
    whose = next(share.recipe for share in found.recipes if share.memory == memory)
    activations = "not known of such a network"
    if memory.activations is not None:
        activations = f"{_unit(memory.activations, 'B')} kept for the backward pass"
    yield (
        f"memory of a training step, at most in {whose}: weights {_unit(memory.weights, 'B')}, "
        f"gradients {_unit(memory.gradients, 'B')}, Adam's moments {_unit(memory.moments, 'B')}, "
        f"averages {_unit(memory.averages, 'B')}, rows {_unit(memory.rows, 'B')}, {activations}; "
        "workspaces come on top"
    )
    if memory.total > gpu.memory:
        yield (
            f"WARNING: that is more than the {_unit(gpu.memory, 'B')} of the {gpu.name}; double "
            "training.shards (the same batch in smaller parts)"
        )


def _unit(value: float, unit: str) -> str:
    return si(value, unit).replace("\u202f", " ")
