"""Training of one expert: draws by position, exact resume, pairings, and the mixture of experts."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import torch
from pydantic import Field
from safetensors.torch import load_file

from pipeline import plan
from pipeline.data.latents import Latents, write_shard
from pipeline.errors import UserError, system_message
from pipeline.networks.build import network_of
from pipeline.noise import pairing, philox
from pipeline.params.load import resolve
from pipeline.sampling import samplers
from pipeline.sampling.guidance import Guided
from pipeline.sampling.mixture import Mixture, describe, draw, member
from pipeline.sampling.params import Sampling
from pipeline.training import draws, run, train
from pipeline.training.draws import Draws
from pipeline.training.run import Interrupted
from tests.specs import SMALL, block, expert_spec

ROWS, SIZE = 50, 8


@pytest.fixture(scope="module")
def images():
    """Ramps of random slope and place: something that can be learnt."""
    random = np.random.Generator(np.random.PCG64(0))
    across, down, level = random.uniform(-1, 1, (3, ROWS, 1, 1, 1))
    axis = np.linspace(-1, 1, SIZE)
    ramps = 127.5 + 60 * (across * axis + down * axis[:, None] + level)
    return np.clip(ramps, 0, 255).astype(np.uint8)


def latents_paths(folder):
    return [folder / "0.arrow", folder / "1.arrow"]


@pytest.fixture
def latents(images, tmp_path):
    paths = []
    for part, rows in enumerate((slice(0, 30), slice(30, ROWS))):  # two shards
        paths.append(latents_paths(tmp_path)[part])
        labels = np.arange(ROWS)[rows] % 3
        write_shard(paths[-1], [(images[rows], labels)], (1, SIZE, SIZE), [127.5], 73.9)
    return Latents(paths)


def sampling(kind="ddim", **options):
    return block(Annotated[Sampling, Field(discriminator="kind")], {"kind": kind} | options)


def weights(folder, images=212):
    return load_file(folder / f"weights-{images}.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_shards_read_as_one_array_in_the_networks_scale(images, latents):
    rows = np.array([49, 0, 30, 29])
    assert np.array_equal(latents.raw(rows), images[rows])
    expected = (images[rows].astype(np.float32) - 127.5) / 73.9
    np.testing.assert_allclose(latents.gather(rows).numpy(), expected, rtol=1e-6)
    assert latents.labels[rows].tolist() == [1, 0, 0, 2]


def test_every_pass_visits_each_row_once_and_batches_do_not_matter(latents):
    draws = Draws(expert_spec(), latents)
    slots, rows = draws.places(0, 3 * ROWS)
    for slot in range(3):
        assert sorted(rows[slots == slot]) == list(range(ROWS))
    again = Draws(expert_spec(), latents)
    pieces = [again.places(i, min(i + 7, 3 * ROWS))[1] for i in range(0, 3 * ROWS, 7)]
    assert np.array_equal(np.concatenate(pieces), rows)
    assert not np.array_equal(rows[:ROWS], rows[ROWS : 2 * ROWS])


def test_states_are_stratified_and_noise_is_the_pairs_own(latents):
    draws = Draws(expert_spec(), latents)
    assert np.bincount(np.searchsorted([-4, 0, 4], draws.states(0, 9)[0])).tolist() == [3, 3, 3]
    slots, rows = draws.places(60, 64)
    expected = philox.normal(1, slots, rows, (1, SIZE, SIZE))
    assert np.array_equal(draws.noises(slots, rows, draws.pairs(slots, rows)[1]).numpy(), expected)


def test_a_continuous_schedule_draws_from_all_of_its_range(latents):
    raw = {
        "recipes": {
            "edm": {
                "schedule": {"kind": "edm"},
                "curriculum": {"kind": "edm-lognormal"},
                "sampling": {"steps": 18},
            }
        }
    }
    facts = plan.DatasetFacts("d" * 64, ROWS, SIZE, 1, 0, (127.5,), (73.9,))
    recipe = plan.experts(resolve(raw), facts)["edm"]
    drawn, _ = draws.Draws(recipe.experts[0].job.spec, latents).states(0, 4000)
    # ln sigma ~ N(-1.2, 1.2^2) at sigma_data = 0.5, so log-SNR ~ N(1.01, 2.4^2).
    assert abs(drawn.mean() - 1.014) < 0.05
    assert abs(drawn.std() - 2.4) < 0.05


def test_it_learns_and_keeps_snapshots_curve_and_record(latents, tmp_path):
    long = expert_spec(images=4000, snapshots=[4000])
    spent = train.train(long, latents, tmp_path)
    curve = json.loads((tmp_path / "curve.json").read_text())
    assert curve[-1][0] == 4000 and curve[-1][1] < 0.8 * curve[0][1]
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["images"] == 4000 and record["flops"] > 0
    assert record.keys() == {"images", "flops", "parameters"}  # what a retrain gives again
    assert spent["snapshot_seconds"]["4000"] > 0 and spent["snapshot_cpu_seconds"]["4000"] > 0


def test_averages_of_several_lengths_are_kept_and_survive_an_interruption(latents, tmp_path):
    kept = {"power_ema": [0.05, 0.1]}
    wanted = expert_spec(training=kept)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    train.train(wanted, latents, tmp_path / "whole")
    calls = iter([False] * 8 + [True, True])
    with pytest.raises(Interrupted):
        train.train(wanted, latents, tmp_path / "parts", stop=lambda: next(calls))
    train.train(wanted, latents, tmp_path / "parts")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    found = {}
    for length in kept["power_ema"]:
        for images in (100, 212):
            file = f"power-{length}-{images}.safetensors"
            whole, parts = (load_file(tmp_path / name / file) for name in ("whole", "parts"))
            assert same(whole, parts)
            found[length, images] = whole
    assert not same(found[0.05, 212], found[0.1, 212])
    # Beside the ordinary average, and without a part in the run.
    (tmp_path / "plain").mkdir()
    train.train(expert_spec(), latents, tmp_path / "plain")
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "whole"))


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("stops", [1, 5])
def test_interrupted_anywhere_it_ends_with_the_same_bits(latents, tmp_path, stops, dropout):
    wanted = expert_spec(network=SMALL | {"dropout": dropout})
    (tmp_path / "whole").mkdir()
    train.train(wanted, latents, tmp_path / "whole")
    folder = tmp_path / "parts"
    folder.mkdir()
    for _ in range(stops):
        calls = iter([False, True, True])
        with pytest.raises(Interrupted):
            train.train(wanted, latents, folder, stop=lambda calls=calls: next(calls))
    said = []
    train.train(wanted, latents, folder, log=said.append)
    assert said[0].startswith("resumes at")
    for images in (100, 212):
        assert same(weights(folder, images), weights(tmp_path / "whole", images))
    curves = [(f / "curve.json").read_text() for f in (folder, tmp_path / "whole")]
    assert curves[0] == curves[1]


def test_a_compiled_run_survives_an_interruption(latents, tmp_path, monkeypatch):
    # The whole path but for the machine code, which takes a minute and a half to make.
    compile_network = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda net, **kw: compile_network(net, backend="aot_eager", **kw)
    )
    wanted, said = expert_spec(training={"compile": True}), []
    for name in ("whole", "parts", "plain"):
        (tmp_path / name).mkdir()
    train.train(wanted, latents, tmp_path / "whole", log=said.append)
    calls = iter([False] * 8 + [True, True])
    with pytest.raises(Interrupted):
        train.train(wanted, latents, tmp_path / "parts", stop=lambda: next(calls))
    train.train(wanted, latents, tmp_path / "parts")
    train.train(expert_spec(), latents, tmp_path / "plain")
    assert [line.split()[0] for line in said] == ["compiled"]
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    whole, plain = weights(tmp_path / "whole"), weights(tmp_path / "plain")
    for key, value in whole.items():
        torch.testing.assert_close(value, plain[key], rtol=1e-3, atol=1e-4)


def cut_twice(latents, folder):
    """A run stopped after its first snapshot, with the checkpoints before and behind it."""
    folder.mkdir()
    for batches in (8, 6):
        calls = iter([False] * (batches - 1) + [True])
        with pytest.raises(Interrupted):
            train.train(expert_spec(), latents, folder, stop=lambda calls=calls: next(calls))
    (last, _), (before, _) = _checkpoints(folder)
    assert before < 100 <= last
    return last, before


def _checkpoints(folder):
    found = []
    for path in (folder / "state").glob("checkpoint-*.pt"):
        found.append((int(path.name.split("-")[1]), path))
    return sorted(found, reverse=True)


def flip(path):
    """One bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "resumed"),
    [
        (lambda folder: flip(_checkpoints(folder)[0][1]), "before"),
        (lambda folder: [flip(path) for _, path in _checkpoints(folder)], "never"),
        (lambda folder: _checkpoints(folder)[0][1].write_bytes(b""), "before"),
        (lambda folder: flip(folder / "weights-100.safetensors"), "before"),
        (lambda folder: (folder / "weights-100.safetensors").unlink(), "before"),
    ],
)
def test_a_run_goes_on_from_what_is_intact_and_ends_with_the_same_bits(
    latents, tmp_path, damage, resumed
):
    (tmp_path / "whole").mkdir()
    train.train(expert_spec(), latents, tmp_path / "whole")
    folder, said = tmp_path / "parts", []
    _, before = cut_twice(latents, folder)
    damage(folder)
    train.train(expert_spec(), latents, folder, log=said.append)
    assert any("damaged" in line or "missing" in line for line in said)
    expected = [f"resumes at {before} images"] if resumed == "before" else []
    assert [line for line in said if line.startswith("resumes")] == expected
    for images in (100, 212):
        name = f"weights-{images}.safetensors"
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_checkpoints_take_a_small_share_of_the_time_and_do_not_block(tmp_path, monkeypatch):
    entered, go_on = threading.Event(), threading.Event()

    def slow(*_):
        entered.set()
        go_on.wait()

    monkeypatch.setattr(run, "CHECKPOINT_SECONDS", 0.01)
    monkeypatch.setattr(run, "keep", slow)
    with run.Run(tmp_path, {}, torch.device("cpu")) as written:
        started = time.monotonic()
        written.checkpoint()
        entered.wait()
        time.sleep(0.05)
        assert not written.due()  # the pause counts from the end of a write
        go_on.set()
        written.wait()
        took = time.monotonic() - started
        assert 0.05 / run.CHECKPOINT_SHARE <= written.pause <= took / run.CHECKPOINT_SHARE
        assert not written.due()


