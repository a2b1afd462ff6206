"""The exact denoisers of the benchmarks against simulation, the pipeline's pairs and a solver."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.stats import ncx2

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from exact import Assigned, Mixture, Nearest, Posterior, prices

from pipeline.levels.optimal_denoiser import optimal_denoiser
from pipeline.noise import philox
from pipeline.noise.assignment import noise_ids, pair_slot
from pipeline.noise.process import alpha_sigma

RANDOM = np.random.default_rng
D = 8


def images(count: int, seed: int = 0) -> np.ndarray:
    """Rows [count, D] of several lengths about a mean that is not 0."""
    random = RANDOM(seed)
    return random.normal(size=(count, D)) * random.uniform(0.3, 1.2, (count, 1)) + 0.8


def noised(z, eps, log_snr):
    alpha, sigma = alpha_sigma(log_snr)
    return alpha * z + sigma * eps


@pytest.mark.parametrize("log_snr", [-6.0, -1.0, 3.0])
def test_without_a_law_it_is_the_optimal_denoiser(log_snr):
    rows = images(150)
    x = noised(rows, RANDOM(1).normal(size=rows.shape), log_snr)
    wanted = optimal_denoiser(lambda i: rows[i], len(rows), x, log_snr)
    assert np.abs(Posterior(rows)(x, log_snr) - wanted).max() < 1e-5


@pytest.mark.parametrize("log_snr", [-6.0, -1.0, 3.0])
def test_all_clusters_together_are_the_optimal_denoiser_and_one_is_its_own(log_snr):
    rows = images(150)
    which = np.arange(150) % 10 // 4  # shares of 4, 4 and 2
    x = noised(rows, RANDOM(1).normal(size=rows.shape), log_snr)
    whole = Posterior(rows)(x, log_snr)
    assert np.abs(Mixture(rows, which, 3)(x, log_snr) - whole).max() < 1e-12
    one = Mixture(rows, which, 1)
    chosen = one.chances(x, log_snr).argmax(1)
    parts = np.stack([Posterior(rows[which == c])(x, log_snr) for c in range(3)])
    assert np.abs(one(x, log_snr) - parts[chosen, np.arange(150)]).max() < 1e-12
    assert np.abs(one.chances(x, log_snr).sum(1) - 1).max() < 1e-12


def test_the_table_is_the_noncentral_chi_square_law():
    rows = images(60)
    law = Nearest(rows, 8, rows.mean(0))
    length = np.linalg.norm(rows - rows.mean(0), axis=1)
    distance = np.linspace(0.1, 10, 300)[:, None] * np.ones(60)
    wanted = ncx2.logsf(distance**2, D, length**2)
    assert np.abs(law.tail(distance) - wanted).max() < 2e-3
    assert wanted.min() < -15  # far in the tail, too


@pytest.mark.parametrize("centred", [False, True])
def test_the_density_is_that_of_the_nearest_of_k_noises(centred):
    """Means under the density, by reweighting normal noise, are those of chosen noises."""
    k, draws, random = 5, 200_000, RANDOM(3)
    row = images(1)
    centre = row[0] / 2 if centred else np.zeros(D)
    aim = (row - centre)[0]
    candidates = random.normal(size=(draws, k, D))
    nearest = ((candidates - aim) ** 2).sum(2).argmin(1)
    chosen = candidates[np.arange(draws), nearest]
    plain = random.normal(size=(draws, D))
    distance = np.linalg.norm(plain - aim, axis=1)[:, None]
    density = k * np.exp((k - 1) * Nearest(row, k, centre).tail(distance))[:, 0]
    assert density.mean() == pytest.approx(1, abs=0.01)
    for value in (lambda e: e @ aim, lambda e: (e**2).sum(1), lambda e: (e @ aim > 2) * 1.0):
        assert (density * value(plain)).mean() == pytest.approx(value(chosen).mean(), rel=0.02)


def own_pairs(rows, aims, method, slots, **settings):
    """Rows and noises of many passes, as the pipeline pairs them."""
    noises = []
    for slot in range(slots):
        found = pair_slot(method, lambda i: aims[i], len(rows), key=5, slot=slot, **settings)
        ids = noise_ids(method, found, np.arange(len(rows)), settings.get("candidates", 0))
        noises.append(philox.normal(5, slot, ids, (D,)))
    return np.tile(rows, (slots, 1)), np.concatenate(noises)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("log_snr", [-5.0, -1.0])
def test_the_law_of_nearest_noises_tells_the_pipelines_pairs(centred, log_snr):
    rows = images(40).astype(np.float32)
    centre = rows.mean(0) if centred else 0 * rows[0]
    z, eps = own_pairs(rows, rows - centre, "knn-l2", 250, candidates=8)
    right = Posterior(rows, Nearest(rows, 8, centre))
    off, off_without = (
        abs(surprise(p, rows, z, eps, log_snr) - 1) for p in (right, Posterior(rows))
    )
    assert off < 0.4 * off_without and off_without > 0.04


def surprise(denoise, rows, z, eps, log_snr) -> float:
    """The squared error over the one that the posterior itself expects: 1 if the law is right."""
    x = noised(z, eps, log_snr)
    weights = denoise.weights(x, log_snr)
    found = weights @ rows
    expected = (weights @ (rows**2).sum(1) - (found**2).sum(1)).mean()
    return float(((found - z) ** 2).sum(1).mean() / expected)


def test_prices_tell_who_gets_a_further_noise():
    rows, random = images(20), RANDOM(2)
    others = random.normal(size=(19, D))
    price = prices(rows, others)
    assert price.min() == 0 and (price == 0).sum() == 1
    for eps in random.normal(size=(100, D)):
        holders, noise = linear_sum_assignment(-rows @ np.vstack([others, eps]).T)
        assert (rows @ eps - price).argmax() == holders[noise == 19][0]


@pytest.mark.parametrize("log_snr", [-5.0, -1.0])
def test_the_law_of_an_assignment_tells_the_pipelines_pairs(log_snr):
    rows = images(32).astype(np.float32)
    z, eps = own_pairs(rows, rows, "assignment", 100, block=32, sweeps=1)
    few, many = (Posterior(rows, Assigned(rows, sets, key=9)) for sets in (16, 256))
    off, off_without = (
        abs(surprise(p, rows, z, eps, log_snr) - 1) for p in (many, Posterior(rows))
    )
    assert off < 0.4 * off_without
    errors = [
        ((denoise(noised(z, eps, log_snr), log_snr) - z) ** 2).mean()
        for denoise in (many, few, Posterior(rows))
    ]
    assert errors[0] < errors[1] < 0.95 * errors[2]  # an upper bound, and a gain
