"""All scores of one set of samples against the real images, as plain numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.evaluation import fidelity, frechet
from pipeline.evaluation.chance import more_held_out
from pipeline.evaluation.frechet import Moments
from pipeline.rows import spread

KERNEL_SUBSETS = 50
KERNEL_SUBSET_SIZE = 1000
MANIFOLD_IMAGES = 10_000
CONFIDENCE = 0.95
# Extrapolating takes dozens of distances, each of them O(d^3): above this, minutes.
EXTRAPOLATED_DIMENSION = 256
# Of a class, on both sides: with 50, a share has a standard error of up to 0.07.
LEAST_OF_CLASS = 50
# What features that measure nothing give no value for.
MEASURED = (
    *("fid", "fid_interval", "fid_infinity", "fid_infinity_error", "floor", "kid", "kid_std"),
    *("precision", "recall", "density", "coverage", "per_class"),
)


def score(
    reference: Moments,
    real: np.ndarray,
    generated: np.ndarray,
    *,
    seed: int,
    neighbours: int,
    allow_few: bool,
    extractor: str,
    real_labels: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    useless: str | None = None,
) -> dict[str, Any]:
    """Scores of generated against real features, float [n, d] each.

    reference: the moments of `real`; its `extractor` is the digest of the extractor of both, which
    `extractor` names. real_labels, labels: int [n] of real and generated, None if unknown.
    useless: why these features measure nothing (see `useless_features`); all scores are then None.

    Both sides of the Frechet distance are what they are: all real images against all samples given.
    Precision, recall, density and coverage take at most `MANIFOLD_IMAGES` real ones, a fair sample.
    Scores at other numbers of images (`samples`, `reference_samples`) are not comparable. `floor`
    is what chance leaves of the distance at these numbers.
    `per_class` has FID, precision and recall of each class by itself. What cannot be measured here
    is None, and `left_out` says why, by its name (`scores`: all of them). UserError when there are
    too few samples for the others (see `fidelity`).
    """
    if reference.count != len(real):
        raise ValueError(f"moments of {reference.count} images, features of {len(real)}")
    numbers = {
        "samples": len(generated),
        "reference_samples": len(real),
        "dimension": reference.dimension,
        "extractor": extractor,
        "extractor_digest": reference.extractor,
    }
    if useless is not None:
        return numbers | dict.fromkeys(MEASURED) | {"left_out": {"scores": useless}}
    fitted = frechet.moments(generated, reference.extractor)
    distance = frechet.frechet_distance(reference, fitted, allow_few=allow_few)
    kernel = fidelity.kernel_distance(
        real,
        generated,
        seed=seed,
        subsets=KERNEL_SUBSETS,
        subset_size=min(KERNEL_SUBSET_SIZE, len(real), len(generated)),
    )
    some = _some(real, real_labels)
    manifold = fidelity.manifold_scores(some, generated, neighbours=neighbours)
    left_out: dict[str, str] = {}
    return {
        "fid": distance.value,
        **_interval(reference, generated, seed, left_out),
        **_extrapolation(reference, generated, seed, left_out),
        "floor": _floor(real, len(generated), seed, allow_few, left_out),
        "kid": kernel.mean,
        "kid_std": kernel.std,
        "precision": manifold.precision,
        "recall": manifold.recall,
        "density": manifold.density,
        "coverage": manifold.coverage,
        "manifold_samples": len(some),
        **numbers,
        "per_class": _per_class(real, real_labels, generated, labels, neighbours, left_out),
        "left_out": left_out,
    }


def useless_features(report: dict[str, Any]) -> str | None:
    """Why an extractor's features measure nothing, from the report of its training; None if not."""
    if report.get("learnt", True) is not False:
        return None
    return (
        f"features.extractor: this classifier of {report['task']} tells held-out images apart no "
        f"better than chance ({_found(report)}), so no score means anything; raise "
        "features.images, or choose another features.extractor"
    )


def features_warning(report: dict[str, Any]) -> str | None:
    """What is wrong with an extractor's features, or not known of them; None if nothing is."""
    if report.get("learnt", True) is not None:
        return useless_features(report)
    return (
        f"features.extractor: this classifier of {report['task']} was tested on too few held-out "
        f"images to tell it from guessing ({_found(report)}), so the scores may mean nothing; "
        f"{more_held_out(report['needed'])}"
    )


