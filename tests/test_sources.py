"""Readers against files written here, byte by byte or by other libraries."""

import functools
import gzip
import io
import json
import os
import pickle
import re
import struct
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.data.dataset import open_dataset, prepare
from pipeline.data.raw import raw_files
from pipeline.data.sources import base, pictures
from pipeline.data.sources.base import Refused, Sample
from pipeline.data.sources.open import open_source
from pipeline.errors import UserError
from pipeline.rows import spread

RNG = np.random.default_rng(0)


def pixels(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def encoded(array: np.ndarray, form: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, form, **options)
    return stream.getvalue()


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def read(
    source: str, path: Path | None = None, split: str = "train", **keys
) -> list[Sample | Refused]:
    return list(open_source(source, path, split, **keys).samples)


def decoded(data: bytes) -> np.ndarray:
    return pictures.decode(io.BytesIO(data))


# --- decoding -----------------------------------------------------------------------------------

LOSSLESS = {
    "bmp": ("BMP", {}),
    "dib": ("DIB", {}),
    "jpeg2000": ("JPEG2000", {"irreversible": False}),
    "pcx": ("PCX", {}),
    "png": ("PNG", {}),
    "ppm": ("PPM", {}),
    "sgi": ("SGI", {}),
    "tga": ("TGA", {}),
    "tga-rle": ("TGA", {"compression": "tga_rle"}),
    "tiff": ("TIFF", {}),
    "tiff-lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "tiff-deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "webp": ("WEBP", {"lossless": True}),
}


@pytest.mark.parametrize("form", LOSSLESS)
def test_lossless_formats_keep_every_pixel(form):
    array = pixels(20, 16, 3)
    assert np.array_equal(decoded(encoded(array, LOSSLESS[form][0], **LOSSLESS[form][1])), array)


def test_gif_is_read_by_its_palette():
    array = pixels(20, 16)
    assert np.array_equal(decoded(encoded(array, "GIF")), np.repeat(array[:, :, None], 3, 2))


@pytest.mark.parametrize("form", ["JPEG", "AVIF", "GIF", *LOSSLESS])
def test_a_file_cut_in_half_is_refused(form):
    name, options = LOSSLESS.get(form, (form, {}))
    data = encoded(pixels(40, 40, 3), name, **options)
    with pytest.raises(pictures.Unusable):
        decoded(data[: len(data) // 2])


def test_no_damaged_byte_of_a_png_changes_a_pixel_unnoticed():
    array = pixels(12, 12, 3)
    data = encoded(array)
    unnoticed = 0
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x11
        try:
            assert np.array_equal(decoded(bytes(damaged)), array)
            unnoticed += 1
        except pictures.Unusable:
            pass
    # The length and checksum of the end mark, which is empty.
    assert unnoticed == 8


def test_a_png_cut_anywhere_is_refused():
    data = encoded(pixels(12, 12, 3))
    # Of the end mark, Pillow does without the checksum.
    for size in range(len(data) - 4):
        with pytest.raises(pictures.Unusable):
            decoded(data[:size])


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a)),
    ],
)
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation(orientation, upright, form):
    array = pixels(6, 9, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if form == "WEBP" else {}
    got = decoded(encoded(array, form, exif=exif, **options))
    assert np.array_equal(got, upright(array))


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_and_not_clipped(form):
    wide = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    assert np.array_equal(
        decoded(encoded(wide, form))[:, :, 0], np.rint(wide / 257).astype(np.uint8)
    )


def test_16_bit_grey_with_orientation_and_big_endian():
    wide = RNG.integers(0, 2**16, (5, 7), dtype=np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    got = decoded(encoded(wide, exif=exif))
    assert np.array_equal(got[:, :, 0], np.rint(np.rot90(wide, -1) / 257))
    stream = io.BytesIO()
    Image.frombytes("I;16B", (7, 5), wide.astype(">u2").tobytes()).save(stream, "TIFF")
    assert np.array_equal(decoded(stream.getvalue())[:, :, 0], np.rint(wide / 257))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def raw_png(width: int, height: int, depth: int, colour: int, body: bytes, *chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(body))
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return head + b"".join(chunks) + data + chunk(b"IEND", b"")


def test_16_bit_grey_with_a_transparent_value():
    body = b"\0" + struct.pack(">3H", 1000, 40000, 1001)
    got = decoded(raw_png(3, 1, 16, 0, body, chunk(b"tRNS", struct.pack(">H", 1000))))
    assert got[0, :, 0].tolist() == [255, round(40000 / 257), round(1001 / 257)]


def test_16_bit_rgb():
    values = [0, 65535, 32768]
    got = decoded(raw_png(1, 1, 16, 2, b"\0" + struct.pack(">3H", *values)))
    assert np.abs(got[0, 0].astype(int) - np.rint(np.array(values) / 257)).max() <= 1


@pytest.mark.parametrize("grey", [False, True])
def test_alpha_is_composited_on_white(grey):
    array = pixels(30, 30, 2 if grey else 4)
    alpha = array[..., -1:] / 255
    expected = array[..., :-1] * alpha + 255 * (1 - alpha)
    got = decoded(encoded(array))
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= 1


def test_transparent_colours_of_grey_rgb_and_palette_become_white():
    grey = np.array([[7, 8]], np.uint8)
    assert decoded(encoded(grey, transparency=7)).ravel().tolist() == [255, 8]
    colour = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    got = decoded(encoded(colour, transparency=(1, 2, 3)))
    assert got.reshape(2, 3).tolist() == [[255, 255, 255], [4, 5, 6]]
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    for form in ("PNG", "GIF"):
        stream = io.BytesIO()
        palette.save(stream, form, transparency=1)
        got = decoded(stream.getvalue()).reshape(3, 3)
        assert got.tolist() == [[10, 20, 30], [255, 255, 255], [70, 80, 90]]


def test_one_bit_becomes_black_and_white():
    bits = RNG.integers(0, 2, (9, 9)).astype(bool)
    for form in ("PNG", "TIFF", "PPM"):
        assert np.array_equal(decoded(encoded(bits, form))[:, :, 0], bits * np.uint8(255))


@pytest.mark.parametrize("form", ["TIFF", "JPEG"])
def test_cmyk_becomes_rgb(form):
    inks = np.full((16, 16, 4), (40, 90, 200, 30), np.uint8)
    stream = io.BytesIO()
    Image.frombytes("CMYK", (16, 16), inks.tobytes()).save(stream, form)
    expected = (255 - inks[..., :3].astype(float)) * (255 - inks[..., 3:].astype(float)) / 255
    assert np.abs(decoded(stream.getvalue()) - expected).max() <= (1 if form == "TIFF" else 4)


def test_grey_jpeg_stays_grey_and_mpo_gives_its_first_picture():
    assert decoded(encoded(pixels(8, 8), "JPEG")).shape == (8, 8, 1)
    first, second = (Image.fromarray(np.full((8, 8, 3), v, np.uint8)) for v in (200, 50))
    stream = io.BytesIO()
    first.save(stream, "MPO", save_all=True, append_images=[second])
    assert np.abs(decoded(stream.getvalue()).astype(int) - 200).max() <= 2


# --- readers ------------------------------------------------------------------------------------


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    data = load_digits()
    samples = read("digits")
    assert len(samples) == 1797
    got = np.stack([sample.image for sample in samples])[..., 0]
    assert np.abs(got - data.images * 255 / 16).max() <= 0.5
    assert [sample.label for sample in samples] == data.target.tolist()


def idx(array: np.ndarray) -> bytes:
    head = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
    return head + array.astype(np.uint8).tobytes()


def fashion(folder: Path, rows: int = 30, packed: bool = True, prefix: str = "train") -> np.ndarray:
    images = pixels(rows, 28, 28)
    for kind, array in (("images-idx3", images), ("labels-idx1", np.arange(rows) % 10)):
        data = idx(array)
        name = f"{prefix}-{kind}-ubyte"
        put(
            folder / f"{name}.gz" if packed else folder / name,
            gzip.compress(data) if packed else data,
        )
    return images


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("split", "prefix"), [("train", "train"), ("test", "t10k")])
def test_fashion_mnist(tmp_path, packed, split, prefix):
    images = fashion(tmp_path, 30, packed, prefix)
    samples = read("fashion-mnist", tmp_path, split)
    assert np.array_equal(np.stack([sample.image[..., 0] for sample in samples]), images)
    assert [sample.label for sample in samples] == [row % 10 for row in range(30)]
    assert [sample.source_id for sample in samples] == [str(row) for row in range(30)]


def test_folder_without_classes_is_read_by_name(tmp_path):
    images = {name: pixels(5, 5, 3) for name in ("b.png", "a.bmp", "sub c.tiff", "ünï.webp")}
    for name, array in images.items():
        form = Image.registered_extensions()[Path(name).suffix]
        options = {"lossless": True} if form == "WEBP" else {}
        put(tmp_path / name, encoded(array, form, **options))
    for name in ("Thumbs.db", "labels.csv", "meta.json", "README.txt", ".hidden", ".DS_Store"):
        put(tmp_path / name, b"no image")
    put(tmp_path / "__MACOSX" / "a.png", b"no image")
    samples = read("folder", tmp_path)
    assert [sample.source_id for sample in samples] == sorted(images)
    assert all(np.array_equal(sample.image, images[sample.source_id]) for sample in samples)
    assert {sample.label for sample in samples} == {None}


def test_class_folders_and_splits(tmp_path):
    for split in ("train", "test"):
        for name in ("dog", "cat"):
            put(tmp_path / split / name / "1.png", encoded(pixels(4, 4)))
            put(tmp_path / split / name / "deep" / "er" / "2.png", encoded(pixels(4, 4)))
    source = open_source("folder", tmp_path, "test")
    assert source.classes == ("cat", "dog")
    found = [(sample.source_id, sample.label) for sample in source.samples]
    assert found == [
        ("cat/1.png", 0),
        ("cat/deep/er/2.png", 0),
        ("dog/1.png", 1),
        ("dog/deep/er/2.png", 1),
    ]
    assert all(str(tmp_path / "train") in s.where for s in read("folder", tmp_path))


def test_linked_files_and_folders_are_followed(tmp_path):
    put(tmp_path / "far" / "x.png", encoded(pixels(4, 4)))
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "class").symlink_to(tmp_path / "far")
    assert [sample.source_id for sample in read("folder", tmp_path / "near")] == ["class/x.png"]


