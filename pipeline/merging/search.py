"""Searches for the weights of a merge: a fitted quadratic, a grid, at random."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline.errors import UserError
from pipeline.noise import philox

Measure = Callable[[tuple[float, ...]], float]
Measured = list[tuple[tuple[float, ...], float]]

# The exact minimum looks at 3^N faces of the box: half a million for 12.
MAX_EXPERTS = 12
# Below this share of its largest curvature a face counts as flat: its minimum is on its border too.
_FLAT = 1e-12
# Candidates for a second measure are at least this far apart in some weight.
SEPARATION = 0.05


# --- the quadratic model --------------------------------------------------------------------------
class Quadratic(NamedTuple):
    """value(w) = c + b.w + w.A.w / 2, with a symmetric A; float64, [n] and [n, n]."""

    c: float
    b: np.ndarray
    A: np.ndarray

    def at(self, w: np.ndarray) -> np.ndarray:
        """Its values at w [..., n]: [...]."""
        w = np.asarray(w, dtype=np.float64)
        return self.c + w @ self.b + ((w @ self.A) * w).sum(axis=-1) / 2


def normalised_loss(losses: Sequence[float], parent_losses: Sequence[float]) -> float:
    """sum over ranges of loss / parent's loss, so that no range outweighs another: N at the parent.

    Raises ValueError unless both have one number for each range, the parent's positive.
    """
    if len(losses) != len(parent_losses) or not all(loss > 0 for loss in parent_losses):
        raise ValueError("need one loss and one positive loss of the parent for each range")
    return math.fsum(loss / own for loss, own in zip(losses, parent_losses, strict=True))


def design_points(n: int) -> np.ndarray:
    """The (n + 1)(n + 2) / 2 weights at which a quadratic is measured: float64 [K, n].

    The parent (0), each expert (e_i), and all midpoints between two of these n + 1: e_i / 2 and
    (e_i + e_j) / 2. This lattice of the simplex determines a quadratic uniquely, treats parent and
    experts alike, and never leaves the region between trained networks. In this order.
    """
    corners = np.vstack([np.zeros(n), np.eye(n)])
    middles = [(corners[i] + corners[j]) / 2 for i, j in itertools.combinations(range(n + 1), 2)]
    return np.vstack([corners, *middles])


def fit_quadratic(points: np.ndarray, values: Sequence[float] | np.ndarray) -> Quadratic:
    """The least-squares quadratic through values [m] at points [m, n]: exact at design points.

    Raises ValueError if the points do not determine it.
    """
    points = np.asarray(points, dtype=np.float64)
    values = np.asarray(values, dtype=np.float64)
    m, n = points.shape
    rows, columns = np.triu_indices(n)
    products = points[:, rows] * points[:, columns]
    terms = np.hstack([np.ones((m, 1)), points, products])
    found, _, rank, _ = np.linalg.lstsq(terms, values, rcond=None)
    if rank < terms.shape[1]:
        raise ValueError(f"{m} points of rank {rank} do not fix {terms.shape[1]} coefficients")
    half = np.zeros((n, n))
    half[rows, columns] = found[n + 1 :]
    return Quadratic(float(found[0]), found[1 : n + 1], half + half.T)


def minimise(
    c: float, b: np.ndarray, A: np.ndarray, bounds: tuple[float, float]
) -> tuple[np.ndarray, float]:
    """The global minimum over the box bounds[0] <= w_i <= bounds[1]: w [n] and its value.

    Exact for any A, convex or not: all faces of the box are enumerated (each weight at its lower
    bound, at its upper one, or free), since the minimum is either a corner or the stationary
    point of a face on which A is positive definite. Raises UserError beyond MAX_EXPERTS weights
    (there are 3^n faces), ValueError for bounds that are not finite and ascending.
    """
    points, values = _face_minima(Quadratic(c, b, A), bounds)
    best = int(np.argmin(values))
    return points[best], float(values[best])


def _face_minima(quadratic: Quadratic, bounds: tuple[float, float]):
    """Stationary points [m, n] within the faces where there is a strict minimum, and values [m]."""
    low, high = bounds
    n = len(quadratic.b)
    _require_box(n, bounds)
    found = []
    for size in range(n + 1):
        for free in map(list, itertools.combinations(range(n), size)):
            block = quadratic.A[np.ix_(free, free)]
            if size:
                curvatures = np.linalg.eigvalsh(block)
                if curvatures[0] <= _FLAT * abs(curvatures[-1]):
                    continue
            bound = [i for i in range(n) if i not in free]
            corners = np.array(list(itertools.product((low, high), repeat=len(bound))))
            w = np.empty((len(corners), n))
            w[:, bound] = corners
            if size:
                slope = quadratic.b[free] + corners @ quadratic.A[np.ix_(bound, free)]
                w[:, free] = np.linalg.solve(block, -slope.T).T
            found.append(w[((w >= low) & (w <= high)).all(axis=1)])
    points = np.concatenate(found)
    return points, quadratic.at(points)


def _require_box(n: int, bounds: tuple[float, float]) -> None:
    if n > MAX_EXPERTS:
        raise UserError(
            f"at most {MAX_EXPERTS} merge weights can be searched, not {n}; give the weights, or "
            "use another merge method"
        )
    if not (math.isfinite(bounds[0]) and math.isfinite(bounds[1]) and bounds[0] < bounds[1]):
        raise ValueError(f"bounds must be finite and ascending, not {bounds}")


def candidates(quadratic: Quadratic, bounds: tuple[float, float], top: int) -> np.ndarray:
    """At most `top` weights worth a second measure, best first by the quadratic: float64 [m, n].

    From the minima of all faces of the box: the overall minimum first, then the best with some
    experts left out or at full weight. Each is more than SEPARATION from the better ones in some
    weight, as a second measure has nothing to tell between neighbours. Errors as for `minimise`.
    """
    points, values = _face_minima(quadratic, bounds)
    chosen: list[np.ndarray] = []
    for i in np.argsort(values, kind="stable"):
        if len(chosen) == top:
            break
        if all(np.abs(points[i] - other).max() > SEPARATION for other in chosen):
            chosen.append(points[i])
    return np.array(chosen)


# --- search ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SearchResult:
    """Weights of the task vectors, and everything that was measured to find them.

    value: of `weights`, by the measure that chose them: `confirm` if there was one, otherwise
    `evaluate`. None if they are the minimum of a fit that nothing confirmed.
    evaluations, confirmations: (weights, value) of `evaluate` and of `confirm`, in order.
    predicted: the fitted quadratic at `weights`; None if there is no fit.
    """

    weights: tuple[float, ...]
    value: float | None
    evaluations: Measured
    confirmations: Measured
    predicted: float | None


def search(
    evaluate: Measure,
    n: int,
    bounds: tuple[float, float] = (0.0, 1.0),
    confirm: Measure | None = None,
    top: int = 3,
) -> SearchResult:
    """Weights in the box that minimise `evaluate`, from (n + 1)(n + 2) / 2 evaluations of it.

    Exact if `evaluate` is quadratic. With `confirm` (another measure, or `evaluate` itself to
    check the fit) it measures the best `top` candidates and the best design point in the box, and
    its lowest wins: a poor fit cannot hide that a network was already measured to be better.

    Both are called with a tuple of n floats. Raises UserError for more than MAX_EXPERTS weights
    (before anything is evaluated) and for a value that is not finite.
    """
    _require_box(n, bounds)
    points = design_points(n)
    evaluations = _measure(evaluate, points)
    quadratic = fit_quadratic(points, [value for _, value in evaluations])
    if confirm is None:
        found, predicted = minimise(*quadratic, bounds)
        return SearchResult(_plain(found), None, evaluations, [], predicted)
    chosen = [_plain(w) for w in candidates(quadratic, bounds, top)]
    inside = [e for e in evaluations if all(bounds[0] <= w <= bounds[1] for w in e[0])]
    if inside:
        chosen.append(_lowest(inside)[0])
    confirmations = _measure(confirm, dict.fromkeys(chosen))
    weights, value = _lowest(confirmations)
    predicted = float(quadratic.at(np.array(weights)))
    return SearchResult(weights, value, evaluations, confirmations, predicted)


def grid_search(
    evaluate: Measure,
    n: int,
    bounds: tuple[float, float] = (0.0, 1.0),
    confirm: Measure | None = None,
    top: int = 3,
    *,
    levels: int = 11,
) -> SearchResult:
    """The lowest of levels^n equally spaced weights: a check on `search`, with the same errors.

    With `confirm`, the `top` lowest are measured by it and its lowest wins.
    """
    axis = np.linspace(*bounds, levels)
    return _pick(evaluate, np.array(list(itertools.product(axis, repeat=n))), confirm, top)


def random_search(
    evaluate: Measure,
    n: int,
    bounds: tuple[float, float] = (0.0, 1.0),
    confirm: Measure | None = None,
    top: int = 3,
    *,
    count: int,
    key: int,
) -> SearchResult:
    """The lowest of `count` weights drawn uniformly from the box under a 64-bit `key`.

    With `confirm`, the `top` lowest are measured by it and its lowest wins.
    """
    low, high = bounds
    drawn = philox.uniform(key, 0, np.arange(count, dtype=np.int64), (n,))
    return _pick(evaluate, low + (high - low) * drawn, confirm, top)


def _pick(evaluate, points: np.ndarray, confirm, top: int) -> SearchResult:
    evaluations = _measure(evaluate, points)
    if confirm is None:
        return SearchResult(*_lowest(evaluations), evaluations, [], None)
    order = np.argsort([value for _, value in evaluations], kind="stable")[:top]
    confirmations = _measure(confirm, points[order])
    return SearchResult(*_lowest(confirmations), evaluations, confirmations, None)


def _measure(measure: Measure, points: Iterable[Sequence[float]]) -> Measured:
    measured = []
    for point in points:
        weights = _plain(point)
        value = float(measure(weights))
        if not math.isfinite(value):
            raise UserError(
                f"the network merged with weights {list(weights)} scores {value}; "
                "use narrower bounds, or fine-tune the experts for less"
            )
        measured.append((weights, value))
    return measured


def _plain(weights: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(w) for w in weights)


def _lowest(measured: Measured) -> tuple[tuple[float, ...], float]:
    return min(measured, key=lambda pair: pair[1])
