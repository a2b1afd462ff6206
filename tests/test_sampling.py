"""Samplers against closed forms: quantiles of a mixture, a Gaussian chain, DDPM's posterior."""

import itertools
import math
from decimal import Decimal, localcontext
from typing import Annotated

import numpy as np
import pytest
import torch
from pydantic import Field

from pipeline.levels.schedule import subset
from pipeline.sampling import samplers
from pipeline.sampling.guidance import led
from pipeline.sampling.params import Sampling
from pipeline.sampling.samplers import clipped
from tests.levels import states_of as build
from tests.mixtures import GaussianMixture, three_in_the_plane, two_on_a_line
from tests.specs import block

SOLVERS = {"ddim": 1, "euler": 1, "heun": 2, "heun-flow": 2, "dpmpp-2m": 2}


SAMPLERS = ("ddpm", *SOLVERS)
ALL = (-math.inf, math.inf)  # noise levels


def sampler(kind, **options):
    settings = {"kind": kind} | options
    return samplers.sampler(block(Annotated[Sampling, Field(discriminator="kind")], settings))


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def seeded(shape, seed=0):
    return lambda i: normal(*shape, seed=1_000_003 * seed + i)


def even(states, top=6.0):
    return build("log-snr", states, log_snr_max=top, log_snr_min=-top)


@pytest.mark.parametrize("kind", SOLVERS)
def test_deterministic_samplers_carry_quantiles_at_their_order(kind):
    """In one dimension the exact probability flow keeps every point's quantile."""
    mixture = two_on_a_line()
    x = torch.linspace(-3, 3, 31, dtype=torch.float64)[:, None]
    error = []
    for states in (65, 257):
        reached = {}
        answer = sampler(kind)(
            mixture.posterior_mean, x, even(states), callback=lambda d, r=reached: r.update(d)
        )
        assert reached["index"] == 0 and reached["log_snr"] == 6.0
        assert torch.equal(answer, mixture.posterior_mean(reached["x"], 6.0))
        error.append((mixture.cdf(reached["x"], 6.0) - mixture.cdf(x, -6.0)).abs().max().item())
    assert error[1] < {1: 3e-3, 2: 5e-5}[SOLVERS[kind]]
    assert math.log(error[0] / error[1], 4) == pytest.approx(SOLVERS[kind], abs=0.15)


@pytest.mark.parametrize("schedule", ["logistic", "edm"])
def test_order_against_a_fine_reference_on_uneven_states(schedule):
    mixture = three_in_the_plane()
    options = {
        "logistic": {"log_snr_max": 6, "log_snr_min": -6},
        "edm": {"sigma_min": 0.05, "sigma_max": 20, "sigma_data": 1},
    }[schedule]
    x = normal(24, 2)
    reference = sampler("heun")(mixture.posterior_mean, x, build(schedule, 641, **options))
    for kind, order in SOLVERS.items():
        # The median over starts: the flow's few starts close to a watershed between two modes
        # come to their order only at far more states.
        error = [
            (sampler(kind)(mixture.posterior_mean, x, build(schedule, n, **options)) - reference)
            .norm(dim=1)
            .median()
            for n in (33, 129)
        ]
        assert math.log(error[0] / error[1], 4) == pytest.approx(order, abs=0.3)


def test_ancestral_variance_converges_at_order_one():
    """On Gaussian data the chain is linear: its exact output variance against the true one."""
    variance, top = 0.4, 6.0
    gaussian = GaussianMixture([1.0], [[0.0]], [[[variance]]])
    error = []
    for count in (33, 129):
        # Row 0 carries x_T, row i the noise that leaves states[i]: unit inputs, one a row.
        x = torch.zeros(count, 1, dtype=torch.float64)
        x[0] = math.sqrt(1 - (1 - variance) / (1 + math.exp(top)))  # the marginal at -top
        answer = sampler("ddpm")(
            gaussian.posterior_mean,
            x,
            even(count, top),
            noise=lambda i, n=count: torch.eye(n, dtype=torch.float64)[:, i : i + 1],
        )
        alpha2 = 1 / (1 + math.exp(-top))
        true = variance**2 * alpha2 / (alpha2 * variance + 1 - alpha2)
        error.append(abs(answer.square().sum().item() / true - 1))
    assert error[1] < 0.05
    assert math.log(error[0] / error[1], 4) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ddpm", {}),
        ("ddpm", {"variance": "large"}),
        ("ddim", {}),
        ("ddim", {"eta": 0.5}),
        ("heun", {}),
        ("heun", {"s_churn": 4.0}),
        ("dpmpp-2m", {}),
        ("euler", {}),
        ("heun-flow", {}),
    ],
)
def test_samples_have_the_mixtures_distribution(kind, options):
    """Kolmogorov-Smirnov distance to the exact distribution function, from pure noise."""
    mixture, n = two_on_a_line(), 10_000
    x = normal(n, 1, seed=3)
    distance = []
    for states in (8, 128):
        z = sampler(kind, **options)(
            mixture.posterior_mean,
            x,
            build("logistic", states, log_snr_max=8, log_snr_min=-8),
            noise=seeded((n, 1), seed=5),
        )
        uniform = mixture.cdf(z).sort().values
        steps = torch.arange(n + 1, dtype=torch.float64) / n
        distance.append(max((steps[1:] - uniform).max(), (uniform - steps[:-1]).max()).item())
    assert distance[1] < 1.95 / math.sqrt(n)  # p = 0.001
    assert distance[0] > distance[1]


