"""What a run would take on a GPU: against counts by hand, and what a real pass keeps."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from torch.autograd.graph import saved_tensors_hooks

from pipeline.data.latents import Latents, write_shard
from pipeline.errors import UserError
from pipeline.networks.build import count_parameters, network_of
from pipeline.training import train
from stages import cli, prepare
from stages.tools import hardware, memory
from stages.tools import outlook as planning
from stages.tools.declared import Declared
from stages.tools.hardware import Hardware, gpu_named
from stages.workspace import Workspace
from tests.specs import SMALL, expert_spec
from tests.test_dit import TINY
from tests.test_inspection import PARAMS as LIKE_OTHERS
from tests.test_inspection import experts_of, make, small_workspace
from tests.test_own_networks import own
from tests.test_shards import MULTI
from tests.workflow import ROOT

WIDTH, SIDE = 6, 8  # of the network below, and of the digits
TWO_CONVOLUTIONS = f"""\
from torch import nn
class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(1, {WIDTH}, 3, padding=1)
        self.two = nn.Conv2d({WIDTH}, 1, 3, padding=1)
    def forward(self, x, level, labels):
        return self.two(self.one(x))
"""
FORWARD = 2 * 9 * 2 * WIDTH * SIDE**2  # FLOPs: two a multiply-add
WEIGHTS = 4 * (2 * 9 * WIDTH + WIDTH + 1)
KEPT = 4 * (WIDTH + 3) * SIDE**2  # inputs of both convolutions, answer and target, of an image
PARAMS = """\
seed: 0
data: {source: digits, limit: 80}
latent: {encoder: pixels}
features: {extractor: classifier, images: 100, dimension: 8, channels: 8}
evaluate: {samples: 16, batch: 8}
defaults:
  network: {kind: module, module: "own.py:Small"}
  schedule: {kind: log-snr, states: 4}
  training: {images: 96, batch: 16, milestones: [48]}
recipes:
  one: {}
  same: {sampling: {steps: 2}}
  shards: {training: {precision: bfloat16, shards: 4, power_ema: [0.1], ema_halflife: 0}}
