"""Guidance within an interval of noise levels, and away from a worse model (autoguidance)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.block import MOST_LOG_SNR
from pipeline.noise.process import Denoiser
from pipeline.sampling import samplers
from pipeline.sampling.mixture import Mixture


class Guided(Mixture):
    """A mixture whose samples are led away from another model, or at some noise levels alone.

    interval: log-SNRs [low, high], None for all (Kynkaanniemi et al. 2024). guide: the other model
    (Karras et al. 2024); None for the mixture itself without its classes.
    """

    def __init__(self, mixture: Mixture, interval: Sequence[float] | None, guide: Mixture | None):
        super().__init__(mixture.description, mixture._weights, mixture.device, mixture.root)
        self.led = mixture
        low, high = interval or (-math.inf, math.inf)
        if guide is not None:
            low = max(low, -MOST_LOG_SNR)  # without any signal, all models answer the mean
        self.interval, self.guide = (low, high), guide

    def denoise(self, x: Tensor, log_snr: float, labels: Tensor | None = None) -> Tensor:
        """Without guidance, as the mixture that is led."""
        return self.led.denoise(x, log_snr, labels)

    def denoiser(
        self, labels: Tensor | None = None, guidance: float = 1.0, batch: int = 256
    ) -> Denoiser:
        """As of any mixture; a guide is told the classes, if it knows any."""
        own = super().denoiser(labels, batch=batch)
        if guidance == 1:
            return own
        if self.guide is None:
            none = torch.full_like(labels, self.description["classes"])
            other = super().denoiser(none, batch=batch)
        else:
            told = labels if self.guide.description["classes"] else None
            other = self.guide.denoiser(told, batch=batch)
        return led(own, other, guidance, self.interval)


def led(
    denoise: Denoiser, other: Denoiser, guidance: float, interval: tuple[float, float]
) -> Denoiser:
    """The denoiser led away from another (see `samplers.guided`) where low <= log_snr < high.

    Elsewhere the other one is not asked.
    """
    low, high = interval
    both = samplers.guided(lambda x, at: (denoise(x, at), other(x, at)), guidance)

    def answer(x: Tensor, log_snr: float) -> Tensor:
        return (both if low <= log_snr < high else denoise)(x, log_snr)

    return answer
