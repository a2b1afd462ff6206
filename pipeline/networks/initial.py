"""How the networks here get their first weights: from a seed, whatever the device."""

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Network = TypeVar("Network", bound=nn.Module)


def made(build: Callable[[], Network], seed: int, device: torch.device | str) -> Network:
    """The network that `build` lays out, on a device, with weights of `initialise`.

    No global generator is read or moved. On `meta` it has no storage and no values.
    """
    with torch.device(device), _Undrawn():
        network = build()
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


@torch.no_grad()
def initialise(module: nn.Module, seed: int) -> None:
    """Set every parameter of a network, in place, from a seed alone.

    Draws are made on the CPU in the order of the modules, so neither device, layout nor any global
    generator matters; an encoder gets the same weights whatever decoders follow it. Weights are
    uniform with variance 1/fan_in, biases zero, norms the identity, class and constant embeddings
    of unit variance; the last layer of each residual branch and the output are zero, projections
    the identity. A layer with an attribute `variance` has that one.
    Raises TypeError for a module with parameters that it has no rule for.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(weight: Tensor, variance: float) -> None:
        # Uniform numbers are the same bits on every kind of CPU; normal ones are not.
        u = torch.rand(weight.shape, generator=generator, dtype=torch.float32)
        weight.copy_((2 * u - 1) * math.sqrt(3 * variance))

    for child in module.modules():
        if isinstance(child, (nn.Conv2d, nn.Linear)):
            if getattr(child, "zero_init", False):
                child.weight.zero_()
            elif getattr(child, "identity_init", False):
                child.weight.copy_(torch.eye(len(child.weight))[:, :, None, None])
            else:
                variance = getattr(child, "variance", 1 / child.weight[0].numel())
                draw(child.weight, variance)
            if child.bias is not None:
                child.bias.zero_()
        elif isinstance(child, nn.GroupNorm):
            child.weight.fill_(1)
            child.bias.zero_()
        elif isinstance(child, nn.RMSNorm):
            child.weight.fill_(1)
        elif isinstance(child, nn.Embedding):
            draw(child.weight, getattr(child, "variance", 1.0))
        elif next(child.parameters(recurse=False), None) is not None:
            raise TypeError(f"no rule to initialise a {type(child).__name__}")
