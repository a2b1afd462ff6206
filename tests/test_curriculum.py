import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from pipeline.errors import UserError
from pipeline.levels.curriculum import budget_shares, split_images, stratified
from pipeline.levels.flow import log_snr_at, time_at
from tests.levels import curriculum_of as build

KINDS = (
    "uniform",
    "clts",
    "static",
    "easy-to-hard",
    "edm-lognormal",
    "logit-normal",
    "speed",
    "adaptive",
)
PROGRESS = (0.0, 0.2, 0.5, 0.77, 1.0)


def linear_log_snrs(states=1000):
    """The DDPM schedule, betas from 0.0001 to 0.02."""
    signal = np.cumprod(1 - np.linspace(1e-4, 0.02, states))
    return np.log(signal / (1 - signal))


def states(count):
    return np.linspace(9, -9, count) if count > 1 else np.array([1.5])


def masses(p):
    x = (np.arange(len(p)) + 0.5) / len(p)
    return [p[(x >= a) & (x < b)].sum() for a, b in ((0, 0.2), (0.2, 0.4), (0.4, 0.7), (0.7, 1))]


def numeric_average(c, steps=500):
    return np.mean([c.probabilities((i + 0.5) / steps) for i in range(steps)], axis=0)


def every_curriculum():
    for kind in KINDS:
        for count in (1, 2, 7, 50):
            yield build(kind, states(count))
        yield build(kind, np.array([9.0, -9.0]), continuous=True, cells=64)
    thirds = {"bounds": [3.0, -3.0], "shares": [1.0, 1.0, 2.0]}
    yield build("per-interval", states(50), **thirds)
    yield build("per-interval", np.array([9.0, -9.0]), continuous=True, cells=64, **thirds)
    yield build("clts", states(50), end_fraction=0.25, lambda_max=0.9)
    yield build("easy-to-hard", states(50), clusters=4, end_fraction=0.5)
    yield build("clts", states(50), end_fraction=0.5).restrict(np.arange(30, 50))
    yield build("easy-to-hard", states(50)).restrict(np.arange(5))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_uniform_over_a_flow_is_uniform_in_its_time(shift):
    """Of a continuous range, and of states: the one is the limit of the other."""
    ends = log_snr_at(np.array([0.001, 0.999]), shift)
    c = build("uniform", ends, continuous=True, flow=shift)
    assert c.edges[[0, -1]].tolist() == ends.tolist() and (np.diff(c.edges) < 0).all()
    _, log_snr = c.draw((np.arange(20_000) + 0.5) / 20_000, 0.3)
    t = np.sort(time_at(log_snr, shift))
    even = 0.001 + 0.998 * (np.arange(20_000) + 0.5) / 20_000
    assert np.abs(t - even).max() < 0.3 / len(c)  # inside its cell a draw is even in log-SNR
    # A law of the log-SNR stays what it is on any cells.
    drawn = build("logit-normal", ends, continuous=True, flow=shift).draw(even, 0.0)[1]
    plain = build("logit-normal", ends, continuous=True).draw(even, 0.0)[1]
    np.testing.assert_allclose(drawn, plain, atol=0.02)


def test_intervals_over_a_flow_have_their_shares_wherever_its_cells_are():
    ends, bounds = log_snr_at(np.array([0.001, 0.999])), [3.0, -3.0]
    c = build("per-interval", ends, True, flow=1.0, bounds=bounds, shares=[1.0, 1.0, 2.0])
    p = c.probabilities(0.4)
    between = (c.log_snrs < 3.0) & (c.log_snrs >= -3.0)
    assert p[between].sum() == pytest.approx(0.25)


# --- kinds


@pytest.mark.parametrize(
    ("sigma", "expected", "ratio"),
    [
        (1.0, (0.208, 0.212, 0.307, 0.273), 0.783),
        (0.5, (0.227, 0.246, 0.324, 0.203), 0.376),
        (0.3, (0.253, 0.314, 0.335, 0.098), 0.066),
        (0.2, (0.258, 0.410, 0.307, 0.024), 0.002),
    ],
)
def test_clts_ends_in_the_gaussian(sigma, expected, ratio):
    p = build("clts", states(1000), sigma=sigma).probabilities(1.0)
    # The table was made with x = t / T, half a state off.
    assert masses(p) == pytest.approx(expected, abs=1.2e-3)
    law = norm(0.3, sigma)
    exact = np.diff(law.cdf([0, 0.2, 0.4, 0.7, 1])) / (law.cdf(1) - law.cdf(0))
    assert masses(p) == pytest.approx(exact, abs=1e-6)
    assert p[-1] / p[300] == pytest.approx(ratio, abs=6e-4)
    static = build("static", states(1000), sigma=sigma)
    np.testing.assert_allclose(static.probabilities(0.0), p, rtol=1e-9)


