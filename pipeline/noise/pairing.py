"""Pairing: which noise each row of the dataset is trained with (immiscible diffusion).

A pairing of one slot (a pass over the dataset with a fresh set of noises) is integers. Noise is
never stored: `noise.normal(key, slot, id)` makes it where it is needed.

| method | integers | noise id of row i | marginal of the noise |
|---|---|---|---|
| `independent` | none needed | i | N(0, I) |
| `assignment` | a permutation p of the rows | p[i] | N(0, I): the same noises, reordered |
| `knn-l2` | choice c of k candidates | i * k + c | too short, see `knn_bias` |
| `knn-dot` | choice c of k candidates | i * k + c | right norm, stretched along the rows |

With `semidiscrete` it is noises that take rows (`pipeline/noise/semidiscrete.py`): the integers are
the rows r, of noise i the row r[i]. A row may come several times in a slot or not at all, each
noise comes once, and the marginal of the noise is N(0, I).

`assignment` is the linear assignment of Immiscible Diffusion (arXiv 2406.12303) with the cost
-<x, eps>. Its solution is that of the squared distance |x - eps|^2, whose other terms do not
depend on the pairing, and it is found several times faster. Blocks of rows are solved exactly;
further sweeps solve other blocks of the already paired rows, which never raises the cost and
approaches an assignment of the whole dataset. `knn-l2` is the selection of Improved Immiscible
Diffusion (arXiv 2505.18521); `knn-dot` drops the noise's own norm from its score.

A row that chooses pulls its noise towards itself, so all rows together pull the noise's mean
towards theirs, where sampling does not start. Rows are therefore `centred` before they choose,
which is a correction of ours to that paper. A permutation has all noises whatever the cost.

All costs are exact integers: rows and noises are rounded to integers whose inner products stay
below 2^24, so that a float32 matrix product is exact in whatever order it is summed. From the
same input (and version of scipy, which breaks ties) a pairing is therefore equal to the bit for
any number of threads, BLAS or processor.
"""

import contextlib
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import UserError
from pipeline.noise import philox
from pipeline.noise.assignment import Components, noise_ids
from pipeline.store.files import replacing


# --- noise at training time -------------------------------------------------------------------
def paired_noise(
    key: int,
    slot: Any,
    rows: Any,
    ids: Any,
    shape: tuple[int, ...],
    *,
    refresh: float,
    basis: Any,
    scale: float,
) -> Any:
    """The noise to train `rows` with: float32 [n, *shape], of the kind and on the device of `ids`.

    A pure function of its arguments. rows, ids: int64 [n], numpy or torch; ids from `noise_ids`.
    slot: an integer, or one per row (int64 [n], like `ids`).

    refresh: share b of the variance that is drawn anew, sqrt(1 - b) * eps + sqrt(b) * fresh.
    basis: keep eps only in these components (`Components.basis`, of the same kind as `ids`) and
        draw the rest anew; None for all.
    scale: factor on the result; the control for the smaller noise of `knn-l2`.

    If the paired noise is N(0, I), so is the answer (for `scale=1`).
    """
    eps = philox.normal(key, slot, ids, shape)
    if refresh > 0 or basis is not None:
        fresh = philox.normal(philox.derive_key(key, "fresh"), slot, rows, shape)
        eps *= math.sqrt(1 - refresh)
        if basis is None:
            fresh *= math.sqrt(refresh)
            eps += fresh
        else:
            # fresh already holds the rest; within the components, move it to the mixture.
            eps -= fresh * (1 - math.sqrt(refresh))
            eps = fresh + (eps.reshape(len(ids), -1) @ basis.T @ basis).reshape(eps.shape)
    if scale != 1:
        eps *= scale
    return eps


# --- files ------------------------------------------------------------------------------------
_FORMAT = 1


