"""Clusters of the data: k-means on its rows as the networks see them (Lloyd 1982)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.data.latents import Latents
from pipeline.errors import UserError
from pipeline.noise import philox
from pipeline.rows import spread
from pipeline.store.files import replacing

ROUNDS = 100  # of Lloyd's algorithm, at most
STARTS = 4  # of which the best is taken
BLOCK = 1024


def clusters(latents: Latents, count: int, most: int, key: int) -> np.ndarray:
    """The cluster of every row, int64 [rows], the largest cluster first.

    The centres are fitted to at most `most` rows, a fair sample; every row belongs to the nearest.
    A function of the rows and `key`. UserError where there are not so many clusters.
    """
    chosen = spread(min(most, len(latents)), len(latents), latents.labels)
    rows = np.concatenate(list(_blocks(latents, chosen)))
    starts = [philox.derive_key(key, start) for start in range(STARTS)]
    centres = min((_centres(rows, count, start) for start in starts), key=lambda c: _error(rows, c))
    everything = _blocks(latents, np.arange(len(latents)))
    found = np.concatenate([nearest(block, centres)[0] for block in everything])
    sizes = np.bincount(found, minlength=count)
    if not sizes.all():
        raise UserError(
            f"partition.clusters: the data fall into {np.count_nonzero(sizes)} clusters, not "
            f"{count}; lower it"
        )
    rank = np.empty(count, np.int64)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(count)
    return rank[found]


def nearest(rows: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of centres [k, d] to rows [n, d]: its number, int64 [n], and squared distance."""
    scores = np.einsum("kd,kd->k", centres, centres) - 2 * (rows @ centres.T)
    found = scores.argmin(1)
    square = np.einsum("nd,nd->n", rows, rows)
    return found, np.maximum(square + scores[np.arange(len(rows)), found], 0.0)


def _error(rows: np.ndarray, centres: np.ndarray) -> float:
    return float(nearest(rows, centres)[1].sum(dtype=np.float64))


def _centres(rows: np.ndarray, count: int, key: int) -> np.ndarray:
    """Centres from seeds of k-means++ (Arthur & Vassilvitskii 2007): float32 [count, d]."""
    u = philox.uniform(key, 0, np.arange(count))
    centres = rows[[int(u[0] * len(rows))]]
    for part in u[1:]:
        below = np.cumsum(nearest(rows, centres)[1], dtype=np.float64)
        seed = min(int(np.searchsorted(below, part * below[-1], side="right")), len(rows) - 1)
        centres = np.concatenate([centres, rows[[seed]]])
    before = np.full(len(rows), -1)
    for _ in range(ROUNDS):
        found, _ = nearest(rows, centres)
        if (found == before).all():
            break
        before = found
        order, sizes = np.argsort(found, kind="stable"), np.bincount(found, minlength=count)
        for number, part in enumerate(np.split(order, np.cumsum(sizes)[:-1])):
            if len(part):
                centres[number] = rows[part].mean(0, dtype=np.float64)
    return centres


def _blocks(latents: Latents, chosen: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(chosen), BLOCK):
        yield latents.gather(chosen[start : start + BLOCK]).flatten(1).cpu().numpy()


def write_clusters(path: Path, found: np.ndarray) -> None:
    """The cluster of every row, as a file."""
    with replacing(path) as temporary, open(temporary, "wb") as f:
        np.save(f, found.astype(np.int32), allow_pickle=False)


def read_clusters(path: Path) -> np.ndarray:
    """The cluster of every row, int64 [rows]."""
    return np.load(path, allow_pickle=False).astype(np.int64)


def rows_of(path: Path, cluster: int) -> np.ndarray:
    """The rows of one cluster, int64, ascending."""
    return np.flatnonzero(read_clusters(path) == cluster)
