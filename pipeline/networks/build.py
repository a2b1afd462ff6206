"""From settings to networks, with their parameter and FLOP counts.

A network is a module `forward(x [N, C, H, W], log_snr [N], [1] or None, labels [N] or None)` that
answers in the shape of x, with a method `flops(height, width, log_snr)`. Each form of the block
`network` names the function that makes it (`made_by`): see `unet.unet`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from pipeline.specs import NetworkSpec

SHOWN = 4  # names in a message


def network_of(
    spec: NetworkSpec,
    seed: int = 0,
    device: torch.device | str = "cpu",
    root: Path = Path(),
) -> nn.Module:
    """The network of a spec, initialised from `seed`. root: where files that it names are.

    No global generator is read or moved. On the device `meta` the network has no storage and no
    values. Raises ValueError for settings that fit neither each other nor the images.
    """
    return spec.network.maker(spec, seed, device, root)


def flops_of(
    spec: NetworkSpec, log_snr: float | None = None, root: Path = Path(), *, training: bool = False
) -> float:
    """Forward FLOPs of that network for one image (a multiply-add is two).

    training: of a forward pass of training, where that is another. A multi-decoder's are those at
    `log_snr`, or without one the mean over its intervals, each counted once.
    """
    network = network_of(spec, device="meta", root=root).train(training)
    return network.flops(spec.resolution, spec.resolution, log_snr)


def start_from(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a network the weights of its parent, in place.

    Weights of the same name and shape are copied. Each decoder of a multi-decoder network takes
    those of the parent's only decoder. A decoder of another width keeps its own start: all it
    inherits is the encoder. Projections that the parent does not have stay the identity. Raises
    ValueError if the parent's encoder does not fit.
    """
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            given = weights.get(name)
            if given is None and name.startswith("decoders."):
                given = weights.get("decoder." + name.split(".", 2)[2])
            if given is not None and given.shape == parameter.shape:
                parameter.copy_(given)
            elif not name.startswith("decoders.") and not (
                given is None and ".projections." in name
            ):
                raise ValueError(f"{name} of the parent does not fit this network")


@dataclass(frozen=True)
class Fit:
    """How weights fit a network: names of its own that found theirs, those that did not, and those
    of the weights that the network has no place for."""

    taken: list[str]
    left: list[str]
    unused: list[str]

    def __str__(self) -> str:
        total = len(self.taken) + len(self.left)
        text = f"{len(self.taken)} of the network's {total} tensors are from there"
        for names, what in ((self.left, "at their own start"), (self.unused, "not used")):
            if names:
                more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                text += f"; {what}: {', '.join(names[:SHOWN])}{more}"
        return text


def take(network: nn.Module, weights: Mapping[str, Tensor]) -> Fit:
    """Give a network, in place, what fits of weights that were made elsewhere.

    These are the ones of the same name and shape, after the names that the network knows from
    elsewhere were made its own (its method `published`, if it has one). Raises ValueError if
    nothing fits.
    """
    given = getattr(network, "published", dict)(weights)
    own = dict(network.named_parameters())
    taken = [name for name in own if name in given and given[name].shape == own[name].shape]
    if not taken:
        raise ValueError(
            f"nothing in it fits this network: it has {', '.join(list(weights)[:SHOWN])} ..., the "
            f"network {', '.join(list(own)[:SHOWN])} ..."
        )
    with torch.no_grad():
        for name in taken:
            own[name].copy_(given[name])
    left = [name for name in own if name not in taken]
    return Fit(taken, left, sorted(given.keys() - set(taken)))


def count_parameters(module: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
