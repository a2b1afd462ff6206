"""One network of several experts, its weights chosen on images that nothing was trained on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import merging, noise, objective
from pipeline.latents import Latents
from pipeline.networks.build import network_of

STATES = 6  # noise levels at which a range's loss is measured
BATCH = 256

Weights = Mapping[str, torch.Tensor]


def merge_experts(
    spec: dict[str, Any],
    parent: Weights | None,
    experts: Sequence[Weights],
    latents: Latents | None,
    cache: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Weights, dict[str, Any]]:
    """The merged weights of a job's spec, and how they were found.

    parent: what the experts started from (None for snapshots of one run). latents: held-out rows,
    for a search. cache: a file in which evaluations are kept, so that a killed search goes on.
    Raises UserError if the networks do not fit each other.
    """
    settings = dict(spec["settings"])
    method = settings.pop("method")
    if method in ("average", "ties"):
        merged = merging.merge(method, parent, experts, **settings)
        return merged, merging.agreement(parent, experts)
    if method == "snapshots" and len(experts) == 1:  # the first milestone has no choice yet
        return experts[0], {"weights": [1.0], "evaluations": 0}
    if method == "snapshots":
        # In differences from the last snapshot the weights need not sum to one.
        *earlier, last = experts
        found = _search(spec, last, earlier, latents, cache, progress)
        share = 1 - sum(found["weights"])
        report = found | {"weights": [*found["weights"], share]}
        return merging.combine_snapshots(experts, report["weights"]), report
    report = merging.agreement(parent, experts)
    if settings["weights"] is None:
        report |= _search(spec, parent, experts, latents, cache, progress)
    else:
        report |= {"weights": settings["weights"]}
    return merging.merge(method, parent, experts, weights=report["weights"]), report


def _search(
    spec: dict[str, Any],
    parent: Weights,
    experts: Sequence[Weights],
    latents: Latents,
    cache: Path,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    settings = spec["settings"]
    ranges = [[float(v) for v in states] for states in spec["of"]]
    held_out = HeldOut(spec["model"], latents, ranges, settings["images"], spec["noise_key"])
    reference = held_out.losses(parent)
    known: dict[str, float] = json.loads(cache.read_text()) if cache.exists() else {}
    n = len(experts)
    planned = len(merging.design_points(n))

    def evaluate(weights: tuple[float, ...]) -> float:
        name = json.dumps(weights)
        if name not in known:
            merged = merging.merge("task-vector", parent, experts, weights=weights)
            known[name] = merging.normalised_loss(held_out.losses(merged), reference)
            cache.parent.mkdir(parents=True, exist_ok=True)
            temporary = cache.with_suffix(".part")
            temporary.write_text(json.dumps(known))
            os.replace(temporary, cache)
        progress(len(known), max(planned, len(known)))
        return known[name]

    bounds = tuple(settings.get("bounds", (-1.0, 1.0)))
    kind = settings.get("search", "quadratic")
    if kind == "grid":
        found = merging.grid_search(evaluate, n, bounds, levels=settings["levels"])
    elif kind == "random":
        count, key = settings["evaluations"], spec["noise_key"]
        found = merging.random_search(evaluate, n, bounds, count=count, key=key)
    else:
        found = merging.search(evaluate, n, bounds, confirm=evaluate)
    return {
        "weights": list(found.weights),
        "loss": found.value,
        "loss_of_average": evaluate((1 / n,) * n),
        "evaluations": len(known),
        "search": kind,
    }


class HeldOut:
    """The training loss of a network in each of several ranges of states, on fixed noisy rows."""

    def __init__(
        self,
        model: dict[str, Any],
        latents: Latents,
        ranges: Sequence[Sequence[float]],
        images: int,
        key: int,
    ):
        """ranges: log-SNRs of each; images: of the held-out rows, at most, spread over states."""
        self.prediction = model["prediction"]
        self.network = network_of(model, device=latents.device).eval().requires_grad_(False)
        rows = np.arange(min(images, len(latents)), dtype=np.int64)
        self.z = latents.gather(rows)
        ids = torch.from_numpy(rows).to(latents.device)
        self.eps = noise.normal(key, 0, ids, latents.shape)
        self.labels = None
        if model["classes"]:
            self.labels = torch.from_numpy(latents.labels[rows]).to(latents.device)
        self.levels = [
            [
                states[i]
                for i in np.linspace(0, len(states) - 1, min(STATES, len(states))).astype(int)
            ]
            for states in ranges
        ]

    @torch.no_grad()
    def losses(self, weights: Weights) -> list[float]:
        """Mean squared error of the network's own target in each range."""
        self.network.load_state_dict(dict(weights))
        return [float(np.mean([self._loss(v) for v in levels])) for levels in self.levels]

    def _loss(self, level: float) -> float:
        total = 0.0
        given = torch.full((1,), level, device=self.z.device)
        for start in range(0, len(self.z), BATCH):
            part = slice(start, start + BATCH)
            z, eps = self.z[part], self.eps[part]
            x = objective.add_noise(z, eps, level)
            own = None if self.labels is None else self.labels[part]
            output = self.network(x, given, own)
            wanted = objective.target(self.prediction, z, eps, level)
            total += float(objective.squared_error(output, wanted).sum())
        return total / len(self.z)
