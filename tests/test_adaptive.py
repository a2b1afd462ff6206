"""States drawn by a policy that learns: its density, what it learns from, and what it costs."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats

from pipeline import plan
from pipeline.data.latents import Latents, write_shard
from pipeline.errors import UserError
from pipeline.levels.params import Adaptive as Block
from pipeline.levels.params import UniformCurriculum
from pipeline.networks.build import flops_of, network_of
from pipeline.networks.params import UNet
from pipeline.noise import philox, process
from pipeline.params.load import resolve
from pipeline.plan.job import code_of
from pipeline.training import adaptive, train
from pipeline.training.draws import Draws
from pipeline.training.run import Interrupted
from stages.facts import facts_of
from stages.tools.forecast import Costs, counted_cost
from tests.specs import expert_spec
from tests.workflow import trained_on_digits

ROWS, SIZE, BATCH = 50, 8, 8
EULER = {"kind": "euler", "steps": 4}
FACTS = plan.DatasetFacts("d" * 64, 1000, SIZE, 1, 0, (127.5,), (73.9,))
STATES = {"kind": "log-snr", "states": 8}
MULTI = {
    "network": {"kind": "multi-decoder", "decoder_channels": [8, 8]},
    "partition": {"kind": "uniform", "intervals": 2},
}


@pytest.fixture
def latents(tmp_path):
    """Dark images, and bright ones."""
    random = np.random.Generator(np.random.PCG64(0))
    level = np.where(np.arange(ROWS) % 2, 200, 55).reshape(-1, 1, 1, 1)
    images = (level + random.integers(-30, 30, (ROWS, 1, SIZE, SIZE))).astype(np.uint8)
    path = tmp_path / "latents.arrow"
    write_shard(path, [(images, np.arange(ROWS) % 3)], (1, SIZE, SIZE), [127.5], 73.9)
    return Latents([path])


def learnt_spec(every=16, *, continuous=False, log_snr=(4.0, 0.0, -4.0), **changes):
    keys = {key: changes.pop(key) for key in Block.model_fields if key in changes}
    form = {"kind": "adaptive", "every": every} | keys
    given = {"log_snr": list(log_snr), "continuous": continuous, "curriculum": {"form": form}}
    return expert_spec(**given | changes)


def learner_of(spec, latents, network=None):
    """What training makes of a spec: the learner, and the draws that it is part of."""
    draws = Draws(spec, latents)
    network = network or network_of(spec, spec.start_key)
    block = spec.curriculum.learnt
    draws.policy = block.learner(spec, draws, network, torch.contiguous_format, **block.arguments())
    return draws.policy, draws


def tilted(learner):
    """Another policy than the first one, which is uniform for every image."""
    with torch.no_grad():
        learner.policy.last.weight.copy_(
            torch.linspace(-0.1, 0.1, 2 * adaptive.HIDDEN).reshape(2, -1)
        )
        learner.policy.last.bias.copy_(torch.tensor([0.5, -0.3]))
    return learner


def uniforms(count, key=5):
    return philox.uniform(key, 0, np.arange(count))


# --- what is drawn --------------------------------------------------------------------------------
def test_places_have_the_policys_beta_distribution_of_their_image(latents):
    learner, _ = learner_of(learnt_spec(), latents)
    first = learner(uniforms(4000), np.arange(4000) % ROWS)
    assert np.allclose(first, uniforms(4000))  # before it has learnt anything
    tilted(learner)
    shapes = []
    for row in (0, 1):
        rows = np.full(4000, row)
        found = learner.policy(latents.gather(rows[:1]))
        a, b = found.concentration1.item(), found.concentration0.item()
        shapes.append((a, b))
        drawn = learner(uniforms(4000, key=row), rows)
        assert stats.kstest(drawn, stats.beta(a, b).cdf).pvalue > 0.01
        assert stats.kstest(drawn, "uniform").pvalue < 1e-6
    assert not np.allclose(*shapes, rtol=0.05)  # they are another image's
    mixed = learner(np.full(ROWS, 0.5), np.arange(ROWS))
    assert mixed[0] == pytest.approx(stats.beta(*shapes[0]).median())
    assert mixed[1] == pytest.approx(stats.beta(*shapes[1]).median())


def test_states_and_ranges_are_drawn_at_these_places(latents):
    learner, draws = learner_of(learnt_spec(log_snr=(4.0, 1.0, 0.0, -4.0)), latents)
    tilted(learner)
    slots, places = draws.places(0, 2000)
    rows, _ = draws.pairs(slots, places)
    found, weight = draws.states(0, 2000, rows)
    t = learner(philox.uniform(draws.states_key, 0, np.arange(2000)), rows)
    assert weight is None
    np.testing.assert_array_equal(found, np.array([4.0, 1.0, 0.0, -4.0])[(4 * t).astype(int)])
    spec = learnt_spec(log_snr=(9.0, -9.0), continuous=True)
    learner, draws = learner_of(spec, latents)
    tilted(learner)
    found, _ = draws.states(0, 2000, rows)
    t = learner(philox.uniform(draws.states_key, 0, np.arange(2000)), rows)
    np.testing.assert_allclose(found, 9 - 18 * t, atol=1e-9)


def test_no_policy_leaves_the_time_axis_however_far_it_is_pushed(latents):
    learner, draws = learner_of(learnt_spec(), latents)
    for one, other in ((1e4, -1e4), (-1e4, 1e4), (-1e4, -1e4), (1e4, 1e4)):
        with torch.no_grad():
            learner.policy.last.bias.copy_(torch.tensor([one, other]))
        t = learner(np.array([1e-16, 0.5, np.nextafter(1, 0)]), np.arange(3))
        assert (t > 0).all() and (t < 1).all()
        draws.curriculum.draw(t, 0.0)
        assert (
            learner.policy(latents.gather(np.arange(3))).log_prob(torch.tensor(t)).isfinite().all()
        )


# --- what it learns -------------------------------------------------------------------------------
def taught(learner, latents, reward, steps=400, batch=64):
    """After so many steps on a made-up reward of places and images: its densities' moments."""
    for step in range(steps):
        rows = np.arange(step * batch, (step + 1) * batch) % ROWS
        t = learner(philox.uniform(9, step, np.arange(batch)), rows)
        learner.learn(latents.gather(rows), torch.tensor(t), torch.tensor(reward(t, rows)))
    found = learner.policy(latents.gather(np.arange(ROWS)))
    return found.mean.detach().numpy(), found.stddev.detach().numpy()


