"""Which noise levels exist: schedules of T states, and what a schedule costs.

A state is a log-SNR; a schedule is a float64 array of T of them from the cleanest (state 1) to the
noisiest (state T), strictly decreasing. Only the last may be -inf (zero terminal SNR). numpy only,
so that planning stays cheap.

A spectrum is the PCA eigenvalues c_i of the data in the scale that the network sees (mean 1 for
unit average variance). A Gaussian with that spectrum has, per dimension,

    mmse(log_snr) = mean_i c_i / (1 + c_i snr)
    -d mmse / d log_snr = mean_i snr c_i^2 / (1 + c_i snr)^2

An error curve is a measured stand-in for mmse: a pair (log_snr [n], error [n]), the mean squared
x0 error of some denoiser at n noise levels. Measured with the same images and noise at all levels
it is smooth; where it is nearly flat, noise of 1 % moves a fitted state by up to 1 in log-SNR.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.levels.params import Schedule

ErrorCurve = tuple[Sequence[float], Sequence[float]]

# DDPM's betas go from the one over T to the other over T.
BETA_START, BETA_END = 0.1, 20.0
# DDPM's and iDDPM's bound on a step's variance, without which their last state has no signal left.
MAX_BETA = 0.999
COSINE_OFFSET = 0.008
# Grid cells over which a fitted density is integrated: about 1e-6 in log-SNR over a range of 18.
CELLS = 8192
# Even log-SNRs that `elbo` chooses from: so many, or more for many states.
CANDIDATES, CANDIDATES_PER_STATE = 513, 8
DECIMALS = 8


def build(
    block: Schedule,
    states: int,
    *,
    spectrum: Sequence[float] | None = None,
    error_curve: ErrorCurve | None = None,
) -> np.ndarray:
    """A schedule of `states` log-SNRs, cleanest first: float64 [states], strictly decreasing.

    block: its `shift`, if it has one, a number. states: the block's own number, or any of a
    continuous one.
    spectrum, error_curve: what a schedule that is fitted to the data is fitted to; given both, the
    measured curve decides.

    With T = 1 the one state is the schedule's noisy end, where sampling starts (for `cosine` and
    `linear` the last beta alone). `zero_terminal` replaces the noisiest state by -inf (alpha = 0);
    with T = 1 that leaves nothing but the data's mean to learn.

    Log-SNRs are rounded to 8 decimals. UserError for settings that do not give T distinct states,
    or an error curve that ends before the schedule.
    """
    options = block.arguments("states", "shift", "zero_terminal", "source", "pilot_images")
    if spectrum is not None or error_curve is not None:
        options["mmse"] = _mmse(block, spectrum, error_curve)
    # Rounded, because the last bits of log and exp differ between CPUs and a state's value is part
    # of an expert's identity; adding 0 makes -0 the same state as 0.
    shift = getattr(block, "added", getattr(block, "shift", 0.0))
    log_snr = np.round(block.maker(states, **options) + shift, DECIMALS) + 0.0
    if getattr(block, "zero_terminal", False):
        log_snr[-1] = -math.inf
    if not (np.isfinite(log_snr[:-1]).all() and (np.diff(log_snr) < 0).all()):
        raise UserError(
            f"schedule '{block.kind}': these options do not give {states} distinct states; "
            "use fewer states or a wider range"
        )
    return log_snr


def subset(total: int, steps: int) -> np.ndarray:
    """Indices [steps] of some of `total` states, increasing, even in index, both ends among them.

    For samplers that use fewer states than were trained. One step alone is the noisiest state:
    that is where sampling starts. UserError unless 1 <= steps <= total.
    """
    if not 1 <= steps <= total:
        raise UserError(f"steps must lie between 1 and the {total} states there are, not {steps}")
    if steps == 1:
        return np.array([total - 1])
    return (np.arange(steps) * (total - 1) + (steps - 1) // 2) // (steps - 1)


def diagnose(states: Sequence[float], spectrum: Sequence[float]) -> dict[str, Any]:
    """What a schedule costs on Gaussian data with this spectrum: a dict of arrays and floats.

    Steps go from state t to the cleaner s = t - 1; arrays over steps have T - 1 entries, cleanest
    step first. The reverse step is the posterior of z given x_t seen through a Gaussian channel of
    signal-to-noise ratio `channel_snr`, so it is near Gaussian where channel_snr * Cov(z | x_t) is
    below about 1 in every direction in which the posterior itself is not Gaussian.

    * `step` [T-1]: D = log_snr_s - log_snr_t;
    * `step_expm1` [T-1]: e^D - 1, a bound on `condition` for log-concave data; up to about 0.6 is
      a safe step;
    * `channel_snr` [T-1]: snr_s - snr_t;
    * `condition_top` [T-1], `condition_mean` [T-1]: channel_snr * Cov(z | x_t) along the first
      principal component, where it is largest, and its mean over components;
    * `condition_component` [d]: the largest over steps, per component in the spectrum's order;
    * `gap` [T-1], `gap_total`: nats per dimension by which a Gaussian reverse step of fixed
      variance misses the true one, (r - ln(1 + r))/2 with r the condition, averaged over
      components; the total is the discretisation gap of the evidence bound;
    * `leaked_signal`: amplitude of the first principal component in x_T over that of the noise;
    * `residual_noise`: root mean squared error per dimension left in x0hat(x_1), data units.

    With a terminal state of -inf its step has `step` = `step_expm1` = inf; the rest is finite.
    """
    log_snr = np.asarray(states, dtype=np.float64)
    eigenvalues = _checked_spectrum(spectrum)
    top = float(eigenvalues.max())
    snr = np.exp(log_snr)
    step = log_snr[:-1] - log_snr[1:]
    channel_snr = snr[:-1] - snr[1:]
    condition_mean, gap = np.zeros_like(step), np.zeros_like(step)
    condition_component = np.zeros_like(eigenvalues)
    for t, (weight, noisy) in enumerate(zip(channel_snr, snr[1:], strict=True)):
        condition = weight * eigenvalues / (1 + eigenvalues * noisy)
        condition_mean[t] = condition.mean()
        gap[t] = (condition - np.log1p(condition)).mean() / 2
        np.maximum(condition_component, condition, out=condition_component)
    return {
        "step": step,
        "step_expm1": np.expm1(step),
        "channel_snr": channel_snr,
        "condition_top": channel_snr * top / (1 + top * snr[1:]),
        "condition_mean": condition_mean,
        "condition_component": condition_component,
        "gap": gap,
        "gap_total": float(gap.sum()),
        "leaked_signal": float(np.sqrt(top * snr[-1])),
        "residual_noise": float(np.sqrt((eigenvalues / (1 + eigenvalues * snr[0])).mean())),
    }


def gaussian_mmse(log_snr: np.ndarray, spectrum: Sequence[float]) -> np.ndarray:
    """Mean squared error per dimension of the best denoiser of Gaussian data, at each log-SNR."""
    snr = np.exp(np.asarray(log_snr, dtype=np.float64))
    total = np.zeros_like(snr)
    for c in _checked_spectrum(spectrum):
        total += c / (1 + c * snr)
    return total / len(spectrum)


def gaussian_mmse_slope(log_snr: np.ndarray, spectrum: Sequence[float]) -> np.ndarray:
    """-d mmse / d log_snr of Gaussian data, at each log-SNR."""
    snr = np.exp(np.asarray(log_snr, dtype=np.float64))
    total = np.zeros_like(snr)
    for c in _checked_spectrum(spectrum):
        total += snr * (c / (1 + c * snr)) ** 2
    return total / len(spectrum)


def mmse_slope(
    log_snr: np.ndarray, spectrum: Sequence[float], error_curve: ErrorCurve | None = None
) -> np.ndarray:
    """-d mmse / d log_snr at each log-SNR, from the measured curve if there is one."""
    mmse = _Gaussian(spectrum) if error_curve is None else _Measured(error_curve)
    return mmse.slope(np.asarray(log_snr, dtype=np.float64))


class _Gaussian:
    """mmse from a spectrum."""

    def __init__(self, spectrum: Sequence[float]):
        self.spectrum = _checked_spectrum(spectrum)

    def __call__(self, log_snr: np.ndarray) -> np.ndarray:
        return gaussian_mmse(log_snr, self.spectrum)

    def slope(self, log_snr: np.ndarray) -> np.ndarray:
        return gaussian_mmse_slope(log_snr, self.spectrum)


class _Measured:
    """mmse from an error curve: its isotonic fit, joined up from block centre to block centre.

    mmse falls strictly with log-SNR, and a noisy measurement does not. The isotonic fit pools the
    violations into flat blocks; a line through the blocks' centres has no flat parts, where the
    density of nodes would vanish. Beyond the outer centres the outer slopes go on.
    """

    def __init__(self, error_curve: ErrorCurve):
        from scipy.optimize import isotonic_regression

        log_snr, error = (np.asarray(values, dtype=np.float64) for values in error_curve)
        if log_snr.ndim != 1 or log_snr.shape != error.shape or len(log_snr) < 2:
            raise ValueError("an error curve is two lists of one length, 2 at least")
        order = np.argsort(log_snr)
        log_snr, error = log_snr[order], error[order]
        if not (np.isfinite(log_snr).all() and np.isfinite(error).all() and (error >= 0).all()):
            raise ValueError(
                "an error curve holds finite numbers, and errors that are not negative"
            )
        if not (np.diff(log_snr) > 0).all():
            raise ValueError("an error curve has one error for a log-SNR")
        fit = isotonic_regression(error, increasing=False)
        self.range = log_snr[0], log_snr[-1]
        self.knots = np.add.reduceat(log_snr, fit.blocks[:-1]) / np.diff(fit.blocks)
        self.values = fit.x[fit.blocks[:-1]]
        if len(self.knots) < 2:
            raise ValueError("an error curve must fall with log-SNR; this one does not")
        self.slopes = -np.diff(self.values) / np.diff(self.knots)

    def __call__(self, log_snr: np.ndarray) -> np.ndarray:
        return np.interp(log_snr, self.knots, self.values)

    def slope(self, log_snr: np.ndarray) -> np.ndarray:
        segment = np.searchsorted(self.knots, log_snr) - 1
        return self.slopes[np.clip(segment, 0, len(self.slopes) - 1)]


Mmse = _Gaussian | _Measured


def _even(clean: float, noisy: float, states: int) -> np.ndarray:
    # Counted from the noisy end, so that one state alone is the noisy one.
    return np.linspace(noisy, clean, states)[::-1]


def _from_betas(betas: np.ndarray) -> np.ndarray:
    log_alpha2 = np.cumsum(np.log1p(-np.minimum(betas, MAX_BETA)))
    return log_alpha2 - np.log(-np.expm1(log_alpha2))


def linear(states: int) -> np.ndarray:
    """DDPM's betas, evenly spaced, at most 0.999 (Nichol & Dhariwal 2021 for T other than 1000)."""
    return _from_betas(_even(BETA_START, BETA_END, states) / states)


