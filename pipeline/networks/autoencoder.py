"""A small KL autoencoder (Rombach et al. 2022)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.networks.initial import initialise
from pipeline.networks.unet import EPS, norm_groups

MIN_WIDTH = 8


LOG_VARIANCE = (-20.0, 10.0)  # beyond these a posterior is, to float32, a point or pure noise


def _conv(c_in: int, c_out: int, stride: int = 1, zero: bool = False) -> nn.Conv2d:
    conv = nn.Conv2d(c_in, c_out, 3, stride, padding=1)
    conv.zero_init = zero
    return conv


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(norm_groups(width), width, EPS)


class _Block(nn.Module):
    """Residual block, [N, width, H, W] to the same."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.conv1 = _norm(width), _conv(width, width)
        self.norm2, self.conv2 = _norm(width), _conv(width, width, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class Autoencoder(nn.Module):
    """Images [N, image_channels, H, W] in [-1, 1] to Gaussians over latents, and back.

    image_channels, channels: of an image, and of its latents. downsample: the side of an image over
    that of its latents, a power of two from 2. width: channels at the latents' resolution, halved
    (down to 8) for each doubling of the resolution, so that all levels cost about the same. blocks:
    residual blocks a level, in encoder and decoder each; there are none at full resolution, where
    they would cost most and see least.

    The weights are a function of `seed` alone; no global generator is read or moved. Raises
    UserError for a setting out of range.
    """

    def __init__(
        self,
        image_channels: int,
        channels: int,
        downsample: int,
        width: int,
        blocks: int,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ):
        super().__init__()
        require(channels >= 1, "channels", f"must be at least 1, got {channels}")
        power_of_two = downsample > 1 and downsample & (downsample - 1) == 0
        require(power_of_two, "downsample", f"must be a power of two from 2, got {downsample}")
        require(width >= MIN_WIDTH, "width", f"must be at least {MIN_WIDTH}, got {width}")
        require(blocks >= 0, "blocks", f"must not be negative, got {blocks}")
        self.downsample = downsample
        levels = downsample.bit_length() - 1
        widths = [max(width >> level, MIN_WIDTH) for level in range(levels, -1, -1)]
        with torch.device("meta"):
            encoder: list[nn.Module] = [_conv(image_channels, widths[0])]
            decoder: list[nn.Module] = [_conv(channels, width)]
            for fine, coarse in itertools.pairwise(widths):
                encoder += [_conv(fine, coarse, stride=2), *(_Block(coarse) for _ in range(blocks))]
            for coarse, fine in itertools.pairwise(reversed(widths)):
                decoder += [*(_Block(coarse) for _ in range(blocks))]
                decoder += [nn.Upsample(scale_factor=2.0, mode="nearest"), _conv(coarse, fine)]
            encoder += [_norm(width), nn.SiLU(), _conv(width, 2 * channels)]
            decoder += [_norm(widths[0]), nn.SiLU(), _conv(widths[0], image_channels)]
            self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)
        self.to_empty(device=device)
        initialise(self, seed)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images -> mean and log-variance, [N, channels, H / downsample, W / downsample] each.

        Raises UserError unless `downsample` divides H and W.
        """
        check_divides(x.shape[-2:], self.downsample)
        mean, log_variance = self.encoder(x).chunk(2, 1)
        return mean, log_variance.clamp(*LOG_VARIANCE)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> images, not clipped to [-1, 1]."""
        return self.decoder(latents)


def check_divides(sides: Sequence[int], downsample: int) -> None:
    """UserError unless `downsample` divides both sides (height, width) of an image."""
    height, width = sides
    if height % downsample or width % downsample:
        raise UserError(
            f"latent.downsample: {downsample} does not divide images of {height}x{width} pixels; "
            "choose another, or a multiple of it as data.resolution"
        )


def require(ok: bool, key: str, problem: str) -> None:
    if not ok:
        raise UserError(f"latent.{key} {problem}")
