import itertools
import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy import integrate, stats

from pipeline.errors import UserError
from pipeline.noise import assignment, diagnostics, pairing, philox

KEY = philox.derive_key("test pairing")


def make_rows(count, dim, seed=0, power=1.0):
    """Rows of unit average variance whose variance falls with a power of the component."""
    variances = np.arange(1, dim + 1) ** -power
    variances *= dim / variances.sum()
    drawn = np.random.default_rng(seed).standard_normal((count, dim))
    return (drawn * np.sqrt(variances)).astype(np.float32)


def source(x):
    return lambda rows: x[rows]


def noises(x, paired, method="assignment", slot=0, candidates=8):
    ids = assignment.noise_ids(method, paired, np.arange(len(x)), candidates)
    return philox.normal(KEY, slot, ids, x.shape[1:])


def alignment(x, paired, slot=0):
    return float(np.einsum("nd,nd->", x, noises(x, paired, slot=slot), dtype=np.float64)) / len(x)


def pair(x, method="assignment", **settings):
    own = {"block": 256, "sweeps": 16} if method == "assignment" else {"candidates": 8}
    return assignment.pair_slot(
        method, source(x), len(x), **{"key": KEY, "slot": 0} | own | settings
    )


def paired_noise(*args, **given):
    return pairing.paired_noise(*args, **{"refresh": 0.0, "basis": None, "scale": 1.0} | given)


# --- assignment -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_solve_equals_brute_force(n):
    for seed in range(20):
        cost = np.random.default_rng(seed).integers(-50, 50, (n, n), dtype=np.int32)
        before = cost.copy()
        here = np.arange(n)
        best = min(cost[here, list(p)].sum() for p in itertools.permutations(range(n)))
        assert cost[here, assignment.solve(cost)].sum() == best
        np.testing.assert_array_equal(cost, before)


@pytest.mark.parametrize("slot", range(6))
def test_one_block_is_the_exact_assignment(slot):
    x = make_rows(6, 48)
    paired = pair(x, slot=slot, block=6, cost_bits=32)
    eps = philox.normal(KEY, slot, np.arange(6), (48,)).astype(np.float64)
    distances = ((x[:, None] - eps) ** 2).sum(axis=2)
    best = min(itertools.permutations(range(6)), key=lambda p: distances[range(6), p].sum())
    assert list(paired) == list(best)


def test_eight_bits_cost_little():
    x = make_rows(400, 300)
    exact, coarse = (alignment(x, pair(x, block=400, cost_bits=bits)) for bits in (32, 8))
    assert 0.995 * exact < coarse <= exact * 1.0001


def test_integer_products_are_exact():
    x = make_rows(64, 500)
    x[0] *= 100
    x[1] = 1e6
    for components in (None, assignment.principal_components(source(x), 64, 20, key=1)):
        at = assignment.Coordinates(source(x), np.arange(64), KEY, 0, components, 0, None)
        rows, drawn = at.rows(np.arange(64)), at.noises(np.arange(64))
        product = rows @ drawn.T
        assert np.abs(rows).astype(np.int64).max() < 2**15
        np.testing.assert_array_equal(product, rows.astype(np.int64) @ drawn.astype(np.int64).T)
        # Any partial sum is bounded, even with the worst signs.
        norms = [np.sqrt((v.astype(np.float64) ** 2).sum(1).max()) for v in (rows, drawn)]
        assert norms[0] * norms[1] < 2**24


def test_sweeps_lower_the_cost_towards_the_exact_assignment():
    x = make_rows(600, 200)
    reached = [alignment(x, pair(x, block=50, sweeps=s, cost_bits=32)) for s in range(1, 9)]
    exact = alignment(x, pair(x, block=600, cost_bits=32))
    assert all(b >= a for a, b in itertools.pairwise(reached))
    assert reached[0] < 0.85 * exact
    assert exact >= reached[-1] > reached[0] + 0.6 * (exact - reached[0])


def test_assignment_is_a_permutation_in_the_smallest_type():
    for count, kind in [(200, np.uint8), (257, np.uint16)]:
        x = make_rows(count, 16)
        paired = pair(x, block=32, sweeps=3)
        assert paired.dtype == kind
        assert sorted(paired) == list(range(count))
        assert not np.array_equal(paired, pair(x, block=32, sweeps=3, slot=1))
    assert np.array_equal(pair(x, "independent"), np.arange(count))


