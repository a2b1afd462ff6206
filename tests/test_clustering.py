import itertools
import math

import numpy as np
import pytest
from scipy import special, stats

from pipeline.errors import UserError
from pipeline.levels import curriculum, optimal_denoiser, params, partition
from pipeline.levels.optimal_denoiser import Curves
from pipeline.levels.params import BoundsPartition, OptimalDenoiserPartition, UniformPartition
from pipeline.noise import philox
from tests.levels import states_of

KEY = philox.derive_key("test clustering")


def make_rows(count, dim, seed=0):
    """Rows with a falling spectrum, zero mean and unit average variance."""
    x = np.random.default_rng(seed).standard_normal((count, dim))
    x *= np.arange(1, dim + 1) ** -0.5
    x -= x.mean(axis=0)
    return (x / np.sqrt(x.var(axis=0).mean())).astype(np.float32)


def source(x):
    return lambda index: x[index]


def brute_mean(rows, x, log_snr):
    """Posterior mean by its definition: Gaussian likelihoods of all rows, float64."""
    alpha2, sigma2 = special.expit(log_snr), special.expit(-log_snr)
    y = rows.astype(np.float64)
    means = np.empty(x.shape)
    for n, (point, a2, s2) in enumerate(zip(x.astype(np.float64), alpha2, sigma2, strict=True)):
        distance = ((point - math.sqrt(a2) * y) ** 2).sum(axis=1)
        means[n] = special.softmax(-distance / (2 * s2)) @ y
    return means


def noisy(rows, levels, seed=1):
    rng = np.random.default_rng(seed)
    z = rows[rng.integers(len(rows), size=len(levels))]
    eps = rng.standard_normal(z.shape)
    alpha, sigma = np.sqrt(special.expit(levels)), np.sqrt(special.expit(-levels))
    return (alpha[:, None] * z + sigma[:, None] * eps).astype(np.float32)


DEFAULTS = OptimalDenoiserPartition(kind="optimal-denoiser")


def measure_curves(*args, **given):
    return optimal_denoiser.measure_curves(
        *args, **{"draws": 5000, "etas": (DEFAULTS.eta,)} | given
    )


def two_anchor_bounds(curves, alpha=DEFAULTS.alpha, eta=DEFAULTS.eta):
    return optimal_denoiser.two_anchor_bounds(curves, alpha, eta)


def curves_of(s0, s1, draws_per_state=1, log_snr=None):
    """Curves whose similarities are given per state."""
    states = np.repeat(np.arange(len(s0)), draws_per_state)
    log_snr = np.linspace(9.0, -9.0, len(s0)) if log_snr is None else log_snr
    s0, s1 = np.asarray(s0, dtype=float), np.asarray(s1, dtype=float)
    return Curves(log_snr, states, (DEFAULTS.eta,), s0[None, states], s1[None, states])


# --- the optimal denoiser -------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "dim"), [(1, 3), (2, 1), (40, 5), (300, 48), (150, 3072)])
def test_optimal_denoiser_equals_brute_force(count, dim):
    rows = make_rows(count, dim) if count > 1 else np.ones((1, dim), np.float32)
    levels = np.concatenate([np.linspace(12, -12, 49), [-np.inf]])
    x = noisy(rows, levels)
    found = optimal_denoiser.optimal_denoiser(source(rows), count, x, levels)
    np.testing.assert_allclose(found, brute_mean(rows, x, levels), rtol=0, atol=2e-5)


def test_optimal_denoiser_tells_near_duplicates_apart():
    """Where rows differ by less than float32 products can tell, weights are still right."""
    rng = np.random.default_rng(5)
    first = rng.standard_normal((1, 3072))
    rows = (first + 0.004 * rng.standard_normal((12, 3072))).astype(np.float32)
    levels = np.linspace(1, 9, 33)
    x = noisy(rows, levels)
    weights_matter = brute_mean(rows, x, levels)
    spread = np.abs(weights_matter - rows.mean(axis=0)).max(axis=1)
    assert spread.min() < 0.004 < 0.012 < spread.max()
    found = optimal_denoiser.optimal_denoiser(source(rows), len(rows), x, levels)
    np.testing.assert_allclose(found, weights_matter, rtol=0, atol=5e-6)


