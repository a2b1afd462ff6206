"""The stage `features`: the extractor, and the features of the real images."""

from __future__ import annotations

from typing import Any

from pipeline import plan
from pipeline.errors import UserError
from pipeline.evaluation.params import Features
from pipeline.specs import FeaturesSpec, spec_of
from pipeline.store.entry import Entry, Store
from pipeline.store.files import replacing, write_json
from stages.facts import facts_of, fresh_params
from stages.fanout import fan_out
from stages.inputs import (
    dataset_of,
    device,
    mapped_images,
    new_array,
    save_array,
    stopping,
    training_progress,
)
from stages.reporter import Reporter
from stages.workspace import Workspace


def run_features(
    spec: FeaturesSpec, entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    import numpy as np
    import torch

    from pipeline.evaluation import frechet
    from pipeline.evaluation.features import classifier_extractor, save_extractor
    from pipeline.training.classifier import train_classifier

    torch.set_num_threads(1)
    images = dataset_of(workspace, spec.images)
    info, rows = images.info, spec.images.rows
    labels = images.labels(0, rows)
    settings = spec.settings
    report: dict[str, Any] = {}
    if settings.extractor == "classifier":
        with stopping(reporter, entry) as stop:
            module, report = train_classifier(
                mapped_images(images, rows, entry, reporter.log),
                labels,
                entry.path,
                classes=len(info.classes) if info.classes else None,
                images_budget=settings.images,
                seed=spec.seed,
                device=device(),
                progress=training_progress(reporter),
                log=reporter.log,
                stop=stop,
                **settings.arguments("images"),
            )
        if labels is not None and report["task"] == "rotations":
            reporter.log("all images have one label: the classifier learnt rotations instead")
        save_extractor(module, entry.path / "extractor.safetensors", report)
        extractor = classifier_extractor(module, device=device())
    else:
        extractor = _other_extractor(settings, workspace)
    with replacing(entry.path / "features.npy") as path:
        size = (rows, extractor.dimension)
        found = new_array(path, np.float32, size)
        start = 0
        for block, _ in images.blocks(0, rows):
            found[start : start + len(block)] = extractor.features(block)
            start += len(block)
        found.flush()
    if labels is not None:
        save_array(entry.path / "labels.npy", labels)
    frechet.moments(found, extractor.digest).save(entry.path / "reference.safetensors")
    report |= {
        "extractor": extractor.name,
        "extractor_digest": extractor.digest,
        "dimension": extractor.dimension,
    }
    write_json(entry.path / "report.json", report)


def _other_extractor(settings: Features, workspace: Workspace):
    """An extractor that is not trained here; paths in params.yaml are relative to the project."""
    from pipeline.evaluation.features import module_extractor, torch_fidelity_extractor

    weights = settings.weights and workspace.root / settings.weights
    if settings.extractor == "module":
        path, _, name = settings.module.rpartition(":")
        return module_extractor(f"{workspace.root / path}:{name}", weights, device=device())
    return torch_fidelity_extractor(settings.extractor, weights, device=device())


def extractor_of(reference: Entry, workspace: Workspace):
    """The extractor of a features entry, and the moments that it found of the real images."""
    from pipeline.evaluation.features import load_extractor
    from pipeline.evaluation.frechet import Moments

    settings = spec_of(reference).settings
    if settings.extractor == "classifier":
        extractor = load_extractor(reference.file("extractor.safetensors"), device=device())
    else:
        extractor = _other_extractor(settings, workspace)
    moments = Moments.load(reference.file("reference.safetensors"))
    if extractor.digest != moments.extractor:
        raise UserError(
            f"extractor {extractor.name}: is not the one of {reference.path} any more (other "
            "weights or another version); delete that folder and run `dvc repro` again"
        )
    return extractor, moments


def features(workspace: Workspace) -> None:
    """The feature extractor, and the features of the real images."""
    from pipeline.evaluation.scores import features_warning

    facts = facts_of(workspace, analysed=False)
    fan_out(workspace, "features", lambda: [plan.features(fresh_params(workspace), facts)])
    made = workspace.store.entry(plan.features(workspace.params, facts).name)
    warning = features_warning(made.load_json("report.json"))
    if warning:
        print(f"WARNING: {warning}")
