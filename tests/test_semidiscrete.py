"""Semidiscrete pairing: the potential against closed forms and assignments, and what noises get."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import linear_sum_assignment

from pipeline.errors import UserError
from pipeline.noise import assignment, diagnostics, pairing, philox, semidiscrete
from pipeline.store.files import reached
from tests.test_pairing import KEY, make_rows, source


def learn(x, noises=16, **given):
    return semidiscrete.learn(source(x), len(x), **{"key": KEY, "noises": noises} | given)


def choose(x, potential, slot=0, **given):
    taken = semidiscrete.choose(source(x), len(x), potential, key=KEY, slot=slot, **given)
    return taken.astype(np.int64)


def taken_by(x, potential, eps):
    """The definition, in float64."""
    return (eps.astype(np.float64) @ x.T + potential).argmax(axis=1)


# --- the potential --------------------------------------------------------------------------------


def test_on_a_line_cells_end_at_the_quantiles():
    """Row k of N, in order, takes the noises between the (k - 1)th and the kth N-quantile."""
    x = np.array([-2.0, -1.1, -0.4, -0.3, 0.2, 0.9, 1.2, 1.5], np.float32)[:, None]
    g = learn(x, 4000).astype(np.float64)
    assert abs(g.mean()) < 1e-6
    ends = -np.diff(g) / np.diff(x[:, 0].astype(np.float64))
    wanted = stats.norm.ppf(np.arange(1, 8) / 8)
    np.testing.assert_allclose(ends, wanted, atol=0.06)  # noises are multiples of 1/32


def test_in_a_plane_a_small_set_is_taken_equally_often():
    x = make_rows(12, 2, seed=3)
    x[5] *= 2
    g = learn(x, 4000)
    eps = philox.normal(99, 0, np.arange(120_000), (2,))
    times = np.bincount(taken_by(x, g, eps), minlength=12)
    assert np.abs(times / 10_000 - 1).max() < 0.06
    plain = np.bincount(taken_by(x, 0, eps), minlength=12)
    assert plain.min() == 0 and plain.max() > 30_000


@pytest.mark.parametrize("dim", [8, 64])
def test_more_noises_make_the_frequencies_more_even(dim):
    x = make_rows(500, dim)
    found = []
    for noises in (8, 128):
        g = learn(x, noises)
        eps = philox.normal(99, 0, np.arange(40_000), (dim,))
        found.append(semidiscrete.unevenness(taken_by(x, g, eps), 500))
    assert 0.05 < found[0] < 0.4
    assert found[1] < 0.04


def test_the_potential_bounds_every_assignment_and_reaches_a_lower_cost():
    x = make_rows(300, 48)
    g = learn(x, 100)
    own, bound, best = [], [], []
    for slot in range(12):
        eps = philox.normal(KEY, slot, np.arange(300), (48,)).astype(np.float64)
        products = eps @ x.T.astype(np.float64)
        here, chosen = linear_sum_assignment(-products)
        best.append(products[here, chosen].mean())
        bound.append((products + g).max(axis=1).mean() - g.mean(dtype=np.float64))
        own.append(products[here, choose(x, g, slot)].mean())
    assert all(b >= a for a, b in zip(best, bound, strict=True))
    # A least cost over all noises, and no more than that of assigning 300 of them on average.
    assert np.mean(own) > np.mean(best) + 2 * np.std(np.subtract(own, best)) / math.sqrt(12)


@pytest.mark.parametrize("turned", [False, True])
def test_the_first_guess_is_near_for_gaussian_rows(turned):
    x = make_rows(1500, 64, power=1.5) + np.float32(0.2)
    axes = None
    if turned:
        x = x @ np.linalg.qr(np.random.default_rng(2).standard_normal((64, 64)))[0]
        x = x.astype(np.float32)
        axes = assignment.principal_components(source(x), 1500, 20, key=1).basis
    with ThreadPoolExecutor(1) as pool:
        rows = semidiscrete._Rows(source(x), np.arange(1500), KEY, 0, None, 1 << 30, pool)
        guess, scales = rows.first_guess(axes)
    length = np.sqrt(((x - x.mean(0)) ** 2).sum(1))
    np.testing.assert_allclose(scales, length / math.sqrt(2 * math.log(1500)), rtol=1e-2)
    eps = philox.normal(99, 0, np.arange(20_000), (64,))
    near, none = (semidiscrete.unevenness(taken_by(x, g, eps), 1500) for g in (guess, 0))
    assert near < 0.2 and none > 5


@pytest.mark.parametrize("dim", [8, 256])
@pytest.mark.parametrize("turned", [False, True])
def test_rows_of_many_lengths_are_all_taken(dim, turned):
    """Images of strong and of weak contrast: none of them is taken less than others."""
    x = make_rows(1500, dim)
    if turned:
        x = x @ np.linalg.qr(np.random.default_rng(2).standard_normal((dim, dim)))[0]
        x = x.astype(np.float32)
    x *= np.exp(0.45 * np.random.default_rng(1).standard_normal((1500, 1)) - 0.2)
    g = learn(x)
    square = (x**2).sum(axis=1)
    taken = np.concatenate([choose(x, g, slot) for slot in range(6)])
    error = float(square.std() / math.sqrt(len(taken)) / square.mean())
    ratio = float(square[taken].mean() / square.mean())
    assert ratio == pytest.approx(1, abs=0.05 + 2 * error)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_rows_and_rows_that_are_all_alike(count):
    x = make_rows(count, 4)
    assert sorted(np.unique(choose(x, learn(x, 50)))) == list(range(count)) or count > 1
    x[:] = 0.5
    g = learn(x, 50)
    assert np.isfinite(g).all()
    assert choose(x, g).max() < count


# --- what noises take -----------------------------------------------------------------------------


def test_noises_take_the_row_of_the_largest_score():
    x = make_rows(400, 64)
    g = learn(x)
    taken = choose(x, g, slot=3)
    eps = philox.normal(KEY, 3, np.arange(400), (64,))
    # Rounding decides between rows that are nearly alike.
    assert (taken == taken_by(x, g, eps)).mean() > 0.97
    assert not np.array_equal(taken, choose(x, g, slot=4))


def test_components_alone_decide():
    x = make_rows(300, 60)
    axes = assignment.Components(np.eye(60, dtype=np.float32)[[3, 8]], np.ones(2))
    other = np.random.default_rng(5).standard_normal(x.shape).astype(np.float32)
    other[:, [3, 8]] = x[:, [3, 8]]
    g = learn(x, components=axes)
    np.testing.assert_array_equal(learn(other, components=axes), g)
    taken = choose(x, g, components=axes)
    np.testing.assert_array_equal(choose(other, g, components=axes), taken)
    eps = philox.normal(KEY, 0, np.arange(300), (60,))
    correlation = [np.corrcoef(x[taken][:, c], eps[:, c])[0, 1] for c in (3, 8, 20)]
    assert min(correlation[:2]) > 0.9 and abs(correlation[2]) < 0.2


def test_classes_keep_their_number_of_noises_and_do_not_leak():
    labels = np.random.default_rng(1).integers(0, 4, 2000)
    x = make_rows(2000, 40)
    x[:, :4] += 3 * np.eye(4, dtype=np.float32)[labels]
    leaks = []
    for own in (labels, None):
        g = learn(x, labels=own)
        taken = choose(x, g, labels=own)
        eps = philox.normal(KEY, 0, np.arange(2000), (40,))
        leaks.append(diagnostics.diagnose(x[taken], eps, labels=labels[taken])["class_leak"])
        if own is not None:
            np.testing.assert_array_equal(labels[taken], labels)
            for c in range(4):
                assert abs(g[labels == c].mean()) < 1e-4
    chance = np.bincount(labels).max() / 2000
    assert abs(leaks[0] - chance) < 4 * math.sqrt(0.25 * 0.75 / 1000)
    assert leaks[1] > chance + 0.1


def test_threads_memory_and_parts_do_not_change_the_answer(monkeypatch):
    x = make_rows(300, 40)
    labels = np.arange(300) % 3
    g = learn(x, labels=labels)
    taken = choose(x, g, labels=labels)
    for change in ({"workers": 3}, {"memory": 0}):
        np.testing.assert_array_equal(learn(x, labels=labels, **change), g)
        np.testing.assert_array_equal(choose(x, g, labels=labels, **change), taken)
    monkeypatch.setattr(semidiscrete, "_ROWS_AT_ONCE", 17)
    monkeypatch.setattr(semidiscrete, "_NOISES_AT_ONCE", 13)
    np.testing.assert_array_equal(choose(x, g, labels=labels), taken)


class Stopped(Exception):
    pass


def test_interrupted_learning_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    x = make_rows(300, 20)
    labels = np.arange(300) % 2
    whole = learn(x, labels=labels)
    monkeypatch.setattr(semidiscrete, "STATE_SECONDS", 0)
    monkeypatch.setattr(semidiscrete, "_PROGRESS_SECONDS", 0)
    told = []
    for stop in (500, 3000):

        def progress(done, total, stop=stop):
            told.append(done)
            assert total == 16 * 300
            if done >= stop:
                raise Stopped

        with pytest.raises(Stopped):
            learn(x, labels=labels, state=tmp_path, progress=progress)
        assert reached(tmp_path, semidiscrete.STATE) > 0
    assert told == sorted(told)
    newest = max(tmp_path.iterdir(), key=lambda path: int(path.name.split("-")[1]))
    newest.write_bytes(newest.read_bytes()[:-1])
    said = []
    np.testing.assert_array_equal(learn(x, labels=labels, state=tmp_path, log=said.append), whole)
    assert said == [f"{newest.name}: damaged"]


def test_unevenness_recovers_that_of_known_probabilities():
    odds = np.repeat([0.5, 1.5], 50)
    drawn = np.random.default_rng(0).choice(100, 200_000, p=odds / 100)
    assert semidiscrete.unevenness(drawn, 100) == pytest.approx(0.25, abs=0.01)
    even = np.random.default_rng(0).integers(0, 5000, 5000)
    assert abs(semidiscrete.unevenness(even, 5000)) < 4 * math.sqrt(2 / 5000)


# --- files ----------------------------------------------------------------------------------------


def test_rows_that_noises_take_read_back(tmp_path):
    path = tmp_path / "pairing.arrow"
    slots = {0: np.array([2, 0, 2], np.uint8), 5: np.array([1, 1, 1], np.uint8)}
    pairing.write_taken(path, slots, settings={"noises": 4}, key=KEY, data="d1")
    found = pairing.read_pairing(path, {"data": "d1", "key": KEY, "method": "semidiscrete"})
    rows, ids = found.pairs(np.array([0, 0, 5]), np.array([1, 2, 0]))
    assert rows.tolist() == [0, 2, 1] and ids.tolist() == [1, 2, 0]
    for taken in (np.array([0, 3, 1], np.uint8), np.array([0, 1, 2], np.int64)):
        with pytest.raises(ValueError, match="not the row of each noise"):
            pairing.write_taken(path, {0: taken}, settings={}, key=KEY, data="d1")


def test_a_potential_reads_back_and_others_are_refused(tmp_path):
    path = tmp_path / "potential.arrow"
    g = np.linspace(-1, 1, 5, dtype=np.float32)
    pairing.write_potential(path, g, "d1")
    np.testing.assert_array_equal(pairing.read_potential(path, "d1"), g)
    with pytest.raises(UserError, match="now data is d2"):
        pairing.read_potential(path, "d2")
    with pytest.raises(UserError, match="holds potential"):
        pairing.read_pairing(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"potential\.arrow"):
        pairing.read_potential(path, "d1")
