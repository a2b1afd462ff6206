"""How well each recipe denoises images that it was not trained on, by noise level."""

from __future__ import annotations

import numpy as np

from stages.numbers import short
from stages.report.charts import MAX_LABELS, Chart, Line, Scale
from stages.report.groups import Unit
from stages.report.results import Results
from stages.report.section import Section


def section(results: Results) -> Section | None:
    """None without held-out images."""
    lines = [line for unit in results.units if (line := _line(unit, results)) is not None]
    if not lines:
        return None
    points = [point for line in lines for point in line.points]
    x, y = Scale.over([at for at, _ in points]), Scale.over([v for _, v in points], log=True)
    alt = "Error on held-out images over log-SNR: " + "; ".join(
        f"{line.name} from {short(line.points[0][1])} at the noisy end to "
        f"{short(line.points[-1][1])} at the clean one"
        for line in lines
    )
    drawing = Chart(alt, lines, x, y, "log-SNR", "error of v", lines[:MAX_LABELS])
    images = next(m["held_out"]["images"] for m in results.metrics.values() if "held_out" in m)
    several = any(unit.several for unit in results.units)
    data = {"drawing": drawing, "images": images, "several": several}
    return Section("errors", "Errors by noise level", data, {"figures/errors": [drawing]})


def _line(unit: Unit, results: Results) -> Line | None:
    """A unit's errors; of several seeds their mean, and the ground from lowest to highest."""
    found = [results.metrics[name].get("held_out") for name in unit.members]
    if None in found:
        return None
    levels = found[0]["log_snr"][::-1]  # the noisy end first, on the left
    values = np.array([own["error"][::-1] for own in found])
    points = list(zip(levels, values.mean(0).tolist(), strict=True))
    ends = list(zip(levels, values.min(0).tolist(), values.max(0).tolist(), strict=True))
    band, style = ends if len(found) > 1 else [], results.styles[unit.name]
    return Line(unit.name, points, style.colour, 1.4, band, style)
