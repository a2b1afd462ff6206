import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.stats import binomtest

from pipeline.evaluation.consistency import (
    Outputs,
    clean_estimates,
    compare,
    consistency,
    nearest_neighbours,
    nearest_of_blocks,
    reproducibility,
    unrelated_similarity,
)


def correlated(rng, n, shape, correlation):
    a, other = rng.normal(size=(n, *shape)), rng.normal(size=(n, *shape))
    return a, correlation * a + np.sqrt(1 - correlation**2) * other


def test_consistency_is_one_minus_the_ratio_of_mean_distances():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 9, 2, 3)) + 7
    distances = cdist(a.reshape(9, 6), b.reshape(9, 6)) ** 2
    others = distances[~np.eye(9, dtype=bool)].mean()
    expected = 1 - np.diag(distances).mean() / others
    assert consistency(a, b).value == pytest.approx(expected, rel=1e-12)
    # The denominator is the mean over every derangement: all 9 cyclic ones give it exactly.
    rows = np.arange(9)
    cyclic = [distances[rows, (rows + k) % 9].mean() for k in range(1, 9)]
    assert np.mean(cyclic) == pytest.approx(others)


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.9])
def test_consistency_of_gaussians_is_their_correlation(correlation):
    a, b = correlated(np.random.default_rng(1), 4000, (3, 4, 4), correlation)
    estimate = consistency(a, b, resamples=100)
    assert estimate.value == pytest.approx(correlation, abs=0.01)
    assert estimate.low < estimate.value < estimate.high
    assert estimate.high - estimate.low < 0.03


def test_identical_outputs_have_consistency_one():
    a = np.random.default_rng(2).normal(size=(20, 5))
    assert consistency(a, a.copy()) == (1.0, 1.0, 1.0)
    # A common offset, however large, is no similarity.
    b = np.random.default_rng(3).normal(size=(20, 5))
    assert consistency(a + 1e6, b + 1e6).value == pytest.approx(consistency(a, b).value, abs=1e-6)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    # Rows of different scale: numerator and denominator vary together, and cancel in the ratio
    # only if each row counts as much in one as in the other.
    rng = np.random.default_rng(4)
    estimates = []
    for repeat in range(200):
        scale = rng.choice([0.3, 2.0], size=(120, 1))
        a, b = correlated(rng, 120, (30,), 0.3)
        pair = scale * a, scale * b
        estimates.append(consistency(*pair, level=0.9, resamples=100, seed=repeat))
    value, low, high = np.array(estimates).T
    assert binomtest(int(np.sum((low <= 0.3) & (high >= 0.3))), 200, 0.9).pvalue > 1e-3
    assert np.mean(high - low) == pytest.approx(2 * 1.645 * value.std(), rel=0.2)


def test_the_interval_is_fixed_by_its_seed():
    a, b = correlated(np.random.default_rng(5), 50, (4,), 0.5)
    assert consistency(a, b, seed=1) == consistency(a, b, seed=1)
    assert consistency(a, b, seed=1) != consistency(a, b, seed=2)


def test_undefined_consistency_is_an_error():
    same = np.ones((5, 3))
    with pytest.raises(ValueError, match="equal"):
        consistency(same, same)
    with pytest.raises(ValueError, match="finite"):
        consistency(same, same * np.nan)
    with pytest.raises(ValueError, match="shapes"):
        consistency(same, same[:4])


