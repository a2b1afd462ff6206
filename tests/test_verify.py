"""`tspace verify` and the disk: the same run twice is the same, and lies there once."""

from __future__ import annotations

import subprocess

import pytest

from pipeline.errors import UserError
from stages.tools.verify import listing, listing_md5, verify
from stages.workspace import Workspace
from tests.workflow import Checkout


def locked(root, folder, md5=None):
    """A git repository whose dvc.lock records a folder."""
    md5 = md5 or listing_md5(listing(root / folder))
    (root / "dvc.lock").write_text(
        f"stages:\n  train:\n    cmd: x\n    outs:\n    - {{path: {folder}, md5: {md5}}}\n"
    )
    for command in (["init", "-q"], ["add", "dvc.lock", "params.yaml"], ["commit", "-qm", "x"]):
        who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *who, *command], cwd=root, check=True)


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.delenv("TSPACE_STORE", raising=False)
    folder = tmp_path / "artefacts" / "experts"
    (folder / "e1").mkdir(parents=True)
    (folder / "e1" / "weights").write_text("w")
    (folder / "manifest.json").write_text(
        '{"entries": [{"name": "expert/e1", "label": "ddpm: all states"}]}'
    )
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    locked(tmp_path, "artefacts/experts")
    return Workspace(tmp_path)


def test_equal_and_where_not(made, capsys):
    assert verify(made, "HEAD")
    assert "train  equal" in capsys.readouterr().out
    # What DVC's cache has of the recorded folder tells which files differ.
    md5 = listing_md5(listing(made.root / "artefacts" / "experts"))
    cached = made.root / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
    cached.parent.mkdir(parents=True)
    files = listing(made.root / "artefacts" / "experts")
    cached.write_text(str([{"md5": m, "relpath": f} for f, m in files.items()]).replace("'", '"'))
    (made.root / "artefacts" / "experts" / "e1" / "weights").write_text("other")
    assert not verify(made, "HEAD")
    told = capsys.readouterr().out
    assert (
        "train  differs: artefacts/experts\n" in told and "ddpm: all states: e1/weights\n" in told
    )
    cached.unlink()
    assert not verify(made, "HEAD")
    told = capsys.readouterr().out
    assert "DVC's cache has no list of them" in told and "dvc fetch" not in told
    (made.root / ".dvc" / "config").write_text("['remote \"shared\"']\n    url = /elsewhere\n")
    assert not verify(Workspace(made.root), "HEAD")
    assert "`dvc fetch` brings it" in capsys.readouterr().out


def test_stages_are_told_in_their_order_and_other_params_first(made, capsys):
    md5 = listing_md5(listing(made.root / "artefacts" / "experts"))
    outs = f"{{cmd: x, outs: [{{path: artefacts/experts, md5: {md5}}}]}}"
    (made.root / "dvc.lock").write_text(f"stages: {{another: {outs}, train: {outs}}}\n")
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *who, "commit", "-qam", "y"], cwd=made.root, check=True)
    (made.root / "dvc.yaml").write_text("stages: {train: {}, another: {}}\n")
    (made.root / "params.yaml").write_text("seed: 1\n")
    verify(made, "HEAD")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "params.yaml is not that of HEAD, so results may well differ"
    assert [line.split()[0] for line in lines[1:3]] == ["train", "another"]


def test_what_cannot_be_compared_is_said(made):
    with pytest.raises(UserError, match="git show nowhere"):
        verify(made, "nowhere")
    (made.root / "artefacts").rename(made.root / "elsewhere")
    with pytest.raises(UserError, match="nothing was made here"):
        verify(made, "HEAD")


def inodes(root, *folders):
    """Bytes of the files in some folders, those of one file counted once."""
    files = [p for f in folders for p in (root / f).rglob("*") if p.is_file()]
    return sum({(s := p.stat()).st_ino: s.st_size for p in files}.values())


@pytest.mark.slow
def test_the_same_run_in_two_clones_is_the_same_and_on_disk_once(tmp_path):
    first = Checkout.create(tmp_path / "first" / "tspace")
    first.repro("evaluate")
    first.commit("results")
    first.run("git", "clone", "--quiet", str(first.root), str(tmp_path / "second"))
    second = Checkout(tmp_path / "second")
    assert second.run("tspace", "verify", check=False).returncode == 2  # nothing made yet
    assert second.repro("evaluate")["experts"] == 6
    assert second.run("git", "status", "--porcelain").stdout == ""
    said = second.run("tspace", "verify").stdout
    assert said.endswith("the same results as dvc.lock of HEAD records\n")
    once = inodes(second.root, "store")
    assert inodes(second.root, "store", "artefacts", ".dvc/cache") < 1.1 * once
    second.edit("learning_rate: 0.001", "learning_rate: 0.002")
    second.repro("evaluate")
    told = second.run("tspace", "verify", check=False)
    assert told.returncode == 1 and "train     differs: artefacts/experts\n" in told.stdout
    assert "few-state" in told.stdout and "params.yaml is not that of HEAD" in told.stdout
    assert "ddpm" not in told.stdout