def test_the_density_moves_to_where_the_reward_is(latents):
    learner, _ = learner_of(learnt_spec(), latents)
    mean, spread = taught(learner, latents, lambda t, _: -((t - 0.75) ** 2))
    assert np.abs(mean - 0.75).max() < 0.1
    assert spread.max() < 0.2  # 0.29 at first


def test_each_image_has_a_density_of_its_own(latents):
    learner, _ = learner_of(learnt_spec(), latents)
    mean, _ = taught(learner, latents, lambda t, rows: -((t - 0.2 - 0.6 * (rows % 2)) ** 2))
    assert mean[0::2].max() < 0.35 and mean[1::2].min() > 0.65


def test_entropy_holds_it_where_it_is_and_no_reward_moves_nothing(latents):
    learner, _ = learner_of(learnt_spec(entropy=100.0), latents)
    mean, spread = taught(learner, latents, lambda t, _: -((t - 0.75) ** 2), steps=100)
    assert np.abs(mean - 0.5).max() < 0.05 and spread.min() > 0.25
    learner, _ = learner_of(learnt_spec(entropy=0.0), latents)
    mean, _ = taught(learner, latents, lambda t, _: np.ones_like(t), steps=5)
    assert (mean == 0.5).all()


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_it_learns_from_what_a_step_changed_in_the_bound(latents, monkeypatch, prediction):
    """Its numbers, once more and one by one."""
    # Even in nothing: the bound's integral has another width at each node.
    spec = learnt_spec(BATCH, log_snr=(5.0, 4.0, 0.5, -3.0), prediction=prediction, classes=3)
    network = network_of(spec, spec.start_key)
    learner, draws = learner_of(spec, latents, network)
    told = []
    monkeypatch.setattr(learner, "learn", lambda *given: told.append(given))
    drawn = draws.read(draws.draw(0, BATCH))
    batch = draws.batch(drawn, torch.contiguous_format)
    eps = torch.tensor(philox.normal(learner.key, 0, np.arange(BATCH), (1, SIZE, SIZE)))
    widths = [1.0, (5.0 - 0.5) / 2, (4.0 + 3.0) / 2, 3.5]

    def bound():
        found = np.empty((4, BATCH))
        for node, (level, width) in enumerate(zip(spec.log_snr, widths, strict=True)):
            told_level = torch.full((BATCH,), level)
            x = process.add_noise(batch.clean, eps, told_level)
            with torch.no_grad():
                output = network(x, told_level, batch.inputs[2])
            z = process.to_x0(prediction, output.double(), x.double(), level)
            alpha, sigma = process.alpha_sigma(level)
            error = (eps - (x.double() - alpha * z) / sigma).square().flatten(1).mean(1)
            found[node] = width / 2 * error / math.log(2)
        return found

    def step():
        with torch.no_grad():
            for p in network.parameters():
                p.add_(0.05 * torch.linspace(-1, 1, p.numel()).reshape(p.shape))

    before = bound()
    learner.watch(step, drawn, 0)
    delta = before - bound()
    assert learner.chosen() == [0, 2, 3] and np.abs(delta).min() > 1e-6
    [(z, t, rewards)] = told
    np.testing.assert_allclose(rewards, delta[[0, 2, 3]].sum(0), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(learner.queue, [delta[:, 0]], rtol=1e-3, atol=1e-5)
    assert torch.equal(z, batch.clean) and network.training
    index = (4 * t.numpy()).astype(int)
    np.testing.assert_array_equal(drawn.log_snr, np.float32(spec.log_snr)[index])


def test_the_levels_are_those_that_explain_the_whole_best(latents):
    learner, _ = learner_of(learnt_spec(log_snr=(9.0, -9.0), continuous=True, nodes=8), latents)
    assert learner.chosen() == [1, 4, 6]
    random = np.random.Generator(np.random.PCG64(2))
    common = random.normal(size=adaptive.LEAST)
    part = np.array([0.0, 0.0, 2.0, 0.0, 2.0, 0.0, 0.0, 2.0])  # of what is common, in each node
    measured = part * common[:, None] + 0.5 * random.normal(size=(adaptive.LEAST, 8))
    measured[:, 0] = 7.0  # it explains nothing, as it is always the same
    learner.queue = measured.tolist()[:-1]
    assert learner.chosen() == [1, 4, 6]  # too few
    learner.queue = measured.tolist()
    wanted = [stats.pearsonr(measured[:, i], measured.sum(1))[0] ** 2 for i in range(1, 8)]
    assert learner.chosen() == sorted(1 + i for i in np.argsort(wanted)[-3:]) == [2, 4, 7]


# --- in a training --------------------------------------------------------------------------------
def weights(folder, images=212):
    return load_file(folder / f"weights-{images}.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("batches", [1, 5, 20])
def test_interrupted_anywhere_it_ends_with_the_same_bits(latents, tmp_path, monkeypatch, batches):
    monkeypatch.setattr(adaptive, "LEAST", 3)  # so that levels are chosen by what is kept
    wanted = learnt_spec(16, log_snr=(6.0, 4.0, 2.0, 0.0, -2.0, -4.0), policy_rate=0.1)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    train.train(wanted, latents, tmp_path / "whole")
    calls = iter([False] * batches + [True])
    with pytest.raises(Interrupted):
        train.train(wanted, latents, tmp_path / "parts", stop=lambda: next(calls))
    train.train(wanted, latents, tmp_path / "parts")
    for images in (100, 212):
        assert same(weights(tmp_path / "whole", images), weights(tmp_path / "parts", images))
    curves = [(tmp_path / name / "curve.json").read_text() for name in ("whole", "parts")]
    assert curves[0] == curves[1]
    # And what it learns decides on what is drawn.
    (tmp_path / "other").mkdir()
    train.train(
        learnt_spec(16, log_snr=wanted.log_snr, policy_rate=1e-3), latents, tmp_path / "other"
    )
    assert not same(weights(tmp_path / "whole"), weights(tmp_path / "other"))


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        # Steps 2, 4, ... of 8 images, of 26 whole ones: 13 times, before and behind each.
        ({"every": 16}, 13 * 2 * (3 * BATCH + 3)),
        ({"every": 1}, 26 * 2 * (3 * BATCH + 3)),
        ({"every": 20}, 10 * 2 * (3 * BATCH + 3)),
        ({"every": 213}, 0),
        (
            {"every": 64, "log_snr": (9.0, -9.0), "continuous": True, "nodes": 21, "selected": 2},
            3 * 2 * (2 * BATCH + 21),
        ),
    ],
)
def test_all_that_it_asks_of_the_network_is_in_the_record_and_in_the_plan(
    latents, tmp_path, monkeypatch, changes, asked
):
    spec, seen = learnt_spec(**changes), []

    def counted(*given):
        network = network_of(*given)
        network.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
        return network

    monkeypatch.setattr(train, "network_of", counted)
    train.train(spec, latents, tmp_path)
    assert sum(seen) == 212 + asked
    record = json.loads((tmp_path / "record.json").read_text())
    policy = adaptive.Policy((1, SIZE, SIZE)).flops
    assert policy == 2 * (SIZE * SIZE * adaptive.HIDDEN + 2 * adaptive.HIDDEN)
    times = asked // (2 * (3 * BATCH + 3)) if "nodes" not in changes else 3
    own = 212 * policy + times * 3 * BATCH * policy
    assert record["flops"] == (3 * 212 + asked) * flops_of(spec, training=True) + own
    assert counted_cost(spec, tmp_path)[0] * 212 == pytest.approx(record["flops"])


