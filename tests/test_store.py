"""The store: entries are finished or not, intact or refused, and worked on by one job at a time."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time

import pytest

from pipeline.errors import UserError
from pipeline.store import entry as stores
from pipeline.store.entry import Entry, Store, copy_entry
from pipeline.store.files import Lost, replacing, write_json, write_sealed, write_text

SPEC = {"states": [1.0, 2.0], "images": 10}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def finished(store: Store, spec=SPEC, content="w") -> Entry:
    entry = store.plan("expert", spec)
    (entry.path / "weights").write_text(content)
    entry.state.mkdir()
    entry.finish()
    return entry


def test_an_entry_is_named_by_its_spec_alone(store):
    assert store.plan("expert", SPEC) == store.plan("expert", dict(reversed(SPEC.items())))
    assert store.plan("expert", SPEC) != store.plan("expert", {**SPEC, "images": 11})


def test_finishing_lists_results_and_drops_resumable_state(store):
    entry = finished(store)
    assert entry.done and list(entry.files()) == ["weights"]
    assert not entry.state.exists()
    assert entry.file("weights").read_text() == "w"


def test_unfinished_and_unknown_files_are_refused(store):
    entry = store.plan("expert", SPEC)
    with pytest.raises(UserError, match="not finished"):
        entry.file("weights")
    with pytest.raises(UserError, match="has no file other; it has weights"):
        finished(store).file("other")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda e: (e.path / "weights").write_text("v"), "checksum differs"),
        (lambda e: (e.path / "weights").write_text("longer"), "checksum differs"),
        (lambda e: (e.path / "weights").unlink(), "missing"),
        (lambda e: (e.path / "DONE").write_text("{"), "damaged"),
    ],
)
def test_damage_is_refused_and_never_copied(store, tmp_path, damage, message):
    entry = finished(store)
    damage(entry)
    with pytest.raises(UserError, match=message):
        entry.file("weights")
    with pytest.raises(UserError, match=message):
        copy_entry(entry, tmp_path / "copy")
    assert not (tmp_path / "copy" / "DONE").exists()


def test_a_foreign_spec_is_refused(store):
    entry = store.plan("expert", SPEC)
    (entry.path / "spec.json").write_text(json.dumps({"images": 11}))
    with pytest.raises(UserError, match="does not match the entry's name"):
        entry.spec()


def test_adopting_a_copy_finishes_an_entry_of_another_store(store, tmp_path):
    entry = finished(store)
    copy_entry(entry, tmp_path / "out" / entry.digest)
    other = Store(tmp_path / "other")
    adopted = other.adopt(tmp_path / "out" / entry.digest, entry.name)
    assert adopted.done and adopted.file("weights").read_text() == "w"
    assert adopted.spec() == SPEC


def test_an_entry_that_lies_twice_on_the_disk_becomes_links(store, tmp_path):
    """DVC gives a stage's outputs files of their own while it runs, and links again afterwards."""
    entry = finished(store)
    copy = tmp_path / "out" / entry.digest
    shutil.copytree(entry.path, copy)
    store.adopt(copy, entry.name)
    assert (entry.path / "weights").stat().st_nlink == 1  # nobody shares the copy
    os.link(copy / "weights", tmp_path / "cached")
    store.adopt(copy, entry.name)
    assert (entry.path / "weights").stat().st_ino == (tmp_path / "cached").stat().st_ino
    entry.verify()
    # A damaged copy replaces nothing.
    other = finished(store, {"images": 11})
    shutil.copytree(other.path, tmp_path / "damaged")
    (tmp_path / "damaged" / "weights").write_text("v")
    os.link(tmp_path / "damaged" / "weights", tmp_path / "too")
    store.adopt(tmp_path / "damaged", other.name)
    other.verify()


@pytest.mark.parametrize(
    "name", ["expert", "expert/", "/x", "expert/../x", "a/b/c", "a/b\0c", "a/.."]
)
def test_names_that_leave_the_store_are_refused(store, name):
    with pytest.raises(UserError, match="not the name of an entry"):
        store.entry(name)


def hold(path, seconds, log):
    with Entry(path).lease():
        with open(log, "a") as f:
            f.write(f"in {os.getpid()}\n")
        time.sleep(seconds)
        with open(log, "a") as f:
            f.write(f"out {os.getpid()}\n")


