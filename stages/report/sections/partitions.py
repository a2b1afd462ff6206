"""Where the time axis is cut, what the cuts were found from, and what each interval costs."""

from __future__ import annotations

import itertools
from typing import Any

from pipeline.plan import RecipePlan
from stages.numbers import counted, fixed, short, si
from stages.report import charts, costs
from stages.report.charts import Chart, HeatMap, Line, Scale, Strip, Strips
from stages.report.figures import HALF, NARROW
from stages.report.groups import Unit
from stages.report.results import Results
from stages.report.section import Section, Table, listed


def section(results: Results) -> Section | None:
    """None where no recipe is cut."""
    cut = [unit for unit in results.units if results.plan(unit).bounds]
    if not cut:
        return None
    strips = [_strip(unit, results) for unit in cut]
    alt = "Intervals of each recipe along log-SNR: "
    drawing = Strips(alt + "; ".join(f"{s.name} {s.told}" for s in strips), strips)
    lines = []
    for unit in cut:
        plan = results.plan(unit)
        owner = "a decoder each" if _joint(plan) else counted(len(plan.experts), "expert")
        line = [results.heading(unit), plan.recipe.partition.kind, str(len(plan.bounds) + 1)]
        lines.append([*line, owner, listed(plan.bounds)])
    head = ["recipe", "partition", "intervals", "owned by", "bounds, log-SNR"]
    words = ("recipe", "partition", "owned by", "bounds, log-SNR")
    denoisers, gradients = _measured(results)
    shown = {"figures/partitions": [drawing]}
    for number, found in enumerate((*denoisers.values(), *gradients.values()), 1):
        for what, drawn in found["drawings"].items():
            shown[f"figures/{what}-{number}"] = [drawn]
    data = {
        "drawing": drawing,
        "table": Table("Partitions", head, lines, words),
        "max_owners": charts.MAX_OWNERS,
        "many_owners": any(len(s.bands) > charts.MAX_OWNERS for s in strips),
        "denoisers": denoisers,
        "gradients": gradients,
        "decoders": [_decoders(u, results) for u in cut if _joint(results.plan(u))],
    }
    return Section("partitions", "Partitions", data, shown)


def _joint(recipe: RecipePlan) -> bool:
    return bool(recipe.recipe.network.decoders)


def _strip(unit: Unit, results: Results) -> Strip:
    plan = results.plan(unit)
    edges = [float(plan.trained[0]), *plan.bounds, float(plan.trained[-1])]
    return Strip(
        unit.name,
        results.styles[unit.name],
        f"{plan.recipe.partition.kind}, {counted(len(plan.bounds) + 1, 'interval')}",
        [(noisy, clean) for clean, noisy in itertools.pairwise(edges)],
        bounds=plan.bounds,
    )


def _measured(results: Results) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """What bounds were found from, each once, by the names of the recipes that it is for.

    The optimal denoiser's similarities, and the gradients' affinities.
    """
    users: dict[str, list[Unit]] = {}
    for unit in results.units:
        for job in results.analyses[unit.members[0]]:
            if job.kind == "bounds" or "affinity" in results.facts.analyses.get(job.name, {}):
                users.setdefault(job.name, []).append(unit)
    denoisers, gradients = {}, {}
    for job, units in users.items():
        analysis, names = results.facts.analyses[job], ", ".join(unit.name for unit in units)
        if "matrix" in analysis:
            denoisers[names] = _denoiser(names, analysis)
        else:
            gradients[names] = {"drawings": {"gradient-affinity": HeatMap(
                f"Affinity of the gradients of each two noise levels, for {names}",
                analysis["affinity"],
                analysis["log_snr"],
                results.plan(units[0]).bounds,
                wide=NARROW,
            )}}  # fmt: skip
    return denoisers, gradients


def _denoiser(names: str, analysis: dict[str, Any]) -> dict[str, Any]:
    curves, bounds = analysis["curves"], analysis["bounds"]
    lines = [
        Line(title, list(zip(curves["log_snr"], curves[key], strict=True)), colour, 1.8)
        for title, key, colour in (
            ("to the clean end", "s0", "p0"),
            ("to the noisy end", "s1", "p1"),
        )
    ]
    alt = f"Similarity of the best denoiser at each log-SNR to that of both ends, for {names}"
    axes = (Scale.over(curves["log_snr"]), Scale(-0.02, 1.02), "log-SNR", "similarity")
    return {
        "drawings": {
            "similarity-to-ends": Chart(alt, lines, *axes, lines, None, bounds, wide=HALF),
            "similarity": HeatMap(
                f"Similarity of the best denoisers of each two noise levels, for {names}",
                analysis["matrix"],
                analysis["log_snr"],
                bounds,
                wide=NARROW,
            ),
        },
        "table": _sensitivity(analysis["sensitivity"]),
    }


def _sensitivity(table: list[dict[str, Any]]) -> Table:
    head = ["alpha", "eta", "draws", "estimates", "usable"]
    head += ["clean bound, log-SNR", "place", "± place", "noisy bound, log-SNR", "place", "± place"]
    keys = ("log_snr_1", "time_1", "std_1", "log_snr_2", "time_2", "std_2")
    columns = [fixed([row[key] for row in table]) for key in keys]
    lines = [
        [
            short(row["alpha"], 3),
            short(row["eta"], 3),
            *(f"{row[key]:,}" for key in ("draws", "repeats", "usable")),
            *numbers,
        ]
        for row, numbers in zip(table, zip(*columns, strict=True), strict=True)
    ]
    return Table("Sensitivity of the bounds", head, lines)


def _decoders(unit: Unit, results: Results) -> dict[str, Any]:
    """Parameters and forward FLOPs of each interval's part of a network."""
    own = costs.interval_costs(results.plan(unit))
    shared = own[0].active - own[0].parameters
    lines = [
        [
            f"{short(cost.clean, 3)} to {short(cost.noisy, 3)}",
            str(cost.size),
            si(cost.parameters),
            si(cost.active),
            si(cost.flops),
        ]
        for cost in own
    ]
    blocks = results.plan(unit).recipe.network.kind == "multi-dit"
    size = "decoder's blocks" if blocks else "decoder width"
    head = ["log-SNR", size, "decoder's parameters", "active parameters", "forward FLOPs per image"]
    return {
        "name": unit.name,
        "table": Table(f"Decoders of {unit.name}", head, lines, ("log-SNR",)),
        "total": si(shared + sum(cost.parameters for cost in own)),
        "shared": si(shared),
    }
