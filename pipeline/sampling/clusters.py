"""A mixture of experts over clusters of the data, each sample answered by its most probable ones.

Its description is that of a mixture (`mixture.describe`) in which each expert has its `cluster`,
with `router` (the part of the store that tells them apart, and its network) and `top` (how many
experts answer for a sample).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.networks.build import network_of
from pipeline.sampling import mixture
from pipeline.sampling.routing import mixed
from pipeline.specs import RouterSpec, RoutingSpec
from pipeline.store.identity import digest


def routed(
    described: dict[str, Any], part: dict[str, Any], spec: RouterSpec, top: int
) -> dict[str, Any]:
    """A described mixture with its router. part: `entry`, `file` and `sha256` of its weights."""
    own = spec.model_dump(mode="json", include=set(RoutingSpec.model_fields))
    whole = described | {"router": {**part, **own}, "top": top}
    return whole | {"digest": identity(whole)}


def identity(described: dict[str, Any]) -> str:
    """The digest of a mixture with or without a router, by what it says now."""
    if "router" not in described:
        return mixture.identity(described)
    rest = {key: value for key, value in described.items() if key != "router"}
    router = {key: value for key, value in described["router"].items() if key != "entry"}
    return digest({"mixture": mixture.identity(rest), "router": router})


def router_spec(described: dict[str, Any]) -> RoutingSpec:
    """The network of a mixture's router."""
    part = described["router"]
    return RoutingSpec(**{key: part[key] for key in RoutingSpec.model_fields if key in part})


class Clustered(mixture.Mixture):
    """A mixture for each cluster, and the router. Arguments as of `Mixture`."""

    def __init__(
        self,
        description: dict[str, Any],
        weights: Callable[[dict[str, Any]], Path],
        device: torch.device | str = "cpu",
        root: Path = Path(),
    ):
        clusters: dict[int, list[dict[str, Any]]] = {}
        for expert in description["experts"]:
            clusters.setdefault(expert["cluster"], []).append(expert)
        each = [description | {"experts": clusters[number]} for number in sorted(clusters)]
        super().__init__(each[0], weights, device, root)
        self.description = description
        self.clusters = [mixture.Mixture(own, weights, device, root) for own in each]

    @functools.cached_property
    def router(self) -> nn.Module:
        """What answers with logits of the clusters. UserError for a damaged file."""
        network = network_of(router_spec(self.description))
        path = self._weights(self.description["router"])
        return mixture.with_weights(network, path, "router").to(self.device)

    @torch.no_grad()
    def denoise(self, x: Tensor, log_snr: float, labels: Tensor | None = None) -> Tensor:
        """E[z | x] by the `top` most probable experts of each sample; as of any mixture."""
        if log_snr == -np.inf:
            return super().denoise(x, log_snr, labels)
        level = torch.full((1,), log_snr, device=x.device, dtype=torch.float32)

        def answer(cluster: int, rows: Tensor) -> Tensor:
            own = None if labels is None else labels[rows]
            return self.clusters[cluster].denoise(x[rows], log_snr, own)

        chances = self.router(x, level, labels).softmax(1)
        return mixed(chances, self.description["top"], answer)
