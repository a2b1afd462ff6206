"""Terms of the loss beside the error: their formulas, and what they do to a training."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import plan
from pipeline.data.latents import Latents, write_shard
from pipeline.errors import UserError
from pipeline.noise import process
from pipeline.params.load import resolve
from pipeline.plan.job import code_of
from pipeline.training import auxiliary, run
from pipeline.training.draws import Batch
from pipeline.training.objective import Objective
from pipeline.training.params import DispersiveAuxiliary
from pipeline.training.run import Interrupted
from pipeline.training.train import train
from stages.facts import facts_of
from tests.specs import build_network, expert_spec
from tests.workflow import trained_on_digits

CPU = torch.device("cpu")
DIT = {"kind": "dit", "patch": 2, "width": 16, "depth": 2, "heads": 2}
FEATURES = np.random.Generator(np.random.PCG64(1)).normal(size=(24, 5)).astype(np.float32)
KINDS = {
    "contrastive": {"kind": "contrastive"},
    "dispersive": {"kind": "dispersive"},
    "repa": {"kind": "repa", "hidden": 8},
}


def batch_of(n, *, labels=None, log_snr=None):
    """Noisy images of unit variance, with the targets of `v`."""
    z, eps = torch.randn(n, 1, 8, 8), torch.randn(n, 1, 8, 8)
    log_snr = torch.linspace(4, -4, n) if log_snr is None else log_snr
    x, wanted = process.add_noise(z, eps, log_snr), process.target("v", z, eps, log_snr)
    told = log_snr if isinstance(log_snr, torch.Tensor) else None
    return Batch((x, told, labels), wanted, log_snr, None, z, eps, np.arange(n))


def latents_at(path, classes=0):
    random = np.random.Generator(np.random.PCG64(0))
    rows = random.integers(0, 256, (24, 1, 8, 8)).astype(np.uint8)
    labels = np.arange(24) % classes if classes else None
    write_shard(path, [(rows, labels)], (1, 8, 8), [127.5], 73.9)
    return Latents([path])


def term(kind, network=None, **changes):
    """An auxiliary of a spec, made as training makes it."""
    spec = expert_spec(training={"auxiliary": KINDS[kind] | changes})
    block = spec.training.auxiliary
    network = network or build_network(channels_in=1)
    return block.maker(spec, network, CPU, FEATURES, **block.arguments()), network


def squared(output, wanted, _):
    return process.squared_error(output, wanted)


# --- formulas -------------------------------------------------------------------------------------
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("log_snr", [None, 1.5])
def test_contrastive_is_the_error_to_the_target_of_another_class(prediction, log_snr):
    labels = torch.tensor([0, 1, 1, 2, 0, 2])
    batch = batch_of(6, labels=labels, log_snr=log_snr)
    output = torch.randn(6, 1, 8, 8)
    found = auxiliary.Contrastive(prediction, 0.3)(output, batch, squared)
    total = 0.0
    for i in range(6):
        j = (i - 1) % 6
        if labels[i] != labels[j]:
            level = float(batch.log_snr[i]) if log_snr is None else log_snr
            wanted = process.target(prediction, batch.clean[j], batch.noise[j], level)
            total += float((output[i].double() - wanted.double()).square().mean())
    assert found.item() == pytest.approx(-0.3 * total / 6, rel=1e-5)
    alike = batch_of(6, labels=torch.zeros(6, dtype=torch.int64))
    assert auxiliary.Contrastive(prediction, 0.3)(output, alike, squared) == 0


def test_contrastive_has_the_weights_of_the_error():
    batch = batch_of(4, labels=torch.arange(4))
    output = torch.zeros(4, 1, 8, 8)
    spec = expert_spec(training={"weighting": {"kind": "min-snr", "gamma": 2.0}})
    objective = Objective(spec, lambda *_: output, None, None, CPU, lambda o, b, w: w(o, o + 1, b))
    weights = process.squared_error(output, output + 1) * 0
    for i, level in enumerate(batch.log_snr.tolist()):
        snr = math.exp(level)
        weights[i] = min(snr, 2.0) / (1 + snr)  # of the error of x0, on v's
    plain = Objective(spec, lambda *_: output, None, None, CPU)(batch)
    found = (objective(batch) - plain).tolist()
    assert found == pytest.approx(weights.tolist(), rel=1e-4)


def test_dispersive_is_the_mean_of_all_pairs_kernels():
    found, network = term("dispersive", temperature=0.7, weight=0.4)
    h = torch.randn(5, 3, 2, 2)
    found.found = h
    flat = h.double().flatten(1).numpy()
    kernels = [math.exp(-((a - b) ** 2).sum() / len(a) / 0.7) for a in flat for b in flat]
    wanted = 0.4 * math.log(sum(kernels) / 25)
    assert found(None, None, None).item() == pytest.approx(wanted, rel=1e-5)
    batch = batch_of(5)
    network(*batch.inputs)
    assert found.found.shape == (5, *found.size) == (5, 16, 4, 4)


def test_repa_is_the_cosine_to_the_features_of_the_same_images():
    found, network = term("repa")
    batch = batch_of(3)
    network(*batch.inputs)
    pooled = found.found.mean((2, 3))
    own = found.project(pooled).double()
    wanted = torch.from_numpy(FEATURES[:3]).double()
    cosines = (own * wanted).sum(1) / own.norm(dim=1) / wanted.norm(dim=1)
    assert found(None, batch, None).item() == pytest.approx(-0.5 * cosines.mean().item(), rel=1e-5)
    mirrored = dataclasses.replace(batch, rows=np.arange(24, 27))
    assert torch.equal(found(None, mirrored, None), found(None, batch, None))


@pytest.mark.parametrize("layer", ["encoder", "encoder.blocks.0"])
def test_tokens_are_averaged_over_positions(layer):
    network = build_network(DIT, channels_in=1)
    found, _ = term("repa", network, layer=layer)
    assert found.size == (16, 16)
    assert found.project[0].in_features == 16
    network(*batch_of(3).inputs)
    assert found.found.shape == (3, 16, 16)


@pytest.mark.parametrize("kind", ["dispersive", "repa"])
def test_a_layer_that_is_not_there_is_told(kind):
    with pytest.raises(UserError, match=r"no layer 'middle'; some that it has: encoder, encoder"):
        term(kind, layer="middle")


def test_a_layer_that_answers_nothing_for_an_image_is_told():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x, log_snr, labels=None):
            self.inner(x.mean())
            return x

    with pytest.raises(UserError, match="'inner' gives no values"):
        term("dispersive", Odd(), layer="inner")


# --- training -------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shards", [1, 2])
def test_a_training_with_one_survives_interruptions(tmp_path, monkeypatch, kind, shards):
    monkeypatch.setattr(run, "CHECKPOINT_SECONDS", 0.0)
    classes = 3 if kind == "contrastive" else 0
    latents = latents_at(tmp_path / "0.arrow", classes)
    spec = expert_spec(classes=classes, training={"auxiliary": KINDS[kind], "shards": shards})
    for name in ("whole", "parts", "plain"):
        (tmp_path / name).mkdir()
    train(spec, latents, tmp_path / "whole", features=FEATURES)
    with pytest.raises(Interrupted):
        calls = iter([False, False, True])
        train(spec, latents, tmp_path / "parts", features=FEATURES, stop=lambda: next(calls))
    train(spec, latents, tmp_path / "parts", features=FEATURES)
    train(expert_spec(classes=classes, training={"shards": shards}), latents, tmp_path / "plain")
    whole, parts, plain = (
        (tmp_path / name / "weights-212.safetensors").read_bytes()
        for name in ("whole", "parts", "plain")
    )
    assert whole == parts
    assert plain != whole
    whole, plain = (
        json.loads((tmp_path / name / "record.json").read_text()) for name in ("whole", "plain")
    )
    more = whole["flops"] / plain["flops"]
    assert more == 1 if kind == "contrastive" else 1 < more < 1.1
    assert whole["parameters"] == plain["parameters"]


@pytest.mark.parametrize("kind", ["dispersive", "repa"])
def test_it_makes_its_term_smaller(tmp_path, kind):
    latents = latents_at(tmp_path / "0.arrow")
    (tmp_path / "run").mkdir()
    training = {"learning_rate": 0.003, "auxiliary": KINDS[kind] | {"weight": 20.0}}
    spec = expert_spec(images=1600, snapshots=[1600], training=training)
    train(spec, latents, tmp_path / "run", features=FEATURES)
    curve = json.loads((tmp_path / "run" / "curve.json").read_text())
    assert curve[-1][1] < curve[0][1] - 2


def test_a_term_is_no_part_of_a_spec_without_one():
    assert "auxiliary" not in expert_spec().as_json()["training"]
    assert code_of("expert") != code_of("expert", DispersiveAuxiliary(kind="dispersive"))


# --- params ---------------------------------------------------------------------------------------
LABELLED = {"class_conditional": True}


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ({"training": {"auxiliary": {"kind": "contrastive"}}}, "needs network.class_conditional"),
        (
            {
                "network": LABELLED,
                "training": {
                    "auxiliary": {"kind": "contrastive"},
                    "weighting": {"kind": "uncertainty"},
                },
            },
            "use another training.weighting",
        ),
        (
            {"training": {"auxiliary": {"kind": "dispersive"}, "compile": True}},
            r"training\.compile: what training.auxiliary: dispersive looks at",
        ),
        ({"training": {"auxiliary": {"kind": "contrast"}}}, "auxiliary"),
    ],
)
def test_what_cannot_be(recipe, told):
    base = {"seed": 0, "data": {}, "latent": {}, "features": {}, "evaluate": {}, "defaults": {}}
    with pytest.raises(UserError, match=told):
        resolve(base | {"recipes": {"one": recipe}})


def test_a_recipe_that_is_aligned_waits_for_the_features(tmp_path):
    recipes = {
        "aligned": {"training": {"auxiliary": {"kind": "repa"}}},
        "dispersed": {"training": {"auxiliary": {"kind": "dispersive"}}},
        "apart": {
            "network": LABELLED,
            "training": {"auxiliary": {"kind": "contrastive", "weight": 0.1}},
        },
    }
    schedule = {"kind": "log-snr", "states": 8}
    workspace = trained_on_digits(tmp_path, recipes, flips=True, schedule=schedule)
    found = plan.experts(workspace.params, facts_of(workspace))
    wanted = plan.features(workspace.params, facts_of(workspace)).name
    for name in recipes:
        [expert] = found[name].experts
        assert (wanted in expert.job.needs) == (name == "aligned")
        assert expert.job.spec.features == (wanted if name == "aligned" else None)
        assert workspace.store.entry(expert.job.name).done
