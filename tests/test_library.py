"""`import tspace`: the documented loop, and each name by itself."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
import torch

import tspace
from pipeline.errors import UserError
from pipeline.levels.params import ElboSchedule, LinearSchedule
from pipeline.levels.schedule import build
from pipeline.noise import philox
from tests.workflow import ROOT

PAGE = (ROOT / "docs" / "library.md").read_text()
LOOP = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]


@pytest.fixture(scope="module")
def images():
    """Gaussians about two patterns, by turns: float32 [60, 1, 8, 8], mean 0, variance 1."""
    drawn = torch.from_numpy(philox.normal(1, 0, np.arange(60), (1, 8, 8)))
    pattern = torch.from_numpy(philox.normal(2, 0, np.arange(1), (1, 8, 8)))
    signs = torch.tensor([1.0, -1.0]).repeat(30).reshape(-1, 1, 1, 1)
    found = 0.6 * drawn + 0.8 * signs * pattern
    return (found - found.mean()) / found.std()


def test_the_documented_loop_runs_and_learns(images, tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        names = {"images": images}
        exec(LOOP.replace("EPOCHS, BATCH = 3", "EPOCHS, BATCH = 40"), names)
    losses = names["losses"]
    assert len(losses) == 40 * 3 and np.mean(losses[-20:]) < 0.7 * np.mean(losses[:20])
    assert LOOP.count("# tspace\n") < 10


def test_the_page_and_the_package_name_the_same():
    from pipeline import interface

    assert set(re.findall(r"`tspace\.(\w+)", PAGE)) == set(interface.__all__)
    for name in interface.__all__:
        assert getattr(tspace, name) is getattr(interface, name)
    with pytest.raises(AttributeError, match="tspace has no pairing; one of: Pairing"):
        tspace.pairing  # noqa: B018
    quick = "import sys, tspace; tspace.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", quick], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("form", [np.asarray, torch.as_tensor])
def test_a_pairing_brings_noise_nearer_and_loses_none(images, tmp_path, form):
    path = tmp_path / "pairing.arrow"
    made = tspace.Pairing.of(form(images), path, passes=2, block=60)
    rows = torch.arange(60)
    for epoch in range(2):
        paired = made.noise(epoch, rows)
        own = torch.from_numpy(philox.normal(made.stored.key, epoch, np.arange(60), (1, 8, 8)))
        assert paired.shape == own.shape and paired.dtype == torch.float32
        # The same noises in another order, whose products with the images are the largest.
        assert torch.equal(paired.flatten(1).sum(1).sort()[0], own.flatten(1).sum(1).sort()[0])
        assert (paired * images).sum() > (own * images).sum() + 60
    assert not torch.equal(made.noise(0, rows), made.noise(1, rows))
    assert torch.equal(made.noise(2, rows), made.noise(0, rows))
    assert torch.equal(made.noise(1, rows[[5, 3]]), made.noise(1, rows)[[5, 3]])
    again = tspace.Pairing.load(path)
    assert torch.equal(again.noise(1, [7]), made.noise(1, [7]))
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"pairing\.arrow"):
        tspace.Pairing.load(path)


def test_labels_keep_noise_within_a_class_and_seeds_change_it(images, tmp_path):
    labels = np.arange(60) % 2
    made = tspace.Pairing.of(images, tmp_path / "a", labels=labels, block=60)
    ids = made.stored.pairs(0, np.arange(60))[1]
    assert (ids % 2 == labels).all() and (ids != np.arange(60)).any()
    other = tspace.Pairing.of(images, tmp_path / "b", labels=labels, block=60, seed=1)
    assert not torch.equal(made.noise(0, [0]), other.noise(0, [0]))
    nearest = tspace.Pairing.of(
        images, tmp_path / "c", method="knn-dot", candidates=4, labels=labels, scale=0.5
    )
    assert nearest.noise(0, np.arange(60)).std() == pytest.approx(0.5, rel=0.1)


def test_noises_of_a_semidiscrete_pairing_take_their_images(images, tmp_path):
    labels = np.arange(60) % 2
    made = tspace.Pairing.of(
        images, tmp_path / "a", passes=2, method="semidiscrete", labels=labels, scale=0.5
    )
    again = tspace.Pairing.load(tmp_path / "a")
    for epoch in range(2):
        rows, eps = made.pairs(epoch, torch.arange(60))
        own = torch.from_numpy(philox.normal(made.stored.key, epoch, np.arange(60), (1, 8, 8)))
        assert torch.equal(eps, 0.5 * own)
        assert (labels[rows] == labels).all()
        assert (own * images[rows]).sum() > (own * images).sum() + 60
        assert np.array_equal(again.pairs(epoch, np.arange(60))[0], rows)
    with pytest.raises(UserError, match=r"use pairs\(\)"):
        made.noise(0, [0])
    plain = tspace.Pairing.of(images, tmp_path / "b", block=60)
    rows, eps = plain.pairs(0, [5, 3])
    assert rows.tolist() == [5, 3] and torch.equal(eps, plain.noise(0, [5, 3]))


def test_schedules_are_those_of_the_pipeline(images):
    assert np.array_equal(tspace.schedule("linear"), build(LinearSchedule(kind="linear"), 1000))
    spectrum = np.linalg.eigvalsh(np.cov(images.flatten(1).numpy().T, bias=True))[::-1]
    block = ElboSchedule(kind="elbo", states=8)
    wanted = build(block, 8, spectrum=np.maximum(spectrum, 0))
    found = tspace.schedule("elbo", data=images, states=8)
    assert found.shape == (8,) and np.allclose(found, wanted, atol=1e-3)
    explicit = tspace.schedule("explicit", log_snr=[2.0, 0.0, -2.0])
    assert explicit.tolist() == [2.0, 0.0, -2.0]


def test_a_curriculum_draws_states_and_ranges():
    states = tspace.schedule("log-snr", states=16)
    index, log_snr = tspace.curriculum("uniform", states).draw((np.arange(160) + 0.5) / 160, 0.5)
    assert (np.bincount(index) == 10).all() and np.array_equal(log_snr, states[index])
    whole = tspace.curriculum("edm-lognormal", [10.0, -10.0], continuous=True)
    drawn = whole.draw((np.arange(10_000) + 0.5) / 10_000, 0.0)[1]
    # EDM's ln sigma has mean -1.2 and its data the deviation 0.5.
    assert drawn.mean() == pytest.approx(2 * (1.2 + np.log(0.5)), abs=0.05)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda d, p: tspace.schedule("liner"), r"schedule\.kind: .*did you mean `linear`"),
        (lambda d, p: tspace.schedule("linear", state=3), r"schedule\.state: no such key; did you"),
        (lambda d, p: tspace.schedule("edm"), r"schedule\.states: continuous"),
        (lambda d, p: tspace.schedule("fitted"), r"give data="),
        (lambda d, p: tspace.schedule("linear", shift="unit-range"), r"schedule\.shift"),
        (lambda d, p: tspace.curriculum("per-interval", [1.0, 0.0], shares=[1.0]), "partition"),
        (lambda d, p: tspace.curriculum("adaptive", [1.0, 0.0]), "is learnt in the pipeline"),
        (lambda d, p: tspace.Pairing.of(d, p, method="independent"), r"torch\.randn"),
        (lambda d, p: tspace.Pairing.of(d, p, refresh=0.1), r"pairing\.refresh: is for the"),
        (lambda d, p: tspace.Pairing.of(d, p, block=0), r"pairing\.block: must be above 0"),
        (lambda d, p: tspace.Pairing.of(d * float("nan"), p), r"data: must be finite"),
        (lambda d, p: tspace.Pairing.load(p), r"none: missing"),
    ],
)
def test_mistakes_are_told_as_those_of_params_yaml(images, tmp_path, ask, message):
    with pytest.raises(UserError, match=message):
        ask(images, tmp_path / "none")
    assert not (tmp_path / "none").exists()
