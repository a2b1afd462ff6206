"""Does taking the mean image out of the choice mend KNN selection? With and without, on two bases.

`python benchmarks/centering.py` trains each row with three seeds on Fashion-MNIST latents as
benchmarks/immiscible.py does, scores it at 8 and 16 sampling steps, and writes
benchmarks/results/centering.json. Run it again to go on where it was interrupted.
"""

from typing import Any

import experiment
import fashion
import immiscible
import numpy as np
from experiment import summarise

ARMS = ("independent", "knn-l2", "knn-l2-centered", "knn-dot", "knn-dot-centered")
STEPS = (8, 16)


def recipes() -> dict[str, Any]:
    return {
        f"{base}-{arm}-{steps}": settings
        | immiscible.ARMS[arm]
        | {"sampling": {"kind": "ddim", "steps": steps}}
        for base, settings in immiscible.BASES.items()
        for arm in ARMS
        for steps in STEPS
    }


def main() -> None:
    done = experiment.run("centering", fashion.params(recipes(), images=24_000, milestones=[]))
    runs = done.seeds()
    rows, headline = [], {}
    for base in immiscible.BASES:
        plain = {steps: immiscible.fids(runs[f"{base}-independent-{steps}"]) for steps in STEPS}
        for arm in ARMS:
            row: dict[str, Any] = {"base": base, "arm": arm}
            for steps in STEPS:
                own = immiscible.fids(runs[f"{base}-{arm}-{steps}"])
                gain = [a / b for a, b in zip(plain[steps], own, strict=True)]
                row |= {f"fid_{steps}": summarise(own), f"gain_{steps}": summarise(gain)}
                headline[f"{base}_{arm}_gain_{steps}"] = round(float(np.mean(gain)), 3)
            rows.append(row)
    experiment.show(rows)
    experiment.write(done, rows, headline, fashion.dataset())


if __name__ == "__main__":
    main()
