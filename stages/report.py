"""`results/`: metrics of each recipe, a summary, curves, pictures, and one self-contained page."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import plan
from pipeline.store import write_json
from stages import drawing, steps
from stages.workspace import Workspace

SHOWN = ("fid", "kid", "precision", "recall", "density", "coverage", "samples")
GRID = 64  # samples shown of each recipe


def report(workspace: Workspace) -> None:
    """Write all of results/ anew (the old one stays until the new one is complete)."""
    from stages.fanout import adopt
    from stages.page import write_page

    for stage in ("experts", "features", "samples", "scores"):
        adopt(workspace, stage)
    facts = steps.facts_of(workspace)
    recipes = plan.experts(workspace.params, facts)
    scored = steps.score_jobs(workspace, workspace.params)
    metrics = {name: recipe_metrics(workspace, recipe, scored) for name, recipe in recipes.items()}
    fresh = workspace.results.with_name(f".results.{os.getpid()}")
    fresh.mkdir()
    try:
        pictures = {}
        for name, found in metrics.items():
            (fresh / name).mkdir()
            write_json(fresh / name / "metrics.json", found)
            images = samples_of(workspace, name, recipes[name].milestones[-1])
            drawing.save(drawing.grid(images[:GRID], 8), fresh / name / "samples.png")
            pictures[name] = fresh / name / "samples.png"
        reference = workspace.store.entry(
            steps.reference_job(workspace, workspace.params, facts).name
        )
        summary = {
            "recipes": {
                name: {k: v for k, v in found.items() if k != "milestones"}
                for name, found in metrics.items()
            },
            "reference": reference.load_json("report.json"),
        }
        write_json(fresh / "summary.json", summary)
        write_curves(fresh / "curves.csv", metrics)
        write_page(fresh / "report.html", workspace, facts, recipes, metrics, summary, pictures)
        shutil.rmtree(workspace.results, ignore_errors=True)
        os.replace(fresh, workspace.results)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    print_table(metrics, summary["reference"])
    print(f"\nreport: {(workspace.results / 'report.html').relative_to(workspace.root)}")


def recipe_metrics(
    workspace: Workspace, recipe: plan.RecipePlan, scored: dict[tuple[str, int], plan.Job]
) -> dict[str, Any]:
    """Scores and costs of a recipe at its end, and under `milestones` at each of them."""
    milestones = {}
    for milestone in recipe.milestones:
        job = scored[recipe.name, milestone]
        scores = workspace.store.entry(job.name).load_json("scores.json")
        milestones[str(milestone)] = {
            **{key: scores[key] for key in SHOWN},
            **costs(workspace, recipe, milestone),
        }
    return {**milestones[str(recipe.milestones[-1])], "milestones": milestones}


def costs(workspace: Workspace, recipe: plan.RecipePlan, milestone: int) -> dict[str, float]:
    """Training spent up to a milestone: in all, and along the longest chain of jobs."""
    flops, seconds, parameters = 0.0, [], []
    for expert in recipe.experts:
        record = workspace.store.entry(expert.job.name).load_json("record.json")
        images = expert.snapshots[milestone]
        flops += record["flops"] * images / record["images"]
        seconds.append(record["snapshot_seconds"][str(images)])
        parameters.append(record["parameters"])
    return {
        "images_seen": sum(e.snapshots[milestone] for e in recipe.experts),
        "images_seen_critical": max(e.snapshots[milestone] for e in recipe.experts),
        "experts": len(recipe.experts),
        "parameters": sum(parameters),
        "parameters_active": max(parameters),
        "train_flops": flops,
        "train_seconds_total": sum(seconds),
        "train_seconds_critical": max(seconds),
    }


def samples_of(workspace: Workspace, name: str, milestone: int) -> np.ndarray:
    """The first samples of a recipe that were scored, uint8 [n, C, H, W]."""
    from pipeline.latents import Latents

    jobs = steps.sample_jobs(workspace, workspace.params)[name, milestone]
    shard = Latents([workspace.store.entry(jobs[0].name).file("samples.arrow")])
    return shard.raw(np.arange(min(GRID, len(shard))))


def write_curves(path: Path, metrics: dict[str, dict[str, Any]]) -> None:
    """Scores and costs over training, a row a recipe and milestone (for `dvc plots`)."""
    rows = [
        {"recipe": name, "images": int(images), **values}
        for name, found in metrics.items()
        for images, values in found["milestones"].items()
    ]
    with open(path, "w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


COLUMNS = (
    ("FID", "fid", "{:.3f}"),
    ("KID x1000", "kid", "{:.2f}"),
    ("precision", "precision", "{:.3f}"),
    ("recall", "recall", "{:.3f}"),
    ("images", "images_seen", "{:,}"),
    ("experts", "experts", "{}"),
    ("TFLOP", "train_flops", "{:.2f}"),
    ("s in all", "train_seconds_total", "{:.0f}"),
    ("s critical", "train_seconds_critical", "{:.0f}"),
)
UNITS = {"kid": 1e3, "train_flops": 1e-12}


def table_rows(metrics: dict[str, dict[str, Any]]) -> list[list[str]]:
    """The table as text, header first."""
    rows = [["recipe", *(title for title, _, _ in COLUMNS)]]
    for name, found in metrics.items():
        cells = [form.format(found[key] * UNITS.get(key, 1)) for _, key, form in COLUMNS]
        rows.append([name, *cells])
    return rows


def print_table(metrics: dict[str, dict[str, Any]], reference: dict[str, Any]) -> None:
    rows = table_rows(metrics)
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
    floor = reference["floor"]
    samples = next(iter(metrics.values()))["samples"]
    print(
        f"\n{samples:,} samples a recipe; features: {reference['extractor']}. One half of the real "
        f"images against the other ({floor['samples']:,} each) scores FID {floor['fid']:.3f}."
    )
