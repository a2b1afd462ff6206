"""The time axis cut into intervals, one for each expert."""

from __future__ import annotations

import itertools

import numpy as np

from pipeline import config


def cut(
    partition: config.Partition, log_snr: np.ndarray, continuous: bool
) -> list[tuple[int, int]]:
    """Intervals as (first, last) state indices, both inclusive, in order from the clean end.

    log_snr: [T], strictly descending. A continuous schedule has one interval.
    Raises ValueError when an interval would be empty or a continuous schedule is to be cut.
    """
    states = len(log_snr)
    if isinstance(partition, config.SinglePartition):
        return [(0, states - 1)]
    if continuous:
        raise ValueError("a continuous schedule cannot be cut; give `schedule.states` a number")
    if isinstance(partition, config.PerStatePartition):
        edges = np.arange(states + 1)
    elif isinstance(partition, config.UniformPartition):
        edges = np.round(np.linspace(0, states, partition.experts + 1)).astype(int)
    else:
        bounds = np.asarray(partition.log_snr)
        # A state exactly on a bound belongs to the cleaner side.
        inner = [int(np.sum(log_snr >= bound)) for bound in bounds]
        edges = np.array([0, *inner, states])
    if np.any(np.diff(edges) <= 0):
        empty = int(np.argmax(np.diff(edges) <= 0)) + 1
        raise ValueError(f"interval {empty} of {len(edges) - 1} holds no state")
    return [(int(a), int(b) - 1) for a, b in itertools.pairwise(edges)]
