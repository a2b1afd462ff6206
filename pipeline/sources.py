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
import re
import stat
import struct
import tarfile
import warnings
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
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.errors import UserError

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
MAX_PIXELS = 2**26
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
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
SIDECAR_NAMES = {"thumbs.db", "desktop.ini", "__macosx"}
SIDECAR_SUFFIXES = {".csv", ".json", ".jsonl", ".md", ".tsv", ".txt", ".xml", ".yaml", ".yml"}


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


class Unusable(Exception):
    """Why a picture or a container cannot be used, without its name."""


def open_source(source: str, path: Path | None = None, split: str = "train") -> Source:
    """Open one of `SOURCES`. `path` is None for the source's own place, where it has one.

    Raises UserError for an unknown source or split, and for a missing or foreign path; while
    `samples` is read, for a container that is damaged as a whole.
    """
    if source not in SOURCES:
        raise UserError(f"source: {source!r} is unknown; it is one of {', '.join(SOURCES)}")
    if split not in SPLIT_NAMES:
        raise UserError(f"split: {split!r} is unknown; it is one of {', '.join(SPLIT_NAMES)}")
    if source == "digits":
        if path is not None:
            raise UserError(f"path: the digits come with scikit-learn; leave {shown(path)} out")
        return _digits(split)
    hint = f"give the path of the files of source {source!r}"
    if source == "fashion-mnist":
        path = path or FASHION_MNIST
        hint = f"install the Debian package dataset-fashion-mnist, or {hint}"
    if path is None:
        raise UserError(f"path: is missing; {hint}")
    if not path.exists():
        raise UserError(f"{shown(path)}: does not exist; {hint}")
    return _READERS[source](path, split)


def shown(name: object) -> str:
    """A file name as it can stand in a message of one line."""
    text = str(name)
    return text if text.isprintable() else ascii(text)


def decode(stream: BinaryIO) -> np.ndarray:
    """Decode a picture in any raster format that Pillow reads to uint8 [H, W, C], C = 1 or 3.

    The EXIF orientation is applied; palettes, CMYK and other colours become RGB (embedded colour
    profiles are ignored); transparency is composited on white; 16-bit grey v becomes
    round(v / 257). Raises Unusable for a picture that is damaged, has several frames, more than
    `MAX_PIXELS` pixels, or pixels whose range is not known.
    """
    with warnings.catch_warnings():
        # Pillow warns of odd metadata beside sound pixels; bombs are refused below.
        warnings.simplefilter("ignore")
        try:
            return _decode(stream)
        except Unusable:
            raise
        except UnidentifiedImageError:
            raise Unusable("is not an image that Pillow can read, or is damaged") from None
        except Image.DecompressionBombError:
            raise Unusable(f"has more than {MAX_PIXELS:,} pixels") from None
        except Exception as error:
            # Decoders of foreign bytes raise nearly anything: struct.error, KeyError, SyntaxError.
            reason = " ".join(str(error).split()) or type(error).__name__
            raise Unusable(f"is damaged ({reason})") from None


