"""What a fingerprint of raw data notices, and what it does not have to read."""

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from pipeline.data import fingerprint as module
from pipeline.data.fingerprint import Fingerprint, fingerprint
from pipeline.data.raw import walk
from pipeline.store import identity


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """Files count as settled at once, as they do some seconds after a change."""
    monkeypatch.setattr(module, "SETTLED_NS", -(10**12))


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Names of the files whose contents were read."""
    found = []
    digest = identity.file_digest

    def counted(path: bytes) -> str:
        found.append(os.path.basename(path).decode())
        return digest(path)

    monkeypatch.setattr(module, "file_digest", counted)
    return found


@pytest.fixture
def root(tmp_path) -> Path:
    for name in ("a/1", "a/2", "a-b/1", "b/1", "b/c/2", "d"):
        path = tmp_path / "root" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}")
    return tmp_path / "root"


def look(root: Path, table: str = "table", **options) -> Fingerprint | None:
    return fingerprint(root, walk(root), root.parent / table, **options)


def test_it_is_over_digest_size_and_name_of_every_file_in_order(root):
    hashed = hashlib.sha256()
    names = ["a/1.png", "a/2.png", "a-b/1.png", "b/1.png", "b/c/2.png", "d.png"]
    for name in names:
        data = (root / name).read_bytes()
        hashed.update(f"{hashlib.sha256(data).hexdigest()} {len(data)} {name}\0".encode())
    size = sum((root / name).stat().st_size for name in names)
    assert look(root) == Fingerprint(6, size, hashed.hexdigest())


def test_a_second_look_reads_nothing_and_leaves_the_table(root, reads):
    first = look(root)
    assert len(reads) == 6
    table = (root.parent / "table").stat()
    assert look(root) == first
    assert len(reads) == 6
    assert (root.parent / "table").stat().st_ino == table.st_ino


def add(root):
    (root / "a" / "0.png").write_text("new")


def add_last(root):
    (root / "e.png").write_text("new")


def delete(root):
    (root / "a" / "2.png").unlink()


def delete_last(root):
    (root / "d.png").unlink()


def overwrite(root):
    (root / "b" / "1.png").write_text("CONTENT OF b/1")


def overwrite_with_old_times(root):
    path = root / "b" / "1.png"
    times = path.stat()
    path.write_text("CONTENT OF b/1")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def replace(root):
    (root / "new").write_text("CONTENT OF b/1")
    os.replace(root / "new", root / "b" / "1.png")


def rename(root):
    (root / "d.png").rename(root / "e.png")


def move_to_another_class(root):
    (root / "a" / "2.png").rename(root / "b" / "2.png")


def swap(root):
    for old, new in (("a/1.png", "x"), ("a/2.png", "a/1.png"), ("x", "a/2.png")):
        (root / old).rename(root / new)


CHANGES = {
    add: ["0.png"],
    add_last: ["e.png"],
    delete: [],
    delete_last: [],
    overwrite: ["1.png"],
    overwrite_with_old_times: ["1.png"],
    replace: ["1.png"],
    rename: ["e.png"],
    move_to_another_class: ["2.png"],
    swap: ["1.png", "2.png"],
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_noticed_and_only_what_moved_is_read(root, reads, change):
    first = look(root)
    reads.clear()
    change(root)
    changed = look(root)
    assert changed.digest != first.digest
    assert sorted(reads) == CHANGES[change]
    assert changed == look(root, "other")  # the table decides what is read, not what is found
    reads.clear()
    assert look(root) == changed
    assert reads == []


def test_a_file_is_read_again_while_its_times_could_hide_a_change(root, reads, monkeypatch):
    monkeypatch.setattr(module, "SETTLED_NS", 60 * 10**9)
    first = look(root)
    assert look(root) == first
    assert len(reads) == 12


def test_a_touched_file_and_a_copy_have_the_same_fingerprint(root, reads):
    first = look(root)
    reads.clear()
    os.utime(root / "d.png", (1, 1))
    assert look(root) == first
    assert reads == ["d.png"]
    copy = shutil.copytree(root, root.parent / "elsewhere" / "copy")
    assert look(copy) == first


def test_links_are_followed(root):
    far = root.parent / "far"
    far.mkdir()
    (far / "x.png").write_text("linked")
    (root / "link").symlink_to(far)
    (root / "z.png").symlink_to(far / "x.png")
    first = look(root)
    assert first.files == 8
    (far / "x.png").write_text("LINKED")
    assert look(root).digest != first.digest


def test_what_cannot_be_opened_counts_and_does_not_hang(root):
    first = look(root)
    os.mkfifo(root / "pipe.png")
    (root / "gone.png").symlink_to(root / "nowhere")
    found = look(root)
    assert (found.files, found.bytes) == (8, first.bytes)
    assert found.digest != first.digest
    assert look(root) == found


def test_names_of_any_bytes(root):
    for name in (b"two\nlines.png", b"\xff.png", "ü 1 2 3 4 5.png".encode()):
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_text("x")
    first = look(root)
    assert first.files == 9
    assert look(root) == first
    Path(os.fsdecode(os.fsencode(root) + b"/two\nlines.png")).write_text("y")
    assert look(root).digest != first.digest


@pytest.mark.parametrize("damage", [b"", b"nonsense\n" * 9, b"\0" * 999])
def test_a_damaged_table_is_made_again(root, reads, damage):
    first = look(root)
    (root.parent / "table").write_bytes(damage)
    assert look(root) == first
    reads.clear()
    assert look(root) == first
    assert reads == []


def test_nothing_is_read_beyond_what_is_allowed(root, reads):
    assert look(root, most_bytes=20) is None
    assert reads == []
    first = look(root)
    (root / "e.png").write_text("six")
    assert look(root, most_bytes=2) is None
    assert look(root, most_bytes=3).files == first.files + 1


def test_many_files_of_many_tasks_stay_in_order(tmp_path):
    """More files than are looked at ahead, in folders of unlike sizes."""
    for number in range(3000):
        path = tmp_path / "root" / f"{number % 7}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{number}")
    first = look(tmp_path / "root")
    assert first.files == 3000
    lines = (tmp_path / "table").read_bytes().splitlines()
    names = [line.split(b" ", 5)[-1].decode() for line in lines]
    assert names == list(walk(tmp_path / "root"))