def cosine(states: int) -> np.ndarray:
    """alpha^2 = cos^2((t/T + offset)/(1 + offset) pi/2), betas at most 0.999 (the same paper)."""
    time = np.arange(states + 1) / states
    alpha2 = np.cos((time + COSINE_OFFSET) / (1 + COSINE_OFFSET) * np.pi / 2) ** 2
    return _from_betas(1 - alpha2[1:] / alpha2[:-1])


def uniform(states: int, log_snr_max: float, log_snr_min: float) -> np.ndarray:
    """Even in log-SNR from the clean end to the noisy one."""
    return _even(log_snr_max, log_snr_min, states)


def edm(
    states: int, sigma_min: float, sigma_max: float, sigma_data: float, rho: float
) -> np.ndarray:
    """Even in sigma^(1/rho) for data of standard deviation sigma_data (Karras et al. 2022, equation
    5), log-SNR = -2 ln(sigma/sigma_data).
    """
    sigma = _even(sigma_min ** (1 / rho), sigma_max ** (1 / rho), states) ** rho
    return -2 * np.log(sigma / sigma_data)


def logistic(
    states: int, mean: float, scale: float, log_snr_max: float, log_snr_min: float
) -> np.ndarray:
    """Quantiles of a logistic density in log-SNR, truncated to the ends.

    The cosine schedule's density is close to scale 1.73; a large scale tends to `uniform`.
    """
    clean, noisy = (log_snr_max - mean) / scale, (log_snr_min - mean) / scale
    # Quantiles lose their digits close to 1: work on the side of the mean with more of the range.
    side = -1 if clean + noisy > 0 else 1
    low, high = (np.exp(-np.logaddexp(0, -side * end)) for end in (noisy, clean))
    quantile = _even(high, low, states)
    log_snr = mean + side * scale * (np.log(quantile) - np.log1p(-quantile))
    return _pinned(log_snr, log_snr_max, log_snr_min)


