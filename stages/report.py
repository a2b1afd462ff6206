"""`results/`: metrics of each recipe, a summary, curves, pictures, and one self-contained page."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import plan
from pipeline.plan import DatasetFacts, Job, RecipePlan
from pipeline.store import write_json
from stages import drawing, steps
from stages.costs import costs
from stages.groups import Unit, mean, units, units_of
from stages.workspace import Workspace

SHOWN = ("fid", "kid", "precision", "recall", "density", "coverage", "samples")
# What a scores job may give besides: of one run, and not of every kind of features.
PASSED_ON = (
    "fid_interval",
    "fid_interval_confidence",
    "fid_infinity",
    "fid_infinity_error",
    "fid_bias",
    "fid_bias_samples",
    "kid_std",
    "reference_samples",
    "extractor_digest",
    "per_class",
    "left_out",
)
IN_METRICS_ONLY = ("milestones", "per_class", "left_out")  # too long for the summary
GRID = 64  # samples shown of each recipe
PAIRED_COLUMNS = 16  # reconstructions in a row


def report(workspace: Workspace) -> None:
    """Write all of results/ anew (the old one stays until the new one is complete)."""
    from stages.fanout import adopt
    from stages.page import write_page

    for stage in ("latents", "analyses", "pairings", "experts", "features", "samples", "scores"):
        adopt(workspace, stage)
    facts = steps.facts_of(workspace)
    recipes = plan.experts(workspace.params, facts)
    scored = steps.score_jobs(workspace, workspace.params, facts, recipes)
    metrics = {
        name: recipe_metrics(workspace, facts, recipe, scored) for name, recipe in recipes.items()
    }
    fresh = workspace.results.with_name(f".results.{os.getpid()}")
    fresh.mkdir()
    try:
        pictures = {}
        for name, found in metrics.items():
            (fresh / name).mkdir()
            write_json(fresh / name / "metrics.json", found)
            images = samples_of(workspace, scored[name, recipes[name].milestones[-1]])
            drawing.save(drawing.grid(images[:GRID], 8), fresh / name / "samples.png")
            pictures[name] = fresh / name / "samples.png"
        summary = summary_of(workspace, facts, recipes, metrics)
        reconstructed = _reconstructions(workspace, facts, fresh, summary)
        write_json(fresh / "summary.json", summary)
        write_curves(fresh / "curves.csv", metrics)
        page = fresh / "report.html"
        write_page(page, workspace, facts, recipes, metrics, summary, pictures, reconstructed)
        shutil.rmtree(workspace.results, ignore_errors=True)
        os.replace(fresh, workspace.results)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    print_table(metrics, summary)
    print(f"\nreport: {(workspace.results / 'report.html').relative_to(workspace.root)}")


def recipe_metrics(
    workspace: Workspace,
    facts: DatasetFacts,
    recipe: RecipePlan,
    scored: dict[tuple[str, int], Job],
) -> dict[str, Any]:
    """Scores and costs of a recipe at its end, and under `milestones` at each of them."""
    milestones = {}
    for milestone in recipe.milestones:
        job = scored[recipe.name, milestone]
        scores = workspace.store.entry(job.name).load_json("scores.json")
        milestones[str(milestone)] = {
            **{key: scores[key] for key in SHOWN},
            **{key: scores[key] for key in PASSED_ON if key in scores},
            **costs(workspace, facts, recipe, milestone),
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
        "reference": reference.load_json("report.json"),
    }


def _reconstructions(
    workspace: Workspace, facts: DatasetFacts, folder: Path, summary: dict[str, Any]
) -> Path | None:
    """Draw what the encoder brings back and add its scores to the summary; None for pixels."""
    found = steps.reconstruction(workspace, facts)
    if found is None:
        return None
    summary["reconstruction"] = {
        key: found["scores"][key] for key in (*SHOWN, *PASSED_ON) if key in found["scores"]
    }
    path = folder / "reconstructions.png"
    originals, images = found["originals"][:GRID], found["images"][:GRID]
    drawing.save(drawing.pairs(originals, images, PAIRED_COLUMNS), path)
    return path


def samples_of(workspace: Workspace, scored: Job) -> np.ndarray:
    """The first samples of a scoring job, uint8 [n, C, H, W]."""
    from pipeline.latents import Latents

    first = workspace.store.entry(scored.spec["samples"][0])
    shard = Latents([first.file("samples.arrow")])
    return shard.raw(np.arange(min(GRID, len(shard))))


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
    ("s in all", "train_seconds_total", "{:.0f}"),
    ("s critical", "train_seconds_critical", "{:.0f}"),
)
UNITS = {"kid": 1e3, "train_flops": 1e-12}
SPREAD = ("fid", "kid", "precision", "recall")  # the columns that show it


def table_rows(
    metrics: Mapping[str, dict[str, Any]], groups: Mapping[str, Sequence[str]]
) -> list[list[str]]:
    """The table as text, header first; of several seeds the mean, and of scores (lowest..highest).

    groups: the names of a recipe's seeds by its own, as in summary.json.
    """
    rows = [["recipe", *(title for title, _, _ in COLUMNS)]]
    for unit in units_of(list(metrics), groups):
        name = f"{unit.name} ({len(unit.members)} seeds)" if unit.several else unit.name
        rows.append([name, *(_cell(unit, metrics, key, form) for _, key, form in COLUMNS)])
    return rows


def _cell(unit: Unit, metrics: Mapping[str, dict[str, Any]], key: str, form: str) -> str:
    values = [metrics[name][key] * UNITS.get(key, 1) for name in unit.members]
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
    reference, floor = summary["reference"], summary["reference"]["floor"]
    print(
        f"\n{samples_text(metrics)}; features: {reference['extractor']}. One half of the real "
        f"images against the other ({floor['samples']:,} each) scores FID {floor['fid']:.3f}."
    )


def samples_text(metrics: Mapping[str, dict[str, Any]]) -> str:
    """How many samples the scores are of; a warning where recipes differ."""
    numbers = sorted({found["samples"] for found in metrics.values()})
    if len(numbers) == 1:
        return f"{numbers[0]:,} samples a recipe"
    return (
        f"WARNING: recipes scored with different numbers of samples ({numbers[0]:,} to "
        f"{numbers[-1]:,}), whose scores must not be compared"
    )
