"""The noising process x = alpha z + sigma eps, and what a network predicts of it (`loss`)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

LogSnr = float | Tensor
Denoiser = Callable[[Tensor, LogSnr], Tensor]


def alpha_sigma(log_snr: LogSnr) -> tuple[LogSnr, LogSnr]:
    """Signal and noise amplitude at a log-SNR: floats for a float, tensors [N] for a tensor [N].

    Both keep full relative precision however small they get; -inf gives exactly (0, 1).
    """
    if isinstance(log_snr, Tensor):
        return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()
    small = math.exp(-abs(log_snr))
    large, less = math.sqrt(1 / (1 + small)), math.sqrt(small / (1 + small))
    return (large, less) if log_snr >= 0 else (less, large)


def broadcast(values: LogSnr, like: Tensor) -> LogSnr:
    """Give per-sample values [N] the trailing axes of `like` [N, ...]; floats stay floats."""
    if isinstance(values, Tensor) and values.ndim == 1:
        return values.reshape(-1, *[1] * (like.ndim - 1))
    return values


def add_noise(z: Tensor, eps: Tensor, log_snr: LogSnr) -> Tensor:
    """The noisy sample x = alpha z + sigma eps, shape of z."""
    alpha, sigma = (broadcast(a, z) for a in alpha_sigma(log_snr))
    return alpha * z + sigma * eps


def target(prediction: str, z: Tensor, eps: Tensor, log_snr: LogSnr) -> Tensor:
    """What a network with this prediction must answer at x = alpha z + sigma eps, shape of z."""
    if prediction == "eps":
        return eps
    if prediction == "x0":
        return z
    alpha, sigma = (broadcast(a, z) for a in alpha_sigma(log_snr))
    return alpha * eps - sigma * z


def to_x0(prediction: str, output: Tensor, x: Tensor, log_snr: LogSnr) -> Tensor:
    """The estimate of z that a network's output at x stands for, shape of x.

    `x0` and `v` work at every log-SNR, -inf included. `eps` divides by alpha, so it magnifies the
    network's error (and rounding) by e^(-log_snr/2), and says nothing about z at -inf: ValueError
    for a float, a non-finite answer for a tensor.
    """
    if prediction == "x0":
        return output
    if prediction == "eps" and not isinstance(log_snr, Tensor) and log_snr == -math.inf:
        raise ValueError("an eps-prediction carries no estimate of z at log_snr = -inf")
    alpha, sigma = (broadcast(a, x) for a in alpha_sigma(log_snr))
    return (x - sigma * output) / alpha if prediction == "eps" else alpha * x - sigma * output


def squared_error(output: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error per sample, [N, ...] -> [N], in at least float32."""
    dtype = torch.promote_types(torch.promote_types(output.dtype, wanted.dtype), torch.float32)
    return (output.to(dtype) - wanted.to(dtype)).square().flatten(1).mean(1)
