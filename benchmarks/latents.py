"""Latents or pixels at the same wall-clock: what the autoencoder costs, and what it saves.

`python benchmarks/latents.py` trains the autoencoder once, then networks of one shape on its
latents and on pixels of Fashion-MNIST, three seeds each; benchmarks/results/latents.json holds the
FID of each over its measured seconds of training, and what the autoencoder itself took. Run it
again to go on where it was interrupted.
"""

import json
from typing import Any

import experiment
import fashion
import numpy as np
from experiment import images_to_reach, summarise, wall_curve

LATENT_IMAGES, PIXEL_IMAGES = 32_000, 6_000


def main() -> None:
    latent = fashion.params({"latent": {}}, images=LATENT_IMAGES)
    pixels = fashion.params({"pixels": {}}, images=PIXEL_IMAGES, milestones=[1_500, 3_000])
    pixels["latent"] = {"encoder": "pixels"}
    # The same network on more levels: at its lowest it sees what the latents' network sees.
    pixels["defaults"]["network"]["multipliers"] = [1, 1, 2]
    pixels["defaults"]["training"]["warmup"] = 500
    runs = {
        "latent": experiment.run("latents", latent),
        "pixels": experiment.run("latents-pixels", pixels),
    }
    folder = experiment.BENCH / "latents"
    summary = json.loads((folder / "results" / "summary.json").read_text())
    encoder = json.loads(next((folder / "artefacts" / "latents").glob("*/record.json")).read_text())
    scores = reconstruction(folder)
    rows: list[dict[str, Any]] = []
    for seed in fashion.SEEDS:
        of = {k: next(iter(e.seeds().values()))[seed] for k, e in runs.items()}
        seconds, fid = wall_curve(of["pixels"], 1)
        own_seconds, own_fid = wall_curve(of["latent"], 1)
        rows.append(
            {
                "seed": seed,
                "pixel_seconds": float(seconds[-1]),
                "pixel_fid": float(fid[-1]),
                "latent_seconds": float(own_seconds[-1]),
                "latent_fid": float(own_fid[-1]),
                "latent_seconds_to_pixel_fid": images_to_reach(own_seconds, own_fid, fid[-1]),
            }
        )
    experiment.print_table(rows, list(rows[0]))
    sooner = [r["pixel_seconds"] / (r["latent_seconds_to_pixel_fid"] or np.inf) for r in rows]
    headline = {
        "values_ratio": 32 * 32 / (2 * 8 * 8),
        "reconstruction_fid": scores["fid"],
        "encoder_seconds": encoder["seconds"],
        "latent_fid": summarise([r["latent_fid"] for r in rows])["mean"],
        "pixel_fid": summarise([r["pixel_fid"] for r in rows])["mean"],
        "wall_speedup_without_encoder": summarise(sooner)["mean"],
    }
    described = fashion.dataset() | {"floor": summary["reference"]["floor"]}
    experiment.write(runs["latent"], rows, headline, described)


def reconstruction(folder: Any) -> dict[str, Any]:
    """Scores of decoded images of the dataset."""
    from stages import steps
    from stages.workspace import Workspace

    workspace = Workspace(folder)
    return steps.reconstruction(workspace, steps.facts_of(workspace))["scores"]


if __name__ == "__main__":
    main()
