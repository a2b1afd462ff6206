"""How much recipes agree on what they make of the same noise."""

from __future__ import annotations

from typing import Any

from stages.numbers import MISSING, fixed
from stages.report.charts import Chart, Line, Scale
from stages.report.figures import NARROW
from stages.report.results import Results
from stages.report.section import Cell, Section, Table, interval

SHADES = 5  # of a cell, from no agreement to all


def section(results: Results) -> Section | None:
    """The matrix of C between recipes with its intervals, and C by state; None without any.

    Of each of `pairs`, what `evaluation.consistency.compare` returns with the names `a` and `b`,
    `overall` alone must be there.
    """
    if results.consistency is None:
        return None
    found = results.consistency["pairs"]
    panels = _by_state([pair for pair in found if pair.get("by_state", {}).get("log_snr")])
    data = {
        "matrix": _matrix(found),
        "more": _more([pair for pair in found if {"null", "features", "nearest"} <= pair.keys()]),
        "panels": panels,
        "picture": results.pictures.consistency,
    }
    shown = {"figures/consistency": panels} if panels else {}
    return Section("consistency", "Consistency", data, shown)


def _matrix(found: list[dict[str, Any]]) -> Table:
    names = list(dict.fromkeys(name for pair in found for name in (pair["a"], pair["b"])))
    between = {frozenset((pair["a"], pair["b"])): pair["overall"] for pair in found}

    def cell(a: str, b: str) -> str | Cell:
        told = between.get(frozenset((a, b)))
        if told is None:
            return "1" if a == b else MISSING
        shade = min(max(int(told["value"] * SHADES), 0), SHADES - 1)
        return interval(told)._replace(mark=f"shade{shade}")

    lines = [[a, *(cell(a, b) for b in names)] for a in names]
    label = "Consistency of each two recipes"
    return Table(label, ["recipe", *names], lines, ("recipe",), "matrix")


def _more(found: list[dict[str, Any]]) -> Table | None:
    """What else was measured: chance, likeness in features, distances to the training images."""
    if not found:
        return None
    head = ["recipes", "C", "C by chance", "alike in features", "alike by chance"]
    head += ["to nearest training image", "of training images", "closer than those"]
    lines = []
    for pair in found:
        near, features = pair["nearest"], pair["features"]
        distances = fixed([near[key]["median"] for key in ("a", "b", "real")])
        lines.append(
            [
                f"{pair['a']} and {pair['b']}",
                interval(pair["overall"]),
                interval(pair["null"]),
                interval(features),
                fixed([features["null"]])[0],
                " and ".join(distances[:2]),
                distances[2],
                " and ".join(f"{100 * near[key]['closer']:.1f} %" for key in ("a", "b")),
            ]
        )
    return Table("Consistency in full", head, lines, ("recipes",))


def _by_state(found: list[dict[str, Any]]) -> list[Chart]:
    """C over log-SNR, a panel per pair, on the same axes."""
    curves = [pair["by_state"] for pair in found]
    x = Scale.over([v for c in curves for v in c["log_snr"]])
    y = Scale.over([0.0, 1.0, *(v for c in curves for key in ("low", "value") for v in c[key])])
    panels = []
    for pair, curve in zip(found, curves, strict=True):
        what = f"{pair['a']} and {pair['b']}"
        keys = ("log_snr", "value", "low", "high")
        points = sorted(zip(*(curve[key] for key in keys), strict=True))
        band = [(x, low, high) for x, _, low, high in points]
        line = Line(what, [(x, y) for x, y, _, _ in points], "p0", 1.8, band)
        alt = f"Consistency of {what} over log-SNR"
        panels.append(Chart(alt, [line], x, y, "log-SNR", "C", title=what, wide=NARROW))
    return panels
