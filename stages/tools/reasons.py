"""Why an expert must be trained: how it differs from the nearest finished one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pipeline.specs import ExpertSpec
from stages.tools.forecast import Finished

NEW = "new"
NEAR = 8  # an expert that differs in more settings than this explains nothing
OTHER_STATES = 3  # settings that a difference of states counts as


class Reasons:
    """For an expert that must be trained: the nearest finished one and what is different."""

    def __init__(self, finished: Sequence[Finished]):
        self._finished = finished
        self._flat = [_flat(e.spec) for e in finished]
        self._columns = {key: i for i, key in enumerate(sorted({k for f in self._flat for k in f}))}
        self._codes: dict[tuple[str, str], int] = {}
        # A row an expert, a column a setting: comparing with all of them is one operation.
        self._table = np.array([self._row(f) for f in self._flat], np.int32)
        self._labels = np.array([e.label for e in finished], dtype=object)
        self._when = np.array([e.when for e in finished])
        self._weights = np.ones(len(self._columns))
        if "log_snr" in self._columns:
            self._weights[self._columns["log_snr"]] = OTHER_STATES

    def _row(self, flat: dict[str, Any]) -> list[int]:
        row = [0] * len(self._columns)
        for key, value in flat.items():
            if key in self._columns:
                code = self._codes.setdefault((key, repr(value)), len(self._codes) + 1)
                row[self._columns[key]] = code
        return row

    def of(self, spec: ExpertSpec, label: str) -> str:
        """`new`, or the settings in which the nearest finished expert differs: old -> new."""
        if not self._finished:
            return NEW
        flat = _flat(spec.as_json())
        distance = (self._table != np.array(self._row(flat), np.int32)) @ self._weights
        # Among equally near ones that of the same recipe and states, then the latest.
        distance += 0.5 * (self._labels != label)
        nearest = min(np.flatnonzero(distance == distance.min()), key=lambda i: -self._when[i])
        told = list(_differences(self._flat[nearest], flat))
        alien = spec.conditioning == "none" and "states" in [key for key, _ in told]
        if alien or len(told) > NEAR:
            return NEW
        return "; ".join(text for _, text in told)


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Settings by their dotted path; a list is one setting."""
    if not isinstance(value, dict):
        return {path: value}
    return {
        key: v
        for name, part in value.items()
        for key, v in _flat(part, f"{path}.{name}" if path else name).items()
    }


IN_WORDS = {
    "code": "code of training changed",
    "latents": "the latents changed (images, their scale or their encoder)",
    "pairings": "the noises paired with the images changed",
    "parent": "its parent expert changed",
    "curriculum.axis": "the states of the whole schedule changed",
    "curriculum.form.shift": "the time of the schedule changed",
    "curriculum.own": "its place among the states changed",
}


def _differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(setting, text) of each difference; what follows from another one is left out."""
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    # Keys of the random streams follow from the seed and the states, snapshots from the budget.
    if "noise_key" in changed:
        yield "seed", "seed changed"
    implied = {"noise_key", "stream_key"}
    if "noise_key" in changed or "log_snr" in changed:
        implied |= {"start_key"}
    if "images" in changed:
        implied |= {"snapshots"}
    told = set()
    for key in changed:
        if key in implied:
            continue
        top = key if key in IN_WORDS else key.partition(".")[0]
        if top in IN_WORDS:
            text = IN_WORDS[top]
        elif key == "log_snr":
            key, text = "states", f"states: {_states(old)} -> {_states(new)}"
        elif key == "start_key":
            text = "training.start changed"
        else:
            text = f"{key}: {_brief(old, key)} -> {_brief(new, key)}"
        if text not in told:
            told.add(text)
            yield key, text


def _states(flat: dict[str, Any]) -> str:
    values = flat.get("log_snr") or []
    if not values:
        return "none"
    ends = f"log-SNR {values[0]:.3g}" + (f" to {values[-1]:.3g}" if values[1:] else "")
    return ends if flat.get("continuous") else f"{len(values)} ({ends})"


def _brief(flat: dict[str, Any], key: str) -> str:
    if key not in flat:
        return "unset"
    value = flat[key]
    if isinstance(value, list) and len(value) > 6:
        return f"{len(value)} values"
    return "null" if value is None else str(value)
