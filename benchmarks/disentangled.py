"""One expert per state, trained apart, against one network for all: three speeds, never one.

`python benchmarks/disentangled.py` trains every arm with three seeds on Fashion-MNIST latents and
writes benchmarks/results/disentangled.json; `--pixels` does the main ones on 16x16 pixels, with
half the images, into disentangled-pixels.json. All but shared-8 are sampled on the same 16 states.
Learning rates are chosen for each kind of arm by one seed at a quarter of the budget (recipes
tune-...). Run it again to go on where it was interrupted.

All speed-ups are to equal FID: the worse of the two that the arm and `shared-16` end with.

* s_iterations: images that one worker must see, one after the other: the shared network's over the
  arm's, with a worker for each expert (or, for the data-parallel arm, as many workers for its
  batch, without communication).
* s_wall: the same in seconds with that many workers, computed from the measured seconds of jobs.
* s_compute: the same in training FLOPs, summed over all workers.
"""

import argparse
import copy
import sys
from typing import Any

import experiment
import fashion
from experiment import summarise

STATES = 16
OTHER_STATES = (8, 31, 61)  # the last two hold all of the 16
IMAGES = 16_000
BATCH = 32
APART = ("experts", "experts-quarter", "experts-small", "experts-small-even", "experts-tiny")
PIXEL_ARMS = ("shared-16", "experts", "data-parallel", "trunk", "forked")
FEW = {"kind": "log-snr", "states": STATES, "log_snr_max": 7.0, "log_snr_min": -7.0}
EACH = {"kind": "per-state"}
RATES = (0.001, 0.003, 0.01, 0.03)