def test_a_checkpoint_that_cannot_be_written_ends_the_run(latents, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "CHECKPOINT_SECONDS", 0)
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(FileExistsError):
        train.train(expert_spec(), latents, tmp_path)


def test_a_full_disk_under_a_checkpoint_is_told_as_such(tmp_path, monkeypatch):
    def full(folder, name, reached, write):
        write(Path("/dev/full"))

    monkeypatch.setattr(run, "keep", full)
    full_run = run.Run(tmp_path, {"network": torch.nn.Linear(300, 300)}, torch.device("cpu"))
    with pytest.raises((OSError, RuntimeError)) as refused, full_run:
        full_run.checkpoint()
    assert system_message(refused.value, tmp_path).startswith(f"{tmp_path}: the disk is full")


def test_a_loss_that_blows_up_is_refused(latents, tmp_path):
    with pytest.raises(UserError, match="no longer finite"):
        train.train(expert_spec(training={"learning_rate": 1e6}), latents, tmp_path)
    assert not list(tmp_path.glob("weights-212*"))


def test_paired_noise_is_what_the_pairing_says(latents, tmp_path):
    random = np.random.Generator(np.random.PCG64(1))
    slots = {s: random.permutation(ROWS).astype(np.uint8) for s in range(5)}
    path = tmp_path / "pairing.arrow"
    settings = {"block": 50, "sweeps": 1}
    pairing.write_pairing(path, slots, method="assignment", settings=settings, key=1, data="d")
    wanted = expert_spec(pairing={"method": "assignment"})
    draws = Draws(wanted, latents, [pairing.read_pairing(path)])
    numbers, rows = draws.places(ROWS - 3, ROWS + 3)
    ids = np.array([slots[s][r] for s, r in zip(numbers, rows, strict=True)], np.int64)
    expected = philox.normal(1, numbers, ids, (1, SIZE, SIZE))
    assert np.array_equal(
        draws.noises(numbers, rows, draws.pairs(numbers, rows)[1]).numpy(), expected
    )


