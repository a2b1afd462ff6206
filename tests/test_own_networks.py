"""Transformers, a module of a user's own and weights made elsewhere: alone, and all the way."""

from __future__ import annotations

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.data.latents import Latents, write_shard
from pipeline.errors import UserError
from pipeline.networks.build import count_parameters, flops_of, network_of, take
from pipeline.params.load import resolve
from pipeline.sampling.exported import load_exported
from pipeline.sampling.mixture import Mixture
from pipeline.store.identity import file_digest
from pipeline.training import run
from pipeline.training.train import train
from stages import merge, source
from stages.facts import found_entries
from stages.tools import plan as planning
from stages.tools.export import export_recipe
from stages.workspace import Workspace
from tests.specs import expert_spec, network_spec
from tests.test_dit import TINY, Paper
from tests.workflow import ROOT, run_stages

DOCUMENT = (ROOT / "docs" / "networks.md").read_text()
EXAMPLE = re.search(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)[1]
RECIPE = yaml.safe_load(re.search(r"```yaml\n(network:.*?)```", DOCUMENT, re.DOTALL)[1])


def own(tmp_path, text=EXAMPLE, classes=10, name="Small", **settings):
    """The spec of a network in a file of `tmp_path`."""
    (tmp_path / "own.py").write_text(text)
    settings = {"options": {"channels": 2, "width": 4, "classes": 10}} | settings
    spec = network_spec({"kind": "module", "module": f"own.py:{name}"} | settings, classes=classes)
    return spec.model_copy(update={"source": file_digest(tmp_path / "own.py")})


def one(body, init=""):
    """A file with a class `Small` of one weight."""
    return (
        "import torch\nfrom torch import nn\nclass Small(nn.Module):\n"
        "    def __init__(self, **_):\n        super().__init__()\n"
        f"        self.w = nn.Parameter(torch.rand(1))\n        {init or 'pass'}\n"
        f"    def forward(self, x, level, labels):\n        {body}\n"
    )