def _decode(stream: BinaryIO) -> np.ndarray:
    image = Image.open(stream)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Unusable(f"has {width}x{height} pixels, more than {MAX_PIXELS:,}")
    if image.format in ("EPS", "WMF"):
        # Loading these runs an interpreter (Ghostscript) on a foreign program.
        raise Unusable(f"is {image.format}, a vector format; convert it to PNG")
    if image.format == "PNG":
        # Loading alone neither checks the chunks' checksums nor notices a missing end.
        image.verify()
        stream.seek(0)
        image = Image.open(stream)
    frames = getattr(image, "n_frames", 1)
    # The further frames of these two are previews and layers of the same picture.
    if frames > 1 and image.format not in ("MPO", "PSD"):
        raise Unusable(f"has {frames} frames; save the one wanted as a file of its own")
    image.load()
    wide = _wide_grey(image)
    image = ImageOps.exif_transpose(image)
    if wide:
        values = np.asarray(image).astype(np.int64)
        grey = ((values + 128) // 257).astype(np.uint8)
        if "transparency" in image.info:
            grey[values == image.info["transparency"]] = 255
        return grey[:, :, None]
    if image.mode == "LAB":
        raise Unusable("has LAB colours; convert it to RGB")
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.asarray(image.convert(mode))
    return pixels[:, :, None] if mode == "L" else pixels


def _wide_grey(image: Image.Image) -> bool:
    """Whether the pixels are grey in 0..65535; raises where their range is not known."""
    if image.mode.startswith("I;16"):
        # TIFF keeps 12-bit values unscaled in this mode.
        bits = image.tag_v2[258] if image.format == "TIFF" else (16,)
        if bits != (16,):
            raise Unusable(f"has {bits[0]}-bit pixels; convert it to 8 or 16 bits")
        return True
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        return True
    if image.mode in ("I", "F"):
        kind = "32-bit or signed" if image.mode == "I" else "floating-point"
        raise Unusable(f"has {kind} pixels, whose range is not known; convert it to 8 bits")
    return False


_DAMAGED = (OSError, EOFError, ValueError, RuntimeError, zlib.error, zipfile.BadZipFile)
_DAMAGED += (tarfile.TarError, pa.ArrowException)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what readers of damaged containers raise into a UserError that names the file."""
    try:
        yield
    except Unusable as error:
        raise UserError(f"{shown(path)}: {error}") from error
    except _DAMAGED as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(
            f"{shown(path)}: cannot be read ({shown(reason)}); put a sound copy in its place"
        ) from error


def _read_exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise EOFError("the file is cut short")
    return data


def _only_train(split: str, source: str) -> None:
    if split != "train":
        raise UserError(f"split: {source} has no split {split!r}; use 'train'")


# --- digits -------------------------------------------------------------------------------------


def _digits(split: str) -> Source:
    _only_train(split, "digits")
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)

    def samples() -> Iterator[Sample]:
        for row, (image, label) in enumerate(zip(pixels, data.target, strict=True)):
            yield Sample(image[:, :, None], int(label), str(row), f"digits row {row}")

    return Source(tuple(str(name) for name in data.target_names), samples())


# --- Fashion-MNIST ------------------------------------------------------------------------------


def _fashion_mnist(path: Path, split: str) -> Source:
    if split == "validation":
        raise UserError("split: fashion-mnist has no split 'validation'; use 'train' or 'test'")
    prefix = {"train": "train", "test": "t10k"}[split]
    images = _idx_file(path, f"{prefix}-images", "idx3-ubyte")
    labels = _idx_file(path, f"{prefix}-labels", "idx1-ubyte")
    return Source(FASHION_MNIST_CLASSES, _idx_samples(images, labels))


def _idx_file(folder: Path, stem: str, kind: str) -> Path:
    for name in (f"{stem}-{kind}", f"{stem}.{kind}"):
        for suffix in ("", ".gz"):
            if (folder / f"{name}{suffix}").exists():
                return folder / f"{name}{suffix}"
    raise UserError(f"{shown(folder)}: has no {stem}-{kind} or {stem}-{kind}.gz; put it there")


@contextlib.contextmanager
def _idx(path: Path, dimensions: int) -> Iterator[tuple[BinaryIO, tuple[int, ...]]]:
    """The stream behind the header of an IDX file of unsigned bytes, and its shape."""
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as stream:
        header = _read_exactly(stream, 4 * (1 + dimensions))
        magic, *shape = struct.unpack(f">{1 + dimensions}I", header)
        if magic != 0x800 + dimensions:
            raise Unusable(f"is not an IDX file of bytes in {dimensions} dimensions")
        yield stream, tuple(shape)


def _idx_samples(images_path: Path, labels_path: Path) -> Iterator[Sample]:
    with _reading(labels_path), _idx(labels_path, 1) as (stream, (label_rows,)):
        labels = _read_exactly(stream, label_rows)
        _expect_end(stream)
    with _reading(images_path), _idx(images_path, 3) as (stream, (rows, height, width)):
        if rows != label_rows:
            raise Unusable(
                f"has {rows} images, but {labels_path.name} has {label_rows} labels; "
                "put files there that belong together"
            )
        for row, image in _rows(stream, rows, (height, width, 1)):
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


def _folder(path: Path, split: str) -> Source:
    if not path.is_dir():
        raise UserError(f"{shown(path)}: is not a folder; unpack it, or choose another source")
    root = _split_folder(path, split)
    with _reading(root):
        names = _entries(root)
    folders = [name for name in names if (root / name).is_dir()]
    if folders and len(folders) < len(names):
        file = min(set(names) - set(folders))
        raise UserError(
            f"{shown(root)}: has the file {shown(file)} beside the folder {shown(folders[0])}; "
            "put all images in class folders, or none"
        )
    if not folders:
        return Source(None, _folder_samples(root, root, None))

    def samples() -> Iterator[Sample | Refused]:
        for label, name in enumerate(folders):
            empty = True
            for item in _folder_samples(root, root / name, label):
                empty = False
                yield item
            if empty:
                yield Refused(shown(root / name), "is a class folder without images")

    return Source(tuple(folders), samples())


def _split_folder(path: Path, split: str) -> Path:
    """The folder of the split, where the folder holds splits and nothing else."""
    with _reading(path):
        names = _entries(path)
    known = {name for group in SPLIT_NAMES.values() for name in group}
    if not names or any(name not in known or not (path / name).is_dir() for name in names):
        if split != "train":
            raise UserError(
                f"split: {shown(path)} is not divided into splits; give the path of the images "
                f"of {split!r} and leave split at 'train'"
            )
        return path
    found = [name for name in names if name in SPLIT_NAMES[split]]
    if len(found) != 1:
        raise UserError(f"split: {shown(path)} has {', '.join(names)}, not one {split!r}")
    return path / found[0]


def _entries(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not _is_sidecar(name))


def _is_sidecar(name: str) -> bool:
    lower = name.lower()
    return (
        name.startswith(".")
        or lower in SIDECAR_NAMES
        or os.path.splitext(lower)[1] in SIDECAR_SUFFIXES
    )


def _files(folder: Path, above: tuple[tuple[int, int], ...] = ()) -> Iterator[Path]:
    """All files below a folder but sidecars, by name. `above`: the folders on the way here."""
    with _reading(folder):
        status = folder.stat()
        names = _entries(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise UserError(f"{shown(folder)}: is a link to a folder that holds it; remove the link")
    for name in names:
        if (folder / name).is_dir():
            yield from _files(folder / name, (*above, here))
        else:
            yield folder / name


def _folder_samples(root: Path, folder: Path, label: int | None) -> Iterator[Sample | Refused]:
    for path in _files(folder):
        where = shown(path)
        source_id = path.relative_to(root).as_posix()
        try:
            source_id.encode()
        except UnicodeEncodeError:
            yield Refused(where, "has a name that is not UTF-8; rename it")
            continue
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise Unusable("is not a regular file")
            if status.st_size == 0:
                raise Unusable("is empty (0 bytes)")
            with open(path, "rb") as stream:
                image = decode(stream)
        except OSError as error:
            yield Refused(where, f"cannot be opened ({error.strerror})")
        except Unusable as error:
            yield Refused(where, str(error))
        else:
            yield Sample(image, label, source_id, where)


# --- Parquet ------------------------------------------------------------------------------------

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
_SHARD = re.compile(r"(?P<head>.*)-(?P<number>\d{5})-of-(?P<count>\d{5}).*")


def _parquet(path: Path, split: str) -> Source:
    if path.is_dir():
        files = _split_files(path, split)
    else:
        _only_train(split, "a single Parquet file")
        files = [path]
    image_name, label_name, names = _parquet_columns(files[0])
    for file in files[1:]:
        if _parquet_columns(file) != (image_name, label_name, names):
            raise UserError(
                f"{shown(file)}: has other columns or class names than {files[0].name}; "
                "give shards of one dataset"
            )
    if label_name is not None and names is None:
        names = _named_labels(files, label_name)
    return Source(names, _parquet_samples(files, image_name, label_name, names))


def _split_files(folder: Path, split: str) -> list[Path]:
    """The shards of a split, by their names or their folders' names; all where none is named."""
    files = [file for file in _files(folder) if file.suffix == ".parquet"]
    if not files:
        raise UserError(f"{shown(folder)}: has no .parquet file; give the folder of the shards")
    by_split: dict[str | None, list[Path]] = {}
    for file in files:
        words = set(re.split(r"[-_./]", file.relative_to(folder).as_posix().lower()))
        named = {name for name, group in SPLIT_NAMES.items() if words & set(group)}
        if len(named) > 1:
            raise UserError(f"{shown(file)}: is named after several splits; rename it")
        by_split.setdefault(named.pop() if named else None, []).append(file)
    if by_split.keys() == {None} and split == "train":
        chosen = files
    elif None in by_split and len(by_split) > 1:
        raise UserError(
            f"{shown(by_split[None][0])}: is named after no split, other files are; "
            "give the path of one file, or of a folder of one kind"
        )
    elif split in by_split:
        chosen = by_split[split]
    else:
        found = ", ".join(name or "no named split" for name in by_split)
        raise UserError(f"split: {shown(folder)} has no {split!r} ({found})")
    _check_shards(chosen)
    return chosen


def _check_shards(files: list[Path]) -> None:
    """Shards carry their number and count in their names; all must be there."""
    present: dict[tuple[Path, str, int], set[int]] = {}
    for file in files:
        match = _SHARD.fullmatch(file.name)
        if match:
            key = (file.parent, match["head"], int(match["count"]))
            present.setdefault(key, set()).add(int(match["number"]))
    for (folder, head, count), numbers in present.items():
        missing = set(range(count)) - numbers
        if missing:
            name = f"{head}-{min(missing):05}-of-{count:05}"
            raise UserError(f"{shown(folder / name)}: the shard is missing; fetch it as well")


def _parquet_columns(file: Path) -> tuple[str, str | None, tuple[str, ...] | None]:
    """Names of the image and label columns, and the class names that Hugging Face noted."""
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
    if label_name is not None:
        kind = schema.field(label_name).type
        if pa.types.is_null(kind):
            label_name = None
        elif not (pa.types.is_integer(kind) or _is_text(kind)):
            raise UserError(
                f"{shown(file)}: column {label_name} is {shown(kind)}; it must hold whole numbers "
                "or names"
            )
    return image_name, label_name, _noted_names(schema, label_name)


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


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


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


def _named_labels(files: list[Path], label_name: str) -> tuple[str, ...] | None:
    """All names, sorted, of a column of names; None for a column of numbers."""
    if not _is_text(pq.read_schema(files[0]).field(label_name).type):
        return None
    names: set[str] = set()
    for _, _, batch in _parquet_batches(files, [label_name]):
        names.update(batch.column(0).to_pylist())
    return tuple(sorted(names - {None}))


def _parquet_samples(
    files: list[Path], image_name: str, label_name: str | None, names: tuple[str, ...] | None
) -> Iterator[Sample | Refused]:
    columns = [image_name] + ([label_name] if label_name else [])
    numbers = {name: number for number, name in enumerate(names or ())}
    total = 0
    for file, start, batch in _parquet_batches(files, columns):
        images = batch.column(image_name)
        labels = batch.column(label_name).to_pylist() if label_name else [None] * len(batch)
        for row, (image, label) in enumerate(zip(images, labels, strict=True), start):
            where = f"{shown(file)} row {row}"
            # Hugging Face writes -1 where the label is withheld.
            label = numbers[label] if isinstance(label, str) else None if label == -1 else label
            try:
                yield Sample(_parquet_image(image), label, str(total), where)
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


def _npz(path: Path, split: str) -> Source:
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
    return Source(None, _npz_samples(path, images_key, labels_key))


def _npz_samples(path: Path, images_key: str, labels_key: str | None) -> Iterator[Sample]:
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
        for row, image in _rows(stream, shape[0], (*shape[1:], 1)[:3]):
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

_CIFAR_FILES = {
    "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test": ("test_batch",),
}


def _cifar10(path: Path, split: str) -> Source:
    if split not in _CIFAR_FILES:
        raise UserError(f"split: cifar10 has no split {split!r}; use 'train' or 'test'")
    return Source(CIFAR10_CLASSES, _cifar_samples(path, _CIFAR_FILES[split]))


def _cifar_samples(path: Path, stems: tuple[str, ...]) -> Iterator[Sample]:
    with _reading(path), _cifar_archive(path) as (names, read):
        suffix = ".bin" if any(f"{stem}.bin" in names for stem in stems) else ""
        missing = [f"{stem}{suffix}" for stem in stems if f"{stem}{suffix}" not in names]
        if missing:
            raise UserError(
                f"{shown(path)}: has no {', '.join(missing)}; give the folder or .tar.gz of "
                "CIFAR-10, binary or python version"
            )
        total = 0
        for stem in stems:
            name = f"{stem}{suffix}"
            data = read(name)
            with _reading(path / name):
                labels, pixels = _cifar_binary(data) if suffix else _cifar_python(data)
            images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            for row, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield Sample(image, int(label), str(total), f"{shown(path / name)} row {row}")
                total += 1


@contextlib.contextmanager
def _cifar_archive(path: Path) -> Iterator[tuple[set[str], Callable[[str], bytes]]]:
    """The names of the files in a folder or .tar.gz, and how to read one of them."""
    if path.is_dir():
        inner = [path / f"cifar-10-batches-{version}" for version in ("bin", "py")]
        folder = next((entry for entry in inner if entry.is_dir()), path)

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


_READERS: dict[str, Callable[[Path, str], Source]] = {
    "fashion-mnist": _fashion_mnist,
    "folder": _folder,
    "parquet": _parquet,
    "npz": _npz,
    "cifar10": _cifar10,
}
SOURCES = ("digits", *_READERS)
