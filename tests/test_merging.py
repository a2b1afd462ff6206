import itertools
import math

import numpy as np
import pytest
import torch
from scipy import optimize

from pipeline.errors import UserError
from pipeline.merging.merge import agreement, average, combine_snapshots, task_vector, ties
from pipeline.merging.search import (
    SEPARATION,
    Quadratic,
    candidates,
    design_points,
    fit_quadratic,
    grid_search,
    minimise,
    normalised_loss,
    random_search,
    search,
)
from pipeline.noise import philox

SHAPES = {
    "down.1.conv.weight": (4, 3, 3, 3),
    "down.1.conv.bias": (4,),
    "down.10.conv.weight": (5, 4),
    "up.gain": (),
}


def random_weights(seed, spread=1.0):
    rng = np.random.default_rng(seed)
    return {
        name: torch.tensor(spread * rng.standard_normal(shape), dtype=torch.float32)
        for name, shape in SHAPES.items()
    }


def family(count, spread=0.1):
    """A parent, and experts near it."""
    parent = random_weights(0)
    moves = [random_weights(i + 1, spread) for i in range(count)]
    return parent, [{name: parent[name] + move[name] for name in parent} for move in moves]


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert list(found) == list(expected)


# --- merging --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_average_and_task_vectors_are_what_they_say(count):
    parent, experts = family(count)
    mean = average(parent, experts)
    weights = np.random.default_rng(count).uniform(-1, 2, count)
    merged = task_vector(parent, experts, weights=list(weights))
    for name, start in parent.items():
        stack = np.stack([e[name].double().numpy() for e in experts])
        assert mean[name].dtype == merged[name].dtype == torch.float32
        np.testing.assert_array_equal(mean[name], stack.mean(axis=0).astype(np.float32))
        origin = start.double().numpy()
        expected = origin + np.tensordot(weights, stack - origin, 1)
        np.testing.assert_allclose(merged[name], expected, rtol=1e-7, atol=1e-12)
    # Weights of 1 / N are the average; nothing of the parent is left.
    assert_same(task_vector(parent, experts, weights=[1 / count] * count), mean)


def test_a_unit_weight_gives_that_expert_and_no_weight_the_parent():
    parent, experts = family(3)
    parent["up.gain"] = torch.tensor(1e20)  # no trace of it may be left
    for i, expert in enumerate(experts):
        weights = [float(i == j) for j in range(3)]
        assert_same(task_vector(parent, experts, weights=weights), expert)
    assert_same(task_vector(parent, experts, weights=[0, 0, 0]), parent)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (average, {}),
        (task_vector, {"weights": [0.1, 0.2, 0.7]}),
        (ties, {"density": 1.0, "scale": 1.0}),
    ],
)
def test_equal_experts_are_left_as_they_are(method, options):
    parent, (expert,) = family(1)
    assert_same(method(parent, [expert] * 3, **options), expert)
    assert_same(method(parent, [parent] * 3, **options), parent)


def test_equal_experts_are_trimmed_by_ties():
    parent, (expert,) = family(1)
    merged = ties(parent, [expert] * 3, density=0.3, scale=1.0)
    size = sum(w.numel() for w in parent.values())
    moved = sum(int((merged[name] != parent[name]).sum()) for name in parent)
    assert moved == round(0.3 * size)
    assert all(((merged[k] == expert[k]) | (merged[k] == parent[k])).all() for k in parent)


def test_weights_for_each_layer():
    parent, experts = family(2)
    of = {"": [0.5, 0.25], "down": [1, 0], "down.1": [0, 1], "down.1.conv.bias": [2, -1]}
    merged = task_vector(parent, experts, weights=of)
    for name, key in {
        "down.1.conv.weight": "down.1",
        "down.1.conv.bias": "down.1.conv.bias",
        "down.10.conv.weight": "down",  # "down.1" is no part of this name
        "up.gain": "",
    }.items():
        alone = task_vector(parent, experts, weights=of[key])
        assert torch.equal(merged[name], alone[name]), name


