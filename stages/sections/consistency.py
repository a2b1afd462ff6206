"""How much recipes agree on what they make of the same noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages import charts
from stages.charts import Axis, Line
from stages.markup import MISSING, Html, el, fixed, join
from stages.sections.parts import paragraph, rows, scroll
from stages.sections.samples import embedded

SHADES = 5  # of a cell, from no agreement to all


def consistency_section(data: dict[str, Any], grid: Path | None = None) -> Html:
    """The matrix of C between recipes with its intervals, and C by state.

    data: `pairs`, a list of what `pipeline.consistency.compare` returns, each with the names `a`
    and `b`; of that, `overall` alone must be there. grid: a picture of samples from the same noise.
    """
    found = data["pairs"]
    names = list(dict.fromkeys(name for pair in found for name in (pair["a"], pair["b"])))
    body: list[Html | None] = [
        paragraph(
            "C says how much two recipes make the same image of the same noise: 1 for the same "
            "image, 0 for images as different as from different noise. Below each value is its "
            "interval. Recipes of high C learn the same map from noise to image, whatever they "
            "cost. Two recipes that memorise the training images agree as well."
        ),
        scroll("Consistency of each two recipes", _matrix(names, found)),
        _more(found),
        _by_state([pair for pair in found if pair.get("by_state", {}).get("log_snr")]),
        _grid(grid),
    ]
    return join(body)


def _matrix(names: list[str], found: list[dict[str, Any]]) -> Html:
    between = {frozenset((pair["a"], pair["b"])): pair["overall"] for pair in found}
    head = [el("th", "recipe", class_="word", scope="col")]
    head += [el("th", name, scope="col") for name in names]
    lines = []
    for a in names:
        cells = [el("th", a, class_="word", scope="row")]
        for b in names:
            told = between.get(frozenset((a, b)))
            cells.append(el("td", "1" if a == b else MISSING) if told is None else _cell(told))
        lines.append(el("tr", *cells))
    return el("table", el("thead", el("tr", *head)), el("tbody", *lines), class_="matrix")


def _cell(told: dict[str, Any]) -> Html:
    shade = min(max(int(told["value"] * SHADES), 0), SHADES - 1)
    return el("td", *_value(told), class_=f"shade{shade}")


def _value(told: dict[str, Any]) -> list[Any]:
    """An estimate with its interval below."""
    value, low, high = fixed([told[key] for key in ("value", "low", "high")])
    return [value, el("span", f"{low}..{high}", class_="range")]


def _more(found: list[dict[str, Any]]) -> Html | None:
    """What else was measured: chance, likeness in features, distances to the training images."""
    told = [pair for pair in found if {"null", "features", "nearest"} <= pair.keys()]
    if not told:
        return None
    head = ["recipes", "C", "C by chance", "alike in features", "alike by chance"]
    head += ["to nearest training image", "of training images", "closer than those"]
    lines = []
    for pair in told:
        near, features = pair["nearest"], pair["features"]
        distances = fixed([near[key]["median"] for key in ("a", "b", "real")])
        lines.append(
            [
                f"{pair['a']} and {pair['b']}",
                join(_value(pair["overall"])),
                join(_value(pair["null"])),
                join(_value(features)),
                fixed([features["null"]])[0],
                " and ".join(distances[:2]),
                distances[2],
                " and ".join(f"{100 * near[key]['closer']:.1f} %" for key in ("a", "b")),
            ]
        )
    return join(
        [
            scroll("Consistency in full", rows(head, lines, ("recipes",))),
            paragraph(
                "By chance: with every sample given another's partner. Alike in features: the "
                "share of pairs whose features point the same way. Nearest training image: median "
                "distance of the samples of both recipes, beside that of training images to each "
                "other; closer than those: the share of samples nearer to a training image than "
                "all but 5 % of the training images are to each other. Where that is far above 5 "
                "%, recipes repeat training images, and agree for that reason.",
                kind="note",
            ),
        ]
    )


def _by_state(found: list[dict[str, Any]]) -> Html | None:
    """C over log-SNR, a panel a pair, on the same axes."""
    if not found:
        return None
    curves = [pair["by_state"] for pair in found]
    x_axis = Axis.over([v for c in curves for v in c["log_snr"]])
    y_axis = Axis.over([0.0, 1.0, *(v for c in curves for key in ("low", "value") for v in c[key])])
    panels = []
    for pair, curve in zip(found, curves, strict=True):
        what = f"{pair['a']} and {pair['b']}"
        points = sorted(
            zip(curve["log_snr"], curve["value"], curve["low"], curve["high"], strict=True)
        )
        line = Line(
            what,
            [(x, y) for x, y, _, _ in points],
            "plain c0",
            [(x, low, high) for x, _, low, high in points],
        )
        alt = f"Consistency of {what} over log-SNR"
        drawing = charts.panel(
            [line], x_axis=x_axis, y_axis=y_axis, x_label="log-SNR", y_label="C", alt=alt
        )
        panels.append(el("figure", el("figcaption", what), drawing))
    return join(
        [
            el("h3", "By state"),
            el("div", *panels, class_="panels"),
            paragraph(
                "C of the two recipes' estimates of the clean image from the same noisy image: "
                "where the line drops, they part. The ground is its interval.",
                kind="note",
            ),
        ]
    )


def _grid(path: Path | None) -> Html | None:
    if path is None:
        return None
    source, width, height, _ = embedded(path)
    caption = el("figcaption", "Samples from the same noises")
    image = el(
        "img",
        src=source,
        alt="Samples of each recipe from the same noises",
        width=width,
        height=height,
    )
    return el("figure", caption, image, class_="picture")
