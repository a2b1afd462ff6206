"""Gaussians fitted to features, and the Frechet distance between two of them (FID).

Features are float arrays [n, d] of an extractor (`evaluation.features`). All sums are float64, all
draws come from an explicit seed. The distance of N images is biased upwards by about c / N, so it
is only comparable at the same extractor, reference and numbers of images: every result carries
these numbers.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy.linalg import lapack

from pipeline.errors import UserError, one_line
from pipeline.store.files import replacing
from pipeline.store.identity import canonical_json

# Features are summed in blocks of rows of about this size.
_BLOCK_BYTES = 128 * 2**20


@dataclass(frozen=True, eq=False)
class Moments:
    """Gaussian fitted to a set of `count` features, 0 if it is not known of how many.

    `root` [d, r], r = rank, is any matrix with `root @ root.T` = unbiased covariance; it is
    computed once, so one reference serves any number of distances.
    """

    count: int
    mean: np.ndarray
    root: np.ndarray
    extractor: str = ""

    @property
    def dimension(self) -> int:
        return len(self.mean)

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance [d, d]."""
        return self.root @ self.root.T

    def save(self, path: str | Path) -> None:
        """Writes mean, covariance (for other tools) and root as safetensors, float64.

        The same moments give the same bytes.
        """
        path = Path(path)
        tensors = {"mean": self.mean, "covariance": self.covariance, "root": self.root}
        tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
        about = {"count": self.count, "extractor": self.extractor, "checksum": _checksum(tensors)}
        with replacing(path) as temporary:
            # One key only: the order of several is not fixed.
            save_file(tensors, temporary, metadata={"tspace": canonical_json(about)})

    @classmethod
    def load(cls, path: str | Path) -> Moments:
        """Reads what `save` wrote, to the bit.

        Raises:
            UserError: the file is missing, damaged, or not one of these.
        """
        try:
            with safe_open(path, framework="np") as file:
                about = json.loads(file.metadata()["tspace"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if _checksum(tensors) != about["checksum"]:
                raise ValueError("its checksum does not match")
            return cls(about["count"], tensors["mean"], tensors["root"], about["extractor"])
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; recompute the feature moments") from None
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise UserError(
                f"{path}: not feature moments, or damaged ({error}); delete and recompute it"
            ) from error


def published(path: Path, extractor: str) -> Moments:
    """Statistics that others computed: an .npz with mu [d] and sigma [d, d], as most codes of FID
    write it. extractor: the digest of the one that they are taken to be of.

    Raises:
        UserError: the file is missing, damaged, or not one of these.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            mean, covariance = (np.asarray(file[key], np.float64) for key in ("mu", "sigma"))
        square = mean.ndim == 1 and covariance.shape == (len(mean), len(mean))
        if not square:
            raise ValueError(f"mu has shape {list(mean.shape)}, sigma {list(covariance.shape)}")
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise ValueError("a number in it is not finite")
        if not np.allclose(covariance, covariance.T, rtol=1e-3, atol=1e-6 * np.ptp(covariance)):
            raise ValueError("sigma is not symmetric")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, KeyError, ValueError, AttributeError, BadZipFile) as error:
        raise UserError(
            f"{path}: not statistics of features, an .npz with mu [d] and sigma [d, d] "
            f"({one_line(error)})"
        ) from error
    return Moments(0, mean, _root(covariance, len(mean) + 1), extractor)


class FeatureStatistics:
    """Count, mean and scatter (sum of outer products about the mean) of features seen in batches.

    Updated by the pairwise formula of Chan, Golub and LeVeque (1983), which unlike plain sums of x
    and x x^T does not cancel when the mean is large against the spread. `extractor` is the digest
    of what made the features: statistics of different extractors never mix.
    """

    def __init__(self, dimension: int, extractor: str = "") -> None:
        self.count = 0
        self.mean = np.zeros(dimension)
        self.scatter = np.zeros((dimension, dimension))
        self.extractor = extractor

    @property
    def dimension(self) -> int:
        return len(self.mean)

    def add(self, features: np.ndarray) -> None:
        """Adds a batch of features [n, d].

        Raises:
            UserError: NaN or infinity among them.
            ValueError: another dimension.
        """
        if features.ndim != 2 or features.shape[1] != self.dimension:
            raise ValueError(f"features must be [n, {self.dimension}], not {list(features.shape)}")
        for rows in blocks(len(features), self.dimension, _BLOCK_BYTES):
            block = checked(features[rows], "features")
            mean = block.mean(axis=0)
            centred = block - mean
            self._combine(len(block), mean, centred.T @ centred)

    def merge(self, other: FeatureStatistics) -> None:
        """Adds everything that `other` has seen.

        Raises:
            UserError: `other` is of another extractor.
            ValueError: another dimension.
        """
        _require_same_extractor(self.extractor, other.extractor)
        if other.dimension != self.dimension:
            raise ValueError(f"statistics of {other.dimension} features, not {self.dimension}")
        if other.count:
            self._combine(other.count, other.mean, other.scatter)

    def _combine(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        total = self.count + count
        step = mean - self.mean
        self.scatter += scatter
        self.scatter += np.outer(step * (self.count * count / total), step)
        self.mean += step * (count / total)
        self.count = total

    def finish(self) -> Moments:
        """Mean and (a root of the) unbiased covariance of all features seen.

        Raises:
            UserError: fewer than 2 samples.
        """
        _require_two(self.count)
        covariance = self.scatter / (self.count - 1)
        return Moments(self.count, self.mean.copy(), _root(covariance, self.count), self.extractor)


def moments(features: np.ndarray, extractor: str = "") -> Moments:
    """Gaussian fitted to features [n, d] held in memory.

    With n <= d the centred features themselves are the root, which is more precise than a root of
    their covariance.

    Raises:
        UserError: fewer than 2 samples, or NaN or infinity among them.
    """
    count, dimension = features.shape
    if count > dimension:
        statistics = FeatureStatistics(dimension, extractor)
        statistics.add(features)
        return statistics.finish()
    _require_two(count)
    features = checked(features, "features")
    mean = features.mean(axis=0)
    return Moments(count, mean, (features - mean).T / np.sqrt(count - 1), extractor)


@dataclass(frozen=True)
class FrechetDistance:
    """`value` = `mean_term` + `covariance_term`, and what it was measured on."""

    value: float
    mean_term: float
    covariance_term: float
    reference_samples: int
    samples: int
    dimension: int


def frechet_distance(
    reference: Moments, generated: Moments, *, allow_few: bool = False
) -> FrechetDistance:
    """Squared Frechet (2-Wasserstein) distance of two Gaussians; with Inception features, the FID
    (Heusel et al. 2017).

    |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2). With S = R R^T the last trace is the sum of
    the singular values of R1^T R2, so no matrix root of a product is needed: they are the roots of
    the eigenvalues of its Gram matrix, which is symmetric; or, where a set has no more samples than
    dimensions and these eigenvalues would lose half of the digits, its singular values themselves.

    Raises:
        UserError: a set has no more samples than dimensions, unless `allow_few`; different
            extractors.
        ValueError: different dimensions.
    """
    _require_same_extractor(reference.extractor, generated.extractor)
    if reference.dimension != generated.dimension:
        raise ValueError(f"dimensions differ: {reference.dimension} and {generated.dimension}")
    few = min(reference.count, generated.count) <= reference.dimension
    if few and not allow_few:
        raise UserError(
            f"Frechet distance of {generated.count} generated and {reference.count} reference "
            f"images in {reference.dimension} dimensions: the covariance is singular and the score "
            f"mostly bias; use more than {reference.dimension} of each, or a smaller extractor"
        )
    cross = reference.root.T @ generated.root
    if few:
        overlap = np.linalg.svd(cross, compute_uv=False).sum()
    else:
        gram = cross.T @ cross if cross.shape[0] >= cross.shape[1] else cross @ cross.T
        overlap = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0)).sum()
    mean_term = float(np.sum((reference.mean - generated.mean) ** 2))
    variances = np.sum(reference.root**2) + np.sum(generated.root**2)
    covariance_term = max(float(variances - 2 * overlap), 0.0)
    return FrechetDistance(
        value=mean_term + covariance_term,
        mean_term=mean_term,
        covariance_term=covariance_term,
        reference_samples=reference.count,
        samples=generated.count,
        dimension=reference.dimension,
    )


def half_split_bias(
    features: np.ndarray,
    *,
    seed: int,
    samples: int | None = None,
    against: int | None = None,
    allow_few: bool = False,
) -> FrechetDistance:
    """Frechet distance of `samples` real images (default: half) to `against` others (as many).

    Two disjoint random sets: the true value is 0, so this is what a perfect generator scores at
    these numbers of images.

    Raises:
        UserError: fewer than `samples` + `against` features, or as `frechet_distance`.
    """
    samples = len(features) // 2 if samples is None else samples
    against = samples if against is None else against
    if samples + against > len(features):
        raise UserError(
            f"two disjoint sets of {samples} and {against} need {samples + against} real images, "
            f"there are {len(features)}"
        )
    rows = generator(seed).permutation(len(features))
    first, second = features[rows[:samples]], features[rows[samples : samples + against]]
    return frechet_distance(moments(second), moments(first), allow_few=allow_few)


@dataclass(frozen=True)
class Extrapolation:
    """Line `value + slope / N` through the mean Frechet distances `values` of `sizes` generated
    images each; `error` is the standard error of `value`."""

    value: float
    error: float
    slope: float
    sizes: tuple[int, ...]
    values: tuple[float, ...]
    reference_samples: int


def frechet_extrapolated(
    reference: Moments,
    generated: np.ndarray,
    *,
    seed: int,
    points: int = 10,
    smallest: int | None = None,
    allow_few: bool = False,
) -> Extrapolation:
    """Frechet distance extrapolated to infinitely many generated images (Chong and Forsyth 2020,
    "FID infinity").

    Fits a line in 1 / N to the distances at N = n, n / 2, n / 3, ... (at most `points` of them, no
    smaller than `smallest`, by default 4 d), each of them the mean over a random cut of `generated`
    [n, d] into that many disjoint sets. Unlike with single subsets, as in the paper, all images
    have the same weight in every mean: no noise is added by the choice of subsets, and to first
    order the result moves with the images as the distance of all of them does. That gives its
    standard error (see `frechet_interval`). What the reference's own size adds to the score stays
    in it.

    Raises:
        UserError: fewer than 2 `smallest` images.
    """
    generated = checked(generated, "generated features")
    count, dimension = generated.shape
    smallest = 4 * dimension if smallest is None else smallest
    if count < 2 * smallest:
        raise UserError(
            f"extrapolating the Frechet distance needs at least {2 * smallest} generated images, "
            f"there are {count}"
        )
    random = generator(seed)
    sizes, values = [], []
    for parts in range(1, min(points, count // smallest) + 1):
        size = count // parts
        rows = random.permutation(count)[: size * parts].reshape(parts, size)
        fitted = [moments(generated[part], reference.extractor) for part in rows]
        found = [frechet_distance(reference, each, allow_few=allow_few).value for each in fitted]
        sizes.append(size)
        values.append(float(np.mean(found)))
    slope, value = np.polyfit(1 / np.array(sizes), values, 1)
    contribution = _contributions(reference, moments(generated, reference.extractor), generated)
    return Extrapolation(
        value=float(value),
        error=float(contribution.std() / np.sqrt(count)),
        slope=float(slope),
        sizes=tuple(sizes),
        values=tuple(values),
        reference_samples=reference.count,
    )


@dataclass(frozen=True)
class Interval:
    """Confidence interval from `low` to `high` around `value`."""

    value: float
    low: float
    high: float
    confidence: float
    samples: int


def frechet_interval(
    reference: Moments,
    generated: np.ndarray,
    *,
    seed: int,
    resamples: int = 1000,
    confidence: float = 0.95,
    allow_few: bool = False,
) -> Interval:
    """Percentile bootstrap interval of the Frechet distance of `generated` [n, d], the reference
    held fixed.

    Resampling images and refitting would add a second bias of about c / n to every resampled score,
    and n d^2 operations each. Instead the distance is expanded to first order in the weights of the
    images: image x contributes 2 (m2 - m1).(x - m2) + (x - m2)^T (1 - T) (x - m2), where T is the
    optimal transport map of the generated Gaussian to the reference, and only the mean contribution
    is resampled. The interval tells how much the score would move with other images of the same
    number; it says nothing about its bias. Where that bias is most of the score, it is too wide
    rather than too narrow.

    Raises:
        UserError: as `frechet_distance`; NaN or infinity in the features.
    """
    generated = checked(generated, "generated features")
    fitted = moments(generated, reference.extractor)
    value = frechet_distance(reference, fitted, allow_few=allow_few).value
    contribution = _contributions(reference, fitted, generated)
    random = generator(seed)
    count = len(generated)
    shifts = [contribution[random.integers(count, size=count)].mean() for _ in range(resamples)]
    tail = 50 * (1 - confidence)
    low, high = value + np.percentile(shifts, [tail, 100 - tail])
    return Interval(value, max(float(low), 0.0), float(high), confidence, count)


def _contributions(reference: Moments, fitted: Moments, generated: np.ndarray) -> np.ndarray:
    """[n], mean 0: what each image of `generated` [n, d], whose moments are `fitted`, adds to the
    Frechet distance to first order (formula at `frechet_interval`)."""
    left, singular, _ = np.linalg.svd(reference.root.T @ fitted.root, full_matrices=False)
    keep = singular > singular.max(initial=0) * np.finfo(float).eps * len(fitted.mean)
    transport = reference.root @ (left[:, keep] / np.sqrt(singular[keep]))
    centred = generated - fitted.mean
    contribution = 2 * centred @ (fitted.mean - reference.mean)
    contribution += np.sum(centred**2, axis=1) - np.sum((centred @ transport) ** 2, axis=1)
    return contribution - contribution.mean()


def _root(covariance: np.ndarray, count: int) -> np.ndarray:
    """[d, r] with root @ root.T = covariance, by Cholesky factorisation with pivoting.

    It stops where nothing but rounding is left, so features that are constant or depend on others
    do no harm.
    """
    factor, pivots, rank, _ = lapack.dpstrf(covariance, lower=1)
    rank = min(rank, count - 1)
    root = np.empty((len(covariance), rank))
    root[pivots - 1] = np.tril(factor)[:, :rank]
    return root


def blocks(rows: int, columns: int, size: int) -> list[slice]:
    step = max(1, size // (8 * columns))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def _checksum(tensors: dict[str, np.ndarray]) -> str:
    total = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        total.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        total.update(value.data)
    return total.hexdigest()


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def checked(features: np.ndarray, name: str) -> np.ndarray:
    features = np.asarray(features)
    if features.ndim != 2:
        raise ValueError(f"{name} must be [n, d], not {list(features.shape)}")
    features = features.astype(np.float64, copy=False)
    bad = len(features) - np.count_nonzero(np.isfinite(features).all(axis=1))
    if bad:
        raise UserError(
            f"{name}: NaN or infinity in {bad} of {len(features)} rows; "
            "check the images and the extractor"
        )
    return features


def _require_two(count: int) -> None:
    if count < 2:
        raise UserError(f"feature statistics of {count} images: at least 2 are needed")


def _require_same_extractor(first: str, second: str) -> None:
    if first != second:
        raise UserError(
            f"features of different extractors ({first or 'unnamed'} and {second or 'unnamed'}) "
            "cannot be compared; recompute the older ones"
        )