def classes_below(*folders: Path, names: tuple[str, ...] = ("cat", "dog")) -> None:
    """A picture for each class in each folder."""
    for folder in folders:
        for name in names:
            put(folder / name / f"{folder.name}.png", encoded(pixels(4, 4)))


@pytest.mark.parametrize(
    ("train", "rest"),
    [
        ("Training", ["Testing"]),
        ("TRAIN", ["Val", "Test"]),
        ("train", ["test", "unlabeled"]),
        ("training_set", ["test_set"]),
        ("train2017", ["val2017", "extra"]),
        ("TrainSet", ["Validation", "eval", "unlabelled"]),
        ("train-images", ["dev"]),
    ],
)
def test_folders_that_are_splits_are_no_classes(tmp_path, train, rest):
    classes_below(*(tmp_path / name for name in (train, *rest)))
    source = open_source("folder", tmp_path)
    assert source.classes == ("cat", "dog")
    assert [s.source_id for s in source.samples] == [f"{c}/{train}.png" for c in source.classes]


def test_the_test_split_is_found_by_its_synonyms(tmp_path):
    classes_below(tmp_path / "Training", tmp_path / "Testing")
    assert [s.source_id for s in read("folder", tmp_path, "test")] == [
        "cat/Testing.png",
        "dog/Testing.png",
    ]


def test_class_names_that_only_contain_a_split_are_classes(tmp_path):
    names = ("trainer", "testudo", "valley", "devil", "extract")
    classes_below(tmp_path / "animals", names=names)
    assert open_source("folder", tmp_path / "animals").classes == tuple(sorted(names))


def parquet(path: Path, metadata: dict | None = None, **columns) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    if metadata:
        table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    pq.write_table(table, path, row_group_size=7)
    return path


def as_struct(data: bytes | None, path: str | None = "x.png") -> dict:
    return {"bytes": data, "path": path}


def test_parquet_of_hugging_face(tmp_path):
    images = [pixels(6, 5, 3) for _ in range(200)]
    names = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    for shard, start in enumerate(range(0, 200, 50)):
        part = images[start : start + 50]
        parquet(
            tmp_path / "data" / f"train-{shard:05}-of-00004-{shard}abc.parquet",
            names,
            image=[as_struct(encoded(image)) for image in part],
            label=[(start + row) % 2 for row in range(50)],
        )
    parquet(tmp_path / "data/test-00000-of-00001.parquet", image=[as_struct(encoded(images[0]))])
    put(tmp_path / "README.md", b"a card")
    source = open_source("parquet", tmp_path, "train")
    assert source.classes == ("cat", "dog")
    samples = list(source.samples)
    assert all(np.array_equal(s.image, i) for s, i in zip(samples, images, strict=True))
    assert [sample.label for sample in samples] == [row % 2 for row in range(200)]
    assert [sample.source_id for sample in samples] == [str(row) for row in range(200)]
    assert len(read("parquet", tmp_path, "test")) == 1


@pytest.mark.parametrize("kind", ["hw", "hwc", "fixed", "int64", "bytes"])
def test_parquet_of_arrays_and_bytes(tmp_path, kind):
    array = pixels(3, 4, 6) if kind == "hw" else pixels(3, 4, 6, 3)
    if kind == "bytes":
        column = [encoded(image) for image in array]
    elif kind == "fixed":
        column = pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), 3)
        for size in (6, 4):
            column = pa.FixedSizeListArray.from_arrays(column, size)
    else:
        number = pa.int64() if kind == "int64" else pa.uint8()
        for _ in range(array.ndim - 1):
            number = pa.list_(number)
        column = pa.array(array.tolist(), number)
    samples = read("parquet", parquet(tmp_path / "x.parquet", img=column, fine_label=[2, 0, 1]))
    assert np.array_equal(np.stack([s.image for s in samples]), array.reshape(3, 4, 6, -1))
    assert [sample.label for sample in samples] == [2, 0, 1]


def test_parquet_labels_by_name_withheld_and_missing(tmp_path):
    images = [encoded(pixels(4, 4)) for _ in range(3)]
    path = parquet(tmp_path / "x.parquet", image=images, label=["b", "c", "a"])
    source = open_source("parquet", path)
    assert source.classes == ("a", "b", "c")
    assert [sample.label for sample in source.samples] == [1, 2, 0]
    path = parquet(tmp_path / "y.parquet", image=images, label=[-1, -1, -1])
    assert [sample.label for sample in read("parquet", path)] == [None] * 3


