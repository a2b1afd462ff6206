import numpy as np
import pytest
import scipy.linalg
from safetensors.numpy import load_file, save_file

from pipeline.errors import UserError
from pipeline.evaluation.fidelity import kernel_distance, manifold_scores, per_class
from pipeline.evaluation.frechet import (
    FeatureStatistics,
    Moments,
    frechet_distance,
    frechet_extrapolated,
    frechet_interval,
    half_split_bias,
    moments,
    published,
)
from pipeline.evaluation.published import compared


def random(seed):
    return np.random.Generator(np.random.Philox(seed))


def correlated(seed, count, dimension):
    mix = random(seed + 1000).standard_normal((dimension, dimension)) / np.sqrt(dimension)
    return random(seed).standard_normal((count, dimension)) @ mix + 0.3


def with_moments(mean, covariance, count, seed=0):
    """Samples whose mean and unbiased covariance are exactly those given (up to rounding)."""
    x = random(seed).standard_normal((count, len(mean)))
    x -= x.mean(axis=0)
    whiten = np.linalg.inv(np.linalg.cholesky(np.cov(x.T)))
    return x @ whiten.T @ np.linalg.cholesky(covariance).T + mean


def sqrtm_distance(x, y):
    """The textbook formula with scipy's matrix square root, in float64."""
    s1, s2 = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(s1 @ s2).real
    return np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(s1 + s2 - 2 * root)


