"""The time axis cut into intervals: one for each expert, or for each decoder."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pipeline import clustering, config

CONTINUOUS_STATES = 1000  # a continuous range is cut as if it were so many even states

# The partitions that are found from the data, by a job of their own.
MEASURED = (config.OptimalDenoiserPartition, config.LearntPartition)


def axis_of(log_snr: np.ndarray, continuous: bool) -> np.ndarray:
    """The states that a partition cuts: [T], strictly descending, all with signal."""
    if continuous:
        return np.linspace(log_snr[0], log_snr[-1], CONTINUOUS_STATES)
    return log_snr[np.isfinite(log_snr)]


def bounds(
    partition: config.Partition, axis: np.ndarray, measured: Callable[[], dict[str, Any]]
) -> list[float]:
    """Log-SNRs between the intervals, strictly descending; a state on one is on its cleaner side.

    axis: [T], as from `axis_of`. measured: the result of the partition's job, with `bounds`; asked
    for the kinds in `MEASURED` only. Raises ValueError when an interval would be empty.
    """
    if isinstance(partition, config.SinglePartition):
        return []
    if isinstance(partition, MEASURED):
        found = [float(value) for value in measured()["bounds"]]
    elif isinstance(partition, config.PerStatePartition):
        found = [float(a + b) / 2 for a, b in itertools.pairwise(axis)]
    elif isinstance(partition, config.UniformPartition):
        found = list(clustering.uniform_bounds(axis, partition.intervals).log_snr)
    elif isinstance(partition, config.SnrPartition):
        found = list(clustering.snr_bounds(axis, partition.intervals).log_snr)
    else:
        found = partition.log_snr
    owned(found, axis)
    return [float(value) for value in found]


def owned(bounds: Sequence[float], axis: np.ndarray) -> list[tuple[int, int]]:
    """Indices (first, last), inclusive, of the states in each interval, from the clean end.

    Raises ValueError when an interval holds no state.
    """
    edges = np.array([0, *(int(np.sum(axis >= bound)) for bound in bounds), len(axis)])
    if np.any(np.diff(edges) <= 0):
        empty = int(np.argmax(np.diff(edges) <= 0)) + 1
        raise ValueError(f"interval {empty} of {len(edges) - 1} holds no state")
    return [(int(a), int(b) - 1) for a, b in itertools.pairwise(edges)]


def equal_parts(axis: np.ndarray, curve: dict[str, Any], intervals: int) -> list[float]:
    """Bounds that give every interval the same share of a loss: the v-error of an error curve.

    curve: `log_snr` and `error` of x0 at some levels. Over x0's, v's squared error has the factor
    1 / sigma^2 = 1 + snr. Raises ValueError for more intervals than states.
    """
    levels, error = np.asarray(curve["log_snr"])[::-1], np.asarray(curve["error"])[::-1]
    loss = np.interp(axis, levels, error * (1 + np.exp(levels)))
    mass = np.cumsum(loss) / loss.sum()
    cuts = [int(np.argmax(mass >= part / intervals)) + 1 for part in range(1, intervals)]
    if len({0, *cuts, len(axis)}) != intervals + 1:
        raise ValueError(f"{intervals} intervals of equal loss do not fit {len(axis)} states")
    return [float(axis[cut - 1] + axis[cut]) / 2 for cut in cuts]