def _found(report: dict[str, Any]) -> str:
    return (
        f"accuracy {report['accuracy']:.3f}, chance {report['chance']:.3f}, "
        f"{report['holdout']:,} images"
    )


def _some(real: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
    """Real images for the manifold scores, whose cost is the square of their number."""
    return real[spread(min(len(real), MANIFOLD_IMAGES), len(real), labels)]


def _interval(
    reference: Moments, generated: np.ndarray, seed: int, left_out: dict[str, str]
) -> dict[str, Any]:
    low_high = None
    if min(reference.count, len(generated)) > reference.dimension:
        found = frechet.frechet_interval(reference, generated, seed=seed, confidence=CONFIDENCE)
        low_high = [found.low, found.high]
    else:
        left_out["fid_interval"] = f"needs more than {reference.dimension} images on both sides"
    return {"fid_interval": low_high, "fid_interval_confidence": CONFIDENCE}


def _extrapolation(
    reference: Moments, generated: np.ndarray, seed: int, left_out: dict[str, str]
) -> dict[str, Any]:
    dimension = reference.dimension
    if dimension > EXTRAPOLATED_DIMENSION:
        reason = f"takes minutes above {EXTRAPOLATED_DIMENSION} features, there are {dimension}"
    elif reference.count <= dimension or len(generated) < 8 * dimension:
        reason = f"needs {8 * dimension} samples, and more than {dimension} real images"
    else:
        found = frechet.frechet_extrapolated(reference, generated, seed=seed)
        return {"fid_infinity": found.value, "fid_infinity_error": found.error}
    left_out["fid_infinity"] = reason
    return {"fid_infinity": None, "fid_infinity_error": None}


def _floor(
    real: np.ndarray, count: int, seed: int, allow_few: bool, left_out: dict[str, str]
) -> dict[str, Any] | None:
    """What `count` real images would score in the samples' place: `fid`, at the scores' numbers.

    `measured` on as many real images, or half of them all if there are fewer, against all others.
    The distance of n to m images of one distribution is about c (1 / n + 1 / m), which brings it to
    the numbers that are scored (within 4 % where n exceeds the features).
    """
    size = min(count, len(real) // 2)
    others = len(real) - size
    if size <= real.shape[1] and not (allow_few and size == count):
        left_out["floor"] = f"needs more than {2 * real.shape[1]} real images"
        return None
    split = frechet.half_split_bias(
        real, seed=seed, samples=size, against=others, allow_few=allow_few
    )
    smaller = (1 / count + 1 / len(real)) / (1 / size + 1 / others)
    return {
        "fid": split.value * smaller,
        "samples": count,
        "reference_samples": len(real),
        "measured": {"fid": split.value, "samples": size, "reference_samples": others},
    }


def _per_class(
    real: np.ndarray,
    real_labels: np.ndarray | None,
    generated: np.ndarray,
    labels: np.ndarray | None,
    neighbours: int,
    left_out: dict[str, str],
) -> dict[str, dict[str, Any]] | None:
    if real_labels is None or labels is None:
        side = "real images" if real_labels is None else "samples"
        left_out["per_class"] = f"the {side} have no labels"
        return None

    least = max(LEAST_OF_CLASS, neighbours + 1)
    least_for_distance = max(LEAST_OF_CLASS, real.shape[1] + 1)

    def one(mine: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
        found = dict.fromkeys(("fid", "precision", "recall"))
        found |= {"samples": len(theirs), "reference_samples": len(mine)}
        smaller = min(len(mine), len(theirs))
        if smaller >= least_for_distance:
            pair = frechet.moments(mine), frechet.moments(theirs)
            found["fid"] = frechet.frechet_distance(*pair).value
        if smaller >= least:
            manifold = fidelity.manifold_scores(_some(mine), theirs, neighbours=neighbours)
            found |= {"precision": manifold.precision, "recall": manifold.recall}
        return found

    scores = fidelity.per_class(one, real, real_labels, generated, labels)
    for key, needed in (("fid", least_for_distance), ("precision", least), ("recall", least)):
        if any(found[key] is None for found in scores.values()):
            left_out[f"per_class.{key}"] = f"needs {needed} images of a class on both sides"
    return {str(label): found for label, found in scores.items()}