class TestFrechetDistance:
    def test_closed_form_of_commuting_gaussians(self):
        # Equal eigenvectors: |m1 - m2|^2 + sum (sqrt a - sqrt b)^2.
        basis = np.linalg.qr(random(3).standard_normal((12, 12)))[0]
        a, b = np.geomspace(1e-4, 4, 12), np.linspace(0.5, 2, 12)
        m1, m2 = np.zeros(12), np.linspace(-1, 1, 12)
        x = with_moments(m1, basis * a @ basis.T, 100, seed=1)
        y = with_moments(m2, basis * b @ basis.T, 60, seed=2)
        result = frechet_distance(moments(x), moments(y))
        expected = np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
        assert result.mean_term == pytest.approx(np.sum(m2**2), rel=1e-12)
        assert result.covariance_term == pytest.approx(expected, rel=1e-10)
        assert result.value == result.mean_term + result.covariance_term
        assert (result.reference_samples, result.samples, result.dimension) == (100, 60, 12)

    def test_closed_form_of_two_dimensions(self):
        # tr (S1 S2)^(1/2) = sqrt(tr S1 S2 + 2 sqrt det S1 S2) for 2 x 2; these do not commute.
        s1, s2 = np.array([[2.0, 0.7], [0.7, 1.0]]), np.array([[0.5, -0.3], [-0.3, 3.0]])
        product = s1 @ s2
        trace = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
        expected = np.trace(s1 + s2) - 2 * trace + 1.0
        x = with_moments(np.zeros(2), s1, 50, seed=1)
        y = with_moments(np.array([0.6, 0.8]), s2, 70, seed=2)
        assert frechet_distance(moments(x), moments(y)).value == pytest.approx(expected, rel=1e-12)

    def test_matrix_square_root_oracle(self):
        x, y = correlated(1, 400, 48), correlated(2, 300, 48)
        assert frechet_distance(moments(x), moments(y)).value == pytest.approx(
            sqrtm_distance(x, y), rel=1e-9
        )

    def test_torchmetrics_agrees(self):
        torch = pytest.importorskip("torch")
        compute = pytest.importorskip("torchmetrics.image.fid")._compute_fid
        x, y = correlated(1, 400, 48), correlated(2, 300, 48)
        terms = (x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T))
        expected = float(compute(*map(torch.from_numpy, terms)))
        assert frechet_distance(moments(x), moments(y)).value == pytest.approx(expected, rel=1e-6)

    def test_torch_fidelity_agrees(self):
        pytest.importorskip("torch_fidelity")
        from torch_fidelity.metric_fid import fid_statistics_to_metric

        x, y = correlated(1, 400, 48), correlated(2, 300, 48)
        first, second = ({"mu": z.mean(0), "sigma": np.cov(z.T)} for z in (x, y))
        expected = fid_statistics_to_metric(first, second, False)["frechet_inception_distance"]
        assert frechet_distance(moments(x), moments(y)).value == pytest.approx(expected, rel=1e-6)

    def test_identical_sets(self):
        fitted = moments(correlated(1, 500, 32))
        assert frechet_distance(fitted, fitted).value == pytest.approx(0, abs=1e-12)

    def test_symmetric_and_invariant_under_rotation(self):
        x, y = correlated(1, 200, 16), correlated(2, 150, 16)
        value = frechet_distance(moments(x), moments(y)).value
        turn = np.linalg.qr(random(3).standard_normal((16, 16)))[0]
        assert frechet_distance(moments(y), moments(x)).value == pytest.approx(value, rel=1e-11)
        turned = frechet_distance(moments(x @ turn), moments(y @ turn)).value
        assert turned == pytest.approx(value, rel=1e-11)

    def test_fewer_samples_than_dimensions(self):
        # The same points in 8 of 64 dimensions (rotated) have the distance that they have there.
        x, y = correlated(1, 40, 8), correlated(2, 30, 8)
        expected = frechet_distance(moments(x), moments(y)).value
        basis = np.linalg.qr(random(3).standard_normal((64, 64)))[0][:8]
        wide = moments(x @ basis), moments(y @ basis)
        with pytest.raises(UserError, match="more than 64"):
            frechet_distance(*wide)
        value = frechet_distance(*wide, allow_few=True).value
        assert value == pytest.approx(expected, rel=1e-12)

    def test_few_samples_streamed_or_in_memory(self):
        x, y = correlated(1, 40, 64), correlated(2, 30, 64)
        streamed = []
        for z in (x, y):
            statistics = FeatureStatistics(64)
            statistics.add(z)
            streamed.append(statistics.finish())
        assert streamed[0].root.shape == (64, 39)
        # One set of full rank against one of low rank: an independent route through eigh.
        full = moments(correlated(3, 500, 64))
        values, vectors = np.linalg.eigh(full.covariance)
        root = vectors * np.sqrt(values)
        small = (y - y.mean(0)).T / np.sqrt(29)
        overlap = scipy.linalg.svdvals(root.T @ small).sum()
        expected = np.sum((full.mean - y.mean(0)) ** 2)
        expected += np.trace(full.covariance) + np.sum(small**2) - 2 * overlap
        for fitted in (moments(y), streamed[1]):
            value = frechet_distance(full, fitted, allow_few=True).value
            assert value == pytest.approx(expected, rel=1e-10)
        memory = frechet_distance(moments(x), moments(y), allow_few=True).value
        value = frechet_distance(*streamed, allow_few=True).value
        assert value == pytest.approx(memory, rel=1e-9)

    def test_constant_and_dependent_features(self):
        x, y = correlated(1, 300, 6), correlated(2, 300, 6)
        expected = frechet_distance(moments(x), moments(y)).value

        def padded(z):
            return np.column_stack([np.zeros(len(z)), z, np.full(len(z), 7.0)])

        value = frechet_distance(moments(padded(x)), moments(padded(y))).value
        assert value == pytest.approx(expected, rel=1e-10)
        # A doubled feature counts twice: the same as one of sqrt(2) times the size.
        scale = np.array([np.sqrt(2), 1, 1, 1, 1, 1])
        expected = frechet_distance(moments(x * scale), moments(y * scale)).value
        doubled = [moments(np.column_stack([z, z[:, 0]])) for z in (x, y)]
        assert doubled[0].root.shape == (7, 6)
        assert frechet_distance(*doubled).value == pytest.approx(expected, rel=1e-9)

    def test_collapsed_to_one_image(self):
        x = correlated(1, 300, 6)
        point = np.tile(x[0], (300, 1))
        expected = np.sum((x.mean(0) - x[0]) ** 2) + np.trace(np.cov(x.T))
        value = frechet_distance(moments(x), moments(point)).value
        assert value == pytest.approx(expected, rel=1e-12)

    def test_refusals(self):
        x = correlated(1, 50, 6)
        with pytest.raises(UserError, match="at least 2"):
            moments(x[:1])
        with pytest.raises(UserError, match="at least 2"):
            FeatureStatistics(6).finish()
        with pytest.raises(UserError, match="different extractors"):
            frechet_distance(moments(x, "a"), moments(x, "b"))
        with pytest.raises(ValueError, match="dimensions"):
            frechet_distance(moments(x), moments(x[:, :5]))
        bad = x.copy()
        bad[3, 2] = np.nan
        bad[9, 1] = np.inf
        with pytest.raises(UserError, match="2 of 50"):
            moments(bad)