def test_the_documented_module_is_a_network_like_others(tmp_path):
    spec = own(tmp_path)
    before = torch.random.get_rng_state()
    first, same, other = (network_of(spec, seed, root=tmp_path) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = [dict(network.named_parameters()) for network in (first, same, other)]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert not torch.equal(weights[0]["module.enter.weight"], weights[2]["module.enter.weight"])
    x, labels = torch.randn(3, 2, 8, 8), torch.tensor([1, 4, 10])
    first.check()
    found = first(x, torch.tensor([0.5]), labels)
    level = torch.full((3,), 0.5)
    assert torch.equal(found, first.module(x, level, labels))
    none = first(x, torch.tensor([0.5]))
    assert torch.equal(none[2], found[2]) and not torch.equal(none[0], found[0])
    # 2 x operations of three 3 x 3 convolutions on 64 pixels, and a product of 1 x 4.
    assert flops_of(spec, root=tmp_path) == 2 * (64 * 9 * (8 + 16 + 8) + 4)
    assert (
        count_parameters(network_of(spec, device="meta", root=tmp_path)) == 8 + 44 + 148 + 76 + 74
    )


@pytest.mark.parametrize(
    ("told", "log_snr", "level"),
    [("log_snr", -2.0, -2.0), ("sigma", -2.0, np.e), ("timestep", 99.0, 0.0)],
)
def test_a_module_is_told_the_level_in_its_own_words(tmp_path, told, log_snr, level):
    text = one("return self.w * 0 + x * 0 + level[:, None, None, None]")
    network = network_of(own(tmp_path, text, 0, told=told), root=tmp_path)
    answer = network(torch.zeros(2, 2, 8, 8), torch.tensor([log_snr]))
    torch.testing.assert_close(answer, torch.full((2, 2, 8, 8), float(level)))


def test_operations_of_a_module_that_reads_values_are_counted_all_the_same(tmp_path):
    text = one(
        "return x * self.w * (1 if float(level.sum()) < 9 else 2) + self.conv(x)",
        "self.conv = nn.Conv2d(2, int(torch.ones(1) * 2), 1)",
    )
    assert flops_of(own(tmp_path, text, 0), root=tmp_path) == 2 * 64 * 4


REFUSED = {
    "answers \\[2, 1, 8, 8\\] to images \\[2, 2, 8, 8\\]": one("return x[:, :1] * self.w"),
    "answers tuple to images": one("return (x,)"),
    "answers one question in two ways after eval": one("return x * self.w + torch.randn_like(x)"),
    "forward\\(x \\[2, 2, 8, 8\\], level \\[2\\], labels\\) fails: KeyError": one(
        "raise KeyError(1)"
    ),
    "has buffers \\(norm.num_batches_tracked, norm.running_mean": one(
        "return self.norm(x)", "self.norm = nn.BatchNorm2d(2)"
    ),
    "has no parameters": one("return x", "del self.w"),
    "is the weight of another name": one("return x * self.v", "self.v = self.w"),
    "w is torch.float64": one("return x", "self.double()"),
    "is no torch.nn.Module": "class Small:\n    def __init__(self, **_): pass\n",
    "cannot be made of network.options: TypeError": EXAMPLE.replace(
        "classes: int", "classes, depth"
    ),
    "own.py:Small: SyntaxError": "class Small(:\n",
    "own.py:Small: AttributeError": "x = 1\n",
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_module_that_would_break_a_promise_is_refused(tmp_path, message):
    with pytest.raises(UserError, match=message):
        network_of(own(tmp_path, REFUSED[message], 0), root=tmp_path).check()


def test_constants_that_are_not_kept_and_dropout_are_no_offence(tmp_path):
    init = "self.register_buffer('c', torch.ones(1), persistent=False); self.d = nn.Dropout(0.5)"
    network_of(
        own(tmp_path, one("return self.d(x * self.w * self.c)", init), 0), root=tmp_path
    ).check()


def test_a_file_that_is_another_one_now_is_not_executed(tmp_path):
    spec = own(tmp_path)
    (tmp_path / "own.py").write_text("raise SystemExit\n")
    with pytest.raises(UserError, match=r"own\.py: changed since this was planned"):
        network_of(spec, root=tmp_path)
    (tmp_path / "own.py").unlink()
    with pytest.raises(UserError, match=r"own\.py: cannot be read"):
        network_of(spec, root=tmp_path)


@pytest.mark.parametrize("place", ["/etc/own.py:Small", "../own.py:Small", "own.py", "own:Small"])
def test_a_module_is_a_class_in_a_file_of_the_project(place):
    base = {"seed": 0, "data": {}, "latent": {}, "features": {}, "evaluate": {}, "defaults": {}}
    network = {"kind": "module", "module": place}
    with pytest.raises(UserError, match=r"recipes\.one\.network.module: "):
        resolve(base | {"recipes": {"one": {"network": network}}})


@pytest.mark.parametrize("kind", ["dit", "module"])
def test_a_run_in_parts_gives_the_bits_of_a_whole_one(kind, tmp_path, monkeypatch):
    """With the dropout of a module."""
    monkeypatch.setattr(run, "CHECKPOINT_SECONDS", 0.0)
    images = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (40, 1, 8, 8), np.uint8)
    write_shard(tmp_path / "0.arrow", [(images, np.arange(40) % 3)], (1, 8, 8), [127.5], 73.9)
    latents = Latents([tmp_path / "0.arrow"])
    text = one("return self.d(self.c(x)) * self.w", "self.c = nn.Conv2d(1, 1, 3, padding=1)")
    text = text.replace("self.c =", "self.d = nn.Dropout(0.5); self.c =")
    settings = own(tmp_path, text, 0).network if kind == "module" else TINY | {"qk_norm": True}
    source = file_digest(tmp_path / "own.py") if kind == "module" else None
    wanted = expert_spec(network=settings, source=source, images=96, snapshots=[96])
    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    train(wanted, latents, tmp_path / "whole", root=tmp_path)
    calls = iter([False, False, True, False, True])
    for _ in range(2):
        with pytest.raises(run.Interrupted):
            train(wanted, latents, tmp_path / "parts", root=tmp_path, stop=lambda: next(calls))
    train(wanted, latents, tmp_path / "parts", root=tmp_path)
    names = ("weights-96.safetensors", "curve.json", "record.json")
    whole, parts = (
        [(tmp_path / folder / name).read_bytes() for name in names] for folder in ("whole", "parts")
    )
    assert whole == parts
    assert json.loads(parts[1]) != [] and json.loads(parts[2])["flops"] > 0


# Weights made elsewhere


def test_what_fits_of_a_files_weights_is_taken_and_told():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2, bias=False)

    network = Net()
    start = network.b.weight.detach().clone()
    given = {"a.weight": torch.ones(2, 2), "a.bias": torch.ones(2), "b.weight": torch.ones(3, 2)}
    fit = take(network, given | {"d": torch.ones(1)})
    assert (network.a.weight == 1).all() and torch.equal(network.b.weight, start)
    assert str(fit) == (
        "2 of the network's 5 tensors are from there; at their own start: b.weight, b.bias, "
        "c.weight; not used: b.weight, d"
    )
    with pytest.raises(ValueError, match="nothing in it fits this network: it has d"):
        take(network, {"d": torch.ones(1)})


