"""How much two models agree on the same noise, and whether they only repeat the training images.

The consistency of A and B is C = 1 - E|A(z) - B(z)|^2 / E|A(z) - B(z')|^2 for independent noises z
and z': 1 for identical outputs, 0 for unrelated ones (for zero-mean outputs of equal variance, the
correlation of A(z) and B(z)). Compare runs with the same sampler, steps, averaging and pairing,
but never the same initial weights or order of the data.

Two models that memorise also agree, so report `nearest_neighbours` or `generalisation` beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A value with its confidence interval."""

    value: float
    low: float
    high: float


def consistency(
    a: np.ndarray, b: np.ndarray, *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """C of outputs `a` and `b` [N, ...], row i of both from the same noise; N >= 2.

    The denominator is the mean over all N (N - 1) pairs of different rows, in O(N d): the average
    over every permutation without fixed points, so that no single one adds its noise. The interval
    is a percentile bootstrap over the noises, fixed by `seed`.
    Raises ValueError for differing shapes, non-finite values, or if all outputs are equal.
    """
    a, b = _rows(a), _rows(b)
    if a.shape != b.shape or len(a) < 2:
        raise ValueError(f"consistency needs two equal shapes of >= 2 rows: {a.shape}, {b.shape}")
    # The common mean cancels in every difference; without it less is lost to rounding.
    middle = (a.mean(axis=0) + b.mean(axis=0)) / 2
    a, b = a - middle, b - middle
    n = len(a)
    same = _squares(a - b)
    # Each row's mean squared distance to all other rows of the other model.
    a_to_b = n * _squares(a) + _squares(b).sum() - 2 * a @ b.sum(axis=0)
    b_to_a = n * _squares(b) + _squares(a).sum() - 2 * b @ a.sum(axis=0)
    other = ((a_to_b + b_to_a) / 2 - same) / (n - 1)
    mean_other = other.mean()
    if not mean_other > 0:
        raise ValueError("consistency is undefined: all outputs are equal")
    value = 1 - same.mean() / mean_other
    # A mean over pairs varies twice as much as the mean of its rows' averages (its first-order
    # Hoeffding projection), and so must what is resampled.
    other = 2 * other - mean_other
    rng = np.random.Generator(np.random.Philox(seed))
    draws = np.empty(resamples)
    for r in range(resamples):
        rows = rng.integers(0, n, n)
        draws[r] = 1 - same[rows].mean() / other[rows].mean()
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(value), float(low), float(high))


def consistency_by_state(
    denoise_a: Callable[..., Any],
    denoise_b: Callable[..., Any],
    images: Any,
    noise: Any,
    log_snrs: Sequence[float] | np.ndarray,
    *,
    batch: int = 256,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Estimate]:
    """C of two denoisers' clean-image estimates at each state, on the same noisy images.

    images, noise: torch tensors [N, C, H, W] on one device; the noisy image of a state is
    alpha * images + sigma * noise. Where the curve drops, the two models part.
    """
    import torch

    estimates = []
    with torch.no_grad():
        for log_snr in map(float, log_snrs):
            alpha = math.sqrt(_sigmoid(log_snr))
            sigma = math.sqrt(_sigmoid(-log_snr))
            outputs: tuple[list, list] = ([], [])
            for z, eps in zip(images.split(batch), noise.split(batch), strict=True):
                x = alpha * z + sigma * eps
                for denoise, out in zip((denoise_a, denoise_b), outputs, strict=True):
                    out.append(denoise(x, log_snr).float().cpu())
            a, b = (torch.cat(out).numpy() for out in outputs)
            estimates.append(consistency(a, b, level=level, resamples=resamples, seed=seed))
    return estimates


def reproducibility(
    a: np.ndarray, b: np.ndarray, threshold: float = 0.6, *, level: float = 0.95
) -> Estimate:
    """Share of pairs whose features [N, d] have a cosine similarity above `threshold`.

    The RP score of Zhang et al. 2024 (arXiv 2310.05264), there with SSCD features and 0.6; another
    extractor needs another threshold. With the Wilson score interval.
    """
    a, b = _unit_rows(a), _unit_rows(b)
    if a.shape != b.shape:
        raise ValueError(f"features must have one shape, got {a.shape} and {b.shape}")
    return _share((a * b).sum(axis=1) > threshold, level)


def generalisation(
    features: np.ndarray,
    training_features: np.ndarray,
    threshold: float = 0.6,
    *,
    level: float = 0.95,
    block: int = 1024,
) -> Estimate:
    """Share of samples not similar to any training image: the GL score beside `reproducibility`.

    features [N, d], training_features [M, d]; a sample repeats an image if the cosine similarity
    of their features exceeds `threshold`.
    """
    distances, _ = nearest_neighbours(
        _unit_rows(features), _unit_rows(training_features), block=block
    )
    return _share(1 - distances**2 / 2 <= threshold, level)


def nearest_neighbours(
    samples: np.ndarray, training: np.ndarray, *, block: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """Euclidean distance [N] of each sample to its nearest training image, and its row (int64 [N]).

    samples [N, ...], training [M, ...]. Exact, in float64, `block` x `block` distances at a time;
    the distance returned is that of the difference, so that a copy is at distance zero.
    """
    samples, training = np.asarray(samples), np.asarray(training)
    if samples.shape[1:] != training.shape[1:] or not len(training):
        raise ValueError(f"cannot compare rows of shapes {samples.shape} and {training.shape}")
    # |s - t|^2 = |s|^2 + |t|^2 - 2 s.t loses least to rounding around the common mean.
    middle = training.mean(axis=0, dtype=np.float64).reshape(-1)
    distances = np.empty(len(samples))
    nearest = np.empty(len(samples), dtype=np.int64)
    for first in range(0, len(samples), block):
        s = _rows(samples[first : first + block])
        least = np.full(len(s), np.inf)
        row = np.zeros(len(s), dtype=np.int64)
        for offset in range(0, len(training), block):
            t = _rows(training[offset : offset + block]) - middle
            squared = _squares(t) - 2 * (s - middle) @ t.T
            here = squared.argmin(axis=1)
            values = squared[np.arange(len(s)), here]
            closer = values < least
            least = np.where(closer, values, least)
            row = np.where(closer, here + offset, row)
        nearest[first : first + block] = row
        distances[first : first + block] = np.sqrt(_squares(s - _rows(training[row])))
    return distances, nearest


def _share(hits: np.ndarray, level: float) -> Estimate:
    from scipy.stats import norm

    n, p = len(hits), float(hits.mean())
    z = float(norm.ppf((1 + level) / 2))
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half))


def _rows(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim < 2 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"expected finite values [N, ...], got shape {values.shape}")
    return values.reshape(len(values), -1)


def _unit_rows(features: np.ndarray) -> np.ndarray:
    features = _rows(features)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    if not norms.all():
        raise ValueError("a feature vector of zeros has no direction")
    return features / norms


def _squares(rows: np.ndarray) -> np.ndarray:
    return np.einsum("nd,nd->n", rows, rows)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
