"""What a pilot measures, against the closed form of a network that answers zero."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.data.latents import Latents, write_shard
from pipeline.levels import pilot
from pipeline.networks.build import network_of
from pipeline.noise import philox, process
from tests.specs import denoiser_spec

SPEC = denoiser_spec()


@pytest.fixture
def latents(tmp_path):
    rows = np.random.Generator(np.random.PCG64(0)).normal(size=(200, 1, 4, 4)).astype(np.float32)
    write_shard(tmp_path / "a.arrow", [(rows, None)], (1, 4, 4), [0.0], 1.0)
    return Latents([tmp_path / "a.arrow"])


def test_the_error_is_that_of_x0_on_the_same_noise_at_all_levels(latents):
    network = network_of(SPEC, seed=1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()  # v = 0 everywhere, so x0hat = alpha x
    levels = [4.0, 0.0, -4.0]
    found = pilot.error_curve(network, SPEC, latents, levels, 7)
    z = latents.gather(np.arange(200))
    eps = philox.normal(7, 0, torch.arange(200), (1, 4, 4))
    for level, error in zip(levels, found["error"], strict=True):
        alpha, sigma = process.alpha_sigma(level)
        expected = ((alpha * (alpha * z + sigma * eps) - z) ** 2).mean()
        assert error == pytest.approx(float(expected), rel=1e-5)


def test_affinity_is_the_cosine_of_the_losses_gradients(latents):
    network = network_of(SPEC, seed=1)
    levels = [3.0, -1.0]
    found = pilot.error_curve(network, SPEC, latents, levels, 7, gradients=True)
    gradients = []
    z, eps = latents.gather(np.arange(200)), philox.normal(7, 0, torch.arange(200), (1, 4, 4))
    for level in levels:
        network.zero_grad(set_to_none=True)
        output = network(process.add_noise(z, eps, level), torch.tensor([level]))
        (output - process.target("v", z, eps, level)).square().mean().backward()
        parts = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
        gradients.append(torch.cat(parts).double())
    expected = torch.nn.functional.cosine_similarity(*gradients, dim=0)
    assert found["affinity"][0][1] == pytest.approx(float(expected), abs=1e-4)
    assert found["affinity"][1][1] == pytest.approx(1.0, abs=1e-6)
