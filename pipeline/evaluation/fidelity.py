"""How close two sets of images are beyond their Frechet distance, from features of both.

Features are float arrays [n, d] of an extractor (`evaluation.features`). All sums are float64, all
draws come from an explicit seed.

A score is only comparable with another one at the same extractor, the same reference and the same
numbers of images: the Frechet distance of N images is biased upwards by about c / N, precision and
recall depend on the density of the sets. So every result carries the number of images on both
sides; put them beside the score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pipeline.errors import UserError
from pipeline.evaluation.frechet import blocks, checked, generator

# Distances and kernels between two sets are used up while they are in the processor's cache.
_CACHE_BYTES = 2 * 2**20

Result = TypeVar("Result")


@dataclass(frozen=True)
class KernelDistance:
    """Mean and standard deviation of the estimate over the subsets."""

    mean: float
    std: float
    subsets: int
    subset_size: int
    reference_samples: int
    samples: int


def kernel_distance(
    reference: np.ndarray,
    generated: np.ndarray,
    *,
    seed: int,
    subsets: int = 100,
    subset_size: int = 1000,
) -> KernelDistance:
    """Squared maximum mean discrepancy with the kernel (x.y / d + 1)^3: with Inception features,
    the KID (Binkowski et al. 2018).

    Unbiased at any number of samples (so it can be below 0), by the U-statistic over `subsets`
    random subsets of `subset_size` of each set [n, d].

    Raises:
        UserError: fewer than `subset_size` samples in a set, or NaN or infinity among them.
    """
    reference, generated = _checked_pair(reference, generated)
    smaller = min(len(reference), len(generated))
    if not 2 <= subset_size <= smaller:
        raise UserError(
            f"kernel distance: subset_size={subset_size} must be from 2 to {smaller}, "
            "the size of the smaller set"
        )
    if subsets < 1:
        raise UserError(f"kernel distance: subsets={subsets} must be at least 1")
    random = generator(seed)
    estimates = np.empty(subsets)
    for index in range(subsets):
        x = reference[random.permutation(len(reference))[:subset_size]]
        y = generated[random.permutation(len(generated))[:subset_size]]
        pairs = subset_size * (subset_size - 1)
        within = _kernel_sum(x, x) - _kernel_diagonal(x) + _kernel_sum(y, y) - _kernel_diagonal(y)
        estimates[index] = within / pairs - 2 * _kernel_sum(x, y) / subset_size**2
    return KernelDistance(
        mean=float(estimates.mean()),
        std=float(estimates.std()),
        subsets=subsets,
        subset_size=subset_size,
        reference_samples=len(reference),
        samples=len(generated),
    )


def _kernel_sum(x: np.ndarray, y: np.ndarray) -> float:
    # A column of ones puts the + 1 into the product, which saves a pass over the kernel.
    left = np.column_stack([x / x.shape[1], np.ones(len(x))])
    right = np.column_stack([y, np.ones(len(y))]).T
    total = 0.0
    for kernel, _ in _products(left, right):
        total += np.vdot(kernel * kernel, kernel)
    return total


def _kernel_diagonal(x: np.ndarray) -> float:
    return np.sum((np.sum(x * x, axis=1) / x.shape[1] + 1) ** 3)


@dataclass(frozen=True)
class ManifoldScores:
    """All from 0 to 1, but density, which averages 1 for equal distributions and can be above."""

    precision: float
    recall: float
    density: float
    coverage: float
    neighbours: int
    reference_samples: int
    samples: int


def manifold_scores(
    reference: np.ndarray, generated: np.ndarray, *, neighbours: int = 3
) -> ManifoldScores:
    """Fidelity and diversity from the nearest neighbours in feature space, Euclidean.

    Each point has a ball that reaches to its `neighbours`-th nearest other point of its own set.
    precision: share of the generated points within any real ball; recall: share of the real points
    within any generated ball (Kynkaanniemi et al. 2019). density: number of real balls around a
    generated point, on average, over `neighbours`; coverage: share of the real balls that hold a
    generated point (Naeem et al. 2020).

    A generator that repeats the training set scores well on all four: these are not tests of
    memorisation.

    Raises:
        UserError: not more than `neighbours` samples in a set, or NaN or infinity among them.
    """
    reference, generated = _checked_pair(reference, generated)
    smaller = min(len(reference), len(generated))
    if not 1 <= neighbours < smaller:
        raise UserError(
            f"precision and recall: neighbours={neighbours} must be from 1 to {smaller - 1}"
        )
    # Distances do not depend on the origin, their rounding errors do.
    origin = reference.mean(axis=0)
    real, fake = reference - origin, generated - origin
    # Rounding errors of |x|^2 + |y|^2 - 2 x.y, so that copies count as touching.
    slack = 1e-12 * max(np.sum(real**2, axis=1).max(), np.sum(fake**2, axis=1).max())
    real_reach = _neighbour_distances(real, neighbours) + slack
    fake_reach = _neighbour_distances(fake, neighbours) + slack
    balls = 0
    covered = np.zeros(len(real), dtype=bool)
    recalled = np.zeros(len(real), dtype=bool)
    precise = np.zeros(len(fake), dtype=bool)
    for distances, rows in _products(*_distance_factors(real, fake)):
        in_real = distances <= real_reach[rows, None]
        balls += np.count_nonzero(in_real)
        covered[rows] = in_real.any(axis=1)
        precise |= in_real.any(axis=0)
        recalled[rows] = (distances <= fake_reach).any(axis=1)
    return ManifoldScores(
        precision=float(precise.mean()),
        recall=float(recalled.mean()),
        density=float(balls / (neighbours * len(fake))),
        coverage=float(covered.mean()),
        neighbours=neighbours,
        reference_samples=len(reference),
        samples=len(generated),
    )


def _neighbour_distances(x: np.ndarray, neighbours: int) -> np.ndarray:
    """Squared distance of each row to its `neighbours`-th nearest other row."""
    result = np.empty(len(x))
    for distances, rows in _products(*_distance_factors(x, x)):
        own = np.arange(rows.start, rows.stop)
        distances[own - rows.start, own] = np.inf
        distances.partition(neighbours - 1, axis=1)
        result[rows] = distances[:, neighbours - 1]
    return result


def _distance_factors(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[n, d + 2] and [d + 2, m], whose product is the squared distances |x|^2 + |y|^2 - 2 x.y."""
    ones = np.ones((len(x), 1)), np.ones((len(y), 1))
    left = np.hstack([x, np.sum(x * x, axis=1, keepdims=True), ones[0]])
    right = np.hstack([-2 * y, ones[1], np.sum(y * y, axis=1, keepdims=True)])
    return left, np.ascontiguousarray(right.T)


