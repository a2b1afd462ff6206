"""`tspace gc` deletes what nothing names, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import time

import pytest

from pipeline.errors import UserError
from stages.cache import Listing
from stages.tools import gc
from stages.tools.status import Needed
from stages.tools.verify import listing, listing_md5
from stages.workspace import Workspace

OLD = time.time() - 3 * gc.RECENT_SECONDS


def made(workspace, number, old=True):
    entry = workspace.store.plan("expert", {"number": number})
    (entry.path / "weights").write_bytes(bytes(1000))
    entry.finish()
    age(entry, old)
    return entry


def age(entry, old=True):
    if old:
        for path in (*entry.path.rglob("*"), entry.path):
            os.utime(path, (OLD, OLD))


def manifest(folder, *entries):
    folder.mkdir(parents=True)
    items = [{"name": entry.name, "label": "x"} for entry in entries]
    (folder / "manifest.json").write_text(json.dumps({"entries": items}))


def into_cache(root, folder) -> str:
    """What `dvc commit` does with a folder; its md5."""
    files: Listing = listing(folder)
    items = [{"md5": md5, "relpath": name} for name, md5 in sorted(files.items())]
    kept = {md5: (folder / name).read_bytes() for name, md5 in files.items()}
    kept[listing_md5(files)] = json.dumps(items).encode()
    for md5, content in kept.items():
        path = root / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return listing_md5(files)


def git(root, *command):
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *who, *command], cwd=root, check=True)


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.delenv("TSPACE_STORE", raising=False)
    found = Workspace(tmp_path)
    git(tmp_path, "init", "-q", "--initial-branch", "main")
    return found


def test_what_nothing_names_goes_and_all_else_stays(workspace, monkeypatch, capsys):
    root = workspace.root
    planned, collected, branch, gone, leased, recent = (
        made(workspace, number, old=number != 5) for number in range(6)
    )
    manifest(root / "elsewhere", branch)
    md5 = into_cache(root, root / "elsewhere")
    lock = "stages: {train: {outs: [{path: artefacts/experts, md5: %s}]}}\n"
    (root / "dvc.lock").write_text(lock % md5)
    git(root, "add", "dvc.lock")
    git(root, "commit", "-qm", "one")
    git(root, "update-ref", "refs/exps/ab/cd/tried", "HEAD")
    (root / "dvc.lock").write_text(lock % f"{'0' * 32}.dir")
    git(root, "commit", "-qam", "of a cache that is not here", "--amend")
    manifest(root / "artefacts" / "experts", collected)
    needed = [Needed("experts", [(planned.name, "x")])]
    monkeypatch.setattr(gc, "needed_jobs", lambda _: needed)
    monkeypatch.setattr(gc.click, "confirm", lambda _: False)
    with leased.lease():
        # Nobody agrees, then --dry-run, then --yes.
        for options in ((False, False), (True, False), (True, True), (False, True)):
            assert gone.done
            gc.gc(workspace, *options)
    told = capsys.readouterr().out
    left = {entry for entry in (planned, collected, branch, leased, recent) if entry.done}
    assert left == {planned, collected, branch, leased, recent} and not gone.path.exists()
    assert not list((root / "store" / "expert").glob(".deleted*"))
    for line in (
        "kept: 1 entry that params.yaml names",
        "kept: 1 entry that artefacts/ names",
        "kept: 1 entry that a branch, tag or experiment names",
        "kept: 2 entries in use, or changed in the last 24 hours",
        "not known: what 1 recorded output named",
        "to delete: 1 entry of expert",
        "deleted 1 entry",
    ):
        assert line in told, line


def test_it_refuses_to_guess(workspace, monkeypatch):
    later = [Needed("experts", [], "its states are not measured yet")]
    monkeypatch.setattr(gc, "needed_jobs", lambda _: later)
    with pytest.raises(UserError, match="not all known yet"):
        gc.look(workspace)