def test_its_cost_is_not_taken_for_that_of_the_network_alone():
    costs = Costs([])
    assert costs.of(learnt_spec()).flops > 1.2 * costs.of(expert_spec()).flops


def test_a_network_with_dropout_is_measured_without_and_trained_with(latents, tmp_path):
    settings = {"kind": "unet", "channels": 8, "multipliers": [1, 2], "blocks": 1, "dropout": 0.3}
    spec = learnt_spec(BATCH, network=settings)
    network = network_of(spec, spec.start_key)
    learner, draws = learner_of(spec, latents, network.train())
    modes = []
    network.register_forward_hook(lambda net, *_: modes.append(net.training))
    learner.watch(lambda: modes.append("step"), draws.read(draws.draw(0, BATCH)), 0)
    assert modes == [False] * 4 + ["step"] + [False] * 4 and network.training
    assert learner.queue == [[0.0] * 3]  # the step was none


def test_a_loss_that_blows_up_is_told_as_ever(latents, tmp_path):
    with pytest.raises(UserError, match="no longer finite"):
        train.train(learnt_spec(8, training={"learning_rate": 1e6}), latents, tmp_path)


def test_latents_of_a_gaussian_encoder_and_a_flow(tmp_path):
    random = np.random.Generator(np.random.PCG64(0))
    rows = random.normal(size=(ROWS, 4, SIZE, SIZE)).astype("f2")
    path = tmp_path / "gaussian.arrow"
    write_shard(path, [(rows, None)], (2, SIZE, SIZE), [0.5, -0.5], 2.0, variance=True)
    form = {"kind": "in-flow-time", "shift": 2.0, "form": {"kind": "adaptive", "every": 16}}
    given = {"log_snr": [9.0, -9.0], "continuous": True, "channels": 2}
    spec = expert_spec(**given, curriculum={"form": form}, images=64, snapshots=[64])
    latents = Latents([path])
    learner, _ = learner_of(spec, latents)
    assert torch.equal(learner._images(np.arange(5)), latents.gather(np.arange(5)))
    train.train(spec, latents, tmp_path)
    assert json.loads((tmp_path / "record.json").read_text())["images"] == 64


