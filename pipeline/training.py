"""Training of one expert: resumable at any moment, and a pure function of its spec.

Everything random is drawn by position: image i of the run is row `permutation[i mod N]` of slot
i // N, its noise number and its state follow from i alone. No generator state exists, so a run that
was killed and resumed gives the very bits of one that was not.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from pipeline import curriculum as curricula
from pipeline import noise, objective, pairing
from pipeline.compiled import compiled
from pipeline.ema import EMA, PowerEMA
from pipeline.errors import UserError, room_for
from pipeline.files import replacing, write_text
from pipeline.identity import file_digest
from pipeline.latents import Latents
from pipeline.networks.build import count_parameters, flops_of, network_of, start_from
from pipeline.optim import apply, make_optimizer, rate_and_momentum
from pipeline.run import CURVE_POINTS, Progress, Run, keep_freed_memory

EMA_RAMPUP = 0.05  # EDM's: the average never reaches back further than a twentieth of the run


@dataclasses.dataclass(frozen=True)
class Batch:
    """What one step trains on.

    inputs: the noisy images, [n, *shape], what the network is told of their noise (log-SNR, [n] or
    [1], or None) and their classes ([n] or None). wanted: the target, [n, *shape]. log_snr: [n], or
    a plain number for an expert of one state. correction: weights, [n], or None.
    """

    inputs: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]
    wanted: torch.Tensor
    log_snr: torch.Tensor | float
    correction: torch.Tensor | None


class Draws:
    """The training stream of one expert: rows, noises and states by position."""

    def __init__(
        self,
        spec: dict[str, Any],
        latents: Latents,
        pairings: Sequence[pairing.Pairing] = (),
        components: pairing.Components | None = None,
    ):
        self.latents = latents
        self.pairing = spec["pairing"]
        self.basis = None
        if components is not None:
            self.basis = torch.tensor(components.basis, device=latents.device)
        self.pairings = {slot: found for found in pairings for slot in found.slots}
        self.prediction, self.conditioned = spec["prediction"], spec["conditioning"] == "state"
        self.noise_key = spec["noise_key"]
        self.rows_key = noise.derive_key(spec["stream_key"], "rows")
        self.states_key = noise.derive_key(spec["stream_key"], "states")
        self.drop_key = noise.derive_key(spec["stream_key"], "labels")
        self.latent_key = noise.derive_key(spec["noise_key"], "latent")
        self.outside_key = noise.derive_key(spec["stream_key"], "outside")
        self.outside = spec.get("decouple", {}).get("outside", 0.0)
        self.axis = np.asarray(spec.get("decouple", {}).get("axis", ()))
        self.fixed = len(spec["log_snr"]) == 1 and not self.outside
        self.one_state = float(spec["log_snr"][0])
        self.classes = spec["classes"]
        self.label_dropout = spec["network"].get("label_dropout", 0.0)
        self.budget = spec["images"]
        self.corrected = spec["curriculum"].get("correct", False)
        self.curriculum = _curriculum(spec)
        self._slot, self._order = -1, np.empty(0, np.int64)

    def batch(self, start: int, stop: int, layout: torch.memory_format) -> Batch:
        """Images start..stop-1 of the run, noisy, in a layout of memory."""
        device = self.latents.device
        slots, rows = self.rows(start, stop)
        z = self.images(slots, rows)
        eps = self.noises(slots, rows)
        correction = None
        if self.fixed:  # one state: its amplitudes are plain numbers
            log_snr: float | torch.Tensor = self.one_state
            given = torch.full((1,), log_snr, device=device) if self.conditioned else None
        else:
            values, weights = self.states(start, stop)
            log_snr = given = torch.from_numpy(values.astype(np.float32)).to(device)
            if weights is not None:
                correction = torch.from_numpy(weights.astype(np.float32)).to(device)
        x = objective.add_noise(z, eps, log_snr).contiguous(memory_format=layout)
        wanted = objective.target(self.prediction, z, eps, log_snr)
        labels = self.labels(start, stop, rows)
        return Batch((x, given, labels), wanted, log_snr, correction)

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Slots and dataset rows (int64 [n] each) of images start..stop-1 of the run."""
        positions = np.arange(start, stop, dtype=np.int64)
        slots, places = np.divmod(positions, len(self.latents))
        rows = np.empty_like(positions)
        for slot in np.unique(slots):
            if slot != self._slot:
                order = noise.permutation(self.rows_key, int(slot), len(self.latents))
                self._slot, self._order = int(slot), order
            mine = slots == slot
            rows[mine] = self._order[places[mine]]
        return slots, rows

    def states(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Log-SNR (float64 [n]) of each image, stratified within the batch, and its weight.

        The weight, float64 [n], is None unless the curriculum corrects for its own density or has
        weights.
        """
        positions = np.arange(start, stop, dtype=np.int64)
        u = noise.uniform(self.states_key, 0, positions)
        strata = curricula.stratified(stop - start, u, self.curriculum.antithetic)
        index, log_snr = self.curriculum.draw(strata, start / self.budget)
        weight = None
        if self.curriculum.weights is not None:
            weight = self.curriculum.weights[index]
        if self.corrected:
            weight = 1 / (len(self.curriculum) * self.curriculum.probabilities(0.0)[index])
        if self.outside:
            v = noise.uniform(self.outside_key, 0, positions, (2,))
            elsewhere = self.axis[(v[:, 1] * len(self.axis)).astype(np.int64)]
            away = v[:, 0] < self.outside
            log_snr = np.where(away, elsewhere, log_snr)
            weight = None if weight is None else np.where(away, 1.0, weight)
        return log_snr, weight

    def images(self, slots: np.ndarray, rows: np.ndarray) -> torch.Tensor:
        """The scaled latents, float32 [n, *shape] on the device."""
        return self.latents.sample(rows, slots, self.latent_key)

    def labels(self, start: int, stop: int, rows: np.ndarray) -> torch.Tensor | None:
        """Class of each image, `classes` where it is dropped; None for an unconditional expert."""
        if not self.classes:
            return None
        labels = self.latents.labels[rows]
        dropped = noise.uniform(self.drop_key, 0, np.arange(start, stop)) < self.label_dropout
        return torch.from_numpy(np.where(dropped, self.classes, labels)).to(self.latents.device)

    def noises(self, slots: np.ndarray, rows: np.ndarray) -> torch.Tensor:
        """The noise each image is paired with, float32 [n, *shape] on the device."""
        ids = rows
        if self.pairings:
            ids = np.empty_like(rows)
            for slot in np.unique(slots):
                mine = slots == slot
                ids[mine] = self.pairings[int(slot)].noise_ids(int(slot), rows[mine])
        device = self.latents.device
        slot, row, number = (torch.from_numpy(a).to(device) for a in (slots, rows, ids))
        return pairing.paired_noise(
            self.noise_key,
            slot,
            row,
            number,
            self.latents.shape,
            refresh=self.pairing.get("refresh", 0.0),
            basis=self.basis,
            scale=self.pairing["scale"],
        )


def _curriculum(spec: dict[str, Any]) -> curricula.Curriculum:
    settings = dict(spec["curriculum"])
    kind = settings.pop("kind")
    own = settings.pop("own", None)
    settings.pop("correct", None)
    axis = np.asarray(settings.pop("axis", spec["log_snr"]))
    built = curricula.build(kind, axis, spec["continuous"], **settings)
    return built if own is None else built.restrict(np.arange(own[0], own[1] + 1))


def train(
    spec: dict[str, Any],
    latents: Latents,
    folder: Path,
    pairings: Sequence[pairing.Pairing] = (),
    *,
    components: pairing.Components | None = None,
    parent: Path | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    log: Callable[[str], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, dict[str, float]]:
    """Train the expert of `spec`, from its checkpoint in `folder`/state if there is one.

    pairings: files that together hold the slots the run passes through; none for independent
    noise. components: those in which the paired noise is kept; None for all. parent: the weights
    that a spec with `parent` starts from.

    Leaves in `folder`: `weights-<images>.safetensors` (EMA weights) for each snapshot, with
    `power_ema` also `power-<length>-<images>.safetensors` for each length, `curve.json` (mean loss
    over the run) and `record.json` (images, FLOPs, parameters): all the same bytes whenever the
    run gives the same bits. Returns `snapshot_seconds` and `snapshot_cpu_seconds`, by images: what
    training took up to each snapshot, over all processes that worked on it.

    Raises Interrupted, with the checkpoint written, once `stop()` is true; UserError if the loss
    is no longer finite or the parent's weights do not fit.
    """
    settings = spec["training"]
    torch.set_num_threads(settings["threads"])
    keep_freed_memory()
    device = latents.device
    network = network_of(spec, spec["start_key"], device)
    decoupled = spec.get("decouple", {})
    guide = None
    if parent is not None:
        weights = load_file(parent)
        try:
            start_from(network, weights)
        except ValueError as e:
            raise UserError(f"{parent}: {e}") from e
        if decoupled.get("consistency"):
            guide = network_of(spec, device=device).eval().requires_grad_(False)
            start_from(guide, weights)
    if spec.get("train") == "decoders":
        network.encoder.requires_grad_(False)
    # On a GPU convolutions are fastest channels-last; on a CPU the norms are much slower so.
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    network.to(memory_format=layout).train()
    uncertainty = None
    if settings["weighting"]["kind"] == "uncertainty":
        uncertainty = objective.Uncertainty().to(device)
    trainable = [p for p in network.parameters() if p.requires_grad]
    optimizer = make_optimizer(
        [*trainable, *(uncertainty.parameters() if uncertainty else ())],
        "adamw" if settings["weight_decay"] else "adam",
        settings["learning_rate"],
        tuple(settings["betas"]),
        settings["weight_decay"],
    )
    ema = EMA(network, settings["ema_halflife"], EMA_RAMPUP) if settings["ema_halflife"] else None
    power = PowerEMA(network, settings["power_ema"]) if settings["power_ema"] else None
    plain = settings["weighting"]["kind"] in ("uniform", "uncertainty")
    weigh = objective.weighting(**({"kind": "uniform"} if plain else settings["weighting"]))
    draws = Draws(spec, latents, pairings, components)
    parts = {"network": network, "optimizer": optimizer, "ema": ema}
    parts |= {"power": power, "uncertainty": uncertainty}
    run = _Run(spec, folder, parts, device, log)
    run.resume()

    bfloat16 = settings["precision"] == "bfloat16"
    if bfloat16 and device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        log("this processor has no bfloat16 units: training.precision: float32 is much faster here")
    budget, batch = spec["images"], settings["batch"]
    forward = network
    if settings["compile"] and budget - run.images >= batch:
        inputs, left = draws.batch(0, batch, layout).inputs, budget - run.images
        forward = compiled(network, inputs, left, autocast=bfloat16, log=log)
    warmup = min(settings["warmup"], budget // 10)
    step = max(batch, budget // CURVE_POINTS)
    with run:
        while run.images < budget:
            start, stop_at = run.images, min(run.images + batch, budget)
            one = draws.batch(start, stop_at, layout)
            if spec["network"]["dropout"]:  # torch draws the masks itself: by position, too
                torch.manual_seed(noise.derive_key(spec["stream_key"], "dropout", start))
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                output = forward(*one.inputs)
                answer = None if guide is None else guide(*one.inputs)
            if plain and uncertainty is None and one.correction is None:
                loss = functional.mse_loss(output.float(), one.wanted)
            else:
                error = objective.squared_error(output, one.wanted)
                if not plain:
                    error = error * weigh(one.log_snr, spec["prediction"])
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
                loss = loss + decoupled["consistency"] * kept
            loss.backward()
            factor, beta1 = rate_and_momentum(
                settings["decay"],
                start / budget,
                stop_at,
                beta0=settings["betas"][0],
                floor=settings["floor"],
                warmup_images=warmup,
                reference_images=settings["reference_images"],
            )
            apply(optimizer, settings["learning_rate"] * factor, beta1)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
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


class _Run(Run):
    """An expert's run: with its snapshots and record."""

    def __init__(self, spec: dict[str, Any], *settings: Any):
        super().__init__(*settings)
        self.spec = spec
        self.more = {"snapshot_seconds": {}}

    def snapshot(self, start: int, stop: int) -> None:
        """Keep the weights if a snapshot is due at the end of this batch."""
        for images in self.spec["snapshots"]:
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
            "flops": 3 * self.images * flops_per_image(spec),
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


def flops_per_image(spec: dict[str, Any]) -> float:
    """Mean forward FLOPs of the spec's network for an image that is trained on.

    For a multi-decoder over its run, by how often each interval is drawn.
    """
    bounds = spec["network"].get("interval_bounds")
    if not bounds:
        return flops_of(spec)
    curriculum = _curriculum(spec)
    places = np.searchsorted(-np.asarray(bounds), -curriculum.log_snrs, side="left")
    shares = np.bincount(places, curriculum.average(), minlength=len(bounds) + 1)
    levels = [bounds[0], *(bound - 1e-6 for bound in bounds)]  # one in each interval
    return float(sum(s * flops_of(spec, v) for s, v in zip(shares, levels, strict=True)))
