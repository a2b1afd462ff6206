"""Noise level and class as one vector, which every network here is told in the same way.

The level is a log-SNR, whatever the schedule. A network whose weights or code were made elsewhere
may be told the same level in other words (`told_as`).
"""

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.devices import sent

MAX_LOG_SNR = 20.0  # beyond it a state is, to float32, all data or all noise
# Periods, in log-SNR, of the features that show it to the network: the longest is monotone over
# [-20, 20], the shortest still resolves neighbours of a 1000-state schedule.
LONGEST_PERIOD, SHORTEST_PERIOD = 4 * MAX_LOG_SNR, 1.0
LONGEST_TIME = 10_000.0  # in timesteps over 2 pi: of the sinusoids of Vaswani et al. 2017

Features = Callable[[Tensor, int], Tensor]


def log_snr_features(log_snr: Tensor, count: int) -> Tensor:
    """Sines and cosines of log_snr [N] at `count` frequencies, [N, 2 * count], unit variance.

    Log-SNRs beyond +-20, infinite ones among them, are taken for that bound.
    """
    ratio = math.log(LONGEST_PERIOD / SHORTEST_PERIOD) / max(count - 1, 1)
    steps = torch.arange(count, device=log_snr.device, dtype=log_snr.dtype)
    frequencies = torch.exp(steps * ratio) * (2 * math.pi / LONGEST_PERIOD)
    angles = log_snr.clamp(-MAX_LOG_SNR, MAX_LOG_SNR)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1) * math.sqrt(2)


def timestep_features(log_snr: Tensor, count: int) -> Tensor:
    """Cosines and sines of the timestep of log_snr [N], [N, 2 * count], as in the DiT's code."""
    steps = torch.arange(count, device=log_snr.device, dtype=log_snr.dtype)
    angles = timestep(log_snr)[:, None] * torch.exp(steps * (-math.log(LONGEST_TIME) / count))
    return torch.cat([angles.cos(), angles.sin()], 1)


FEATURES: dict[str, Features] = {"log_snr": log_snr_features, "timestep": timestep_features}


@functools.cache
def _ddpm_noises() -> tuple[float, ...]:
    """Minus log-SNR at the 1000 timesteps of DDPM's linear schedule, ascending."""
    found, log_kept = [], 0.0
    for step in range(1000):
        log_kept += math.log1p(-(1e-4 + (0.02 - 1e-4) * step / 999))
        found.append(math.log(-math.expm1(log_kept)) - log_kept)
    return tuple(found)


def timestep(log_snr: Tensor) -> Tensor:
    """The timestep, 0 to 999, of DDPM's linear schedule (Ho et al. 2020) with this log-SNR, [N].

    Between two of them it is interpolated; a log-SNR beyond the schedule has its end's.
    """
    noises = sent(torch.tensor(_ddpm_noises(), dtype=log_snr.dtype, device="cpu"), log_snr.device)
    noise = (-log_snr).clamp(noises[0], noises[-1])
    after = torch.bucketize(noise, noises).clamp(1, len(noises) - 1)
    low, high = noises[after - 1], noises[after]
    return after - 1 + (noise - low) / (high - low)


def told_as(told: str, log_snr: Tensor) -> Tensor:
    """A log-SNR [N] in other words: `log_snr`, `timestep` (see there) or `sigma`.

    Of x = alpha z + sigma eps with alpha^2 + sigma^2 = 1, `sigma` is sigma/alpha, as EDM counts it
    for data of unit variance.
    """
    if told == "sigma":
        return torch.exp(-log_snr / 2)
    return timestep(log_snr) if told == "timestep" else log_snr


class Embedding(nn.Module):
    """Noise level and class as one vector.

    width: of the vector; frequencies: of the level's features. `conditioned`: from log_snr by a
    perceptron; else one learned constant, which leaves all other parameters with the shapes they
    have in a conditioned network. `classes` > 0 adds an embedding with one index more, `classes`
    itself, for "no class".
    """

    def __init__(
        self,
        width: int,
        frequencies: int,
        classes: int,
        conditioned: bool,
        features: Features = log_snr_features,
    ):
        super().__init__()
        self.width = width
        self.frequencies = frequencies
        self.features = features
        self.classes = classes
        self.conditioned = conditioned
        if conditioned:
            self.linear1 = nn.Linear(2 * self.frequencies, self.width)
            self.linear2 = nn.Linear(self.width, self.width)
        else:
            self.constant = nn.Embedding(1, self.width)
        if classes:
            self.label = nn.Embedding(classes + 1, self.width)

    def forward(self, log_snr: Tensor | None, labels: Tensor | None) -> Tensor:
        """log_snr [N] or [1], labels int64 [N] or [1] -> [N or 1, width], through a SiLU.

        Without labels a class-conditional network is told "no class". Raises ValueError without a
        log_snr that is needed, and for labels without classes.
        """
        if self.conditioned:
            if log_snr is None:
                raise ValueError("a network conditioned on the state needs log_snr")
            # Half precision could not tell neighbouring states apart.
            exact = log_snr.to(torch.promote_types(log_snr.dtype, torch.float32))
            features = self.features(exact, self.frequencies)
            h = self.linear1(features.to(self.linear1.weight.dtype))
            h = self.linear2(F.silu(h))
        else:
            h = self.constant.weight
        if self.classes:
            h = h + (self.label.weight[-1:] if labels is None else self.label(labels))
        elif labels is not None:
            raise ValueError("labels for a network without classes")
        return F.silu(h)
