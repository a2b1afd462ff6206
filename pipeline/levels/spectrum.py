"""Mean and principal variances of the latents: what schedules are fitted to without a network."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipeline import rows
from pipeline.data.latents import Latents

ROWS = 20_000  # of the dataset, a fair sample: a spectrum needs no more
LARGEST = 4096  # values a row: beyond, the spectrum comes from so many rows' inner products
BLOCK = 1024


def spectrum(latents: Latents) -> np.ndarray:
    """PCA eigenvalues of the scaled latents, float64, descending: [d], or fewer for long rows.

    Of at most `ROWS` rows. Rows of more than `LARGEST` values would need a covariance of many
    gigabytes: the eigenvalues are then those of the Gram matrix of `LARGEST` rows, padded with the
    mean of what they leave, so that their sum is the rows' variance. So they are, faster, for fewer
    rows than values.
    """
    d = int(np.prod(latents.shape))
    long = d > min(LARGEST, len(latents))
    count = min(len(latents), LARGEST if long else ROWS)
    chosen = rows.spread(count, len(latents), latents.labels)
    blocks = [latents.gather(part).flatten(1).cpu().numpy() for part in _parts(chosen)]
    mean = sum(block.sum(0, dtype=np.float64) for block in blocks) / count
    for block in blocks:  # in place: a second copy would be the peak of the whole stage
        block[:] = block - mean
    if not long:
        covariance = np.zeros((d, d))
        for block in blocks:
            covariance += block.T @ block
        return np.maximum(np.linalg.eigvalsh(covariance / count)[::-1], 0.0)
    held = np.concatenate(blocks)
    inner = (held @ held.T).astype(np.float64) / count
    # The rows are centred: one of the eigenvalues is zero and none of the data's.
    kept = np.maximum(np.linalg.eigvalsh(inner)[:0:-1], 0.0)
    total = float(np.square(held, dtype=np.float64).sum() / count)
    rest = max(total - kept.sum(), 0.0) / (d - len(kept))
    return np.concatenate([kept, np.full(d - len(kept), rest)])


def means(latents: Latents, classes: int) -> np.ndarray:
    """Mean of all rows, then of each class's: float32 [1 + classes, C, H, W].

    A class without a row has the mean of all.
    """
    sums = np.zeros((1 + classes, *latents.shape))
    counts = np.zeros(1 + classes)
    for part in _parts(np.arange(len(latents))):
        values = latents.gather(part).cpu().numpy().astype(np.float64)
        sums[0] += values.sum(0)
        counts[0] += len(values)
        if classes:
            np.add.at(sums, 1 + latents.labels[part], values)
            counts[1:] += np.bincount(latents.labels[part], minlength=classes)
    empty = counts == 0
    sums[empty], counts[empty] = sums[0], counts[0]
    return (sums / counts.reshape(-1, 1, 1, 1)).astype(np.float32)


def _parts(chosen: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(chosen), BLOCK):
        yield chosen[start : start + BLOCK]
