"""Objectives against autograd, a Gaussian-mixture oracle and EDM's published formulas."""

import math

import numpy as np
import pytest
import torch
from scipy import optimize

from pipeline.networks.velocity import velocity
from pipeline.noise.process import (
    add_noise,
    alpha_sigma,
    broadcast,
    squared_error,
    target,
    to_x0,
)
from pipeline.training.loss import Uncertainty, weight
from pipeline.training.params import Training
from tests.mixtures import three_in_the_plane

PREDICTIONS = ("eps", "x0", "v")
LEVELS = [-30.0, -12.0, -3.5, 0.0, 0.7, 6.0, 14.0, 30.0]


def weighting(kind, **options):
    block = Training(weighting={"kind": kind, **options}).weighting
    return lambda log_snr, prediction: weight(block, log_snr, prediction)


def draws(n=256, seed=0):
    z = three_in_the_plane().sample(n, seed)
    eps = torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    return z, eps


def test_the_mixture_oracle_agrees_with_autograd_tweedie_and_brute_force():
    mixture = three_in_the_plane()
    assert torch.trace(mixture.covariance()) / 2 == pytest.approx(1.0)
    z, eps = draws(64)
    for log_snr in (-6.0, 0.3, 5.0):
        alpha, sigma = alpha_sigma(log_snr)
        x = (alpha * z + sigma * eps).requires_grad_()
        (gradient,) = torch.autograd.grad(mixture.log_pdf(x, log_snr).sum(), x)
        score = mixture.score(x, log_snr)
        torch.testing.assert_close(score, gradient)
        # Tweedie: alpha E[z|x] = x + sigma^2 score
        mean = mixture.posterior_mean(x, log_snr)
        torch.testing.assert_close(alpha * mean, x + sigma**2 * score)
    # The posterior mean by quadrature over z.
    side = torch.linspace(-6, 6, 241, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    x, (alpha, sigma) = torch.tensor([[0.4, -0.9]], dtype=torch.float64), alpha_sigma(0.3)
    likelihood = -(x - alpha * grid).square().sum(1) / (2 * sigma**2)
    weight = torch.softmax(mixture.log_pdf(grid) + likelihood, 0)
    torch.testing.assert_close(mixture.posterior_mean(x, 0.3)[0], weight @ grid)
    # Tensor and float log-SNR, and no signal at all.
    levels = torch.tensor([0.3], dtype=torch.float64)
    assert torch.equal(mixture.posterior_mean(x, levels), mixture.posterior_mean(x, 0.3))
    torch.testing.assert_close(
        mixture.posterior_mean(x, -math.inf), (mixture.weights @ mixture.means)[None]
    )


@pytest.mark.parametrize("log_snr", [*LEVELS, -math.inf, -700.0, 700.0])
def test_alpha_and_sigma(log_snr):
    alpha, sigma = alpha_sigma(log_snr)
    assert alpha**2 + sigma**2 == pytest.approx(1.0, abs=1e-15)
    if log_snr == -math.inf:
        assert (alpha, sigma) == (0.0, 1.0)
    else:
        assert 2 * math.log(alpha / sigma) == pytest.approx(log_snr, rel=1e-14)
    for dtype, accuracy in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
        if abs(log_snr) < 80 or log_snr == -math.inf:
            many = alpha_sigma(torch.tensor([log_snr], dtype=dtype))
            assert [v.item() for v in many] == pytest.approx([alpha, sigma], rel=accuracy)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("log_snr", LEVELS)
def test_the_target_stands_for_the_data_in_float32(prediction, log_snr):
    z, eps = (a.float() for a in draws())
    x = add_noise(z, eps, log_snr)
    answer = to_x0(prediction, target(prediction, z, eps, log_snr), x, log_snr)
    # eps divides the rounding of x by alpha; nothing else may lose digits.
    magnified = 1 / alpha_sigma(log_snr)[0] if prediction == "eps" else 1
    assert (answer - z).abs().max() < 2e-6 * magnified
    many = torch.full((len(z),), log_snr)
    torch.testing.assert_close(add_noise(z, eps, many), x)
    torch.testing.assert_close(
        to_x0(prediction, target(prediction, z, eps, many), x, many),
        answer,
        atol=2e-6 * magnified,
        rtol=1e-5,
    )


def test_zero_terminal_snr():
    z, eps = draws(8)
    for log_snr in (-math.inf, torch.full((8,), -math.inf, dtype=torch.float64)):
        assert torch.equal(add_noise(z, eps, log_snr), eps)
        assert torch.equal(target("v", z, eps, log_snr), -z)
        for prediction in ("x0", "v"):
            wanted = target(prediction, z, eps, log_snr)
            assert torch.equal(to_x0(prediction, wanted, eps, log_snr), z)
    with pytest.raises(ValueError, match="-inf"):
        to_x0("eps", eps, eps, -math.inf)
    assert not to_x0("eps", eps + 1, eps, log_snr).isfinite().any()


@pytest.mark.parametrize("log_snr", [-9.0, -1.0, 0.4, 8.0])
def test_every_parametrisation_has_the_same_denoiser(log_snr):
    """The optimal output is the conditional mean of the target; all give E[z|x]."""
    mixture = three_in_the_plane()
    x = add_noise(*draws(), log_snr)
    alpha, sigma = alpha_sigma(log_snr)
    denoised = mixture.posterior_mean(x, log_snr)
    noise = -sigma * mixture.score(x, log_snr)  # E[eps|x]
    outputs = {"eps": noise, "x0": denoised, "v": alpha * noise - sigma * denoised}
    for prediction, output in outputs.items():
        torch.testing.assert_close(
            to_x0(prediction, output, x, log_snr), denoised, rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
def test_v_is_edms_preconditioning_and_its_weight_is_one(sigma_data):
    """EDM table 1 written out, on data sigma_data * z, with F = -v."""
    z, eps = draws()
    log_snr = torch.linspace(-14, 14, len(z), dtype=torch.float64)
    s = (sigma_data * torch.exp(-log_snr / 2))[:, None]  # EDM's sigma
    c_skip = sigma_data**2 / (s**2 + sigma_data**2)
    c_out = s * sigma_data / (s**2 + sigma_data**2).sqrt()
    c_in = 1 / (s**2 + sigma_data**2).sqrt()
    noisy = sigma_data * z + s * eps
    x = add_noise(z, eps, log_snr)
    torch.testing.assert_close(c_in * noisy, x)
    v = torch.sin(3 * x) + x[:, :1]  # any network
    denoised = c_skip * noisy + c_out * -v
    torch.testing.assert_close(denoised, sigma_data * to_x0("v", v, x, log_snr))
    loss_weight = (s**2 + sigma_data**2) / (s * sigma_data) ** 2
    edm_loss = (loss_weight * (denoised - sigma_data * z) ** 2).mean(1)
    ours = squared_error(v, target("v", z, eps, log_snr))
    torch.testing.assert_close(edm_loss, ours)
    torch.testing.assert_close(weighting("edm")(log_snr, "v"), torch.ones_like(log_snr))
    edm_target = (sigma_data * z - c_skip * noisy) / c_out
    torch.testing.assert_close(edm_target, -target("v", z, eps, log_snr))


SNR_WEIGHT_ON_X0 = {
    "eps": lambda snr: snr,
    "x0": lambda snr: 1,
    "v": lambda snr: 1 + snr,
    "edm": lambda snr: (1 / snr + 1) * snr,
    "min-snr": lambda snr: min(snr, 5),
    "p2": lambda snr: snr / (1 + snr),
    "flow": lambda snr: (1 + math.sqrt(snr)) ** 2,
}


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("kind", SNR_WEIGHT_ON_X0)
def test_a_weighting_weighs_the_x0_error_alike_for_every_prediction(kind, prediction):
    z, eps = draws(len(LEVELS))
    log_snr = torch.tensor(LEVELS, dtype=torch.float64)
    x = add_noise(z, eps, log_snr)
    wanted = target(prediction, z, eps, log_snr)
    output = wanted + 1e-1 * torch.sin(torch.arange(wanted.numel())).reshape(wanted.shape)
    loss = weighting(kind)(log_snr, prediction) * squared_error(output, wanted)
    # In the algebra of errors: to_x0 is affine, so its slope turns one error into the other.
    at_zero = torch.zeros_like(x)
    x0_error = squared_error(
        to_x0(prediction, output - wanted, at_zero, log_snr), torch.zeros_like(z)
    )
    expected = [SNR_WEIGHT_ON_X0[kind](math.exp(v)) for v in LEVELS]
    torch.testing.assert_close(loss, x0_error * torch.tensor(expected, dtype=torch.float64))


def test_published_forms_of_min_snr_and_p2():
    """Hang et al.: eps min(SNR,g)/SNR, x0 min(SNR,g), v min(SNR,g)/(SNR+1); Choi et al. on eps."""
    log_snr = torch.linspace(-8, 8, 33)
    snr = torch.exp(log_snr)
    least = snr.clamp(max=3)
    weigh = weighting("min-snr", gamma=3)
    torch.testing.assert_close(weigh(log_snr, "eps"), least / snr)
    torch.testing.assert_close(weigh(log_snr, "x0"), least)
    torch.testing.assert_close(weigh(log_snr, "v"), least / (snr + 1))
    torch.testing.assert_close(weighting("p2", k=2, gamma=0.5)(log_snr, "eps"), (2 + snr).rsqrt())
    # Their own value: linear betas, T = 1000, t = 300, gamma = 1.
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    for t, value in ((100, 0.105), (300, 0.606), (700, 0.993)):
        at = torch.logit(alpha_bar[t])
        assert weighting("p2")(at, "eps").item() == pytest.approx(value, abs=6e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_flow_is_the_loss_of_a_rectified_flow(prediction):
    """In its own variables: y = (1 - t) z + t eps, and the squared error of eps - z."""
    z, eps = draws(5)
    t = torch.tensor([0.02, 0.3, 0.5, 0.7, 0.98], dtype=torch.float64)
    log_snr = 2 * torch.log((1 - t) / t)
    at = t[:, None]
    y = (1 - at) * z + at * eps
    alpha, sigma = alpha_sigma(log_snr)
    x = add_noise(z, eps, log_snr)
    torch.testing.assert_close(x, y * (alpha + sigma)[:, None])
    wanted = target(prediction, z, eps, log_snr)
    output = wanted + torch.sin(torch.arange(wanted.numel())).reshape(wanted.shape)
    x0 = to_x0(prediction, output, x, log_snr)
    velocity = (y - x0) / at  # on the straight path from x0 to y
    expected = squared_error(velocity, eps - z)
    loss = weighting("flow")(log_snr, prediction) * squared_error(output, wanted)
    torch.testing.assert_close(loss, expected)
    assert weighting("flow")(0.0, "v").item() == pytest.approx(2)


class Velocity(torch.nn.Module):
    """Answers the velocity of a known pair, and an error."""

    def __init__(self, z, eps):
        super().__init__()
        self.z, self.eps = z, eps

    def forward(self, x, log_snr, labels=None):
        return self.eps - self.z + torch.cos(x)


def test_a_network_that_answers_the_velocity_is_one_for_v():
    """One answer, said as a velocity and as v: (alpha + sigma)^2 apart in squared error."""
    z, eps = draws(len(LEVELS))
    log_snr = torch.tensor(LEVELS, dtype=torch.float64)
    alpha, sigma = alpha_sigma(log_snr)
    x = add_noise(z, eps, log_snr)
    network = velocity(lambda *_: Velocity(z, eps), None, 0, "cpu", None)
    v = network(x, log_snr)
    x0 = to_x0("v", v, x, log_snr)
    torch.testing.assert_close(x0, z - (sigma / (alpha + sigma))[:, None] * torch.cos(x))
    torch.testing.assert_close(
        weighting("flow")(log_snr, "v") * squared_error(v, target("v", z, eps, log_snr)),
        squared_error(torch.cos(x), torch.zeros(())),
    )
    torch.testing.assert_close(weighting("flow")(log_snr, "v"), (alpha + sigma) ** 2)
    # At one level for all, and without any signal.
    for level in (0.7, -math.inf):
        z, eps = draws(5)
        network = velocity(lambda *_, z=z, eps=eps: Velocity(z, eps), None, 0, "cpu", None)
        x = add_noise(z, eps, level)
        v = network(x, torch.tensor([level], dtype=torch.float64), None)
        alpha, sigma = alpha_sigma(level)
        torch.testing.assert_close(v, target("v", z, eps, level) + torch.cos(x) / (alpha + sigma))


@pytest.mark.parametrize("kind", ["uniform", *SNR_WEIGHT_ON_X0])
def test_weights_stay_finite_in_float32_and_at_no_signal(kind):
    log_snr = torch.tensor([-math.inf, -30, 0, 30])
    for prediction in PREDICTIONS:
        found = weighting(kind)(log_snr, prediction)
        assert found.dtype == torch.float32 and found.shape == (4,)
        assert not found.isnan().any() and (found >= 0).all()
        assert found[1:].isfinite().all()
        if prediction != "eps":
            assert found[0].isfinite()
        assert weighting(kind)(0.0, prediction).item() == pytest.approx(found[2].item())
    assert (weighting("uniform")(log_snr, "v") == 1).all()


def test_p2_without_emphasis_is_unit_weight_on_eps():
    log_snr = torch.linspace(-8, 8, 9)
    torch.testing.assert_close(weighting("p2", gamma=0)(log_snr, "eps"), torch.ones(9))


def test_broadcast_and_squared_error():
    images = torch.zeros(3, 2, 4, 5)
    assert broadcast(torch.ones(3), images).shape == (3, 1, 1, 1)
    assert broadcast(2.0, images) == 2.0
    half = torch.full((3, 1, 2, 2), 300.0, dtype=torch.float16)
    # 300^2 overflows float16
    assert squared_error(half, torch.zeros_like(half)).tolist() == [9e4] * 3


def test_uncertainty_starts_as_the_plain_error_and_learns_its_logarithm():
    u = Uncertainty(32)
    log_snr = torch.linspace(-10, 10, 64)
    error = 0.3 + torch.sigmoid(log_snr)
    assert torch.equal(u.loss(error, log_snr), error)

    def loss_and_gradient(weight):
        with torch.no_grad():
            u.linear.weight.copy_(torch.as_tensor(weight)[None])
        loss = u.loss(error, log_snr).mean()
        (gradient,) = torch.autograd.grad(loss, u.linear.weight)
        return loss.item(), gradient[0].double().numpy()

    optimize.minimize(loss_and_gradient, np.zeros(32), jac=True, method="L-BFGS-B")
    # The minimum of error/e^u + u is u = ln error.
    assert (u(log_snr) - error.log()).abs().max() < 0.02


def test_uncertainty_is_a_sum_of_waves_in_c_noise():
    u = Uncertainty()
    torch.nn.init.ones_(u.linear.weight)
    values = u(torch.tensor([-math.inf, -40.0, -30.0, 30.0, 50.0]))
    torch.testing.assert_close(values, values[[2, 2, 2, 3, 3]])
    assert values.isfinite().all() and values[2] != values[3]
    log_snr = torch.tensor([-29.0, -4.0, 0.0, 8.0])
    c_noise = torch.exp(-log_snr / 2).log() / 4
    waves = torch.cos(torch.outer(c_noise, u.frequencies) + u.phases)
    torch.testing.assert_close(u(log_snr), waves.sum(1) * math.sqrt(2 / 128), rtol=1e-4, atol=1e-4)
    twin = Uncertainty()
    assert torch.equal(u.frequencies, twin.frequencies) and torch.equal(u.phases, twin.phases)
    # EDM2's distribution of frequencies: 2 pi times a standard normal.
    assert (u.frequencies / (2 * math.pi)).std().item() == pytest.approx(1.0, abs=0.02)