class TestFeatureStatistics:
    def test_streaming_equals_one_shot(self):
        x = correlated(1, 1000, 24)
        streamed = FeatureStatistics(24)
        for start, stop in [(0, 1), (1, 1), (1, 130), (130, 700), (700, 1000)]:
            streamed.add(x[start:stop].astype(np.float64))
        fitted = streamed.finish()
        assert fitted.count == 1000
        np.testing.assert_allclose(fitted.mean, x.mean(0), rtol=1e-13)
        np.testing.assert_allclose(fitted.covariance, np.cov(x.T), rtol=0, atol=1e-13)

    def test_merging_in_any_order(self):
        parts = []
        for index, count in enumerate((40, 1, 0, 300)):
            parts.append(FeatureStatistics(10))
            parts[-1].add(correlated(index, count, 10))
        orders = [(0, 1, 2, 3), (3, 2, 1, 0), (2, 3, 0, 1)]
        merged = []
        for order in orders:
            total = FeatureStatistics(10)
            for index in order:
                total.merge(parts[index])
            merged.append(total)
        for other in merged[1:]:
            assert other.count == 341
            np.testing.assert_allclose(other.mean, merged[0].mean, rtol=1e-12)
            np.testing.assert_allclose(other.scatter, merged[0].scatter, rtol=1e-12, atol=1e-12)

    def test_large_mean_does_not_cancel(self):
        x = correlated(1, 500, 5).round(6)
        shifted = FeatureStatistics(5)
        for batch in np.split(x + 2.0**20, 10):
            shifted.add(batch)
        np.testing.assert_allclose(shifted.finish().covariance, np.cov(x.T), atol=1e-8)

    def test_float32_is_summed_in_float64(self):
        x = correlated(1, 500, 5).astype(np.float32)
        expected = np.cov(x.astype(np.float64).T)
        np.testing.assert_allclose(moments(x).covariance, expected, rtol=1e-12, atol=1e-14)

    def test_mixing_extractors_or_dimensions(self):
        with pytest.raises(UserError, match="different extractors"):
            FeatureStatistics(3, "a").merge(FeatureStatistics(3, "b"))
        with pytest.raises(ValueError, match="4 features"):
            FeatureStatistics(3).merge(FeatureStatistics(4))
        with pytest.raises(ValueError, match=r"\[n, 3\]"):
            FeatureStatistics(3).add(np.zeros((2, 4)))