def test_parquet_labels_of_every_width_and_coding(tmp_path):
    """Shards of one dataset as different writers leave them: read by value, not by type."""
    image = [encoded(pixels(4, 4))] * 2
    numbers = [pa.array([3, 1], kind) for kind in (pa.int32(), pa.int64(), pa.uint8())]
    numbers.append(pa.array([3, 1]).dictionary_encode())
    names = [pa.array(["b", "a"], kind) for kind in (pa.string(), pa.large_string())]
    names.append(pa.array(["b", "a"]).dictionary_encode())
    for kind, columns, expected in (("n", numbers, [3, 1] * 4), ("s", names, [1, 0] * 3)):
        for number, column in enumerate(columns):
            parquet(tmp_path / kind / f"{number}.parquet", image=image, label=column)
        source = open_source("parquet", tmp_path / kind)
        assert source.classes == (None if kind == "n" else ("a", "b"))
        assert [sample.label for sample in source.samples] == expected


def test_pictures_decoded_ahead_keep_their_order():
    """However long each takes; what needs no thread stays in its place."""
    started, now, most = [], threading.Semaphore(0), 4

    def slow(number: int) -> int:
        started.append(number)
        if number % 3 == 0:  # until another one was done
            assert now.acquire(timeout=10)
        now.release()
        return number

    found = (functools.partial(slow, n) if n % 5 else n for n in range(1, 40))
    given = base.in_order(found, lambda n: -n, most)
    assert next(given) == -1
    assert len(started) <= 2 * most + 1  # no more is held than that
    assert list(given) == [-n for n in range(2, 40)]


def test_a_reader_that_is_left_alone_stops_its_threads():
    called = []
    given = base.in_order((functools.partial(called.append, n) for n in range(100)), bool, 2)
    next(given)
    before = threading.active_count()
    given.close()
    assert threading.active_count() == before - 2 and len(called) < 10


def tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_webdataset(tmp_path):
    images = [pixels(4, 5, 3) for _ in range(5)]
    for shard, numbers in enumerate(([0, 1, 2], [3, 4])):
        files: dict[str, bytes] = {"__MACOSX/._x.jpg": b"?"} if shard else {}
        for number in numbers:
            files[f"./a/{number:03}.seg.TXT"] = b"a caption"
            files[f"./a/{number:03}.png"] = encoded(images[number])
            files[f"./a/{number:03}.cls"] = b"%d\n" % (number % 3)
        tar(tmp_path / "data" / f"train-{shard:04}.tar", files)
    tar(tmp_path / "data" / "val-0000.tar", {"x.jpeg": encoded(images[0], "JPEG")})
    source = open_source("webdataset", tmp_path, "train")
    found = list(source.samples)
    assert source.classes is None and [sample.label for sample in found] == [0, 1, 2, 0, 1]
    assert all(np.array_equal(s.image, i) for s, i in zip(found, images, strict=True))
    assert [s.source_id for s in found][2:4] == ["train-0000/./a/002", "train-0001/./a/003"]
    assert found[3].where.endswith("train-0001.tar: ./a/003")
    (only,) = read("webdataset", tmp_path / "data" / "val-0000.tar")
    assert only.label is None and only.image.shape == (4, 5, 3)
    names = list(raw_files("webdataset", tmp_path, "train")[1])
    assert names == ["data/train-0000.tar", "data/train-0001.tar"]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"a.cls": b"1"}, r"has no pictures \(\.cls\)"),
        ({"a.jpg": b"x", "a.png": b"x"}, r"has 2 pictures \(\.jpg, \.png\)"),
        ({"a.png": b""}, "is empty|is damaged|no image"),
        ({"a.png": encoded(pixels(2, 2)), "a.cls": b"cat"}, "has the class cat, no number"),
        ({"a.png": encoded(pixels(2, 2)), "a.cls": b"-1"}, "has the class -1, no number"),
        ({"a.png": b"PK\3\4"}, "archive|zip"),
    ],
)
def test_samples_of_a_webdataset_that_cannot_be_used_are_named(tmp_path, files, reason):
    path = tar(tmp_path / "x.tar", files | {"b.png": encoded(pixels(2, 2))})
    refused, good = read("webdataset", path)
    assert isinstance(refused, Refused) and isinstance(good, Sample)
    assert refused.where.endswith("x.tar: a") and re.search(reason, refused.reason)


def test_no_damage_of_a_tar_hides_its_samples(tmp_path):
    """Tarfile takes a damaged header, or none, for the end of the archive."""
    picture = encoded(pixels(2, 2))
    path = tar(tmp_path / "x.tar", {f"{n}.png": picture for n in range(3)})
    whole = path.read_bytes()
    assert len(read("webdataset", path)) == 3
    for place in (0, 100, 1024 + 3, 2048 + 130):  # in a header
        damaged = bytearray(whole)
        damaged[place] ^= 8
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"x\.tar: cannot be read"):
            read("webdataset", path)
    for size in range(0, 3 * 1024 + 1, 256):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"x\.tar: cannot be read"):
            read("webdataset", path)
    tar(path, {"a.png": picture, "a.PNG": picture})
    with pytest.raises(UserError, match=r"has a\.PNG twice"):
        read("webdataset", path)
    put(path, picture)
    with pytest.raises(UserError, match=r"x\.tar: "):
        read("webdataset", path)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("images_key", "labels_key"), [("images", "labels"), ("x", "y")])
def test_npz(tmp_path, monkeypatch, packed, images_key, labels_key):
    monkeypatch.setattr(base, "CHUNK_BYTES", 500)
    images, labels = pixels(50, 5, 7, 3), RNG.integers(0, 9, 50)
    save = np.savez_compressed if packed else np.savez
    save(tmp_path / "x.npz", **{images_key: images, labels_key: labels[:, None]})
    samples = read("npz", tmp_path / "x.npz")
    assert np.array_equal(np.stack([sample.image for sample in samples]), images)
    assert [sample.label for sample in samples] == labels.tolist()


def test_npz_of_grey_images_without_labels(tmp_path):
    images = pixels(5, 4, 4)
    np.savez(tmp_path / "x.npz", images)
    samples = read("npz", tmp_path / "x.npz")
    assert np.array_equal(np.stack([sample.image[..., 0] for sample in samples]), images)
    assert {sample.label for sample in samples} == {None}


