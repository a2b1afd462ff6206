"""A small classifier whose penultimate features measure images, and its training."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import UserError

# The stem brings images to at most this many pixels a side, the blocks to at most the second.
_STEM_SIZE = 16
_LAST_SIZE = 2
_GROUPS = 8


class Classifier(nn.Module):
    """Convolutions of stride 2 in residual blocks (pre-activation, He et al. 2016b), with group
    normalisation (Wu and He 2018), so that an image's features do not depend on its batch.

    Takes uint8 images [N, in_channels, H, W] of about `size` pixels a side. The blocks halve the
    image until it has 2 x 2 pixels before it is averaged: pooled earlier, the features know
    textures but not where in the image they are.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        size: int,
        classes: int,
        channels: int = 32,
        dimension: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("dimension", dimension)):
            if value < _GROUPS or value % _GROUPS:
                raise UserError(f"classifier: {name}={value} must be a multiple of {_GROUPS}")
        self.settings = {
            "in_channels": in_channels,
            "size": size,
            "classes": classes,
            "channels": channels,
            "dimension": dimension,
        }
        stride = 1
        while size > _STEM_SIZE * stride:
            stride *= 2
        widths = [channels]
        size = -(-size // stride)
        while size > _LAST_SIZE:
            size = -(-size // 2)
            widths.append(min(2 * widths[-1], dimension))
        widths[-1] = dimension
        self.stem = nn.Conv2d(in_channels, widths[0], stride + 2, stride, padding=1)
        self.blocks = nn.Sequential(*(_Block(a, b) for a, b in pairwise(widths)))
        self.norm = nn.GroupNorm(_GROUPS, dimension)
        self.head = nn.Linear(dimension, classes)
        self._initialise(torch.Generator().manual_seed(seed))
        # The layout chooses the kernel, and so the last bits.
        self.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        """He et al. (2015) for convolutions; drawn in the order of the modules."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                fan_in = module.weight[0].numel()
                gain = 2.0 if isinstance(module, nn.Conv2d) else 1.0
                module.weight.normal_(0, (gain / fan_in) ** 0.5, generator=generator)
                module.bias.zero_()

    def features(self, images: Tensor) -> Tensor:
        """Penultimate features, float32 [N, dimension]."""
        x = images.to(torch.float32) / 127.5 - 1
        x = self.blocks(self.stem(x.contiguous(memory_format=torch.channels_last)))
        return F.silu(self.norm(x)).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Logits, float32 [N, classes]."""
        return self.head(self.features(images))


class _Block(nn.Module):
    """Residual block that halves the image."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(_GROUPS, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, 2, padding=1)
        self.norm2 = nn.GroupNorm(_GROUPS, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Conv2d(in_channels, out_channels, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        return self.skip(x) + self.conv2(F.silu(self.norm2(y)))
