"""The normal form of image data: one Parquet file of equal square images.

A row is `image` (fixed-size list of uint8: H*W*C values in the order H, W, C), `label` (int32, null
in every row where the source has none) and `source_id` (string, its name within the source). The
schema's metadata holds the `DatasetInfo` as JSON under `tspace`, and its sha256 under
`tspace.sha256`.
"""

import base64
import contextlib
import functools
import hashlib
import json
import math
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.data.sources.base import MOST_THREADS, Refused, Sample
from pipeline.data.sources.open import open_source
from pipeline.data.sources.pictures import Unusable
from pipeline.devices import cores
from pipeline.errors import UserError, shown

FORMAT = 2
GROUP_BYTES = 2**22
GROUP_ROWS = 4096
MAX_RESOLUTION = 4096
MAX_CLASSES = 2**16
NAMED_PROBLEMS = 10
PROGRESS_ROWS = 256


@dataclass(frozen=True)
class DatasetInfo:
    """What a dataset is, without its rows.

    resolution: side of the square images, pixels. channels: 1 (grey) or 3 (RGB).
    classes: their names, by label; None without labels. class_counts: the rows of each.
    mean, std: of every channel over all pixels, in levels 0..255, from exact sums.
    duplicates: rows with the very pixels of an earlier row; kept, or dropped if `settings` says so.
    digest: sha256 over rows, shape, pixels, labels and source ids in order; it does not depend on
        how Parquet encodes them.
    settings: what `prepare` was told; of the path only the last part, so that the file is the same
        on every machine.
    """

    resolution: int
    channels: int
    rows: int
    classes: tuple[str, ...] | None
    class_counts: tuple[int, ...] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    duplicates: int
    digest: str
    settings: dict[str, Any]


def prepare(
    out: Path,
    *,
    source: str,
    path: Path | None = None,
    resolution: int | None = None,
    channels: int | None = None,
    crop: str = "center",
    limit: int | None = None,
    split: str = "train",
    side: int | None = None,
    duplicates: str = "keep",
    accept: Callable[[DatasetInfo], None] = lambda info: None,
    progress: Callable[[int], None] | None = None,
) -> DatasetInfo:
    """Write a source's images to the Parquet file `out`, which appears only when complete.

    resolution, channels: None keeps the source's own, which must then be the same for all images.
    crop: "center" cuts the largest centred square, "none" refuses images that are not square.
    limit: at most so many rows, spread over the source, each class in its proportion; they are
        chosen before copies are looked for.
    side: of the squares that are `patches`, in pixels of the photographs.
    duplicates: "keep", "drop" or "refuse" exact copies of earlier images.
    progress: called now and then with the number of rows so far.

    Images are scaled down by Pillow's antialiased Lanczos filter and up by its bicubic one; RGB
    becomes grey by its luma (ITU-R 601). Memory does not grow with the number of rows, but for
    about 150 bytes a row to find duplicates.

    accept: is told what the dataset is before it takes its place, and may raise.

    Raises UserError for settings out of range, for a source that cannot be read, and for images
    that cannot be used, all of them in one message; `out` is then as it was before.
    """
    _check_settings(resolution, channels, crop, limit, duplicates)
    shape = functools.partial(_shaped, resolution=resolution, channels=channels, crop=crop)
    threads = min(cores(), MOST_THREADS)
    reader = open_source(source, path, split, limit, side, work=shape, threads=threads)
    sizes = _Sizes(resolution, channels)
    problems = _Problems()
    first_of: dict[bytes, str | None] = {}
    labelled: bool | None = None
    top_label = -1
    rows = copies = 0
    place = source if path is None else shown(path)

    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(_replacing(out))
        samples = stack.enter_context(contextlib.closing(reader.samples))
        writer: _Writer | None = None
        for sample in samples:
            if isinstance(sample, Refused):
                problems.add(sample.where, sample.reason)
                continue
            try:
                _check_label(sample.label, labelled, reader.classes)
                image = sizes.checked(sample)
            except Unusable as error:
                problems.add(sample.where, str(error))
                continue
            labelled = sample.label is not None
            top_label = max(top_label, -1 if sample.label is None else sample.label)

            key = hashlib.blake2b(image, digest_size=16).digest()
            if key in first_of:
                copies += 1
                if duplicates == "refuse":
                    problems.add(sample.where, f"is an exact copy of {first_of[key]}", copy=True)
                if duplicates != "keep":
                    continue
            else:
                first_of[key] = sample.where if duplicates == "refuse" else None

            if not problems:
                if writer is None:
                    writer = _Writer(out, stream, image.shape)
                    stack.callback(writer.abandon)
                writer.add(image, sample.label, sample.source_id)
            rows += 1
            if progress is not None and rows % PROGRESS_ROWS == 0:
                progress(rows)
        problems.raise_any(place)
        if writer is None:
            raise UserError(f"{place}: has no images; put some there, or give another path")
        classes = reader.classes or tuple(str(label) for label in range(top_label + 1))
        settings = {
            "source": source,
            "path": None if path is None else path.name,
            "resolution": resolution,
            "channels": channels,
            "crop": crop,
            "limit": limit,
            "split": split,
            "duplicates": duplicates,
            **({} if side is None else {"side": side}),
        }
        info = writer.finish(classes if labelled else None, copies, settings)
        accept(info)
    if progress is not None:
        progress(rows)
    return info


