"""The source `patches`: squares of photographs, none of which overlap."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from pipeline import rows
from pipeline.data.dataset import open_dataset, prepare
from pipeline.data.sources.open import open_source
from pipeline.data.sources.patches import corners
from pipeline.data.split import Split
from pipeline.errors import UserError
from pipeline.params.load import resolve

SIZES = {"a.png": (50, 70), "b/c.png": (33, 16), "b/d.png": (16, 16), "e.png": (90, 41)}


def photograph(path, height, width, seed=0, **options):
    """Every pixel of it is another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = np.arange(height * width).reshape(height, width) + seed * 100_000
    image = np.stack([numbers >> 16, numbers >> 8, numbers], axis=2).astype(np.uint8)
    Image.fromarray(image).save(path, **options)
    return image


@pytest.fixture
def photos(tmp_path):
    made = {
        name: photograph(tmp_path / "photos" / name, *size, seed)
        for seed, (name, size) in enumerate(SIZES.items())
    }
    (tmp_path / "photos" / "about.txt").write_text("not read")
    return made


def test_squares_are_of_one_size_and_no_two_share_a_pixel(photos, tmp_path):
    samples = list(open_source("patches", tmp_path / "photos", side=16).samples)
    assert {sample.image.shape for sample in samples} == {(16, 16, 3)}
    values = np.stack([s.image for s in samples]).reshape(-1, 3).astype(int) @ [65536, 256, 1]
    assert len(np.unique(values)) == len(values)
    counts = {}
    for sample in samples:
        name, left, top = re.fullmatch(r"(.*) at (\d+),(\d+)", sample.source_id).groups()
        left, top = int(left), int(top)
        assert np.array_equal(sample.image, photos[name][top : top + 16, left : left + 16])
        assert list(SIZES)[sample.label] == name
        counts[name] = counts.get(name, 0) + 1
    assert list(counts) == list(SIZES)
    for name, (height, width) in SIZES.items():  # at most a strip short of a square on each side
        tall, wide = ({size // 16, (size - 15) // 16} for size in (height, width))
        assert counts[name] in {max(t, 1) * max(w, 1) for t in tall for w in wide}


def test_where_a_grid_starts_depends_on_the_name_alone():
    starts = [corners(160, 160, f"{number}.jpg", 16)[0] for number in range(400)]
    assert starts == [corners(160, 160, f"{number}.jpg", 16)[0] for number in range(400)]
    for axis in zip(*starts, strict=True):
        assert set(axis) == set(range(16))
    assert corners(16, 15, "x", 16) == [] and corners(16, 16, "x", 16) == [(0, 0)]
    assert {corners(17, 16, str(n), 16)[0] for n in range(20)} == {(0, 0), (1, 0)}


def test_a_limit_takes_a_fair_sample_of_all_squares(photos, tmp_path):
    whole = list(open_source("patches", tmp_path / "photos", side=8).samples)
    for limit in (1, 10, len(whole) + 5):
        found = list(open_source("patches", tmp_path / "photos", limit=limit, side=8).samples)
        chosen = rows.spread(min(limit, len(whole)), len(whole), [s.label for s in whole])
        assert [s.source_id for s in found] == [whole[row].source_id for row in chosen]


def test_a_photograph_that_lies_on_its_side_is_counted_upright(tmp_path):
    """The rows of photographs after it are else not those that were chosen."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a.png", "b.jpg"):
        assert len(corners(20, 90, name, 16)) != len(corners(90, 20, name, 16))
        photograph(tmp_path / "photos" / name, 20, 90, exif=exif)
    photograph(tmp_path / "photos" / "c.png", 60, 60)
    settings = {"source": "patches", "path": tmp_path / "photos", "side": 16}
    whole = list(open_source(**settings).samples)
    found = list(open_source(limit=len(whole) - 1, **settings).samples)
    chosen = rows.spread(len(whole) - 1, len(whole), [s.label for s in whole])
    assert [s.source_id for s in found] == [whole[row].source_id for row in chosen]


def test_splits_are_of_whole_photographs(tmp_path):
    for split, seeds in (("train", (0, 1)), ("test", (2,))):
        for seed in seeds:
            photograph(tmp_path / "photos" / split / f"{seed}.png", 40, 40, seed)
    found = {
        split: list(open_source("patches", tmp_path / "photos", split, side=16).samples)
        for split in ("train", "test")
    }
    names = {k: {s.source_id.partition(" ")[0] for s in own} for k, own in found.items()}
    assert names == {"train": {"0.png", "1.png"}, "test": {"2.png"}}
    photograph(tmp_path / "photos" / "train" / "more" / "val" / "3.png", 40, 40)
    with pytest.raises(UserError, match="has val, which is the name of a split, inside"):
        list(open_source("patches", tmp_path / "photos", side=16).samples)


def test_held_out_squares_share_no_pixel_with_those_trained_on(photos, tmp_path):
    out = tmp_path / "data.parquet"
    info = prepare(out, source="patches", path=tmp_path / "photos", side=8, limit=60)
    assert (info.rows, info.resolution, info.channels, info.classes) == (60, 8, 3, tuple(SIZES))
    assert info.settings["side"] == 8
    split = Split(open_dataset(out), 20)
    pixels = split.images(0, 60).transpose(0, 2, 3, 1).astype(int) @ [65536, 256, 1]
    assert not set(pixels[:40].ravel()) & set(pixels[40:].ravel())


def test_squares_are_scaled_as_other_images_are(photos, tmp_path):
    out = tmp_path / "data.parquet"
    keys = {"source": "patches", "path": tmp_path / "photos", "side": 16}
    info = prepare(out, **keys, resolution=4, channels=1)
    assert (info.resolution, info.channels) == (4, 1)
    first = next(iter(open_source(**keys).samples)).image
    expected = Image.fromarray(first).convert("L").resize((4, 4), Image.Resampling.LANCZOS)
    assert np.array_equal(open_dataset(out).images(0, 1)[0, 0], np.asarray(expected))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"source": "patches", "path": "photos"}, r"data\.side: missing; `patches` are squares"),
        ({"source": "digits", "side": 8}, r"data\.side: 8: only `patches` have one"),
        ({"source": "patches", "path": "photos", "sides": 8}, r"data\.sides: .*side"),
        ({"source": "patches", "path": "photos", "side": 0}, r"data\.side: "),
    ],
)
def test_wrong_keys_are_refused(data, said):
    with pytest.raises(UserError, match=said):
        resolve({"data": data, "recipes": {"one": {}}})
