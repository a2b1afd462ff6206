"""Oracles: the paper's table and its code, written again; float64 throughout."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.data.latents import Latents, write_shard
from pipeline.errors import UserError
from pipeline.networks.build import count_parameters, flops_of, network_of, start_from
from pipeline.networks.embedding import timestep, told_as
from pipeline.networks.params import DiT
from pipeline.params.load import resolve
from pipeline.training import run
from pipeline.training.run import Interrupted
from pipeline.training.train import train
from tests.specs import build_network, expert_spec, network_spec

TINY = {"kind": "dit", "depth": 2, "width": 48, "heads": 3}
LATER = {"qk_norm": True, "swiglu": True, "rotary": True}
ROUTED = TINY | {"depth": 4, "routing": {"share": 0.4, "start": 1, "end": 1}}
# Peebles & Xie 2023, table 4: M weights, and Gflops (multiply-adds), patch 2 on 4 x 32 x 32.
PAPER = {"S": (33, 6.06), "B": (130, 23.01), "L": (458, 80.71), "XL": (675, 118.64)}


def network(settings=TINY, seed=1, **options):
    """One with no zero weights left, in float64."""
    options = {"channels_in": 2, "resolution": 8} | options
    found = build_network(settings, **options).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in found.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return found


def inputs(n=4, side=8, channels=2):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, channels, side, side, generator=generator, dtype=torch.float64)
    return x, torch.linspace(6, -6, n, dtype=torch.float64)


@pytest.mark.parametrize("size", PAPER)
def test_sizes_have_the_papers_weights_and_operations(size):
    settings = {"kind": "dit", "size": size}
    spec = network_spec(settings, channels_in=4, resolution=32, classes=1000)
    weights, operations = PAPER[size]
    found = count_parameters(network_of(spec, device="meta"))
    assert found / 1e6 == pytest.approx(weights, rel=0.01)
    assert flops_of(spec) / 2e9 == pytest.approx(operations, rel=0.01)
    # The paper's code also answers a variance, and counts its positions.
    depth, width, heads = spec.network.depth, spec.network.width, spec.network.heads
    with torch.device("meta"):
        paper = Paper(depth, width, heads, 2, channels=4, classes=1000, side=32)
    assert found + 16 * (width + 1) + 256 * width == count_parameters(paper)
    assert size != "XL" or count_parameters(paper) == 675_129_632  # as its code prints


def test_a_size_is_the_same_network_as_its_numbers():
    numbers = DiT(kind="dit", depth=24, width=1024, heads=16)
    assert DiT(kind="dit", size="L") == numbers
    assert "size" not in numbers.model_dump()


def test_operations_are_those_that_torch_counts():
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    for settings in (TINY, TINY | LATER, ROUTED, ROUTED | LATER):
        net = network(settings, classes=3)
        x, _ = inputs(1)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            net(x, torch.zeros(1, dtype=torch.float64), torch.tensor([1]))
        assert net.flops(8, 8) == counter.get_total_flops()


@pytest.mark.parametrize("settings", [TINY, TINY | LATER], ids=["plain", "later"])
@pytest.mark.parametrize("conditioning", ["state", "none"])
def test_every_parameter_is_used_and_a_batch_changes_no_sample(settings, conditioning):
    net = network(settings, classes=2, conditioning=conditioning)
    x, log_snr = inputs()
    labels = torch.tensor([0, 1, 2, 0])
    y = net(x, log_snr, labels)
    y.square().mean().backward()
    assert [k for k, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
    each = [net(x[i : i + 1], log_snr[i : i + 1], labels[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(torch.cat(each), y)
    last = net(x.contiguous(memory_format=torch.channels_last), log_snr, labels)
    torch.testing.assert_close(last, y)
    none = net(x, log_snr, torch.full((4,), 2))
    torch.testing.assert_close(net(x, log_snr), none)
    if conditioning == "none":
        torch.testing.assert_close(net(x, None, labels), y)


@pytest.mark.parametrize("settings", [TINY, TINY | LATER], ids=["plain", "later"])
def test_a_fresh_one_answers_zero_and_depends_on_the_seed_alone(settings):
    one, same, other = (build_network(settings, seed, classes=2) for seed in (3, 3, 4))
    x, log_snr = inputs()
    assert not one(x.float(), log_snr.float()).any()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.encoder.patches.weight, other.encoder.patches.weight)
    deviation = one.encoder.blocks[0].qkv.weight.std().item()
    assert deviation == pytest.approx(math.sqrt(2 / (4 * 48)), rel=0.05)
    assert one.encoder.embedding.label.weight.std().item() == pytest.approx(0.02, rel=0.2)


MULTI = TINY | {"kind": "multi-dit", "decoder_depths": [1, 0, 2]}


@pytest.mark.parametrize("settings", [MULTI, MULTI | LATER], ids=["plain", "later"])
def test_each_interval_has_last_blocks_of_its_own(settings):
    net = network(settings, classes=2, interval_bounds=[3.0, -3.0])
    x, log_snr = inputs()
    labels = torch.tensor([0, 1, 2, 0])
    answer = net(x, log_snr, labels)
    assert net.interval_of(log_snr).tolist() == [0, 1, 1, 2]
    for row, interval in enumerate([0, 1, 1, 2]):
        one = slice(row, row + 1)
        alone = net(x[one], log_snr[one], labels[one], interval)
        torch.testing.assert_close(alone, answer[one])
    counts = [net.flops(8, 8, level) for level in (4.0, 0.0, -4.0)]
    block = (counts[2] - counts[1]) // 2
    assert counts[0] == counts[1] + block and net.flops(8, 8) == sum(counts) / 3
    assert settings is not MULTI or counts[1] == network(classes=2).flops(8, 8)


def test_a_branch_of_a_trained_one_begins_as_it_is():
    parent = network(TINY)
    branch = build_network(MULTI, channels_in=2, resolution=8, interval_bounds=[3.0, -3.0])
    start_from(branch, {name: p.float() for name, p in parent.named_parameters()})
    x, log_snr = inputs()
    answer = branch.double()(x, log_snr)
    torch.testing.assert_close(answer, parent(x, log_snr), rtol=1e-5, atol=1e-5)


def test_half_precision_answers_alike():
    net = network(TINY | LATER).float()
    x, log_snr = (part.float() for part in inputs())
    exact = net(x, log_snr)
    with torch.autocast("cpu", torch.bfloat16):
        found = net(x, log_snr).float()
    assert ((found - exact).norm() / exact.norm()).item() < 0.03


def test_rotary_attention_sees_differences_of_positions_alone():
    net = network(TINY | {"rotary": True, "depth": 1, "patch": 1})
    block, generator = net.encoder.blocks[0], torch.Generator().manual_seed(3)
    q = torch.randn(1, 1, 1, 16, generator=generator, dtype=torch.float64)

    def score(place, other):
        from pipeline.networks.dit import angles, turned

        def at(row, column):
            both = [angles(torch.tensor([float(v)]).double(), 4) for v in (column, row)]
            return turned(q, torch.cat(both, 1))

        return (at(*place) * at(*other)).sum().item()

    assert block.heads == 3
    assert score((1, 2), (4, 3)) == pytest.approx(score((5, 7), (8, 8)), rel=1e-12)
    assert score((1, 2), (4, 3)) != pytest.approx(score((1, 2), (3, 4)), rel=1e-3)


@pytest.mark.parametrize("settings", [TINY, TINY | LATER], ids=["plain", "later"])
def test_it_knows_where_a_token_is_and_takes_other_sizes(settings):
    net = network(settings)
    x, log_snr = inputs(side=12)
    assert net(x[:, :, :, :8], log_snr).shape == (4, 2, 12, 8)
    swapped = torch.cat([x[..., 4:], x[..., :4]], -1)  # whole patches in another order
    answer = net(swapped, log_snr)
    back = torch.cat([answer[..., 8:], answer[..., :8]], -1)
    assert (back - net(x, log_snr)).abs().max() > 1e-3
    with pytest.raises(ValueError, match="9x8 pixels cannot be cut into patches of 2x2"):
        net(torch.zeros(1, 2, 9, 8, dtype=torch.float64), log_snr[:1])


# Told as the paper's code is


class Paper(nn.Module):
    """The network of the paper's code, in its names and order of operations."""

    def __init__(self, depth, width, heads, patch, channels, classes, side):
        super().__init__()
        self.p, self.heads, self.channels = patch, heads, 2 * channels
        self.x_embedder = nn.Module()
        self.x_embedder.proj = nn.Conv2d(channels, width, patch, patch)
        self.t_embedder = nn.Module()
        self.t_embedder.mlp = nn.Sequential(
            nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.y_embedder = nn.Module()
        self.y_embedder.embedding_table = nn.Embedding(classes + 1, width)
        self.pos_embed = nn.Parameter(torch.from_numpy(sincos(width, side // patch))[None])
        self.blocks = nn.ModuleList(self.block(width) for _ in range(depth))
        self.final_layer = nn.Module()
        self.final_layer.linear = nn.Linear(width, patch**2 * self.channels)
        self.final_layer.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    @staticmethod
    def block(width):
        block = nn.Module()
        block.attn, block.mlp = nn.Module(), nn.Module()
        block.attn.qkv, block.attn.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        block.mlp.fc1, block.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        block.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        return block

    def forward(self, x, t, y):
        def modulate(x, shift, scale):
            x = F.layer_norm(x, x.shape[-1:], eps=1e-6)
            return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)

        freqs = torch.exp(-math.log(10000) * torch.arange(128).double() / 128)
        args = t[:, None] * freqs[None]
        c = self.t_embedder.mlp(torch.cat([torch.cos(args), torch.sin(args)], -1))
        c = c + self.y_embedder.embedding_table(y)
        x = self.x_embedder.proj(x).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            parts = block.adaLN_modulation(c).chunk(6, 1)
            h = modulate(x, parts[0], parts[1])
            n, t, d = h.shape
            qkv = block.attn.qkv(h).reshape(n, t, 3, self.heads, d // self.heads)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            weight = (q @ k.mT / math.sqrt(d // self.heads)).softmax(-1)
            h = block.attn.proj((weight @ v).transpose(1, 2).reshape(n, t, d))
            x = x + parts[2].unsqueeze(1) * h
            h = block.mlp.fc1(modulate(x, parts[3], parts[4]))
            x = x + parts[5].unsqueeze(1) * block.mlp.fc2(F.gelu(h, approximate="tanh"))
        x = self.final_layer.linear(modulate(x, *self.final_layer.adaLN_modulation(c).chunk(2, 1)))
        h = w = int(x.shape[1] ** 0.5)
        x = x.reshape(len(x), h, w, self.p, self.p, self.channels)
        x = torch.einsum("nhwpqc->nchpwq", x)
        return x.reshape(len(x), self.channels, h * self.p, w * self.p)


def sincos(width, side):
    grid = np.meshgrid(np.arange(side, dtype=np.float64), np.arange(side, dtype=np.float64))
    found = []
    for axis in grid:
        omega = 1 / 10000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4))
        out = np.einsum("m,d->md", axis.reshape(-1), omega)
        found += [np.sin(out), np.cos(out)]
    return np.concatenate(found, 1)


def test_the_papers_weights_give_the_papers_answers():
    paper = Paper(2, 48, 3, 2, channels=2, classes=5, side=8).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, p in paper.named_parameters():
            if name != "pos_embed":
                p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    own = network(TINY | {"told": "timestep"}, classes=5)
    weights = own.published(paper.state_dict())
    del weights["pos_embed"]
    own.load_state_dict(weights)
    x, _ = inputs()
    steps, labels = torch.tensor([0.0, 10, 500, 999]).double(), torch.tensor([0, 3, 4, 5])
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    log_snr = torch.log(kept / (1 - kept))[steps.long()]
    answer, wanted = own(x, log_snr, labels), paper(x, steps, labels)[:, :2]
    assert wanted.std() > 0.1
    torch.testing.assert_close(answer, wanted, rtol=1e-5, atol=1e-7)


def test_a_level_is_told_as_a_timestep_or_sigma():
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    log_snr = torch.log(kept / (1 - kept))
    torch.testing.assert_close(timestep(log_snr), torch.arange(1000).double())
    between = (log_snr[20] + 3 * log_snr[21]) / 4
    assert timestep(between[None]).item() == pytest.approx(20.75)
    assert timestep(torch.tensor([math.inf, -math.inf])).tolist() == [0, 999]
    assert told_as("sigma", torch.tensor([0.0, -math.log(4)])).tolist() == pytest.approx([1, 2])


# In params.yaml


def mistakes(network, **recipe):
    base = {"seed": 0, "data": {}, "latent": {}, "features": {}, "evaluate": {}, "defaults": {}}
    with pytest.raises(UserError) as caught:
        resolve(base | {"recipes": {"one": {"network": {"kind": "dit"} | network} | recipe}})
    return str(caught.value)


def test_what_fits_no_heads_is_told():
    found = mistakes({"width": 100, "heads": 3})
    assert "recipes.one.network.width: 100 is no multiple of 12, 4 times network.heads" in found
    cut = {"kind": "uniform", "intervals": 2, "channels": [48, 50]}
    found = mistakes({"width": 48, "heads": 3}, partition=cut)
    assert "recipes.one.partition.channels: 50 is no multiple of 12" in found


def test_a_parent_is_of_the_same_kind():
    base = {"seed": 0, "data": {}, "latent": {}, "features": {}, "evaluate": {}, "defaults": {}}
    child = {"network": {"kind": "dit"}, "training": {"parent": "one"}}
    with pytest.raises(UserError, match=r"two\.network\.kind: dit here, unet in its parent 'one'"):
        resolve(base | {"recipes": {"one": {}, "two": child}})


def test_a_size_beside_its_numbers_is_refused():
    found = mistakes({"size": "S", "depth": 6})
    assert "size: S is depth: 12, width: 384, heads: 6; leave out size or depth" in found
    assert "network.size: 'M' is not allowed" in mistakes({"size": "M"})


# --- tokens that skip blocks ----------------------------------------------------------------------
@pytest.mark.parametrize("later", [{}, LATER], ids=["plain", "later"])
def test_tokens_skip_blocks_in_training_alone(later):
    routed, plain = network(ROUTED | later), network(ROUTED | {"routing": None} | later)
    x, log_snr = inputs()
    assert torch.equal(routed.eval()(x, log_snr), plain(x, log_snr))
    routed.train()
    torch.manual_seed(0)
    first, second = routed(x, log_snr), routed(x, log_snr)
    torch.manual_seed(0)
    assert torch.equal(routed(x, log_snr), first)
    assert not torch.allclose(first, second)
    assert flops_of(network_spec(ROUTED | later), training=True) < flops_of(
        network_spec(ROUTED | later)
    )


@pytest.mark.parametrize("later", [{}, LATER], ids=["plain", "later"])
def test_where_all_tokens_stay_their_order_changes_nothing(later):
    """Rotary positions go with the tokens."""
    net = network(ROUTED | {"routing": {"share": 0.01, "start": 1, "end": 1}} | later)
    x, log_snr = inputs()
    found = net(x, log_snr)
    torch.testing.assert_close(found, net.eval()(x, log_snr), rtol=1e-9, atol=1e-9)


def test_a_share_of_the_tokens_comes_back_as_it_left():
    net, seen = network(ROUTED), {}
    blocks = net.encoder.blocks
    blocks[0].register_forward_hook(lambda _, __, out: seen.update(left=out))
    blocks[1].register_forward_hook(lambda _, given, __: seen.update(within=given[0]))
    blocks[3].register_forward_pre_hook(lambda _, given: seen.update(back=given[0]))
    net(*inputs())
    assert seen["within"].shape[1] == 10  # of 16
    same = (seen["left"] == seen["back"]).all(2)
    assert same.sum(1).tolist() == [6] * 4
    assert len({tuple(row.tolist()) for row in same}) > 1  # not the same ones of every image


def test_a_training_with_them_survives_interruptions(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "CHECKPOINT_SECONDS", 0.0)
    random = np.random.Generator(np.random.PCG64(0))
    rows = random.integers(0, 256, (24, 1, 8, 8)).astype(np.uint8)
    write_shard(tmp_path / "0.arrow", [(rows, None)], (1, 8, 8), [127.5], 73.9)
    latents = Latents([tmp_path / "0.arrow"])
    for shards in (1, 2):
        spec = expert_spec(network=ROUTED, training={"shards": shards})
        for name in ("whole", "parts"):
            (tmp_path / f"{name}{shards}").mkdir()
        train(spec, latents, tmp_path / f"whole{shards}")
        with pytest.raises(Interrupted):
            calls = iter([False, False, True])
            train(spec, latents, tmp_path / f"parts{shards}", stop=lambda calls=calls: next(calls))
        train(spec, latents, tmp_path / f"parts{shards}")
        found = [
            (tmp_path / f"{name}{shards}" / "weights-212.safetensors").read_bytes()
            for name in ("whole", "parts")
        ]
        assert found[0] == found[1]


def test_blocks_that_none_are_left_of_are_told():
    base = {"seed": 0, "data": {}, "latent": {}, "features": {}, "evaluate": {}, "defaults": {}}
    bad = {"network": {"kind": "dit", "depth": 4, "routing": {}}}
    with pytest.raises(
        UserError, match=r"network\.routing: 2 blocks before and 2 after leave none"
    ):
        resolve(base | {"recipes": {"one": bad}})
