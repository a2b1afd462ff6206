"""What the networks see: rows of an Arrow file that are mapped into memory, and their scale.

A shard is one Arrow IPC file with a fixed-size list of values a row and an int32 label (null
without labels). The file's metadata holds the rows' shape and the shift and scale that bring them
to zero mean and unit average variance: z = (value - shift) / scale. Rows of a Gaussian encoder may
hold its mean and, behind it, its log-variance.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipeline.devices import sent
from pipeline.errors import UserError
from pipeline.noise import philox

RESIDENT_BYTES = 2 << 30  # up to this size the rows live on a GPU


def write_shard(
    path: Path,
    batches: Iterable[tuple[np.ndarray, np.ndarray | None]],
    shape: tuple[int, ...],
    shift: Sequence[float],
    scale: float,
    variance: bool = False,
) -> int:
    """Write rows (uint8 or float [n, *shape]) and labels (int [n] or None); returns the count.

    variance: the rows are [n, 2 C, H, W], mean and log-variance, for shape (C, H, W).
    """
    count, writer = 0, None
    stored = (2 * shape[0], *shape[1:]) if variance else tuple(shape)
    try:
        for values, labels in batches:
            if values.shape[1:] != stored:
                raise ValueError(f"rows of shape {values.shape[1:]}, expected {stored}")
            flat = pa.array(np.ascontiguousarray(values).reshape(-1))
            column = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(stored)))
            classes = (
                pa.nulls(len(values), pa.int32())
                if labels is None
                else pa.array(labels.astype(np.int32))
            )
            batch = pa.record_batch([column, classes], names=["values", "label"])
            if writer is None:
                meta = {"shape": list(shape), "shift": list(shift), "scale": scale}
                meta["variance"] = variance
                schema = batch.schema.with_metadata({"tspace": json.dumps(meta)})
                writer = pa.ipc.new_file(path, schema)
            writer.write_batch(batch)
            count += len(values)
    finally:
        if writer is not None:
            writer.close()
    return count


def encoded(
    images: Any, start: int, stop: int, mirrored: int, codec: Any = None, variance: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Rows `start` .. `stop` - 1 for `write_shard`, with their labels, some at a time.

    images: a `split.Split`; the rows from `mirrored` on are its first ones again, mirrored. With a
    codec (`autoencoder.Codec`) the means of their latents as float16, with `variance` and the
    log-variances. UserError if the codec has none.
    """
    for low, high, offset in (
        (start, min(stop, mirrored), 0),
        (max(start, mirrored), stop, mirrored),
    ):
        for values, labels in images.blocks(low - offset, high - offset):
            if offset:
                values = np.ascontiguousarray(values[..., ::-1])
            if codec is not None:
                mean, log_variance = codec.encode(values)
                if variance and log_variance is None:
                    raise UserError("latent.sample: this encoder has no variance; set it to false")
                values = np.concatenate([mean, log_variance], 1) if variance else mean
                values = values.astype(np.float16)
            yield values, labels


