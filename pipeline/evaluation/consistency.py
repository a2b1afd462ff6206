"""How much two models agree on the same noise, and whether they only repeat the training images.

The consistency of A and B is C = 1 - E|A(z) - B(z)|^2 / E|A(z) - B(z')|^2 for independent noises z
and z': 1 for identical outputs, 0 for unrelated ones (for zero-mean outputs of equal variance, the
correlation of A(z) and B(z)). Compare runs with the same sampler, steps, averaging and pairing,
but never the same initial weights or order of the data.

Two models that memorise also agree, so report `nearest_neighbours` beside it. `compare` does all of
this for two models' `Outputs`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pipeline.noise import philox
from pipeline.rows import spread

COMPARED = 10_000  # real images whose similarity is what unrelated images have, at most
UNRELATED = 0.99  # quantile of unrelated images' similarity above which two images are alike
COPIES = 0.05  # quantile of real images' distances below which a sample may be a copy


class Estimate(NamedTuple):
    """A value with its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Outputs:
    """What a model answers to noises 0 .. N - 1, and to noisy images made of them.

    images: its samples, uint8 [N, C, H, W]; features: theirs, [N, d]; nearest: each one's distance
    to the nearest training image [N], a root mean square per pixel; estimates: by log-SNR, its
    estimates of the clean image [N, ...].
    """

    images: np.ndarray
    features: np.ndarray
    nearest: np.ndarray
    estimates: Mapping[float, np.ndarray]


