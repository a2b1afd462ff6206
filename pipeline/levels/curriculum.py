"""Which state is drawn when: p(state | progress), for lists of states and continuous log-SNR.

Formulas written in t/T use the position x = (index + 0.5) / T, index 0 being the cleanest state.
A continuous log-SNR range is a grid of cells, x the fraction of them from its clean end. The cells
are equal in log-SNR; those of a flow in its time (`flow.in_time`).

Every curriculum is piecewise linear in training progress. So its time average, the restriction to
an expert's states and the split of a training budget over experts are exact, without a grid.

The curricula `clts` (Xu et al. 2024, arXiv 2404.07946) and `easy-to-hard` (Kim et al. 2025,
arXiv 2403.10348) are reconstructions: sigma and what follows the end of the ramp in the first, the
equal length of the phases in the second, are choices made here. So is `adaptive`, whose density is
learnt (`pipeline.training.adaptive` has it).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import UserError
from pipeline.levels import params

if TYPE_CHECKING:
    from pipeline.specs import OwnCurriculum

CELLS = 1024  # of a continuous range
EDM_SIGMA_DATA = 0.5
MOST_CLUSTERS = 20  # of `easy-to-hard`, where the block leaves the number open
_BELOW_ONE = np.nextafter(1.0, 0.0)


@dataclass(frozen=True, eq=False)
class Curriculum:
    """A probability of each of T states (or cells of a log-SNR range) as a function of progress.

    Between `knots[k]` and `knots[k + 1]` the distribution goes linearly from `start[k]` to
    `end[k]`. The rows of a restricted curriculum do not sum to one: their sum is the rate at which
    the whole run draws these states, and progress is counted in the images of these states.

    log_snrs [T]: the states, or the middles of the cells; strictly decreasing.
    edges [T + 1]: the cells' borders for a continuous range, else None.
    share: the part of the images of the unrestricted run that fall on these states.
    mirror: number of cells m of the antithetic map x -> |m / T - x|, else None.
    unmirrored [T]: the distribution of a pair's first member, with `mirror`.
    weights [T]: factors on the loss at each state that belong to the curriculum, else None.
    """

    log_snrs: np.ndarray
    knots: np.ndarray
    start: np.ndarray
    end: np.ndarray
    edges: np.ndarray | None = None
    share: float = 1.0
    mirror: int | None = None
    unmirrored: np.ndarray | None = None
    weights: np.ndarray | None = None
    _drawn: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rates = (self.start.sum(axis=1) + self.end.sum(axis=1)) / 2
        drawn = np.concatenate([[0.0], np.cumsum(np.diff(self.knots) * rates)])
        if not drawn[-1] > 0:
            raise UserError(
                "curriculum: no training images fall on the states with log-SNR "
                f"{self.log_snrs[0]:.4g} to {self.log_snrs[-1]:.4g}; "
                "widen the curriculum or leave these states out"
            )
        object.__setattr__(self, "_drawn", drawn)

    def __len__(self) -> int:
        return len(self.log_snrs)

    @property
    def continuous(self) -> bool:
        return self.edges is not None

    @property
    def antithetic(self) -> bool:
        """Whether `stratified` should be asked for antithetic pairs."""
        return self.mirror is not None

    def _locate(self, progress: float) -> tuple[int, float]:
        """Segment and the fraction of it that has passed once `progress` of the images is drawn."""
        if not 0.0 <= progress <= 1.0:
            raise ValueError(f"progress must lie in [0, 1], got {progress}")
        wanted = progress * self._drawn[-1]
        last = int(np.searchsorted(self._drawn, self._drawn[-1])) - 1
        k = min(int(np.searchsorted(self._drawn, wanted, side="right")) - 1, last)
        first_rate, last_rate = self.start[k].sum(), self.end[k].sum()
        drawn = (wanted - self._drawn[k]) / (self.knots[k + 1] - self.knots[k])
        # The root of first_rate * r + (last_rate - first_rate) * r^2 / 2 = drawn, free of
        # cancellation.
        root = math.sqrt(max(0.0, first_rate**2 + 2 * (last_rate - first_rate) * drawn))
        fraction = 2 * drawn / (first_rate + root) if drawn > 0 else 0.0
        return k, min(1.0, fraction)

    def probabilities(self, progress: float) -> np.ndarray:
        """Probability of each state [T] at `progress` in [0, 1] of the run's images."""
        k, fraction = self._locate(progress)
        # Where the rate of these states is zero at a knot, their distribution is its limit.
        fraction = min(max(fraction, 1e-12), 1 - 1e-12)
        row = self.start[k] + fraction * (self.end[k] - self.start[k])
        return row / row.sum()

    def average(self, start: float = 0.0, stop: float = 1.0) -> np.ndarray:
        """Expected share of the images of each state [T] between two points of progress, exact."""
        if not start < stop:
            raise ValueError(f"an average needs start < stop, got {start} and {stop}")
        (first, begin), (last, finish) = self._locate(start), self._locate(stop)
        total = np.zeros(len(self))
        for k in range(first, last + 1):
            low = begin if k == first else 0.0
            high = finish if k == last else 1.0
            change = (high**2 - low**2) / 2 * (self.end[k] - self.start[k])
            total += (self.knots[k + 1] - self.knots[k]) * ((high - low) * self.start[k] + change)
        return total / total.sum()

    def draw(self, u: np.ndarray, progress: float) -> tuple[np.ndarray, np.ndarray]:
        """States by inverse CDF: a pure function of `u` [B] in [0, 1) and `progress`.

        Returns the indices (int64 [B]) and log-SNRs (float64 [B]), the latter interpolated inside
        the cell for a continuous range. An antithetic curriculum maps u and 1 - u to a pair.
        """
        u = np.asarray(u, dtype=np.float64)
        if u.size and not (u.min() >= 0.0 and u.max() < 1.0):
            raise ValueError("draw needs u in [0, 1)")
        if self.mirror is None:
            index, inside = _invert(self.probabilities(progress), u)
        else:
            second = u >= 0.5
            folded = np.minimum(2 * np.where(second, 1 - u, u), _BELOW_ONE)
            index, inside = _invert(self.unmirrored, folded)
            position = index + (inside if self.continuous else 0.5)
            position = np.where(second, np.abs(self.mirror - position), position)
            index = np.minimum(position.astype(np.int64), len(self) - 1)
            inside = position - index
        if self.edges is None:
            return index, self.log_snrs[index]
        upper, lower = self.edges[index], self.edges[index + 1]
        return index, upper + inside * (lower - upper)

    def restrict(self, indices: Sequence[int] | np.ndarray) -> Curriculum:
        """The curriculum of an expert that owns only these of a list of states.

        The expert sees what the whole run would give to its states, in the same order: its
        progress counts its own images. Its states are numbered from 0. One state alone has no
        distribution left; the curriculum then is the budget only (`share`, `budget_shares`).
        Pairs break up: the result is not antithetic (unless nothing is left out).
        Raises UserError if the whole run draws none of these states.
        """
        indices = np.unique(_checked_indices(indices, len(self)))
        if len(indices) == len(self):
            return self
        start, end = self.start[:, indices], self.end[:, indices]
        weights = None if self.weights is None else self.weights[indices]
        part = Curriculum(self.log_snrs[indices], self.knots, start, end, weights=weights)
        total = part._drawn[-1]
        share = self.share * (total / self._drawn[-1])
        if len(indices) == 1:
            knots, one = np.array([0.0, 1.0]), np.ones((1, 1))
            return replace(part, knots=knots, start=one, end=one, share=share)
        return replace(part, start=start / total, end=end / total, share=share)