class Latents:
    """Rows of one or several shards as one array, mapped into memory.

    shape: of a row, (C, H, W). `gather` gives scaled rows, `raw` the stored ones. variance: whether
    rows hold a log-variance as well, and `sample` can draw from their Gaussians.
    """

    def __init__(self, paths: Sequence[Path], device: torch.device | str = "cpu"):
        """Open shards in order. UserError naming a file that is damaged or does not fit."""
        self.device = torch.device(device)
        blocks: list[tuple[np.ndarray, np.ndarray | None]] = []
        meta = None
        for path in paths:
            try:
                with pa.memory_map(str(path)) as source:
                    reader = pa.ipc.open_file(source)
                    found = json.loads(reader.schema.metadata[b"tspace"])
                    batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError) as e:
                raise UserError(f"{path}: not a readable shard of latents ({e})") from e
            if meta is not None and found != meta:
                raise UserError(f"{path}: its shape or scale differs from the other shards'")
            meta = found
            for batch in batches:
                values, classes = _numbers(batch.column(0).flatten()), batch.column(1)
                labels = None if classes.null_count else _numbers(classes).astype(np.int64)
                c, h, w = meta["shape"]
                blocks.append((values.reshape(-1, c * (1 + meta["variance"]), h, w), labels))
        if meta is None:
            raise ValueError("no shards given")
        self.shape = tuple(meta["shape"])
        self.shift, self.scale = tuple(meta["shift"]), float(meta["scale"])
        self.variance = bool(meta["variance"])
        self._blocks = [values for values, _ in blocks]
        self._starts = np.cumsum([0, *(len(values) for values in self._blocks)])
        known = [labels for _, labels in blocks]
        self.labels = None if any(x is None for x in known) else np.concatenate(known)
        shift = torch.tensor(meta["shift"], dtype=torch.float32, device=self.device)
        self._shift = shift.reshape(-1, *[1] * (len(self.shape) - 1))
        self._resident = None
        # On a CPU the mapped file is as near as a copy of it would be.
        size = sum(values.nbytes for values in self._blocks)
        if self.device.type != "cpu" and size <= RESIDENT_BYTES:
            self._resident = torch.from_numpy(np.concatenate(self._blocks)).to(self.device)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def raw(self, rows: np.ndarray) -> np.ndarray:
        """Stored rows [n, *shape] by index (int64 [n]); [n, 2 C, H, W] with `variance`."""
        rows = np.asarray(rows)
        if len(self._blocks) == 1:
            return self._blocks[0][rows]
        out = np.empty((len(rows), *self._blocks[0].shape[1:]), self._blocks[0].dtype)
        block = np.searchsorted(self._starts, rows, side="right") - 1
        for b in np.unique(block):
            mine = block == b
            out[mine] = self._blocks[b][rows[mine] - self._starts[b]]
        return out

    def gather(self, rows: np.ndarray) -> torch.Tensor:
        """Scaled rows, float32 [n, *shape] on the device, by index (int64 [n])."""
        return self._scaled(self._values(rows)[:, : self.shape[0]])

    def sample(self, rows: np.ndarray, slots: np.ndarray, key: int) -> torch.Tensor:
        """Scaled draws from the rows' Gaussians, one for each row and slot; the rows without any.

        rows, slots: int64 [n]. A pure function of its arguments.
        """
        if not self.variance:
            return self.gather(rows)
        values, channels = self._values(rows).to(torch.float32), self.shape[0]
        slot, row = (torch.from_numpy(a).to(self.device) for a in (slots, rows))
        eps = philox.normal(key, slot, row, self.shape)
        deviation = torch.exp(values[:, channels:] / 2)
        return self._scaled(values[:, :channels].addcmul(deviation, eps))

    def _values(self, rows: np.ndarray) -> torch.Tensor:
        if self._resident is not None:
            return self._resident[torch.from_numpy(rows).to(self.device)]
        return torch.from_numpy(self.raw(rows)).to(self.device, non_blocking=True)

    def _scaled(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(torch.float32, copy=True).sub_(self._shift).div_(self.scale)


class Stream:
    """Rows of latents as a training takes them: on a GPU, without a wait for files or the device.

    On a CPU they are those of `Latents.sample`.
    """

    def __init__(self, latents: Latents):
        self.latents, self.device = latents, latents.device

    def read(self, rows: np.ndarray) -> np.ndarray | None:
        """Stored rows that `sample` will need, so that they can be read ahead; None if it has them.

        On a CPU that is so, too: the mapped file is as near as they would be.
        """
        near = self.device.type == "cpu" or self.latents._resident is not None
        return None if near else self.latents.raw(rows)

    def sample(
        self, rows: np.ndarray, slots: np.ndarray, key: int, stored: np.ndarray | None
    ) -> torch.Tensor:
        """As `Latents.sample`. stored: what `read` gave for the rows."""
        latents = self.latents
        if self.device.type == "cpu":
            return latents.sample(rows, slots, key)
        if latents._resident is not None:
            values = latents._resident[self.there(rows)]
        else:
            values = self.there(latents.raw(rows) if stored is None else stored)
        if not latents.variance:
            return latents._scaled(values)
        means, log_variances = values.to(torch.float32).chunk(2, 1)
        eps = philox.normal(key, self.slot(slots), self.there(rows), latents.shape)
        return latents._scaled(means.addcmul(torch.exp(log_variances / 2), eps))

    def there(self, values: np.ndarray) -> torch.Tensor:
        """Values on the device."""
        return sent(torch.from_numpy(values), self.device)

    def slot(self, slots: np.ndarray) -> int | torch.Tensor:
        """Slots (int64 [n]) for the generator: where they are all one, that number.

        It looks at the values of a tensor, for which it has to wait.
        """
        return int(slots[0]) if (slots == slots[0]).all() else self.there(slots)


def _numbers(array: pa.Array) -> np.ndarray:
    """A view of an array without nulls. pyarrow's own `to_numpy` imports pandas where there is one.

    That would take 0.3 seconds of every process that reads a shard.
    """
    values = np.frombuffer(array.buffers()[1], array.type.to_pandas_dtype())
    return values[array.offset : array.offset + len(array)]


def to_images(z: torch.Tensor, shift: Sequence[float], scale: float) -> np.ndarray:
    """Scaled rows [n, C, H, W] back to uint8 images, rounded and clipped to 0..255."""
    offset = torch.tensor(shift, dtype=z.dtype, device=z.device).reshape(-1, 1, 1)
    return (z * scale + offset).round_().clamp_(0, 255).to(torch.uint8).cpu().numpy()