@pytest.mark.parametrize(("end_fraction", "lambda_max"), [(1.0, 1.0), (0.25, 0.9), (0.5, 0.4)])
def test_clts_is_the_clamped_mixture(end_fraction, lambda_max):
    c = build("clts", states(100), end_fraction=end_fraction, lambda_max=lambda_max)
    x = (np.arange(100) + 0.5) / 100
    gaussian = norm.pdf(x, 0.3, 0.3) / norm.pdf(x, 0.3, 0.3).sum()
    for progress in PROGRESS:
        weight = lambda_max * min(1, progress / end_fraction)
        expected = (1 - weight) / 100 + weight * gaussian
        np.testing.assert_allclose(c.probabilities(progress), expected, rtol=1e-9)


def test_clts_has_no_spike_and_takes_from_the_easy_states_from_the_start():
    """The published port of CLTS ends in one state and is uniform for nearly all of the run."""
    c = build("clts", linear_log_snrs())
    assert c.probabilities(0.0) == pytest.approx(np.full(1000, 1e-3), rel=1e-9)
    assert c.probabilities(1.0).max() < 2e-3
    assert masses(c.average())[3] == pytest.approx((0.3 + masses(c.probabilities(1.0))[3]) / 2)


def test_clts_survives_a_mu_far_from_all_states():
    p = build("static", states(10), mu=50.0, sigma=0.1).probabilities(0.0)
    assert p == pytest.approx([0] * 9 + [1])


def test_easy_to_hard_adds_clusters_from_the_noisiest():
    c = build("easy-to-hard", states(10), clusters=5)
    for phase in range(5):
        for progress in (0.2 * phase + 1e-9, 0.2 * phase + 0.1, 0.2 * phase + 0.2 - 1e-9):
            owned = 2 * (phase + 1)
            expected = np.where(np.arange(10) >= 10 - owned, 1 / owned, 0)
            np.testing.assert_allclose(c.probabilities(progress), expected, atol=1e-12)
    early = build("easy-to-hard", states(10), clusters=5, end_fraction=0.5)
    assert early.probabilities(0.09)[:8].sum() == 0
    np.testing.assert_allclose(early.probabilities(0.41), 0.1)
    np.testing.assert_allclose(early.probabilities(0.99), 0.1)


def test_edm_lognormal_gives_edms_sigmas():
    u = np.array([0.01, 0.05, 0.3, 0.5, 0.95, 0.99])
    c = build("edm-lognormal", np.array([40.0, -40.0]), continuous=True, cells=20000)
    _, log_snr = c.draw(u, 0.0)
    # Small u is the clean end: the u-quantile of sigma.
    expected = np.exp(-1.2 + 1.2 * norm.ppf(u))
    assert 0.5 * np.exp(-log_snr / 2) == pytest.approx(expected, rel=1e-5)
    assert expected[[1, 3, 4]] == pytest.approx([0.042, 0.301, 2.17], rel=0.02)


def test_logit_normal_gives_sd3s_times():
    u = np.array([0.02, 0.2, 0.5, 0.9])
    c = build("logit-normal", np.array([40.0, -40.0]), True, cells=20000, mean=0.5, std=0.6)
    _, log_snr = c.draw(u, 0.0)
    t = 1 / (1 + np.exp(-(0.5 + 0.6 * norm.ppf(u))))
    assert log_snr == pytest.approx(2 * np.log((1 - t) / t), abs=1e-5)


