"""Readers of raw image data: one generator a source, each in bounded memory.

Every reader yields `Sample`s in a fixed order that does not depend on the machine, and a `Refused`
for each picture that cannot be used, so that a caller can name all of them at once. A container
that is damaged as a whole (an archive cut short, a missing shard) raises `UserError`.
"""

import contextlib
import gzip
import json
import os
import pickle
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.decoding import HEAD_BYTES, MAX_PIXELS, Unusable, decode, foreign_container
from pipeline.errors import UserError, shown
from pipeline.raw import CIFAR_FILES, cifar_folder, class_folders, idx_files, locate, shards, walk
from pipeline.rows import spread

CHUNK_BYTES = 2**22
CIFAR_BATCH_BYTES = 2**26

# fmt: off
FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)
# fmt: on


@dataclass(frozen=True)
class Sample:
    """One picture as its source has it.

    image: uint8 [H, W, C], C = 1 (grey) or 3 (RGB), not yet cropped or scaled.
    label: class number from 0, or None.
    source_id: its name within the source; the same wherever the source is stored.
    where: what a message calls it (file, or file and row).
    """

    image: np.ndarray
    label: int | None
    source_id: str
    where: str


@dataclass(frozen=True)
class Refused:
    """One picture that cannot be used, and why."""

    where: str
    reason: str


@dataclass(frozen=True)
class Source:
    """`samples` can be read once. `classes` is None where the source does not name them."""

    classes: tuple[str, ...] | None
    samples: Iterator[Sample | Refused]


def open_source(
    source: str, path: Path | None = None, split: str = "train", limit: int | None = None
) -> Source:
    """Open one of `SOURCES`. `path` is None for the source's own place, where it has one.

    limit: at most so many rows, spread over the source and in its order, each class in its
    proportion; labels are then read first, and no other picture is decoded.

    Raises UserError for an unknown source or split, and for a missing, foreign or ambiguous path;
    while `samples` is read, for a container that is damaged as a whole.
    """
    place = locate(source, path, split)
    return _READERS[source](place, split, limit)


def _chosen(limit: int | None, labels: Callable[[], np.ndarray]) -> np.ndarray | None:
    """Which rows are wanted, bool [rows], or None for all. `labels`: int [rows], -1 for none."""
    if limit is None:
        return None
    found = labels()
    wanted = np.zeros(len(found), bool)
    wanted[spread(min(limit, len(found)), len(found), found)] = True
    return wanted