"""
H100 = Hardware(gpu_named("H100"), utilization=0.5, price=3.0)


@pytest.fixture(autouse=True)
def own_store(monkeypatch):
    monkeypatch.delenv("TSPACE_STORE", raising=False)


@pytest.fixture
def workspace(tmp_path):
    (tmp_path / "own.py").write_text(TWO_CONVOLUTIONS)
    (tmp_path / "params.yaml").write_text(PARAMS)
    return Workspace(tmp_path)


def by_recipe(estimate: hardware.Estimate) -> dict[str, hardware.Share]:
    return {share.recipe: share for share in estimate.recipes}


def test_hours_memory_and_price_are_those_by_hand(workspace):
    estimate = planning.outlook(workspace, gpu=H100).on_gpu
    found = by_recipe(estimate)
    one, same, shards = (found[name] for name in ("one", "same", "shards"))
    assert one.training_flops == 3 * FORWARD * 96
    assert one.training_hours == pytest.approx(one.training_flops / (0.5 * 66.9e12) / 3600)
    assert shards.training_hours == pytest.approx(one.training_flops / (0.5 * 989.4e12) / 3600)
    assert one.sampling_flops == 2 * 16 * 4 * FORWARD  # milestones, samples, evaluations
    assert same.sampling_flops == one.sampling_flops / 2
    for share in found.values():
        hours = share.sampling_flops / (0.5 * 66.9e12) / 3600
        assert share.sampling_hours == pytest.approx(hours)
        assert share.dollars == pytest.approx(3.0 * (share.training_hours + hours))
    # One expert is of two recipes.
    assert estimate.total.training_flops == one.training_flops + shards.training_flops
    assert estimate.total.sampling_flops == sum(share.sampling_flops for share in found.values())
    rows = 80 * SIDE**2
    assert one.memory == memory.Memory(
        weights=WEIGHTS,
        gradients=WEIGHTS,
        moments=2 * WEIGHTS,
        averages=WEIGHTS,
        activations=16 * KEPT,
        rows=rows,
    )
    assert one.memory_bytes == one.memory.total == 5 * WEIGHTS + 16 * KEPT + rows
    # A tree of four shards holds sums of four, two and one of them beside a shard's gradients.
    assert shards.memory.gradients == 4 * WEIGHTS and shards.memory.averages == WEIGHTS
    half = 2 * (1 + WIDTH) * SIDE**2 + 4 * 2 * SIDE**2  # of inputs; answer and target are whole
    casts = 2 * 2 * 9 * WIDTH  # of weights; of one bias and of the other none is kept
    assert shards.memory.activations == pytest.approx(4 * half + casts, abs=64)
    assert estimate.total.memory == one.memory


def test_what_is_finished_takes_nothing(tmp_path):
    workspace = small_workspace(tmp_path / "tspace", LIKE_OTHERS)
    before = by_recipe(planning.outlook(workspace, gpu=H100).on_gpu)
    assert all(make(workspace, experts_of(workspace, "one")))
    after = planning.outlook(workspace, gpu=H100).on_gpu
    one, apart = (by_recipe(after)[name] for name in ("one", "apart"))
    assert (one.training_flops, one.memory, one.memory_bytes) == (0, None, 0)
    assert one.sampling_flops == before["one"].sampling_flops > 0
    assert apart == before["apart"] and after.total.training_flops == apart.training_flops
    assert hardware.table(after)[1][-1] == ""


NETWORKS = {
    "unet": {"network": SMALL | {"attention": [8], "dropout": 0.1}},
    "classes": {"network": SMALL, "classes": 3},
    "one state": {"log_snr": [0.5], "conditioning": "none"},
    "dit": {"network": TINY, "classes": 3},
    "dit with all options": {"network": TINY | {"qk_norm": True, "swiglu": True, "rotary": True}},
    "decoders": MULTI | {"log_snr": [4.0, 3.0]},  # all of one interval
}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", NETWORKS)
def test_what_is_kept_is_what_a_real_step_keeps(tmp_path, monkeypatch, case, precision):
    images = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (40, 1, 8, 8), "u1")
    write_shard(tmp_path / "a.arrow", [(images, np.arange(40) % 3)], (1, 8, 8), [127.5], 73.9)
    training = {"precision": precision}
    spec = expert_spec(**NETWORKS[case], images=8, snapshots=[], training=training)
    networks, kept = [], {}

    def made(*arguments):
        networks.append(network_of(*arguments))
        return networks[-1]

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    monkeypatch.setattr(train, "network_of", made)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        train.train(spec, Latents([tmp_path / "a.arrow"]), tmp_path)
    [network] = networks
    for parameter in network.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    wanted = sum(storage.nbytes() for storage in kept.values())
    found = memory.saved_bytes(spec, 8, precision == "bfloat16", as_on_a_gpu=False)
    # Means and deviations of norms in bfloat16 are float32 there, and without values they are not.
    assert found == pytest.approx(wanted, rel=0.004 if precision == "bfloat16" else 0)
    size = 4 * count_parameters(network)
    held = memory.training_memory(spec, 0)
    assert (held.weights, held.gradients, held.moments, held.averages) == (
        size,
        size,
        2 * size,
        size,
    )


NORMED = TWO_CONVOLUTIONS.replace(
    "self.two(self.one(x))", "self.two(nn.functional.group_norm(self.one(x), 2))"
)


def test_norms_keep_float32_on_a_gpu(tmp_path):
    network = own(tmp_path, NORMED, options={})
    given = {"network": network.network, "source": network.source}
    spec = expert_spec(**given)
    here, there = (
        memory.saved_bytes(spec, 4, True, tmp_path, as_on_a_gpu=gpu) for gpu in (False, True)
    )
    # The norm's input is kept in float32 instead of bfloat16.
    assert there - here == pytest.approx(4 * 2 * WIDTH * SIDE**2, rel=0.03)
    exact = [memory.saved_bytes(spec, 4, False, tmp_path, as_on_a_gpu=g) for g in (False, True)]
    assert exact[0] == exact[1]


def test_of_several_decoders_the_one_that_keeps_most_counts():
    narrow, wide = (
        expert_spec(**MULTI | {"network": MULTI["network"] | {"decoder_channels": widths}})
        for widths in ([8, 8], [8, 16])
    )
    assert memory.saved_bytes(wide, 8, False) > memory.saved_bytes(narrow, 8, False)


def test_a_network_that_reads_values_leaves_its_part_open(tmp_path):
    reads = TWO_CONVOLUTIONS.replace("return", "assert float(x.sum()) < 1e9\n        return")
    network = own(tmp_path, reads, options={})
    spec = expert_spec(network=network.network, source=network.source)
    found = memory.training_memory(spec, 7, tmp_path)
    assert found.activations is None and found.total == 5 * WEIGHTS + 7


def test_memory_beyond_the_gpu_is_a_warning(workspace):
    text = PARAMS.replace("limit: 80", "limit: 1000").replace("batch: 16", "batch: 512")
    (workspace.root / "params.yaml").write_text(text.replace("images: 96", "images: 960"))
    small = dataclasses.replace(H100, gpu=dataclasses.replace(H100.gpu, memory=1e6))
    for gpu, warns in ((H100, False), (small, True)):
        said = "\n".join(
            hardware.lines(planning.outlook(Workspace(workspace.root), gpu=gpu).on_gpu)
        )
        assert ("WARNING: that is more than the 1.00 MB of the H100; double" in said) == warns


# --- recipes that measure, and images that are not there

MEASURED = """\
seed: 0
data: {source: folder, path: data/faces, resolution: 8, channels: 1}
latent: {encoder: pixels}
features: {extractor: inception}
evaluate: {samples: 100, allow_few: true}
defaults:
  network: {kind: unet, channels: 8, multipliers: [1, 2], blocks: 1}
  schedule: {kind: log-snr, states: 8}
  training: {images: 4800, batch: 16}