def compare(
    a: Outputs,
    b: Outputs,
    log_snrs: Sequence[float],
    real_features: np.ndarray,
    real_nearest: np.ndarray,
    *,
    real_labels: np.ndarray | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    similarity: float | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """How alike two models' outputs are, as plain data.

    log_snrs: where estimates are compared, if both models have them (else the level is `skipped`).
    real_features [M, d]: of the training images (a fair sample of `COMPARED`, by `real_labels` [M],
    is used); real_nearest: distances of some of them to the
    nearest other one. similarity: cosine above which two images count as alike; None for the one
    that 1 % of the pairs of different training images exceed.

    * `overall`: C of the samples; `null`: the same with every sample given another's partner;
    * `by_state`: C of the estimates of the clean image from the same noisy images;
    * `features`: share of the pairs that are alike, by the cosine of their features around the
      training images' mean, and the same with the partners of `null`;
    * `nearest`: distances of both models' samples to the training images, with the share that is
      `closer` than all but 5 % of the training images are to each other.

    Raises ValueError if all samples, or all estimates at one level, are equal.
    """
    options = {"level": level, "resamples": resamples, "seed": seed}
    others = _other_partners(len(a.images), philox.derive_key(seed, "consistency partners"))
    shared = [v for v in log_snrs if v in a.estimates and v in b.estimates]
    curve = [consistency(a.estimates[v], b.estimates[v], **options) for v in shared]
    known = len(real_features)
    real_features = real_features[spread(min(known, COMPARED), known, real_labels)]
    centre = real_features.mean(axis=0, dtype=np.float64)
    if similarity is None:
        similarity = unrelated_similarity(real_features - centre, seed=seed)
    ours, theirs = a.features - centre, b.features - centre
    alike = reproducibility(ours, theirs, similarity, level=level)
    by_chance = reproducibility(ours, theirs[others], similarity, level=level)
    return {
        "overall": consistency(a.images, b.images, **options)._asdict(),
        "null": consistency(a.images, b.images[others], **options)._asdict(),
        "by_state": {
            "log_snr": shared,
            **{key: [getattr(e, key) for e in curve] for key in Estimate._fields},
            "skipped": [v for v in log_snrs if v not in shared],
        },
        "features": {
            **alike._asdict(),
            "null": by_chance.value,
            "similarity": similarity,
        },
        "nearest": {
            "a": _distances(a.nearest, real_nearest),
            "b": _distances(b.nearest, real_nearest),
            "real": _distances(real_nearest, real_nearest),
        },
    }


def _other_partners(n: int, key: int) -> np.ndarray:
    """A random permutation of range(n) that is one cycle, so that no row keeps its own place."""
    order = philox.permutation(key, 0, n)
    partners = np.empty(n, np.int64)
    partners[order] = np.roll(order, 1)
    return partners


def _distances(distances: np.ndarray, real: np.ndarray) -> dict[str, float]:
    closer = distances < np.quantile(real, COPIES)
    return {"median": float(np.median(distances)), "closer": float(closer.mean())}


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


def clean_estimates(
    denoise: Callable[..., Any],
    images: Any,
    eps: Any,
    log_snrs: Sequence[float],
) -> np.ndarray:
    """A denoiser's estimates of the clean image at each state, float32 [len(log_snrs), N, ...].

    images, eps: torch tensors [N, ...] on one device; the noisy image of a state is
    alpha * images + sigma * eps. Where C of two models' estimates drops, the models part.
    """
    out = np.empty((len(log_snrs), *images.shape), np.float32)
    for i, log_snr in enumerate(map(float, log_snrs)):
        alpha, sigma = math.sqrt(_sigmoid(log_snr)), math.sqrt(_sigmoid(-log_snr))
        out[i] = denoise(alpha * images + sigma * eps, log_snr).detach().float().cpu().numpy()
    return out


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


def unrelated_similarity(
    features: np.ndarray, quantile: float = UNRELATED, *, pairs: int = 100_000, seed: int = 0
) -> float:
    """This quantile of the cosine similarity of features [M, d] of different images, M >= 2.

    Over about `pairs` pairs, fixed by `seed`. With features around their mean it makes a threshold
    for `reproducibility` that suits any extractor.
    """
    features = _unit_rows(features)
    n = len(features)
    rounds = min(max(1, pairs // n), n - 1)
    key = philox.derive_key(seed, "unrelated images")
    # Steps along one random cycle: never a row with itself, nor a pair twice in one direction.
    order = philox.permutation(key, 0, n)[: max(2, pairs)]
    found = [
        np.einsum("nd,nd->n", features[order], features[np.roll(order, step)])
        for step in range(1, rounds + 1)
    ]
    return float(np.quantile(found, quantile))


def nearest_neighbours(
    samples: np.ndarray,
    training: np.ndarray,
    *,
    own: np.ndarray | None = None,
    block: int = 1024,
) -> tuple[np.ndarray, np.ndarray]:
    """Euclidean distance [N] of each sample to its nearest training image, and its row (int64 [N]).

    samples [N, ...], training [M, ...]. Exact, in float64, `block` x `block` distances at a time;
    the distance returned is that of the difference, so that a copy is at distance zero.
    own: int64 [N], the row of `training` that each sample itself is, which is passed over; -1 for
    none. The distance to nothing is infinite.
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
            if own is not None:
                itself = own[first : first + block] - offset
                here = np.flatnonzero((itself >= 0) & (itself < len(t)))
                squared[here, itself[here]] = np.inf
            here = squared.argmin(axis=1)
            values = squared[np.arange(len(s)), here]
            closer = values < least
            least = np.where(closer, values, least)
            row = np.where(closer, here + offset, row)
        nearest[first : first + block] = row
        exact = np.sqrt(_squares(s - _rows(training[row])))
        distances[first : first + block] = np.where(np.isinf(least), np.inf, exact)
    return distances, nearest


def nearest_training(
    samples: np.ndarray, images: Any, searched: int, mirrored: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Distances [N] of samples to the nearest training image, and of as many of these to another.

    samples: uint8 [N, C, H, W]; images: the training images, a `split.Split`, of which a fair
    sample of `searched` is looked at, with `mirrored` also mirrored. See `nearest_of_blocks`.
    """
    rows = images.some(searched)
    among = spread(min(len(samples), searched), searched, images.labels_of(rows))

    def blocks() -> Iterable[tuple[np.ndarray, np.ndarray]]:
        for which, found in images.chosen(rows):
            yield which, found
            if mirrored:
                yield which, found[..., ::-1]

    real = np.concatenate([found for _, found in images.chosen(rows[among])])
    own = np.concatenate([np.full(len(samples), -1), rows[among]])
    distances = nearest_of_blocks(np.concatenate([samples, real]), blocks(), own)
    return distances[: len(samples)], distances[len(samples) :]


def estimates(
    mixture: Any,
    latents: Any,
    count: int,
    trained: int,
    log_snrs: Sequence[float],
    *,
    seed: int,
    batch: int,
) -> np.ndarray:
    """`clean_estimates` of a `mixture.Mixture`, of noises 0 .. `count` - 1 and as many images.

    Those are a fair sample of the first `trained` rows of `latents`, the same for every mixture.
    """
    import torch

    known = latents.labels
    rows = spread(count, trained, None if known is None else known[:trained])
    labels = None
    if mixture.description["classes"]:
        labels = torch.as_tensor(known[rows], device=mixture.device)
    ids = torch.arange(count, device=mixture.device)
    return clean_estimates(
        mixture.denoiser(labels, batch=batch),
        latents.gather(rows),
        philox.normal(philox.derive_key(seed, "consistency"), 0, ids, latents.shape),
        log_snrs,
    )


def nearest_of_blocks(
    samples: np.ndarray,
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
    own: np.ndarray,
) -> np.ndarray:
    """Root mean square difference per pixel [N] of each sample to its nearest training image.

    samples [N, ...]; blocks: pairs of training images' rows (int64 [m], ascending) and the images
    [m, ...], so that not all need be in memory; a row may come more than once, e.g. mirrored.
    own: the row that each sample itself is, which is passed over; -1 for none.
    """
    nearest = np.full(len(samples), np.inf)
    for rows, images in blocks:
        place = np.searchsorted(rows, own)
        here = (place < len(rows)) & (rows[np.minimum(place, len(rows) - 1)] == own)
        distances, _ = nearest_neighbours(samples, images, own=np.where(here, place, -1))
        nearest = np.minimum(nearest, distances)
    return nearest / math.sqrt(math.prod(samples.shape[1:]))


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