def build(
    block: params.Curriculum,
    log_snrs: np.ndarray,
    continuous: bool,
    bounds: Sequence[float] = (),
) -> Curriculum:
    """The curriculum of a block over a list of states, or over a continuous range of log-SNR.

    log_snrs: strictly decreasing, cleanest first [T]; for `continuous` the two ends [2] of the
    range, which is cut into equal cells. bounds: log-SNRs between the intervals of `per-interval`.

    The two normal laws are laws of the log-SNR. A state gets the mass of all log-SNRs to which it
    is the nearest one; a continuous range cuts the tails off.

    Raises UserError where nothing falls on the range, or an interval of `per-interval` is empty.
    """
    log_snrs = np.asarray(log_snrs, dtype=np.float64)
    if log_snrs.ndim != 1 or not len(log_snrs) or np.any(np.diff(log_snrs) >= 0):
        raise ValueError("log_snrs must be a strictly decreasing vector")
    edges = None
    if continuous:
        edges = np.linspace(*log_snrs, CELLS + 1)
        log_snrs = (edges[:-1] + edges[1:]) / 2
    options = block.arguments("correct", "partition")
    if isinstance(block, params.IntervalDensity):
        options["bounds"] = bounds
    return block.maker(Axis(log_snrs, edges), **options)


