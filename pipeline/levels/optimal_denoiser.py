"""Where to cut the time axis: bounds of the intervals, found from the data.

The multi-stage method (arXiv 2312.09181) cuts the states where the best possible denoiser changes.
For a finite dataset z_1 .. z_N (rows of zero mean and unit average variance, as the network sees
them) that denoiser is known: of x = alpha z + sigma eps, the posterior mean is

    m(x) = sum_i w_i z_i,    w_i = softmax_i( (alpha / sigma^2) <x, z_i> - snr |z_i|^2 / 2 )

and its noise estimate (x - alpha m) / sigma = eps + sqrt(snr) (z - m). Two noise estimates are as
similar as the share of coordinates in which they lie within `eta` of each other.

Nothing is trained. The price is one or two matrix products of all draws with all rows, streamed.

Two anchors (the paper's algorithm 1, three intervals). Each draw is a row z, a noise and a state:

    S0 = share( sqrt(snr) |z - m|     <= eta )    similarity to the clean end
    S1 = share( sqrt(snr) |m - mean|  <= eta )    similarity to the noisy end

The clean end's noise estimate is eps itself: there the posterior is the row that was drawn. The
noisy end can be read in two ways. As printed, it is the noise estimate of the last state at *its
own* sample of the same z and eps. That tends to eps too, so S1 would measure what S0 measures, and
would depend on where the schedule happens to end. As in the authors' code, it is the noise estimate
of a pure-noise state at the *same* x, whose posterior mean is the mean of the dataset. Here it is
the latter: it asks whether the denoiser still does more than answer the mean, needs no particular
end of the schedule, and is what the curves in the authors' code show.

`alpha` and `eta` are choices (the paper's appendix with its own was not at hand), and both bounds
move with them and with the number of rows: show `sensitivity` beside any bound.

Any number of intervals: each node's mean similarity to its own interval, summed over all nodes and
maximised by exact dynamic programming over the similarity matrix of n nodes, or over any other
affinity of nodes, such as the cosine of loss gradients. The authors' code lets each interval count
once instead of each node. That sum is largest for cuts where they change nothing: single nodes, or
pieces of a region that is all alike, are means of 1 each, and the rest is left in one interval.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.levels.partition import (
    Bounds,
    affinity_bounds,
    bounds_of,
    checked_schedule,
    node_states,
)
from pipeline.noise import philox
from pipeline.noise.assignment import RowSource
from pipeline.rows import spread

MATRIX_DRAWS = 256
MEMORY = 1 << 29

# Rows whose weight is below e^-30 of the largest are left out: together below 1e-6 for 1e7 rows.
_CUTOFF = 30.0
# Relative error that a float32 score is granted (16 roundings), and the most that is accepted.
_ROUNDING = 2.0**-20
_TOLERANCE = 0.01
_PAIRS = 1024
_GOLDEN = (math.sqrt(5) - 1) / 2


# --- the optimal denoiser -------------------------------------------------------------------------
def optimal_denoiser(
    rows: RowSource, count: int, x: np.ndarray, log_snr: Any, *, memory: int = MEMORY
) -> np.ndarray:
    """Posterior mean of the dataset's rows given x = alpha z + sigma eps: float64 [n, d].

    x: [n, d]; log_snr: a number or [n], below +inf. This is the minimiser of the denoising loss
    over all functions, which gives back training rows. `memory` is about the bytes used, and
    changes nothing but rounding.

    Raises UserError for rows that are not finite.
    """
    _require_count(count)
    x = np.ascontiguousarray(x, dtype=np.float32)
    log_snr = np.broadcast_to(np.asarray(log_snr, dtype=np.float64), len(x))
    size, block = _sizes(memory, x.shape[1], 1)
    means = np.empty(x.shape)
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        level = _Levels.of_sample(log_snr[part])
        means[part] = _posterior_means(rows, count, block, [x[part]], level, None)[0]
    return means


@dataclass(frozen=True)
class _Levels:
    """How scores follow from inner products, at L noise levels a query.

    score of row y = sum_b coefficient_b <base_b, y> - snr |y|^2 / 2. coefficients [L, B, n],
    snr [L, n].
    """

    coefficients: np.ndarray
    snr: np.ndarray

    @classmethod
    def of_sample(cls, log_snr: np.ndarray) -> "_Levels":
        """One level a query; the base is x."""
        alpha, sigma = _alpha_sigma(log_snr)
        return cls((alpha / sigma**2)[None, None], np.exp(log_snr)[None])

    @classmethod
    def of_pair(cls, log_snr: np.ndarray, queries: int) -> "_Levels":
        """All of log_snr [L] for each query; the bases are z and eps."""
        shape = (len(log_snr), 2, queries)
        each = np.stack([np.exp(log_snr), np.exp(log_snr / 2)], axis=1)[:, :, None]
        snr = np.broadcast_to(np.exp(log_snr)[:, None], (len(log_snr), queries))
        return cls(np.broadcast_to(each, shape), snr)


def _posterior_means(rows, count, block, bases, levels, own) -> np.ndarray:
    """float64 [L, n, d], in one pass over the rows.

    A softmax whose reference, the largest score so far, moves while rows stream by. It starts at
    the score of the query's own row where that is known (`own`, [n, d]): then rows of no weight
    are recognised from the first block on, and cost no second product.
    """
    n, d = bases[0].shape
    count_levels = len(levels.snr)
    lengths = np.array([np.linalg.norm(base, axis=1) for base in bases])
    if own is None:
        reference = np.full((count_levels, n), -np.inf)
    else:
        inner = np.array([np.einsum("nd,nd->n", base, own, dtype=np.float64) for base in bases])
        square = np.einsum("nd,nd->n", own, own, dtype=np.float64)
        reference = (levels.coefficients * inner).sum(axis=1) - levels.snr * square / 2
        reference = reference.astype(np.float32).astype(np.float64)
    totals = np.zeros((count_levels, n))
    sums = np.zeros((count_levels, n, d))
    for y, half in _blocks(rows, count, d, block):
        products = [base @ y.T for base in bases]
        largest = half.max()
        for level in range(count_levels):
            coefficients, snr = levels.coefficients[level], levels.snr[level]
            score = np.multiply.outer(-snr.astype(np.float32), half.astype(np.float32))
            for coefficient, product in zip(coefficients, products, strict=True):
                score += coefficient[:, None].astype(np.float32) * product
            error = (coefficients * lengths).sum(axis=0) * math.sqrt(2 * largest) + snr * largest
            error *= _ROUNDING
            top = score.max(axis=1).astype(np.float64)
            live = np.flatnonzero(top + error > reference[level] - _CUTOFF)
            if len(live) == 0:
                continue
            score, top, before = score[live], top[live], reference[level, live]
            # Where float32 could misjudge a weight, the few rows that count are scored again.
            coarse = np.flatnonzero(error[live] > _TOLERANCE)
            if len(coarse):
                margin = error[live][coarse]
                least = np.maximum(before[coarse], top[coarse] - margin) - _CUTOFF - margin
                query, row = np.nonzero(score[coarse] >= least[:, None])
                query = coarse[query]
                at = live[query]
                exact = -snr[at] * half[row]
                for coefficient, base in zip(coefficients, bases, strict=True):
                    exact += coefficient[at] * _inner(base, at, y, row)
                top[coarse] = -np.inf
                np.maximum.at(top, query, exact)
            # Held in float32, so that subtracting it there is exact in the same way in each block.
            after = np.maximum(before, top).astype(np.float32)
            score -= after[:, None]
            if len(coarse):
                score[coarse] = -np.inf
                score[query, row] = exact - after[query]
            weight = np.exp(score, out=score)
            fade = np.exp(before - after)
            reference[level, live] = after
            totals[level, live] = totals[level, live] * fade + weight.sum(axis=1, dtype=np.float64)
            used = np.flatnonzero(weight.max(axis=0) > math.exp(-_CUTOFF))
            gathered = weight[:, used] @ y[used] if 4 * len(used) < len(y) else weight @ y
            sums[level, live] = sums[level, live] * fade[:, None] + gathered
    sums /= totals[:, :, None]
    return sums


def _inner(a: np.ndarray, rows_a: np.ndarray, b: np.ndarray, rows_b: np.ndarray) -> np.ndarray:
    found = np.empty(len(rows_a))
    for start in range(0, len(found), _PAIRS):
        part = slice(start, start + _PAIRS)
        found[part] = np.einsum("nd,nd->n", a[rows_a[part]], b[rows_b[part]], dtype=np.float64)
    return found


def _alpha_sigma(log_snr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.exp(-np.logaddexp(0, -log_snr) / 2), np.exp(-np.logaddexp(0, log_snr) / 2)


def _blocks(
    rows: RowSource, count: int, d: int, block: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All rows in blocks, float32 [b, d], with |row|^2 / 2, float64 [b]."""
    for start in range(0, count, block):
        index = np.arange(start, min(start + block, count))
        y = np.asarray(rows(index), dtype=np.float32).reshape(len(index), -1)
        if y.shape[1] != d:
            raise ValueError(f"rows of {y.shape[1]} values, expected {d}")
        half = np.einsum("nd,nd->n", y, y, dtype=np.float64) / 2
        if not np.isfinite(half).all():
            raise UserError("clustering: the dataset holds values that are not finite")
        yield y, half


