"""Gaussian mixtures under noise, in closed form and float64: the oracle for samplers and losses."""

import math

import torch
from torch import Tensor


class GaussianMixture:
    """p(z) = sum_k w_k N(mean_k, cov_k) seen as x = alpha z + sigma eps at any log-SNR.

    weights [K], means [K, d], covs [K, d, d]; positive semi-definite covariances will do for
    everything at finite log-SNR. log_snr: a float or a tensor [N], -inf allowed; +inf is the data
    itself. All answers are float64.
    """

    def __init__(self, weights, means, covs):
        self.weights = torch.as_tensor(weights, dtype=torch.float64)
        self.weights = self.weights / self.weights.sum()
        self.means = torch.as_tensor(means, dtype=torch.float64)
        self.covs = torch.as_tensor(covs, dtype=torch.float64)
        variances, self.axes = torch.linalg.eigh(self.covs)  # [K, d], [K, d, d]
        self.variances = variances.clamp_min(0)
        self.dim = self.means.shape[1]

    def unit(self) -> "GaussianMixture":
        """The same mixture moved and scaled to zero mean and unit average variance."""
        centred = self.means - self.weights @ self.means
        scale = torch.trace(self.covariance()) / self.dim
        return GaussianMixture(self.weights, centred / scale.sqrt(), self.covs / scale)

    def covariance(self) -> Tensor:
        """Cov(z) [d, d]."""
        centred = self.means - self.weights @ self.means
        between = torch.einsum("k,ki,kj->ij", self.weights, centred, centred)
        return between + torch.einsum("k,kij->ij", self.weights, self.covs)

    def _parts(self, x: Tensor, log_snr) -> tuple[Tensor, ...]:
        log_snr = torch.as_tensor(log_snr, dtype=torch.float64).expand(len(x))[:, None, None]
        alpha2, sigma2 = torch.sigmoid(log_snr), torch.sigmoid(-log_snr)
        offset = x.double()[:, None] - alpha2.sqrt() * self.means  # [N, K, d]
        offset = torch.einsum("kdi,nkd->nki", self.axes, offset)
        total = alpha2 * self.variances + sigma2  # [N, K, d]
        log_joint = self.weights.log() - 0.5 * (
            offset.square() / total + total.log() + math.log(2 * math.pi)
        ).sum(-1)
        return alpha2.sqrt(), offset, total, log_joint

    def log_pdf(self, x: Tensor, log_snr=math.inf) -> Tensor:
        """Log density of the noisy sample, [N, d] -> [N]."""
        return torch.logsumexp(self._parts(x, log_snr)[-1], 1)

    def cdf(self, x: Tensor, log_snr=math.inf) -> Tensor:
        """Distribution function of a one-dimensional mixture, [N, 1] -> [N]."""
        _, offset, total, _ = self._parts(x, log_snr)
        return torch.special.ndtr((offset * self.axes[:, 0] / total.sqrt())[..., 0]) @ self.weights

    def score(self, x: Tensor, log_snr=math.inf) -> Tensor:
        """Gradient of log_pdf, [N, d]."""
        _, offset, total, log_joint = self._parts(x, log_snr)
        pull = torch.einsum("kdi,nki->nkd", self.axes, -offset / total)
        return (torch.softmax(log_joint, 1)[..., None] * pull).sum(1)

    def posterior_mean(self, x: Tensor, log_snr) -> Tensor:
        """E[z | x], [N, d]: the optimal denoiser."""
        alpha, offset, total, log_joint = self._parts(x, log_snr)
        pull = torch.einsum("kdi,nki->nkd", self.axes, alpha * self.variances / total * offset)
        return (torch.softmax(log_joint, 1)[..., None] * (self.means + pull)).sum(1)

    def sample(self, n: int, seed: int) -> Tensor:
        """n draws of z, [n, d]."""
        generator = torch.Generator().manual_seed(seed)
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        normal = torch.randn(n, self.dim, dtype=torch.float64, generator=generator)
        spread = torch.einsum(
            "ndi,ni->nd", self.axes[component], self.variances[component].sqrt() * normal
        )
        return self.means[component] + spread


def three_in_the_plane() -> GaussianMixture:
    """Unequal weights, tilted and nearly flat covariances; unit average variance."""
    return GaussianMixture(
        [0.5, 0.3, 0.2],
        [[2.0, 0.0], [-1.0, 1.5], [-1.0, -2.0]],
        [[[0.3, 0.1], [0.1, 0.2]], [[0.1, 0.0], [0.0, 0.6]], [[0.4, -0.25], [-0.25, 0.2]]],
    ).unit()


def two_on_a_line() -> GaussianMixture:
    """Bimodal in one dimension, unit variance."""
    return GaussianMixture([0.65, 0.35], [[-1.0], [1.2]], [[[0.08]], [[0.15]]]).unit()
