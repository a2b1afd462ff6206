"""The table of recipes: what each scores, and what it cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stages import costs
from stages.groups import Unit, mean
from stages.markup import MISSING, Html, count, counted, el, fixed, join, known, si
from stages.sections.parts import (
    Findings,
    Section,
    aligned,
    details,
    paragraph,
    rows,
    scaled,
    scroll,
    warning,
)

MAX_CLASSES = 40  # columns of the tables by class


@dataclass(frozen=True)
class Column:
    """A column of the table of recipes.

    interval: the key of a single run's confidence interval; optional: left out if nothing has it.
    """

    title: str
    keys: tuple[str, ...]
    show: Callable[[Sequence[Any]], list[str]]
    better: str | None = None  # "lower" or "higher"
    factor: float = 1.0
    interval: str | None = None
    optional: bool = False


def _each(show: Callable[[Any], str]) -> Callable[[Sequence[Any]], list[str]]:
    return lambda values: [show(value) for value in values]


def _count(value: Any) -> str:
    return count(round(value)) if known(value) else MISSING


def _seconds(values: Sequence[Any]) -> list[str]:
    return fixed(values, most=1)


COLUMNS = (
    Column("FID", ("fid",), fixed, "lower", interval="fid_interval"),
    Column("FID∞", ("fid_infinity",), fixed, "lower", optional=True),
    Column("KID ×10³", ("kid",), fixed, "lower", 1e3),
    Column("precision", ("precision",), fixed, "higher"),
    Column("recall", ("recall",), fixed, "higher"),
    Column("coverage", ("coverage",), fixed, "higher"),
    Column("images", ("images_seen",), _each(_count)),
    Column("experts", ("experts",), _each(_count)),
    Column("parameters active / total", ("parameters_active", "parameters"), _each(si)),
    Column("training FLOPs", ("train_flops",), _each(si), "lower"),
    Column("{unit}-seconds", ("compute_seconds",), _seconds, "lower"),
    Column("seconds critical path", ("seconds_critical",), _seconds, "lower"),
)


def scores(found: Findings) -> Section:
    main = scroll("Scores and costs", _table(found, found.units))
    every = [Unit(name, (name,)) for unit in found.units if unit.several for name in unit.members]
    seeds = None
    if every:
        seeds = details(
            f"Every seed by itself: {counted(len(every), 'run')}",
            scroll("Every seed by itself", _table(found, every)),
        )
    body = join(
        [_comparable(found), main, seeds, _notes(found), *_footnotes(found), _by_class(found)]
    )
    return Section("scores", "Scores and costs", body)


def _table(found: Findings, units: Sequence[Unit]) -> Html:
    head = [el("th", "recipe", class_="word", scope="col")]
    cells: list[list[Html]] = [[] for _ in units]
    for column in COLUMNS:
        own = [[found.metrics[name] for name in unit.members] for unit in units]
        if column.optional and not any(m.get(column.keys[0]) is not None for u in own for m in u):
            continue
        arrow = {"lower": "\u00a0↓", "higher": "\u00a0↑"}.get(column.better or "", "")
        sign = el("span", arrow, title=f"{column.better} is better") if arrow else None
        title = column.title.format(unit=costs.compute_unit(found.metrics))
        head.append(el("th", title, sign, scope="col"))
        values = [
            [mean([scaled(m.get(key), column.factor) for m in members]) for members in own]
            for key in column.keys
        ]
        texts = [column.show(part) for part in values]
        best = _best(values[0], texts[0], column.better)
        ranges = [_range(column, m, text) for m, text in zip(own, texts[0], strict=True)]
        for row, content in enumerate(zip(*texts, strict=True)):
            shown = el("strong", " / ".join(content)) if row in best else " / ".join(content)
            told = el("span", " (best)", class_="sr") if row in best else None
            cells[row].append(
                el("td", shown, told, ranges[row], class_="best" if row in best else None)
            )
    lines = [
        el("tr", el("th", _heading(found, unit), class_="word", scope="row"), *own)
        for unit, own in zip(units, cells, strict=True)
    ]
    return el("table", el("thead", el("tr", *head)), el("tbody", *lines), class_="main")


def _heading(found: Findings, unit: Unit) -> Html:
    """A unit with the signs of the notes on its seconds."""
    signs = [f" {sign}" for sign in costs.signs(found.metrics, unit.members)]
    return join([found.heading(unit), *signs])


def _range(column: Column, members: Sequence[dict[str, Any]], text: str) -> Html | None:
    """Below a mean its lowest and highest; below a single run's score its interval.

    text: what stands above, with as many decimals.
    """
    if len(members) > 1:
        values = [scaled(m.get(column.keys[0]), column.factor) for m in members]
        if not all(map(known, values)) or min(values) == max(values):
            return None
        ends = [min(values), max(values)]
    else:
        interval = members[0].get(column.interval) if column.interval else None
        if interval is None:
            return None
        ends = [scaled(v, column.factor) for v in interval]
    decimals = text.partition(".")[2]
    if column.show is fixed and decimals.isdecimal():
        shown = [f"{v:,.{len(decimals)}f}".replace("-", "−") for v in ends]
    else:
        shown = column.show(ends)
    return el("span", f"{shown[0]}..{shown[1]}", class_="range")


def _best(values: Sequence[Any], texts: Sequence[str], better: str | None) -> set[int]:
    """Rows with the best value, and those shown equal to it; none if there is no choice."""
    numbers = [i for i, value in enumerate(values) if known(value)]
    if better is None or len({texts[i] for i in numbers}) < 2:
        return set()
    choose = min if better == "lower" else max
    shown = texts[choose(numbers, key=lambda i: values[i])]
    return {i for i in numbers if texts[i] == shown}


def _comparable(found: Findings) -> Html | None:
    """A warning if scores in the table must not be compared."""
    apart = {
        "samples": "numbers of samples",
        "reference_samples": "numbers of real images",
        "extractor_digest": "feature extractors",
    }
    said = []
    for key, what in apart.items():
        values = {name: m[key] for name, m in found.metrics.items() if m.get(key) is not None}
        if len(set(values.values())) > 1:
            each = ", ".join(
                f"{name} {count(v) if known(v) else str(v)[:12]}" for name, v in values.items()
            )
            said.append(f"{what} ({each})")
    if not said:
        return None
    return warning(
        f"These recipes were scored with different {' and '.join(said)}. FID, KID and the other "
        "scores depend on them: compare only rows that agree."
    )


def _notes(found: Findings) -> Html:
    several = [unit for unit in found.units if unit.several]
    single = len(several) < len(found.units)
    marked = "The best of each column is bold on a shaded ground. " if len(found.units) > 1 else ""
    chance = ""
    if several:
        chance = "Rows with several seeds show the mean, and below it the lowest..highest run. "
    if single:
        chance += (
            "The other recipes were trained once" if several else "Each recipe was trained once"
        ) + ", so a small difference may be chance. "
    every = [m for name in found.metrics for m in [found.metrics[name]]]
    levels = {m["fid_interval_confidence"] for m in every if m.get("fid_interval")}
    if levels and single:
        chance += (
            f"Below the FID of a single run is its {100 * max(levels):g}% interval, from drawing "
            "its samples anew; it holds the chance of sampling, not that of training. "
        )
    if any(m.get("fid_infinity") is not None for m in every):
        chance += "FID∞ is extrapolated to infinitely many samples. "
    floor = found.reference["floor"]
    if floor is not None:
        chance += (
            f"Real images in the samples' place score FID {fixed([floor['fid']])[0]}, the floor. "
        )
    return paragraph(
        marked,
        chance,
        el("strong", f"{costs.compute_unit(found.metrics)}-seconds"),
        " are summed over the experts: what they kept busy, not how long they waited. ",
        el("strong", "Critical path"),
        " is the longest chain of training jobs in wall-clock seconds: what training takes when "
        "every expert has a worker of its own. A recipe can win the one and lose the other. "
        "Parameters active are those of the largest expert, the only one needed at a time.",
        kind="note",
    )


def _footnotes(found: Findings) -> list[Html]:
    """What the costs of some recipes hold besides their own experts."""
    said = []
    started: dict[str, list[str]] = {}
    piloted, searched = [], []
    for unit in found.units:
        recipe = found.plan(unit)
        line = costs.ancestors(recipe)
        if line:
            started.setdefault(" and ".join(p.name for p in reversed(line)), []).append(unit.name)
        labels = [label for label, *_ in costs.before(found.workspace, found.facts, recipe)]
        if "pilot" in labels:
            piloted.append(unit.name)
        if recipe.merged:
            job = recipe.merged[recipe.milestones[-1]]
            report = found.workspace.store.entry(job.name).load_json("report.json")
            if report.get("evaluations"):
                searched.append(f"{unit.name} {report['evaluations']}")
    if started:
        each = "; ".join(f"{', '.join(own)} from {parent}" for parent, own in started.items())
        said.append(
            f"Recipes that start from a trained parent ({each}) count the parent's training too, "
            "in images, FLOPs and both seconds."
        )
    if piloted:
        said.append(
            f"{', '.join(piloted)}: with the pilot run that the states or intervals were found by."
        )
    if searched:
        said.append(
            f"Weights of merged networks were searched; evaluations: {', '.join(searched)}. "
            "Their seconds are in the table, their FLOPs are not."
        )
    for sign, names, why in costs.footnotes(found.metrics):
        said.append(f"{sign} {', '.join(names)}: {why}.")
    return [paragraph(text, kind="note") for text in said]


def _by_class(found: Findings) -> Html | None:
    """FID, precision and recall of each class by itself."""
    own = {name: m["per_class"] for name, m in found.metrics.items() if m.get("per_class")}
    if not own:
        return None
    labels = list(next(iter(own.values())))[:MAX_CLASSES]
    tables = []
    for key, title in (("fid", "FID"), ("precision", "precision"), ("recall", "recall")):
        lines, names = [], []
        for unit in found.units:
            members = [own[name] for name in unit.members if name in own]
            if members:
                names.append(found.heading(unit))
                lines.append([mean([m.get(c, {}).get(key) for m in members]) for c in labels])
        if any(known(v) for line in lines for v in line):
            texts = aligned(lines, [2] * len(labels))
            head = ["recipe", *map(found.class_name, labels)]
            body = [[name, *line] for name, line in zip(names, texts, strict=True)]
            tables.append(el("h3", f"{title} by class"))
            tables.append(scroll(f"{title} by class", rows(head, body, words=("recipe",))))
    left = {
        key: reason
        for m in found.metrics.values()
        for key, reason in m.get("left_out", {}).items()
        if key.startswith("per_class")
    }
    told = "; ".join(f"{key.partition('.')[2]} {reason}" for key, reason in left.items())
    note = paragraph(f"Left out: {told}.", kind="note") if told else None
    if not tables:
        return None
    return details("Scores by class", *tables, note)