@pytest.mark.parametrize("clean", [-20.0, -1.0, 2.0, 15.0])
@pytest.mark.parametrize("step", [1e-6, 0.014, 0.5, 3.0, 12.0])
def test_eta_one_is_ddpms_posterior_step(clean, step):
    """One step against q(x_s | x_t, x0), DDPM equations 6 and 7, with alpha-bar = sigmoid."""
    with localcontext() as context:
        context.prec = 60
        a_s, a_t = (1 / (1 + (-Decimal(v)).exp()) for v in (clean, clean - step))
        beta = 1 - a_t / a_s
        c_x0 = float(a_s.sqrt() * beta / (1 - a_t))
        c_x = float((a_t / a_s).sqrt() * (1 - a_s) / (1 - a_t))
        std = float((beta * (1 - a_s) / (1 - a_t)).sqrt())
    x, x0, z = normal(3, 50)
    for name, options in (("ddpm", {}), ("ddim", {"eta": 1.0})):
        seen = []
        sampler(name, **options)(
            lambda x, log_snr: x0, x, [clean, clean - step], noise=lambda i: z, callback=seen.append
        )
        torch.testing.assert_close(seen[-1]["x"], c_x * x + c_x0 * x0 + std * z, rtol=0, atol=1e-12)


@pytest.mark.parametrize("clean", [-20.0, -1.0, 2.0, 15.0])
@pytest.mark.parametrize("step", [0.014, 0.5, 12.0, math.inf])
def test_large_variance_is_ddpms_beta_around_the_same_mean(clean, step):
    with localcontext() as context:
        context.prec = 60
        a_s = 1 / (1 + (-Decimal(clean)).exp())
        a_t = 0 if step == math.inf else 1 / (1 + (-Decimal(clean - step)).exp())
        std = float((1 - a_t / a_s).sqrt())
    x, x0, z = normal(3, 50)
    means = []
    for variance in ("small", "large"):
        seen = []
        for drawn in (z, torch.zeros_like(z)):
            sampler("ddpm", variance=variance)(
                lambda x, log_snr: x0,
                x,
                [clean, clean - step],
                noise=lambda i, drawn=drawn: drawn,
                callback=seen.append,
            )
        means.append(seen[-1]["x"])
    torch.testing.assert_close(means[0], means[1], rtol=0, atol=0)
    torch.testing.assert_close(seen[1]["x"] - means[1], std * z, rtol=0, atol=1e-12)


def test_partial_eta_keeps_the_marginal_and_mixes_the_noise():
    """DDIM's family keeps q(x_s | x0): the variance around alpha_s x0 is sigma_s^2 for any eta."""
    clean, noisy, z = 1.0, -0.8, 0.7
    alpha_t, sigma_t = (1 / (1 + math.exp(v)) ** 0.5 for v in (-noisy, noisy))
    alpha_s, sigma_s = (1 / (1 + math.exp(v)) ** 0.5 for v in (-clean, clean))
    share = []
    for eta in (0.0, 0.3, 0.8, 1.0):
        rows = torch.tensor([[alpha_t * z], [alpha_t * z + sigma_t]], dtype=torch.float64)
        seen = []
        sampler("ddim", eta=eta)(
            lambda x, log_snr: torch.full_like(x, z),
            rows.repeat(2, 1),
            [clean, noisy],
            noise=lambda i: torch.tensor([[0.0], [0], [1], [1]], dtype=torch.float64),
            callback=seen.append,
        )
        mean, from_eps, from_noise, _ = seen[-1]["x"][:, 0].tolist()
        assert mean == pytest.approx(alpha_s * z)
        from_eps, from_noise = from_eps - mean, from_noise - mean
        assert from_eps**2 + from_noise**2 == pytest.approx(sigma_s**2)
        share.append(from_noise / sigma_s)
    kept = 1 - math.exp(noisy - clean)
    assert share == pytest.approx([eta * kept**0.5 for eta in (0.0, 0.3, 0.8, 1.0)])