class TestSavedMoments:
    @pytest.mark.parametrize("count", [300, 10])  # full rank, and fewer than dimensions
    def test_equal_to_recomputation(self, tmp_path, count):
        x, y = correlated(1, count, 24), correlated(2, 200, 24)
        first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
        moments(x, "some-extractor").save(first)
        loaded = Moments.load(first)
        again = moments(x, "some-extractor")
        assert (loaded.count, loaded.extractor) == (count, "some-extractor")
        np.testing.assert_array_equal(loaded.mean, again.mean)
        np.testing.assert_array_equal(loaded.root, again.root)
        fitted = moments(y, "some-extractor")
        distances = [frechet_distance(m, fitted, allow_few=True) for m in (loaded, again)]
        assert distances[0] == distances[1]
        loaded.save(second)
        assert first.read_bytes() == second.read_bytes()
        stored = load_file(first)
        assert all(value.dtype == np.float64 for value in stored.values())
        np.testing.assert_allclose(stored["mean"], x.mean(0), rtol=1e-12)
        np.testing.assert_allclose(stored["covariance"], np.cov(x.T), rtol=0, atol=1e-13)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]

    def test_damaged_files(self, tmp_path):
        path = tmp_path / "moments.safetensors"
        with pytest.raises(UserError, match="no such file"):
            Moments.load(path)
        moments(correlated(1, 50, 10)).save(path)
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[-3] ^= 1
        for damaged in (b"", whole[:-40], whole[: len(whole) // 2], b"text" * 9, bytes(flipped)):
            path.write_bytes(damaged)
            with pytest.raises(UserError, match=r"moments\.safetensors: not feature moments"):
                Moments.load(path)
        save_file({"other": np.zeros(3)}, path)
        with pytest.raises(UserError, match=r"moments\.safetensors"):
            Moments.load(path)


class TestBias:
    def test_halves_of_one_set(self):
        x = correlated(1, 4000, 16)
        small = half_split_bias(x, seed=1, samples=100)
        large = half_split_bias(x, seed=1)
        assert (small.samples, large.samples, large.reference_samples) == (100, 2000, 2000)
        # Bias of about c / N: 20 times the images, a twentieth of the score.
        assert small.value / large.value == pytest.approx(20, rel=0.4)
        assert half_split_bias(x, seed=1) == large
        assert half_split_bias(x, seed=2) != large

    def test_halves_are_disjoint(self):
        # Two sets that share no image: were one image in both, the rank of the union would show it.
        x = np.eye(40)
        result = half_split_bias(x, seed=3, allow_few=True)
        # Each half is the centred unit vectors of its own 20 axes: the roots are orthogonal.
        assert result.covariance_term == pytest.approx(2 * (20 - 1) / 19, rel=1e-12)
        assert result.mean_term == pytest.approx(40 / 20**2, rel=1e-12)

    def test_too_few(self):
        with pytest.raises(UserError, match="need 60"):
            half_split_bias(correlated(1, 50, 4), seed=1, samples=30)

    def test_extrapolation_removes_the_bias(self):
        dimension = 24
        reference = moments(with_moments(np.zeros(dimension), np.eye(dimension), 400))
        true = 0.5**2 * dimension
        finite, infinite = [], []
        for seed in range(5):
            y = random(seed).standard_normal((1000, dimension)) + 0.5
            result = frechet_extrapolated(reference, y, seed=seed)
            assert result.sizes == (1000, 500, 333, 250, 200, 166, 142, 125, 111, 100)
            whole = frechet_distance(reference, moments(y)).value
            assert result.values[0] == pytest.approx(whole, rel=1e-12)
            finite.append(result.values[0] - true)
            infinite.append(result.value - true)
        assert np.mean(finite) > 0.15
        assert abs(np.mean(infinite)) < 0.08
        assert frechet_extrapolated(reference, y, seed=4) == result
        with pytest.raises(UserError, match="at least 192"):
            frechet_extrapolated(reference, y[:191], seed=0)

    def test_extrapolation_is_the_line_through_the_scores_of_disjoint_sets(self):
        x, y = correlated(1, 500, 5), correlated(2, 60, 5)
        result = frechet_extrapolated(moments(x), y, seed=3, points=3)
        draws = random(3)
        values = []
        for parts in (1, 2, 3):
            sets = np.split(y[draws.permutation(60)], parts)
            values.append(np.mean([sqrtm_distance(x, z) for z in sets]))
        assert result.sizes == (60, 30, 20)
        np.testing.assert_allclose(result.values, values, rtol=1e-9)
        # The normal equations of values = value + slope * parts / 60.
        sums = np.array([[3, 6 / 60], [6 / 60, 14 / 3600]])
        right = [sum(values), np.dot([1, 2, 3], values) / 60]
        expected = np.linalg.solve(sums, right)
        np.testing.assert_allclose([result.value, result.slope], expected, rtol=1e-9)

    @pytest.mark.parametrize("shift", [0.2, 0.0])  # a visible difference, and none at all
    def test_standard_error_matches_repeated_sampling(self, shift):
        dimension, count = 12, 400
        reference = moments(with_moments(np.zeros(dimension), np.eye(dimension), 5000))
        draws = random(7).standard_normal((40, count, dimension)) + shift
        results = [frechet_extrapolated(reference, y, seed=1) for y in draws]
        values = [r.value for r in results]
        true = shift**2 * dimension
        assert np.mean([r.error for r in results]) == pytest.approx(np.std(values), rel=0.3)
        inside = [abs(r.value - true) < 1.96 * r.error for r in results]
        assert np.mean(inside) >= 0.8

    def test_interval_is_the_bootstrap_refitted_to_every_resample(self):
        # Refitting shifts all resampled scores up by the same bias; centred, they must agree.
        reference, x = moments(correlated(1, 5000, 6)), correlated(2, 500, 6) * 1.2 + 0.3
        draws = random(5)
        refitted = [
            frechet_distance(reference, moments(x[draws.integers(500, size=500)])).value
            for _ in range(800)
        ]
        interval = frechet_interval(reference, x, seed=1, resamples=4000)
        expected = np.percentile(refitted, [2.5, 97.5]) - np.mean(refitted)
        got = np.array([interval.low, interval.high]) - interval.value
        np.testing.assert_allclose(got, expected, rtol=0.12)

    def test_interval_matches_repeated_sampling(self):
        dimension, count = 12, 400
        reference = moments(correlated(1, 5000, dimension))
        draws = [correlated(1, count * 61, dimension)[count:] * 1.1 + 0.2]
        sets = np.split(draws[0], 60)
        values = [frechet_distance(reference, moments(x)).value for x in sets]
        intervals = [frechet_interval(reference, x, seed=1) for x in sets[:20]]
        widths = [i.high - i.low for i in intervals]
        assert np.mean(widths) == pytest.approx(2 * 1.96 * np.std(values), rel=0.2)
        assert intervals[0].value == values[0]
        assert all(i.low <= i.value <= i.high for i in intervals)
        assert frechet_interval(reference, sets[0], seed=1) == intervals[0]
        assert frechet_interval(reference, sets[0], seed=2) != intervals[0]

    def test_interval_contributions_are_the_derivative(self):
        # Leaving out single images: the change of the score is minus the contribution / (n - 1).
        reference, x = moments(correlated(1, 500, 5)), correlated(2, 200, 5) + 1
        jackknife = [
            frechet_distance(reference, moments(np.delete(x, i, axis=0))).value for i in range(200)
        ]
        spread = np.std(jackknife) * 199 / np.sqrt(200)
        interval = frechet_interval(reference, x, seed=1, resamples=20000, confidence=0.6827)
        assert (interval.high - interval.low) / 2 == pytest.approx(spread, rel=0.03)


class TestKernelDistance:
    def test_double_loop(self):
        x, y = correlated(1, 20, 5), correlated(2, 20, 5) + 0.5
        result = kernel_distance(x, y, seed=1, subsets=3, subset_size=20)

        def kernel(a, b):
            return (sum(p * q for p, q in zip(a, b, strict=True)) / 5 + 1) ** 3

        expected = 0.0
        for i in range(20):
            for j in range(20):
                if i != j:
                    expected += (kernel(x[i], x[j]) + kernel(y[i], y[j])) / (20 * 19)
                expected -= 2 * kernel(x[i], y[j]) / 400
        assert result.mean == pytest.approx(expected, rel=1e-11)
        assert result.std == pytest.approx(0, abs=1e-12)
        assert (result.reference_samples, result.samples) == (20, 20)

    def test_unbiased(self):
        results = [
            kernel_distance(*np.split(correlated(seed, 400, 8), 2), seed=1, subset_size=50).mean
            for seed in range(30)
        ]
        standard_error = np.std(results) / np.sqrt(30)
        assert abs(np.mean(results)) < 3 * standard_error
        assert min(results) < 0

    def test_seed_and_blocks(self, monkeypatch):
        x, y = correlated(1, 300, 8), correlated(2, 200, 8)
        first = kernel_distance(x, y, seed=1, subsets=5, subset_size=100)
        assert kernel_distance(x, y, seed=1, subsets=5, subset_size=100) == first
        assert kernel_distance(x, y, seed=2, subsets=5, subset_size=100) != first
        monkeypatch.setattr("pipeline.evaluation.fidelity._CACHE_BYTES", 8 * 100 * 7)
        blocked = kernel_distance(x, y, seed=1, subsets=5, subset_size=100)
        assert blocked.mean == pytest.approx(first.mean, rel=1e-11)

    def test_refusals(self):
        x = correlated(1, 50, 4)
        with pytest.raises(UserError, match="subset_size=1000"):
            kernel_distance(x, x, seed=1)
        with pytest.raises(UserError, match="subsets=0"):
            kernel_distance(x, x, seed=1, subset_size=10, subsets=0)


def brute_force_manifold(real, fake, k):
    def distance(a, b):
        return np.sqrt(np.sum((a - b) ** 2))

    def reach(points, i):
        return sorted(distance(points[i], p) for j, p in enumerate(points) if j != i)[k - 1]

    real_reach = [reach(real, i) for i in range(len(real))]
    fake_reach = [reach(fake, i) for i in range(len(fake))]
    near = [[distance(r, f) for f in fake] for r in real]
    in_real = [[near[i][j] <= real_reach[i] for j in range(len(fake))] for i in range(len(real))]
    in_fake = [[near[i][j] <= fake_reach[j] for j in range(len(fake))] for i in range(len(real))]
    return (
        np.mean([any(row[j] for row in in_real) for j in range(len(fake))]),
        np.mean([any(row) for row in in_fake]),
        sum(map(sum, in_real)) / (k * len(fake)),
        np.mean([any(row) for row in in_real]),
    )


class TestManifoldScores:
    @pytest.mark.parametrize("neighbours", [1, 3, 5])
    def test_brute_force(self, neighbours):
        x, y = correlated(1, 60, 4), correlated(2, 45, 4) + 0.4
        result = manifold_scores(x, y, neighbours=neighbours)
        expected = brute_force_manifold(x, y, neighbours)
        got = (result.precision, result.recall, result.density, result.coverage)
        np.testing.assert_allclose(got, expected, rtol=1e-12)
        assert (result.reference_samples, result.samples, result.neighbours) == (60, 45, neighbours)

    def test_blocks(self, monkeypatch):
        x, y = correlated(1, 300, 6), correlated(2, 200, 6)
        whole = manifold_scores(x, y)
        monkeypatch.setattr("pipeline.evaluation.fidelity._CACHE_BYTES", 8 * 300 * 11)
        assert manifold_scores(x, y) == whole

    def test_same_distribution(self):
        result = manifold_scores(correlated(1, 2000, 4)[:1000], correlated(1, 2000, 4)[1000:])
        assert result.precision > 0.85
        assert result.recall > 0.85
        assert result.density == pytest.approx(1, abs=0.12)
        # 1 - 2^-k in expectation for equal sizes (Naeem et al. 2020, equation 9).
        assert result.coverage == pytest.approx(1 - 2**-3, abs=0.05)

    def test_memorised(self):
        x = correlated(1, 500, 8) + 1e4
        for copies in (x, x[random(1).permutation(500)]):
            result = manifold_scores(x, copies)
            assert (result.precision, result.recall, result.coverage) == (1, 1, 1)
            # Each image lies in its own ball and in those of the 3 neighbours-of, on average.
            assert result.density == pytest.approx(4 / 3, rel=1e-12)

    def test_copies_of_duplicates_count(self, monkeypatch):
        # Balls of radius 0: only exact copies are in them. Blocks of one row within a set and of
        # several between sets are computed by different kernels, whose rounding differs.
        monkeypatch.setattr("pipeline.evaluation.fidelity._CACHE_BYTES", 8 * 100)
        x = np.repeat(correlated(1, 23, 301) * 100, 5, axis=0)
        result = manifold_scores(x, x[::5].repeat(2, axis=0), neighbours=1)
        assert (result.precision, result.recall, result.coverage) == (1, 1, 1)

    def test_collapsed(self):
        x = correlated(1, 1000, 8)
        one_mode = x[7] + 1e-3 * random(5).standard_normal((1000, 8))
        result = manifold_scores(x, one_mode)
        assert result.precision > 0.99
        assert result.recall < 0.01
        assert result.coverage < 0.02

    def test_some_modes_lost(self):
        centres = 30 * random(1).standard_normal((4, 8))
        x = random(2).standard_normal((800, 8)) + centres[np.arange(800) % 4]
        y = random(3).standard_normal((800, 8)) + centres[np.arange(800) % 2]
        complete = random(3).standard_normal((800, 8)) + centres[np.arange(800) % 4]
        result, best = manifold_scores(x, y), manifold_scores(x, complete)
        assert result.precision == pytest.approx(best.precision, abs=0.05)
        assert result.density == pytest.approx(best.density, abs=0.1)
        assert result.recall == pytest.approx(best.recall / 2, abs=0.05)
        assert result.coverage < 0.6 * best.coverage

    def test_shifted_away(self):
        result = manifold_scores(correlated(1, 300, 8), correlated(2, 300, 8) + 50)
        got = (result.precision, result.recall, result.density, result.coverage)
        assert got == (0, 0, 0, 0)

    def test_outliers_raise_precision_but_not_density(self):
        # A lone real point far out has a huge ball: precision falls for it, density hardly.
        x = correlated(1, 500, 8)
        x[0] += 100
        y = correlated(2, 500, 8) + 12
        result = manifold_scores(x, y)
        assert result.precision > 0.9
        assert result.density < 0.5

    def test_refusals(self):
        x = correlated(1, 50, 4)
        with pytest.raises(UserError, match="neighbours=3 must be from 1 to 2"):
            manifold_scores(x, x[:3])
        with pytest.raises(UserError, match="generated features"):
            manifold_scores(x, np.full((50, 4), np.nan))


class TestPerClass:
    def test_scores_by_class(self):
        x, y = correlated(1, 90, 3), correlated(2, 60, 3)
        x_labels, y_labels = np.arange(90) % 3, np.arange(60) % 3
        scores = per_class(
            lambda a, b: frechet_distance(moments(a), moments(b)), x, x_labels, y, y_labels
        )
        assert list(scores) == [0, 1, 2]
        assert scores[1] == frechet_distance(moments(x[1::3]), moments(y[1::3]))

    def test_class_without_samples(self):
        x = correlated(1, 30, 3)
        sizes = per_class(lambda a, b: (len(a), len(b)), x, np.arange(30) % 3, x, np.arange(30) % 2)
        assert sizes == {0: (10, 15), 1: (10, 15), 2: (10, 0)}
        with pytest.raises(ValueError, match="differ in number"):
            per_class(lambda a, b: 0, x, np.arange(29), x, np.arange(30))


def test_the_distance_to_statistics_that_others_computed(tmp_path):
    """As to the features that they are of; numbers of images unknown there are not asked for."""
    real, generated = correlated(1, 400, 12), correlated(2, 300, 12)
    path = tmp_path / "stats.npz"
    np.savez(path, mu=real.mean(axis=0), sigma=np.cov(real.T), other=np.arange(3))
    fitted = moments(generated, "e")
    found = frechet_distance(published(path, "e"), fitted, allow_few=True)
    assert found.value == pytest.approx(sqrtm_distance(real, generated), rel=1e-9)
    assert found.reference_samples == 0
    told = compared(path, generated, "e")
    assert told["fid_published"] == found.value
    assert "300 samples' features" in told["published"]["compared"]
    with pytest.raises(UserError, match=r"evaluate\.reference: statistics of 12 .* gives 5; use"):
        compared(path, generated[:, :5], "e")
    # Of fewer images than features: singular, and nearly symmetric as float32 leaves it.
    few = real[:8]
    noisy = np.cov(few.T).astype(np.float32)
    noisy[0, 1] = np.nextafter(noisy[0, 1], np.float32(9))
    np.savez(path, mu=few.mean(axis=0), sigma=noisy)
    found = frechet_distance(published(path, "e"), fitted, allow_few=True)
    assert found.value == pytest.approx(sqrtm_distance(few, generated), rel=1e-4)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3)}, "sigma is not a file"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"mu has shape \[3\], sigma \[4, 4\]"),
        ({"mu": np.zeros(2), "sigma": np.eye(2) * np.nan}, "a number in it is not finite"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 0.5], [0.1, 1.0]])}, "not symmetric"),
        ({"mu": np.array([{}, {}]), "sigma": np.eye(2)}, "allow_pickle"),
        (None, "not statistics of features"),
    ],
)
def test_files_that_are_no_statistics(tmp_path, arrays, message):
    path = tmp_path / "stats.npz"
    if arrays is None:
        path.write_bytes(b"PK\3\4 cut off")
    else:
        np.savez(path, **arrays)
    with pytest.raises(UserError, match=message) as caught:
        published(path, "")
    assert str(path) in str(caught.value)
    with pytest.raises(UserError, match="no such file"):
        published(tmp_path / "none.npz", "")