def test_memory_and_workers_do_not_change_the_answer(monkeypatch):
    x = make_rows(300, 120)
    components = assignment.principal_components(source(x), 300, 30, key=1)
    for chosen in (None, components):
        for method in ("assignment", "knn-l2"):
            settings = {"block": 40, "sweeps": 4, "components": chosen}
            expected = pair(x, method, **settings)
            for change in ({"memory": 0}, {"workers": 3}, {"memory": 0, "workers": 3}):
                np.testing.assert_array_equal(pair(x, method, **settings | change), expected)
            monkeypatch.setattr(assignment, "_CHUNK_BYTES", 5000)
            np.testing.assert_array_equal(pair(x, method, **settings), expected)
            monkeypatch.undo()


def test_rows_are_read_in_bounded_parts():
    x = make_rows(1000, 64)
    largest = 0

    def rows(index):
        nonlocal largest
        largest = max(largest, len(index))
        return x[index]

    assignment.pair_slot(
        "assignment", rows, 1000, key=KEY, slot=0, block=50, sweeps=1, memory=1000 * 64
    )
    assert largest == 50


def test_classes_keep_their_own_noises_and_do_not_leak():
    labels = np.random.default_rng(1).integers(0, 4, 2000)
    x = make_rows(2000, 40)
    x[:, :4] += 3 * np.eye(4, dtype=np.float32)[labels]
    within = pair(x, labels=labels, block=128, sweeps=2)
    across = pair(x, block=128, sweeps=2)
    assert sorted(within) == list(range(2000))
    np.testing.assert_array_equal(labels[within], labels)
    leaks = [
        diagnostics.diagnose(x, noises(x, paired), labels=labels) for paired in (within, across)
    ]
    chance = leaks[0]["class_chance"]
    assert chance == np.bincount(labels).max() / 2000
    assert abs(leaks[0]["class_leak"] - chance) < 4 * math.sqrt(0.25 * 0.75 / 1000)
    assert leaks[1]["class_leak"] > chance + 0.1
    with pytest.raises(ValueError):
        pair(x, labels=labels[:-1])


def test_components_alone_decide():
    x = make_rows(200, 60)
    axes = assignment.Components(np.eye(60, dtype=np.float32)[[3, 8]], np.ones(2))
    other = np.random.default_rng(5).standard_normal(x.shape).astype(np.float32)
    other[:, [3, 8]] = x[:, [3, 8]]
    paired = pair(x, components=axes, block=200, cost_bits=32)
    np.testing.assert_array_equal(pair(other, components=axes, block=200, cost_bits=32), paired)
    eps = noises(x, paired)
    all_dimensions = noises(x, pair(x, block=200, cost_bits=32))
    for c in (3, 8):
        assert np.corrcoef(x[:, c], eps[:, c])[0, 1] > 0.9
        assert np.corrcoef(x[:, c], all_dimensions[:, c])[0, 1] < 0.8


def test_principal_components_equal_an_eigendecomposition():
    x = make_rows(3000, 50, power=1.5) @ np.linalg.qr(
        np.random.default_rng(2).standard_normal((50, 50))
    )[0].astype(np.float32)
    found = assignment.principal_components(source(x), 3000, 6, key=3)
    values, vectors = np.linalg.eigh(np.cov(x.T.astype(np.float64), bias=True))
    np.testing.assert_allclose(found.variances, values[:-7:-1], rtol=1e-4)
    np.testing.assert_allclose(np.abs(found.basis @ vectors[:, :-7:-1]), np.eye(6), atol=5e-3)
    np.testing.assert_allclose(found.basis @ found.basis.T, np.eye(6), atol=1e-5)
    sampled = assignment.principal_components(source(x), 3000, 2, key=3, sample=1000)
    assert np.abs(np.sum(sampled.basis * found.basis[:2], axis=1)).min() > 0.97
    with pytest.raises(UserError, match="components: 51"):
        assignment.principal_components(source(x), 3000, 51, key=3)


# --- nearest neighbours ---------------------------------------------------------------------------


