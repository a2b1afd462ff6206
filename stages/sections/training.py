"""Where the seconds went, how losses fell, and every job of training."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from pipeline.plan import Expert, RecipePlan
from stages import charts, charts_training, costs
from stages.charts import Axis, Line
from stages.charts_training import MAX_BARS, MAX_CURVES, Work
from stages.groups import Unit
from stages.markup import Html, count, counted, el, fixed, join, short, si
from stages.sections.parts import (
    Findings,
    Section,
    Trained,
    code,
    details,
    paragraph,
    rows,
    scroll,
)

MAX_ROWS = 100  # experts of a recipe in its table


def training(found: Findings, trained: dict[str, list[Trained]]) -> Section:
    works = [work for unit in found.units if (work := _work(unit, found, trained)) is not None]
    most = max(len(own) for own in trained.values())
    bars = (
        "The upper bar of a recipe is its experts one after the other, as one worker trains them. "
        "The bars below it are its experts all starting at once, a worker each; the longest is the "
        "critical path."
    )
    if any(work.before or work.after for work in works):
        bars += " Pale: what had to be trained before (a parent, a pilot), and merging after it."
    if any(unit.several for unit in found.units):
        bars += " Of several seeds: means."
    if most > MAX_BARS:
        bars += f" Of more than {MAX_BARS} experts the {MAX_BARS} slowest are drawn."
    losses = (
        "Mean loss over stretches of training, in the recipe's own prediction: levels are "
        "comparable only between recipes with the same states and prediction. From faint to "
        "strong: from the cleanest states to the noisiest. Axes are logarithmic and the same for "
        "all, but linear and its own where a loss falls to zero and below, as one with a learnt "
        "weighting does."
    )
    if any(unit.several for unit in found.units):
        losses += " Of several seeds the line is the mean; the ground spans lowest to highest."
    if most > MAX_CURVES:
        losses += f" Of more than {MAX_CURVES} experts {MAX_CURVES} are drawn."
    if len(works) < len(found.units):
        bars += " Recipes that were trained elsewhere are left out: their seconds are unknown."
    timeline = None
    if works:
        drawing = charts.responsive(lambda width: charts_training.timeline(works, width))
        timeline = el("figure", drawing)
    body = [
        el("h3", "Where the seconds went"),
        timeline,
        paragraph(bars, kind="note"),
        el("h3", "Loss"),
        el("div", *_losses(found, trained), class_="panels"),
        paragraph(losses, kind="note"),
        el("h3", "Jobs"),
        *(_jobs(name, found, own) for name, own in trained.items()),
    ]
    return Section("training", "Training", join(body))


def _work(unit: Unit, found: Findings, trained: dict[str, list[Trained]]) -> Work | None:
    """A unit's wall-clock seconds; of several seeds, the mean of each part. None where unknown."""
    if any(found.metrics[name]["seconds"] is None for name in unit.members):
        return None
    plans = [found.recipes[name] for name in unit.members]
    own = [trained[name] for name in unit.members]
    first = [costs.before(found.workspace, found.facts, plan) for plan in plans]
    before = [
        (
            parts[0][0],
            float(np.mean([time.seconds for _, _, time in parts])),
            float(np.mean([time.critical for _, _, time in parts])),
        )
        for parts in zip(*first, strict=True)
    ]
    after = [costs.merging(found.workspace, plan, plan.milestones[-1]).seconds for plan in plans]
    experts = [
        (states_of(parts[0].expert, plans[0]), float(np.mean([t.seconds for t in parts])))
        for parts in zip(*own, strict=True)
    ]
    style = found.styles[unit.name]
    return Work(unit.name, style, experts, before, float(np.mean(after)))


def _losses(found: Findings, trained: dict[str, list[Trained]]) -> list[Html]:
    def reached(names: Iterable[str]) -> list[float]:
        drawn = [t for name in names for t in charts.thinned(trained[name], MAX_CURVES)]
        return [loss for t in drawn for _, loss in t.curve]

    # A loss with a learnt weighting falls below zero: it has a linear axis of its own.
    signed = {u.name for u in found.units if min(reached(u.members)) <= 0}
    shared = [n for unit in found.units if unit.name not in signed for n in unit.members]
    shared_axis = Axis.over(reached(shared), log=True) if shared else None
    panels = []
    for unit in found.units:
        plan = found.plan(unit)
        experts = zip(*(trained[name] for name in unit.members), strict=True)
        kept = charts.thinned(list(experts), MAX_CURVES)
        curves = []
        for i, seeds in enumerate(kept):
            shade = round(4 * i / (len(kept) - 1)) if len(kept) > 1 else 4
            curves.append(_curve(states_of(seeds[0].expert, plan), seeds, f"curve r{shade}"))
        last = [t.curve[-1][1] for seeds in kept for t in seeds]
        alt = (
            f"Loss of {unit.name} over its training; "
            f"at the end {short(min(last))} to {short(max(last))}"
        )
        own_axis = Axis.over(reached(unit.members)) if unit.name in signed else shared_axis
        drawing = charts_training.loss_curves(curves, own_axis, alt)
        panels.append(el("figure", el("figcaption", found.heading(unit)), drawing))
    return panels


def _curve(label: str, seeds: tuple[Trained, ...], kind: str) -> Line:
    """An expert's loss; of several seeds their mean, and the ground from lowest to highest."""
    images = [float(at) for at, _ in seeds[0].curve]
    values = np.array([np.interp(images, *zip(*t.curve, strict=True)) for t in seeds])
    points = list(zip(images, values.mean(0).tolist(), strict=True))
    if len(seeds) == 1:
        return Line(label, points, kind)
    ends = zip(images, values.min(0).tolist(), values.max(0).tolist(), strict=True)
    return Line(label, points, kind, list(ends))


def states_of(expert: Expert, recipe: RecipePlan) -> str:
    """Which states an expert owns, numbered from 1, the cleanest."""
    if recipe.continuous:
        return "all"
    if expert.first == expert.last:
        return f"state {expert.first + 1}"
    return f"states {expert.first + 1}–{expert.last + 1}"


def _jobs(name: str, found: Findings, own: list[Trained]) -> Html:
    recipe = found.recipes[name]
    listed = own[:MAX_ROWS]
    seconds = fixed([t.seconds for t in listed], most=2)
    losses = fixed([t.curve[-1][1] for t in listed], most=4)
    lines = []
    for t, spent, loss in zip(listed, seconds, losses, strict=True):
        ends = (recipe.log_snr[t.expert.last], recipe.log_snr[t.expert.first])
        span = " to ".join(f"{v:.2f}".replace("-", "−") for v in dict.fromkeys(map(float, ends)))
        lines.append(
            [
                states_of(t.expert, recipe),
                span,
                count(t.expert.images),
                spent,
                si(t.record["parameters"]),
                si(t.record["flops"]),
                loss,
                code(t.expert.job.name),
            ]
        )
    head = ["states", "log-SNR", "images", "seconds", "parameters", "FLOPs", "last loss", "entry"]
    more = None
    if len(own) > MAX_ROWS:
        more = paragraph(
            f"The first {MAX_ROWS} of {len(own):,} experts; all of them are in "
            "artefacts/experts/manifest.json.",
            kind="note",
        )
    title = join([found.name(name), f": {counted(len(own), 'expert')}"])
    table = rows(head, lines, words=("states", "entry"))
    return details(title, scroll(f"Jobs of {name}", table), more)
