"""Oracles: float64 brute force, hand-counted FLOPs, the multi-stage paper's costs."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.networks.build import count_parameters, flops_of
from pipeline.networks.embedding import log_snr_features
from pipeline.networks.initial import initialise
from pipeline.networks.unet import (
    Attention,
    Film,
    ResidualBlock,
    film_norm,
    norm_groups,
    repeated,
)
from tests.specs import SMALL, build_network, network_spec

MULTI = SMALL | {"kind": "multi-decoder", "decoder_channels": [8, 8, 8]}
BOUNDS = [1.5, -1.84]
CHANNELS_LAST = torch.channels_last


def randomise(module, seed=0, names=None):
    """No zero weights left (of these names), so that every path shows in the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if names is None or name in names:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return module


def network(settings=SMALL, seed=0, **options):
    options = {"channels_in": 2, "resolution": 8} | options
    return randomise(build_network(settings, **options), seed).double()


def flops(settings, log_snr=None, **options):
    return flops_of(network_spec(settings, **options), log_snr)


def inputs(n=6, seed=0, size=8):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, size, size, generator=generator, dtype=torch.float64)
    return x, torch.randn(n, generator=generator, dtype=torch.float64) * 4


# The pieces


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pixels_are_repeated_alike_where_it_is_compiled(layout):
    x = torch.randn(2, 6, 4, 5).to(memory_format=layout).requires_grad_()
    plain, compiled = repeated(x), torch.compile(repeated, backend="aot_eager", dynamic=False)(x)
    assert torch.equal(plain, compiled)
    given = torch.randn_like(plain)
    gradients = [torch.autograd.grad(found, x, given)[0] for found in (plain, compiled)]
    torch.testing.assert_close(*gradients, rtol=0, atol=2e-6)


@pytest.mark.parametrize("width", [1, 6, 8, 16, 20, 96, 128, 320, 384])
def test_groups_divide_the_width_and_hold_at_least_four_channels(width):
    groups = norm_groups(width)
    assert width % groups == 0 and groups <= 32
    assert groups == 1 or width // groups >= 4


@pytest.mark.parametrize("layout", [torch.contiguous_format, CHANNELS_LAST])
@pytest.mark.parametrize("rows", [3, 1])
def test_film_norm_is_group_norm_then_scale_and_shift(layout, rows):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 20, 4, 6, generator=generator, dtype=torch.float64) * 3 + 1
    scale, shift = torch.randn(2, rows, 20, generator=generator, dtype=torch.float64)
    grouped = x.reshape(3, norm_groups(20), -1)
    mean = grouped.mean(2, keepdim=True)
    variance = (grouped - mean).square().mean(2, keepdim=True)
    wanted = ((grouped - mean) / (variance + 1e-5).sqrt()).reshape(x.shape)
    wanted = wanted * scale[:, :, None, None] + shift[:, :, None, None]
    torch.testing.assert_close(film_norm(x.contiguous(memory_format=layout), scale, shift), wanted)


def test_attention_is_softmax_attention_in_heads():
    block = randomise(Attention(128)).double()  # two heads of 64
    x = torch.randn(2, 128, 3, 4, generator=torch.Generator().manual_seed(2)).double()
    tokens = F.group_norm(x, 32, block.norm.weight, block.norm.bias).flatten(2).mT
    q, k, v = block.qkv(tokens).split(128, 2)
    heads = []
    for part in (slice(0, 64), slice(64, 128)):
        weight = torch.softmax(q[..., part] @ k[..., part].mT / 8, 2)
        heads.append(weight @ v[..., part])
    wanted = x + block.project(torch.cat(heads, 2)).mT.reshape(x.shape)
    torch.testing.assert_close(block(x), wanted)


