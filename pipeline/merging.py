"""Experts that were fine-tuned from one parent become one network again, by their weights alone.

Decouple-then-merge (DeMe, arXiv 2410.06664): N copies of a network are trained further, each on an
interval of its own, and merged as

    theta = theta_0 + sum_i w_i tau_i,    tau_i = theta_i - theta_0    (its equation 8)

with one w_i for each expert, which need not sum to one. The paper finds them by grid search, N
weights in 11 levels being 11^N evaluations. Along the task vectors tau_i a held-out loss is smooth,
so here a quadratic in w is fitted to (N + 1)(N + 2) / 2 evaluations and minimised exactly.

Networks are never evaluated here: `evaluate` of the searches comes from the caller, who may cache
it. Weights are dictionaries by parameter name; sums are in float64, results in their own dtype.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from pipeline import noise
from pipeline.ema import Weights, combine
from pipeline.errors import UserError

Measure = Callable[[tuple[float, ...]], float]
Measured = list[tuple[tuple[float, ...], float]]

# The exact minimum looks at 3^N faces of the box: half a million for 12.
MAX_EXPERTS = 12
# Below this share of its largest curvature a face counts as flat: its minimum is on its border too.
_FLAT = 1e-12
# Candidates for a second measure are at least this far apart in some weight.
SEPARATION = 0.05


# --- merging --------------------------------------------------------------------------------------


def merge(
    method: str,
    parent: Mapping[str, torch.Tensor],
    experts: Sequence[Mapping[str, torch.Tensor]],
    **options,
) -> Weights:
    """One network's weights from those of N experts and of the parent they started from.

    `average`: the mean of the experts (no options).

    `task-vector`: parent + sum_i w_i (expert_i - parent). Option `weights`: N numbers, or a mapping
    from layer-name prefixes to N numbers each. A prefix stands for whole parts of a name (`down.1`
    holds `down.1.conv.weight`, not `down.10.conv.weight`), "" for all; the longest that fits
    counts. All w_i = 1 / N is the average; w_i = 1 and others 0 is expert i.

    `ties` (Yadav et al. 2023, arXiv 2306.01708): of each task vector keep the `density` (default
    0.2) largest magnitudes over the whole network; elect each coordinate's sign by the sum of what
    is kept; parent + `scale` (default 1) * the mean of the kept entries with that sign. Magnitudes
    equal to the smallest kept one are all kept, so no order of layers matters. A coordinate whose
    sum is exactly zero stays the parent's, as sgn(0) = 0 in the paper (its code gives such a
    coordinate the sign most coordinates have).

    Raises UserError naming the first tensor that differs in presence, shape or dtype, or a
    weight or prefix that does not fit; ValueError for an unknown method, an option out of range
    or weights that are not floating-point.
    """
    if method not in METHODS:
        raise ValueError(f"unknown merge method {method!r}; known: {', '.join(METHODS)}")
    if not experts:
        raise ValueError("nothing to merge: no experts given")
    _require_alike(parent, experts, "expert", "the parent")
    return METHODS[method](parent, experts, **options)


def _average(parent, experts) -> Weights:
    return combine(experts, [1 / len(experts)] * len(experts))


def _task_vector(parent, experts, *, weights) -> Weights:
    by_prefix = weights if isinstance(weights, Mapping) else {"": weights}
    for prefix, values in by_prefix.items():
        if len(values) != len(experts) or not all(math.isfinite(w) for w in values):
            where = f" of {prefix!r}" if prefix else ""
            raise UserError(
                f"merge weights{where}: need {len(experts)} finite numbers, one for each expert, "
                f"not {list(values)}"
            )
    merged, used = {}, set()
    for name in parent:
        prefix = _prefix_of(name, by_prefix)
        used.add(prefix)
        w = [float(x) for x in by_prefix[prefix]]
        # The parent's own share, rather than differences: a weight of 1 gives the expert's bits.
        shares = [1 - math.fsum(w), *w]
        merged |= combine([{name: source[name]} for source in (parent, *experts)], shares)
    unused = [prefix for prefix in by_prefix if prefix not in used]
    if unused:
        raise UserError(
            f"merge weights: no tensor takes those of {unused[0]!r}; layer names start with "
            f"{', '.join(sorted({name.split('.')[0] for name in parent}))}"
        )
    return merged


def _prefix_of(name: str, prefixes: Iterable[str]) -> str:
    fitting = [p for p in prefixes if p == "" or name == p or name.startswith(p + ".")]
    if not fitting:
        raise UserError(f'merge weights: none for {name}; give the prefix "" for all other layers')
    return max(fitting, key=len)


def _ties(parent, experts, *, density: float = 0.2, scale: float = 1.0) -> Weights:
    if not 0 < density <= 1:
        raise ValueError(f"density must lie in (0, 1], not {density}")
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, not {scale}")
    thresholds = [_trim_threshold(parent, expert, density) for expert in experts]
    merged = {}
    for name, start in parent.items():
        origin = start.to(torch.float64)
        kept = []
        for expert, threshold in zip(experts, thresholds, strict=True):
            task = expert[name].to(torch.float64) - origin
            kept.append(torch.where(task.abs() >= threshold, task, 0.0))
        # Python's sum adds in the order of the experts, so that exact cancellation is well defined.
        elected = sum(kept).sign()
        agreeing = [torch.where(task.sign() == elected, task, 0.0) for task in kept]
        count = sum((task != 0).to(torch.float64) for task in agreeing)
        mean = sum(agreeing) / count.clamp(min=1)
        merged[name] = (origin + scale * mean).to(start.dtype)
    return merged


def _trim_threshold(parent, expert, density: float) -> float:
    """The smallest magnitude that is kept of a task vector."""
    magnitudes = torch.cat(
        [
            (expert[name].to(torch.float64) - start.to(torch.float64)).abs().flatten()
            for name, start in parent.items()
        ]
    )
    keep = max(1, round(density * len(magnitudes)))
    return magnitudes.kthvalue(len(magnitudes) - keep + 1).values.item()


METHODS = {"average": _average, "task-vector": _task_vector, "ties": _ties}


def combine_snapshots(
    snapshots: Sequence[Mapping[str, torch.Tensor]], weights: Sequence[float]
) -> Weights:
    """sum_i weights_i snapshot_i over snapshots of one run (LCSC, arXiv 2404.02241).

    Weights may be negative and need not sum to one. Raises UserError naming the first tensor that
    differs, ValueError for another number of weights than snapshots.
    """
    if snapshots:
        _require_alike(snapshots[0], snapshots[1:], "snapshot", "the first", first=2)
    return combine(snapshots, weights)


def _require_alike(reference, others, word: str, of: str, first: int = 1) -> None:
    for name, tensor in reference.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name}: weights of {tensor.dtype} cannot be averaged")
    for number, other in enumerate(others, first):
        for name, tensor in reference.items():
            if name not in other:
                problem = "is missing"
            elif other[name].shape != tensor.shape:
                problem = f"has shape {tuple(other[name].shape)}, in {of} {tuple(tensor.shape)}"
            elif other[name].dtype != tensor.dtype:
                problem = f"is {other[name].dtype}, in {of} {tensor.dtype}"
            else:
                continue
            break
        else:
            extra = [name for name in other if name not in reference]
            if not extra:
                continue
            name, problem = extra[0], f"is not in {of}"
        raise UserError(f"{word} {number}: {name} {problem}; only equal networks can be merged")


def require_common_parent(starts: Mapping[str, str | None]) -> str:
    """The digest of the one parent that all experts were fine-tuned from.

    starts: for each expert's name the digest of the weights it started from, None for an
    initialisation of its own. Raises UserError naming the experts that differ.
    """
    if not starts:
        raise ValueError("nothing to merge: no experts given")
    (first, digest), *others = starts.items()
    why = "merging would average unrelated weights; fine-tune all of them from one parent"
    for name, start in starts.items():
        if start is None:
            raise UserError(f"expert {name} has no parent (it was initialised on its own): {why}")
    for name, start in others:
        if start != digest:
            raise UserError(f"experts {first} and {name} do not come from one parent: {why}")
    return digest


def agreement(
    parent: Mapping[str, torch.Tensor], experts: Sequence[Mapping[str, torch.Tensor]]
) -> dict[str, object]:
    """How far the experts moved, and whether in the same direction; plain numbers, for a report.

    relative_norms [N]: |tau_i| / |parent|. cosines [N][N]: of tau_i and tau_j, None where one is
    zero. sign_conflict: the share of coordinates, among those any expert moved, that one expert
    raises and another lowers (None if nothing moved); 1 - 2^(1 - N) for independent signs.
    Raises UserError as `merge` does, ValueError for a parent that is all zero.
    """
    _require_alike(parent, experts, "expert", "the parent")
    count = len(experts)
    inner = torch.zeros(count, count, dtype=torch.float64)
    square, moved, conflicts = 0.0, 0, 0
    for name, start in parent.items():
        origin = start.to(torch.float64).flatten()
        tasks = torch.stack([e[name].to(torch.float64).flatten() - origin for e in experts])
        inner += tasks @ tasks.T
        square += (origin @ origin).item()
        raised, lowered = (tasks > 0).any(dim=0), (tasks < 0).any(dim=0)
        moved += int((raised | lowered).sum())
        conflicts += int((raised & lowered).sum())
    if square == 0:
        raise ValueError("the parent's weights are all zero")
    norms = inner.diagonal().sqrt().tolist()
    cosines = [
        [inner[i, j].item() / (a * b) if a and b else None for j, b in enumerate(norms)]
        for i, a in enumerate(norms)
    ]
    return {
        "relative_norms": [norm / math.sqrt(square) for norm in norms],
        "cosines": cosines,
        "sign_conflict": conflicts / moved if moved else None,
    }


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
    drawn = noise.uniform(key, 0, np.arange(count, dtype=np.int64), (n,))
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
