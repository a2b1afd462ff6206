import io
import subprocess
import sys

import numpy as np
import pytest
import torch

from pipeline.training.optim import EPS, Adam, apply
from pipeline.training.optim import rate_and_momentum as every_value

BETAS = (0.9, 0.99)


def rate_and_momentum(kind, progress, images_seen, **given):
    values = {"beta0": 0.9, "floor": 0.1, "reference_images": None, "warmup_images": 0}
    return every_value(kind, progress, images_seen, **values | given)


def small_network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3), torch.nn.SiLU(), torch.nn.Conv2d(8, 3, 1))


def train_step(network, optimizer):
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    optimizer.zero_grad()
    network(x).square().mean().backward()
    optimizer.step()


TAUS = np.linspace(0, 1, 101)


@pytest.mark.parametrize("beta0", [0.5, 0.9, 0.99])
def test_the_compensation_of_mdlrc_is_a_linear_decay(beta0):
    """(1 - beta0) / (1 - beta_t) = 1 - beta0 tau: the weight of the newest gradient is constant."""
    for tau in TAUS:
        factor, beta = rate_and_momentum("mdlrc", tau, 0, beta0=beta0)
        assert factor == pytest.approx(1 - beta0 * tau, rel=1e-12)
        assert factor * (1 - beta) == pytest.approx(1 - beta0, rel=1e-12)
        control, constant = rate_and_momentum("linear", tau, 0, beta0=beta0, floor=1 - beta0)
        assert control == pytest.approx(factor, rel=1e-12)
        assert constant == beta0
        assert rate_and_momentum("momentum-decay", tau, 0, beta0=beta0) == (1.0, beta)


@pytest.mark.parametrize(
    ("tau", "beta", "factor"),
    [(0.0, 0.9, 1.0), (0.5, 0.8182, 0.55), (0.9, 0.4737, 0.19), (0.99, 0.0826, 0.109), (1, 0, 0.1)],
)
def test_mdlrc_values(tau, beta, factor):
    assert rate_and_momentum("mdlrc", tau, 0) == pytest.approx((factor, beta), abs=5e-5)


def test_schedules_without_momentum_decay():
    assert rate_and_momentum("constant", 0.7, 5, beta0=0.8) == (1.0, 0.8)
    assert rate_and_momentum("linear", 0.25, 5, floor=0.2)[0] == pytest.approx(0.8)
    for tau, cosine in ((0, 1), (1 / 3, 0.75), (0.5, 0.5), (2 / 3, 0.25), (1, 0)):
        factor, _ = rate_and_momentum("cosine", tau, 0, floor=0.2)
        assert factor == pytest.approx(0.2 + 0.8 * cosine)
    rates = [
        rate_and_momentum("inverse-sqrt", 0.1, images, reference_images=1000)[0]
        for images in (10, 1000, 4000, 9000)
    ]
    assert rates == pytest.approx([1, 1, 1 / 2, 1 / 3])


def test_warm_up_multiplies_the_schedule():
    for images, part in ((64, 0.064), (500, 0.5), (1000, 1), (5000, 1)):
        factor, beta = rate_and_momentum("mdlrc", 0.3, images, warmup_images=1000)
        assert factor == pytest.approx(part * (1 - 0.27))
        assert beta == rate_and_momentum("mdlrc", 0.3, images)[1]


