"""What a briefly trained network says about the time axis: its errors, and how gradients agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipeline.data.latents import Latents
from pipeline.noise import philox, process
from pipeline.rows import spread

if TYPE_CHECKING:
    from pipeline.specs import ExpertSpec

IMAGES = 512
BATCH = 128


def error_curve(
    network: nn.Module,
    spec: ExpertSpec,
    latents: Latents,
    levels: Sequence[float],
    key: int,
    *,
    gradients: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Mean squared x0 error of a trained network at each noise level.

    The same images and the same noise at all levels, so that the curve is smooth: `log_snr` [L] and
    `error` [L], of scaled data. With `gradients` also `affinity` [L, L]: the cosines of the
    gradients of the training loss at each two levels (ANT, arXiv 2306.00354).
    """
    count = min(IMAGES, len(latents))
    rows = spread(count, len(latents), latents.labels)
    z = latents.gather(rows)
    eps = philox.normal(key, 0, torch.from_numpy(rows).to(latents.device), latents.shape)
    labels = None
    if spec.classes:
        labels = torch.from_numpy(latents.labels[rows]).to(latents.device)
    errors, directions = [], []
    for done, level in enumerate(levels):
        network.zero_grad(set_to_none=True)
        total = 0.0
        for start in range(0, count, BATCH):
            part = slice(start, start + BATCH)
            x = process.add_noise(z[part], eps[part], level)
            given = torch.full((1,), level, device=latents.device)
            with torch.set_grad_enabled(gradients):
                output = network(x, given, None if labels is None else labels[part])
                wanted = process.target(spec.prediction, z[part], eps[part], level)
                loss = process.squared_error(output, wanted).sum() / count
            if gradients:
                loss.backward()
            x0 = process.to_x0(spec.prediction, output.detach(), x, level)
            total += float((x0 - z[part]).square().flatten(1).mean(1).sum())
        errors.append(total / count)
        if gradients:
            found = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
            directions.append(torch.nn.functional.normalize(torch.cat(found), dim=0))
        progress(done + 1, len(levels))
    result: dict[str, Any] = {"log_snr": [float(v) for v in levels], "error": errors}
    if gradients:
        stacked = torch.stack(directions).double()
        cosines = (stacked @ stacked.T).cpu().numpy()
        result["affinity"] = ((cosines + cosines.T) / 2).tolist()
    return result