def test_knn_picks_the_nearest_candidate():
    x = make_rows(300, 256)
    candidates = philox.normal(KEY, 0, np.arange(300 * 5), (256,)).reshape(300, 5, 256)
    distances = ((x[:, None] - candidates) ** 2).sum(axis=2)
    products = (x[:, None] * candidates).sum(axis=2)
    for method, oracle in [
        ("knn-l2", distances.argmin(axis=1)),
        ("knn-dot", products.argmax(axis=1)),
    ]:
        paired = pair(x, method, candidates=5)
        assert paired.dtype == np.uint8
        # Rounding decides between candidates that are nearly alike.
        assert (paired == oracle).mean() > 0.97
        eps = noises(x, paired, method, candidates=5)
        np.testing.assert_array_equal(eps, candidates[np.arange(300), paired])


def rows_around_a_mean(count, dim, share):
    """Rows of one norm whose mean image has this share of their square, and that mean."""
    rng = np.random.default_rng(3)
    mean = rng.standard_normal(dim)
    mean *= math.sqrt(share * dim) / np.linalg.norm(mean)
    apart = rng.standard_normal((count, dim))
    apart -= (apart @ mean)[:, None] * mean / (mean @ mean)
    apart *= math.sqrt((1 - share) * dim) / np.linalg.norm(apart, axis=1, keepdims=True)
    return (mean + apart).astype(np.float32), mean.astype(np.float32)


@pytest.mark.parametrize("method", ["knn-l2", "knn-dot"])
def test_centred_rows_leave_the_noise_at_zero_and_others_pull_it_to_the_mean_image(method):
    count, dim, share = 4000, 128, 0.33  # as the mean image of Fashion-MNIST's latents
    x, mean = rows_around_a_mean(count, dim, share)
    plain = noises(x, pair(x, method), method)
    found = diagnostics.diagnose(x, plain, mean=mean)
    expected = diagnostics.knn_bias(8, dim, dim, share * dim)["noise_mean"]
    if method == "knn-dot":
        expected = diagnostics.expected_maximum(8) * math.sqrt(share)
    assert found["noise_mean"] == pytest.approx(expected, rel=0.06)
    assert expected > 0.6
    assert found["mean_share"] == pytest.approx(share, rel=0.02)
    rows = assignment.centred(source(x), mean[None])
    chosen = assignment.pair_slot(method, rows, count, key=KEY, slot=0, candidates=8)
    found = diagnostics.diagnose(x, noises(x, chosen, method), mean=mean)
    assert abs(found["noise_mean"]) < 4 * found["noise_mean_error"]
    assert found["noise_mean_error"] == pytest.approx(1 / math.sqrt(count))


def test_rows_are_centred_around_their_class():
    """The noise of each class then has mean 0, which the mean of all rows would not give."""
    count, dim = 4000, 64
    labels = np.arange(count) % 2
    away = np.full(dim, 0.6, np.float32) * np.where(labels, 1, -1)[:, None].astype(np.float32)
    x = make_rows(count, dim) + away
    means = np.stack([x.mean(0), x[labels == 0].mean(0), x[labels == 1].mean(0)])
    along = {}
    for name, given in (("all", None), ("class", labels)):
        rows = assignment.centred(source(x), means, given)
        chosen = assignment.pair_slot("knn-dot", rows, count, key=KEY, slot=0, candidates=8)
        eps = noises(x, chosen, "knn-dot")
        along[name] = diagnostics.diagnose(x, eps, mean=means[1 + labels])["noise_mean"]
    assert along["all"] > 0.5
    assert abs(along["class"]) < 4 / math.sqrt(count)


def test_expected_maximum():
    # Closed forms for 2 to 4, quadrature beyond.
    closed = {1: 0, 2: 1 / math.sqrt(math.pi), 3: 1.5 / math.sqrt(math.pi), 4: 1.0293753730}
    for k, value in closed.items():
        assert abs(diagnostics.expected_maximum(k) - value) < 1e-6
    for k in (8, 64):
        value, _ = integrate.quad(
            lambda z, k=k: z * k * stats.norm.pdf(z) * stats.norm.cdf(z) ** (k - 1), -10, 10
        )
        assert abs(diagnostics.expected_maximum(k) - value) < 1e-6