def literal_heun(denoise, x, states):
    """EDM algorithm 1 in its own variables: y = x/alpha, t = sigma/alpha, ending at t = 0."""
    t = [math.exp(-v / 2) for v in reversed(states)] + [0.0]
    levels = [*reversed(states), None]
    y = x * math.sqrt(1 + t[0] ** 2)
    for i in range(len(t) - 1):
        d = (y - denoise(y / math.sqrt(1 + t[i] ** 2), levels[i])) / t[i]
        following = y + (t[i + 1] - t[i]) * d
        if t[i + 1] != 0:
            at = following / math.sqrt(1 + t[i + 1] ** 2)
            slope = (following - denoise(at, levels[i + 1])) / t[i + 1]
            following = y + (t[i + 1] - t[i]) * (d + slope) / 2
        y = following
    return y


def literal_churn(denoise, x, states, noise, s_churn, s_min, s_max, s_noise):
    """EDM algorithm 2 with images of standard deviation 0.5 in its own variables."""
    t = [0.5 * math.exp(-v / 2) for v in reversed(states)] + [0.0]
    steps = len(states)

    def estimate(y, sigma):
        scaled = sigma / 0.5
        return 0.5 * denoise(y / 0.5 / math.sqrt(1 + scaled**2), -2 * math.log(scaled))

    y = 0.5 * x * math.sqrt(1 + (t[0] / 0.5) ** 2)
    for i in range(steps):
        gamma = (
            min(s_churn / steps, math.sqrt(2) - 1) if s_min <= t[i] <= (s_max or math.inf) else 0.0
        )
        t_hat = t[i] + gamma * t[i]
        drawn = noise(steps - 1 - i) if gamma else 0.0
        y_hat = y + math.sqrt(t_hat**2 - t[i] ** 2) * s_noise * drawn
        d = (y_hat - estimate(y_hat, t_hat)) / t_hat
        y = y_hat + (t[i + 1] - t_hat) * d
        if t[i + 1] != 0:
            slope = (y - estimate(y, t[i + 1])) / t[i + 1]
            y = y_hat + (t[i + 1] - t_hat) * (d + slope) / 2
    return y / 0.5


@pytest.mark.parametrize("s_churn", [0.0, 1.2, 40.0])
@pytest.mark.parametrize(("s_min", "s_max"), [(0.0, None), (0.05, 1.0)])
def test_churn_is_edms_algorithm_2(s_churn, s_min, s_max):
    mixture, x, noise = three_in_the_plane(), normal(20, 2), seeded((20, 2))
    states = [7.5, 3.0, 1.1, 0.8, -2.0, -4.5]
    options = {"s_churn": s_churn, "s_min": s_min, "s_max": s_max, "s_noise": 1.003}
    torch.testing.assert_close(
        sampler("heun", **options)(mixture.posterior_mean, x, states, noise=noise),
        literal_churn(mixture.posterior_mean, x, states, noise, **options),
        rtol=1e-10,
        atol=1e-10,
    )


def literal_dpmpp_2m(denoise, x, states):
    """DPM-Solver++ algorithm 2 in its own variables, with a last step to lambda = infinity."""
    lam = [v / 2 for v in reversed(states)]
    alpha = [1 / math.sqrt(1 + math.exp(-2 * v)) for v in lam]
    sigma = [1 / math.sqrt(1 + math.exp(2 * v)) for v in lam]
    answers = [denoise(x, 2 * lam[0])]
    for i in range(1, len(lam)):
        h = lam[i] - lam[i - 1]
        mixed = answers[-1]
        if i > 1:
            r = (lam[i - 1] - lam[i - 2]) / h
            mixed = (1 + 1 / (2 * r)) * answers[-1] - 1 / (2 * r) * answers[-2]
        x = sigma[i] / sigma[i - 1] * x - alpha[i] * (math.exp(-h) - 1) * mixed
        answers.append(denoise(x, 2 * lam[i]))
    return answers[-1]


