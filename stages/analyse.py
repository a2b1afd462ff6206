"""The stage `analyse`: spectrum, bounds, clusters and pilots."""

from __future__ import annotations

import dataclasses

from pipeline import plan
from pipeline.specs import BoundsSpec, ClustersSpec, PilotSpec, SpectrumSpec, spec_of
from pipeline.store.entry import Entry, Store
from pipeline.store.files import replacing, write_json
from stages.facts import analysed_in, facts_of, fresh_params
from stages.fanout import drop_damaged, fan_out
from stages.inputs import device, flat_rows, latents_of
from stages.reporter import Reporter
from stages.workspace import Workspace


def run_spectrum(
    spec: SpectrumSpec, entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    import torch
    from safetensors.torch import save_file

    from pipeline.levels import spectrum

    latents = latents_of(spec.latents, store, "cpu")
    means = {"means": torch.from_numpy(spectrum.means(latents, spec.classes))}
    with replacing(entry.path / "means.safetensors") as path:
        save_file(means, path)
    found = {"spectrum": spectrum.spectrum(latents).tolist(), "rows": len(latents)}
    write_json(entry.path / "analysis.json", found)


def run_bounds(
    spec: BoundsSpec, entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    import numpy as np

    from pipeline.levels import optimal_denoiser

    latents = latents_of(spec.latents, store, "cpu")
    settings = spec.settings
    found = optimal_denoiser.analyse(
        flat_rows(latents),
        len(latents),
        np.asarray(spec.axis),
        key=spec.key,
        most=settings.rows,
        labels=latents.labels,
        **settings.arguments("channels", "rows"),
        method=settings.method,
    )
    write_json(entry.path / "analysis.json", found)


def run_clusters(
    spec: ClustersSpec, entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    import numpy as np

    from pipeline.levels.clusters import clusters, write_clusters

    latents = latents_of(spec.latents, store, "cpu")
    found = clusters(latents, spec.clusters, spec.rows, spec.key)
    write_clusters(entry.path / "clusters.npy", found)
    write_json(entry.path / "analysis.json", {"rows": np.bincount(found).tolist()})


def run_pilot(
    spec: PilotSpec, entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    import torch
    from safetensors.torch import load_file

    from pipeline.levels import pilot
    from pipeline.networks.build import network_of

    torch.set_num_threads(spec.threads)
    trained = store.entry(spec.expert.entry)
    of = spec_of(trained)
    network = network_of(of, device=device(), root=workspace.root).eval()
    network.load_state_dict(load_file(trained.file(spec.expert.file)))
    reporter.unit = "levels"
    found = pilot.error_curve(
        network,
        of,
        latents_of(spec.latents, store),
        spec.levels,
        spec.noise_key,
        gradients=spec.gradients,
        progress=reporter.progress,
    )
    write_json(entry.path / "analysis.json", found)


def analyse(workspace: Workspace) -> None:
    """What schedules and partitions are fitted to."""
    drop_damaged(workspace, "analyses")
    facts = facts_of(workspace)
    # Where states are fitted, the partitions of these states are the second thing to measure.
    fan_out(
        workspace, "analyses", lambda: plan.analyses(fresh_params(workspace), facts), ("latents",)
    )
    found = dataclasses.replace(facts, analyses=analysed_in(workspace))
    if len(plan.analyses(workspace.params, found)) > len(found.analyses):
        fan_out(
            workspace,
            "analyses",
            lambda: plan.analyses(fresh_params(workspace), found),
            ("latents",),
        )