def mixture_of(folders_and_states, spec, all_states):
    experts = [
        member(
            {"entry": str(folder), "file": "weights-212.safetensors", "sha256": "0"},
            spec.model_copy(update={"conditioning": conditioning}),
            first,
            last,
        )
        for folder, conditioning, first, last in folders_and_states
    ]
    return describe(spec, all_states, experts, [127.5], 73.9)


def test_a_mixture_sends_each_state_to_its_owner(latents, tmp_path):
    states = [4.0, 0.0, -4.0]
    parts = []
    for i, state in enumerate(states):
        folder = tmp_path / str(i)
        folder.mkdir()
        own = expert_spec(log_snr=[state], conditioning="none", start_key=10 + i)
        train.train(own, latents, folder)
        parts.append((folder, "none", i, i))
    described = mixture_of(parts, own, states)
    mixture = Mixture(described, lambda e: tmp_path / e["entry"] / e["file"])
    assert [mixture.owner(s) for s in states] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"no expert for log-SNR 1\.0"):
        mixture.owner(1.0)
    x = torch.randn(5, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    answers = [mixture.denoise(x, s) for s in states]
    assert not torch.allclose(answers[0], answers[1])
    few, _ = draw(mixture, states, range(2, 5), seed=0, sampling=sampling())
    many, _ = draw(mixture, states, range(0, 9), seed=0, sampling=sampling(), batch=4)
    assert few.dtype == np.uint8 and few.shape == (3, 1, SIZE, SIZE)
    # A sample is its number's; the batch may move it by rounding alone.
    assert np.abs(few.astype(int) - many[2:5].astype(int)).max() <= 1


def test_clipped_samples_are_of_estimates_within_the_range_of_pixels(tmp_path):
    """Levels 0 and 255 in the networks' scale, and estimates that go far beyond them."""
    states = [4.0, 0.0, -4.0]
    mixture = Mixture(mixture_of([(tmp_path, "state", 0, 2)], expert_spec(), states), None)
    mixture.denoise = lambda x, log_snr, labels=None: 3 * x.abs() - 2
    start = philox.normal(philox.derive_key(0, "sampling"), 0, torch.arange(8), (1, SIZE, SIZE))
    found = {}
    ends = (-127.5 / 73.9, 127.5 / 73.9)
    for clip, bounded in ((False, lambda d: d), (True, lambda d: samplers.clipped(d, ends))):
        walk = samplers.ddim(eta=0.0)
        found[clip] = mixture.decode(walk(bounded(mixture.denoiser()), start, states))
    assert not np.array_equal(found[False], found[True])
    for clip, expected in found.items():
        drawn, _ = draw(mixture, states, range(8), seed=0, sampling=sampling(clip=clip))
        assert np.array_equal(drawn, expected)


def test_samples_are_led_away_from_a_worse_model_but_not_where_nothing_is_known(tmp_path):
    """The guide has classes of its own or none; at a state without signal it is not asked."""
    states = [4.0, 0.0, -4.0]
    mixture = Mixture(mixture_of([(tmp_path, "state", 0, 2)], expert_spec(), states), None)
    guide = Mixture(mixture_of([(tmp_path, "state", 0, 2)], expert_spec(), states), None)
    asked = []
    mixture.denoise = lambda x, log_snr, labels=None: 0.5 * x

    def denoise(x, log_snr, labels=None):
        asked.append(log_snr)
        return 0.25 * x

    guide.denoise = denoise
    led, terminal = Guided(mixture, None, guide), [*states, "-inf"]
    led.denoise = mixture.denoise
    drawn, _ = draw(led, terminal, range(8), seed=0, sampling=sampling(guidance=2.0))
    assert asked == [-4.0, 0.0, 4.0]
    start = philox.normal(philox.derive_key(0, "sampling"), 0, torch.arange(8), (1, SIZE, SIZE))

    def expected(x, log_snr):  # 0.25 + 2 (0.5 - 0.25)
        return (0.5 if log_snr == -np.inf else 0.75) * x

    expected = samplers.ddim(eta=0.0)(expected, start, [*states, -np.inf])
    assert np.array_equal(drawn, mixture.decode(expected))
    asked.clear()
    led = Guided(mixture, [-1.0, 4.0], guide)
    led.denoise = mixture.denoise
    draw(led, states, range(8), seed=0, sampling=sampling(guidance=2.0))
    assert asked == [0.0]


@pytest.mark.parametrize("guide_classes", [0, 3])
def test_a_guide_is_told_the_classes_that_it_knows(tmp_path, guide_classes):
    states, asked = [4.0, 0.0], []
    parts = [(tmp_path, "state", 0, 1)]
    mixture = Mixture(mixture_of(parts, expert_spec(classes=3), states), None)
    guide = Mixture(mixture_of(parts, expert_spec(classes=guide_classes), states), None)

    def remembering(who):
        def denoise(x, log_snr, labels=None):
            asked.append((who, None if labels is None else labels.tolist()))
            return x

        return denoise

    labels = np.array([2, 0, 1, 2])
    guide.denoise = remembering("guide")

    def ask(interval, guide, guidance=2.0):
        asked.clear()
        led = Guided(mixture, interval, guide)
        led.denoise = remembering("own")
        draw(led, states, range(4), seed=0, sampling=sampling(guidance=guidance), labels=labels)
        return asked

    own, told = ("own", labels.tolist()), labels.tolist() if guide_classes else None
    assert ask(None, guide) == [own, ("guide", told)] * 2
    assert ask([-1.0, 4.0], None) == [own, ("own", [3, 3, 3, 3]), own]
    assert ask([-1.0, 4.0], guide, 1.0) == [own, own]


def test_the_noise_of_churn_is_none_of_the_other_steps_or_the_starts(
    latents, tmp_path, monkeypatch
):
    train.train(expert_spec(), latents, tmp_path)
    described = mixture_of([(tmp_path, "state", 0, 2)], expert_spec(), [4.0, 0.0, -4.0])
    mixture = Mixture(described, lambda e: tmp_path / e["file"])
    slots, normal = [], philox.normal
    monkeypatch.setattr(
        philox, "normal", lambda k, slot, *r: slots.append(slot) or normal(k, slot, *r)
    )
    draw(mixture, [4.0, 0.0, -4.0], range(2), seed=0, sampling=sampling("heun", s_churn=1.0))
    assert sorted(slots) == [0, 1, 2, 3]


def test_a_mixtures_identity_is_its_weights_not_where_they_came_from():
    base = expert_spec()
    one = mixture_of([("a", "state", 0, 2)], base, base.log_snr)
    other = mixture_of([("b", "state", 0, 2)], base, base.log_snr)
    assert one["digest"] == other["digest"]
    changed = mixture_of(
        [("a", "state", 0, 2)], base.model_copy(update={"prediction": "eps"}), base.log_snr
    )
    assert changed["digest"] != one["digest"]


@pytest.mark.parametrize(
    "damage", [lambda p: p.write_bytes(p.read_bytes()[:-7]), lambda p: p.write_text("no")]
)
def test_damaged_shards_are_refused_by_name(images, tmp_path, damage):
    path = tmp_path / "latents.arrow"
    write_shard(path, [(images, None)], (1, SIZE, SIZE), [0.0], 1.0)
    damage(path)
    with pytest.raises(UserError, match=r"latents\.arrow: not a readable shard"):
        Latents([path])


# --- latents with a variance


def test_a_row_with_a_variance_is_drawn_by_row_and_slot(tmp_path):
    random = np.random.Generator(np.random.PCG64(0))
    mean = random.normal(size=(3, 2, 4, 4)).astype(np.float16)
    log_variance = np.full_like(mean, np.log(0.25))
    rows = np.concatenate([mean, log_variance], 1)
    path = tmp_path / "a.arrow"
    write_shard(path, [(rows, None)], (2, 4, 4), [0.5, -0.5], 2.0, variance=True)
    latents = Latents([path])
    assert latents.shape == (2, 4, 4)
    shift = np.array([0.5, -0.5]).reshape(1, 2, 1, 1)
    expected = (mean.astype(np.float64) - shift) / 2
    np.testing.assert_allclose(latents.gather(np.arange(3)).numpy(), expected, atol=1e-3)
    slots = np.arange(4000)
    drawn = latents.sample(np.full(4000, 1), slots, 7).double().numpy()
    np.testing.assert_allclose(drawn.mean(0), expected[1], atol=0.02)
    np.testing.assert_allclose(drawn.std(0), 0.25, rtol=0.06)  # 0.5 over the scale
    again = latents.sample(np.array([2, 1]), np.array([5, 9]), 7)
    assert torch.equal(again[1], latents.sample(np.array([1]), np.array([9]), 7)[0])


# --- parents and decoupling


@pytest.fixture
def parent(latents, tmp_path):
    folder = tmp_path / "parent"
    folder.mkdir()
    train.train(expert_spec(), latents, folder)
    return folder / "weights-212.safetensors"


SHARES = {
    "form": {"kind": "per-interval", "shares": [3.0, 1.0], "correct": True},
    "bounds": [2.0],
}
CHILD = {"parent": {"entry": "p", "file": "f"}, "images": 64, "snapshots": [64], "stream_key": 9}


def test_a_child_starts_from_its_parent(latents, parent, tmp_path):
    still = expert_spec(**CHILD, training={"learning_rate": 1e-12, "ema_halflife": 0})
    train.train(still, latents, tmp_path, parent=parent)
    own, theirs = weights(tmp_path, 64), load_file(parent)
    for name, weight in own.items():
        torch.testing.assert_close(weight, theirs[name], atol=1e-6, rtol=0)


def test_a_parent_of_another_width_is_refused_by_name(latents, parent, tmp_path):
    wider = expert_spec(**CHILD, network=SMALL | {"channels": 16})
    with pytest.raises(UserError, match=r"weights-212\.safetensors: encoder\..* does not fit"):
        train.train(wider, latents, tmp_path, parent=parent)


def test_projections_that_a_parent_lacks_start_as_the_identity(latents, parent, tmp_path):
    settings = {"learning_rate": 1e-12, "ema_halflife": 0}
    still = expert_spec(**CHILD, network=SMALL | {"projections": True}, training=settings)
    train.train(still, latents, tmp_path, parent=parent)
    own = weights(tmp_path, 64)
    new = {name: weight for name, weight in own.items() if ".projections." in name}
    assert len(new) == 5 and own.keys() - new.keys() == load_file(parent).keys()
    for weight in new.values():
        torch.testing.assert_close(weight[:, :, 0, 0], torch.eye(len(weight)), atol=1e-6, rtol=0)


def test_branched_decoders_keep_the_encoder_and_start_from_the_parents(latents, parent, tmp_path):
    network = SMALL | {"kind": "multi-decoder", "decoder_channels": [8]}
    branch = expert_spec(**CHILD, network=network, train="decoders")
    train.train(branch, latents, tmp_path, parent=parent)
    own, theirs = weights(tmp_path, 64), load_file(parent)
    changed = 0
    for name, weight in own.items():
        if name.startswith("encoder."):
            torch.testing.assert_close(weight, theirs[name], atol=1e-6, rtol=0)
        else:
            changed += not torch.equal(weight, theirs[name.replace("decoders.0.", "decoder.")])
    assert changed > 5


def test_states_outside_an_experts_own_are_drawn_as_often_as_asked(latents):
    axis = [6.0, 4.0, 2.0, 0.0, -2.0, -4.0, -6.0, -8.0]
    wanted = expert_spec(
        log_snr=axis[:2], decouple={"outside": 0.25, "consistency": 0.0, "axis": axis}, images=8000
    )
    drawn, _ = draws.Draws(wanted, latents).states(0, 8000)
    assert set(drawn) == set(axis)
    # A quarter falls anywhere, and a quarter of that on the two own states.
    assert np.isin(drawn, axis[:2]).mean() == pytest.approx(0.75 + 0.25 / 4, abs=0.02)


def test_consistency_holds_a_child_to_its_parents_answers(latents, parent, tmp_path):
    x = torch.randn(64, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))

    def answers(path):
        network = network_of(expert_spec())
        network.load_state_dict(load_file(path))
        with torch.no_grad():
            return network(x, torch.zeros(1))

    moved = []
    for weight in (0.0, 100.0):
        folder = tmp_path / str(weight)
        folder.mkdir()
        decouple = {"outside": 0.0, "consistency": weight, "axis": [4.0, 0.0, -4.0]}
        child = expert_spec(**CHILD, decouple=decouple, training={"ema_halflife": 0})
        train.train(child, latents, folder, parent=parent)
        found = answers(folder / "weights-64.safetensors")
        moved.append(float((found - answers(parent)).square().mean()))
    assert moved[1] < 0.5 * moved[0]


