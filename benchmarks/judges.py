"""Do features of the very images and features of photographs order recipes alike?

    python benchmarks/judges.py data/open_nsfw.safetensors

takes the samples that `verdicts.py` left on a dataset and scores the last ones of each recipe of
EDM by two sets of features: those of the small classifier that was trained on this dataset, and
those of `open_nsfw.py`, which never saw it. The score is the kernel distance, which has no bias at
so few samples. Two recipes are told apart by features where all seeds of one are better than all of
the other. benchmarks/results/judges.json: the scores, the rank correlation of the recipes' means,
and how many pairs both features tell apart, alike or against each other.
"""

import argparse
import itertools
import os
from pathlib import Path
from typing import Any

import experiment
import numpy as np
import torch
from common import machine, write_results
from experiment import by_seed, summarise
from scipy import stats

SAMPLES, REAL = 500, 2_000
BASE = "edm"
JUDGES = ("classifier", "open_nsfw")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path, help="that open_nsfw.py wrote")
    parser.add_argument("--dataset", default="fashion")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    described = machine()
    torch.set_num_threads(options.threads)
    scores = scores_of(options.dataset, options.weights)
    runs = by_seed(scores, 0)
    rows: list[dict[str, Any]] = [
        {
            "recipe": name,
            **{judge: summarise([run[judge] for run in own.values()]) for judge in JUDGES},
        }
        for name, own in runs.items()
    ]
    rows.sort(key=lambda row: row["classifier"]["mean"])
    write_results("judges", rows, agreement(rows), described)


def scores_of(dataset: str, weights: Path) -> dict[str, dict[str, float]]:
    """Kernel distance by each judge, for each recipe and seed."""
    from pipeline import plan
    from pipeline.data.latents import Latents
    from pipeline.evaluation.features import module_extractor
    from pipeline.evaluation.fidelity import kernel_distance
    from pipeline.rows import spread
    from stages.facts import facts_of
    from stages.features import extractor_of
    from stages.inputs import dataset_of
    from stages.sample import sample_jobs
    from stages.workspace import Workspace

    os.environ["TSPACE_STORE"] = str(experiment.BENCH / "store")
    workspace = Workspace(experiment.BENCH / f"verdicts-{dataset}")
    params, facts = workspace.params, facts_of(workspace)
    recipes = plan.experts(params, facts)
    reference = plan.features(params, facts)
    classifier, _ = extractor_of(workspace.store.entry(reference.name), workspace)
    module = f"{Path(__file__).parent / 'open_nsfw.py'}:OpenNsfwResNet50"
    judges = dict(zip(JUDGES, (classifier, module_extractor(module, weights)), strict=True))
    images = dataset_of(workspace, reference.spec.images)
    chosen = spread(REAL, images.trained, images.labels(0, images.trained))
    real = np.concatenate([images.images(row, row + 1) for row in chosen])
    known = {name: judge.features(real) for name, judge in judges.items()}
    found: dict[str, dict[str, float]] = {}
    for (name, count), jobs in sample_jobs(workspace, params, facts, recipes).items():
        last = max(recipes[name].milestones)
        if count != last or not name.startswith((BASE, "best", "quick")):
            continue
        paths = [workspace.store.entry(job.name).file("samples.arrow") for job in jobs]
        samples = Latents(paths).raw(np.arange(SAMPLES))
        found[name] = {
            judge: kernel_distance(
                known[judge], own.features(samples), seed=0, subset_size=SAMPLES
            ).mean
            for judge, own in judges.items()
        }
        print(name, found[name], flush=True)
    return found


def agreement(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How the judges agree on the recipes."""
    means = [[row[judge]["mean"] for row in rows] for judge in JUDGES]
    order = {-1: 0, 0: 0, 1: 0}
    against = []
    for a, b in itertools.combinations(rows, 2):
        said = [better(a[judge], b[judge]) for judge in JUDGES]
        order[said[0] * said[1]] += 1
        if said[0] * said[1] < 0:
            against.append(f"{a['recipe']} and {b['recipe']}")
    return {
        "rank_correlation": float(stats.spearmanr(*means).statistic),
        "pairs": sum(order.values()),
        "pairs_alike": order[1],
        "pairs_against": order[-1],
        "against": ", ".join(against),
    }


def better(a: dict[str, Any], b: dict[str, Any]) -> int:
    """1 where all seeds of `a` are better than all of `b`, -1 where worse, else 0."""
    return int(a["max"] < b["min"]) - int(b["max"] < a["min"])


if __name__ == "__main__":
    main()
