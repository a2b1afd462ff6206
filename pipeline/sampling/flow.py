"""Samplers that step in the time of a flow, y = (1 - t) z + t eps.

y is x/(alpha + sigma) at t = sigma/(alpha + sigma), and its velocity, which flow matching learns,
is (y - x0hat)/t: known at every state, -inf (t = 1) among them, whatever the network predicts.
"""

import torch
from torch import Tensor

from pipeline.noise.process import alpha_sigma
from pipeline.sampling.samplers import Sample, walk


def euler() -> Sample:
    """Euler's method: on the same states it is `ddim` without noise, but for rounding."""
    return walk(_euler)


def heun_flow() -> Sample:
    """Heun's method: the mean of the velocities at both ends of a step. Second-order."""
    return walk(_heun)


def _time(log_snr: float) -> tuple[float, float]:
    """t, and the factor between x and y."""
    alpha, sigma = alpha_sigma(log_snr)
    return sigma / (alpha + sigma), alpha + sigma


def _velocity(x: Tensor, x0: Tensor, log_snr: float) -> Tensor:
    time, factor = _time(log_snr)
    return (x / factor - x0) / time


def _step(x: Tensor, velocity: Tensor, log_snr_t: float, log_snr_s: float) -> Tensor:
    (t, factor_t), (s, factor_s) = _time(log_snr_t), _time(log_snr_s)
    return factor_s * torch.add(x / factor_t, velocity, alpha=s - t)


def _euler(denoise, x, x0, previous, states, i, noise):
    return _step(x, _velocity(x, x0, states[i]), states[i], states[i - 1])


def _heun(denoise, x, x0, previous, states, i, noise):
    velocity = _velocity(x, x0, states[i])
    ahead = _step(x, velocity, states[i], states[i - 1])
    there = _velocity(ahead, denoise(ahead, states[i - 1]), states[i - 1])
    return _step(x, (velocity + there) / 2, states[i], states[i - 1])