def run_holders(entry, log, count, seconds):
    context = multiprocessing.get_context("fork")
    jobs = [context.Process(target=hold, args=(entry.path, seconds, log)) for _ in range(count)]
    for job in jobs:
        job.start()
    return jobs


def test_only_one_job_at_a_time_holds_an_entry(store, tmp_path):
    entry, log = store.plan("expert", SPEC), tmp_path / "log"
    for job in run_holders(entry, log, 4, 0.05):
        job.join()
    lines = log.read_text().splitlines()
    assert len(lines) == 8
    for entered, left in zip(lines[::2], lines[1::2], strict=True):
        assert entered.replace("in", "out") == left
    assert not entry.leased()


def test_the_lease_of_a_killed_job_is_taken_over_by_exactly_one(store, tmp_path):
    entry, log = store.plan("expert", SPEC), tmp_path / "log"
    (killed,) = run_holders(entry, log, 1, 60)
    while not log.exists():
        time.sleep(0.01)
    assert entry.leased()
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    assert not entry.leased()
    log.unlink()
    for job in run_holders(entry, log, 3, 0.05):
        job.join()
    lines = log.read_text().splitlines()
    for entered, left in zip(lines[::2], lines[1::2], strict=True):
        assert entered.replace("in", "out") == left


def claim(entry: Entry, number: int = 1, age: float = 0.0, **holder) -> None:
    """A lease of a process of another machine."""
    path = entry.path / "lease" / str(number)
    path.parent.mkdir(exist_ok=True)
    write_sealed(path, {"host": "elsewhere", "machine": ["b", "p"], "pid": 1} | holder)
    when = time.time() - age
    os.utime(path, (when, when))


def test_a_silent_lease_of_another_machine_goes_stale(store):
    entry = store.plan("expert", SPEC)
    claim(entry)
    assert entry.leased() and entry.holder()["host"] == "elsewhere"
    claim(entry, age=stores.STALE_SECONDS + 5)
    assert not entry.leased()
    with entry.lease():
        assert entry.leased() and entry.holder()["pid"] == os.getpid()
    assert not entry.leased()


def test_a_lease_of_the_future_ends_as_well(store):
    entry = store.plan("expert", SPEC)
    claim(entry, age=-30 * 86400)
    assert not entry.leased()
    started = time.monotonic()
    with entry.lease():
        assert entry.leased()
    assert time.monotonic() - started < 5


def test_a_lease_ends_whose_heartbeat_does_not_move_whatever_clocks_say(store, monkeypatch):
    monkeypatch.setattr(stores, "STALE_SECONDS", 0.3)
    monkeypatch.setattr(stores, "POLL_SECONDS", 0.02)
    entry = store.plan("expert", SPEC)
    claim(entry, age=-0.1)
    told = []
    with entry.lease(tell=told.append):
        pass
    assert len(told) == 1 and told[0].startswith("waits for process 1 on elsewhere, since ")


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", '{"pid": "x"}'])
def test_an_unreadable_lease_is_waited_for_as_long_as_any(store, content):
    entry = store.plan("expert", SPEC)
    claim(entry)
    (entry.path / "lease" / "1").write_text(content)
    assert entry.leased()
    os.utime(entry.path / "lease" / "1", (1, 1))
    with entry.lease():
        assert entry.holder()["pid"] == os.getpid()


@pytest.mark.parametrize("name", ["lease/1", "progress.json", "circumstances.json"])
def test_of_what_is_no_result_a_flipped_bit_leaves_nothing_known(store, name):
    entry = store.plan("expert", SPEC)
    known = {"host": "elsewhere", "pid": 7, "since": 1.5}
    read = {
        "lease/1": entry.holder,
        "progress.json": lambda: entry.progress() or {},
        "circumstances.json": entry.circumstances,
    }[name]
    path = entry.path / name
    path.parent.mkdir(exist_ok=True)
    write_sealed(path, known)
    assert read() == known
    content = path.read_bytes()
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        assert read() == {}, flipped