def loop_ties(parent, experts, density, scale):
    """TIES (section 3 of the paper), coordinate by coordinate in Python floats."""
    origin, *others = (
        [x for w in weights.values() for x in w.double().flatten().tolist()]
        for weights in (parent, *experts)
    )
    kept = []
    for other in others:
        task = [b - a for a, b in zip(origin, other, strict=True)]
        keep = max(1, round(density * len(task)))
        smallest = sorted((abs(t) for t in task), reverse=True)[keep - 1]
        kept.append([t if abs(t) >= smallest else 0.0 for t in task])
    merged = []
    for a, *tasks in zip(origin, *kept, strict=True):
        mass = 0.0
        for t in tasks:
            mass += t
        agreeing = [t for t in tasks if t * mass > 0]
        total = 0.0
        for t in agreeing:
            total += t
        merged.append(a + scale * (total / len(agreeing)) if agreeing else a)
    return np.array(merged, dtype=np.float32)


@pytest.mark.parametrize("density", [1e-9, 0.2, 0.5, 0.83, 1.0])
@pytest.mark.parametrize("coarse", [False, True])
def test_ties_equals_a_loop(density, coarse):
    parent, experts = family(4)
    if coarse:  # few distinct values: many zeros, equal magnitudes and exact cancellations
        rng = np.random.default_rng(5)
        for weights in (parent, *experts):
            for name, shape in SHAPES.items():
                values = rng.integers(-2, 3, shape) / 4
                weights[name] = torch.tensor(values, dtype=torch.float32)
    for scale in (1.0, 0.4):
        merged = ties(parent, experts, density=density, scale=scale)
        flat = np.concatenate([w.numpy().ravel() for w in merged.values()])
        np.testing.assert_array_equal(flat, loop_ties(parent, experts, density, scale))


def test_ties_by_hand():
    def weights(*values):
        return {"w": torch.tensor(values)}

    parent = weights(1.0, 1.0, 1.0, 1.0, 1.0)
    experts = [weights(1.0, 1.5, 3.0, 2.0, 1.0), weights(1.25, 1.5, 2.0, 0.0, 1.0)]
    # Of task vectors (0, .5, 2, 1, 0) and (.25, .5, 1, -1, 0), two of five are kept, and what
    # ties with the second: 2, 1 and 1, -1. The fourth cancels.
    assert ties(parent, experts, density=0.4, scale=1.0)["w"].tolist() == [1.0, 1.0, 2.5, 1.0, 1.0]
    # All of it: the mean is over those that move only.
    merged = ties(parent, experts, density=1.0, scale=1.0)["w"].tolist()
    assert merged == [1.25, 1.5, 2.5, 1.0, 1.0]


def test_networks_that_differ_are_refused():
    parent, experts = family(3)
    broken = {
        r"expert 2: down.1.conv.bias is missing": lambda e: e.pop("down.1.conv.bias"),
        r"expert 2: up.gain has shape \(1,\), in the parent \(\)": lambda e: e.update(
            {"up.gain": torch.zeros(1)}
        ),
        r"expert 2: up.gain is torch.float64": lambda e: e.update(
            {"up.gain": e["up.gain"].double()}
        ),
        r"expert 2: extra is not in the parent": lambda e: e.update(extra=torch.zeros(1)),
    }
    for message, damage in broken.items():
        damaged = dict(experts[1])
        damage(damaged)
        with pytest.raises(UserError, match=message):
            agreement(parent, [experts[0], damaged, experts[2]])


