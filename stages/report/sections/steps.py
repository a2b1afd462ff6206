"""Whether sampling can step from one state to the next."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.levels import schedule
from stages.numbers import count, fixed, short
from stages.report.charts import Chart, Line, Scale
from stages.report.figures import NARROW
from stages.report.results import Named, Results
from stages.report.section import Section, Table, table

SAFE = 1.0  # condition up to which a reverse step is near Gaussian
COMPARED = (32, 4)  # even states that every table holds for comparison
LOG_SNR_MAX, LOG_SNR_MIN = 9.0, -9.0  # between these ends

Diagnosis = dict[str, Any]


def section(results: Results) -> Section | None:
    """What each sampling step has to bridge; None where nothing steps."""
    found = {
        unit.name: _diagnose(results.plan(unit).sampling_states, results.spectrum)
        for unit in results.units
        if len(results.plan(unit).sampling_states) > 1
    }
    if not found:
        return None
    compared = {
        n: _diagnose(np.linspace(LOG_SNR_MAX, LOG_SNR_MIN, n), results.spectrum) for n in COMPARED
    }
    drawn = [v for d in found.values() for v in (*d["condition_top"], *d["condition_mean"])]
    x = Scale.over([v for d in found.values() for v in d["at"]])
    y = Scale.over([*drawn, SAFE], log=True)
    panels = [_panel(name, own, x, y) for name, own in found.items()]
    names = [results.heading(unit) for unit in results.units if unit.name in found]
    many, few = (float(own["condition_top"].max()) for own in compared.values())
    elbo = [
        {"name": unit.name, **_noisy_share(found[unit.name])}
        for unit in results.units
        if unit.name in found and results.plan(unit).recipe.schedule.kind == "elbo"
    ]
    data = {
        "ends": (LOG_SNR_MAX, LOG_SNR_MIN),
        "even": {n: float(own["condition_top"].max()) for n, own in compared.items()},
        "times": count(round(few / many)),
        "panels": list(zip(names, panels, strict=True)),
        "table": _table(names, found, compared),
        "elbo": elbo,
    }
    return Section("steps", "Steps of sampling", data, {"figures/conditions": panels})


def _diagnose(states: Any, spectrum: list[float]) -> Diagnosis:
    """`schedule.diagnose` with `at`: the cleaner, always finite end of each step."""
    return schedule.diagnose(states, spectrum) | {"at": np.asarray(states)[:-1]}


def _panel(name: str, found: Diagnosis, x: Scale, y: Scale) -> Chart:
    lines = [
        Line(what, list(zip(map(float, found["at"]), map(float, found[key]), strict=True)), *kind)
        for what, key, kind in (
            ("first component", "condition_top", ("r4", 1.7)),
            ("mean", "condition_mean", ("r1", 1.4)),
        )
    ]
    worst = short(float(found["condition_top"].max()), 3)
    alt = f"Condition of the sampling steps of {name} over log-SNR; at most {worst}"
    reference = (SAFE, "near Gaussian below")
    axes = (x, y, "log-SNR", "condition")
    return Chart(alt, lines, *axes, (), reference, title=name, wide=NARROW)


def _table(
    headings: list[Named], found: dict[str, Diagnosis], compared: dict[int, Diagnosis]
) -> Table:
    every = [*found.values(), *compared.values()]
    names = [*headings, *(f"for comparison: {n} even states" for n in compared)]
    worst = [int(d["condition_top"].argmax()) for d in every]
    columns = {
        "recipe": names,
        "states visited": [count(len(d["at"]) + 1) for d in every],
        "worst condition": [
            short(float(d["condition_top"][i]), 3) for d, i in zip(every, worst, strict=True)
        ],
        "at log-SNR": [short(float(d["at"][i]), 3) for d, i in zip(every, worst, strict=True)],
        "worst mean condition": [short(float(d["condition_mean"].max()), 3) for d in every],
        "gap, nats": fixed([d["gap_total"] for d in every]),
        "leaked signal": fixed([d["leaked_signal"] for d in every], most=4),
        "residual noise": fixed([d["residual_noise"] for d in every], most=4),
    }
    return table("Steps of sampling", columns, ("recipe",))


def _noisy_share(found: Diagnosis) -> dict[str, Any]:
    longest = int(found["step"].argmax())
    return {
        "noisy": int((found["at"] < 0).sum()),
        "steps": len(found["at"]),
        "longest": short(float(found["step"][longest]), 3),
        "condition": short(float(found["condition_top"][longest]), 3),
    }
