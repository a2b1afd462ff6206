"""One expert per state, trained apart, against one network for all: three speeds, never one.

`python benchmarks/disentangled.py` trains every arm with three seeds on Fashion-MNIST latents and
writes benchmarks/results/disentangled.json. `--long` does the main ones with four times the images,
`--tiny` the smallest networks with sixteen times, and `--pixels` some arms on 16x16 pixels with
half of them, into disentangled-long.json, -tiny.json and -pixels.json. All but shared-8 are sampled
on the same 16 states. Learning rates are chosen for each kind of network and batch by one seed at a
quarter of the budget (forks: all of it), the best with a worse one on either side. Run it again to
go on where it was interrupted.

All speed-ups are to equal FID: the worse of the two that the arm and its control end with. That is
the first arm of each setting, one network: `shared-16`, of `--tiny` `shared-tiny`.

* s_iterations: images that one worker must see, one after the other: the shared network's over the
  arm's, with a worker for each expert (or, for the data-parallel arm, as many workers for its
  batch, without communication).
* s_wall: the same in seconds with that many workers, computed from the measured seconds of jobs.
* s_compute: the same in training FLOPs, summed over all workers.
* ..._vs_small: beside `shared-small` instead, for experts of its size.
"""

import argparse
import copy
import sys
from dataclasses import dataclass, field
from typing import Any

import experiment
import fashion
from experiment import s_compute, s_iterations, s_wall, summarise

STATES = 16
IMAGES = 16_000
BATCH = 32
FEW = {"kind": "log-snr", "states": STATES, "log_snr_max": 7.0, "log_snr_min": -7.0}
EACH = {"kind": "per-state"}
# Learning rates. The middle three are tried, and the next one while the best is at an end.
RATES = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
MIDDLE = range(3, 6)


@dataclass(frozen=True)
class Arm:
    """What a recipe changes, and how many times the images of `shared-16` it sees in all."""

    kind: str  # arms of one kind share a learning rate, tuned on the first of them
    times: float
    recipe: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)


def few(states: int = STATES) -> dict[str, Any]:
    sampling = {"kind": "ddim", "steps": min(states, STATES)}
    return {"schedule": FEW | {"states": states}, "sampling": sampling}


def apart(channels: int | None = None) -> dict[str, Any]:
    """One expert per state, each with so many channels (None: as many as the shared network)."""
    widths = {"channels": [channels] * STATES} if channels else {}
    return few() | {"partition": EACH | widths}


def four(channels: int = 16) -> dict[str, Any]:
    """One expert for every four states."""
    partition = {"kind": "uniform", "intervals": 4}
    return few() | {"partition": partition, "network": {"channels": channels}}


FORKED = {"parent": "trunk"}
ARMS = {
    "shared-16": Arm("shared", 1, few()),
    "shared-1000": Arm("shared", 1, {}),
    "shared-8": Arm("shared", 1, few(8)),
    "shared-31": Arm("shared", 1, few(31)),  # this one and the next hold all of the 16 states
    "shared-61": Arm("shared", 1, few(61)),
    # As many weights as all experts together.
    "shared-wider": Arm("wider", 1, few() | {"network": {"channels": 64}}),
    # A quarter of the FLOPs an image, as a control for the small experts.
    "shared-small": Arm("shared-small", 4, few() | {"network": {"channels": 8}}),
    # A quarter of the images of `shared-16` for each expert, and as many.
    "experts-quarter": Arm("experts", 4, apart()),
    "experts": Arm("experts", 16, apart()),
    # A quarter and a sixteenth of the FLOPs an image.
    "experts-small": Arm("small", 4, apart(8), {"budget": "by-difficulty"}),
    "experts-small-even": Arm("small", 4, apart(8)),
    "experts-tiny": Arm("tiny", 8, apart(4)),
    "intervals": Arm("intervals", 2, four()),
    "intervals-small": Arm("intervals-small", 4, four(8)),
    # So small that all images are more than one can learn from.
    "shared-tiny": Arm("shared-tiny", 4, few() | {"network": {"channels": 4}}, {"batch": 128}),
    "intervals-tiny": Arm("intervals-tiny", 4, four(4), {"batch": 128}),
    # As many workers as there are states, one batch: what the same machines could do otherwise.
    "data-parallel": Arm("data-parallel", 4, few(), {"batch": BATCH * STATES}),
    "trunk": Arm("shared", 0.25, few(), {"milestones": []}),
    "forked": Arm("forked", 2, apart(), FORKED),
    "forked-intervals": Arm("forked-intervals", 2, four(), FORKED),
}
APART = ("experts", "experts-quarter", "experts-small", "experts-small-even", "experts-tiny")
SMALL = ("experts-small", "experts-small-even", "intervals-small")
# A small network is cheaper by itself: what small experts add to that.
BESIDE = ("s_iterations_vs_small", "s_compute_vs_small")
HEADLINE = (*APART, "intervals", "intervals-small", "intervals-tiny")
HEADLINE += ("shared-small", "forked", "data-parallel")