recipes:
  even: {}
  fitted: {schedule: {kind: fitted, states: 8}, partition: {kind: per-state}}
  equal: {partition: {kind: uniform, intervals: 4}, training: {budget: by-difficulty}}
  decoders: &decoders
    network: {kind: multi-decoder, channels: 8, multipliers: [1, 2], blocks: 1,
              decoder_channels: [8, 16, 24]}
    partition: {kind: optimal-denoiser, intervals: 3}
    curriculum: {kind: per-interval}
  pinned: {<<: *decoders, partition: {kind: bounds, log_snr: [3, -3]}}
"""


def test_what_waits_for_measurements_is_estimated_by_its_size(tmp_path):
    (tmp_path / "params.yaml").write_text(MEASURED)
    found = planning.outlook(Workspace(tmp_path), gpu=H100, said=Declared(1000))
    assert list(found.waiting) == ["fitted", "equal", "decoders"]
    shares = by_recipe(found.on_gpu)
    assert [name for name, share in shares.items() if share.assumed] == list(found.waiting)
    even, fitted, equal = (shares[name] for name in ("even", "fitted", "equal"))
    assert equal.training_flops == even.training_flops
    assert fitted.sampling_flops == pytest.approx(even.sampling_flops, rel=0.1)  # told no state
    # A curriculum that shares equally makes the bounds no matter.
    assert shares["decoders"].training_flops == pytest.approx(shares["pinned"].training_flops)
    assert shares["decoders"].memory == shares["pinned"].memory
    assert "1,000 images of 8x8, 1 channel, no labels, as said, for data/faces is not there" in (
        found.unknown
    )


def test_images_that_are_not_there_have_to_be_described(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(MEASURED)
    with pytest.raises(UserError, match=r"faces does not exist.*to plan without them, say --rows"):
        planning.outlook(Workspace(tmp_path), gpu=H100)
    path.write_text(MEASURED.replace("resolution: 8, channels: 1", "resolution: 8"))
    with pytest.raises(UserError, match=r"^data\.channels: null, and data/faces is not there"):
        planning.outlook(Workspace(tmp_path), said=Declared(1000))
    path.write_text(MEASURED.replace("blocks: 1}", "blocks: 1, class_conditional: true}"))
    with pytest.raises(UserError, match="class_conditional: the dataset has no labels"):
        planning.outlook(Workspace(tmp_path), said=Declared(1000))
    assert planning.outlook(Workspace(tmp_path), said=Declared(1000, 3)).totals["experts"] == 2


def test_images_that_are_there_are_looked_at(workspace):
    for _ in range(2):
        with pytest.raises(UserError, match="--rows, --classes: the images are here"):
            planning.outlook(workspace, said=Declared(1000, 3))
        prepare.prepare(workspace)


# --- the command line


def run(workspace, monkeypatch, *options: str) -> tuple[int, str]:
    for name in ("Snakefile", "dvc.yaml"):
        shutil.copy(ROOT / name, workspace.root)
    monkeypatch.chdir(workspace.root)
    done = CliRunner().invoke(cli.main, ["plan", *options])
    return done.exit_code, done.output


def test_the_command_tells_what_it_assumes(workspace, monkeypatch):
    status, said = run(workspace, monkeypatch, "--gpu", "rtx4090")
    assert status == 0, said
    assert "on one RTX 4090: estimates, from counted FLOPs and an assumed 20% of its" in said
    assert re.search(r"^all +111 kFLOP .* +\$", said, re.MULTILINE) is None
    status, said = run(workspace, monkeypatch, "--gpu", "H100", "--price", "3", "--json")
    found = json.loads(said)["on_gpu"]
    assert found["hardware"]["price"] == 3 and found["total"]["dollars"] > 0
    assert found["recipes"][0]["memory"]["weights"] == WEIGHTS
    status, said = run(workspace, monkeypatch, "--json")
    assert json.loads(said)["on_gpu"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpu", "H101"], r"--gpu: 'H101' is not known; one of: A10, A100, H100, .*, RTX 4090$"),
        (["--utilization", "0.2"], "plan: --utilization is of a GPU; name it by --gpu"),
        (
            ["--price", "2", "--recipe", "one"],
            "plan: --price without --gpu is of all stages; leave",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(workspace, monkeypatch, options, message):
    status, said = run(workspace, monkeypatch, *options)
    assert status == 2 and re.search(message, said.strip()), said


SAID = {
    "cifar10": None,
    "celeba64": Declared(202_599),
    "imagenet256-latent": Declared(1_281_167, 1000),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAID)
def test_presets_state_what_plan_says_of_them(tmp_path, name):
    """To the digits that stand there."""
    text = (ROOT / "presets" / f"{name}.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text)
    on = Hardware(gpu_named("H100"), price=2.5)
    estimate = planning.outlook(Workspace(tmp_path), gpu=on, said=SAID[name]).on_gpu
    ddpm, total = by_recipe(estimate)["ddpm"], estimate.total
    said = " ".join(line.removeprefix("#").strip() for line in text.splitlines()[:20])
    assert re.search(
        f"--gpu H100 --price 2.5.*` all recipes take {total.training_hours:,.0f} GPU-hours of "
        f"training, {total.sampling_hours:,.0f} of sampling, "
        rf"\${total.dollars:,.0f} and at most {total.memory_bytes / 1e9:.1f} GB, and `ddpm` alone "
        rf"{ddpm.training_hours:.1f}, {ddpm.sampling_hours:.1f}, \${ddpm.dollars:.0f} and "
        f"{ddpm.memory_bytes / 1e9:.3g} GB: estimates",
        said,
    ), said
    assert total.memory_bytes < 0.9 * on.gpu.memory  # there is room for workspaces
