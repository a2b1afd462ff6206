"""Merging with weights found on held-out rows: a real parent, real experts, a real search."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pipeline.data.latents import Latents, write_shard
from pipeline.merging import merge, select
from pipeline.networks.build import network_of
from pipeline.noise import philox, process
from pipeline.specs import MergedSpec
from pipeline.store.files import kept
from pipeline.training.ema import power_exponent
from tests.specs import denoiser_spec

MODEL = denoiser_spec()
RANGES = [[4.0, 2.0, 0.0], [-1.0, -3.0]]


def spec(model=MODEL, ends=(), kept=(), **settings):
    more = {"ends": list(ends), "kept": list(kept), "noise_key": 5, "code": ""}
    return MergedSpec(settings=settings, experts=[], of=RANGES, model=model, **more)


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


@pytest.mark.parametrize("labels", [np.repeat(range(4), 16), np.tile(range(4), 16)])
def test_each_level_is_asked_about_every_class(tmp_path, labels):
    values = np.zeros((64, 1, 4, 4), np.float32)
    write_shard(tmp_path / "a.arrow", [(values, labels)], (1, 4, 4), [0.0], 1.0)
    ranges = [[4.0, 2.0, 0.0, -2.0]]  # as many levels as classes
    held_out = select.HeldOut(MODEL, Latents([tmp_path / "a.arrow"]), ranges, 32, 5)
    for level in range(4):
        assert np.bincount(labels[held_out.rows[level::4]]).tolist() == [2, 2, 2, 2]


def test_held_out_losses_are_the_training_loss_in_each_range(networks, latents):
    parent, _ = networks
    held_out = select.HeldOut(MODEL, latents, RANGES, 40, 5)
    found = held_out.losses(parent)
    network = network_of(MODEL, seed=1)
    rows, z, eps = held_out.rows, held_out.z, held_out.eps
    assert len(set(rows)) == 40 and torch.equal(z, latents.gather(rows))
    assert torch.equal(eps, philox.normal(5, 0, torch.from_numpy(rows), (1, 4, 4)))
    for losses, states in zip(found, RANGES, strict=True):
        expected = []
        for i, level in enumerate(states):  # each row at one of them
            z_part, eps_part = z[i :: len(states)], eps[i :: len(states)]
            output = network(process.add_noise(z_part, eps_part, level), torch.tensor([level]))
            wanted = process.target("v", z_part, eps_part, level)
            expected.append(float((output - wanted).square().mean().detach()))
        assert losses == pytest.approx(np.mean(expected), rel=1e-5)


def test_a_search_beats_what_it_tried_and_its_evaluations_are_kept(networks, latents, tmp_path):
    parent, experts = networks
    settings = {"method": "task-vector", "weights": None, "images": 64, "bounds": [0.0, 1.5]}
    settings |= {"search": "quadratic", "levels": 5, "evaluations": 5}
    state = tmp_path / "state"
    merged, report = select.merge_experts(spec(**settings), parent, experts, latents, state)
    _, path = next(kept(state, select.EVALUATIONS))
    known = json.loads(path.read_text())
    assert len(known["loss"]) == report["evaluations"] >= 6 and not known["fid"]
    assert report["loss"] <= min(known["loss"].values()) + 1e-12
    expected = merge.task_vector(parent, experts, weights=report["weights"])
    assert all(torch.equal(merged[name], expected[name]) for name in expected)

    held_out = select.HeldOut
    try:  # with all evaluations known, nothing is evaluated again
        select.HeldOut = lambda *a: type("No", (), {"losses": lambda self, w: [1.0, 1.0]})()
        _, again = select.merge_experts(spec(**settings), parent, experts, latents, state)
    finally:
        select.HeldOut = held_out
    assert again["weights"] == report["weights"]

    path.write_bytes(path.read_bytes()[:-9])  # the evaluation before it is there
    said: list[str] = []
    _, again = select.merge_experts(
        spec(**settings), parent, experts, latents, state, log=said.append
    )
    assert again == report and said == [f"{path.name}: damaged"]


@pytest.mark.parametrize("search", ["quadratic", "grid", "random"])
def test_a_second_measure_chooses_among_the_best_and_is_kept(networks, latents, tmp_path, search):
    parent, experts = networks
    settings = {"method": "task-vector", "weights": None, "images": 64, "bounds": [0.0, 1.5]}
    settings |= {"search": search, "levels": 3, "evaluations": 5, "confirm": 8}
    state, asked = tmp_path / "state", []

    def confirm(weights):
        asked.append(weights)
        return float(len(asked) != 2)  # the second candidate it is shown

    _, report = select.merge_experts(spec(**settings), parent, experts, latents, state, confirm)
    chosen = merge.task_vector(parent, experts, weights=report["weights"])
    assert len(asked) >= 2 and all(torch.equal(chosen[k], asked[1][k]) for k in chosen)
    assert [value for _, value in report["fid"]] == [1.0, 0.0] + [1.0] * (len(asked) - 2)
    before = len(asked)
    _, again = select.merge_experts(spec(**settings), parent, experts, latents, state, confirm)
    assert again == report and len(asked) == before


def test_a_merge_counts_from_a_parent_without_the_experts_projections(networks, tmp_path):
    parent, _ = networks
    model = denoiser_spec(network=MODEL.network.model_copy(update={"projections": True}))
    own = {name: p.detach() * 1.5 for name, p in network_of(model, seed=1).named_parameters()}
    merged, _ = select.merge_experts(
        spec(model, method="task-vector", weights=[0.5]),
        parent,
        [own],
        None,
        tmp_path / "x",
    )
    assert merged.keys() == own.keys() > parent.keys()
    for name, weight in merged.items():  # halfway from the parent, or from the identity
        start = parent.get(name, own[name] / 1.5)
        torch.testing.assert_close(weight, (start + own[name]) / 2)


def test_an_average_of_another_length_comes_from_those_kept(networks, tmp_path):
    """Exact for a line through time, whatever the profile: each average is its mean time."""
    parent, _ = networks
    images, kept = [250, 500, 750, 1000], [0.05, 0.1]

    def mean_time(length, end):
        gamma = power_exponent(length)
        return (gamma + 1) / (gamma + 2) * end

    snapshots = [
        {name: torch.full_like(p, mean_time(length, end)) for name, p in parent.items()}
        for end in images
        for length in kept
    ]
    wanted = spec(method="post-hoc", length=0.07, ends=images, kept=kept)
    merged, report = select.merge_experts(wanted, None, snapshots, None, tmp_path / "x")
    assert len(report["weights"]) == 8 and sum(report["weights"]) == pytest.approx(1)
    for weight in merged.values():
        assert float(weight.mean()) == pytest.approx(mean_time(0.07, 1000), rel=0.02)


@pytest.mark.parametrize(
    "settings", [{"method": "average"}, {"method": "ties", "density": 0.5, "scale": 1.0}]
)
def test_methods_without_a_search_need_no_rows(networks, tmp_path, settings):
    parent, experts = networks
    merged, report = select.merge_experts(spec(**settings), parent, experts, None, tmp_path / "x")
    options = {k: v for k, v in settings.items() if k != "method"}
    expected = getattr(merge, settings["method"])(parent, experts, **options)
    assert all(torch.equal(merged[name], expected[name]) for name in expected)
    assert report == merge.agreement(parent, experts)


def test_snapshots_of_one_run_are_combined_and_one_alone_is_itself(networks, latents, tmp_path):
    parent, experts = networks
    wanted = spec(method="snapshots", images=64)
    merged, report = select.merge_experts(
        wanted, None, [*experts, parent], latents, tmp_path / "state" / "e.json"
    )
    expected = merge.combine_snapshots([*experts, parent], report["weights"])
    assert all(torch.equal(merged[name], expected[name]) for name in expected)
    assert sum(report["weights"]) == pytest.approx(1.0)
    alone, _ = select.merge_experts(wanted, None, [parent], latents, tmp_path / "y")
    assert alone is parent