def built(
    spec: OwnCurriculum, log_snrs: Sequence[float] | np.ndarray, continuous: bool
) -> Curriculum:
    """The curriculum of a spec, over an expert's own states `log_snrs` (see `build`).

    Raises UserError if the whole run draws none of these states.
    """
    whole = build(spec.form, np.asarray(spec.axis or log_snrs), continuous, spec.bounds)
    return whole.restrict(np.arange(spec.own[0], spec.own[1] + 1)) if spec.own else whole


@dataclass(frozen=True, eq=False)
class Axis:
    """What a curriculum is made over: states, or the cells of a range (see `Curriculum`).

    x [T]: the position of each, from the clean end to the noisy one, in (0, 1).
    """

    log_snrs: np.ndarray
    edges: np.ndarray | None

    @property
    def x(self) -> np.ndarray:
        return (np.arange(len(self.log_snrs)) + 0.5) / len(self.log_snrs)

    @property
    def uniform(self) -> np.ndarray:
        return np.full(len(self.log_snrs), 1 / len(self.log_snrs))

    def curriculum(self, knots, start, end, **pairs) -> Curriculum:
        knots, start, end = np.array(knots, dtype=np.float64), np.array(start), np.array(end)
        return Curriculum(self.log_snrs, knots, start, end, self.edges, **pairs)

    def constant(self, p: np.ndarray, **pairs) -> Curriculum:
        return self.curriculum([0, 1], [p], [p], **pairs)


def uniform(axis: Axis) -> Curriculum:
    """The control."""
    return axis.constant(axis.uniform)


def adaptive(axis: Axis, **_: Any) -> Curriculum:
    """The density before anything is learnt, in which places on the time axis are even.

    The policy (`pipeline.training.adaptive`) draws these places in the stead of uniform numbers.
    """
    return uniform(axis)


def _gaussian_mixture(axis: Axis, mu: float, sigma: float, lambda_max: float) -> np.ndarray:
    exponent = -0.5 * ((axis.x - mu) / sigma) ** 2
    # Shifted by its maximum, so that a mu far outside (0, 1) cannot underflow everywhere.
    gaussian = np.exp(exponent - exponent.max())
    return (1 - lambda_max) * axis.uniform + lambda_max * gaussian / gaussian.sum()


def clts(axis: Axis, mu: float, sigma: float, end_fraction: float, lambda_max: float) -> Curriculum:
    """From uniform to lambda_max of a Gaussian in x, over the first end_fraction of the run."""
    last = _gaussian_mixture(axis, mu, sigma, lambda_max)
    if end_fraction == 1:
        return axis.curriculum([0, 1], [axis.uniform], [last])
    return axis.curriculum([0, end_fraction, 1], [axis.uniform, last], [last, last])


def static(axis: Axis, mu: float, sigma: float, lambda_max: float) -> Curriculum:
    """The end of `clts` from the first image on."""
    return axis.constant(_gaussian_mixture(axis, mu, sigma, lambda_max))


