"""The normal form against numpy, hashlib and files damaged on purpose."""

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.data import dataset
from pipeline.data.dataset import open_dataset, prepare
from pipeline.errors import UserError
from pipeline.rows import spread

RNG = np.random.default_rng(1)


def npz(folder: Path, images: np.ndarray, labels: np.ndarray | None = None) -> Path:
    path = folder / "raw.npz"
    np.savez(path, images=images, **({} if labels is None else {"labels": labels}))
    return path


@pytest.fixture
def images() -> np.ndarray:
    return RNG.integers(0, 256, (100, 6, 6, 3), dtype=np.uint8)


@pytest.fixture
def labels() -> np.ndarray:
    return RNG.integers(0, 5, 100)


@pytest.fixture
def small_groups(monkeypatch):
    monkeypatch.setattr(dataset, "GROUP_ROWS", 7)


def prepared(folder: Path, images: np.ndarray, labels: np.ndarray | None = None, **settings):
    out = folder / "images.parquet"
    prepare(out, source="npz", path=npz(folder, images, labels), **settings)
    return open_dataset(out)


def shaped(folder: Path, image: np.ndarray, **settings) -> np.ndarray:
    """One image [H, W] or [H, W, C] through the normal form, as [C, R, R]."""
    return prepared(folder, image[None], **settings).images(0, 1)[0]


# --- reading back -------------------------------------------------------------------------------


def test_rows_come_back_as_they_were(tmp_path, images, labels, small_groups):
    data = prepared(tmp_path, images, labels)
    assert len(data) == 100
    expected = images.transpose(0, 3, 1, 2)
    for start, stop in ((0, 100), (0, 0), (6, 8), (7, 14), (13, 70), (99, 100), (100, 100)):
        assert np.array_equal(data.images(start, stop), expected[start:stop])
        assert np.array_equal(data.labels(start, stop), labels[start:stop])
        assert data.source_ids(start, stop) == [str(row) for row in range(start, stop)]
    assert data.images(0, 5).dtype == np.uint8
    assert data.labels(0, 5).dtype == np.int64
    assert data.info.classes == ("0", "1", "2", "3", "4")
    data.verify()


def test_without_labels(tmp_path, images):
    data = prepared(tmp_path, images)
    assert data.info.classes is None
    assert data.labels(0, 10) is None
    data.verify()


def test_rows_out_of_range_are_a_mistake_of_the_caller(tmp_path, images, labels):
    data = prepared(tmp_path, images, labels)
    for start, stop in ((-1, 5), (5, 4), (0, 101)):
        for method in (data.images, data.labels, data.source_ids):
            with pytest.raises(IndexError):
                method(start, stop)


def test_the_file_is_plain_parquet(tmp_path, images, labels):
    """Columns and metadata as documented, read with nothing of ours."""
    table = pq.read_table(prepared(tmp_path, images, labels).path)
    assert table.schema.field("image").type == pa.list_(
        pa.field("element", pa.uint8(), nullable=False), 108
    )
    assert table.schema.field("label").type == pa.int32()
    assert table.schema.field("source_id").type == pa.string()
    assert table["image"].to_pylist() == images.reshape(100, -1).tolist()
    info = json.loads(table.schema.metadata[b"tspace"])
    assert (info["resolution"], info["channels"], info["rows"]) == (6, 3, 100)
    assert info["classes"] == ["0", "1", "2", "3", "4"]
    assert info["settings"]["source"] == "npz"
    assert info["settings"]["path"] == "raw.npz"


# --- digest, mean and standard deviation --------------------------------------------------------


