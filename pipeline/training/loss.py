"""What the network predicts, and how its loss is weighted.

Data z has unit average variance; the noisy sample is x = alpha z + sigma eps with alpha^2 =
sigmoid(log_snr) and sigma^2 = sigmoid(-log_snr). Three predictions are known:

* `eps`, the noise (Ho et al. 2020);
* `x0`, the clean data z;
* `v` = alpha eps - sigma z (Salimans & Ho 2022); a network that answers the velocity eps - z of a
  flow is one for `v`, too (`pipeline.networks.velocity`).

At one noise level they are affine images of one another, so they share one optimal denoiser and
differ in conditioning and in the implied loss weight:
|eps error|^2 = snr |x0 error|^2 and |v error|^2 = (1 + snr) |x0 error|^2.

`v` is EDM's preconditioning (Karras et al. 2022). With noise level s = sigma/alpha and
sigma_data = 1, EDM feeds the network c_in y, y = z + s eps, c_in = 1/sqrt(s^2 + 1) = alpha, which
is x; it answers c_skip y + c_out F with c_skip = 1/(s^2 + 1) = alpha^2 and c_out =
s/sqrt(s^2 + 1) = sigma, that is alpha x + sigma F, so F = -v. Its loss weight
(s^2 + 1)/s^2 = 1/c_out^2 is therefore unit weight on F, and on v.

Wherever `log_snr` is asked for, it is a Python float (all samples at one state) or a tensor [N].
"""

import math

import torch
from torch import Tensor, nn

from pipeline.noise.process import LogSnr
from pipeline.training.params import MinSnrWeighting, P2Weighting, PlainWeighting


def weight(
    block: PlainWeighting | MinSnrWeighting | P2Weighting, log_snr: LogSnr, prediction: str
) -> Tensor:
    """The factor on a network's per-sample squared error: a tensor of the shape of log_snr.

    A kind is defined by the weight it puts on the x0 error, whatever the network predicts, except
    `uniform`, which is unit weight on the network's own target:

    * `eps` snr, `x0` 1, `v` 1 + snr: unit weight on that error;
    * `edm` (s^2 + 1)/s^2 with s the noise level over sigma_data, which is `v` (see above): what
      sets EDM apart from unit weight on v is its density of noise levels;
    * `flow` (1 + sqrt(snr))^2: unit weight on the velocity eps - z of a rectified flow x_t =
      (1 - t) z + t eps (Liu et al. 2023), whose t is sigma/(alpha + sigma). On v it is
      (alpha + sigma)^2, from 1 at both ends to 2 at t = 1/2;
    * `min-snr` min(snr, gamma) (Hang et al. 2023);
    * `p2` snr/(k + snr)^gamma (Choi et al. 2022).
    """
    if not isinstance(log_snr, Tensor):
        log_snr = torch.tensor(log_snr, dtype=torch.float64)
    if block.kind == "uniform":
        return torch.ones_like(log_snr)
    # The weights `eps` and `x0` on this output's error. Every kind is a combination of the two
    # in which no infinite term meets a zero, so each limit at -inf that exists comes out.
    eps, x0 = {
        "eps": lambda: (torch.ones_like(log_snr), torch.exp(-log_snr)),
        "x0": lambda: (torch.exp(log_snr), torch.ones_like(log_snr)),
        "v": lambda: (torch.sigmoid(log_snr), torch.sigmoid(-log_snr)),
    }[prediction]()
    if block.kind == "eps":
        return eps
    if block.kind == "x0":
        return x0
    if block.kind == "flow":  # the square of the sum of their roots, no infinity times zero in it
        return (eps.sqrt() + x0.sqrt()) ** 2
    if block.kind == "min-snr":
        return torch.minimum(eps, block.gamma * x0)
    if block.kind == "p2":
        return eps * (block.k + torch.exp(log_snr)) ** -block.gamma
    return eps + x0


class Uncertainty(nn.Module):
    """EDM2's learned uncertainty u(log_snr) (Karras et al. 2024, arXiv 2312.02696).

    One linear layer on Fourier features of c_noise = ln(sigma/alpha)/4, trained along with the
    network and dropped for sampling. At the optimum e^u is the expected error at that noise level,
    so every level contributes alike. It starts at u = 0, where `loss` is the plain error.

    The features' frequencies follow EDM2's normal distribution (2 pi times a standard normal) by
    its quantiles instead of by chance, so that u depends on no generator. Log-SNRs beyond +-30,
    -inf among them, share the value at that end.
    """

    def __init__(self, features: int = 128):
        super().__init__()
        index = torch.arange(features, dtype=torch.float64)
        frequencies = 2 * math.pi * torch.special.ndtri((index + 0.5) / features)
        phases = 2 * math.pi * torch.frac(index * (math.sqrt(5) - 1) / 2)
        self.register_buffer("frequencies", frequencies.float(), persistent=False)
        self.register_buffer("phases", phases.float(), persistent=False)
        self.linear = nn.Linear(features, 1, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, log_snr: Tensor) -> Tensor:
        """u at each log-SNR, [N] -> [N]."""
        c_noise = -log_snr.to(self.frequencies.dtype).clamp(-30, 30) / 8
        waves = torch.cos(c_noise[:, None] * self.frequencies + self.phases) * math.sqrt(2)
        return self.linear(waves)[:, 0] / math.sqrt(self.frequencies.numel())

    def loss(self, error: Tensor, log_snr: Tensor) -> Tensor:
        """The error [N], already weighted, made a loss [N]: error / e^u + u."""
        u = self(log_snr)
        return error * torch.exp(-u) + u