def test_a_pickle_is_never_read_and_two_starts_are_one_too_many(tmp_path):
    base = {"seed": 0, "data": {}, "latent": {}, "features": {}, "evaluate": {}, "defaults": {}}
    recipe = {"training": {"initial": "weights.safetensors", "parent": "a"}}
    with pytest.raises(UserError, match=r"recipes\.b\.training\.initial: training\.parent is what"):
        resolve(base | {"recipes": {"a": {}, "b": recipe}})
    path = tmp_path / "weights.pt"
    torch.save({"w": torch.ones(1)}, path)
    spec = expert_spec(initial={"path": "weights.pt", "sha256": ""})
    with pytest.raises(UserError, match=r"weights\.pt: not a safetensors file, or damaged"):
        train(spec, SimpleNamespace(device=torch.device("cpu")), tmp_path, parent=path)


# All the way

DIT = {"kind": "dit", "depth": 2, "width": 32, "heads": 2}
STATES = {"kind": "log-snr", "states": 4, "log_snr_max": 6.0, "log_snr_min": -6.0}
HALVES = {"kind": "uniform", "intervals": 2}
JOINT = {
    "network": DIT | {"kind": "multi-dit", "decoder_depths": [1, 0]},
    "partition": HALVES,
}
PUBLISHED = {
    "network": DIT | {"told": "timestep", "class_conditional": True},
    "schedule": STATES,
    "prediction": "eps",
    "partition": HALVES,
}
PARAMS = {
    "seed": 0,
    "data": {"source": "digits", "limit": 400, "holdout": 16},
    "latent": {},
    "features": {"extractor": "classifier", "images": 600},
    "evaluate": {"samples": 100, "consistency": {"recipes": ["plain", "own"], "samples": 16}},
    "defaults": {
        "network": DIT,
        "training": {"images": 128, "batch": 16},
        "sampling": {"kind": "ddim", "steps": 4},
    },
    "recipes": {
        "plain": {"schedule": STATES},
        "later": {
            "network": {"qk_norm": True, "swiglu": True, "rotary": True, "class_conditional": True},
            "schedule": STATES,
            "sampling": {"guidance": 1.5},
        },
        "apart": {
            "schedule": STATES,
            "partition": {"kind": "per-state", "channels": [32, 16, 16, 8]},
        },
        "forked": {
            "schedule": STATES,
            "partition": HALVES,
            "training": {"parent": "plain"},
            "decouple": {"outside": 0.2, "consistency": 0.5},
            "merge": {"method": "task-vector", "images": 16},
        },
        "piloted": {
            "schedule": {"kind": "fitted", "states": 4, "source": "pilot", "pilot_images": 64},
            "partition": {"kind": "gradient", "intervals": 2, "pilot_images": 64, "nodes": 4},
        },
        "multi": JOINT | {"schedule": STATES},
        "branched": JOINT
        | {"schedule": STATES, "training": {"parent": "plain", "train": "decoders"}},
        "own": RECIPE | {"schedule": STATES, "partition": HALVES},
        "started": PUBLISHED | {"training": {"initial": "published.safetensors"}},
        "averaged": PUBLISHED
        | {
            "training": {"initial": "published.safetensors"},
            "merge": {"method": "average"},
            "decouple": {"consistency": 0.1},
        },
    },
}


