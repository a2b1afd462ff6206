"""Training of the router between experts over clusters of the data (McAllister et al. 2025).

The optimal denoiser of a whole is that of its parts, by the posterior of the parts: E[z | x] =
sum_c p(c | x, log-SNR) E[z | x, c], with p(c) the clusters' shares of the rows. A classifier that
is trained by cross-entropy on noisy rows, drawn evenly, learns this posterior.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from pipeline.data.latents import Latents
from pipeline.devices import set_arithmetic
from pipeline.errors import UserError
from pipeline.networks.build import count_parameters, flops_of, network_of
from pipeline.noise import assignment, pairing
from pipeline.store.files import replacing, write_text
from pipeline.training.draws import Draws
from pipeline.training.run import CURVE_POINTS, Progress, Run

if TYPE_CHECKING:
    from pipeline.specs import RouterSpec


def train_router(
    spec: RouterSpec,
    latents: Latents,
    clusters: np.ndarray,
    folder: Path,
    pairings: Sequence[pairing.Pairing] = (),
    *,
    components: assignment.Components | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    log: Callable[[str], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train the router of `spec`, from its checkpoint in `folder`/state if there is one.

    clusters: of each row, int64 [rows]; pairings and components as for `train`: it sees the noise
    that the experts see. AdamW; the learning rate rises over the first tenth and falls linearly to
    0. Leaves `weights.safetensors`, `curve.json` (mean cross-entropy, in nats) and `record.json`
    (images, FLOPs, parameters).

    Raises Interrupted, with the checkpoint written, once `stop()` is true; UserError if the loss is
    no longer finite.
    """
    device, budget, size = latents.device, spec.images, spec.batch
    torch.set_num_threads(spec.threads)
    set_arithmetic(device, tf32=False, deterministic=True)
    network = network_of(spec, spec.start_key, device).train()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.02)
    run = Run(folder, {"network": network, "optimizer": optimizer}, device, log)
    run.resume()
    draws = Draws(spec, latents, pairings, components)
    point = max(size, budget // CURVE_POINTS)
    with run:
        for start in range(run.images, budget, size):
            end = min(start + size, budget)
            batch = draws.batch(draws.read(draws.draw(start, end)), torch.contiguous_format)
            wanted = draws.stream.there(clusters[batch.rows])
            rate = spec.learning_rate * min(1.0, 10 * end / budget) * (1 - start / budget)
            optimizer.param_groups[0]["lr"] = rate
            loss = F.cross_entropy(network(*batch.inputs), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.add_loss(loss, end - start)
            due = start // point != end // point or end == budget
            if due and not np.isfinite(run.close_point()):
                raise UserError(
                    f"the router's loss is no longer finite after {end} images; lower "
                    "partition.router.learning_rate"
                )
            run.tell(progress, budget)
            if stop():
                run.interrupt()
            if run.due():
                run.checkpoint()
    with replacing(folder / "weights.safetensors") as path:
        save_file({k: p.detach().cpu().contiguous() for k, p in network.named_parameters()}, path)
    record = {
        "images": budget,
        "parameters": count_parameters(network),
        "flops": 3 * budget * flops_of(spec),  # backward costs twice the forward pass
    }
    for name, value in (("curve.json", run.curve), ("record.json", record)):
        write_text(folder / name, json.dumps(value))