@pytest.mark.parametrize("literal", [literal_heun, literal_dpmpp_2m])
def test_solvers_are_the_published_algorithms(literal):
    mixture, x = three_in_the_plane(), normal(20, 2)
    states = [7.5, 3.0, 1.1, 0.8, -2.0, -4.5]
    kind = {literal_heun: "heun", literal_dpmpp_2m: "dpmpp-2m"}[literal]
    torch.testing.assert_close(
        sampler(kind)(mixture.posterior_mean, x, states),
        literal(mixture.posterior_mean, x, states),
        rtol=1e-11,
        atol=1e-11,
    )


def test_euler_on_the_path_of_a_flow_is_ddim_on_the_same_states():
    mixture, x = three_in_the_plane(), normal(40, 2)
    for states in (build("flow", 9), build("flow", 16, shift=3), even(12)):
        steps = {"ddim": [], "euler": []}
        for kind, seen in steps.items():
            sampler(kind)(mixture.posterior_mean, x, states, callback=lambda d, s=seen: s.append(d))
        for one, other in zip(*steps.values(), strict=True):
            torch.testing.assert_close(one["x"], other["x"], rtol=0, atol=1e-13)
            torch.testing.assert_close(one["x0"], other["x0"], rtol=0, atol=1e-13)


def literal_flow(velocity, y, times, second_order):
    """From y at times[0] to t = 0, in the flow's own variables; the last step is Euler's."""
    for t, s in itertools.pairwise([*times, 0.0]):
        u = velocity(y, t)
        if second_order and s > 0:
            u = (u + velocity(y + (s - t) * u, s)) / 2
        y = y + (s - t) * u
    return y


