"""The states of every recipe, and whether sampling can step from one to the next."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pipeline import schedule
from stages import charts, charts_states
from stages.charts import Axis, Line
from stages.charts_states import Strip
from stages.groups import Unit
from stages.markup import Html, count, el, fixed, join, short
from stages.sections.parts import Findings, Section, pairs, paragraph, rows, scroll

SAFE = 1.0  # condition up to which a reverse step is near Gaussian
COMPARED = (32, 4)  # even states that every table holds for comparison
LOG_SNR_MAX, LOG_SNR_MIN = 9.0, -9.0  # between these ends


def states(found: Findings) -> Section:
    strips = [
        Strip(
            unit.name,
            found.styles[unit.name],
            [float(v) for v in found.plan(unit).trained],
            found.plan(unit).continuous,
            [(e.first, e.last) for e in found.plan(unit).experts],
            [v for v in found.plan(unit).sampling_states if math.isfinite(v)],
        )
        for unit in found.units
    ]
    notes = [
        "A tick is a state the recipe trains; it stands on the band of the expert that owns it, "
        "in the upper or the lower half by turns from expert to expert. A dot is a state that "
        "sampling visits. At log-SNR 0 an image is half signal, half noise."
    ]
    if any(s.continuous for s in strips):
        notes.append("A band without ticks is a continuous range.")
    ends = [unit.name for unit in found.units if not np.isfinite(found.plan(unit).log_snr[-1])]
    if ends:
        notes.append(
            f"Not drawn: a last state of {', '.join(ends)} without any signal, which needs no "
            "network."
        )
    if any(len(s.states) > charts_states.MAX_TICKS for s in strips):
        most = charts_states.MAX_TICKS
        notes.append(f"Of more than {most} states, {most} are drawn.")
    if any(len(s.owned) > charts_states.MAX_OWNERS for s in strips):
        notes.append(f"Of more than {charts_states.MAX_OWNERS} experts no bands are drawn.")
    figure = el("figure", charts.responsive(lambda width: charts_states.schedules(strips, width)))
    body = join([figure, paragraph(" ".join(notes), kind="note")])
    return Section("states", "States and experts", body)


def steps(found: Findings) -> Section | None:
    """What each sampling step has to bridge; None where nothing steps."""
    stepping = [u for u in found.units if len(found.plan(u).sampling_states) > 1]
    if not stepping:
        return None
    found_of = {
        unit.name: _diagnose(found.plan(unit).sampling_states, found.spectrum) for unit in stepping
    }
    compared = {
        n: _diagnose(np.linspace(LOG_SNR_MAX, LOG_SNR_MIN, n), found.spectrum) for n in COMPARED
    }
    drawn = [v for d in found_of.values() for v in (*d["condition_top"], *d["condition_mean"])]
    y_axis = Axis.over([*drawn, SAFE], log=True)
    x_axis = Axis.over([v for d in found_of.values() for v in d["at"]])
    panels = [
        el(
            "figure",
            el("figcaption", found.name(unit.name)),
            _conditions(unit.name, found_of[unit.name], x_axis, y_axis),
        )
        for unit in stepping
    ]
    body = [
        paragraph(
            "Sampling walks from noise to image, and each step draws from a Gaussian. The true "
            "distribution of a step is surely near Gaussian only if the step is short; its ",
            el("strong", "condition"),
            " says how short: what the step reveals of the image over what is still unknown, "
            "about e",
            el("sup", "D"),
            " − 1 for a step of D in log-SNR. Below about 1 a Gaussian does; far above, the "
            "step has to guess, and what comes out is a mean of several images. ",
            _why(compared),
        ),
        paragraph(
            el("strong", "This says nothing of how well a network learnt"),
            ": it is arithmetic on a recipe's states and the data's variances, and does not order "
            "recipes by FID. It bounds what a perfect network could do with these steps; a recipe "
            "with many short steps can still score worse than one with few.",
        ),
        el("div", *panels, class_="panels"),
        paragraph(
            "Condition of every step over log-SNR, on these data's principal variances: the upper "
            "line along the first principal component, where it is largest, the lower line its "
            "mean over all components.",
            kind="note",
        ),
        scroll("Steps of sampling", _table(found, stepping, found_of, compared)),
        _words(),
        *_elbo(found, stepping, found_of),
    ]
    return Section("steps", "Steps of sampling", join(body))


def _diagnose(states: Any, spectrum: list[float]) -> dict[str, Any]:
    """`schedule.diagnose` with `at`: the cleaner, always finite end of each step."""
    return schedule.diagnose(states, spectrum) | {"at": np.asarray(states)[:-1]}


def _why(compared: dict[int, dict[str, Any]]) -> str:
    parts = [
        f"{n} even steps from log-SNR {LOG_SNR_MAX:g} to −{-LOG_SNR_MIN:g} have conditions up to "
        f"{short(float(found['condition_top'].max()), 3)}"
        for n, found in compared.items()
    ]
    most, least = (float(found["condition_top"].max()) for found in compared.values())
    return (
        f"On these data {' and '.join(parts)}: a step of the second kind hides "
        f"{count(round(least / most))} times as much. That is why {COMPARED[0]} states can serve "
        f"and {COMPARED[1]} cannot."
    )


def _conditions(name: str, found: dict[str, Any], x_axis: Axis, y_axis: Axis) -> Html:
    lines = [
        Line(what, [(float(x), float(y)) for x, y in zip(found["at"], found[key], strict=True)], k)
        for what, key, k in (
            ("first component", "condition_top", "steps strong"),
            ("mean", "condition_mean", "steps faint"),
        )
    ]
    worst = short(float(found["condition_top"].max()), 3)
    return charts.panel(
        lines,
        x_axis=x_axis,
        y_axis=y_axis,
        x_label="log-SNR",
        y_label="condition",
        alt=f"Condition of the sampling steps of {name} over log-SNR; at most {worst}",
        reference=(SAFE, "near Gaussian below"),
    )


def _table(
    found: Findings,
    units: list[Unit],
    found_of: dict[str, dict[str, Any]],
    compared: dict[int, dict[str, Any]],
) -> Html:
    every = [*found_of.values(), *compared.values()]
    names = [found.heading(unit) for unit in units]
    names += [el("span", f"for comparison: {n} even states", class_="other") for n in compared]
    worst = [int(d["condition_top"].argmax()) for d in every]
    columns = [
        [count(len(d["at"]) + 1) for d in every],
        [short(float(d["condition_top"][i]), 3) for d, i in zip(every, worst, strict=True)],
        [short(float(d["at"][i]), 3) for d, i in zip(every, worst, strict=True)],
        [short(float(d["condition_mean"].max()), 3) for d in every],
        fixed([d["gap_total"] for d in every]),
        fixed([d["leaked_signal"] for d in every], most=4),
        fixed([d["residual_noise"] for d in every], most=4),
    ]
    head = [
        "recipe",
        "states visited",
        "worst condition",
        "at log-SNR",
        "worst mean condition",
        "gap, nats",
        "leaked signal",
        "residual noise",
    ]
    return rows(head, [list(line) for line in zip(names, *columns, strict=True)], ("recipe",))


def _words() -> Html:
    return pairs(
        [
            (
                "worst condition",
                "of all steps, along the first principal component: whether any single step is too "
                "long for a Gaussian. It matters most at the noisy end and in the middle, where "
                "several images are still possible. The worst mean condition is the same, averaged "
                "over the components.",
            ),
            (
                "gap, nats",
                "per value of an image, over all steps: how much evidence Gaussian steps of fixed "
                "variance lose, the price of few states in bits rather than in looks.",
            ),
            (
                "leaked signal",
                "what of the first principal component is left in the noisiest state, over the "
                "noise: sampling starts from noise without it, so above about 0.1 brightness and "
                "layout of the samples come out too even.",
            ),
            (
                "residual noise",
                "error a value that the cleanest state leaves, in units of the data's standard "
                "deviation: sampling ends there, so above about 0.05 samples stay grainy or lose "
                "fine detail.",
            ),
        ]
    )


def _elbo(
    found: Findings, units: list[Unit], found_of: dict[str, dict[str, Any]]
) -> list[Html | None]:
    """Why states that minimise the evidence bound sample badly."""
    own = [unit for unit in units if found.plan(unit).recipe.schedule.kind == "elbo"]
    return [
        paragraph(
            el("strong", unit.name),
            " has the states with the least evidence bound, as a diagnostic. Most nats of an image "
            "are in fine detail that is hardly seen, so its states crowd at the clean end: ",
            _noisy_share(found_of[unit.name]),
            " Expect worse samples than from a fitted schedule with as many states.",
            kind="note",
        )
        for unit in own
    ]


def _noisy_share(found: dict[str, Any]) -> str:
    noisy = int((found["at"] < 0).sum())
    longest = int(found["step"].argmax())
    size = short(float(found["step"][longest]), 3)
    condition = short(float(found["condition_top"][longest]), 3)
    return (
        f"{noisy} of its {len(found['at'])} steps end below log-SNR 0, and one step of {size} in "
        f"log-SNR (condition {condition}) has to decide most of the layout."
    )