@pytest.mark.parametrize("k", [4, 16])
def test_knn_l2_is_biased_as_the_closed_form_says(k):
    dim, count = 512, 2000
    x = np.random.default_rng(0).standard_normal((count, dim))
    x = (x * math.sqrt(0.25 * dim) / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    expected = diagnostics.knn_bias(k, dim, 0.25 * dim)
    eps = noises(x, pair(x, "knn-l2", candidates=k), "knn-l2", candidates=k)
    found = diagnostics.diagnose(x, eps)
    np.testing.assert_allclose(
        1 - found["noise_std"] ** 2, 1 - expected["noise_std"] ** 2, rtol=0.06
    )
    inner = found["alignment_percent"] / 200 * 1.25 * dim
    np.testing.assert_allclose(inner, expected["alignment"], rtol=0.06)
    np.testing.assert_allclose(1.25 * dim - found["cost"], expected["distance_drop"], rtol=0.06)
    # Without the noise's norm in the score, all selection goes into alignment.
    eps = noises(x, pair(x, "knn-dot", candidates=k), "knn-dot", candidates=k)
    found = diagnostics.diagnose(x, eps)
    # Only that one direction has another variance, the second moment of the largest of k.
    second_moment, _ = integrate.quad(
        lambda z: z**2 * k * stats.norm.pdf(z) * stats.norm.cdf(z) ** (k - 1), -10, 10
    )
    square = 1 + (second_moment - 1) / dim
    assert abs(found["noise_std"] ** 2 - square) < 4 * math.sqrt(2 / (count * dim))
    inner = found["alignment_percent"] / 200 * 1.25 * dim
    norm = math.sqrt(0.25 * dim)
    np.testing.assert_allclose(inner, diagnostics.expected_maximum(k) * norm, rtol=0.06)


# --- noise at training time -----------------------------------------------------------------------


def test_paired_noise_without_options_is_the_noise():
    ids = np.array([5, 2, 9])
    eps = paired_noise(KEY, 3, np.arange(3), ids, (2, 4))
    np.testing.assert_array_equal(eps, philox.normal(KEY, 3, ids, (2, 4)))
    half = paired_noise(KEY, 3, np.arange(3), ids, (2, 4), scale=0.5)
    np.testing.assert_array_equal(half, eps * np.float32(0.5))


@pytest.mark.parametrize("refresh", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kept", [0, 5])
def test_refresh_and_keep_leave_the_noise_standard_normal(refresh, kept):
    dim, count = 20, 20_000
    rows = np.arange(count)
    ids = philox.permutation(1, 0, count)
    basis = None
    inside = outside = np.eye(dim)
    if kept:
        full = np.linalg.qr(np.random.default_rng(0).standard_normal((dim, dim)))[0]
        basis = full[:kept].astype(np.float32)
        inside, outside = full[:kept], full[kept:]
    stored = philox.normal(KEY, 4, ids, (dim,))
    eps = paired_noise(KEY, 4, rows, ids, (dim,), refresh=refresh, basis=basis)
    assert eps.dtype == np.float32
    assert np.abs(eps.mean(axis=0)).max() < 4.5 / math.sqrt(count)
    covariance = np.cov(eps.T)
    assert np.abs(covariance - np.eye(dim)).max() < 6 / math.sqrt(count)
    assert stats.kstest(eps.ravel()[::2], "norm").pvalue > 1e-3
    correlation = ((eps @ inside.T) * (stored @ inside.T)).mean()
    assert abs(correlation - math.sqrt(1 - refresh)) < 0.01
    if kept:
        assert abs(((eps @ outside.T) * (stored @ outside.T)).mean()) < 0.01
    # The fresh part is a function of the row.
    again = paired_noise(KEY, 4, rows[7:9], ids[7:9], (dim,), refresh=refresh, basis=basis)
    np.testing.assert_allclose(again, eps[7:9], atol=1e-6)


def test_paired_noise_on_torch():
    rows, ids = torch.arange(6), torch.tensor([3, 1, 4, 0, 5, 2])
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((24, 3)))[0].T.astype(np.float32)
    basis = np.ascontiguousarray(basis)
    of_torch = paired_noise(
        KEY, 1, rows, ids, (2, 3, 4), refresh=0.2, basis=torch.from_numpy(basis)
    )
    of_numpy = paired_noise(KEY, 1, rows.numpy(), ids.numpy(), (2, 3, 4), refresh=0.2, basis=basis)
    np.testing.assert_allclose(of_torch.numpy(), of_numpy, atol=1e-5)


# --- diagnostics ----------------------------------------------------------------------------------


def test_the_leak_is_seen_where_classes_come_in_turns():
    labels = np.tile([0, 1], 1000)
    eps = philox.normal(KEY, 0, np.arange(2000), (20,))
    eps[:, 0] += 2 * labels  # every other row is one class
    assert diagnostics.diagnose(eps, eps, labels=labels)["class_leak"] > 0.8


def test_a_slot_is_diagnosed_on_rows_of_every_class(monkeypatch):
    monkeypatch.setattr(diagnostics, "DIAGNOSED_ROWS", 100)
    labels, x = np.repeat(range(4), 250), make_rows(1000, 12)
    asked = []

    def rows(indices):
        asked.append(indices)
        return x[indices]

    found = diagnostics.diagnose_slot(
        "assignment",
        rows,
        np.arange(1000),
        (12,),
        key=KEY,
        slot=0,
        means=x.mean(axis=0, keepdims=True),
        labels=labels,
    )
    assert np.bincount(labels[asked[0]]).tolist() == [25, 25, 25, 25]
    assert found["class_chance"] == 0.25 and len(found["component_variance"]) == 4


def test_diagnose_independent_and_dependent_noise():
    x = make_rows(4000, 30)
    eps = philox.normal(KEY, 0, np.arange(4000), (30,))
    components = assignment.principal_components(source(x), 4000, 10, key=1)
    found = diagnostics.diagnose(x, eps, components)
    expected = ((x.astype(np.float64) - eps) ** 2).sum(axis=1).mean()
    np.testing.assert_allclose(found["cost"], expected, rtol=1e-6)
    assert abs(found["distance_cut_percent"]) < 1
    np.testing.assert_allclose(found["component_variance"], np.ones(4), atol=0.1)
    np.testing.assert_allclose(found["component_mean"], np.zeros(4), atol=0.07)
    np.testing.assert_allclose(found["component_correlation"], np.zeros(4), atol=0.07)
    mixed = (0.6 * x + 0.8 * eps).astype(np.float32)
    found = diagnostics.diagnose(x, mixed, components)
    square = (x.astype(np.float64) ** 2).sum(axis=1).mean()
    np.testing.assert_allclose(
        found["alignment_percent"], 200 * 0.6 * square / (square + 30), rtol=0.05
    )
    variance = 0.36 * components.variances[:4] + 0.64
    np.testing.assert_allclose(found["component_variance"], variance, rtol=0.1)
    correlation = 0.6 * np.sqrt(components.variances[:4] / variance)
    np.testing.assert_allclose(found["component_correlation"], correlation, atol=0.03)


def test_determinism_recovers_the_determined_share():
    random = np.random.default_rng(0)
    eps = random.standard_normal((5000, 20))
    ids = random.permutation(5000)
    # x = 2 eps + 1 * other + mean: the noise determines 4 / 5 of the variance.
    x_a = 2 * eps + random.standard_normal(eps.shape) + 7
    x_b = 2 * eps[ids] + random.standard_normal(eps.shape) + 7
    assert abs(diagnostics.determinism(np.arange(5000), x_a, ids, x_b) - 0.8) < 0.02
    assert abs(diagnostics.determinism(np.arange(5000), x_a, np.roll(ids, 1), x_b)) < 0.02
    with pytest.raises(ValueError):
        diagnostics.determinism(np.arange(5), x_a[:5], np.arange(5) + 10, x_b[:5])


def test_determinism_rises_with_sweeps():
    x_a, x_b = make_rows(1000, 100, seed=1), make_rows(1000, 100, seed=2)
    found = []
    for sweeps in (1, 8):
        ids = [pair(x, block=40, sweeps=sweeps).astype(np.int64) for x in (x_a, x_b)]
        found.append(diagnostics.determinism(ids[0], x_a, ids[1], x_b))
    assert 0.05 < found[0] < found[1] - 0.05


# --- files ----------------------------------------------------------------------------------------

HEADER = {
    "method": "assignment",
    "settings": {"block": 64, "sweeps": 2},
    "key": KEY,
    "data": "d1",
    "statistics": {"0": {"cost": 1.5}},
}


@pytest.fixture
def stored(tmp_path):
    x = make_rows(300, 16)
    slots = {slot: pair(x, slot=slot, block=64, sweeps=2) for slot in (0, 3)}
    path = tmp_path / "pairing.arrow"
    pairing.write_pairing(path, slots, **HEADER)
    return path, slots


def test_stored_pairing_reads_back(stored):
    path, slots = stored
    expect = {"data": "d1", "key": KEY, "method": "assignment", "count": 300}
    found = pairing.read_pairing(path, expect | {"settings": {"sweeps": 2, "block": 64}})
    assert list(found.slots) == [0, 3]
    for slot, paired in slots.items():
        assert found.slots[slot].dtype == np.uint16
        np.testing.assert_array_equal(found.slots[slot], paired)
        rows = np.array([4, 299, 4])
        ids = found.pairs(slot, rows)[1]
        assert ids.dtype == np.int64
        np.testing.assert_array_equal(ids, paired[rows])
    mixed = found.pairs(np.array([0, 3, 3]), rows)[1]
    np.testing.assert_array_equal(mixed, [slots[0][4], slots[3][299], slots[3][4]])
    assert {name: getattr(found, name) for name in HEADER} == HEADER
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_stored_choices_read_back(tmp_path):
    path = tmp_path / "knn.arrow"
    paired = np.array([2, 0, 1], np.uint8)
    header = HEADER | {"method": "knn-dot", "settings": {"candidates": 3}}
    pairing.write_pairing(path, {7: paired}, **header)
    ids = pairing.read_pairing(path).pairs(7, np.array([0, 2]))[1]
    np.testing.assert_array_equal(ids, [2, 7])


def test_two_bytes_a_row(tmp_path):
    count = 65_536
    path = tmp_path / "large.arrow"
    slots = {s: philox.permutation(s, 0, count).astype(np.uint16) for s in range(4)}
    pairing.write_pairing(path, slots, **HEADER)
    assert path.stat().st_size < 4 * 2 * count + 4096


def test_other_files_are_refused(stored, tmp_path, monkeypatch):
    path, _ = stored

    def refused(file, match, **expect):
        with pytest.raises(UserError, match=match) as caught:
            pairing.read_pairing(file, expect)
        assert str(file) in str(caught.value) and "\n" not in str(caught.value)

    refused(tmp_path / "none.arrow", "missing")
    text = tmp_path / "text.arrow"
    text.write_text("no arrow at all\n")
    refused(text, "not a readable Arrow file")
    table = tmp_path / "table.arrow"
    batch = pa.record_batch([pa.array([1, 2])], names=["noise"])
    with pa.ipc.new_file(table, batch.schema) as writer:
        writer.write_batch(batch)
    refused(table, "no pairing of tspace")
    components = tmp_path / "components.arrow"
    pairing.write_components(
        components, assignment.Components(np.eye(2, 4, dtype=np.float32), np.ones(2)), "d1"
    )
    refused(components, "holds components")
    refused(path, "data d1, now data is d2", data="d2")
    refused(path, "now key is 1", key=1)
    refused(path, "now count is 9", count=9)
    refused(path, "settings", settings={"block": 64, "sweeps": 3})
    refused(path, "method", method="knn-dot")
    monkeypatch.setattr(philox, "RNG", "another/2")
    refused(path, "another/2")


def test_damaged_files_are_refused(stored, tmp_path):
    path, slots = stored
    content = path.read_bytes()
    refusals = 0
    for position in range(0, len(content), 13):
        damaged = tmp_path / "damaged.arrow"
        damaged.write_bytes(
            content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :]
        )
        try:
            found = pairing.read_pairing(damaged)
        except UserError:
            refusals += 1
            continue
        # Only padding, or Arrow's own bookkeeping, can change unnoticed.
        for slot, paired in slots.items():
            np.testing.assert_array_equal(found.slots[slot], paired)
    assert refusals > 0.7 * len(content) / 13
    damaged.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="damaged"):
        pairing.read_pairing(damaged)


def test_a_pairing_must_be_one(tmp_path):
    path = tmp_path / "bad.arrow"
    for paired, change in [
        (np.array([0, 1, 1], np.uint8), {}),
        (np.array([0, 2, 1], np.int64), {}),
        (np.array([0, 3, 1], np.uint8), {"method": "knn-l2", "settings": {"candidates": 3}}),
        (np.array([0, 1, 2], np.uint8), {"method": "independent"}),
    ]:
        with pytest.raises(ValueError):
            pairing.write_pairing(path, {0: paired}, **HEADER | change)
    assert not path.exists()


def test_components_read_back(tmp_path):
    path = tmp_path / "components.arrow"
    x = make_rows(200, 12)
    components = assignment.principal_components(source(x), 200, 4, key=1)
    pairing.write_components(path, components, "d1")
    found = pairing.read_components(path, "d1")
    np.testing.assert_array_equal(found.basis, components.basis)
    np.testing.assert_array_equal(found.variances, components.variances)
    with pytest.raises(UserError, match="now data is d2"):
        pairing.read_components(path, "d2")
