"""`results/report.html`: one self-contained page of the results and of the seconds they took.

Its sections are in `stages/sections`, each a function of the `Findings` that gives None where there
is nothing to show.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.plan import DatasetFacts, RecipePlan
from stages.markup import Html, el, join
from stages.sections.consistency import consistency_section
from stages.sections.cost import quality_over_cost
from stages.sections.latents import latents
from stages.sections.merging import merging
from stages.sections.opening import opening, title
from stages.sections.pairings import pairings
from stages.sections.partitions import partitions
from stages.sections.parts import Findings, Metrics, Section, trained
from stages.sections.provenance import origins_of, provenance
from stages.sections.samples import samples
from stages.sections.scores import scores
from stages.sections.states import states, steps
from stages.sections.training import training
from stages.style import STYLE
from stages.workspace import Workspace


def write_page(
    path: Path,
    workspace: Workspace,
    facts: DatasetFacts,
    recipes: dict[str, RecipePlan],
    metrics: Metrics,
    summary: dict[str, Any],
    pictures: dict[str, Path],
    reconstructions: Path | None = None,
    real: Path | None = None,
) -> None:
    """Write the page. It needs no network and no script.

    metrics: of each recipe, with its `milestones` and what costs.json says of both; summary: what
    summary.json holds; pictures: a PNG of samples of each recipe; reconstructions: one of what the
    encoder brings back; real: one of images of the dataset. UserError if an expert's record or
    curve is missing or damaged.
    """
    found = Findings(
        workspace,
        facts,
        recipes,
        metrics,
        summary["reference"],
        pictures,
        summary.get("reconstruction"),
        tuple(summary.get("classes", ())),
        real,
    )
    experts = {name: trained(workspace, recipe) for name, recipe in recipes.items()}
    origins = origins_of(found)
    every = [
        scores(found),
        quality_over_cost(found),
        samples(found, origins),
        latents(found, reconstructions),
        states(found),
        steps(found),
        partitions(found),
        pairings(found),
        training(found, experts),
        merging(found),
        _consistency(workspace),
        provenance(found, experts, origins),
    ]
    sections = [section for section in every if section is not None]
    body = join([opening(found, sections), *map(_section, sections)])
    path.write_text(_document(f"tspace: {title(found)}", body), encoding="utf-8")


def _consistency(workspace: Workspace) -> Section | None:
    """What the stage `consistency` found, if the project has one."""
    folder = workspace.artefacts("consistency")
    if not (folder / "consistency.json").exists():
        return None
    data = workspace.read_sealed(folder / "consistency.json")
    grid = folder / data["grid"] if data.get("grid") else None
    return Section("consistency", "Consistency", consistency_section(data, grid))


def _section(section: Section) -> Html:
    return el("section", el("h2", section.title, id=section.key), section.body)


def _document(title: str, body: Html) -> str:
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = el(
        "head",
        el("meta", charset="utf-8"),
        Html("\n"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("link", rel="icon", href="data:,"),
        el("title", title),
        el("style", Html(STYLE)),
    )
    return f"<!DOCTYPE html>\n{el('html', head, el('body', el('main', body)), lang='en')}\n"
