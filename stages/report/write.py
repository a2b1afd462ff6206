"""`results/`: metrics of each recipe, a summary, curves, pictures, and one self-contained page.

    metrics/       a flat file per recipe, for `dvc metrics`
    recipes/       per recipe metrics.json, with every milestone, samples.png, and film.png: some of
                   the samples at each milestone
    pictures/      real images, and what the encoder brings back of them
    figures/       the page's figures as SVG and PDF, for papers
    summary.json   every recipe at its end
    curves.csv     scores and costs over training, for `dvc plots`
    costs/         the figures of seconds
    costs.json     seconds, load and machines
    report.html    the page

DVC tracks all but the last three: what it tracks is the same bytes after an identical retrain.
"""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import plan
from pipeline.data.dataset import open_dataset
from pipeline.data.split import Split
from pipeline.evaluation.scores import features_warning
from pipeline.plan import DatasetFacts, Job, RecipePlan
from pipeline.store.files import write_json
from pipeline.store.identity import file_digest
from stages import evaluate, pictures, sample
from stages.facts import class_names, facts_of
from stages.numbers import MISSING
from stages.report import costs
from stages.report.fresh import COSTS, PAGE
from stages.report.groups import Unit, mean, units, units_of
from stages.workspace import Workspace

if TYPE_CHECKING:
    from pipeline.data.latents import Latents
    from stages.report.results import Results

SHOWN = ("fid", "kid", "precision", "recall", "density", "coverage", "samples")
# What a scores job may give besides: of one run, and not of every kind of features.
PASSED_ON = (
    "fid_interval",
    "fid_interval_confidence",
    "fid_infinity",
    "fid_infinity_error",
    "floor",
    "kid_std",
    "labels",
    "reference_samples",
    "extractor_digest",
    "per_class",
    "fid_published",
    "published",
    "tv_shape",
    "tv_colour",
    "tv_position",
    "tv_size",
    "tv_shape_colour",
    "tv_all",
    "off_law",
    "as_asked",
    "law",
    "left_out",
)
# The few that a row of `dvc metrics show` and the columns of `dvc exp show` have room for.
FLAT = ("fid", "kid", "precision", "recall", "images_seen", "images_seen_critical", "train_flops")
# Not in the summary's recipes.
IN_METRICS_ONLY = ("milestones", "per_class", "left_out", "floor", "held_out", "law")
GRID, GRID_COLUMNS = 64, 8  # samples shown of each recipe
PAIRED_COLUMNS = 16  # reconstructions in a row


def report(workspace: Workspace) -> None:
    """Write all of results/ anew (the old one stays until the new one is complete)."""
    from stages.report.page import sections_of, write_figures, write_page

    facts, recipes = adopted(workspace)
    fresh = workspace.results.with_name(f".results.{os.getpid()}")
    try:
        results = collect(workspace, facts, recipes, fresh)
        sections = sections_of(results)
        write_figures(fresh, sections)
        write_page(fresh / PAGE, results, sections)
        shutil.rmtree(workspace.results, ignore_errors=True)
        os.replace(fresh, workspace.results)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    print_table(results.metrics, results.summary)
    print(f"\nreport: {(workspace.results / PAGE).relative_to(workspace.root)}")


def adopted(workspace: Workspace) -> tuple[DatasetFacts, dict[str, RecipePlan]]:
    """What a report is of, with all that DVC checked out in the store."""
    from stages.fanout import adopt

    for stage in ("latents", "analyses", "pairings", "experts", "features", "samples", "scores"):
        adopt(workspace, stage)
    facts = facts_of(workspace)
    return facts, plan.experts(workspace.params, facts)


def collect(
    workspace: Workspace, facts: DatasetFacts, recipes: dict[str, RecipePlan], fresh: Path
) -> Results:
    """Read the results of recipes that are scored, and write all but figures and page to `fresh`.

    UserError if one is not scored.
    """
    from stages.report.results import Pictures, Written, read

    scored = evaluate.score_jobs(workspace, workspace.params, facts, recipes)
    metrics = {
        name: recipe_metrics(workspace, facts, recipe, scored) for name, recipe in recipes.items()
    }
    for name, job in evaluate.error_jobs(workspace, workspace.params, facts, recipes).items():
        metrics[name]["held_out"] = workspace.store.entry(job.name).load_json("errors.json")
    times = recipe_times(workspace, facts, recipes)
    both = costs.together(metrics, times)
    for folder in ("metrics", "recipes", "pictures"):
        (fresh / folder).mkdir(parents=True)
    classes = class_names(workspace)
    samples, films = {}, {}
    for name, found in metrics.items():
        own = fresh / "recipes" / name
        own.mkdir()
        write_json(own / "metrics.json", found)
        write_json(fresh / "metrics" / f"{name}.json", {key: found[key] for key in FLAT})
        shards = {m: samples_of(workspace, scored[name, m]) for m in recipes[name].milestones}
        samples[name], films[name] = own / "samples.png", own / "film.png"
        shard = shards[recipes[name].milestones[-1]]
        save_grid(shard, np.arange(min(GRID, len(shard))), classes, samples[name])
        frames = {m: s.raw(np.arange(min(pictures.FILMED, len(s)))) for m, s in shards.items()}
        pictures.save(pictures.film(frames), films[name])
    real = fresh / "pictures" / "real.png"
    save_real(workspace, facts, classes, real)
    summary = summary_of(workspace, facts, recipes, metrics) | {"classes": list(classes)}
    decoded = _reconstructions(workspace, facts, fresh / "pictures", summary)
    write_json(fresh / "summary.json", summary)
    digest = file_digest(fresh / "summary.json")
    write_curves(fresh / "curves.csv", metrics)
    write_json(fresh / COSTS, {"summary": digest, "recipes": times})
    drawn = Pictures(samples, real, decoded, films=films)
    return read(workspace, facts, recipes, both, summary, digest, drawn, Written.now(workspace))


