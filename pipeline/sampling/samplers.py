"""From noise to data: samplers over a list of states.

Every sampler has one signature,

    sample(denoise, x, states, *, noise=None, callback=None) -> x0

* `denoise(x, log_snr) -> x0hat` estimates z at x. It is asked at the given states only and with
  the very floats of `states`, so the experts of a mixture can be told apart by them. Only churn
  asks between them.
* `x` [N, ...] is the start at the noisiest state, variance preserving: alpha z + sigma eps, in
  practice plain noise.
* `states` are log-SNRs ordered from cleanest to noisiest like everywhere (strictly decreasing);
  the sampler walks them from the last to the first. The last may be -inf (zero terminal SNR).
* `noise(i)` gives the noise injected by the step that leaves `states[i]`, i = T-1, ..., 1 (with
  churn also 0), in the shape of x. It belongs to the caller and must be a pure function, which is
  what makes a sample reproducible. Samplers that inject none never ask.
* `callback` gets a dict with `index`, `log_snr`, `x` and `x0` each time the walk reaches a state.

The answer is the estimate at the cleanest state, x0hat(x_1): the last step is to the clean image.
T states cost T evaluations, with `heun` 2T - 1.

All steps are written in x and x0hat with coefficients that stay bounded for every pair of states;
with D = log_snr_s - log_snr_t > 0 for the step from t to the cleaner s,
alpha_t sigma_s / (alpha_s sigma_t) = e^(-D/2).
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.noise.process import Denoiser, alpha_sigma
from pipeline.sampling.params import Sampling, Walk

Noise = Callable[[int], Tensor]
Sample = Callable[..., Tensor]

SIGMA_DATA = 0.5  # of EDM's noise levels, in which s_min and s_max are given
Clip = tuple[float, float] | tuple[Tensor, Tensor]


def sampler(block: Sampling) -> Sample:
    """The sampler of a block `sampling` of params.yaml, a function `sample` as described above.

    The block names the function that makes it of its keys (`made_by`).
    """
    return block.maker(**block.arguments(*Walk.model_fields))


def ddim(*, eta: float) -> Sample:
    """Song et al. 2021: eta = 0 is deterministic, eta = 1 is `ddpm`."""
    return walk(_ddim(eta))


def ddpm(*, variance: str) -> Sample:
    """Ancestral sampling (Ho et al. 2020), the posterior q(x_s | x_t, x0hat).

    variance: `small`, the posterior's own, or `large`, beta = 1 - alpha_t^2/alpha_s^2 (the code's
    fixedsmall and fixedlarge).
    """
    return walk(_ddim(1.0, variance == "large"))


def heun(*, s_churn: float, s_min: float, s_max: float | None, s_noise: float) -> Sample:
    """EDM's second-order solver in sigma/alpha (Karras et al. 2022, algorithm 2).

    Without churn it is algorithm 1. At states with noise levels sigma within s_min..s_max (None:
    all above), in EDM's units (data of standard deviation 0.5), noise raises sigma by the factor
    1 + min(s_churn/T, sqrt(2) - 1) before each step. A step from -inf, which has no finite
    sigma/alpha, is first-order.
    """
    return walk(_heun, _churn(s_churn, s_min, s_max, s_noise) if s_churn else None)


def dpmpp_2m() -> Sample:
    """DPM-Solver++(2M) in log-SNR (Lu et al. 2022, algorithm 2), second-order."""
    return walk(_dpmpp_2m)


def walk(advance: Callable[..., Tensor], churn: Callable[..., Any] | None = None) -> Sample:
    """A sampler of its step.

    `advance(denoise, x, x0, previous, states, i, noise)` goes from `states[i]` to `states[i - 1]`;
    x0 is the estimate at x, `previous` the one before (None at first). `churn(x, states, i, noise)`
    gives x and log-SNR of a noisier point to go on from.
    """

    @torch.no_grad()
    def sample(
        denoise: Denoiser,
        x: Tensor,
        states: Sequence[float],
        *,
        noise: Noise | None = None,
        callback: Callable[[dict], None] | None = None,
    ) -> Tensor:
        states = _checked(states)
        previous = None
        for i in range(len(states) - 1, -1, -1):
            if churn is not None:
                x, states[i] = churn(x, states, i, noise)
            x0 = denoise(x, states[i])
            if callback is not None:
                callback({"index": i, "log_snr": states[i], "x": x, "x0": x0})
            if i > 0:
                x = advance(denoise, x, x0, previous, states, i, noise)
                previous = x0
        return x0

    return sample


def clipped(denoise: Denoiser, clip: Clip) -> Denoiser:
    """The denoiser with its answers bounded to clip = (lowest, highest).

    In units of the scaled data: numbers, or tensors that broadcast to it.
    """
    lowest, highest = clip
    return lambda x, log_snr: denoise(x, log_snr).clamp(lowest, highest)


def guided(denoise: Callable[..., tuple[Tensor, Tensor]], guidance: float) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2022) as a denoiser.

    `denoise(x, log_snr)` answers a pair, (conditional, unconditional), so that its owner may
    evaluate both in one batch. The result is unconditional + guidance * (conditional -
    unconditional): guidance 0 ignores the condition, 1 is the plain conditional model, above 1
    exaggerates. Combining x0 estimates equals combining eps or v, which are affine in them.
    """

    def combined(x: Tensor, log_snr: float | Tensor) -> Tensor:
        conditional, unconditional = denoise(x, log_snr)
        if guidance == 1:
            return conditional
        return unconditional + guidance * (conditional - unconditional)

    return combined