def easy_to_hard(axis: Axis, clusters: int | None, end_fraction: float) -> Curriculum:
    """Clusters of x, the noisiest first: phase n on the n noisiest, phases of equal length."""
    clusters = min(MOST_CLUSTERS, len(axis.log_snrs)) if clusters is None else clusters
    cluster = np.floor(axis.x * clusters)
    phases = [(cluster >= clusters - n).astype(np.float64) for n in range(1, clusters + 1)]
    knots = list(np.arange(clusters + 1) * (end_fraction / clusters))
    knots[-1] = 1.0
    rows = [p / p.sum() for p in phases]
    return axis.curriculum(knots, rows, rows)


def _normal_in_log_snr(axis: Axis, mean: float, std: float) -> Curriculum:
    if axis.edges is None:
        middles = (axis.log_snrs[:-1] + axis.log_snrs[1:]) / 2
        edges = np.concatenate([[np.inf], middles, [-np.inf]])
    else:
        edges = axis.edges
    z = (edges - mean) / std
    below = np.array([math.erfc(-v / math.sqrt(2)) / 2 for v in z])
    above = np.array([math.erfc(v / math.sqrt(2)) / 2 for v in z])
    mass = np.where(z[1:] > 0, np.diff(above), -np.diff(below))
    total = mass.sum()
    if not total > 0:
        raise UserError(
            "curriculum.mean leaves no probability inside the schedule's range of log-SNRs; "
            "move it there, or raise curriculum.std"
        )
    return axis.constant(mass / total)


def edm_lognormal(axis: Axis, mean: float, std: float) -> Curriculum:
    """Normal in ln sigma, for data of EDM's standard deviation (arXiv 2206.00364)."""
    # log-SNR = -2 ln(sigma / sigma_data).
    return _normal_in_log_snr(axis, -2 * (mean - math.log(EDM_SIGMA_DATA)), 2 * std)


def logit_normal(axis: Axis, mean: float, std: float) -> Curriculum:
    """Normal in logit(t), x_t = (1 - t) z + t eps (arXiv 2403.03206)."""
    # log-SNR = 2 ln((1 - t) / t) = -2 logit(t).
    return _normal_in_log_snr(axis, -2 * mean, 2 * std)


def per_interval(axis: Axis, bounds: Sequence[float], shares: Sequence[float]) -> Curriculum:
    """Each interval's share of the images, uniform inside (arXiv 2312.09181: equal shares)."""
    interval = (axis.log_snrs[:, None] < np.asarray(bounds, dtype=np.float64)).sum(axis=1)
    members = np.bincount(interval, minlength=len(shares))
    if members.min() == 0:
        raise UserError("curriculum: per-interval needs a state in every interval of its partition")
    p = (np.asarray(shares, dtype=np.float64) / members)[interval]
    return axis.constant(p / p.sum())


def speed(axis: Axis, k: float, tau: float, lam: float | None, mirror: float | None) -> Curriculum:
    """SpeeD (arXiv 2405.17403): k times as often for x < tau, in antithetic pairs x, |mirror - x|.

    Weighted below tau by how fast the noise's variance changes, from 1 - lam to lam; from there on
    by 1, as in its code. mirror: null is where d sqrt(1 - alpha_bar) / dx has fallen below 0.1, as
    in SpeeD.
    """
    states = len(axis.log_snrs)
    m = _end_of_growth(axis.log_snrs) if mirror is None else max(1, round(mirror * states))
    first = np.where(axis.x < tau, k, 1.0)
    first /= first.sum()
    index = np.arange(states)
    second = np.zeros(states)
    np.add.at(second, np.where(index < m, m - 1 - index, index - m), first)
    weights = None if lam is None else _change_aware(axis, tau, lam)
    return axis.constant((first + second) / 2, mirror=m, unmirrored=first, weights=weights)


