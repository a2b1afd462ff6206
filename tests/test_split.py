"""pipeline/data/split.py: the held-out rows, and what planning makes of them."""

import numpy as np
import pytest

from pipeline import plan
from pipeline.data import dataset, split


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Four classes of eight images, one after the other, as a class folder has them."""
    monkeypatch.setattr(split, "BLOCK", 5)
    images = np.arange(32, dtype=np.uint8).repeat(16).reshape(32, 4, 4, 1)
    np.savez(tmp_path / "raw.npz", images=images, labels=np.repeat(range(4), 8))
    dataset.prepare(tmp_path / "data", source="npz", path=tmp_path / "raw.npz")
    return dataset.open_dataset(tmp_path / "data")


def test_held_out_rows_are_of_every_class_and_none_is_lost(folder):
    images = split.Split(folder, 8)
    assert (images.trained, len(images)) == (24, 32)
    assert np.bincount(images.labels(0, 24)).tolist() == [6, 6, 6, 6]
    assert np.bincount(images.labels(24, 32)).tolist() == [2, 2, 2, 2]
    found = images.images(0, 32)[:, 0, 0, 0]  # the number of the source's image
    assert sorted(found) == list(range(32))
    assert (found // 8 == images.labels(0, 32)).all()
    for start, stop in ((0, 7), (20, 30), (24, 32), (31, 32)):
        assert (images.images(start, stop)[:, 0, 0, 0] == found[start:stop]).all()
    blocks = list(images.blocks(3, 29))
    assert (np.concatenate([b for b, _ in blocks])[:, 0, 0, 0] == found[3:29]).all()
    assert (np.concatenate([labels for _, labels in blocks]) == images.labels(3, 29)).all()


@pytest.mark.parametrize("held_out", [0, 8])
def test_a_sample_of_the_trained_rows(folder, held_out):
    images = split.Split(folder, held_out)
    which = images.some(8)
    assert np.bincount(images.labels_of(which)).tolist() == [2, 2, 2, 2]
    for rows, found in images.chosen(which):
        assert (found == np.stack([images.images(r, r + 1)[0] for r in rows])).all()
    assert (np.concatenate([rows for rows, _ in images.chosen(which)]) == which).all()


def test_nothing_changes_without_held_out_rows(folder):
    images = split.Split(folder)
    assert (images.images(0, 32) == folder.images(0, 32)).all()
    assert (images.labels(0, 32) == folder.labels(0, 32)).all()


def test_planning_knows_the_classes_that_are_trained_on(folder):
    assert folder.info.class_counts == (8, 8, 8, 8)
    for held_out in (0, 7, 8, 31):
        facts = plan.facts(folder.info, held_out)
        labels = split.Split(folder, held_out).labels(0, facts.rows)
        assert facts.class_counts == tuple(np.bincount(labels, minlength=4))