def test_optimal_denoiser_does_not_depend_on_blocks_or_order():
    rows = make_rows(120, 20)
    levels = np.linspace(8, -8, 30)
    x = noisy(rows, levels)
    found = optimal_denoiser.optimal_denoiser(source(rows), 120, x, levels)
    small = optimal_denoiser.optimal_denoiser(source(rows), 120, x, levels, memory=4000)
    assert optimal_denoiser._sizes(4000, 20, 1) == (2, 6)
    np.testing.assert_allclose(small, found, rtol=0, atol=1e-6)
    shuffled = rows[np.random.default_rng(2).permutation(120)]
    other = optimal_denoiser.optimal_denoiser(source(shuffled), 120, x, levels)
    np.testing.assert_allclose(other, found, rtol=0, atol=1e-6)
    again = optimal_denoiser.optimal_denoiser(source(rows), 120, x, levels)
    np.testing.assert_array_equal(again, found)


def test_optimal_denoiser_of_many_gaussian_rows_is_the_wiener_filter():
    rows = np.random.default_rng(3).standard_normal((40_000, 1)).astype(np.float32)
    x = np.linspace(-1.5, 1.5, 7, dtype=np.float32)[:, None]
    found = optimal_denoiser.optimal_denoiser(source(rows), len(rows), x, 0.0)
    np.testing.assert_allclose(found, math.sqrt(0.5) * x, atol=0.02)


# --- two anchors ----------------------------------------------------------------------------------


def test_curves_equal_brute_force():
    rows = make_rows(60, 24)
    log_snr = states_of("cosine", 200, zero_terminal=True)
    etas = (0.01, 0.1)
    curves = measure_curves(
        source(rows), 60, log_snr, key=KEY, draws=400, etas=etas, memory=100_000
    )
    number = np.arange(400)
    chosen = philox.randint(philox.derive_key(KEY, "clustering", "row"), 0, number, 60)
    eps = philox.normal(philox.derive_key(KEY, "clustering", "noise"), 0, number, (24,))
    levels = log_snr[curves.states]
    alpha, sigma = np.sqrt(special.expit(levels))[:, None], np.sqrt(special.expit(-levels))[:, None]
    x = alpha * rows[chosen] + sigma * eps
    estimate = (x - alpha * brute_mean(rows, x, levels)) / sigma
    at_noisy_end = (x - alpha * rows.mean(axis=0, dtype=np.float64)) / sigma
    for e, eta in enumerate(etas):
        for found, anchor in ((curves.s0, eps), (curves.s1, at_noisy_end)):
            expected = (np.abs(estimate - anchor) <= eta).mean(axis=1)
            # One coordinate in a row may lie on the threshold.
            assert np.abs(found[e] - expected).max() <= 1 / 24 + 1e-12
            assert np.mean(found[e] != expected) < 0.01
    assert 0.1 < curves.s0.mean() < 0.95 and 0.1 < curves.s1.mean() < 0.95


def test_curves_do_not_depend_on_memory_and_are_pure():
    rows = make_rows(50, 8)
    log_snr = states_of("log-snr", 20)
    made = [
        measure_curves(source(rows), 50, log_snr, key=key, draws=100, memory=memory)
        for key, memory in ((KEY, 1 << 29), (KEY, 3000), (KEY + 1, 1 << 29))
    ]
    np.testing.assert_allclose(made[1].s0, made[0].s0, atol=1e-12)
    np.testing.assert_allclose(made[1].s1, made[0].s1, atol=1e-12)
    assert (made[2].states != made[0].states).any()
    longer = measure_curves(source(rows), 50, log_snr, key=KEY, draws=150)
    np.testing.assert_array_equal(longer.s0[:, :100], made[0].s0)


def test_draws_cover_the_axis_evenly():
    curves = measure_curves(source(make_rows(4, 2)), 4, np.linspace(5, -5, 10), key=KEY, draws=1000)
    for part in (curves.states, curves.states[:100], curves.states[500:600]):
        assert np.abs(np.bincount(part, minlength=10) - len(part) / 10).max() <= 2


def test_bounds_of_given_curves():
    s0 = [1, 1, 1, 1, 0.5, 0, 0, 0, 0, 0]
    s1 = [0, 0, 0, 0, 0, 0, 0.5, 1, 1, 1]
    # Running means of s0 from the left: 1 1 1 1 .9 .75; of s1 from the right: 1 1 1 .875 .7
    for alpha, cuts in ((0.89, [5, 7]), (0.91, [4, 7]), (0.87, [5, 6]), (1.0, [4, 7])):
        found = two_anchor_bounds(curves_of(s0, s1, 3), alpha)
        assert found.first_states.tolist() == cuts
    assert two_anchor_bounds(curves_of(s0, s1)).log_snr.tolist() == [0.0, -4.0]


