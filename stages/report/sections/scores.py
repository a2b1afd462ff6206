"""The table of recipes: what each scores, and what it cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from stages.numbers import MISSING, count, counted, fixed, known, si
from stages.report import costs
from stages.report.groups import Unit, mean
from stages.report.results import Named, Results
from stages.report.section import Cell, Section, Table, aligned, scaled

MAX_CLASSES = 40  # columns of the tables by class
# What is compared with the law of `data.source: synthetic`.
LAW = ("shape", "colour", "position", "size", "shape + colour", "all")


class Head(NamedTuple):
    """A column's title; better: "lower", "higher" or nothing."""

    text: str
    better: str | None = None


@dataclass(frozen=True)
class Column:
    """A column of the table of recipes.

    interval: the key of a single run's confidence interval; optional: left out if nothing has it.
    """

    title: str
    keys: tuple[str, ...]
    show: Callable[[Sequence[Any]], list[str]]
    better: str | None = None
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
    Column("FID to published", ("fid_published",), fixed, "lower", optional=True),
    Column("KID ×10³", ("kid",), fixed, "lower", 1e3),
    Column("precision", ("precision",), fixed, "higher"),
    Column("recall", ("recall",), fixed, "higher"),
    Column("coverage", ("coverage",), fixed, "higher"),
    *(
        Column(f"TV {title}", (f"tv_{title.replace(' + ', '_')}",), fixed, "lower", optional=True)
        for title in LAW
    ),
    Column("off the law", ("off_law",), fixed, "lower", optional=True),
    Column("as asked", ("as_asked",), fixed, "higher", optional=True),
    Column("images", ("images_seen",), _each(_count)),
    Column("experts", ("experts",), _each(_count)),
    Column("parameters active / total", ("parameters_active", "parameters"), _each(si)),
    Column("training FLOPs", ("train_flops",), _each(si), "lower"),
    Column("{unit}-seconds", ("compute_seconds",), _seconds, "lower"),
    Column("seconds critical path", ("seconds_critical",), _seconds, "lower"),
)


def section(results: Results) -> Section:
    metrics, several = results.metrics, [unit for unit in results.units if unit.several]
    every = [Unit(name, (name,)) for unit in several for name in unit.members]
    levels = {m["fid_interval_confidence"] for m in metrics.values() if m.get("fid_interval")}
    left = {
        key.partition(".")[2]: reason
        for m in metrics.values()
        for key, reason in m.get("left_out", {}).items()
        if key.startswith("per_class")
    }
    data = {
        "apart": _apart(results),
        "table": _table(results, results.units, "Scores and costs"),
        "every": _table(results, every, "Every seed by itself") if every else None,
        "runs": counted(len(every), "run"),
        "recipes": len(results.units),
        "several": len(several),
        "confidence": max(levels) * 100 if levels else None,
        "infinity": any(m.get("fid_infinity") is not None for m in metrics.values()),
        "published": next((m["published"] for m in metrics.values() if "published" in m), None),
        "law": _law_floors(metrics),
        "floor": results.reference["floor"],
        "unit": costs.compute_unit(metrics),
        "by_class": _by_class(results),
        "left_out": "; ".join(f"{key} {reason}" for key, reason in left.items()),
        "footnotes": costs.footnotes(metrics),
    }
    return Section("scores", "Scores and costs", data | _what_costs_hold(results))


def _table(results: Results, units: Sequence[Unit], label: str) -> Table:
    head: list[Any] = ["recipe"]
    lines: list[list[Any]] = [[_heading(results, unit)] for unit in units]
    for column in COLUMNS:
        own = [[results.metrics[name] for name in unit.members] for unit in units]
        if column.optional and not any(m.get(column.keys[0]) is not None for u in own for m in u):
            continue
        title = column.title.format(unit=costs.compute_unit(results.metrics))
        head.append(Head(title, column.better))
        values = [
            [mean([scaled(m.get(key), column.factor) for m in members]) for members in own]
            for key in column.keys
        ]
        texts = [column.show(part) for part in values]
        best = _best(values[0], texts[0], column.better)
        for row, (line, members) in enumerate(zip(lines, own, strict=True)):
            below = _range(column, members, texts[0][row])
            shown = " / ".join(part[row] for part in texts)
            line.append(Cell(shown, below, "best" if row in best else ""))
    return Table(label, head, lines, ("recipe",), "main")


def _heading(results: Results, unit: Unit) -> Named:
    """A unit with the signs of the notes on its seconds."""
    signs = " ".join(costs.signs(results.metrics, unit.members))
    heading = results.heading(unit)
    return heading._replace(note=f"{heading.note} {signs}".strip())