def _check_settings(
    resolution: int | None, channels: int | None, crop: str, limit: int | None, duplicates: str
) -> None:
    if resolution is not None and not 1 <= resolution <= MAX_RESOLUTION:
        raise UserError(f"data.resolution: {resolution} is not within 1..{MAX_RESOLUTION}")
    if channels not in (None, 1, 3):
        raise UserError(
            f"data.channels: {channels} is not 1 (grey), 3 (RGB) or null (the source's own)"
        )
    if crop not in ("center", "none"):
        raise UserError(f"data.crop: {crop!r} is neither 'center' nor 'none'")
    if limit is not None and limit < 1:
        raise UserError(f"data.limit: {limit} is not a number of rows from 1, or null for all")
    if duplicates not in ("keep", "drop", "refuse"):
        raise UserError(f"data.duplicates: {duplicates!r} is not 'keep', 'drop' or 'refuse'")


def _check_label(label: int | None, labelled: bool | None, classes: tuple[str, ...] | None) -> None:
    if labelled is not None and labelled != (label is not None):
        raise Unusable(
            "has no label, but others have" if labelled else "has a label, but others have none"
        )
    count = MAX_CLASSES if classes is None else len(classes)
    if label is not None and not 0 <= label < count:
        raise Unusable(f"has the label {label}, which is not within 0..{count - 1}")


class _Problems:
    """Images that cannot be used: the first few by name, and their number."""

    def __init__(self) -> None:
        self.count = self.copies = 0
        self.named: list[str] = []

    def __bool__(self) -> bool:
        return self.count > 0

    def add(self, where: str, reason: str, copy: bool = False) -> None:
        self.count += 1
        self.copies += copy
        if len(self.named) < NAMED_PROBLEMS:
            self.named.append(f"{where} {reason}")

    def raise_any(self, place: str) -> None:
        if not self:
            return
        head = f"{place}: {self.count} images cannot be used: " if self.count > 1 else ""
        rest = self.count - len(self.named)
        more = f"; and {rest} more" if rest else ""
        them = "it" if self.count == 1 else "them"
        way_out = f"repair or remove {them}"
        if self.copies:
            way_out += ", or set duplicates to 'keep' or 'drop'"
        raise UserError(f"{head}{'; '.join(self.named)}{more}; {way_out}")


@dataclass(frozen=True)
class _Shaped:
    """A sample, its image uint8 [R, R, C], and what it was: height, width and channels."""

    image: np.ndarray
    size: tuple[int, int, int]
    label: int | None
    source_id: str
    where: str


def _shaped(
    found: Sample | Refused, *, resolution: int | None, channels: int | None, crop: str
) -> _Shaped | Refused:
    """One image brought to its shape, as far as it depends on no other."""
    if isinstance(found, Refused):
        return found
    height, width, own = found.image.shape
    if height != width and crop == "none":
        reason = f"is {width}x{height}, not square (set crop to 'center' to cut it)"
        return Refused(found.where, reason)
    image = _crop(found.image)
    image = _convert(image, resolution or len(image), channels or own)
    return _Shaped(image, (height, width, own), found.label, found.source_id, found.where)


