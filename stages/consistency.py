"""The stage `consistency`: how alike two or more recipes answer to the same noise."""

from __future__ import annotations

import numpy as np

from pipeline import config, plan
from pipeline.files import write_sealed
from stages import drawing, steps
from stages.fanout import fan_out
from stages.workspace import Workspace

SHOWN = 16  # samples of each recipe in the picture
STAGES = ("latents", "analyses", "experts", "features")  # whose artefacts the jobs read


def consistency(workspace: Workspace) -> None:
    """Every pair of the recipes in `evaluate.consistency`; nothing without that block.

    Writes artefacts/consistency/consistency.json and consistency.png (a row a recipe, a column a
    noise), which a run without the block removes.
    """

    def jobs() -> list[plan.Job]:
        outputs, pairs = consistency_jobs(workspace)
        return [*outputs.values(), *pairs.values()]

    fan_out(workspace, "consistency", jobs, STAGES)
    outputs, pairs = consistency_jobs(workspace)
    folder = workspace.artefacts("consistency")
    if not pairs:
        for name in ("consistency.json", "consistency.png"):
            (folder / name).unlink(missing_ok=True)
        return
    store = workspace.store
    found = [
        {"a": a, "b": b, **store.entry(job.name).load_json("comparison.json")}
        for (a, b), job in pairs.items()
    ]
    samples = [
        np.load(store.entry(job.name).file("images.npy"), mmap_mode="r")[:SHOWN]
        for job in outputs.values()
    ]
    columns = len(samples[0])
    drawing.save(drawing.grid(np.concatenate(samples), columns), folder / "consistency.png")
    pixels = isinstance(workspace.params.latent, config.Pixels)
    write_sealed(
        folder / "consistency.json",
        {
            "pairs": found,
            "grid": "consistency.png",
            "recipes": list(outputs),
            "samples": workspace.params.evaluate.consistency.samples,
            "estimates_in": "pixels" if pixels else "latents",
        },
    )
    for pair in found:
        overall, null = pair["overall"], pair["null"]["value"]
        print(
            f"consistency: {pair['a']} and {pair['b']}: {overall['value']:.3f} "
            f"({overall['low']:.3f} to {overall['high']:.3f}), by chance {null:.3f}"
        )


def consistency_jobs(
    workspace: Workspace,
) -> tuple[dict[str, plan.Job], dict[tuple[str, str], plan.Job]]:
    """The jobs of `plan.consistency`, by params.yaml as it is now."""
    params = config.load(workspace.root / "params.yaml")
    if params.evaluate.consistency is None:
        return {}, {}
    facts = steps.facts_of(workspace)
    return plan.consistency(
        params,
        facts,
        plan.experts(params, facts),
        {
            name: steps.milestones_of(workspace, name)[-1]["mixture"]
            for name in params.evaluate.consistency.recipes
        },
        plan.features(params, facts),
    )