def _mean(rows: RowSource, count: int, d: int, block: int) -> np.ndarray:
    total = np.zeros(d)
    for y, _ in _blocks(rows, count, d, block):
        total += y.sum(axis=0, dtype=np.float64)
    return total / count


def _sizes(memory: int, d: int, levels: int) -> tuple[int, int]:
    """Queries at a time and rows a block, so that all arrays together take about `memory` bytes."""
    queries = memory // 2 // (d * (16 + 24 * levels))
    return min(max(queries, 1), 2048), min(max(memory // 4 // (8 * d), 1), 4096)


# --- two anchors ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curves:
    """What algorithm 1 measures, for every draw and every eta.

    log_snr [T]: the schedule; states [K]: index of each draw's state; etas [E]; s0, s1 [E, K]:
    similarity to the clean and to the noisy end.
    """

    log_snr: np.ndarray
    states: np.ndarray
    etas: tuple[float, ...]
    s0: np.ndarray
    s1: np.ndarray

    def binned(self, eta: float, bins: int = 50) -> dict[str, np.ndarray]:
        """Means over equal parts of the time axis, for a plot: float64 [bins] each.

        time: centre of a part, 0 at the clean end and 1 at the noisy one; log_snr there; s0 and s1
        (nan where there is no draw).
        """
        e, total = self._eta(eta), len(self.log_snr)
        time = (np.arange(bins) + 0.5) / bins
        part = self.states * bins // total
        drawn = np.bincount(part, minlength=bins)
        with np.errstate(invalid="ignore"):
            s0, s1 = (np.bincount(part, s[e], bins) / drawn for s in (self.s0, self.s1))
        return {
            "time": time,
            "log_snr": self.log_snr[(time * total).astype(int)],
            "s0": s0,
            "s1": s1,
        }

    def _eta(self, eta: float) -> int:
        if eta not in self.etas:
            raise ValueError(f"similarities were measured for eta {self.etas}, not for {eta}")
        return self.etas.index(eta)

    def _cuts(self, alpha: float, eta: float, draws: slice) -> tuple[int, int]:
        """First state after the clean interval (T: none), first of the noisy one (T: none)."""
        e, total = self._eta(eta), len(self.log_snr)
        states = self.states[draws]
        clean = _first_below(states, self.s0[e, draws], total, alpha)
        noisy = _first_below(total - 1 - states, self.s1[e, draws], total, alpha)
        return clean, total - noisy


def _first_below(position: np.ndarray, values: np.ndarray, total: int, alpha: float) -> int:
    """The first position at which the mean of all values up to there is below alpha, or `total`.

    The paper asks for the last position at which that mean is still alpha. S0 comes back to 1
    towards pure noise, so that the running mean may pass alpha again, and the clean interval would
    swallow the middle.
    """
    seen = np.cumsum(np.bincount(position, minlength=total))
    sums = np.cumsum(np.bincount(position, values, total))
    below = sums < alpha * seen
    return int(below.argmax()) if below.any() else total


def measure_curves(
    rows: RowSource,
    count: int,
    log_snr: np.ndarray,
    *,
    key: int,
    draws: int,
    etas: Sequence[float],
    memory: int = MEMORY,
) -> Curves:
    """S0 and S1 of `draws` random (row, noise, state), against all `count` rows.

    log_snr: [T], the schedule, strictly descending, the last may be -inf; each state is an equal
    part of the time axis. For a continuous axis give many states. Draw number k is a function of
    (key, k), its time an even sequence with a random start (golden ratio), so that any run of draws
    covers the axis evenly. Takes draws * count * d multiplications, and as much again for the draws
    whose posterior has spread.

    Raises UserError for rows that are not finite.
    """
    log_snr = checked_schedule(log_snr)
    _require_count(count)
    number = np.arange(draws)
    start = philox.uniform(philox.derive_key(key, "clustering", "time"), 0, np.arange(1))[0]
    states = (np.mod(start + number * _GOLDEN, 1.0) * len(log_snr)).astype(np.int64)
    chosen = philox.randint(philox.derive_key(key, "clustering", "row"), 0, number, count)
    d = np.asarray(rows(chosen[:1])).size
    size, block = _sizes(memory, d, 1)
    mean = _mean(rows, count, d, block)
    s0, s1 = np.empty((2, len(etas), draws))
    for first in range(0, draws, size):
        part = slice(first, first + size)
        z, eps = _pairs(rows, chosen[part], number[part], d, key)
        levels = log_snr[states[part]]
        alpha, sigma = (a[:, None].astype(np.float32) for a in _alpha_sigma(levels))
        x = alpha * z + sigma * eps
        m = _posterior_means(rows, count, block, [x], _Levels.of_sample(levels), z)[0]
        ratio = np.exp(levels / 2)[:, None]
        for s, difference in ((s0, z - m), (s1, m - mean)):
            distance = np.abs(difference, out=difference)
            distance *= ratio
            for e, eta in enumerate(etas):
                s[e, part] = (distance <= eta).mean(axis=1)
    return Curves(log_snr, states, tuple(etas), s0, s1)


def _pairs(rows, chosen, number, d, key) -> tuple[np.ndarray, np.ndarray]:
    z = np.asarray(rows(chosen), dtype=np.float32).reshape(len(chosen), -1)
    return z, philox.normal(philox.derive_key(key, "clustering", "noise"), 0, number, (d,))


def two_anchor_bounds(curves: Curves, alpha: float, eta: float) -> Bounds:
    """Three intervals: the outer ones are as long as their mean similarity to their end is alpha.

    Each outer interval ends where the running mean first falls below alpha.

    Raises UserError, telling which way to move alpha or eta, if that does not give three intervals.
    """
    total = len(curves.log_snr)
    clean, noisy = curves._cuts(alpha, eta, slice(None))
    given = f"clustering: alpha {alpha:g} and eta {eta:g}"
    for empty, end in ((clean == 0, "cleanest"), (noisy == total, "noisiest")):
        if empty:
            raise UserError(
                f"{given} leave no interval at the {end} end; "
                "lower alpha, raise eta or extend the schedule there"
            )
    if clean >= noisy:
        raise UserError(
            f"{given} leave no middle interval, as the outer ones meet; raise alpha or lower eta"
        )
    return bounds_of(curves.log_snr, [clean, noisy])


def sensitivity(
    curves: Curves, alphas: Sequence[float], draws: Sequence[int]
) -> list[dict[str, Any]]:
    """How the two-anchor bounds move with alpha, eta (all of the curves') and number of draws.

    One row for each combination. The K draws make K // draws separate estimates:

    repeats, usable  number of estimates, and of those that give three intervals
    time_1, time_2   mean share of the time axis before each bound, over the usable
    std_1, std_2     standard deviation of it over the usable (0 for one)
    log_snr_1, log_snr_2  mean bounds

    None in the last six if nothing is usable. Raises UserError for more draws than were made.
    """
    table = []
    total, made = len(curves.log_snr), len(curves.states)
    for eta in curves.etas:
        for alpha in alphas:
            for n in draws:
                if n > made:
                    raise UserError(f"clustering: {n} draws asked for, {made} were made")
                repeats = made // n
                cuts = [curves._cuts(alpha, eta, slice(i * n, (i + 1) * n)) for i in range(repeats)]
                usable = [c for c in cuts if 0 < c[0] < c[1] < total]
                row = {"alpha": alpha, "eta": eta, "draws": n}
                row |= {"repeats": repeats, "usable": len(usable)}
                for i in (0, 1):
                    time = [c[i] / total for c in usable]
                    bound = [float(bounds_of(curves.log_snr, c).log_snr[i]) for c in usable]
                    row[f"time_{i + 1}"] = float(np.mean(time)) if usable else None
                    row[f"std_{i + 1}"] = float(np.std(time)) if usable else None
                    row[f"log_snr_{i + 1}"] = float(np.mean(bound)) if usable else None
                table.append(row)
    return table


def similarity_matrix(
    rows: RowSource,
    count: int,
    log_snr: np.ndarray,
    *,
    key: int,
    nodes: int,
    draws: int,
    eta: float,
    memory: int = MEMORY,
) -> np.ndarray:
    """Mean similarity of the optimal noise estimates of each two nodes: float64 [nodes, nodes].

    The same `draws` pairs of row and noise are used at all nodes (`node_states`), each noise
    estimate at its own sample: symmetric, 1 on the diagonal. All nodes share the two products of
    the draws with the rows; a third is needed for a node and draw whose posterior has spread.
    """
    log_snr = checked_schedule(log_snr)
    _require_count(count)
    levels = log_snr[node_states(len(log_snr), nodes)]
    ratio = np.exp(levels / 2)[:, None, None]
    number = np.arange(draws)
    chosen = philox.randint(philox.derive_key(key, "clustering", "matrix row"), 0, number, count)
    d = np.asarray(rows(chosen[:1])).size
    size, block = _sizes(memory, d, nodes)
    total = np.zeros((nodes, nodes))
    for first in range(0, draws, size):
        part = slice(first, first + size)
        z, eps = _pairs(rows, chosen[part], number[part], d, key)
        of_pair = _Levels.of_pair(levels, len(z))
        m = _posterior_means(rows, count, block, [z, eps], of_pair, z)
        # Without eps, which all nodes of a draw share.
        estimate = np.subtract(z, m, out=m)
        estimate *= ratio
        estimate = estimate.astype(np.float32).reshape(nodes, -1)
        for i in range(nodes):
            for j in range(i + 1, nodes):
                total[i, j] += np.count_nonzero(np.abs(estimate[i] - estimate[j]) <= eta)
    total /= draws * d
    return total + total.T + np.eye(nodes)


# --- a partition and what it rests on -------------------------------------------------------------
ALPHAS = (0.8, 0.85, 0.9, 0.95)
FACTORS = (0.5, 1.0, 2.0)  # on eta


def analyse(
    rows: RowSource,
    count: int,
    log_snr: np.ndarray,
    *,
    key: int,
    most: int,
    labels: np.ndarray | None,
    intervals: int,
    method: str,
    alpha: float,
    eta: float,
    draws: int,
    nodes: int,
) -> dict[str, Any]:
    """Bounds of a dataset's time axis with all that a reader needs to judge them, as plain data.

    `bounds` [intervals - 1]; `curves`: S0 and S1 over the axis; `matrix`, `log_snr`: similarities
    of the nodes; `sensitivity`: how the two-anchor bounds move with alpha, eta and number of draws.
    most: rows that it takes, a fair sample of all by their `labels` [count] (None without).
    method: `two-anchor` or `matrix`. Raises UserError if the bounds do not exist.
    """
    log_snr = checked_schedule(log_snr)
    if most < count:
        everything, chosen = rows, spread(most, count, labels)
        count = most

        def rows(indices: np.ndarray) -> np.ndarray:
            return everything(chosen[indices])

    etas = tuple(eta * factor for factor in FACTORS)
    curves = measure_curves(rows, count, log_snr, key=key, draws=draws, etas=etas)
    nodes = min(nodes, len(log_snr))
    matrix = similarity_matrix(
        rows, count, log_snr, key=key, nodes=nodes, draws=MATRIX_DRAWS, eta=eta
    )
    if method == "two-anchor":
        bounds = two_anchor_bounds(curves, alpha, eta)
    else:
        bounds = affinity_bounds(log_snr, matrix, intervals)
    binned = curves.binned(eta)
    shown = ~np.isnan(binned["s0"])
    table = sensitivity(curves, sorted({*ALPHAS, alpha}), sorted({draws, max(draws // 10, 1)}))
    return {
        "bounds": [float(v) for v in bounds.log_snr],
        "curves": {name: values[shown].tolist() for name, values in binned.items()},
        "matrix": np.round(matrix, 4).tolist(),
        "log_snr": [float(v) for v in log_snr[node_states(len(log_snr), nodes)]],
        "sensitivity": table,
    }


def _require_count(count: int) -> None:
    if count < 1:
        raise UserError("clustering: the dataset is empty")
