"""The time of a flow, y = (1 - t) z + t eps, in log-SNR: 2 ln((1 - t)/t).

t' = s t/(1 + (s - 1) t), the time shift of Esser et al. 2024, adds -2 ln s to every log-SNR.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pipeline.levels import params
from pipeline.levels.curriculum import Axis, Curriculum

LAST = 0.999  # time at the noisy end: at 1 there is no signal, and nothing for a network to learn


def log_snr_at(time: np.ndarray, shift: float = 1.0) -> np.ndarray:
    """Log-SNR at each time in (0, 1), once shifted."""
    return 2 * (np.log1p(-time) - np.log(time) - math.log(shift))


def time_at(log_snr: np.ndarray, shift: float = 1.0) -> np.ndarray:
    """The time that is shifted to each log-SNR."""
    return 1 / (1 + shift * np.exp(np.asarray(log_snr, dtype=np.float64) / 2))


def flow(states: int) -> np.ndarray:
    """Log-SNRs [states] at equal steps of time from `LAST` to one step before 0, cleanest first."""
    return log_snr_at(LAST * np.arange(1, states + 1) / states)


def in_time(
    axis: Axis, shift: float, form: params.Curriculum, bounds: Sequence[float]
) -> Curriculum:
    """A curriculum over a continuous range in cells that are even in time, as many as those given.

    So a uniform curriculum is uniform in the flow's time, and the others' places on the time axis
    are times of the flow. bounds: as `curriculum.build` has them.
    """
    ends = axis.edges[[0, -1]]
    edges = log_snr_at(np.linspace(*time_at(ends, shift), len(axis.edges)), shift)
    edges[[0, -1]] = ends
    options = form.arguments("correct", "partition")
    if isinstance(form, params.IntervalDensity):
        options["bounds"] = bounds
    return form.maker(Axis((edges[:-1] + edges[1:]) / 2, edges), **options)
