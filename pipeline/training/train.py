"""Training of one expert: resumable at any moment, and a pure function of its spec.

Everything random is drawn by position: image i of the run is row `permutation[i mod N]` of slot
i // N, its noise number and its state follow from i alone; where a policy draws the state, from i
and what the policy has learnt, which is in the checkpoint. No generator state exists, so a run that
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

from pipeline.data.latents import Latents
from pipeline.devices import explained, set_arithmetic
from pipeline.errors import Transient, UserError, one_line, room_for
from pipeline.networks.build import Fit, count_parameters, network_of, start_from, take
from pipeline.noise import assignment, pairing, philox
from pipeline.store.files import kept_at, replacing, write_text
from pipeline.store.identity import file_digest
from pipeline.training.compiled import compiled
from pipeline.training.draws import Batch, Drawn, Draws, flops_of_policy, flops_per_image
from pipeline.training.ema import EMA, PowerEMA
from pipeline.training.group import Group, ShardSum, ranges
from pipeline.training.loss import Uncertainty
from pipeline.training.objective import Objective
from pipeline.training.optim import Adam, apply, rate_and_momentum
from pipeline.training.recorded import can_be_recorded, recorded
from pipeline.training.run import CHECKPOINT, CURVE_POINTS, Progress, Run, ahead, keep_freed_memory
from pipeline.training.stopping import HeldOutLoss, gains_no_more

if TYPE_CHECKING:
    from pipeline.specs import ExpertSpec

ALONE = Group()
HOST = torch.device("cpu")
EMA_RAMPUP = 0.05  # EDM's: the average never reaches back further than a twentieth of the run


def train(
    spec: ExpertSpec,
    latents: Latents,
    folder: Path,
    pairings: Sequence[pairing.Pairing] = (),
    *,
    components: assignment.Components | None = None,
    parent: Path | None = None,
    held_out: Latents | None = None,
    features: np.ndarray | None = None,
    own: np.ndarray | None = None,
    root: Path = Path(),
    progress: Callable[[Progress], None] = lambda _: None,
    log: Callable[[str], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    group: Group = ALONE,
) -> dict[str, dict[str, float]]:
    """Train the expert of `spec`, from its checkpoint in `folder`/state if there is one.

    pairings: files that together hold the slots the run passes through; none for independent
    noise. components: those in which the paired noise is kept; None for all. parent: the weights
    that a spec with `parent` or `initial` starts from. held_out: by which a spec with
    `training.stop` may end early. features: of each row, float32 [rows, d], for a term of the loss
    that aligns with them. own: the rows that it is trained on, int64 [n]; None for all. root: where
    files that networks name are.
    group: the processes that train it together, each with all of these arguments; only that of
    rank 0 writes, says how far it is and can be stopped.

    Leaves in `folder`: `weights-<images>.safetensors` (EMA weights) for each snapshot, with
    `power_ema` also `power-<length>-<images>.safetensors` for each length, `curve.json` (mean loss
    over the run) and `record.json` (images, FLOPs, parameters; with `training.stop` the held-out
    loss at each snapshot, and where it ended): all the same bytes whenever the run gives the same
    bits. Returns `snapshot_seconds` and `snapshot_cpu_seconds`, by images: what
    training took up to each snapshot, over all processes that worked on it.

    Raises Interrupted, with the checkpoint written, once `stop()` is true; UserError if the loss
    is no longer finite, the parent's weights do not fit, or the device cannot do what is asked of
    it; Parted if another process of the group ended.
    """
    settings = spec.training
    torch.set_num_threads(settings.threads)
    keep_freed_memory()
    device = latents.device
    set_arithmetic(device, settings.precision == "tf32", settings.deterministic)
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
    # A compiled network gives its gradients in the default layout, and so it is given its weights.
    network.to(memory_format=torch.contiguous_format if settings.compile else layout).train()
    uncertainty = None
    if settings.weighting.kind == "uncertainty":
        uncertainty = Uncertainty().to(device)
    trainable = [p for p in network.parameters() if p.requires_grad]
    trainable += uncertainty.parameters() if uncertainty else ()
    auxiliary = None
    if settings.auxiliary is not None:
        keys = settings.auxiliary.arguments()
        auxiliary = settings.auxiliary.maker(spec, network, device, features, **keys)
        trainable += auxiliary.parameters()
    adam = {key: getattr(settings, key) for key in ("learning_rate", "betas", "weight_decay")}
    if settings.optimizer.kind == "adam":
        optimizer = Adam(trainable, **adam)
    else:
        keys = settings.optimizer.arguments()
        optimizer = settings.optimizer.maker(network, trainable, adam, **keys)
    ema = EMA(network, settings.ema_halflife, EMA_RAMPUP) if settings.ema_halflife else None
    power = PowerEMA(network, settings.power_ema) if settings.power_ema else None
    draws = Draws(spec, latents, pairings, components, own)
    learnt = spec.curriculum.learnt
    if learnt is not None:
        draws.policy = learnt.learner(spec, draws, network, layout, **learnt.arguments())
    parts = {"network": network, "optimizer": optimizer, "ema": ema, "policy": draws.policy}
    parts |= {"power": power, "uncertainty": uncertainty, "auxiliary": auxiliary}
    run = _Run(spec, root, folder, parts, device, log)
    run.resume_together(group)

    bfloat16 = settings.precision == "bfloat16"
    if bfloat16 and device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        log("this processor has no bfloat16 units: training.precision: float32 is much faster here")
    budget, batch, shards = spec.images, settings.batch, settings.shards
    objective = Objective(spec, network, guide, uncertainty, device, auxiliary)
    sums = ShardSum(trainable, shards, group) if shards > 1 else None
    loss_of = HeldOutLoss(spec, held_out, network) if settings.stop else None

    def prepared(start: int) -> tuple[int, list[tuple[Drawn, int, float]]]:
        """The batch from image `start` on: each of its parts, where that starts, and its share."""
        size = min(batch, budget - start)
        drawn = draws.draw(start, start + size)
        parts = ranges(size, shards, group)
        shares = ((draws.read(drawn.part(a, b)), start + a, (b - a) / size) for a, b in parts)
        return start, list(shares)

    def passes(batch: Batch, share: float) -> torch.Tensor:
        """Loss of a batch, or of a share of it; leaves its gradients."""
        loss = share * objective(batch)
        loss.backward()
        return loss.detach()

    record = can_be_recorded(spec, device)
    if (settings.compile or record) and budget - run.images >= batch:
        with explained(memory_settings(spec)):
            like = draws.batch(draws.draw(0, batch).part(0, batch // shards), layout)
            if settings.compile:
                left = budget - run.images
                objective.forward = compiled(network, like.inputs, left, autocast=bfloat16, log=log)
            if record:
                passes = recorded(passes, like, 1 / shards, trainable)

    def backward(drawn: Drawn, start: int, share: float) -> torch.Tensor:
        """As `passes`, of images that were drawn, from image `start` on."""
        if spec.network.random:  # torch draws the masks itself: by position, too
            torch.manual_seed(philox.derive_key(spec.stream_key, "dropout", start))
        return passes(draws.batch(drawn, layout), share)

    warmup = min(settings.warmup, budget // 10)
    step = max(batch, budget // CURVE_POINTS)
    left = range(0) if run.stopped() else range(run.images, budget, batch)
    with run, explained(memory_settings(spec)):
        # A policy draws a batch by what it learnt from the one before.
        for start, shares in ahead(prepared, left, device if learnt is None else HOST):
            stop_at = min(start + batch, budget)
            for drawn, first, share in shares:
                loss = backward(drawn, first, share) if share else None
                if sums is not None:
                    sums.add(loss)
            if sums is not None:
                loss = sums.total()
            if settings.clip:
                nn.utils.clip_grad_norm_(trainable, settings.clip)
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
            if learnt is None:
                optimizer.step()
            else:
                draws.policy.watch(optimizer.step, shares[0][0], start)
            optimizer.zero_grad()
            if ema is not None:
                ema.update(start, stop_at - start)
            if power is not None:
                power.update(start, stop_at - start)
            run.add_loss(loss, stop_at - start)

            if loss_of is not None and run.snapshots(start, stop_at):
                run.more["held_out"].append([stop_at, loss_of(run.weights(), layout)])
            last = stop_at == budget or run.stopped()
            ended = last and (run.loss_images >= step / 2 or not run.curve)
            due = start // step != stop_at // step or ended
            if due and not np.isfinite(run.close_point()):
                raise UserError(
                    f"the loss is no longer finite after {stop_at} images; lower "
                    "training.learning_rate or use training.precision: float32"
                )
            if group.rank == 0:
                run.snapshot(start, stop_at)
                run.tell(progress, budget)
                if stop():
                    run.interrupt()
                if run.due():
                    run.checkpoint()
            if last:
                break
    if group.rank == 0:
        run.finish(loss_of.count if loss_of else 0)
    return run.spent()


def memory_settings(spec: ExpertSpec) -> str:
    """What of a spec decides on the memory that a step takes."""
    said = f"training.batch {spec.training.batch}, training.shards {spec.training.shards}"
    key = spec.network.width_key
    width = getattr(spec.network, key, None)  # that of a module is its own matter
    return said if width is None else f"{said}, network.{key} {width}"


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
        self.more = {"snapshot_seconds": {}, "held_out": []}  # [[images, loss], ...]

    def resume_together(self, group: Group) -> None:
        """Go on from the last checkpoint, if there is one: of a group, each from that of rank 0.

        UserError as `resume`; Transient where another process does not see that checkpoint.
        """
        if group.rank == 0:
            self.resume()
        images = int(group.agree(str(self.images)))
        if group.rank and images:
            path = kept_at(self.folder / "state", CHECKPOINT, images)
            if path is None:
                raise Transient(
                    f"{self.folder / 'state'}: process {group.rank} does not see the checkpoint "
                    f"of {images:,} images; run again"
                )
            self._restore(torch.load(path, map_location="cpu", weights_only=True))

    def _restore(self, state: dict[str, Any]) -> None:
        with explained(memory_settings(self.spec)):  # no checkpoint is to blame
            super()._restore(state)

    def weights(self) -> dict[str, torch.Tensor]:
        """The averaged weights, or those of the network where none are averaged."""
        if "ema" in self.parts:
            return self.parts["ema"].weights
        return {k: p.detach() for k, p in self.parts["network"].named_parameters()}

    def snapshots(self, start: int, stop: int) -> list[int]:
        """Those due at the end of the batch from image `start` to before `stop`."""
        return [images for images in self.spec.snapshots if start < images <= stop]

    def stopped(self) -> bool:
        """Whether the run ends here by its rule, before its budget does."""
        rule = self.spec.training.stop
        losses = [loss for _, loss in self.more["held_out"]]
        return rule is not None and gains_no_more(losses, rule)

    def snapshot(self, start: int, stop: int) -> None:
        """Keep the weights if a snapshot is due at the end of this batch."""
        for images in self.snapshots(start, stop):
            self._write_weights(f"weights-{images}.safetensors", self.weights())
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

    def finish(self, held_out: int) -> None:
        """Write what is left; held_out: images that each held-out loss is of."""
        spec = self.spec
        self.snapshot(self.images, spec.images)  # those behind an early end
        flops = flops_per_image(spec, self.root)
        beside = self.parts["auxiliary"].flops if "auxiliary" in self.parts else 0
        record = {
            "images": self.images,
            "parameters": count_parameters(self.parts["network"]),
            # Backward costs twice the forward pass.
            "flops": 3 * self.images * (flops + beside) + flops_of_policy(spec, self.images, flops),
        }
        if spec.training.stop is not None:
            found = self.more["held_out"]
            record["flops"] += len(found) * held_out * flops
            record |= {"held_out": found, "ended": self.images if self.stopped() else None}
        for name, value in (("curve.json", self.curve), ("record.json", record)):
            write_text(self.folder / name, json.dumps(value))

    def spent(self) -> dict[str, dict[str, float]]:
        """Seconds up to each snapshot, by the wall clock and of CPUs."""
        wall, cpu = (
            {images: seconds[i] for images, seconds in self.more["snapshot_seconds"].items()}
            for i in range(2)
        )
        return {"snapshot_seconds": wall, "snapshot_cpu_seconds": cpu}