def test_features_tell_states_apart_and_stay_finite_at_the_ends():
    log_snr = torch.linspace(-20, 20, 1000, dtype=torch.float64)
    features = log_snr_features(log_snr, 16)
    assert features.shape == (1000, 32)
    apart = torch.cdist(features, features) + 10 * torch.eye(1000)
    assert apart.min() > 0.1  # of norm sqrt(32) each
    infinity = torch.tensor([math.inf, -math.inf, 20.0, -20.0])
    ends = log_snr_features(infinity, 16)
    assert torch.isfinite(ends).all() and torch.equal(ends[:2], ends[2:])


def test_a_fresh_block_is_the_identity_and_a_fresh_network_answers_zero():
    block = initialise_(ResidualBlock(8, 8, attend=True))
    x, log_snr = inputs()
    h = torch.randn(2, 8, 4, 4)
    assert torch.equal(block(h, torch.ones(2, 8), torch.zeros(2, 8)), h)
    fresh = build_network(SMALL, channels_in=2, resolution=8)
    assert not fresh(x.float(), log_snr.float()).any()


def test_film_changes_nothing_without_an_embedding():
    pairs = initialise_(Film(16, [8, 4]))(torch.zeros(3, 16))
    assert [scale.shape for scale, _ in pairs] == [(3, 8), (3, 4)]
    assert all((scale == 1).all() and not shift.any() for scale, shift in pairs)


def initialise_(module, seed=0):
    initialise(module, seed)
    return module


# The U-Net


@pytest.mark.parametrize(
    "settings", [SMALL, SMALL | {"attention": [4]}], ids=["plain", "attention"]
)
@pytest.mark.parametrize("conditioning", ["state", "none"])
def test_layout_and_batch_do_not_change_a_sample(settings, conditioning):
    net = network(settings, conditioning=conditioning)
    x, log_snr = inputs()
    y = net(x, log_snr)
    assert y.shape == x.shape and y.std() > 0.01
    last = copy.deepcopy(net).to(memory_format=CHANNELS_LAST)
    torch.testing.assert_close(last(x.contiguous(memory_format=CHANNELS_LAST), log_snr), y)
    torch.testing.assert_close(
        torch.cat([net(x[i : i + 1], log_snr[i : i + 1]) for i in range(6)]), y
    )
    one_state = log_snr[:1].expand(6)
    torch.testing.assert_close(net(x, log_snr[:1]), net(x, one_state.contiguous()))


def test_the_state_matters_only_to_a_conditioned_network():
    x, log_snr = inputs()
    conditioned, constant = network(), network(conditioning="none")
    assert (conditioned(x, log_snr) - conditioned(x, log_snr + 0.1)).abs().max() > 1e-4
    assert torch.equal(constant(x, log_snr), constant(x, None))
    rest = [
        {k: v.shape for k, v in net.state_dict().items() if not k.startswith("encoder.embedding")}
        for net in (conditioned, constant)
    ]
    assert rest[0] == rest[1]
    ends = torch.tensor([-math.inf, math.inf] * 3, dtype=torch.float64)
    assert torch.isfinite(conditioned(x, ends)).all()


def test_no_labels_stand_for_the_extra_class():
    net = network(classes=3)
    x, log_snr = inputs()
    none = torch.full((6,), 3)
    torch.testing.assert_close(net(x, log_snr), net(x, log_snr, none))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    differs = (net(x, log_snr, labels) - net(x, log_snr)).flatten(1).abs().amax(1) > 1e-6
    assert differs.tolist() == [True, True, True, False, True, True]


