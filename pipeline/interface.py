"""What `import tspace` gives: the parts that a training loop of one's own can use.

Settings are those of params.yaml and checked like them. Data is float [N, ...], zero mean and unit
variance on average, as diffusion models are trained on: an array of numpy or a tensor of torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.levels import curriculum as curricula
from pipeline.levels import schedule as schedules
from pipeline.levels.params import FROM_DATA, Adaptive, IntervalDensity, state_count
from pipeline.levels.spectrum import means, spectrum
from pipeline.networks.embedding import timestep
from pipeline.noise import pairing, semidiscrete
from pipeline.noise.assignment import centred, pair_slot
from pipeline.noise.params import Independent, Semidiscrete
from pipeline.noise.philox import derive_key, normal
from pipeline.noise.process import add_noise
from pipeline.params.mistakes import validate
from pipeline.params.recipe import Params, Recipe
from pipeline.sampling.exported import load_exported
from pipeline.store.identity import digest

noise = normal
load = load_exported
__all__ = ["Pairing", "add_noise", "curriculum", "load", "noise", "schedule", "timestep"]


def schedule(kind: str, *, data: Any = None, **settings: Any) -> np.ndarray:
    """The states of a block `schedule` of params.yaml: log-SNRs float64 [T], cleanest first.

    data: what a schedule that is fitted (`fitted`, `elbo`) is fitted to, by its spectrum. UserError
    for settings that params.yaml would refuse, and for a fitted schedule without data.
    """
    block = _block("schedule", {"kind": kind} | settings)
    states = state_count(block)
    if states is None:
        raise UserError("schedule.states: continuous, which is no list; give a number")
    if getattr(block, "shift", 0.0) == "unit-range":
        raise UserError("schedule.shift: unit-range is the pipeline's; give a number")
    fitted = isinstance(block, FROM_DATA)
    if fitted and (data is None or block.source != "spectrum"):
        raise UserError(f"schedule.kind: {kind} is fitted to the spectrum of data; give data=...")
    return schedules.build(block, states, spectrum=spectrum(_Rows(data)) if fitted else None)


def curriculum(
    kind: str, log_snr: Sequence[float] | np.ndarray, *, continuous: bool = False, **settings: Any
) -> curricula.Curriculum:
    """The density of states of a block `curriculum` of params.yaml.

    log_snr: the states, cleanest first, or with `continuous` the two ends of a range. Its
    `draw(u, progress)` turns uniform numbers [B] and the share of the training that has passed into
    indices and log-SNRs. UserError for settings that params.yaml would refuse, and `per-interval`,
    which needs a partition, or `adaptive`, which is learnt in training.
    """
    block = _block("curriculum", {"kind": kind} | settings)
    if isinstance(block, IntervalDensity):
        raise UserError(f"curriculum.kind: {kind} needs the partition of a recipe")
    if isinstance(block, Adaptive):
        raise UserError(f"curriculum.kind: {kind} is learnt in the pipeline's training only")
    return curricula.build(block, np.asarray(log_snr), continuous)


class Pairing:
    """Which noise each image of a dataset is trained with, pass by pass (immiscible diffusion).

    `Pairing.of` computes one, and `load` reads it again; `noise` is what to train with, or for
    `semidiscrete`, whose noises choose their images, `pairs`.
    """

    def __init__(self, stored: pairing.Pairing, shape: tuple[int, ...]):
        self.stored, self.shape = stored, shape

    @classmethod
    def of(
        cls,
        data: Any,
        path: str | Path,
        *,
        passes: int = 1,
        seed: int = 0,
        labels: Sequence[int] | np.ndarray | None = None,
        method: str = "assignment",
        **settings: Any,
    ) -> Self:
        """Pair data [N, ...] with noise, for so many passes over it, into a file at `path`.

        labels: int [N]; noise is then exchanged within a class only. method and settings: of a
        block `pairing` of params.yaml. UserError for what params.yaml would refuse.
        """
        block = _block("pairing", {"method": method} | settings)
        if isinstance(block, Independent):
            raise UserError("pairing.method: independent pairs nothing; use torch.randn")
        for name in ("components", "keep", "refresh", "within_class"):
            if name in settings:
                raise UserError(f"pairing.{name}: is for the pipeline; leave it out here")
        rows = _Rows(data)
        classes = None if labels is None else np.asarray(labels, np.int64)
        key = derive_key(seed, "noise")
        described = {"scale": block.scale, "shape": list(rows.shape)}
        known = {"key": key, "data": digest([len(rows), *rows.shape])}
        if isinstance(block, Semidiscrete):
            given = {"key": key, "labels": classes}
            potential = semidiscrete.learn(rows.flat, len(rows), noises=block.noises, **given)
            taken = {
                slot: semidiscrete.choose(rows.flat, len(rows), potential, slot=slot, **given)
                for slot in range(passes)
            }
            pairing.write_taken(
                Path(path), taken, settings={"noises": block.noises} | described, **known
            )
            return cls.load(path)
        chosen_by = rows.flat
        if getattr(block, "center", False):
            rows.labels = classes
            count = 0 if classes is None else int(classes.max()) + 1
            chosen_by = centred(rows.flat, means(rows, count), classes)
        options = block.arguments(
            "keep", "components", "center", "within_class", "refresh", "scale"
        )
        slots = {
            slot: pair_slot(
                method, chosen_by, len(rows), key=key, slot=slot, labels=classes, **options
            )
            for slot in range(passes)
        }
        pairing.write_pairing(
            Path(path),
            slots,
            method=method,
            settings=options | described,
            **known,
        )
        return cls.load(path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The pairing that `of` wrote. UserError if it cannot be read or is damaged."""
        stored = pairing.read_pairing(Path(path))
        if "shape" not in stored.settings:
            raise UserError(f"{path}: a pairing of the pipeline; `Pairing.of` makes one of data")
        return cls(stored, tuple(stored.settings["shape"]))

    def noise(self, number: int, rows: Any, device: torch.device | str = "cpu") -> Tensor:
        """The noise of some rows (int [n]) in pass `number`, from 0: float32 [n, ...].

        Passes beyond the last one that is stored begin again at the first. UserError for
        `semidiscrete`, where a row has no noise of its own.
        """
        if self.stored.method == "semidiscrete":
            raise UserError("pairing.method: semidiscrete has a row for each noise; use pairs()")
        return self.pairs(number, rows, device)[1]

    def pairs(
        self, number: int, places: Any, device: torch.device | str = "cpu"
    ) -> tuple[np.ndarray, Tensor]:
        """Rows (int64 [n]) and their noise (float32 [n, ...]) at some places of pass `number`.

        places: int [n], each of 0 .. N - 1 once a pass. They are the rows themselves, but for
        `semidiscrete`, where they number the noises.
        """
        slot = number % len(self.stored.slots)
        rows, ids = self.stored.pairs(slot, np.asarray(places, np.int64))
        eps = normal(self.stored.key, slot, torch.from_numpy(ids).to(device), self.shape)
        return rows, eps * self.stored.settings["scale"]


class _Rows:
    """Data in memory, as the functions that read latents see it."""

    def __init__(self, data: Any):
        values = np.asarray(data.detach().cpu() if isinstance(data, Tensor) else data, np.float32)
        if values.ndim < 2 or not len(values) or not np.isfinite(values).all():
            raise UserError(f"data: must be finite numbers [N, ...], not {list(values.shape)}")
        self.values, self.shape, self.labels = values, values.shape[1:], None

    def __len__(self) -> int:
        return len(self.values)

    def gather(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(self.values[rows])

    def flat(self, rows: np.ndarray) -> np.ndarray:
        return self.values[rows].reshape(len(rows), -1)


def _block(name: str, given: dict[str, Any]) -> Any:
    """A block of a recipe. UserError with the message that params.yaml would get."""
    problems: list[str] = []
    recipe = validate(Recipe, {name: given}, (), problems, Recipe, Params)
    if problems:
        raise UserError("; ".join(problems))
    return getattr(recipe, name)
