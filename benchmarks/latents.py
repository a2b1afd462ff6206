"""Latents or pixels at the same wall-clock: what the autoencoder costs, and what it saves.

`python benchmarks/latents.py` trains the autoencoder once, then networks of one shape on its
latents and on pixels of Fashion-MNIST, three seeds each: `pixels` for somewhat longer than
`latents`, and one seed, `pixels-long`, for as long as autoencoder and latents together, what a
single recipe would pay. benchmarks/results/latents.json has the FID of each over its measured
seconds of training, and what the autoencoder itself took. Run it again to go on where it was
interrupted.
"""

import json
from pathlib import Path
from typing import Any

import experiment
import fashion
from experiment import images_to_reach, summarise, wall_curve

from pipeline.store.entry import Store

LATENT_IMAGES, PIXEL_IMAGES = 32_000, 6_000
ROUNDED = 1_000  # the long run's images


def pixel_params(images: int, milestones: list[int], seeds: list[int]) -> dict[str, Any]:
    recipe = {"seeds": seeds}
    found = fashion.params({"pixels": recipe}, images=images, milestones=milestones)
    found["latent"] = {"encoder": "pixels"}
    # The same network on more levels: at its lowest it sees what the latents' network sees.
    found["defaults"]["network"]["multipliers"] = [1, 1, 2]
    found["defaults"]["training"]["warmup"] = 500
    return found


def main() -> None:
    runs = {
        "latents": experiment.run("latents", fashion.params({"latent": {}}, images=LATENT_IMAGES)),
        "pixels": experiment.run(
            "latents-pixels", pixel_params(PIXEL_IMAGES, [1_500, 3_000], fashion.SEEDS)
        ),
    }
    folder = experiment.BENCH / "latents"
    record = next((folder / "artefacts" / "latents").glob("*/record.json"))
    encoder = (
        Store(experiment.BENCH / "store").entry(f"encoder/{record.parent.name}").circumstances()
    )
    took = {arm: summarise(list(seconds(done).values()))["mean"] for arm, done in runs.items()}
    long = PIXEL_IMAGES * (encoder["seconds"] + took["latents"]) / took["pixels"]
    long_images = round(long / ROUNDED) * ROUNDED
    runs["pixels-long"] = experiment.run("latents-pixels-long", pixel_params(long_images, [], [0]))

    rows: list[dict[str, Any]] = []
    for arm, done in runs.items():
        own = only(done).values()
        row: dict[str, Any] = {"arm": arm, "images": next(iter(own))["images_seen"]}
        row["seconds"] = summarise(list(seconds(done).values()))
        row["seconds_with_encoder"] = summarise(
            [s + (encoder["seconds"] if arm == "latents" else 0) for s in seconds(done).values()]
        )
        for key in ("fid", "precision", "recall"):
            row[key] = summarise([run[key] for run in own])
        rows.append(row)
    experiment.show(rows)
    sooner = []
    for seed, run in only(runs["latents"]).items():
        pixel_seconds, pixel_fid = wall_curve(only(runs["pixels"])[seed], 1)
        needed = images_to_reach(*wall_curve(run, 1), pixel_fid[-1])
        sooner.append(None if needed is None else pixel_seconds[-1] / needed)
    headline = {
        "values_ratio": 32 * 32 / (2 * 8 * 8),
        "reconstruction_fid": reconstruction(folder)["fid"],
        "encoder_seconds": encoder["seconds"],
        **{f"{row['arm'].replace('-', '_')}_fid": row["fid"]["mean"] for row in rows},
        "wall_speedup_without_encoder": summarise(sooner)["mean"],
    }
    summary = json.loads((folder / "results" / "summary.json").read_text())
    described = fashion.dataset() | {"floor": summary["reference"]["floor"]}
    experiment.write(runs["latents"], rows, headline, described)


def only(done: experiment.Experiment) -> dict[int, dict[str, Any]]:
    """The runs of an experiment's only recipe, by seed."""
    return next(iter(done.seeds().values()))


def seconds(done: experiment.Experiment) -> dict[int, float]:
    """Measured seconds of training, by seed."""
    return {seed: float(wall_curve(run, 1)[0][-1]) for seed, run in only(done).items()}


def reconstruction(folder: Path) -> dict[str, Any]:
    """Scores of decoded images of the dataset."""
    from stages import facts, sample
    from stages.workspace import Workspace

    workspace = Workspace(folder)
    return sample.reconstruction(workspace, facts.facts_of(workspace))["scores"]


if __name__ == "__main__":
    main()
