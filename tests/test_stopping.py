"""`training.stop`: a run ends where held-out images gain no more, and always there."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from pipeline import plan
from pipeline.data.latents import Latents, write_shard
from pipeline.errors import UserError
from pipeline.networks.build import network_of
from pipeline.noise import philox, process
from pipeline.params.load import resolve
from pipeline.training import run
from pipeline.training.params import Stop
from pipeline.training.run import Interrupted
from pipeline.training.stopping import HeldOutLoss, gains_no_more
from pipeline.training.train import train
from stages.facts import facts_of
from stages.report import costs
from stages.workspace import Workspace
from tests.specs import expert_spec
from tests.workflow import run_stages

SNAPSHOTS = [40, 80, 120, 160, 200, 240]


@pytest.fixture
def data(tmp_path):
    """Rows to train on, and held-out ones of another kind: the sooner it ends, the better."""
    random = np.random.Generator(np.random.PCG64(0))
    found = []
    for name, level in (("trained", 40), ("held_out", 215)):
        rows = random.integers(level - 30, level + 30, (24, 1, 8, 8)).astype(np.uint8)
        path = tmp_path / f"{name}.arrow"
        write_shard(path, [(rows, np.arange(24) % 3)], (1, 8, 8), [127.5], 73.9)
        found.append(Latents([path]))
    return found


def spec(patience=2, gain=0.01, **changes):
    training = {"stop": {"patience": patience, "gain": gain}, "decay": "constant"}
    training |= changes.pop("training", {})
    return expert_spec(images=240, snapshots=SNAPSHOTS, training=training, **changes)


@pytest.mark.parametrize(
    ("losses", "patience", "ends"),
    [
        ([1.0, 0.5], 2, False),
        ([1.0, 0.995, 0.991], 2, True),  # each within a hundredth of the best before
        ([1.0, 0.995, 0.98], 2, False),
        ([1.0, 0.5, 0.6, 0.55], 2, True),
        ([1.0, 0.5, 0.6, 0.49], 2, False),
        ([1.0, 1.0], 1, True),
        ([1.0], 1, False),
    ],
)
def test_the_rule(losses, patience, ends):
    assert gains_no_more(losses, Stop(patience=patience)) == ends


def test_the_loss_is_that_of_training_on_held_out_rows(data):
    """For eps-prediction the mean squared error of the noise, at levels of the last density."""
    wanted = spec(prediction="eps")
    network = network_of(wanted, 1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05)
    weights = {k: p.detach().clone() for k, p in network.named_parameters()}
    loss = HeldOutLoss(wanted, data[1], network)
    assert loss.count == 24
    found = loss(weights, torch.contiguous_format)
    drawn, key = loss.drawn, philox.derive_key(wanted.noise_key, "held-out")
    assert sorted(drawn.rows) == list(range(24)) and len(set(drawn.log_snr)) == 3
    z = data[1].gather(drawn.rows)
    eps = philox.normal(key, drawn.slots, drawn.rows, (1, 8, 8))
    levels = torch.from_numpy(drawn.log_snr)
    x = process.add_noise(z, torch.from_numpy(eps), levels)
    with torch.no_grad():
        answers = network(x, levels)
    assert found == pytest.approx(float((answers - torch.from_numpy(eps)).square().mean()), 1e-5)
    assert loss(weights, torch.contiguous_format) == found
    half = {k: 0.5 * w for k, w in weights.items()}
    assert loss(half, torch.contiguous_format) != found
    assert network.training


def test_it_ends_early_and_later_snapshots_have_the_weights_of_then(data, tmp_path):
    for name in ("out", "whole"):
        (tmp_path / name).mkdir()
    train(spec(), data[0], tmp_path / "out", held_out=data[1])
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    losses = [loss for _, loss in record["held_out"]]
    assert record["ended"] == record["images"] == record["held_out"][-1][0] < 240
    assert gains_no_more(losses, Stop()) and not gains_no_more(losses[:-1], Stop())
    assert json.loads((tmp_path / "out" / "curve.json").read_text())[-1][0] == record["images"]
    kept = {n: load_file(tmp_path / "out" / f"weights-{n}.safetensors") for n in SNAPSHOTS}
    final = kept[record["images"]]
    for images, weights in kept.items():
        same = all(torch.equal(weights[k], final[k]) for k in final)
        assert same == (images >= record["images"])
    # What was trained is that of a run without the rule.
    train(spec(training={"stop": None}), data[0], tmp_path / "whole")
    whole = load_file(tmp_path / "whole" / f"weights-{record['images']}.safetensors")
    assert all(torch.equal(whole[k], final[k]) for k in final)
    plain = json.loads((tmp_path / "whole" / "record.json").read_text())
    assert "held_out" not in plain and "ended" not in plain
    forward = plain["flops"] / (3 * 240)
    told = 24 * len(losses) + 3 * record["images"]
    assert record["flops"] == pytest.approx(told * forward)


def test_while_it_gains_it_goes_on(data, tmp_path):
    train(spec(), data[0], tmp_path, held_out=data[0])
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["images"] == 240 and record["ended"] is None
    assert [images for images, _ in record["held_out"]] == SNAPSHOTS


@pytest.mark.parametrize("shards", [1, 2])
def test_killed_anywhere_it_ends_there_too(data, tmp_path, monkeypatch, shards):
    monkeypatch.setattr(run, "CHECKPOINT_SECONDS", 0.0)
    wanted = spec(training={"shards": shards})
    train(wanted, data[0], tmp_path / "whole", held_out=data[1])
    stops = 0
    for _ in range(40):
        calls = iter([False, True])
        try:
            train(
                wanted,
                data[0],
                tmp_path / "parts",
                held_out=data[1],
                stop=lambda calls=calls: next(calls, False),
            )
            break
        except Interrupted:
            stops += 1
    assert stops > 3
    names = [f"weights-{n}.safetensors" for n in SNAPSHOTS] + ["record.json", "curve.json"]
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


PARAMS = {
    "seed": 0,
    "data": {"source": "digits", "limit": 200, "holdout": 40},
    "latent": {},
    "features": {"extractor": "classifier", "images": 200, "dimension": 8, "channels": 8},
    "evaluate": {"samples": 40, "allow_few": True},
    "defaults": {
        "schedule": {"kind": "log-snr", "states": 4},
        "network": {"kind": "unet", "channels": 8, "multipliers": [1], "blocks": 1},
        "training": {
            "images": 400,
            "batch": 20,
            "decay": "constant",
            "milestones": [100, 200, 300],
            "stop": {"patience": 1, "gain": 0.9},
        },
    },
    "recipes": {"halves": {"partition": {"kind": "uniform", "intervals": 2}}},
}


def test_it_needs_images_and_milestones():
    def told(**changes):
        data = PARAMS["data"] | changes.pop("data", {})
        training = PARAMS["defaults"]["training"] | changes.pop("training", {})
        recipe = PARAMS["defaults"] | changes | {"training": training}
        with pytest.raises(UserError) as caught:
            resolve(PARAMS | {"data": data, "defaults": {}, "recipes": {"one": recipe}})
        return str(caught.value)

    assert "recipes.one.training.stop: it goes by images that are not" in told(data={"holdout": 0})
    assert "recipes.one.training.stop.patience: 1 of 0 milestones" in told(
        training={"milestones": []}
    )
    assert "recipes.one.training.stop: merge.method: snapshots takes" in told(
        merge={"method": "snapshots"}
    )


@pytest.mark.slow
def test_all_the_way(tmp_path):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    workspace = Workspace(tmp_path)
    run_stages(workspace)
    [recipe] = plan.experts(workspace.params, facts_of(workspace)).values()
    assert [expert.job.spec.held_out != [] for expert in recipe.experts] == [True, True]
    own = costs.own(workspace, recipe, 400)
    assert own.images == 2 * 100  # of 200 each: the second milestone gained less than 90 %
    summary = json.loads((workspace.results / "summary.json").read_text())["recipes"]["halves"]
    assert summary["images_seen"] == 200
