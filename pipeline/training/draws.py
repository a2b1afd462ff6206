"""What each step of a training sees, as a function of its position in the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.data.latents import Latents, Stream
from pipeline.levels import curriculum
from pipeline.networks.build import flops_of
from pipeline.noise import assignment, pairing, philox, process

if TYPE_CHECKING:
    from pipeline.specs import ExpertSpec, RouterSpec


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What is drawn for some images of the run, on the host.

    slots, rows and ids (of the paired noise): int64 [n]. log_snr: float32 [n], or None for an
    expert of one state; weight: float32 [n] or None. labels: int64 [n] or None. stored: the rows
    themselves, once they are read and if they are not on the device.
    """

    slots: np.ndarray
    rows: np.ndarray
    ids: np.ndarray
    log_snr: np.ndarray | None
    weight: np.ndarray | None
    labels: np.ndarray | None
    stored: np.ndarray | None = None

    def part(self, first: int, last: int) -> Drawn:
        """Those from `first` to before `last`."""
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return Drawn(*(None if value is None else value[first:last] for value in values))


@dataclasses.dataclass(frozen=True)
class Batch:
    """What one step trains on, or a part of it.

    inputs: the noisy images, [n, *shape], what the network is told of their noise (log-SNR, [n] or
    [1], or None) and their classes ([n] or None). wanted: the target, [n, *shape]. log_snr: [n], or
    a plain number for an expert of one state. correction: weights, [n], or None. What it is made
    of: images and noise, [n, *shape], and their rows, int64 [n] on the host.
    """

    inputs: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]
    wanted: torch.Tensor
    log_snr: torch.Tensor | float
    correction: torch.Tensor | None
    clean: torch.Tensor
    noise: torch.Tensor
    rows: np.ndarray


