"""The states of every recipe, and the experts that own them."""

from __future__ import annotations

import itertools
import math

import numpy as np

from stages.numbers import counted
from stages.report import charts
from stages.report.charts import Strip, Strips
from stages.report.groups import Unit
from stages.report.results import Results
from stages.report.section import Section


def section(results: Results) -> Section:
    strips = [_strip(unit, results) for unit in results.units]
    alt = "States of each recipe along log-SNR and the experts that own them: " + "; ".join(
        f"{s.name} {s.told}" for s in strips
    )
    plans = [results.plan(unit) for unit in results.units]
    drawing = Strips(alt, strips)
    data = {
        "drawing": drawing,
        "continuous": any(plan.continuous for plan in plans),
        "terminal": ", ".join(p.name for p in plans if not np.isfinite(p.log_snr[-1])),
        "max_ticks": charts.MAX_TICKS,
        "many_states": any(len(plan.trained) > charts.MAX_TICKS for plan in plans),
        "max_owners": charts.MAX_OWNERS,
        "many_owners": any(len(plan.experts) > charts.MAX_OWNERS for plan in plans),
    }
    return Section("states", "States and experts", data, {"figures/states": [drawing]})


def _strip(unit: Unit, results: Results) -> Strip:
    """Bands meet half way between the states of two experts."""
    plan = results.plan(unit)
    states = [float(v) for v in plan.trained]
    # All clusters of the data are cut alike.
    owned = [(expert.first, expert.last) for expert in plan.experts if not expert.cluster]
    middles = [
        (states[last] + states[first]) / 2 for (_, last), (first, _) in itertools.pairwise(owned)
    ]
    edges = [states[0], *middles, states[-1]]
    told = "continuous" if plan.continuous else counted(len(states), "state")
    return Strip(
        unit.name,
        results.styles[unit.name],
        f"{told}, {counted(len(plan.experts), 'expert')}",
        [(noisy, clean) for clean, noisy in itertools.pairwise(edges)],
        [] if plan.continuous else [states[first : last + 1] for first, last in owned],
        [v for v in plan.sampling_states if math.isfinite(v)],
    )
