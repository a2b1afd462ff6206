"""A network that answers the velocity of a flow, as one that answers `v`.

A flow goes from data to noise by y = (1 - t) z + t eps, with the velocity eps - z (Lipman et al.
2023, Liu et al. 2023). Networks see x = alpha z + sigma eps as ever, which is y (alpha + sigma) at
t = sigma/(alpha + sigma): its variance is one at every level. Of an answer F for the velocity

    v = ((alpha - sigma) x + F) / (alpha + sigma),

a preconditioning like EDM's, so all that trains, measures and samples `v` does the same for a flow.
An error of F is alpha + sigma times that of v; the weighting `flow` makes up for it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.noise.process import alpha_sigma, broadcast

if TYPE_CHECKING:
    from pipeline.specs import NetworkSpec


def velocity(
    make: Callable[..., nn.Module],
    spec: NetworkSpec,
    seed: int,
    device: torch.device | str,
    root: Path,
) -> nn.Module:
    """The network that `make` makes, with the same weights by the same names, answering v."""
    network = make(spec, seed, device, root)
    network.register_forward_hook(_as_v)
    return network


def _as_v(_: nn.Module, given: tuple[Tensor, ...], answer: Tensor) -> Tensor:
    x, log_snr = given[0], given[1].to(given[0].device)
    alpha, sigma = (broadcast(a, x) for a in alpha_sigma(log_snr))
    return ((alpha - sigma) * x + answer) / (alpha + sigma)