# --- in params.yaml -------------------------------------------------------------------------------
def planned(recipe, **more):
    raw = {"recipes": {"r": {"schedule": STATES, "curriculum": {"kind": "adaptive"}} | recipe}}
    raw["recipes"] |= more
    return plan.experts(resolve(raw), FACTS)["r"].experts


def test_experts_of_intervals_have_a_policy_each_over_their_own_states(tmp_path):
    experts = planned({"partition": {"kind": "bounds", "log_snr": [8.5, 0.0]}})
    learnt = [expert.job.spec.curriculum.learnt for expert in experts]
    assert [block is not None for block in learnt] == [False, True, True]  # the first has one state
    assert learnt[1].every == 2_560
    draws = Draws(experts[1].job.spec, _Rows())
    assert draws.curriculum.log_snrs.tolist() == experts[1].job.spec.log_snr
    np.testing.assert_allclose(draws.curriculum.probabilities(0.3), 1 / len(draws.curriculum))


class _Rows:
    """A dataset of which only the size is looked at."""

    device = torch.device("cpu")

    def __len__(self):
        return 10


def test_its_code_is_in_the_digest_of_experts_that_it_trains_and_of_no_other():
    plain, learnt = (
        code_of("expert", UNet(), f) for f in (UniformCurriculum(), Block(kind="adaptive"))
    )
    assert plain != learnt
    flow = {"schedule": {"kind": "flow"}, "sampling": EULER}
    spec = planned(flow)[0].job.spec
    assert spec.curriculum.learnt is not None
    assert "pipeline.training.adaptive:Adaptive" in spec.curriculum.form.makers


