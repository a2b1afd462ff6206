"""All scores of one set of samples against the real images, as plain numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline import fidelity

KERNEL_SUBSETS = 50
KERNEL_SUBSET_SIZE = 1000


def score(
    reference: np.ndarray,
    generated: np.ndarray,
    *,
    seed: int,
    neighbours: int,
    allow_few: bool,
    extractor: str,
) -> dict[str, float | int | str]:
    """Scores of generated against reference features, float [n, d] each.

    Both sides of the Frechet distance are what they are: all real images against all samples given.
    UserError when there are too few samples (see `fidelity`).
    """
    real, fake = fidelity.moments(reference, extractor), fidelity.moments(generated, extractor)
    distance = fidelity.frechet_distance(real, fake, allow_few=allow_few)
    smaller = min(len(reference), len(generated))
    kernel = fidelity.kernel_distance(
        reference,
        generated,
        seed=seed,
        subsets=KERNEL_SUBSETS,
        subset_size=min(KERNEL_SUBSET_SIZE, smaller),
    )
    manifold = fidelity.manifold_scores(reference, generated, neighbours=neighbours)
    return {
        "fid": distance.value,
        "kid": kernel.mean,
        "kid_std": kernel.std,
        "precision": manifold.precision,
        "recall": manifold.recall,
        "density": manifold.density,
        "coverage": manifold.coverage,
        "samples": len(generated),
        "reference_samples": len(reference),
        "extractor": extractor,
    }


def floor(reference: np.ndarray, *, seed: int, allow_few: bool) -> dict[str, Any]:
    """What a perfect generator would score: one half of the real images against the other."""
    split = fidelity.half_split_bias(reference, seed=seed, allow_few=allow_few)
    return {"fid": split.value, "samples": split.samples}