def test_corrected_densities_keep_the_objective(latents):
    draws = Draws(expert_spec(curriculum=SHARES, images=9000), latents)
    drawn, weight = draws.states(0, 9000)
    assert (drawn == 4.0).mean() == pytest.approx(0.75, abs=0.01)
    for state in (4.0, 0.0, -4.0):  # density times weight is uniform
        assert weight[drawn == state].sum() / 9000 == pytest.approx(1 / 3, abs=0.01)


def test_a_curriculums_weights_reach_the_loss_of_its_own_states_only(latents):
    speed = {"form": {"kind": "speed", "tau": 0.5, "lam": 0.9}}
    weighted = expert_spec(curriculum=speed, images=9000)
    draws = Draws(weighted, latents)
    drawn, weight = draws.states(0, 9000)
    own = dict(zip([4.0, 0.0, -4.0], draws.curriculum.weights, strict=True))
    assert own[4.0] == pytest.approx(0.1) and own[0.0] == own[-4.0] == 1.0
    np.testing.assert_array_equal(weight, [own[v] for v in drawn])
    outside = {"outside": 1.0, "consistency": 0.0, "axis": [9.0]}
    far = expert_spec(curriculum=speed, images=9000, decouple=outside)
    assert (Draws(far, latents).states(0, 100)[1] == 1.0).all()


def test_a_learned_weighting_survives_an_interruption(latents, tmp_path, monkeypatch):
    wanted = expert_spec(training={"weighting": {"kind": "uncertainty"}})
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    train.train(wanted, latents, whole)
    calls = iter(range(1000))
    with pytest.raises(Interrupted):
        train.train(wanted, latents, parts, stop=lambda: next(calls) >= 20)
    train.train(wanted, latents, parts)
    assert same(weights(whole), weights(parts))
    plain = tmp_path / "plain"
    plain.mkdir()
    train.train(expert_spec(), latents, plain)
    assert not same(weights(whole), weights(plain))