def test_options_that_do_not_fit_are_refused():
    parent, experts = family(2)
    for weights, message in [
        ([1.0], "need 2 finite numbers"),
        ([1.0, math.nan], "need 2 finite numbers"),
        ({"": [1, 0], "down": [1, 0, 0]}, "of 'down': need 2"),
        ({"down": [1, 0]}, "none for up.gain"),
        ({"": [1, 0], "dwn": [1, 0]}, "no tensor takes those of 'dwn'.*down, up"),
    ]:
        with pytest.raises(UserError, match=message):
            task_vector(parent, experts, weights=weights)
    with pytest.raises(ValueError, match="cannot be averaged"):
        agreement({"n": torch.tensor(1)}, [{"n": torch.tensor(2)}])


def test_snapshots_are_combined_linearly():
    snapshots = [random_weights(i) for i in range(3)]
    combined = combine_snapshots(snapshots, [-1.5, 6.0, 0.25])
    for name, found in combined.items():
        a, b, c = (s[name].double().numpy() for s in snapshots)
        np.testing.assert_allclose(found, -1.5 * a + 6 * b + 0.25 * c, rtol=1e-6, atol=1e-12)
    del snapshots[2]["up.gain"]
    with pytest.raises(UserError, match=r"snapshot 3: up.gain is missing"):
        combine_snapshots(snapshots, [1, 1, 1])
    with pytest.raises(ValueError, match="one coefficient"):
        combine_snapshots(snapshots[:2], [1])


def test_agreement_equals_numpy():
    parent, experts = family(3)
    experts[1]["up.gain"] = parent["up.gain"]
    found = agreement(parent, experts)
    flat = [np.concatenate([w.double().numpy().ravel() for w in x.values()]) for x in experts]
    origin = np.concatenate([w.double().numpy().ravel() for w in parent.values()])
    tasks = np.array(flat) - origin
    norms = np.linalg.norm(tasks, axis=1)
    np.testing.assert_allclose(found["relative_norms"], norms / np.linalg.norm(origin))
    np.testing.assert_allclose(found["cosines"], tasks @ tasks.T / np.outer(norms, norms))
    conflicts = (tasks.max(axis=0) > 0) & (tasks.min(axis=0) < 0)
    assert found["sign_conflict"] == pytest.approx(conflicts.mean())
    assert 0.5 < found["sign_conflict"] < 0.95  # 0.75 for independent signs


def test_agreement_of_opposite_and_unmoved_experts():
    parent = {"w": torch.tensor([3.0, 4.0, 0.0])}
    experts = [{"w": torch.tensor([x, 4.0, 0.0])} for x in (4.0, 2.0, 3.0)]
    assert agreement(parent, experts) == {
        "relative_norms": [0.2, 0.2, 0.0],
        "cosines": [[1.0, -1.0, None], [-1.0, 1.0, None], [None, None, None]],
        "sign_conflict": 1.0,
    }
    assert agreement(parent, experts[2:])["sign_conflict"] is None
    with pytest.raises(ValueError, match="all zero"):
        agreement({"w": torch.zeros(3)}, experts)


# --- the quadratic model --------------------------------------------------------------------------


def random_quadratic(n, seed, convex, optimum=None):
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((n, n))
    A = root @ root.T + 0.1 * np.eye(n) if convex else root + root.T
    b = rng.standard_normal(n) if optimum is None else -A @ optimum
    return Quadratic(float(rng.standard_normal()), b, A)


def test_normalised_loss():
    assert normalised_loss([1.0, 0.02, 3.0], [2.0, 0.01, 3.0]) == 3.5
    for losses, own in [([1.0], [1.0, 2.0]), ([1.0], [0.0])]:
        with pytest.raises(ValueError, match="each range"):
            normalised_loss(losses, own)