def cifar(rows: int = 4) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Images [n, 32, 32, 3] and labels [n] of every batch."""
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    images = {name: pixels(rows, 32, 32, 3) for name in names}
    return images, {name: RNG.integers(0, 10, rows) for name in names}


def planes(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 3, 1, 2).reshape(len(images), 3072)


def cifar_binary(images: np.ndarray, labels: np.ndarray) -> bytes:
    return np.concatenate([labels[:, None].astype(np.uint8), planes(images)], 1).tobytes()


def python2_pickle(images: np.ndarray, labels: np.ndarray, fortran: bool = False) -> bytes:
    """A batch as Python 2 pickled it, protocol 2: byte strings, and numpy's old module names."""

    def text(data: bytes) -> bytes:
        if len(data) < 256:
            return b"U" + bytes([len(data)]) + data
        return b"T" + struct.pack("<i", len(data)) + data

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    data = planes(images)
    new = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + text(b"b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\0K\1\x87R"
    dtype += b"(K\3" + text(b"|") + b"NNN" + number(-1) * 2 + b"K\0tb"
    shape = number(len(images)) + number(3072) + b"\x86"
    raw = data.tobytes("F" if fortran else "C")
    state = b"(K\1" + shape + dtype + (b"\x88" if fortran else b"\x89") + text(raw) + b"tb"
    items = text(b"batch_label") + text(b"training batch 1 of 5")
    items += text(b"labels") + b"](" + b"".join(number(int(label)) for label in labels) + b"e"
    items += text(b"data") + new + state
    items += text(b"filenames") + b"](" + text(b"a.png") * len(labels) + b"e"
    return b"\x80\2}(" + items + b"u."


def python3_pickle(images: np.ndarray, labels: np.ndarray, protocol: int = 2) -> bytes:
    return pickle.dumps({b"data": planes(images), b"labels": labels.tolist()}, protocol)


@pytest.mark.parametrize("form", ["binary", "python2", "fortran", "python3", "protocol4"])
@pytest.mark.parametrize("packed", [False, True])
def test_cifar10(tmp_path, form, packed):
    images, labels = cifar()
    write: Callable[..., bytes] = {
        "binary": cifar_binary,
        "python2": python2_pickle,
        "fortran": lambda i, n: python2_pickle(i, n, fortran=True),
        "python3": python3_pickle,
        "protocol4": lambda i, n: python3_pickle(i, n, 4),
    }[form]
    folder = tmp_path / ("cifar-10-batches-bin" if form == "binary" else "cifar-10-batches-py")
    for name in reversed(images):
        data = write(images[name], labels[name])
        put(folder / (f"{name}.bin" if form == "binary" else name), data)
    put(folder / "readme.html", b"<html>")
    path = tmp_path
    if packed:
        path = tmp_path / "cifar.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            for file in sorted(folder.iterdir(), reverse=True):
                archive.add(file, f"{folder.name}/{file.name}")
    for split, names in (("train", list(images)[:5]), ("test", ["test_batch"])):
        samples = read("cifar10", path, split)
        expected = np.concatenate([images[name] for name in names])
        assert np.array_equal(np.stack([sample.image for sample in samples]), expected)
        assert [s.label for s in samples] == np.concatenate([labels[n] for n in names]).tolist()


def limited_folder(folder: Path) -> dict:
    for label, count in enumerate((40, 15, 5)):
        for number in range(count):
            put(folder / f"class{label}" / f"{number:02}.png", encoded(pixels(4, 4)))
    return {"source": "folder", "path": folder}


def limited_parquet(folder: Path) -> dict:
    for number in range(3):
        images, labels = [encoded(pixels(4, 4)) for _ in range(20)], [number % 2] * 20
        parquet(folder / f"train-{number:05}-of-00003.parquet", image=images, label=labels)
    return {"source": "parquet", "path": folder}


def limited_webdataset(folder: Path) -> dict:
    for shard in range(3):
        files = {}
        for n in range(20):
            files[f"{n:02}.png"] = encoded(pixels(4, 4))
            files[f"{n:02}.cls"] = b"%d" % (n % 3)
        tar(folder / f"{shard:05}.tar", files)
    return {"source": "webdataset", "path": folder}


def limited_parquet_without_labels(folder: Path) -> dict:
    parquet(folder / "x.parquet", image=[encoded(pixels(4, 4)) for _ in range(60)])
    return {"source": "parquet", "path": folder / "x.parquet"}


def limited_fashion(folder: Path) -> dict:
    fashion(folder, 60)
    return {"source": "fashion-mnist", "path": folder}


def limited_cifar(folder: Path) -> dict:
    return cifar_of(folder, lambda data: data)


def limited_patches(folder: Path) -> dict:
    for number in range(60):
        put(folder / f"{number % 7}" / f"{number:02}.png", encoded(pixels(4, 4)))
    return {"source": "patches", "path": folder, "side": 4}


@pytest.mark.parametrize(
    "make",
    [
        limited_folder,
        limited_patches,
        limited_parquet,
        limited_parquet_without_labels,
        limited_webdataset,
        limited_fashion,
        limited_cifar,
        lambda folder: {"source": "digits"},
    ],
)
def test_limit_takes_the_spread_rows_of_every_source(tmp_path, make, monkeypatch):
    settings = make(tmp_path)
    whole = read(**settings)
    labels = [-1 if sample.label is None else sample.label for sample in whole]
    expected = [whole[row] for row in spread(12, len(whole), np.array(labels))]
    count = 0
    decode = pictures.decode

    def counted(stream):
        nonlocal count
        count += 1
        return decode(stream)

    for module in ("base", "folder", "parquet"):
        monkeypatch.setattr(f"pipeline.data.sources.{module}.decode", counted)
    found = list(open_source(limit=12, **settings).samples)
    assert [(s.source_id, s.label) for s in found] == [(s.source_id, s.label) for s in expected]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(found, expected, strict=True))
    assert count in (0, 12)  # arrays are not decoded
    assert len(list(open_source(limit=9999, **settings).samples)) == len(whole)


# --- bad inputs: one line that names the file or setting, and nothing left behind ---------------

BAD: dict[str, tuple[Callable[[Path], dict], str]] = {}


def bad(fragment: str):
    """Register a maker of a bad input: called with an empty folder, gives settings of `prepare`."""

    def register(make: Callable[[Path], dict]) -> Callable[[Path], dict]:
        BAD[make.__name__] = (make, fragment)
        return make

    return register


def folder_of(folder: Path, *rest: tuple[str, bytes]) -> dict:
    for name, data in (("good.png", encoded(pixels(8, 8, 3))), *rest):
        put(folder / name, data)
    return {"source": "folder", "path": folder}


def broken_fashion(folder: Path, name: str, change: Callable[[bytes], bytes]) -> dict:
    fashion(folder, packed=name.endswith(".gz"))
    put(folder / name, change((folder / name).read_bytes()))
    return {"source": "fashion-mnist", "path": folder}


def npz_of(folder: Path, **arrays) -> dict:
    np.savez(folder / "x.npz", **arrays)
    return {"source": "npz", "path": folder / "x.npz"}


def parquet_of(folder: Path, **columns) -> dict:
    return {"source": "parquet", "path": parquet(folder / "x.parquet", **columns)}


def cifar_of(folder: Path, change: Callable[[bytes], bytes], form: str = "binary") -> dict:
    images, labels = cifar()
    write = cifar_binary if form == "binary" else python3_pickle
    for name in images:
        data = write(images[name], labels[name])
        data = change(data) if name == "data_batch_3" else data
        put(folder / (f"{name}.bin" if form == "binary" else name), data)
    return {"source": "cifar10", "path": folder}


@bad("source: 'imagenet' is unknown; it is one of digits, fashion-mnist")
def unknown_source(folder):
    return {"source": "imagenet"}


@bad("split: 'trian' is unknown")
def unknown_split(folder):
    return {"source": "digits", "split": "trian"}


@bad("resolution: 0 is not within")
def no_resolution(folder):
    return {"source": "digits", "resolution": 0}


@bad("channels: 4 is not 1 (grey), 3 (RGB)")
def four_channels_wanted(folder):
    return {"source": "digits", "channels": 4}


