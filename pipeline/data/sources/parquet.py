"""Reader of Parquet files and shards, as Hugging Face and `prepare` write them."""

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data.sources.base import (
    Found,
    Refused,
    Sample,
    Source,
    chosen,
    reading,
    shards_of,
)
from pipeline.data.sources.pictures import Unusable, decode, full_shape
from pipeline.errors import UserError, shown

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")


def open_parquet(path: Path, split: str, limit: int | None) -> Source:
    files = shards_of("parquet", path, split)
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
    wanted = chosen(limit, lambda: _parquet_labels(files, columns, numbers))
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
    with reading(file):
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
        with reading(file):
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
) -> Iterator[Callable[[], Found]]:
    read = [columns.image] + ([columns.label] if columns.label else [])
    total = 0
    for file, start, batch in _parquet_batches(files, read):
        images = batch.column(columns.image)
        labels = batch.column(columns.label).to_pylist() if columns.label else [None] * len(batch)
        for row, (image, label) in enumerate(zip(images, labels, strict=True), start):
            if wanted is None or wanted[total]:
                where = f"{shown(file)} row {row}"
                number = _label_number(label, numbers)
                yield functools.partial(_parquet_sample, image, number, str(total), where)
            total += 1


def _parquet_sample(value: pa.Scalar, label: int | None, source_id: str, where: str) -> Found:
    try:
        return Sample(_parquet_image(value), label, source_id, where)
    except Unusable as error:
        return Refused(where, str(error))


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
    return full_shape(pixels.astype(np.uint8).reshape(shape))