def explicit(states: int, log_snr: Sequence[float]) -> np.ndarray:
    """The states as they are listed."""
    return np.array(log_snr, dtype=np.float64)


def fitted(
    states: int, power: float, log_snr_max: float, log_snr_min: float, mmse: Mmse
) -> np.ndarray:
    """Node density (-d mmse / d log_snr)^power between the ends.

    Power 1 makes every step change x0hat alike in mean square, power 0 is `uniform`; 1/4 to 1/2
    sample well.
    """
    grid = np.linspace(log_snr_min, log_snr_max, CELLS + 1)
    density = mmse.slope(grid) ** power
    mass = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    log_snr = np.interp(_even(mass[-1], 0.0, states), mass, grid)
    return _pinned(log_snr, log_snr_max, log_snr_min)


def elbo(states: int, log_snr_max: float, log_snr_min: float, mmse: Mmse) -> np.ndarray:
    """The states between the ends with the least evidence bound, by exact dynamic programming.

    For comparison: it crowds the clean end, and samples worse than any other schedule.
    """
    number = max(CANDIDATES, CANDIDATES_PER_STATE * states + 1)
    grid = np.linspace(log_snr_min, log_snr_max, number)
    path = least_bound_path(np.exp(grid), mmse(grid), states - 1)
    return grid[path][::-1]