@bad("crop: 'left' is neither")
def unknown_crop(folder):
    return {"source": "digits", "crop": "left"}


@bad("limit: 0 is not")
def no_limit(folder):
    return {"source": "digits", "limit": 0}


@bad("duplicates: 'merge' is not")
def unknown_duplicates(folder):
    return {"source": "digits", "duplicates": "merge"}


@bad("split: digits has no split 'test'")
def digits_test(folder):
    return {"source": "digits", "split": "test"}


@bad("path: the digits come with scikit-learn")
def digits_with_path(folder):
    return {"source": "digits", "path": folder}


@bad("data.path: missing; give the path of the files of source 'folder'")
def missing_setting(folder):
    return {"source": "folder"}


@bad("data.path: nowhere does not exist")
def missing_folder(folder):
    return {"source": "folder", "path": folder / "nowhere"}


@bad("data.path: nowhere does not exist; install the Debian package dataset-fashion-mnist, or")
def missing_fashion(folder):
    return {"source": "fashion-mnist", "path": folder / "nowhere"}


@bad("has no train-images-idx3-ubyte")
def fashion_without_images(folder):
    return {"source": "fashion-mnist", "path": folder}


@bad("split: fashion-mnist has no split 'validation'")
def fashion_validation(folder):
    fashion(folder)
    return {"source": "fashion-mnist", "path": folder, "split": "validation"}


@bad("train-images-idx3-ubyte.gz: cannot be read (Compressed file ended")
def fashion_cut_gzip(folder):
    return broken_fashion(folder, "train-images-idx3-ubyte.gz", lambda data: data[:-3000])


@bad("train-images-idx3-ubyte.gz: cannot be read (Not a gzipped file")
def fashion_no_gzip(folder):
    return broken_fashion(folder, "train-images-idx3-ubyte.gz", lambda data: b"no gzip")


@bad("train-images-idx3-ubyte.gz: is a web page; fetch the file itself")
def fashion_web_page(folder):
    return broken_fashion(folder, "train-images-idx3-ubyte.gz", lambda data: b"<html>404</html>")


@bad("train-images-idx3-ubyte.gz: cannot be read (CRC check failed")
def fashion_damaged_gzip(folder):
    flip = bytes([255])
    return broken_fashion(
        folder, "train-images-idx3-ubyte.gz", lambda d: d[:-8] + flip * 4 + d[-4:]
    )


@bad("train-images-idx3-ubyte: cannot be read (the file is cut short)")
def fashion_cut(folder):
    return broken_fashion(folder, "train-images-idx3-ubyte", lambda data: data[:-1])


@bad("train-images-idx3-ubyte: cannot be read (it is longer than its header says)")
def fashion_too_long(folder):
    return broken_fashion(folder, "train-images-idx3-ubyte", lambda data: data + b"\0")


@bad("train-labels-idx1-ubyte: is not an IDX file")
def fashion_wrong_magic(folder):
    return broken_fashion(folder, "train-labels-idx1-ubyte", lambda data: b"\1" + data[1:])


@bad("has 30 images, but train-labels-idx1-ubyte has 29 labels")
def fashion_labels_of_another(folder):
    labels = idx(np.zeros(29))
    return broken_fashion(folder, "train-labels-idx1-ubyte", lambda data: labels)


@bad("row 4 has the label 77, which is not within 0..9")
def fashion_wild_label(folder):
    labels = np.zeros(30)
    labels[4] = 77
    return broken_fashion(folder, "train-labels-idx1-ubyte", lambda data: idx(labels))


@bad("train-images-idx3-ubyte: holds images of 4294967295x4294967295 pixels")
def fashion_bomb(folder):
    head = struct.pack(">4I", 0x803, 30, 2**32 - 1, 2**32 - 1)
    return broken_fashion(folder, "train-images-idx3-ubyte", lambda data: head + data[16:])


@bad("has no images; put some there")
def empty_folder(folder):
    (folder / "images").mkdir()
    return {"source": "folder", "path": folder / "images"}


@bad("has no images; put some there")
def folder_of_sidecars(folder):
    put(folder / "labels.csv", b"a,b")
    return {"source": "folder", "path": folder}


@bad("x.zip: is not a folder; unpack it")
def zipped_folder(folder):
    return {"source": "folder", "path": put(folder / "x.zip", b"PK")}


@bad("empty.png is empty (0 bytes); repair or remove it")
def zero_bytes(folder):
    return folder_of(folder, ("empty.png", b""))


@bad("cut.jpg is damaged (image file is truncated")
def cut_jpeg(folder):
    return folder_of(folder, ("cut.jpg", encoded(pixels(40, 40, 3), "JPEG")[:-200]))


@bad("noise.png is not an image that Pillow can read, or is damaged")
def noise_as_png(folder):
    return folder_of(folder, ("noise.png", bytes(range(128, 256))))


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
# What each file is called in the message, by name and bytes.
FOREIGN_FILES = {
    "is text and not an image; move it": ("text.png", "thís is no image".encode()),
    "is text in UTF-16 and not an image": ("labels", "id label\r\n".encode("utf-16")),
    "is a ZIP archive or an office document; unpack it": ("notes.docx", b"PK\3\4"),
    "is HEIC, which Pillow cannot read; convert": ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0"),
    "is HEIF, which Pillow cannot read; convert": ("a.heif", b"\0\0\0\x18ftypmif1\0\0\0\0"),
    "is SVG, a vector format; convert it": ("a.svg", b"<?xml version='1.0'?>\n<svg width='9'/>"),
    "is a Git LFS pointer and not the file itself; fetch": ("a.jpg", LFS_POINTER),
    "is a web page; fetch the file itself": ("b.jpg", b"\n<!DOCTYPE html><html>404</html>"),
    "is a video; save the frames": ("a.mp4", b"\0\0\0\x18ftypisom\0\0\0\0"),
    "is a Parquet file; set data.source to parquet": ("a.parquet", b"PAR1\0"),
    "is JPEG XL, which Pillow cannot read": ("a.jxl", b"\xff\x0a\0\0"),
}


@pytest.mark.parametrize("fragment", FOREIGN_FILES)
def test_a_file_that_is_no_picture_is_called_what_it_is(tmp_path, fragment):
    name, data = FOREIGN_FILES[fragment]
    (found,) = [s for s in read(**folder_of(tmp_path, (name, data))) if isinstance(s, Refused)]
    assert found.where == str(tmp_path / name)
    assert found.reason.startswith(fragment)


def test_avif_without_its_plugin_is_named(tmp_path, monkeypatch):
    data = encoded(pixels(8, 8, 3), "AVIF")
    monkeypatch.setattr(Image, "ID", [form for form in Image.ID if form != "AVIF"])
    with pytest.raises(pictures.Unusable, match="is AVIF, which this Pillow cannot read"):
        decoded(data)


@pytest.mark.parametrize("name", ["x.parquet", "x.npz", "x.tar.gz", "train-images-idx3-ubyte"])
def test_a_container_that_is_a_git_lfs_pointer_is_called_one(tmp_path, name):
    source = {"x.parquet": "parquet", "x.npz": "npz", "x.tar.gz": "cifar10"}.get(name)
    if source is None:
        fashion(tmp_path, packed=False)
    path = put(tmp_path / name, LFS_POINTER)
    with pytest.raises(UserError, match=f"{name}: is a Git LFS pointer and not the file itself; "):
        read(source or "fashion-mnist", path if source else tmp_path)


