"""A store of several users, one that may only be read, one that is full: one line each."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import stat
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from pipeline.errors import UserError, system_message
from pipeline.store.entry import Store
from stages import cli, inputs, prepare
from stages import job as jobs
from stages.workspace import Workspace
from tests.test_inspection import PARAMS, experts_of, small_workspace

SPEC = {"images": 10}
NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="another user and mounts need root")


@contextlib.contextmanager
def umask(mask):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def run_as(uid, work, *arguments):
    """What a function returns in a process of another user."""

    def child():
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
        told.put(work(*arguments))

    context = multiprocessing.get_context("fork")
    told = context.SimpleQueue()
    process = context.Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 0
    return told.get()


@pytest.mark.parametrize(("mask", "mode"), [(0o002, 0o664), (0o022, 0o644), (0o077, 0o600)])
def test_every_file_of_an_entry_follows_the_umask(tmp_path, mask, mode):
    with umask(mask):
        entry = Store(tmp_path).plan("expert", SPEC)
        with entry.lease():
            save_file({"w": torch.zeros(2)}, entry.path / "weights.safetensors")
            (entry.path / "record.json").write_text("{}")
            entry.finish()
    files = [p for p in entry.path.iterdir() if p.is_file()]
    assert {p.name: stat.S_IMODE(p.stat().st_mode) for p in files} == {
        name: mode for name in ("DONE", "record.json", "spec.json", "weights.safetensors")
    }


def add(store, name):
    store.entry(name).file("weights.safetensors").read_bytes()
    entry = store.plan("expert", {"images": 11})
    with entry.lease():
        (entry.path / "weights").write_text("w")
        entry.finish()
    return store.plan("expert", SPEC).done and entry.done


def read(store, name):
    entry = store.plan("expert", SPEC)
    entry.file("weights.safetensors").read_bytes()
    return entry.done, store.entry(name).leased()


@pytest.fixture
def public():
    """A folder that another user can reach."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def finished(folder):
    """A store with one finished expert, and that expert."""
    store = Store(folder / "store")
    entry = store.plan("expert", SPEC)
    save_file({"w": torch.zeros(2)}, entry.path / "weights.safetensors")
    entry.finish()
    return store, entry


@as_root
def test_a_second_user_reads_and_adds(public):
    with umask(0o000):
        store, entry = finished(public)
    assert run_as(NOBODY, add, store, entry.name)


@as_root
def test_a_store_that_may_only_be_read_is_read(public):
    with umask(0o022):
        store, _ = finished(public)
        busy = store.plan("expert", {"images": 12})
        with busy.lease():
            assert run_as(NOBODY, read, store, busy.name) == (True, True)


def test_what_the_file_system_refuses_is_one_line(tmp_path):
    for number, words in (
        (errno.EACCES, "may not be written or read by this user (Permission denied"),
        (errno.EROFS, "may not be written or read by this user (Read-only file system"),
        (errno.ENOTDIR, "a file where a folder is needed"),
        (errno.ENOSPC, "the disk is full"),
        (errno.EIO, "the disk or the network failed (Input/output error); run again"),
    ):
        said = system_message(OSError(number, os.strerror(number), str(tmp_path)), tmp_path)
        assert said.startswith(f"{tmp_path}: {words}") and "\n" not in said
    for text, words in (
        ("No space left on device (os error 28)", "the disk is full"),
        ("Input/output error (os error 5)", "the disk or the network failed"),
        ("Read-only file system (os error 30)", "may not be written or read by this user"),
    ):
        said = system_message(RuntimeError(f"I/O error: {text} at path"), tmp_path)
        assert said.startswith(f"{tmp_path}: {words}")
    assert system_message(OSError(errno.ENOENT, "no"), tmp_path) is None
    assert system_message(ValueError("x"), tmp_path) is None


def test_a_store_that_is_a_file_is_refused_by_name(tmp_path, monkeypatch):
    for name in ("Snakefile", "dvc.yaml", "store"):
        (tmp_path / name).touch()
    (tmp_path / "params.yaml").write_text(PARAMS)
    monkeypatch.setenv("TSPACE_STORE", "")  # empty is unset
    monkeypatch.chdir(tmp_path)
    prepare.prepare(Workspace.here())
    said = CliRunner().invoke(cli.main, ["encode"])
    assert said.exit_code == 2
    assert f"{tmp_path / 'store'}" in said.stderr and "a file where a folder" in said.stderr


def test_where_the_store_is(tmp_path, monkeypatch):
    for text, root in (("", tmp_path / "store"), ("~/st", tmp_path / "home" / "st")):
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setenv("TSPACE_STORE", text)
        assert Workspace(tmp_path).store.root == root


@contextlib.contextmanager
def small_disk(folder, size):
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "x", folder]).returncode:
        pytest.skip("no mounts here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@as_root
def test_a_full_disk_is_one_line_and_damages_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("TSPACE_STORE", raising=False)
    source = small_workspace(tmp_path / "source", PARAMS)
    with small_disk(tmp_path / "disk", "256k") as disk:
        monkeypatch.setenv("TSPACE_STORE", str(disk / "store"))
        workspace = Workspace(source.root)
        for name in source.store.root.glob("latents/*"):
            workspace.store.adopt(name, f"latents/{name.name}")
        job = experts_of(workspace, "one")[0]
        entry = workspace.store.plan(job.kind, job.spec.as_json())
        filler = disk / "filler"
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as f:
            while True:
                f.write(bytes(4096))
        os.truncate(filler, filler.stat().st_size - 5 * 4096)
        assert not jobs.run_job(workspace, workspace.store, entry.name)
        said = (entry.path / "error.txt").read_text()
        assert "the disk is full" in said and str(entry.path) in said and said.count("\n") == 1
        assert not entry.done and not list(entry.path.rglob("*.part"))
        filler.unlink()
        assert jobs.run_job(workspace, workspace.store, entry.name)
        entry.verify()


@as_root
def test_a_mapped_array_finds_out_before_it_is_filled(tmp_path):
    """Filling a hole of a file on a full disk kills the process without a word."""
    few = pytest.raises(UserError, match="bytes free where 262,272 are needed")
    with small_disk(tmp_path / "disk", "64k") as disk, few:
        inputs.new_array(disk / "a.npy", np.float32, (1 << 16,))


def test_a_disk_too_small_for_a_copy_says_how_much_is_missing(tmp_path, monkeypatch):
    entry = Store(tmp_path).plan("expert", SPEC)
    (entry.path / "weights").write_bytes(bytes(1000))
    entry.finish()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(UserError, match="where 1,000 are needed"):
        Store(tmp_path / "other").adopt(entry.path, entry.name)
