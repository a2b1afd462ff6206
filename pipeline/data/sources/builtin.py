"""Readers of datasets that packages bring: scikit-learn's digits and Fashion-MNIST."""

import contextlib
import gzip
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipeline.data.raw import idx_files
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
from pipeline.errors import shown

# fmt: off
FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)


# --- digits -------------------------------------------------------------------------------------
def open_digits(path: Path, split: str, limit: int | None) -> Source:
    only_train(split, "digits")
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)
    wanted = chosen(limit, lambda: data.target)

    def samples() -> Iterator[Sample]:
        for row, (image, label) in enumerate(zip(pixels, data.target, strict=True)):
            if wanted is None or wanted[row]:
                yield Sample(image[:, :, None], int(label), str(row), f"digits row {row}")

    return Source(tuple(str(name) for name in data.target_names), samples())


# --- Fashion-MNIST ------------------------------------------------------------------------------


def open_fashion_mnist(path: Path, split: str, limit: int | None) -> Source:
    images, labels = idx_files(path, split)
    return Source(FASHION_MNIST_CLASSES, _idx_samples(images, labels, limit))


@contextlib.contextmanager
def _idx(path: Path, dimensions: int) -> Iterator[tuple[BinaryIO, tuple[int, ...]]]:
    """The stream behind the header of an IDX file of unsigned bytes, and its shape."""
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as stream:
        header = read_exactly(stream, 4 * (1 + dimensions))
        magic, *shape = struct.unpack(f">{1 + dimensions}I", header)
        if magic != 0x800 + dimensions:
            raise Unusable(f"is not an IDX file of bytes in {dimensions} dimensions")
        yield stream, tuple(shape)


def _idx_samples(images_path: Path, labels_path: Path, limit: int | None) -> Iterator[Sample]:
    with reading(labels_path), _idx(labels_path, 1) as (stream, (label_rows,)):
        labels = read_exactly(stream, label_rows)
        expect_end(stream)
    wanted = chosen(limit, lambda: np.frombuffer(labels, np.uint8))
    with reading(images_path), _idx(images_path, 3) as (stream, (rows, height, width)):
        if rows != label_rows:
            raise Unusable(
                f"has {rows} images, but {labels_path.name} has {label_rows} labels; "
                "put files there that belong together"
            )
        for row, image in stream_rows(stream, rows, (height, width, 1)):
            if wanted is None or wanted[row]:
                yield Sample(image, labels[row], str(row), f"{shown(images_path)} row {row}")
        expect_end(stream)