@pytest.mark.parametrize("n", [1, 2, 4, 7, 12])
def test_the_design_is_small_and_well_conditioned(n):
    points = design_points(n)
    assert points.shape == ((n + 1) * (n + 2) // 2, n)
    assert len({tuple(p) for p in points}) == len(points)
    assert set(points.ravel()) <= {0.0, 0.5, 1.0} and points.sum(axis=1).max() == 1
    monomials = [
        *(np.ones(len(points)), *points.T),
        *(points[:, i] * points[:, j] for i in range(n) for j in range(i, n)),
    ]
    assert np.linalg.cond(np.stack(monomials, axis=1)) < 500


@pytest.mark.parametrize("n", [1, 2, 3, 6])
@pytest.mark.parametrize("convex", [True, False])
def test_a_quadratic_is_recovered(n, convex):
    true = random_quadratic(n, n, convex)
    c, b, A = fit_quadratic(design_points(n), [true.at(w) for w in design_points(n)])
    assert c == pytest.approx(true.c, abs=1e-11)
    np.testing.assert_allclose(b, true.b, atol=1e-11)
    np.testing.assert_allclose(A, true.A, atol=1e-11)
    w = np.random.default_rng(0).standard_normal(n)
    by_hand = c + sum(b[i] * w[i] for i in range(n))
    by_hand += sum(A[i, j] * w[i] * w[j] for i in range(n) for j in range(n)) / 2
    assert true.at(w) == pytest.approx(by_hand)


def test_more_points_are_fitted_in_the_least_squares_sense_and_fewer_refused():
    rng = np.random.default_rng(3)
    points, values = rng.uniform(size=(40, 2)), rng.standard_normal(40)
    c, b, A = fit_quadratic(points, values)

    def residual(v):
        model = Quadratic(v[0], v[1:3], np.array([[v[3], v[4]], [v[4], v[5]]]))
        return model.at(points) - values

    best = optimize.least_squares(residual, np.zeros(6), xtol=1e-15, ftol=1e-15, gtol=1e-15).x
    np.testing.assert_allclose([c, *b, A[0, 0], A[0, 1], A[1, 1]], best, atol=1e-6)
    with pytest.raises(ValueError, match="6 coefficients"):
        fit_quadratic(design_points(2)[:5], np.zeros(5))
    with pytest.raises(ValueError, match="6 coefficients"):
        fit_quadratic(np.array([[x, x] for x in range(8)]), np.zeros(8))


def brute_minimum(quadratic, bounds, starts=25):
    """The lowest that a local optimiser of scipy finds from many starts and all corners."""
    n = len(quadratic.b)
    low, high = bounds
    begin = [*np.random.default_rng(0).uniform(low, high, (starts, n))]
    begin += itertools.product(bounds, repeat=n)
    runs = [
        optimize.minimize(
            quadratic.at,
            w,
            jac=lambda w: quadratic.b + quadratic.A @ w,
            bounds=[bounds] * n,
            method="L-BFGS-B",
            options={"ftol": 1e-15, "gtol": 1e-12},
        )
        for w in begin
    ]
    return min(runs, key=lambda run: run.fun)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-0.5, 2.0)])
