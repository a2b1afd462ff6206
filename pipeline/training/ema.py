"""Averages of the weights along training: exponential, and power-function with post-hoc length.

Only parameters are averaged: the networks here keep no running statistics in buffers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

Weights = dict[str, torch.Tensor]


class _Average:
    """A copy of a module's parameters that is pulled towards them, one fused step each time."""

    def __init__(self, module: torch.nn.Module) -> None:
        named = dict(module.named_parameters())
        for name, p in named.items():
            if p.dtype not in (torch.float32, torch.float64):
                raise ValueError(f"an average of {p.dtype} weights ({name}) would stall")
        self._live = list(named.values())
        self.weights: Weights = {name: p.detach().clone() for name, p in named.items()}
        self._own = list(self.weights.values())

    @torch.no_grad()
    def pull(self, weight: float) -> None:
        torch._foreach_lerp_(self._own, self._live, weight)

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        if set(weights) != set(self.weights):
            odd = sorted(set(weights) ^ set(self.weights))
            raise ValueError(f"the stored average is of another network: {', '.join(odd[:5])}")
        for name, own in self.weights.items():
            own.copy_(weights[name])


class EMA:
    """Exponential moving average of a module's parameters, its half-life in images.

    With `rampup_ratio` the half-life is at most that ratio of the images seen so far, so the first
    weights are forgotten quickly (EDM, Karras et al. 2022, arXiv 2206.00364: 0.05).
    """

    def __init__(
        self, module: torch.nn.Module, halflife_images: float, rampup_ratio: float | None = 0.05
    ) -> None:
        if not halflife_images > 0 or (rampup_ratio is not None and not rampup_ratio > 0):
            raise ValueError("half-life and ramp-up ratio of an EMA must be positive")
        self.halflife_images = halflife_images
        self.rampup_ratio = rampup_ratio
        self._average = _Average(module)

    @property
    def weights(self) -> Weights:
        """The average, by parameter name; updated in place."""
        return self._average.weights

    def decay(self, images_seen: int, batch: int) -> float:
        """Factor on the old average for a step of `batch` images after `images_seen` others."""
        halflife = self.halflife_images
        if self.rampup_ratio is not None:
            halflife = min(halflife, images_seen * self.rampup_ratio)
        return 0.5 ** (batch / halflife) if halflife > 0 else 0.0

    def update(self, images_seen: int, batch: int) -> None:
        """After an optimizer step on `batch` images; `images_seen` counts those before it."""
        self._average.pull(1 - self.decay(images_seen, batch))

    def state_dict(self) -> Weights:
        return self.weights

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Raises ValueError if the names are not those of this module's parameters."""
        self._average.load(state)


class PowerEMA:
    """Power-function averages of several lengths, from whose snapshots any length follows.

    An average of relative length sigma_rel at t images weighs the weights at s images by
    s^gamma (Karras et al. 2024, arXiv 2312.02696, section 3.1). Keep `weights` at regular
    intervals and reconstruct with `post_hoc_coefficients` and `combine`.
    """

    def __init__(self, module: torch.nn.Module, sigma_rels: Sequence[float] = (0.05, 0.10)) -> None:
        self._gammas = {sigma_rel: power_exponent(sigma_rel) for sigma_rel in sigma_rels}
        self._averages = {sigma_rel: _Average(module) for sigma_rel in sigma_rels}

    @property
    def weights(self) -> dict[float, Weights]:
        """The average of each sigma_rel, by parameter name; updated in place."""
        return {sigma_rel: average.weights for sigma_rel, average in self._averages.items()}

    def update(self, images_seen: int, batch: int) -> None:
        """After an optimizer step on `batch` images; `images_seen` counts those before it."""
        for sigma_rel, average in self._averages.items():
            decay = (images_seen / (images_seen + batch)) ** (self._gammas[sigma_rel] + 1)
            average.pull(1 - decay)

    def state_dict(self) -> dict[float, Weights]:
        return self.weights

    def load_state_dict(self, state: Mapping[float, Mapping[str, torch.Tensor]]) -> None:
        """Raises ValueError if the lengths or parameter names are not those of this object."""
        if set(state) != set(self._averages):
            raise ValueError(f"stored averages have lengths {sorted(state)}, not these")
        for sigma_rel, weights in state.items():
            self._averages[sigma_rel].load(weights)


def power_exponent(sigma_rel: float) -> float:
    """gamma of the power-function average whose standard deviation is sigma_rel * t.

    The largest root of sigma_rel^2 (gamma + 2)^2 (gamma + 3) = gamma + 1 (EDM2, appendix C).
    Raises ValueError unless 0 < sigma_rel < 1 / sqrt(12), the length of the plain mean.
    """
    if not 0 < sigma_rel < 12**-0.5:
        raise ValueError(f"sigma_rel must lie in (0, 0.2887), got {sigma_rel}")
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def post_hoc_coefficients(
    images: Sequence[float],
    sigma_rels: Sequence[float],
    target_images: float,
    target_sigma_rel: float,
) -> np.ndarray:
    """Coefficients [n] that combine n snapshots into the average of another length.

    Snapshot i was taken at images[i] of an average with sigma_rels[i]. The profile closest in the
    least-squares sense to the target's, divided by its sum as EDM2's code does: few snapshots fit
    the profile badly, and a sum other than 1 would scale the network (section 3.2 and appendix C).
    In float64.
    """
    t = np.asarray(images, dtype=np.float64)
    if len(t) != len(sigma_rels) or not len(t) or t.min() <= 0 or target_images <= 0:
        raise ValueError("post_hoc_coefficients needs a positive image count for each length")
    gamma = np.array([power_exponent(sigma_rel) for sigma_rel in sigma_rels])
    target_gamma = power_exponent(target_sigma_rel)
    inner = _profile_product(t[:, None], gamma[:, None], t[None, :], gamma[None, :])
    target = _profile_product(t, gamma, target_images, target_gamma)
    # Profiles of unit norm: early snapshots have much taller ones.
    norm = np.sqrt(np.diag(inner))
    solution, *_ = np.linalg.lstsq(inner / norm / norm[:, None], target / norm, rcond=None)
    coefficients = solution / norm
    return coefficients / coefficients.sum()


def combine(
    snapshots: Sequence[Mapping[str, torch.Tensor]], coefficients: Sequence[float] | np.ndarray
) -> Weights:
    """Sum of the snapshots with these coefficients, added up in float64, in their own dtype."""
    if len(snapshots) != len(coefficients) or not len(snapshots):
        raise ValueError("combine needs one coefficient for each snapshot")
    weights = {}
    for name, first in snapshots[0].items():
        total = torch.zeros_like(first, dtype=torch.float64)
        for snapshot, coefficient in zip(snapshots, coefficients, strict=True):
            total.add_(snapshot[name].to(torch.float64), alpha=float(coefficient))
        weights[name] = total.to(first.dtype)
    return weights


def _profile_product(t_a, gamma_a, t_b, gamma_b):
    """Inner product of two profiles p(s) = (gamma + 1) s^gamma / t^(gamma + 1) on [0, t]."""
    ratio = np.where(t_a < t_b, t_a / t_b, t_b / t_a)
    later = np.where(t_a < t_b, gamma_b, gamma_a)
    scale = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return scale * ratio**later / np.maximum(t_a, t_b)