@pytest.mark.parametrize("conditioning", ["state", "none"])
def test_every_parameter_is_used(conditioning):
    settings = SMALL | {"multipliers": [1, 2, 3], "blocks": 2, "attention": [4]}
    net = network(settings, conditioning=conditioning, classes=2)
    x, log_snr = inputs()
    net(x, log_snr, torch.tensor([0, 1, 2, 0, 1, 2])).square().mean().backward()
    dead = [k for k, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_dropout_is_absent_unless_asked_for():
    x, log_snr = inputs()
    plain, dropping = network(), network(SMALL | {"dropout": 0.5})
    assert not any(isinstance(m, nn.Dropout) for m in plain.modules())
    assert torch.equal(plain.train()(x, log_snr), plain.eval()(x, log_snr))
    torch.testing.assert_close(dropping.eval()(x, log_snr), plain(x, log_snr))
    torch.manual_seed(0)
    assert (dropping.train()(x, log_snr) - plain(x, log_snr)).abs().max() > 1e-3


@pytest.mark.parametrize("layout", [torch.contiguous_format, CHANNELS_LAST])
@pytest.mark.parametrize("conditioning", ["state", "none"])
def test_bfloat16_autocast_gives_nearly_the_same_gradients(layout, conditioning):
    net = network(SMALL | {"attention": [8]}, conditioning=conditioning, classes=2).float()
    net.to(memory_format=layout)
    x, log_snr = inputs()
    x, log_snr = x.float().contiguous(memory_format=layout), log_snr.float()
    labels = torch.tensor([0, 1, 2, 0, 1, 2])

    def gradient(bfloat16):
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            y = net(x, log_snr, labels)
        y.float().square().mean().backward()
        return torch.cat([p.grad.flatten() for p in net.parameters()])

    exact, rounded = gradient(False), gradient(True)
    assert 0 < (rounded - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize("conditioning", ["state", "none"])
def test_stacked_networks_have_each_their_own_gradients(conditioning):
    nets = [network(conditioning=conditioning, classes=2, seed=i) for i in range(3)]
    stacked, buffers = torch.func.stack_module_state(nets)
    assert not buffers
    base = copy.deepcopy(nets[0]).to("meta")
    x, log_snr = (torch.stack(v) for v in zip(*(inputs(4, seed) for seed in range(3)), strict=True))
    labels = torch.arange(12).reshape(3, 4) % 3

    def loss(parameters, *args):
        return torch.func.functional_call(base, parameters, args).square().mean()

    found = torch.func.vmap(torch.func.grad(loss))(stacked, x, log_snr, labels)
    for i, net in enumerate(nets):
        net(x[i], log_snr[i], labels[i]).square().mean().backward()
        for name, p in net.named_parameters():
            torch.testing.assert_close(found[name][i], p.grad)


def test_sides_that_cannot_be_halved_are_refused():
    three_levels = SMALL | {"multipliers": [1, 1, 2]}
    with pytest.raises(ValueError, match=r"10x10 pixels cannot be halved 2 times.*4 must divide"):
        build_network(three_levels, channels_in=1, resolution=10)
    net = network(three_levels)
    with pytest.raises(ValueError, match="8x6 pixels"):
        net(torch.zeros(1, 2, 8, 6).double(), torch.zeros(1).double())
    x = torch.randn(2, 2, 4, 12, dtype=torch.float64)
    assert net(x, torch.zeros(2).double()).shape == x.shape


@pytest.mark.parametrize(
    "change, options, message",
    [
        ({"attention": [5]}, {}, r"no level has resolution 5; there are \[8, 4\]"),
        (MULTI, {}, "3 decoders need 2 bounds"),
        (MULTI, {"interval_bounds": BOUNDS, "conditioning": "none"}, "the state as input"),
        (MULTI, {"interval_bounds": [0.0]}, "3 decoders need 2 bounds"),
        (MULTI, {"interval_bounds": [-1.0, 1.0]}, "descend"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change, options, message):
    with pytest.raises(ValueError, match=message):
        build_network(SMALL | change, channels_in=1, resolution=8, **options)


def test_inputs_that_a_network_needs_are_asked_for():
    x, log_snr = inputs()
    with pytest.raises(ValueError, match="needs log_snr"):
        network()(x, None)
    with pytest.raises(ValueError, match="without classes"):
        network()(x, log_snr, torch.zeros(6, dtype=torch.int64))


# Initialisation


def state(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def test_weights_depend_on_the_seed_alone():
    settings = SMALL | {"attention": [4]}
    options = {"channels_in": 1, "resolution": 8, "classes": 2}
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build_network(settings, seed=7, **options)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    other = build_network(settings, seed=8, **options).to(memory_format=CHANNELS_LAST)
    assert not torch.equal(other.encoder.input.weight, first.encoder.input.weight)
    initialise(other, 7)
    for name, value in first.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_weights_have_unit_gain_and_residual_branches_end_in_zero():
    settings = {"kind": "unet", "channels": 64, "multipliers": [1, 2], "blocks": 1}
    net = build_network(settings, channels_in=3, resolution=8)
    for name, p in net.named_parameters():
        if p.dim() < 2:
            norm = name.endswith("weight")  # the only vectors that are not biases
            assert torch.equal(p, torch.ones_like(p) if norm else torch.zeros_like(p)), name
        elif "conv2" in name or name == "decoder.output.weight":
            assert not p.any(), name
        else:
            fan_in = p[0].numel()
            variance = p.double().square().mean().item()
            # Uniform numbers: the relative error of a variance is sqrt(0.8 / n).
            assert abs(variance * fan_in - 1) < 5 * math.sqrt(0.8 / p.numel()), name
            assert p.abs().max() <= math.sqrt(3 / fan_in)


def test_the_encoder_starts_alike_whatever_decoders_follow():
    options = {"channels_in": 1, "resolution": 8, "seed": 3}
    one = build_network(SMALL, **options)
    many = build_network(
        MULTI | {"decoder_channels": [16, 8, 4]}, interval_bounds=BOUNDS, **options
    )
    for name, value in one.encoder.state_dict().items():
        assert torch.equal(many.encoder.state_dict()[name], value)


def test_a_module_without_a_rule_is_an_error():
    with pytest.raises(TypeError, match="BatchNorm2d"):
        initialise(nn.BatchNorm2d(3), 0)


# The multi-decoder


def multi(settings=MULTI, **options):
    return network(settings, interval_bounds=BOUNDS, **options)


MIXED = torch.tensor([3.0, -5.0, 0.0, 1.5, -1.84, -0.5, -1.8401, 9.0], dtype=torch.float64)
# The bounds themselves belong to the cleaner side.
OWNERS = [0, 2, 1, 0, 1, 1, 2, 0]


def test_a_bound_belongs_to_its_cleaner_side():
    net = multi()
    assert net.interval_of(MIXED).tolist() == OWNERS
    assert net.interval_of(MIXED.float()).tolist() == OWNERS
    assert [net.interval_of(v) for v in MIXED.tolist()] == OWNERS
    assert net.interval_of(torch.tensor([math.inf, -math.inf])).tolist() == [0, 2]


@pytest.mark.parametrize("classes", [0, 3])
def test_each_sample_is_answered_by_the_unet_of_its_interval(classes):
    net = multi(SMALL | {"kind": "multi-decoder", "decoder_channels": [8] * 3}, classes=classes)
    x, _ = inputs(8)
    labels = torch.arange(8) % 4 if classes else None
    wanted = torch.empty_like(x)
    for k, decoder in enumerate(net.decoders):
        alone = network(classes=classes)
        alone.encoder.load_state_dict(net.encoder.state_dict())
        alone.decoder.load_state_dict(decoder.state_dict())
        mine = torch.tensor(OWNERS) == k
        own = None if labels is None else labels[mine]
        wanted[mine] = alone(x[mine], MIXED[mine], own).detach()
        # A whole batch of one interval, said or seen.
        whole = alone(x[mine], MIXED[mine], own)
        torch.testing.assert_close(net(x[mine], MIXED[mine], own, interval=k), whole)
        torch.testing.assert_close(net(x[mine], MIXED[mine], own), whole)
    torch.testing.assert_close(net(x, MIXED, labels), wanted)
    torch.testing.assert_close(net(x, MIXED[:1], labels), net(x, MIXED[:1].expand(8), labels))


def test_permuting_the_batch_permutes_the_answer():
    net = multi(MULTI | {"decoder_channels": [12, 8, 4]})
    x, _ = inputs(8)
    y = net(x, MIXED)
    for seed in range(3):
        order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(net(x[order], MIXED[order]), y[order])


def test_gradient_reaches_only_the_decoders_in_use():
    net = multi()
    x, _ = inputs(8)
    rows = torch.tensor(OWNERS) != 1
    net(x[rows], MIXED[rows]).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.encoder.parameters())
    for k, decoder in enumerate(net.decoders):
        grads = [p.grad for p in decoder.parameters()]
        assert all(g is None for g in grads) if k == 1 else all(g is not None for g in grads)


def test_gradient_is_the_sum_over_intervals():
    net = multi(MULTI | {"decoder_channels": [12, 8, 4]})
    x, _ = inputs(8)
    net(x, MIXED).square().sum().backward()
    found = {k: p.grad.clone() for k, p in net.named_parameters()}
    net.zero_grad()
    for i, owner in enumerate(OWNERS):
        net(x[i : i + 1], MIXED[i : i + 1], interval=owner).square().sum().backward()
    for name, p in net.named_parameters():
        torch.testing.assert_close(found[name], p.grad)


def test_an_optimizer_leaves_a_decoder_without_samples_alone():
    net = multi()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.1)
    x, _ = inputs(8)

    def step(rows):
        optimizer.zero_grad(set_to_none=True)
        net(x[rows], MIXED[rows]).square().mean().backward()
        optimizer.step()

    step(torch.arange(8))  # every decoder has moments now
    before = state(net)
    step(torch.tensor(OWNERS) == 0)
    moved = {
        k.split(".")[0] + "." + k.split(".")[1]
        for k, v in state(net).items()
        if (v != before[k]).any()
    }
    assert "decoders.0" in moved and not moved & {"decoders.1", "decoders.2"}


# Counts


def test_flops_match_a_count_by_hand():
    settings = SMALL | {"attention": [4]}
    options = {"channels_in": 2, "resolution": 8, "classes": 3}
    full, half = 64, 16  # pixels

    def residual(c_in, c_out, pixels):
        return (9 * c_in * c_out + 9 * c_out**2 + (c_in * c_out if c_in != c_out else 0)) * pixels

    attention = 4 * 16**2 * half + 2 * half**2 * 16
    encoder = 9 * 2 * 8 * full + residual(8, 8, full) + 9 * 8 * 8 * half
    encoder += residual(8, 16, half) + attention
    encoder += residual(16, 16, half) + attention + residual(16, 16, half)
    encoder += 8 * 32 + 32 * 32 + 32 * 2 * (8 + 16 + 16 + 16)
    decoder = residual(16 + 16, 16, half) + residual(16 + 8, 16, half) + attention
    decoder += residual(16 + 8, 8, full) + residual(8 + 8, 8, full) + 9 * 8 * 2 * full
    decoder += 32 * 2 * (16 + 16 + 8 + 8)
    assert flops(settings, **options) == 2 * (encoder + decoder)


def test_projections_start_as_the_identity_and_are_counted():
    options = {"channels_in": 2, "resolution": 8}
    plain = build_network(SMALL, **options)
    projected = build_network(SMALL | {"projections": True}, **options)
    shared = dict(plain.named_parameters())
    own = {k: p for k, p in projected.named_parameters() if k not in shared}
    assert sum(p.numel() for p in own.values()) == 2 * (8**2 + 16**2) + 16**2
    assert all(torch.equal(dict(projected.named_parameters())[k], p) for k, p in shared.items())
    x, log_snr = inputs()
    for net in (plain, projected):
        randomise(net, names=shared)
    assert torch.equal(plain(x.float(), log_snr.float()), projected(x.float(), log_snr.float()))
    with torch.no_grad():  # and each of them has a part in the answer
        for p in own.values():
            before, kept = projected(x.float(), log_snr.float()), p.clone()
            p[0] += 1
            assert not torch.allclose(projected(x.float(), log_snr.float()), before)
            p.copy_(kept)
    extra = flops(SMALL | {"projections": True}, **options) - flops(SMALL, **options)
    assert extra == 2 * (2 * (8**2 * 64 + 16**2 * 16) + 16**2 * 16)


def test_parameters_match_a_count_by_hand():
    def conv(c_in, c_out, area=9):
        return area * c_in * c_out + c_out

    def residual(c_in, c_out):
        skip = conv(c_in, c_out, 1) if c_in != c_out else 0
        return 2 * c_in + conv(c_in, c_out) + conv(c_out, c_out) + skip

    encoder = conv(2, 8) + residual(8, 8) + conv(8, 8) + residual(8, 16) + 2 * residual(16, 16)
    encoder += conv(8, 32, 1) + conv(32, 32, 1) + 4 * 32 + conv(32, 2 * 56, 1)
    decoder = residual(32, 16) + residual(24, 16) + residual(24, 8) + residual(16, 8)
    decoder += 16 + conv(8, 2) + conv(32, 2 * 48, 1)
    net = build_network(SMALL, channels_in=2, resolution=8, classes=3)
    assert count_parameters(net) == encoder + decoder


def test_a_multi_decoder_has_a_count_for_each_interval():
    options = {"channels_in": 1, "resolution": 8, "interval_bounds": BOUNDS}
    settings = MULTI | {"decoder_channels": [16, 8, 4]}
    own = [flops(settings, log_snr, **options) for log_snr in (9.0, 0.0, -9.0)]
    assert own[0] > own[1] > own[2]
    assert own[1] == flops(SMALL, channels_in=1, resolution=8)
    assert flops(settings, **options) == pytest.approx(sum(own) / 3)


def test_costs_of_the_multi_stage_paper():
    """Zhang et al. 2024, CIFAR-10 with NCSN++: encoder 128, decoders 192, 128 and 16.

    Their code has 169.48, 107.52 and 47.13 M parameters and 30.97, 18.58 and 7.15 GMACs; the
    second is their unified network. Theirs resamples in residual blocks of two convolutions and a
    shortcut, which are counted here by hand in place of our strided convolutions.
    """
    settings = {
        "kind": "multi-decoder",
        "channels": 128,
        "decoder_channels": [192, 128, 16],
        "multipliers": [1, 2, 2, 2],
        "blocks": 8,
        "attention": [16],
    }
    options = {"channels_in": 3, "resolution": 32, "interval_bounds": [-1.84, -4.0]}
    net = build_network(settings, device="meta", **options)
    encoder = count_parameters(net.encoder)
    parameters = [encoder + count_parameters(decoder) for decoder in net.decoders]
    own = [flops(settings, log_snr, **options) for log_snr in (9.0, -3.0, -9.0)]

    resampling = [(128, 16), (256, 8), (256, 4)]  # encoder width, side after it
    down = sum((18 + 1 - 9) * width**2 * side**2 for width, side in resampling)
    for k, width in enumerate(settings["decoder_channels"]):
        up = sum((18 + 1) * (2 * width) ** 2 * side**2 for side in (32, 16, 8))
        theirs = [30.97e9, 18.58e9, 7.15e9][k]
        assert own[k] / 2 + down + up == pytest.approx(theirs, rel=0.005)

    for k, theirs_parameters, theirs_flops in [(0, 169.48, 30.97), (2, 47.13, 7.15)]:
        assert parameters[k] / parameters[1] == pytest.approx(theirs_parameters / 107.52, rel=0.03)
        assert own[k] / own[1] == pytest.approx(theirs_flops / 18.58, rel=0.09)