def per_class(
    score: Callable[[np.ndarray, np.ndarray], Result],
    reference: np.ndarray,
    reference_labels: np.ndarray,
    generated: np.ndarray,
    generated_labels: np.ndarray,
) -> dict[int, Result]:
    """`score(reference, generated)` of each class that the reference has, in the order of labels.

    There may be no generated features of a class.

    Raises:
        ValueError: not one label for each sample.
    """
    if len(reference) != len(reference_labels) or len(generated) != len(generated_labels):
        raise ValueError("features and labels differ in number")
    return {
        label: score(reference[reference_labels == label], generated[generated_labels == label])
        for label in np.unique(reference_labels).tolist()
    }


def _products(left: np.ndarray, right: np.ndarray) -> Iterator[tuple[np.ndarray, slice]]:
    """`left @ right` in blocks of rows, each with its rows and gone when the next one is asked for.

    They share one array, as giving such arrays back and asking for them again takes as long as
    filling them.
    """
    parts = blocks(len(left), right.shape[1], _CACHE_BYTES)
    space = np.empty((parts[0].stop, right.shape[1]))
    for rows in parts:
        yield np.matmul(left[rows], right, out=space[: rows.stop - rows.start]), rows


def _checked_pair(reference: np.ndarray, generated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    reference = checked(reference, "reference features")
    generated = checked(generated, "generated features")
    if reference.shape[1] != generated.shape[1]:
        raise ValueError(f"dimensions differ: {reference.shape[1]} and {generated.shape[1]}")
    return reference, generated
