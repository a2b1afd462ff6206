"""The time axis cut into intervals: one for each expert, or for each decoder."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import UserError
from pipeline.levels.params import (
    DataPartition,
    EqualMassPartition,
    LearntPartition,
    OptimalDenoiserPartition,
    Partition,
    PerStatePartition,
    SinglePartition,
    SnrPartition,
    UniformPartition,
)
from pipeline.levels.schedule import DECIMALS

if TYPE_CHECKING:
    from pipeline.levels.curriculum import Curriculum


@dataclass(frozen=True)
class Bounds:
    """A schedule cut into k intervals.

    log_snr: float64 [k - 1], descending: halfway between the states on both sides of a cut.
    first_states: int64 [k - 1], index of the cleanest state on the noisy side of each cut.
    """

    log_snr: np.ndarray
    first_states: np.ndarray


# --- any number of intervals ----------------------------------------------------------------------
def node_states(states: int, nodes: int) -> np.ndarray:
    """The states in the middle of `nodes` equal parts of the time axis: int64 [nodes]."""
    if nodes > states:
        raise UserError(f"clustering: {nodes} nodes for {states} states; use at most one a state")
    return ((2 * np.arange(nodes) + 1) * states) // (2 * nodes)


def best_cuts(value: np.ndarray, intervals: int) -> np.ndarray:
    """The cuts of n nodes into contiguous intervals with the largest total value: int64 [k - 1].

    value [n + 1, n + 1]: value[i, j] of the interval of nodes i .. j - 1 (used where j > i). A cut
    c lies before node c. Exact, by dynamic programming, in k * n^2 steps.

    Raises UserError for more intervals than nodes.
    """
    n = len(value) - 1
    _require_intervals(intervals, n, "nodes")
    best, steps = value[0], []
    for k in range(1, intervals):
        reached, step = np.full(n + 1, -np.inf), np.zeros(n + 1, dtype=np.int64)
        for j in range(k + 1, n + 1):
            candidates = best[k:j] + value[k:j, j]
            at = int(candidates.argmax())
            reached[j], step[j] = candidates[at], k + at
        best = reached
        steps.append(step)
    cuts = [n]
    for step in reversed(steps):
        cuts.append(int(step[cuts[-1]]))
    return np.array(cuts[:0:-1], dtype=np.int64)


def affinity_values(affinity: np.ndarray) -> np.ndarray:
    """Value of each interval: its nodes' mean affinities to the interval, summed. [n + 1, n + 1].

    affinity: symmetric [n, n]; the answer is for `best_cuts`.
    """
    n = len(affinity)
    sums = np.zeros((n + 1, n + 1))
    sums[1:, 1:] = affinity.cumsum(axis=0).cumsum(axis=1)
    whole = np.diag(sums)
    length = np.arange(n + 1) - np.arange(n + 1)[:, None]
    return (whole + whole[:, None] - sums - sums.T) / np.maximum(length, 1)


def affinity_bounds(log_snr: np.ndarray, affinity: np.ndarray, intervals: int) -> Bounds:
    """The intervals whose nodes have the largest mean affinity to their own interval.

    log_snr: [T], the schedule; affinity: symmetric [n, n] of the nodes `node_states(T, n)`, larger
    for nodes that belong together (`similarity_matrix`, or cosines of gradients).

    Raises UserError for too many intervals or nodes, ValueError for a matrix that is no affinity.
    """
    log_snr = checked_schedule(log_snr)
    affinity = np.asarray(affinity, dtype=np.float64)
    if affinity.ndim != 2 or affinity.shape[0] != affinity.shape[1] or len(affinity) == 0:
        raise ValueError(f"an affinity is a square matrix, not {affinity.shape}")
    if not np.isfinite(affinity).all() or not np.allclose(affinity, affinity.T):
        raise ValueError("an affinity must be finite and symmetric")
    n, total = len(affinity), len(log_snr)
    node_states(total, n)
    cuts = best_cuts(affinity_values(affinity), intervals)
    # Between two nodes, the cut falls where their parts of the time axis meet.
    return bounds_of(log_snr, (2 * cuts * total + n) // (2 * n))


# --- controls that need no data -------------------------------------------------------------------


def uniform_bounds(log_snr: np.ndarray, intervals: int) -> Bounds:
    """Equal parts of the time axis (to one state)."""
    log_snr = checked_schedule(log_snr)
    _require_intervals(intervals, len(log_snr), "states")
    return bounds_of(
        log_snr, np.round(np.linspace(0, len(log_snr), intervals + 1)).astype(int)[1:-1]
    )


def snr_bounds(log_snr: np.ndarray, intervals: int) -> Bounds:
    """Least total distance, in log-SNR, of all states to the middle state of their interval.

    Exact, the SNR clustering of ANT (arXiv 2306.00354). A state without signal goes to the last
    interval.
    """
    log_snr = checked_schedule(log_snr)
    finite = log_snr[np.isfinite(log_snr)]
    _require_intervals(intervals, len(finite), "states with signal")
    sums = np.concatenate([[0.0], np.cumsum(finite)])
    i, j = np.arange(len(sums))[:, None], np.arange(len(sums))
    middle = np.clip((i + j - 1) // 2, 0, len(finite) - 1)
    centre, before = finite[middle], sums[middle]
    cleaner = before - sums[i] - (middle - i) * centre
    noisier = (j - middle) * centre - (sums[j] - before)
    return bounds_of(log_snr, best_cuts(-(cleaner + noisier), intervals))


def bounds_of(log_snr: np.ndarray, cuts: Any) -> Bounds:
    cuts = np.array(cuts, dtype=np.int64)
    clean, noisy = log_snr[cuts - 1], log_snr[cuts]
    # A state on a bound belongs to the cleaner side.
    middle = np.where(np.isfinite(noisy), (clean + noisy) / 2, clean)
    return Bounds(np.round(middle, DECIMALS), cuts)


def checked_schedule(log_snr: Any) -> np.ndarray:
    log_snr = np.asarray(log_snr, dtype=np.float64)
    if (
        log_snr.ndim != 1
        or len(log_snr) == 0
        or not np.isfinite(log_snr[:-1]).all()
        or not log_snr[-1] < np.inf
        or not (np.diff(log_snr) < 0).all()
    ):
        raise ValueError("a schedule is strictly descending, and finite but for a last -inf")
    return log_snr


def _require_intervals(intervals: int, most: int, what: str) -> None:
    if intervals > most:
        raise UserError(f"clustering: {intervals} intervals for {most} {what}")


SAME_STATE = 1e-6  # log-SNRs nearer than this are one state
ROUNDING = 1e-9  # of sums of shares
CONTINUOUS_STATES = 1000  # a continuous range is cut as if it were so many even states

# The partitions that are found from the data, by a job of their own.
MEASURED = (OptimalDenoiserPartition, LearntPartition)


def axis_of(log_snr: np.ndarray, continuous: bool) -> np.ndarray:
    """The states that a partition cuts: [T], strictly descending, all with signal."""
    if continuous:
        return np.linspace(log_snr[0], log_snr[-1], CONTINUOUS_STATES)
    return log_snr[np.isfinite(log_snr)]


def bounds(
    partition: Partition,
    axis: np.ndarray,
    measured: Callable[[], dict[str, Any]],
    drawn: Callable[[], np.ndarray],
) -> list[float]:
    """Log-SNRs between the intervals, strictly descending; a state on one is on its cleaner side.

    axis: [T], as from `axis_of`. measured: the result of the partition's job, with `bounds`; asked
    for the kinds in `MEASURED` only. drawn: share of the training images of each state [T]; asked
    for `equal-mass` only. Raises ValueError when an interval would be empty.
    """
    if isinstance(partition, SinglePartition):
        return []
    if isinstance(partition, MEASURED):
        found = [float(value) for value in measured()["bounds"]]
    elif isinstance(partition, PerStatePartition):
        found = [float(a + b) / 2 for a, b in itertools.pairwise(axis)]
    elif isinstance(partition, UniformPartition | DataPartition):
        found = list(uniform_bounds(axis, partition.intervals).log_snr)
    elif isinstance(partition, EqualMassPartition):
        found = equal_shares(axis, drawn(), partition.intervals, "mass")
    elif isinstance(partition, SnrPartition):
        found = list(snr_bounds(axis, partition.intervals).log_snr)
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
    return equal_shares(axis, loss, intervals, "loss")


def mass_on(axis: np.ndarray, drawn: Curriculum) -> np.ndarray:
    """Share of a run's images that a curriculum gives to each state of an axis: [T].

    Of a continuous one, to the log-SNRs nearest to it.
    """
    average = drawn.average()
    if drawn.edges is None:
        return average
    below = np.concatenate([[0.0], np.cumsum(average)])
    middles = (axis[:-1] + axis[1:]) / 2
    # np.interp wants what it is given ascending.
    return np.diff(np.interp(-middles, -drawn.edges, below), prepend=0.0, append=1.0)


def equal_shares(axis: np.ndarray, mass: np.ndarray, intervals: int, what: str) -> list[float]:
    """Bounds that give every interval the same share of a mass [T], to one state.

    what: it is, for the ValueError where there are more intervals than states that have some.
    """
    below = np.cumsum(mass) / mass.sum()
    wanted = np.arange(1, intervals) / intervals - ROUNDING
    cuts = [int(np.argmax(below >= part)) + 1 for part in wanted]
    if len({0, *cuts, len(axis)}) != intervals + 1:
        raise ValueError(f"{intervals} intervals of equal {what} do not fit {len(axis)} states")
    return [float(axis[cut - 1] + axis[cut]) / 2 for cut in cuts]
