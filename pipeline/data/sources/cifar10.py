"""Reader of CIFAR-10: its archive or folder, in its binary and its Python form."""

import contextlib
import os
import pickle
import tarfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pipeline.data.raw import CIFAR_FILES, cifar_folder
from pipeline.data.sources.base import Sample, Source, chosen, reading
from pipeline.data.sources.pictures import Unusable
from pipeline.errors import UserError, shown

CIFAR_BATCH_BYTES = 2**26


CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def open_cifar10(path: Path, split: str, limit: int | None) -> Source:
    if split not in CIFAR_FILES:
        raise UserError(f"data.split: cifar10 has no split {split!r}; use 'train' or 'test'")
    return Source(CIFAR10_CLASSES, _cifar_samples(path, CIFAR_FILES[split], limit))


def _cifar_samples(path: Path, stems: tuple[str, ...], limit: int | None) -> Iterator[Sample]:
    with reading(path), _cifar_archive(path) as (names, read):
        suffix = ".bin" if any(f"{stem}.bin" in names for stem in stems) else ""
        missing = [f"{stem}{suffix}" for stem in stems if f"{stem}{suffix}" not in names]
        if missing:
            raise UserError(
                f"{shown(path)}: has no {', '.join(missing)}; give the folder or .tar.gz of "
                "CIFAR-10, binary or python version"
            )

        def batches() -> Iterator[tuple[str, Any, np.ndarray]]:
            for stem in stems:
                name = f"{stem}{suffix}"
                data = read(name)
                with reading(path / name):
                    yield name, *(_cifar_binary(data) if suffix else _cifar_python(data))

        wanted = chosen(limit, lambda: np.concatenate([labels for _, labels, _ in batches()]))
        total = 0
        for name, labels, pixels in batches():
            images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            for row, (image, label) in enumerate(zip(images, labels, strict=True)):
                if wanted is None or wanted[total]:
                    yield Sample(image, int(label), str(total), f"{shown(path / name)} row {row}")
                total += 1


@contextlib.contextmanager
def _cifar_archive(path: Path) -> Iterator[tuple[set[str], Callable[[str], bytes]]]:
    """The names of the files in a folder or .tar.gz, and how to read one of them."""
    if path.is_dir():
        folder = cifar_folder(path)

        def read(name: str) -> bytes:
            with open(folder / name, "rb") as stream:
                return _cifar_bytes(stream)

        yield set(os.listdir(folder)), read
        return
    if not tarfile.is_tarfile(path):
        raise Unusable("is not a .tar.gz archive; give CIFAR-10's own archive, or its folder")
    # Batches are read by name, not in the archive's order, so that row numbers are the folder's.
    with tarfile.open(path) as archive:
        members = {Path(entry.name).name: entry for entry in archive if entry.isreg()}

        def read(name: str) -> bytes:
            with archive.extractfile(members[name]) as stream:
                return _cifar_bytes(stream)

        yield set(members), read


def _cifar_bytes(stream: BinaryIO) -> bytes:
    data = stream.read(CIFAR_BATCH_BYTES + 1)
    if len(data) > CIFAR_BATCH_BYTES:
        raise Unusable("holds a batch that is too large to be one of CIFAR-10")
    return data


def _cifar_binary(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Labels [n] and pixels [n, 3072] of the binary version: a label byte, then the planes."""
    if not data or len(data) % 3073:
        raise Unusable(f"has {len(data)} bytes, not rows of 3073; put a sound copy in its place")
    records = np.frombuffer(data, np.uint8).reshape(-1, 3073)
    return records[:, 0], records[:, 1:]


def _cifar_python(data: bytes) -> tuple[list[int], np.ndarray]:
    """The same of the python version, a pickle, of which only plain data is admitted."""
    try:
        batch = _Unpickler(BytesIO(data), encoding="bytes").load()
        batch = {key.decode() if isinstance(key, bytes) else key: batch[key] for key in batch}
        labels, pixels = batch["labels"], batch["data"].pixels()
    except Unusable:
        raise
    except Exception as error:
        # A pickle of something else fails anywhere on the way to the two arrays.
        raise Unusable(f"is not a batch of CIFAR-10, or is cut short ({error!r})") from error
    if pixels.ndim != 2 or pixels.shape[1] != 3072 or not isinstance(labels, list):
        raise Unusable("is not a batch of CIFAR-10: its data is not [n, 3072]")
    if len(labels) != len(pixels) or not all(isinstance(label, int) for label in labels):
        raise Unusable("is not a batch of CIFAR-10: its labels do not fit its data")
    return labels, pixels


class _Dtype:
    """Stands in for numpy.dtype while unpickling; keeps its code, as in 'u1'."""

    def __init__(self, code: str | bytes, *flags: object) -> None:
        self.code = code.decode() if isinstance(code, bytes) else code

    def __setstate__(self, state: tuple) -> None:
        pass


class _Array:
    """Stands in for numpy.ndarray while unpickling, since numpy's own trusts the pickle."""

    def __setstate__(self, state: tuple) -> None:
        _, self.shape, self.dtype, self.fortran, self.data = state

    def pixels(self) -> np.ndarray:
        if self.dtype.code != "u1":
            raise Unusable(f"is not a batch of CIFAR-10: its data is {self.dtype.code}, not u1")
        order = "F" if self.fortran else "C"
        return np.frombuffer(self.data, np.uint8).reshape(self.shape, order=order)


def _new_array(*arguments: object) -> _Array:
    return _Array()


def _latin1(text: str, encoding: str | bytes) -> bytes:
    """What Python 3 writes into old pickles for bytes."""
    if encoding not in ("latin1", b"latin1"):
        raise Unusable(f"is a pickle that asks for the codec {encoding!r}; refused")
    return text.encode("latin1")


_ADMITTED: dict[tuple[str, str], object] = {
    ("numpy.core.multiarray", "_reconstruct"): _new_array,
    ("numpy._core.multiarray", "_reconstruct"): _new_array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _latin1,
}


class _Unpickler(pickle.Unpickler):
    """Admits arrays of bytes, bytes, str, int, list, tuple and dict; runs nothing else."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _ADMITTED:
            raise Unusable(f"is a pickle that asks for {module}.{name}; refused")
        return _ADMITTED[module, name]
