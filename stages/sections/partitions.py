"""Where the time axis is cut, what the cuts were found from, and what each interval costs."""

from __future__ import annotations

from typing import Any

from pipeline import config
from pipeline.plan import RecipePlan
from stages import charts, charts_matrix, charts_states, costs
from stages.charts import Axis, Line
from stages.charts_states import Cut
from stages.groups import Unit
from stages.markup import Html, counted, el, fixed, join, short, si
from stages.sections.parts import Findings, Section, details, listed, paragraph, rows, scroll


def partitions(found: Findings) -> Section | None:
    """None where no recipe is cut."""
    cut = [unit for unit in found.units if found.plan(unit).bounds]
    if not cut:
        return None
    drawn = [_cut(unit, found) for unit in cut]
    figure = el("figure", charts.responsive(lambda width: charts_states.intervals(drawn, width)))
    lines = []
    for unit in cut:
        plan = found.plan(unit)
        owner = "a decoder each" if _joint(plan) else f"{counted(len(plan.experts), 'expert')}"
        line = [found.heading(unit), plan.recipe.partition.kind, str(len(plan.bounds) + 1)]
        lines.append([*line, owner, listed(plan.bounds)])
    head = ["recipe", "partition", "intervals", "owned by", "bounds, log-SNR"]
    words = ("recipe", "partition", "owned by", "bounds, log-SNR")
    note = "A band is an interval; the numbers are the log-SNRs between them, cleanest first."
    if any(len(c.bounds) >= charts_states.MAX_OWNERS for c in drawn):
        note += f" Of {charts_states.MAX_OWNERS} bounds and more no bands are drawn."
    body = [
        figure,
        paragraph(note, kind="note"),
        scroll("Partitions", rows(head, lines, words)),
        *_measured(found),
        *(_decoders(unit, found) for unit in cut if _joint(found.plan(unit))),
    ]
    return Section("partitions", "Partitions", join(body))


def _joint(recipe: RecipePlan) -> bool:
    return isinstance(recipe.recipe.network, config.MultiDecoder)


def _cut(unit: Unit, found: Findings) -> Cut:
    recipe = found.plan(unit)
    clean, noisy = (float(recipe.trained[i]) for i in (0, -1))
    kind = recipe.recipe.partition.kind
    return Cut(unit.name, found.styles[unit.name], clean, noisy, recipe.bounds, kind)


# --- what bounds were found from


def _measured(found: Findings) -> list[Html]:
    """The analyses of partitions, each once, under the names of the recipes that it is for."""
    users: dict[str, list[Unit]] = {}
    for unit in found.units:
        for job in costs.analyses_of(found.workspace, found.facts, found.plan(unit)):
            analysis = found.facts.analyses.get(job.name, {})
            if job.kind == "bounds" or "affinity" in analysis:
                users.setdefault(job.name, []).append(unit)
    parts: list[Html] = []
    for name, units in users.items():
        analysis = found.facts.analyses[name]
        names = ", ".join(unit.name for unit in units)
        if "matrix" in analysis:
            parts += _optimal_denoiser(names, analysis)
        else:
            parts += _gradient(names, analysis, found.plan(units[0]).bounds)
    return parts


def _optimal_denoiser(names: str, analysis: dict[str, Any]) -> list[Html]:
    curves, bounds = analysis["curves"], analysis["bounds"]
    lines = [
        Line(title, list(zip(curves["log_snr"], curves[key], strict=True)), kind)
        for title, key, kind in (
            ("to the clean end", "s0", "plain c0"),
            ("to the noisy end", "s1", "plain c1"),
        )
    ]
    axis = Axis.over(curves["log_snr"])
    alt = f"Similarity of the best denoiser at each log-SNR to that of both ends, for {names}"

    def draw(width: int) -> Html:
        return charts.panel(
            lines,
            x_axis=axis,
            y_axis=Axis(-0.02, 1.02),
            x_label="log-SNR",
            y_label="similarity",
            alt=alt,
            named=lines if width > charts.NARROW else (),
            bounds=bounds,
            width=width,
            height=270,
        )

    matrix = charts_matrix.heat_map(
        analysis["matrix"],
        analysis["log_snr"],
        bounds,
        f"Similarity of the best denoisers of each two noise levels, for {names}",
    )
    return [
        el("h3", f"Optimal denoiser: {names}"),
        paragraph(
            "The best denoiser there is for the training images, compared between noise levels: "
            "the share of its output that is the same. Where it hardly changes, one network (or "
            "one decoder) can answer for all levels. Blue (first) line: similarity to the cleanest "
            "level; red (second) line: to the noisiest; vertical lines: the bounds."
        ),
        el(
            "div",
            el(
                "figure",
                el("figcaption", "Similarity to both ends"),
                charts.responsive(draw, charts.HALF),
            ),
            el("figure", el("figcaption", "Similarity of each two levels"), matrix),
            class_="pair",
        ),
        charts_matrix.scale(),
        details("How the bounds move", _sensitivity(analysis["sensitivity"])),
    ]


def _sensitivity(table: list[dict[str, Any]]) -> Html:
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
    return join(
        [
            paragraph(
                "Bounds of three intervals by the two anchors, for other thresholds: alpha, the "
                "mean similarity of an outer interval to its end; eta, the distance up to which "
                "outputs count as the same; draws, the number of noisy images measured. A place "
                "is the share of the time axis before the bound, ± its standard deviation over "
                "estimates from separate draws. A dash: no three intervals.",
                kind="note",
            ),
            scroll("Sensitivity of the bounds", rows(head, lines)),
        ]
    )


def _gradient(names: str, analysis: dict[str, Any], bounds: list[float]) -> list[Html]:
    matrix = charts_matrix.heat_map(
        analysis["affinity"],
        analysis["log_snr"],
        bounds,
        f"Affinity of the gradients of each two noise levels, for {names}",
    )
    return [
        el("h3", f"Gradient affinity: {names}"),
        paragraph(
            "Cosine of the training gradients of a short pilot run at each two noise levels. Red "
            "(1): training on the one also trains the other; blue (−1): they pull apart, and a "
            "network for both has to compromise. The lines are the bounds."
        ),
        el("figure", matrix, charts_matrix.scale()),
    ]


# --- multi-decoder networks


def _decoders(unit: Unit, found: Findings) -> Html:
    """Parameters and forward FLOPs of each interval's part of a network."""
    own = costs.interval_costs(found.plan(unit))
    shared = own[0].active - own[0].parameters
    total = shared + sum(cost.parameters for cost in own)
    lines = [
        [
            f"{short(cost.clean, 3)} to {short(cost.noisy, 3)}",
            str(cost.channels),
            si(cost.parameters),
            si(cost.active),
            si(cost.flops),
        ]
        for cost in own
    ]
    head = ["log-SNR", "decoder width", "decoder's parameters", "active parameters"]
    head.append("forward FLOPs an image")
    return join(
        [
            el("h3", f"Decoders: {unit.name}"),
            scroll(f"Decoders of {unit.name}", rows(head, lines, ("log-SNR",))),
            paragraph(
                f"{si(total)} parameters in all, {si(shared)} of them in the encoder that all "
                "intervals share.",
                kind="note",
            ),
        ]
    )
