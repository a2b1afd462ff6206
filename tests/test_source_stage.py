"""The stage `source`, and that DVC never brings back a dataset of other images."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.dataset import open_dataset
from pipeline.errors import UserError
from stages import prepare
from stages import source as module
from stages.source import changes, raw_path, source
from stages.tools.outlook import outlook
from stages.tools.status import needed_jobs
from stages.train import train
from stages.workspace import Workspace
from tests.workflow import Checkout

PARAMS = """\
seed: 0
data: {source: folder, path: PATH, resolution: 16}
latent: {encoder: pixels}
features: {extractor: classifier, images: 100, batch: 4, dimension: 8, channels: 8}
evaluate: {samples: 8, allow_few: true}
defaults:
  training: {images: 64, batch: 4}
recipes:
  ddpm: {schedule: {kind: linear, states: 4}}
"""


def picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(number).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


def pictures(folder: Path, count: int = 24) -> None:
    for number in range(count):
        picture(folder / "ab"[number % 2] / f"{number:02}.ppm", number)


@pytest.fixture
def make(tmp_path):
    """A workspace whose `data.path` is a given one."""

    def workspace(path: str) -> Workspace:
        root = tmp_path / "tspace"
        root.mkdir(exist_ok=True)
        (root / "params.yaml").write_text(PARAMS.replace("PATH", path))
        return Workspace(root)

    return workspace


def lock(workspace: Workspace) -> None:
    """What DVC notes when `prepare` has run."""
    import hashlib

    checksum = hashlib.md5(workspace.source.read_bytes(), usedforsecurity=False).hexdigest()
    (workspace.root / "dvc.lock").write_text(
        "stages: {prepare: {deps: [{path: artefacts/source.json, md5: " + checksum + "}]}}"
    )


def found(workspace: Workspace) -> dict:
    source(workspace)
    return json.loads(workspace.source.read_text())


def test_the_fingerprint_is_of_the_files_that_prepare_reads(make, tmp_path):
    """Inside and outside of the checkout, through a link, and by the home folder's short name."""
    outside = tmp_path / "outside"
    pictures(outside)
    inside = make("imgs")
    pictures(inside.root / "imgs")
    (outside / "a" / "labels.csv").write_text("not read")
    (tmp_path / "tspace" / "link").symlink_to(outside)
    digests = {found(make(path))["digest"] for path in ("imgs", str(outside), "../outside", "link")}
    assert len(digests) == 1
    picture(outside / "b" / "99.ppm", 99)
    assert found(make(str(outside)))["files"] == found(make("link"))["files"] == 25
    assert found(make("imgs"))["digest"] in digests