_DAMAGED = (OSError, EOFError, ValueError, RuntimeError, zlib.error, zipfile.BadZipFile)
_DAMAGED += (tarfile.TarError, pa.ArrowException)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what readers of damaged containers raise into a UserError that names the file."""
    try:
        yield
    except (Unusable, *_DAMAGED) as error:
        if kind := _foreign_kind(path):
            raise UserError(f"{shown(path)}: is {kind[0]}; {kind[1]}") from error
        if isinstance(error, Unusable):
            raise UserError(f"{shown(path)}: {error}") from error
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(
            f"{shown(path)}: cannot be read ({shown(reason)}); put a sound copy in its place"
        ) from error


def _foreign_kind(path: Path) -> tuple[str, str] | None:
    try:
        with open(path, "rb") as stream:
            return foreign_container(stream.read(HEAD_BYTES))
    except OSError:
        return None


def _read_exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise EOFError("the file is cut short")
    return data


def _only_train(split: str, source: str) -> None:
    if split != "train":
        raise UserError(f"data.split: {source} has no split {split!r}; use 'train'")


# --- digits -------------------------------------------------------------------------------------


def _digits(path: Path, split: str, limit: int | None) -> Source:
    _only_train(split, "digits")
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)
    wanted = _chosen(limit, lambda: data.target)

    def samples() -> Iterator[Sample]:
        for row, (image, label) in enumerate(zip(pixels, data.target, strict=True)):
            if wanted is None or wanted[row]:
                yield Sample(image[:, :, None], int(label), str(row), f"digits row {row}")

    return Source(tuple(str(name) for name in data.target_names), samples())


# --- Fashion-MNIST ------------------------------------------------------------------------------


def _fashion_mnist(path: Path, split: str, limit: int | None) -> Source:
    images, labels = idx_files(path, split)
    return Source(FASHION_MNIST_CLASSES, _idx_samples(images, labels, limit))


@contextlib.contextmanager
def _idx(path: Path, dimensions: int) -> Iterator[tuple[BinaryIO, tuple[int, ...]]]:
    """The stream behind the header of an IDX file of unsigned bytes, and its shape."""
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as stream:
        header = _read_exactly(stream, 4 * (1 + dimensions))
        magic, *shape = struct.unpack(f">{1 + dimensions}I", header)
        if magic != 0x800 + dimensions:
            raise Unusable(f"is not an IDX file of bytes in {dimensions} dimensions")
        yield stream, tuple(shape)


def _idx_samples(images_path: Path, labels_path: Path, limit: int | None) -> Iterator[Sample]:
    with _reading(labels_path), _idx(labels_path, 1) as (stream, (label_rows,)):
        labels = _read_exactly(stream, label_rows)
        _expect_end(stream)
    wanted = _chosen(limit, lambda: np.frombuffer(labels, np.uint8))
    with _reading(images_path), _idx(images_path, 3) as (stream, (rows, height, width)):
        if rows != label_rows:
            raise Unusable(
                f"has {rows} images, but {labels_path.name} has {label_rows} labels; "
                "put files there that belong together"
            )
        for row, image in _rows(stream, rows, (height, width, 1)):
            if wanted is None or wanted[row]:
                yield Sample(image, labels[row], str(row), f"{shown(images_path)} row {row}")
        _expect_end(stream)


def _expect_end(stream: BinaryIO) -> None:
    if stream.read(1):
        raise ValueError("it is longer than its header says")


def _rows(
    stream: BinaryIO, rows: int, shape: tuple[int, int, int]
) -> Iterator[tuple[int, np.ndarray]]:
    """Rows of one shape [H, W, C] that follow each other in a stream of bytes."""
    size = int(np.prod(shape, dtype=object))
    if not 0 < size <= MAX_PIXELS * 3:
        raise Unusable(f"holds images of {shape[0]}x{shape[1]} pixels; they cannot be used")
    step = max(1, CHUNK_BYTES // size)
    for start in range(0, rows, step):
        count = min(step, rows - start)
        chunk = np.frombuffer(_read_exactly(stream, count * size), np.uint8)
        yield from enumerate(chunk.reshape(count, *shape), start)


# --- image folder -------------------------------------------------------------------------------


def _folder(path: Path, split: str, limit: int | None) -> Source:
    root, classes = class_folders(path, split)
    labels = [*enumerate(classes)] or [(None, "")]

    def wanted_labels() -> np.ndarray:
        counts = [sum(1 for _ in walk(root, folder, False)) for _, folder in labels]
        return np.repeat(np.arange(len(counts)), counts)

    return Source(
        tuple(classes) or None, _folder_samples(root, labels, _chosen(limit, wanted_labels))
    )


def _folder_samples(
    root: Path, folders: list[tuple[int | None, str]], wanted: np.ndarray | None
) -> Iterator[Sample | Refused]:
    row = 0
    for label, folder in folders:
        first = row
        for name in walk(root, folder, False):
            if wanted is None or (row < len(wanted) and wanted[row]):
                yield _folder_sample(root / name, name, label)
            row += 1
        if row == first and label is not None:
            yield Refused(shown(root / folder), "is a class folder without images")


def _folder_sample(path: Path, source_id: str, label: int | None) -> Sample | Refused:
    where = shown(path)
    try:
        source_id.encode()
    except UnicodeEncodeError:
        return Refused(where, "has a name that is not UTF-8; rename it")
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return Refused(where, "is not a regular file")
        if status.st_size == 0:
            return Refused(where, "is empty (0 bytes)")
        with open(path, "rb") as stream:
            image = decode(stream)
    except OSError as error:
        return Refused(where, f"cannot be opened ({error.strerror})")
    except Unusable as error:
        return Refused(where, str(error))
    return Sample(image, label, source_id, where)


# --- Parquet ------------------------------------------------------------------------------------

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")


def _parquet(path: Path, split: str, limit: int | None) -> Source:
    if path.is_dir():
        files = [path / name for name in shards(path, split)]
    else:
        _only_train(split, "a single Parquet file")
        files = [path]
    columns = _parquet_columns(files[0])
    for file in files[1:]:
        if (other := _parquet_columns(file)) != columns:
            raise UserError(
                f"{shown(file)}: {_difference(other, columns, files[0].name)}; "
                "give shards of one dataset"
            )
    names = columns.names
    if columns.label_kind == "names":
        names = _occurring_names(files, columns)
    numbers = {name: number for number, name in enumerate(names or ())}
    wanted = _chosen(limit, lambda: _parquet_labels(files, columns, numbers))
    return Source(names, _parquet_samples(files, columns, numbers, wanted))


@dataclass(frozen=True)
class _Columns:
    """What a Parquet file has that is read.

    label_kind: "numbers" or "names"; None without labels. names: the class names that Hugging Face
    noted.
    """

    image: str
    label: str | None
    label_kind: str | None
    names: tuple[str, ...] | None


def _difference(other: _Columns, columns: _Columns, name: str) -> str:
    if other.label_kind != columns.label_kind and None not in (
        other.label_kind,
        columns.label_kind,
    ):
        return (
            f"column {other.label} holds {other.label_kind}, but {columns.label_kind} in "
            f"{shown(name)}"
        )
    return f"has other columns or class names than {shown(name)}"


def _parquet_columns(file: Path) -> _Columns:
    with _reading(file):
        schema = pq.read_schema(file)
    columns = schema.names
    image_name = next((name for name in _IMAGE_COLUMNS if name in columns), None)
    if image_name is None:
        raise UserError(
            f"{shown(file)}: has no column image or img, but {', '.join(columns) or 'none'}; "
            "rename the one with the images"
        )
    kind = schema.field(image_name).type
    if not (_is_encoded(kind) or _is_nested(kind)):
        raise UserError(
            f"{shown(file)}: column {image_name} is {shown(kind)}; it must hold encoded images "
            "(binary, or a struct with bytes), or arrays H,W or H,W,C of whole numbers"
        )
    label_name = next((name for name in _LABEL_COLUMNS if name in columns), None)
    label_kind = None
    if label_name is not None:
        kind = schema.field(label_name).type
        label_kind = _label_kind(kind)
        if pa.types.is_null(kind):
            label_name = None
        elif label_kind is None:
            raise UserError(
                f"{shown(file)}: column {label_name} is {shown(kind)}; it must hold whole numbers "
                "or names"
            )
    return _Columns(image_name, label_name, label_kind, _noted_names(schema, label_name))


def _label_kind(kind: pa.DataType) -> str | None:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_integer(kind):
        return "numbers"
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return "names" if text or pa.types.is_string_view(kind) else None


def _noted_names(schema: pa.Schema, label_name: str | None) -> tuple[str, ...] | None:
    if label_name is None:
        return None
    try:
        noted = json.loads((schema.metadata or {})[b"huggingface"])
        names = noted["info"]["features"][label_name]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) else None


def _is_encoded(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_encoded(kind.field(index).type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _is_nested(kind: pa.DataType) -> bool:
    depth = 0
    while _is_list(kind):
        kind, depth = kind.value_type, depth + 1
    return depth in (2, 3) and pa.types.is_integer(kind)


def _parquet_batches(files: list[Path], columns: list[str]) -> Iterator[tuple[Path, int, Any]]:
    """Small record batches with their file and first row; the file is never held as a whole."""
    for file in files:
        with _reading(file):
            # A row group may be as long as the file: read it by pages, not as a whole.
            reader = pq.ParquetFile(
                file, buffer_size=2**20, pre_buffer=False, page_checksum_verification=True
            )
            with reader:
                start = 0
                for batch in reader.iter_batches(64, columns=columns, use_threads=False):
                    yield file, start, batch
                    start += len(batch)


def _occurring_names(files: list[Path], columns: _Columns) -> tuple[str, ...]:
    """The classes of a column of names: the noted ones, else all that occur, sorted."""
    names: set[str] = set()
    for file, _, batch in _parquet_batches(files, [columns.label]):
        found = set(batch.column(0).to_pylist()) - {None}
        if columns.names is not None and not found.issubset(columns.names):
            name = min(found.difference(columns.names))
            raise UserError(
                f"{shown(file)}: column {columns.label} has {shown(name)!r}, which is not among "
                "the class names that the file notes; correct either"
            )
        names |= found
    return columns.names or tuple(sorted(names))


def _label_number(label: int | str | None, numbers: dict[str, int]) -> int | None:
    # Hugging Face writes -1 where the label is withheld.
    return numbers[label] if isinstance(label, str) else None if label == -1 else label


def _parquet_labels(files: list[Path], columns: _Columns, numbers: dict[str, int]) -> np.ndarray:
    """Labels of all rows, int64 [rows], -1 for none; of the files only their column is read."""
    if columns.label is None:
        return np.full(sum(pq.read_metadata(file).num_rows for file in files), -1)
    found = [
        _label_number(label, numbers)
        for _, _, batch in _parquet_batches(files, [columns.label])
        for label in batch.column(0).to_pylist()
    ]
    return np.array([-1 if label is None else label for label in found], np.int64)


def _parquet_samples(
    files: list[Path], columns: _Columns, numbers: dict[str, int], wanted: np.ndarray | None
) -> Iterator[Sample | Refused]:
    read = [columns.image] + ([columns.label] if columns.label else [])
    total = 0
    for file, start, batch in _parquet_batches(files, read):
        images = batch.column(columns.image)
        labels = batch.column(columns.label).to_pylist() if columns.label else [None] * len(batch)
        for row, (image, label) in enumerate(zip(images, labels, strict=True), start):
            if wanted is None or wanted[total]:
                where = f"{shown(file)} row {row}"
                number = _label_number(label, numbers)
                try:
                    yield Sample(_parquet_image(image), number, str(total), where)
                except Unusable as error:
                    yield Refused(where, str(error))
            total += 1


def _parquet_image(value: pa.Scalar) -> np.ndarray:
    if not value.is_valid:
        raise Unusable("has no image (null)")
    if _is_list(value.type):
        return _array_image(value.values)
    if pa.types.is_struct(value.type):
        linked = value["path"].as_py() if "path" in value else None
        value = value["bytes"]
        if not value.is_valid:
            link = f", only the path {shown(linked)}" if linked else ""
            raise Unusable(f"has no image bytes{link}; embed the image in the file")
    data = value.as_py()
    if not data:
        raise Unusable("is empty (0 bytes)")
    return decode(BytesIO(data))


def _array_image(values: pa.Array) -> np.ndarray:
    """Nested lists [H][W] or [H][W][C] to uint8 [H, W, C]."""
    shape = [len(values)]
    while _is_list(values.type):
        lengths = pc.unique(pc.list_value_length(values)).to_pylist()
        if len(lengths) != 1 or lengths[0] is None:
            raise Unusable("is not a full array: its lists differ in length")
        shape.append(lengths[0])
        values = values.flatten()
    if values.null_count:
        raise Unusable("has pixels without a value (null)")
    pixels = values.to_numpy(zero_copy_only=False)
    if pixels.size and not 0 <= pixels.min() <= pixels.max() <= 255:
        raise Unusable(f"has values {pixels.min()}..{pixels.max()}, outside 0..255")
    return _full_shape(pixels.astype(np.uint8).reshape(shape))


def _full_shape(image: np.ndarray) -> np.ndarray:
    """[H, W] or [H, W, C] to [H, W, C] with C = 1 or 3."""
    shape = "x".join(str(size) for size in image.shape)
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3):
        raise Unusable(f"has shape {shape}; it must be H,W or H,W,C with C = 1 or 3, C last")
    if 0 in image.shape:
        raise Unusable(f"has no pixels ({shape})")
    return image


# --- .npz ---------------------------------------------------------------------------------------


def _npz(path: Path, split: str, limit: int | None) -> Source:
    _only_train(split, "an .npz file")
    if path.is_dir():
        raise UserError(f"{shown(path)}: is a folder; give the path of the .npz file")
    with _reading(path), zipfile.ZipFile(path) as archive:
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
        _reading(path),
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
        wanted = _chosen(limit, lambda: known)
        for row, image in _rows(stream, shape[0], (*shape[1:], 1)[:3]):
            if wanted is None or wanted[row]:
                label = None if labels is None else int(labels[row])
                yield Sample(image, label, str(row), f"{shown(path)} row {row}")
        _expect_end(stream)


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
        return np.frombuffer(_read_exactly(stream, rows * dtype.itemsize), dtype)


# --- CIFAR-10 -----------------------------------------------------------------------------------


def _cifar10(path: Path, split: str, limit: int | None) -> Source:
    if split not in CIFAR_FILES:
        raise UserError(f"data.split: cifar10 has no split {split!r}; use 'train' or 'test'")
    return Source(CIFAR10_CLASSES, _cifar_samples(path, CIFAR_FILES[split], limit))


def _cifar_samples(path: Path, stems: tuple[str, ...], limit: int | None) -> Iterator[Sample]:
    with _reading(path), _cifar_archive(path) as (names, read):
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
                with _reading(path / name):
                    yield name, *(_cifar_binary(data) if suffix else _cifar_python(data))

        wanted = _chosen(limit, lambda: np.concatenate([labels for _, labels, _ in batches()]))
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


_READERS: dict[str, Callable[[Path, str, int | None], Source]] = {
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
    "folder": _folder,
    "parquet": _parquet,
    "npz": _npz,
    "cifar10": _cifar10,
}
