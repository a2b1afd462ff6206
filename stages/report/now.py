"""`tspace report --now`: a page of what exists, marked as unfinished, in results/now/.

Recipes that are scored have their sections as in the report; of the others it shows how far they
are, their losses and their films. It changes nothing of the results.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from collections.abc import Mapping
from typing import Any

from pipeline.errors import UserError
from pipeline.plan import DatasetFacts, RecipePlan
from stages import evaluate, film
from stages.curves import losses
from stages.numbers import MISSING, count, counted, fixed
from stages.report.charts import MAX_CURVES, Chart, Line, Scale, thinned
from stages.report.figures import NARROW, SHADES
from stages.report.fresh import PAGE
from stages.report.results import Written
from stages.report.section import Section, table
from stages.report.write import adopted, collect
from stages.tools.status import done, look, merged
from stages.workspace import Workspace


def report_now(workspace: Workspace) -> None:
    """Write results/now/report.html.

    UserError before the stage `analyse` has run: until then no recipe has anything to show.
    """
    from stages.report.page import sections_of, write_unfinished

    facts, recipes = adopted(workspace)
    films = film.Films(workspace)
    try:
        for _ in films.look():
            pass
    except UserError as e:
        print(f"tspace: {e}", file=sys.stderr)
    finished = scored(workspace, facts, recipes)
    written, results, sections = Written.now(workspace), None, []
    page = film.now(workspace) / PAGE
    page.parent.mkdir(parents=True, exist_ok=True)
    fresh = workspace.scratch / f"now.{os.getpid()}"
    try:
        if finished:
            own = {name: recipes[name] for name in finished}
            results = collect(workspace.with_recipes(finished), facts, own, fresh)
            # That stage compared what was there when it ran.
            results = dataclasses.replace(results, consistency=None)
            sections = sections_of(results)
        progress = _progress(workspace, recipes, finished, films)
        so_far = {"written": written, "scored": len(finished), "recipes": len(recipes)}
        write_unfinished(page, so_far, results, [progress, *sections])
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    told = f"{len(finished)} of {counted(len(recipes), 'recipe')} scored"
    print(f"unfinished report, {told}: {page.relative_to(workspace.root)}")


def scored(
    workspace: Workspace, facts: DatasetFacts, recipes: Mapping[str, RecipePlan]
) -> list[str]:
    """Recipes that are scored at every milestone, as are those they start from or are guided by."""
    found = {name for name, recipe in recipes.items() if merged(workspace, name, recipe)}
    found = _with_others(recipes, found)
    known = {name: recipes[name] for name in found}
    jobs = evaluate.score_jobs(workspace, workspace.params, facts, known)
    lack = {name for (name, _), job in jobs.items() if not done(workspace, "scores", job.name)}
    found = _with_others(recipes, found - lack)
    return [name for name in recipes if name in found]


def _with_others(recipes: Mapping[str, RecipePlan], found: set[str]) -> set[str]:
    """Those of some recipes whose parents and guides are among them."""
    while True:
        kept = {name for name in found if _others(recipes[name]) <= found}
        if kept == found:
            return found
        found = kept


def _others(recipe: RecipePlan) -> set[str]:
    guide = recipe.recipe.sampling.guide
    return {recipe.recipe.training.parent, guide and guide.recipe} - {None}


def _progress(
    workspace: Workspace,
    recipes: Mapping[str, RecipePlan],
    finished: list[str],
    films: film.Films,
) -> Section:
    rows: list[list[Any]] = []
    panels, shown = [], []
    for name, recipe in recipes.items():
        found = [look(workspace, "experts", expert.job.name) for expert in recipe.experts]
        images = [
            expert.images if f.status == "done" else f.images
            for expert, f in zip(recipe.experts, found, strict=True)
        ]
        curves = {
            expert.job.label: losses(workspace.store.entry(expert.job.name), expert.job.spec)
            for expert in recipe.experts
        }
        total = sum(expert.images for expert in recipe.experts)
        last = [curve[-1][1] for curve in curves.values() if curve]
        drawn = films.frames(name)
        rows.append([
            name,
            f"{sum(f.status == 'done' for f in found)} of {len(found)}",
            count(sum(images)),
            f"{sum(images) / total:.0%}",
            " to ".join(dict.fromkeys(fixed([min(last), max(last)]))) if last else MISSING,
            count(max(drawn)) if drawn else MISSING,
            "yes" if name in finished else "no",
        ])  # fmt: skip
        if name in finished:
            continue
        if last:
            panels.append((name, _chart(name, {k: c for k, c in curves.items() if c})))
        if drawn:
            shown.append((name, films.path(name)))
    head = ("recipe", "experts done", "images", "trained", "last loss", "last milestone", "scored")
    columns = dict(zip(head, map(list, zip(*rows, strict=True)), strict=True))
    told = table("How far each recipe is", columns, ("recipe", "scored"))
    return Section("progress", "How far it is", {"table": told, "panels": panels, "films": shown})


def _chart(name: str, curves: Mapping[str, list[tuple[int, float]]]) -> Chart:
    """Losses so far, from faint (cleanest states) to strong (noisiest)."""
    kept = thinned(list(curves.items()), MAX_CURVES)
    lines = [
        Line(
            label,
            [(float(images), loss) for images, loss in curve],
            SHADES[round(4 * i / (len(kept) - 1)) if len(kept) > 1 else 4],
        )
        for i, (label, curve) in enumerate(kept)
    ]
    values = [loss for line in lines for _, loss in line.points]
    x = Scale.over([at for line in lines for at, _ in line.points], zero=True)
    y = Scale.over(values, log=min(values) > 0)
    alt = f"Loss of {name} so far"
    return Chart(alt, lines, x, y, "images of an expert", "loss", title=name, wide=NARROW)
