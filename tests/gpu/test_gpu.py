"""The same paths on a real GPU. Bits are those of this kind of GPU, run after run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.data.latents import Latents, write_shard
from pipeline.noise import pairing, philox
from pipeline.training import recorded, train
from pipeline.training.run import Interrupted
from tests.cases import CASES, ROWS, SIZE, STATES, WEIGHTINGS, mixture_on
from tests.specs import SMALL, expert_spec
from tests.test_dit import TINY
from tests.test_training import sampling

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="torch finds no GPU on this machine"
)
GPU = torch.device("cuda")
FEATURES = np.random.Generator(np.random.PCG64(1)).normal(size=(ROWS, 5)).astype("f4")
ATTENTION = SMALL | {"attention": [SIZE], "channels": 64}
MORE = {
    "bfloat16": {"training": {"precision": "bfloat16"}},
    "tf32": {"training": {"precision": "tf32"}},
    "attention": {"network": ATTENTION},
    "attention in bfloat16": {"network": ATTENTION, "training": {"precision": "bfloat16"}},
    "transformer in bfloat16": {"network": TINY, "training": {"precision": "bfloat16"}},
    "compiled": {"training": {"precision": "bfloat16", "compile": True}},
}


@pytest.fixture
def latents(tmp_path):
    images = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (ROWS, 1, SIZE, SIZE), "u1")
    path = tmp_path / "latents.arrow"
    write_shard(path, [(images, np.arange(ROWS) % 3)], (1, SIZE, SIZE), [127.5], 73.9)
    return Latents([path], GPU)


def trained(folder, latents, **changes) -> dict[str, torch.Tensor]:
    folder.mkdir(exist_ok=True)
    spec = expert_spec(**changes, images=212, snapshots=[212])
    train.train(spec, latents, folder, features=FEATURES)
    return load_file(folder / "weights-212.safetensors")


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 5), (4, 32, 32)])
def test_noise_is_that_of_the_cpu_to_the_bit(shape, fused, monkeypatch):
    if fused:
        pytest.importorskip("triton")
    else:
        monkeypatch.setattr(philox, "_fused", lambda: None)
    ids = torch.cat([torch.arange(300), torch.tensor([2**31, 2**32 + 7, 2**62, -1])])
    for key, slot in ((5, 2), (2**64 - 1, 2**32 - 1)):
        there = philox.normal(key, slot, ids.to(GPU), shape).cpu()
        assert torch.equal(there, philox.normal(key, slot, ids, shape))
    ids = ids[:300]
    options = {"refresh": 0.2, "basis": None, "scale": 1.0}
    found = [
        pairing.paired_noise(3, *(x.to(d) for x in (ids // 7, ids, 3 * ids)), shape, **options)
        for d in (torch.device("cpu"), GPU)
    ]
    assert torch.equal(found[0], found[1].cpu())


@pytest.mark.parametrize("case", [*CASES, *MORE])
def test_two_runs_and_one_that_was_interrupted_have_the_same_bits(latents, tmp_path, case):
    changes = (CASES | MORE)[case]
    whole = trained(tmp_path / "whole", latents, **changes)
    assert same(whole, trained(tmp_path / "again", latents, **changes))
    (tmp_path / "parts").mkdir()
    calls = iter([False] * 8 + [True, True])
    spec = expert_spec(**changes, images=212, snapshots=[212])
    with pytest.raises(Interrupted):
        train.train(spec, latents, tmp_path / "parts", features=FEATURES, stop=lambda: next(calls))
    assert same(whole, trained(tmp_path / "parts", latents, **changes))


@pytest.mark.parametrize("case", [*CASES, *MORE])
def test_a_recorded_step_has_the_bits_of_one_that_is_not(latents, tmp_path, monkeypatch, case):
    changes = (CASES | MORE)[case]
    if not recorded.can_be_recorded(expert_spec(**changes), GPU):
        pytest.skip("it looks at values, or takes some from the host")
    found = trained(tmp_path / "recorded", latents, **changes)
    monkeypatch.setattr(recorded, "ENABLED", False)
    assert same(found, trained(tmp_path / "launched", latents, **changes))


@pytest.mark.parametrize("kind", WEIGHTINGS)
def test_every_weighting_trains(latents, tmp_path, kind):
    found = trained(tmp_path, latents, training={"weighting": {"kind": kind}})
    assert all(bool(weight.isfinite().all()) for weight in found.values())


@pytest.mark.parametrize("kind", ["ddpm", "ddim", "heun", "dpmpp-2m"])
def test_samples_are_those_of_the_cpu_but_for_rounding(latents, tmp_path, kind):
    from pipeline.sampling.mixture import draw

    spec = expert_spec(images=64, snapshots=[64])
    train.train(spec, latents, tmp_path)
    here, there = (
        draw(
            mixture_on(device, spec, tmp_path / "weights-64.safetensors"),
            STATES,
            range(6),
            seed=0,
            sampling=sampling(kind),
        )[0]
        for device in (torch.device("cpu"), GPU)
    )
    assert np.abs(here.astype(int) - there).max() <= 2
