import numpy as np
import pytest
import torch

from pipeline.training.ema import EMA, PowerEMA, combine, post_hoc_coefficients, power_exponent


class Weights(torch.nn.Module):
    def __init__(self, values, dtype=torch.float64):
        super().__init__()
        self.w = torch.nn.Parameter(torch.as_tensor(values, dtype=dtype))
        self.register_buffer("statistics", torch.zeros(3))

    def set(self, values):
        with torch.no_grad():
            self.w.copy_(torch.as_tensor(values))


def test_half_of_a_step_is_left_after_a_half_life():
    module = Weights([1.0, -4.0])
    ema = EMA(module, halflife_images=640, rampup_ratio=None)
    module.set([0.0, 0.0])
    for step in range(10):
        ema.update(step * 64, 64)
    assert ema.weights["w"].tolist() == pytest.approx([0.5, -2.0], rel=1e-12)
    # The same images in other batches: the average does not depend on their size.
    for first in range(0, 640, 128):
        ema.update(first, 128)
    assert ema.weights["w"].tolist() == pytest.approx([0.25, -1.0], rel=1e-12)


def test_an_average_is_the_weighted_sum_over_the_trajectory():
    """With EDM's ramp-up: half-life min(H, ratio * images seen), and no trace of the start."""
    rng = np.random.default_rng(0)
    trajectory = rng.normal(size=(50, 4))
    module = Weights(np.full(4, 1e9))
    ema = EMA(module, halflife_images=1000, rampup_ratio=0.5)
    weights = np.zeros(50)
    for step, values in enumerate(trajectory):
        seen = step * 100
        decay = 0.5 ** (100 / max(min(1000, seen * 0.5), 1e-8))
        weights[:step] *= decay
        weights[step] = 1 - decay
        module.set(values)
        ema.update(seen, 100)
    assert weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(ema.weights["w"].numpy(), weights @ trajectory, rtol=1e-10)


def test_only_parameters_are_averaged_and_weights_keep_their_dtype():
    module = Weights([1.0, 2.0], dtype=torch.float32)
    ema = EMA(module, 100)
    assert list(ema.weights) == ["w"]
    assert ema.weights["w"].dtype == torch.float32
    assert not ema.weights["w"].requires_grad
    with pytest.raises(ValueError, match="stall"):
        EMA(Weights([1.0], dtype=torch.bfloat16), 100)


def test_the_average_follows_weights_whose_storage_is_replaced():
    module = Weights([1.0, 2.0])
    ema = EMA(module, 100)
    module.w.data = torch.tensor([5.0, 6.0], dtype=torch.float64)
    ema.update(0, 10)
    assert ema.weights["w"].tolist() == [5.0, 6.0]


@pytest.mark.parametrize("make", [lambda m: EMA(m, 500), PowerEMA])
def test_a_run_resumes_exactly(make):
    trajectory = np.random.default_rng(1).normal(size=(20, 3))

    def run(average, module, first, last):
        for step in range(first, last):
            module.set(trajectory[step])
            average.update(step * 32, 32)

    module = Weights(np.zeros(3))
    whole = make(module)
    run(whole, module, 0, 20)
    module = Weights(np.zeros(3))
    part = make(module)
    run(part, module, 0, 9)
    resumed = make(Weights(np.ones(3)))
    resumed.load_state_dict(part.state_dict())
    module = Weights(np.zeros(3))
    again = make(module)
    again.load_state_dict(resumed.state_dict())
    run(again, module, 9, 20)
    torch.testing.assert_close(again.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_a_stored_average_of_another_network_is_refused():
    ema, power = EMA(Weights([0.0]), 100), PowerEMA(Weights([0.0]))
    with pytest.raises(ValueError, match="another network"):
        ema.load_state_dict({"v": torch.zeros(1)})
    with pytest.raises(ValueError, match="lengths"):
        power.load_state_dict({0.05: {"w": torch.zeros(1)}})


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.10, 0.25])
def test_the_exponent_gives_the_relative_width(sigma_rel):
    gamma = power_exponent(sigma_rel)
    s = (np.arange(1_000_000) + 0.5) / 1_000_000
    profile = s**gamma
    profile /= profile.sum()
    mean = profile @ s
    assert np.sqrt(profile @ (s - mean) ** 2) == pytest.approx(sigma_rel, rel=1e-6)
    with pytest.raises(ValueError, match="sigma_rel"):
        power_exponent(0.3)


def test_a_power_average_weighs_each_step_by_its_part_of_the_profile():
    batches = np.array([64, 64, 32, 128, 64, 64])
    trajectory = np.random.default_rng(2).normal(size=(6, 3))
    module = Weights(np.full(3, 1e9))
    power = PowerEMA(module, (0.05, 0.2))
    seen = np.concatenate([[0], np.cumsum(batches)])
    for step, batch in enumerate(batches):
        module.set(trajectory[step])
        power.update(int(seen[step]), int(batch))
    for sigma_rel, weights in power.weights.items():
        parts = np.diff((seen / seen[-1]) ** (power_exponent(sigma_rel) + 1))
        np.testing.assert_allclose(weights["w"].numpy(), parts @ trajectory, rtol=1e-10)


