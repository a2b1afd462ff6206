"""FID of every snapshot over what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stages import charts, costs
from stages.charts import Axis, Series
from stages.groups import Unit, mean
from stages.markup import Html, el, fixed, join
from stages.sections.parts import Findings, Metrics, Section, paragraph


def quality_over_cost(found: Findings) -> Section:
    metrics, floor = found.metrics, found.reference["floor"]
    fids = [m["fid"] for name in metrics for m in metrics[name]["milestones"].values()]
    if None in fids:
        text = "There are no scores to draw: the feature extractor learnt nothing."
        return Section("cost", "Quality over cost", paragraph(text))
    drawn = _drawn(found)
    positive = [v for v in fids if v > 0]
    reference = None
    shown = list(fids)
    if floor and positive and _near(floor["fid"], fids):
        reference = (floor["fid"], f"floor {fixed([floor['fid']])[0]}")
        shown.append(floor["fid"])
    y_axis = Axis.over(shown, log=True)

    def known(unit: Unit, key: str) -> bool:
        return all(
            m[key] is not None for n in unit.members for m in metrics[n]["milestones"].values()
        )

    def over(keys: Sequence[str], titles: str, label: str, wide: int) -> list[Html]:
        shown = {key: [unit for unit in drawn if known(unit, key)] for key in keys}
        everything = [
            m[key]
            for key in keys
            for unit in shown[key]
            for n in unit.members
            for m in metrics[n]["milestones"].values()
        ]
        if not everything:
            return []
        x_axis = Axis.over(everything, log=_wide_range(everything), zero=True)
        figures = []
        for key, what in zip(keys, titles.split("|"), strict=True):
            series = [_series(unit, metrics, key, found.styles[unit.name]) for unit in shown[key]]
            ends = "; ".join(f"{s.name} {fixed([s.points[-1][1]])[0]}" for s in series)
            alt = f"FID against {what}, at the end of training: {ends}"

            def draw(width: int, series=series, alt=alt) -> Html:
                return charts.lines(
                    series,
                    width=width,
                    x_label=label,
                    y_label="FID",
                    alt=alt,
                    x_axis=x_axis,
                    y_axis=y_axis,
                    reference=reference,
                )

            caption = el("figcaption", f"FID against {what}")
            figures.append(el("figure", caption, charts.responsive(draw, wide)))
        return figures

    notes = ["Each sign is a milestone at which a snapshot was sampled and scored."]
    if any(unit.several for unit in drawn):
        notes.append("Of several seeds the line is the mean; the ground spans lowest to highest.")
    if reference is not None:
        notes.append("The dashed line is the floor.")
    elif floor and positive:
        notes.append(f"The floor, FID {fixed([floor['fid']])[0]}, lies outside.")
    if y_axis.log and any(v <= 0 for v in fids):
        notes.append("Values of zero or less lie on the lower edge.")
    if not all(known(unit, "compute_seconds") for unit in drawn):
        notes.append("Recipes whose seconds are unknown are in the first chart only.")
    if len(drawn) < len(found.units):
        notes.append(f"Drawn: the {len(drawn)} of {len(found.units)} recipes with the lowest FID.")
    body = [
        *over(("images_seen",), "images seen, over all experts", "images", charts.WIDE),
        el(
            "div",
            *over(
                ("seconds_critical", "compute_seconds"),
                f"seconds on the critical path|{costs.compute_unit(metrics)}-seconds",
                "seconds",
                charts.HALF,
            ),
            class_="pair",
        ),
        paragraph(" ".join(notes), kind="note"),
    ]
    return Section("cost", "Quality over cost", join(body))


def _drawn(found: Findings) -> list[Unit]:
    """What is in the charts, in its order."""

    def fid(unit: Unit) -> float:
        return mean([found.metrics[name]["fid"] for name in unit.members])

    ranked = {unit.name for unit in sorted(found.units, key=fid)[: charts.MAX_LABELS]}
    return [unit for unit in found.units if unit.name in ranked]


def _near(floor: float, fids: Sequence[float]) -> bool:
    """Whether a line at the floor leaves most of the chart to the recipes."""
    positive = [v for v in fids if v > 0]
    return min(positive) / 50 <= floor <= max(positive) * 2


def _wide_range(values: Sequence[float]) -> bool:
    positive = [v for v in values if v > 0]
    return len(positive) == len(values) and max(positive) > 40 * min(positive)


def _series(unit: Unit, metrics: Metrics, key: str, style: int) -> Series:
    """FID at each milestone; of several seeds the mean of both numbers, and the range of FID."""
    members: list[dict[str, Any]] = [metrics[name]["milestones"] for name in unit.members]
    band = []
    for milestone in members[0]:
        at = mean([m[milestone][key] for m in members])
        fids = [m[milestone]["fid"] for m in members]
        band.append((at, min(fids), mean(fids), max(fids)))
    band.sort()
    points = [(at, middle) for at, _, middle, _ in band]
    ground = [(at, low, high) for at, low, _, high in band] if unit.several else []
    return Series(unit.name, points, style, ground)
