"""Training of one expert: resumable at any moment, and a pure function of its spec.

Everything random is drawn by position: image i of the run is row `permutation[i mod N]` of slot
i // N, its noise number and its state follow from i alone. No generator state exists, so a run that
was killed and resumed gives the very bits of one that was not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from pipeline.data.latents import Latents
from pipeline.errors import UserError, one_line, room_for
from pipeline.networks.build import Fit, count_parameters, network_of, start_from, take
from pipeline.noise import assignment, pairing, philox, process
from pipeline.store.files import replacing, write_text
from pipeline.store.identity import file_digest
from pipeline.training.compiled import compiled
from pipeline.training.draws import Draws, flops_per_image
from pipeline.training.ema import EMA, PowerEMA
from pipeline.training.loss import Uncertainty, weight
from pipeline.training.optim import Adam, apply, rate_and_momentum
from pipeline.training.run import CURVE_POINTS, Progress, Run, keep_freed_memory

if TYPE_CHECKING:
    from pipeline.specs import ExpertSpec

EMA_RAMPUP = 0.05  # EDM's: the average never reaches back further than a twentieth of the run


def train(
    spec: ExpertSpec,
    latents: Latents,
    folder: Path,
    pairings: Sequence[pairing.Pairing] = (),
    *,
    components: assignment.Components | None = None,
    parent: Path | None = None,
    root: Path = Path(),
    progress: Callable[[Progress], None] = lambda _: None,
    log: Callable[[str], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, dict[str, float]]:
    """Train the expert of `spec`, from its checkpoint in `folder`/state if there is one.

    pairings: files that together hold the slots the run passes through; none for independent
    noise. components: those in which the paired noise is kept; None for all. parent: the weights
    that a spec with `parent` or `initial` starts from. root: where files that networks name are.

    Leaves in `folder`: `weights-<images>.safetensors` (EMA weights) for each snapshot, with
    `power_ema` also `power-<length>-<images>.safetensors` for each length, `curve.json` (mean loss
    over the run) and `record.json` (images, FLOPs, parameters): all the same bytes whenever the
    run gives the same bits. Returns `snapshot_seconds` and `snapshot_cpu_seconds`, by images: what
    training took up to each snapshot, over all processes that worked on it.

    Raises Interrupted, with the checkpoint written, once `stop()` is true; UserError if the loss
    is no longer finite or the parent's weights do not fit.
    """
    settings = spec.training
    torch.set_num_threads(settings.threads)
    keep_freed_memory()
    device = latents.device
    network = network_of(spec, spec.start_key, device, root)
    guide = None
    if parent is not None:
        fit = _started(network, spec, parent)
        if fit is not None:
            log(f"{spec.initial.path}: {fit}")
        if spec.decouple and spec.decouple.consistency:
            guide = network_of(spec, spec.start_key, device, root).eval().requires_grad_(False)
            _started(guide, spec, parent)
    if hasattr(network, "check"):
        network.check()
    if spec.train == "decoders":
        network.encoder.requires_grad_(False)
    # On a GPU convolutions are fastest channels-last; on a CPU the norms are much slower so.
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    network.to(memory_format=layout).train()
    uncertainty = None
    if settings.weighting.kind == "uncertainty":
        uncertainty = Uncertainty().to(device)
    trainable = [p for p in network.parameters() if p.requires_grad]
    optimizer = Adam(
        [*trainable, *(uncertainty.parameters() if uncertainty else ())],
        settings.learning_rate,
        settings.betas,
        settings.weight_decay,
    )
    ema = EMA(network, settings.ema_halflife, EMA_RAMPUP) if settings.ema_halflife else None
    power = PowerEMA(network, settings.power_ema) if settings.power_ema else None
    plain = settings.weighting.kind in ("uniform", "uncertainty")
    draws = Draws(spec, latents, pairings, components)
    parts = {"network": network, "optimizer": optimizer, "ema": ema}
    parts |= {"power": power, "uncertainty": uncertainty}
    run = _Run(spec, root, folder, parts, device, log)
    run.resume()

    bfloat16 = settings.precision == "bfloat16"
    if bfloat16 and device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        log("this processor has no bfloat16 units: training.precision: float32 is much faster here")
    budget, batch = spec.images, settings.batch
    forward = network
    if settings.compile and budget - run.images >= batch:
        inputs, left = draws.batch(0, batch, layout).inputs, budget - run.images
        forward = compiled(network, inputs, left, autocast=bfloat16, log=log)
    warmup = min(settings.warmup, budget // 10)
    step = max(batch, budget // CURVE_POINTS)
    with run:
        while run.images < budget:
            start, stop_at = run.images, min(run.images + batch, budget)
            one = draws.batch(start, stop_at, layout)
            if spec.network.random:  # torch draws the masks itself: by position, too
                torch.manual_seed(philox.derive_key(spec.stream_key, "dropout", start))
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                output = forward(*one.inputs)
                answer = None if guide is None else guide(*one.inputs)
            if plain and uncertainty is None and one.correction is None:
                loss = functional.mse_loss(output.float(), one.wanted)
            else:
                error = process.squared_error(output, one.wanted)
                if not plain:
                    error = error * weight(settings.weighting, one.log_snr, spec.prediction)
                if uncertainty is not None:
                    level = one.log_snr
                    if draws.fixed:
                        level = torch.full((1,), level, device=device)
                    error = uncertainty.loss(error, level)
                if one.correction is not None:
                    error = error * one.correction
                loss = error.mean()
            if answer is not None:
                kept = functional.mse_loss(output.float(), answer.float())
                loss = loss + spec.decouple.consistency * kept
            loss.backward()
            factor, beta1 = rate_and_momentum(
                settings.decay,
                start / budget,
                stop_at,
                beta0=settings.betas[0],
                floor=settings.floor,
                warmup_images=warmup,
                reference_images=settings.reference_images,
            )
            apply(optimizer, settings.learning_rate * factor, beta1)
            optimizer.step()
            optimizer.zero_grad()
            if ema is not None:
                ema.update(start, stop_at - start)
            if power is not None:
                power.update(start, stop_at - start)
            run.add_loss(loss, stop_at - start)

            ended = stop_at == budget and (run.loss_images >= step / 2 or not run.curve)
            due = start // step != stop_at // step or ended
            if due and not np.isfinite(run.close_point()):
                raise UserError(
                    f"the loss is no longer finite after {stop_at} images; lower "
                    "training.learning_rate or use training.precision: float32"
                )
            run.snapshot(start, stop_at)
            run.tell(progress, budget)
            if stop():
                run.interrupt()
            if run.due():
                run.checkpoint()
    run.finish()
    return run.spent()


def _started(network: nn.Module, spec: ExpertSpec, path: Path) -> Fit | None:
    """Give a network the weights of its parent, or what fits of those made elsewhere."""
    try:
        weights = load_file(path)
        return take(network, weights) if spec.initial else start_from(network, weights)
    except SafetensorError as e:
        raise UserError(f"{path}: not a safetensors file, or damaged ({one_line(e)})") from e
    except ValueError as e:
        raise UserError(f"{path}: {e}") from e


class _Run(Run):
    """An expert's run: with its snapshots and record."""

    def __init__(self, spec: ExpertSpec, root: Path, *settings: Any):
        super().__init__(*settings)
        self.spec, self.root = spec, root
        self.more = {"snapshot_seconds": {}}

    def snapshot(self, start: int, stop: int) -> None:
        """Keep the weights if a snapshot is due at the end of this batch."""
        for images in self.spec.snapshots:
            if start < images <= stop:
                weights = (
                    self.parts["ema"].weights
                    if "ema" in self.parts
                    else {k: p.detach() for k, p in self.parts["network"].named_parameters()}
                )
                self._write_weights(f"weights-{images}.safetensors", weights)
                averages = self.parts["power"].weights if "power" in self.parts else {}
                for length, average in averages.items():
                    self._write_weights(f"power-{length}-{images}.safetensors", average)
                self.more["snapshot_seconds"][str(images)] = self.clock.read()

    def _write_weights(self, name: str, weights: dict[str, torch.Tensor]) -> None:
        kept = {k: w.to("cpu", copy=True).contiguous() for k, w in weights.items()}
        size = sum(w.nbytes for w in kept.values())
        # Without metadata equal weights are equal files, whatever code or entries they came from.
        with room_for(self.folder / name, size), replacing(self.folder / name) as temporary:
            save_file(kept, temporary)
            seal = file_digest(temporary)
        self.files[name] = seal

    def finish(self) -> None:
        spec = self.spec
        record = {
            "images": self.images,
            "parameters": count_parameters(self.parts["network"]),
            # Backward costs twice the forward pass.
            "flops": 3 * self.images * flops_per_image(spec, self.root),
        }
        for name, value in (("curve.json", self.curve), ("record.json", record)):
            write_text(self.folder / name, json.dumps(value))

    def spent(self) -> dict[str, dict[str, float]]:
        """Seconds up to each snapshot, by the wall clock and of CPUs."""
        wall, cpu = (
            {images: seconds[i] for images, seconds in self.more["snapshot_seconds"].items()}
            for i in range(2)
        )
        return {"snapshot_seconds": wall, "snapshot_cpu_seconds": cpu}