@pytest.mark.parametrize("kind", ["euler", "heun-flow"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_steps_of_a_flow_are_those_of_its_own_variables(kind, shift):
    mixture, steps = three_in_the_plane(), 12

    def velocity(y, t):
        log_snr = 2 * math.log((1 - t) / t)
        x = y / math.sqrt((1 - t) ** 2 + t**2)
        return (y - mixture.posterior_mean(x, log_snr)) / t

    times = [0.999 * i / steps for i in range(steps, 0, -1)]
    times = [shift * t / (1 + (shift - 1) * t) for t in times]
    x = normal(30, 2)
    y = x * math.sqrt((1 - times[0]) ** 2 + times[0] ** 2)
    torch.testing.assert_close(
        sampler(kind)(mixture.posterior_mean, x, build("flow", steps, shift=shift)),
        literal_flow(velocity, y, times, kind == "heun-flow"),
        rtol=0,
        atol=1e-6,  # states are rounded to 1e-8 in log-SNR
    )


@pytest.mark.parametrize(("kind", "order"), [("euler", 1), ("heun-flow", 2)])
def test_a_flow_has_the_mixtures_distribution_at_its_order(kind, order):
    """Quantiles from t = 0.999 to the data itself, against the exact distribution function."""
    mixture = two_on_a_line()
    x = torch.linspace(-2.5, 2.5, 41, dtype=torch.float64)[:, None]
    error = []
    for steps in (32, 128):
        z = sampler(kind)(mixture.posterior_mean, x, build("flow", steps))
        start = build("flow", steps)[-1]
        error.append((mixture.cdf(z) - mixture.cdf(x, start)).abs().max().item())
    assert error[1] < {1: 2e-2, 2: 1e-3}[order]
    assert math.log(error[0] / error[1], 4) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_mixture_of_exact_experts_is_the_exact_denoiser(kind):
    """A router that picks another exact denoiser for each state changes no bit of any sampler."""
    mixture = three_in_the_plane()
    states = build("logistic", 12)

    def expert(own):
        def denoise(x, log_snr):
            assert log_snr == own
            return mixture.posterior_mean(x, own)

        return denoise

    experts = {float(v): expert(float(v)) for v in states}
    visited = []

    def route(x, log_snr):
        visited.append(log_snr)
        return experts[log_snr](x, log_snr)

    x, noise = normal(40, 2), seeded((40, 2))
    assert torch.equal(
        sampler(kind)(route, x, states, noise=noise),
        sampler(kind)(mixture.posterior_mean, x, states, noise=noise),
    )
    assert set(visited) == set(states.tolist())
    assert len(visited) == (23 if kind.startswith("heun") else 12)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_zero_terminal_snr_is_the_limit_of_a_very_noisy_state(kind):
    """At alpha = 0 the denoiser's answer is the mean, and sampling goes on from there."""
    mixture = three_in_the_plane()
    states = build("log-snr", 16, zero_terminal=True)
    x, noise = normal(50, 2), seeded((50, 2))
    exact = sampler(kind)(mixture.posterior_mean, x, states, noise=noise)
    assert exact.isfinite().all()
    # The limit of heun's step from a large sigma/alpha magnifies the change of x0hat without
    # bound, so its first step is Euler's there; all others run into their limit.
    if kind != "heun":
        limit = [*states[:-1], -60.0]
        torch.testing.assert_close(
            exact, sampler(kind)(mixture.posterior_mean, x, limit, noise=noise), atol=1e-2, rtol=0
        )


def test_heun_in_time_is_finite_from_no_signal():
    """There t = 1, and the velocity is the noise less the mean."""
    mixture, x, s = three_in_the_plane(), normal(50, 2), 0.4
    clean = 2 * math.log((1 - s) / s)
    factor = math.hypot(s, 1 - s)
    mean = (mixture.weights @ mixture.means).expand(50, 2)
    first = x - mean
    ahead = x + (s - 1) * first
    there = (ahead - mixture.posterior_mean(ahead / factor, clean)) / s
    y = x + (s - 1) * (first + there) / 2
    torch.testing.assert_close(
        sampler("heun-flow")(mixture.posterior_mean, x, [clean, -math.inf]),
        mixture.posterior_mean(y / factor, clean),
    )


def test_heun_starts_with_euler_from_no_signal():
    mixture = three_in_the_plane()
    states = [2.0, -math.inf]
    x = normal(50, 2)
    mean = (mixture.weights @ mixture.means).expand(50, 2)
    alpha, sigma = (1 / (1 + math.exp(v)) ** 0.5 for v in (-2.0, 2.0))
    torch.testing.assert_close(
        sampler("heun")(mixture.posterior_mean, x, states),
        mixture.posterior_mean(alpha * mean + sigma * x, 2.0),
    )


@pytest.mark.parametrize("kind", SAMPLERS)
def test_one_state_is_one_evaluation(kind):
    mixture, x = three_in_the_plane(), normal(5, 2)
    assert torch.equal(
        sampler(kind)(mixture.posterior_mean, x, [-3.0]), mixture.posterior_mean(x, -3.0)
    )


@pytest.mark.parametrize("kind", SAMPLERS)
def test_images_in_float32_stay_float32(kind):
    mixture = three_in_the_plane()

    def denoise(x, log_snr):
        return mixture.posterior_mean(x.reshape(-1, 2), log_snr).reshape(x.shape).to(x.dtype)

    x, noise = normal(6, 1, 2, 3), seeded((6, 1, 2, 3))
    states = build("logistic", 32)
    double = sampler(kind)(denoise, x, states, noise=noise)
    single = sampler(kind)(denoise, x.float(), states, noise=lambda i: noise(i).float())
    assert single.dtype == torch.float32 and single.shape == x.shape
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-3)


def test_noise_is_asked_for_once_per_step_by_the_state_it_leaves():
    mixture, asked, seen = three_in_the_plane(), [], []
    noise = seeded((4, 2))

    def recording(i):
        asked.append(i)
        return noise(i)

    x = normal(4, 2)
    sampler("ddpm")(mixture.posterior_mean, x, even(5), noise=recording, callback=seen.append)
    assert asked == [4, 3, 2, 1]
    assert [d["index"] for d in seen] == [4, 3, 2, 1, 0]
    assert torch.equal(seen[0]["x"], x)
    with pytest.raises(ValueError, match="noise"):
        sampler("ddpm")(mixture.posterior_mean, x, even(5))
    # A walk taken up half way with the same noise is the same walk.
    resumed = sampler("ddpm")(mixture.posterior_mean, seen[2]["x"], even(5)[:3], noise=noise)
    assert torch.equal(resumed, seen[-1]["x0"])


def test_clipping_bounds_every_estimate():
    mixture, seen = three_in_the_plane(), []
    x = normal(200, 2)
    free = sampler("ddim")(mixture.posterior_mean, x, even(12))
    assert free.abs().max() > 1
    within = clipped(mixture.posterior_mean, (-0.5, 1.0))
    bounded = sampler("ddim")(within, x, even(12), callback=seen.append)
    for d in seen:
        assert d["x0"].min() >= -0.5 and d["x0"].max() <= 1.0
    tensors = torch.tensor([[-0.5, -0.5], [1.0, 1.0]], dtype=torch.float64)
    same = sampler("ddim")(clipped(mixture.posterior_mean, tuple(tensors)), x, even(12))
    assert torch.equal(same, bounded)
    wide = sampler("ddim")(clipped(mixture.posterior_mean, (-100, 100)), x, even(12))
    assert torch.equal(wide, free)


def test_guidance_tilts_the_distribution_towards_the_condition():
    """With equal spreads, guidance g moves a Gaussian conditional to mean m_u + g (m_c - m_u)."""
    spread = [[[0.2, 0.0], [0.0, 0.3]]]
    conditional = GaussianMixture([1.0], [[1.0, -0.5]], spread).posterior_mean
    unconditional = GaussianMixture([1.0], [[0.2, 0.1]], spread).posterior_mean
    x, states = normal(30, 2), even(20)
    for guidance, mean in ((0.0, [0.2, 0.1]), (1.0, [1.0, -0.5]), (2.5, [2.2, -1.4])):
        tilted = GaussianMixture([1.0], [mean], spread)
        torch.testing.assert_close(
            sampler("ddim")(led(conditional, unconditional, guidance, ALL), x, states),
            sampler("ddim")(tilted.posterior_mean, x, states),
        )


@pytest.mark.parametrize("log_snr", [-4.0, -0.5, 2.0])
def test_a_worse_model_of_a_gaussian_is_corrected_beyond_the_better_one(log_snr):
    """Autoguidance in closed form: widths v_m of the model, v_g of the guide, both too large.

    x0hat = alpha v x/(alpha^2 v + sigma^2), so the guided answer is that of one Gaussian, whose
    width is below the model's: samples concentrate, as the paper says.
    """
    model, worse, scale = 1.3, 1.9, 1.5
    alpha2 = 1 / (1 + math.exp(-log_snr))
    gain = [math.sqrt(alpha2) * v / (alpha2 * v + 1 - alpha2) for v in (model, worse)]
    gain = gain[1] + scale * (gain[0] - gain[1])
    width = gain * (1 - alpha2) / (math.sqrt(alpha2) - gain * alpha2)
    assert 0 < width < model
    one, other, both = (
        GaussianMixture([1.0], [[0.0]], [[[v]]]).posterior_mean for v in (model, worse, width)
    )
    x = normal(20, 1)
    torch.testing.assert_close(led(one, other, scale, ALL)(x, log_snr), both(x, log_snr))


def test_guidance_within_an_interval_asks_the_other_model_there_alone():
    mixture, x = three_in_the_plane(), normal(12, 2)
    states = even(13, top=6.0)  # -6, -5, ... 6
    asked = []

    def other(x, log_snr):
        asked.append(log_snr)
        return torch.zeros_like(x)

    walk = sampler("ddim")
    seen = {}
    for interval in ((-2.0, 3.0), (-100.0, -50.0)):
        steps = []
        walk(led(mixture.posterior_mean, other, 2.0, interval), x, states, callback=steps.append)
        seen[interval] = {
            d["log_snr"]: d["x0"] - mixture.posterior_mean(d["x"], d["log_snr"]) for d in steps
        }
    assert asked == [-2.0, -1.0, 0.0, 1.0, 2.0]
    for interval, changes in seen.items():
        for log_snr, change in changes.items():
            assert bool(change.abs().max() > 0) == (interval[0] <= log_snr < interval[1])
    free = walk(mixture.posterior_mean, x, states)
    assert torch.equal(walk(led(mixture.posterior_mean, other, 2.0, (-100, -50)), x, states), free)


def test_a_subset_of_states_samples_like_a_schedule_of_its_own():
    mixture, x = three_in_the_plane(), normal(10, 2)
    states = even(97)
    kept = states[subset(len(states), 25)]
    np.testing.assert_allclose(kept, even(25), atol=1e-7)
    torch.testing.assert_close(
        sampler("heun")(mixture.posterior_mean, x, kept),
        sampler("heun")(mixture.posterior_mean, x, even(25)),
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize("states", [[], [0.0, 0.0], [-1.0, 1.0], [1.0, math.nan]])
def test_states_out_of_order(states):
    with pytest.raises(ValueError, match="cleanest"):
        sampler("ddim")(lambda x, log_snr: x, normal(1, 2), states)