def test_clean_interval_ends_at_the_first_crossing():
    """S0 returns to 1 towards noise (its estimate tends to eps again), and the mean with it."""
    s0 = np.array([1.0] * 10 + [0.0] * 4 + [1.0] * 36)
    s1 = np.array([0.0] * 25 + [1.0] * 25)
    running = s0.cumsum() / np.arange(1, 51)
    literal = np.flatnonzero(running >= 0.8).max() + 1
    assert literal == 50
    found = two_anchor_bounds(curves_of(s0, s1), 0.8)
    assert found.first_states[0] == 12
    assert running[11] >= 0.8 > running[12]


def test_clean_end_of_real_curves_is_u_shaped():
    rows = make_rows(400, 64)
    log_snr = states_of("linear", 500)
    eta = 0.05
    curves = measure_curves(
        source(rows), 400, log_snr, key=KEY, draws=2000, etas=(eta,), memory=1 << 24
    )
    s0 = curves.binned(eta, 20)["s0"]
    assert s0[0] > 0.99 and s0.min() < 0.5 and s0[-1] > 0.9
    found = two_anchor_bounds(curves, 0.9, eta)
    at = found.first_states[0]
    assert curves.s0[0, curves.states < at].mean() >= 0.9
    assert curves.s0[0, curves.states <= at].mean() < 0.9


def test_unusable_choices_name_the_way_out():
    good, bad = [1.0, 1, 0, 0, 0, 0], [0.0, 0, 0, 0, 1, 1]
    with pytest.raises(UserError, match="cleanest end; lower alpha"):
        two_anchor_bounds(curves_of([0.5] * 6, bad))
    with pytest.raises(UserError, match="noisiest end; lower alpha"):
        two_anchor_bounds(curves_of(good, [0.5] * 6))
    with pytest.raises(UserError, match=r"no middle interval.*raise alpha"):
        two_anchor_bounds(curves_of([1.0] * 6, [1.0] * 6))
    with pytest.raises(ValueError, match="measured for eta"):
        two_anchor_bounds(curves_of(good, bad), eta=0.5)


def test_identical_rows_need_one_interval():
    rows = np.full((10, 4), 0.5, np.float32)
    curves = measure_curves(source(rows), 10, np.linspace(5, -5, 20), key=KEY, draws=50)
    assert curves.s0.min() == curves.s1.min() == 1
    with pytest.raises(UserError, match="no middle interval"):
        two_anchor_bounds(curves)


def test_sensitivity():
    rows = make_rows(200, 32)
    etas = (0.01, 0.02)
    curves = measure_curves(
        source(rows), 200, states_of("linear", 300), key=KEY, draws=1200, etas=etas
    )
    table = optimal_denoiser.sensitivity(curves, (0.8, 0.95), (300, 1200))
    assert len(table) == 8
    settings = [(r["eta"], r["alpha"], r["draws"], r["repeats"]) for r in table]
    assert settings[:2] == [(0.01, 0.8, 300, 4), (0.01, 0.8, 1200, 1)]
    by = {setting[:3]: row for setting, row in zip(settings, table, strict=True)}
    whole = two_anchor_bounds(curves, 0.8, 0.02)
    row = by[0.02, 0.8, 1200]
    np.testing.assert_allclose([row["log_snr_1"], row["log_snr_2"]], whole.log_snr)
    np.testing.assert_allclose([row["time_1"], row["time_2"]], whole.first_states / 300)
    assert row["std_1"] == 0 and by[0.02, 0.8, 300]["std_1"] > 0
    # A stricter alpha shrinks both outer intervals, a looser eta grows them.
    assert by[0.01, 0.95, 1200]["time_1"] < by[0.01, 0.8, 1200]["time_1"] < row["time_1"]
    assert by[0.01, 0.95, 1200]["time_2"] > by[0.01, 0.8, 1200]["time_2"] > row["time_2"]
    unusable = optimal_denoiser.sensitivity(curves_of([0.5] * 4, [1.0] * 4), (0.9,), (4,))[0]
    assert unusable["usable"] == 0 and unusable["time_1"] is None
    with pytest.raises(UserError, match="1201 draws"):
        optimal_denoiser.sensitivity(curves, (0.8,), (1201,))


# --- any number of intervals ----------------------------------------------------------------------