@dataclass(frozen=True)
class Setting:
    """One run of this benchmark: its result's name, the images of `shared-16`, and the arms.

    The first arm is what the others are compared with.
    """

    name: str
    images: int
    arms: tuple[str, ...]
    pixels: bool = False


TINY = Setting("disentangled-tiny", 16 * IMAGES, ("shared-tiny", "intervals-tiny"))
LATENTS = Setting("disentangled", IMAGES, tuple(arm for arm in ARMS if arm not in TINY.arms))
LONG = Setting(
    "disentangled-long",
    4 * IMAGES,
    (
        "shared-16",
        "shared-small",
        "experts-quarter",
        "experts-small",
        "intervals",
        "intervals-small",
        "data-parallel",
    ),
)
PIXELS = Setting(
    "disentangled-pixels",
    IMAGES // 2,
    ("shared-16", "experts", "data-parallel", "trunk", "forked"),
    pixels=True,
)


def recipe(arm: Arm, images: int, rate: float) -> dict[str, Any]:
    """An arm where `shared-16` sees so many images, scored at each half of its own to an eighth."""
    total = int(arm.times * images)
    training = {
        "images": total,
        "milestones": [total // 8, total // 4, total // 2],
        "learning_rate": rate,
        "experts_per_job": 4,
    }
    return arm.recipe | {"training": training | arm.training}


def params(recipes: dict[str, Any], pixels: bool) -> dict[str, Any]:
    found = fashion.params(recipes, batch=BATCH, warmup=500, ema_halflife=1_000)
    if pixels:
        found["data"]["resolution"] = 16
        found["latent"] = {"encoder": "pixels"}
    return found


def tuned(setting: Setting) -> dict[str, dict[float, float]]:
    """For each kind of the setting's arms, each learning rate's FID at a quarter of the images.

    Forks at all of them: what is best for a short fine-tuning is far too low for a longer one.
    """
    wanted = {ARMS[name].kind for name in setting.arms}
    first = {arm.kind: arm for arm in reversed(ARMS.values()) if arm.kind in wanted}
    forks = {kind: arm for kind, arm in first.items() if "parent" in arm.training}
    scratch = {kind: arm for kind, arm in first.items() if kind not in forks}
    found = scores(setting, "tuning", scratch, setting.images // 4)
    if forks:
        trunk = recipe(ARMS["trunk"], setting.images, best(found["shared"])) | {"seeds": [0]}
        found |= scores(setting, "forks", forks, setting.images, trunk=trunk)
    return found


def scores(
    setting: Setting, part: str, kinds: dict[str, Arm], images: int, **others: Any
) -> dict[str, dict[float, float]]:
    def score(wanted: list[tuple[str, int]]) -> dict[tuple[str, int], float]:
        recipes = dict(others)
        for kind, number in wanted:
            short = recipe(kinds[kind], images, RATES[number]) | {"seeds": [0]}
            short["training"]["milestones"] = []
            recipes[f"tune-{kind}-{number}"] = short
        done = experiment.run(f"{setting.name}-{part}", params(recipes, setting.pixels)).seeds()
        return {(kind, n): done[f"tune-{kind}-{n}"][0]["fid"] for kind, n in wanted}

    found = experiment.bracket(score, kinds, MIDDLE, len(RATES))
    return {kind: {RATES[n]: fid for n, fid in fids.items()} for kind, fids in found.items()}


def best(fids: dict[float, float]) -> float:
    return min(fids, key=fids.__getitem__)


def with_workers(arm: str, run: dict[str, Any], workers: int = STATES) -> dict[str, Any]:
    """A data-parallel run as if its batch were spread over workers that cost nothing to join."""
    if arm != "data-parallel":
        return run
    run = copy.deepcopy(run)
    for point in run["milestones"].values():
        point["images_seen_critical"] /= workers
        point["expert_seconds"] = [[s / workers for s in own] for own in point["expert_seconds"]]
    return run


Runs = dict[str, dict[int, dict[str, Any]]]  # arm -> seed -> metrics


def on(workers: int, runs: Runs) -> Runs:
    return {
        arm: {seed: with_workers(arm, run, workers) for seed, run in own.items()}
        for arm, own in runs.items()
    }


def against(runs: Runs, base: str, arm: str, workers: int = STATES) -> dict[str, dict[str, Any]]:
    """The three speeds of an arm over another, each over the seeds."""
    spread = on(workers, {name: runs[name] for name in (base, arm)})
    pairs = list(zip(spread[base].values(), spread[arm].values(), strict=True))
    return {
        "s_iterations": summarise([s_iterations(a, b, worse=True) for a, b in pairs]),
        "s_compute": summarise([s_compute(a, b, worse=True) for a, b in pairs]),
        "s_wall": summarise([s_wall(a, b, workers, worse=True) for a, b in pairs]),
    }


def table(runs: Runs) -> list[dict[str, Any]]:
    rows, base = [], next(iter(runs))
    for arm, own in runs.items():
        row = {
            "arm": arm,
            "fid": summarise([run["fid"] for run in own.values()]),
            "images": next(iter(own.values()))["images_seen"],
        }
        row |= against(runs, base, arm)
        row["s_wall_2"] = against(runs, base, arm, workers=2)["s_wall"]
        if arm in SMALL and "shared-small" in runs:
            beside = against(runs, "shared-small", arm)
            row |= {key: beside[key.removesuffix("_vs_small")] for key in BESIDE}
        rows.append(row)
    return rows


def figures(runs: Runs, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The headline: means of the table, and arms beside others than its first."""
    found = {}
    for row in rows[1:]:
        if row["arm"] in HEADLINE:
            suffix = "" if row["arm"] == "experts" else f"_{row['arm']}"
            for key in ("s_iterations", "s_wall", "s_compute", *BESIDE):
                if key in row:
                    found[key + suffix] = row[key]["mean"]
    for arm in APART:
        if arm in runs:
            wall = against(runs, "data-parallel", arm)["s_wall"]["mean"]
            suffix = arm.removeprefix("experts").replace("-", "_")
            found[f"s_wall_vs_data_parallel{suffix}"] = wall
    return found


def main() -> None:
    sys.stdout.reconfigure(line_buffering=True)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    which = parser.add_mutually_exclusive_group()
    for flag, setting, about in (
        ("--long", LONG, "four times the images, fewer arms"),
        ("--tiny", TINY, "sixteen times, the smallest networks"),
        ("--pixels", PIXELS, "16x16 pixels instead of latents"),
    ):
        which.add_argument(flag, dest="setting", action="store_const", const=setting, help=about)
    parser.set_defaults(setting=LATENTS)
    setting = parser.parse_args().setting
    tuning = tuned(setting)
    rates = {kind: best(fids) for kind, fids in tuning.items()}
    print(f"learning rates: {rates}")
    wanted = {
        name: recipe(ARMS[name], setting.images, rates[ARMS[name].kind]) for name in setting.arms
    }
    done = experiment.run(setting.name, params(wanted, setting.pixels))
    runs = done.seeds()
    rows = table(runs)
    experiment.show(rows)
    described = fashion.dataset() | {
        "learning_rates": rates,
        "tuning_fid": tuning,
        "workers": STATES,
    }
    if setting.pixels:
        described = described | {k: done.params[k] for k in ("data", "latent")}
    experiment.write(done, rows, figures(runs, rows), described)


if __name__ == "__main__":
    main()
