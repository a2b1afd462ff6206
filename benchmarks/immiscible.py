"""Does paired noise train faster? Immiscible diffusion and its controls, on two baselines.

`python benchmarks/immiscible.py` trains every arm with three seeds on Fashion-MNIST latents, scores
it at 8, 16 and 50 sampling steps, and writes benchmarks/results/immiscible.json. Run it again to go
on where it was interrupted.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import experiment
import fashion
import numpy as np
from experiment import summarise

BASES: dict[str, dict[str, Any]] = {
    "ddpm": {"schedule": fashion.SCHEDULE},
    "edm": fashion.EDM,
}
# The length of the noises that knn-l2 with 8 candidates chooses, over that of all (d = 128).
SHORTER = 0.93
ARMS: dict[str, dict[str, Any]] = {
    "independent": {},
    "assignment-256": {"pairing": {"method": "assignment", "block": 256}},
    "assignment-dataset": fashion.PAIRED,
    # As published, and with the mean image taken out before an image chooses.
    "knn-l2": {"pairing": {"method": "knn-l2", "candidates": 8, "center": False}},
    "knn-l2-centered": {"pairing": {"method": "knn-l2", "candidates": 8}},
    "knn-dot": {"pairing": {"method": "knn-dot", "candidates": 8, "center": False}},
    "knn-dot-centered": {"pairing": {"method": "knn-dot", "candidates": 8}},
    "semidiscrete": {"pairing": {"method": "semidiscrete"}},
    "shorter-noise": {"pairing": {"method": "independent", "scale": SHORTER}},
    # Images scaled by 2 are a schedule shifted by 2 ln 2: one arm is both.
    "image-scale-2": {"shift": 1.386},
}
STEPS = (8, 16, 50)


def recipes() -> dict[str, Any]:
    found = {}
    for base, settings in BASES.items():
        for arm, own in ARMS.items():
            recipe = {**settings, **{k: v for k, v in own.items() if k != "shift"}}
            if "shift" in own:
                recipe["schedule"] = settings["schedule"] | {"shift": own["shift"]}
            for steps in STEPS:
                sampling = {"sampling": {"kind": "ddim", "steps": steps}}
                found[f"{base}-{arm}-{steps}"] = recipe | sampling
    return found


def main() -> None:
    done = experiment.run("immiscible", fashion.params(recipes(), images=24_000, milestones=[]))
    rows, headline = gains(done, ARMS, STEPS)
    runs = done.seeds()
    for row in rows:
        last = list(runs[f"{row['base']}-{row['arm']}-50"].values())
        row["precision"] = summarise([r["precision"] for r in last])
        row["recall"] = summarise([r["recall"] for r in last])
    experiment.show(rows)
    experiment.write(done, rows, headline, fashion.dataset())


def gains(
    done: experiment.Experiment, arms: Iterable[str], steps: Sequence[int]
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """A row for each base and arm: FID by sampling steps, and how often it divides `independent`'s.

    And the mean gains, by base, arm and steps.
    """
    runs = done.seeds()
    rows, headline = [], {}
    for base in BASES:
        plain = {n: fids(runs[f"{base}-independent-{n}"]) for n in steps}
        for arm in arms:
            row: dict[str, Any] = {"base": base, "arm": arm}
            for n in steps:
                own = fids(runs[f"{base}-{arm}-{n}"])
                gain = [a / b for a, b in zip(plain[n], own, strict=True)]
                row |= {f"fid_{n}": summarise(own), f"gain_{n}": summarise(gain)}
                headline[f"{base}_{arm}_gain_{n}"] = round(float(np.mean(gain)), 3)
            rows.append(row)
    return rows, headline


def fids(runs: dict[int, dict[str, Any]]) -> list[float]:
    return [run["fid"] for run in runs.values()]


if __name__ == "__main__":
    main()