@pytest.mark.parametrize("source", ["folder", "parquet"])
@pytest.mark.parametrize("several", [False, True])
def test_what_save_to_disk_writes_is_named(tmp_path, source, several):
    folder = tmp_path / "train" if several else tmp_path
    for name in ("data-00000-of-00001.arrow", "dataset_info.json", "state.json"):
        put(folder / name, b"{}")
    if several:
        put(tmp_path / "dataset_dict.json", b"{}")
    with pytest.raises(UserError, match=r"is what `save_to_disk` writes \(Arrow files\)"):
        read(source, tmp_path)


@bad("moving.gif has 3 frames; save the one wanted as a file of its own")
def animated_gif(folder):
    frames = [Image.fromarray(pixels(8, 8)) for _ in range(3)]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    return folder_of(folder, ("moving.gif", stream.getvalue()))


@bad("pages.tiff has 2 frames")
def pages(folder):
    stream = io.BytesIO()
    page = Image.fromarray(pixels(8, 8))
    page.save(stream, "TIFF", save_all=True, append_images=[page])
    return folder_of(folder, ("pages.tiff", stream.getvalue()))


@bad("bomb.png has more than 67,108,864 pixels")
def bomb(folder):
    return folder_of(folder, ("bomb.png", raw_png(60000, 60000, 8, 0, b"")))


@bad("smaller.png has 10000x10000 pixels, more than 67,108,864")
def smaller_bomb(folder):
    return folder_of(folder, ("smaller.png", raw_png(10000, 10000, 8, 0, b"")))


@bad("text.png is damaged (Decompressed data too large")
def text_bomb(folder):
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**24)))
    return folder_of(folder, ("text.png", raw_png(1, 1, 8, 0, b"\0\0", text)))


@bad("range.tiff has floating-point pixels, whose range is not known")
def float_tiff(folder):
    tiff = encoded(np.ones((8, 8), np.float32), "TIFF")
    return folder_of(folder, ("range.tiff", tiff))


@bad("range.tiff has 32-bit or signed pixels, whose range is not known")
def long_tiff(folder):
    return folder_of(folder, ("range.tiff", encoded(np.ones((8, 8), np.int32), "TIFF")))


@bad("scan.tiff has 12-bit pixels; convert it to 8 or 16 bits")
def tiff_of_12_bits(folder):
    tags = {256: 2, 257: 2, 258: 12, 259: 1, 262: 1, 273: 122, 277: 1, 278: 2, 279: 6}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return folder_of(folder, ("scan.tiff", head + entries + bytes(4) + bytes(6)))


@bad("print.tiff has LAB colours; convert it to RGB")
def lab_tiff(folder):
    stream = io.BytesIO()
    Image.new("LAB", (8, 8)).save(stream, "TIFF")
    return folder_of(folder, ("print.tiff", stream.getvalue()))


@bad("drawing.eps is EPS, a vector format; convert it to PNG")
def vectors(folder):
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    return folder_of(folder, ("drawing.eps", program))


@bad("gone.png cannot be opened (No such file or directory)")
def broken_link(folder):
    settings = folder_of(folder)
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    return settings


@bad("pipe.png is not a regular file")
def named_pipe(folder):
    settings = folder_of(folder)
    os.mkfifo(folder / "pipe.png")
    return settings


@bad("loop: is a link to a folder that holds it")
def looping_link(folder):
    put(folder / "class" / "a.png", encoded(pixels(8, 8)))
    (folder / "class" / "loop").symlink_to(folder / "class")
    return {"source": "folder", "path": folder}


@bad("has a name that is not UTF-8; rename it")
def wild_name(folder):
    settings = folder_of(folder)
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).write_bytes(encoded(pixels(8, 8, 3)))
    return settings


@bad(r"two\nlines.png")
def name_of_two_lines(folder):
    return folder_of(folder, ("two\nlines.png", b"no image"))


@bad("has the file good.png beside the folder cats; put all images in class folders, or none")
def files_beside_classes(folder):
    return folder_of(folder, ("cats/a.png", encoded(pixels(8, 8, 3))))


@bad("dogs is a class folder without images")
def empty_class(folder):
    put(folder / "cats" / "a.png", encoded(pixels(8, 8)))
    put(folder / "dogs" / "note.txt", b"")
    return {"source": "folder", "path": folder}


@bad("is not divided into splits; give the path of the images of 'test'")
def folder_without_splits(folder):
    return {**folder_of(folder), "split": "test"}


@bad("has test, val, not one 'train'")
def folder_without_this_split(folder):
    for name in ("test", "val"):
        put(folder / name / "a.png", encoded(pixels(8, 8)))
    return {"source": "folder", "path": folder}


@bad("has Test, which is the name of a split, beside cat; give the path of the folder to read")
def split_beside_classes(folder):
    classes_below(folder, folder / "Test")
    for name in ("cat", "dog"):
        (folder / name / f"{folder.name}.png").rename(folder / name / "1.png")
    return {"source": "folder", "path": folder}


@bad("has test, which is the name of a split, beside labels.mat; give the path")
def split_beside_a_file(folder):
    classes_below(folder / "train", folder / "test")
    put(folder / "labels.mat", b"MATLAB")
    return {"source": "folder", "path": folder}


@bad("bottle: has test, which is the name of a split, inside of a class or split; give the path")
def splits_in_classes(folder):
    classes_below(folder / "bottle", names=("test", "train"))
    return {"source": "folder", "path": folder}


@bad("has Train, training, not one 'train'; give the path of the folder to read")
def split_that_is_there_twice(folder):
    classes_below(folder / "Train", folder / "training")
    return {"source": "folder", "path": folder}


@bad("good.png is 8x8, but other.png is 6x6; set data.resolution")
def mixed_sizes(folder):
    return folder_of(folder, ("other.png", encoded(pixels(6, 6, 3))))


@bad("good.png has 3 channels, but grey.png has 1; set data.channels")
def mixed_channels(folder):
    return folder_of(folder, ("grey.png", encoded(pixels(8, 8))))


@bad("wide.png is 9x8, not square (set crop to 'center' to cut it)")
def not_square(folder):
    return {**folder_of(folder, ("wide.png", encoded(pixels(8, 9, 3)))), "crop": "none"}


@bad("twin.png is an exact copy of")
def twins(folder):
    settings = folder_of(folder)
    put(folder / "twin.png", (folder / "good.png").read_bytes())
    return {**settings, "duplicates": "refuse"}


@bad("has no column image or img, but picture; rename")
def parquet_without_images(folder):
    return parquet_of(folder, picture=[b"1"])


@bad("column image is string; it must hold encoded images")
def parquet_of_paths(folder):
    return parquet_of(folder, image=["a.png"])


@bad("column image is list<element: int64>; it must hold")
def parquet_of_flat_lists(folder):
    return parquet_of(folder, image=[[1, 2, 3, 4]])


@bad("row 1 has no image (null)")
def parquet_null(folder):
    return parquet_of(folder, image=[encoded(pixels(4, 4)), None])


@bad("row 0 has no image bytes, only the path cat.png; embed the image in the file")
def parquet_linked(folder):
    return parquet_of(folder, image=[as_struct(None, "cat.png"), as_struct(b"", None)])