def recipe_times(
    workspace: Workspace, facts: DatasetFacts, recipes: Mapping[str, RecipePlan]
) -> dict[str, dict[str, Any]]:
    """What costs.json holds of each recipe: at its end, and under `milestones` at each of them."""
    found = {}
    for name, recipe in recipes.items():
        milestones = {str(m): costs.times(workspace, facts, recipe, m) for m in recipe.milestones}
        found[name] = {**milestones[str(recipe.milestones[-1])], "milestones": milestones}
    for name, away in costs.elsewhere(found).items():
        found[name]["elsewhere"] = away
    return found


def recipe_metrics(
    workspace: Workspace,
    facts: DatasetFacts,
    recipe: RecipePlan,
    scored: dict[tuple[str, int], Job],
) -> dict[str, Any]:
    """Scores and costs of a recipe at its end, and under `milestones` at each of them.

    Nothing that depends on the machine or its load: that is `recipe_times`.
    """
    milestones = {}
    for milestone in recipe.milestones:
        job = scored[recipe.name, milestone]
        scores = workspace.store.entry(job.name).load_json("scores.json")
        milestones[str(milestone)] = {
            **{key: scores[key] for key in SHOWN},
            **{key: scores[key] for key in PASSED_ON if key in scores},
            **costs.costs(workspace, facts, recipe, milestone),
        }
    return {**milestones[str(recipe.milestones[-1])], "milestones": milestones}


def summary_of(
    workspace: Workspace,
    facts: DatasetFacts,
    recipes: Mapping[str, RecipePlan],
    metrics: Mapping[str, dict[str, Any]],
) -> dict[str, Any]:
    """What summary.json holds; `groups`: the recipes that are seeds of one, by its name."""
    reference = workspace.store.entry(plan.features(workspace.params, facts).name)
    found = units({name: recipe.recipe for name, recipe in recipes.items()})
    return {
        "recipes": {
            name: {k: v for k, v in own.items() if k not in IN_METRICS_ONLY}
            for name, own in metrics.items()
        },
        "groups": {unit.name: list(unit.members) for unit in found if unit.several},
        # All recipes are scored with as many samples, so they have one floor.
        "reference": reference.load_json("report.json")
        | {"floor": next(iter(metrics.values()))["floor"]},
    }


def _reconstructions(
    workspace: Workspace, facts: DatasetFacts, folder: Path, summary: dict[str, Any]
) -> Path | None:
    """Draw what the encoder brings back and add its scores to the summary; None for pixels."""
    found = sample.reconstruction(workspace, facts)
    if found is None:
        return None
    summary["reconstruction"] = {
        key: found["scores"][key] for key in (*SHOWN, *PASSED_ON) if key in found["scores"]
    }
    path = folder / "reconstructions.png"
    originals, images = found["originals"][:GRID], found["images"][:GRID]
    pictures.save(pictures.pairs(originals, images, PAIRED_COLUMNS), path)
    return path


def samples_of(workspace: Workspace, scored: Job) -> Latents:
    """The first shard of the samples of a scoring job."""
    from pipeline.data.latents import Latents

    return Latents([workspace.store.entry(scored.spec.samples[0]).file("samples.arrow")])


def save_grid(shard: Latents, rows: np.ndarray, classes: Sequence[str], path: Path) -> None:
    """Write a grid of samples, under each its class where the recipe was told one."""
    labels = None if shard.labels is None else [classes[i] for i in shard.labels[rows]]
    pictures.save(pictures.grid(shard.raw(rows), GRID_COLUMNS, labels=labels), path)