class _Sizes:
    """Refuses images that differ from the first in what the settings leave to the source."""

    def __init__(self, resolution: int | None, channels: int | None) -> None:
        self.resolution, self.channels = resolution, channels
        self.first: _Shaped | None = None

    def checked(self, sample: _Shaped) -> np.ndarray:
        """The sample's image. UserError if it is not alike."""
        self.first = self.first or sample
        (height, width, own), (tall, wide, channels) = sample.size, self.first.size
        if self.resolution is None and min(height, width) != min(tall, wide):
            raise UserError(
                f"{self.first.where} is {wide}x{tall}, but {sample.where} is {width}x{height}; "
                "set data.resolution to bring all images to one size"
            )
        if self.channels is None and own != channels:
            raise UserError(
                f"{self.first.where} has {channels} channels, but {sample.where} has {own}; "
                "set data.channels to 1 (grey) or 3 (RGB)"
            )
        return sample.image


def _crop(image: np.ndarray) -> np.ndarray:
    """The largest centred square of [H, W, C]; of an odd remainder the larger part goes last."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def _convert(image: np.ndarray, resolution: int, channels: int) -> np.ndarray:
    image = np.ascontiguousarray(image)
    if image.shape == (resolution, resolution, channels):
        return image
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    if channels == 1:
        picture = picture.convert("L")
    if resolution != image.shape[0]:
        # Both filters widen with the reduction; Lanczos keeps more of the detail that remains.
        down = resolution < image.shape[0]
        sharp = Image.Resampling.LANCZOS if down else Image.Resampling.BICUBIC
        picture = picture.resize((resolution, resolution), sharp)
    if channels == 3:
        picture = picture.convert("RGB")
    return np.asarray(picture).reshape(resolution, resolution, channels)


class _Tally:
    """Digest, mean and standard deviation of rows that come in any batches."""

    def __init__(self, resolution: int, channels: int) -> None:
        self.shape = (resolution, channels)
        self.rows = 0
        self.counts = np.zeros((channels, 256), np.int64)
        self.labels: Counter[int] = Counter()
        self.hashes = {name: hashlib.sha256() for name in ("image", "label", "source_id")}

    def add(
        self, images: np.ndarray, labels: Sequence[int | None], source_ids: Sequence[str]
    ) -> None:
        """images: uint8 [n, H, W, C]."""
        self.rows += len(images)
        for channel in range(self.shape[1]):
            self.counts[channel] += np.bincount(images[..., channel].ravel(), minlength=256)
        self.hashes["image"].update(np.ascontiguousarray(images))
        numbers = [-1 if label is None else label for label in labels]
        self.hashes["label"].update(np.array(numbers, "<i4").tobytes())
        self.labels.update(numbers)
        for source_id in source_ids:
            data = source_id.encode()
            self.hashes["source_id"].update(len(data).to_bytes(4, "little") + data)

    def digest(self) -> str:
        parts = {name: state.hexdigest() for name, state in self.hashes.items()}
        parts |= {"shape": self.shape, "rows": self.rows}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def class_counts(self, classes: int) -> tuple[int, ...]:
        return tuple(self.labels[label] for label in range(classes))

    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel, the same bits on every machine."""
        pixels = self.rows * self.shape[0] ** 2
        mean, std = [], []
        for counts in self.counts.tolist():
            total = sum(level * count for level, count in enumerate(counts))
            squares = sum(level**2 * count for level, count in enumerate(counts))
            mean.append(total / pixels)
            std.append(math.sqrt(pixels * squares - total**2) / pixels)
        return tuple(mean), tuple(std)


def _schema(resolution: int, channels: int) -> pa.Schema:
    value = pa.field("element", pa.uint8(), nullable=False)
    return pa.schema(
        [
            pa.field("image", pa.list_(value, resolution**2 * channels), nullable=False),
            pa.field("label", pa.int32()),
            pa.field("source_id", pa.string(), nullable=False),
        ]
    )