def test_similarity_matrix_equals_brute_force():
    rows = make_rows(40, 12)
    log_snr = np.append(np.linspace(7, -7, 20), -np.inf)
    eta = 0.1
    found = optimal_denoiser.similarity_matrix(
        source(rows), 40, log_snr, key=KEY, nodes=7, draws=30, eta=eta, memory=20_000
    )
    number = np.arange(30)
    chosen = philox.randint(philox.derive_key(KEY, "clustering", "matrix row"), 0, number, 40)
    eps = philox.normal(philox.derive_key(KEY, "clustering", "noise"), 0, number, (12,))
    estimates = []
    for level in log_snr[[1, 4, 7, 10, 13, 16, 19]]:
        alpha, sigma = math.sqrt(special.expit(level)), math.sqrt(special.expit(-level))
        x = alpha * rows[chosen] + sigma * eps
        estimates.append((x - alpha * brute_mean(rows, x, np.full(30, level))) / sigma)
    expected = [[np.mean(np.abs(a - b) <= eta) for b in estimates] for a in estimates]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2 / 360)
    np.testing.assert_array_equal(found, found.T)
    assert found.min() < 0.5


@pytest.mark.parametrize("intervals", [1, 2, 3, 4, 9])
def test_best_cuts_equal_exhaustive_search(intervals):
    n = 9
    for seed in range(10):
        a = np.random.default_rng(seed).random((n, n))
        a = (a + a.T) / 2
        scores = {}
        for cuts in itertools.combinations(range(1, n), intervals - 1):
            parts = [slice(i, j) for i, j in itertools.pairwise([0, *cuts, n])]
            scores[cuts] = sum(a[p, p].mean(axis=1).sum() for p in parts)
        found = partition.best_cuts(partition.affinity_values(a), intervals)
        assert tuple(found) == max(scores, key=scores.get)


def test_cuts_fall_where_nodes_differ():
    """Each node counts: no cut in the half that is all alike, though its pieces are means of 1."""
    change = np.maximum(0, np.arange(40) - 20) / 5.0
    affinity = np.exp(-np.abs(change[:, None] - change))
    for intervals in (2, 3, 4):
        cuts = partition.best_cuts(partition.affinity_values(affinity), intervals)
        assert cuts.min() > 20 and np.diff([*cuts, 40]).min() > 2


def test_affinity_bounds_find_blocks():
    affinity = np.full((10, 10), 0.1)
    for i, j in ((0, 3), (3, 8), (8, 10)):
        affinity[i:j, i:j] = 0.9
    found = partition.affinity_bounds(np.linspace(9, -10, 20), affinity, 3)
    assert found.first_states.tolist() == [6, 16]
    assert found.log_snr.tolist() == [3.5, -6.5]
    # 25 states in 10 parts: edges at multiples of 2.5, rounded up.
    assert partition.affinity_bounds(np.arange(25.0)[::-1], affinity, 3).first_states.tolist() == [
        8,
        20,
    ]
    reverse = partition.affinity_bounds(np.linspace(9, -10, 20), affinity[::-1, ::-1], 3)
    assert reverse.first_states.tolist() == [4, 14]


def test_interval_misuse_is_refused():
    log_snr = np.linspace(5, -5, 8)
    eye = np.eye(8)
    with pytest.raises(UserError, match="9 intervals for 8 nodes"):
        partition.affinity_bounds(log_snr, eye, 9)
    with pytest.raises(UserError, match="9 nodes for 8 states"):
        partition.affinity_bounds(log_snr, np.eye(9), 2)
    for matrix in (np.ones(3), np.ones((2, 3)), np.triu(np.ones((3, 3))), np.full((3, 3), np.nan)):
        with pytest.raises(ValueError, match="affinity"):
            partition.affinity_bounds(log_snr, matrix, 2)
    for bounds in (partition.uniform_bounds, partition.snr_bounds):
        with pytest.raises(UserError, match="9 intervals for 8 states"):
            bounds(log_snr, 9)
        with pytest.raises(ValueError, match="strictly descending"):
            bounds(log_snr[::-1], 2)


# --- controls, bounds and schedules ---------------------------------------------------------------


def test_snr_bounds_are_the_published_ones():
    """arXiv 2312.09181, table 4: SNR clustering of the continuous linear schedule, (.348, .709)."""
    found = partition.snr_bounds(states_of("linear", 1000), 3)
    np.testing.assert_allclose(found.first_states / 1000, [0.348, 0.709], atol=0.01)