def test_a_home_folder_is_expanded(make, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    pictures(tmp_path / "photos")
    workspace = make("~/photos")
    assert raw_path(workspace) == tmp_path / "photos"
    assert found(workspace)["files"] == 24
    prepare.prepare(workspace)
    assert open_dataset(workspace.dataset).info.rows == 24
    with pytest.raises(UserError, match=r"data\.path: ~nobody-here/x: there is no such home"):
        raw_path(make("~nobody-here/x"))


def test_an_archive_and_the_digits_have_one_too(make, tmp_path):
    np.savez(tmp_path / "x.npz", images=np.zeros((9, 4, 4), np.uint8))
    workspace = make(str(tmp_path / "x.npz"))
    path = workspace.root / "params.yaml"
    path.write_text(path.read_text().replace("source: folder", "source: npz"))
    first = found(Workspace(workspace.root))
    assert first["files"] == 1
    np.savez(tmp_path / "x.npz", images=np.ones((9, 4, 4), np.uint8))
    assert found(Workspace(workspace.root))["digest"] != first["digest"]
    path.write_text(PARAMS.replace("{source: folder, path: PATH, resolution: 16}", "{}"))
    assert found(Workspace(workspace.root))["files"] == 1


def test_photographs_and_a_law_have_one_too(make, tmp_path):
    pictures(tmp_path / "photos")
    workspace = make(str(tmp_path / "photos"))
    path = workspace.root / "params.yaml"
    path.write_text(path.read_text().replace("source: folder", "source: patches, side: 8"))
    first = found(Workspace(workspace.root))
    assert first["files"] == 24
    prepare.prepare(Workspace(workspace.root))
    assert open_dataset(workspace.dataset).info.rows >= 24 * 4
    path.write_text(path.read_text().replace("side: 8", "side: 12"))
    assert changes(Workspace(workspace.root)).startswith("data.side (8 -> 12) changed")
    picture(tmp_path / "photos" / "a" / "00.ppm", 99)
    assert found(Workspace(workspace.root))["digest"] != first["digest"]
    law = "{source: synthetic, limit: 30}"
    path.write_text(PARAMS.replace("{source: folder, path: PATH, resolution: 16}", law))
    assert found(Workspace(workspace.root))["files"] == 1


def test_labels_from_1_keep_their_numbers_and_make_no_class_0(make, tmp_path, capsys):
    images = np.arange(24 * 16, dtype=np.uint16).astype(np.uint8).reshape(24, 4, 4)
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(24) % 3 + 1)
    workspace = make(str(tmp_path / "x.npz"))
    path = workspace.root / "params.yaml"
    path.write_text(path.read_text().replace("source: folder", "source: npz"))
    prepare.prepare(Workspace(workspace.root))
    assert "24 images of 16x16, 1 channel, 3 classes" in capsys.readouterr().out
    info = open_dataset(workspace.dataset).info
    assert dict(zip(info.classes, info.class_counts, strict=True)) == {
        "0": 0,
        "1": 8,
        "2": 8,
        "3": 8,
    }


def test_without_the_images_every_command_says_how_to_get_what_it_needs(make):
    workspace = make("imgs")
    put = "put the images there, or correct data.path in params.yaml"
    made = r"dataset: not made yet; run `dvc repro` first"
    for command in (source, outlook):
        with pytest.raises(UserError, match=f"data.path: .*imgs does not exist.*; {put}"):
            command(workspace)
    for command in (train, needed_jobs):
        with pytest.raises(UserError, match=made):
            command(workspace)
    (workspace.root / ".dvc").mkdir()
    (workspace.root / ".dvc" / "config").write_text("['remote \"shared\"']\n    url = /x\n")
    workspace = Workspace(workspace.root)
    for command in (source, outlook):
        with pytest.raises(UserError, match=f"`dvc pull` the dataset .*, or {put}"):
            command(workspace)
    with pytest.raises(UserError, match=r"run `dvc repro` \(or `dvc pull`\) first"):
        train(workspace)


def test_without_the_images_a_pulled_fingerprint_is_kept(make, capsys):
    workspace = make("imgs")
    pictures(workspace.root / "imgs")
    first = found(workspace)
    (workspace.root / "imgs").rename(workspace.root / "gone")
    capsys.readouterr()
    assert found(workspace) == first
    assert capsys.readouterr().out == (
        "source: imgs is not here, so the dataset is used as it was prepared last; to look at the "
        "images again, put the images there, or correct data.path in params.yaml\n"
    )
    with pytest.raises(UserError, match=r"data\.path: .*/others does not exist; put the images"):
        source(make("others"))
    workspace.source.unlink()
    with pytest.raises(UserError, match=r"data\.path: .*/imgs does not exist; put the images"):
        source(make("imgs"))


def test_a_temporary_experiment_says_why_it_does_not_see_the_images(tmp_path):
    root = tmp_path / ".dvc" / "tmp" / "exps" / "tmp1"
    root.mkdir(parents=True)
    (root / "params.yaml").write_text(PARAMS.replace("PATH", "data/imgs"))
    with pytest.raises(UserError) as refusal:
        source(Workspace(root))
    assert "runs in a copy without what git ignores (--temp, --queue): " in str(refusal.value)
    assert "`dvc add data/imgs`, or an absolute data.path" in str(refusal.value)
    (root / "data").mkdir()
    (root / "data" / "imgs.dvc").touch()
    with pytest.raises(UserError, match="does not exist; name no stage, so that DVC gets them"):
        source(Workspace(root))