def test_clean_estimates_are_asked_for_the_same_noisy_images():
    """A linear denoiser x * w(log_snr) against itself plus an error that is known."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(500, 1, 3, 3, generator=generator)
    noise = torch.randn(500, 1, 3, 3, generator=generator)
    log_snrs = [6.0, 0.0, -6.0]

    def wiener(x, log_snr):
        return x / (1 + np.exp(-log_snr)) ** 0.5

    def by_state(*denoisers):
        a, b = (clean_estimates(denoise, images, noise, log_snrs) for denoise in denoisers)
        return [consistency(*pair, resamples=10).value for pair in zip(a, b, strict=True)]

    assert by_state(wiener, wiener) == [1, 1, 1]
    # Flipping keeps one column of three.
    parted = by_state(wiener, lambda x, log_snr: wiener(x if log_snr < 0 else x.flip(-1), log_snr))
    assert parted == pytest.approx([1 / 3, 1 / 3, 1], abs=0.05)
    # Against an oracle that sees the images alone: corr(x, z) = alpha.
    exact = by_state(lambda x, log_snr: x, lambda x, log_snr: images)
    assert exact == pytest.approx(np.sqrt(1 / (1 + np.exp(-np.array(log_snrs)))), abs=0.05)


def test_reproducibility_is_a_share_of_pairs_by_angle():
    angles = np.deg2rad([0, 30, 50, 56, 90, 180])
    a = np.tile([2.0, 0.0], (6, 1))
    b = np.stack([np.cos(angles), np.sin(angles)], axis=1) * 5
    # cos 53.13 degrees = 0.6.
    assert reproducibility(a, b).value == pytest.approx(3 / 6)
    assert reproducibility(a, b, threshold=0.9).value == pytest.approx(1 / 6)
    interval = binomtest(3, 6).proportion_ci(0.95, method="wilson")
    assert reproducibility(a, b)[1:] == pytest.approx((interval.low, interval.high))
    assert reproducibility(a, a).high == 1.0
    with pytest.raises(ValueError, match="zeros"):
        reproducibility(a, 0 * b)


@pytest.mark.parametrize("block", [1, 7, 1024])
def test_nearest_neighbours_are_exact(block):
    rng = np.random.default_rng(6)
    samples = rng.normal(size=(30, 2, 5)).astype(np.float32) + 100
    training = rng.normal(size=(50, 2, 5)).astype(np.float32) + 100
    samples[3] = training[41]
    distances, rows = nearest_neighbours(samples, training, block=block)
    full = cdist(samples.reshape(30, 10), training.reshape(50, 10))
    np.testing.assert_array_equal(rows, full.argmin(axis=1))
    np.testing.assert_allclose(distances, full.min(axis=1), rtol=1e-12)
    assert (distances[3], rows[3]) == (0.0, 41)


def test_a_training_image_is_not_its_own_neighbour():
    training = np.random.default_rng(7).normal(size=(40, 6))
    full = cdist(training, training)
    np.fill_diagonal(full, np.inf)
    for block in (3, 64):
        distances, rows = nearest_neighbours(training, training, own=np.arange(40), block=block)
        np.testing.assert_array_equal(rows, full.argmin(axis=1))
        np.testing.assert_allclose(distances, full.min(axis=1))


def test_nearest_of_blocks_is_that_of_all_with_mirrored_rows_passed_over_too():
    rng = np.random.default_rng(8)
    training, samples = rng.normal(size=(31, 1, 2, 2)), rng.normal(size=(5, 1, 2, 2))
    numbers = 3 * np.arange(31)  # some rows of a larger dataset
    blocks = [
        (numbers[i : i + 6], part)
        for i in range(0, 31, 6)
        for part in (training[i : i + 6], training[i : i + 6, ..., ::-1])
    ]
    own = np.concatenate([np.full(5, -1), numbers[[30, 4]]])  # the last row has its own block
    found = nearest_of_blocks(np.concatenate([samples, training[[30, 4]]]), blocks, own)
    everything = np.concatenate([training, training[..., ::-1]]).reshape(62, 4)
    full = cdist(np.concatenate([samples, training[[30, 4]]]).reshape(7, 4), everything)
    full[5, [30, 61]] = full[6, [4, 35]] = np.inf
    np.testing.assert_allclose(found, full.min(axis=1) / 2)  # root mean square of four pixels


def test_unrelated_similarity_is_a_quantile_over_different_images():
    features = np.random.default_rng(9).normal(size=(60, 5))
    cosine = 1 - cdist(features, features, "cosine")
    expected = np.quantile(cosine[~np.eye(60, dtype=bool)], 0.9)
    # All pairs, each in both directions.
    assert unrelated_similarity(features, 0.9) == pytest.approx(expected, abs=1e-12)
    assert unrelated_similarity(features, 0.9, pairs=1200) == pytest.approx(expected, abs=0.1)
    assert unrelated_similarity(np.tile(features[:1], (9, 1))) == pytest.approx(1)


def outputs(rng, images, levels, nearest):
    shape = images.shape
    return Outputs(
        images,
        images.reshape(len(images), -1).astype(np.float32),
        nearest,
        {v: rng.normal(size=shape) for v in levels},
    )


def test_compare_tells_the_same_model_an_unrelated_one_and_a_copier_apart():
    rng = np.random.default_rng(10)
    images, other = rng.integers(0, 256, (2, 80, 1, 4, 4)).astype(np.uint8)
    real = rng.integers(0, 256, (400, 16)).astype(float)
    real_nearest = np.linspace(10, 20, 101)
    a = outputs(rng, images, [3.0, 0.0, -3.0], np.full(80, 15.0))
    b = outputs(rng, other, [3.0, -3.0], np.r_[np.zeros(20), np.full(60, 15.0)])
    levels = [3.0, 0.0, -3.0]
    same = compare(a, a, levels, real, real_nearest, resamples=50)
    apart = compare(a, b, levels, real, real_nearest, resamples=50)
    assert same["overall"]["value"] == 1 and same["by_state"]["value"] == [1, 1, 1]
    assert same["features"]["value"] == 1 and same["features"]["null"] < 0.1
    assert abs(same["null"]["value"]) < 0.1  # the same images, but of other noises
    assert apart["overall"]["low"] < 0.05 and apart["features"]["value"] < 0.1
    assert apart["by_state"]["log_snr"] == [3.0, -3.0] and apart["by_state"]["skipped"] == [0.0]
    assert apart["nearest"]["a"] == {"median": 15, "closer": 0}
    assert apart["nearest"]["b"] == {"median": 15, "closer": 0.25}
    assert apart["nearest"]["real"] == {"median": 15, "closer": pytest.approx(5 / 101)}
