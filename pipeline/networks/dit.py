"""The diffusion transformer (Peebles & Xie 2023): patches as tokens, and norms told the state.

As in the paper, each block scales and shifts what its two norms give, and gates what it adds, by
six vectors made of noise level and class (adaLN-zero): the gates start at zero, and every block as
the identity. Options that came later: norms on queries and keys, gated perceptrons, rotary
positions (Yao & Wang 2025, LightningDiT), tokens that skip blocks in training (Krause et al. 2025,
TREAD, arXiv 2501.04765). The paper's network answers a variance beside the noise,
in twice the channels; this one does not.

Positions are computed from the size of what comes in, so any size that patches divide will do.
Like the other networks it has no buffers and no data-dependent branches.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.networks import params
from pipeline.networks.embedding import FEATURES, LONGEST_TIME, Embedding
from pipeline.networks.initial import made
from pipeline.networks.multi_decoder import MultiDecoder

if TYPE_CHECKING:
    from pipeline.specs import NetworkSpec

FREQUENCIES = 128  # of the features that show a token's state
EPS = 1e-6
SMALL = 0.02**2  # variance of embeddings' weights


# Names in the paper's code, and here.
PUBLISHED = (
    (r"^x_embedder\.proj\.", "encoder.patches."),
    (r"^t_embedder\.mlp\.0\.", "encoder.embedding.linear1."),
    (r"^t_embedder\.mlp\.2\.", "encoder.embedding.linear2."),
    (r"^y_embedder\.embedding_table\.", "encoder.embedding.label."),
    (r"^final_layer\.linear\.", "decoder.output."),
    (r"^final_layer\.", "decoder."),
    (r"^blocks\.", "encoder.blocks."),
    (r"\.attn\.qkv\.", ".qkv."),
    (r"\.attn\.proj\.", ".project."),
    (r"\.mlp\.fc([12])\.", r".perceptron.linear\1."),
    (r"adaLN_modulation\.1\.", "modulation."),
)


def angles(places: Tensor, count: int) -> Tensor:
    """Places [T] times `count` frequencies, from one to a ten-thousandth: [T, count]."""
    steps = torch.arange(count, device=places.device, dtype=places.dtype)
    return places[:, None] * torch.exp(steps * (-math.log(LONGEST_TIME) / count))


def grid(height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Column and row of each token, [T] each, row by row."""
    rows, columns = (
        torch.arange(side, device=like.device, dtype=like.dtype) for side in (height, width)
    )
    return columns.repeat(height), rows.repeat_interleave(width)


