"""The U-Net: an encoder, and a decoder that can have a width of its own.

Of the DDPM++ family (Ho et al. 2020; Song et al. 2021; Karras et al. 2022): residual blocks with
group norm, the noise level and class by a scale and shift after the second norm, `blocks + 1`
blocks a level on the way up, each with a skip connection. Resampling costs little: a strided
convolution down, plain repetition up, and the next block's convolution does the rest.

Nothing here knows a schedule: the noise level comes as log-SNR. There are no buffers and no
data-dependent branches, so a network can be compiled, run under autocast, and stacked for
`torch.func.vmap`.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.networks.embedding import Embedding
from pipeline.networks.initial import made

if TYPE_CHECKING:
    from pipeline.specs import NetworkSpec

HEAD_WIDTH = 64
EPS = 1e-5

FilmPair = tuple[Tensor, Tensor]


def norm_groups(width: int) -> int:
    """Groups of a GroupNorm over `width` channels: a divisor, at most 32, of 4 channels or more."""
    return next((g for g in range(min(32, width // 4), 1, -1) if width % g == 0), 1)


def film_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Group norm of x [N, C, H, W], then times scale plus shift, [N, C] or [1, C] each."""
    n, c, h, w = x.shape
    groups = norm_groups(c)
    if scale.shape[0] == 1:
        return F.group_norm(x, groups, scale.reshape(c), shift.reshape(c), EPS)
    if x.is_contiguous():
        # Samples folded into the channels: the norm's own affine then does the scale and shift,
        # and three passes over memory become one.
        folded = x.reshape(1, n * c, h, w)
        y = F.group_norm(folded, n * groups, scale.reshape(n * c), shift.reshape(n * c), EPS)
        return y.reshape(n, c, h, w)
    y = F.group_norm(x, groups, eps=EPS)
    return torch.addcmul(shift[:, :, None, None], y, scale[:, :, None, None])


def repeated(x: Tensor) -> Tensor:
    """x [N, C, H, W] with each pixel twice in both directions, [N, C, 2 H, 2 W].

    torch's compiler makes torch's own resampling an index, whose gradient is slow where it is to
    repeat its bits; it is given a view of memory in which channels come last.
    """
    if not torch.compiler.is_compiling():
        return F.interpolate(x, scale_factor=2.0, mode="nearest")
    n, c, h, w = x.shape
    pixels = x.permute(0, 2, 3, 1)[:, :, None, :, None]
    return pixels.expand(n, h, 2, w, 2, c).reshape(n, 2 * h, 2 * w, c).permute(0, 3, 1, 2)


def _conv(c_in: int, c_out: int, kernel: int, stride: int = 1, zero: bool = False) -> nn.Conv2d:
    conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2)
    conv.zero_init = zero
    return conv


def _projection(width: int) -> nn.Conv2d:
    conv = nn.Conv2d(width, width, 1, bias=False)
    conv.identity_init = True
    return conv


