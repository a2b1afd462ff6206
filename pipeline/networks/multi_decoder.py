"""One encoder shared by all noise levels, and a decoder of its own width for each interval.

The multi-stage framework of Zhang et al. (CVPR 2024, arXiv 2312.09181), with routing by sample
instead of by batch: a batch may hold any mixture of noise levels, so the density of noise levels
stays what the loss asks for.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.devices import sent
from pipeline.networks.initial import made
from pipeline.networks.unet import count_flops, encoder_and_decoders

if TYPE_CHECKING:
    from pipeline.specs import NetworkSpec


class MultiDecoder(nn.Module):
    """An encoder (with embedding and middle) and one decoder an interval, cleanest first.

    bounds: log-SNRs between the intervals, strictly descending, one fewer than decoders. A log-SNR
    exactly on a bound belongs to its cleaner side: interval k is bounds[k-1] > log_snr >=
    bounds[k]. count: FLOPs of an encoder and a decoder for one image of a height and width.

    A decoder without a sample in the batch takes no part in it, and its parameters get no
    gradient: after `zero_grad(set_to_none=True)` their `.grad` stays None, and torch's optimizers
    skip them, moments and weight decay included. So a decoder's step count (and its bias
    correction) counts its own batches only. An average of weights goes on averaging them.
    `DistributedDataParallel` needs `find_unused_parameters=True`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoders: Sequence[nn.Module],
        bounds: Sequence[float],
        count: Callable[..., int] = count_flops,
    ):
        super().__init__()
        self.count = count
        if len(bounds) != len(decoders) - 1:
            raise ValueError(f"{len(decoders)} decoders need {len(decoders) - 1} bounds")
        if any(not a > b for a, b in pairwise(bounds)):
            raise ValueError(f"interval bounds must descend strictly, not {list(bounds)}")
        self.encoder = encoder
        self.decoders = nn.ModuleList(decoders)
        # Ascending, as bisect and bucketize want them.
        self.noise_bounds = [-float(bound) for bound in bounds]

    def interval_of(self, log_snr: float | Tensor) -> int | Tensor:
        """The interval of a log-SNR: an int for a float, int64 [N] for a tensor [N].

        A tensor is compared in its own precision, so that float32(bound) is still on the bound.
        """
        if not isinstance(log_snr, Tensor):
            return bisect_left(self.noise_bounds, -log_snr)
        bounds = torch.tensor(self.noise_bounds, dtype=log_snr.dtype, device=log_snr.device)
        return torch.bucketize(-log_snr, bounds)

    def forward(
        self,
        x: Tensor,
        log_snr: Tensor,
        labels: Tensor | None = None,
        interval: int | None = None,
    ) -> Tensor:
        """x [N, C, H, W] -> [N, C, H, W]; log_snr float [N] or [1], labels as for `UNet`.

        interval: that of the whole batch, where the caller knows it (`interval_of(float)`): no
        routing is done then. Else each sample goes to the decoder of its own log_snr: the batch is
        sorted by interval before the encoder, so that each decoder's part of every skip tensor is
        a view. This reads the counts back from the device of log_snr; with a log_snr on the CPU
        and x on a GPU nothing has to wait for the GPU.
        """
        if interval is not None or log_snr.numel() == 1:
            if interval is None:
                interval = int(self.interval_of(log_snr))
            return self.decoders[interval](*self.encoder(x, sent(log_snr, x.device), labels))

        intervals = self.interval_of(log_snr)
        counts = torch.bincount(intervals, minlength=len(self.decoders)).tolist()
        if max(counts) == len(x):
            return self.forward(x, log_snr, labels, counts.index(len(x)))
        order = torch.argsort(intervals, stable=True)
        log_snr, order = sent(log_snr[order], x.device), sent(order, x.device)
        if labels is not None and len(labels) > 1:
            labels = labels[order]
        h, skips, embedding = self.encoder(x[order], log_snr, labels)
        parts = zip(
            h.split(counts),
            zip(*(skip.split(counts) for skip in skips), strict=True),
            embedding.split(counts),
            strict=True,
        )
        decoded = [
            decoder(*part)
            for decoder, part, count in zip(self.decoders, parts, counts, strict=True)
            if count
        ]
        return torch.cat(decoded)[torch.argsort(order)]

    def flops(self, height: int, width: int, log_snr: float | None = None) -> float:
        """Forward FLOPs for one image at a log-SNR, see `UNet.flops`.

        Without one, the mean over the intervals, each counted once.
        """
        chosen = self.decoders if log_snr is None else [self.decoders[self.interval_of(log_snr)]]
        counts = [self.count(self.encoder, decoder, height, width) for decoder in chosen]
        return sum(counts) / len(counts)


def multi_decoder(
    spec: "NetworkSpec", seed: int, device: torch.device | str, root: Path
) -> MultiDecoder:
    """The network of a block `network` of kind `multi-decoder`, see `build.network_of`.

    Raises ValueError for settings that fit neither each other nor the images.
    """
    if spec.conditioning == "none":
        raise ValueError("a multi-decoder needs the state as input")

    def build() -> MultiDecoder:
        encoder, decoder = encoder_and_decoders(spec)
        decoders = [decoder(width) for width in spec.network.decoder_channels]
        return MultiDecoder(encoder, decoders, spec.interval_bounds)

    return made(build, seed, device)