def reference_adam(p, grads, rates, betas1, beta2, decay):
    """Kingma & Ba 2015 with the decay of Loshchilov & Hutter 2019; float64."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for step, (grad, rate, beta1) in enumerate(zip(grads, rates, betas1, strict=True), start=1):
        p = p - rate * decay * p
        m = beta1 * m + (1 - beta1) * grad
        v = beta2 * v + (1 - beta2) * grad**2
        m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
        p = p - rate * m_hat / (np.sqrt(v_hat) + EPS)
    return p


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_run_with_mdlrc_follows_the_equations(decay):
    rng = np.random.default_rng(0)
    start, grads = rng.normal(size=(5, 3)), rng.normal(size=(20, 5, 3))
    p = torch.nn.Parameter(torch.tensor(start))
    optimizer = Adam([p], 0.02, (0.9, 0.95), decay)
    schedule = [rate_and_momentum("mdlrc", step / 20, step, beta0=0.9) for step in range(20)]
    for grad, (factor, beta1) in zip(grads, schedule, strict=True):
        p.grad = torch.tensor(grad)
        apply(optimizer, 0.02 * factor, beta1)
        optimizer.step()
    rates, betas1 = [0.02 * factor for factor, _ in schedule], [beta for _, beta in schedule]
    expected = reference_adam(start, grads, rates, betas1, 0.95, decay)
    np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-10)


def test_the_bits_of_a_step_do_not_depend_on_the_number_of_threads():
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            generator = torch.Generator().manual_seed(0)
            p = torch.nn.Parameter(torch.randn(100_003, generator=generator))
            optimizer = Adam([p], 1e-3, BETAS, 0.1)
            for _ in range(3):
                p.grad = torch.randn(100_003, generator=generator)
                optimizer.step()
            results.append(p.detach().clone())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize(("kind", "decay"), [("Adam", 0.0), ("AdamW", 0.1)])
def test_bits_are_those_of_torchs_own_classes(kind, decay):
    networks = [small_network() for _ in range(2)]
    ours = Adam(networks[0].parameters(), 0.01, BETAS, decay)
    settings = {"lr": 0.01, "betas": BETAS, "weight_decay": decay, "eps": EPS}
    torchs = getattr(torch.optim, kind)(networks[1].parameters(), **settings, fused=True)
    for _ in range(4):
        train_step(networks[0], ours)
        train_step(networks[1], torchs)
    torch.testing.assert_close(networks[0].state_dict(), networks[1].state_dict(), rtol=0, atol=0)


def test_the_memory_format_does_not_change_the_step():
    """The fused kernel walks raw memory: gradients and moments must lie as the weights do."""
    networks = [small_network(), small_network().to(memory_format=torch.channels_last)]
    for network in networks:
        optimizer = Adam(network.parameters(), 0.01, BETAS, 0.01)
        for _ in range(3):
            train_step(network, optimizer)
    for one, other in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_run_resumes_exactly():
    whole, part = small_network(), small_network()
    optimizer = Adam(whole.parameters(), 0.01, BETAS, 0.01)
    for _ in range(6):
        train_step(whole, optimizer)
    optimizer = Adam(part.parameters(), 0.01, BETAS, 0.01)
    for _ in range(3):
        train_step(part, optimizer)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    optimizer = Adam(part.parameters(), 0.01, BETAS, 0.01)
    optimizer.load_state_dict(torch.load(buffer, weights_only=True))
    for _ in range(3):
        train_step(part, optimizer)
    torch.testing.assert_close(part.state_dict(), whole.state_dict(), rtol=0, atol=0)
    with pytest.raises(ValueError, match="other parameters"):
        optimizer.load_state_dict(Adam([whole[0].bias], 0.01, BETAS, 0.01).state_dict())


def test_parameters_without_a_gradient_are_left_alone():
    used, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = Adam([unused, used], 0.1, BETAS, 0.1)
    used.grad = torch.ones(2)
    optimizer.step()
    assert unused.tolist() == [1, 1]
    # The first step of AdamW is lr * (sign + decay * p).
    assert used.tolist() == pytest.approx([0.89, 0.89])
    optimizer.zero_grad()
    assert used.grad is None


def test_training_does_not_import_the_compiler():
    """2 seconds of CPU in every process that trains an expert."""
    code = (
        "import sys, torch; from pipeline.training.optim import Adam; "
        "p = torch.nn.Parameter(torch.ones(2)); o = Adam([p], 0.1, (0.9, 0.9), 0.1); "
        "p.sum().backward(); o.step(); sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