@pytest.mark.parametrize(("n", "seed"), [(1, 0), (2, 1), (3, 2), (4, 3), (4, 4)])
def test_the_minimum_in_a_box_is_scipys(n, seed, bounds):
    for convex in (True, False):
        quadratic = random_quadratic(n, seed, convex)
        w, value = minimise(*quadratic, bounds)
        assert (w >= bounds[0]).all() and (w <= bounds[1]).all()
        assert value == pytest.approx(quadratic.at(w), abs=1e-12)
        expected = brute_minimum(quadratic, bounds)
        assert value == pytest.approx(expected.fun, abs=1e-9)
        np.testing.assert_allclose(w, expected.x, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_a_large_convex_minimum_is_that_of_bounded_least_squares(seed):
    quadratic = random_quadratic(8, seed, convex=True)
    root = np.linalg.cholesky(quadratic.A)
    expected = optimize.lsq_linear(
        root.T, -np.linalg.solve(root, quadratic.b), (0.0, 1.0), method="bvls", tol=1e-14
    )
    np.testing.assert_allclose(minimise(*quadratic, (0.0, 1.0))[0], expected.x, atol=1e-9)


def test_flat_and_saddle_shaped_quadratics():
    ones = np.ones((2, 2))
    # (w1 + w2 - 1)^2 / 2: a whole line of minima.
    w, value = minimise(0.5, np.array([-1.0, -1.0]), ones, (0.0, 1.0))
    assert value == pytest.approx(0, abs=1e-15) and w.sum() == pytest.approx(1)
    # w1 w2 on [-1, 2]^2: the saddle's lowest corner.
    w, value = minimise(0.0, np.zeros(2), ones - np.eye(2), (-1.0, 2.0))
    assert sorted(w) == [-1.0, 2.0] and value == -2.0
    assert minimise(7.0, np.zeros(2), np.zeros((2, 2)), (0.0, 1.0))[1] == 7.0


def test_candidates_are_apart_and_in_order():
    quadratic = random_quadratic(4, 9, convex=True, optimum=np.array([0.1, 0.2, 0.3, 0.02]))
    found = candidates(quadratic, (0.0, 1.0), 6)
    assert found.shape == (6, 4)
    np.testing.assert_allclose(found[0], [0.1, 0.2, 0.3, 0.02], atol=1e-10)
    values = quadratic.at(found)
    assert (np.diff(values) >= 0).all()
    for a, b in itertools.combinations(found, 2):
        assert np.abs(a - b).max() > SEPARATION
    # The second is the best of any with a weight at a bound, unless it is too near the first.
    constrained = []
    for i in range(4):
        keep = [j for j in range(4) if j != i]
        for at in (0.0, 1.0):
            b = quadratic.b[keep] + at * quadratic.A[i, keep]
            part = Quadratic(0.0, b, quadratic.A[np.ix_(keep, keep)])
            w = np.insert(brute_minimum(part, (0.0, 1.0), 5).x, i, at)
            if np.abs(w - found[0]).max() > SEPARATION:
                constrained.append(quadratic.at(w))
    assert values[1] == pytest.approx(min(constrained), abs=1e-8)


# --- search ---------------------------------------------------------------------------------------


class Counted:
    def __init__(self, function):
        self.function, self.calls = function, []

    def __call__(self, weights):
        assert all(type(w) is float for w in weights)
        self.calls.append(weights)
        return float(self.function(np.array(weights)))


@pytest.mark.parametrize("n", [1, 2, 4, 6])
def test_the_optimum_of_a_quadratic_is_found_from_the_fewest_evaluations(n):
    optimum = np.random.default_rng(n).uniform(0.05, 0.95, n)
    true = random_quadratic(n, n, convex=True, optimum=optimum)
    evaluate = Counted(true.at)
    result = search(evaluate, n)
    assert len(evaluate.calls) == (n + 1) * (n + 2) // 2
    np.testing.assert_allclose(result.weights, optimum, atol=1e-8)
    assert result.predicted == pytest.approx(float(true.at(optimum)), abs=1e-10)
    assert result.value is None and result.confirmations == []
    assert [w for w, _ in result.evaluations] == evaluate.calls
    assert all(value == float(true.at(np.array(w))) for w, value in result.evaluations)


@pytest.mark.parametrize("convex", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_the_search_stays_in_the_box(convex, seed):
    true = random_quadratic(3, seed, convex, optimum=np.array([1.7, -0.4, 0.5]))
    result = search(true.at, 3, (0.0, 1.0))
    expected = brute_minimum(true, (0.0, 1.0))
    np.testing.assert_allclose(result.weights, expected.x, atol=1e-6)
    assert result.predicted == pytest.approx(expected.fun, abs=1e-9)


def test_a_second_measure_decides_between_candidates():
    true = random_quadratic(3, 1, convex=True, optimum=np.array([0.3, 0.5, 0.4]))
    evaluate = Counted(true.at)
    confirm = Counted(lambda w: 10 + w[0])  # prefers to leave the first expert out
    result = search(evaluate, 3, confirm=confirm, top=4)
    assert len(evaluate.calls) == 10 and len(confirm.calls) in (4, 5)
    np.testing.assert_allclose(confirm.calls[0], [0.3, 0.5, 0.4], atol=1e-8)
    assert result.weights == min(confirm.calls, key=lambda w: w[0])
    assert result.value == 10 + result.weights[0]
    assert result.confirmations == [(w, 10 + w[0]) for w in confirm.calls]
    assert result.predicted == pytest.approx(float(true.at(np.array(result.weights))), abs=1e-9)


def test_a_poor_fit_does_not_win_over_a_better_measurement():
    def evaluate(w):  # only near e_1 is it low, which no quadratic describes
        return 1 - 5 * math.exp(-100 * ((np.array(w) - [1, 0]) ** 2).sum()) - 0.1 * w[0] * w[1]

    blind = search(evaluate, 2)
    checked = search(evaluate, 2, confirm=evaluate, top=1)
    assert checked.value == min(value for _, value in checked.evaluations)
    assert checked.weights == (1.0, 0.0)
    assert blind.predicted < evaluate(blind.weights) - 0.1


def test_grid_and_random_search_agree_with_the_fit():
    true = random_quadratic(3, 4, convex=True, optimum=np.array([0.2, 0.7, 0.4]))
    fitted = search(true.at, 3)
    grid = grid_search(true.at, 3)
    assert len(grid.evaluations) == 11**3 and grid.predicted is None
    np.testing.assert_allclose(grid.weights, fitted.weights, atol=1e-8)  # a point of the grid
    coarse = grid_search(true.at, 3, (0.0, 0.5), levels=3)
    assert {w for pair in coarse.evaluations for w in pair[0]} == {0.0, 0.25, 0.5}
    assert coarse.value == min(v for _, v in coarse.evaluations) > fitted.predicted
    key = philox.derive_key("test merging")
    drawn = random_search(true.at, 3, (-1.0, 1.0), count=300, key=key)
    points = np.array([w for w, _ in drawn.evaluations])
    np.testing.assert_array_equal(points, -1 + 2 * philox.uniform(key, 0, np.arange(300), (3,)))
    assert drawn.value == pytest.approx(true.at(points).min(), abs=1e-12)
    assert drawn.value >= fitted.predicted
    confirmed = random_search(true.at, 3, count=50, key=key, confirm=lambda w: -w[0], top=5)
    best = sorted(confirmed.evaluations, key=lambda pair: pair[1])[:5]
    assert confirmed.weights == max((w for w, _ in best), key=lambda w: w[0])
    assert confirmed.value == -confirmed.weights[0]


def test_searches_that_cannot_work_are_refused():
    evaluate = Counted(lambda w: 0.0)
    with pytest.raises(UserError, match="at most 12 merge weights"):
        search(evaluate, 13)
    for bounds in [(0.0, math.inf), (1.0, 0.0)]:
        with pytest.raises(ValueError, match="bounds"):
            search(evaluate, 2, bounds)
    assert not evaluate.calls
    for method, options in [(search, {}), (grid_search, {"levels": 2})]:
        with pytest.raises(UserError, match=r"weights \[1.0, 0.0\] scores nan"):
            method(lambda w: math.nan if w == (1.0, 0.0) else 0.0, 2, **options)


def test_the_search_merges_networks():
    """The whole of it, on a loss with a known answer: distance to a mix of the experts."""
    parent, experts = family(3)
    wanted = task_vector(parent, experts, weights=[0.1, 0.2, 0.5])

    def evaluate(w):
        merged = task_vector(parent, experts, weights=w)
        losses = [((merged[k] - wanted[k]).double() ** 2).sum().item() for k in parent]
        own = [((parent[k] - wanted[k]).double() ** 2).sum().item() for k in parent]
        return normalised_loss(losses, own)

    result = search(evaluate, 3, confirm=evaluate)
    np.testing.assert_allclose(result.weights, [0.1, 0.2, 0.5], atol=1e-4)
    assert result.value < 1e-6