@bad("row 1 is damaged")
def parquet_damaged_image(folder):
    return parquet_of(folder, image=[encoded(pixels(4, 4)), encoded(pixels(30, 30))[:300]])


@bad("row 0 has values 0..256, outside 0..255")
def parquet_range(folder):
    return parquet_of(folder, image=[[[0, 256]]])


@bad("row 0 is not a full array: its lists differ in length")
def parquet_ragged(folder):
    return parquet_of(folder, image=[[[0, 1], [2]]])


@bad("row 0 has pixels without a value (null)")
def parquet_null_pixel(folder):
    return parquet_of(folder, image=[[[0, None]]])


@bad("row 0 has shape 3x2x2; it must be H,W or H,W,C with C = 1 or 3, C last")
def parquet_channels_first(folder):
    return parquet_of(folder, image=[np.zeros((3, 2, 2), int).tolist()])


@bad("column label is double; it must hold whole numbers or names")
def parquet_float_labels(folder):
    return parquet_of(folder, image=[encoded(pixels(4, 4))], label=[0.5])


@bad("row 1 has no label, but others have")
def parquet_some_labels(folder):
    return parquet_of(folder, image=[encoded(pixels(4, 4))] * 2, label=[1, None])


@bad("row 0 has the label -2, which is not within")
def parquet_negative_label(folder):
    return parquet_of(folder, image=[encoded(pixels(4, 4))], label=[-2])


@bad("x.parquet: cannot be read")
def parquet_cut(folder):
    settings = parquet_of(folder, image=[encoded(pixels(50, 50))] * 9)
    put(settings["path"], settings["path"].read_bytes()[:-20])
    return settings


@bad("train-00001-of-00003: the shard is missing")
def parquet_missing_shard(folder):
    for number in (0, 2):
        parquet(folder / f"train-{number:05}-of-00003.parquet", image=[encoded(pixels(4, 4))])
    return {"source": "parquet", "path": folder}


@bad("b.parquet: has other columns or class names than a.parquet")
def parquet_of_two_kinds(folder):
    parquet(folder / "a.parquet", image=[encoded(pixels(4, 4))])
    parquet(folder / "b.parquet", img=[encoded(pixels(4, 4))])
    return {"source": "parquet", "path": folder}


def shard(path: Path) -> None:
    parquet(path, image=[encoded(pixels(4, 4))], label=[0])


@bad("holds several data sets (configurations): other, plain_text; give the path of one of them")
def parquet_of_two_configurations(folder):
    for name in ("plain_text", "other"):
        shard(folder / name / "train-00000-of-00001.parquet")
        shard(folder / name / "test-00000-of-00001.parquet")
    return {"source": "parquet", "path": folder}


@bad("holds several data sets (configurations): config-a, config-b; give the path of one of them")
def parquet_of_two_folders(folder):
    for name in ("config-a", "config-b"):
        shard(folder / name / "0000.parquet")
    return {"source": "parquet", "path": folder}


@bad("holds several data sets (configurations): a, b; give the path of one of them")
def parquet_of_two_configurations_by_split(folder):
    for name in ("a", "b"):
        shard(folder / name / "train" / "0000.parquet")
    return {"source": "parquet", "path": folder}


@bad("holds several data sets (configurations): cifar10, cifar100; give the path of one of them")
def parquet_of_two_names(folder):
    for name in ("cifar10", "cifar100"):
        shard(folder / f"{name}-train.parquet")
    return {"source": "parquet", "path": folder}


@bad("b.parquet: column label holds numbers, but names in a.parquet; give shards of one dataset")
def parquet_of_names_and_numbers(folder):
    parquet(folder / "a.parquet", image=[encoded(pixels(4, 4))], label=["cat"])
    parquet(folder / "b.parquet", image=[encoded(pixels(4, 4))], label=[0])
    return {"source": "parquet", "path": folder}


@bad("b.parquet: column label holds names, but numbers in a.parquet; give shards of one dataset")
def parquet_of_numbers_and_names(folder):
    parquet(folder / "a.parquet", image=[encoded(pixels(4, 4))], label=[0])
    parquet(folder / "b.parquet", image=[encoded(pixels(4, 4))], label=["cat"])
    return {"source": "parquet", "path": folder}


@bad("column label has 'bird', which is not among the class names that the file notes")
def parquet_of_a_name_not_noted(folder):
    names = {"info": {"features": {"label": {"names": ["cat", "dog"]}}}}
    path = folder / "x.parquet"
    parquet(path, names, image=[encoded(pixels(4, 4))] * 2, label=["cat", "bird"])
    return {"source": "parquet", "path": path}


@bad("has no 'test' (train)")
def parquet_without_this_split(folder):
    parquet(folder / "train.parquet", image=[encoded(pixels(4, 4))])
    return {"source": "parquet", "path": folder, "split": "test"}


@bad("more.parquet: is named after no split, other files are")
def parquet_of_unclear_split(folder):
    for name in ("more", "train"):
        parquet(folder / f"{name}.parquet", image=[encoded(pixels(4, 4))])
    return {"source": "parquet", "path": folder}


@bad("has no .parquet file; give the folder of the shards")
def parquet_nowhere(folder):
    return {"source": "parquet", "path": folder}


@bad("x.npz: has no array images, x or arr_0, but x_train, x_test")
def npz_other_keys(folder):
    return npz_of(folder, x_train=pixels(2, 4, 4), x_test=pixels(2, 4, 4))


@bad("array images is float64; save it as uint8")
def npz_floats(folder):
    return npz_of(folder, images=np.zeros((2, 4, 4)))


@bad("array images is object; save it as uint8")
def npz_pickled(folder):
    return npz_of(folder, images=np.array([[{}]], object))


@bad("array images has shape (2, 3, 4, 4); it must be N,H,W or N,H,W,C with C = 1 or 3, C last")
def npz_channels_first(folder):
    return npz_of(folder, images=pixels(2, 3, 4, 4))


@bad("array images is in Fortran order; use np.ascontiguousarray")
def npz_fortran(folder):
    return npz_of(folder, images=np.asfortranarray(pixels(2, 4, 4)))


@bad("array labels is int64 of shape (3,); it must hold whole numbers, one for each of the 2")
def npz_labels_of_another(folder):
    return npz_of(folder, images=pixels(2, 4, 4), labels=np.arange(3))


@bad("array y is float64 of shape (2,)")
def npz_float_labels(folder):
    return npz_of(folder, x=pixels(2, 4, 4), y=np.zeros(2))


@bad("has the label 100000, which is not within 0..65535")
def npz_wild_label(folder):
    return npz_of(folder, x=pixels(1, 4, 4), y=np.array([100000]))


@bad("has no images; put some there")
def npz_empty(folder):
    return npz_of(folder, images=pixels(0, 4, 4))


@bad("x.npz: holds images of 0x4 pixels")
def npz_without_pixels(folder):
    return npz_of(folder, images=pixels(3, 0, 4))


@bad("x.npz: cannot be read (File is not a zip file); put a sound copy in its place")
def npz_cut(folder):
    settings = npz_of(folder, images=pixels(20, 8, 8))
    put(settings["path"], settings["path"].read_bytes()[:-30])
    return settings