def test_only_on_its_own_machine_a_process_number_tells_that_a_holder_is_dead(store):
    entry, dead = store.plan("expert", SPEC), 2**22 + 1  # no system has such a number
    mine = stores._myself("")
    claim(entry, host=mine["host"], machine=["another boot", "p"], pid=dead)
    assert entry.leased()
    claim(entry, host=mine["host"], machine=[mine["machine"][0], "pid:[another]"], pid=dead)
    assert entry.leased()
    claim(entry, machine=mine["machine"], pid=dead)
    assert not entry.leased()
    claim(entry, **mine)
    assert entry.leased()
    claim(entry, **mine | {"born": "0"})  # the number was given to another process
    assert not entry.leased()


def test_a_job_that_lost_its_lease_writes_nothing(store):
    entry = store.plan("expert", SPEC)
    with entry.lease():
        write_text(entry.path / "kept", "mine")
        claim(entry, number=2)
        for path in (entry.path / "kept", entry.state / "new"):
            path.parent.mkdir(exist_ok=True)
            with pytest.raises(Lost, match="taken over by process 1 on elsewhere"):
                write_text(path, "ghost")
        with pytest.raises(Lost):
            entry.finish()
    assert (entry.path / "kept").read_text() == "mine" and not entry.done
    assert list(entry.state.iterdir()) == []
    assert entry.leased()  # the successor's


def test_what_a_ghost_began_before_it_lost_is_swept_away(store):
    entry = store.plan("expert", SPEC)
    with entry.lease():
        with pytest.raises(Lost), replacing(entry.path / "kept") as temporary:
            temporary.write_text("ghost")
            os.utime(entry.path / "lease" / "1", ns=(0, 0))
            with entry.lease():
                assert not temporary.exists()
                write_text(entry.path / "kept", "successor")
        assert (entry.path / "kept").read_text() == "successor"


def test_what_safetensors_began_before_a_kill_is_swept_away(store):
    entry = store.plan("expert", SPEC)
    left, kept = entry.path / ".tmpHB6sM1", entry.path / ".tmp.of-ours"
    for path in (left, kept):
        path.write_text("half of some weights")
    with entry.lease():
        assert kept.exists() and not left.exists()


def test_numbers_are_never_taken_again_while_an_entry_is_unfinished(store):
    entry = store.plan("expert", SPEC)
    for number in (1, 2, 3):
        with entry.lease():
            assert os.listdir(entry.path / "lease") == [str(number)]
        assert not entry.leased()
    with entry.lease():
        entry.finish()
    assert not (entry.path / "lease").exists()


def test_a_spec_that_is_missing_or_damaged_is_written_again(store):
    entry = store.plan("expert", SPEC)
    path = entry.path / "spec.json"
    for damage in ("", "{", '{"images": 11}', None):
        path.unlink() if damage is None else path.write_text(damage)
        assert store.plan("expert", SPEC).spec() == SPEC


@pytest.mark.parametrize("name", ["../../planted", "/planted", "a/b", "..", ".x", "spec.json", ""])
def test_names_of_a_copy_from_elsewhere_must_be_plain(store, tmp_path, name):
    entry = finished(store)
    copy_entry(entry, tmp_path / "out" / "x")
    (tmp_path / "planted").write_text("w")
    known = entry.files()["weights"]
    (tmp_path / "out" / "x" / "DONE").write_text(json.dumps({"files": {name: known}}))
    other = Store(tmp_path / "other")
    with pytest.raises(UserError, match="no name of a result; refused"):
        other.adopt(tmp_path / "out" / "x", entry.name)
    assert not any(p.is_file() for p in (tmp_path / "other").rglob("*"))


def test_text_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "3", "null", '"x"', "{}", '{"files": []}', '{"files": null}'),
        *('{"files": {"a": 3}}', '{"files": {"a": {}}}', '{"files": {"a": {"bytes": "1"}}}'),
        '{"files": {"a": {"bytes": "1", "sha256": 4}}}',
    ],
)
def test_a_done_of_any_other_content_is_refused_by_name(store, text):
    entry = store.plan("expert", SPEC)
    (entry.path / "a").write_text("x")
    (entry.path / "DONE").write_text(text)
    for read in (entry.files, entry.verify, lambda: entry.file("a")):
        with pytest.raises(UserError, match="DONE: damaged; delete"):
            read()
