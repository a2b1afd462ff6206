"""Experts fine-tuned on parts of the time axis and merged into one network, against one longer run.

`python benchmarks/merging.py` trains every arm with three seeds on Fashion-MNIST latents and writes
benchmarks/results/merging.json: a parent; its experts routed (an ensemble), averaged, merged with
searched weights, by TIES, with projections; one fine-tune of the whole network for the same images;
and a weighted sum of one run's snapshots. The search sees 512 images that no network was trained on
and that the scores do not use; `confirmed` chooses its best candidates by the FID of 500 samples to
all 2,048 such images; a grid checks it for one seed. Run it again to go on where it was
interrupted.
"""

import json
from typing import Any

import experiment
import fashion
from experiment import summarise

PARENT, FURTHER = 32_000, 24_000
SEARCHED = {"method": "task-vector", "images": 512}
METHODS: dict[str, dict[str, Any]] = {
    "route": {"method": "route"},
    "average": {"method": "average"},
    "searched": SEARCHED,
    "searched-random": SEARCHED | {"search": "random", "evaluations": 20},
    "confirmed": SEARCHED | {"confirm": 500},
    "ties": {"method": "ties", "density": 0.5},
}
GRID_LEVELS = 5
FINE_TUNED = {
    "parent": "parent",
    "images": FURTHER,
    "milestones": [],
    "learning_rate": 0.0005,
    "warmup": 500,
}


def arms() -> dict[str, Any]:
    experts = {
        "partition": {"kind": "uniform", "intervals": 3},
        "training": FINE_TUNED,
        "decouple": {"outside": 0.1, "consistency": 0.1},
    }
    found = {"parent": {"training": {"images": PARENT, "milestones": [16_000]}}}
    found |= {name: experts | {"merge": merge} for name, merge in METHODS.items()}
    projected = experts | {"network": {"projections": True}}
    found["projected"] = projected | {"merge": SEARCHED | {"confirm": 500}}
    found["projected-longer"] = {"training": FINE_TUNED, "network": {"projections": True}}
    grid = SEARCHED | {"search": "grid", "levels": GRID_LEVELS}
    found["searched-grid"] = experts | {"merge": grid, "seeds": [0]}
    found["longer"] = {"training": FINE_TUNED}
    snapshots = {"milestones": [PARENT // 2, PARENT * 3 // 4], "images": PARENT}
    found["snapshots"] = {
        "training": snapshots,
        "merge": {"method": "snapshots", "images": 512},
    }
    return found


def main() -> None:
    done = experiment.run("merging", fashion.params(arms()))
    runs = done.seeds()
    rows, headline = [], {}
    for arm, own in runs.items():
        row = {"arm": arm}
        for key in ("fid", "precision", "recall", "images_seen", "parameters_active"):
            row[key] = summarise([run[key] for run in own.values()])
        rows.append(row)
        headline[f"fid_{arm}"] = round(row["fid"]["mean"], 3)
    experiment.show(rows)
    experiment.write(done, rows, headline, fashion.dataset() | {"searches": searches()})


def searches() -> list[dict[str, Any]]:
    """What each search evaluated and found; a full grid of 11 values would be 1,331 evaluations."""
    found = []
    for path in sorted((experiment.BENCH / "store" / "merged").glob("*/report.json")):
        if (path.parent / "DONE").exists():
            settings = json.loads((path.parent / "spec.json").read_text())["settings"]
            if settings["method"] in ("task-vector", "snapshots"):
                found.append({"settings": settings, **json.loads(path.read_text())})
    return found


if __name__ == "__main__":
    main()