@bad("x.npz: cannot be read (Bad CRC-32 for file 'images.npy')")
def npz_damaged(folder):
    settings = npz_of(folder, images=pixels(20, 8, 8))
    data = bytearray(settings["path"].read_bytes())
    data[600] ^= 1
    put(settings["path"], bytes(data))
    return settings


@bad("x.npz: cannot be read (the file is cut short)")
def npz_header_lies(folder):
    array = io.BytesIO()
    np.save(array, pixels(20, 8, 8))
    with zipfile.ZipFile(folder / "x.npz", "w") as archive:
        archive.writestr("images.npy", array.getvalue()[:-64])
    return {"source": "npz", "path": folder / "x.npz"}


@bad("has no data_batch_1, data_batch_2")
def cifar_nowhere(folder):
    return {"source": "cifar10", "path": folder}


@bad("has no data_batch_3.bin; give the folder or .tar.gz")
def cifar_batch_missing(folder):
    settings = cifar_of(folder, lambda data: data)
    (folder / "data_batch_3.bin").unlink()
    return settings


@bad("data_batch_3.bin: has 12291 bytes, not rows of 3073")
def cifar_cut(folder):
    return cifar_of(folder, lambda data: data[:-1])


@bad("data_batch_3.bin row 0 has the label 200, which is not within 0..9")
def cifar_wild_label(folder):
    return cifar_of(folder, lambda data: bytes([200]) + data[1:])


@bad("data_batch_3: is a pickle that asks for posix.system; refused")
def cifar_evil_pickle(folder):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {folder / 'output' / 'ran'}",)

    return cifar_of(folder, lambda data: pickle.dumps({b"data": Evil()}), "python")


@bad("data_batch_3: is a pickle that asks for the codec 'zip'; refused")
def cifar_pickle_with_codec(folder):
    return cifar_of(
        folder, lambda data: b"\x80\2c_codecs\nencode\nX\1\0\0\0aX\3\0\0\0zip\x86R.", "py"
    )


@bad("data_batch_3: is not a batch of CIFAR-10: its data is O8, not u1")
def cifar_pickled_objects(folder):
    batch = {b"data": np.array([{}], object), b"labels": [0]}
    return cifar_of(folder, lambda data: pickle.dumps(batch, 4), "python")


@bad("data_batch_3: is not a batch of CIFAR-10: its labels do not fit its data")
def cifar_pickle_short_of_labels(folder):
    batch = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}
    return cifar_of(folder, lambda data: pickle.dumps(batch, 4), "python")


@bad("data_batch_3: is not a batch of CIFAR-10, or is cut short")
def cifar_pickle_cut(folder):
    return cifar_of(folder, lambda data: data[:-50], "python")


@bad("data_batch_3: is not a batch of CIFAR-10, or is cut short")
def cifar_pickle_of_huge_array(folder):
    state = pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 0]}, 2)
    return cifar_of(folder, lambda data: state.replace(b"M\0\x0c", b"M\xff\xff"), "python")


def patches_of(folder: Path, side: int | None = 16, **files: bytes) -> dict:
    for name, data in {"good": encoded(pixels(40, 40, 3)), **files}.items():
        put(folder / f"{name}.png", data)
    return {"source": "patches", "path": folder, "side": side}


@bad("small.png has 15x40 pixels, less than data.side (16) asks for; repair or remove it")
def patches_of_a_small_photograph(folder):
    return patches_of(folder, small=encoded(pixels(40, 15, 3)))


@bad("small.png has 15x40 pixels, less than data.side (16) asks for; repair or remove it")
def some_patches_of_a_small_photograph(folder):
    return patches_of(folder, small=encoded(pixels(40, 15, 3))) | {"limit": 2}


@bad("2 images cannot be used: cut.png is damaged")
def patches_of_damaged_photographs(folder):
    cut = encoded(pixels(40, 40, 3))[:2000]
    return patches_of(folder, cut=cut, drawing=b"<svg></svg>") | {"limit": 4}


@bad("has a name that is not UTF-8; rename it")
def patches_of_a_name_that_is_not_utf8(folder):
    put(Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")), encoded(pixels(40, 40, 3)))
    return patches_of(folder) | {"limit": 2}


@bad("has no images; put some there")
def patches_of_nothing(folder):
    put(folder / "notes.txt", b"none yet")
    return {"source": "patches", "path": folder, "side": 16}


@bad("raw is not divided into splits; give the path of the images of 'test'")
def patches_of_no_such_split(folder):
    return patches_of(folder) | {"split": "test"}


@bad("x.png: is not a folder; unpack it")
def patches_of_a_file(folder):
    put(folder / "x.png", encoded(pixels(40, 40)))
    return {"source": "patches", "path": folder / "x.png", "side": 16}


@bad("data.side: missing; `patches` are squares of so many pixels")
def patches_of_no_side(folder):
    return patches_of(folder, None)


@bad("data.side: 16: only `patches` have one; leave it out")
def a_side_of_a_folder(folder):
    return patches_of(folder) | {"source": "folder"}


@bad("x.tar.gz: is not a .tar.gz archive")
def cifar_no_archive(folder):
    return {"source": "cifar10", "path": put(folder / "x.tar.gz", b"no archive")}


@bad("x.tar.gz: cannot be read (Compressed file ended")
def cifar_cut_archive(folder):
    with tarfile.open(folder / "whole.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
        member.size = 3073 * 40
        archive.addfile(member, io.BytesIO(pixels(member.size).tobytes()))
    data = (folder / "whole.tar.gz").read_bytes()
    return {"source": "cifar10", "path": put(folder / "x.tar.gz", data[: len(data) // 2])}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_line(tmp_path, name):
    make, fragment = BAD[name]
    raw, output = tmp_path / "raw", tmp_path / "output"
    raw.mkdir()
    output.mkdir()
    with pytest.raises(UserError) as refusal:
        prepare(output / "images.parquet", **make(raw))
    message = str(refusal.value).replace(f"{raw}/", "")
    assert fragment in message
    assert message.isprintable()
    assert list(output.iterdir()) == []


def test_all_damaged_images_are_listed_up_to_ten(tmp_path):
    raw = tmp_path / "raw"
    for number in range(14):
        put(raw / f"{number:02}.png", b"" if number else encoded(pixels(8, 8)))
    with pytest.raises(UserError) as refusal:
        prepare(tmp_path / "x.parquet", source="folder", path=raw)
    message = str(refusal.value)
    assert f"{raw}: 13 images cannot be used: {raw / '01.png'} is empty (0 bytes); " in message
    assert message.count("is empty") == 10
    assert message.endswith("; and 3 more; repair or remove them")


def test_raw_data_of_hard_kinds_makes_one_dataset(tmp_path):
    """Mixed sizes, colours, depths and orientations, with a resolution and channels given."""
    raw = tmp_path / "raw"
    exif = Image.Exif()
    exif[0x0112] = 6
    put(raw / "a.jpg", encoded(pixels(40, 30, 3), "JPEG", exif=exif))
    put(raw / "b.png", encoded(RNG.integers(0, 2**16, (50, 20), dtype=np.uint16)))
    put(raw / "c.png", encoded(pixels(9, 9, 4)))
    put(raw / "d.gif", encoded(pixels(16, 16), "GIF"))
    out = tmp_path / "x.parquet"
    info = prepare(out, source="folder", path=raw, resolution=16, channels=3)
    assert (info.rows, info.resolution, info.channels, info.classes) == (4, 16, 3, None)
    open_dataset(out).verify()
