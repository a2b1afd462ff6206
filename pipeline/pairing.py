"""Pairing: which noise each row of the dataset is trained with (immiscible diffusion).

A pairing of one slot (a pass over the dataset with a fresh set of noises) is integers. Noise is
never stored: `noise.normal(key, slot, id)` makes it where it is needed.

| method | integers | noise id of row i | marginal of the noise |
|---|---|---|---|
| `independent` | none needed | i | N(0, I) |
| `assignment` | a permutation p of the rows | p[i] | N(0, I): the same noises, reordered |
| `knn-l2` | choice c of k candidates | i * k + c | too short, see `knn_bias` |
| `knn-dot` | choice c of k candidates | i * k + c | right norm, stretched along the rows |

`assignment` is the linear assignment of Immiscible Diffusion (arXiv 2406.12303) with the cost
-<x, eps>. Its solution is that of the squared distance |x - eps|^2, whose other terms do not
depend on the pairing, and it is found several times faster. Blocks of rows are solved exactly;
further sweeps solve other blocks of the already paired rows, which never raises the cost and
approaches an assignment of the whole dataset. `knn-l2` is the selection of Improved Immiscible
Diffusion (arXiv 2505.18521); `knn-dot` drops the noise's own norm from its score.

A row that chooses pulls its noise towards itself, so all rows together pull the noise's mean
towards theirs, where sampling does not start. Rows are therefore `centred` before they choose,
which is a correction of ours to that paper. A permutation has all noises whatever the cost.

All costs are exact integers: rows and noises are rounded to integers whose inner products stay
below 2^24, so that a float32 matrix product is exact in whatever order it is summed. From the
same input (and version of scipy, which breaks ties) a pairing is therefore equal to the bit for
any number of threads, BLAS or processor.
"""

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import noise
from pipeline.errors import UserError
from pipeline.files import replacing
from pipeline.rows import spread

METHODS = ("independent", "assignment", "knn-l2", "knn-dot")

RowSource = Callable[[np.ndarray], np.ndarray]
"""Row indices, int64 [n] -> rows of unit average variance, float32 [n, d]."""

# Noise is rounded to multiples of 1/32 and cut at 127/32, rows as finely as exactness allows.
_NOISE_SCALE = 32
_EXACT = 1 << 24
_INT8, _INT16 = 127, 32767
_BASIS_SCALE = 1 << 14
_PROJECTION_SCALE = 128
_CHUNK_BYTES = 32 << 20

DIAGNOSED_ROWS = 4096  # of a slot, a fair sample
DIAGNOSED_COMPONENTS = 4  # along which the noise is looked at


def centred(rows: RowSource, means: np.ndarray, labels: np.ndarray | None = None) -> RowSource:
    """The rows without the data's mean, or without their class's.

    means: float32 [1 + K, ...], of all rows and of each class (`spectrum.means`); labels: int64
    [count] for the latter. A network that is told the class needs noise of mean 0 in each class.
    """
    flat = means.reshape(len(means), -1)

    def without(index: np.ndarray) -> np.ndarray:
        own = flat[0] if labels is None else flat[1 + labels[index]]
        return rows(index).reshape(len(index), -1) - own

    return without


# --- principal components ---------------------------------------------------------------------


@dataclass(frozen=True)
class Components:
    """The leading principal components of the rows.

    basis: float32 [r, d] with orthonormal rows; variances: float64 [r], decreasing.
    """

    basis: np.ndarray
    variances: np.ndarray


def principal_components(
    rows: RowSource, count: int, number: int, *, key: int, sample: int = 8192
) -> Components:
    """The top `number` components of at most `sample` of `count` rows, by subspace iteration.

    Deterministic on one kind of hardware. Works on `sample` rows in memory.

    Raises UserError if the rows do not have so many components.
    """
    key = noise.derive_key(key, "components")
    if count > sample:
        some = np.sort(noise.permutation(key, 0, count)[:sample])
    else:
        some = np.arange(count)
    x = np.array(rows(some), dtype=np.float32).reshape(len(some), -1)
    if not 0 < number <= min(x.shape):
        raise UserError(
            f"components: {number} is not in 1..{min(x.shape)}, "
            f"the number of components of {len(some)} rows of {x.shape[1]} values"
        )
    x -= x.mean(0)
    width = min(number + 32, *x.shape)
    q = noise.normal(key, 1, np.arange(width), (x.shape[1],)).T
    for _ in range(4):
        q = np.linalg.qr(x.T @ (x @ q))[0]
    values, vectors = np.linalg.eigh((x @ q).T.astype(np.float64) @ (x @ q))
    basis = (q @ vectors[:, : -number - 1 : -1]).T
    # An eigenvector's sign is arbitrary.
    basis *= np.sign(np.take_along_axis(basis, np.abs(basis).argmax(1)[:, None], 1))
    variances = values[: -number - 1 : -1] / len(x)
    return Components(np.ascontiguousarray(basis, dtype=np.float32), variances)


