"""The stage `consistency`: how alike two or more recipes answer to the same noise."""

from __future__ import annotations

import numpy as np

from pipeline import plan
from pipeline.data.params import Pixels
from pipeline.params.load import load
from pipeline.specs import ConsistencySpec, OutputsSpec, spec_of
from pipeline.store.entry import Entry, Store
from pipeline.store.files import write_json, write_sealed
from stages import merge, pictures
from stages.facts import facts_of
from stages.fanout import fan_out
from stages.features import extractor_of
from stages.inputs import dataset_of, latents_of, mixture_of, save_array
from stages.reporter import Reporter
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
    pictures.save(pictures.grid(np.concatenate(samples), columns), folder / "consistency.png")
    pixels = isinstance(workspace.params.latent, Pixels)
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
    params = load(workspace.root / "params.yaml")
    if params.evaluate.consistency is None:
        return {}, {}
    facts = facts_of(workspace)
    recipes, compared = plan.experts(params, facts), params.evaluate.consistency.recipes
    ends = {name: merge.milestones_of(workspace, name)[-1] for name in compared}
    return plan.consistency(
        params,
        facts,
        recipes,
        {name: end["mixture"] for name, end in ends.items()},
        {name: merge.guide_of(workspace, recipes[name], ends[name]["images"]) for name in compared},
        plan.features(params, facts),
    )


def run_outputs(
    spec: OutputsSpec, entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    import torch

    from pipeline.evaluation.consistency import estimates as estimated
    from pipeline.evaluation.consistency import nearest_training
    from pipeline.sampling.mixture import draw

    torch.set_num_threads(spec.threads)
    extractor, _ = extractor_of(store.entry(spec.features), workspace)
    mixture = mixture_of(spec.mixture, store, workspace, spec.led)
    count, seed, asked = spec.samples, spec.seed, [own for _, own in spec.levels]
    total = len(spec.states) + len(asked)
    reporter.unit = "states"
    images, _ = draw(
        mixture,
        spec.states,
        range(count),
        seed=seed,
        sampling=spec.sampling,
        batch=spec.batch,
        class_counts=spec.class_counts,
        progress=lambda done, _: reporter.progress(done, total),
    )
    estimates = estimated(
        mixture,
        latents_of(spec.latents, store),
        count,
        spec.images.rows,
        asked,
        seed=seed,
        batch=spec.batch,
    )
    nearest, real = nearest_training(
        images, dataset_of(workspace, spec.images), spec.nearest, spec.flips
    )
    for name, values in (
        ("images", images),
        ("features", extractor.features(images)),
        ("estimates", estimates),
        ("nearest", nearest),
        ("real-nearest", real),
    ):
        save_array(entry.path / f"{name}.npy", values)
    reporter.progress(total, total)


def run_consistency(
    spec: ConsistencySpec, entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    import numpy as np

    from pipeline.evaluation.consistency import Outputs, compare

    def array(of: Entry, name: str) -> np.ndarray:
        return np.load(of.file(f"{name}.npy"), mmap_mode="r", allow_pickle=False)

    def outputs(of: Entry) -> Outputs:
        levels = [level for level, _ in spec_of(of).levels]
        images, features, nearest, estimates = (
            array(of, name) for name in ("images", "features", "nearest", "estimates")
        )
        by_level = dict(zip(levels, estimates, strict=True))
        return Outputs(images, features, nearest, by_level)

    a, b = (store.entry(name) for name in spec.outputs)
    reference = store.entry(spec.features)
    labelled = "labels.npy" in reference.files()
    found = compare(
        outputs(a),
        outputs(b),
        spec.levels,
        array(reference, "features"),
        array(a, "real-nearest"),
        real_labels=array(reference, "labels") if labelled else None,
        seed=spec.seed,
        level=spec.level,
        resamples=spec.resamples,
        similarity=spec.similarity,
    )
    write_json(entry.path / "comparison.json", found)