class _Writer:
    """Gathers rows into row groups, which a thread hashes, compresses and writes to a stream.

    While it works on one group the next is gathered, and there are no more than these two. What
    goes wrong there is raised by the next call that needs it done.
    """

    def __init__(self, out: Path, stream: BinaryIO, shape: tuple[int, ...]) -> None:
        self.out = out
        self.schema = _schema(shape[0], shape[2])
        self.tally = _Tally(shape[0], shape[2])
        group = min(GROUP_ROWS, max(1, GROUP_BYTES // math.prod(shape)))
        self.images, self.other = (np.empty((group, *shape), np.uint8) for _ in range(2))
        self.labels: list[int | None] = []
        self.source_ids: list[str] = []
        self.thread = ThreadPoolExecutor(1)
        self.writing: Future[None] | None = None
        # Parquet has no byte-wide numbers: split by byte, the three empty ones compress to nothing.
        self.parquet = pq.ParquetWriter(
            stream,
            self.schema,
            compression="zstd",
            use_dictionary=False,
            column_encoding={"image.list.element": "BYTE_STREAM_SPLIT"},
            write_statistics=False,
            write_page_checksum=True,
        )

    def add(self, image: np.ndarray, label: int | None, source_id: str) -> None:
        self.images[len(self.labels)] = image
        self.labels.append(label)
        self.source_ids.append(source_id)
        if len(self.labels) == len(self.images):
            self._hand_over()

    def _hand_over(self) -> None:
        """Let the thread write what is gathered, once it is done with the group before."""
        self._wait()
        images = self.images[: len(self.labels)]
        self.writing = self.thread.submit(self._write, images, self.labels, self.source_ids)
        self.images, self.other = self.other, self.images
        self.labels, self.source_ids = [], []

    def _wait(self) -> None:
        if self.writing is not None:
            writing, self.writing = self.writing, None
            writing.result()

    def _write(self, images: np.ndarray, labels: list[int | None], source_ids: list[str]) -> None:
        self.tally.add(images, labels, source_ids)
        values = pa.array(images.reshape(-1))
        columns = [
            pa.FixedSizeListArray.from_arrays(values, type=self.schema.field("image").type),
            pa.array(labels, pa.int32()),
            pa.array(source_ids, pa.string()),
        ]
        with _writing(self.out):
            self.parquet.write_table(pa.table(columns, schema=self.schema))

    def finish(
        self, classes: tuple[str, ...] | None, duplicates: int, settings: dict[str, Any]
    ) -> DatasetInfo:
        if self.labels:
            self._hand_over()
        self._wait()
        mean, std = self.tally.moments()
        info = DatasetInfo(
            resolution=self.tally.shape[0],
            channels=self.tally.shape[1],
            rows=self.tally.rows,
            classes=classes,
            class_counts=None if classes is None else self.tally.class_counts(len(classes)),
            mean=mean,
            std=std,
            duplicates=duplicates,
            digest=self.tally.digest(),
            settings=settings,
        )
        text = json.dumps({"format": FORMAT, **asdict(info)}, sort_keys=True)
        metadata = {"tspace": text, "tspace.sha256": hashlib.sha256(text.encode()).hexdigest()}
        # Arrow's readers take the schema, metadata included, from this entry, which was written
        # when the file was opened: before the rows were known.
        serialized = self.schema.with_metadata(metadata).serialize()
        metadata["ARROW:schema"] = base64.b64encode(serialized).decode()
        with _writing(self.out):
            self.parquet.add_key_value_metadata(metadata)
            self.parquet.close()
        return info

    def abandon(self) -> None:
        """Let go of a file that will not be finished; without effect on a finished one."""
        self.thread.shutdown()  # it writes to a stream that is closed next
        with contextlib.suppress(OSError):
            self.parquet.close()


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{shown(out)}: cannot be written ({error.strerror or error}); make room, or write "
            "elsewhere"
        ) from error


@contextlib.contextmanager
def _replacing(out: Path) -> Iterator[BinaryIO]:
    """A stream whose file takes the place of `out` when the block ends well, and else vanishes."""
    if out.is_dir():
        raise UserError(f"{shown(out)}: is a folder; remove it, or write elsewhere")
    head, tail = f".{out.name}.", ".tmp"
    with _writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        # What killed runs left. A run that still lives then fails instead of doing harm.
        for entry in os.listdir(out.parent):
            if entry.startswith(head) and entry.endswith(tail):
                (out.parent / entry).unlink(missing_ok=True)
        temporary = out.parent / f"{head}{secrets.token_hex(8)}{tail}"
        stream = open(temporary, "xb")  # noqa: SIM115
    try:
        yield stream
        with _writing(out):
            stream.flush()
            os.fsync(stream.fileno())
            os.replace(temporary, out)
            folder = os.open(out.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
    finally:
        # On a full disk, closing fails once more on what is still buffered.
        with contextlib.suppress(OSError):
            stream.close()
        temporary.unlink(missing_ok=True)


def open_dataset(path: Path) -> "Dataset":
    """Open a file that `prepare` wrote.

    Raises UserError for a file that is missing, cut short, of another origin or version, or whose
    metadata was changed. Pixels are checked as they are read, and all at once by `Dataset.verify`.
    """
    if not path.exists():
        raise UserError(f"{shown(path)}: there is no dataset; prepare it first")
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{shown(path)}: is not a Parquet file, or is cut short; prepare it again"
        ) from error
    metadata = file.schema_arrow.metadata or {}
    text = metadata.get(b"tspace")
    if text is None:
        raise UserError(f"{shown(path)}: is a Parquet file of another origin; prepare it as source")
    if metadata.get(b"tspace.sha256") != hashlib.sha256(text).hexdigest().encode():
        raise UserError(f"{shown(path)}: its metadata was changed; prepare it again")
    fields = json.loads(text)
    if fields.pop("format") != FORMAT:
        raise UserError(f"{shown(path)}: was written by another version; prepare it again")
    for name in ("classes", "class_counts", "mean", "std"):
        fields[name] = None if fields[name] is None else tuple(fields[name])
    info = DatasetInfo(**fields)
    if file.schema_arrow.remove_metadata() != _schema(info.resolution, info.channels):
        raise UserError(f"{shown(path)}: its columns were changed; prepare it again")
    groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    for rows in (file.metadata.num_rows, sum(groups)):
        if rows != info.rows:
            raise UserError(
                f"{shown(path)}: has {rows} rows, but {info.rows} were written; prepare it again"
            )
    return Dataset(path, info, file)


class Dataset:
    """A prepared dataset; `len` is its rows. Made by `open_dataset`.

    Rows start..stop-1 are read from the file at every call. Raises UserError, naming the file,
    where what is read is damaged, and IndexError for rows out of range.
    """

    def __init__(self, path: Path, info: DatasetInfo, file: pq.ParquetFile) -> None:
        self.path = path
        self.info = info
        self._file = file
        sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(int).tolist()

    def __len__(self) -> int:
        return self.info.rows

    def images(self, start: int, stop: int) -> np.ndarray:
        """uint8 [n, C, H, W]."""
        self._check_rows(start, stop)
        side, channels = self.info.resolution, self.info.channels
        images = np.empty((stop - start, channels, side, side), np.uint8)
        done = 0
        for column in self._read("image", start, stop):
            rows = column.flatten().to_numpy().reshape(-1, side, side, channels)
            images[done : done + len(rows)] = rows.transpose(0, 3, 1, 2)
            done += len(rows)
        return images

    def labels(self, start: int, stop: int) -> np.ndarray | None:
        """int64 [n], or None for a dataset without labels."""
        self._check_rows(start, stop)
        if self.info.classes is None:
            return None
        labels = self._values("label", start, stop)
        if None in labels:
            raise UserError(f"{shown(self.path)}: its labels were changed; prepare it again")
        return np.array(labels, np.int64)

    def source_ids(self, start: int, stop: int) -> list[str]:
        """The rows' names within their source."""
        self._check_rows(start, stop)
        return self._values("source_id", start, stop)

    def verify(self) -> None:
        """Read all rows and compare digest, mean and standard deviation with `info`.

        Raises UserError where they differ.
        """
        tally = _Tally(self.info.resolution, self.info.channels)
        for start, stop in zip(self._starts, self._starts[1:], strict=False):
            tally.add(
                self.images(start, stop).transpose(0, 2, 3, 1),
                self._values("label", start, stop),
                self._values("source_id", start, stop),
            )
        if (tally.digest(), *tally.moments()) != (self.info.digest, self.info.mean, self.info.std):
            raise UserError(f"{shown(self.path)}: its rows were changed; prepare it again")

    def _check_rows(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"rows {start}..{stop} of {len(self)}")

    def _values(self, name: str, start: int, stop: int) -> list[Any]:
        return [value for part in self._read(name, start, stop) for value in part.to_pylist()]

    def _read(self, name: str, start: int, stop: int) -> Iterator[pa.Array]:
        """Rows start..stop-1 of a column, row group by row group."""
        groups = zip(self._starts, self._starts[1:], strict=False)
        for number, (first, end) in enumerate(groups):
            if first >= stop or end <= start:
                continue
            try:
                column = self._file.read_row_group(number, [name], use_threads=False).column(0)
            except (OSError, pa.ArrowException) as error:
                raise UserError(
                    f"{shown(self.path)}: is damaged in rows {first}..{end - 1}; prepare it again"
                ) from error
            column = column.combine_chunks()
            yield column.slice(max(start - first, 0), min(stop, end) - max(start, first))