# --- integer coordinates ----------------------------------------------------------------------


class _Coordinates:
    """Rows and noises as integers, of all dimensions or of the given components.

    Inner products of a row with a noise are exact in float32. Everything is kept if it fits
    into `memory` bytes (3 bytes a coordinate of a row and its noise), and else made anew when
    asked for.
    """

    def __init__(self, rows, members, key, slot, components, memory, pool):
        self._rows, self._members, self._key, self._slot = rows, members, key, slot
        self.source_dim = rows(members[:1]).reshape(-1).shape[0]
        self._basis = None
        self.dim = self.source_dim
        if components is not None:
            if components.basis.shape[1] != self.source_dim:
                raise ValueError(f"components of {components.basis.shape[1]} values a row")
            # Integers in float64: the projection is exact as well.
            self._basis = np.rint(components.basis * float(_BASIS_SCALE)).T.astype(np.float64)
            self.dim = len(components.basis)
        self.row_scale, self.row_limit, self.noise_limit = _limits(self.dim, self.source_dim)
        self._cache = None
        if len(members) * self.dim * 3 <= memory:
            n = len(members)
            kept = np.empty((n, self.dim), np.int16), np.empty((n, self.dim), np.int8)
            step = max(1, _CHUNK_BYTES // (8 * self.source_dim))

            def fill(start):
                part = np.arange(start, min(start + step, n))
                kept[0][part] = self._make_rows(part)
                kept[1][part] = self._make_noises(members[part])

            list(pool.map(fill, range(0, n, step)))
            self._cache = kept

    def rows(self, index: np.ndarray) -> np.ndarray:
        """float32 [n, dim] of the members at `index`."""
        found = self._make_rows(index) if self._cache is None else self._cache[0][index]
        return found.astype(np.float32)

    def noises(self, index: np.ndarray) -> np.ndarray:
        """float32 [n, dim] of the noises whose ids are the members at `index`."""
        if self._cache is None:
            return self.noises_by_id(self._members[index])
        return self._cache[1][index].astype(np.float32)

    def noises_by_id(self, ids: np.ndarray) -> np.ndarray:
        """float32 [n, dim] of the noises with these ids."""
        return self._make_noises(ids).astype(np.float32)

    def directions(self, key: int, slot: int, number: int) -> np.ndarray:
        """float32 [number, dim]: random integer vectors, rounded like noises."""
        drawn = noise.normal(key, slot, np.arange(number), (self.dim,))
        return _whole(drawn, _NOISE_SCALE, _INT8, self.noise_limit)

    def _make_rows(self, index):
        values = np.asarray(self._rows(self._members[index]), dtype=np.float32)
        values = values.reshape(len(index), -1)
        if self._basis is not None:
            coarse = np.rint(values * np.float32(_PROJECTION_SCALE)).astype(np.float64)
            values = coarse @ self._basis / float(_PROJECTION_SCALE * _BASIS_SCALE)
        return _whole(values, self.row_scale, _INT16, self.row_limit).astype(np.int16)

    def _make_noises(self, ids):
        drawn = noise.normal(self._key, self._slot, ids, (self.source_dim,))
        if self._basis is not None:
            coarse = np.rint(drawn * np.float32(_PROJECTION_SCALE)).astype(np.float64)
            drawn = coarse @ self._basis / float(_PROJECTION_SCALE * _BASIS_SCALE)
        return _whole(drawn, _NOISE_SCALE, _INT8, self.noise_limit).astype(np.int8)


def _limits(dim: int, source_dim: int) -> tuple[float, float, float]:
    """Factor on rows, and the largest norm of integer rows and noises of `dim` dimensions.

    The norms bound every partial sum of an inner product (Cauchy-Schwarz). A noise exceeds its
    limit with probability below 1e-8, and is then shortened; rows of up to 4 times the average
    norm, that of `source_dim` values of unit variance, keep theirs.
    """
    noise_limit = _NOISE_SCALE * (math.sqrt(dim) + 6)
    row_limit = min(_EXACT / noise_limit, _INT16)
    scale = 2.0 ** math.floor(math.log2(row_limit / (4 * math.sqrt(source_dim))))
    return scale, row_limit, noise_limit


def _whole(values: np.ndarray, scale: float, largest: int, norm: float) -> np.ndarray:
    """values [n, d] * scale as whole numbers in +-largest, shortened where longer than `norm`."""
    values = values * np.asarray(scale, values.dtype)
    np.rint(values, out=values)
    np.clip(values, -largest, largest, out=values)
    # A first look in float32, which rounds, then exactly.
    long = np.flatnonzero(np.vecdot(values, values) > 0.999 * norm**2)
    for i in long:
        square = float(np.square(values[i], dtype=np.float64).sum())
        if square > norm**2:
            values[i] = np.trunc(values[i] * (norm / math.sqrt(square)))
    return values


# --- methods ----------------------------------------------------------------------------------


def pair_slot(
    method: str,
    rows: RowSource,
    count: int,
    *,
    key: int,
    slot: int,
    labels: np.ndarray | None = None,
    block: int = 256,
    sweeps: int = 16,
    candidates: int = 8,
    components: Components | None = None,
    cost_bits: int = 10,
    memory: int = 1 << 30,
    workers: int = 1,
) -> np.ndarray:
    """Pair `count` rows with the noises of `slot` under `key`: integers [count] (see `noise_ids`).

    The answer has the smallest unsigned integer type that holds it.

    labels: integers [count]; `assignment` then only exchanges noise within a class, which makes
        the noise independent of the class.
    block, sweeps: size of the blocks that `assignment` solves, and how often it covers all rows.
        The blocks of the first sweep are random: `sweeps=1` is batch-wise assignment. Those of
        later sweeps hold rows that are alike (the leaves of a random projection tree), which
        improves about three times faster than random ones. A `block` of all rows is the exact
        assignment.
    cost_bits: costs are solved as integers of so many bits (32: all of them). The best alignment
        is missed by some 0.2 % with 8 and 0.01 % with 10, and found in half the time.
    candidates: how many noises a row of `knn-*` chooses from.
    components: take the cost in these components only.
    memory, workers: bytes for coordinates that are kept, and number of threads. Neither changes
        the answer. `assignment` keeps 3 bytes a row (of a class) and dimension; if that is more
        than `memory`, each sweep reads the rows and makes the noises anew. Beyond `memory`, the
        working set is about 100 bytes a row, and block * (16 * dimensions + 24 * block) bytes a
        worker.
    """
    if method not in METHODS:
        raise ValueError(f"unknown pairing method {method!r}; known are {', '.join(METHODS)}")
    with ThreadPoolExecutor(workers) as pool:
        if method == "independent":
            paired = np.arange(count)
        elif method == "assignment":
            paired = np.arange(count)
            classes = [np.arange(count)] if labels is None else _classes(labels, count)
            for number, members in enumerate(classes):
                at = _Coordinates(rows, members, key, slot, components, memory, pool)
                shuffle = noise.derive_key(key, "blocks", slot, number)
                order = _assign(at, len(members), shuffle, block, sweeps, cost_bits, pool)
                paired[members] = members[order]
        else:
            at = _Coordinates(rows, np.arange(count), key, slot, components, 0, pool)
            paired = _choose(at, count, candidates, method == "knn-l2", pool)
    largest = candidates if method.startswith("knn") else count
    return paired.astype(np.min_scalar_type(max(0, largest - 1)))


def noise_ids(method: str, paired: np.ndarray | None, rows: Any, candidates: int = 0) -> Any:
    """Noise ids, int64 [n], of `rows` (int64 [n]) in a slot whose integers are `paired` [count].

    `paired` may be None for `independent`.
    """
    if method == "independent":
        return rows
    found = paired[rows].astype(np.int64)
    return rows * candidates + found if method.startswith("knn") else found


def _classes(labels, count):
    labels = np.asarray(labels)
    if labels.shape != (count,):
        raise ValueError(f"{labels.shape} labels for {count} rows")
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def _assign(at, count, key, block, sweeps, cost_bits, pool):
    """A permutation [count]: member -> the member whose noise it gets."""
    order = np.arange(count)
    leaves = -(-count // block)

    def improve(rows):
        cost = _products(np.negative(at.rows(rows)), at.noises(order[rows]))
        chosen = solve(cost, cost_bits)
        here = np.arange(len(rows))
        gain = cost[here, here].sum(dtype=np.int64) - cost[here, chosen].sum(dtype=np.int64)
        if gain > 0:
            order[rows] = order[rows][chosen]

    for sweep in range(sweeps):
        if sweep == 0:
            blocks = np.array_split(noise.permutation(key, 0, count), leaves)
        else:
            blocks = _tree_blocks(at, count, leaves, key, sweep)
        list(pool.map(improve, blocks))
        if leaves == 1:
            break
    return order


def assign(x: np.ndarray, eps: np.ndarray, cost_bits: int = 10) -> np.ndarray:
    """The assignment of one batch in memory: int64 [n], so that x[i] is paired with eps[answer[i]].

    x, eps: float32 [n, ...], of unit average variance. Costs are integers as in `pair_slot`.
    """
    return solve(integer_cost(x, eps), cost_bits)


def integer_cost(x: np.ndarray, eps: np.ndarray) -> np.ndarray:
    """The cost -<x, eps> of a batch, in multiples of a constant: int32 [n, n]. As for `assign`."""
    x, eps = x.reshape(len(x), -1), eps.reshape(len(eps), -1)
    scale, row_limit, noise_limit = _limits(x.shape[1], x.shape[1])
    negated = _whole(x, -scale, _INT16, row_limit)
    return _products(negated, _whole(eps, _NOISE_SCALE, _INT8, noise_limit))


def _products(rows: np.ndarray, noises: np.ndarray) -> np.ndarray:
    # Exact, as all sums are whole numbers below 2^24.
    return (rows @ noises.T).astype(np.int32)


def solve(cost: np.ndarray, bits: int = 32) -> np.ndarray:
    """The permutation [n] of columns that minimises the sum of an integer cost [n, n].

    Exact if the costs, less the least of their row and column, fit into `bits` bits; else they are
    shifted right until they do.
    """
    from scipy.optimize import linear_sum_assignment

    # This leaves the solution as it is and shortens the solver's search.
    cost = cost - cost.min(axis=1, keepdims=True)
    cost -= cost.min(axis=0)
    stake = cost.max(axis=1)
    shift = max(0, int(stake.max()).bit_length() - bits)
    # The rows with most at stake first: a quarter faster on image-like rows.
    order = np.argsort(-(stake >> shift), kind="stable")
    cost = cost[order]
    cost >>= shift
    columns = np.empty(len(cost), np.int64)
    columns[order] = linear_sum_assignment(cost)[1]
    return columns


def _tree_blocks(at, count, leaves, key, sweep):
    """All rows in `leaves` blocks of nearly equal size: the leaves of a random projection tree."""
    directions = at.directions(key, sweep, math.ceil(math.log2(leaves)) if leaves > 1 else 0)
    heights = np.empty((len(directions), count), np.float32)
    step = max(1, _CHUNK_BYTES // (4 * at.dim))
    for start in range(0, count, step):
        part = np.arange(start, min(start + step, count))
        heights[:, part] = directions @ at.rows(part).T
    parts = [(np.arange(count), leaves)]
    for height in heights:
        halves = []
        for rows, size in parts:
            if size == 1:
                halves.append((rows, 1))
                continue
            rows = rows[np.argsort(height[rows], kind="stable")]
            cut = len(rows) * (size // 2) // size
            halves += [(rows[:cut], size // 2), (rows[cut:], size - size // 2)]
        parts = halves
    return [rows for rows, _ in parts]


def _choose(at, count, candidates, by_distance, pool):
    """The nearest of each row's candidates, [count]."""
    chosen = np.empty(count, np.int64)
    step = max(1, _CHUNK_BYTES // (4 * candidates * at.source_dim))

    def choose(start):
        rows = np.arange(start, min(start + step, count))
        ids = (rows[:, None] * candidates + np.arange(candidates)).reshape(-1)
        drawn = at.noises_by_id(ids).reshape(len(rows), candidates, -1)
        score = np.matmul(drawn, at.rows(rows)[:, :, None])[:, :, 0].astype(np.float64)
        if by_distance:
            squares = np.einsum("nkd,nkd->nk", drawn, drawn, dtype=np.float64)
            score -= squares * (at.row_scale / (2 * _NOISE_SCALE))
        chosen[rows] = score.argmax(axis=1)

    list(pool.map(choose, range(0, count, step)))
    return chosen


# --- noise at training time -------------------------------------------------------------------


def paired_noise(
    key: int,
    slot: Any,
    rows: Any,
    ids: Any,
    shape: tuple[int, ...],
    *,
    refresh: float = 0.0,
    basis: Any = None,
    scale: float = 1.0,
    visit: Any = None,
) -> Any:
    """The noise to train `rows` with: float32 [n, *shape], of the kind and on the device of `ids`.

    A pure function of its arguments. rows, ids: int64 [n], numpy or torch; ids from `noise_ids`.
    slot, visit: integers, or one a row (int64 [n], like `ids`).

    refresh: share b of the variance that is drawn anew, sqrt(1 - b) * eps + sqrt(b) * fresh.
    basis: keep eps only in these components (`Components.basis`, of the same kind as `ids`) and
        draw the rest anew.
    scale: factor on the result; the control for the smaller noise of `knn-l2`.
    visit: number of the pass over the dataset, if a slot is used in several: each draws its own
        fresh part. Without it, the slot.

    If the paired noise is N(0, I), so is the answer (for `scale=1`).
    """
    if not 0 <= refresh <= 1:
        raise ValueError(f"refresh must be in 0..1, not {refresh}")
    eps = noise.normal(key, slot, ids, shape)
    if refresh > 0 or basis is not None:
        fresh_key = noise.derive_key(key, "fresh")
        fresh = noise.normal(fresh_key, slot if visit is None else visit, rows, shape)
        eps *= math.sqrt(1 - refresh)
        if basis is None:
            fresh *= math.sqrt(refresh)
            eps += fresh
        else:
            # fresh already holds the rest; within the components, move it to the mixture.
            eps -= fresh * (1 - math.sqrt(refresh))
            eps = fresh + (eps.reshape(len(ids), -1) @ basis.T @ basis).reshape(eps.shape)
    if scale != 1:
        eps *= scale
    return eps


# --- diagnostics ------------------------------------------------------------------------------


def diagnose_slot(
    method: str,
    rows: RowSource,
    paired: np.ndarray,
    shape: tuple[int, ...],
    *,
    key: int,
    slot: int,
    means: np.ndarray,
    by_class: bool = False,
    candidates: int = 0,
    labels: np.ndarray | None = None,
) -> dict[str, Any]:
    """`diagnose` of what `pair_slot` answered, on at most `DIAGNOSED_ROWS` rows.

    shape: of a row, (C, H, W); labels: int [count], None if unknown. means: as in `centred`;
    by_class: whether the noise is looked at along those of the rows' classes.
    """
    count = len(paired)
    chosen = spread(min(count, DIAGNOSED_ROWS), count, labels)
    number = min(DIAGNOSED_COMPONENTS, math.prod(shape))
    return diagnose(
        rows(chosen),
        noise.normal(key, slot, noise_ids(method, paired, chosen, candidates), shape),
        principal_components(rows, count, number, key=key),
        None if labels is None else labels[chosen],
        means.reshape(len(means), -1)[1 + labels[chosen] if by_class else 0],
    )


def diagnose(
    x: np.ndarray,
    eps: np.ndarray,
    components: Components | None = None,
    labels: np.ndarray | None = None,
    mean: np.ndarray | None = None,
) -> dict[str, Any]:
    """How close a pairing is, and what it does to the noise. x, eps: [n, d], row by row paired.

    mean: the mean image [d], or that of each row's class [n, d].

    cost                  mean |x - eps|^2
    distance_cut_percent  the cost against unpaired N(0, I), mean |x|^2 + d
    alignment_percent     the part of that cut that is alignment, 2 mean <x, eps>; the rest is noise
                          of a smaller norm
    noise_std             sqrt(mean |eps|^2 / d); 1 for N(0, I)
    noise_mean            of the noise along the mean image, in standard deviations; for N(0, I) 0
                          but for `noise_mean_error`, its standard error
    mean_share            the mean image's part of the rows' square, |mean|^2 / mean |x|^2
    component_mean, component_variance  of the noise along the first components (at most 4); 0 and
                          1 for N(0, I)
    component_correlation of rows and noise along them; 0 if unpaired
    class_leak, class_chance  share of noises whose class is told right from the noise alone by
                          nearest class mean (in the components if given), fitted on one half of
                          every class, and the share of the largest class
    """
    x, eps = x.reshape(len(x), -1), eps.reshape(len(eps), -1)
    n, d = x.shape
    inner = np.einsum("nd,nd->", x, eps, dtype=np.float64) / n
    row_square = np.einsum("nd,nd->", x, x, dtype=np.float64) / n
    noise_square = np.einsum("nd,nd->", eps, eps, dtype=np.float64) / n
    cost = row_square + noise_square - 2 * inner
    found: dict[str, Any] = {
        "cost": cost,
        "distance_cut_percent": 100 * (1 - cost / (row_square + d)),
        "alignment_percent": 100 * 2 * inner / (row_square + d),
        "noise_std": math.sqrt(noise_square / d),
    }
    if mean is not None:
        mean = np.broadcast_to(mean.astype(np.float64), x.shape)
        norm = np.linalg.norm(mean, axis=1)
        along = np.einsum("nd,nd->n", mean, eps) / np.maximum(norm, np.finfo(float).tiny)
        found["noise_mean"] = float(along.mean())
        found["noise_mean_error"] = 1 / math.sqrt(n)
        found["mean_share"] = float((norm**2).mean() / row_square)
    features = eps
    if components is not None:
        features = eps @ components.basis.T
        along_x, along_noise = (x @ components.basis[:4].T).T, features[:, :4].T
        found["component_mean"] = [float(v) for v in along_noise.mean(axis=1)]
        found["component_variance"] = [float(v) for v in along_noise.var(axis=1)]
        found["component_correlation"] = [
            float(np.corrcoef(a, b)[0, 1]) for a, b in zip(along_x, along_noise, strict=True)
        ]
    if labels is not None:
        labels = np.asarray(labels)
        fitted = np.zeros(n, bool)
        fitted[spread(-(-n // 2), n, labels)] = True
        known = np.unique(labels[fitted])
        centres = np.stack([features[fitted & (labels == c)].mean(axis=0) for c in known])
        scores = features[~fitted] @ centres.T - 0.5 * (centres**2).sum(axis=1)
        found["class_leak"] = float((known[scores.argmax(axis=1)] == labels[~fitted]).mean())
        found["class_chance"] = float(np.unique(labels, return_counts=True)[1].max() / n)
    return found


def determinism(ids_a: np.ndarray, x_a: np.ndarray, ids_b: np.ndarray, x_b: np.ndarray) -> float:
    """D = E|E[x | eps]|^2 / E|x|^2 of centred rows: the share of them that the noise determines.

    0 for independent pairing, 1 if each noise belongs to one image. Estimated without bias from
    two disjoint sets of rows [n, d] paired with the same noises, as the mean of <x_a, x_b> over
    the noise ids that both have. For `knn-*`, where few noises are chosen in both, the mean is over
    those and tilts towards noises that are chosen often.

    Raises ValueError if the two have no noise in common.
    """
    _, at_a, at_b = np.intersect1d(ids_a, ids_b, return_indices=True)
    if len(at_a) == 0:
        raise ValueError("the two pairings have no noise in common")
    x_a, x_b = x_a.reshape(len(x_a), -1), x_b.reshape(len(x_b), -1)
    centre = (x_a.mean(0, dtype=np.float64) + x_b.mean(0, dtype=np.float64)) / 2
    variance = (((x_a - centre) ** 2).sum() + ((x_b - centre) ** 2).sum()) / (len(x_a) + len(x_b))
    return float(((x_a[at_a] - centre) * (x_b[at_b] - centre)).sum() / len(at_a) / variance)


def cluster_distance(eps: np.ndarray) -> tuple[float, float]:
    """The miscibility measure of arXiv 2505.18521, and its value for independent noise.

    eps [images, draws, d]: noises that were paired with each of some images. The measure is the
    mean distance between the means of two images' noises; it depends on d and draws, independent
    noise has about sqrt(2 d / draws).
    """
    images, draws, d = eps.shape
    centres = eps.mean(axis=1, dtype=np.float64)
    squares = (centres**2).sum(axis=1)
    distances = squares[:, None] + squares - 2 * centres @ centres.T
    above = np.triu_indices(images, 1)
    return float(np.sqrt(np.maximum(distances[above], 0)).mean()), math.sqrt(2 * d / draws)


def slot_overlap(eps_a: np.ndarray, eps_b: np.ndarray, components: Components | None = None):
    """How alike the noises are that the same rows get in two slots: mean <eps_a, eps_b> / d.

    eps_a, eps_b: [n, d]. 0 for independent pairing, 1 for the same noise; in the components if
    given. High overlap means that more slots add little fresh noise.
    """
    eps_a, eps_b = eps_a.reshape(len(eps_a), -1), eps_b.reshape(len(eps_b), -1)
    if components is not None:
        eps_a, eps_b = eps_a @ components.basis.T, eps_b @ components.basis.T
    return float(np.einsum("nd,nd->", eps_a, eps_b, dtype=np.float64) / eps_a.size)


def expected_maximum(k: int) -> float:
    """m_k, the mean of the largest of k standard normals."""
    z = np.linspace(-12, 12, 20_001)
    distribution = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in z])
    # E max = integral of (1 - F^k) over z > 0 less that of F^k over z < 0.
    return float(z[-1] - np.trapezoid(distribution**k, z))


def knn_bias(k: int, dim: int, row_square: float, mean_square: float = 0.0) -> dict[str, float]:
    """What `knn-l2` with k candidates does, for rows with |x|^2 = row_square in `dim` dimensions.

    mean_square: of the rows' mean; 0 for centred ones.

    The score |eps|^2 - 2 <x, eps> has the variance 2 dim + 4 |x|^2, and its least of k lies m_k
    deviations below the mean; each term takes its share of that (regression to the mean).

    noise_std  sqrt(E|eps|^2 / dim), below 1: most of the selection picks short noise
    noise_mean  of the chosen noise along the rows' mean
    alignment  E<x, eps>
    distance_drop  E|x - eps|^2 below that of unpaired noise
    """
    deviation = math.sqrt(2 * dim + 4 * row_square)
    m = expected_maximum(k)
    return {
        "noise_std": math.sqrt(1 - 2 * m / deviation),
        "noise_mean": 2 * m * math.sqrt(mean_square) / deviation,
        "alignment": 2 * m * row_square / deviation,
        "distance_drop": m * deviation,
    }


# --- files ------------------------------------------------------------------------------------

_FORMAT = 1


@dataclass(frozen=True)
class Pairing:
    """A stored pairing. slots: slot -> integers [count], mapped from the file."""

    method: str
    settings: dict[str, Any]
    key: int
    data: str
    count: int
    slots: dict[int, np.ndarray]
    statistics: dict[str, Any]

    def noise_ids(self, slot: int | np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Noise ids, int64 [n], of `rows` (int64 [n]) in `slot`, an integer or one a row."""
        candidates = self.settings.get("candidates", 0)
        slot = np.broadcast_to(slot, rows.shape)
        ids = np.empty_like(rows)
        for one in np.unique(slot):
            mine = slot == one
            ids[mine] = noise_ids(self.method, self.slots[int(one)], rows[mine], candidates)
        return ids


def write_pairing(
    path: Path,
    slots: Mapping[int, np.ndarray],
    *,
    method: str,
    settings: Mapping[str, Any],
    key: int,
    data: str,
    statistics: Mapping[str, Any] | None = None,
) -> None:
    """Store slots (integers of `pair_slot`, in row order) as one Arrow IPC file.

    One record batch a slot, 1, 2 or 4 bytes a row. The header (schema metadata, JSON) holds all
    that the integers rest on: `key`, the version of the noise, `data` (the digest of the rows),
    method, settings (for `knn-*` with `candidates`), cost form, and a checksum. The file appears
    complete or not at all.

    Raises ValueError for integers that are no pairing of this method.
    """
    arrays = list(slots.values())
    if not arrays or len({(a.dtype, a.shape) for a in arrays}) > 1:
        raise ValueError("a pairing needs slots of one length and type")
    count = len(arrays[0])
    for slot, paired in slots.items():
        if method == "assignment":
            good = count and (np.bincount(paired, minlength=count) == 1).all()
        elif method.startswith("knn"):
            good = count and paired.max() < settings["candidates"]
        else:
            raise ValueError(f"nothing to store for pairing method {method!r}")
        if not good or paired.dtype.kind != "u":
            raise ValueError(f"slot {slot} is no pairing by {method}")
    header = {
        "rng": noise.RNG,
        "key": f"{key:016x}",
        "data": data,
        "method": method,
        "settings": dict(settings),
        "cost": "|eps|^2 - 2<x,eps>" if method == "knn-l2" else "-<x,eps>",
        "count": count,
        "slots": list(slots),
        "statistics": dict(statistics or {}),
    }
    batches = [pa.record_batch([pa.array(a)], names=["noise"]) for a in arrays]
    _write(path, "pairing", header, batches)


def read_pairing(path: Path, expect: Mapping[str, Any] | None = None) -> Pairing:
    """Open a stored pairing, mapped into memory.

    expect: what it must have been made with: any of `data`, `key`, `method`, `settings`, `count`.

    Raises UserError telling why a file is refused: missing, foreign, damaged, made by another
    version of the noise, or made with something else than expected.
    """
    header, batches = _read(path, "pairing")
    if header["rng"] != noise.RNG:
        raise UserError(
            f"{path}: paired with noise {header['rng']}, this version makes {noise.RNG}; pair again"
        )
    header["key"] = int(header["key"], 16)
    for name, wanted in (expect or {}).items():
        if _canonical(header[name]) != _canonical(wanted):
            raise UserError(
                f"{path}: paired with {name} {header[name]}, now {name} is {wanted}; pair again"
            )
    arrays = [batch.column(0).to_numpy() for batch in batches]
    return Pairing(
        method=header["method"],
        settings=header["settings"],
        key=header["key"],
        data=header["data"],
        count=header["count"],
        slots=dict(zip(header["slots"], arrays, strict=True)),
        statistics=header["statistics"],
    )


def write_components(path: Path, components: Components, data: str) -> None:
    """Store components of the rows whose digest is `data`, as an Arrow IPC file."""
    basis = np.ascontiguousarray(components.basis, dtype=np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(basis.reshape(-1)), basis.shape[1])
    header = {"data": data, "variances": [float(v) for v in components.variances]}
    _write(path, "components", header, [pa.record_batch([column], names=["basis"])])


def read_components(path: Path, data: str | None = None) -> Components:
    """Read components; UserError if missing, foreign, damaged, or not of the rows `data`."""
    header, batches = _read(path, "components")
    if data is not None and header["data"] != data:
        raise UserError(f"{path}: components of data {header['data']}, now data is {data}")
    basis = batches[0].column(0)
    values = basis.flatten().to_numpy().reshape(len(basis), -1)
    return Components(values, np.array(header["variances"]))


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _checksum(header: Mapping[str, Any], batches: list[pa.RecordBatch]) -> str:
    found = hashlib.sha256(_canonical(header).encode())
    for batch in batches:
        column = batch.column(0)
        values = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
        found.update(values.to_numpy())
    return found.hexdigest()


def _write(path: Path, kind: str, header: dict[str, Any], batches: list[pa.RecordBatch]) -> None:
    header = {"kind": kind, "format": _FORMAT, **header}
    header["checksum"] = _checksum(header, batches)
    schema = batches[0].schema.with_metadata({"tspace": _canonical(header)})
    with replacing(path) as temporary, pa.ipc.new_file(str(temporary), schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _read(path: Path, kind: str) -> tuple[dict[str, Any], list[pa.RecordBatch]]:
    try:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        for batch in batches:
            batch.validate(full=True)
    except FileNotFoundError as e:
        raise UserError(f"{path}: missing; make the {kind} first") from e
    except (pa.ArrowException, OSError) as e:
        raise UserError(f"{path}: not a readable Arrow file; make the {kind} again") from e
    metadata = reader.schema.metadata or {}
    try:
        header = json.loads(metadata[b"tspace"])
        found = header["kind"], header["format"]
    except (KeyError, TypeError, ValueError) as e:
        raise UserError(f"{path}: an Arrow file, but no {kind} of tspace") from e
    if found != (kind, _FORMAT):
        raise UserError(
            f"{path}: holds {found[0]} of format {found[1]}, not {kind} of format {_FORMAT}"
        )
    claimed = header.pop("checksum", None)
    # A damaged schema can also make the columns unreadable.
    with contextlib.suppress(pa.ArrowException, IndexError, ValueError):
        if claimed == _checksum(header, batches):
            return header, batches
    raise UserError(f"{path}: damaged, its checksum differs; make the {kind} again")