def test_snr_bounds_equal_exhaustive_search():
    log_snr = np.sort(np.random.default_rng(0).normal(0, 4, 12))[::-1]

    def distance(i, j):
        return np.abs(log_snr[i:j] - log_snr[(i + j - 1) // 2]).sum()

    best = min(
        itertools.combinations(range(1, 12), 2),
        key=lambda cuts: sum(distance(i, j) for i, j in itertools.pairwise([0, *cuts, 12])),
    )
    assert tuple(partition.snr_bounds(log_snr, 3).first_states) == best
    assert tuple(partition.snr_bounds(np.append(log_snr, -np.inf), 3).first_states) == best


@pytest.mark.parametrize("zero_terminal", [False, True])
@pytest.mark.parametrize("intervals", [1, 2, 3, 10])
def test_bounds_cut_a_partition_where_they_say(intervals, zero_terminal):
    log_snr = states_of("cosine", 10, zero_terminal=zero_terminal)
    axis = partition.axis_of(log_snr, False)
    intervals = min(intervals, len(axis))
    found = partition.uniform_bounds(axis, intervals)
    wanted = UniformPartition(kind="uniform", intervals=intervals)
    owned = partition.owned(partition.bounds(wanted, axis, dict, dict), axis)
    assert [first for first, _ in owned[1:]] == found.first_states.tolist()
    assert np.isfinite(found.log_snr).all() and (np.diff(found.log_snr) < 0).all()
    if intervals > 1:
        given = BoundsPartition(kind="bounds", log_snr=found.log_snr.tolist())
        assert partition.owned(partition.bounds(given, axis, dict, dict), axis) == owned


def test_degenerate_measurements_are_refused():
    rows = make_rows(6, 3)
    log_snr = np.linspace(5, -5, 8)

    def measure(x=rows, count=6, states=log_snr, **settings):
        return measure_curves(source(x), count, states, key=KEY, **settings)

    broken = rows.copy()
    broken[4, 1] = np.nan
    with pytest.raises(UserError, match="not finite"):
        measure(broken, draws=2)
    with pytest.raises(UserError, match="not finite"):
        optimal_denoiser.optimal_denoiser(source(broken), 6, rows[:2], 0.0)
    with pytest.raises(UserError, match="empty"):
        measure(count=0)
    for states in ([], [1.0, 1.0], [0.0, 1.0], [np.inf, 0.0], [np.nan], [-np.inf, -np.inf]):
        with pytest.raises(ValueError, match="schedule"):
            measure(states=states)
    with pytest.raises(UserError, match="9 nodes for 8"):
        optimal_denoiser.similarity_matrix(
            source(rows), 6, log_snr, key=KEY, nodes=9, draws=2, eta=0.1
        )
    with pytest.raises(ValueError, match="expected 4"):
        optimal_denoiser.optimal_denoiser(source(rows), 6, np.zeros((1, 4)), 0.0)


# --- equal shares of what a curriculum draws ------------------------------------------------------
def shares_between(bounds, axis, mass):
    edges = [0, *(int((axis >= bound).sum()) for bound in bounds), len(axis)]
    return [float(mass[a:b].sum()) for a, b in itertools.pairwise(edges)]


def test_equal_mass_cuts_a_normal_density_at_its_quantiles():
    block = params.EdmLognormal(kind="edm-lognormal")
    ends = np.array([12.0, -12.0])
    drawn = curriculum.build(block, ends, continuous=True)
    axis = partition.axis_of(ends, continuous=True)
    mass = partition.mass_on(axis, drawn)
    assert mass.sum() == pytest.approx(1, abs=1e-12)
    cut = params.EqualMassPartition(kind="equal-mass", intervals=4)
    found = partition.bounds(cut, axis, dict, lambda: mass)
    law = stats.norm(-2 * (-1.2 - math.log(0.5)), 2 * 1.2)
    a, b = law.cdf(ends[::-1])
    wanted = law.ppf([b - (b - a) * part / 4 for part in (1, 2, 3)])
    np.testing.assert_allclose(found, wanted, atol=24 / 999)


def test_equal_mass_of_states_is_by_what_is_drawn_over_the_run():
    states = np.linspace(6, -6, 40)
    block = params.Clts(kind="clts", mu=0.2, sigma=0.1)
    drawn = curriculum.build(block, states, continuous=False)
    mass = partition.mass_on(states, drawn)
    np.testing.assert_allclose(mass, drawn.average())
    cut = params.EqualMassPartition(kind="equal-mass", intervals=5)
    found = partition.bounds(cut, states, dict, lambda: mass)
    shares = shares_between(found, states, mass)
    assert max(shares) - min(shares) < 2 * mass.max()
    assert (
        found[0] > partition.uniform_bounds(states, 5).log_snr[0]
    )  # more of them, so narrower, are clean
    even = partition.bounds(cut, states, dict, lambda: np.full(40, 1 / 40))
    np.testing.assert_allclose(even, partition.uniform_bounds(states, 5).log_snr)


def test_more_intervals_than_states_with_mass_are_told():
    cut = params.EqualMassPartition(kind="equal-mass", intervals=3)
    with pytest.raises(ValueError, match="3 intervals of equal mass do not fit 4 states"):
        partition.bounds(cut, np.arange(4.0)[::-1], dict, lambda: np.array([1.0, 0, 0, 0]))
