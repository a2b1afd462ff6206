"""Does taking the mean image out of the choice mend KNN selection? With and without, on two bases.

`python benchmarks/centering.py` trains each row with three seeds on Fashion-MNIST latents as
benchmarks/immiscible.py does, scores it at 8 and 16 sampling steps, and writes
benchmarks/results/centering.json. Run it again to go on where it was interrupted.
"""

from typing import Any

import experiment
import fashion
import immiscible

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
    rows, headline = immiscible.gains(done, ARMS, STEPS)
    experiment.show(rows)
    experiment.write(done, rows, headline, fashion.dataset())


if __name__ == "__main__":
    main()
