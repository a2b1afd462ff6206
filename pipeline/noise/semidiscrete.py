"""Semidiscrete optimal transport between the dataset and the Gaussian: noises choose their images.

A noise eps takes the row i that maximises <x_i, eps> + g_i. Whatever the potential g is, all noises
of a slot are used once, so they are N(0, I) exactly; g makes the rows equally frequent. It is the
minimum of the convex function

    F(g) = E max_i(<x_i, eps> + g_i) - mean(g),    dF/dg_i = P(i is taken) - 1 / N,

the dual of the transport of N(0, I) to the rows at the cost -<x, eps> (Mousavi-Hosseini et al.
2025, arXiv 2509.25519). Any g gives a bound: mean_j max_i(<x_i, eps_j> + g_i) - mean(g) is at least
the mean of <x, eps> over any assignment of N noises to the rows.

`learn` finds g once, by averaged stochastic gradient descent. Products are exact, as in
`assignment`, so what noises take does not depend on the order of sums.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.noise import diagnostics, pairing, philox
from pipeline.noise.assignment import (
    NOISE_SCALE,
    Components,
    Coordinates,
    RowSource,
    classes_of,
    principal_components,
)
from pipeline.rows import spread
from pipeline.store.files import keep, kept

STATE = "potential.npz"
STATE_SECONDS = 30.0  # between two states that are kept
_PROGRESS_SECONDS = 1.0
# A batch is this part of the rows, and at most so many noises: few rows are then taken twice
# between two steps. It holds each noise's negative as well, which costs no further product.
_BATCH_SHARE, _BATCH = 32, 1024
# The first step in units of a row's scale (`_Rows.first_guess`), times the square root of the
# noises for each row. Steps fall to 0 linearly; potentials from this part of them on are averaged.
_STEP, _AVERAGED = 2.0, 0.25
_AXES = 64  # principal ones, by which the first guess is made
# Rows and noises that are multiplied at once: the scores stay in a processor's cache.
_ROWS_AT_ONCE, _NOISES_AT_ONCE = 2048, 512


class _Rows:
    """Some rows as whole numbers, and which of them noises take."""

    def __init__(
        self,
        rows: RowSource,
        members: np.ndarray,
        key: int,
        slot: int,
        components: Components | None,
        memory: int,
        pool: ThreadPoolExecutor,
    ):
        # As private as it is: a name of its own would make all pairings by `assignment` again.
        self.at = Coordinates(rows, members, key, slot, components, 0, pool)
        self.count, self.unit = len(members), self.at.row_scale * NOISE_SCALE
        self._kept = None
        if self.count * self.at.dim * 4 <= memory:
            whole = np.empty((self.count, self.at.dim), np.float32)

            def fill(part: slice) -> None:
                whole[part] = self._read(part)

            list(pool.map(fill, self.parts()))
            self._kept = whole

    def parts(self) -> list[slice]:
        starts = range(0, self.count, _ROWS_AT_ONCE)
        return [slice(start, min(start + _ROWS_AT_ONCE, self.count)) for start in starts]

    def part(self, part: slice) -> np.ndarray:
        return self._read(part) if self._kept is None else self._kept[part]

    def _read(self, part: slice) -> np.ndarray:
        return self.at.rows(np.arange(part.start, part.stop))

    def taken(
        self, noises: np.ndarray, potential: np.ndarray, mirrored: bool = False
    ) -> np.ndarray:
        """The row that each noise takes, int64 [1, n], and with `mirrored` its negative, [2, n].

        noises: whole numbers, float32 [n, dim].
        """
        bias = (potential * self.unit).astype(np.float32)
        here = np.arange(len(noises))
        best = np.full((1 + mirrored, len(noises)), -np.inf, np.float32)
        found = np.zeros(best.shape, np.int64)
        for part in self.parts():
            # Products are exact, and sums with the potential are rounded one by one.
            products = noises @ self.part(part).T
            for sign in range(1 + mirrored):
                scores = bias[part] - products if sign else bias[part] + products
                top = scores.argmax(axis=1)
                value = scores[here, top]
                better = value > best[sign]
                best[sign, better], found[sign, better] = value[better], part.start + top[better]
        return found

    def first_guess(self, axes: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """A potential to start from, and the scale of each row's, float64 [count] both.

        axes: orthonormal, float32 [k, dim], along which rows vary most; None where the coordinates
            are such.

        The products of a row with noises have the standard deviation |x - m|, so that the largest
        of n such rows follows Gumbel's law of scale |x - m| / sqrt(2 ln n): that much potential
        makes a row e times as frequent.

        For rows N(m, S) the potential is -q / 2, q = (x - m) S^(-1/2) (x - m). But n rows do not
        tell smaller deviations than that scale apart, so none is taken to be smaller; and in many
        dimensions, where q differs by the rows' contrast, the potential falls as a row's length
        does. -sqrt(q mean(q)) does, and where all q are alike it is as steep as -q / 2.
        """
        parts, total = self.parts(), np.zeros(self.at.dim)
        for part in parts:
            total += self.part(part).sum(0, dtype=np.float64)
        mean = total / self.count
        kept = 0 if axes is None else len(axes)
        # Along each axis, and in all other directions together.
        widths = np.r_[np.ones(kept), max(self.at.dim - kept, 1)] if kept else np.ones(self.at.dim)

        def squares(part: slice) -> np.ndarray:
            apart = (self.part(part) - mean) / self.at.row_scale
            if axes is None:
                return apart**2
            along = (apart @ axes.T) ** 2
            others = np.maximum((apart**2).sum(1) - along.sum(1), 0)
            return np.column_stack([along, others])

        variance = sum(squares(part).sum(0) for part in parts) / (self.count * widths)
        if not variance.any():
            return np.zeros(self.count), np.zeros(self.count)
        gumbel = 1 / math.sqrt(2 * math.log(max(self.count, 2)))
        deviation = np.sqrt(variance + (variance @ widths) * gumbel**2)
        weighted, length = np.empty(self.count), np.empty(self.count)
        for part in parts:
            own = squares(part)
            weighted[part], length[part] = (own / deviation).sum(1), np.sqrt(own.sum(1))
        return -np.sqrt(weighted * weighted.mean()), length * gumbel


def learn(
    rows: RowSource,
    count: int,
    *,
    key: int,
    noises: int,
    labels: np.ndarray | None = None,
    components: Components | None = None,
    memory: int = 1 << 30,
    workers: int = 1,
    state: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    log: Callable[[str], None] = lambda text: None,
) -> np.ndarray:
    """The potential of `count` rows, float32 [count], in units of <x, eps>, mean 0 (in each class).

    key: the noises it is learnt from are other ones than those of any slot under it.
    noises: so many for each row. The chi-squared distance of the rows' frequencies from uniform
        ones falls in inverse proportion to it, from about 0.1 for 16.
    labels: integers [count]; a potential for each class apart, as for `choose`.
    components: of these components of the rows alone.
    memory, workers: bytes for coordinates that are kept, 4 a row (of a class) and dimension, and
        number of threads. Neither changes the answer. Rows that do not fit are read again for
        every batch of noises, so take fewer components instead.
    state: a folder in which unfinished work is kept, and from which it goes on.
    progress: is told of noises, done and in all.
    """
    found = np.zeros(count, np.float32)
    classes = [np.arange(count)] if labels is None else classes_of(labels, count)
    before: dict[str, np.ndarray] = {"number": np.int64(-1), "found": found}
    for _, path in kept(state, STATE, log) if state is not None else ():
        with np.load(path, allow_pickle=False) as opened:
            before = dict(opened)
        found = before["found"]
        break
    axes = None
    if components is None:
        axes = principal_components(
            rows, count, min(_AXES, count, rows(np.arange(1)).size), key=key
        ).basis
    done = 0
    with ThreadPoolExecutor(workers) as pool:
        for number, members in enumerate(classes):
            n = len(members)
            if number < before["number"]:
                done += noises * n
                continue
            at = _Rows(rows, members, key, 0, components, memory, pool)
            batch = max(1, min(n // _BATCH_SHARE, _BATCH) // 2)
            steps = -(-noises * n // (2 * batch))
            drawn_by = philox.derive_key(key, "potential", number)
            guess, scales = at.first_guess(axes)
            largest = _STEP * scales / math.sqrt(noises)
            first, potential, total = 0, guess, np.zeros(n)
            if number == before["number"]:
                first, potential, total = (before[k] for k in ("step", "potential", "total"))
            saved = told = time.monotonic()
            for step in range(int(first), steps):
                drawn = np.array_split(at.at.directions(drawn_by, step, batch), workers)
                taken = pool.map(partial(at.taken, potential=potential, mirrored=True), drawn)
                times = sum(np.bincount(own.ravel(), minlength=n) for own in taken)
                excess = times - 2 * batch / n
                potential = potential - (1 - step / steps) * largest * excess
                if step >= _AVERAGED * steps:
                    total = total + potential
                now = time.monotonic()
                if now - told >= _PROGRESS_SECONDS:
                    told = now
                    progress(done + (step + 1) * noises * n // steps, noises * count)
                if state is not None and now - saved >= STATE_SECONDS:
                    saved = now
                    here = {"number": number, "step": step + 1, "found": found}
                    here |= {"potential": potential, "total": total}
                    keep(state, STATE, done + step + 1, lambda path, h=here: _save(path, h))
            total -= total.mean()
            found[members] = total / (steps - math.ceil(_AVERAGED * steps))
            done += noises * n
            progress(done, noises * count)
    return found


def _save(path: Path, arrays: dict[str, Any]) -> None:
    with open(path, "wb") as f:
        np.savez(f, **arrays)


def choose(
    rows: RowSource,
    count: int,
    potential: np.ndarray,
    *,
    key: int,
    slot: int,
    labels: np.ndarray | None = None,
    components: Components | None = None,
    memory: int = 1 << 30,
    workers: int = 1,
) -> np.ndarray:
    """The row that each of the noises 0 .. count - 1 of `slot` takes: unsigned integers [count].

    labels: integers [count]; noise j then takes a row of the class of row j, so every class has as
        many noises as rows, and noise tells nothing of the class.
    The other arguments are those of `learn`.
    """
    found = np.empty(count, np.int64)
    classes = [np.arange(count)] if labels is None else classes_of(labels, count)
    with ThreadPoolExecutor(workers) as pool:
        for members in classes:
            at = _Rows(rows, members, key, slot, components, memory, pool)
            own = potential[members].astype(np.float64)

            def take(start: int, at=at, own=own, members=members) -> None:
                ids = members[start : start + _NOISES_AT_ONCE]
                found[ids] = members[at.taken(at.at.noises_by_id(ids), own)[0]]

            list(pool.map(take, range(0, len(members), _NOISES_AT_ONCE)))
    return found.astype(np.min_scalar_type(count - 1))


def unevenness(taken: np.ndarray, count: int) -> float:
    """N sum_i P(i)^2 - 1 of the rows' probabilities: 0 if all are equally frequent.

    taken: rows [n] that independent noises took. Estimated without bias from pairs of noises that
    took the same row.
    """
    times = np.bincount(taken, minlength=count).astype(np.float64)
    return float(count * (times * (times - 1)).sum() / (len(taken) * (len(taken) - 1)) - 1)


def pair(
    rows: RowSource,
    count: int,
    shape: tuple[int, ...],
    folder: Path,
    *,
    key: int,
    slots: range,
    data: str,
    labels: np.ndarray | None,
    within_class: bool,
    means: np.ndarray,
    components: Components | None,
    noises: int,
    learnt: Path | None,
    progress: Callable[[int, int], None],
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Write `pairing.arrow` of `slots` into a folder; what the first one does to the noise.

    learnt: a file of `pairing.write_potential`; None to learn the potential, in the folder's
        `state` until it is there, and to write it to `potential.arrow`.
    shape: of a row, (C, H, W). data: the digest of the rows. labels: int [count], None if unknown;
    within_class: whether noises keep to them. means: as in `assignment.centred`.
    The other arguments are those of `learn`; the answer is `diagnostics.diagnose`'s, with
    `unevenness`.
    """
    own = labels if within_class else None
    path = folder / "potential.arrow" if learnt is None else learnt
    before = 0 if learnt else noises * count
    whole = before + len(slots) * count
    if learnt is None:
        found = learn(
            rows,
            count,
            key=key,
            noises=noises,
            labels=own,
            components=components,
            state=folder / "state",
            progress=lambda done, _: progress(done, whole),
            log=log,
        )
        pairing.write_potential(path, found, data)
    potential = pairing.read_potential(path, data)
    taken = {}
    for slot in slots:
        taken[slot] = choose(
            rows, count, potential, key=key, slot=slot, labels=own, components=components
        )
        progress(before + len(taken) * count, whole)
    first = taken[slots.start].astype(np.int64)
    ids = spread(min(count, diagnostics.DIAGNOSED_ROWS), count, own)
    at = first[ids]
    statistics = diagnostics.diagnose(
        rows(at),
        philox.normal(key, slots.start, ids, shape),
        principal_components(
            rows, count, min(diagnostics.DIAGNOSED_COMPONENTS, math.prod(shape)), key=key
        ),
        None if labels is None else labels[at],
        means.reshape(len(means), -1)[0 if own is None else 1 + own[at]],
    )
    statistics["unevenness"] = unevenness(first, count)
    settings = {"noises": noises}
    pairing.write_taken(
        folder / "pairing.arrow",
        taken,
        settings=settings,
        key=key,
        data=data,
        statistics=statistics,
    )
    return statistics
