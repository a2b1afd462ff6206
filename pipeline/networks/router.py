"""What tells, of a noisy image, which cluster of the data it may be from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.networks.initial import made
from pipeline.networks.unet import Encoder, norm_groups

if TYPE_CHECKING:
    from pipeline.specs import RoutingSpec

SMALLEST = 2  # pixels a side to which images are halved, where they can be


class Router(nn.Module):
    """A U-Net's path down, and one matrix product over all that is left of the image.

    side: of an image; it is halved until it is odd or `SMALLEST`. So the answer knows where in the
    image something is, which a mean over the pixels would not.
    """

    def __init__(self, channels_in: int, side: int, channels: int, clusters: int, classes: int):
        super().__init__()
        self.levels = 1
        while side % 2 == 0 and side > SMALLEST:
            side, self.levels = side // 2, self.levels + 1
        multipliers = [1, *[2] * (self.levels - 1)]
        self.encoder = Encoder(channels_in, channels, multipliers, 1, classes=classes)
        width = self.encoder.width
        self.norm = nn.GroupNorm(norm_groups(width), width)
        self.head = nn.Linear(width * side**2, clusters)
        self.head.zero_init = True

    def forward(self, x: Tensor, log_snr: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits of each cluster, [N, clusters]; x, log_snr and labels as for `UNet`."""
        h, _, _ = self.encoder(x, log_snr, labels)
        return self.head(F.silu(self.norm(h)).flatten(1))

    def flops(self, height: int, width: int, log_snr: float | None = None) -> int:
        """Forward FLOPs for one image, counted as `UNet.flops` does."""
        encoder = self.encoder
        parts = [(0, encoder.input), (self.levels - 1, encoder.middle)]
        parts += [*enumerate(encoder.levels), *enumerate(encoder.downs, start=1)]
        total = sum((height >> n) * (width >> n) * _products(part) for n, part in parts)
        return total + sum(map(_products, (encoder.embedding, encoder.film, self.head)))


def _products(part: nn.Module) -> int:
    """FLOPs of a part's convolutions and matrix products for one pixel of what it answers."""
    layers = [m for m in part.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return sum(2 * layer.weight.numel() for layer in layers)


def router(spec: RoutingSpec, seed: int, device: torch.device | str, root: Path) -> Router:
    """The network of a router, see `build.network_of`."""
    settings = spec.network

    def build() -> Router:
        return Router(
            spec.channels, spec.resolution, settings.channels, settings.clusters, spec.classes
        )

    return made(build, seed, device)
