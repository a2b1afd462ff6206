"""Distance to statistics of real images that others computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.evaluation import frechet


def compared(path: Path, generated: np.ndarray, extractor: str) -> dict[str, Any]:
    """`fid_published`, the distance of generated features [n, d] to those in a file, and
    `published`, which says what is compared.

    extractor: the digest of the one that both are taken to be of. That there are enough samples is
    for the distance to the dataset to say. UserError for a file that is not of its features.
    """
    other = frechet.published(path, extractor)
    fitted = frechet.moments(generated, extractor)
    if other.dimension != fitted.dimension:
        raise UserError(
            f"evaluate.reference: statistics of {other.dimension} features, but features.extractor "
            f"gives {fitted.dimension}; use the extractor that they are of"
        )
    # Nobody knows of how many images these statistics are.
    distance = frechet.frechet_distance(other, fitted, allow_few=True)
    what = (
        f"mean and covariance of {fitted.count:,} samples' features, computed here, against those "
        "in the file, which others computed from images and with code that it does not name"
    )
    return {"fid_published": distance.value, "published": {"compared": what}}