def test_changes_are_told_in_one_line(make, monkeypatch):
    workspace = make("imgs")
    pictures(workspace.root / "imgs")
    assert changes(workspace) is None  # never prepared
    source(workspace)
    lock(workspace)
    assert changes(workspace) is None
    picture(workspace.root / "imgs" / "a" / "00.ppm", 77)
    assert changes(workspace) == (
        "the images changed since the dataset was prepared; `dvc repro` prepares it again"
    )
    source(workspace)  # and `prepare` has not run yet
    assert "the images changed" in changes(workspace)
    lock(workspace)
    assert changes(workspace) is None
    monkeypatch.setattr(module, "CHEAP_BYTES", 10)
    assert changes(workspace).startswith("many files moved since the last look")
    assert changes(make("others")) is None


# --- through DVC --------------------------------------------------------------------------------


def rows(checkout: Checkout) -> list[str]:
    data = open_dataset(checkout.root / "artefacts" / "dataset")
    return data.source_ids(0, len(data))


@pytest.mark.slow
def test_dvc_never_brings_back_a_dataset_of_other_images(tmp_path):
    """Trap: DVC's run cache has a dataset of the same params, with an image that was deleted."""
    checkout = Checkout.create(tmp_path / "tspace", PARAMS.replace("PATH", "data/imgs"))
    images = checkout.root / "data" / "imgs"
    pictures(images)
    checkout.run("dvc", "repro", "prepare")
    first = rows(checkout)
    assert len(first) == 24
    checkout.commit("first")
    assert "Running stage 'prepare'" not in checkout.run("dvc", "repro", "prepare").stdout
    assert checkout.run("git", "status", "--short").stdout == ""

    for number in range(24, 30):
        picture(images / "a" / f"{number}.ppm", number)
    (images / "b" / "01.ppm").unlink()
    checkout.edit("resolution: 16", "resolution: 20")
    checkout.run("dvc", "repro", "prepare")
    assert len(rows(checkout)) == 29
    checkout.edit("resolution: 20", "resolution: 16")
    checkout.run("dvc", "repro", "prepare")
    assert len(rows(checkout)) == 29
    assert "b/01.ppm" not in rows(checkout)

    # The same number of bytes, in place.
    before = open_dataset(checkout.root / "artefacts" / "dataset").info.digest
    picture(images / "a" / "00.ppm", 1000)
    assert "Running stage 'prepare'" in checkout.run("dvc", "repro", "prepare").stdout
    assert open_dataset(checkout.root / "artefacts" / "dataset").info.digest != before


@pytest.mark.slow
def test_images_under_data_can_be_versioned_and_then_seen_by_temporary_experiments(tmp_path):
    checkout = Checkout.create(tmp_path / "tspace", PARAMS.replace("PATH", "data/imgs"))
    pictures(checkout.root / "data" / "imgs")
    temporary = ("dvc", "exp", "run", "--temp", "-S", "data.resolution=12", "prepare")
    done = checkout.run(*temporary, check=False)
    assert done.returncode
    assert "`dvc add data/imgs`, or an absolute data.path" in done.stdout + done.stderr
    checkout.run("dvc", "add", "data/imgs")
    listed = checkout.run("git", "status", "--short", "--untracked-files=all").stdout
    assert listed.split() == ["??", "data/imgs.dvc"]
    checkout.commit("images")
    # Of a target, DVC checks out only what it depends on.
    assert checkout.run(*temporary, "data/imgs.dvc").returncode == 0
    checkout.run("git", "clone", "--quiet", str(checkout.root), str(tmp_path / "clone"))
    clone = Checkout(tmp_path / "clone")
    subprocess.run(["rm", "-r", str(checkout.root / "data" / "imgs")], check=True)
    clone.run("dvc", "remote", "add", "-d", "first", str(checkout.root / ".dvc/cache"))
    clone.run("dvc", "pull", "data/imgs")
    clone.run("dvc", "repro", "prepare")
    assert len(rows(clone)) == 24
