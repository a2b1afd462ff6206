"""FID of every snapshot over what it cost."""

from __future__ import annotations

from typing import Any

from stages.numbers import fixed
from stages.report import costs
from stages.report.charts import MAX_LABELS, Chart, Line, Scale
from stages.report.figures import HALF, WIDE
from stages.report.groups import Unit, mean
from stages.report.results import Results
from stages.report.section import Section

CHARTS = {  # by what the FID is drawn over: the file, the title and the label of the axis
    "images_seen": ("figures/fid-over-images", "images seen, over all experts", "images"),
    "seconds_critical": ("costs/fid-over-critical-path", "seconds on the critical path", "seconds"),
    "compute_seconds": ("costs/fid-over-compute", "{unit}-seconds", "seconds"),
}


def section(results: Results) -> Section:
    metrics, floor = results.metrics, results.reference["floor"]
    fids = [m["fid"] for name in metrics for m in metrics[name]["milestones"].values()]
    if None in fids:
        return Section("cost", "Quality over cost", {"scored": False})
    drawn = _drawn(results)
    positive = [v for v in fids if v > 0]
    near = floor is not None and positive and _near(floor["fid"], positive)
    y = Scale.over([*fids, floor["fid"]] if near else fids, log=True)
    reference = (floor["fid"], f"floor {fixed([floor['fid']])[0]}") if near else None
    lines = {
        key: [line for unit in drawn if (line := _line(unit, results, key)) is not None]
        for key in CHARTS
    }
    charts = {}
    for group in (("images_seen",), ("seconds_critical", "compute_seconds")):
        reached = [x for key in group for line in lines[key] for x, _ in line.points]
        if not reached:
            continue
        x = Scale.over(reached, log=_wide_range(reached), zero=True)
        for key in group:
            file, title, label = CHARTS[key]
            title = f"FID against {title.format(unit=costs.compute_unit(metrics))}"
            ends = "; ".join(f"{s.name} {fixed([s.points[-1][1]])[0]}" for s in lines[key])
            alt = f"{title}, at the end of training: {ends}"
            wide = WIDE if key == "images_seen" else HALF
            own = (lines[key], x, y, label, "FID", lines[key], reference)
            charts[file] = [Chart(alt, *own, title=title, wide=wide)]
    data = {
        "scored": True,
        "charts": [drawings[0] for drawings in charts.values()],
        "several": any(unit.several for unit in drawn),
        "floor": floor["fid"] if floor and positive else None,
        "near": near,
        "on_the_edge": y.log and any(v <= 0 for v in fids),
        "unknown": len(lines["compute_seconds"]) < len(drawn),
        "drawn": len(drawn),
        "recipes": len(results.units),
    }
    return Section("cost", "Quality over cost", data, charts)


def _drawn(results: Results) -> list[Unit]:
    """What is in the charts, in its order."""

    def fid(unit: Unit) -> float:
        return mean([results.metrics[name]["fid"] for name in unit.members])

    ranked = {unit.name for unit in sorted(results.units, key=fid)[:MAX_LABELS]}
    return [unit for unit in results.units if unit.name in ranked]


def _near(floor: float, positive: list[float]) -> bool:
    """Whether a line at the floor leaves most of the chart to the recipes."""
    return min(positive) / 50 <= floor <= max(positive) * 2


def _wide_range(values: list[float]) -> bool:
    return min(values) > 0 and max(values) > 40 * min(values)


def _line(unit: Unit, results: Results, key: str) -> Line | None:
    """FID at each milestone; of several seeds the mean of both numbers, and the range of FID.

    None where what it is drawn over is unknown.
    """
    members: list[dict[str, Any]] = [results.metrics[name]["milestones"] for name in unit.members]
    if any(m[key] is None for milestones in members for m in milestones.values()):
        return None
    band = []
    for milestone in members[0]:
        at = mean([m[milestone][key] for m in members])
        fids = [m[milestone]["fid"] for m in members]
        band.append((at, min(fids), mean(fids), max(fids)))
    band.sort()
    points = [(at, middle) for at, _, middle, _ in band]
    ground = [(at, low, high) for at, low, _, high in band] if unit.several else []
    style = results.styles[unit.name]
    return Line(unit.name, points, style.colour, 2, ground, style)