def digest_by_hand(images: np.ndarray, labels: list[int], ids: list[str]) -> str:
    parts = {
        "image": images.tobytes(),
        "label": b"".join(label.to_bytes(4, "little", signed=True) for label in labels),
        "source_id": b"".join(len(i.encode()).to_bytes(4, "little") + i.encode() for i in ids),
    }
    parts = {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}
    parts |= {"shape": [images.shape[1], images.shape[3]], "rows": len(images)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def test_digest_is_over_pixels_labels_and_ids(tmp_path, images, labels, small_groups):
    ids = [str(row) for row in range(100)]
    found = prepared(tmp_path, images, labels).info.digest
    assert found == digest_by_hand(images, labels.tolist(), ids)
    assert prepared(tmp_path, images).info.digest == digest_by_hand(images, [-1] * 100, ids)


def test_digest_does_not_depend_on_parquet(tmp_path, images, labels, monkeypatch):
    data = prepared(tmp_path, images, labels)
    other = tmp_path / "other.parquet"
    pq.write_table(pq.read_table(data.path), other, row_group_size=9, compression="snappy")
    again = open_dataset(other)
    again.verify()
    assert again.info == data.info
    monkeypatch.setattr(dataset, "GROUP_ROWS", 3)
    assert prepared(tmp_path, images, labels).info == data.info


def test_digest_changes_with_a_pixel_a_label_the_order_and_the_shape(tmp_path, images, labels):
    digests = {prepared(tmp_path, images, labels).info.digest}
    changed = images.copy()
    changed[50, 3, 3, 1] ^= 1
    digests.add(prepared(tmp_path, changed, labels).info.digest)
    digests.add(prepared(tmp_path, images[::-1], labels[::-1]).info.digest)
    digests.add(prepared(tmp_path, images, (labels + 1) % 5).info.digest)
    digests.add(prepared(tmp_path, images[:99], labels[:99]).info.digest)
    assert len(digests) == 5


def test_the_file_is_the_same_wherever_it_is_made(tmp_path, images, labels):
    files = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        files.append(prepared(tmp_path / name, images, labels).path.read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize("value", [None, 0, 255])
def test_mean_and_std_are_those_of_numpy(tmp_path, images, small_groups, value):
    if value is not None:
        images[:] = value
    info = prepared(tmp_path, images).info
    flat = images.reshape(-1, 3).astype(np.float64)
    assert np.allclose(info.mean, flat.mean(0), rtol=1e-15, atol=0)
    assert np.allclose(info.std, flat.std(0), rtol=1e-13, atol=0)


# --- crop, size and channels --------------------------------------------------------------------


def test_centre_crop(tmp_path):
    wide = RNG.integers(0, 256, (4, 9, 3), dtype=np.uint8)
    assert np.array_equal(shaped(tmp_path, wide), wide[:, 2:6].transpose(2, 0, 1))
    tall = RNG.integers(0, 256, (8, 5), dtype=np.uint8)
    assert np.array_equal(shaped(tmp_path, tall)[0], tall[1:6])


def test_scaling_down_does_not_alias(tmp_path):
    """Stripes and checks finer than the target's pixels become their mean, not stripes or 0."""
    rows, columns = np.indices((96, 96))
    for pattern in (rows % 2, (rows + columns) % 2, columns % 3 == 0):
        small = shaped(tmp_path, (pattern * 255).astype(np.uint8), resolution=8)
        mean = 255 * pattern.mean()
        assert np.abs(small.astype(float) - mean).max() <= 8


def test_scaling_keeps_what_is_smooth(tmp_path):
    rows, columns = np.indices((64, 64)) / 63
    field = 60 + 120 * rows + 60 * columns * rows
    for resolution in (16, 32, 200):
        # Pixel centres of the target in the source's pixels; edges aside, where filters are cut.
        at = (np.arange(resolution) + 0.5) * 64 / resolution - 0.5
        y, x = np.meshgrid(at / 63, at / 63, indexing="ij")
        expected = 60 + 120 * y + 60 * x * y
        got = shaped(tmp_path, np.rint(field).astype(np.uint8), resolution=resolution)[0]
        edge = resolution // 8
        inner = (slice(edge, -edge), slice(edge, -edge))
        assert np.abs(got[inner] - expected[inner]).max() <= 1.5


def test_own_size_is_not_resampled(tmp_path, images):
    data = prepared(tmp_path, images, resolution=6, channels=3)
    assert np.array_equal(data.images(0, 100), images.transpose(0, 3, 1, 2))


def test_grey_is_luma_and_rgb_of_grey_is_the_same_thrice(tmp_path, images):
    grey = prepared(tmp_path, images, channels=1).images(0, 100)[:, 0]
    assert np.abs(grey - images @ [0.299, 0.587, 0.114]).max() <= 1
    colour = prepared(tmp_path, grey, channels=3).images(0, 100)
    assert np.array_equal(colour, np.stack([grey] * 3, 1))


# --- limit, duplicates, progress ----------------------------------------------------------------


def test_limit_spreads_over_classes_in_the_order_of_the_source(tmp_path, images):
    labels = np.sort(RNG.integers(0, 4, 100))
    data = prepared(tmp_path, images, labels, limit=20)
    rows = [int(name) for name in data.source_ids(0, len(data))]
    assert rows == spread(20, 100, labels).tolist()
    assert np.array_equal(data.images(0, 20), images[rows].transpose(0, 3, 1, 2))
    shares = np.bincount(labels) / 5
    assert np.abs(np.bincount(data.labels(0, 20)) - shares).max() < 1
    assert prepared(tmp_path, images, labels, limit=1000).info.rows == 100


def test_limit_without_labels_is_not_the_first_rows(tmp_path, images):
    data = prepared(tmp_path, images, limit=20)
    assert data.source_ids(0, 20) == [str(row) for row in spread(20, 100)]
    assert data.info.settings["limit"] == 20


def test_duplicates_are_counted_kept_dropped_or_refused(tmp_path, images):
    images[[20, 30]] = images[3]
    images[99] = images[98]
    data = prepared(tmp_path, images)
    assert (data.info.rows, data.info.duplicates) == (100, 3)
    data = prepared(tmp_path, images, duplicates="drop")
    assert (data.info.rows, data.info.duplicates) == (97, 3)
    kept = [row for row in range(100) if row not in (20, 30, 99)]
    assert data.source_ids(0, 97) == [str(row) for row in kept]
    assert np.array_equal(data.images(0, 97), images[kept].transpose(0, 3, 1, 2))
    with pytest.raises(UserError) as refusal:
        prepared(tmp_path, images, duplicates="refuse")
    message = str(refusal.value)
    assert "raw.npz: 3 images cannot be used: " in message
    assert "raw.npz row 30 is an exact copy of " in message
    assert message.endswith("or set duplicates to 'keep' or 'drop'")


def test_limit_is_chosen_before_copies_are_dropped(tmp_path, images):
    images[:] = images[0]
    assert prepared(tmp_path, images, duplicates="drop", limit=5).info.rows == 1


def test_progress(tmp_path, images):
    seen: list[int] = []
    prepared(tmp_path, np.tile(images, (6, 1, 1, 1)), progress=seen.append)
    assert seen == [256, 512, 600]


# --- all or nothing -----------------------------------------------------------------------------


def test_an_output_is_replaced_only_by_a_complete_one(tmp_path, images):
    data = prepared(tmp_path, images)
    before = data.path.read_bytes()
    raw = tmp_path / "raw"
    raw.mkdir()
    for number in range(20):
        Image.fromarray(images[number]).save(raw / f"{number:02}.png")
    (raw / "99.png").write_bytes(b"")
    with pytest.raises(UserError):
        prepare(data.path, source="folder", path=raw)
    assert data.path.read_bytes() == before
    (raw / "99.png").unlink()
    prepare(data.path, source="folder", path=raw)
    assert len(open_dataset(data.path)) == 20
    assert sorted(os.listdir(tmp_path)) == ["images.parquet", "raw", "raw.npz"]


def test_an_interrupted_run_leaves_nothing(tmp_path, images, small_groups):
    def interrupt(rows: int) -> None:
        raise KeyboardInterrupt

    (tmp_path / "out").mkdir()
    path = npz(tmp_path, np.tile(images, (3, 1, 1, 1)))
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "out/x.parquet", source="npz", path=path, progress=interrupt)
    assert os.listdir(tmp_path / "out") == []


def test_a_killed_run_leaves_nothing_at_the_name_and_the_next_cleans_up(tmp_path, images):
    path = npz(tmp_path, np.tile(images, (3, 1, 1, 1)))
    out = tmp_path / "out" / "x.parquet"
    program = (
        "import os, signal, sys; from pathlib import Path; "
        "from pipeline.data.dataset import prepare\n"
        "prepare(Path(sys.argv[1]), source='npz', path=Path(sys.argv[2]),"
        " progress=lambda rows: os.kill(os.getpid(), signal.SIGKILL))"
    )
    root = Path(dataset.__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", program, out, path], cwd=root)
    assert run.returncode == -signal.SIGKILL
    assert not out.exists()
    assert len(os.listdir(out.parent)) == 1
    prepare(out, source="npz", path=path)
    assert os.listdir(out.parent) == ["x.parquet"]


def test_a_full_disk_is_named(tmp_path):
    images = RNG.integers(0, 256, (5000, 16, 16), dtype=np.uint8)
    path = npz(tmp_path, images)
    (tmp_path / "out").mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"out/x\.parquet: cannot be written \(File too large"):
            prepare(tmp_path / "out/x.parquet", source="npz", path=path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path / "out") == []


def test_rows_are_gathered_while_others_are_written(tmp_path, images, small_groups, monkeypatch):
    """One group ahead and no more, and the file is the same however slow the writing is."""
    plain = prepared(tmp_path, images).path.read_bytes()
    write, add, writing = dataset._Writer._write, dataset._Writer.add, threading.Event()
    behind: list[int] = []  # rows gathered that are not hashed yet
    gathered = 0

    def slow(self, *group):
        assert threading.current_thread() is not threading.main_thread()
        writing.set()
        time.sleep(0.01)
        write(self, *group)

    def seen(self, *row):
        nonlocal gathered
        add(self, *row)
        gathered += 1
        behind.append(gathered - self.tally.rows)

    monkeypatch.setattr(dataset._Writer, "_write", slow)
    monkeypatch.setattr(dataset._Writer, "add", seen)
    assert prepared(tmp_path, images).path.read_bytes() == plain
    assert writing.is_set() and 7 < max(behind) <= 14


@pytest.mark.parametrize("group", [1, 3, 15])  # of fifteen, the last of which is short
def test_what_fails_while_writing_is_told_whenever_it_was(
    tmp_path, images, small_groups, monkeypatch, group
):
    (tmp_path / "out").mkdir()
    before, write, calls = set(threading.enumerate()), dataset._Writer._write, 0

    def fails(self, *rows):
        nonlocal calls
        calls += 1
        if calls == group:
            with dataset._writing(self.out):
                raise OSError(28, "No space left on device")
        write(self, *rows)

    monkeypatch.setattr(dataset._Writer, "_write", fails)
    path = npz(tmp_path, images)
    with pytest.raises(UserError, match=r"x\.parquet: cannot be written \(No space left"):
        prepare(tmp_path / "out/x.parquet", source="npz", path=path)
    assert os.listdir(tmp_path / "out") == [] and calls == group
    assert set(threading.enumerate()) <= before  # no thread is left that would write


def test_an_output_that_is_a_folder_is_refused(tmp_path, images):
    (tmp_path / "images.parquet").mkdir()
    with pytest.raises(UserError, match="is a folder; remove it, or write elsewhere"):
        prepared(tmp_path, images)


# --- damaged, foreign and edited files ----------------------------------------------------------


def test_damage_anywhere_is_noticed(tmp_path, images, labels, small_groups):
    """Whatever byte is wrong, opening or verifying says so, or nothing a user sees differs."""
    data = prepared(tmp_path, images[:20], labels[:20])
    sound = data.path.read_bytes()
    expected = (data.info, data.images(0, 20).tobytes(), data.labels(0, 20).tolist())
    other = tmp_path / "other.parquet"
    noticed = 0
    positions = range(0, len(sound), 17)
    for position in positions:
        damaged = bytearray(sound)
        damaged[position] ^= 0x24
        other.write_bytes(damaged)
        try:
            found = open_dataset(other)
            found.verify()
        except UserError as error:
            assert "other.parquet: " in str(error)
            noticed += 1
        else:
            assert (found.info, found.images(0, 20).tobytes(), found.labels(0, 20).tolist()) == (
                expected
            )
    assert noticed > len(positions) // 2


def test_row_groups_that_do_not_make_all_rows_are_refused(tmp_path, images, small_groups):
    """Each number of rows in the footer, damaged so that the file still says how many it has."""
    sound = prepared(tmp_path, images[:20]).path.read_bytes()
    other, refused = tmp_path / "other.parquet", 0
    for position in range(len(sound) - int.from_bytes(sound[-8:-4], "little") - 8, len(sound) - 8):
        damaged = bytearray(sound)
        damaged[position] ^= 0x24
        try:
            found = pq.read_metadata(pa.BufferReader(bytes(damaged)))
            rows = [found.row_group(number).num_rows for number in range(found.num_row_groups)]
        except (OSError, pa.ArrowException):
            continue
        if found.num_rows == 20 != sum(rows):
            other.write_bytes(damaged)
            with pytest.raises(UserError, match=r"other\.parquet: "):
                open_dataset(other).verify()
            refused += 1
    assert refused


def test_a_file_cut_anywhere_is_refused(tmp_path, images, labels):
    data = prepared(tmp_path, images, labels)
    sound = data.path.read_bytes()
    other = tmp_path / "other.parquet"
    for size in [*range(0, len(sound), 997), len(sound) - 1]:
        other.write_bytes(sound[:size])
        with pytest.raises(UserError, match="is not a Parquet file, or is cut short"):
            open_dataset(other)


def test_damaged_rows_are_named(tmp_path, images, labels, small_groups):
    data = prepared(tmp_path, images, labels)
    column = pq.read_metadata(data.path).row_group(2).column(0)
    sound = bytearray(data.path.read_bytes())
    sound[column.data_page_offset + column.total_compressed_size - 9] ^= 1
    data.path.write_bytes(sound)
    data = open_dataset(data.path)
    assert np.array_equal(data.images(0, 14), images[:14].transpose(0, 3, 1, 2))
    with pytest.raises(UserError, match=r"images\.parquet: is damaged in rows 14\.\.20; prepare"):
        data.images(20, 30)


def rewritten(path: Path, change) -> Path:
    table = change(pq.read_table(path))
    pq.write_table(table, path)
    return path


def test_edited_rows_are_found_by_verify(tmp_path, images, labels):
    def swap(table: pa.Table) -> pa.Table:
        return table.take([1, 0, *range(2, 100)])

    def relabel(table: pa.Table) -> pa.Table:
        other = pa.array([4 - value for value in table["label"].to_pylist()], pa.int32())
        return table.set_column(1, table.schema.field("label"), other)

    def rename(table: pa.Table) -> pa.Table:
        other = pa.array([f"{value}x" for value in table["source_id"].to_pylist()])
        return table.set_column(2, table.schema.field("source_id"), other)

    for change in (swap, relabel, rename):
        data = open_dataset(rewritten(prepared(tmp_path, images, labels).path, change))
        with pytest.raises(UserError, match=r"images\.parquet: its rows were changed"):
            data.verify()


def with_info(table: pa.Table, **fields) -> pa.Table:
    """The metadata changed as someone would who recomputes its checksum."""
    info = json.loads(table.schema.metadata[b"tspace"]) | fields
    text = json.dumps(info).encode()
    checksum = hashlib.sha256(text).hexdigest()
    return table.replace_schema_metadata({"tspace": text, "tspace.sha256": checksum})


FOREIGN = {
    "of another origin": lambda table: table.replace_schema_metadata(None),
    "its metadata was changed": lambda table: table.replace_schema_metadata(
        {**table.schema.metadata, b"tspace": table.schema.metadata[b"tspace"] + b" "}
    ),
    "has 99 rows, but 100 were written": lambda table: table.slice(1),
    "its columns were changed": lambda table: table.drop_columns(["source_id"]),
    "was written by another version": lambda table: with_info(table, format=1),
}


@pytest.mark.parametrize("fragment", FOREIGN)
def test_foreign_files_are_refused(tmp_path, images, labels, fragment):
    path = rewritten(prepared(tmp_path, images, labels).path, FOREIGN[fragment])
    with pytest.raises(UserError) as refusal:
        open_dataset(path)
    assert fragment in str(refusal.value)
    assert "images.parquet: " in str(refusal.value)


def test_missing_and_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"x\.parquet: there is no dataset; prepare it first"):
        open_dataset(tmp_path / "x.parquet")
    (tmp_path / "x.parquet").write_text("text")
    for path in (tmp_path / "x.parquet", tmp_path):
        with pytest.raises(UserError, match="is not a Parquet file, or is cut short"):
            open_dataset(path)