def save_real(
    workspace: Workspace, facts: DatasetFacts, classes: Sequence[str], path: Path
) -> None:
    """Write a grid of images that recipes train on, a fair sample, as large as those of samples."""
    data = Split(open_dataset(workspace.dataset), facts.held_out)
    rows = data.some(min(GRID, data.trained))
    images = np.concatenate([found for _, found in data.chosen(rows)])
    numbers = data.labels_of(rows)
    labels = None if numbers is None else [classes[number] for number in numbers]
    pictures.save(pictures.grid(images, GRID_COLUMNS, labels=labels), path)


def write_curves(path: Path, metrics: dict[str, dict[str, Any]]) -> None:
    """Scores and costs over training, a row a recipe and milestone (for `dvc plots`)."""
    rows = []
    for name, found in metrics.items():
        for images, values in found["milestones"].items():
            plain = {k: v for k, v in values.items() if not isinstance(v, dict | list)}
            rows.append({"recipe": name, "images": int(images), **plain})
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with open(path, "w", newline="") as f:
        writer = csv.DictWriter(f, columns)
        writer.writeheader()
        writer.writerows(rows)


COLUMNS = (
    ("FID", "fid", "{:.3f}"),
    ("KID x1000", "kid", "{:.2f}"),
    ("precision", "precision", "{:.3f}"),
    ("recall", "recall", "{:.3f}"),
    ("images", "images_seen", "{:,.0f}"),
    ("experts", "experts", "{:.0f}"),
    ("TFLOP", "train_flops", "{:.2f}"),
    ("{unit}-s", "compute_seconds", "{:.0f}"),
    ("s critical", "seconds_critical", "{:.0f}"),
)
UNITS = {"kid": 1e3, "train_flops": 1e-12}
SPREAD = ("fid", "kid", "precision", "recall")  # the columns that show it


def table_rows(
    metrics: Mapping[str, dict[str, Any]], groups: Mapping[str, Sequence[str]]
) -> list[list[str]]:
    """The table as text, header first; of several seeds the mean, and of scores (lowest..highest).

    metrics: with the seconds of costs.json; groups: the names of a recipe's seeds by its own, as in
    summary.json. A recipe's name is followed by the signs of `costs.footnotes`.
    """
    computing = costs.compute_unit(metrics)
    rows = [["recipe", *(title.format(unit=computing) for title, _, _ in COLUMNS)]]
    for unit in units_of(list(metrics), groups):
        name = f"{unit.name} ({len(unit.members)} seeds)" if unit.several else unit.name
        signs = [f" {sign}" for sign in costs.signs(metrics, unit.members)]
        cells = (_cell(unit, metrics, key, form) for _, key, form in COLUMNS)
        rows.append(["".join([name, *signs]), *cells])
    return rows


def footnote_text(metrics: Mapping[str, dict[str, Any]]) -> str:
    """What the signs in the table mean; empty without any."""
    notes = [f"{sign} {text}." for sign, _, text in costs.footnotes(metrics)]
    return " ".join(notes)


def _cell(unit: Unit, metrics: Mapping[str, dict[str, Any]], key: str, form: str) -> str:
    found = [metrics[name][key] for name in unit.members]
    if mean(found) is None:
        return MISSING
    values = [value * UNITS.get(key, 1) for value in found]
    text = form.format(mean(values))
    if unit.several and key in SPREAD:
        return f"{text} ({form.format(min(values))}..{form.format(max(values))})"
    return text


def print_table(metrics: Mapping[str, dict[str, Any]], summary: dict[str, Any]) -> None:
    rows = table_rows(metrics, summary["groups"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print()
    for number, row in enumerate(rows):
        cells = [
            row[0].ljust(widths[0]),
            *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
        ]
        print("  ".join(cells))
        if number == 0:
            print("-" * (sum(widths) + 2 * (len(widths) - 1)))
    if footnote_text(metrics):
        print(f"\n{footnote_text(metrics)}")
    reference = summary["reference"]
    told = f"\n{samples_text(metrics)}; features: {reference['extractor']}."
    print(" ".join([told, *floor_text(reference["floor"])]))
    warning = features_warning(reference)
    if warning:
        print(f"WARNING: {warning}")


def floor_text(floor: dict[str, Any] | None) -> list[str]:
    """What chance alone leaves of the FID, in sentences; none where it was not measured."""
    if floor is None:
        return []
    measured = floor["measured"]
    return [
        f"The floor is FID {floor['fid']:.3f}: {floor['samples']:,} real images in the samples' "
        f"place, by the 1/n law from {measured['samples']:,} against the other "
        f"{measured['reference_samples']:,}, which score {measured['fid']:.3f}."
    ]


def samples_text(metrics: Mapping[str, dict[str, Any]]) -> str:
    """How many samples the scores are of; a warning where recipes differ."""
    numbers = sorted({found["samples"] for found in metrics.values()})
    if len(numbers) == 1:
        return f"{numbers[0]:,} samples per recipe"
    return (
        f"WARNING: recipes scored with different numbers of samples ({numbers[0]:,} to "
        f"{numbers[-1]:,}), whose scores must not be compared"
    )
