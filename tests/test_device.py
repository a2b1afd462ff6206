"""Every path on a device that is not the CPU, and how often the host waits for it."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline import devices
from pipeline.data.codec import load_codec
from pipeline.data.latents import Latents, write_shard
from pipeline.data.params import Autoencoder
from pipeline.errors import UserError
from pipeline.evaluation.consistency import estimates
from pipeline.evaluation.features import classifier_extractor
from pipeline.levels.pilot import error_curve
from pipeline.networks.build import network_of
from pipeline.networks.classifier import Classifier
from pipeline.noise import pairing, philox
from pipeline.sampling.mixture import draw
from pipeline.training import train
from pipeline.training.autoencoder import train_autoencoder
from pipeline.training.classifier import train_classifier
from pipeline.training.run import Interrupted, ahead
from tests import pretended
from tests.cases import CASES, ROWS, SIZE, STATES, WEIGHTINGS, mixture_on
from tests.specs import expert_spec
from tests.test_diffusers import DIT, UNET
from tests.test_own_networks import own
from tests.test_training import sampling

# Waits of a training step that closes no point of the curve and keeps no snapshot. Networks with
# several decoders ask whether one without a sample in one shard had one in another, and the
# generator looks at the slots of a batch of two passes over the dataset.
WAITS, WAITS_OF_ROUTING, WAITS_OF_A_PASS = 0, 1, 1


@pytest.fixture
def shard(tmp_path):
    images = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (ROWS, 1, SIZE, SIZE), "u1")
    path = tmp_path / "latents.arrow"
    write_shard(path, [(images, np.arange(ROWS) % 3)], (1, SIZE, SIZE), [127.5], 73.9)
    return path


@pytest.fixture
def watch():
    with pretended.watched() as found, arithmetic_as_before():
        yield found


@contextlib.contextmanager
def arithmetic_as_before() -> Iterator[None]:
    """What a training sets for a GPU is set back for the tests that follow."""
    backends = torch.backends
    repeats, benchmark = torch.are_deterministic_algorithms_enabled(), backends.cudnn.benchmark
    matmul, cudnn = backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(repeats)
            backends.cudnn.benchmark = benchmark
            backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32 = matmul, cudnn


def steps(spec, latents, folder, watch, **inputs) -> list[list[str]]:
    """Train; what was waited for in each step, but for the mean loss that the curve reads.

    That is every fiftieth part of a run, so in one as short as here every step.
    """
    marks: list[int] = []
    train.train(
        spec, latents, folder, **inputs, stop=lambda: marks.append(len(watch.waits)) or False
    )
    found = [watch.waits[a:b] for a, b in itertools.pairwise(marks)]
    assert len(found) >= 2 and all(sum("run.py" in w for w in waits) == 1 for waits in found)
    return [[wait for wait in waits if "run.py" not in wait] for waits in found]


@pytest.mark.parametrize("case", CASES)
def test_a_step_keeps_to_its_device_and_waits_for_nothing(shard, tmp_path, watch, case):
    spec = expert_spec(**CASES[case], images=24, snapshots=[])
    features = np.ones((len(Latents([shard])), 5), np.float32)
    found = steps(spec, Latents([shard], pretended.device()), tmp_path, watch, features=features)
    most = WAITS_OF_ROUTING if "decoders in shards" in case else WAITS
    assert [waits for waits in found if len(waits) > most] == []


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("variance", [True, False])
def test_rows_are_not_waited_for(shard, tmp_path, watch, monkeypatch, resident, variance):
    if variance:
        shard = tmp_path / "gaussian.arrow"
        random = np.random.Generator(np.random.PCG64(0))
        rows = random.normal(size=(ROWS, 2, SIZE, SIZE)).astype("f2")
        write_shard(shard, [(rows, None)], (1, SIZE, SIZE), [0.0], 1.0, variance=True)
    if not resident:
        monkeypatch.setattr("pipeline.data.latents.RESIDENT_BYTES", 0)
    spec = expert_spec(images=24, snapshots=[24])
    there = Latents([shard], pretended.device())
    assert steps(spec, there, tmp_path, watch)[0] == []
    (tmp_path / "here").mkdir()
    train.train(spec, Latents([shard]), tmp_path / "here")
    same_weights(tmp_path, tmp_path / "here", "weights-24.safetensors")


def test_a_batch_of_two_passes_is_waited_for_once(shard, tmp_path, watch):
    spec = expert_spec(images=64, snapshots=[])
    found = steps(spec, Latents([shard], pretended.device()), tmp_path, watch)
    assert [len(waits) for waits in found] == [0, 0, 0, 0, 0, WAITS_OF_A_PASS, 0]


def test_a_module_of_ones_own_keeps_to_its_device(shard, tmp_path, watch):
    network = own(tmp_path, classes=3, options={"channels": 1, "width": 4, "classes": 3})
    given = {"network": network.network, "source": network.source, "classes": 3}
    spec = expert_spec(**given, images=24, snapshots=[])
    latents = Latents([shard], pretended.device())
    assert steps(spec, latents, tmp_path, watch, root=tmp_path) == [[], []]


DIFFUSERS = {
    "U-Net": {"network": UNET},
    "U-Net, classes": {"network": UNET | {"class_conditional": True}, "classes": 3},
    "U-Net in shards": {"network": UNET, "training": {"shards": 2, "clip": 1.0}},
    "U-Net, one state": {"network": UNET, "log_snr": [0.5]},
    "transformer": {"network": DIT},
    "transformer, classes": {"network": DIT | {"class_conditional": True}, "classes": 3},
}


@pytest.mark.parametrize("case", DIFFUSERS)
def test_networks_of_diffusers_keep_to_their_device(shard, tmp_path, watch, case):
    pytest.importorskip("diffusers")
    spec = expert_spec(**DIFFUSERS[case], images=24, snapshots=[])
    assert steps(spec, Latents([shard], pretended.device()), tmp_path, watch) == [[], []]


@pytest.mark.parametrize("kind", WEIGHTINGS)
@pytest.mark.parametrize("case", ["states", "one state"])
def test_every_weighting_keeps_to_its_device(shard, tmp_path, watch, kind, case):
    training = {"weighting": {"kind": kind}}
    spec = expert_spec(**CASES[case], images=24, snapshots=[24], training=training)
    found = steps(spec, Latents([shard], pretended.device()), tmp_path, watch)
    assert found[0] == []
    (tmp_path / "here").mkdir()
    train.train(spec, Latents([shard]), tmp_path / "here")
    same_weights(tmp_path, tmp_path / "here", "weights-24.safetensors")


def same_weights(one: Path, other: Path, name: str) -> None:
    """But for roundings."""
    found, wanted = load_file(one / name), load_file(other / name)
    assert found.keys() == wanted.keys()
    for key, weight in wanted.items():
        torch.testing.assert_close(found[key], weight, atol=1e-4, rtol=1e-3)


def test_a_child_and_its_guide_keep_to_their_device(shard, tmp_path, watch):
    latents = Latents([shard], pretended.device())
    train.train(expert_spec(images=16, snapshots=[16]), latents, tmp_path)
    child = expert_spec(
        parent={"entry": "p", "file": "f"},
        decouple={"outside": 0.3, "consistency": 1.0, "axis": [6.0, *STATES]},
        images=24,
        snapshots=[],
    )
    (tmp_path / "child").mkdir()
    parent = tmp_path / "weights-16.safetensors"
    found = steps(child, latents, tmp_path / "child", watch, parent=parent)
    assert found == [[], []]


def test_held_out_images_are_waited_for_at_snapshots_alone(shard, tmp_path, watch):
    latents = Latents([shard], pretended.device())
    rule = {"stop": {"patience": 1}, "decay": "constant"}
    spec = expert_spec(images=48, snapshots=[24, 48], training=rule)
    found = steps(spec, latents, tmp_path, watch, held_out=latents)
    assert [any("stopping.py" in wait for wait in waits) for waits in found].count(True) == 2
    assert found[0] == []


def test_a_policy_is_waited_for_where_it_learns_alone(shard, tmp_path, watch):
    form = {"form": {"kind": "adaptive", "every": 24, "policy_rate": 1.0}}
    range_of = {"log_snr": [6.0, -6.0], "continuous": True}
    spec = expert_spec(curriculum=form, **range_of, images=48, snapshots=[48])
    found = steps(spec, Latents([shard], pretended.device()), tmp_path, watch)
    # Step 3 and step 6 of 8 images learn; what `steps` has begins behind the first.
    learns = [sum("adaptive.py" in wait for wait in waits) for waits in found]
    assert learns == [0, 1, 0, 0, 1] and found[0] == found[2] == found[3] == []
    (tmp_path / "here").mkdir()
    train.train(spec, Latents([shard]), tmp_path / "here")
    # No batch was drawn before the policy had learnt: on a CPU none is.
    same_weights(tmp_path, tmp_path / "here", "weights-48.safetensors")


# --- the test of the test


def planted(monkeypatch, change) -> None:
    """Something done to each batch before it is trained on."""
    original = train.Draws.batch

    def batch(self, *arguments):
        found = original(self, *arguments)
        change(found)
        return found

    monkeypatch.setattr(train.Draws, "batch", batch)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda batch: bool((batch.log_snr > 0).all()), "_local_scalar_dense"),
        (lambda batch: batch.wanted.sum().item(), "_local_scalar_dense"),
        (lambda batch: batch.wanted.cpu(), "copy to the host"),
        (lambda batch: torch.zeros(8).to(batch.wanted.device), "copy from pageable memory"),
        (lambda batch: batch.wanted[batch.log_snr > 0], "by a mask"),
        (lambda batch: batch.log_snr.nonzero(), "nonzero"),
    ],
)
def test_a_planted_wait_is_found(shard, tmp_path, watch, monkeypatch, change, why):
    planted(monkeypatch, change)
    spec = expert_spec(images=24, snapshots=[])
    found = steps(spec, Latents([shard], pretended.device()), tmp_path, watch)
    assert all(any(why in wait and "test_device.py" in wait for wait in waits) for waits in found)


def test_a_planted_mix_of_devices_is_found(shard, tmp_path, watch, monkeypatch):
    planted(monkeypatch, lambda batch: batch.wanted + torch.zeros(8, 1, SIZE, SIZE))
    spec = expert_spec(images=24, snapshots=[])
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        train.train(spec, Latents([shard], pretended.device()), tmp_path)


# --- what comes after, and before


@pytest.fixture
def trained(shard, tmp_path):
    spec = expert_spec(images=64, snapshots=[64], classes=3)
    train.train(spec, Latents([shard]), tmp_path)
    return spec, tmp_path / "weights-64.safetensors"


@pytest.mark.parametrize("kind", ["ddpm", "ddim", "heun", "dpmpp-2m"])
def test_samples_are_those_of_the_cpu(trained, watch, kind):
    options = {"s_churn": 1.0} if kind == "heun" else {}
    walk = sampling(kind, clip=True, guidance=2.0, **options)
    found = {}
    for device in (torch.device("cpu"), pretended.device()):
        mixture = mixture_on(device, *trained)
        counts = {"class_counts": [1, 1, 1]}
        found[device.type], _ = draw(mixture, STATES, range(6), seed=0, sampling=walk, **counts)
    assert np.abs(found["cpu"].astype(int) - found[pretended.NAME]).max() <= 1


@pytest.mark.parametrize(
    "case", ["two decoders", "transformer with all options", "transformer with two decoders"]
)
def test_samples_of_other_networks_are_those_of_the_cpu(shard, tmp_path, watch, case):
    spec = expert_spec(**CASES[case], images=64, snapshots=[64])
    train.train(spec, Latents([shard]), tmp_path)
    found = []
    for device in (torch.device("cpu"), pretended.device()):
        mixture = mixture_on(device, spec, tmp_path / "weights-64.safetensors")
        found.append(draw(mixture, STATES, range(6), seed=0, sampling=sampling("ddim"))[0])
    assert np.abs(found[0].astype(int) - found[1]).max() <= 1


@pytest.mark.parametrize("case", DIFFUSERS)
def test_samples_of_networks_of_diffusers_are_those_of_the_cpu(shard, tmp_path, watch, case):
    pytest.importorskip("diffusers")
    spec = expert_spec(**DIFFUSERS[case], images=64, snapshots=[64])
    train.train(spec, Latents([shard]), tmp_path)
    states = [0.5] if len(spec.log_snr) == 1 else STATES
    counts = {"class_counts": [1, 1, 1]} if spec.classes else {}
    found = []
    for device in (torch.device("cpu"), pretended.device()):
        mixture = mixture_on(device, spec, tmp_path / "weights-64.safetensors", states)
        options = {"seed": 0, "sampling": sampling("ddim"), **counts}
        found.append(draw(mixture, states, range(6), **options)[0])
    assert np.abs(found[0].astype(int) - found[1]).max() <= 1


def test_outputs_to_compare_are_those_of_the_cpu(trained, shard, watch):
    found = {}
    for device in (torch.device("cpu"), pretended.device()):
        latents, mixture = Latents([shard], device), mixture_on(device, *trained)
        found[device.type] = estimates(mixture, latents, 9, ROWS, [0.0, -4.0], seed=0, batch=4)
    np.testing.assert_allclose(found["cpu"], found[pretended.NAME], atol=1e-4)


@pytest.mark.parametrize("gradients", [False, True])
def test_a_pilots_errors_are_those_of_the_cpu(trained, shard, watch, gradients):
    spec, weights = trained
    found = {}
    for device in (torch.device("cpu"), pretended.device()):
        network = network_of(spec, device=device)
        network.load_state_dict(load_file(weights))
        latents = Latents([shard], device)
        found[device.type] = error_curve(
            network, spec, latents, [2.0, -2.0], 1, gradients=gradients
        )
    here, there = found.values()
    np.testing.assert_allclose(here["error"], there["error"], rtol=1e-4)
    if gradients:
        np.testing.assert_allclose(here["affinity"], there["affinity"], atol=1e-3)


def test_features_are_those_of_the_cpu(watch):
    images = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (40, 1, 8, 8), "u1")
    found = {}
    for device in (torch.device("cpu"), pretended.device()):
        module = Classifier(in_channels=1, size=8, classes=3, channels=8, dimension=8)
        found[device.type] = classifier_extractor(module, device=device, batch=16).features(images)
    np.testing.assert_allclose(found["cpu"], found[pretended.NAME], atol=1e-4)


def test_paired_noise_is_that_of_the_cpu_to_the_bit(watch):
    slot, row, number = (torch.arange(5) * factor for factor in (1, 3, 7))
    basis = torch.eye(16)[:4]
    found = []
    for device in (torch.device("cpu"), pretended.device()):
        there = [values.to(device) for values in (slot, row, number)]
        options = {"refresh": 0.2, "basis": basis.to(device), "scale": 0.9}
        found.append(pairing.paired_noise(3, *there, (1, 4, 4), **options).cpu())
    assert torch.equal(*found)


def test_noise_is_that_of_numpy_to_the_bit(watch):
    ids = np.arange(20)
    there = philox.normal(5, 2, torch.from_numpy(ids).to(pretended.device()), (2, 3, 3))
    assert np.array_equal(there.cpu().numpy(), philox.normal(5, 2, ids, (2, 3, 3)))


def test_a_classifier_and_an_encoder_train_there(watch, tmp_path):
    random = np.random.Generator(np.random.PCG64(0))
    images, labels = random.integers(0, 256, (60, 1, 8, 8), "u1"), np.arange(60) % 3
    budget = {"images_budget": 64, "batch": 16, "learning_rate": 1e-3, "seed": 0}
    there = {"channels": 8, "dimension": 8, "device": pretended.device()}
    _, report = train_classifier(images, labels, tmp_path / "classifier", **budget, **there)
    assert np.isfinite(report["loss"])
    settings = Autoencoder(
        encoder="autoencoder", channels=2, downsample=2, width=8, images=64, batch=16
    )
    train_autoencoder(
        lambda rows: images[rows],
        len(images),
        shape=(1, 8, 8),
        settings=settings,
        seed=0,
        folder=tmp_path / "encoder",
        device=pretended.device(),
    )
    codec = load_codec(tmp_path / "encoder", pretended.device())
    mean, _ = codec.encode(images[:5])
    assert codec.decode(torch.from_numpy(mean).to(pretended.device())).shape == (5, 1, 8, 8)


# --- what is prepared ahead, and what is told


def test_preparing_ahead_changes_no_bit(shard, tmp_path, monkeypatch):
    spec = expert_spec(images=100, snapshots=[100], classes=3)
    found = []
    for device in ("cpu", pretended.NAME):
        (tmp_path / device).mkdir()
        monkeypatch.setattr(
            train, "ahead", lambda work, items, _, on=device: ahead(work, items, device_of(on))
        )
        train.train(spec, Latents([shard]), tmp_path / device)
        found.append((tmp_path / device / "weights-100.safetensors").read_bytes())
    assert found[0] == found[1]


def device_of(name: str) -> torch.device:
    return torch.device("cpu") if name == "cpu" else pretended.device()


def test_what_is_prepared_ahead_comes_in_order_with_its_errors():
    threads = set()

    def work(item: int) -> int:
        threads.add(threading.current_thread())
        return 10 // item

    assert list(ahead(work, [1, 2, 5], pretended.device())) == [10, 5, 2]
    assert threading.main_thread() not in threads and len(threads) == 1
    found = ahead(work, [1, 0], pretended.device())
    assert next(found) == 10
    with pytest.raises(ZeroDivisionError):
        next(found)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            "out of GPU memory with training.batch 8, training.shards 2, network.channels 8; "
            r"double training.shards .*",
        ),
        (
            RuntimeError("x does not have a deterministic implementation. You can ..."),
            "x does not have a deterministic implementation; set training.deterministic: false .*",
        ),
    ],
)
def test_what_a_device_cannot_do_is_one_line(shard, tmp_path, monkeypatch, error, told):
    def fails(*_):
        raise error

    monkeypatch.setattr(train.Draws, "batch", fails)
    with pytest.raises(UserError, match=f"^{told}$"):
        train.train(expert_spec(training={"shards": 2}), Latents([shard]), tmp_path)


def test_no_checkpoint_is_to_blame_for_a_lack_of_memory(shard, tmp_path, monkeypatch):
    def fails(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(Interrupted):
        train.train(expert_spec(), Latents([shard]), tmp_path, stop=lambda: True)
    monkeypatch.setattr(train.Adam, "load_state_dict", fails)
    with pytest.raises(UserError, match=r"^out of GPU memory with training\.batch 8"):
        train.train(expert_spec(), Latents([shard]), tmp_path)


@pytest.mark.parametrize(("tf32", "deterministic"), [(True, False), (False, True)])
def test_a_gpu_computes_as_it_is_told(tf32, deterministic):
    backends = torch.backends
    with arithmetic_as_before():
        devices.set_arithmetic(torch.device("cpu"), not tf32, not deterministic)
        devices.set_arithmetic(torch.device("cuda"), tf32, deterministic)
        assert backends.cuda.matmul.allow_tf32 is backends.cudnn.allow_tf32 is tf32
        assert backends.cudnn.benchmark is not deterministic
        assert torch.are_deterministic_algorithms_enabled() is deterministic
