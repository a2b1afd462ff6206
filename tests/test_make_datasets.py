"""benchmarks/make_datasets.py: folders out of packages, on packages made here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.sources.open import open_source

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import make_datasets


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["make_datasets.py", *map(str, words)])
    make_datasets.main()


def save(path, *size, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, np.uint8)).save(path)


def test_photographs_are_scaled_and_split_whole(tmp_path, monkeypatch, capsys):
    names = []
    for place, own in make_datasets.PHOTOS.values():
        for name in own.split():
            save(tmp_path / "root" / place.format(name), 20, 3840, 3, value=len(names))
            names.append(name)
    run(monkeypatch, "photos", "--root", tmp_path / "root", "--out", tmp_path / "photos")
    assert "28 photographs in train, 7 in test" in capsys.readouterr().out
    found = {
        split: {path.stem for path in (tmp_path / "photos" / split).iterdir()}
        for split in ("train", "test")
    }
    assert len(found["test"]) == 7 and found["train"] | found["test"] == set(names)
    samples = list(open_source("patches", tmp_path / "photos", "test", side=10).samples)
    # 1920 x 10, so squares in one row: all but perhaps the last, by where the grid starts.
    assert len(samples) in range(7 * 191, 7 * 192 + 1)
    with pytest.raises(SystemExit, match="photos: exists; remove it"):
        run(monkeypatch, "photos", "--root", tmp_path / "root", "--out", tmp_path / "photos")


def test_missing_photographs_are_told_by_package(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"\(9 of plasma-workspace-wallpapers, 12 of mate-back"):
        run(monkeypatch, "photos", "--root", tmp_path, "--out", tmp_path / "photos")
    assert list(tmp_path.iterdir()) == []


def test_emoji_are_sorted_into_their_groups(tmp_path, monkeypatch):
    items = []
    for number, (group, there) in enumerate(
        [("Flags", True), ("Food & Drink", True), ("Flags", False), ("Component", True)]
    ):
        name = f"{number}.png"
        items.append({"category": group, "image": name, "has_img_google": there})
        save(tmp_path / "package" / make_datasets.IMAGES / name, 64, 64, 4, value=number)
    (tmp_path / "package" / "emoji.json").write_text(json.dumps(items))
    run(monkeypatch, "emoji", tmp_path / "package", "--out", tmp_path / "emoji")
    source = open_source("folder", tmp_path / "emoji")
    assert source.classes == ("flags", "food-drink")
    assert [sample.source_id for sample in source.samples] == ["flags/0.png", "food-drink/1.png"]
    with pytest.raises(SystemExit, match=r"has no emoji\.json; get the package by `npm install"):
        run(monkeypatch, "emoji", tmp_path, "--out", tmp_path / "other")
    assert not (tmp_path / "other").exists()
