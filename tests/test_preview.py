"""A look at raw images against what `prepare` then finds."""

import numpy as np
import pytest
from PIL import Image

from pipeline.data.dataset import prepare
from pipeline.data.preview import preview
from pipeline.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for name, count in (("cat", 3), ("dog", 5)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(count):
            image = Image.fromarray(np.full((12, 16, 3), 10 * i, np.uint8))
            image.save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def agree(tmp_path, **settings):
    seen = preview(**settings)
    info = prepare(tmp_path / "out" / "dataset.parquet", **settings)
    assert seen.exact
    assert (seen.rows, seen.resolution, seen.channels) == (
        info.rows,
        info.resolution,
        info.channels,
    )
    return seen, info


def test_a_folder_is_as_prepare_finds_it(tmp_path, folder):
    seen, info = agree(tmp_path, source="folder", path=folder)
    assert seen.class_counts == tuple(info.class_counts) == (3, 5)
    agree(tmp_path, source="folder", path=folder, resolution=8, channels=1)
    agree(tmp_path, source="folder", path=folder, limit=6)


def test_a_folder_without_classes_has_none(tmp_path, folder):
    assert preview(source="folder", path=folder / "dog").class_counts == ()


def test_digits_are_as_prepare_finds_them(tmp_path):
    seen, info = agree(tmp_path, source="digits")
    assert seen.class_counts == tuple(info.class_counts)


def test_patches_and_draws_are_as_prepare_finds_them(tmp_path, folder):
    agree(tmp_path, source="patches", path=folder, side=5)
    agree(tmp_path, source="patches", path=folder, side=5, resolution=8, limit=7)
    seen, info = agree(tmp_path, source="synthetic", limit=70)
    assert seen.class_counts == tuple(info.class_counts)


def test_what_is_not_read_to_its_end_is_said_to_be_more(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((50, 8, 8, 1), np.uint8), labels=np.arange(50))
    asked = {"source": "npz", "path": tmp_path / "a.npz"}
    assert preview(**asked).rows == 50
    hasty = preview(**asked, seconds=-1)
    assert (hasty.rows, hasty.exact) == (1, False)
    assert preview(**asked, seconds=-1, limit=1).exact


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no images"):
        preview(source="folder", path=tmp_path)