@dataclass(frozen=True)
class Pairing:
    """A stored pairing. slots: slot -> integers [count], mapped from the file."""

    method: str
    settings: dict[str, Any]
    key: int
    data: str
    count: int
    slots: dict[int, np.ndarray]
    statistics: dict[str, Any]

    def pairs(self, slot: int | np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and the ids of their noises, int64 [n] each.

        places: int64 [n], of `slot`, an integer or one a place. A place is a row; where noises
        take their rows, it is a noise.
        """
        candidates = self.settings.get("candidates", 0)
        slot = np.broadcast_to(slot, places.shape)
        found = np.empty_like(places)
        for one in np.unique(slot):
            mine = slot == one
            found[mine] = noise_ids(self.method, self.slots[int(one)], places[mine], candidates)
        return (found, places) if self.method == "semidiscrete" else (places, found)


def write_pairing(
    path: Path,
    slots: Mapping[int, np.ndarray],
    *,
    method: str,
    settings: Mapping[str, Any],
    key: int,
    data: str,
    statistics: Mapping[str, Any] | None = None,
) -> None:
    """Store slots (integers of `pair_slot`, in row order) as one Arrow IPC file.

    One record batch a slot, 1, 2 or 4 bytes a row. The header (schema metadata, JSON) holds all
    that the integers rest on: `key`, the version of the noise, `data` (the digest of the rows),
    method, settings (for `knn-*` with `candidates`), cost form, and a checksum. The file appears
    complete or not at all.

    Raises ValueError for integers that are no pairing of this method.
    """
    arrays = list(slots.values())
    if not arrays or len({(a.dtype, a.shape) for a in arrays}) > 1:
        raise ValueError("a pairing needs slots of one length and type")
    count = len(arrays[0])
    for slot, paired in slots.items():
        if method == "assignment":
            good = count and (np.bincount(paired, minlength=count) == 1).all()
        elif method.startswith("knn"):
            good = count and paired.max() < settings["candidates"]
        else:
            raise ValueError(f"nothing to store for pairing method {method!r}")
        if not good or paired.dtype.kind != "u":
            raise ValueError(f"slot {slot} is no pairing by {method}")
    header = {
        "rng": philox.RNG,
        "key": f"{key:016x}",
        "data": data,
        "method": method,
        "settings": dict(settings),
        "cost": "|eps|^2 - 2<x,eps>" if method == "knn-l2" else "-<x,eps>",
        "count": count,
        "slots": list(slots),
        "statistics": dict(statistics or {}),
    }
    batches = [pa.record_batch([pa.array(a)], names=["noise"]) for a in arrays]
    _write(path, "pairing", header, batches)


def write_taken(
    path: Path,
    slots: Mapping[int, np.ndarray],
    *,
    settings: Mapping[str, Any],
    key: int,
    data: str,
    statistics: Mapping[str, Any] | None = None,
) -> None:
    """Store the rows that noises take (`semidiscrete.choose`), as `write_pairing` does its own.

    Raises ValueError for integers that are no rows.
    """
    for slot, taken in slots.items():
        if taken.dtype.kind != "u" or taken.max() >= len(taken):
            raise ValueError(f"slot {slot}: not the row of each noise")
    header = {
        "rng": philox.RNG,
        "key": f"{key:016x}",
        "data": data,
        "method": "semidiscrete",
        "settings": dict(settings),
        "cost": "-<x,eps>",
        "count": len(next(iter(slots.values()))),
        "slots": list(slots),
        "statistics": dict(statistics or {}),
    }
    batches = [pa.record_batch([pa.array(a)], names=["row"]) for a in slots.values()]
    _write(path, "pairing", header, batches)


def read_pairing(path: Path, expect: Mapping[str, Any] | None = None) -> Pairing:
    """Open a stored pairing, mapped into memory.

    expect: what it must have been made with: any of `data`, `key`, `method`, `settings`, `count`.

    Raises UserError telling why a file is refused: missing, foreign, damaged, made by another
    version of the noise, or made with something else than expected.
    """
    header, batches = _read(path, "pairing")
    if header["rng"] != philox.RNG:
        raise UserError(
            f"{path}: paired with noise {header['rng']}, this version makes {philox.RNG}; pair "
            "again"
        )
    header["key"] = int(header["key"], 16)
    for name, wanted in (expect or {}).items():
        if _canonical(header[name]) != _canonical(wanted):
            raise UserError(
                f"{path}: paired with {name} {header[name]}, now {name} is {wanted}; pair again"
            )
    arrays = [batch.column(0).to_numpy() for batch in batches]
    return Pairing(
        method=header["method"],
        settings=header["settings"],
        key=header["key"],
        data=header["data"],
        count=header["count"],
        slots=dict(zip(header["slots"], arrays, strict=True)),
        statistics=header["statistics"],
    )


def write_components(path: Path, components: Components, data: str) -> None:
    """Store components of the rows whose digest is `data`, as an Arrow IPC file."""
    basis = np.ascontiguousarray(components.basis, dtype=np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(basis.reshape(-1)), basis.shape[1])
    header = {"data": data, "variances": [float(v) for v in components.variances]}
    _write(path, "components", header, [pa.record_batch([column], names=["basis"])])


def read_components(path: Path, data: str | None = None) -> Components:
    """Read components; UserError if missing, foreign, damaged, or not of the rows `data`."""
    header, batches = _read(path, "components")
    if data is not None and header["data"] != data:
        raise UserError(f"{path}: components of data {header['data']}, now data is {data}")
    basis = batches[0].column(0)
    values = basis.flatten().to_numpy().reshape(len(basis), -1)
    return Components(values, np.array(header["variances"]))


def write_potential(path: Path, potential: np.ndarray, data: str) -> None:
    """Store the potential of the rows whose digest is `data`, float32 [count]."""
    batch = pa.record_batch([pa.array(potential)], names=["potential"])
    _write(path, "potential", {"data": data}, [batch])


def read_potential(path: Path, data: str) -> np.ndarray:
    """Read a potential; UserError if missing, foreign, damaged, or not of the rows `data`."""
    header, batches = _read(path, "potential")
    if header["data"] != data:
        raise UserError(f"{path}: a potential of data {header['data']}, now data is {data}")
    return batches[0].column(0).to_numpy()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _checksum(header: Mapping[str, Any], batches: list[pa.RecordBatch]) -> str:
    found = hashlib.sha256(_canonical(header).encode())
    for batch in batches:
        column = batch.column(0)
        values = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
        found.update(values.to_numpy())
    return found.hexdigest()


def _write(path: Path, kind: str, header: dict[str, Any], batches: list[pa.RecordBatch]) -> None:
    header = {"kind": kind, "format": _FORMAT, **header}
    header["checksum"] = _checksum(header, batches)
    schema = batches[0].schema.with_metadata({"tspace": _canonical(header)})
    with replacing(path) as temporary, pa.ipc.new_file(str(temporary), schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _read(path: Path, kind: str) -> tuple[dict[str, Any], list[pa.RecordBatch]]:
    try:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        for batch in batches:
            batch.validate(full=True)
    except FileNotFoundError as e:
        raise UserError(f"{path}: missing; make the {kind} first") from e
    except (pa.ArrowException, OSError) as e:
        raise UserError(f"{path}: not a readable Arrow file; make the {kind} again") from e
    metadata = reader.schema.metadata or {}
    try:
        header = json.loads(metadata[b"tspace"])
        found = header["kind"], header["format"]
    except (KeyError, TypeError, ValueError) as e:
        raise UserError(f"{path}: an Arrow file, but no {kind} of tspace") from e
    if found != (kind, _FORMAT):
        raise UserError(
            f"{path}: holds {found[0]} of format {found[1]}, not {kind} of format {_FORMAT}"
        )
    claimed = header.pop("checksum", None)
    # A damaged schema can also make the columns unreadable.
    with contextlib.suppress(pa.ArrowException, IndexError, ValueError):
        if claimed == _checksum(header, batches):
            return header, batches
    raise UserError(f"{path}: damaged, its checksum differs; make the {kind} again")