def test_a_state_gets_the_mass_of_the_log_snrs_nearest_to_it():
    log_snrs = np.array([8.0, 3.0, 1.0, -4.0])
    p = build("logit-normal", log_snrs, mean=0.3, std=1.1).probabilities(0.5)
    cdf = norm(-0.6, 2.2).cdf
    expected = [1 - cdf(5.5), cdf(5.5) - cdf(2), cdf(2) - cdf(-1.5), cdf(-1.5)]
    assert p == pytest.approx(expected, rel=1e-12)
    # A state without any signal is the nearest to nothing.
    pure_noise = build("logit-normal", np.array([3.0, 0.0, -np.inf])).probabilities(0)
    assert pure_noise[2] == 0
    assert pure_noise.sum() == pytest.approx(1)


def test_a_tail_of_the_normal_keeps_its_relative_precision():
    # 8 to 9 standard deviations out, differences of a CDF near one would be zero.
    log_snrs = np.array([18.0, 16.0])
    p = build("logit-normal", log_snrs, True, cells=2).probabilities(0)
    ratio = (norm.sf(8) - norm.sf(8.5)) / (norm.sf(8.5) - norm.sf(9))
    assert p[1] / p[0] == pytest.approx(ratio, rel=1e-9)


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (1, (0.300, 0.279, 0.272, 0.150)),
        (2, (0.311, 0.282, 0.319, 0.088)),
        (5, (0.319, 0.284, 0.357, 0.039)),
    ],
)
def test_speed_on_the_ddpm_schedule(k, expected):
    c = build("speed", linear_log_snrs(), k=k)
    assert c.mirror == 642
    assert masses(c.probabilities(0.0)) == pytest.approx(expected, abs=1.1e-3)
    drawn, _ = c.draw(stratified(100_000, np.full(100_000, 0.5), antithetic=True), 0.0)
    np.testing.assert_allclose(
        np.bincount(drawn, minlength=1000) / 100_000, c.probabilities(0.0), atol=4e-5
    )


