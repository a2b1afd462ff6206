"""From settings to networks, with their parameter and FLOP counts.

A network is a module `forward(x [N, C, H, W], log_snr [N], [1] or None, labels [N] or None)` that
answers in the shape of x, with a method `flops(height, width, log_snr)`. Each form of the block
`network` names the function that makes it (`made_by`): see `unet.unet`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipeline.networks.unet import initialise

if TYPE_CHECKING:
    from pipeline.specs import NetworkSpec


def network_of(spec: NetworkSpec, seed: int = 0, device: torch.device | str = "cpu") -> nn.Module:
    """The network of a spec, initialised from `seed`.

    No global generator is read or moved. On the device `meta` the network has no storage and no
    values. Raises ValueError for settings that fit neither each other nor the images.
    """
    with torch.device(device), _Undrawn():
        network = spec.network.maker(
            spec.network,
            channels_in=spec.channels,
            size=(spec.resolution, spec.resolution),
            classes=spec.classes,
            conditioned=spec.conditioning == "state",
            interval_bounds=spec.interval_bounds,
        )
    if torch.device(device).type != "meta":
        initialise(network, seed)
    return network


class _Undrawn(TorchFunctionMode):
    """Leaves out the weights that torch's modules draw for themselves.

    Building on `meta` would, too, but filling such a network imports torch's compiler: seconds, in
    every process that trains.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", "") == "torch.nn.init":
            return None
        return func(*args, **(kwargs or {}))


def flops_of(spec: NetworkSpec, log_snr: float | None = None) -> float:
    """Forward FLOPs of that network for one image (a multiply-add is two).

    A multi-decoder's are those at `log_snr`, or without one the mean over its intervals, each
    counted once.
    """
    network = network_of(spec, device="meta")
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


def count_parameters(module: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