def _range(column: Column, members: Sequence[dict[str, Any]], text: str) -> str:
    """Below a mean its lowest and highest; below a single run's score its interval.

    text: what stands above, with as many decimals.
    """
    if len(members) > 1:
        values = [scaled(m.get(column.keys[0]), column.factor) for m in members]
        if not all(map(known, values)) or min(values) == max(values):
            return ""
        ends = [min(values), max(values)]
    else:
        interval = members[0].get(column.interval) if column.interval else None
        if interval is None:
            return ""
        ends = [scaled(v, column.factor) for v in interval]
    decimals = text.partition(".")[2]
    if column.show is fixed and decimals.isdecimal():
        shown = [f"{v:,.{len(decimals)}f}".replace("-", "−") for v in ends]
    else:
        shown = column.show(ends)
    return f"{shown[0]}..{shown[1]}"


def _best(values: Sequence[Any], texts: Sequence[str], better: str | None) -> set[int]:
    """Rows with the best value, and those shown equal to it; none if there is no choice."""
    numbers = [i for i, value in enumerate(values) if known(value)]
    if better is None or len({texts[i] for i in numbers}) < 2:
        return set()
    choose = min if better == "lower" else max
    shown = texts[choose(numbers, key=lambda i: values[i])]
    return {i for i in numbers if texts[i] == shown}


def _apart(results: Results) -> str:
    """In what recipes differ whose scores must not be compared; empty if in nothing."""
    what = {
        "samples": "numbers of samples",
        "reference_samples": "numbers of real images",
        "extractor_digest": "feature extractors",
    }
    said = []
    for key, words in what.items():
        values = {name: m[key] for name, m in results.metrics.items() if m.get(key) is not None}
        if len(set(values.values())) > 1:
            each = ", ".join(
                f"{name} {count(v) if known(v) else str(v)[:12]}" for name, v in values.items()
            )
            said.append(f"{words} ({each})")
    return " and ".join(said)


def _what_costs_hold(results: Results) -> dict[str, str]:
    """What the costs of some recipes hold besides their own experts."""
    started: dict[str, list[str]] = {}
    piloted, searched, routed = [], [], []
    for unit in results.units:
        line = costs.ancestors(results.plan(unit))
        if line:
            started.setdefault(" and ".join(p.name for p in reversed(line)), []).append(unit.name)
        if any(label == "pilot" for label, _ in results.before[unit.members[0]]):
            piloted.append(unit.name)
        if results.plan(unit).router:
            routed.append(unit.name)
        merges = results.merges[unit.members[0]]
        if merges and merges[-1].report.get("evaluations"):
            searched.append(f"{unit.name} {merges[-1].report['evaluations']}")
    return {
        "started": "; ".join(f"{', '.join(own)} from {parent}" for parent, own in started.items()),
        "piloted": ", ".join(piloted),
        "searched": ", ".join(searched),
        "routed": ", ".join(routed),
    }


def _law_floors(metrics: dict[str, dict[str, Any]]) -> dict[str, str]:
    """What draws of the law score in the samples' place, and of which recipes, by names of these.

    Recipes that are told a class are compared with the law of these classes.
    """
    said: dict[str, list[str]] = {}
    for name, found in metrics.items():
        if law := found.get("law"):
            own = [law["floor"][title.replace(" + ", "_")] for title in LAW]
            means, highs = (fixed([floor[key] for floor in own]) for key in ("mean", "high"))
            each = zip(LAW, means, highs, strict=True)
            text = ", ".join(f"{title} {mean} (up to {high})" for title, mean, high in each)
            said.setdefault(text, []).append(name)
    return {", ".join(names): text for text, names in said.items()}


def _by_class(results: Results) -> list[Table]:
    """FID, precision and recall of each class by itself."""
    own = {name: m["per_class"] for name, m in results.metrics.items() if m.get("per_class")}
    if not own:
        return []
    labels = list(next(iter(own.values())))[:MAX_CLASSES]
    tables = []
    for key, title in (("fid", "FID"), ("precision", "Precision"), ("recall", "Recall")):
        lines, names = [], []
        for unit in results.units:
            members = [own[name] for name in unit.members if name in own]
            if members:
                names.append(results.heading(unit))
                lines.append([mean([m.get(c, {}).get(key) for m in members]) for c in labels])
        if any(known(v) for line in lines for v in line):
            texts = aligned(lines, [2] * len(labels))
            head = ["recipe", *map(results.class_name, labels)]
            body = [[name, *line] for name, line in zip(names, texts, strict=True)]
            tables.append(Table(f"{title} by class", head, body, ("recipe",)))
    return tables