PAIRED = {"pairing": {"method": "knn-l2"}}


@pytest.mark.parametrize(
    ("recipe", "key", "says"),
    [
        ({"partition": {"kind": "per-state"}}, "curriculum.kind", "each expert has one; leave"),
        ({"schedule": {"kind": "log-snr", "states": 1}}, "curriculum.kind", "each expert has one"),
        (MULTI, "curriculum.kind", "how often each decoder is asked; use another"),
        ({"training": {"shards": 2}}, "training.shards", "of a whole batch; use 1"),
        ({"training": {"batch": 1}}, "training.batch", "use 2 or more"),
        ({"training": {"budget": "curriculum"}}, "training.budget", "use uniform or by-difficulty"),
        ({"partition": {"kind": "equal-mass"}}, "partition.kind", "not known before; use another"),
        (PAIRED, "pairing.method", "use independent"),
        (
            {"training": {"parent": "base"}, "decouple": {"outside": 0.1}},
            "decouple.outside",
            "would not be drawn by .*; use 0",
        ),
        (
            {"curriculum": {"kind": "adaptive", "selected": 9, "nodes": 8}},
            "curriculum.selected",
            r"more than there are nodes \(8\); lower it",
        ),
        ({"curriculum": {"kind": "adaptive", "every": 0}}, "curriculum.every", "must be above 0"),
    ],
)
def test_what_it_cannot_be_with_is_said_before_anything_runs(recipe, key, says):
    with pytest.raises(UserError, match=rf"recipes\.r\.{key}: .*{says}"):
        planned(recipe, base={"schedule": STATES})


def test_a_recipe_that_learns_its_states_is_trained_by_the_stages(tmp_path):
    learnt = {"kind": "adaptive", "every": 64}
    recipes = {
        "plain": {},
        "flow": {"schedule": {"kind": "flow"}, "prediction": "flow", "sampling": EULER},
        "intervals": {"partition": {"kind": "uniform", "intervals": 2}},
        "clusters": {"partition": {"kind": "data", "clusters": 2, "router": {"images": 64}}},
    }
    workspace = trained_on_digits(tmp_path, recipes, schedule=STATES, curriculum=learnt)
    found = plan.experts(workspace.params, facts_of(workspace))
    for name in recipes:
        for expert in found[name].experts:
            spec, entry = expert.job.spec, workspace.store.entry(expert.job.name)
            assert spec.curriculum.learnt.every == 64
            flops = flops_of(spec, training=True)
            record = entry.load_json("record.json")
            assert record["flops"] == 3 * spec.images * flops + adaptive.Adaptive.flops(
                spec, spec.images, flops
            )
