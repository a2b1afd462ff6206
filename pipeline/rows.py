"""Which rows: every subset of a dataset, and every sequence of its labels, is chosen here.

Image files often come sorted by class, and sometimes in turns, so neither the first rows nor evenly
spaced ones are a fair sample. All choices are fixed: they depend on the arguments alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.noise import philox

_KEY = philox.derive_key("rows")


def spread(count: int, rows: int, labels: np.ndarray | None = None) -> np.ndarray:
    """`count` of the rows 0 .. `rows` - 1, a fair sample of them: int64 [count], ascending.

    labels: int [rows]; every class then gets its share, to one row (largest remainders; ties, and
    so classes that are too small for a row of their own, in a fixed random order). Within a class,
    and without labels, the first rows of a fixed permutation are taken. ValueError unless
    0 <= count <= rows.
    """
    if not 0 <= count <= rows:
        raise ValueError(f"cannot choose {count} of {rows} rows")
    order = philox.permutation(_KEY, 0, rows)
    if count == rows:
        return np.arange(rows, dtype=np.int64)
    if labels is None:
        return np.sort(order[:count])
    classes, numbers = np.unique(np.asarray(labels), return_inverse=True)
    taken = shares(np.bincount(numbers), count)
    shuffled = numbers[order]
    # The place of each row among those of its class, in the permutation's order.
    by_class = np.argsort(shuffled, kind="stable")
    starts = np.searchsorted(shuffled[by_class], np.arange(len(classes)))
    place = np.empty(rows, np.int64)
    place[by_class] = np.arange(rows) - starts[shuffled[by_class]]
    return np.sort(order[place < taken[shuffled]])


def shares(counts: Sequence[int] | np.ndarray, total: int) -> np.ndarray:
    """How many rows of each class `spread` takes of classes of `counts` [K] rows: int64 [K]."""
    counts = np.asarray(counts, np.int64)
    present = np.flatnonzero(counts)
    taken = np.zeros_like(counts)
    whole, rest = np.divmod(counts[present] * total, max(counts.sum(), 1))
    order = philox.permutation(_KEY, 1, len(present))
    largest = order[np.argsort(-rest[order], kind="stable")]
    whole[largest[: total - whole.sum()]] += 1
    taken[present] = whole
    return taken


def cut(rows: int, count: int, labels: np.ndarray | None = None) -> np.ndarray:
    """The rows 0 .. `rows` - 1 with a fair sample of `count` of them last: int64 [rows].

    Both parts are ascending. labels as in `spread`.
    """
    last = spread(count, rows, labels)
    return np.concatenate([np.setdiff1d(np.arange(rows), last, assume_unique=True), last])


def label_sequence(counts: Sequence[int], length: int) -> np.ndarray:
    """Labels 0 .. K - 1 in proportion to `counts` [K], spread out: int64 [length].

    Each next label is the one that lags most behind its share, so every beginning of the sequence
    is about as balanced as its length allows, after sum(counts) labels all have their counts
    exactly, and the sequence starts again. A label without any count never comes. ValueError if
    none has one.
    """
    share = np.asarray(counts, np.int64)
    total = int(share.sum())
    if total <= 0 or share.min() < 0:
        raise ValueError(f"no labels in counts {list(counts)}")
    lag = np.zeros_like(share)  # share * labels so far - total * own labels so far, exactly
    found = np.empty(min(length, total), np.int64)
    for i in range(len(found)):
        lag += share
        found[i] = label = int(np.argmax(np.where(share > 0, lag, np.iinfo(np.int64).min)))
        lag[label] -= total
    return np.resize(found, length)
