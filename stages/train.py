"""The stage `train`: experts, routers between them, and the networks merged of them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from pipeline import plan
from pipeline.devices import named
from pipeline.errors import UserError
from pipeline.specs import ExpertSpec, MergedSpec, Part, RouterSpec, spec_of
from pipeline.store.entry import Entry, Store
from pipeline.store.files import replacing, write_json, write_text
from stages.facts import facts_of, fresh_params
from stages.fanout import fan_out
from stages.features import extractor_of
from stages.film import drawn_beside
from stages.inputs import (
    checked_file,
    codec_of,
    dataset_of,
    device,
    file_of,
    latents_of,
    stopping,
    training_progress,
)
from stages.ranks import follow, together
from stages.reporter import Reporter
from stages.workspace import Workspace

if TYPE_CHECKING:
    from pipeline.training.group import Group


def run_merged(
    spec: MergedSpec, entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    from safetensors.torch import load_file, save_file

    from pipeline.merging.select import merge_experts

    def weights(source: Part):
        return load_file(store.entry(source.entry).file(source.file))

    parent = spec.parent and weights(spec.parent)
    if spec.initial is not None:
        parent = load_file(checked_file(workspace, spec.initial))

    reporter.unit = "evaluations"
    merged, report = merge_experts(
        spec,
        parent,
        [weights(source) for source in spec.experts],
        latents_of(spec.latents, store) if spec.latents else None,
        entry.state,
        _small_sample_fid(spec, entry, store, workspace) if spec.confirm else None,
        reporter.progress,
        reporter.log,
        workspace.root,
    )
    with replacing(entry.path / "weights.safetensors") as path:
        save_file(dict(merged), path)
    write_json(entry.path / "report.json", report)


def _small_sample_fid(spec: MergedSpec, entry: Entry, store: Store, workspace: Workspace):
    """What scores the candidates of a merge, with the latents' scale and decoder as they are."""
    from pipeline.evaluation.scores import useless_features
    from pipeline.merging.select import SmallSampleFid

    given = spec.confirm
    shared: dict[str, Any] = {"shift": given.shift, "scale": given.scale}
    shared |= {"decoder": None, "terminal": None}
    if given.encoder is not None:
        codec = codec_of(given.encoder, store)
        shared |= {"shift": list(codec.shift), "scale": codec.scale}
        shared["decoder"] = {"entry": given.encoder, "file": "encoder.json"}
    if given.terminal is not None:
        shared["terminal"] = {"entry": given.terminal, "file": "means.safetensors"}
    reference = store.entry(given.features)
    useless = useless_features(reference.load_json("report.json"))
    if useless:
        raise UserError(f"merge.confirm: {useless}; or set confirm to 0")
    extractor, _ = extractor_of(reference, workspace)
    images = dataset_of(workspace, given.images)
    return SmallSampleFid(
        spec,
        images.images(given.images.rows, given.images.rows + given.images.held_out),
        extractor,
        shared,
        file_of(store),
        entry.state,
        device(),
        workspace.root,
    )


def run_expert(
    spec: ExpertSpec, entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> dict[str, Any]:
    def fail(why: str) -> None:
        reporter.log(f"failed: {why}")
        write_text(entry.path / "error.txt", f"{why}\n")

    options = ["--root", str(workspace.root), "--store", str(store.root), entry.name]
    command = [sys.executable, "-m", "stages.cli", "job", *options]
    with (
        stopping(reporter, entry) as stop,
        together(entry.name, spec.training.shards, command, fail) as group,
    ):
        reporter.log(f"trains on {named(device())}")
        if group.size > 1:
            reporter.log(f"{group.size} processes share the batches")
        return train_expert(
            spec,
            entry,
            store,
            workspace,
            group,
            progress=training_progress(reporter),
            log=reporter.log,
            stop=stop,
        )


def train_expert(
    spec: ExpertSpec, entry: Entry, store: Store, workspace: Workspace, group: Group, **how: Any
):
    """What each process of a group does; `how` is what only that of rank 0 is given."""
    from pipeline.training.train import train

    parent = spec.parent and store.entry(spec.parent.entry).file(spec.parent.file)
    if spec.initial is not None:
        parent = checked_file(workspace, spec.initial)
    return train(
        spec,
        latents_of(spec.latents, store),
        entry.path,
        _pairings(spec, store),
        components=_components(spec, store),
        parent=parent,
        held_out=latents_of(spec.held_out, store) if spec.held_out else None,
        features=_features(spec, store),
        own=_own_rows(spec, store),
        root=workspace.root,
        group=group,
        **how,
    )


def run_router(
    spec: RouterSpec, entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    from pipeline.levels.clusters import read_clusters
    from pipeline.training.router import train_router

    with stopping(reporter, entry) as stop:
        train_router(
            spec,
            latents_of(spec.latents, store),
            read_clusters(store.entry(spec.clusters).file("clusters.npy")),
            entry.path,
            _pairings(spec, store),
            components=_components(spec, store),
            progress=training_progress(reporter),
            log=reporter.log,
            stop=stop,
        )


def follow_rank(address: dict[str, Any], store: Store, workspace: Workspace) -> None:
    """Take part in the training of experts that another process leads."""

    def one(name: str, group: Group) -> None:
        entry = store.entry(name)
        train_expert(spec_of(entry), entry, store, workspace, group)

    follow(address, one)


def _own_rows(spec: ExpertSpec, store: Store):
    """The rows of the cluster that an expert is of; None for one of all rows."""
    from pipeline.levels.clusters import rows_of

    if spec.cluster is None:
        return None
    return rows_of(store.entry(spec.clusters).file("clusters.npy"), spec.cluster)


def _components(spec: ExpertSpec | RouterSpec, store: Store):
    """The components in which a run keeps its paired noise; None for all."""
    from pipeline.noise.pairing import read_components

    if getattr(spec.pairing, "keep", None) is None:
        return None
    entry = store.entry(spec.pairings[0])
    return read_components(entry.file("components.arrow"), spec_of(entry).dataset)


def _features(spec: ExpertSpec, store: Store):
    """The features that a training is aligned with, mapped."""
    import numpy as np

    if spec.features is None:
        return None
    path = store.entry(spec.features).file("features.npy")
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _pairings(spec: ExpertSpec | RouterSpec, store: Store) -> list:
    from pipeline.noise.pairing import read_pairing

    found = []
    for name in spec.pairings:
        entry = store.entry(name)
        expect = {"data": spec_of(entry).dataset, "key": spec.noise_key}
        found.append(read_pairing(entry.file("pairing.arrow"), expect))
    return found


def train(workspace: Workspace) -> None:
    """Every recipe's experts and routers."""
    facts = facts_of(workspace)

    def jobs() -> list[plan.Job]:
        recipes = plan.experts(fresh_params(workspace), facts).values()
        trained = [job for recipe in recipes for job in recipe.trainings]
        return trained + [job for recipe in recipes for job in recipe.merged.values()]

    with drawn_beside(workspace):
        fan_out(workspace, "experts", jobs, ("latents", "analyses", "features", "pairings"))
