"""What a pairing does to the noise: its alignment, its marginal and what it tells of classes."""

import math
from typing import Any

import numpy as np

from pipeline.noise import philox
from pipeline.noise.assignment import Components, RowSource, noise_ids, principal_components
from pipeline.rows import spread

DIAGNOSED_ROWS = 4096  # of a slot, a fair sample
DIAGNOSED_COMPONENTS = 4  # along which the noise is looked at


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
        philox.normal(key, slot, noise_ids(method, paired, chosen, candidates), shape),
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
