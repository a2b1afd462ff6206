"""Scores of samples against a known law, by counting: no network of features is asked.

Each sample counts as the combination of factors whose image is nearest to it. How often each comes
is compared with its chance by the total variation distance, half the sum of the absolute
differences of two distributions: 0 where they are the same, 1 where they have nothing in common.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.data.sources import synthetic
from pipeline.evaluation import frechet

# What is compared: some factors, by the letters that `numpy.einsum` gives them.
COMPARED = {
    "shape": "s",
    "colour": "c",
    "position": "rk",
    "size": "z",
    "shape_colour": "sc",
    "all": "scrkz",
}
CHUNK = 1024
DRAWS = 1_000  # of the floor
LEVEL = 0.95


def compared(images: np.ndarray, labels: np.ndarray | None, seed: int) -> dict[str, Any]:
    """Scores of images, uint8 [n, 3, 16, 16], against the law of `data.sources.synthetic`.

    labels: int [n], the shapes that were asked for; None where none was. The law is then that of
    these shapes.

    Gives `tv_*`, the total variation distance of each of `COMPARED`; `off_law`, the root mean
    square distance of a pixel to the nearest image of the law, in levels 0..255; with labels
    `as_asked`, the share of samples of the asked shape; and `law`: of each distance, what as many
    draws of the law itself score, as their `mean` and the `high` that a share `level` of such sets
    is below (`DRAWS` sets were drawn).
    """
    chances = synthetic.shares() / synthetic.shares().sum()
    nearest, squares = _nearest(images)
    groups = [(len(images), chances)]
    if labels is not None:
        shape_of = nearest // chances[0].size
        groups = [
            (int((labels == shape).sum()), _given(chances, shape)) for shape in range(len(chances))
        ]
    law = sum(count * own for count, own in groups) / len(images)
    rng = frechet.generator(seed)
    real = sum(rng.multinomial(count, own.ravel(), DRAWS) for count, own in groups)
    own = np.bincount(nearest, minlength=law.size)
    scores: dict[str, Any] = {}
    floor = {}
    for name, letters in COMPARED.items():
        scores[f"tv_{name}"] = float(_distances(own[None], law, letters)[0])
        found = _distances(real, law, letters)
        floor[name] = {"mean": float(found.mean()), "high": float(np.quantile(found, LEVEL))}
    scores["off_law"] = float(np.sqrt(squares.mean() / images[0].size))
    if labels is not None:
        scores["as_asked"] = float((shape_of == labels).mean())
    return scores | {"law": {"floor": floor, "level": LEVEL}}


def _given(chances: np.ndarray, shape: int) -> np.ndarray:
    """The law of images of one shape."""
    alone = np.zeros_like(chances)
    alone[shape] = chances[shape] / chances[shape].sum()
    return alone


def _nearest(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The place of the nearest template of each image, int64 [n], and its squared distance."""
    flat = synthetic.templates().transpose(0, 3, 1, 2).reshape(-1, images[0].size).astype(float)
    lengths = (flat**2).sum(axis=1)
    places, squares = np.empty(len(images), np.int64), np.empty(len(images))
    for start in range(0, len(images), CHUNK):
        some = images[start : start + CHUNK].reshape(-1, flat.shape[1]).astype(float)
        # Whole numbers far below 2^53, so these products and sums are exact in any order.
        found = (some**2).sum(axis=1)[:, None] - 2 * some @ flat.T + lengths
        rows = slice(start, start + len(some))
        places[rows] = found.argmin(axis=1)
        squares[rows] = found.min(axis=1)
    return places, squares


def _distances(counts: np.ndarray, law: np.ndarray, letters: str) -> np.ndarray:
    """Total variation distance of sets of counts [sets, cells] to the law, in some factors."""
    differences = counts / counts.sum(axis=1, keepdims=True) - law.ravel()
    factors = np.einsum(f"n{COMPARED['all']}->n{letters}", differences.reshape(-1, *law.shape))
    return abs(factors).reshape(len(counts), -1).sum(axis=1) / 2