def _checked(states: Sequence[float]) -> list[float]:
    values = [float(value) for value in states]
    if not values or any(not clean > noisy for clean, noisy in itertools.pairwise(values)):
        raise ValueError("states must be log-SNRs from cleanest to noisiest, strictly decreasing")
    return values


def _first_order(x: Tensor, x0: Tensor, log_snr_t: float, log_snr_s: float) -> Tensor:
    """x_s = alpha_s x0 + sigma_s eps with eps = (x - alpha_t x0) / sigma_t."""
    alpha_s, sigma_s = alpha_sigma(log_snr_s)
    _, sigma_t = alpha_sigma(log_snr_t)
    shrink = -math.expm1((log_snr_t - log_snr_s) / 2)
    return (sigma_s / sigma_t) * x + (alpha_s * shrink) * x0


def _ddim(eta: float, large: bool = False) -> Callable[..., Tensor]:
    def advance(denoise, x, x0, previous, states, i, noise):
        if eta == 0:
            return _first_order(x, x0, states[i], states[i - 1])
        # DDIM's equation 16 gives the injected variance as
        # eta^2 (sigma_s/sigma_t)^2 (1 - alpha_t^2/alpha_s^2), which is eta^2 sigma_s^2 (1 - e^-D).
        alpha_s, sigma_s = alpha_sigma(states[i - 1])
        _, sigma_t = alpha_sigma(states[i])
        injected = -math.expm1(states[i] - states[i - 1])
        kept = math.sqrt(1 - eta**2 * injected)
        from_x0 = alpha_s * (1 - math.exp((states[i] - states[i - 1]) / 2) * kept)
        mean = (sigma_s / sigma_t * kept) * x + from_x0 * x0
        # DDPM's beta_t = 1 - alpha_t^2/alpha_s^2 is sigma_t^2 (1 - e^-D).
        spread = sigma_t if large else eta * sigma_s
        return mean + (spread * math.sqrt(injected)) * _injected(noise, i)

    return advance


def _churn(s_churn: float, s_min: float, s_max: float | None, s_noise: float) -> Callable[..., Any]:
    highest = math.inf if s_max is None else s_max

    def churned(x, states, i, noise):
        # In y = x/alpha and s = sigma/alpha: s goes to (1 + gamma) s, and y gets the noise between.
        gamma = min(s_churn / len(states), math.sqrt(2) - 1)
        if states[i] == -math.inf or not s_min <= SIGMA_DATA * math.exp(-states[i] / 2) <= highest:
            return x, states[i]
        noisier = states[i] - 2 * math.log1p(gamma)
        alpha, _ = alpha_sigma(states[i])
        alpha_hat, sigma_hat = alpha_sigma(noisier)
        added = sigma_hat * math.sqrt(1 - (1 + gamma) ** -2) * s_noise
        return (alpha_hat / alpha) * x + added * _injected(noise, i), noisier

    return churned


def _injected(noise: Noise | None, i: int) -> Tensor:
    if noise is None:
        raise ValueError("this sampler injects noise: pass noise(i)")
    return noise(i)


def _heun(denoise, x, x0, previous, states, i, noise):
    # EDM's average of the slopes at both ends of the step, in y = x/alpha and s = sigma/alpha,
    # is Euler's step plus alpha_s (s_t/s_s - 1)/2 times the change of x0hat.
    euler = _first_order(x, x0, states[i], states[i - 1])
    if states[i] == -math.inf:
        return euler
    alpha_s, _ = alpha_sigma(states[i - 1])
    change = denoise(euler, states[i - 1]) - x0
    return euler + (alpha_s * math.expm1((states[i - 1] - states[i]) / 2) / 2) * change


def _dpmpp_2m(denoise, x, x0, previous, states, i, noise):
    if previous is not None:
        # Half the ratio of this step to the one before, zero after a step from -inf.
        ahead = (states[i - 1] - states[i]) / (states[i] - states[i + 1]) / 2
        x0 = x0 + ahead * (x0 - previous)
    return _first_order(x, x0, states[i], states[i - 1])