class Attention(nn.Module):
    """Self-attention over the pixels of x [N, C, H, W], added to x."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = width // HEAD_WIDTH if width % HEAD_WIDTH == 0 else 1
        self.norm = nn.GroupNorm(norm_groups(width), width, EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.project.zero_init = True

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        qkv = self.qkv(tokens).reshape(n, h * w, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, h * w, c)
        return x + self.project(found).transpose(1, 2).reshape(n, c, h, w)


class ResidualBlock(nn.Module):
    """x [N, c_in, H, W] -> [N, c_out, H, W]; scale and shift [N, c_out] or [1, c_out]."""

    def __init__(self, c_in: int, c_out: int, dropout: float = 0.0, attend: bool = False):
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups(c_in), c_in, EPS)
        self.conv1 = _conv(c_in, c_out, 3)
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.conv2 = _conv(c_out, c_out, 3, zero=True)
        self.skip = _conv(c_in, c_out, 1) if c_in != c_out else None
        self.attention = Attention(c_out) if attend else None

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm(x)))
        h = F.silu(film_norm(h, scale, shift))
        if self.dropout is not None:
            h = self.dropout(h)
        h = self.conv2(h)
        h = h + (x if self.skip is None else self.skip(x))
        return h if self.attention is None else self.attention(h)


class Film(nn.Module):
    """The scale and shift of every block of an encoder or decoder, by one matrix product."""

    def __init__(self, embedding: int, widths: Sequence[int]):
        super().__init__()
        self.widths = list(widths)
        self.linear = nn.Linear(embedding, 2 * sum(widths))

    def forward(self, embedding: Tensor) -> list[FilmPair]:
        scale, shift = self.linear(embedding).chunk(2, 1)
        scales, shifts = (1 + scale).split(self.widths, 1), shift.split(self.widths, 1)
        return list(zip(scales, shifts, strict=True))


class Encoder(nn.Module):
    """Embedding, input convolution, the path down, and the middle.

    channels: base width, times `multipliers` a level; blocks: residual blocks a level; attends:
    one bool a level. With attention on any level there is one in the middle, too. projections:
    after each level and the middle, a matrix over the channels that starts as the identity
    (DeMe, arXiv 2410.06664); skip tensors are taken before it.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        multipliers: Sequence[int],
        blocks: int,
        *,
        attends: Sequence[bool] = (),
        dropout: float = 0.0,
        projections: bool = False,
        classes: int = 0,
        conditioned: bool = True,
    ):
        super().__init__()
        self.factor = 2 ** (len(multipliers) - 1)
        self.embedding = Embedding(4 * channels, max(channels // 2, 4), classes, conditioned)
        self.input = _conv(channels_in, channels, 3)
        attends = tuple(attends) or (False,) * len(multipliers)
        width, self.skip_widths = channels, [channels]
        self.downs, self.levels = nn.ModuleList(), nn.ModuleList()
        for level, (multiplier, attend) in enumerate(zip(multipliers, attends, strict=True)):
            if level:
                self.downs.append(_conv(width, width, 3, stride=2))
                self.skip_widths.append(width)
            self.levels.append(nn.ModuleList())
            for _ in range(blocks):
                block = ResidualBlock(width, channels * multiplier, dropout, attend)
                self.levels[-1].append(block)
                width = channels * multiplier
                self.skip_widths.append(width)
        self.middle = nn.ModuleList(
            [
                ResidualBlock(width, width, dropout, any(attends)),
                ResidualBlock(width, width, dropout),
            ]
        )
        self.width = width
        self.film = Film(self.embedding.width, _film_widths([*self.levels, self.middle]))
        widths = [channels * multiplier for multiplier in (*multipliers, multipliers[-1])]
        self.projections = nn.ModuleList(map(_projection, widths if projections else []))

    def forward(
        self, x: Tensor, log_snr: Tensor | None, labels: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """x [N, C, H, W] -> middle features, skip tensors (outermost first), embedding.

        The embedding is [N, 4 * channels], or [1, 4 * channels] where log_snr and labels are [1]
        or absent. Raises ValueError unless 2^(levels - 1) divides height and width.
        """
        check_size(x.shape[-2], x.shape[-1], self.factor)
        embedding = self.embedding(log_snr, labels)
        films = iter(self.film(embedding))
        h = self.input(x)
        skips = [h]
        for level, blocks in enumerate(self.levels):
            if level:
                h = self.downs[level - 1](h)
                skips.append(h)
            for block in blocks:
                h = block(h, *next(films))
                skips.append(h)
            if self.projections:
                h = self.projections[level](h)
        for block in self.middle:
            h = block(h, *next(films))
        if self.projections:
            h = self.projections[-1](h)
        return h, skips, embedding


class Decoder(nn.Module):
    """The path up, output norm and convolution, for an encoder of any width.

    channels: base width of this decoder; the other settings are the encoder's.
    """

    def __init__(
        self,
        encoder: Encoder,
        channels_out: int,
        channels: int,
        multipliers: Sequence[int],
        blocks: int,
        *,
        attends: Sequence[bool] = (),
        dropout: float = 0.0,
        projections: bool = False,
    ):
        super().__init__()
        attends = tuple(attends) or (False,) * len(multipliers)
        width, skip_widths = encoder.width, list(encoder.skip_widths)
        self.levels, self.projections = nn.ModuleList(), nn.ModuleList()
        for multiplier, attend in reversed(list(zip(multipliers, attends, strict=True))):
            self.levels.append(nn.ModuleList())
            for index in range(blocks + 1):
                block = ResidualBlock(
                    width + skip_widths.pop(),
                    channels * multiplier,
                    dropout,
                    attend and index == blocks,
                )
                self.levels[-1].append(block)
                width = channels * multiplier
            if projections:
                self.projections.append(_projection(width))
        self.norm = nn.GroupNorm(norm_groups(width), width, EPS)
        self.output = _conv(width, channels_out, 3, zero=True)
        self.film = Film(encoder.embedding.width, _film_widths(self.levels))

    def forward(self, h: Tensor, skips: Sequence[Tensor], embedding: Tensor) -> Tensor:
        """What `Encoder.forward` returns -> [N, channels_out, H, W]."""
        films = iter(self.film(embedding))
        remaining = list(skips)
        for level, blocks in enumerate(self.levels):
            if level:
                h = repeated(h)
            for block in blocks:
                h = block(torch.cat([h, remaining.pop()], 1), *next(films))
            if self.projections:
                h = self.projections[level](h)
        return self.output(F.silu(self.norm(h)))


class UNet(nn.Module):
    """One encoder with one decoder."""

    def __init__(self, encoder: Encoder, decoder: Decoder):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, x: Tensor, log_snr: Tensor | None, labels: Tensor | None = None) -> Tensor:
        """x [N, C, H, W] -> [N, C, H, W].

        log_snr: float [N], or [1] for a batch at one state, which is cheaper; ignored, and may be
        None, in a network that is not conditioned on the state. labels: int64 [N] (or [1]) with
        `classes` for "no class"; None stands for "no class" throughout.
        Raises ValueError for a size that 2^(levels - 1) does not divide, a log_snr that is
        missing, or labels for a network without classes.
        """
        return self.decoder(*self.encoder(x, log_snr, labels))

    def flops(self, height: int, width: int, log_snr: float | None = None) -> int:
        """Forward FLOPs for one image of this size, a multiply-add being two; nothing is computed.

        Counted are convolutions, matrix products and attention; norms, activations and sums would
        add a few percent. log_snr: of no importance here.
        """
        return count_flops(self.encoder, self.decoder, height, width)


def unet(spec: "NetworkSpec", seed: int, device: torch.device | str, root: Path) -> UNet:
    """The network of a block `network` of kind `unet`, see `build.network_of`.

    Raises ValueError for settings that fit neither each other nor the images.
    """

    def build() -> UNet:
        encoder, decoder = encoder_and_decoders(spec)
        return UNet(encoder, decoder(spec.network.channels))

    return made(build, seed, device)


def encoder_and_decoders(spec: "NetworkSpec") -> tuple[Encoder, Callable[[int], Decoder]]:
    """An encoder, and what makes decoders of any base width for it. ValueError as `unet`."""
    settings, side = spec.network, spec.resolution
    multipliers, blocks = settings.multipliers, settings.blocks
    check_size(side, side, 2 ** (len(multipliers) - 1))
    sides = [side >> level for level in range(len(multipliers))]
    unknown = sorted(set(settings.attention) - set(sides))
    if unknown:
        raise ValueError(f"attention: no level has resolution {unknown[0]}; there are {sides}")
    shape = {
        "attends": [side in settings.attention for side in sides],
        "dropout": settings.dropout,
        "projections": settings.projections,
    }
    encoder = Encoder(
        spec.channels,
        settings.channels,
        multipliers,
        blocks,
        classes=spec.classes,
        conditioned=spec.conditioning == "state",
        **shape,
    )
    return encoder, lambda own: Decoder(encoder, spec.channels, own, multipliers, blocks, **shape)


def count_flops(encoder: Encoder, decoder: Decoder, height: int, width: int) -> int:
    """Forward FLOPs of both for one image."""
    levels = len(encoder.levels)
    # Modules by the level whose size their output has. Nothing is called: on `meta` that would
    # import torch's compiler, seconds in every process that trains.
    parts = [(0, encoder.input), (levels - 1, encoder.middle), (0, decoder.output)]
    parts += list(enumerate(encoder.levels)) + list(enumerate(encoder.downs, start=1))
    up = [*enumerate(decoder.levels), *enumerate(decoder.projections)]
    parts += [(levels - 1 - level, part) for level, part in up]
    parts += [(min(level, levels - 1), part) for level, part in enumerate(encoder.projections)]
    total = sum(_products(part, (height >> level) * (width >> level)) for level, part in parts)
    embedding = [encoder.embedding, encoder.film, decoder.film]
    return total + sum(_products(part, 1) for part in embedding)


def _products(part: nn.Module, pixels: int) -> int:
    """FLOPs of a part's convolutions, matrix products and attention for so many output pixels."""
    total = 0
    for module in part.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            total += 2 * pixels * module.weight.numel()
        elif isinstance(module, Attention):  # scores and their use, each a matrix product
            total += 4 * module.project.in_features * pixels**2
    return total


def check_size(height: int, width: int, factor: int) -> None:
    """ValueError unless `factor`, 2^(levels - 1), divides both sides of an image."""
    if height % factor or width % factor:
        levels = factor.bit_length()
        raise ValueError(
            f"{height}x{width} pixels cannot be halved {levels - 1} times: with {levels} levels "
            f"(multipliers), {factor} must divide height and width"
        )


def _film_widths(levels: Iterable[nn.ModuleList]) -> list[int]:
    return [block.conv1.out_channels for blocks in levels for block in blocks]
