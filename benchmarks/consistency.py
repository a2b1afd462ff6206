"""How alike networks are that were trained apart, and what changes it.

`python benchmarks/consistency.py` trains each arm with three seeds (other weights, order, states
and noise each) on Fashion-MNIST latents, draws the same 256 starting noises through all of them,
and writes benchmarks/results/consistency.json: the consistency C of the samples of every two runs
(1: equal; 0: unrelated; `by chance`: other partners), C of their answers to the same noisy images
by noise level, and how near their samples are to training images. Run it again to go on where it
was interrupted.
"""

import json
import math
from typing import Any

import experiment
import fashion
import numpy as np
from disentangled import EACH, FEW, STATES
from experiment import summarise

IMAGES = 24_000
ARMS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "clts": {"curriculum": {"kind": "clts"}},
    "paired": fashion.PAIRED,
    "few-states": {"schedule": FEW},
    "experts": {
        "schedule": FEW,
        "partition": EACH,
        "training": {"images": 4 * IMAGES, "milestones": [2 * IMAGES], "experts_per_job": 4},
    },
}


def main() -> None:
    wanted = fashion.params(ARMS, images=IMAGES, milestones=[IMAGES // 2])
    wanted["evaluate"]["consistency"] = {"recipes": list(ARMS), "samples": 256, "states": 8}
    done = experiment.run("consistency", wanted)
    path = experiment.BENCH / "consistency" / "artefacts" / "consistency" / "consistency.json"
    pairs = json.loads(path.read_text())["pairs"]
    rows: list[dict[str, Any]] = []
    headline: dict[str, float] = {}
    for arm in ARMS:
        own = between(pairs, arm, arm)
        row = {"arm": arm, "seeds_alike": summarise([p["overall"]["value"] for p in own])}
        row["interval"] = spread_of(own)
        row["by_chance"] = summarise([p["null"]["value"] for p in own])
        row["same_features"] = summarise([p["features"]["value"] for p in own])
        row["copies"] = summarise([p["nearest"][m]["closer"] for p in own for m in ("a", "b")])
        row["like_uniform"] = summarise(
            [p["overall"]["value"] for p in between(pairs, arm, "uniform")]
        )
        row["fid"] = summarise([r["fid"] for r in done.seeds()[arm].values()])
        rows.append(row)
        headline[f"seeds_alike_{arm}"] = round(row["seeds_alike"]["mean"], 3)
    headline["by_chance"] = round(float(np.mean([p["null"]["value"] for p in pairs])), 3)
    curve = by_level(between(pairs, "uniform", "uniform"))
    headline["uniform_at_noisiest"] = round(curve[min(curve)]["mean"], 3)
    headline["uniform_at_cleanest"] = round(curve[max(curve)]["mean"], 3)
    levels = [
        {"level_of": arm, "log_snr": level, "consistency": found}
        for arm in ARMS
        for level, found in by_level(between(pairs, arm, arm)).items()
    ]
    experiment.show(rows)
    described = fashion.dataset() | {"pairs": pairs, "states": STATES}
    experiment.write(done, [*rows, *levels], headline, described)


def between(pairs: list[dict[str, Any]], a: str, b: str) -> list[dict[str, Any]]:
    """The pairs of runs of two arms (or of one) whose seeds differ."""
    found = []
    for pair in pairs:
        (x, i), (y, j) = (name.rsplit("-seed", 1) for name in (pair["a"], pair["b"]))
        if {x, y} == {a, b} and i != j:
            found.append(pair)
    return found


def spread_of(pairs: list[dict[str, Any]]) -> str:
    """The 95 % bootstrap intervals of several pairs, from the lowest end to the highest."""
    low = min(p["overall"]["low"] for p in pairs)
    return f"{low:.3f} to {max(p['overall']['high'] for p in pairs):.3f}"


def by_level(pairs: list[dict[str, Any]]) -> dict[float, dict[str, Any]]:
    """Consistency of the clean estimates at each log-SNR, over pairs."""
    at: dict[float, list[float]] = {}
    for pair in pairs:
        curve = pair["by_state"]
        for level, value in zip(curve["log_snr"], curve["value"], strict=True):
            if math.isfinite(level):
                at.setdefault(level, []).append(value)
    return {level: summarise(values) for level, values in sorted(at.items())}


if __name__ == "__main__":
    main()