@pytest.mark.parametrize("batch", [2, 64, 65])
def test_speed_draws_whole_pairs(batch):
    """The published code draws batch // 2 + 1 first members and one mirror image too few."""
    c = build("speed", linear_log_snrs())
    rng = np.random.default_rng(batch)
    for _ in range(20):
        index, _ = c.draw(stratified(batch, rng.random(batch), antithetic=True), 0.0)
        first, second = index[: batch // 2], index[batch - batch // 2 :][::-1]
        mirrored = np.where(first < 642, 641 - first, first - 642)
        np.testing.assert_array_equal(second, mirrored)


@pytest.mark.parametrize("lam", [0.6, 1.0])
def test_speeds_weights_are_those_of_its_code(lam):
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    change = np.gradient(1 - alpha_bar)
    least = 1 - lam
    expected = least + (1 - 2 * least) * (change - change.min()) / (change.max() - change.min())
    expected[700:] = 1.0
    c = build("speed", linear_log_snrs(), lam=lam)
    np.testing.assert_allclose(c.weights, expected, atol=1e-6)
    assert expected[:700].min() == pytest.approx(1 - lam, abs=0.1)
    np.testing.assert_array_equal(c.restrict(range(600, 800)).weights, c.weights[600:800])
    assert build("speed", linear_log_snrs(), lam=None).weights is None
    assert build("uniform", linear_log_snrs()).weights is None


def test_speed_on_a_continuous_range():
    c = build("speed", np.array([9.0, -9.0]), True, cells=900, mirror=0.6, tau=0.5, k=3)
    u = (np.arange(50_000) + 0.5) / 50_000
    _, log_snr = c.draw(u, 0.0)
    x = (9 - log_snr) / 18
    np.testing.assert_allclose(x[::-1][:25_000], np.abs(0.6 - x[:25_000]), atol=1e-12)
    # Weights 3 below 0.5 and 1 above, sum 2; the mirror adds the density at 0.6 - x and 0.6 + x.
    for low, high, mass in ((0, 0.1, 0.3 + 0.1 + 0.1), (0.1, 0.4, 0.9 + 0.9 + 0.3), (0.6, 1, 0.4)):
        assert np.mean((x > low) & (x < high)) == pytest.approx(mass / 4, abs=2e-4)


# --- all kinds


def test_every_curriculum_is_a_distribution_and_draws_follow_it():
    u = (np.arange(10_000) + 0.5) / 10_000
    for c in every_curriculum():
        for progress in PROGRESS:
            p = c.probabilities(progress)
            assert p.shape == (len(c),)
            assert p.min() >= 0
            assert abs(p.sum() - 1) < 1e-12
            index, log_snr = c.draw(u, progress)
            assert index.dtype == np.int64
            assert log_snr.dtype == np.float64
            counts = np.bincount(index, minlength=len(c)) / 10_000
            # Each whole run of equal indices is off by at most one draw (four runs for `speed`).
            np.testing.assert_allclose(counts, p, atol=4.001e-4 if c.antithetic else 1.001e-4)
            if c.continuous:
                assert np.all(log_snr <= c.edges[index])
                assert np.all(log_snr >= c.edges[index + 1])
            else:
                np.testing.assert_array_equal(log_snr, c.log_snrs[index])


def test_draw_is_elementwise_and_never_takes_a_state_without_probability():
    c = build("easy-to-hard", states(8), clusters=4)
    u = np.array([0.0, 0.25, 0.5, 0.75, np.nextafter(1, 0)])
    index, _ = c.draw(u, 0.3)
    np.testing.assert_array_equal(index, [4, 5, 6, 7, 7])
    np.testing.assert_array_equal(c.draw(u[3:4], 0.3)[0], [7])
    with pytest.raises(ValueError, match="u in"):
        c.draw(np.array([1.0]), 0.3)


def test_a_continuous_uniform_draw_is_uniform_inside_its_cells():
    u = np.random.default_rng(0).random(1000)
    for cells in (2, 1024):
        c = build("uniform", np.array([8.0, -6.0]), continuous=True, cells=cells)
        index, log_snr = c.draw(u, 0.4)
        np.testing.assert_allclose(log_snr, 8 - 14 * u, atol=1e-11)
        np.testing.assert_array_equal(index, np.floor(u * cells))


def test_average_is_the_mean_over_the_run():
    for c in every_curriculum():
        np.testing.assert_allclose(c.average(), numeric_average(c), atol=1e-3)
    c = build("clts", states(20), end_fraction=0.5)
    window = [c.probabilities(0.3 + 0.4 * (i + 0.5) / 4000) for i in range(4000)]
    np.testing.assert_allclose(c.average(0.3, 0.7), np.mean(window, axis=0), atol=1e-7)


# --- experts


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "clts", "sigma": 0.2},
        {"kind": "clts", "end_fraction": 0.3},
        {"kind": "easy-to-hard", "clusters": 5},
    ],
)
@pytest.mark.parametrize("owned", [np.arange(6), np.arange(12, 20)])
def test_an_expert_sees_what_the_whole_run_gives_to_its_states(options, owned):
    whole = build(log_snrs=states(20), **options)
    expert = whole.restrict(owned)
    times = (np.arange(5_000) + 0.5) / 5_000
    rows = np.array([whole.probabilities(time)[owned] for time in times])
    drawn = np.cumsum(rows.sum(axis=1)) / rows.sum()
    assert expert.share == pytest.approx(rows.sum() / 5_000, abs=4e-4)
    np.testing.assert_array_equal(expert.log_snrs, whole.log_snrs[owned])
    for progress in (0.0, 0.13, 0.5, 0.9, 1.0):
        row = rows[min(np.searchsorted(drawn, progress + 4e-4), 4_999)]
        np.testing.assert_allclose(expert.probabilities(progress), row / row.sum(), atol=2e-3)
    np.testing.assert_allclose(expert.average() * expert.share, whole.average()[owned], atol=1e-12)


def test_an_experts_progress_counts_its_own_images():
    # The clean state goes from 1/4 to 1, the noisiest from 1/4 to 0: their rate is (1 + tau) / 2,
    # and half of their images are drawn at tau^2 / 4 + tau / 2 = 3 / 8.
    expert = build("clts", states(4), mu=0.125, sigma=0.01).restrict([0, 3])
    tau = math.sqrt(2.5) - 1
    clean = ((1 - tau) / 4 + tau) / ((1 + tau) / 2)
    assert expert.probabilities(0.5) == pytest.approx([clean, 1 - clean], rel=1e-9)