def least_bound_path(snr: np.ndarray, mmse: np.ndarray, steps: int) -> np.ndarray:
    """Candidate indices [steps + 1] from first to last that minimise the evidence bound.

    A step from the noisy candidate i to the cleaner j > i costs (snr_j - snr_i) mmse_i / 2
    (Kingma et al. 2021, equation 13). snr [n] must rise and mmse [n] must not, which makes the best
    predecessor rise with j; so each of the `steps` layers of the dynamic programme (Watson et al.
    2021) takes n log n instead of n^2. With 0 steps the path is the first candidate.
    """
    last = len(snr) - 1
    cost = np.where(np.arange(last + 1) == 0, 0.0, np.inf)
    layers = []
    for k in range(1, steps + 1):
        # k steps reach candidate j from i = k - 1, ..., j - 1. Candidates are settled at halving
        # strides, each between the predecessors of its two settled neighbours.
        at = np.arange(k, last + 1)
        best = np.empty(last + 1, dtype=np.int32)
        reached = np.full(last + 1, np.inf)
        stride = 1 << (len(at) - 1).bit_length()
        while stride:
            j = at[stride - 1 :: 2 * stride]
            if len(j):
                below, above = j - stride, j + stride
                first = np.where(below < k, k - 1, best[np.maximum(below, k)])
                final = np.where(above > last, j - 1, best[np.minimum(above, last)])
                final = np.minimum(final, j - 1)
                count = final - first + 1
                start = np.cumsum(count) - count
                i = np.arange(count.sum()) + np.repeat(first - start, count)
                value = cost[i] + (np.repeat(snr[j], count) - snr[i]) * mmse[i]
                reached[j] = np.minimum.reduceat(value, start)
                hits = np.flatnonzero(value == np.repeat(reached[j], count))
                best[j] = i[hits[np.searchsorted(hits, start)]]
            stride //= 2
        cost = reached
        layers.append(best)
    path = [last if steps else 0]
    for best in reversed(layers):
        path.append(int(best[path[-1]]))
    return np.array(path[::-1])


def _pinned(log_snr: np.ndarray, clean: float, noisy: float) -> np.ndarray:
    log_snr[0] = clean
    log_snr[-1] = noisy
    return log_snr


def _mmse(block: Any, spectrum: Sequence[float] | None, error_curve: ErrorCurve | None) -> Mmse:
    if error_curve is None:
        return _Gaussian(spectrum)
    measured = _Measured(error_curve)
    lowest, highest = measured.range
    if block.log_snr_min < lowest or block.log_snr_max > highest:
        raise UserError(
            f"schedule '{block.kind}': log_snr_min and log_snr_max must lie within the error "
            f"curve, which spans {lowest:g} to {highest:g}"
        )
    return measured


def _checked_spectrum(spectrum: Sequence[float]) -> np.ndarray:
    values = np.asarray(spectrum, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all() or (values < 0).any() or not values.any():
        raise ValueError("a spectrum is a list of finite eigenvalues, none negative, not all zero")
    return values
