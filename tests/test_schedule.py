"""Schedules against published tables, quadrature, brute force and the Gaussian's algebra."""

import itertools
import math
import subprocess
import sys
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats

from pipeline.errors import UserError
from pipeline.levels import schedule
from pipeline.levels.flow import log_snr_at, time_at
from pipeline.levels.schedule import (
    diagnose,
    gaussian_mmse,
    gaussian_mmse_slope,
    least_bound_path,
    subset,
)
from tests.levels import states_of as build
from tests.mixtures import three_in_the_plane

SPECTRUM = 1.0 / np.arange(1, 17) ** 1.5
SPECTRUM /= SPECTRUM.mean()


FREE = ("linear", "cosine", "log-snr", "edm", "logistic", "explicit")
KINDS = (*FREE, "fitted", "elbo")


def made(kind, states, **options):
    if kind == "explicit":
        options.setdefault("log_snr", np.linspace(8, -8, states).tolist())
    spectrum = None if kind in (*FREE, "flow") else SPECTRUM
    return build(kind, states, spectrum=spectrum, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("states", [1, 2, 3, 16, 100])
def test_every_kind_gives_that_many_falling_states(kind, states):
    log_snr = made(kind, states)
    assert log_snr.dtype == np.float64 and log_snr.shape == (states,)
    assert np.isfinite(log_snr).all() and (np.diff(log_snr) < 0).all()
    if kind in ("log-snr", "logistic", "fitted", "elbo"):
        assert log_snr[-1] == -9.0 and (states == 1 or log_snr[0] == 9.0)
    assert np.array_equal(np.round(log_snr, 8), log_snr)
    np.testing.assert_allclose(made(kind, states, shift=-1.5), log_snr - 1.5, atol=2e-8)
    if kind == "edm":
        return
    terminal = made(kind, states, shift=0.5, zero_terminal=True)
    assert terminal[-1] == -math.inf
    np.testing.assert_allclose(terminal[:-1], log_snr[:-1] + 0.5, atol=2e-8)


def test_flow_is_even_in_time_and_its_shift_is_that_of_stable_diffusion_3():
    t = 0.999 * np.arange(1, 9) / 8
    np.testing.assert_allclose(build("flow", 8), 2 * np.log((1 - t) / t), atol=1e-8)
    np.testing.assert_allclose(time_at(build("flow", 8)), t, atol=1e-8)
    for s in (3.0, 0.5):
        shifted = s * t / (1 + (s - 1) * t)
        states = build("flow", 8, shift=s)
        np.testing.assert_allclose(states, 2 * np.log((1 - shifted) / shifted), atol=1e-8)
        np.testing.assert_allclose(time_at(states, s), t, atol=1e-8)
        np.testing.assert_allclose(log_snr_at(t, s), states, atol=1e-8)


@pytest.mark.parametrize("kind", [*KINDS, "flow"])
def test_a_thousand_states(kind):
    assert (np.diff(made(kind, 1000)) < 0).all()


def test_one_state_is_the_noisy_end():
    assert build("edm", 1)[0] == pytest.approx(-2 * math.log(80 / 0.5))
    for kind in ("linear", "cosine"):
        assert build(kind, 1)[0] == pytest.approx(math.log(0.001 / 0.999))


def test_linear_is_ddpms_and_cosine_is_iddpms():
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    expected = np.log(alpha_bar / (1 - alpha_bar))
    np.testing.assert_allclose(build("linear", 1000), expected, atol=1e-7)
    assert np.round(expected[:2], 2).tolist() == [9.21, 8.42]
    for states in (1000, 32):
        f = [math.cos((t / states + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(states + 1)]
        alpha_bar = np.cumprod([1 - min(1 - f[t + 1] / f[t], 0.999) for t in range(states)])
        expected = np.log(alpha_bar / (1 - alpha_bar))
        np.testing.assert_allclose(build("cosine", states), expected, atol=1e-6)
    assert np.round(build("linear", 32)[[0, -1]], 1).tolist() == [5.8, -13.3]
    assert np.round(build("cosine", 32)[[0, -1]], 2).tolist() == [5.63, -12.95]


def test_edm_is_karras_equation_5():
    i = np.arange(18)
    sigma = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(build("edm", 18), -2 * np.log(sigma / 0.5)[::-1], atol=1e-8)
    # Data half as large is noisier at the same sigma.
    np.testing.assert_allclose(
        build("edm", 18, sigma_data=0.25), build("edm", 18, shift=2 * math.log(0.5)), atol=2e-8
    )


def test_logistic_table():
    """T = 32, ends +-9, mean 0, scale 2, mirrored."""
    half = [9.00, 6.23, 5.05, 4.27, 3.68, 3.19, 2.77, 2.40]
    half += [2.06, 1.74, 1.45, 1.17, 0.90, 0.64, 0.38, 0.13]
    log_snr = build("logistic", 32)
    assert np.round(log_snr[:16], 2).tolist() == half
    np.testing.assert_allclose(log_snr, -log_snr[::-1], atol=1e-8)


@pytest.mark.parametrize(
    ("mean", "scale", "top", "bottom"),
    [(0, 2, 9, -9), (-1.5, 0.7, 8, -10), (3, 0.25, 9, -9), (-14, 0.5, 9, -9), (14, 0.5, 9, -9)],
)
def test_logistic_states_are_even_quantiles(mean, scale, top, bottom):
    log_snr = build("logistic", 20, mean=mean, scale=scale, log_snr_max=top, log_snr_min=bottom)
    assert (log_snr[0], log_snr[-1]) == (top, bottom)
    # On the side where the distribution function keeps its digits.
    law = stats.logistic(mean, scale)
    quantile = (law.cdf if mean > 0 else law.sf)(log_snr)
    steps = np.diff(quantile)
    np.testing.assert_allclose(steps, steps.mean(), rtol=1e-6)


def test_a_wide_logistic_and_a_fit_of_power_zero_are_even():
    even = build("log-snr", 20)
    np.testing.assert_allclose(build("logistic", 20, scale=1e3), even, atol=1e-3)
    np.testing.assert_allclose(made("fitted", 20, power=0), even, atol=1e-8)


def test_explicit():
    given = {"log_snr": [4, 0.5, -3], "zero_terminal": True}
    assert build("explicit", 3, **given).tolist() == [4, 0.5, -math.inf]
    assert build("explicit", 2, log_snr=[1, -1], shift=1).tolist() == [2.0, 0.0]
    assert not np.signbit(build("explicit", 2, log_snr=[1, -0.0])[1])


def test_gaussian_mmse_and_its_slope():
    log_snr = np.linspace(-8, 8, 9)
    for at, mmse in zip(log_snr, gaussian_mmse(log_snr, SPECTRUM), strict=True):
        # Cov(z | x) of the whole vector by conditioning a joint Gaussian.
        alpha2, sigma2 = (1 / (1 + math.exp(v)) for v in (-at, at))
        prior = np.diag(SPECTRUM)
        gain = prior @ np.linalg.inv(alpha2 * prior + sigma2 * np.eye(16))
        assert mmse == pytest.approx(np.trace(prior - alpha2 * gain @ prior) / 16)
    h = 1e-5
    difference = gaussian_mmse(log_snr - h, SPECTRUM) - gaussian_mmse(log_snr + h, SPECTRUM)
    np.testing.assert_allclose(
        gaussian_mmse_slope(log_snr, SPECTRUM), difference / (2 * h), rtol=1e-6
    )


@pytest.mark.parametrize("power", [0.25, 0.5, 1.0])
def test_fitted_states_split_the_density_evenly(power):
    """Against adaptive quadrature and root finding."""
    log_snr = made("fitted", 9, power=power, log_snr_max=8, log_snr_min=-7)

    def density(at):
        return gaussian_mmse_slope(np.array(at), SPECTRUM) ** power

    total = integrate.quad(density, -7, 8, epsabs=1e-12)[0]
    for t in range(1, 8):

        def surplus(at, t=t):
            return integrate.quad(density, at, 8, epsabs=1e-12)[0] - total * t / 8

        assert log_snr[t] == pytest.approx(optimize.brentq(surplus, -7, 8), abs=1e-5)


def test_a_fit_of_power_one_makes_every_step_change_the_estimate_alike():
    mmse = gaussian_mmse(made("fitted", 33, power=1), SPECTRUM)
    np.testing.assert_allclose(np.diff(mmse), (mmse[-1] - mmse[0]) / 32, rtol=1e-5)


def test_the_x0_path_of_a_mixture():
    """E|x0hat_s - x0hat_t|^2 = mmse_t - mmse_s along the noising process, so a fit of power 1 to a
    mixture's measured error curve makes that change alike from state to state."""
    mixture, n = three_in_the_plane(), 10_000
    z = mixture.sample(n, seed=1)
    generator = torch.Generator().manual_seed(2)
    eps = torch.randn(n, 2, dtype=torch.float64, generator=generator)

    def estimate(x, at):
        return mixture.posterior_mean(x, at)

    levels = np.linspace(-7, 7, 29)
    error = []
    for at in levels:
        alpha, sigma = (1 / (1 + math.exp(v)) ** 0.5 for v in (-at, at))
        error.append((estimate(alpha * z + sigma * eps, at) - z).square().mean().item())
    states = build("fitted", 9, error_curve=(levels, error), power=1, log_snr_max=7, log_snr_min=-7)
    # The forward chain: y = x/alpha gains independent noise from state to state.
    variance = np.exp(-states)
    y = z + math.sqrt(variance[0]) * eps
    path = []
    for t, at in enumerate(states):
        if t:
            fresh = torch.randn(n, 2, dtype=torch.float64, generator=generator)
            y = y + math.sqrt(variance[t] - variance[t - 1]) * fresh
        path.append(estimate(y / math.sqrt(1 + variance[t]), at))
    change = [(b - a).square().mean().item() for a, b in itertools.pairwise(path)]
    mmse = np.interp(states, levels, error)
    np.testing.assert_allclose(change, np.diff(mmse), rtol=0.1)
    np.testing.assert_allclose(change, np.mean(change), rtol=0.1)


def test_a_measured_curve_stands_in_for_the_spectrum():
    levels = np.linspace(-9, 9, 145)
    error = gaussian_mmse(levels, SPECTRUM)
    for kind in ("fitted", "elbo"):
        exact = build(kind, 24, spectrum=SPECTRUM)
        curve = build(kind, 24, error_curve=(levels, error))
        # The bound is flat around its best states: compare what it comes to there.
        gaps = [diagnose(states, SPECTRUM)["gap_total"] for states in (curve, exact)]
        assert gaps[0] == pytest.approx(gaps[1], rel=0.01)
        np.testing.assert_allclose(curve, exact, atol=0.01 if kind == "fitted" else 0.2)
        # Scale and order do not matter.
        scrambled = np.random.default_rng(0).permutation(145)
        again = build(kind, 24, error_curve=(levels[scrambled], 7 * error[scrambled]))
        np.testing.assert_allclose(again, curve, atol=1e-6)
        # The measured curve decides where both are given.
        both = build(kind, 24, error_curve=(levels, error), spectrum=[1.0])
        assert np.array_equal(both, curve)
    # Noise of 0.3 % breaks the fall on the plateaus; the pooled fit moves few states, and those
    # where hardly anything happens.
    noisy = error * (1 + 0.003 * np.random.default_rng(1).standard_normal(145))
    assert (np.diff(noisy) > 0).sum() > 10
    fit, exact = build("fitted", 24, error_curve=(levels, noisy)), made("fitted", 24)
    assert np.abs(fit - exact).max() < 1 and np.median(np.abs(fit - exact)) < 0.1


def test_violations_of_a_falling_curve_are_pooled():
    """Errors 9, 4, 6, 1 at -3, -1, 1, 3: the middle pair becomes 5 at 0, and lines join the three
    points, with slopes 4/3 and 4/3. At power 1 the states are therefore even."""
    states = build(
        "fitted",
        7,
        error_curve=([-3, -1, 1, 3], [9, 4, 6, 1]),
        power=1,
        log_snr_max=3,
        log_snr_min=-3,
    )
    np.testing.assert_allclose(states, [3, 2, 1, 0, -1, -2, -3], atol=1e-8)
    # Slopes 1 and 4, at power 1/2 twice as many nodes in the steep half.
    states = build(
        "fitted",
        7,
        error_curve=([-2, 0, 2], [10, 8, 0]),
        power=0.5,
        log_snr_max=2,
        log_snr_min=-2,
    )
    np.testing.assert_allclose(states, [2, 1.5, 1, 0.5, 0, -1, -2], atol=1e-3)


def bound(snr, mmse, path):
    return sum((snr[j] - snr[i]) * mmse[i] for i, j in itertools.pairwise(path))


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 8])
def test_the_least_bound_equals_brute_force(steps):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        snr = np.sort(rng.lognormal(0, 3, 9))
        mmse = -np.sort(-rng.random(9))
        middle = itertools.combinations(range(1, 8), steps - 1)
        best = min(bound(snr, mmse, (0, *path, 8)) for path in middle)
        path = least_bound_path(snr, mmse, steps)
        assert len(path) == steps + 1 and (path[0], path[-1]) == (0, 8)
        assert bound(snr, mmse, path) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("n", [2, 3, 32, 49])
def test_the_least_bound_equals_the_quadratic_programme(n):
    snr = np.exp(np.linspace(-9, 9, n))
    mmse = gaussian_mmse(np.log(snr), SPECTRUM)
    cost = np.triu((snr[None] - snr[:, None]) * mmse[:, None], 1)
    cost[np.tril_indices(n)] = np.inf
    value = np.r_[0.0, np.full(n - 1, np.inf)]
    for steps in range(1, min(n, 40)):
        value = (value[:, None] + cost).min(0)
        path = least_bound_path(snr, mmse, steps)
        assert bound(snr, mmse, path) == pytest.approx(value[-1], rel=1e-12)


def test_no_other_schedule_has_a_smaller_gap_than_elbo(monkeypatch):
    monkeypatch.setattr(schedule, "CANDIDATES", 4001)
    best = diagnose(made("elbo", 16), SPECTRUM)["gap_total"]
    for kind in ("log-snr", "logistic", "fitted"):
        assert diagnose(made(kind, 16), SPECTRUM)["gap_total"] > best
    # Its nodes follow snr * sqrt(E|Cov|^2), the density that is optimal for many states.
    states = made("elbo", 65)

    def density(at):
        snr = np.exp(at)
        return snr * np.sqrt(np.square(SPECTRUM / (1 + SPECTRUM * snr)).sum())

    total = integrate.quad(density, -9, 9)[0]
    share = [integrate.quad(density, at, 9)[0] / total for at in states[8:-8:8]]
    np.testing.assert_allclose(share, np.arange(8, 57, 8) / 64, atol=0.02)


@pytest.mark.parametrize("clean", [-15.0, 0.3, 12.0])
@pytest.mark.parametrize("step", [1e-4, 0.45, 5.0])
def test_a_reverse_step_is_a_gaussian_channel_of_that_snr(clean, step):
    """c0^2 / btil = snr_s - snr_t = snr_t (e^D - 1), in 50 digits."""
    with localcontext() as context:
        context.prec = 50
        a_s, a_t = (1 / (1 + (-Decimal(v)).exp()) for v in (clean, clean - step))
        beta = 1 - a_t / a_s
        btil = (1 - a_s) / (1 - a_t) * beta
        c_x0 = a_s.sqrt() * beta / (1 - a_t)
        exact = float(c_x0**2 / btil)
    got = diagnose([clean, clean - step], SPECTRUM)
    assert got["channel_snr"][0] == pytest.approx(exact, rel=1e-10)
    assert got["step_expm1"][0] * math.exp(clean - step) == pytest.approx(exact, rel=1e-10)


def test_diagnosis_of_a_gaussian():
    states = made("logistic", 12, log_snr_max=6, log_snr_min=-7)
    got = diagnose(states, SPECTRUM)
    snr = np.exp(states)
    np.testing.assert_allclose(got["step"], -np.diff(states))
    gap = []
    for t in range(11):
        clean, noisy = snr[t], snr[t + 1]
        covariance = np.linalg.inv(np.diag(1 / SPECTRUM) + noisy * np.eye(16))  # Cov(z | x_t)
        condition = np.linalg.eigvalsh((clean - noisy) * covariance)
        assert got["condition_top"][t] == pytest.approx(condition.max())
        assert got["condition_mean"][t] == pytest.approx(condition.mean())
        # 1/2 mmse, once held from the noisy end of the step and once integrated over the SNR.
        held = (clean - noisy) * gaussian_mmse(np.log(noisy), SPECTRUM) / 2
        area = integrate.quad(
            lambda s: gaussian_mmse(np.log(s), SPECTRUM) / 2, noisy, clean, epsabs=1e-13
        )[0]
        gap.append(held - area)
    np.testing.assert_allclose(got["gap"], gap, rtol=1e-6, atol=1e-12)
    assert got["gap_total"] == pytest.approx(sum(gap))
    per_step = [np.diff(-snr)[t] * SPECTRUM / (1 + SPECTRUM * snr[t + 1]) for t in range(11)]
    np.testing.assert_allclose(got["condition_component"], np.max(per_step, axis=0))
    assert got["condition_component"][0] == pytest.approx(got["condition_top"].max())
    # A whitened direction never passes e^D - 1.
    assert (got["condition_top"] <= got["step_expm1"] * (1 + 1e-12)).all()


def test_diagnosis_of_the_ends():
    """The published values: SD's last state leaks .068, 7 and 9 leave .030 and .011."""
    leak = diagnose([7.0, -5.36], [1.0])
    assert leak["leaked_signal"] == pytest.approx(0.068, abs=1e-3)
    assert leak["residual_noise"] == pytest.approx(0.030, abs=1e-3)
    assert diagnose([9.0, 0.0], [1.0])["residual_noise"] == pytest.approx(0.011, abs=2e-4)
    # The rule log_snr_min <= -ln(c_max) - 4 leaks at most e^-2.
    assert diagnose([0.0, -math.log(30.0) - 4], [30.0, 0.1])["leaked_signal"] == pytest.approx(
        math.exp(-2)
    )
    alone = diagnose([-9.0], SPECTRUM)
    assert len(alone["step"]) == len(alone["gap"]) == 0 and alone["gap_total"] == 0.0
    terminal = diagnose(build("log-snr", 8, zero_terminal=True), SPECTRUM)
    assert terminal["leaked_signal"] == 0.0
    assert terminal["step"][-1] == terminal["step_expm1"][-1] == math.inf
    for name in ("channel_snr", "condition_top", "condition_mean", "gap", "condition_component"):
        assert np.isfinite(terminal[name]).all()


def test_a_fit_samples_better_than_even_log_snr():
    """DDIM on Gaussian data multiplies each component by a known gain; its error in the output's
    standard deviation, at equally many states, is what a schedule is chosen for."""

    def error(log_snr):
        alpha, sigma = np.sqrt(1 / (1 + np.exp(-log_snr))), np.sqrt(1 / (1 + np.exp(log_snr)))
        std = np.sqrt(alpha[-1] ** 2 * SPECTRUM + sigma[-1] ** 2)
        for t in range(len(log_snr) - 1, 0, -1):
            x0 = alpha[t] * SPECTRUM / (alpha[t] ** 2 * SPECTRUM + sigma[t] ** 2)
            std = std * (alpha[t - 1] * x0 + sigma[t - 1] / sigma[t] * (1 - alpha[t] * x0))
        true = np.sqrt(alpha[0] ** 2 * SPECTRUM + sigma[0] ** 2)
        return np.square(std - true).mean() ** 0.5

    for states in (16, 32, 64):
        even = error(build("log-snr", states))
        assert error(made("fitted", states)) < 0.8 * even
        assert error(made("elbo", states)) > even


def test_subset():
    assert subset(10, 10).tolist() == list(range(10))
    assert subset(10, 4).tolist() == [0, 3, 6, 9]
    assert subset(1, 1).tolist() == [0] and subset(10, 1).tolist() == [9]
    for total in range(2, 60):
        for steps in range(2, total + 1):
            index = subset(total, steps)
            assert (index[0], index[-1]) == (0, total - 1) and len(index) == steps
            assert set(np.diff(index)) <= {
                (total - 1) // (steps - 1),
                -(-(total - 1) // (steps - 1)),
            }
    for steps in (0, 11, -1):
        with pytest.raises(UserError, match="10 states"):
            subset(10, steps)


@pytest.mark.parametrize(
    ("kind", "options", "named"),
    [
        ("log-snr", {"log_snr_max": 1e-9, "log_snr_min": 0}, "8 distinct states"),
        ("fitted", {"error_curve": ([-8, 9], [1, 0])}, "spans -8 to 9"),
        ("elbo", {"error_curve": ([-9, 8], [1, 0])}, "spans -9 to 8"),
    ],
)
def test_impossible_options_are_named(kind, options, named):
    with pytest.raises(UserError, match=named) as caught:
        build(kind, 8, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        {"spectrum": []},
        {"spectrum": [0.0, 0.0]},
        {"spectrum": [1.0, -0.1]},
        {"spectrum": [math.nan]},
        {"error_curve": ([0.0], [1.0])},
        {"error_curve": ([-9.0, 9.0], [1.0])},
        {"error_curve": ([-9.0, 9.0], [0.1, 1.0])},
        {"error_curve": ([-9.0, -9.0, 9.0], [1.0, 0.9, 0.1])},
        {"error_curve": ([-9.0, 9.0], [1.0, -0.1])},
    ],
)
def test_impossible_data(given):
    with pytest.raises(ValueError, match=r"spectrum|error curve"):
        build("fitted", 8, **given)


def test_planning_imports_neither_torch_nor_scipy():
    code = "import sys; from tests.levels import states_of; states_of('logistic', 8)\n"
    code += "print({'torch', 'scipy'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