def test_restrictions_compose_and_the_whole_is_itself():
    whole = build("clts", states(20), end_fraction=0.7)
    once, twice = whole.restrict([4, 6, 9]), whole.restrict(range(2, 12)).restrict([2, 4, 7])
    assert once.share == pytest.approx(twice.share)
    for progress in PROGRESS:
        np.testing.assert_allclose(
            once.probabilities(progress), twice.probabilities(progress), rtol=1e-9
        )
    assert whole.restrict(range(20)) is whole
    assert not build("speed", states(20)).restrict(range(10)).antithetic


def test_one_state_keeps_only_its_budget():
    """pbar = (1 - lbar) / T + lbar G with lbar = lambda_max (1 - f / 2)."""
    c = build("clts", states(10), end_fraction=0.5, lambda_max=0.8)
    x = (np.arange(10) + 0.5) / 10
    gaussian = np.exp(-0.5 * ((x - 0.3) / 0.3) ** 2)
    mean_lambda = 0.8 * (1 - 0.5 / 2)
    expected = (1 - mean_lambda) / 10 + mean_lambda * gaussian / gaussian.sum()
    np.testing.assert_allclose(budget_shares(c, [[i] for i in range(10)]), expected, rtol=1e-12)
    for i in range(10):
        expert = c.restrict([i])
        assert expert.share == pytest.approx(expected[i])
        assert expert.probabilities(0.3).tolist() == [1.0]
        index, log_snr = expert.draw(np.array([0.0, 0.7]), 0.3)
        assert index.tolist() == [0, 0]
        assert log_snr.tolist() == [c.log_snrs[i]] * 2


def test_budget_shares_need_a_partition():
    c = build("uniform", states(6))
    assert budget_shares(c, [range(3), [3], [4, 5]]) == pytest.approx([1 / 2, 1 / 6, 1 / 3])
    for parts in ([range(3), range(2, 6)], [range(5)]):
        with pytest.raises(ValueError, match="exactly one"):
            budget_shares(c, parts)


# --- batches and budgets


def test_stratified_takes_one_of_each_part():
    rng = np.random.default_rng(1)
    for batch in (1, 5, 64):
        u = rng.random(batch)
        values = stratified(batch, u)
        np.testing.assert_array_equal(np.floor(values * batch), np.arange(batch))
        pairs = stratified(batch, u, antithetic=True)
        np.testing.assert_array_equal(np.floor(pairs * batch), np.arange(batch))
        np.testing.assert_allclose((pairs + pairs[::-1])[: batch // 2], 1, rtol=1e-15)
    extremes = np.array([0.0, 0.0, np.nextafter(1, 0)])
    assert stratified(3, extremes).max() < 1
    assert stratified(3, extremes, antithetic=True).max() < 1


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 10**9),
    st.lists(st.floats(0, 1e6), min_size=1, max_size=40).filter(lambda s: sum(s) > 0),
)
def test_split_images_is_a_largest_remainder_split(total, shares):
    counts = split_images(total, shares)
    assert sum(counts) == total
    quotas = [total * share / math.fsum(shares) for share in shares]
    assert all(abs(count - quota) < 1 + 1e-6 for count, quota in zip(counts, quotas, strict=True))
    assert all(count >= 0 for count in counts)


def test_split_images_breaks_ties_in_order():
    assert split_images(5, [1, 1, 1]) == [2, 2, 1]
    assert split_images(10, [0.55, 0.35, 0.1]) == [6, 3, 1]
    assert split_images(0, [1, 2]) == [0, 0]
    with pytest.raises(ValueError, match="shares"):
        split_images(5, [0, 0])


# --- errors


def test_states_that_are_never_drawn_cannot_be_an_expert():
    c = build("static", states(10), mu=0.0, sigma=0.001)
    with pytest.raises(UserError, match="no training images"):
        c.restrict([8, 9])
    with pytest.raises(UserError, match=r"curriculum\.mean"):
        build("logit-normal", np.array([9.0, -9.0]), True, mean=60.0, std=0.5)


def test_intervals_get_their_shares_whatever_their_length():
    log_snrs = np.array([9.0, 8, 7, 6, 1, 0])
    p = build("per-interval", log_snrs, bounds=[6.0, 0.5], shares=[1, 2, 1]).probabilities(0.3)
    assert p == pytest.approx([1 / 16] * 4 + [1 / 2, 1 / 4])
    with pytest.raises(UserError, match="every interval"):
        build("per-interval", log_snrs, bounds=[5.0, 4.0], shares=[1, 1, 1])