def budget(images: int, rate: float, **more: Any) -> dict[str, Any]:
    """Training to so many images, scored at each half of it down to an eighth."""
    milestones = [images // 8, images // 4, images // 2]
    return {"images": images, "milestones": milestones, "learning_rate": rate, **more}


def parallel(images: int, rate: float) -> dict[str, Any]:
    """As many workers as there are states, one batch: what the same machines could do otherwise."""
    return budget(images, rate, batch=BATCH * STATES)


def arms(rates: dict[str, float], images: int = IMAGES) -> dict[str, Any]:
    shared, apart, joined = rates["shared"], rates["experts"], rates["data-parallel"]
    four, all_each = 4 * images, STATES * images
    found: dict[str, Any] = {
        "shared-1000": {"training": budget(images, shared)},
        "shared-16": {"schedule": FEW, "training": budget(images, shared)},
        **{
            f"shared-{states}": {
                "schedule": FEW | {"states": states},
                "sampling": {"kind": "ddim", "steps": min(states, STATES)},
                "training": budget(images, shared),
            }
            for states in OTHER_STATES
        },
        "shared-wider": {
            "schedule": FEW,
            "network": {"channels": 32},
            "training": budget(images, shared / 2),
        },
        # Each expert sees as many images as `shared-16`, and a quarter as many.
        "experts": {"schedule": FEW, "partition": EACH, "training": budget(all_each, apart)},
        "experts-quarter": {"schedule": FEW, "partition": EACH, "training": budget(four, apart)},
        # A quarter and a sixteenth of the FLOPs an image.
        "experts-small": {
            "schedule": FEW,
            "partition": {"kind": "per-state", "channels": [8] * STATES},
            "training": budget(four, apart, budget="by-difficulty"),
        },
        "experts-small-even": {
            "schedule": FEW,
            "partition": {"kind": "per-state", "channels": [8] * STATES},
            "training": budget(four, apart),
        },
        "experts-tiny": {
            "schedule": FEW,
            "partition": {"kind": "per-state", "channels": [4] * STATES},
            "training": budget(2 * four, apart),
        },
        "data-parallel": {"schedule": FEW, "training": parallel(four, joined)},
        "trunk": {
            "schedule": FEW,
            "training": {"images": images // 4, "milestones": [], "learning_rate": shared},
        },
        "forked": {
            "schedule": FEW,
            "partition": EACH,
            "training": budget(2 * images, shared / 3, parent="trunk"),
        },
        "forked-intervals": {
            "schedule": FEW,
            "partition": {"kind": "uniform", "intervals": 4},
            "training": budget(2 * images, shared / 3, parent="trunk"),
        },
    }
    for recipe in found.values():
        recipe["training"].setdefault("experts_per_job", 4)
    return found


def tuning(images: int = IMAGES) -> dict[str, Any]:
    """Each kind of arm at a quarter of its budget and several learning rates."""
    found = {}
    for number, rate in enumerate(RATES):
        short = {"images": images // 4, "milestones": [], "learning_rate": rate}
        found[f"tune-shared-{number}"] = {"seeds": [0], "schedule": FEW, "training": short}
        found[f"tune-experts-{number}"] = {
            "seeds": [0],
            "schedule": FEW,
            "partition": EACH,
            "training": short | {"images": images, "experts_per_job": 4},
        }
        found[f"tune-data-parallel-{number}"] = {
            "seeds": [0],
            "schedule": FEW,
            "training": short | {"images": images, "batch": BATCH * STATES},
        }
    return found


def params(recipes: dict[str, Any], pixels: bool = False) -> dict[str, Any]:
    found = fashion.params(recipes, batch=BATCH, warmup=500, ema_halflife=1_000)
    if pixels:
        found["data"]["resolution"] = 16
        found["latent"] = {"encoder": "pixels"}
    return found


def chosen(tuned: experiment.Experiment) -> dict[str, float]:
    """The learning rate with the lowest FID for each kind of arm."""
    best: dict[str, tuple[float, float]] = {}
    for name, metrics in tuned.recipes.items():
        kind, _, number = name.removeprefix("tune-").removesuffix("-seed0").rpartition("-")
        scored = (metrics["fid"], RATES[int(number)])
        best[kind] = min(best.get(kind, (float("inf"), 0.0)), scored)
    return {kind: rate for kind, (_, rate) in best.items()}


def with_workers(arm: str, run: dict[str, Any], workers: int = STATES) -> dict[str, Any]:
    """A data-parallel run as if its batch were spread over workers that cost nothing to join."""
    if arm != "data-parallel":
        return run
    run = copy.deepcopy(run)
    for point in run["milestones"].values():
        point["images_seen_critical"] /= workers
        point["expert_seconds"] = [[s / workers for s in own] for own in point["expert_seconds"]]
    return run


def main() -> None:
    sys.stdout.reconfigure(line_buffering=True)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pixels", action="store_true", help="16x16 pixels instead of latents")
    pixels = parser.parse_args().pixels
    name, images = ("disentangled-pixels", IMAGES // 2) if pixels else ("disentangled", IMAGES)
    rates = chosen(experiment.run(f"{name}-tuning", params(tuning(images), pixels)))
    print(f"learning rates: {rates}")
    wanted = {k: v for k, v in arms(rates, images).items() if not pixels or k in PIXEL_ARMS}
    done = experiment.run(name, params(wanted, pixels))
    raw = done.seeds()
    runs = {arm: {s: with_workers(arm, run) for s, run in own.items()} for arm, own in raw.items()}
    rows, headline = [], {}
    for arm, own in runs.items():
        row: dict[str, Any] = {"arm": arm, "fid": summarise([r["fid"] for r in own.values()])}
        base = [(runs["shared-16"][seed], run) for seed, run in own.items()]
        row["images"] = next(iter(own.values()))["images_seen"]
        row["s_iterations"] = summarise(
            [experiment.s_iterations(b, r, worse=True) for b, r in base]
        )
        row["s_compute"] = summarise([experiment.s_compute(b, r, worse=True) for b, r in base])
        for key, workers in (("s_wall", STATES), ("s_wall_2", 2)):
            spread = [with_workers(arm, run, workers) for run in raw[arm].values()]
            pairs = zip((b for b, _ in base), spread, strict=True)
            row[key] = summarise([experiment.s_wall(b, r, workers, worse=True) for b, r in pairs])
        rows.append(row)
    experiment.show(rows)
    by_arm = {row["arm"]: row for row in rows}
    for arm in (*APART, "forked", "data-parallel"):
        for key in ("s_iterations", "s_wall", "s_compute"):
            if arm in by_arm:
                name = key if arm == "experts" else f"{key}_{arm}"
                headline[name] = by_arm[arm][key]["mean"]
    for arm in APART:
        if arm in runs:
            pairs = zip(runs["data-parallel"].values(), runs[arm].values(), strict=True)
            walls = [experiment.s_wall(joined, run, STATES, worse=True) for joined, run in pairs]
            suffix = arm.removeprefix("experts").replace("-", "_")
            headline[f"s_wall_vs_data_parallel{suffix}"] = summarise(walls)["mean"]
    described = fashion.dataset() | {"learning_rates": rates, "workers": STATES}
    if pixels:
        described = described | {k: done.params[k] for k in ("data", "latent")}
    experiment.write(done, rows, headline, described)


if __name__ == "__main__":
    main()
