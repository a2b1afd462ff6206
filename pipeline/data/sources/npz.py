"""Reader of `.npz` files with images and, where it has them, labels."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipeline.data.sources.base import (
    Sample,
    Source,
    chosen,
    expect_end,
    only_train,
    read_exactly,
    reading,
    stream_rows,
)
from pipeline.data.sources.pictures import Unusable
from pipeline.errors import UserError, shown


def open_npz(path: Path, split: str, limit: int | None) -> Source:
    only_train(split, "an .npz file")
    if path.is_dir():
        raise UserError(f"{shown(path)}: is a folder; give the path of the .npz file")
    with reading(path), zipfile.ZipFile(path) as archive:
        keys = [name.removesuffix(".npy") for name in archive.namelist()]
    images_key = next((key for key in ("images", "x", "arr_0") if key in keys), None)
    if images_key is None:
        raise UserError(
            f"{shown(path)}: has no array images, x or arr_0, but {', '.join(keys) or 'none'}; "
            "save the images under one of these names"
        )
    labels_key = next((key for key in ("labels", "y") if key in keys), None)
    return Source(None, _npz_samples(path, images_key, labels_key, limit))


def _npz_samples(
    path: Path, images_key: str, labels_key: str | None, limit: int | None
) -> Iterator[Sample]:
    with (
        reading(path),
        zipfile.ZipFile(path) as archive,
        archive.open(f"{images_key}.npy") as stream,
    ):
        shape, fortran, dtype = _npy_header(stream)
        if dtype != np.uint8:
            raise Unusable(f"array {images_key} is {dtype}; save it as uint8, 0..255")
        if fortran:
            raise Unusable(f"array {images_key} is in Fortran order; use np.ascontiguousarray")
        if len(shape) not in (3, 4) or (*shape, 1)[3] not in (1, 3):
            raise Unusable(
                f"array {images_key} has shape {shape}; it must be N,H,W or N,H,W,C with C = 1 "
                "or 3, C last"
            )
        labels = _npz_labels(archive, labels_key, shape[0]) if labels_key else None
        known = np.full(shape[0], -1) if labels is None else labels
        wanted = chosen(limit, lambda: known)
        for row, image in stream_rows(stream, shape[0], (*shape[1:], 1)[:3]):
            if wanted is None or wanted[row]:
                label = None if labels is None else int(labels[row])
                yield Sample(image, label, str(row), f"{shown(path)} row {row}")
        expect_end(stream)


def _npy_header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    return np.lib.format.read_array_header_2_0(stream)


def _npz_labels(archive: zipfile.ZipFile, key: str, rows: int) -> np.ndarray:
    with archive.open(f"{key}.npy") as stream:
        shape, _, dtype = _npy_header(stream)
        if dtype.kind not in "iu" or shape not in ((rows,), (rows, 1)):
            raise Unusable(
                f"array {key} is {dtype} of shape {shape}; it must hold whole numbers, one for "
                f"each of the {rows} images"
            )
        return np.frombuffer(read_exactly(stream, rows * dtype.itemsize), dtype)
