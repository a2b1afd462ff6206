"""Muon: torch's own steps for matrices and flattened convolutions, Adam's for the rest."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.data.latents import Latents, write_shard
from pipeline.errors import UserError
from pipeline.params.load import resolve
from pipeline.plan.job import code_of
from pipeline.training import run
from pipeline.training.muon import Muon
from pipeline.training.optim import Adam, apply
from pipeline.training.params import MuonOptimizer
from pipeline.training.run import Interrupted
from pipeline.training.train import train
from tests.specs import expert_spec

ADAM = {"learning_rate": 0.01, "betas": [0.9, 0.99], "weight_decay": 0.1}


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8)
        self.linear, self.label = nn.Linear(8, 12), nn.Embedding(5, 12)
        self.unused = nn.Linear(4, 4)

    def forward(self, x, label):
        h = self.norm(self.conv(x)).square().mean((2, 3))
        return self.linear(h) + self.label(label)


def steps(network, optimizer, count, begin=0):
    for n in range(begin, begin + count):
        random = torch.Generator().manual_seed(n)
        x, label = torch.randn(4, 3, 6, 6, generator=random), torch.arange(4)
        apply(optimizer, 0.01 / (1 + n), 0.9)
        network(x, label).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def made(layout=torch.contiguous_format):
    torch.manual_seed(0)
    network = Small().to(memory_format=layout)
    return network, Muon(network, network.parameters(), ADAM, 0.95)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_steps_are_those_of_torch_and_of_adam(layout):
    """On a copy whose convolution is a matrix by itself; what had no gradient stays."""
    network, optimizer = made(layout)
    other, _ = made(layout)
    start = copy.deepcopy(network.state_dict())
    matrix = nn.Parameter(other.conv.weight.detach().clone().flatten(1))
    if layout == torch.channels_last:  # the columns in the order of its memory
        columns = torch.arange(27).reshape(3, 3, 3).permute(1, 2, 0).flatten()
        matrix = nn.Parameter(other.conv.weight.detach().flatten(1)[:, columns].clone())
    muon = torch.optim.Muon(
        [matrix, other.linear.weight],
        lr=0.01,
        weight_decay=0.1,
        momentum=0.95,
        adjust_lr_fn="match_rms_adamw",
    )
    rest = [p for n, p in other.named_parameters() if n not in ("conv.weight", "linear.weight")]
    adam = Adam([p for p in rest if p is not other.unused.weight], **ADAM)
    for n in range(3):
        steps(network, optimizer, 1, n)
        random = torch.Generator().manual_seed(n)
        x, label = torch.randn(4, 3, 6, 6, generator=random), torch.arange(4)
        other(x, label).square().mean().backward()
        grad = other.conv.weight.grad.flatten(1)
        matrix.grad = grad if layout == torch.contiguous_format else grad[:, columns]
        muon.param_groups[0]["lr"] = adam.learning_rate = 0.01 / (1 + n)
        muon.step()
        adam.step()
        with torch.no_grad():
            back = matrix if layout == torch.contiguous_format else matrix[:, columns.argsort()]
            other.conv.weight.copy_(back.reshape(8, 3, 3, 3))
        other.zero_grad()
    for (name, own), theirs in zip(network.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-6, atol=1e-7, msg=name)
        assert torch.equal(own, start[name]) == name.startswith("unused")


def test_a_step_is_about_orthogonal_and_as_large_as_adams():
    network, optimizer = made()
    optimizer._muon.param_groups[0]["weight_decay"] = 0.0
    before = network.linear.weight.detach().clone()
    network.linear.weight.grad = torch.randn(12, 8)
    optimizer.step()
    moved = (before - network.linear.weight.detach()) / (0.01 * 0.2 * math.sqrt(12))
    singular = torch.linalg.svdvals(moved)
    assert singular.min() > 0.5 and singular.max() < 1.5  # Newton-Schulz stops that near to 1


def test_its_state_goes_on():
    whole, optimizer = made()
    steps(whole, optimizer, 4)
    parts, first = made()
    steps(parts, first, 2)
    state = copy.deepcopy(first.state_dict())
    again = Muon(parts, parts.parameters(), ADAM, 0.95)
    again.load_state_dict(state)
    steps(parts, again, 2, 2)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True)
    )
    with pytest.raises(ValueError, match="other parameters"):
        again.load_state_dict(state | {"momentum": state["momentum"][:1]})


@pytest.mark.parametrize("shards", [1, 2])
def test_a_training_by_it_survives_interruptions(tmp_path, monkeypatch, shards):
    monkeypatch.setattr(run, "CHECKPOINT_SECONDS", 0.0)
    random = np.random.Generator(np.random.PCG64(0))
    rows = random.integers(0, 256, (24, 1, 8, 8)).astype(np.uint8)
    write_shard(tmp_path / "0.arrow", [(rows, None)], (1, 8, 8), [127.5], 73.9)
    latents = Latents([tmp_path / "0.arrow"])
    spec = expert_spec(training={"optimizer": {"kind": "muon"}, "shards": shards})
    for name in ("whole", "parts", "adam"):
        (tmp_path / name).mkdir()
    train(spec, latents, tmp_path / "whole")
    with pytest.raises(Interrupted):
        calls = iter([False, False, True])
        train(spec, latents, tmp_path / "parts", stop=lambda: next(calls))
    train(spec, latents, tmp_path / "parts")
    train(expert_spec(training={"shards": shards}), latents, tmp_path / "adam")
    found = [(tmp_path / n / "weights-212.safetensors").read_bytes() for n in ("whole", "parts")]
    assert found[0] == found[1]
    assert (tmp_path / "adam" / "weights-212.safetensors").read_bytes() != found[0]


def test_adam_is_no_part_of_a_spec_and_muon_of_its_own_alone():
    assert "optimizer" not in expert_spec().as_json()["training"]
    assert code_of("expert") != code_of("expert", MuonOptimizer(kind="muon"))


def test_momentum_decay_is_adams():
    base = {"seed": 0, "data": {}, "latent": {}, "features": {}, "evaluate": {}, "defaults": {}}
    training = {"optimizer": {"kind": "muon"}, "decay": "mdlrc"}
    with pytest.raises(UserError, match=r"recipes\.one\.training\.decay: mdlrc is a decay of Adam"):
        resolve(base | {"recipes": {"one": {"training": training}}})