def _change_aware(axis: Axis, tau: float, lam: float) -> np.ndarray:
    weights = np.ones(len(axis.log_snrs))
    if len(weights) == 1:
        return weights
    change = np.gradient(1 / (1 + np.exp(axis.log_snrs)))
    least, span = change.min(), np.ptp(change) or 1.0
    below = axis.x < tau
    weights[below] = 1 - lam + (2 * lam - 1) * (change[below] - least) / span
    return weights


def _end_of_growth(log_snrs: np.ndarray) -> int:
    if len(log_snrs) == 1:
        return 1
    growth = np.gradient(1 / np.sqrt(1 + np.exp(log_snrs))) * len(log_snrs)
    # sigma is flat at the clean end too, if that reaches far enough: look behind the steepest part.
    steepest = int(growth.argmax())
    flat = np.flatnonzero(growth[steepest:] < 0.1)
    return min(steepest + int(flat[0]) + 1, len(log_snrs)) if len(flat) else len(log_snrs)


def stratified(batch: int, u: np.ndarray, antithetic: bool = False) -> np.ndarray:
    """One draw in each of `batch` equal parts of [0, 1): (j + u_j) / batch.

    u [batch] uniform in [0, 1). Each value alone is uniform once j is: position j must not tell
    anything about the image. With `antithetic`, values j and batch - 1 - j sum to one (an odd
    batch keeps one value of its own in the middle) and the second half of `u` is not used.
    """
    u = np.asarray(u, dtype=np.float64)
    if u.shape != (batch,):
        raise ValueError(f"stratified needs {batch} uniform numbers, got shape {u.shape}")
    if u.size and not (u.min() >= 0.0 and u.max() < 1.0):
        raise ValueError("stratified needs u in [0, 1)")
    values = (np.arange(batch) + u) / batch
    if antithetic:
        half = batch // 2
        values[batch - half :] = 1.0 - values[:half][::-1]
    return np.minimum(values, _BELOW_ONE)


def budget_shares(
    curriculum: Curriculum, parts: Sequence[Sequence[int] | np.ndarray]
) -> np.ndarray:
    """Share of the training images of each expert [E], from the states it owns.

    For experts of one state each this is all that is left of a curriculum. Raises ValueError
    unless every state is owned by exactly one expert.
    """
    parts = [_checked_indices(part, len(curriculum)) for part in parts]
    owned = np.sort(np.concatenate(parts))
    if not np.array_equal(owned, np.arange(len(curriculum))):
        raise ValueError("every state must be owned by exactly one expert")
    average = curriculum.average()
    return np.array([average[part].sum() for part in parts])


def split_images(total: int, shares: Sequence[float] | np.ndarray) -> list[int]:
    """`total` images split by `shares` (any positive scale), largest remainder; sums to `total`."""
    shares = np.asarray(shares, dtype=np.float64)
    if total < 0 or not len(shares) or shares.min() < 0 or not 0 < shares.sum() < np.inf:
        raise ValueError("split_images needs total >= 0 and finite shares >= 0, not all zero")
    quotas = total * (shares / shares.sum())
    counts = np.floor(quotas).astype(np.int64)
    largest = np.argsort(-(quotas - counts), kind="stable")
    counts[largest[: total - int(counts.sum())]] += 1
    return [int(count) for count in counts]


def _invert(p: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices drawn by u [B] from p [T], and how far inside its part each u lies, in [0, 1)."""
    cdf = np.cumsum(p)
    cdf /= cdf[-1]
    index = np.searchsorted(cdf, u, side="right")
    below = np.where(index > 0, cdf[index - 1], 0.0)
    return index, (u - below) / (cdf[index] - below)


def _checked_indices(indices: Sequence[int] | np.ndarray, states: int) -> np.ndarray:
    indices = np.asarray(indices)
    whole = indices.ndim == 1 and np.issubdtype(indices.dtype, np.integer)
    if not whole or not len(indices) or indices.min() < 0 or indices.max() >= states:
        raise ValueError(f"expected a non-empty list of indices below {states}, got {indices}")
    return indices
