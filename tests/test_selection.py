"""Merging with weights found on held-out rows: a real parent, real experts, a real search."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pipeline import merging, noise, objective, selection
from pipeline.latents import Latents, write_shard
from pipeline.networks.build import network_of

MODEL = {
    "network": {"kind": "unet", "channels": 8, "multipliers": [1], "blocks": 1},
    "conditioning": "state",
    "channels": 1,
    "resolution": 4,
    "classes": 0,
    "prediction": "v",
    "continuous": False,
}
RANGES = [[4.0, 2.0, 0.0], [-1.0, -3.0]]


def spec(**settings):
    return {"settings": settings, "of": RANGES, "model": MODEL, "noise_key": 5}


@pytest.fixture(scope="module")
def networks():
    parent = dict(network_of(MODEL, seed=1).named_parameters())
    parent = {name: weight.detach() for name, weight in parent.items()}
    experts = []
    for seed in (2, 3):
        generator = torch.Generator().manual_seed(seed)
        experts.append(
            {
                name: weight + 0.05 * torch.randn(weight.shape, generator=generator)
                for name, weight in parent.items()
            }
        )
    return parent, experts


@pytest.fixture
def latents(tmp_path):
    rows = np.random.Generator(np.random.PCG64(0)).normal(size=(64, 1, 4, 4)).astype(np.float32)
    write_shard(tmp_path / "a.arrow", [(rows, None)], (1, 4, 4), [0.0], 1.0)
    return Latents([tmp_path / "a.arrow"])


def test_held_out_losses_are_the_training_loss_in_each_range(networks, latents):
    parent, _ = networks
    found = selection.HeldOut(MODEL, latents, RANGES, 40, 5).losses(parent)
    network = network_of(MODEL, seed=1)
    z, eps = latents.gather(np.arange(40)), noise.normal(5, 0, torch.arange(40), (1, 4, 4))
    for losses, states in zip(found, RANGES, strict=True):
        expected = []
        for level in states:
            output = network(objective.add_noise(z, eps, level), torch.tensor([level]))
            wanted = objective.target("v", z, eps, level)
            expected.append(float((output - wanted).square().mean().detach()))
        assert losses == pytest.approx(np.mean(expected), rel=1e-5)


def test_a_search_beats_what_it_tried_and_its_evaluations_are_kept(networks, latents, tmp_path):
    parent, experts = networks
    settings = {"method": "task-vector", "weights": None, "images": 64, "bounds": [0.0, 1.5]}
    settings |= {"search": "quadratic", "levels": 5, "evaluations": 5}
    cache = tmp_path / "state" / "evaluations.json"
    merged, report = selection.merge_experts(spec(**settings), parent, experts, latents, cache)
    known = json.loads(cache.read_text())
    assert len(known) == report["evaluations"] >= 6
    assert report["loss"] <= min(known.values()) + 1e-12
    expected = merging.merge("task-vector", parent, experts, weights=report["weights"])
    assert all(torch.equal(merged[name], expected[name]) for name in expected)

    held_out = selection.HeldOut
    try:  # with all evaluations known, nothing is evaluated again
        selection.HeldOut = lambda *a: type("No", (), {"losses": lambda self, w: [1.0, 1.0]})()
        _, again = selection.merge_experts(spec(**settings), parent, experts, latents, cache)
    finally:
        selection.HeldOut = held_out
    assert again["weights"] == report["weights"]


@pytest.mark.parametrize(
    "settings", [{"method": "average"}, {"method": "ties", "density": 0.5, "scale": 1.0}]
)
def test_methods_without_a_search_need_no_rows(networks, tmp_path, settings):
    parent, experts = networks
    merged, report = selection.merge_experts(
        spec(**settings), parent, experts, None, tmp_path / "x"
    )
    options = {k: v for k, v in settings.items() if k != "method"}
    expected = merging.merge(settings["method"], parent, experts, **options)
    assert all(torch.equal(merged[name], expected[name]) for name in expected)
    assert report == merging.agreement(parent, experts)


def test_snapshots_of_one_run_are_combined_and_one_alone_is_itself(networks, latents, tmp_path):
    parent, experts = networks
    wanted = spec(method="snapshots", images=64)
    merged, report = selection.merge_experts(
        wanted, None, [*experts, parent], latents, tmp_path / "state" / "e.json"
    )
    expected = merging.combine_snapshots([*experts, parent], report["weights"])
    assert all(torch.equal(merged[name], expected[name]) for name in expected)
    assert sum(report["weights"]) == pytest.approx(1.0)
    alone, _ = selection.merge_experts(wanted, None, [parent], latents, tmp_path / "y")
    assert alone is parent