class Draws:
    """The training stream of one expert or router: rows, noises and states by position."""

    def __init__(
        self,
        spec: ExpertSpec | RouterSpec,
        latents: Latents,
        pairings: Sequence[pairing.Pairing] = (),
        components: assignment.Components | None = None,
        own: np.ndarray | None = None,
    ):
        """own: the dataset's rows that it is trained on, int64 [n]; None for all."""
        self.latents, self.stream = latents, Stream(latents)
        self.own, self.count = own, len(latents) if own is None else len(own)
        self.pairing = spec.pairing
        self.basis = None
        if components is not None:
            self.basis = torch.tensor(components.basis, device=latents.device)
        self.pairings = {slot: found for found in pairings for slot in found.slots}
        self.prediction, self.conditioned = spec.prediction, spec.conditioning == "state"
        self.noise_key = spec.noise_key
        self.rows_key = philox.derive_key(spec.stream_key, "rows")
        self.states_key = philox.derive_key(spec.stream_key, "states")
        self.drop_key = philox.derive_key(spec.stream_key, "labels")
        self.latent_key = philox.derive_key(spec.noise_key, "latent")
        self.outside_key = philox.derive_key(spec.stream_key, "outside")
        self.outside = spec.decouple.outside if spec.decouple else 0.0
        self.axis = np.asarray(spec.decouple.axis if spec.decouple else ())
        self.fixed = len(spec.log_snr) == 1 and not self.outside
        self.one_state = spec.log_snr[0]
        self.sorted = bool(spec.interval_bounds)
        self.classes = spec.classes
        self.label_dropout = spec.network.label_dropout
        self.budget = spec.images
        self.corrected = getattr(spec.curriculum.form, "correct", False)
        self.curriculum = curriculum.built(spec.curriculum, spec.log_snr, spec.continuous)
        # What makes places on the time axis of uniform numbers and rows, where that is learnt.
        self.policy: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
        self._slot, self._order = -1, np.empty(0, np.int64)

    def draw(self, start: int, stop: int) -> Drawn:
        """Images start..stop-1 of the run, which are one batch: states are stratified within."""
        slots, places = self.places(start, stop)
        rows, ids = self.pairs(slots, places)
        log_snr = weight = None
        if not self.fixed:
            log_snr, weight = self.states(start, stop, rows)
            log_snr = log_snr.astype(np.float32)
            weight = None if weight is None else weight.astype(np.float32)
        labels = self.labels(start, stop, rows)
        return Drawn(slots, rows, ids, log_snr, weight, labels)

    def read(self, drawn: Drawn) -> Drawn:
        """With the rows that have to be read."""
        return dataclasses.replace(drawn, stored=self.stream.read(drawn.rows))

    def batch(self, drawn: Drawn, layout: torch.memory_format) -> Batch:
        """Drawn images, noisy, in a layout of memory."""
        z = self.stream.sample(drawn.rows, drawn.slots, self.latent_key, drawn.stored)
        eps = self.noises(drawn.slots, drawn.rows, drawn.ids)
        if self.fixed:  # one state: its amplitudes are plain numbers
            log_snr: float | torch.Tensor = self.one_state
            given = torch.full((1,), log_snr, device=z.device) if self.conditioned else None
        else:
            log_snr = self._there(drawn.log_snr)
            # A multi-decoder sorts by it on the host, where nothing has to wait for the device.
            given = torch.from_numpy(drawn.log_snr) if self.sorted else log_snr
        x = process.add_noise(z, eps, log_snr).contiguous(memory_format=layout)
        wanted = process.target(self.prediction, z, eps, log_snr)
        inputs = (x, given, self._there(drawn.labels))
        weight = self._there(drawn.weight)
        return Batch(inputs, wanted, log_snr, weight, z, eps, drawn.rows)

    def _there(self, values: np.ndarray | None) -> torch.Tensor | None:
        """Values on the device."""
        return None if values is None else self.stream.there(values)

    def places(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Slots and places in them (int64 [n] each) of images start..stop-1 of the run.

        Where it is trained on some rows alone, the places are theirs.
        """
        positions = np.arange(start, stop, dtype=np.int64)
        slots, numbers = np.divmod(positions, self.count)
        places = np.empty_like(positions)
        for slot in np.unique(slots):
            if slot != self._slot:
                order = philox.permutation(self.rows_key, int(slot), self.count)
                self._slot, self._order = int(slot), order
            mine = slots == slot
            places[mine] = self._order[numbers[mine]]
        return slots, places if self.own is None else self.own[places]

    def states(
        self, start: int, stop: int, rows: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Log-SNR (float64 [n]) of each image, stratified within the batch, and its weight.

        rows: of the images, int64 [n]: a policy looks at them, and draws without strata.
        The weight, float64 [n], is None unless the curriculum corrects for its own density or has
        weights.
        """
        positions = np.arange(start, stop, dtype=np.int64)
        u = philox.uniform(self.states_key, 0, positions)
        if self.policy is None:
            t = curriculum.stratified(stop - start, u, self.curriculum.antithetic)
        else:
            t = self.policy(u, rows)
        index, log_snr = self.curriculum.draw(t, start / self.budget)
        weight = None
        if self.curriculum.weights is not None:
            weight = self.curriculum.weights[index]
        if self.corrected:
            weight = 1 / (len(self.curriculum) * self.curriculum.probabilities(0.0)[index])
        if self.outside:
            v = philox.uniform(self.outside_key, 0, positions, (2,))
            elsewhere = self.axis[(v[:, 1] * len(self.axis)).astype(np.int64)]
            away = v[:, 0] < self.outside
            log_snr = np.where(away, elsewhere, log_snr)
            weight = None if weight is None else np.where(away, 1.0, weight)
        return log_snr, weight

    def labels(self, start: int, stop: int, rows: np.ndarray) -> np.ndarray | None:
        """Class of each image, `classes` where it is dropped; None for an unconditional expert."""
        if not self.classes:
            return None
        labels = self.latents.labels[rows]
        dropped = philox.uniform(self.drop_key, 0, np.arange(start, stop)) < self.label_dropout
        return np.where(dropped, self.classes, labels)

    def pairs(self, slots: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The row at each place, and the number of the noise it is paired with, int64 [n] each."""
        if not self.pairings:
            return places, places
        rows, ids = np.empty_like(places), np.empty_like(places)
        for slot in np.unique(slots):
            mine = slots == slot
            rows[mine], ids[mine] = self.pairings[int(slot)].pairs(int(slot), places[mine])
        return rows, ids

    def noises(self, slots: np.ndarray, rows: np.ndarray, ids: np.ndarray) -> torch.Tensor:
        """The noise each image is paired with, float32 [n, *shape] on the device."""
        return pairing.paired_noise(
            self.noise_key,
            self.stream.slot(slots),
            self.stream.there(rows),
            self.stream.there(ids),
            self.latents.shape,
            refresh=getattr(self.pairing, "refresh", 0.0),
            basis=self.basis,
            scale=self.pairing.scale,
        )


def flops_per_image(spec: ExpertSpec, root: Path = Path()) -> float:
    """Mean forward FLOPs of the spec's network for an image that is trained on.

    For a multi-decoder over its run, by how often each interval is drawn. root: where files that
    networks name are.
    """
    bounds = spec.interval_bounds
    if not bounds:
        return flops_of(spec, root=root, training=True)
    drawn = curriculum.built(spec.curriculum, spec.log_snr, spec.continuous)
    places = np.searchsorted(-np.asarray(bounds), -drawn.log_snrs, side="left")
    shares = np.bincount(places, drawn.average(), minlength=len(bounds) + 1)
    levels = [bounds[0], *(bound - 1e-6 for bound in bounds)]  # one in each interval
    each = (flops_of(spec, v, training=True) for v in levels)
    return float(sum(share * own for share, own in zip(shares, each, strict=True)))


def flops_of_policy(spec: ExpertSpec, images: int, forward: float) -> float:
    """FLOPs of learning what is drawn, in a run of so many images; 0 where that is not learnt.

    forward: of the network, an image.
    """
    learnt = spec.curriculum.learnt
    return 0 if learnt is None else learnt.learner.flops(spec, images, forward)
