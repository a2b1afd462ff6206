"""What a training makes small beside its error: `training.auxiliary`, for faster learning.

Three published ones. None changes what the network is asked for, or costs anything at sampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.devices import sent
from pipeline.errors import UserError
from pipeline.networks.initial import made
from pipeline.noise import process
from pipeline.noise.philox import derive_key
from pipeline.training.draws import Batch

if TYPE_CHECKING:
    from pipeline.specs import ExpertSpec

# Error of answers to other targets, [N]: weighted as the training's own error is.
Weighted = Callable[[Tensor, Tensor, Batch], Tensor]
SHOWN = 12  # names of layers in a message


class Auxiliary(nn.Module):
    """A term of the loss: forward(output, batch, weighted), of an answer [N, C, H, W] to a batch.

    What it learns itself (its parameters) is dropped after training.
    """

    flops = 0.0  # forward, an image


class Contrastive(Auxiliary):
    """Contrastive flow matching (Stoica et al. 2025, arXiv 2506.05350): away from other targets.

    -weight times the error of an answer as one to the target that another image of the batch, of
    another class, with its own noise, would have at this noise level. The optimum of both terms is
    larger than the plain one by about 1 / (1 - weight), as in the paper.
    """

    def __init__(self, prediction: str, weight: float):
        super().__init__()
        self.prediction, self.weight = prediction, weight

    def forward(self, output: Tensor, batch: Batch, weighted: Weighted) -> Tensor:
        labels = batch.inputs[2]
        z, eps, others = (values.roll(1, 0) for values in (batch.clean, batch.noise, labels))
        wanted = process.target(self.prediction, z, eps, batch.log_snr)
        return -self.weight * (weighted(output, wanted, batch) * (others != labels)).mean()


class Watching(Auxiliary):
    """One that sees what a layer of the network gives: `found`, of the last call.

    size: [C] or [D] and what else a layer gives for an image, without the batch.
    """

    def __init__(self, spec: ExpertSpec, network: nn.Module, device: torch.device, layer: str):
        super().__init__()
        self.found: Any = None
        watched = dict(network.named_modules()).get(layer)
        if watched is None:
            names = [name for name, _ in network.named_modules() if name.count(".") < 3][1:]
            more = ", ..." if len(names) > SHOWN else ""
            raise UserError(
                f"training.auxiliary.layer: the network has no layer {layer!r}; some that it has: "
                f"{', '.join(names[:SHOWN])}{more}"
            )
        watched.register_forward_hook(self._keep)
        x = torch.zeros(1, spec.channels, spec.resolution, spec.resolution, device=device)
        told = torch.full((1,), float(spec.log_snr[-1]), device=device)
        with torch.no_grad():
            network(x, told if spec.conditioning == "state" else None, None)
        found, self.found = self.found, None
        if not isinstance(found, Tensor) or found.ndim < 2:
            raise UserError(f"training.auxiliary.layer: {layer!r} gives no values for each image")
        self.size = tuple(found.shape[1:])

    def _keep(self, _: nn.Module, __: Any, given: Any) -> None:
        # An encoder gives its skips and embedding as well.
        self.found = given[0] if isinstance(given, tuple) else given


class Dispersive(Watching):
    """Dispersive loss (Wang & He 2025, arXiv 2506.09027): the batch's inner values, apart.

    weight * log mean_ij exp(-|h_i - h_j|^2 / (d temperature)) over all pairs of a batch (of each of
    its `training.shards`), h_i being the d values that the layer gives for image i: its InfoNCE
    form with l2 distances, which needs no positive pairs.
    """

    def __init__(self, *watched: Any, weight: float, temperature: float, batch: int):
        super().__init__(*watched)
        self.weight, self.temperature = weight, temperature
        self.flops = 2.0 * batch * math.prod(self.size)

    def forward(self, output: Tensor, batch: Batch, weighted: Weighted) -> Tensor:
        h = self.found.float().flatten(1)
        square = h.square().sum(1)
        apart = (square[:, None] + square - 2 * h @ h.T).clamp(min=0) / h.shape[1]
        near = torch.logsumexp((-apart / self.temperature).flatten(), 0)
        return self.weight * (near - 2 * math.log(len(h)))


class Repa(Watching):
    """Representation alignment (Yu et al. 2025, arXiv 2410.06940) with one vector an image.

    -weight times the cosine between the extractor's features of the clean image and what a
    perceptron (three layers, SiLU) makes of the layer's values, averaged over positions. The paper
    aligns each position with a patch of its extractor; ours give one vector an image.
    targets: float32 [rows, d]; those mirrored beyond them have the features of the original.
    """

    def __init__(self, *watched: Any, seed: int, weight: float, hidden: int, targets: np.ndarray):
        super().__init__(*watched)
        self.weight, self.targets = weight, targets
        device, d = watched[2], targets.shape[1]
        # Of a transformer [tokens, width], of a convolution [channels, height, width].
        self.tokens = len(self.size) == 2
        width = self.size[-1 if self.tokens else 0]

        def project() -> nn.Sequential:
            first, second = nn.Linear(width, hidden), nn.Linear(hidden, hidden)
            return nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), nn.Linear(hidden, d))

        self.project = made(project, seed, device)
        self.flops = 2.0 * (width * hidden + hidden * hidden + hidden * d)

    def forward(self, output: Tensor, batch: Batch, weighted: Weighted) -> Tensor:
        own = torch.from_numpy(self.targets[batch.rows % len(self.targets)])
        h = self.found.float()
        wanted = sent(own, h.device)
        h = h.mean(1) if self.tokens else h.flatten(2).mean(2) if h.ndim > 2 else h
        return -self.weight * functional.cosine_similarity(self.project(h), wanted).mean()


def contrastive(
    spec: ExpertSpec, network: nn.Module, device: torch.device, targets: Any, weight: float
) -> Auxiliary:
    """The term of a block `training.auxiliary` of kind `contrastive`."""
    return Contrastive(spec.prediction, weight)


def dispersive(
    spec: ExpertSpec, network: nn.Module, device: torch.device, targets: Any, **own: Any
) -> Auxiliary:
    """The term of kind `dispersive`. UserError for a layer that the network does not have."""
    layer, part = own.pop("layer"), spec.training.batch // spec.training.shards
    return Dispersive(spec, network, device, layer, batch=part, **own)


def repa(
    spec: ExpertSpec, network: nn.Module, device: torch.device, targets: Any, **own: Any
) -> Auxiliary:
    """The term of kind `repa`; targets: features of each row. UserError as `dispersive`."""
    layer, seed = own.pop("layer"), derive_key(spec.start_key, "auxiliary")
    return Repa(spec, network, device, layer, seed=seed, targets=targets, **own)
