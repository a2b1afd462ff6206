"""Which noise each row gets: linear assignment in blocks, or the nearest of some noises."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.noise import philox

# Row indices, int64 [n] -> rows of unit average variance, float32 [n, d].
RowSource = Callable[[np.ndarray], np.ndarray]

# Noise is rounded to multiples of 1/32 and cut at 127/32, rows as finely as exactness allows.
NOISE_SCALE = 32
_EXACT = 1 << 24
_INT8, _INT16 = 127, 32767
_BASIS_SCALE = 1 << 14
_PROJECTION_SCALE = 128
_CHUNK_BYTES = 32 << 20


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
    key = philox.derive_key(key, "components")
    if count > sample:
        some = np.sort(philox.permutation(key, 0, count)[:sample])
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
    q = philox.normal(key, 1, np.arange(width), (x.shape[1],)).T
    for _ in range(4):
        q = np.linalg.qr(x.T @ (x @ q))[0]
    values, vectors = np.linalg.eigh((x @ q).T.astype(np.float64) @ (x @ q))
    basis = (q @ vectors[:, : -number - 1 : -1]).T
    # An eigenvector's sign is arbitrary.
    basis *= np.sign(np.take_along_axis(basis, np.abs(basis).argmax(1)[:, None], 1))
    variances = values[: -number - 1 : -1] / len(x)
    return Components(np.ascontiguousarray(basis, dtype=np.float32), variances)


# --- integer coordinates ----------------------------------------------------------------------


class Coordinates:
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
        drawn = philox.normal(key, slot, np.arange(number), (self.dim,))
        return _whole(drawn, NOISE_SCALE, _INT8, self.noise_limit)

    def _make_rows(self, index):
        values = np.asarray(self._rows(self._members[index]), dtype=np.float32)
        values = values.reshape(len(index), -1)
        if self._basis is not None:
            coarse = np.rint(values * np.float32(_PROJECTION_SCALE)).astype(np.float64)
            values = coarse @ self._basis / float(_PROJECTION_SCALE * _BASIS_SCALE)
        return _whole(values, self.row_scale, _INT16, self.row_limit).astype(np.int16)

    def _make_noises(self, ids):
        drawn = philox.normal(self._key, self._slot, ids, (self.source_dim,))
        if self._basis is not None:
            coarse = np.rint(drawn * np.float32(_PROJECTION_SCALE)).astype(np.float64)
            drawn = coarse @ self._basis / float(_PROJECTION_SCALE * _BASIS_SCALE)
        return _whole(drawn, NOISE_SCALE, _INT8, self.noise_limit).astype(np.int8)


def _limits(dim: int, source_dim: int) -> tuple[float, float, float]:
    """Factor on rows, and the largest norm of integer rows and noises of `dim` dimensions.

    The norms bound every partial sum of an inner product (Cauchy-Schwarz). A noise exceeds its
    limit with probability below 1e-8, and is then shortened; rows of up to 4 times the average
    norm, that of `source_dim` values of unit variance, keep theirs.
    """
    noise_limit = NOISE_SCALE * (math.sqrt(dim) + 6)
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
    block: int = 0,
    sweeps: int = 0,
    candidates: int = 0,
    components: Components | None = None,
    cost_bits: int = 10,
    memory: int = 1 << 30,
    workers: int = 1,
) -> np.ndarray:
    """Pair `count` rows with the noises of `slot` under `key`: integers [count] (see `noise_ids`).

    The answer has the smallest unsigned integer type that holds it.

    labels: integers [count]; `assignment` then only exchanges noise within a class, which makes
        the noise independent of the class.
    block, sweeps: of `assignment`: size of the blocks that it solves, and how often it covers all.
        The blocks of the first sweep are random: `sweeps=1` is batch-wise assignment. Those of
        later sweeps hold rows that are alike (the leaves of a random projection tree), which
        improves about three times faster than random ones. A `block` of all rows is the exact
        assignment.
    cost_bits: costs are solved as integers of so many bits (32: all of them). The best alignment
        is missed by some 0.2 % with 8 and 0.01 % with 10, and found in half the time.
    candidates: of `knn-*`: how many noises a row chooses from.
    components: take the cost in these components only.
    memory, workers: bytes for coordinates that are kept, and number of threads. Neither changes
        the answer. `assignment` keeps 3 bytes a row (of a class) and dimension; if that is more
        than `memory`, each sweep reads the rows and makes the noises anew. Beyond `memory`, the
        working set is about 100 bytes a row, and block * (16 * dimensions + 24 * block) bytes a
        worker.
    """
    with ThreadPoolExecutor(workers) as pool:
        if method == "independent":
            paired = np.arange(count)
        elif method == "assignment":
            paired = np.arange(count)
            classes = [np.arange(count)] if labels is None else classes_of(labels, count)
            for number, members in enumerate(classes):
                at = Coordinates(rows, members, key, slot, components, memory, pool)
                shuffle = philox.derive_key(key, "blocks", slot, number)
                order = _assign(at, len(members), shuffle, block, sweeps, cost_bits, pool)
                paired[members] = members[order]
        else:
            at = Coordinates(rows, np.arange(count), key, slot, components, 0, pool)
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


def classes_of(labels: np.ndarray, count: int) -> list[np.ndarray]:
    """The rows of each class that occurs, int64 each, in order.

    labels: integers [count]; ValueError for another shape.
    """
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
            blocks = np.array_split(philox.permutation(key, 0, count), leaves)
        else:
            blocks = _tree_blocks(at, count, leaves, key, sweep)
        list(pool.map(improve, blocks))
        if leaves == 1:
            break
    return order


def integer_cost(x: np.ndarray, eps: np.ndarray) -> np.ndarray:
    """The cost -<x, eps> of a batch in memory, in multiples of a constant: int32 [n, n].

    x, eps: float32 [n, ...], of unit average variance.
    """
    x, eps = x.reshape(len(x), -1), eps.reshape(len(eps), -1)
    scale, row_limit, noise_limit = _limits(x.shape[1], x.shape[1])
    negated = _whole(x, -scale, _INT16, row_limit)
    return _products(negated, _whole(eps, NOISE_SCALE, _INT8, noise_limit))


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
            score -= squares * (at.row_scale / (2 * NOISE_SCALE))
        chosen[rows] = score.argmax(axis=1)

    list(pool.map(choose, range(0, count, step)))
    return chosen