def published():
    """Weights as the paper's code has them: for digits, and told 10 classes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Paper(2, 32, 2, 2, channels=1, classes=10, side=8).float()
    return {k: v.contiguous() * 0.1 for k, v in network.state_dict().items() if k != "pos_embed"}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    root = tmp_path_factory.mktemp("networks")
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    (root / "networks").mkdir()
    (root / "networks" / "small.py").write_text(EXAMPLE)
    save_file(published(), root / "published.safetensors")
    found = Workspace(root)
    run_stages(found)
    return found


@pytest.mark.slow
def test_every_kind_goes_all_the_way(workspace, capsys):
    summary = json.loads((workspace.results / "summary.json").read_text())["recipes"]
    assert set(summary) == set(PARAMS["recipes"])
    assert all(np.isfinite(found["fid"]) for found in summary.values())
    page = (workspace.results / "report.html").read_text()
    assert all(name in page for name in PARAMS["recipes"])
    planning.show_plan(workspace, None, False, False)
    said = capsys.readouterr().out
    assert all(name in said for name in PARAMS["recipes"])


def experts(workspace, name):
    return merge.milestones_of(workspace, name)[-1]["mixture"]["experts"]


@pytest.mark.slow
def test_experts_have_their_own_widths_and_the_file_of_the_module(workspace):
    widths = [expert["network"]["width"] for expert in experts(workspace, "apart")]
    assert widths == [32, 16, 16, 8]
    sha256 = file_digest(workspace.root / "networks" / "small.py")
    assert [expert["source"] for expert in experts(workspace, "own")] == [sha256] * 2
    assert len(experts(workspace, "averaged")) == 1


@pytest.mark.slow
def test_the_plan_says_what_each_intervals_own_blocks_cost(workspace, capsys):
    planning.show_plan(workspace, "multi", False, False)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    decoders = [line for line in lines if line[:2] == ["multi", "log-SNR"]]
    assert [line[5] for line in decoders] == ["1", "0"]
    [joint], branches = (experts(workspace, name) for name in ("multi", "branched"))
    assert joint["network"]["decoder_depths"] == [1, 0] and len(joint["interval_bounds"]) == 1
    assert [branch["network"]["decoder_depths"] for branch in branches] == [[1], [0]]


@pytest.mark.slow
def test_a_pilot_is_of_the_recipes_own_network(workspace):
    networks = [
        workspace.store.entry(name).spec()["network"]
        for name in found_entries(workspace, "analyses")
        if name.startswith("expert/")
    ]
    assert networks and all(network["kind"] == "dit" for network in networks)


@pytest.mark.slow
def test_a_run_begins_at_the_weights_of_the_file(workspace):
    given = published()["blocks.0.mlp.fc1.weight"]
    [first, _] = experts(workspace, "started")
    entry = workspace.store.entry(first["entry"])
    trained = load_file(entry.file(first["file"]))["encoder.blocks.0.perceptron.linear1.weight"]
    assert 0 < (trained - given).abs().max() < 0.1
    assert "published.safetensors: 31 of the network's 31 tensors are from there" in (
        entry.log.read_text()
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["later", "own", "averaged"])
def test_an_export_draws_the_same_away_from_the_project(workspace, name, tmp_path):
    export_recipe(workspace, name, tmp_path / "model")
    found = merge.milestones_of(workspace, name)[-1]["mixture"]
    away = shutil.copytree(tmp_path / "model", tmp_path / "away")
    own = Mixture(
        found,
        lambda e: workspace.store.entry(e["entry"]).file(e["file"]),
        root=workspace.root,
    )
    x = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    labels = torch.tensor([3])
    wanted, given = (m.denoise(x, 2.0, labels) for m in (own, load_exported(away).mixture))
    assert torch.equal(wanted, given)
    if name == "own":
        (away / "network" / "networks" / "small.py").write_text("raise SystemExit\n")
        with pytest.raises(UserError, match=r"small\.py: damaged"):
            load_exported(away)


def test_dvc_looks_at_the_files_that_recipes_name(tmp_path):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    (tmp_path / "networks").mkdir()
    (tmp_path / "networks" / "small.py").write_text(EXAMPLE)
    with pytest.raises(
        UserError, match=r"training\.initial: published\.safetensors: cannot be read"
    ):
        source.source(Workspace(tmp_path))
    save_file(published(), tmp_path / "published.safetensors")
    found = []
    for text in (EXAMPLE, EXAMPLE.replace("/ 10", "/ 5")):
        (tmp_path / "networks" / "small.py").write_text(text)
        source.source(Workspace(tmp_path))
        found.append(json.loads((tmp_path / "artefacts" / "files.json").read_text())["recipes"])
    assert set(found[0]) == {"networks/small.py", "published.safetensors"}
    assert [key for key in found[0] if found[0][key] != found[1][key]] == ["networks/small.py"]
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    reading = {
        name for name, stage in stages.items() if "artefacts/files.json" in stage.get("deps", ())
    }
    apart = {"source", "prepare", "encode", "pair"}  # these look at no network and no extractor
    assert reading == set(stages) - apart
