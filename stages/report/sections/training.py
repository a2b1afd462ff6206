"""Where the seconds went, how losses fell, and every job of training."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from pipeline.plan import Expert, RecipePlan
from stages.numbers import count, fixed, short, si
from stages.report.charts import MAX_BARS, MAX_CURVES, Chart, Line, Scale, Timeline, Work, thinned
from stages.report.figures import NARROW, SHADES
from stages.report.groups import Unit
from stages.report.results import Results, Trained
from stages.report.section import Codes, Section, Table, table

MAX_ROWS = 100  # experts of a recipe in its table


def section(results: Results) -> Section:
    works = [work for unit in results.units if (work := _work(unit, results)) is not None]
    panels = _losses(results)
    alt = "Seconds of training: " + "; ".join(
        f"{w.name} {short(w.total)} in all, {short(w.critical)} on the critical path" for w in works
    )
    most = max(len(own) for own in results.experts.values())
    data = {
        "timeline": Timeline(alt, works) if works else None,
        "before": any(work.before or work.after for work in works),
        "several": any(unit.several for unit in results.units),
        "max_bars": MAX_BARS if most > MAX_BARS else None,
        "max_curves": MAX_CURVES if most > MAX_CURVES else None,
        "unknown": len(works) < len(results.units),
        "panels": [(results.heading(u), p) for u, p in zip(results.units, panels, strict=True)],
        "max_rows": MAX_ROWS,
        "jobs": [
            (results.named(name), len(own), _jobs(name, results))
            for name, own in results.experts.items()
        ],
    }
    shown = {"figures/losses": panels}
    if works:
        shown["costs/timeline"] = [data["timeline"]]
    return Section("training", "Training", data, shown)


def _work(unit: Unit, results: Results) -> Work | None:
    """A unit's wall-clock seconds; of several seeds, the mean of each part. None where unknown."""
    if any(results.metrics[name]["seconds"] is None for name in unit.members):
        return None

    def mean(values: Iterable[float]) -> float:
        return float(np.mean(list(values)))

    first = zip(*(results.before[name] for name in unit.members), strict=True)
    before = [
        (parts[0][0], mean(s.seconds for _, s in parts), mean(s.seconds_critical for _, s in parts))
        for parts in first
    ]
    experts = [
        (states_of(parts[0].expert, results.plan(unit)), mean(t.seconds for t in parts))
        for parts in zip(*(results.experts[name] for name in unit.members), strict=True)
    ]
    after = mean(sum(m.seconds for m in results.merges[name][-1:]) for name in unit.members)
    return Work(unit.name, results.styles[unit.name], experts, before, after)


def _losses(results: Results) -> list[Chart]:
    """Losses of each unit's experts, from faint (cleanest states) to strong (noisiest)."""
    trained = results.experts

    def reached(names: Iterable[str]) -> list[float]:
        drawn = [t for name in names for t in thinned(trained[name], MAX_CURVES)]
        return [loss for t in drawn for _, loss in t.curve]

    # A loss with a learnt weighting falls below zero: it has a linear axis of its own.
    signed = {u.name for u in results.units if min(reached(u.members)) <= 0}
    shared = [n for unit in results.units if unit.name not in signed for n in unit.members]
    y = Scale.over(reached(shared), log=True)
    panels = []
    for unit in results.units:
        experts = zip(*(trained[name] for name in unit.members), strict=True)
        kept = thinned(list(experts), MAX_CURVES)
        curves = [
            _curve(
                states_of(seeds[0].expert, results.plan(unit)),
                seeds,
                SHADES[round(4 * i / (len(kept) - 1)) if len(kept) > 1 else 4],
            )
            for i, seeds in enumerate(kept)
        ]
        last = [t.curve[-1][1] for seeds in kept for t in seeds]
        ends = f"at the end {short(min(last))} to {short(max(last))}"
        alt = f"Loss of {unit.name} over its training; {ends}"
        x = Scale.over([x for line in curves for x, _ in line.points], zero=True)
        own = Scale.over(reached(unit.members)) if unit.name in signed else y
        named = [curves[0], curves[-1]] if len(curves) > 1 else []
        axes = (x, own, "images of an expert", "loss")
        panels.append(Chart(alt, curves, *axes, named, title=unit.name, wide=NARROW))
    return panels


def _curve(label: str, seeds: tuple[Trained, ...], colour: str) -> Line:
    """An expert's loss; of several seeds their mean, and the ground from lowest to highest."""
    images = [float(at) for at, _ in seeds[0].curve]
    values = np.array([np.interp(images, *zip(*t.curve, strict=True)) for t in seeds])
    points = list(zip(images, values.mean(0).tolist(), strict=True))
    ends = list(zip(images, values.min(0).tolist(), values.max(0).tolist(), strict=True))
    return Line(label, points, colour, 1.1, ends if len(seeds) > 1 else [])


def states_of(expert: Expert, recipe: RecipePlan) -> str:
    """Which states an expert owns, numbered from 1, the cleanest, and of which cluster it is."""
    cluster = "" if expert.cluster is None else f"cluster {expert.cluster + 1}, "
    if recipe.continuous:
        return f"{cluster}all"
    if expert.first == expert.last:
        return f"{cluster}state {expert.first + 1}"
    return f"{cluster}states {expert.first + 1}–{expert.last + 1}"


def _jobs(name: str, results: Results) -> Table:
    recipe, listed = results.recipes[name], results.experts[name][:MAX_ROWS]
    spans = []
    for t in listed:
        ends = (recipe.log_snr[t.expert.last], recipe.log_snr[t.expert.first])
        told = (f"{v:.2f}".replace("-", "−") for v in dict.fromkeys(map(float, ends)))
        spans.append(" to ".join(told))
    columns = {
        "states": [states_of(t.expert, recipe) for t in listed],
        "log-SNR": spans,
        "images": [count(t.record["images"]) for t in listed],
        "seconds": fixed([t.seconds for t in listed], most=2),
        "parameters": [si(t.record["parameters"]) for t in listed],
        "FLOPs": [si(t.record["flops"]) for t in listed],
        "last loss": fixed([t.curve[-1][1] for t in listed], most=4),
        "entry": [Codes([t.expert.job.name]) for t in listed],
    }
    return table(f"Jobs of {name}", columns, ("states", "entry"))