def test_altered_mean_is_found_by_verify(tmp_path, images):
    path = prepared(tmp_path, images).path
    data = open_dataset(rewritten(path, lambda table: with_info(table, mean=[1.0, 2.0, 3.0])))
    with pytest.raises(UserError, match="its rows were changed"):
        data.verify()


# --- memory -------------------------------------------------------------------------------------

MEMORY = """
import re, sys
from pathlib import Path
from pipeline.data import dataset
from pipeline.data.dataset import open_dataset, prepare

def peak():
    # Unlike getrusage, not inherited from the process that started this one.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", status)[1]) / 1024

dataset.GROUP_ROWS = 128
source, out, raw = sys.argv[1:]
prepare(Path(out), source=source, path=Path(raw), resolution=32)
data = open_dataset(Path(out))
for start in range(0, len(data), 512):
    data.images(start, min(start + 512, len(data)))
print(peak())
"""


@pytest.mark.parametrize(("source", "side", "rows"), [("npz", 32, 18_000), ("parquet", 128, 1_125)])
def test_memory_does_not_grow_with_the_rows(tmp_path, source, side, rows):
    """Six times the rows, 46 MB more of pixels (in Parquet one row group), stay below 35 MB.

    Each in a process of its own: what a thread leaves is not always used by the next one.
    """
    numbers = np.arange(rows, dtype=np.uint16)[:, None]
    values = (numbers * np.arange(1, 3 * side**2 + 1, dtype=np.uint16) >> 8).astype(np.uint8)
    files = []
    for number in (rows // 6, rows):
        files.append(tmp_path / f"{number}.{source}")
        images = values[:number].reshape(-1, side, side, 3)
        if source == "npz":
            np.savez(files[-1], images=images)
        else:
            head = f"P6 {side} {side} 255\n".encode()
            table = pa.table({"image": [head + image.tobytes() for image in images]})
            # Pages, the least that can be read, of 1 MB; by default of 1024 rows.
            options = {"use_dictionary": False, "compression": "none", "write_batch_size": 16}
            pq.write_table(table, files[-1], **options)
    command = [sys.executable, "-c", MEMORY, source, tmp_path / "x.parquet"]
    root = Path(dataset.__file__).parents[1]
    few, many = (
        subprocess.run([*command, file], cwd=root, capture_output=True, text=True, check=True)
        for file in files
    )
    assert float(many.stdout) - float(few.stdout) < 35