def positions(height: int, width: int, channels: int, like: Tensor) -> Tensor:
    """Sines and cosines of column, then of row: [T, channels], as in the paper's code."""
    parts = [angles(places, channels // 4) for places in grid(height, width, like)]
    return torch.cat([wave for part in parts for wave in (part.sin(), part.cos())], 1)


def turned(x: Tensor, turns: Tensor) -> Tensor:
    """Queries or keys [N, heads, T, d], each pair of channels turned by an angle [T, d/2]."""
    first, second = x.chunk(2, -1)
    cos, sin = turns.cos().to(x.dtype), turns.sin().to(x.dtype)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def _linear(c_in: int, c_out: int) -> nn.Linear:
    layer = nn.Linear(c_in, c_out)
    layer.variance = 2 / (c_in + c_out)  # Glorot's, as in the paper
    return layer


def _zero(c_in: int, c_out: int) -> nn.Linear:
    layer = nn.Linear(c_in, c_out)
    layer.zero_init = True
    return layer


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Each token of x [N, T, D] normalised, then scaled and shifted by [N, 1, D] or [1, 1, D]."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift


class Perceptron(nn.Module):
    """Each token by itself, with one hidden layer; `gated` as SwiGLU."""

    def __init__(self, width: int, hidden: int, gated: bool):
        super().__init__()
        self.gated = gated
        self.linear1 = _linear(width, 2 * hidden if gated else hidden)
        self.linear2 = _linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear1(x)
        if not self.gated:
            return self.linear2(F.gelu(h, approximate="tanh"))
        gate, value = h.chunk(2, -1)
        return self.linear2(F.silu(gate) * value)


class Block(nn.Module):
    """Attention, then a perceptron, each added to the tokens x [N, T, D] through a gate."""

    def __init__(self, width: int, heads: int, hidden: int, qk_norm: bool, gated: bool):
        super().__init__()
        self.heads = heads
        self.qkv = _linear(width, 3 * width)
        self.norms = nn.ModuleList(
            nn.RMSNorm(width // heads, EPS) for _ in range(2 if qk_norm else 0)
        )
        self.project = _linear(width, width)
        self.perceptron = Perceptron(width, hidden, gated)
        self.modulation = _zero(width, 6 * width)

    def forward(self, x: Tensor, told: Tensor, turns: Tensor | None) -> Tensor:
        """told: [N or 1, D], what the embedding gives; turns: [T, D / heads / 2], if rotary."""
        parts = self.modulation(told)[:, None].chunk(6, -1)
        x = x + parts[2] * self.attention(_modulated(x, *parts[:2]), turns)
        return x + parts[5] * self.perceptron(_modulated(x, *parts[3:5]))

    def attention(self, x: Tensor, turns: Tensor | None) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if self.norms:
            exact = self.norms[0].weight.dtype
            q, k = (norm(part.to(exact)) for norm, part in zip(self.norms, (q, k), strict=True))
        if turns is not None:
            q, k = turned(q, turns), turned(k, turns)
        found = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
        return self.project(found.transpose(1, 2).reshape(n, t, d))


def _turns(height: int, width: int, channels: int, like: Tensor) -> Tensor:
    """Angles of rotary positions, by column and by row: [T, channels / 2]."""
    return torch.cat([angles(places, channels // 4) for places in grid(height, width, like)], 1)


def _passed(blocks: nn.ModuleList, h: Tensor, told: Tensor, turns: Tensor | None) -> Tensor:
    """Tokens through some blocks."""
    for block in blocks:
        h = block(h, told, turns)
    return h


class Blocks(nn.Module):
    """Some blocks of a DiT, one after the other; `settings` are those of the block `network`."""

    def __init__(self, settings: params.DiT, depth: int):
        super().__init__()
        width, heads = settings.width, settings.heads
        hidden = int(settings.mlp_ratio * width * (2 / 3 if settings.swiglu else 1))
        self.rotary, self.patch, self.channels = settings.rotary, settings.patch, width // heads
        self.routing = None
        self.blocks = nn.ModuleList(
            Block(width, heads, hidden, settings.qk_norm, settings.swiglu) for _ in range(depth)
        )

    def through(self, h: Tensor, told: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens [N, T, D] of images of a size (height, width), through the blocks."""
        turns = None
        if self.rotary:
            sides = (side // self.patch for side in size)
            turns = _turns(*sides, self.channels, told.detach())
        if not self.routes:
            return _passed(self.blocks, h, told, turns)
        before, within, after = self.parts()
        h = _passed(before, h, told, turns)
        # Which tokens stay: drawn by torch, which training seeds by position.
        n, tokens, width = h.shape
        chosen = torch.rand(n, tokens, device=h.device).argsort(1)[:, : self.stay(tokens)]
        places = chosen[:, :, None].expand(-1, -1, width)
        own = None if turns is None else turns[chosen][:, None]
        stayed = _passed(within, h.gather(1, places), told, own)
        return _passed(after, h.scatter(1, places, stayed), told, turns)

    @property
    def routes(self) -> bool:
        """Whether some tokens skip blocks: while it trains only."""
        return self.routing is not None and self.training

    def parts(self) -> tuple[nn.ModuleList, nn.ModuleList, nn.ModuleList]:
        """The blocks before tokens leave, those that they skip, and the ones after."""
        first, last = self.routing.start, len(self.blocks) - self.routing.end
        return self.blocks[:first], self.blocks[first:last], self.blocks[last:]

    def stay(self, tokens: int) -> int:
        """How many of the tokens skip nothing."""
        return max(1, round((1 - self.routing.share) * tokens))


class Encoder(Blocks):
    """Patches as tokens with their positions, the embedding, and blocks."""

    def __init__(self, settings: params.DiT, channels_in: int, classes: int, conditioned: bool):
        super().__init__(settings, settings.depth)
        width, self.routing = settings.width, settings.routing
        self.patches = _linear(channels_in * self.patch**2, width)
        features = FEATURES[settings.told]
        self.embedding = Embedding(width, FREQUENCIES, classes, conditioned, features)
        for layer in self.embedding.children():
            layer.variance = SMALL

    def forward(
        self, x: Tensor, log_snr: Tensor | None, labels: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """x [N, C, H, W] -> tokens [N, T, D], x itself (whose size the decoder needs), embedding.

        Raises ValueError for a size that patches do not divide.
        """
        n, c, *size = x.shape
        p = self.patch
        if size[0] % p or size[1] % p:
            raise ValueError(f"{size[0]}x{size[1]} pixels cannot be cut into patches of {p}x{p}")
        height, width = size[0] // p, size[1] // p
        told = self.embedding(log_snr, labels)
        cut = x.reshape(n, c, height, p, width, p).permute(0, 2, 4, 1, 3, 5)
        h = self.patches(cut.reshape(n, height * width, c * p * p))
        if not self.rotary:
            h = h + positions(height, width, h.shape[-1], self.patches.weight)
        return self.through(h, told, size), [x], told


class Decoder(Blocks):
    """Blocks of its own, if any, and the last layer."""

    def __init__(self, settings: params.DiT, depth: int, channels_out: int):
        super().__init__(settings, depth)
        self.modulation = _zero(settings.width, 2 * settings.width)
        self.output = _zero(settings.width, channels_out * self.patch**2)

    def forward(self, h: Tensor, skips: Sequence[Tensor], told: Tensor) -> Tensor:
        """What `Encoder.forward` returns -> [N, C, H, W]."""
        n, c, *size = skips[0].shape
        p = self.patch
        h = self.through(h, told, size)
        h = self.output(_modulated(h, *self.modulation(told)[:, None].chunk(2, -1)))
        h = h.reshape(n, size[0] // p, size[1] // p, p, p, c).permute(0, 5, 1, 3, 2, 4)
        return h.reshape(n, c, *size)


class DiT(nn.Module):
    """An encoder with all blocks, and a decoder with none."""

    def __init__(self, encoder: Encoder, decoder: Decoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, x: Tensor, log_snr: Tensor | None, labels: Tensor | None = None) -> Tensor:
        """x [N, C, H, W] -> [N, C, H, W]; log_snr and labels as for `unet.UNet`.

        Raises ValueError for a size that patches do not divide, a log_snr that is missing, or
        labels for a network without classes.
        """
        return self.decoder(*self.encoder(x, log_snr, labels))

    def published(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights with the names of the paper's code under the names that they have here.

        Of an answer with a variance the part that is the noise. Other names stay.
        """
        outputs, found = self.decoder.output.out_features, {}
        for name, value in weights.items():
            for theirs, own in PUBLISHED:
                name = re.sub(theirs, own, name)
            if name == "encoder.patches.weight":  # theirs is a convolution
                value = value.flatten(1)
            if name.startswith("decoder.output.") and len(value) == 2 * outputs:
                value = value.unflatten(0, (self.decoder.patch**2, -1)).chunk(2, 1)[0].flatten(0, 1)
            found[name] = value
        return found

    def flops(self, height: int, width: int, log_snr: float | None = None) -> int:
        """Forward FLOPs for one image, see `count_flops`."""
        return count_flops(self.encoder, self.decoder, height, width)


def count_flops(encoder: Encoder, decoder: Decoder, height: int, width: int) -> int:
    """Forward FLOPs of both for one image, a multiply-add being two; in training mode, of training.

    Counted are matrix products and attention.
    """
    tokens = (height // encoder.patch) * (width // encoder.patch)
    blocks = [*encoder.blocks, *decoder.blocks]
    once = [encoder.embedding, decoder.modulation, *(block.modulation for block in blocks)]
    for_all, for_one = _weights([encoder, decoder]), _weights(once)
    products = 2 * (tokens * (for_all - for_one) + for_one)
    width = encoder.patches.out_features
    total = products + len(blocks) * 4 * tokens**2 * width
    if encoder.routes:
        within, stay = encoder.parts()[1], encoder.stay(tokens)
        weights = _weights(within) - _weights(block.modulation for block in within)
        total -= 2 * (tokens - stay) * weights + len(within) * 4 * (tokens**2 - stay**2) * width
    return total


def _weights(parts: Iterable[nn.Module]) -> int:
    """Numbers in the matrices of some parts."""
    layers = (layer for part in parts for layer in part.modules() if isinstance(layer, nn.Linear))
    return sum(layer.weight.numel() for layer in layers)


def _parts(spec: "NetworkSpec") -> tuple[Encoder, Callable[[int], Decoder]]:
    """An encoder, and what makes decoders of any depth for it; ValueError as `dit`."""
    settings, side = spec.network, spec.resolution
    if side % settings.patch:
        size = f"{side}x{side} pixels"
        raise ValueError(f"{size} cannot be cut into patches of {settings.patch}x{settings.patch}")
    conditioned = spec.conditioning == "state"
    encoder = Encoder(settings, spec.channels, spec.classes, conditioned)
    return encoder, lambda depth: Decoder(settings, depth, spec.channels)


def dit(spec: "NetworkSpec", seed: int, device: torch.device | str, root: Path) -> DiT:
    """The network of a block `network` of kind `dit`, see `build.network_of`.

    Raises ValueError for a size that patches do not divide.
    """

    def build() -> DiT:
        encoder, decoder = _parts(spec)
        return DiT(encoder, decoder(0))

    return made(build, seed, device)


def multi_dit(spec: "NetworkSpec", seed: int, device: torch.device | str, root: Path) -> nn.Module:
    """The network of a block `network` of kind `multi-dit`, see `build.network_of`.

    Raises ValueError as `dit`, and for bounds that are not those of so many intervals.
    """
    if spec.conditioning == "none":
        raise ValueError("a multi-decoder needs the state as input")

    def build() -> MultiDecoder:
        encoder, decoder = _parts(spec)
        decoders = [decoder(depth) for depth in spec.network.decoder_depths]
        return MultiDecoder(encoder, decoders, spec.interval_bounds, count_flops)

    return made(build, seed, device)