@pytest.fixture(scope="module")
def tracked():
    """A noisy, drifting trajectory: snapshots of two lengths, and other lengths tracked."""
    rng = np.random.default_rng(3)
    steps, batch, size = 4096, 10, 50
    drift = rng.normal(size=(2, size))
    module = Weights(np.zeros(size))
    stored = PowerEMA(module, (0.05, 0.10))
    direct = PowerEMA(module, (0.04, 0.07, 0.15, 0.2))
    walk = np.zeros(size)
    snapshots = []
    for step in range(steps):
        walk += rng.normal(size=size) / 64
        time = step / steps
        module.set(drift[0] * time + drift[1] * np.sin(5 * time) + walk)
        for average in (stored, direct):
            average.update(step * batch, batch)
        if (step + 1) % (steps // 16) == 0:
            for sigma_rel, weights in stored.weights.items():
                kept = {name: w.clone() for name, w in weights.items()}
                snapshots.append(((step + 1) * batch, sigma_rel, kept))
    return snapshots, direct.weights, steps * batch


@pytest.mark.parametrize("sigma_rel", [0.04, 0.07, 0.15, 0.2])
def test_any_length_is_reconstructed_from_snapshots(tracked, sigma_rel):
    snapshots, direct, images = tracked
    times, lengths, weights = zip(*snapshots, strict=True)
    coefficients = post_hoc_coefficients(times, lengths, images, sigma_rel)
    found = combine(weights, coefficients)["w"]
    expected = direct[sigma_rel]["w"]
    # How far apart lengths are, to say that the reconstruction is not just any average.
    spread = min((weights[i]["w"] - expected).norm() for i in (-1, -2))
    assert (found - expected).norm() < 0.03 * spread
    assert (found - expected).norm() < 0.01 * expected.norm()


def test_a_stored_snapshot_is_its_own_reconstruction():
    times, lengths = [100, 100, 200, 200, 300, 300], [0.05, 0.10] * 3
    coefficients = post_hoc_coefficients(times, lengths, 200, 0.10)
    np.testing.assert_allclose(coefficients, [0, 0, 0, 1, 0, 0], atol=1e-9)


GRID = (np.arange(200_000) + 0.5) / 200_000 * 1000  # images, the middles of equal cells


def profile(t, sigma_rel):
    """Weight of the weights at each of GRID's images in an average taken at t images."""
    gamma = power_exponent(sigma_rel)
    return np.where(t >= GRID, (gamma + 1) / t * np.minimum(GRID / t, 1) ** gamma, 0)


def test_coefficients_are_the_closest_profile_of_sum_one():
    """Against a least-squares fit of the profiles on a fine grid, divided by its sum."""
    times, lengths = [300, 600, 600, 1000, 1000], [0.1, 0.05, 0.1, 0.05, 0.1]
    basis = np.stack([profile(t, length) for t, length in zip(times, lengths, strict=True)], axis=1)
    expected, *_ = np.linalg.lstsq(basis, profile(900, 0.15), rcond=None)
    assert abs(expected.sum() - 1) > 1e-3  # the fit alone would scale the network
    found = post_hoc_coefficients(times, lengths, 900, 0.15)
    np.testing.assert_allclose(found, expected / expected.sum(), atol=1e-4)


# What a run keeps with two milestones and its end, and lengths that its profiles fit badly.
FEW = [((250, 500, 1000), (0.05, 0.1), 0.15), ((250, 500, 1000), (0.1,), 0.2)]


@pytest.mark.parametrize(("milestones", "kept", "length"), FEW)
def test_few_milestones_still_give_an_average(milestones, kept, length):
    """The profile that the combined weights have sums to one over the run."""
    times = [t for t in milestones for _ in kept]
    lengths = [one for _ in milestones for one in kept]
    found = post_hoc_coefficients(times, lengths, 1000, length)
    assert found.sum() == pytest.approx(1, abs=1e-12)
    parts = (c * profile(t, one) for c, t, one in zip(found, times, lengths, strict=True))
    assert sum(parts).mean() * 1000 == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("milestones", "kept", "length"), FEW)
def test_few_milestones_come_near_the_tracked_average(milestones, kept, length):
    """On a run that settles, as training does: scaled weights would be far off the tracked ones."""
    rng = np.random.default_rng(4)
    settled, start = rng.normal(size=(2, 200))
    module = Weights(start)
    stored, direct = PowerEMA(module, kept), PowerEMA(module, (length,))
    snapshots, times, lengths = [], [], []
    for images in range(1, 1001):
        noise = rng.normal(size=200) / 10
        module.set(settled + (start - settled) * np.exp(-images / 100) + noise)
        stored.update(images - 1, 1)
        direct.update(images - 1, 1)
        if images in milestones:
            for one, weights in stored.weights.items():
                snapshots.append({"w": weights["w"].clone()})
                times.append(images)
                lengths.append(one)
    found = combine(snapshots, post_hoc_coefficients(times, lengths, 1000, length))["w"]
    expected = direct.weights[length]["w"]
    assert (found - expected).norm() < 0.03 * expected.norm()


def test_combine_is_a_sum_in_float64():
    snapshots = [{"w": torch.full((2,), value)} for value in (3e7, 1.0, -3e7)]
    combined = combine(snapshots, [1, 1, 1])["w"]
    assert combined.dtype == torch.float32
    assert combined.tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="one coefficient"):
        combine(snapshots, [1, 1])
