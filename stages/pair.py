"""The stage `pair`: which noise each image is trained with."""

from __future__ import annotations

from pipeline import plan
from pipeline.block import Form
from pipeline.specs import PairingSpec
from pipeline.store.entry import Entry, Store
from pipeline.store.files import write_json
from stages.facts import facts_of, fresh_params
from stages.fanout import fan_out
from stages.inputs import flat_rows, latents_of
from stages.reporter import Reporter
from stages.workspace import Workspace


def run_pairing(
    spec: PairingSpec, entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    from pipeline.levels import spectrum
    from pipeline.noise import assignment, diagnostics, pairing

    latents = latents_of(spec.latents, store, "cpu")
    settings, method, key = spec.settings, spec.settings.method, spec.noise_key
    rows, count = flat_rows(latents), len(latents)
    if getattr(settings, "keep", None) is not None:
        basis = assignment.principal_components(rows, count, settings.keep, key=key)
        pairing.write_components(entry.path / "components.arrow", basis, spec.dataset)
    components = None
    if settings.components is not None:
        components = assignment.principal_components(rows, count, settings.components, key=key)
    labels = latents.labels if spec.classes else None
    means = spectrum.means(latents, spec.classes)
    centered = getattr(settings, "center", False)
    chosen_by = assignment.centred(rows, means, labels) if centered else rows
    apart = ("keep", "components", "center", "within_class", "refresh", "scale")
    options = settings.arguments(*apart)
    first, last = spec.slots
    if isinstance(settings, Form):
        reporter.unit = "noises"
        learnt = spec.potential and store.entry(spec.potential).file("potential.arrow")
        statistics = settings.maker(
            rows,
            count,
            latents.shape,
            entry.path,
            key=key,
            slots=range(first, last),
            data=spec.dataset,
            labels=latents.labels,
            within_class=labels is not None,
            means=means,
            components=components,
            learnt=learnt,
            progress=reporter.progress,
            log=reporter.log,
            **settings.arguments("components", "within_class", "scale"),
        )
        write_json(entry.path / "diagnostics.json", statistics)
        return
    slots = {}
    reporter.unit = "passes"
    for slot in range(first, last):
        slots[slot] = assignment.pair_slot(
            method,
            chosen_by,
            count,
            key=key,
            slot=slot,
            labels=labels,
            components=components,
            **options,
        )
        reporter.progress(slot + 1 - first, last - first)
    statistics = diagnostics.diagnose_slot(
        method,
        rows,
        slots[first],
        latents.shape,
        key=key,
        slot=first,
        candidates=options.get("candidates", 0),
        labels=latents.labels,
        means=means,
        by_class=labels is not None,
    )
    pairing.write_pairing(
        entry.path / "pairing.arrow",
        slots,
        method=method,
        settings=options,
        key=key,
        data=spec.dataset,
        statistics=statistics,
    )
    write_json(entry.path / "diagnostics.json", statistics)


def pair(workspace: Workspace) -> None:
    """For each image the noise it is trained with; nothing to store where it is independent."""
    facts = facts_of(workspace)

    def jobs() -> list[plan.Job]:
        recipes = plan.experts(fresh_params(workspace), facts)
        return [job for recipe in recipes.values() for job in recipe.pairings]

    fan_out(workspace, "pairings", jobs, ("latents",))
